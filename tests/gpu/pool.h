// Runs tasks in a pool of child processes, so that a kernel that hangs or breaks the device costs one task.
#ifndef GPU_POOL_H
#define GPU_POOL_H

#include <stddef.h>

typedef struct {
    int count, jobs;                 // tasks; processes at a time
    double limit;                    // seconds that a task may take
    size_t result_bytes;
    char *results;                   // [count, result_bytes]
    // In the child: fills the result. Returns 0 if the process is no longer fit for another task.
    int (*work)(void *context, int task, void *result);
    // In the parent: what is to be said of a task whose process ended or was stopped. `why` is one line.
    void (*lost)(void *context, int task, void *result, const char *why);
    void (*done)(void *context, int finished); // may be null
    void *context;
} pool;

// Returns an exit code: KG_MACHINE if no process can be had. The caller must not have touched CUDA.
int pool_run(pool *pool);

#endif
