//@ include "lib/kernel.cuh"
// Takes in a step's keys and values of one layer: exact tokens to the slab, completed pages quantised and packed.
//
//   grid  (units, kv_heads, slots), block THREADS; a block walks the units of its slot and head: unit 0 copies exact tokens,
//         the next ones seal one key page each, the rest one value page each
//
// Nothing that a block writes is read by another: pages are sealed from the slab (tokens before the step) and from the input
// (the step's own), and a slab is rewritten in place only where no live token stands (kt_slot.slab_next).
constexpr int D = HEAD_DIM;
constexpr int KD = D / 16;
constexpr int PAGE_TILES = PAGE / 32;
constexpr int KEY_PLANES = KEY_BITS / 2;
constexpr int KEY_EXTRA = (KEY_BOOST_BITS - KEY_BITS) / 2;
constexpr int BOOST_LIST = KEY_BOOSTED > 0 ? KEY_BOOSTED : 1;
constexpr int KEY_GROUPS = PAGE / KEY_GROUP;
constexpr int KEY_WORDS = KEY_TILE_BYTES / 128;
constexpr int VALUE_PLANES = VALUE_BITS / 2;
constexpr int VALUE_GROUPS = D / VALUE_GROUP;
constexpr int VALUE_WORDS = (VALUE_TILE_BYTES - VALUE_META_BYTES) / 128;
constexpr int KEY_PAIRS = KEY_GROUPS * D, VALUE_PAIRS = VALUE_GROUPS * PAGE;
constexpr int PAIRS = KEY_PAIRS > VALUE_PAIRS ? KEY_PAIRS : VALUE_PAIRS;
constexpr int ROW = D + 8;                 // elements from one token of the page to the next: off the bank stride
constexpr int NO_SCALE = -24;              // exponent of a part whose scales are all 0
constexpr int PARTS = 8;                   // a channel's tokens are gone through in so many parts, by their remainder
constexpr int EXTREMES = PARTS > PAGE_TILES ? PARTS : PAGE_TILES;
constexpr bool KEY_STEPS = KEY_BITS == 2, VALUE_STEPS = VALUE_BITS == 2;
constexpr int PATCHES = KEY_STEPS && KEY_BOOSTED > 0 ? PAGE_TILES * KD * 32 : 1;

//@ include "lib/hash.h"

//@ include "lib/quantise.cuh"

// Shared memory of a block.
struct Work {
    alignas(16) u16 element[PAGE * ROW];   // the page, elements that are not finite replaced by 0
    u32 pair[PAIRS];                       // as stored: scale low, zero high; keys [group, channel], values [token, group]
    Quantiser quantiser[PAIRS];            // of the same
    alignas(16) u16 step[4 * PAIRS];       // keys [group, 3, channel], values [group, token / 2, 4, token % 2]
    alignas(16) u32 low[EXTREMES * D / 2]; // extremes of keys [part or tile, channel], in the end of a group in its first
    u32 high[EXTREMES * D / 2];
    union {
        alignas(16) float part[PARTS * D];             // sums of each channel over the tokens of a part
        u32 patch[PATCHES];                // low planes of the boosted channels, 0 elsewhere, in the order of the words
    };
    alignas(16) float score[D];
    float most[D];                         // largest code of a channel
    u8 boosted[D];                         // flags by channel
    u8 list[D];                            // channels in ascending order
    int dirty;                             // an element was not finite
    int damaged;                           // so it was, or a group overflowed
    int count;                             // overflowed groups, and elements of the step's own tokens that were not finite
    u32 largest;                           // scale
};
static_assert(sizeof(Work) <= SHARED_BYTES, "work fits");

//@ include "lib/exact.cuh"

// Sum of leaf(i), i = 0 .. PAGE - 1, by the fixed tree s[i] += s[i + w], w = PAGE / 2 .. 1: the value at i after step w.
__device__ __forceinline__ float4 add4(float4 a, float4 b) {
    return make_float4(__fadd_rn(a.x, b.x), __fadd_rn(a.y, b.y), __fadd_rn(a.z, b.z), __fadd_rn(a.w, b.w));
}
template <int w, class Leaf> __device__ __forceinline__ float4 tree_sum(int i, const Leaf &leaf) {
    if constexpr (w == PAGE) return leaf(i);
    else return add4(tree_sum<2 * w>(i, leaf), tree_sum<2 * w>(i + w, leaf));
}

// ---- loading a page ----

// -0 becomes +0.
__device__ __forceinline__ u32 positive_zeros(u32 pair) {
    if ((pair & 0xffffu) == 0x8000u) pair &= 0xffff0000u;
    return pair >> 16 == 0x8000u ? pair & 0xffffu : pair;
}

// Replaces what is not finite, and counts what the step has brought of it.
__device__ __noinline__ void clean_page(Work *work, int first, int before) {
    int count = 0;
    for (int i = threadIdx.x; i < PAGE * D / 8; i += THREADS) {
        u32 *w = (u32 *)(work->element + i / (D / 8) * ROW + i % (D / 8) * 8);
        for (int k = 0; k < 4; k++) {
            if (first + i / (D / 8) >= before) count += __popc(nonfinite_bits(w[k]));
            w[k] = finite_pair(w[k]);
        }
    }
    atomicOr(&work->damaged, 1);
    atomicAdd(&work->count, count);
}

// Starts the copies of a page's rows; each thread copies the same part of every STEP-th row, so that addresses are at one distance.
template <bool keys> __device__ __forceinline__ void load_page(Work *work, const Exact &source, int first) {
    constexpr int UNITS = D / 8; // of 16 bytes to a row
    if (THREADS % UNITS == 0 && first >= source.before) { // the whole page is of this step
        constexpr int STEP = THREADS / UNITS;
        const int token = threadIdx.x / UNITS, unit = threadIdx.x % UNITS;
        const long long stride = (keys ? source.view->key_row : source.view->value_row) * STEP;
        const u16 *from = (keys ? source.key(first + token) : source.value(first + token)) + unit * 8;
        u16 *to = work->element + token * ROW + unit * 8;
#pragma unroll
        for (int k = 0; k < (PAGE + STEP - 1) / STEP; k++)
            if (PAGE % STEP == 0 || token + k * STEP < PAGE) async_copy16(to + k * STEP * ROW, from + k * stride);
    } else {
        for (int i = threadIdx.x; i < PAGE * UNITS; i += THREADS) {
            const int token = i / UNITS, unit = i % UNITS;
            async_copy16(work->element + token * ROW + unit * 8, (keys ? source.key(first + token) : source.value(first + token)) + unit * 8);
        }
    }
    async_commit();
}

// 16-bit parts are stored as they are, but for what is not finite and -0.
__device__ __forceinline__ void clean_exact(Work *work, int first, int before) {
    u32 peak = 0;
    for (int i = threadIdx.x; i < PAGE * D / 8; i += THREADS) {
        uint4 *at = (uint4 *)(work->element + i / (D / 8) * ROW + i % (D / 8) * 8), w = *at;
        peak = peak_pair(peak_pair(peak_pair(peak_pair(peak, w.x), w.y), w.z), w.w);
        *at = make_uint4(positive_zeros(w.x), positive_zeros(w.y), positive_zeros(w.z), positive_zeros(w.w));
    }
    if (nonfinite_bits(peak)) atomicOr(&work->dirty, 1);
    __syncthreads();
    if (!work->dirty) return;
    clean_page(work, first, before);
    __syncthreads();
}

// By one thread, before and after each page.
__device__ __forceinline__ void start_part(Work *work) { work->dirty = 0, work->damaged = 0, work->count = 0, work->largest = 0; }

__device__ __forceinline__ int largest_exponent(const Work *work) {
    return work->largest ? ceil_exponent(half_to_float((u16)work->largest)) : NO_SCALE;
}

// Adds a thread's pairs to what the header says of the page; `largest`: the greatest scale of this thread's pairs.
__device__ __forceinline__ void note_scales(Work *work, u32 largest, int over) {
#pragma unroll
    for (int x = 16; x; x >>= 1) largest = max(largest, __shfl_xor_sync(~0u, largest, x));
    if (threadIdx.x % 32 == 0) atomicMax(&work->largest, largest);
    if (over) {
        atomicOr(&work->damaged, 1);
        atomicAdd(&work->count, over);
    }
}

//@ if KEY_RANGE + VALUE_RANGE > 0 then include "lib/range.cuh" emit "\n" end
//@ include "lib/seal_keys.cuh"

//@ include "lib/seal_values.cuh"

// ---- exact tokens ----

// Where an exact token's row is in a slab.
template <bool keys> __device__ __forceinline__ u8 *slab_row(u8 *slab, int token) {
    if (token < SINK) return slab + (keys ? 0 : SLAB_SINK_VALUE) + token * D * 2;
    return slab + (keys ? SLAB_KEY : SLAB_VALUE) + (token - SINK) % (keys ? KEY_RING : VALUE_RING) * D * 2;
}

// Stores the step's own tokens that stay exact, those before SINK and from `rest` on, and counts their elements that are not finite;
// those of the others are counted where they are sealed.
template <bool keys> __device__ __forceinline__ int store_fresh(const Exact &source, u8 *slab, int fresh, int rest) {
    const int after = source.before + fresh, later = max(source.before, rest);
    const int sinks = max(min(after, SINK) - source.before, 0), tokens = sinks + max(after - later, 0);
    int count = 0;
    // Half of the threads each for keys and values, so that both are fetched at once.
    const int half = THREADS / 2, mine = (int)threadIdx.x - (keys ? 0 : half);
    for (int i = mine; mine >= 0 && mine < half && i < tokens * (D / 8); i += half) {
        const int at = i / (D / 8), token = at < sinks ? source.before + at : later + at - sinks, part = i % (D / 8);
        const uint4 w = load_settled((const uint4 *)(keys ? source.key(token) : source.value(token)) + part);
        ((uint4 *)slab_row<keys>(slab, token))[part] = w;
        count += __popc(nonfinite_bits(w.x)) + __popc(nonfinite_bits(w.y)) + __popc(nonfinite_bits(w.z)) + __popc(nonfinite_bits(w.w));
    }
    return count;
}

// Moves older tokens [first, last) to the slab of the step's end.
template <bool keys> __device__ __forceinline__ void move_older(const Exact &source, u8 *slab, int first, int last) {
    for (int i = threadIdx.x; i < (last - first) * (D / 8); i += THREADS) {
        const int token = first + i / (D / 8), part = i % (D / 8);
        ((uint4 *)slab_row<keys>(slab, token))[part] = load_settled((const uint4 *)(keys ? source.key(token) : source.value(token)) + part);
    }
}

// The units of this block. Reads only what was final before the launch ahead began, or before it let this one begin.
__device__ __forceinline__ void take_in(const kt_append_params &p, const kt_slot &slot) {
    Work *work = (Work *)shared_memory();
    const int head = blockIdx.y, before = slot.tokens, after = before + slot.fresh;
    const Exact source = exact_of(p.view, slot, head);

    const int key_page = sealed_pages(before, KEY_WINDOW), key_pages = sealed_pages(after, KEY_WINDOW);
    const int value_page = sealed_pages(before, VALUE_WINDOW), value_pages = sealed_pages(after, VALUE_WINDOW);
    const int units = 1 + key_pages - key_page + value_pages - value_page;
    const int *table = p.view.table + (long long)blockIdx.z * p.view.table_stride;

    const int both = min(key_pages - key_page, value_pages - value_page);
    if (threadIdx.x == 0) start_part(work);
    for (int unit = blockIdx.x; unit < units; unit += gridDim.x) {
        if (unit == 0) {
            u8 *to = p.view.slabs + ((long long)slot.slab_next * p.view.kv_heads + head) * SLAB_BYTES;
            const int key_rest = SINK + key_pages * PAGE, value_rest = SINK + value_pages * PAGE;
            const int count = store_fresh<true>(source, to, slot.fresh, key_rest) + store_fresh<false>(source, to, slot.fresh, value_rest);
            if (count) atomicAdd(&p.view.control->nonfinite, (u64)count);
            if (slot.slab_next != slot.slab) { // in place, older tokens stay where they are
                move_older<true>(source, to, 0, min(before, SINK));
                move_older<false>(source, to, 0, min(before, SINK));
                move_older<true>(source, to, key_rest, max(before, key_rest));
                move_older<false>(source, to, value_rest, max(before, value_rest));
            }
            continue;
        }
        // Keys and values by turns, while there are both: the ones are more work, the others more waiting.
        const int at = unit - 1;
        const bool keys = at < 2 * both ? at % 2 == 0 : key_pages - key_page > both;
        const int page = (keys ? key_page : value_page) + (at < 2 * both ? at / 2 : at - both), first = SINK + page * PAGE;
        u8 *block = p.view.pages + ((long long)load_settled(table + page) * p.view.kv_heads + head) * BLOCK_BYTES;
        if (keys) load_page<true>(work, source, first);
        else load_page<false>(work, source, first);
        async_wait<0>();
        __syncthreads();
        if (keys) {
            seal_key(work, p.view, head, page, before, block);
        } else {
            seal_value(work, first, before, block);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            const int scaled = (keys ? KEY_BITS : VALUE_BITS) != 16;
            block[keys ? KT_HEADER_KEY_FLAGS : KT_HEADER_VALUE_FLAGS] = (u8)work->damaged;
            block[keys ? KT_HEADER_KEY_EXPONENT : KT_HEADER_VALUE_EXPONENT] = scaled ? (u8)largest_exponent(work) : 0;
            if (work->count) atomicAdd(&p.view.control->nonfinite, (u64)work->count);
            start_part(work);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) $entry(const __grid_constant__ kt_append_params p) {
    const kt_slot slot = load_settled(p.view.slots + blockIdx.z); // final since before the launch ahead let this one begin
    if (!p.behind) grid_wait();
    grid_launch_next();
    if (load_settled(&p.view.control->ready) && slot.fresh) take_in(p, slot);
    if (p.behind) grid_wait(); // whoever waits for this launch waits for the one ahead as well
}
