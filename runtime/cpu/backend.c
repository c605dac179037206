// The CPU as a device: its memory is the host's, its streams do their work at once.
#include "cpu.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 256 };

static void close_backend(kt__backend *backend) { free(backend); }

// calloc hands out untouched pages, so that a large pool costs memory only where it is used. The address it gave is kept
// just before the aligned one.
static kt_status alloc(kt__backend *backend, size_t bytes, void **address)
{
    (void)backend;
    void *raw = bytes < SIZE_MAX - 2 * ALIGNMENT ? calloc(1, bytes + 2 * ALIGNMENT) : NULL;
    if (!raw)
        return kt__fail(KT_MEMORY, "%zu bytes of memory could not be had", bytes);
    void **aligned = (void **)(((uintptr_t)raw + 2 * ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
    aligned[-1] = raw;
    *address = aligned;
    return KT_OK;
}

static void release(kt__backend *backend, void *address)
{
    (void)backend;
    if (address)
        free(((void **)address)[-1]);
}

static kt_status upload(kt__backend *backend, const kt__copy *copies, int count, void *stream)
{
    (void)backend, (void)stream;
    for (int i = 0; i < count; i++)
        memcpy(copies[i].to, copies[i].from, copies[i].bytes);
    return KT_OK;
}

static kt_status copy(kt__backend *backend, void *to, const void *from, size_t bytes, int count, size_t stride, void *stream)
{
    (void)backend, (void)stream;
    for (int i = 0; i < count; i++)
        memcpy((char *)to + (size_t)i * stride, (const char *)from + (size_t)i * stride, bytes);
    return KT_OK;
}

static kt_status download(kt__backend *backend, void *to, const void *from, size_t bytes)
{
    (void)backend;
    memcpy(to, from, bytes);
    return KT_OK;
}

static kt_status mirror_alloc(kt__backend *backend, size_t bytes, void **host) { return alloc(backend, bytes, host); }

static kt_status mirror(kt__backend *backend, void *host, const void *device, size_t bytes, void *stream)
{
    (void)stream;
    return download(backend, host, device, bytes);
}

static kt_status capturing(kt__backend *backend, void *stream, bool *yes)
{
    (void)backend, (void)stream;
    *yes = false;
    return KT_OK;
}

static kt_status launch(kt__backend *backend, int kernel, const kt__extent *extent, const void *params, size_t bytes,
                        void *stream)
{
    (void)extent, (void)bytes, (void)stream;
    const kt__kernel *k = &backend->package->kernels[kernel];
    const kt_format *format = &backend->package->formats[k->format];
    switch (k->op) {
    case KT__APPEND: kt__cpu_append(format, params); break;
    case KT__ATTEND:
    case KT__REFERENCE: kt__cpu_attend(format, params); break;
    case KT__CHECK: kt__cpu_check(params); break;
    case KT__ADVANCE: kt__cpu_advance(params); break;
    case KT__OP_COUNT: break;
    }
    return KT_OK;
}

void kt__cpu_check(const kt_step_params *params)
{
    int ready = 1;
    for (int i = 0; i < params->slot_count; i++) {
        const kt_slot *slot = &params->slots[i];
        if (slot->fresh && slot->tokens + slot->fresh > slot->capacity)
            ready = 0;
    }
    params->control->ready = ready;
    params->control->overrun += !ready;
}

void kt__cpu_advance(const kt_step_params *params)
{
    if (!params->control->ready)
        return;
    for (int i = 0; i < params->slot_count; i++) {
        kt_slot *slot = &params->slots[i];
        if (!slot->fresh)
            continue;
        slot->tokens += slot->fresh;
        slot->slab = slot->slab_next;
    }
}

static const kt__backend_calls calls = {
    .close = close_backend, .alloc = alloc, .free = release, .upload = upload, .copy = copy, .download = download,
    .mirror_alloc = mirror_alloc, .mirror_free = release, .mirror = mirror, .capturing = capturing, .launch = launch,
};

kt_status kt__cpu_open(const kt__package *package, kt__backend **backend)
{
    const kt_format *f = &package->formats[0]; // pages and heads are of all layers
    if (f->page > KT__MAX_PAGE || f->page % KT__TILE || f->head_dim > KT__MAX_DIM || f->head_dim % 32)
        return kt__fail(KT_UNSUPPORTED, "the CPU takes pages of 32 to %d tokens and heads of 32 to %d channels, both in "
                        "multiples of 32; this package has %d and %d", KT__MAX_PAGE, KT__MAX_DIM, f->page, f->head_dim);
    kt__backend *b = calloc(1, sizeof *b);
    if (!b)
        return kt__fail(KT_MEMORY, "%zu bytes of memory could not be had", sizeof *b);
    b->calls = &calls;
    b->package = package;
    b->multiprocessors = 1;
    b->shared_limit = INT_MAX;
    snprintf(b->device_name, sizeof b->device_name, "CPU");
    *backend = b;
    return KT_OK;
}
