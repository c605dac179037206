// Folders that live for a moment, in the user's cache folder: KT_CACHE_DIR, $XDG_CACHE_HOME/kittygen or ~/.cache/kittygen.
#ifndef KG_TEMPORARY_H
#define KG_TEMPORARY_H

#include <stddef.h>

#include "text.h"

// The cache folder: the runtime's choice; without any, one of the user's under /tmp. Returns the path's length, KG_PATH or more where it
// was cut short.
int kg_cache_folder(char path[KG_PATH]);

// Makes an empty folder. Returns KG_OK or KG_MACHINE.
int kg_temporary_make(char path[KG_PATH], char *error, size_t error_size);
// Removes it with the files in it; what cannot be removed is left.
void kg_temporary_remove(const char *path);

#endif
