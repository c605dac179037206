// Which kernels are the same: those whose sources are, header comment aside. It names the spec and the command that made them.
#ifndef KITTY_EMULATE_BODY_H
#define KITTY_EMULATE_BODY_H

#include <string.h>

static inline const char *kernel_body(const char *source)
{
    while (!strncmp(source, "//", 2)) {
        const char *end = strchr(source, '\n');
        if (!end)
            break;
        source = end + 1;
    }
    return source;
}

#endif
