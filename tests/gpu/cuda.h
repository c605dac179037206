// The CUDA driver as the suite calls it: gen/gpu.h, with its messages in `failure`.
#ifndef GPU_CUDA_H
#define GPU_CUDA_H

#include "gpu.h"
#include "support.h"

typedef kg_handle cuda_handle;

static inline int cuda_hold(void) { return kg_gpu_hold(failure); }
static inline int cuda_l2_bytes(size_t *bytes)
{
    kg_gpu gpu = {0};
    const int code = kg_gpu_query(&gpu, failure);
    *bytes = gpu.l2_bytes;
    return code;
}
static inline int cuda_stream_open(cuda_handle *stream) { return kg_gpu_stream_open(stream, failure); }
static inline int cuda_stream_wait(cuda_handle stream) { return kg_gpu_stream_wait(stream, failure); }
static inline void cuda_stream_close(cuda_handle stream) { kg_gpu_stream_close(stream); }
static inline int cuda_capture_begin(cuda_handle stream) { return kg_gpu_capture_begin(stream, failure); }
static inline int cuda_capture_end(cuda_handle stream, cuda_handle *graph) { return kg_gpu_capture_end(stream, graph, failure); }
static inline int cuda_graph_launch(cuda_handle graph, cuda_handle stream) { return kg_gpu_graph_launch(graph, stream, failure); }
static inline void cuda_graph_close(cuda_handle graph) { kg_gpu_graph_close(graph); }
static inline int cuda_graph_time(cuda_handle graph, cuda_handle stream, int count, float *microseconds)
{
    return kg_gpu_graph_time(graph, stream, count, microseconds, failure);
}

#endif
