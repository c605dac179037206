// The part of the CUDA driver API that the suite calls itself: streams, events and graphs. Loaded at run time.
#ifndef GPU_CUDA_H
#define GPU_CUDA_H

#include <stddef.h>

typedef void *cuda_handle;

// Loads the driver and holds the device's primary context, current on this thread, until the process ends. Calls after the
// first do nothing. Returns an exit code.
int cuda_hold(void);
int cuda_l2_bytes(size_t *bytes);

int cuda_stream_open(cuda_handle *stream);
int cuda_stream_wait(cuda_handle stream);
void cuda_stream_close(cuda_handle stream); // null is fine

// Everything queued on the stream from begin to end becomes a graph that can be launched.
int cuda_capture_begin(cuda_handle stream);
int cuda_capture_end(cuda_handle stream, cuda_handle *graph);
int cuda_graph_launch(cuda_handle graph, cuda_handle stream);
void cuda_graph_close(cuda_handle graph); // null is fine

// Launches the graph `count` times and stores the microseconds of each launch.
int cuda_graph_time(cuda_handle graph, cuda_handle stream, int count, float *microseconds);

#endif
