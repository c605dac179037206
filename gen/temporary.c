#include "temporary.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "internal.h"

int kg_cache_folder(char path[KG_PATH])
{
    kt__environment environment;
    kt__environment_read(&environment);
    if (*environment.cache_dir)
        return snprintf(path, KG_PATH, "%s", environment.cache_dir);
    return snprintf(path, KG_PATH, "/tmp/kittygen-%ld", (long)getuid());
}

int kg_temporary_make(char path[KG_PATH], char *error, size_t error_size)
{
    const int length = kg_cache_folder(path);
    if (length >= KG_PATH || snprintf(path + length, (size_t)(KG_PATH - length), "/run-XXXXXX") >= KG_PATH - length)
        return kg_fail(KG_MACHINE, error, error_size, "the cache folder's path is too long; set KT_CACHE_DIR");
    if (kg_make_folders(path) || !mkdtemp(path))
        return kg_fail(KG_MACHINE, error, error_size, "%s: %s; set KT_CACHE_DIR", path, strerror(errno));
    return KG_OK;
}

void kg_temporary_remove(const char *path)
{
    DIR *folder = opendir(path);
    for (struct dirent *entry; folder && (entry = readdir(folder));)
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
            unlinkat(dirfd(folder), entry->d_name, 0);
    if (folder)
        closedir(folder);
    rmdir(path);
}
