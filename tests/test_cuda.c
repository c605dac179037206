// The CUDA backend over a driver that only records: staging, loading, launch geometry, contexts and errors, with no GPU.
// Cubins come ready from a bundle of made-up bytes, so that no NVRTC is needed either.
#include "cuda/backend.h"
#include "cuda/cubin_cache.h"
#include "cuda/staging.h"
#include "sha256.h"
#include "suite.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// ---- the driver ------------------------------------------------------------------------------------------------------

enum { CONTEXT = 64, MODULE = 1000, FUNCTION = 2000, QUEUE = 4096 };

static struct {
    int init_result, count, major, minor, shared, load_result, launch_result, capture_result, capturing, alloc_result, copy_result;
    kt__context current;
    int retained, pushes, pops, events, modules, pinned, allocations; // live, but for pushes and pops
    int recorded, waited;  // event_record, event_synchronize
    unsigned launch[7];
    char params[256];
    size_t params_bytes;
    int dynamic_shared;
    struct { const unsigned char *from; size_t bytes; kt__address to; } copies[QUEUE]; // queued and not yet done
    int copy_count, copies_done;
} fake;

static int fake_init(unsigned flags) { (void)flags; return fake.init_result; }
static int fake_version(int *v) { *v = 13000; return 0; }
static int fake_count(int *n) { *n = fake.count; return 0; }
static int fake_get(int *device, int ordinal) { *device = 10 + ordinal; return 0; }
static int fake_name(char *name, int size, int device) { snprintf(name, (size_t)size, "Fake %d", device); return 0; }
static int fake_attribute(int *value, int attribute, int device)
{
    (void)device;
    *value = attribute == KT__DEVICE_MAJOR ? fake.major : attribute == KT__DEVICE_MINOR ? fake.minor :
             attribute == KT__DEVICE_SHARED_OPTIN ? fake.shared : attribute == KT__DEVICE_MULTIPROCESSORS ? 132 : -1;
    return 0;
}
static int fake_retain(kt__context *c, int device) { (void)device; *c = (void *)CONTEXT; fake.retained++; return 0; }
static int fake_release(int device) { (void)device; fake.retained--; return 0; }
static int fake_push(kt__context c) { fake.current = c; fake.pushes++; return 0; }
static int fake_pop(kt__context *c) { *c = fake.current; fake.current = 0; fake.pops++; return 0; }
static int fake_current(kt__context *c) { *c = fake.current; return 0; }

// Everything below needs the context to be current.
static int in_context(void) { return fake.current == (void *)CONTEXT ? 0 : 201; }

static void do_copies(int until)
{
    for (; fake.copies_done < until; fake.copies_done++)
        memcpy((void *)(uintptr_t)fake.copies[fake.copies_done].to, fake.copies[fake.copies_done].from, fake.copies[fake.copies_done].bytes);
}
static int fake_synchronize(void) { do_copies(fake.copy_count); return in_context(); }
static int fake_alloc(kt__address *a, size_t bytes)
{
    if (fake.alloc_result)
        return fake.alloc_result;
    *a = (kt__address)(uintptr_t)malloc(bytes);
    fake.allocations++;
    return in_context();
}
static int fake_free(kt__address a) { free((void *)(uintptr_t)a); fake.allocations--; return in_context(); }
static int fake_info(size_t *available, size_t *total) { *available = 5; *total = 7; return in_context(); }
static int fake_set(kt__address a, unsigned char v, size_t n, kt__stream s) { (void)s; memset((void *)(uintptr_t)a, v, n); return in_context(); }
static int fake_to_device(kt__address to, const void *from, size_t bytes, kt__stream s)
{
    (void)s;
    ck_assert_int_lt(fake.copy_count, QUEUE);
    fake.copies[fake.copy_count].from = from;
    fake.copies[fake.copy_count].bytes = bytes;
    fake.copies[fake.copy_count++].to = to;
    return in_context();
}
static int fake_copy(kt__address to, kt__address from, size_t bytes, kt__stream s)
{
    (void)s;
    memcpy((void *)(uintptr_t)to, (void *)(uintptr_t)from, bytes);
    return fake.copy_result ? fake.copy_result : in_context();
}
static int fake_to_host(void *to, kt__address from, size_t bytes, kt__stream s)
{
    (void)s;
    memcpy(to, (void *)(uintptr_t)from, bytes);
    return in_context();
}
static int fake_read(void *to, kt__address from, size_t bytes) { memcpy(to, (void *)(uintptr_t)from, bytes); return in_context(); }
static int fake_host_alloc(void **p, size_t bytes, unsigned flags) { (void)flags; *p = malloc(bytes); fake.pinned++; return in_context(); }
static int fake_host_free(void *p) { free(p); fake.pinned--; return in_context(); }
static int fake_load(kt__module *m, const void *image, unsigned n, int *options, void **values)
{
    (void)options, (void)values;
    ck_assert_uint_eq(n, 0);
    if (fake.load_result)
        return fake.load_result;
    fake.modules++;
    *m = (void *)(uintptr_t)(MODULE + ((const char *)image)[0]); // the made-up cubin begins with its kernel's letter
    return in_context();
}
static int fake_unload(kt__module m) { (void)m; fake.modules--; return in_context(); }
static int fake_function(kt__function *f, kt__module m, const char *name)
{
    if (name[strlen("entry_")] != (char)((uintptr_t)m - MODULE))
        return 500;
    *f = (void *)((uintptr_t)m - MODULE + FUNCTION);
    return in_context();
}
static int fake_function_get(int *value, int attribute, kt__function f) { (void)f; *value = attribute == KT__FUNCTION_MAX_THREADS ? 512 : -1; return 0; }
static int fake_function_set(kt__function f, int attribute, int value)
{
    (void)f;
    if (attribute != KT__FUNCTION_DYNAMIC_SHARED)
        return 1;
    fake.dynamic_shared = value > fake.dynamic_shared ? value : fake.dynamic_shared;
    return in_context();
}
static int fake_launch(const kt__launch *launch, kt__function f, void **parameters, void **extra)
{
    ck_assert_ptr_null(parameters);
    ck_assert(extra[0] == (void *)1 && extra[2] == (void *)2 && !extra[4]);
    fake.params_bytes = *(size_t *)extra[3];
    ck_assert_uint_le(fake.params_bytes, sizeof fake.params);
    memcpy(fake.params, extra[1], fake.params_bytes);
    ck_assert(launch->block[1] == 1 && launch->block[2] == 1);
    ck_assert_uint_eq(launch->attribute_count, fake.major >= 9);
    const unsigned all[] = {(unsigned)((uintptr_t)f - FUNCTION), launch->grid[0], launch->grid[1], launch->grid[2], launch->block[0], launch->shared};
    memcpy(fake.launch, all, sizeof all);
    return fake.launch_result ? fake.launch_result : in_context();
}
static int fake_stream_synchronize(kt__stream s) { (void)s; return in_context(); }
static int fake_capturing(kt__stream s, int *state) { (void)s; *state = fake.capturing; return fake.capture_result; }
// An event remembers how many copies were queued when it was recorded.
static int fake_event_create(kt__event *e, unsigned flags) { *e = malloc(sizeof(int)); fake.events++; return flags == KT__EVENT_NO_TIMING ? in_context() : 1; }
static int fake_event_record(kt__event e, kt__stream s) { (void)s; *(int *)e = fake.copy_count; fake.recorded++; return in_context(); }
static int fake_event_wait(kt__event e) { do_copies(*(int *)e); fake.waited++; return 0; }
static int fake_event_destroy(kt__event e) { free(e); fake.events--; return in_context(); }
static int fake_error_name(int result, const char **name) { *name = result == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : result == 209 ? "CUDA_ERROR_NO_BINARY_FOR_GPU" : 0; return !*name; }
static int fake_error_text(int result, const char **text) { *text = result == 2 ? "out of memory" : 0; return !*text; }

static const kt__driver driver = {
    fake_init, fake_version, fake_count, fake_get, fake_name, fake_attribute, fake_retain, fake_release, fake_push, fake_pop, fake_current,
    fake_synchronize, fake_alloc, fake_free, fake_info, fake_set, fake_to_device, fake_copy, fake_to_host, fake_read, fake_host_alloc, fake_host_free,
    fake_load, fake_unload, fake_function, fake_function_get, fake_function_set, fake_launch, fake_stream_synchronize, fake_capturing,
    fake_event_create, fake_event_record, fake_event_wait, fake_event_destroy, fake_error_name, fake_error_text,
};

// ---- the package -----------------------------------------------------------------------------------------------------

static char folder[] = "/tmp/kittygen-cuda-XXXXXX";
static kt__kernel kernels[KT__OP_COUNT + 1];
static kt__package package;
static kt__environment environment;
static kt__backend *backend;

// Kernels a to f: one per operation, and a second attend that needs more shared memory than the card has.
static void setup(void)
{
    memset(&fake, 0, sizeof fake);
    fake.count = 2;
    fake.major = 9;
    fake.shared = 232448;
    strcpy(folder + strlen(folder) - 6, "XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    package = (kt__package){.folder = folder, .spec = "fake", .format_count = 1, .kernels = kernels, .kernel_count = KT__OP_COUNT + 1};
    memset(&environment, 0, sizeof environment);
    snprintf(environment.cuda_home, sizeof environment.cuda_home, "%s/none", folder);
    for (int i = 0; i < package.kernel_count; i++) {
        kt__kernel *k = &kernels[i];
        *k = (kt__kernel){.op = i == KT__OP_COUNT ? KT__ATTEND : (kt__op)i, .threads = 128 + 32 * i, .shared = 1000 * i, .source = folder};
        snprintf(k->name, sizeof k->name, "kernel_%c", 'a' + i);
        snprintf(k->entry, sizeof k->entry, "entry_%c", 'a' + i);
        kt__sha256_text(k->name, strlen(k->name), k->digest);
    }
    kernels[KT__ATTEND].shared = 90000;
    kernels[KT__OP_COUNT].shared = 300000;
    const unsigned char grid[3][KT__GRID_FACTORS] = {{KT__SPLITS}, {KT__KV_HEADS, KT__PASSES}, {KT__SLOTS, KT__FRESH}};
    memcpy(kernels[KT__ATTEND].grid, grid, sizeof grid);
}

// Writes the bundle that `kittygen build -o` would; each cubin is the kernel's letter.
static void write_bundle(const char *arch)
{
    const kt__nvrtc nvrtc = {.major = 13};
    for (int i = 0; i < package.kernel_count; i++) {
        char path[512];
        unsigned char letter = (unsigned char)('a' + i);
        const kt__cubin cubin = {.data = &letter, .bytes = 1};
        snprintf(path, sizeof path, "%s/cubin/%s/%s.cubin", folder, arch, kernels[i].name);
        ck_assert_int_eq(kt__cubin_write(path, &kernels[i], arch, &nvrtc, &cubin), 0);
    }
}

static void open_backend(void)
{
    bool usable = false;
    write_bundle("sm_90a");
    ck_assert_msg(kt__cuda_open_on(&driver, &package, &environment, 1, &usable, &backend) == KT_OK, "%s", kt_message());
    ck_assert(usable);
}

static void teardown(void)
{
    char command[128];
    if (backend)
        backend->calls->close(backend);
    backend = 0;
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    ck_assert_int_eq(system(command), 0);
}

// ---- opening ---------------------------------------------------------------------------------------------------------

START_TEST(opens)
{
    open_backend();
    ck_assert_str_eq(backend->device_name, "Fake 11");
    ck_assert_int_eq(backend->multiprocessors, 132);
    ck_assert_int_eq(backend->shared_limit, 232448);
    ck_assert_int_eq(backend->loaded, 5); // the sixth does not fit the card
    ck_assert_int_eq(backend->compiled, 0);
    ck_assert_int_eq(fake.modules, 5);
    ck_assert_int_eq(fake.dynamic_shared, 90000);
    ck_assert_int_eq(fake.retained, 1);
    ck_assert_ptr_null(fake.current);
    backend->calls->close(backend);
    backend = 0;
    ck_assert_int_eq(fake.retained, 0);
    ck_assert_int_eq(fake.modules, 0);
    ck_assert_int_eq(fake.events, 0);
    ck_assert_int_eq(fake.pinned, 0);
    ck_assert_int_eq(fake.pushes, fake.pops);
}
END_TEST

// What open says and whether AUTO may fall back; afterwards nothing is held.
static void refused(int ordinal, kt_status status, bool may_fall_back, const char *message)
{
    bool usable;
    ck_assert_int_eq(kt__cuda_open_on(&driver, &package, &environment, ordinal, &usable, &backend), status);
    ck_assert_str_eq(kt_message(), message);
    ck_assert_int_eq(!usable, may_fall_back);
    ck_assert_ptr_null(backend);
    ck_assert_int_eq(fake.retained, 0);
    ck_assert_int_eq(fake.modules, 0);
    ck_assert_int_eq(fake.events, 0);
    ck_assert_int_eq(fake.pinned, 0);
    ck_assert_ptr_null(fake.current);
}

START_TEST(refuses)
{
    char expected[1024];
    fake.init_result = 100;
    refused(0, KT_UNSUPPORTED, true, "no NVIDIA GPU: the driver finds none (CUDA_VISIBLE_DEVICES hides them too)");
    fake.init_result = 34;
    refused(0, KT_UNSUPPORTED, true, "no NVIDIA driver: libcuda.so.1 is the toolkit's stub");
    fake.init_result = 999;
    refused(0, KT_DEVICE, false, "starting the NVIDIA driver: unknown error: no description (999)");
    fake.init_result = 0;
    fake.count = 0;
    refused(0, KT_UNSUPPORTED, true, "no NVIDIA GPU: the driver counts none");
    fake.count = 2;
    refused(2, KT_UNSUPPORTED, false, "no CUDA device 2; this process sees 2: 0..1");
    refused(-1, KT_UNSUPPORTED, false, "no CUDA device -1; this process sees 2: 0..1");
    fake.major = 7;
    fake.minor = 5;
    refused(0, KT_UNSUPPORTED, true, "Fake 10 has compute capability 7.5; 8.0 or higher is needed");
    fake.major = 9;
    fake.minor = 0;
    snprintf(expected, sizeof expected,
             "kernel_a for sm_90a is not ready in the package, and NVRTC not found in KT_CUDA_HOME=%s/none (its lib64, lib, targets/*/lib)", folder);
    refused(0, KT_UNSUPPORTED, true, expected);
    write_bundle("sm_90a");
    fake.shared = 80000;
    refused(0, KT_UNSUPPORTED, false, "no kernel for attend in package fake fits Fake 10: 80000 bytes of shared memory per block, at least 90000 are needed");
    fake.shared = 232448;
    package.format_count = 2; // layers of the second format have only the kernel that does not fit
    kernels[KT__OP_COUNT].format = 1;
    refused(0, KT_UNSUPPORTED, false, "no kernel for attend in package fake fits Fake 10: 232448 bytes of shared memory per block, at least 300000 are needed");
    package.format_count = 1;
    kernels[KT__OP_COUNT].format = 0;
    fake.load_result = 209;
    refused(0, KT_DEVICE, false,
            "loading kernel_a for sm_90a on Fake 10, whose driver is for CUDA 13.0 (a cubin from a newer NVRTC? set KT_CUDA_HOME): "
            "CUDA_ERROR_NO_BINARY_FOR_GPU: no description (209)");
    fake.load_result = 0;
    strcpy(kernels[3].entry, "entry_z");
    refused(0, KT_DEVICE, false, "kernel_d has no entry entry_z: unknown error: no description (500)");
    strcpy(kernels[3].entry, "entry_d");
    kernels[3].threads = 1024;
    refused(0, KT_PACKAGE, false, "kernel_d can run 512 threads per block on Fake 10; the manifest says 1024");
}
END_TEST

START_TEST(architectures)
{
    static const struct { int major, minor; const char *arch; } cards[] = {
        {8, 0, "sm_80"}, {8, 6, "sm_86"}, {8, 7, "sm_86"}, {8, 9, "sm_89"}, {9, 0, "sm_90a"}, {10, 0, "sm_100a"}, {10, 3, "sm_103a"},
        {12, 0, "sm_120a"}, {12, 1, "sm_121a"},
    };
    char arch[16];
    for (size_t i = 0; i < sizeof cards / sizeof *cards; i++) {
        ck_assert(kt__cuda_arch(cards[i].major, cards[i].minor, arch));
        ck_assert_str_eq(arch, cards[i].arch);
    }
    ck_assert(!kt__cuda_arch(7, 5, arch));
}
END_TEST

// ---- work ------------------------------------------------------------------------------------------------------------

START_TEST(launches)
{
    open_backend();
    const char params[] = "the parameters";
    kt__extent extent = {.ones = {1, 9, 5, 8, 2, 32, 4, 3}};
    ck_assert_int_eq(backend->calls->launch(backend, KT__ATTEND, &extent, params, sizeof params, (void *)7), KT_OK);
    const unsigned expected[] = {'b', 5, 8 * 2, 4 * 3, 160, 90000};
    ck_assert_mem_eq(fake.launch, expected, sizeof expected);
    ck_assert_uint_eq(fake.params_bytes, sizeof params);
    ck_assert_str_eq(fake.params, params);
    ck_assert_ptr_null(fake.current);

    // A caller with the same context current is spared the push.
    const int pushes = fake.pushes;
    fake.current = (void *)CONTEXT;
    ck_assert_int_eq(backend->calls->launch(backend, KT__CHECK, &extent, params, sizeof params, 0), KT_OK);
    ck_assert_int_eq(fake.pushes, pushes);
    ck_assert_ptr_eq(fake.current, (void *)CONTEXT);

    extent.ones[KT__FRESH] = 0;
    ck_assert_int_eq(backend->calls->launch(backend, KT__ATTEND, &extent, params, sizeof params, 0), KT_INVALID);
    ck_assert_str_eq(kt_message(), "kernel_b: grid factor fresh is 0; expected 1 or more");
    extent.ones[KT__FRESH] = 20000;
    ck_assert_int_eq(backend->calls->launch(backend, KT__ATTEND, &extent, params, sizeof params, 0), KT_UNSUPPORTED);
    ck_assert_str_eq(kt_message(), "kernel_b: grid dimension z is beyond 65535 with fresh 20000");
    extent.ones[KT__FRESH] = 3;
    ck_assert_int_eq(backend->calls->launch(backend, KT__OP_COUNT, &extent, params, sizeof params, 0), KT_UNSUPPORTED);
    ck_assert_str_eq(kt_message(), "kernel_f needs 300000 bytes of shared memory per block; Fake 11 has 232448");
    fake.launch_result = 701;
    ck_assert_int_eq(backend->calls->launch(backend, KT__ATTEND, &extent, params, sizeof params, 0), KT_DEVICE);
    ck_assert_str_eq(kt_message(), "launching kernel_b, grid 5 x 16 x 12 of 160 threads, 90000 bytes shared: unknown error: no description (701)");
}
END_TEST

START_TEST(memory)
{
    void *device = 0, *host = 0;
    char back[300];
    open_backend();
    ck_assert_int_eq(backend->calls->alloc(backend, sizeof back, &device), KT_OK);
    memset(back, 1, sizeof back);
    ck_assert_int_eq(backend->calls->download(backend, back, device, sizeof back), KT_OK);
    for (size_t i = 0; i < sizeof back; i++)
        ck_assert_int_eq(back[i], 0);
    ck_assert_int_eq(backend->calls->mirror_alloc(backend, 16, &host), KT_OK);
    ck_assert_mem_eq(host, back, 16);
    memset(device, 3, 16);
    ck_assert_int_eq(backend->calls->mirror(backend, host, device, 16, 0), KT_OK);
    ck_assert_mem_eq(host, device, 16);
    for (size_t i = 0; i < sizeof back; i++)
        back[i] = (char)i;
    memcpy(device, back, sizeof back);
    ck_assert_int_eq(backend->calls->copy(backend, (char *)device + 10, device, 4, 3, 100, (void *)7), KT_OK);
    for (size_t i = 0; i < sizeof back; i++)
        ck_assert_int_eq(((char *)device)[i], i % 100 >= 10 && i % 100 < 14 ? back[i - 10] : back[i]);
    fake.copy_result = 700;
    ck_assert_int_eq(backend->calls->copy(backend, (char *)device + 10, device, 4, 3, 100, (void *)7), KT_DEVICE);
    ck_assert_str_eq(kt_message(), "copying 3 times 4 bytes on the device: unknown error: no description (700)");
    ck_assert_ptr_null(fake.current);
    backend->calls->mirror_free(backend, host);
    backend->calls->free(backend, device);
    backend->calls->free(backend, 0);
    ck_assert_int_eq(fake.allocations, 0);
    ck_assert_int_eq(fake.pinned, 1); // the staging ring
    fake.alloc_result = 2;
    ck_assert_int_eq(backend->calls->alloc(backend, 1000, &device), KT_MEMORY);
    ck_assert_str_eq(kt_message(), "1000 bytes on Fake 11 (5 of 7 are free): CUDA_ERROR_OUT_OF_MEMORY: out of memory (2)");
    ck_assert_ptr_null(fake.current);
}
END_TEST

// Uploads of many sizes, none done by the device before the ring is full: each must arrive as it was when it was given.
START_TEST(uploads)
{
    enum { UPLOADS = 700, MOST = 3 << 20 };
    open_backend();
    unsigned char *data = malloc(MOST), *device[UPLOADS];
    size_t sizes[UPLOADS], total = 0;
    unsigned random = 1;
    for (int i = 0; i < UPLOADS; i++) {
        random = random * 1664525u + 1013904223u;
        sizes[i] = i % 97 == 96 ? MOST - (random >> 20) : i % 11 == 10 ? random >> 14 : (random >> 22) + 1;
        device[i] = malloc(sizes[i]);
        memset(data, i * 7 + 1, sizes[i]);
        data[sizes[i] - 1] = (unsigned char)i;
        ck_assert_int_eq(backend->calls->upload(backend, &(kt__copy){device[i], data, sizes[i]}, 1, 0), KT_OK);
        memset(data, 0xee, sizes[i]); // reused at once
        total += sizes[i];
    }
    ck_assert_uint_gt(total, 4 * KT__STAGING_BYTES);
    ck_assert_int_eq(fake.recorded, fake.copy_count);
    fake_synchronize();
    for (int i = 0; i < UPLOADS; i++) {
        memset(data, i * 7 + 1, sizes[i]);
        data[sizes[i] - 1] = (unsigned char)i;
        ck_assert_msg(!memcmp(device[i], data, sizes[i]), "upload %d of %zu bytes", i, sizes[i]);
        free(device[i]);
    }
    free(data);
}
END_TEST

// Exactly as many small uploads as there are events go without a wait.
START_TEST(never_waits)
{
    static char word[4] = "abc", device[4]; // copies are done as late as in the teardown
    open_backend();
    for (int i = 0; i < KT__STAGING_MARKS; i++)
        ck_assert_int_eq(backend->calls->upload(backend, &(kt__copy){device, word, sizeof word}, 1, 0), KT_OK);
    ck_assert_int_eq(fake.waited, 0);
    ck_assert_int_eq(backend->calls->upload(backend, &(kt__copy){device, word, sizeof word}, 1, 0), KT_OK);
    ck_assert_int_eq(fake.waited, 1);
    ck_assert_int_eq(fake.copies_done, 1); // and only for the oldest
}
END_TEST

// The copies of one call share pieces of the ring, so that as many as there are slots go without a wait.
START_TEST(one_call)
{
    enum { COPIES = 2000 };
    static unsigned char data[COPIES][300], device[COPIES][300];
    static kt__copy copies[COPIES];
    open_backend();
    for (int i = 0; i < COPIES; i++) {
        memset(data[i], i % 251 + 1, sizeof data[i]);
        copies[i] = (kt__copy){device[i], data[i], i == 1000 ? sizeof data[i] : 1 + (size_t)i % 8};
    }
    ck_assert_int_eq(backend->calls->upload(backend, copies, COPIES, 0), KT_OK);
    ck_assert_int_eq(fake.waited, 0);
    ck_assert_int_eq(fake.recorded, 1);
    // Pieces are full, but one copy is larger than any.
    static unsigned char large[3 * KT__STAGING_PIECE / 2], to[sizeof large];
    memset(large, 9, sizeof large);
    const kt__copy mixed[] = {{device[0] + 8, "x", 1}, {to, large, sizeof large}, {device[1] + 8, "y", 1}};
    ck_assert_int_eq(backend->calls->upload(backend, mixed, 3, 0), KT_OK);
    ck_assert_int_eq(fake.recorded, 1 + 1 + 2 + 1);
    fake_synchronize();
    for (int i = 0; i < COPIES; i++)
        ck_assert_mem_eq(device[i], data[i], copies[i].bytes);
    ck_assert(device[0][8] == 'x' && device[1][8] == 'y');
    ck_assert_mem_eq(to, large, sizeof large);
    fake.capturing = 1;
    ck_assert_int_eq(backend->calls->upload(backend, copies, COPIES, 0), KT_ORDER);
}
END_TEST

START_TEST(capture)
{
    char word[4] = "abc", device[4];
    bool capturing = true;
    open_backend();
    ck_assert_int_eq(backend->calls->capturing(backend, 0, &capturing), KT_OK);
    ck_assert(!capturing);
    fake.capturing = 1;
    ck_assert_int_eq(backend->calls->capturing(backend, 0, &capturing), KT_OK);
    ck_assert(capturing);
    ck_assert_int_eq(backend->calls->upload(backend, &(kt__copy){device, word, sizeof word}, 1, 0), KT_ORDER);
    ck_assert_str_eq(kt_message(), "nothing can be uploaded on a stream under graph capture; upload before it begins (kt_batch_upload)");
    ck_assert_int_eq(fake.copy_count, 0);
    fake.capture_result = 906;
    ck_assert_int_eq(backend->calls->capturing(backend, 0, &capturing), KT_ORDER);
    ck_assert_str_eq(kt_message(), "the default stream cannot be used while another stream is under graph capture");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("cuda");
    TCase *all = tcase_create("all");
    tcase_add_checked_fixture(all, setup, teardown);
    tcase_add_test(all, opens);
    tcase_add_test(all, refuses);
    tcase_add_test(all, architectures);
    tcase_add_test(all, launches);
    tcase_add_test(all, memory);
    tcase_add_test(all, uploads);
    tcase_add_test(all, never_waits);
    tcase_add_test(all, one_call);
    tcase_add_test(all, capture);
    suite_add_tcase(suite, all);
    return run_suite(suite);
}
