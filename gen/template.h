// Templates: CUDA text in which a line that begins with //@ is Lua, and $name is replaced by the Lua global `name`.
#ifndef KG_TEMPLATE_H
#define KG_TEMPLATE_H

#include "text.h"

typedef struct {
    const char *name;
    const char *value; // null: the number
    int number;
} kg_template_value;

// Expands `folder`/`file` onto `out`. In Lua lines: the given values, `include "FILE"` (expanded in place,
// relative to `folder`) and `emit(TEXT)`. Templates are the project's own: trusted, but confined to pure Lua.
// Returns KG_OK or KG_MACHINE with the file and line that failed.
int kg_template_expand(const char *folder, const char *file, const kg_template_value *values, int count, kg_text *out,
                       char *error, size_t error_size);

#endif
