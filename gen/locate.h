// Finds where a Lua text sets a field. Tables carry no lines, so this reads the text again, as tokens, not as a program.
#ifndef KG_LOCATE_H
#define KG_LOCATE_H

#include "fields.h"

// Looks for `path = value` ("key.boost.bits"), also inside `key = { boost = { bits = ...`. Returns how well the best place
// matches, 0 for none, and its line. `value` may be null.
int kg_locate(const char *text, const char *path, const kg_value *value, int *line);

#endif
