// Cubins on disk. A file is a header (what it was made from, statistics, digest of everything) and the cubin; a truncated
// or damaged file is noticed and made again. Files appear whole, by rename, so that processes may share a folder.
#ifndef KT_CUBIN_CACHE_H
#define KT_CUBIN_CACHE_H

#include <pthread.h>

#include "nvrtc.h"

enum { KT__ARCH = 16 }; // bytes of "sm_90a"

typedef enum { KT__FROM_BUNDLE, KT__FROM_CACHE, KT__COMPILED } kt__cubin_origin;

// Where cubins come from: the package's own folder `cubin/ARCH/KERNEL.cubin`, else the cache, else NVRTC.
typedef struct {
    kt__environment environment;
    char bundle[3072];   // folder of the package; empty: no bundle is looked at
    bool have_nvrtc;
    char no_nvrtc[3072]; // why there is none
    kt__nvrtc nvrtc;
    bool write_bundle;   // make the bundle: do not read it, store every cubin there
    pthread_mutex_t lock;
} kt__cubins;

// `newest_major`: see kt__nvrtc_find. A missing NVRTC is not an error yet: the cubins may be ready.
void kt__cubins_open(kt__cubins *cubins, const kt__environment *environment, const char *bundle, int newest_major);
void kt__cubins_close(kt__cubins *cubins);

// A kernel's cubin for a real architecture; thread-safe. KT_COMPILE, KT_IO (the cache cannot be written), KT_UNSUPPORTED
// (no NVRTC, and not ready).
kt_status kt__cubins_get(kt__cubins *cubins, const kt__kernel *kernel, const char *arch, kt__cubin *cubin, kt__cubin_origin *origin);

// Writes one file of the cache or a bundle, whole or not at all, and the folders to it. Returns 0 or an errno.
int kt__cubin_write(const char *path, const kt__kernel *kernel, const char *arch, const kt__nvrtc *nvrtc, const kt__cubin *cubin);

// ---- many at once (compile.c) ----
typedef struct {
    const kt__kernel *kernel;
    char arch[KT__ARCH];
    kt__cubin cubin;         // result, owned by the job
    kt__cubin_origin origin; // result
    kt_status status;        // result
    char message[2048];      // result
} kt__compile_job;

// Works through the jobs on `threads` threads (0: one per processor); `done` (may be null) is called with the number of
// finished jobs, by one thread at a time. Returns the first failed job's status in job order, with its message.
kt_status kt__compile_all(kt__cubins *cubins, kt__compile_job *jobs, int count, int threads, void (*done)(void *, int), void *context);

// Path of a file in the cache, for tests and messages.
kt_status kt__cubins_path(const kt__cubins *cubins, const kt__kernel *kernel, const char *arch, char *path, size_t size);

#endif
