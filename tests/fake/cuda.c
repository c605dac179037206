// libcuda.so.1 on a machine without a GPU, for commands that need one: memory is the host's, kernels do nothing but what a check looks
// at, and time is made up, so that what a command says can be foreseen. From the environment:
//   FAKE_MEMORY_MB  of the card (2048)
//   FAKE_FEW, FAKE_MANY  the attend kernel ("6x2x2x2") that takes 50 us with up to 8 slots, with more; others 100 us and more
//   FAKE_WRONG      the attend kernel whose output is wrong
//   FAKE_REFUSED    the attend kernel that cannot be launched
//   FAKE_LOST_AFTER so many launches of graphs, the card is lost
//   FAKE_INTERRUPT_AFTER  so many, Ctrl-C is pressed
//   FAKE_STALL_AFTER  so many, one takes FAKE_STALL_S seconds
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../runtime/cuda/driver.h"

#define EXPORT __attribute__((visibility("default")))
enum { OUT_OF_MEMORY = 2, NOT_FOUND = 500, OUT_OF_RESOURCES = 701, LOST = 719, PARAMS = 512, L2_BYTES = 38 };

typedef struct {
    bool attend, reference, bandwidth;
    char kernel[64]; // "8x2x2x1"
} function;

typedef struct {
    const function *f;
    char params[PARAMS];
} launch;

typedef struct {
    launch *launches;
    int count, room;
} graph;

typedef struct block {
    struct block *next, **link;
    size_t bytes, padding; // to a multiple of 16
} block; // kept in a list, so that nothing counts as leaked

static block *blocks;
static size_t held;
static graph *capturing;
static double clock_us;
static int graphs_launched;

static void *keep(size_t bytes)
{
    block *b = calloc(1, sizeof *b + bytes);
    if (!b)
        return 0;
    *b = (block){blocks, &blocks, bytes, 0};
    if (blocks)
        blocks->link = &b->next;
    blocks = b;
    return b + 1;
}

static size_t drop(void *address)
{
    block *b = (block *)address - 1;
    const size_t bytes = b->bytes;
    *b->link = b->next;
    if (b->next)
        b->next->link = b->link;
    free(b);
    return bytes;
}

static const char *setting(const char *name) { return getenv(name) ? getenv(name) : ""; }
static size_t memory(void) { return (size_t)(*setting("FAKE_MEMORY_MB") ? atoi(setting("FAKE_MEMORY_MB")) : 2048) << 20; }
static bool lost(void) { return *setting("FAKE_LOST_AFTER") && graphs_launched > atoi(setting("FAKE_LOST_AFTER")); }

// ---- kernels ---------------------------------------------------------------------------------------------------------

static double takes(const function *f, const kt_attend_params *p)
{
    int n[4] = {0};
    if (!f->attend)
        return f->bandwidth ? 1000 : 1;
    if (!strcmp(f->kernel, setting(p->view.slot_count <= 8 ? "FAKE_FEW" : "FAKE_MANY")))
        return 50;
    sscanf(f->kernel, "%dx%dx%dx%d", &n[0], &n[1], &n[2], &n[3]);
    return 100 + n[0] + n[1] + n[2] + n[3];
}

static void run(const launch *l)
{
    const kt_attend_params *p = (const kt_attend_params *)(const void *)l->params;
    clock_us += takes(l->f, p);
    if (!l->f->attend && !l->f->reference)
        return;
    for (int64_t i = 0; i < (int64_t)p->view.slot_count * p->max_fresh * p->out_row; i++)
        p->out[i] = l->f->attend && !strcmp(l->f->kernel, setting("FAKE_WRONG")) ? 0x3d00 : 0x3c00; // fp16 1.25 and 1, bf16 0.03 and 0.008
}

EXPORT int cuLaunchKernelEx(const kt__launch *config, kt__function f, void **parameters, void **extra)
{
    launch l = {.f = f};
    (void)config;
    if (lost())
        return LOST;
    if (l.f->attend && !strcmp(l.f->kernel, setting("FAKE_REFUSED")))
        return OUT_OF_RESOURCES;
    if (extra)
        memcpy(l.params, extra[1], *(size_t *)extra[3] < PARAMS ? *(size_t *)extra[3] : PARAMS);
    (void)parameters;
    if (!capturing) {
        run(&l);
        return 0;
    }
    if (capturing->count == capturing->room) {
        capturing->room = capturing->room ? 2 * capturing->room : 64;
        capturing->launches = realloc(capturing->launches, (size_t)capturing->room * sizeof l);
    }
    capturing->launches[capturing->count++] = l;
    return 0;
}

EXPORT int cuModuleLoadDataEx(kt__module *m, const void *image, unsigned n, int *options, void **values)
{
    (void)image, (void)n, (void)options, (void)values;
    *m = keep(1);
    return 0;
}
EXPORT int cuModuleUnload(kt__module m) { drop(m); return 0; }
EXPORT int cuModuleGetFunction(kt__function *to, kt__module m, const char *name)
{
    function *f = keep(sizeof *f);
    (void)m;
    f->attend = !strncmp(name, "kitty_attend_", 13);
    f->reference = !strcmp(name, "kitty_reference");
    f->bandwidth = !strncmp(name, "bandwidth", 9);
    snprintf(f->kernel, sizeof f->kernel, "%s", f->attend ? name + 13 : "");
    *to = f;
    return 0;
}
EXPORT int cuFuncGetAttribute(int *value, int attribute, kt__function f) { (void)attribute, (void)f; *value = 1024; return 0; }
EXPORT int cuFuncSetAttribute(kt__function f, int attribute, int value) { (void)f, (void)attribute, (void)value; return 0; }

// ---- the device ------------------------------------------------------------------------------------------------------

EXPORT int cuInit(unsigned flags) { (void)flags; return 0; }
EXPORT int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
EXPORT int cuDeviceGetCount(int *count) { *count = 1; return 0; }
EXPORT int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
EXPORT int cuDeviceGetName(char *name, int size, int device) { (void)device; snprintf(name, (size_t)size, "Fake H100"); return 0; }
EXPORT int cuDeviceGetAttribute(int *value, int attribute, int device)
{
    (void)device;
    *value = attribute == KT__DEVICE_MAJOR ? 9 : attribute == KT__DEVICE_MINOR ? 0 : attribute == KT__DEVICE_SHARED_OPTIN ? 232448 :
             attribute == KT__DEVICE_MULTIPROCESSORS ? 132 : attribute == L2_BYTES ? 1 << 20 : 0;
    return 0;
}
EXPORT int cuDevicePrimaryCtxRetain(kt__context *c, int device) { (void)device; *c = &blocks; return 0; }
EXPORT int cuDevicePrimaryCtxRelease_v2(int device) { (void)device; return 0; }
EXPORT int cuCtxPushCurrent_v2(kt__context c) { (void)c; return 0; }
EXPORT int cuCtxPopCurrent_v2(kt__context *c) { *c = &blocks; return 0; }
EXPORT int cuCtxGetCurrent(kt__context *c) { *c = &blocks; return 0; }
EXPORT int cuCtxSynchronize(void) { return lost() ? LOST : 0; }
EXPORT int cuGetErrorName(int result, const char **name) { *name = result == LOST ? "CUDA_ERROR_LAUNCH_FAILED" : result == OUT_OF_RESOURCES ?
                                                           "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES" : "CUDA_ERROR"; return 0; }
EXPORT int cuGetErrorString(int result, const char **text) { (void)result; *text = "as the test wants it"; return 0; }

// ---- memory ----------------------------------------------------------------------------------------------------------

EXPORT int cuMemAlloc_v2(kt__address *a, size_t bytes)
{
    void *memory_ = held + bytes <= memory() ? keep(bytes) : 0;
    if (!memory_)
        return OUT_OF_MEMORY;
    held += bytes;
    *a = (kt__address)(uintptr_t)memory_;
    return 0;
}
EXPORT int cuMemFree_v2(kt__address a) { held -= drop((void *)(uintptr_t)a); return 0; }
EXPORT int cuMemGetInfo_v2(size_t *available, size_t *total) { *total = memory(); *available = *total - held; return 0; }
EXPORT int cuMemsetD8Async(kt__address a, unsigned char v, size_t n, kt__stream s) { (void)a, (void)v, (void)n, (void)s; return 0; } // is 0
EXPORT int cuMemcpyHtoDAsync_v2(kt__address to, const void *from, size_t n, kt__stream s) { (void)s; memcpy((void *)(uintptr_t)to, from, n); return 0; }
EXPORT int cuMemcpyHtoD_v2(kt__address to, const void *from, size_t n) { memcpy((void *)(uintptr_t)to, from, n); return 0; }
EXPORT int cuMemcpyDtoHAsync_v2(void *to, kt__address from, size_t n, kt__stream s) { (void)s; memcpy(to, (void *)(uintptr_t)from, n); return 0; }
EXPORT int cuMemcpyDtoH_v2(void *to, kt__address from, size_t n) { memcpy(to, (void *)(uintptr_t)from, n); return 0; }
EXPORT int cuMemcpyDtoDAsync_v2(kt__address to, kt__address from, size_t n, kt__stream s)
{
    (void)to, (void)from, (void)s; // nobody looks at what is copied
    clock_us += (double)n / 1e6;
    return 0;
}
EXPORT int cuMemHostAlloc(void **p, size_t bytes, unsigned flags) { (void)flags; *p = keep(bytes); return 0; }
EXPORT int cuMemFreeHost(void *p) { drop(p); return 0; }

// ---- streams, events, graphs -----------------------------------------------------------------------------------------

EXPORT int cuStreamCreate(void **stream, unsigned flags) { (void)flags; *stream = keep(1); return 0; }
EXPORT int cuStreamDestroy_v2(void *stream) { drop(stream); return 0; }
EXPORT int cuStreamSynchronize(kt__stream stream) { (void)stream; return lost() ? LOST : 0; }
EXPORT int cuStreamIsCapturing(kt__stream stream, int *state) { (void)stream; *state = capturing != 0; return 0; }
EXPORT int cuStreamBeginCapture_v2(void *stream, int mode)
{
    (void)stream, (void)mode;
    capturing = keep(sizeof *capturing);
    return 0;
}
EXPORT int cuStreamEndCapture(void *stream, void **captured)
{
    (void)stream;
    *captured = capturing;
    capturing = 0;
    return 0;
}
EXPORT int cuGraphInstantiateWithFlags(void **to, void *from, unsigned long long flags)
{
    const graph *g = from;
    graph *copy = keep(sizeof *copy);
    (void)flags;
    *copy = (graph){malloc((size_t)(g->count + 1) * sizeof *g->launches), g->count, g->count};
    if (g->count)
        memcpy(copy->launches, g->launches, (size_t)g->count * sizeof *g->launches);
    *to = copy;
    return 0;
}
EXPORT int cuGraphExecDestroy(void *g) { free(((graph *)g)->launches); drop(g); return 0; }
EXPORT int cuGraphDestroy(void *g) { return cuGraphExecDestroy(g); }
EXPORT int cuGraphLaunch(void *from, void *stream)
{
    const graph *g = from;
    (void)stream;
    graphs_launched++;
    if (graphs_launched == atoi(setting("FAKE_INTERRUPT_AFTER")))
        raise(SIGINT);
    if (graphs_launched == atoi(setting("FAKE_STALL_AFTER")))
        sleep((unsigned)atoi(setting("FAKE_STALL_S")));
    if (lost())
        return LOST;
    for (int i = 0; i < g->count; i++)
        run(&g->launches[i]);
    return 0;
}
EXPORT int cuEventCreate(kt__event *e, unsigned flags) { (void)flags; *e = keep(sizeof(double)); return 0; }
EXPORT int cuEventRecord(kt__event e, kt__stream s) { (void)s; *(double *)e = clock_us; return 0; }
EXPORT int cuEventSynchronize(kt__event e) { (void)e; return 0; }
EXPORT int cuEventDestroy_v2(kt__event e) { drop(e); return 0; }
EXPORT int cuEventElapsedTime(float *ms, void *from, void *to) { *ms = (float)((*(double *)to - *(double *)from) / 1000); return 0; }
