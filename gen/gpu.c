#include "gpu.h"

#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/driver.h"
#include "text.h"

enum { CAPTURE_THREAD_LOCAL = 1, STREAM_NON_BLOCKING = 1, ATTRIBUTE_L2_BYTES = 38 };

// What the runtime's table (cuda/driver.h) does not have. X(member, exported name, parameters)
#define GPU_CALLS(X)                                                                                              \
    X(stream_create, cuStreamCreate, (kg_handle * stream, unsigned flags))                                        \
    X(stream_destroy, cuStreamDestroy_v2, (kg_handle stream))                                                     \
    X(capture_begin, cuStreamBeginCapture_v2, (kg_handle stream, int mode))                                       \
    X(capture_end, cuStreamEndCapture, (kg_handle stream, kg_handle * graph))                                     \
    X(instantiate, cuGraphInstantiateWithFlags, (kg_handle * run, kg_handle graph, unsigned long long flags))     \
    X(graph_destroy, cuGraphDestroy, (kg_handle graph))                                                           \
    X(graph_launch, cuGraphLaunch, (kg_handle run, kg_handle stream))                                             \
    X(run_destroy, cuGraphExecDestroy, (kg_handle run))                                                           \
    X(event_elapsed, cuEventElapsedTime, (float *milliseconds, kg_handle from, kg_handle to))                     \
    X(copy, cuMemcpyDtoDAsync_v2, (kt__address to, kt__address from, size_t bytes, kg_handle stream))             \
    X(write, cuMemcpyHtoD_v2, (kt__address to, const void *from, size_t bytes))

typedef struct {
#define X(member, name, parameters) int(*member) parameters;
    GPU_CALLS(X)
#undef X
} gpu_calls;
static gpu_calls more;
static const kt__driver *driver;
static int device, held;

static int broken(const char *what, int result, char *error)
{
    kt__driver_fail(driver, result, "%.*s", (int)strcspn(what, "("), what);
    return kg_fail(KG_MACHINE, error, KG_ERROR, "%s", kt_message());
}

// Leaves the function with an exit code if a call of the driver fails.
#define CUDA(call)                                        \
    do {                                                  \
        const int result_ = call;                         \
        if (result_)                                      \
            return broken(strchr(#call, '>') ? strchr(#call, '>') + 1 : #call, result_, error); \
    } while (0)

static kt__address address_of(const void *pointer) { return (kt__address)(uintptr_t)pointer; }

static int load(char *error)
{
    static const struct {
        const char *name;
        size_t offset;
    } calls[] = {
#define X(member, name, parameters) {#name, offsetof(gpu_calls, member)},
        GPU_CALLS(X)
#undef X
    };
    if (kt__driver_load(&driver))
        return kg_fail(KG_MACHINE, error, KG_ERROR, "%s", kt_message());
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        void *call = library ? dlsym(library, calls[i].name) : 0;
        if (!call)
            return kg_fail(KG_MACHINE, error, KG_ERROR, "the NVIDIA driver (libcuda.so.1) has no %s", calls[i].name);
        memcpy((char *)&more + calls[i].offset, &call, sizeof call);
    }
    return KG_OK;
}

int kg_gpu_hold(char *error)
{
    kt__context context;
    if (held)
        return KG_OK;
    const int code = load(error);
    if (code)
        return code;
    const int result = driver->init(0);
    if (result == KT__CUDA_NO_DEVICE || result == KT__CUDA_STUB_LIBRARY)
        return kg_fail(KG_MACHINE, error, KG_ERROR, "no NVIDIA GPU: the driver finds none");
    if (result)
        return broken("cuInit", result, error);
    CUDA(driver->device_get(&device, 0));
    CUDA(driver->context_retain(&context, device));
    CUDA(driver->context_push(context));
    held = 1;
    return KG_OK;
}

int kg_gpu_query(kg_gpu *gpu, char *error)
{
    int l2;
    CUDA(driver->device_name(gpu->name, sizeof gpu->name, device));
    CUDA(driver->device_attribute(&gpu->multiprocessors, KT__DEVICE_MULTIPROCESSORS, device));
    CUDA(driver->device_attribute(&gpu->major, KT__DEVICE_MAJOR, device));
    CUDA(driver->device_attribute(&gpu->minor, KT__DEVICE_MINOR, device));
    CUDA(driver->device_attribute(&gpu->shared_limit, KT__DEVICE_SHARED_OPTIN, device));
    CUDA(driver->device_attribute(&l2, ATTRIBUTE_L2_BYTES, device));
    gpu->l2_bytes = (size_t)l2;
    return KG_OK;
}

// ---- memory ----------------------------------------------------------------------------------------------------------

int kg_gpu_free_bytes(size_t *bytes, char *error)
{
    size_t total;
    CUDA(driver->memory_info(bytes, &total));
    return KG_OK;
}

int kg_gpu_alloc(size_t bytes, void **address, char *error)
{
    kt__address memory = 0;
    *address = 0;
    CUDA(driver->memory_alloc(&memory, bytes));
    *address = (void *)(uintptr_t)memory;
    return KG_OK;
}

void kg_gpu_free(void *address)
{
    if (address)
        driver->memory_free(address_of(address));
}

int kg_gpu_write(void *to, const void *from, size_t bytes, char *error)
{
    CUDA(more.write(address_of(to), from, bytes));
    CUDA(driver->context_synchronize());
    return KG_OK;
}

int kg_gpu_read(void *to, const void *from, size_t bytes, char *error)
{
    CUDA(driver->context_synchronize());
    CUDA(driver->read(to, address_of(from), bytes));
    return KG_OK;
}

int kg_gpu_copy(void *to, const void *from, size_t bytes, kg_handle stream, char *error)
{
    CUDA(more.copy(address_of(to), address_of(from), bytes, stream));
    return KG_OK;
}

// ---- streams, graphs, events -----------------------------------------------------------------------------------------

int kg_gpu_stream_open(kg_handle *stream, char *error)
{
    CUDA(more.stream_create(stream, STREAM_NON_BLOCKING));
    return KG_OK;
}

int kg_gpu_stream_wait(kg_handle stream, char *error)
{
    CUDA(driver->stream_synchronize(stream));
    return KG_OK;
}

void kg_gpu_stream_close(kg_handle stream)
{
    if (stream)
        more.stream_destroy(stream);
}

int kg_gpu_capture_begin(kg_handle stream, char *error)
{
    CUDA(more.capture_begin(stream, CAPTURE_THREAD_LOCAL));
    return KG_OK;
}

int kg_gpu_capture_end(kg_handle stream, kg_handle *graph, char *error)
{
    kg_handle captured = 0;
    CUDA(more.capture_end(stream, &captured));
    const int result = more.instantiate(graph, captured, 0);
    more.graph_destroy(captured);
    return result ? broken("cuGraphInstantiate", result, error) : KG_OK;
}

int kg_gpu_graph_launch(kg_handle graph, kg_handle stream, char *error)
{
    CUDA(more.graph_launch(graph, stream));
    return KG_OK;
}

void kg_gpu_graph_close(kg_handle graph)
{
    if (graph)
        more.run_destroy(graph);
}

int kg_gpu_event_open(kg_handle *event, char *error)
{
    CUDA(driver->event_create(event, 0));
    return KG_OK;
}

int kg_gpu_event_record(kg_handle event, kg_handle stream, char *error)
{
    CUDA(driver->event_record(event, stream));
    return KG_OK;
}

int kg_gpu_event_time(kg_handle from, kg_handle to, float *microseconds, char *error)
{
    CUDA(more.event_elapsed(microseconds, from, to));
    *microseconds *= 1000;
    return KG_OK;
}

void kg_gpu_event_close(kg_handle event)
{
    if (event)
        driver->event_destroy(event);
}

static int time_launches(kg_handle graph, kg_handle stream, int count, float *microseconds, kg_handle *events, char *error)
{
    for (int i = 0; i <= count; i++)
        CUDA(driver->event_create(&events[i], 0));
    CUDA(driver->event_record(events[0], stream));
    for (int i = 0; i < count; i++) {
        CUDA(more.graph_launch(graph, stream));
        CUDA(driver->event_record(events[i + 1], stream));
    }
    CUDA(driver->stream_synchronize(stream));
    for (int i = 0; i < count; i++) {
        const int code = kg_gpu_event_time(events[i], events[i + 1], &microseconds[i], error);
        if (code)
            return code;
    }
    return KG_OK;
}

int kg_gpu_graph_time(kg_handle graph, kg_handle stream, int count, float *microseconds, char *error)
{
    kg_handle *events = calloc((size_t)count + 1, sizeof *events);
    if (!events)
        return kg_fail(KG_MACHINE, error, KG_ERROR, "out of memory");
    const int code = time_launches(graph, stream, count, microseconds, events, error);
    for (int i = 0; i <= count; i++)
        kg_gpu_event_close(events[i]);
    free(events);
    return code;
}

// ---- modules ---------------------------------------------------------------------------------------------------------

int kg_gpu_module_open(const void *cubin, kg_handle *module, char *error)
{
    CUDA(driver->module_load(module, cubin, 0, 0, 0));
    return KG_OK;
}

void kg_gpu_module_close(kg_handle module)
{
    if (module)
        driver->module_unload(module);
}

int kg_gpu_function(kg_handle module, const char *name, int shared, kg_handle *function, char *error)
{
    CUDA(driver->module_function(function, module, name));
    CUDA(driver->function_set(*function, KT__FUNCTION_DYNAMIC_SHARED, shared));
    return KG_OK;
}

int kg_gpu_launch(kg_handle function, int blocks, int threads, int shared, kg_handle stream, void **parameters, char *error)
{
    const kt__launch launch = {.grid = {(unsigned)blocks, 1, 1}, .block = {(unsigned)threads, 1, 1}, .shared = (unsigned)shared,
                               .stream = stream};
    CUDA(driver->launch(&launch, function, parameters, 0));
    return KG_OK;
}
