//@ -- What the kernels for many values of one kind do not take goes through lib/seal_any.cuh.
//@ any_key = KEY_BITS < 16 and (KEY_ALONG + KEY_META8 > 0 or KEY_BITS % 2 + KEY_BOOST_BITS % 2 > 0)
//@ any_value = VALUE_BITS < 16 and (VALUE_ALONG + VALUE_META8 > 0 or VALUE_BITS % 2 == 1)
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
//@ if KEY_ALONG == 1 then
constexpr int KEY_GROUPS = D / KEY_GROUP;
constexpr int KEY_WORDS = (KEY_TILE_BYTES - KEY_META_BYTES) / 128;
//@ else
constexpr int KEY_GROUPS = PAGE / KEY_GROUP;
constexpr int KEY_WORDS = KEY_TILE_BYTES / 128;
//@ end
constexpr int VALUE_PLANES = VALUE_BITS / 2;
//@ if VALUE_ALONG == 1 then
constexpr int VALUE_GROUPS = PAGE / VALUE_GROUP;
//@ else
constexpr int VALUE_GROUPS = D / VALUE_GROUP;
//@ end
constexpr int VALUE_WORDS = (VALUE_TILE_BYTES - VALUE_META_BYTES) / 128;
//@ if any_key or any_value then
constexpr int KEY_PAIRS = KEY_GROUPS * (KEY_ALONG == 1 ? PAGE : D), VALUE_PAIRS = VALUE_GROUPS * (VALUE_ALONG == 1 ? D : PAGE);
//@ else
constexpr int KEY_PAIRS = KEY_GROUPS * D, VALUE_PAIRS = VALUE_GROUPS * PAGE;
//@ end
constexpr int PAIRS = KEY_PAIRS > VALUE_PAIRS ? KEY_PAIRS : VALUE_PAIRS;
constexpr int ROW = D + 8;                 // elements from one token of the page to the next: off the bank stride
constexpr int NO_SCALE = -24;              // exponent of a part whose scales are all 0
constexpr int PARTS = 8;                   // a channel's tokens are gone through in so many parts, by their remainder
//@ if any_key or any_value then
constexpr bool KEY_STEPS = KEY_BITS == 2 && KEY_ALONG + KEY_META8 == 0 && KEY_BOOST_BITS % 2 == 0;
constexpr bool VALUE_STEPS = VALUE_BITS == 2 && VALUE_ALONG + VALUE_META8 == 0;
//@ else
constexpr bool KEY_STEPS = KEY_BITS == 2, VALUE_STEPS = VALUE_BITS == 2;
//@ end
constexpr int KEY_PRODUCTS = KEY_STEPS ? 0 : KEY_PAIRS, VALUE_PRODUCTS = VALUE_STEPS ? 0 : VALUE_PAIRS;
constexpr int PRODUCTS = KEY_PRODUCTS > VALUE_PRODUCTS ? KEY_PRODUCTS : VALUE_PRODUCTS;
constexpr int BOOST_PAIRS = KEY_BOOSTED > 0 ? KEY_PAIRS : 0;
constexpr int PATCHES = KEY_STEPS && KEY_BOOSTED > 0 ? PAGE_TILES * KD * 32 : 0;
// Words of 2-bit codes that a thread makes of a page, two at a time.
constexpr int PAIRS_OF_WORDS = PAGE_TILES * (KD / 2) * 32, ROUNDS = (PAIRS_OF_WORDS + THREADS - 1) / THREADS;

//@ include "lib/hash.h"

//@ include "lib/quantise.cuh"

// Where the pages come from that a step of one slot and head completes, of values [0] and keys [1]; alike for all units, and in shared
// memory because registers are short.
struct Source {
    kt_slot slot;
    int page[2], count[2];  // the first page to seal, and how many
    const u16 *row[2];      // of token 0, were it of this step
    long long stride[2];    // from token to token
};

// Shared memory of a block.
struct Work {
    alignas(16) u16 element[PAGE * ROW];   // the page, elements that are not finite replaced by 0
    alignas(16) u16 step[4 * PAIRS];       // keys [group, 3, channel], values [group, token / 2, 3 of 4, token % 2], read whole
    alignas(16) u32 patch[PATCHES + 1];    // low planes of the boosted channels, 0 elsewhere, in the order of the words
    alignas(16) u32 low[KEY_PAIRS / 2];    // extremes of keys [group, channel], elements
    alignas(16) u32 high[KEY_PAIRS / 2];
    alignas(16) float score[D];
    u32 pair[PAIRS];                       // as stored: scale low, zero high; keys [group, channel], values [token, group]
    u32 boost_pair[BOOST_PAIRS + 1];       // of keys, were all of them boosted
    Quantiser boost_quantiser[BOOST_PAIRS + 1];
    Quantiser quantiser[PRODUCTS + 1];     // where codes are made by multiplication
    float most[KEY_PRODUCTS ? D : 1];      // so too: the largest code of a channel
    u32 mask[D / 4];                       // low planes: the bits of the boosted ones of four channels
    u8 boosted[D];                         // flags by channel
    u8 list[D];                            // channels in ascending order
    Source source;
    int dirty;                             // an element was not finite
    int damaged;                           // so it was, or a group overflowed
    int count;                             // overflowed groups, and elements of the step's own tokens that were not finite
    u32 largest;                           // scale
//@ if KEY_META8 + VALUE_META8 > 0 then
    u32 largest_zero;                      // without its sign
//@ end
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

// Replaces what is not finite of eight elements, and returns how many there were.
__device__ __forceinline__ int clean_eight(u16 *at) {
    u32 *w = (u32 *)at;
    int count = 0;
    for (int k = 0; k < 4; k++) count += __popc(nonfinite_bits(w[k])), w[k] = finite_pair(w[k]);
    return count;
}

// The same of a page, and counts what the step has brought of it.
__device__ __noinline__ void clean_page(Work *work, int page) {
    int count = 0;
    for (int i = threadIdx.x; i < PAGE * D / 8; i += THREADS) {
        const int found = clean_eight(work->element + i / (D / 8) * ROW + i % (D / 8) * 8);
        if (SINK + page * PAGE + i / (D / 8) >= work->source.slot.tokens) count += found;
    }
    atomicOr(&work->damaged, 1);
    atomicAdd(&work->count, count);
}

// Starts the copies of a page's rows; each thread copies the same part of every STEP-th row, so that addresses are at one distance.
__device__ __forceinline__ void load_page(Work *work, const kt_view &view, bool keys, int first) {
    constexpr int UNITS = D / 8; // of 16 bytes to a row
    if (THREADS % UNITS == 0 && first >= work->source.slot.tokens) { // the whole page is of this step
        constexpr int STEP = THREADS / UNITS;
        const int token = threadIdx.x / UNITS, unit = threadIdx.x % UNITS;
        const long long stride = work->source.stride[keys];
        const u16 *from = work->source.row[keys] + (first + token) * stride + unit * 8;
        u16 *to = work->element + token * ROW + unit * 8;
#pragma unroll
        for (int k = 0; k < (PAGE + STEP - 1) / STEP; k++, from += STEP * stride)
            if (PAGE % STEP == 0 || token + k * STEP < PAGE) async_copy16(to + k * STEP * ROW, from);
    } else {
        const Exact source = exact_of(view, work->source.slot, blockIdx.y);
#pragma unroll 1
        for (int i = threadIdx.x; i < PAGE * UNITS; i += THREADS) {
            const int token = i / UNITS, unit = i % UNITS;
            async_copy16(work->element + token * ROW + unit * 8, source.row(keys, first + token) + unit * 8);
        }
    }
    async_commit();
}

// 16-bit parts are stored as they are, but for what is not finite and -0.
__device__ __forceinline__ void clean_exact(Work *work, int page) {
    u32 peak = 0;
    for (int i = threadIdx.x; i < PAGE * D / 8; i += THREADS) {
        uint4 *at = (uint4 *)(work->element + i / (D / 8) * ROW + i % (D / 8) * 8), w = *at;
        peak = peak_pair(peak_pair(peak_pair(peak_pair(peak, w.x), w.y), w.z), w.w);
        *at = make_uint4(positive_zeros(w.x), positive_zeros(w.y), positive_zeros(w.z), positive_zeros(w.w));
    }
    if (nonfinite_bits(peak)) atomicOr(&work->dirty, 1);
    __syncthreads();
    if (!work->dirty) return;
    clean_page(work, page);
    __syncthreads();
}

// By one thread, before each page.
//@ if KEY_META8 + VALUE_META8 > 0 then
__device__ __forceinline__ void start_part(Work *work) { work->dirty = 0, work->damaged = 0, work->count = 0, work->largest = 0, work->largest_zero = 0; }
//@ else
__device__ __forceinline__ void start_part(Work *work) { work->dirty = 0, work->damaged = 0, work->count = 0, work->largest = 0; }
//@ end

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

// Which words a thread makes in a round: the k-th and the next one of a tile.
struct Place {
    bool real;
    int tile, k;
};
__device__ __forceinline__ Place place_of(int round) {
    const int i = round * THREADS + threadIdx.x;
    return {PAIRS_OF_WORDS % THREADS == 0 || i < PAIRS_OF_WORDS, i / 32 / (KD / 2), i / 32 % (KD / 2) * 2};
}
template <bool keys> __device__ __forceinline__ void store_words(const Work *work, u8 *block, const u32 (&held)[2 * ROUNDS]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int round = 0; round < ROUNDS; round++) {
        const Place at = place_of(round);
        if (!at.real) continue;
        u32 *to = (u32 *)(block + (keys ? KEY_TILES + at.tile * KEY_TILE_BYTES : VALUE_TILES + at.tile * VALUE_TILE_BYTES + VALUE_META_BYTES));
        uint2 w = make_uint2(held[2 * round], held[2 * round + 1]);
        if constexpr (keys && KEY_BOOSTED > 0) {
            const uint2 mask = *(const uint2 *)(work->mask + channel_of(at.k, lane % 4 * 2) / 4);
            const u32 *patch = work->patch + (at.tile * KD + at.k) * 32 + lane;
            w.x = (w.x & ~mask.x) | patch[0], w.y = (w.y & ~mask.y) | patch[32];
        }
        *(uint2 *)(to + lane_word(at.k, keys ? KEY_WORDS : VALUE_WORDS, lane)) = w;
    }
}

//@ if KEY_ROTATION + VALUE_ROTATION > 0 then include "lib/rotate_page.cuh" emit "\n" end
//@ if KEY_RANGE + VALUE_RANGE > 0 or any_key or any_value then include "lib/range.cuh" emit "\n" end
//@ if not (any_key and KEY_ALONG == 1) then
//@ include "lib/seal_keys.cuh"

//@ end
//@ if not any_value then
//@ include "lib/seal_values.cuh"
//@ end
//@ if any_key or any_value then
//@ include "lib/seal_any.cuh"
//@ end

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
        const uint4 w = load_settled((const uint4 *)source.row(keys, token) + part);
        ((uint4 *)slab_row<keys>(slab, token))[part] = w;
        count += __popc(nonfinite_bits(w.x)) + __popc(nonfinite_bits(w.y)) + __popc(nonfinite_bits(w.z)) + __popc(nonfinite_bits(w.w));
    }
    return count;
}

// Moves older tokens [first, last) to the slab of the step's end.
template <bool keys> __device__ __forceinline__ void move_older(const Exact &source, u8 *slab, int first, int last) {
    for (int i = threadIdx.x; i < (last - first) * (D / 8); i += THREADS) {
        const int token = first + i / (D / 8), part = i % (D / 8);
        ((uint4 *)slab_row<keys>(slab, token))[part] = load_settled((const uint4 *)source.row(keys, token) + part);
    }
}

// ---- units ----

__device__ __forceinline__ Source source_of(const kt_view &view, const kt_slot &slot) {
    const int after = slot.tokens + slot.fresh, key = sealed_pages(slot.tokens, KEY_WINDOW), value = sealed_pages(slot.tokens, VALUE_WINDOW);
    const long long row = slot.row - slot.tokens;
    Source s;
    s.slot = slot;
    s.page[0] = value, s.count[0] = sealed_pages(after, VALUE_WINDOW) - value;
    s.page[1] = key, s.count[1] = sealed_pages(after, KEY_WINDOW) - key;
    s.row[0] = view.value + row * view.value_row + blockIdx.y * view.value_head, s.stride[0] = view.value_row;
    s.row[1] = view.key + row * view.key_row + blockIdx.y * view.key_head, s.stride[1] = view.key_row;
    return s;
}

struct Unit {
    bool keys;
    int page;
};
// Unit 1 on: keys and values by turns, while there are both: the ones are more work, the others more waiting.
__device__ __forceinline__ Unit unit_of(const Source &source, int unit) {
    const int at = unit - 1, both = min(source.count[0], source.count[1]);
    Unit u;
    u.keys = at < 2 * both ? at % 2 == 0 : source.count[1] > both;
    u.page = source.page[u.keys] + (at < 2 * both ? at / 2 : at - both);
    return u;
}

// Unit 0.
__device__ __forceinline__ void take_exact(const kt_view &view, const kt_slot &slot) {
    const int before = slot.tokens, after = before + slot.fresh;
    const Exact source = exact_of(view, slot, blockIdx.y);
    u8 *to = view.slabs + ((long long)slot.slab_next * view.kv_heads + blockIdx.y) * SLAB_BYTES;
    const int key_rest = SINK + sealed_pages(after, KEY_WINDOW) * PAGE, value_rest = SINK + sealed_pages(after, VALUE_WINDOW) * PAGE;
    const int count = store_fresh<true>(source, to, slot.fresh, key_rest) + store_fresh<false>(source, to, slot.fresh, value_rest);
    if (count) atomicAdd(&view.control->nonfinite, (u64)count);
    if (slot.slab_next == slot.slab) return; // in place, older tokens stay where they are
    move_older<true>(source, to, 0, min(before, SINK));
    move_older<false>(source, to, 0, min(before, SINK));
    move_older<true>(source, to, key_rest, max(before, key_rest));
    move_older<false>(source, to, value_rest, max(before, value_rest));
}

// What is left once a page's elements are needed no more.
template <bool keys> __device__ __forceinline__ void finish_page(Work *work, const kt_view &view, u8 *block, const u32 (&held)[2 * ROUNDS]) {
    if constexpr (keys ? KEY_STEPS : VALUE_STEPS) store_words<keys>(work, block, held);
    if (threadIdx.x != 0) return;
    block[keys ? KT_HEADER_KEY_FLAGS : KT_HEADER_VALUE_FLAGS] = (u8)work->damaged;
//@ if KEY_META8 + VALUE_META8 > 0 then
    Exponents e = {(keys ? KEY_BITS : VALUE_BITS) == 16 ? 0 : largest_exponent(work), 0};
    if (keys ? KEY_META8 : VALUE_META8) e = meta8_exponents(work);
    block[keys ? KT_HEADER_KEY_EXPONENT : KT_HEADER_VALUE_EXPONENT] = (u8)e.scale, block[keys ? KT_HEADER_KEY_ZERO : KT_HEADER_VALUE_ZERO] = (u8)e.zero;
//@ else
    block[keys ? KT_HEADER_KEY_EXPONENT : KT_HEADER_VALUE_EXPONENT] = (keys ? KEY_BITS : VALUE_BITS) == 16 ? 0 : (u8)largest_exponent(work);
//@ end
    if (work->count) atomicAdd(&view.control->nonfinite, (u64)work->count);
    start_part(work);
}

// The units of this block. Reads only what was final before the launch ahead began, or before it let this one begin.
__device__ __forceinline__ void take_in(const kt_append_params &p, const kt_slot &slot) {
    Work *work = (Work *)shared_memory();
    const kt_view &view = p.view;
    const Source settled = source_of(view, slot);
    const int units = 1 + settled.count[0] + settled.count[1];
    if (threadIdx.x == 0) {
        work->source = settled;
        start_part(work);
    }
    __syncthreads();
    const Source &source = work->source;
    Unit u = {false, -1}; // under way
    u8 *block = nullptr;
    u32 held[2 * ROUNDS];
    for (int next = blockIdx.x ? blockIdx.x : gridDim.x;; next += gridDim.x) {
        const bool more = next < units;
        const Unit then = unit_of(source, next);
        if (more) load_page(work, view, then.keys, SINK + then.page * PAGE);
        if (u.page < 0) {
            if (blockIdx.x == 0) take_exact(view, source.slot);
        } else if (u.keys) {
            finish_page<true>(work, view, block, held);
        } else {
            finish_page<false>(work, view, block, held);
        }
        if (!more) return;
        u = then;
        const int page = load_settled(view.table + (long long)blockIdx.z * view.table_stride + u.page);
        block = view.pages + ((long long)page * view.kv_heads + blockIdx.y) * BLOCK_BYTES;
        async_wait<0>();
        __syncthreads();
//@ if KEY_ROTATION + VALUE_ROTATION > 0 then
        rotate_unit(work, view, u.keys, u.page);
//@ end
        if (u.keys) seal_key(work, view, u.page, block, held);
        else seal_value(work, u.page, block, held);
        __syncthreads();
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) $entry(const __grid_constant__ kt_append_params p) {
    const kt_slot slot = load_settled(p.view.slots + blockIdx.z); // final since before the launch ahead let this one begin
    if (!p.behind) grid_wait();
    grid_launch_next();
    if (load_settled(&p.view.control->ready) && slot.fresh) take_in(p, slot);
    if (p.behind) grid_wait(); // whoever waits for this launch waits for the one ahead as well
}
