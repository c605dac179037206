#include "cuda.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "support.h"

enum { CAPTURE_THREAD_LOCAL = 1, STREAM_NON_BLOCKING = 1, ATTRIBUTE_L2_BYTES = 38 };

// X(member, exported name, parameters)
#define CUDA_CALLS(X)                                                                                  \
    X(init, cuInit, (unsigned flags))                                                                  \
    X(device_get, cuDeviceGet, (int *device, int ordinal))                                             \
    X(device_attribute, cuDeviceGetAttribute, (int *value, int attribute, int device))                 \
    X(context_retain, cuDevicePrimaryCtxRetain, (cuda_handle * context, int device))                   \
    X(context_set, cuCtxSetCurrent, (cuda_handle context))                                             \
    X(stream_create, cuStreamCreate, (cuda_handle * stream, unsigned flags))                           \
    X(stream_wait, cuStreamSynchronize, (cuda_handle stream))                                          \
    X(stream_destroy, cuStreamDestroy_v2, (cuda_handle stream))                                        \
    X(capture_begin, cuStreamBeginCapture_v2, (cuda_handle stream, int mode))                          \
    X(capture_end, cuStreamEndCapture, (cuda_handle stream, cuda_handle * graph))                      \
    X(instantiate, cuGraphInstantiateWithFlags, (cuda_handle * run, cuda_handle graph, unsigned long long flags)) \
    X(graph_destroy, cuGraphDestroy, (cuda_handle graph))                                              \
    X(graph_launch, cuGraphLaunch, (cuda_handle run, cuda_handle stream))                              \
    X(run_destroy, cuGraphExecDestroy, (cuda_handle run))                                              \
    X(event_create, cuEventCreate, (cuda_handle * event, unsigned flags))                              \
    X(event_record, cuEventRecord, (cuda_handle event, cuda_handle stream))                            \
    X(event_elapsed, cuEventElapsedTime, (float *milliseconds, cuda_handle from, cuda_handle to))      \
    X(event_destroy, cuEventDestroy_v2, (cuda_handle event))                                           \
    X(error_name, cuGetErrorName, (int result, const char **name))

typedef struct {
#define X(member, name, parameters) int(*member) parameters;
    CUDA_CALLS(X)
#undef X
} cuda_driver;
static cuda_driver driver;
static int device, held;

static int broken(const char *what, int result)
{
    const char *name = NULL;
    if (driver.error_name(result, &name) || !name)
        name = "unknown error";
    return fail(KG_MACHINE, "%.*s: %s (%d)", (int)strcspn(what, "("), what, name, result);
}

#define CUDA(call)                        \
    do {                                  \
        const int result_ = driver.call;  \
        if (result_)                      \
            return broken(#call, result_); \
    } while (0)

int cuda_hold(void)
{
    static const struct {
        const char *name;
        size_t offset;
    } calls[] = {
#define X(member, name, parameters) {#name, offsetof(cuda_driver, member)},
        CUDA_CALLS(X)
#undef X
    };
    if (held)
        return KG_OK;
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return fail(KG_MACHINE, "no NVIDIA driver: %s", dlerror());
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        void *call = dlsym(library, calls[i].name);
        if (!call)
            return fail(KG_MACHINE, "libcuda.so.1 has no %s", calls[i].name);
        memcpy((char *)&driver + calls[i].offset, &call, sizeof call);
    }
    cuda_handle context;
    CUDA(init(0));
    CUDA(device_get(&device, 0));
    CUDA(context_retain(&context, device));
    CUDA(context_set(context));
    held = 1;
    return KG_OK;
}

int cuda_l2_bytes(size_t *bytes)
{
    int value;
    CUDA(device_attribute(&value, ATTRIBUTE_L2_BYTES, device));
    *bytes = (size_t)value;
    return KG_OK;
}

int cuda_stream_open(cuda_handle *stream)
{
    CUDA(stream_create(stream, STREAM_NON_BLOCKING));
    return KG_OK;
}

int cuda_stream_wait(cuda_handle stream)
{
    CUDA(stream_wait(stream));
    return KG_OK;
}

void cuda_stream_close(cuda_handle stream)
{
    if (stream)
        driver.stream_destroy(stream);
}

int cuda_capture_begin(cuda_handle stream)
{
    CUDA(capture_begin(stream, CAPTURE_THREAD_LOCAL));
    return KG_OK;
}

int cuda_capture_end(cuda_handle stream, cuda_handle *graph)
{
    cuda_handle captured = NULL;
    CUDA(capture_end(stream, &captured));
    const int result = driver.instantiate(graph, captured, 0);
    driver.graph_destroy(captured);
    return result ? broken("cuGraphInstantiate", result) : KG_OK;
}

int cuda_graph_launch(cuda_handle graph, cuda_handle stream)
{
    CUDA(graph_launch(graph, stream));
    return KG_OK;
}

void cuda_graph_close(cuda_handle graph)
{
    if (graph)
        driver.run_destroy(graph);
}

static int time_launches(cuda_handle graph, cuda_handle stream, int count, float *microseconds, cuda_handle *events)
{
    for (int i = 0; i <= count; i++)
        CUDA(event_create(&events[i], 0));
    CUDA(event_record(events[0], stream));
    for (int i = 0; i < count; i++) {
        CUDA(graph_launch(graph, stream));
        CUDA(event_record(events[i + 1], stream));
    }
    CUDA(stream_wait(stream));
    for (int i = 0; i < count; i++) {
        CUDA(event_elapsed(&microseconds[i], events[i], events[i + 1]));
        microseconds[i] *= 1000;
    }
    return KG_OK;
}

int cuda_graph_time(cuda_handle graph, cuda_handle stream, int count, float *microseconds)
{
    cuda_handle *events = calloc((size_t)count + 1, sizeof *events);
    if (!events)
        return fail(KG_MACHINE, "out of memory");
    const int code = time_launches(graph, stream, count, microseconds, events);
    for (int i = 0; i <= count; i++)
        if (events[i])
            driver.event_destroy(events[i]);
    free(events);
    return code;
}
