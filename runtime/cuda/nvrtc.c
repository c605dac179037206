#define _GNU_SOURCE // dlinfo
#include "nvrtc.h"

#include <dlfcn.h>
#include <glob.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

const char *const kt__nvrtc_options = "-std=c++17 --fmad=true --ptxas-options=-v";

// ---- finding ---------------------------------------------------------------------------------------------------------

// Reasons for each candidate that was not taken, for the message.
typedef struct {
    char text[2048];
    int found, newest_major;
} search;

static void say(search *s, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void say(search *s, const char *format, ...)
{
    const size_t used = strlen(s->text);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(s->text + used, sizeof s->text - used, format, arguments);
    va_end(arguments);
}

// Version in the name of the builtins beside a library of that major version; false: no builtins there.
static bool builtins_version(const char *folder, int *major, int *minor)
{
    char pattern[4096];
    glob_t names = {0};
    bool found = false;
    if ((size_t)snprintf(pattern, sizeof pattern, "%s/libnvrtc-builtins.so.*", folder) >= sizeof pattern)
        return false;
    if (!glob(pattern, 0, 0, &names))
        for (size_t i = 0; i < names.gl_pathc && !found; i++) {
            int a, b;
            const char *suffix = strrchr(names.gl_pathv[i], '/') + sizeof "/libnvrtc-builtins.so." - 1;
            if (sscanf(suffix, "%d.%d", &a, &b) == 2 && (!*major || a == *major)) {
                *major = a;
                *minor = b;
                found = true;
            }
        }
    globfree(&names);
    return found;
}

// Takes the newest libnvrtc.so.N of a folder if its builtins lie beside it.
static bool try_folder(search *s, const char *folder, kt__nvrtc *nvrtc)
{
    char pattern[4096];
    glob_t names = {0};
    bool taken = false;
    if ((size_t)snprintf(pattern, sizeof pattern, "%s/libnvrtc.so.[0-9]*", folder) >= sizeof pattern)
        return false;
    if (!glob(pattern, 0, 0, &names))
        for (size_t i = names.gl_pathc; i-- > 0 && !taken;) {
            const char *path = names.gl_pathv[i];
            int major = atoi(strrchr(path, '/') + sizeof "/libnvrtc.so." - 1), minor = 0;
            if (s->newest_major && major > s->newest_major)
                say(s, "; %s: newer than the driver's CUDA %d", path, s->newest_major);
            else if (!builtins_version(folder, &major, &minor))
                say(s, "; %s: no libnvrtc-builtins.so.%d.* beside it", path, major);
            else if (strlen(path) < sizeof nvrtc->path) {
                strcpy(nvrtc->path, path);
                nvrtc->major = major;
                nvrtc->minor = minor;
                taken = true;
            }
        }
    globfree(&names);
    return taken;
}

static bool try_pattern(search *s, const char *root, const char *pattern, kt__nvrtc *nvrtc)
{
    char path[4096];
    glob_t names = {0};
    bool taken = false;
    if (!root || !*root || (size_t)snprintf(path, sizeof path, "%s%s", root, pattern) >= sizeof path)
        return false;
    if (!glob(path, 0, 0, &names))
        for (size_t i = names.gl_pathc; i-- > 0 && !taken;) // newest version first
            taken = try_folder(s, names.gl_pathv[i], nvrtc);
    globfree(&names);
    return taken;
}

static bool try_toolkit(search *s, const char *home, kt__nvrtc *nvrtc)
{
    return try_pattern(s, home, "/lib64", nvrtc) || try_pattern(s, home, "/lib", nvrtc) ||
           try_pattern(s, home, "/targets/*-linux/lib", nvrtc);
}

static bool try_wheels(search *s, const char *root, const char *python, kt__nvrtc *nvrtc)
{
    char pattern[256];
    for (int i = 0; i < 2; i++) {
        snprintf(pattern, sizeof pattern, "%s/nvidia/%s/lib", python, i ? "cuda_nvrtc" : "cu[0-9]*");
        if (try_pattern(s, root, pattern, nvrtc))
            return true;
    }
    return false;
}

// The loader's own search (LD_LIBRARY_PATH, ld.so.cache, or already loaded by the process).
static bool try_loader(search *s, kt__nvrtc *nvrtc)
{
    static const char *const names[] = {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char folder[4096];
        void *library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        if (!library)
            continue;
        int (*version)(int *, int *) = 0;
        *(void **)&version = dlsym(library, "nvrtcVersion");
        int major = 0, minor = 0;
        if (dlinfo(library, RTLD_DI_ORIGIN, folder) || !version || version(&major, &minor))
            say(s, "; %s: loads, but does not tell its version", names[i]);
        else if (s->newest_major && major > s->newest_major)
            say(s, "; %s/%s: newer than the driver's CUDA %d", folder, names[i], s->newest_major);
        else if (!builtins_version(folder, &major, &minor))
            say(s, "; %s/%s: no libnvrtc-builtins.so.%d.* beside it", folder, names[i], major);
        else {
            snprintf(nvrtc->path, sizeof nvrtc->path, "%s", names[i]);
            nvrtc->major = major;
            nvrtc->minor = minor;
            nvrtc->library = library;
            return true;
        }
        dlclose(library);
    }
    return false;
}

kt_status kt__nvrtc_find(const kt__environment *environment, int newest_major, kt__nvrtc *nvrtc)
{
    *nvrtc = (kt__nvrtc){0};
    search s = {.newest_major = newest_major};
    const char *home = getenv("HOME"), *wheels = "/lib/python3*/site-packages";
    if (*environment->cuda_home) { // asked for: nothing else will do
        if (try_toolkit(&s, environment->cuda_home, nvrtc) || try_folder(&s, environment->cuda_home, nvrtc))
            return KT_OK;
        return kt__fail(KT_UNSUPPORTED, "NVRTC not found in KT_CUDA_HOME=%s (its lib64, lib, targets/*/lib)%s", environment->cuda_home, s.text);
    }
    if (try_toolkit(&s, getenv("CUDA_HOME"), nvrtc) || try_toolkit(&s, "/usr/local/cuda", nvrtc) ||
        try_pattern(&s, "/usr/local", "/cuda-*/lib64", nvrtc) || try_loader(&s, nvrtc) ||
        try_wheels(&s, getenv("VIRTUAL_ENV"), wheels, nvrtc) || try_wheels(&s, getenv("CONDA_PREFIX"), wheels, nvrtc) ||
        try_pattern(&s, getenv("CONDA_PREFIX"), "/lib", nvrtc) || try_wheels(&s, home, "/.local/lib/python3*/site-packages", nvrtc) ||
        try_wheels(&s, "/usr", "/local/lib/python3*/dist-packages", nvrtc) || try_wheels(&s, "/usr/local", wheels, nvrtc) ||
        try_wheels(&s, "/usr", "/lib/python3*/dist-packages", nvrtc))
        return KT_OK;
    return kt__fail(KT_UNSUPPORTED,
                    "NVRTC not found: looked in CUDA_HOME, /usr/local/cuda*, for libnvrtc.so.13, .12 and .so in the library path, and in "
                    "nvidia/*/lib of the Python packages of VIRTUAL_ENV, CONDA_PREFIX, ~/.local, /usr/local and /usr%s; set KT_CUDA_HOME to "
                    "a CUDA toolkit, or `pip install nvidia-cuda-nvrtc`",
                    s.text);
}

kt_status kt__nvrtc_load(kt__nvrtc *nvrtc)
{
    if (nvrtc->loaded)
        return KT_OK;
    if (!nvrtc->library)
        nvrtc->library = dlopen(nvrtc->path, RTLD_NOW | RTLD_LOCAL);
    if (!nvrtc->library)
        return kt__fail(KT_UNSUPPORTED, "NVRTC does not load: %s", dlerror());
    kt__nvrtc_calls *calls = &nvrtc->calls;
    const struct { const char *name; void *to; } wanted[] = {
#define X(member, name, result, parameters) {#name, &calls->member},
        KT_NVRTC_CALLS(X)
#undef X
    };
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        void *found = dlsym(nvrtc->library, wanted[i].name);
        if (!found)
            return kt__fail(KT_UNSUPPORTED, "%s has no %s; an NVRTC of CUDA 12 or newer is needed", nvrtc->path, wanted[i].name);
        memcpy(wanted[i].to, &found, sizeof found);
    }
    int major = 0, minor = 0;
    if (calls->version(&major, &minor) || major != nvrtc->major || minor != nvrtc->minor)
        return kt__fail(KT_UNSUPPORTED, "%s is NVRTC %d.%d, but the builtins beside it are %d.%d; set KT_CUDA_HOME to a whole toolkit",
                        nvrtc->path, major, minor, nvrtc->major, nvrtc->minor);
    nvrtc->loaded = true;
    return KT_OK;
}

// ---- compiling -------------------------------------------------------------------------------------------------------

// The number that stands right before `unit` in [text, end), or `otherwise`.
static int number_before(const char *text, const char *end, const char *unit, int otherwise)
{
    const char *at = strstr(text, unit);
    if (!at || at >= end)
        return otherwise;
    while (at > text && at[-1] >= '0' && at[-1] <= '9')
        at--;
    return atoi(at);
}

// "Compiling entry function 'NAME' for 'sm_90a'", then until the next such line
// "40 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads" and "Used 31 registers, ..., 128 bytes smem, ...".
static kt__cubin_stats read_stats(const char *log, const char *entry)
{
    kt__cubin_stats stats = {-1, -1, -1, -1, -1, 0};
    char start[128];
    snprintf(start, sizeof start, "Compiling entry function '%s'", entry);
    const char *text = strstr(log, start);
    if (!text)
        return stats;
    text += strlen(start);
    const char *end = strstr(text, "Compiling entry function");
    if (!end)
        end = text + strlen(text);
    stats.stack = number_before(text, end, " bytes stack frame", -1);
    stats.spill_stores = number_before(text, end, " bytes spill stores", -1);
    stats.spill_loads = number_before(text, end, " bytes spill loads", -1);
    stats.registers = number_before(text, end, " registers", -1);
    if (stats.registers >= 0)
        stats.shared = number_before(text, end, " bytes smem", 0);
    return stats;
}

static kt_status check_arch(const kt__nvrtc *nvrtc, const char *arch)
{
    int count = 0, known[256];
    if (nvrtc->calls.arch_count(&count) || count > (int)(sizeof known / sizeof *known) ||
        nvrtc->calls.arch_list(known))
        return KT_OK; // it will say so itself
    char list[512] = "";
    for (int i = 0; i < count; i++) {
        if (known[i] == atoi(arch + 3))
            return KT_OK;
        const size_t used = strlen(list);
        snprintf(list + used, sizeof list - used, " sm_%d", known[i]);
    }
    return kt__fail(KT_UNSUPPORTED, "NVRTC %d.%d (%s) does not know %s; it knows%s: set KT_CUDA_HOME to a newer CUDA", nvrtc->major,
                    nvrtc->minor, nvrtc->path, arch, list);
}

// The log's first lines that are not about resources.
static void first_lines(const char *log, char *to, size_t size)
{
    int lines = 0;
    *to = 0;
    for (const char *line = log, *next; *line && lines < 12; line = next) {
        next = line + strcspn(line, "\n");
        next += *next == '\n';
        if (!strncmp(line, "ptxas info", 10) || !strncmp(line, "ptxas    ", 9))
            continue;
        const size_t used = strlen(to);
        snprintf(to + used, size - used, "%.*s", (int)(next - line), line);
        lines++;
    }
    for (size_t n = strlen(to); n && to[n - 1] == '\n'; n--)
        to[n - 1] = 0;
}

static char *read_log(const kt__nvrtc *nvrtc, kt__program program)
{
    size_t bytes = 0;
    if (nvrtc->calls.log_size(program, &bytes))
        return 0;
    char *log = calloc(1, bytes + 1);
    if (log && bytes && nvrtc->calls.log(program, log))
        *log = 0;
    return log;
}

kt_status kt__nvrtc_compile(const kt__nvrtc *nvrtc, const kt__kernel *kernel, const char *arch, kt__cubin *cubin)
{
    *cubin = (kt__cubin){0};
    const kt__nvrtc_calls *calls = &nvrtc->calls;
    char name[80], options[128], lines[1536], target[64];
    const char *list[8];
    int count = 0;
    struct timespec begin, end;
    kt__program program = 0;
    char *log = 0;
    kt_status status = check_arch(nvrtc, arch);
    if (status)
        return status;

    snprintf(target, sizeof target, "--gpu-architecture=%s", arch);
    list[count++] = target;
    strcpy(options, kt__nvrtc_options);
    for (char *rest = 0, *word = strtok_r(options, " ", &rest); word; word = strtok_r(0, " ", &rest))
        list[count++] = word;
    if (nvrtc->major > 12 || (nvrtc->major == 12 && nvrtc->minor >= 9))
        list[count++] = "--no-cache"; // NVRTC's own; on a hit it does not say what ptxas said
    snprintf(name, sizeof name, "%s.cu", kernel->name);

    clock_gettime(CLOCK_MONOTONIC, &begin);
    int result = calls->create(&program, kernel->source, name, 0, 0, 0);
    if (!result)
        result = calls->compile(program, count, list);
    clock_gettime(CLOCK_MONOTONIC, &end);
    log = program ? read_log(nvrtc, program) : 0;
    if (!result)
        result = calls->cubin_size(program, &cubin->bytes);
    if (result) {
        first_lines(log ? log : "", lines, sizeof lines);
        status = kt__fail(KT_COMPILE, "%s for %s with NVRTC %d.%d: %s\n%s", name, arch, nvrtc->major, nvrtc->minor,
                          calls->error_text(result), lines);
        goto fail;
    }
    cubin->data = malloc(cubin->bytes);
    if (!cubin->data || calls->cubin(program, (char *)cubin->data)) {
        status = kt__fail(KT_MEMORY, "%s for %s: no memory for %zu bytes", name, arch, cubin->bytes);
        goto fail;
    }
    cubin->stats = read_stats(log ? log : "", kernel->entry);
    cubin->stats.milliseconds = (int)((end.tv_sec - begin.tv_sec) * 1000 + (end.tv_nsec - begin.tv_nsec) / 1000000);
fail:
    if (program)
        calls->destroy(&program);
    free(log);
    if (status)
        kt__cubin_free(cubin);
    return status;
}

void kt__cubin_free(kt__cubin *cubin)
{
    free(cubin->data);
    *cubin = (kt__cubin){0};
}
