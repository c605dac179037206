// Looking inside: what a sequence holds, decoded on the host.
#include "core.h"

#include <stdlib.h>
#include <string.h>

#include "cpu/cpu.h"

// Where one head of one sequence lies on the device.
typedef struct {
    const kt_cache *cache;
    const kt_format *format;
    const kt__sequence *sequence;
    int layer, head;
} place;

static kt_status find(const kt_cache *cache, kt_sequence sequence, int layer, int kv_head, const char *call, place *at)
{
    if (!cache)
        return kt__fail(KT_INVALID, "%s: cache is null", call);
    const kt__sequence *s = kt__sequence_find(cache, sequence, call);
    if (!s)
        return KT_STALE;
    if (layer < 0 || layer >= cache->layers)
        return kt__fail(KT_INVALID, "%s: layer is %d; the cache has layers 0 to %d", call, layer, cache->layers - 1);
    if (kv_head < 0 || kv_head >= cache->kv_heads)
        return kt__fail(KT_INVALID, "%s: kv_head is %d; the cache has KV heads 0 to %d", call, kv_head, cache->kv_heads - 1);
    const kt__package *package = &cache->engine->package;
    *at = (place){cache, kt__format_of(package, layer), s, layer, kv_head};
    return KT_OK;
}

static kt_status download_block(const place *at, int page, unsigned char *block)
{
    kt__backend *backend = at->cache->engine->backend;
    const uint64_t index = (uint64_t)at->sequence->pages[page] * (uint64_t)at->cache->kv_heads + (uint64_t)at->head;
    return backend->calls->download(backend, block,
                                    kt__layer_pages(at->cache, at->layer) + index * (uint64_t)at->format->block_bytes,
                                    (size_t)at->format->block_bytes);
}

static kt_status download_slab(const place *at, unsigned char *slab)
{
    kt__backend *backend = at->cache->engine->backend;
    const uint64_t index = (uint64_t)at->sequence->slab * (uint64_t)at->cache->kv_heads + (uint64_t)at->head;
    return backend->calls->download(backend, slab,
                                    kt__layer_slabs(at->cache, at->layer) + index * (uint64_t)at->format->slab_bytes,
                                    (size_t)at->format->slab_bytes);
}

static void read_exact(const kt_format *f, const unsigned char *slab, kt_part part, int token, float *out)
{
    const long long offset = kt__cpu_place(f, part, token);
    for (int c = 0; c < f->head_dim; c++) {
        unsigned short element;
        memcpy(&element, slab + offset + 2 * c, sizeof element);
        out[c] = kt__element(f->dtype, element);
    }
}

kt_status kt_read(const kt_cache *cache, kt_sequence sequence, int layer, int kv_head, kt_part part, int first, int count,
                  float *out)
{
    place at = {0};
    kt_status status = find(cache, sequence, layer, kv_head, "kt_read", &at);
    if (status)
        return status;
    if (part != KT_KEY && part != KT_VALUE)
        return kt__fail(KT_INVALID, "kt_read: part is %d; KT_KEY and KT_VALUE are allowed", (int)part);
    if (first < 0 || count < 0 || count > at.sequence->tokens - first)
        return kt__fail(KT_INVALID, "kt_read: tokens %d to %lld; the sequence has %d", first, (long long)first + count - 1,
                        at.sequence->tokens);
    if (!out)
        return kt__fail(KT_INVALID, "kt_read: out is null");

    const kt_format *f = at.format;
    const int pages = kt_sealed(f, part, at.sequence->tokens);
    const size_t d = (size_t)f->head_dim;
    unsigned char *slab = malloc((size_t)f->slab_bytes), *block = malloc((size_t)f->block_bytes);
    float *decoded = malloc((size_t)f->page * d * sizeof *decoded);
    const kt__package *package = &cache->engine->package;
    const unsigned char *table =
        package->tables ? package->tables + kt__layer_tables(package, layer) + (size_t)kv_head * (size_t)f->table_bytes : NULL;
    int held = -1; // page in `decoded`
    if (!slab || !block || !decoded) {
        status = kt__fail(KT_MEMORY, "no memory for a page of %d tokens", f->page);
        goto done;
    }
    if ((status = download_slab(&at, slab)))
        goto done;
    for (int t = first; t < first + count; t++, out += d) {
        const int page = t < f->sink ? -1 : (t - f->sink) / f->page;
        if (page < 0 || page >= pages) {
            read_exact(f, slab, part, t, out);
            continue;
        }
        if (page != held) {
            if ((status = download_block(&at, page, block)))
                goto done;
            kt__cpu_decode(f, part, table, block, decoded);
            held = page;
        }
        memcpy(out, decoded + (size_t)((t - f->sink) % f->page) * d, d * sizeof *out);
    }

done:
    free(slab);
    free(block);
    free(decoded);
    return status ? kt__within(status, "kt_read") : KT_OK;
}

kt_status kt_read_block(const kt_cache *cache, kt_sequence sequence, int layer, int kv_head, int page, void *out)
{
    place at = {0};
    kt_status status = find(cache, sequence, layer, kv_head, "kt_read_block", &at);
    if (status)
        return status;
    const kt_format *f = at.format;
    const int keys = kt_sealed(f, KT_KEY, at.sequence->tokens);
    const int values = kt_sealed(f, KT_VALUE, at.sequence->tokens);
    if (page < 0 || page >= keys)
        return kt__fail(KT_INVALID, "kt_read_block: page is %d; the sequence has %d sealed key pages", page, keys);
    if (!out)
        return kt__fail(KT_INVALID, "kt_read_block: out is null");
    unsigned char *block = out;
    if ((status = download_block(&at, page, block)))
        return kt__within(status, "kt_read_block");
    if (page >= values) { // whatever the page held before
        block[KT_HEADER_VALUE_FLAGS] = block[KT_HEADER_VALUE_EXPONENT] = block[KT_HEADER_VALUE_ZERO] = 0;
        memset(block + f->value_tiles, 0, (size_t)(f->block_bytes - f->value_tiles));
    }
    return KT_OK;
}
