//@ include "lib/kernel.cuh"
// Takes in a step's keys and values of one layer: exact tokens to the slab, completed pages quantised and packed.
//
//   grid  (units, kv_heads, slots), block THREADS; a block walks the units of its slot and head: unit 0 copies exact tokens,
//         the next ones seal one key page each, the rest one value page each
//
// Nothing that a block writes is read by another: pages are sealed from the slab (tokens before the step) and from the input
// (the step's own), and a slab is rewritten in place only where no live token stands (kt_slot.slab_next).
// All arithmetic is IEEE fp32, one rounding per operation, in the order that DESIGN and runtime/cpu/quantise.c give.
constexpr int D = HEAD_DIM;
constexpr int KD = D / 16;
constexpr int PAGE_TILES = PAGE / 32;
constexpr int KEY_PLANES = KEY_BITS / 2;
constexpr int KEY_EXTRA = (KEY_BOOST_BITS - KEY_BITS) / 2;
constexpr int BOOST_LIST = KEY_BOOSTED > 0 ? KEY_BOOSTED : 1;
constexpr int KEY_GROUPS = PAGE / KEY_GROUP;
constexpr int KEY_WORDS = KEY_TILE_BYTES / 128;
constexpr int VALUE_GROUPS = D / VALUE_GROUP;
constexpr int VALUE_WORDS = (VALUE_TILE_BYTES - VALUE_META_BYTES) / 128;
constexpr int KEY_PAIRS = KEY_GROUPS * D, VALUE_PAIRS = VALUE_GROUPS * PAGE;
constexpr int PAIRS = KEY_PAIRS > VALUE_PAIRS ? KEY_PAIRS : VALUE_PAIRS;
constexpr int NO_SCALE = -24;              // exponent of a part whose scales are all 0

//@ include "lib/hash.h"

// Shared memory of a block.
struct Work {
    u16 element[PAGE * D];                 // the page, elements that are not finite and -0 replaced by 0
    float score[D];
    u32 pair[PAIRS];                       // (scale, zero): keys [group, channel], values [token, group]
    u8 boosted[D], list[D];                // flags by channel; channels in ascending order
    int damaged;                           // an element was not finite or a group overflowed
    int overflows;
    int exponent;
};
static_assert(sizeof(Work) <= SHARED_BYTES, "work fits");

struct Source {
    const kt_view *view;
    const u8 *slab;
    int before, row, head;

    __device__ __forceinline__ const u16 *key(int token) const {
        if (token >= before)
            return view->key + (long long)(row + token - before) * view->key_row + head * view->key_head;
        if (token < SINK) return (const u16 *)slab + token * D;
        return (const u16 *)(slab + SLAB_KEY) + (token - SINK) % KEY_RING * D;
    }
    __device__ __forceinline__ const u16 *value(int token) const {
        if (token >= before)
            return view->value + (long long)(row + token - before) * view->value_row + head * view->value_head;
        if (token < SINK) return (const u16 *)(slab + SLAB_SINK_VALUE) + token * D;
        return (const u16 *)(slab + SLAB_VALUE) + (token - SINK) % VALUE_RING * D;
    }
};

// ---- arithmetic ----

// (scale, zero) of a group with these extremes; (0, 0), which decodes to 0, where one of them is beyond 65504.
__device__ __forceinline__ u32 make_pair(float low, float high, int bits, Work *work) {
    const u16 zero = float_to_half(low);
    const u16 scale = float_to_half(__fdiv_rn(__fsub_rn(high, low), (float)((1 << bits) - 1)));
    if ((zero & 0x7c00) == 0x7c00 || (scale & 0x7c00) == 0x7c00) {
        atomicOr(&work->damaged, 1);
        atomicAdd(&work->overflows, 1);
        return 0;
    }
    if (scale) atomicMax(&work->exponent, ceil_exponent(half_to_float(scale)));
    return scale | (u32)zero << 16;
}

__device__ __forceinline__ u32 code_of(u16 element, u32 pair, int bits) {
    const float scale = half_to_float((u16)pair), zero = half_to_float((u16)(pair >> 16));
    if (scale == 0) return 0;
    const float code = rintf(__fdiv_rn(__fsub_rn(element_to_float(element), zero), scale));
    return (u32)fminf(fmaxf(code, 0), (float)((1 << bits) - 1));
}

// Sum of leaf(i), i = 0 .. PAGE - 1, by the fixed tree s[i] += s[i + w], w = PAGE / 2 .. 1.
template <int w, class Leaf> __device__ __forceinline__ float tree_sum(int i, const Leaf &leaf) {
    if constexpr (w == PAGE) return leaf(i);
    else return __fadd_rn(tree_sum<2 * w>(i, leaf), tree_sum<2 * w>(i + w, leaf));
}

// ---- loading a page ----

// -0 becomes +0.
__device__ __forceinline__ u32 positive_zeros(u32 pair) {
    if ((pair & 0xffffu) == 0x8000u) pair &= 0xffff0000u;
    return pair >> 16 == 0x8000u ? pair & 0xffffu : pair;
}

template <bool keys> __device__ __forceinline__ void load_page(Work *work, const Source &source, int first) {
    for (int i = threadIdx.x; i < PAGE * D / 8; i += THREADS) {
        const int token = i / (D / 8), part = i % (D / 8);
        uint4 w = *((const uint4 *)(keys ? source.key(first + token) : source.value(first + token)) + part);
        if (nonfinite_bits(w.x) | nonfinite_bits(w.y) | nonfinite_bits(w.z) | nonfinite_bits(w.w)) {
            w.x = finite_pair(w.x), w.y = finite_pair(w.y), w.z = finite_pair(w.z), w.w = finite_pair(w.w);
            atomicOr(&work->damaged, 1);
        }
        ((uint4 *)work->element)[i] = make_uint4(positive_zeros(w.x), positive_zeros(w.y), positive_zeros(w.z), positive_zeros(w.w));
    }
}

__device__ __forceinline__ void start_part(Work *work) {
    __syncthreads(); // the last part is done with the work area
    if (threadIdx.x == 0) work->damaged = 0, work->overflows = 0, work->exponent = NO_SCALE;
    __syncthreads();
}

__device__ __forceinline__ void finish_part(Work *work, u8 *block, int flags, int exponent, bool scaled, kt_control *control) {
    __syncthreads();
    if (threadIdx.x == 0) {
        block[flags] = (u8)work->damaged;
        block[exponent] = scaled ? (u8)work->exponent : 0;
        if (work->overflows) atomicAdd(&control->nonfinite, (u64)work->overflows);
    }
}

// ---- keys ----

__device__ __forceinline__ float channel_score(const Work *work, int channel, int layer, int head, int page) {
    const u16 *column = work->element + channel;
    if constexpr (KEY_SCORE == 0) {
        return __fdiv_rn(tree_sum<1>(0, [&](int t) { return fabsf(element_to_float(column[t * D])); }), (float)PAGE);
    } else if constexpr (KEY_SCORE == 1) {
        const float mean = __fdiv_rn(tree_sum<1>(0, [&](int t) { return element_to_float(column[t * D]); }), (float)PAGE);
        return __fdiv_rn(tree_sum<1>(0, [&](int t) {
            const float x = __fsub_rn(element_to_float(column[t * D]), mean);
            return __fmul_rn(x, x);
        }), (float)PAGE);
    } else if constexpr (KEY_SCORE == 2) {
        float low = element_to_float(column[0]), high = low;
        for (int t = 1; t < PAGE; t++) low = fminf(low, element_to_float(column[t * D])), high = fmaxf(high, element_to_float(column[t * D]));
        return __fsub_rn(high, low);
    } else {
        return kt_random_score(KEY_SEED, layer, head, page, channel);
    }
}

// Flags the KEY_BOOSTED channels with the highest scores, ties to the lower channel, and lists them.
__device__ __forceinline__ void select_channels(Work *work, int layer, int head, int page) {
    for (int channel = threadIdx.x; channel < D; channel += THREADS) {
        const float score = channel_score(work, channel, layer, head, page);
        work->score[channel] = score == score ? score : infinity(); // bf16 sums can reach infinity minus infinity
    }
    __syncthreads();
    for (int channel = threadIdx.x; channel < D; channel += THREADS) {
        const float mine = work->score[channel];
        int rank = 0;
        for (int i = 0; i < D; i++) rank += work->score[i] > mine || (work->score[i] == mine && i < channel);
        work->boosted[channel] = rank < KEY_BOOSTED;
    }
    __syncthreads();
    for (int channel = threadIdx.x; channel < D; channel += THREADS)
        if (work->boosted[channel]) {
            int at = 0;
            for (int i = 0; i < channel; i++) at += work->boosted[i];
            work->list[at] = (u8)channel;
        }
    __syncthreads();
}

__device__ __forceinline__ void seal_key(Work *work, const kt_view &view, int head, int page, u8 *block) {
    if constexpr (KEY_BITS == 16) {
        for (int i = threadIdx.x; i < PAGE_TILES * 2 * KD * 32; i += THREADS) {
            const int lane = i & 31, k = i / 32 % KD, m = i / 32 / KD % 2, tile = i / 32 / KD / 2, g = lane >> 2, c = lane & 3;
            u32 w[4];
            for (int r = 0; r < 4; r++) {
                const int half = r & 1, j = r >> 1;
                const u16 *row = work->element + (tile * 32 + 16 * m + 8 * half + g) * D;
                w[r] = row[channel_of(k, 2 * c + 8 * j)] | (u32)row[channel_of(k, 2 * c + 8 * j + 1)] << 16;
            }
            ((uint4 *)(block + KEY_TILES))[i] = make_uint4(w[0], w[1], w[2], w[3]);
        }
    } else {
        if constexpr (KEY_BOOSTED > 0) select_channels(work, view.layer, head, page);
        for (int i = threadIdx.x; i < KEY_PAIRS; i += THREADS) {
            const int group = i / D, channel = i % D;
            const u16 *column = work->element + group * KEY_GROUP * D + channel;
            float low = element_to_float(column[0]), high = low;
            for (int t = 1; t < KEY_GROUP; t++) low = fminf(low, element_to_float(column[t * D])), high = fmaxf(high, element_to_float(column[t * D]));
            work->pair[i] = make_pair(low, high, KEY_BOOSTED > 0 && work->boosted[channel] ? KEY_BOOST_BITS : KEY_BITS, work);
            u16 *scales = (u16 *)(block + KEY_META) + group * 2 * D;
            scales[channel] = (u16)work->pair[i], scales[D + channel] = (u16)(work->pair[i] >> 16);
        }
        for (int i = threadIdx.x; i < KEY_TILES - KEY_INDEX; i += THREADS)
            block[KEY_INDEX + i] = i < KEY_BOOSTED ? work->list[i] : 0;
        __syncthreads();
        for (int i = threadIdx.x; i < PAGE_TILES * KEY_WORDS * 32; i += THREADS) {
            const int lane = i & 31, k = i / 32 % KEY_WORDS, tile = i / 32 / KEY_WORDS, g = lane >> 2, c = lane & 3;
            u32 word = 0;
#pragma unroll
            for (int x = 0; x < 4; x++) { // rows 2 c + 8 j + e
                const int j = x >> 1, e = x & 1;
                int channel, plane;
                if (k < KEY_PLANES * KD) {
                    channel = channel_of(k % KD, 2 * c + 8 * j + e), plane = k / KD;
                } else {
                    const int row = (k - KEY_PLANES * KD) * 16 + 2 * c + 8 * j + e;
                    if (row >= KEY_EXTRA * KEY_BOOSTED) continue; // padding
                    const int further = row / BOOST_LIST;
                    channel = work->list[row - further * KEY_BOOSTED], plane = KEY_PLANES + further;
                }
                const int bits = KEY_BOOSTED > 0 && work->boosted[channel] ? KEY_BOOST_BITS : KEY_BITS;
                const u32 pair = work->pair[tile * 32 / KEY_GROUP * D + channel];
#pragma unroll
                for (int y = 0; y < 4; y++) { // tokens 16 m + 8 half + g
                    const int m = y >> 1, half = y & 1;
                    const u16 element = work->element[(tile * 32 + 16 * m + 8 * half + g) * D + channel];
                    word |= (code_of(element, pair, bits) >> (2 * plane) & 3u) << (16 * e + 8 * m + 4 * j + 2 * half);
                }
            }
            ((u32 *)(block + KEY_TILES + tile * KEY_TILE_BYTES))[lane_word(k, KEY_WORDS, lane)] = word;
        }
    }
}

// ---- values ----

__device__ __forceinline__ void seal_value(Work *work, u8 *block) {
    if constexpr (VALUE_BITS == 16) {
        for (int i = threadIdx.x; i < PAGE_TILES * KD * 2 * 32; i += THREADS) {
            const int lane = i & 31, m = i / 32 % 2, k = i / 64 % KD, tile = i / 64 / KD, g = lane >> 2, c = lane & 3;
            u32 w[4];
            for (int r = 0; r < 4; r++) {
                const int half = r & 1, j = r >> 1;
                const u16 *first = work->element + (tile * 32 + 16 * m + 2 * c + 8 * j) * D + channel_of(k, 8 * half + g);
                w[r] = first[0] | (u32)first[D] << 16;
            }
            ((uint4 *)(block + VALUE_TILES))[i] = make_uint4(w[0], w[1], w[2], w[3]);
        }
    } else {
        const int lane = threadIdx.x & 31;
        for (int i = threadIdx.x >> 5; i < VALUE_PAIRS; i += THREADS / 32) {
            const int token = i / VALUE_GROUPS, group = i % VALUE_GROUPS;
            const u16 *row = work->element + token * D + group * VALUE_GROUP;
            float low = element_to_float(row[lane]), high = low;
            for (int k = lane + 32; k < VALUE_GROUP; k += 32) low = fminf(low, element_to_float(row[k])), high = fmaxf(high, element_to_float(row[k]));
            for (int x = 16; x > 0; x >>= 1) {
                low = fminf(low, __shfl_xor_sync(~0u, low, x));
                high = fmaxf(high, __shfl_xor_sync(~0u, high, x));
            }
            if (lane == 0) {
                const u32 pair = make_pair(low, high, VALUE_BITS, work);
                const int t = token & 31;
                work->pair[i] = pair;
                ((u32 *)(block + VALUE_TILES + token / 32 * VALUE_TILE_BYTES))[group * 32 + (t & 7) * 4 + (t >> 3)] = pair;
            }
        }
        __syncthreads();
        for (int i = threadIdx.x; i < PAGE_TILES * VALUE_WORDS * 32; i += THREADS) {
            const int l = i & 31, w = i / 32 % VALUE_WORDS, tile = i / 32 / VALUE_WORDS, g = l >> 2, c = l & 3;
            const int plane = w / KD, k = w % KD;
            u32 word = 0;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int channel = channel_of(k, 8 * half + g), group = channel / VALUE_GROUP;
#pragma unroll
                for (int y = 0; y < 8; y++) { // tokens 16 m + 2 c + 8 j + e
                    const int m = y >> 2, j = y >> 1 & 1, e = y & 1, token = tile * 32 + 16 * m + 2 * c + 8 * j + e;
                    const u32 code = code_of(work->element[token * D + channel], work->pair[token * VALUE_GROUPS + group], VALUE_BITS);
                    word |= (code >> (2 * plane) & 3u) << (16 * e + 8 * m + 4 * j + 2 * half);
                }
            }
            ((u32 *)(block + VALUE_TILES + tile * VALUE_TILE_BYTES + VALUE_META_BYTES))[lane_word(w, VALUE_WORDS, l)] = word;
        }
    }
}

// ---- exact tokens ----

// Copies the rows of tokens [first, last) from where the step began to where it ends.
template <bool keys> __device__ __forceinline__ void copy_exact(const Source &source, u8 *slab, int first, int last) {
    for (int i = threadIdx.x; i < (last - first) * (D / 8); i += THREADS) {
        const int token = first + i / (D / 8), part = i % (D / 8);
        const u16 *from = keys ? source.key(token) : source.value(token);
        u8 *to = keys ? token < SINK ? slab + token * D * 2 : slab + SLAB_KEY + (token - SINK) % KEY_RING * D * 2
                      : token < SINK ? slab + SLAB_SINK_VALUE + token * D * 2 : slab + SLAB_VALUE + (token - SINK) % VALUE_RING * D * 2;
        ((uint4 *)to)[part] = ((const uint4 *)from)[part];
    }
}

// Counts elements of the step's own tokens that are not finite.
__device__ __forceinline__ void count_nonfinite(const Source &source, int fresh, kt_control *control) {
    int count = 0;
    for (int i = threadIdx.x; i < fresh * (D / 8); i += THREADS) {
        const int token = source.before + i / (D / 8), part = i % (D / 8);
        const uint4 k = ((const uint4 *)source.key(token))[part], v = ((const uint4 *)source.value(token))[part];
        count += __popc(nonfinite_bits(k.x)) + __popc(nonfinite_bits(k.y)) + __popc(nonfinite_bits(k.z)) + __popc(nonfinite_bits(k.w)) +
                 __popc(nonfinite_bits(v.x)) + __popc(nonfinite_bits(v.y)) + __popc(nonfinite_bits(v.z)) + __popc(nonfinite_bits(v.w));
    }
    if (count) atomicAdd(&control->nonfinite, (u64)count);
}

extern "C" __global__ void __launch_bounds__(THREADS) $entry(const __grid_constant__ kt_append_params p) {
    grid_wait();
    grid_launch_next();
    if (!p.view.control->ready) return;
    const kt_slot slot = p.view.slots[blockIdx.z];
    if (slot.fresh == 0) return;
    Work *work = (Work *)shared_memory();
    const int head = blockIdx.y, before = slot.tokens, after = before + slot.fresh;
    const long long slab = ((long long)slot.slab * p.view.kv_heads + head) * SLAB_BYTES;
    const long long slab_next = ((long long)slot.slab_next * p.view.kv_heads + head) * SLAB_BYTES;
    Source source;
    source.view = &p.view, source.slab = p.view.slabs + slab;
    source.before = before, source.row = slot.row, source.head = head;

    const int key_page = sealed_pages(before, KEY_WINDOW), key_pages = sealed_pages(after, KEY_WINDOW);
    const int value_page = sealed_pages(before, VALUE_WINDOW), value_pages = sealed_pages(after, VALUE_WINDOW);
    const int units = 1 + key_pages - key_page + value_pages - value_page;
    const int *table = p.view.table + (long long)blockIdx.z * p.view.table_stride;

    for (int unit = blockIdx.x; unit < units; unit += gridDim.x) {
        if (unit == 0) {
            // In place, what was there stays; in another slab everything that is still exact moves.
            const int keep = slot.slab_next == slot.slab ? before : 0;
            u8 *to = p.view.slabs + slab_next;
            copy_exact<true>(source, to, min(keep, SINK), min(after, SINK));
            copy_exact<false>(source, to, min(keep, SINK), min(after, SINK));
            copy_exact<true>(source, to, max(keep, SINK + key_pages * PAGE), max(after, SINK + key_pages * PAGE));
            copy_exact<false>(source, to, max(keep, SINK + value_pages * PAGE), max(after, SINK + value_pages * PAGE));
            count_nonfinite(source, slot.fresh, p.view.control);
            continue;
        }
        const bool keys = unit <= key_pages - key_page;
        const int page = keys ? key_page + unit - 1 : value_page + unit - 1 - (key_pages - key_page);
        u8 *block = p.view.pages + ((long long)table[page] * p.view.kv_heads + head) * BLOCK_BYTES;
        start_part(work);
        if (keys) {
            load_page<true>(work, source, SINK + page * PAGE);
            __syncthreads();
            seal_key(work, p.view, head, page, block);
            finish_part(work, block, KT_HEADER_KEY_FLAGS, KT_HEADER_KEY_EXPONENT, KEY_BITS != 16, p.view.control);
        } else {
            load_page<false>(work, source, SINK + page * PAGE);
            __syncthreads();
            seal_value(work, block);
            finish_part(work, block, KT_HEADER_VALUE_FLAGS, KT_HEADER_VALUE_EXPONENT, VALUE_BITS != 16, p.view.control);
        }
    }
}
