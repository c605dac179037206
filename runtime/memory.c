// Device memory for callers that have no CUDA runtime of their own.
#include "core.h"

kt_status kt_memory_alloc(kt_engine *engine, size_t bytes, void **address)
{
    if (!engine || !address)
        return kt__fail(KT_INVALID, "kt_memory_alloc: %s is null", engine ? "address" : "engine");
    if (!bytes)
        return kt__fail(KT_INVALID, "kt_memory_alloc: bytes is 0");
    const kt_status status = engine->backend->calls->alloc(engine->backend, bytes, address);
    return status ? kt__within(status, "kt_memory_alloc") : KT_OK;
}

void kt_memory_free(kt_engine *engine, void *address)
{
    if (engine && address)
        engine->backend->calls->free(engine->backend, address);
}

kt_status kt_memory_write(kt_engine *engine, void *to, const void *from, size_t bytes, void *stream)
{
    if (!engine || !to || !from)
        return kt__fail(KT_INVALID, "kt_memory_write: %s is null", !engine ? "engine" : to ? "from" : "to");
    if (!bytes)
        return KT_OK;
    const kt_status status = engine->backend->calls->upload(engine->backend, &(kt__copy){to, from, bytes}, 1, stream);
    return status ? kt__within(status, "kt_memory_write") : KT_OK;
}

kt_status kt_memory_read(kt_engine *engine, void *to, const void *from, size_t bytes)
{
    if (!engine || !to || !from)
        return kt__fail(KT_INVALID, "kt_memory_read: %s is null", !engine ? "engine" : to ? "from" : "to");
    if (!bytes)
        return KT_OK;
    const kt_status status = engine->backend->calls->download(engine->backend, to, from, bytes);
    return status ? kt__within(status, "kt_memory_read") : KT_OK;
}
