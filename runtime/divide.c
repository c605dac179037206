// Division of a step's attention over the card: how many blocks share a sequence's tokens.
#include "core.h"

#include <limits.h>

enum { MOST_SPLITS = 128, MOST_WAVES = 4 };

// What a block spends besides its items, in the time of one item per warp: launch, query, merging. Splits add a second merge.
// From timings of one H100; only the ratio matters, and only near a choice.
static const double BLOCK_COST = 2.0, SPLIT_COST = 1.0;

// Items of a query at the end of the slot: units of 16 exact tokens and chunks of sealed pages (templates/attend.cu).
static int items_of(const kt_format *f, const kt__kernel *kernel, int tokens)
{
    const int key_pages = kt_sealed(f, KT_KEY, tokens);
    const int full = kt_sealed(f, KT_VALUE, tokens);
    const int chunks = full * (f->page / (32 * kernel->tiles));
    const int sinks = tokens < f->sink ? tokens / 16 : (f->sink + 15) / 16, rest = tokens - f->sink - key_pages * f->page;
    return chunks + sinks + (key_pages - full) * (f->page / 16) + (rest > 0 ? rest / 16 : 0) + 1;
}

static long long blocks_at(const kt_batch *b, int per_query, int split_items, int *most)
{
    long long blocks = 0;
    *most = 1;
    for (int slot = 0; slot < b->used_slots; slot++) {
        if (!b->items[slot])
            continue;
        const int splits = (b->items[slot] + split_items - 1) / split_items;
        blocks += (long long)splits * per_query * (b->planned[slot].fresh ? b->planned[slot].fresh : 1);
        *most = splits > *most ? splits : *most;
    }
    return blocks;
}

static double work_at(const kt_batch *b, int per_query)
{
    double items = 0;
    for (int slot = 0; slot < b->used_slots; slot++)
        items += (double)b->items[slot] * per_query * b->planned[slot].fresh;
    return items;
}

// Queries that one launch goes over, idle places counted; each has its arrivals.
static long long most_queries(const kt_batch *b)
{
    long long most = 0;
    for (int i = 0; i < b->run_count; i++) {
        const long long queries = (long long)b->runs[i].count * b->runs[i].max_fresh;
        most = queries > most ? queries : most;
    }
    return most;
}

void kt__divide(kt_batch *b, const kt__kernel *kernel, int blocks_per_sm, int *splits, int *split_items)
{
    const kt_format *f = &b->cache->engine->package.formats[kernel->format];
    const long long at_once = (long long)blocks_per_sm * b->cache->engine->backend->multiprocessors;
    const int per_query = b->cache->kv_heads * (kernel->passes > 0 ? kernel->passes : 1), warps = kernel->warps > 0 ? kernel->warps : 1;
    int largest = 1, shortest = INT_MAX, longest = 0, unsplit;
    for (int slot = 0; slot < b->used_slots; slot++) {
        // A captured step runs at any length up to the reservation; it is divided for the longest.
        const kt_slot *p = &b->planned[slot];
        const int tokens = b->reserved ? p->capacity : p->tokens;
        b->items[slot] = p->fresh ? items_of(f, kernel, b->reserved ? tokens : tokens + p->fresh) : 0;
        largest = b->items[slot] > largest ? b->items[slot] : largest;
        shortest = p->fresh && tokens < shortest ? tokens : shortest;
        longest = p->fresh && tokens > longest ? tokens : longest;
    }

    const bool uneven = kt__uneven(shortest, longest) && b->run_count == 1;

    // Fewest items per split for which the blocks fit in `waves` waves, and what that takes; the cheapest of a few wave counts.
    *splits = 1;
    *split_items = largest;
    double best = 0;
    for (int waves = 0; waves <= MOST_WAVES; waves++) {
        int low = waves ? warps : largest, high = largest, most;
        if (waves && blocks_at(b, per_query, largest, &unsplit) > waves * at_once)
            continue;
        while (low < high) {
            const int middle = low + (high - low) / 2;
            if (blocks_at(b, per_query, middle, &most) <= waves * at_once)
                high = middle;
            else
                low = middle + 1;
        }
        low = low < largest ? low : largest;
        const long long blocks = blocks_at(b, per_query, low, &most);
        const double rounds = (double)(low + warps - 1) / warps, block = BLOCK_COST + (most > 1 ? SPLIT_COST : 0);
        // Equal blocks come in whole waves; unequal ones, longest first, fill the card until the work is done.
        const double turns = (double)((blocks + at_once - 1) / at_once);
        const double filled = (work_at(b, per_query) / warps + (double)blocks * block) / (double)at_once;
        const double alone = rounds + block;
        const double cost = !uneven ? turns * alone : filled > alone ? filled : alone;
        if (!waves || cost < best) {
            best = cost;
            *splits = most;
            *split_items = low;
        }
    }
    const long long row_floats = (long long)b->rows * b->cache->q_heads * (f->head_dim + 2);
    const long long room = (long long)b->partial_floats / (row_floats ? row_floats : 1);
    if (most_queries(b) * per_query > (long long)b->arrival_count || room < 1)
        *splits = 1;
    else if (*splits > room)
        *splits = (int)room;
    if (*splits > MOST_SPLITS)
        *splits = MOST_SPLITS;
}
