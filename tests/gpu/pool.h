// Runs tasks in a pool of child processes, so that a kernel that hangs or breaks the device costs one task.
#ifndef GPU_POOL_H
#define GPU_POOL_H

#include <stddef.h>

// How a task ended; every result begins with it.
typedef struct {
    int code;            // an exit code
    char message[2048];  // where it is not KG_OK
} pool_result;

typedef struct {
    const char *what;                // "cases", for the progress bar
    int count, jobs;                 // tasks; processes at a time, 0: in this one, without a limit or a bar
    double limit;                    // seconds that a task may take
    size_t result_bytes;
    char *results;                   // [count, result_bytes], zero
    // Fills the rest of the result and returns its code, with `failure` set. After KG_MACHINE the device answers nothing more in this
    // process, which takes no other task.
    int (*work)(void *context, int task, void *result);
    void *context;
} pool;

// Returns an exit code: KG_MACHINE if no process can be had. With jobs the caller must not have touched CUDA.
int pool_run(const pool *pool);

#endif
