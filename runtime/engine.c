#include "core.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

kt_status kt__check_size(size_t size, size_t expected, const char *call, const char *type)
{
    if (size == expected)
        return KT_OK;
    return kt__fail(KT_INVALID, "%s: size is %zu; set it to sizeof(%s), %zu in this version (%s)", call, size, type, expected,
                    KT_VERSION);
}

// Opens the backend that was asked for; AUTO takes the CPU only where there is no usable GPU.
static kt_status open_backend(kt_engine *engine, const kt_open_args *args)
{
    if (args->device != KT_DEVICE_CPU) {
        bool usable = true;
        const kt_status status =
            kt__cuda_open(&engine->package, &engine->environment, args->ordinal, &usable, &engine->backend);
        engine->device = KT_DEVICE_CUDA;
        if (!status || args->device == KT_DEVICE_CUDA || usable)
            return status;
        snprintf(engine->reason, sizeof engine->reason, "%s", kt_message());
    }
    engine->device = KT_DEVICE_CPU;
    return kt__cpu_open(&engine->package, &engine->backend);
}

// What calibration gives every layer and head, to the device.
static kt_status bring_tables(kt_engine *e)
{
    const kt__package *p = &e->package;
    const size_t bytes = kt__layer_tables(p, p->layers);
    const kt__backend_calls *calls = e->backend->calls;
    void *memory = NULL;
    if (!bytes)
        return KT_OK;
    kt_status status = calls->alloc(e->backend, bytes, &memory);
    if (!status && (status = calls->upload(e->backend, &(kt__copy){memory, p->tables, bytes}, 1, NULL)))
        calls->free(e->backend, memory);
    if (status)
        return kt__within(status, "kt_open: calibration tables");
    e->tables = memory;
    return KT_OK;
}

kt_status kt_open(const kt_open_args *args, kt_engine **engine)
{
    kt_status status;
    if (!args || !engine)
        return kt__fail(KT_INVALID, "kt_open: %s is null", args ? "engine" : "args");
    if ((status = kt__check_size(args->size, sizeof *args, "kt_open", "kt_open_args")))
        return status;
    if (!args->package)
        return kt__fail(KT_INVALID, "kt_open: package is null; name a folder that kittygen emit wrote");
    if (args->device != KT_DEVICE_AUTO && args->device != KT_DEVICE_CUDA && args->device != KT_DEVICE_CPU)
        return kt__fail(KT_INVALID, "kt_open: device is %d; KT_DEVICE_AUTO, KT_DEVICE_CUDA and KT_DEVICE_CPU are allowed",
                        (int)args->device);
    if (args->ordinal < 0)
        return kt__fail(KT_INVALID, "kt_open: ordinal is %d; devices are counted from 0", args->ordinal);

    kt_engine *e = calloc(1, sizeof *e);
    if (!e)
        return kt__fail(KT_MEMORY, "kt_open: no memory for an engine");
    kt__environment_read(&e->environment);
    if (args->cache_dir) {
        if (strlen(args->cache_dir) >= sizeof e->environment.cache_dir) {
            status = kt__fail(KT_INVALID, "kt_open: cache_dir has %zu characters; at most %zu are allowed",
                              strlen(args->cache_dir), sizeof e->environment.cache_dir - 1);
            goto fail;
        }
        snprintf(e->environment.cache_dir, sizeof e->environment.cache_dir, "%s", args->cache_dir);
    }
    if ((status = kt__package_read(args->package, &e->package)))
        goto fail;
    if ((status = open_backend(e, args)))
        goto fail;
    if ((status = bring_tables(e))) {
        e->backend->calls->close(e->backend);
        goto fail;
    }
    *engine = e;
    return KT_OK;

fail:
    kt__package_free(&e->package);
    free(e);
    return status;
}

void kt_close(kt_engine *engine)
{
    if (!engine)
        return;
    if (engine->tables)
        engine->backend->calls->free(engine->backend, engine->tables);
    engine->backend->calls->close(engine->backend);
    kt__package_free(&engine->package);
    free(engine);
}

kt_status kt_engine_query(const kt_engine *engine, kt_engine_info *info)
{
    kt_status status;
    if (!engine || !info)
        return kt__fail(KT_INVALID, "kt_engine_query: %s is null", engine ? "info" : "engine");
    if ((status = kt__check_size(info->size, sizeof *info, "kt_engine_query", "kt_engine_info")))
        return status;
    const kt__package *package = &engine->package;
    const kt_format *f = &package->formats[0]; // what all share
    *info = (kt_engine_info){
        .size = sizeof *info,
        .device = engine->device,
        .head_dim = f->head_dim,
        .group_heads = f->group_heads,
        .page = f->page,
        .sink = f->sink,
        .layers = package->layers,
        .kv_heads = package->kv_heads,
        .dtype = (kt_dtype)f->dtype,
        .compiled = engine->backend->compiled,
        .loaded = engine->backend->loaded,
    };
    snprintf(info->device_name, sizeof info->device_name, "%s", engine->backend->device_name);
    snprintf(info->reason, sizeof info->reason, "%s", engine->reason);
    snprintf(info->spec, sizeof info->spec, "%s", package->spec);
    for (int i = 0; i < package->format_count; i++) {
        const uint64_t block = (uint64_t)package->formats[i].block_bytes, slab = (uint64_t)package->formats[i].slab_bytes;
        info->block_bytes = block > info->block_bytes ? block : info->block_bytes;
        info->slab_bytes = slab > info->slab_bytes ? slab : info->slab_bytes;
    }
    return KT_OK;
}

kt_status kt_layer_bytes(const kt_engine *engine, int layer, uint64_t *block_bytes, uint64_t *slab_bytes)
{
    if (!engine || !block_bytes || !slab_bytes)
        return kt__fail(KT_INVALID, "kt_layer_bytes: %s is null", !engine ? "engine" : block_bytes ? "slab_bytes" : "block_bytes");
    const kt__package *package = &engine->package;
    if (layer < 0 || (layer >= package->layers && package->format_count > 1))
        return kt__fail(KT_INVALID, "kt_layer_bytes: layer is %d; %s has layers 0 to %d", layer, package->spec, package->layers - 1);
    const kt_format *f = kt__format_of(package, layer);
    *block_bytes = (uint64_t)f->block_bytes;
    *slab_bytes = (uint64_t)f->slab_bytes;
    return KT_OK;
}

int kt__power_above(int pages)
{
    int power = 1;
    while (power < pages)
        power *= 2;
    return power;
}

kt_status kt__pick(const kt_engine *engine, kt__op op, int format, int sequences, int pages, int *kernel, int *blocks_per_sm)
{
    const kt__package *p = &engine->package;
    const int limit = engine->backend->shared_limit;
    for (int i = 0; i < p->choice_count; i++) {
        const kt__choice *choice = &p->choices[i];
        if (choice->op != op || choice->format != format || p->kernels[choice->kernel].shared > limit ||
            (choice->max_sequences && sequences > choice->max_sequences) || (choice->max_pages && pages > choice->max_pages))
            continue;
        *kernel = choice->kernel;
        if (blocks_per_sm)
            *blocks_per_sm = choice->blocks_per_sm;
        return KT_OK;
    }
    // Operations without a choice have one kernel.
    int least = 0;
    for (int i = 0; i < p->kernel_count; i++) {
        if (p->kernels[i].op != op || p->kernels[i].format != format)
            continue;
        if (p->kernels[i].shared <= limit) {
            *kernel = i;
            if (blocks_per_sm)
                *blocks_per_sm = 1;
            return KT_OK;
        }
        least = least && least < p->kernels[i].shared ? least : p->kernels[i].shared;
    }
    if (!least)
        return kt__fail(KT_UNSUPPORTED, "the package %s has no %s kernel", p->spec, kt__op_names[op]);
    return kt__fail(KT_UNSUPPORTED, "no %s kernel of %s fits %s: the smallest needs %d bytes of shared memory, a block may have %d",
                    kt__op_names[op], p->spec, engine->backend->device_name, least, limit);
}
