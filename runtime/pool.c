// The pools of a cache: pages and slabs, one device allocation each, layer by layer; a layer's blocks and slabs are as large as its format's.
#include "core.h"

#include <limits.h>
#include <stdlib.h>

enum { MANY = 1 << 20 };

unsigned char *kt__layer_pages(const kt_cache *c, int layer) { return c->pages + c->page_starts[layer] * (uint64_t)c->page_total; }

unsigned char *kt__layer_slabs(const kt_cache *c, int layer) { return c->slabs + c->slab_starts[layer] * (uint64_t)c->slab_total; }

// Fills in where layers begin.
static kt_status measure_layers(kt_cache *c)
{
    const kt__package *p = &c->engine->package;
    c->page_starts = calloc((size_t)c->layers + 1, sizeof *c->page_starts);
    c->slab_starts = calloc((size_t)c->layers + 1, sizeof *c->slab_starts);
    if (!c->page_starts || !c->slab_starts)
        return kt__fail(KT_MEMORY, "kt_cache_open: no host memory for %d layers", c->layers);
    for (int layer = 0; layer < c->layers; layer++) {
        const kt_format *f = kt__format_of(p, layer);
        c->page_starts[layer + 1] = c->page_starts[layer] + (uint64_t)f->block_bytes * (uint64_t)c->kv_heads;
        c->slab_starts[layer + 1] = c->slab_starts[layer] + (uint64_t)f->slab_bytes * (uint64_t)c->kv_heads;
    }
    return KT_OK;
}

int kt__page_take(kt_cache *c)
{
    const int page = c->free_pages[--c->free_page_count];
    c->page_references[page] = 1;
    return page;
}

int kt__page_share(kt_cache *c, int page)
{
    c->page_references[page]++;
    return page;
}

void kt__page_release(kt_cache *c, int page)
{
    if (--c->page_references[page] == 0)
        c->free_pages[c->free_page_count++] = page;
}

static void reclaim_slab(kt_cache *c)
{
    kt__sequence *oldest = NULL;
    for (int i = 0; i < c->max_sequences; i++) {
        kt__sequence *s = &c->sequences[i];
        if (kt__sequence_keeps(s) && (!oldest || s->undo_age < oldest->undo_age))
            oldest = s;
    }
    kt__sequence_forget(c, oldest);
}

int kt__slab_take(kt_cache *c)
{
    if (!c->free_slab_count)
        reclaim_slab(c);
    return c->free_slabs[--c->free_slab_count];
}

void kt__slab_release(kt_cache *c, int slab) { c->free_slabs[c->free_slab_count++] = slab; }

// Layers of one size that follow each other are copied at once.
static kt_status copy_whole(const kt_cache *c, unsigned char *pool, const uint64_t *starts, int total, int to, int from, void *stream)
{
    kt__backend *backend = c->engine->backend;
    kt_status status = KT_OK;
    for (int layer = 0, count; layer < c->layers && !status; layer += count) {
        const uint64_t one = starts[layer + 1] - starts[layer];
        unsigned char *base = pool + starts[layer] * (uint64_t)total;
        for (count = 1; layer + count < c->layers && starts[layer + count + 1] - starts[layer + count] == one; count++)
            ;
        status = backend->calls->copy(backend, base + (uint64_t)to * one, base + (uint64_t)from * one, one, count, (uint64_t)total * one, stream);
    }
    return status;
}

kt_status kt__page_copy(const kt_cache *c, int to, int from, void *stream)
{
    return copy_whole(c, c->pages, c->page_starts, c->page_total, to, from, stream);
}

kt_status kt__slab_copy(const kt_cache *c, int to, int from, void *stream)
{
    return copy_whole(c, c->slabs, c->slab_starts, c->slab_total, to, from, stream);
}

static kt_status check_range(const char *name, int value, int low, int high)
{
    if (value >= low && value <= high)
        return KT_OK;
    return kt__fail(KT_INVALID, "kt_cache_open: %s is %d; %d to %d are allowed", name, value, low, high);
}

// Divides the budget; fills page_total, slab_total and bytes.
static kt_status divide(kt_cache *c, uint64_t budget)
{
    const uint64_t page = c->page_starts[c->layers], slab = c->slab_starts[c->layers]; // of all layers and heads
    c->slab_total = c->max_sequences + c->spare_slabs;
    const uint64_t slabs = slab * (uint64_t)c->slab_total;
    if (budget < slabs || budget - slabs < page)
        return kt__fail(KT_FULL, "kt_cache_open: budget_bytes is %llu; %d slabs of %llu bytes (max_sequences %d, spare_slabs %d) "
                        "and one page of %llu bytes need %llu", (unsigned long long)budget, c->slab_total,
                        (unsigned long long)slab, c->max_sequences, c->spare_slabs, (unsigned long long)page,
                        (unsigned long long)(slabs + page));
    const uint64_t pages = (budget - slabs) / page;
    c->page_total = pages < INT_MAX ? (int)pages : INT_MAX;
    c->bytes = slabs + page * (uint64_t)c->page_total;
    return KT_OK;
}

static kt_status allocate(kt_cache *c)
{
    const kt__backend_calls *calls = c->engine->backend->calls;
    kt_status status;
    c->page_references = calloc((size_t)c->page_total, sizeof *c->page_references);
    c->free_pages = malloc((size_t)c->page_total * sizeof *c->free_pages);
    c->free_slabs = malloc((size_t)c->slab_total * sizeof *c->free_slabs);
    c->sequences = calloc((size_t)c->max_sequences, sizeof *c->sequences);
    if (!c->page_references || !c->free_pages || !c->free_slabs || !c->sequences)
        return kt__fail(KT_MEMORY, "kt_cache_open: no host memory to keep track of %d pages", c->page_total);
    void *memory = NULL;
    if ((status = calls->alloc(c->engine->backend, c->page_starts[c->layers] * (uint64_t)c->page_total, &memory)))
        return kt__within(status, "kt_cache_open: %d pages", c->page_total);
    c->pages = memory;
    if ((status = calls->alloc(c->engine->backend, c->slab_starts[c->layers] * (uint64_t)c->slab_total, &memory)))
        return kt__within(status, "kt_cache_open: %d slabs", c->slab_total);
    c->slabs = memory;
    // Taken from the end: lowest first.
    for (c->free_page_count = 0; c->free_page_count < c->page_total; c->free_page_count++)
        c->free_pages[c->free_page_count] = c->page_total - 1 - c->free_page_count;
    for (c->free_slab_count = 0; c->free_slab_count < c->slab_total; c->free_slab_count++)
        c->free_slabs[c->free_slab_count] = c->slab_total - 1 - c->free_slab_count;
    return KT_OK;
}

kt_status kt_cache_open(kt_engine *engine, const kt_cache_args *args, kt_cache **cache)
{
    kt_status status;
    if (!engine || !args || !cache)
        return kt__fail(KT_INVALID, "kt_cache_open: %s is null", !engine ? "engine" : !args ? "args" : "cache");
    if ((status = kt__check_size(args->size, sizeof *args, "kt_cache_open", "kt_cache_args")) ||
        (status = check_range("layers", args->layers, 0, 4096)) || (status = check_range("kv_heads", args->kv_heads, 0, 4096)) ||
        (status = check_range("max_sequences", args->max_sequences, 1, MANY)) ||
        (status = check_range("spare_slabs", args->spare_slabs, 0, MANY)))
        return status;
    kt_cache *c = calloc(1, sizeof *c);
    if (!c)
        return kt__fail(KT_MEMORY, "kt_cache_open: no memory for a cache");
    c->engine = engine;
    c->layers = args->layers ? args->layers : engine->package.layers;
    c->kv_heads = args->kv_heads ? args->kv_heads : engine->package.kv_heads;
    c->q_heads = c->kv_heads * engine->package.formats[0].group_heads;
    if (engine->tables && (c->layers > engine->package.layers || c->kv_heads != engine->package.kv_heads)) {
        status = kt__fail(KT_INVALID, "kt_cache_open: layers is %d, kv_heads %d; %s is calibrated for %d layers of %d KV heads", c->layers,
                          c->kv_heads, engine->package.spec, engine->package.layers, engine->package.kv_heads);
        goto fail;
    }
    if (engine->package.format_count > 1 && c->layers > engine->package.layers) {
        status = kt__fail(KT_INVALID, "kt_cache_open: layers is %d; %s says how %d layers are kept, and they differ", c->layers, engine->package.spec,
                          engine->package.layers);
        goto fail;
    }
    c->max_sequences = args->max_sequences;
    c->spare_slabs = args->spare_slabs;
    if ((status = measure_layers(c)) || (status = divide(c, args->budget_bytes)) || (status = allocate(c)))
        goto fail;
    *cache = c;
    return KT_OK;

fail:
    kt_cache_close(c);
    return status;
}

void kt_cache_close(kt_cache *c)
{
    if (!c)
        return;
    kt__backend *backend = c->engine->backend;
    if (c->sequences)
        for (int i = 0; i < c->max_sequences; i++)
            free(c->sequences[i].pages);
    backend->calls->free(backend, c->pages);
    backend->calls->free(backend, c->slabs);
    free(c->page_starts);
    free(c->slab_starts);
    free(c->page_references);
    free(c->free_pages);
    free(c->free_slabs);
    free(c->sequences);
    free(c);
}

kt_status kt_cache_query(const kt_cache *cache, kt_cache_info *info)
{
    kt_status status;
    if (!cache || !info)
        return kt__fail(KT_INVALID, "kt_cache_query: %s is null", cache ? "info" : "cache");
    if ((status = kt__check_size(info->size, sizeof *info, "kt_cache_query", "kt_cache_info")))
        return status;
    *info = (kt_cache_info){
        .size = sizeof *info,
        .bytes = cache->bytes,
        .pages = cache->page_total,
        .free_pages = cache->free_page_count,
        .slabs = cache->slab_total,
        .free_slabs = cache->free_slab_count + cache->kept_slabs,
        .sequences = cache->open_sequences,
    };
    return KT_OK;
}
