#include "core.h"

#include <stdio.h>
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

// A sequence that is part of no open step.
static kt_status idle(const kt_cache *cache, kt_sequence sequence, const char *call, kt__sequence **s)
{
    *s = kt__sequence_find(cache, sequence, call);
    if (!*s)
        return KT_STALE;
    if ((*s)->step)
        return kt__fail(KT_ORDER, "%s: sequence %#llx is part of an open step; commit or abort it first", call, (unsigned long long)sequence);
    return KT_OK;
}

int kt__pages_for(const kt__package *p, int tokens) { return kt__sealed_at(p, 0, tokens); }

int kt__pages_whole(const kt__package *p, int tokens) { return kt__sealed_at(p, p->reach_count - 1, tokens); }

int kt__capacity(const kt__package *p, int pages)
{
    const long long most = (long long)p->reaches[0] + ((long long)pages + 1) * p->formats[0].page - 1;
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

bool kt__sequence_keeps(const kt__sequence *s) { return s->open && s->undo_slab >= 0 && s->undo_slab != s->slab; }

void kt__sequence_forget(kt_cache *cache, kt__sequence *s)
{
    if (kt__sequence_keeps(s)) {
        kt__slab_release(cache, s->undo_slab);
        cache->kept_slabs--;
    }
    s->undo_slab = -1;
}

void kt__sequence_move(kt_cache *cache, kt__sequence *s, int tokens, int slab)
{
    kt__sequence_forget(cache, s);
    s->undo_tokens = tokens;
    s->undo_slab = s->slab;
    s->slab = slab;
    if (kt__sequence_keeps(s)) {
        cache->kept_slabs++;
        s->undo_age = ++cache->stamps;
    }
}

// A free place for a sequence, or null with a message.
static kt__sequence *vacant(const kt_cache *cache, const char *call)
{
    for (int i = 0; i < cache->max_sequences; i++)
        if (!cache->sequences[i].open)
            return &cache->sequences[i];
    kt__fail(KT_FULL, "%s: all %d sequences are open (max_sequences); close one first", call, cache->max_sequences);
    return NULL;
}

static kt_sequence start(kt_cache *cache, kt__sequence *s)
{
    *s = (kt__sequence){
        .generation = s->generation == 0xffffffff ? 1 : s->generation + 1, .open = true, .pages = s->pages, .page_room = s->page_room,
        .slab = kt__slab_take(cache), // max_sequences of them are not spare
        .stamp = ++cache->stamps, .undo_tokens = -1, .undo_slab = -1,
    };
    cache->open_sequences++;
    return handle_of((int)(s - cache->sequences), s->generation);
}

static void end(kt_cache *cache, kt__sequence *s)
{
    kt__sequence_shrink(cache, s, 0);
    kt__sequence_forget(cache, s);
    kt__slab_release(cache, s->slab);
    s->open = false;
    cache->open_sequences--;
}

kt_status kt_sequence_open(kt_cache *cache, kt_sequence *sequence)
{
    if (!cache || !sequence)
        return kt__fail(KT_INVALID, "kt_sequence_open: %s is null", cache ? "sequence" : "cache");
    kt__sequence *s = vacant(cache, "kt_sequence_open");
    if (!s)
        return KT_FULL;
    *sequence = start(cache, s);
    return KT_OK;
}

kt_status kt_sequence_close(kt_cache *cache, kt_sequence sequence)
{
    if (!cache)
        return kt__fail(KT_INVALID, "kt_sequence_close: cache is null");
    kt__sequence *s;
    const kt_status status = idle(cache, sequence, "kt_sequence_close", &s);
    if (status)
        return status;
    for (kt_batch *batch = cache->batches; batch; batch = batch->next)
        for (int slot = 0; slot < batch->slots; slot++)
            if (batch->entries[slot].sequence == sequence)
                batch->entries[slot] = (kt__entry){.row = -1};
    end(cache, s);
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
    kt__sequence *s;
    if ((status = idle(cache, sequence, "kt_sequence_reserve", &s)))
        return status;
    const int pages = kt__pages_for(&cache->engine->package, tokens);
    if (pages - s->page_count > cache->free_page_count)
        return kt__fail(KT_FULL, "kt_sequence_reserve: %d tokens need %d pages, %d more than the sequence has; %d of %d are free",
                        tokens, pages, pages - s->page_count, cache->free_page_count, cache->page_total);
    if ((status = kt__sequence_room(s, pages)))
        return kt__within(status, "kt_sequence_reserve");
    kt__sequence_grow(cache, s, pages);
    s->reserved = pages > s->reserved ? pages : s->reserved;
    return KT_OK;
}

// ---- forks and truncation --------------------------------------------------------------------------------------------

kt_status kt_sequence_fork(kt_cache *cache, kt_sequence from, void *stream, kt_sequence *fork)
{
    kt_status status;
    bool capturing;
    if (!cache || !fork)
        return kt__fail(KT_INVALID, "kt_sequence_fork: %s is null", cache ? "fork" : "cache");
    kt__sequence *s;
    if ((status = idle(cache, from, "kt_sequence_fork", &s)))
        return status;
    kt__sequence *second = vacant(cache, "kt_sequence_fork");
    if (!second)
        return KT_FULL;
    kt__backend *backend = cache->engine->backend;
    if ((status = backend->calls->capturing(backend, stream, &capturing)))
        return kt__within(status, "kt_sequence_fork");
    if (capturing)
        return kt__fail(KT_ORDER, "kt_sequence_fork: the stream is under graph capture, and a replay would copy again; fork outside of it");
    const int pages = kt__pages_for(&cache->engine->package, s->tokens);
    if ((status = kt__sequence_room(second, pages)))
        return kt__within(status, "kt_sequence_fork");
    const kt_sequence handle = start(cache, second);
    if ((status = kt__slab_copy(cache, second->slab, s->slab, stream))) {
        end(cache, second);
        return kt__within(status, "kt_sequence_fork");
    }
    for (int i = 0; i < pages; i++)
        second->pages[i] = kt__page_share(cache, s->pages[i]);
    second->page_count = pages;
    second->tokens = s->tokens;
    second->undo_tokens = s->undo_tokens;
    second->undo_slab = s->undo_slab == s->slab ? second->slab : -1;
    s->stamp = ++cache->stamps; // captured steps must not seal into what is shared now
    *fork = handle;
    return KT_OK;
}

static bool same_pages(const kt__package *p, int a, int b)
{
    for (int i = 0; i < p->reach_count; i++)
        if (kt__sealed_at(p, i, a) != kt__sealed_at(p, i, b))
            return false;
    return true;
}

// Fewest tokens at which a sequence of `tokens` tokens has the pages sealed that it has.
static int least_sealed(const kt__package *p, int tokens)
{
    int least = 0;
    for (int i = 0; i < p->reach_count; i++) {
        const int pages = kt__sealed_at(p, i, tokens), reached = p->reaches[i] + pages * p->formats[0].page;
        least = pages && reached > least ? reached : least;
    }
    return least;
}

// Whether the state before the last step can be had back.
static bool can_undo(const kt__package *p, const kt__sequence *s)
{
    return s->undo_tokens >= 0 && (s->undo_slab >= 0 || same_pages(p, s->undo_tokens, s->tokens));
}

// Gives back pages of tokens beyond the sequence's, but for reservations, which keep those that no fork shares.
static void drop_pages(kt_cache *cache, kt__sequence *s)
{
    int kept = kt__pages_for(&cache->engine->package, s->tokens);
    for (int i = kept; i < s->page_count; i++) {
        if (kept < s->reserved && cache->page_references[s->pages[i]] == 1)
            s->pages[kept++] = s->pages[i];
        else
            kt__page_release(cache, s->pages[i]);
    }
    s->page_count = kept < s->page_count ? kept : s->page_count;
    s->stamp = ++cache->stamps;
}

kt_status kt_sequence_truncate(kt_cache *cache, kt_sequence sequence, int tokens)
{
    if (!cache)
        return kt__fail(KT_INVALID, "kt_sequence_truncate: cache is null");
    kt__sequence *s;
    const kt_status status = idle(cache, sequence, "kt_sequence_truncate", &s);
    if (status)
        return status;
    if (tokens < 0 || tokens > s->tokens)
        return kt__fail(KT_INVALID, "kt_sequence_truncate: tokens is %d; 0 to %d, which the sequence has, are allowed", tokens, s->tokens);
    const kt__package *p = &cache->engine->package;
    const bool undo = can_undo(p, s);
    if (!same_pages(p, tokens, s->tokens)) {
        if (!undo || tokens > s->undo_tokens || !same_pages(p, tokens, s->undo_tokens)) {
            char before[64] = "";
            if (undo && !same_pages(p, s->undo_tokens, s->tokens))
                snprintf(before, sizeof before, ", and %d to %d, before its last step", least_sealed(p, s->undo_tokens), s->undo_tokens);
            return kt__fail(KT_UNSUPPORTED, "kt_sequence_truncate: tokens is %d, where a sealed page would be needed exact again; possible for "
                            "this sequence are %d to %d%s", tokens, least_sealed(p, s->tokens), s->tokens, before);
        }
        if (kt__sequence_keeps(s)) { // the two slabs change places
            const int slab = s->slab;
            s->slab = s->undo_slab;
            s->undo_slab = slab;
        }
    }
    if (tokens == s->tokens)
        return KT_OK;
    s->tokens = tokens;
    if (tokens <= s->undo_tokens) {
        kt__sequence_forget(cache, s);
        s->undo_tokens = -1;
    }
    drop_pages(cache, s);
    return KT_OK;
}

kt_status kt_sequence_undo(const kt_cache *cache, kt_sequence sequence, int *least)
{
    if (!cache || !least)
        return kt__fail(KT_INVALID, "kt_sequence_undo: %s is null", cache ? "least" : "cache");
    const kt__sequence *s = kt__sequence_find(cache, sequence, "kt_sequence_undo");
    if (!s)
        return KT_STALE;
    const kt__package *p = &cache->engine->package;
    *least = can_undo(p, s) ? s->undo_tokens : least_sealed(p, s->tokens);
    return KT_OK;
}
