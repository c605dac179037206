// libnvrtc.so.13 that compiles nothing, for commands over the made-up card of cuda.c. From the environment, kernels by their configuration
// ("6x2x2x2"), or several with commas: FAKE_SPILLS, whose registers spill; FAKE_BROKEN, that do not compile.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef struct {
    char kernel[64], log[512];
} program;

static int listed(const char *name, const char *kernel)
{
    const char *list = getenv(name), *prefix = "attend_";
    if (strncmp(kernel, prefix, strlen(prefix)))
        return 0;
    kernel += strlen(prefix);
    for (const char *word = list; word && *word; word += strcspn(word, ","), word += *word == ',')
        if (strcspn(word, ",") == strlen(kernel) && !strncmp(word, kernel, strlen(kernel)))
            return 1;
    return 0;
}

EXPORT int nvrtcVersion(int *major, int *minor) { *major = 13; *minor = 0; return 0; }
EXPORT int nvrtcGetNumSupportedArchs(int *count) { *count = 1; return 0; }
EXPORT int nvrtcGetSupportedArchs(int *archs) { *archs = 90; return 0; }
EXPORT int nvrtcCreateProgram(void **to, const char *source, const char *name, int headers, const char *const *texts, const char *const *names)
{
    program *p = calloc(1, sizeof *p);
    (void)source, (void)headers, (void)texts, (void)names;
    snprintf(p->kernel, sizeof p->kernel, "%.*s", (int)(strlen(name) - strlen(".cu")), name);
    *to = p;
    return 0;
}
EXPORT int nvrtcDestroyProgram(void **p) { free(*p); *p = 0; return 0; }
EXPORT int nvrtcCompileProgram(void *from, int count, const char *const *options)
{
    program *p = from;
    (void)count, (void)options;
    if (listed("FAKE_BROKEN", p->kernel)) {
        snprintf(p->log, sizeof p->log, "%s.cu(1): error: as the test wants it\n", p->kernel);
        return 6;
    }
    const int spilled = listed("FAKE_SPILLS", p->kernel) ? 256 : 0;
    snprintf(p->log, sizeof p->log, "ptxas info : Compiling entry function 'kitty_%s' for 'sm_90a'\n    0 bytes stack frame, %d bytes spill stores, %d bytes "
             "spill loads\nptxas info : Used 128 registers\n", p->kernel, spilled, spilled);
    return 0;
}
EXPORT int nvrtcGetCUBINSize(void *p, size_t *bytes) { *bytes = strlen(((program *)p)->kernel); return 0; }
EXPORT int nvrtcGetCUBIN(void *p, char *cubin) { memcpy(cubin, ((program *)p)->kernel, strlen(((program *)p)->kernel)); return 0; }
EXPORT int nvrtcGetProgramLogSize(void *p, size_t *bytes) { *bytes = strlen(((program *)p)->log) + 1; return 0; }
EXPORT int nvrtcGetProgramLog(void *p, char *log) { strcpy(log, ((program *)p)->log); return 0; }
EXPORT const char *nvrtcGetErrorString(int result) { return result == 6 ? "NVRTC_ERROR_COMPILATION" : "NVRTC_SUCCESS"; }
