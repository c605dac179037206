// The CUDA driver API, loaded at run time: the few entry points that kitty needs, declared here. No CUDA header.
#ifndef KT_DRIVER_H
#define KT_DRIVER_H

#include "../internal.h"

typedef void *kt__context, *kt__module, *kt__function, *kt__stream, *kt__event;
typedef unsigned long long kt__address;

// CUlaunchConfig and CUlaunchAttribute.
typedef struct {
    int id;
    int padding;
    union {
        int value;
        char room[64];
    };
} kt__launch_attribute;
typedef struct {
    unsigned grid[3], block[3], shared;
    kt__stream stream;
    kt__launch_attribute *attributes;
    unsigned attribute_count;
} kt__launch;

// X(member, exported name, parameters)
#define KT_DRIVER_CALLS(X)                                                                                          \
    X(init, cuInit, (unsigned flags))                                                                               \
    X(driver_version, cuDriverGetVersion, (int *version))                                                           \
    X(device_count, cuDeviceGetCount, (int *count))                                                                 \
    X(device_get, cuDeviceGet, (int *device, int ordinal))                                                          \
    X(device_name, cuDeviceGetName, (char *name, int size, int device))                                             \
    X(device_attribute, cuDeviceGetAttribute, (int *value, int attribute, int device))                              \
    X(context_retain, cuDevicePrimaryCtxRetain, (kt__context *context, int device))                                 \
    X(context_release, cuDevicePrimaryCtxRelease_v2, (int device))                                                  \
    X(context_push, cuCtxPushCurrent_v2, (kt__context context))                                                     \
    X(context_pop, cuCtxPopCurrent_v2, (kt__context *context))                                                      \
    X(context_current, cuCtxGetCurrent, (kt__context *context))                                                     \
    X(context_synchronize, cuCtxSynchronize, (void))                                                                \
    X(memory_alloc, cuMemAlloc_v2, (kt__address *address, size_t bytes))                                            \
    X(memory_free, cuMemFree_v2, (kt__address address))                                                             \
    X(memory_info, cuMemGetInfo_v2, (size_t *free, size_t *total))                                                  \
    X(memory_set, cuMemsetD8Async, (kt__address to, unsigned char value, size_t bytes, kt__stream stream))          \
    X(copy_to_device, cuMemcpyHtoDAsync_v2, (kt__address to, const void *from, size_t bytes, kt__stream stream))    \
    X(copy, cuMemcpyDtoDAsync_v2, (kt__address to, kt__address from, size_t bytes, kt__stream stream))              \
    X(copy_to_host, cuMemcpyDtoHAsync_v2, (void *to, kt__address from, size_t bytes, kt__stream stream))            \
    X(read, cuMemcpyDtoH_v2, (void *to, kt__address from, size_t bytes))                                            \
    X(host_alloc, cuMemHostAlloc, (void **host, size_t bytes, unsigned flags))                                      \
    X(host_free, cuMemFreeHost, (void *host))                                                                       \
    X(module_load, cuModuleLoadDataEx, (kt__module *module, const void *image, unsigned count, int *options, void **values)) \
    X(module_unload, cuModuleUnload, (kt__module module))                                                           \
    X(module_function, cuModuleGetFunction, (kt__function *function, kt__module module, const char *name))          \
    X(function_get, cuFuncGetAttribute, (int *value, int attribute, kt__function function))                         \
    X(function_set, cuFuncSetAttribute, (kt__function function, int attribute, int value))                          \
    X(launch, cuLaunchKernelEx, (const kt__launch *launch, kt__function function, void **parameters, void **extra)) \
    X(stream_synchronize, cuStreamSynchronize, (kt__stream stream))                                                 \
    X(stream_capturing, cuStreamIsCapturing, (kt__stream stream, int *state))                                       \
    X(event_create, cuEventCreate, (kt__event *event, unsigned flags))                                              \
    X(event_record, cuEventRecord, (kt__event event, kt__stream stream))                                            \
    X(event_synchronize, cuEventSynchronize, (kt__event event))                                                     \
    X(event_destroy, cuEventDestroy_v2, (kt__event event))                                                          \
    X(error_name, cuGetErrorName, (int result, const char **name))                                                  \
    X(error_text, cuGetErrorString, (int result, const char **text))

// Each returns a CUresult: 0 is success.
typedef struct {
#define X(member, name, parameters) int(*member) parameters;
    KT_DRIVER_CALLS(X)
#undef X
} kt__driver;

enum { // values of the driver API
    KT__CUDA_OUT_OF_MEMORY = 2, KT__CUDA_STUB_LIBRARY = 34, KT__CUDA_NO_DEVICE = 100,
    KT__CUDA_STREAM_CAPTURE_IMPLICIT = 906,
    KT__DEVICE_MULTIPROCESSORS = 16, KT__DEVICE_MAJOR = 75, KT__DEVICE_MINOR = 76, KT__DEVICE_SHARED_OPTIN = 97,
    KT__FUNCTION_MAX_THREADS = 0, KT__FUNCTION_DYNAMIC_SHARED = 8,
    KT__EVENT_NO_TIMING = 2,
    KT__LAUNCH_OVERLAP = 6 // programmatic stream serialization
};

// The driver of this process, loaded once and never unloaded; thread-safe. KT_UNSUPPORTED: there is none, or it is too old.
kt_status kt__driver_load(const kt__driver **driver);

// KT_MEMORY for out of memory, else KT_DEVICE, with "what: NAME: text (code)".
kt_status kt__driver_fail(const kt__driver *driver, int result, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif
