#include "driver.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static pthread_once_t once = PTHREAD_ONCE_INIT;
static kt__driver loaded;
static char problem[512]; // empty: loaded

static void load(void)
{
    static const struct { const char *name; size_t offset; } calls[] = {
#define X(member, name, parameters) {#name, offsetof(kt__driver, member)},
        KT_DRIVER_CALLS(X)
#undef X
    };
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        snprintf(problem, sizeof problem, "no NVIDIA driver: %s", dlerror());
        return;
    }
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        void *call = dlsym(library, calls[i].name);
        if (!call) {
            snprintf(problem, sizeof problem, "the NVIDIA driver (libcuda.so.1) has no %s; a driver for CUDA 12 or newer is needed", calls[i].name);
            return;
        }
        memcpy((char *)&loaded + calls[i].offset, &call, sizeof call);
    }
}

kt_status kt__driver_load(const kt__driver **driver)
{
    *driver = 0;
    pthread_once(&once, load);
    if (*problem)
        return kt__fail(KT_UNSUPPORTED, "%s", problem);
    *driver = &loaded;
    return KT_OK;
}

kt_status kt__driver_fail(const kt__driver *driver, int result, const char *format, ...)
{
    char what[1024];
    const char *name = 0, *text = 0;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    if (driver->error_name(result, &name) || !name)
        name = "unknown error";
    if (driver->error_text(result, &text) || !text)
        text = "no description";
    return kt__fail(result == KT__CUDA_OUT_OF_MEMORY ? KT_MEMORY : KT_DEVICE, "%s: %s: %s (%d)", what, name, text, result);
}
