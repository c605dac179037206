#include "backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cubin_cache.h"
#include "staging.h"

typedef struct {
    kt__backend base;
    const kt__driver *driver;
    int device, log;
    bool overlaps; // the card can launch a kernel before the one ahead of it has ended
    kt__context context;
    kt__module *modules;     // [kernels]; null where the kernel does not fit the card
    kt__function *functions; // [kernels]
    kt__staging staging;
} cuda;

// ---- the context -----------------------------------------------------------------------------------------------------

// Makes our context current unless it is: a caller such as PyTorch has usually the same primary context. leave() undoes it.
static kt_status enter(cuda *c, bool *pushed)
{
    kt__context current = 0;
    *pushed = false;
    int result = c->driver->context_current(&current);
    if (!result && current == c->context)
        return KT_OK;
    if (!result)
        result = c->driver->context_push(c->context);
    if (result)
        return kt__driver_fail(c->driver, result, "entering the CUDA context");
    *pushed = true;
    return KT_OK;
}

static void leave(cuda *c, bool pushed)
{
    kt__context popped;
    if (pushed)
        c->driver->context_pop(&popped);
}

static kt__address address_of(const void *pointer) { return (kt__address)(uintptr_t)pointer; }

// ---- memory ----------------------------------------------------------------------------------------------------------

static kt_status cuda_alloc(kt__backend *backend, size_t bytes, void **address)
{
    cuda *c = (cuda *)backend;
    bool pushed;
    kt__address memory = 0;
    kt_status status = enter(c, &pushed);
    if (status)
        return status;
    int result = c->driver->memory_alloc(&memory, bytes);
    if (result) {
        size_t available = 0, total = 0;
        c->driver->memory_info(&available, &total);
        status = kt__driver_fail(c->driver, result, "%zu bytes on %s (%zu of %zu are free)", bytes, c->base.device_name, available, total);
    } else if ((result = c->driver->memory_set(memory, 0, bytes, 0)) || (result = c->driver->stream_synchronize(0))) {
        status = kt__driver_fail(c->driver, result, "clearing %zu bytes", bytes);
        c->driver->memory_free(memory);
    } else {
        *address = (void *)(uintptr_t)memory;
    }
    leave(c, pushed);
    return status;
}

static void cuda_free(kt__backend *backend, void *address)
{
    cuda *c = (cuda *)backend;
    bool pushed;
    if (!address || enter(c, &pushed))
        return;
    c->driver->memory_free(address_of(address));
    leave(c, pushed);
}

static kt_status cuda_capturing(kt__backend *backend, void *stream, bool *capturing)
{
    cuda *c = (cuda *)backend;
    bool pushed;
    int state = 0;
    kt_status status = enter(c, &pushed);
    if (status)
        return status;
    const int result = c->driver->stream_capturing(stream, &state);
    leave(c, pushed);
    if (result == KT__CUDA_STREAM_CAPTURE_IMPLICIT)
        return kt__fail(KT_ORDER, "the default stream cannot be used while another stream is under graph capture");
    *capturing = state != 0; // active or invalidated
    return result ? kt__driver_fail(c->driver, result, "asking whether the stream is under capture") : KT_OK;
}

static kt_status cuda_upload(kt__backend *backend, const kt__copy *copies, int count, void *stream)
{
    cuda *c = (cuda *)backend;
    bool pushed, capturing = false;
    kt_status status = cuda_capturing(backend, stream, &capturing);
    if (status)
        return status;
    if (capturing) // a graph would replay today's contents of the staging memory
        return kt__fail(KT_ORDER, "nothing can be uploaded on a stream under graph capture; upload before it begins (kt_batch_upload)");
    if ((status = enter(c, &pushed)))
        return status;
    status = kt__staging_copy(&c->staging, copies, count, stream);
    leave(c, pushed);
    return status;
}

// A copy per stretch: of a 2D copy the driver refuses strides beyond 2 GB, which layers of a large pool have.
static kt_status cuda_copy(kt__backend *backend, void *to, const void *from, size_t bytes, int count, size_t stride, void *stream)
{
    cuda *c = (cuda *)backend;
    bool pushed;
    const kt_status status = enter(c, &pushed);
    if (status)
        return status;
    int result = 0;
    for (int i = 0; i < count && !result; i++)
        result = c->driver->copy(address_of(to) + (size_t)i * stride, address_of(from) + (size_t)i * stride, bytes, stream);
    leave(c, pushed);
    return result ? kt__driver_fail(c->driver, result, "copying %d times %zu bytes on the device", count, bytes) : KT_OK;
}

static kt_status cuda_download(kt__backend *backend, void *to, const void *from, size_t bytes)
{
    cuda *c = (cuda *)backend;
    bool pushed;
    kt_status status = enter(c, &pushed);
    if (status)
        return status;
    int result = c->driver->context_synchronize();
    if (result)
        status = kt__driver_fail(c->driver, result, "waiting for the device");
    else if ((result = c->driver->read(to, address_of(from), bytes)))
        status = kt__driver_fail(c->driver, result, "reading %zu bytes from the device", bytes);
    leave(c, pushed);
    return status;
}

static kt_status cuda_mirror_alloc(kt__backend *backend, size_t bytes, void **host)
{
    cuda *c = (cuda *)backend;
    bool pushed;
    void *memory = 0;
    kt_status status = enter(c, &pushed);
    if (status)
        return status;
    const int result = c->driver->host_alloc(&memory, bytes, 0);
    leave(c, pushed);
    if (result)
        return kt__driver_fail(c->driver, result, "%zu bytes of pinned host memory", bytes);
    memset(memory, 0, bytes);
    *host = memory;
    return KT_OK;
}

static void cuda_mirror_free(kt__backend *backend, void *host)
{
    cuda *c = (cuda *)backend;
    bool pushed;
    if (!host || enter(c, &pushed))
        return;
    c->driver->host_free(host);
    leave(c, pushed);
}

static kt_status cuda_mirror(kt__backend *backend, void *host, const void *device, size_t bytes, void *stream)
{
    cuda *c = (cuda *)backend;
    bool pushed;
    const kt_status status = enter(c, &pushed);
    if (status)
        return status;
    const int result = c->driver->copy_to_host(host, address_of(device), bytes, stream);
    leave(c, pushed);
    return result ? kt__driver_fail(c->driver, result, "copying %zu bytes to the host", bytes) : KT_OK;
}

// ---- launching -------------------------------------------------------------------------------------------------------

static kt_status grid_of(const kt__kernel *kernel, const kt__extent *extent, unsigned grid[3])
{
    static const int64_t limits[3] = {INT32_MAX, 65535, 65535};
    for (int d = 0; d < 3; d++) {
        int64_t n = 1;
        for (int i = 0; i < KT__GRID_FACTORS; i++) {
            const int factor = kernel->grid[d][i], value = factor == KT__ONE ? 1 : extent->ones[factor];
            if (value < 1)
                return kt__fail(KT_INVALID, "%s: grid factor %s is %d; expected 1 or more", kernel->name, kt__factor_names[factor], value);
            if (value > limits[d] / n)
                return kt__fail(KT_UNSUPPORTED, "%s: grid dimension %c is beyond %lld with %s %d", kernel->name, "xyz"[d],
                                (long long)limits[d], kt__factor_names[factor], value);
            n *= value;
        }
        grid[d] = (unsigned)n;
    }
    return KT_OK;
}

static kt_status cuda_launch(kt__backend *backend, int index, const kt__extent *extent, const void *params, size_t bytes, void *stream)
{
    cuda *c = (cuda *)backend;
    const kt__kernel *k = &c->base.package->kernels[index];
    // The kernel may be launched while the one before it still runs: it waits for that one itself (grid_wait in templates/).
    kt__launch_attribute overlap = {.id = KT__LAUNCH_OVERLAP, .value = 1};
    kt__launch launch = {.block = {(unsigned)k->threads, 1, 1}, .shared = (unsigned)k->shared, .stream = stream,
                         .attributes = &overlap, .attribute_count = c->overlaps ? 1 : 0};
    bool pushed;
    if (!c->functions[index])
        return kt__fail(KT_UNSUPPORTED, "%s needs %d bytes of shared memory per block; %s has %d", k->name, k->shared, c->base.device_name,
                        c->base.shared_limit);
    kt_status status = grid_of(k, extent, launch.grid);
    if (status || (status = enter(c, &pushed)))
        return status;

    // One buffer holds the arguments, which are one structure; 1 and 2 tag its address and its size.
    void *extra[] = {(void *)1, (void *)(uintptr_t)params, (void *)2, &bytes, 0};

    const unsigned *grid = launch.grid;
    const int result = c->driver->launch(&launch, c->functions[index], 0, extra);
    leave(c, pushed);
    if (c->log >= 2)
        fprintf(stderr, "kitty: launch %s grid %u,%u,%u\n", k->name, grid[0], grid[1], grid[2]);
    return result ? kt__driver_fail(c->driver, result, "launching %s, grid %u x %u x %u of %d threads, %d bytes shared", k->name, grid[0],
                                    grid[1], grid[2], k->threads, k->shared)
                  : KT_OK;
}

// ---- opening ---------------------------------------------------------------------------------------------------------

bool kt__cuda_arch(int major, int minor, char arch[16])
{
    if (major < 8 || major > 999 || minor < 0 || minor > 9)
        return false;
    if (major == 8)
        snprintf(arch, 16, "sm_%d", minor >= 9 ? 89 : minor >= 6 ? 86 : 80);
    else
        snprintf(arch, 16, "sm_%d%da", major, minor);
    return true;
}

// Finds the card; fills the device, its name and limits, and the architecture.
static kt_status choose_device(cuda *c, int ordinal, bool *usable, char arch[16])
{
    const kt__driver *d = c->driver;
    int count = 0, major = 0, minor = 0;
    *usable = false;
    int result = d->init(0);
    if (result == KT__CUDA_NO_DEVICE || result == KT__CUDA_STUB_LIBRARY)
        return kt__fail(KT_UNSUPPORTED, "%s", result == KT__CUDA_NO_DEVICE ? "no NVIDIA GPU: the driver finds none (CUDA_VISIBLE_DEVICES hides them too)"
                                                                         : "no NVIDIA driver: libcuda.so.1 is the toolkit's stub");
    *usable = true;
    if (result)
        return kt__driver_fail(d, result, "starting the NVIDIA driver");
    if ((result = d->device_count(&count)))
        return kt__driver_fail(d, result, "counting GPUs");
    if (!count) {
        *usable = false;
        return kt__fail(KT_UNSUPPORTED, "no NVIDIA GPU: the driver counts none");
    }
    if (ordinal < 0 || ordinal >= count)
        return kt__fail(KT_UNSUPPORTED, "no CUDA device %d; this process sees %d: 0..%d", ordinal, count, count - 1);
    if ((result = d->device_get(&c->device, ordinal)) || (result = d->device_name(c->base.device_name, sizeof c->base.device_name, c->device)) ||
        (result = d->device_attribute(&major, KT__DEVICE_MAJOR, c->device)) ||
        (result = d->device_attribute(&minor, KT__DEVICE_MINOR, c->device)) ||
        (result = d->device_attribute(&c->base.multiprocessors, KT__DEVICE_MULTIPROCESSORS, c->device)) ||
        (result = d->device_attribute(&c->base.shared_limit, KT__DEVICE_SHARED_OPTIN, c->device)))
        return kt__driver_fail(d, result, "asking CUDA device %d about itself", ordinal);
    c->overlaps = major >= 9;
    if (!kt__cuda_arch(major, minor, arch)) {
        *usable = false;
        return kt__fail(KT_UNSUPPORTED, "%s has compute capability %d.%d; 8.0 or higher is needed", c->base.device_name, major, minor);
    }
    return KT_OK;
}

// Every kernel that fits the card's shared memory; each operation must have one that does, in each format.
static kt_status list_jobs(const cuda *c, const char *arch, kt__compile_job *jobs, int *count)
{
    const kt__package *p = c->base.package;
    *count = 0;
    for (int i = 0; i < p->kernel_count; i++) {
        if (p->kernels[i].shared > c->base.shared_limit)
            continue;
        jobs[*count].kernel = &p->kernels[i];
        snprintf(jobs[*count].arch, sizeof jobs->arch, "%s", arch);
        ++*count;
    }
    for (int i = 0; i < KT__OP_COUNT * p->format_count; i++) {
        const kt__kernel *least = 0;
        for (const kt__kernel *k = p->kernels; k < p->kernels + p->kernel_count; k++)
            if ((int)k->op == i % KT__OP_COUNT && k->format == i / KT__OP_COUNT && (!least || k->shared < least->shared))
                least = k;
        if (least && least->shared > c->base.shared_limit)
            return kt__fail(KT_UNSUPPORTED, "no kernel for %s in package %s fits %s: %d bytes of shared memory per block, at least %d are needed",
                            kt__op_names[least->op], p->spec, c->base.device_name, c->base.shared_limit, least->shared);
    }
    return KT_OK;
}

static kt_status load_kernel(cuda *c, const kt__compile_job *job, int driver_version)
{
    const kt__driver *d = c->driver;
    const kt__kernel *k = job->kernel;
    const ptrdiff_t index = k - c->base.package->kernels;
    int threads = 0;
    int result = d->module_load(&c->modules[index], job->cubin.data, 0, 0, 0);
    if (result)
        return kt__driver_fail(d, result, "loading %s for %s on %s, whose driver is for CUDA %d.%d (a cubin from a newer NVRTC? set KT_CUDA_HOME)",
                               k->name, job->arch, c->base.device_name, driver_version / 1000, driver_version % 1000 / 10);
    if ((result = d->module_function(&c->functions[index], c->modules[index], k->entry)))
        return kt__driver_fail(d, result, "%s has no entry %s", k->name, k->entry);
    if ((result = d->function_get(&threads, KT__FUNCTION_MAX_THREADS, c->functions[index])))
        return kt__driver_fail(d, result, "asking %s for its limits", k->name);
    if (threads < k->threads)
        return kt__fail(KT_PACKAGE, "%s can run %d threads per block on %s; the manifest says %d", k->name, threads, c->base.device_name, k->threads);
    if ((result = d->function_set(c->functions[index], KT__FUNCTION_DYNAMIC_SHARED, k->shared)))
        return kt__driver_fail(d, result, "giving %s %d bytes of shared memory", k->name, k->shared);
    return KT_OK;
}

static void cuda_close(kt__backend *backend)
{
    cuda *c = (cuda *)backend;
    bool pushed;
    if (c->context && !enter(c, &pushed)) {
        kt__staging_close(&c->staging);
        for (int i = 0; i < c->base.package->kernel_count; i++)
            if (c->modules[i])
                c->driver->module_unload(c->modules[i]);
        leave(c, pushed);
    }
    if (c->context)
        c->driver->context_release(c->device);
    free(c->modules);
    free(c->functions);
    free(c);
}

static const kt__backend_calls calls = {
    .close = cuda_close, .alloc = cuda_alloc, .free = cuda_free, .upload = cuda_upload, .copy = cuda_copy, .download = cuda_download,
    .mirror_alloc = cuda_mirror_alloc, .mirror_free = cuda_mirror_free, .mirror = cuda_mirror, .capturing = cuda_capturing,
    .launch = cuda_launch,
};

static kt_status start_context(cuda *c, const kt__compile_job *jobs, int count, int driver_version)
{
    bool pushed;
    const int result = c->driver->context_retain(&c->context, c->device);
    if (result) {
        c->context = 0;
        return kt__driver_fail(c->driver, result, "retaining the primary context of %s", c->base.device_name);
    }
    kt_status status = enter(c, &pushed);
    if (status)
        return status;
    status = kt__staging_open(c->driver, &c->staging);
    for (int i = 0; i < count && !status; i++) {
        status = load_kernel(c, &jobs[i], driver_version);
        c->base.compiled += jobs[i].origin == KT__COMPILED;
        c->base.loaded += jobs[i].origin != KT__COMPILED;
    }
    leave(c, pushed);
    return status;
}

kt_status kt__cuda_open_on(const kt__driver *driver, const kt__package *package, const kt__environment *environment, int ordinal,
                           bool *usable, kt__backend **backend)
{
    const size_t n = (size_t)package->kernel_count;
    bool unused;
    char arch[KT__ARCH];
    int version = 0, count = 0;
    cuda *c = calloc(1, sizeof *c);
    kt__compile_job *jobs = calloc(n, sizeof *jobs);
    kt__cubins *cubins = calloc(1, sizeof *cubins);
    kt_status status;
    usable = usable ? usable : &unused;
    *usable = true;
    if (c) {
        c->base.calls = &calls;
        c->base.package = package;
        c->driver = driver;
        c->log = environment->log;
        c->modules = calloc(n, sizeof *c->modules);
        c->functions = calloc(n, sizeof *c->functions);
    }
    if (!c || !jobs || !cubins || !c->modules || !c->functions) {
        status = kt__fail(KT_MEMORY, "no memory for %zu kernels", n);
        goto fail;
    }
    if ((status = choose_device(c, ordinal, usable, arch)) || (status = list_jobs(c, arch, jobs, &count)))
        goto fail;
    const int result = driver->driver_version(&version);
    if (result) {
        status = kt__driver_fail(driver, result, "asking the driver's version");
        goto fail;
    }
    kt__cubins_open(cubins, environment, package->folder, version / 1000);
    status = kt__compile_all(cubins, jobs, count, 0, 0, 0);
    if (status == KT_UNSUPPORTED && !cubins->have_nvrtc)
        *usable = false;
    kt__cubins_close(cubins);
    if (!status)
        status = start_context(c, jobs, count, version);
fail:
    for (int i = 0; i < count; i++)
        kt__cubin_free(&jobs[i].cubin);
    free(jobs);
    free(cubins);
    if (!status)
        *backend = &c->base;
    else if (c && c->modules && c->functions)
        cuda_close(&c->base);
    else if (c) {
        free(c->modules);
        free(c->functions);
        free(c);
    }
    return status;
}

kt_status kt__cuda_open(const kt__package *package, const kt__environment *environment, int ordinal, bool *usable, kt__backend **backend)
{
    const kt__driver *driver;
    const kt_status status = kt__driver_load(&driver);
    if (!status)
        return kt__cuda_open_on(driver, package, environment, ordinal, usable, backend);
    if (usable)
        *usable = false;
    return status;
}
