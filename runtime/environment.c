#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *variable(const char *name)
{
    const char *value = getenv(name);
    return value ? value : "";
}

// A path that does not fit is as good as none: the folder is then refused where it is needed.
static void set(char *to, size_t size, const char *folder, const char *under)
{
    if ((size_t)snprintf(to, size, "%s%s", folder, under) >= size)
        *to = 0;
}

void kt__environment_read(kt__environment *e)
{
    memset(e, 0, sizeof *e);
    const char *cache = variable("KT_CACHE_DIR"), *xdg = variable("XDG_CACHE_HOME"), *home = variable("HOME");
    if (*cache)
        set(e->cache_dir, sizeof e->cache_dir, cache, "");
    else if (*xdg == '/') // the XDG specification has relative paths ignored
        set(e->cache_dir, sizeof e->cache_dir, xdg, "/kittygen");
    else if (*home)
        set(e->cache_dir, sizeof e->cache_dir, home, "/.cache/kittygen");
    set(e->cuda_home, sizeof e->cuda_home, variable("KT_CUDA_HOME"), "");
    set(e->dump_dir, sizeof e->dump_dir, variable("KT_DUMP"), "");
    e->log = atoi(variable("KT_LOG"));
    const char *no_jit = variable("KT_NO_JIT");
    e->no_jit = *no_jit && strcmp(no_jit, "0") != 0;
}
