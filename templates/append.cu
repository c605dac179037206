//@ include "lib/kernel.cuh"
// Takes in a step's keys and values of one layer: exact tokens to the slab, completed pages quantised and packed.
//
//   grid  (units, kv_heads, slots), block THREADS; a block walks the units of its slot and head: unit 0 copies exact tokens,
//         the next ones seal one key page each, the rest one value page each
//
// Nothing that a block writes is read by another: pages are sealed from the slab (tokens before the step) and from the input
// (the step's own), and a slab is rewritten in place only where no live token stands (kt_slot.slab_next).
// All arithmetic is IEEE fp32, one rounding per operation, in the order of runtime/cpu/quantise.c, which defines the bytes.
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

//@ include "lib/hash.h"

// How to quantise with one scale and zero.
struct Quantiser {
    float inverse, zero;                   // 1 / (scale * largest code), 0 where the scale is 0; x - zero is multiplied by it
};

// Shared memory of a block.
struct Work {
    u16 element[PAGE * ROW];               // the page, elements that are not finite replaced by 0
    Quantiser quantiser[PAIRS];            // keys [group, channel], values [token, group]
    u32 pair[PAIRS];                       // the same as stored: scale low, zero high
    u32 low[PAGE_TILES * D / 2], high[PAGE_TILES * D / 2]; // extremes of each channel of a tile, two channels to a word
    float part[4 * D];                     // sums over the tokens of equal remainder by 4
    alignas(16) float score[D];
    float most[D];                         // largest code of a channel
    alignas(4) u8 boosted[D];              // flags by channel
    u8 list[D];                            // channels in ascending order
    int damaged;                           // an element was not finite or a group overflowed
    int count;                             // overflowed groups, and elements of the step's own tokens that were not finite
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

// Takes the extremes of group `at` and stores its scale and zero; both 0, which decodes to 0, where one of them is beyond 65504.
__device__ __forceinline__ u32 set_pair(Work *work, int at, float low, float high, float most) {
    low = __fadd_rn(low, 0.0f); // -0 becomes +0
    u16 zero = float_to_half(low);
    u16 scale = float_to_half(__fdiv_rn(__fsub_rn(high, low), most));
    if ((zero & 0x7c00) == 0x7c00 || (scale & 0x7c00) == 0x7c00) {
        atomicOr(&work->damaged, 1);
        atomicAdd(&work->count, 1);
        zero = scale = 0;
    }
    if (scale) atomicMax(&work->exponent, ceil_exponent(half_to_float(scale)));
    work->quantiser[at].inverse = scale ? __fdiv_rn(1.0f, __fmul_rn(half_to_float(scale), most)) : 0.0f;
    work->quantiser[at].zero = half_to_float(zero);
    return work->pair[at] = scale | (u32)zero << 16;
}

// The definition: rounds half to even, after an IEEE division.
__device__ __noinline__ u32 exact_code(float x, u32 pair, float most) {
    const float scale = half_to_float((u16)pair), zero = half_to_float((u16)(pair >> 16));
    if (scale == 0) return 0;
    return (u32)fminf(fmaxf(rintf(__fdiv_rn(__fsub_rn(x, zero), scale)), 0), most);
}

// The same by multiplications, which are off by less than 1e-4; `doubt` grows to how far from a whole number the quotient was, and above
// CERTAIN the code may be the wrong one of two. The code is in the low 8 bits of what is returned.
constexpr float CERTAIN = 0.4999f;
__device__ __forceinline__ u32 quick_code(float x, Quantiser q, float most, float &doubt) {
    const float magic = 12582912.0f; // adding it rounds to a whole number, which its low bits then hold
    const float share = __saturatef(__fmul_rn(__fsub_rn(x, q.zero), q.inverse));
    const float sum = __fmaf_rn(share, most, magic);
    doubt = fmaxf(doubt, fabsf(__fmaf_rn(share, most, __fsub_rn(magic, sum))));
    return (u32)__float_as_int(sum);
}

// Sums of leaf(i), i = 0 .. PAGE - 1, by the fixed tree s[i] += s[i + w], w = PAGE / 2 .. 1: the value at i after step w. For two channels.
template <int w, class Leaf> __device__ __forceinline__ float2 tree_sum(int i, const Leaf &leaf) {
    if constexpr (w == PAGE) {
        return leaf(i);
    } else {
        const float2 a = tree_sum<2 * w>(i, leaf), b = tree_sum<2 * w>(i + w, leaf);
        return make_float2(__fadd_rn(a.x, b.x), __fadd_rn(a.y, b.y));
    }
}

// ---- loading a page ----

// -0 becomes +0.
__device__ __forceinline__ u32 positive_zeros(u32 pair) {
    if ((pair & 0xffffu) == 0x8000u) pair &= 0xffff0000u;
    return pair >> 16 == 0x8000u ? pair & 0xffffu : pair;
}

template <bool keys> __device__ __forceinline__ void load_page(Work *work, const Source &source, int first) {
    constexpr bool exact = (keys ? KEY_BITS : VALUE_BITS) == 16;
    u32 peak = 0;
    auto keep = [&](int token, int part, uint4 w) {
        peak = peak_pair(peak_pair(peak_pair(peak_pair(peak, w.x), w.y), w.z), w.w);
        if (exact) w = make_uint4(positive_zeros(w.x), positive_zeros(w.y), positive_zeros(w.z), positive_zeros(w.w));
        *(uint4 *)(work->element + token * ROW + part * 8) = w;
    };
    if (THREADS % (D / 8) == 0 && first >= source.before) { // the whole page is of this step: rows at one distance
        constexpr int STEP = THREADS / (D / 8), COUNT = (PAGE + STEP - 1) / STEP;
        const int token = threadIdx.x / (D / 8), part = threadIdx.x % (D / 8);
        const long long stride = (keys ? source.view->key_row : source.view->value_row) * STEP;
        const u16 *from = (keys ? source.key(first + token) : source.value(first + token)) + part * 8;
#pragma unroll
        for (int k = 0; k < COUNT; k += 4) { // four loads at a time
            uint4 w[4];
#pragma unroll
            for (int j = 0; j < 4; j++)
                if (k + j < COUNT && token + (k + j) * STEP < PAGE) w[j] = *(const uint4 *)(from + (k + j) * stride);
#pragma unroll
            for (int j = 0; j < 4; j++)
                if (k + j < COUNT && token + (k + j) * STEP < PAGE) keep(token + (k + j) * STEP, part, w[j]);
        }
    } else {
        for (int i = threadIdx.x; i < PAGE * D / 8; i += THREADS) {
            const int token = i / (D / 8), part = i % (D / 8);
            keep(token, part, *((const uint4 *)(keys ? source.key(first + token) : source.value(first + token)) + part));
        }
    }
    if (nonfinite_bits(peak)) { // cleans what this thread has brought, and counts what the step has
        int count = 0;
        atomicOr(&work->damaged, 1);
        for (int i = threadIdx.x; i < PAGE * D / 8; i += THREADS) {
            u32 *w = (u32 *)(work->element + i / (D / 8) * ROW + i % (D / 8) * 8);
            for (int k = 0; k < 4; k++) {
                if (first + i / (D / 8) >= source.before) count += __popc(nonfinite_bits(w[k]));
                w[k] = finite_pair(w[k]);
            }
        }
        atomicAdd(&work->count, count);
    }
}

__device__ __forceinline__ void start_part(Work *work) {
    __syncthreads(); // the last part is done with the work area
    if (threadIdx.x == 0) work->damaged = 0, work->count = 0, work->exponent = NO_SCALE;
    __syncthreads();
}

__device__ __forceinline__ void finish_part(Work *work, u8 *block, int flags, int exponent, bool scaled, kt_control *control) {
    __syncthreads();
    if (threadIdx.x == 0) {
        block[flags] = (u8)work->damaged;
        block[exponent] = scaled ? (u8)work->exponent : 0;
        if (work->count) atomicAdd(&control->nonfinite, (u64)work->count);
    }
}

// ---- keys ----

// Extremes of each channel over each tile of 32 tokens.
__device__ __forceinline__ void find_extremes(Work *work) {
    for (int i = threadIdx.x; i < PAGE_TILES * (D / 2); i += THREADS) {
        const u32 *column = (const u32 *)(work->element + i / (D / 2) * 32 * ROW) + i % (D / 2);
        u32 low = column[0], high = low;
#pragma unroll
        for (int t = 1; t < 32; t++) low = smaller_pair(low, column[t * (ROW / 2)]), high = larger_pair(high, column[t * (ROW / 2)]);
        work->low[i] = low, work->high[i] = high;
    }
    __syncthreads();
}

__device__ __forceinline__ void channel_extremes(const Work *work, int channel, int tile, int tiles, float &low, float &high) {
    for (int t = 0; t < tiles; t++) {
        const int at = (tile + t) * D + channel; // as 16-bit elements
        const float a = element_to_float(((const u16 *)work->low)[at]), b = element_to_float(((const u16 *)work->high)[at]);
        low = t ? fminf(low, a) : a, high = t ? fmaxf(high, b) : b;
    }
    low = __fadd_rn(low, 0.0f), high = __fadd_rn(high, 0.0f);
}

__device__ __forceinline__ float2 element_pair(const Work *work, int token, int channels) {
    const u32 w = *(const u32 *)(work->element + token * ROW + 2 * channels);
    return make_float2(element_to_float((u16)w), element_to_float((u16)(w >> 16)));
}

// work->score = sum of leaf(token, channels) over the page, divided by PAGE; leaf gives two channels.
template <class Leaf> __device__ __forceinline__ void mean_of(Work *work, const Leaf &leaf) {
    for (int i = threadIdx.x; i < 4 * (D / 2); i += THREADS) {
        const int channels = i % (D / 2), remainder = i / (D / 2);
        *(float2 *)(work->part + remainder * D + 2 * channels) = tree_sum<4>(remainder, [&](int t) { return leaf(t, channels); });
    }
    __syncthreads();
    for (int i = threadIdx.x; i < D; i += THREADS) {
        const float *part = work->part + i;
        work->score[i] = __fdiv_rn(__fadd_rn(__fadd_rn(part[0], part[2 * D]), __fadd_rn(part[D], part[3 * D])), (float)PAGE);
    }
    __syncthreads();
}

__device__ __forceinline__ void score_channels(Work *work, int layer, int head, int page) {
    if constexpr (KEY_SCORE <= 1) {
        mean_of(work, [&](int t, int channels) {
            const float2 x = element_pair(work, t, channels);
            return KEY_SCORE == 0 ? make_float2(fabsf(x.x), fabsf(x.y)) : x;
        });
        if constexpr (KEY_SCORE == 1)
            mean_of(work, [&](int t, int channels) {
                float2 x = element_pair(work, t, channels);
                x.x = __fsub_rn(x.x, work->score[2 * channels]), x.y = __fsub_rn(x.y, work->score[2 * channels + 1]);
                return make_float2(__fmul_rn(x.x, x.x), __fmul_rn(x.y, x.y));
            });
    } else {
        for (int channel = threadIdx.x; channel < D; channel += THREADS) {
            float low, high;
            channel_extremes(work, channel, 0, PAGE_TILES, low, high);
            work->score[channel] = KEY_SCORE == 2 ? __fsub_rn(high, low) : kt_random_score(KEY_SEED, layer, head, page, channel);
        }
        __syncthreads();
    }
    for (int channel = threadIdx.x; channel < D; channel += THREADS)
        if (work->score[channel] != work->score[channel]) work->score[channel] = infinity(); // bf16 sums can reach infinity minus infinity
    __syncthreads();
}

// Flags the KEY_BOOSTED channels with the highest scores, ties to the lower channel, and lists them.
__device__ __forceinline__ void select_channels(Work *work) {
    // Scores are not negative, so their bits order like them; of equal ones the lower channel goes first.
    int *rank = (int *)work->part;
    for (int i = threadIdx.x; i < D; i += THREADS) rank[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < 4 * D; i += THREADS) { // a quarter of the others each
        const int channel = i % D, first = i / D * (D / 4), mine = __float_as_int(work->score[channel]);
        int before = 0;
#pragma unroll 8
        for (int k = 0; k < D / 4; k += 4) {
            const int4 other = *(const int4 *)(work->score + first + k);
            const int at = first + k - channel; // negative: a lower channel
            before += (other.x > mine - (at < 0)) + (other.y > mine - (at + 1 < 0)) + (other.z > mine - (at + 2 < 0)) +
                      (other.w > mine - (at + 3 < 0));
        }
        atomicAdd(rank + channel, before);
    }
    __syncthreads();
    for (int channel = threadIdx.x; channel < D; channel += THREADS) work->boosted[channel] = rank[channel] < KEY_BOOSTED;
    __syncthreads();
    for (int channel = threadIdx.x; channel < D; channel += THREADS)
        if (work->boosted[channel]) {
            int at = 0; // flags below it, four to a word
            for (int i = 0; i < channel / 4; i++) at += __popc(((const u32 *)work->boosted)[i]);
            for (int i = channel & ~3; i < channel; i++) at += work->boosted[i];
            work->list[at] = (u8)channel;
        }
    __syncthreads();
}

// Puts two bits of a code into each plane's word, at bit `at`.
template <int planes> __device__ __forceinline__ void put_code(u32 (&words)[planes], u32 code, int at) {
#pragma unroll
    for (int p = 0; p < planes; p++) words[p] += (code >> (2 * p) & 3u) << at;
}

// The k-th words of the planes of all channels: tokens 16 m + 8 half + g, four neighbouring channels.
__device__ __forceinline__ void full_words(u32 (&words)[KEY_PLANES > 0 ? KEY_PLANES : 1], const Work *work, int tile, int k, int lane) {
    const int g = lane >> 2, c = lane & 3;
    const int channel = channel_of(k, 2 * c); // of rows 2 c, 2 c + 1, 2 c + 8, 2 c + 9: this one and the next three
    const int group = tile * 32 / KEY_GROUP * D + channel;
    const u16 *element = work->element + (tile * 32 + g) * ROW + channel;
    float doubt = 0;
    uint2 row[4];
#pragma unroll
    for (int y = 0; y < 4; y++) row[y] = *(const uint2 *)(element + 8 * y * ROW);
#pragma unroll
    for (int p = 0; p < KEY_PLANES; p++) words[p] = 0;
#pragma unroll
    for (int x = 0; x < 4; x++) {
        const Quantiser q = work->quantiser[group + x];
        const float most = KEY_BOOSTED > 0 ? work->most[channel + x] : (float)((1 << KEY_BITS) - 1);
#pragma unroll
        for (int y = 0; y < 4; y++) {
            const u32 two = x < 2 ? row[y].x : row[y].y;
            const u32 code = quick_code(element_to_float((u16)(x & 1 ? two >> 16 : two)), q, most, doubt);
            put_code(words, code, 16 * (x & 1) + 8 * (y >> 1) + 4 * (x >> 1) + 2 * (y & 1));
        }
    }
    if (doubt <= CERTAIN) return;
#pragma unroll
    for (int p = 0; p < KEY_PLANES; p++) words[p] = 0;
#pragma unroll 1
    for (int i = 0; i < 16; i++) {
        const int x = i >> 2, y = i & 3;
        const float most = KEY_BOOSTED > 0 ? work->most[channel + x] : (float)((1 << KEY_BITS) - 1);
        const u32 code = exact_code(element_to_float(element[8 * y * ROW + x]), work->pair[group + x], most);
        put_code(words, code, 16 * (x & 1) + 8 * (y >> 1) + 4 * (x >> 1) + 2 * (y & 1));
    }
}

// A word of the boosted channels' further planes; rows beyond them are 0.
__device__ __forceinline__ u32 boosted_word(const Work *work, int tile, int k, int lane) {
    const int g = lane >> 2, c = lane & 3;
    u32 word = 0;
#pragma unroll
    for (int x = 0; x < 4; x++) { // rows 2 c + 8 j + e
        const int j = x >> 1, e = x & 1, row = (k - KEY_PLANES * KD) * 16 + 2 * c + 8 * j + e, further = row / BOOST_LIST;
        if (row >= KEY_EXTRA * KEY_BOOSTED) continue;
        const int channel = work->list[row - further * BOOST_LIST], plane = KEY_PLANES + further;
        const int group = tile * 32 / KEY_GROUP * D + channel;
        const Quantiser q = work->quantiser[group];
        const float most = (float)((1 << KEY_BOOST_BITS) - 1);
#pragma unroll
        for (int y = 0; y < 4; y++) { // tokens 16 m + 8 half + g
            const int m = y >> 1, half = y & 1;
            const float element = element_to_float(work->element[(tile * 32 + 16 * m + 8 * half + g) * ROW + channel]);
            float doubt = 0;
            u32 code = quick_code(element, q, most, doubt);
            if (doubt > CERTAIN) code = exact_code(element, work->pair[group], most);
            word |= (code >> (2 * plane) & 3u) << (16 * e + 8 * m + 4 * j + 2 * half);
        }
    }
    return word;
}

__device__ __forceinline__ void seal_key(Work *work, const kt_view &view, int head, int page, u8 *block) {
    if constexpr (KEY_BITS == 16) {
        for (int i = threadIdx.x; i < PAGE_TILES * 2 * KD * 32; i += THREADS) {
            const int lane = i & 31, k = i / 32 % KD, m = i / 32 / KD % 2, tile = i / 32 / KD / 2, g = lane >> 2, c = lane & 3;
            u32 w[4];
            for (int r = 0; r < 4; r++) {
                const int half = r & 1, j = r >> 1;
                const u16 *row = work->element + (tile * 32 + 16 * m + 8 * half + g) * ROW;
                w[r] = row[channel_of(k, 2 * c + 8 * j)] | (u32)row[channel_of(k, 2 * c + 8 * j + 1)] << 16;
            }
            ((uint4 *)(block + KEY_TILES))[i] = make_uint4(w[0], w[1], w[2], w[3]);
        }
    } else {
        find_extremes(work);
        if constexpr (KEY_BOOSTED > 0) {
            score_channels(work, view.layer, head, page);
            select_channels(work);
        }
        for (int i = threadIdx.x; i < KEY_PAIRS; i += THREADS) {
            const int group = i / D, channel = i % D;
            const int bits = KEY_BOOSTED > 0 && work->boosted[channel] ? KEY_BOOST_BITS : KEY_BITS;
            float low, high;
            channel_extremes(work, channel, group * (KEY_GROUP / 32), KEY_GROUP / 32, low, high);
            const u32 pair = set_pair(work, i, low, high, (float)((1 << bits) - 1));
            u16 *scales = (u16 *)(block + KEY_META) + group * 2 * D;
            scales[channel] = (u16)pair, scales[D + channel] = (u16)(pair >> 16);
            if (group == 0) work->most[channel] = (float)((1 << bits) - 1);
        }
        for (int i = threadIdx.x; i < KEY_TILES - KEY_INDEX; i += THREADS)
            block[KEY_INDEX + i] = i < KEY_BOOSTED ? work->list[i] : 0;
        __syncthreads();
        for (int i = threadIdx.x; i < PAGE_TILES * KD * 32; i += THREADS) {
            const int lane = i & 31, k = i / 32 % KD, tile = i / 32 / KD;
            u32 words[KEY_PLANES > 0 ? KEY_PLANES : 1];
            full_words(words, work, tile, k, lane);
#pragma unroll
            for (int p = 0; p < KEY_PLANES; p++)
                ((u32 *)(block + KEY_TILES + tile * KEY_TILE_BYTES))[lane_word(p * KD + k, KEY_WORDS, lane)] = words[p];
        }
        constexpr int further = KEY_WORDS - KEY_PLANES * KD;
        if constexpr (further > 0)
            for (int i = threadIdx.x; i < PAGE_TILES * further * 32; i += THREADS) {
                const int lane = i & 31, k = KEY_PLANES * KD + i / 32 % further, tile = i / 32 / further;
                ((u32 *)(block + KEY_TILES + tile * KEY_TILE_BYTES))[lane_word(k, KEY_WORDS, lane)] = boosted_word(work, tile, k, lane);
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
                const u16 *first = work->element + (tile * 32 + 16 * m + 2 * c + 8 * j) * ROW + channel_of(k, 8 * half + g);
                w[r] = first[0] | (u32)first[ROW] << 16;
            }
            ((uint4 *)(block + VALUE_TILES))[i] = make_uint4(w[0], w[1], w[2], w[3]);
        }
    } else {
        // A thread has 32 channels of a token, neighbours the rest of its group.
        constexpr int SHARE = VALUE_GROUP / 32, AT_ONCE = THREADS / SHARE;
        constexpr bool even = (SHARE & (SHARE - 1)) == 0; // else a thread has its group alone
        for (int i = threadIdx.x / (even ? SHARE : 1); i < VALUE_PAIRS; i += even ? AT_ONCE : THREADS) {
            const int token = i / VALUE_GROUPS, group = i % VALUE_GROUPS, share = even ? (int)threadIdx.x % SHARE : 0;
            const uint4 *row = (const uint4 *)(work->element + token * ROW + group * VALUE_GROUP + share * 32);
            u32 low = row[0].x, high = low;
#pragma unroll
            for (int k = 0; k < (even ? 4 : VALUE_GROUP / 8); k++) {
                const uint4 w = row[k];
                low = smaller_pair(smaller_pair(smaller_pair(smaller_pair(low, w.x), w.y), w.z), w.w);
                high = larger_pair(larger_pair(larger_pair(larger_pair(high, w.x), w.y), w.z), w.w);
            }
            if constexpr (even)
#pragma unroll
                for (int x = 1; x < SHARE; x <<= 1) {
                    low = smaller_pair(low, __shfl_xor_sync(~0u, low, x));
                    high = larger_pair(high, __shfl_xor_sync(~0u, high, x));
                }
            if (share == 0) {
                const float least = fminf(element_to_float((u16)low), element_to_float((u16)(low >> 16)));
                const float largest = fmaxf(element_to_float((u16)high), element_to_float((u16)(high >> 16)));
                const u32 pair = set_pair(work, i, least, largest, (float)((1 << VALUE_BITS) - 1));
                const int t = token & 31;
                ((u32 *)(block + VALUE_TILES + token / 32 * VALUE_TILE_BYTES))[group * 32 + (t & 7) * 4 + (t >> 3)] = pair;
            }
        }
        __syncthreads();
        constexpr float most = (float)((1 << VALUE_BITS) - 1);
        for (int i = threadIdx.x; i < PAGE_TILES * KD * 32; i += THREADS) {
            const int l = i & 31, k = i / 32 % KD, tile = i / 32 / KD, g = l >> 2, c = l & 3;
            const int channel = channel_of(k, g), group = channel / VALUE_GROUP; // half 1: two channels on
            const u16 *element = work->element + (tile * 32 + 2 * c) * ROW;
            const int first = (tile * 32 + 2 * c) * VALUE_GROUPS + group;
            u32 words[VALUE_PLANES];
            float doubt = 0;
#pragma unroll
            for (int p = 0; p < VALUE_PLANES; p++) words[p] = 0;
#pragma unroll
            for (int y = 0; y < 8; y++) { // tokens 16 m + 2 c + 8 j + e
                const int m = y >> 2, j = y >> 1 & 1, e = y & 1, token = 16 * m + 8 * j + e;
                const uint2 four = *(const uint2 *)(element + token * ROW + (channel & ~3));
                const Quantiser q = work->quantiser[first + token * VALUE_GROUPS];
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const u32 two = half ? four.y : four.x;
                    const u32 code = quick_code(element_to_float((u16)(g & 1 ? two >> 16 : two)), q, most, doubt);
                    put_code(words, code, 16 * e + 8 * m + 4 * j + 2 * half);
                }
            }
            if (doubt > CERTAIN) {
#pragma unroll
                for (int p = 0; p < VALUE_PLANES; p++) words[p] = 0;
#pragma unroll 1
                for (int y = 0; y < 16; y++) {
                    const int half = y >> 3, m = y >> 2 & 1, j = y >> 1 & 1, e = y & 1, token = 16 * m + 8 * j + e;
                    const u32 code = exact_code(element_to_float(element[token * ROW + channel + 2 * half]),
                                                work->pair[first + token * VALUE_GROUPS], most);
                    put_code(words, code, 16 * e + 8 * m + 4 * j + 2 * half);
                }
            }
#pragma unroll
            for (int p = 0; p < VALUE_PLANES; p++)
                ((u32 *)(block + VALUE_TILES + tile * VALUE_TILE_BYTES + VALUE_META_BYTES))[lane_word(p * KD + k, VALUE_WORDS, l)] = words[p];
        }
    }
}

// ---- exact tokens ----

// Where an exact token's row is in a slab.
template <bool keys> __device__ __forceinline__ u8 *slab_row(u8 *slab, int token) {
    if (token < SINK) return slab + (keys ? 0 : SLAB_SINK_VALUE) + token * D * 2;
    return slab + (keys ? SLAB_KEY : SLAB_VALUE) + (token - SINK) % (keys ? KEY_RING : VALUE_RING) * D * 2;
}

// Stores the step's own tokens that stay exact, those before SINK and from `rest` on, and counts their elements that are not finite;
// those of the others are counted where they are sealed.
template <bool keys> __device__ __forceinline__ int store_fresh(const Source &source, u8 *slab, int fresh, int rest) {
    const int after = source.before + fresh, later = max(source.before, rest);
    const int sinks = max(min(after, SINK) - source.before, 0), tokens = sinks + max(after - later, 0);
    int count = 0;
    // Half of the threads each for keys and values, so that both are fetched at once.
    const int half = THREADS / 2, mine = (int)threadIdx.x - (keys ? 0 : half);
    for (int i = mine; mine >= 0 && mine < half && i < tokens * (D / 8); i += half) {
        const int at = i / (D / 8), token = at < sinks ? source.before + at : later + at - sinks, part = i % (D / 8);
        const uint4 w = ((const uint4 *)(keys ? source.key(token) : source.value(token)))[part];
        ((uint4 *)slab_row<keys>(slab, token))[part] = w;
        count += __popc(nonfinite_bits(w.x)) + __popc(nonfinite_bits(w.y)) + __popc(nonfinite_bits(w.z)) + __popc(nonfinite_bits(w.w));
    }
    return count;
}

// Moves older tokens [first, last) to the slab of the step's end.
template <bool keys> __device__ __forceinline__ void move_older(const Source &source, u8 *slab, int first, int last) {
    for (int i = threadIdx.x; i < (last - first) * (D / 8); i += THREADS) {
        const int token = first + i / (D / 8), part = i % (D / 8);
        ((uint4 *)slab_row<keys>(slab, token))[part] = ((const uint4 *)(keys ? source.key(token) : source.value(token)))[part];
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 3) $entry(const __grid_constant__ kt_append_params p) {
    const kt_slot slot = load_settled(p.view.slots + blockIdx.z); // final since before the launch ahead began
    grid_wait();
    grid_launch_next();
    if (!p.view.control->ready || slot.fresh == 0) return;
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
            u8 *to = p.view.slabs + slab_next;
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
