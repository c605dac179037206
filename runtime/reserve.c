// What a step takes from the pools: pages to seal, slabs for exact tokens that cannot stay in place, and copies of shared pages.
#include "core.h"

// Whether the step's exact tokens can be written where they belong without overwriting any that the step still reads: a
// ring with nothing live in it takes any number, since only what stays exact is written. A slab is of all layers.
static bool fits_in_place(const kt__package *p, int tokens, int fresh)
{
    for (int i = 0; i < 2 * p->format_count; i++) {
        const kt_format *f = &p->formats[i / 2];
        const int part = i % 2, live = tokens - f->sink - kt_sealed(f, part, tokens) * f->page;
        if (live > 0 && (long long)live + fresh > (part == KT_KEY ? f->key_ring : f->value_ring))
            return false;
    }
    return true;
}

typedef struct {
    int first, last;
} stretch;

static int lesser(int a, int b) { return a < b ? a : b; }

// Pages [first, last) of a sequence of `tokens` tokens into which what has the reach will be sealed by the time it has `after`, and something
// with a shorter reach is sealed already, so that another sequence may count on them as well: such a page is not written but replaced by a
// copy. Stretches of different reaches have no page in common.
static stretch half_sealed(const kt__package *p, int reach, int tokens, int after)
{
    const int first = kt__sealed_at(p, reach, tokens);
    return (stretch){first, reach ? lesser(kt__sealed_at(p, reach - 1, tokens), kt__sealed_at(p, reach, after)) : first};
}

static bool is_shared(const kt_cache *cache, const kt__sequence *s, int at) { return cache->page_references[s->pages[at]] > 1; }

static int count_shared(const kt_cache *cache, const kt__sequence *s, int tokens, int after)
{
    const kt__package *p = &cache->engine->package;
    int count = 0;
    for (int reach = 0; reach < p->reach_count; reach++) {
        const stretch part = half_sealed(p, reach, tokens, after);
        for (int i = part.first; i < part.last; i++)
            count += is_shared(cache, s, i);
    }
    return count;
}

kt_status kt__reserve_check(const kt_batch *b)
{
    const kt_cache *cache = b->cache;
    const kt__package *package = &cache->engine->package;
    long long pages = 0;
    int slabs = 0;
    for (int slot = 0; slot < b->slots; slot++) {
        const kt_slot *p = &b->planned[slot];
        if (!p->fresh)
            continue;
        const kt__sequence *s = kt__batch_sequence(b, slot);
        const int more = kt__pages_for(package, p->tokens + p->fresh) - s->page_count;
        pages += (more > 0 ? more : 0) + count_shared(cache, s, p->tokens, p->tokens + p->fresh);
        slabs += !fits_in_place(package, p->tokens, p->fresh);
    }
    if (pages > cache->free_page_count)
        return kt__fail(KT_FULL, "kt_step_begin: the step needs %lld more pages; %d of %d are free. Close a sequence or open the "
                        "cache with a larger budget", pages, cache->free_page_count, cache->page_total);
    if (slabs > cache->spare_slabs - cache->spares_used)
        return kt__fail(KT_FULL, "kt_step_begin: %d sequences bring several tokens to a filled cache and need a spare slab each; "
                        "%d of %d are free (spare_slabs)", slabs, cache->spare_slabs - cache->spares_used, cache->spare_slabs);
    return KT_OK;
}

// Puts a copy of its own in the place of a shared page; the caller has the one before, and its reference.
static kt_status replace(kt_cache *cache, kt__sequence *s, int at, void *stream)
{
    const int shared = s->pages[at];
    s->pages[at] = kt__page_take(cache);
    s->stamp = ++cache->stamps;
    return kt__page_copy(cache, s->pages[at], shared, stream);
}

static void put_back(kt_cache *cache, kt__sequence *s, int at, int shared)
{
    kt__page_release(cache, s->pages[at]);
    s->pages[at] = shared;
    s->stamp = ++cache->stamps;
}

kt_status kt__reserve(kt_batch *b, void *stream)
{
    kt_cache *cache = b->cache;
    const kt__package *package = &cache->engine->package;
    kt_status status = KT_OK;
    for (int slot = 0; slot < b->slots; slot++) {
        if (b->planned[slot].fresh)
            b->pages_before[slot] = kt__batch_sequence(b, slot)->page_count;
        for (int i = 0; i < b->half_pages; i++)
            b->shared[slot * b->half_pages + i] = -1;
    }
    for (int slot = 0; slot < b->slots && !status; slot++) {
        kt_slot *p = &b->planned[slot];
        if (!p->fresh)
            continue;
        kt__sequence *s = kt__batch_sequence(b, slot);
        kt__sequence_grow(cache, s, kt__pages_for(package, p->tokens + p->fresh));
        p->capacity = lesser(kt__capacity(package, lesser(s->page_count, b->table_stride)), b->max_tokens);
        if (!fits_in_place(package, p->tokens, p->fresh)) {
            p->slab_next = kt__slab_take(cache);
            cache->spares_used++;
        }
        const int first = kt__pages_whole(package, p->tokens);
        for (int reach = 0; reach < package->reach_count; reach++) {
            const stretch part = half_sealed(package, reach, p->tokens, p->tokens + p->fresh);
            for (int i = part.first; i < part.last && !status; i++) {
                if (!is_shared(cache, s, i))
                    continue;
                b->shared[slot * b->half_pages + i - first] = s->pages[i];
                status = replace(cache, s, i, stream);
            }
        }
    }
    return status;
}

void kt__reserve_undo(kt_batch *b)
{
    kt_cache *cache = b->cache;
    for (int slot = 0; slot < b->slots; slot++) {
        kt_slot *p = &b->planned[slot];
        if (!p->fresh)
            continue;
        kt__sequence *s = kt__batch_sequence(b, slot);
        const int first = kt__pages_whole(&cache->engine->package, p->tokens);
        for (int i = 0; i < b->half_pages; i++)
            if (b->shared[slot * b->half_pages + i] >= 0)
                put_back(cache, s, first + i, b->shared[slot * b->half_pages + i]);
        kt__sequence_shrink(cache, s, b->pages_before[slot]);
        if (p->slab_next != p->slab) {
            kt__slab_release(cache, p->slab_next);
            cache->spares_used--;
        }
    }
}

void kt__reserve_settle(kt_batch *b)
{
    for (int i = 0; i < b->slots * b->half_pages; i++)
        if (b->shared[i] >= 0)
            kt__page_release(b->cache, b->shared[i]);
    for (int slot = 0; slot < b->slots; slot++)
        b->cache->spares_used -= b->planned[slot].slab_next != b->planned[slot].slab;
}

kt_status kt__unshare(kt_batch *b, void *stream)
{
    kt_cache *cache = b->cache;
    const kt__package *package = &cache->engine->package;
    kt_status status;
    int pages = 0;
    for (int slot = 0; slot < b->slots; slot++)
        if (b->planned[slot].fresh)
            pages += count_shared(cache, kt__batch_sequence(b, slot), b->planned[slot].tokens, b->max_tokens);
    if (pages > cache->free_page_count)
        return kt__fail(KT_FULL, "replays will seal values into %d pages that forks share, and need copies of them; %d of %d pages are free",
                        pages, cache->free_page_count, cache->page_total);
    for (int slot = 0; slot < b->slots; slot++) {
        if (!b->planned[slot].fresh)
            continue;
        kt__sequence *s = kt__batch_sequence(b, slot);
        for (int reach = 0; reach < package->reach_count; reach++) {
            const stretch part = half_sealed(package, reach, b->planned[slot].tokens, b->max_tokens);
            for (int i = part.first; i < part.last; i++) {
                const int shared = s->pages[i];
                if (!is_shared(cache, s, i))
                    continue;
                if ((status = replace(cache, s, i, stream))) {
                    put_back(cache, s, i, shared);
                    return status;
                }
                kt__page_release(cache, shared);
            }
        }
    }
    return KT_OK;
}
