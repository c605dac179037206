// NVRTC, found and loaded at run time: CUDA C++ text to a cubin for one real architecture. Needs no GPU.
#ifndef KT_NVRTC_H
#define KT_NVRTC_H

#include "../internal.h"

// What ptxas says about a kernel, in bytes where not said otherwise; -1: unknown.
typedef struct {
    int registers;    // per thread
    int shared;       // static
    int spill_stores; // in the code of a thread, as ptxas counts them
    int spill_loads;
    int stack;        // frame
    int milliseconds; // that the compilation took
} kt__cubin_stats;

typedef struct {
    unsigned char *data; // owned
    size_t bytes;
    kt__cubin_stats stats;
} kt__cubin;

typedef void *kt__program;

// X(member, exported name, result, parameters); an int result is an nvrtcResult: 0 is success.
#define KT_NVRTC_CALLS(X)                                                                                           \
    X(version, nvrtcVersion, int, (int *major, int *minor))                                                         \
    X(arch_count, nvrtcGetNumSupportedArchs, int, (int *count))                                                     \
    X(arch_list, nvrtcGetSupportedArchs, int, (int *archs))                                                         \
    X(create, nvrtcCreateProgram, int, (kt__program *program, const char *source, const char *name, int headers,    \
                                        const char *const *texts, const char *const *names))                        \
    X(destroy, nvrtcDestroyProgram, int, (kt__program *program))                                                    \
    X(compile, nvrtcCompileProgram, int, (kt__program program, int count, const char *const *options))              \
    X(cubin_size, nvrtcGetCUBINSize, int, (kt__program program, size_t *bytes))                                     \
    X(cubin, nvrtcGetCUBIN, int, (kt__program program, char *cubin))                                                \
    X(log_size, nvrtcGetProgramLogSize, int, (kt__program program, size_t *bytes))                                  \
    X(log, nvrtcGetProgramLog, int, (kt__program program, char *log))                                               \
    X(error_text, nvrtcGetErrorString, const char *, (int result))

typedef struct {
#define X(member, name, result, parameters) result(*member) parameters;
    KT_NVRTC_CALLS(X)
#undef X
} kt__nvrtc_calls;

typedef struct {
    char path[4096]; // the library
    int major, minor;
    void *library;   // null until it is first needed
    bool loaded;     // `calls` are there
    kt__nvrtc_calls calls;
} kt__nvrtc;

// Looks for an NVRTC with its builtins beside it: KT_CUDA_HOME, CUDA_HOME, /usr/local/cuda*, the loader's own search, pip's
// wheels. The first one that is no newer than CUDA `newest_major` (0: any) is taken; a folder's is not loaded yet: its
// version is in the name of the builtins. KT_UNSUPPORTED: none; the message lists what was looked for and what was wrong.
kt_status kt__nvrtc_find(const kt__environment *environment, int newest_major, kt__nvrtc *nvrtc);

// Loads it now. Not thread-safe; kt__nvrtc_compile is, once this has returned KT_OK. It stays loaded for good.
kt_status kt__nvrtc_load(kt__nvrtc *nvrtc);

// The options every kernel is compiled with, but for the architecture; part of a cubin's key.
extern const char *const kt__nvrtc_options;

// KT_COMPILE: the source is wrong, the message has the first lines of the log; KT_UNSUPPORTED: an architecture that this
// NVRTC does not know, the message says which it knows.
kt_status kt__nvrtc_compile(const kt__nvrtc *nvrtc, const kt__kernel *kernel, const char *arch, kt__cubin *cubin);
void kt__cubin_free(kt__cubin *cubin);

#endif
