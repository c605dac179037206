// The CUDA driver, for commands that time or check kernels: memory, streams, graphs, events, modules. Loaded at run time.
// Functions return an exit code (text.h); on failure `error` (KG_ERROR bytes) says why. Close functions take null.
#ifndef KG_GPU_H
#define KG_GPU_H

#include <stddef.h>

typedef void *kg_handle;

typedef struct {
    char name[128];
    int multiprocessors, major, minor; // compute capability
    int shared_limit;                  // bytes of shared memory that a block may have
    size_t l2_bytes;
} kg_gpu;

// Loads the driver and holds device 0's primary context, current on this thread, until the process ends. Calls after the
// first do nothing. KG_MACHINE where there is no GPU.
int kg_gpu_hold(char *error);
int kg_gpu_query(kg_gpu *gpu, char *error);
int kg_gpu_free_bytes(size_t *bytes, char *error);

int kg_gpu_alloc(size_t bytes, void **address, char *error);
void kg_gpu_free(void *address);
// Both wait until the copy is done.
int kg_gpu_write(void *to, const void *from, size_t bytes, char *error);
int kg_gpu_read(void *to, const void *from, size_t bytes, char *error);
// From device to device, queued.
int kg_gpu_copy(void *to, const void *from, size_t bytes, kg_handle stream, char *error);

int kg_gpu_stream_open(kg_handle *stream, char *error);
int kg_gpu_stream_wait(kg_handle stream, char *error);
void kg_gpu_stream_close(kg_handle stream);

// Everything queued on the stream from begin to end becomes a graph that can be launched.
int kg_gpu_capture_begin(kg_handle stream, char *error);
int kg_gpu_capture_end(kg_handle stream, kg_handle *graph, char *error);
int kg_gpu_graph_launch(kg_handle graph, kg_handle stream, char *error);
void kg_gpu_graph_close(kg_handle graph);
// Launches the graph `count` times and stores the microseconds of each launch.
int kg_gpu_graph_time(kg_handle graph, kg_handle stream, int count, float *microseconds, char *error);

int kg_gpu_event_open(kg_handle *event, char *error);
int kg_gpu_event_record(kg_handle event, kg_handle stream, char *error);
// Between two events that have passed.
int kg_gpu_event_time(kg_handle from, kg_handle to, float *microseconds, char *error);
void kg_gpu_event_close(kg_handle event);

int kg_gpu_module_open(const void *cubin, kg_handle *module, char *error);
void kg_gpu_module_close(kg_handle module);
// An entry whose blocks may have `shared` bytes of dynamic shared memory.
int kg_gpu_function(kg_handle module, const char *name, int shared, kg_handle *function, char *error);
int kg_gpu_launch(kg_handle function, int blocks, int threads, int shared, kg_handle stream, void **parameters, char *error);

#endif
