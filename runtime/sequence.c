#include "core.h"

#include <stdlib.h>

static kt_sequence handle_of(int index, unsigned generation) { return (uint64_t)generation << 32 | (unsigned)(index + 1); }

kt__sequence *kt__sequence_find(const kt_cache *cache, kt_sequence sequence, const char *call)
{
    const uint64_t index = (sequence & 0xffffffff) - 1;
    if (sequence && index < (uint64_t)cache->max_sequences && cache->sequences[index].open &&
        cache->sequences[index].generation == sequence >> 32)
        return &cache->sequences[index];
    kt__fail(KT_STALE, "%s: sequence %#llx is not open in this cache: it was closed, or never opened here", call,
             (unsigned long long)sequence);
    return NULL;
}

int kt__pages_for(const kt_format *f, int tokens)
{
    const int keys = kt_sealed_pages(tokens, f->sink, f->key_window, f->page);
    const int values = kt_sealed_pages(tokens, f->sink, f->value_window, f->page);
    return keys > values ? keys : values;
}

int kt__capacity(const kt_format *f, int pages)
{
    const int window = f->key_window < f->value_window ? f->key_window : f->value_window;
    const long long most = (long long)f->sink + window + ((long long)pages + 1) * f->page - 1;
    return most < 0x7fffffff ? (int)most : 0x7fffffff;
}

kt_status kt__sequence_room(kt__sequence *s, int pages)
{
    if (pages <= s->page_room)
        return KT_OK;
    int *list = realloc(s->pages, (size_t)pages * sizeof *list);
    if (!list)
        return kt__fail(KT_MEMORY, "no memory for a list of %d pages", pages);
    s->pages = list;
    s->page_room = pages;
    return KT_OK;
}

void kt__sequence_grow(kt_cache *cache, kt__sequence *s, int pages)
{
    if (s->page_count >= pages)
        return;
    while (s->page_count < pages)
        s->pages[s->page_count++] = kt__page_take(cache);
    s->stamp = ++cache->stamps;
}

void kt__sequence_shrink(kt_cache *cache, kt__sequence *s, int pages)
{
    if (s->page_count <= pages)
        return;
    while (s->page_count > pages)
        kt__page_release(cache, s->pages[--s->page_count]);
    s->stamp = ++cache->stamps;
}

kt_status kt_sequence_open(kt_cache *cache, kt_sequence *sequence)
{
    if (!cache || !sequence)
        return kt__fail(KT_INVALID, "kt_sequence_open: %s is null", cache ? "sequence" : "cache");
    if (cache->open_sequences == cache->max_sequences)
        return kt__fail(KT_FULL, "kt_sequence_open: all %d sequences are open (max_sequences); close one first",
                        cache->max_sequences);
    int index = 0;
    while (cache->sequences[index].open)
        index++;
    kt__sequence *s = &cache->sequences[index];
    s->open = true;
    s->generation = s->generation == 0xffffffff ? 1 : s->generation + 1;
    s->tokens = s->page_count = 0;
    s->slab = kt__slab_take(cache); // max_sequences of them are not spare
    s->stamp = ++cache->stamps;
    s->step = NULL;
    cache->open_sequences++;
    *sequence = handle_of(index, s->generation);
    return KT_OK;
}

kt_status kt_sequence_close(kt_cache *cache, kt_sequence sequence)
{
    if (!cache)
        return kt__fail(KT_INVALID, "kt_sequence_close: cache is null");
    kt__sequence *s = kt__sequence_find(cache, sequence, "kt_sequence_close");
    if (!s)
        return KT_STALE;
    if (s->step)
        return kt__fail(KT_ORDER, "kt_sequence_close: sequence %#llx is part of an open step; commit or abort it first",
                        (unsigned long long)sequence);
    for (kt_batch *batch = cache->batches; batch; batch = batch->next)
        for (int slot = 0; slot < batch->slots; slot++)
            if (batch->entries[slot].sequence == sequence)
                batch->entries[slot] = (kt__entry){.row = -1};
    kt__sequence_shrink(cache, s, 0);
    kt__slab_release(cache, s->slab);
    s->open = false;
    cache->open_sequences--;
    return KT_OK;
}

kt_status kt_sequence_tokens(const kt_cache *cache, kt_sequence sequence, int *tokens)
{
    if (!cache || !tokens)
        return kt__fail(KT_INVALID, "kt_sequence_tokens: %s is null", cache ? "tokens" : "cache");
    const kt__sequence *s = kt__sequence_find(cache, sequence, "kt_sequence_tokens");
    if (!s)
        return KT_STALE;
    *tokens = s->tokens;
    return KT_OK;
}

kt_status kt_sequence_reserve(kt_cache *cache, kt_sequence sequence, int tokens)
{
    kt_status status;
    if (!cache)
        return kt__fail(KT_INVALID, "kt_sequence_reserve: cache is null");
    if (tokens < 0)
        return kt__fail(KT_INVALID, "kt_sequence_reserve: tokens is %d; it cannot be negative", tokens);
    kt__sequence *s = kt__sequence_find(cache, sequence, "kt_sequence_reserve");
    if (!s)
        return KT_STALE;
    if (s->step)
        return kt__fail(KT_ORDER, "kt_sequence_reserve: sequence %#llx is part of an open step; commit or abort it first",
                        (unsigned long long)sequence);
    const int pages = kt__pages_for(&cache->engine->package.format, tokens);
    if (pages - s->page_count > cache->free_page_count)
        return kt__fail(KT_FULL, "kt_sequence_reserve: %d tokens need %d pages, %d more than the sequence has; %d of %d are free",
                        tokens, pages, pages - s->page_count, cache->free_page_count, cache->page_total);
    if ((status = kt__sequence_room(s, pages)))
        return kt__within(status, "kt_sequence_reserve");
    kt__sequence_grow(cache, s, pages);
    return KT_OK;
}
