//@ local key_by_token = KEY_BITS < 16 and KEY_ALONG == 1
//@ local key_halves = KEY_BITS < 16 and KEY_ALONG == 0 and KEY_BITS % 2 + KEY_BOOST_BITS % 2 > 0 -- 1-bit planes
//@ local value_by_channel = VALUE_BITS < 16 and VALUE_ALONG == 1
//@ local value_halves = VALUE_BITS < 16 and VALUE_BITS % 2 == 1
//@ include "lib/kernel.cuh"
// Attention of a step's queries over sinks, pages and residual: out = softmax(scale q k^T) v.
//
//   grid   (splits * slots * max_fresh, kv_heads * PASSES), block WARPS * 32
//   a block serves one query token, KV head and pass of up to COLUMNS query heads, and its split of the work items
//   items  1. units of 16 tokens with exact values: sinks, pages of which only the keys are sealed, residual, fresh tokens
//          2. chunks of TILES * 32 tokens whose keys and values are sealed: copied to shared memory, STAGES ahead per warp;
//             the first copies run while the units are worked on
//   a sequence takes a split for every `split_items` of its items, at most `splits`; item i belongs to warp (i / taken) % WARPS
//   of split i % taken: a fixed order, so equal launches give equal bits
//
// Each warp keeps its own running maximum, sum and output; warps meet once in shared memory, splits once in `partial`, where
// the last block to arrive merges all of them in split order.
//
// Matrix products have tokens (for q k^T) or channels (for the output) as rows and query heads as columns. Lane = 4 g + c.
// q' = q * scale is a pair of halves, high and low, exact to 2^-22. Where a pass has at most 4 heads (PAIR), columns 4..7 carry the
// low halves of columns 0..3 in q k^T, and other tokens of the same heads in the output: no column is idle. Otherwise the low half
// takes a second product.
constexpr int D = HEAD_DIM;
constexpr int KD = D / 16;                 // groups of 16 channels
constexpr bool PAIR = COLUMNS <= 4;
constexpr int HEAD_MASK = PAIR ? 3 : 7;
constexpr int PAGE_TILES = PAGE / 32;
constexpr int PAGE_CHUNKS = PAGE_TILES / TILES;
constexpr int KEY_PLANES = KEY_BITS / 2;   // 2-bit planes of every channel
constexpr int KEY_EXTRA = (KEY_BOOST_BITS - KEY_BITS) / 2; // further planes of a boosted channel
constexpr int BOOST_LIST = KEY_BOOSTED > 0 ? KEY_BOOSTED : 1;
//@ if key_by_token then
constexpr int KEY_WORDS = (KEY_TILE_BYTES - KEY_META_BYTES) / 128;
//@ else
constexpr int KEY_WORDS = KEY_TILE_BYTES / 128;
//@ end
//@ if key_halves then
constexpr int BASE_WORDS = KEY_PLANES * KD + KEY_BITS % 2 * KD / 2;            // planes of all channels, the last of 1 bit in KD / 2 words
constexpr int EXTRA_WORDS = (KEY_EXTRA * KEY_BOOSTED + 15) / 16;               // further 2-bit planes of the boosted ones, then a 1-bit one
constexpr int BOOST_TILES = EXTRA_WORDS + (KEY_BOOST_BITS - KEY_BITS) % 2 * ((KEY_BOOSTED + 31) / 32 * 2);
//@ elseif not key_by_token then
constexpr int BOOST_TILES = KEY_BITS == 16 ? 0 : KEY_ROWS / 16 - KEY_PLANES * KD;
//@ end
constexpr int VALUE_PLANES = VALUE_BITS / 2;
//@ if value_by_channel or value_halves then
constexpr int VALUE_LAYERS = (VALUE_BITS + 1) / 2; // 2-bit planes, and a 1-bit one
//@ end
//@ if not value_by_channel then
constexpr int VALUE_GROUPS = D / VALUE_GROUP;
//@ end
//@ if value_halves then
constexpr int VALUE_WORDS = KD * VALUE_PLANES + KD / 2;
//@ else
constexpr int VALUE_WORDS = VALUE_BITS == 16 ? 0 : KD * VALUE_PLANES;
//@ end
//@ if value_by_channel then
constexpr int META_BYTES = (TILES * 32 > VALUE_GROUP ? TILES * 32 / VALUE_GROUP : 1) * D * (VALUE_META8 == 1 ? 2 : 4); // scales and zeros of a chunk's values
constexpr int STAGE_BYTES = KEY_TILES + TILES * (KEY_TILE_BYTES + VALUE_TILE_BYTES) + META_BYTES;
//@ else
constexpr int STAGE_BYTES = KEY_TILES + TILES * (KEY_TILE_BYTES + VALUE_TILE_BYTES);
//@ end
constexpr int QUERY_BYTES = (D * COLUMNS * 2 + 127) / 128 * 128;
constexpr bool VALUES_AHEAD = D <= 128;    // exact values are loaded with their keys, where there are registers for both
constexpr int BARRIER_BYTES = 128;
constexpr int OUT_STRIDE = D + 4;          // floats of a warp's result, off the bank stride
constexpr float LOG2E = 1.4426950408889634f;
constexpr int GROUPS = PAIR ? TILES : 2 * TILES; // of 16 tokens of a sealed chunk whose logits a lane holds
// q' is at most 2^Q_EXPONENT, so that its multiples by the weights of higher planes stay below 65504; the products with codes, which
// are subnormal halves, are off by 2^-24. Probabilities likewise.
//@ if key_halves then
constexpr int Q_EXPONENT = 8;
//@ else
constexpr int Q_EXPONENT = 9;
//@ end
//@ if value_by_channel then
constexpr int P_EXPONENT = 15;
//@ elseif value_halves then
constexpr int P_EXPONENT = 17 - 2 * VALUE_LAYERS;
//@ else
constexpr int P_EXPONENT = VALUE_BITS == 16 ? 0 : 17 - VALUE_BITS;
//@ end
static_assert(PAGE_TILES % TILES == 0, "chunks divide a page");
static_assert(WARPS * STAGES * 8 <= BARRIER_BYTES, "barriers fit");
static_assert(QUERY_BYTES + BARRIER_BYTES + WARPS * STAGES * STAGE_BYTES <= SHARED_BYTES, "stages fit");
static_assert(QUERY_BYTES + BARRIER_BYTES + WARPS * COLUMNS * (OUT_STRIDE + 2) * 4 <= SHARED_BYTES, "partial results fit");

// What a lane knows of the query: the column g, channels as channel_of orders them.
struct Query {
    u32 pair[2 * KD];   // element pairs in DTYPE: [2 k + j] channels channel_of(k, 2 c + 8 j) and the next
    u32 half[2 * KD];   // the same in fp16, times 2^(Q_EXPONENT - e) with every |q| of the column's head <= 2^e
    float back0, back1; // scale * log2(e) * 2^(e - Q_EXPONENT) of the heads of columns 2 c and 2 c + 1
    float scale;        // scale * log2(e)
    const u16 *all;     // `half` of all channels, shared [D, COLUMNS]
};

// Running softmax of a warp. Heads of columns 2 c (0) and 2 c + 1 (1); rows of `out` are channels channel_of(i, g + 8 half).
struct State {
    float out[KD][4];
    float max0, max1;   // of logits in units of log2
    float sum0, sum1;   // this lane's tokens only
};

// The lanes of columns 4..7, where those repeat the heads of columns 0..3.
__device__ __forceinline__ bool second_lane(int lane) { return PAIR && (lane & 2); }

__device__ __forceinline__ float low_element(u32 pair) { return element_to_float((u16)pair); }
__device__ __forceinline__ float high_element(u32 pair) { return element_to_float((u16)(pair >> 16)); }

// Elements nearest to x and y; in the lanes that carry low parts, what these leave over.
__device__ __forceinline__ u32 pack_element_part(float x, float y, bool low_part) {
    u32 high = pack_element(x, y);
    if (!PAIR) return high;
    u32 low = pack_element(x - low_element(high), y - high_element(high));
    return low_part ? low : high;
}

// Words of a lane out of a tile of `words` per lane, read in ascending order and as vectors of four; w must be a constant after
// unrolling, `first` true for the first word read.
template <int words> struct Words {
    const u32 *base;
    int lane;
    uint4 four;
    __device__ __forceinline__ Words(const u8 *tile, int lane) : base((const u32 *)tile), lane(lane) {}
    __device__ __forceinline__ u32 get(int w, bool first) {
        const int start = w & ~3, left = words - start, r = w & 3;
        if (left >= 4) {
            if (r == 0 || first) four = *(const uint4 *)(base + start * 32 + lane * 4);
        } else if (left >= 2 && r < 2) {
            if (r == 0 || first) {
                const uint2 two = *(const uint2 *)(base + start * 32 + lane * 2);
                four.x = two.x, four.y = two.y;
            }
        } else {
            const u32 one = base[w * 32 + lane];
            if (r == 0) four.x = one;
            else four.z = one;
        }
        return r == 0 ? four.x : r == 1 ? four.y : r == 2 ? four.z : four.w;
    }
};

// One word's codes as subnormal halves, times the weights 1, 4, 16, 64 of their bit positions; `shift` 8 for the second product.
__device__ __forceinline__ void mma_codes(float (&c)[4], u32 word, u32 b0, u32 b1) {
    mma_half(c, word & 0x00030003u, word & 0x000c000cu, word & 0x00300030u, word & 0x00c000c0u, b0, b1);
}

// ---- keys ----

//@ if KEY_ROTATION + VALUE_ROTATION > 0 then
//@ include "lib/rotate.cuh"

//@ end
//@ if key_by_token then
//@ include "lib/keys_by_token.cuh"
//@ else
// q' = q * scale for one group of a sealed key page, as the B operand, and the zeros' share of the logits.
struct KeyOperand {
    u32 high[2 * (KD + BOOST_TILES)];          // PAIR: the low half in columns 4..7
    u32 low[PAIR ? 1 : 2 * (KD + BOOST_TILES)];
    float zero0, zero1; // q . zero in units of log2, for the heads of columns 2 c and 2 c + 1
    int exponent;       // what q' was divided by, as a power of two

    // The product of two pairs of halves, and what its rounding left over, exact.
    __device__ __forceinline__ void put(int at, u32 q, u32 scale, u32 low_mask) {
        const u32 product = half2_multiply(q, scale);
        if (PAIR) {
            high[at] = half2_multiply_add(q, scale, (product ^ 0x80008000u) & low_mask);
        } else {
            high[at] = product;
            low[at] = half2_multiply_add(q, scale, product ^ 0x80008000u);
        }
    }

    __device__ __forceinline__ void build(const Query &query, const u8 *block, int group, int lane) {
        const int g = lane >> 2, c = lane & 3;
        const u32 low_mask = g >= 4 ? ~0u : 0u;
//@ if KEY_META8 == 1 then
        const u8 *scales = block + KEY_META + group * 2 * D, *zeros = scales + D;
        const Exponents e8 = exponents_of(block, true);
        const u32 scale_unit = half_power(e8.scale), zero_unit = half_power(e8.zero);
//@ else
        const u16 *scales = (const u16 *)(block + KEY_META) + group * 2 * D, *zeros = scales + D;
//@ end
        // Scales become at most 1, unless all are tiny: then a quarter of what a half can hold. Columns 8..15 of a product meet codes
        // times 16.
        exponent = max((int)(signed char)block[KT_HEADER_KEY_EXPONENT], -8);
        const float unit = power_of_two(-exponent);
        const u32 even = pack_half(unit, unit), odd = pack_half(unit * 0.0625f, unit * 0.0625f);
        float zero[4] = {0, 0, 0, 0};
#pragma unroll
        for (int k = 0; k < D / 32; k++) {
//@ if KEY_META8 == 1 then
            const uint4 m = halves_of_bytes(*(const uint2 *)(scales + k * 32 + c * 8), scale_unit);
            const uint4 z = halves_of_bytes(*(const uint2 *)(zeros + k * 32 + c * 8), zero_unit);
//@ else
            const uint4 m = *(const uint4 *)(scales + k * 32 + c * 8), z = *(const uint4 *)(zeros + k * 32 + c * 8);
//@ end
            put(4 * k, query.half[4 * k], half2_multiply(m.x, even), low_mask);
            put(4 * k + 1, query.half[4 * k + 1], half2_multiply(m.y, odd), low_mask);
            put(4 * k + 2, query.half[4 * k + 2], half2_multiply(m.z, even), low_mask);
            put(4 * k + 3, query.half[4 * k + 3], half2_multiply(m.w, odd), low_mask);
            mma_half(zero, z.x, z.x, z.y, z.y, query.half[4 * k], query.half[4 * k + 1]); // every row is the zeros
            mma_half(zero, z.z, z.z, z.w, z.w, query.half[4 * k + 2], query.half[4 * k + 3]);
        }
        zero0 = zero[0] * query.back0, zero1 = zero[1] * query.back1;
        if constexpr (BOOST_TILES > 0) {
            const int head = g & HEAD_MASK;
#pragma unroll
            for (int k = 0; k < BOOST_TILES; k++)
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    u32 q[2], scale[2];
                    float weight[2];
#pragma unroll
                    for (int e = 0; e < 2; e++) {
//@ if key_halves then
                        const bool half = k >= EXTRA_WORDS;
                        const int row = (half ? k - EXTRA_WORDS : k) * 16 + 2 * c + 8 * j + e, plane = half ? KEY_EXTRA : row / BOOST_LIST;
                        const bool real = row < (half ? KEY_BOOSTED : KEY_EXTRA * KEY_BOOSTED) && head < COLUMNS;
                        const int channel = real ? block[KEY_INDEX + (half ? row : row - plane * BOOST_LIST)] : 0;
//@ else
                        const int row = k * 16 + 2 * c + 8 * j + e, plane = row / BOOST_LIST;
                        const bool real = row < KEY_EXTRA * KEY_BOOSTED && head < COLUMNS;
                        const int channel = real ? block[KEY_INDEX + row - plane * BOOST_LIST] : 0;
//@ end
                        q[e] = real ? query.all[channel * COLUMNS + head] : 0;
//@ if KEY_META8 == 1 then
                        scale[e] = float_to_half(meta8_value(scales[channel], e8.scale));
//@ else
                        scale[e] = scales[channel];
//@ end
//@ if key_halves then
                        weight[e] = (float)(1 << (KEY_BITS + 2 * plane)) * (j ? unit * 0.0625f : unit);
//@ else
                        weight[e] = (float)(1 << (KEY_BITS + 2 * (KEY_EXTRA > 1 ? plane : 0))) * (j ? unit * 0.0625f : unit);
//@ end
                    }
                    put(2 * (KD + k) + j, q[0] | q[1] << 16, half2_multiply(scale[0] | scale[1] << 16, pack_half(weight[0], weight[1])),
                        low_mask);
                }
        }
    }
};

//@ if key_halves then
//@ include "lib/score_planes.cuh"

//@ else
// Raw products of `groups` groups of 16 tokens of a key tile, from group m0 on: s[m] rows are tokens g (elements 0, 1) and g + 8
// (2, 3) of the group.
template <int groups>
__device__ __forceinline__ void score_codes(float (*s)[4], const KeyOperand &operand, const u8 *tile, int m0, int lane) {
    Words<KEY_WORDS> words(tile, lane);
    float plane[groups][4];
#pragma unroll
    for (int m = 0; m < groups; m++)
#pragma unroll
        for (int i = 0; i < 4; i++) s[m][i] = plane[m][i] = 0;
#pragma unroll
    for (int k = 0; k < KEY_WORDS; k++) {
        const int p = k / KD; // planes 1.. of all channels reuse the operand and are weighted afterwards
        const bool weighted = p >= 1 && p < KEY_PLANES;
        const int at = p < KEY_PLANES ? k % KD : KD + k - KEY_PLANES * KD;
        const u32 x = words.get(k, k == 0);
#pragma unroll
        for (int m = 0; m < groups; m++) {
            float(&to)[4] = weighted ? plane[m] : s[m];
            mma_codes(to, x >> (8 * (m0 + m)), operand.high[2 * at], operand.high[2 * at + 1]);
            if (!PAIR) mma_codes(to, x >> (8 * (m0 + m)), operand.low[2 * at], operand.low[2 * at + 1]);
            if (weighted && k % KD == KD - 1)
#pragma unroll
                for (int i = 0; i < 4; i++) s[m][i] += plane[m][i] * (float)(1 << (2 * p)), plane[m][i] = 0;
        }
    }
}

//@ end
// Logits in units of log2 of one group.
__device__ __forceinline__ void scale_logits(float (&s)[4], const Query &query, const KeyOperand &operand) {
    if constexpr (KEY_BITS == 16) {
#pragma unroll
        for (int i = 0; i < 4; i++) s[i] *= query.scale;
    } else {
        const float unit = power_of_two(operand.exponent + 24), f0 = query.back0 * unit, f1 = query.back1 * unit;
        s[0] = s[0] * f0 + operand.zero0, s[1] = s[1] * f1 + operand.zero1;
        s[2] = s[2] * (f0 * 0.25f) + operand.zero0, s[3] = s[3] * (f1 * 0.25f) + operand.zero1; // rows g + 8 meet codes times 4
    }
}

// Raw products of `groups` groups of a sealed key tile, from m0 on; PAIR: the low halves are still in columns 4..7.
template <int groups>
__device__ __forceinline__ void score_tile(float (*s)[4], const Query &query, const KeyOperand &operand, const u8 *tile, int m0, int lane) {
    if constexpr (KEY_BITS == 16) {
        const uint4 *a = (const uint4 *)tile + lane;
#pragma unroll
        for (int m = 0; m < groups; m++) {
#pragma unroll
            for (int i = 0; i < 4; i++) s[m][i] = 0;
#pragma unroll
            for (int k = 0; k < KD; k++) {
                const uint4 w = a[((m0 + m) * KD + k) * 32];
                mma_element(s[m], w.x, w.y, w.z, w.w, query.pair[2 * k], query.pair[2 * k + 1]);
            }
        }
    } else {
        score_codes<groups>(s, operand, tile, m0, lane);
    }
}

// Logits of one group of a sealed tile, in all columns.
__device__ __forceinline__ void score_group(float (&s)[4], const Query &query, const KeyOperand &operand, const u8 *tile, int m, int lane) {
    score_tile<1>(&s, query, operand, tile, m, lane);
    if (PAIR && KEY_BITS != 16)
#pragma unroll
        for (int i = 0; i < 4; i++) s[i] += __shfl_xor_sync(~0u, s[i], 2);
    scale_logits(s, query, operand);
}

// Logits of a sealed tile. PAIR: a lane of columns 0..3 gets tokens 0..15 of the tile, one of columns 4..7 the others, of the same heads.
__device__ __forceinline__ void score_sealed(float (*s)[4], const Query &query, const KeyOperand &operand, const u8 *tile, int lane) {
    if constexpr (PAIR) {
        float both[2][4];
        score_tile<2>(both, query, operand, tile, 0, lane);
        const bool second = second_lane(lane);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float keep = second ? both[1][i] : both[0][i], give = second ? both[0][i] : both[1][i];
            s[0][i] = KEY_BITS == 16 ? keep : keep + __shfl_xor_sync(~0u, give, 2);
        }
        scale_logits(s[0], query, operand);
    } else {
        score_tile<2>(s, query, operand, tile, 0, lane);
        scale_logits(s[0], query, operand);
        scale_logits(s[1], query, operand);
    }
}
//@ end

// ---- softmax ----

// Raises the running maximum to cover `groups` groups of logits, scales what was summed before (the output by `also` too), and
// turns the logits into probabilities relative to the new maximum. r0, r1: the factors of what was summed before.
template <int groups>
__device__ __forceinline__ void softmax_update(State &state, float (&s)[groups][4], float also, float &r0, float &r1) {
    float max0 = state.max0, max1 = state.max1;
#pragma unroll
    for (int m = 0; m < groups; m++) {
        max0 = fmaxf(max0, fmaxf(s[m][0], s[m][2]));
        max1 = fmaxf(max1, fmaxf(s[m][1], s[m][3]));
    }
#pragma unroll
    for (int x = PAIR ? 2 : 4; x < 32; x <<= 1) {
        max0 = fmaxf(max0, __shfl_xor_sync(~0u, max0, x));
        max1 = fmaxf(max1, __shfl_xor_sync(~0u, max1, x));
    }
    r0 = exp2_fast(state.max0 - max0), r1 = exp2_fast(state.max1 - max1);
    if (__any_sync(~0u, max0 > state.max0 || max1 > state.max1 || also != 1.0f)) {
        state.sum0 *= r0, state.sum1 *= r1;
#pragma unroll
        for (int i = 0; i < KD; i++) {
            state.out[i][0] *= r0 * also, state.out[i][1] *= r1 * also;
            state.out[i][2] *= r0 * also, state.out[i][3] *= r1 * also;
        }
    }
    state.max0 = max0, state.max1 = max1;
#pragma unroll
    for (int m = 0; m < groups; m++) {
        s[m][0] = exp2_fast(s[m][0] - max0), s[m][1] = exp2_fast(s[m][1] - max1);
        s[m][2] = exp2_fast(s[m][2] - max0), s[m][3] = exp2_fast(s[m][3] - max1);
        state.sum0 += s[m][0] + s[m][2], state.sum1 += s[m][1] + s[m][3];
    }
}

// ---- sealed values ----

//@ if not value_by_channel then
// While sealed chunks are worked on, state.out is in units of 2^(exponent + 24 - P_EXPONENT), rows g + 8 in a quarter of that: what
// the products give. Zeros are summed apart.
struct SealedOutput {
    int exponent;
    float zero0[VALUE_GROUPS], zero1[VALUE_GROUPS]; // this lane's tokens only
};

__device__ __forceinline__ void start_sealed(State &state, SealedOutput &sealed, int lane) {
    // Until here both lanes of a head had the same tokens.
    if (second_lane(lane)) state.sum0 = state.sum1 = 0;
    sealed.exponent = -24; // of the smallest scale there is
#pragma unroll
    for (int v = 0; v < VALUE_GROUPS; v++) sealed.zero0[v] = sealed.zero1[v] = 0;
    if constexpr (VALUE_BITS != 16) {
        const float f = power_of_two(P_EXPONENT - 24 - sealed.exponent);
#pragma unroll
        for (int i = 0; i < KD; i++) {
            state.out[i][0] *= f, state.out[i][1] *= f;
            state.out[i][2] *= 4 * f, state.out[i][3] *= 4 * f;
        }
    }
}

//@ end
// The B operand of a tile's probabilities, weights [tokens 16 m + 8 j ..] at b[2 m + j]. PAIR: what a lane's column has no token of is 0.
__device__ __forceinline__ void spread_weights(u32 (&b)[4], const u32 (&packed)[PAIR ? 2 : 4], int lane) {
    if constexpr (PAIR) {
        const u32 first = (lane >> 2) < 4 ? ~0u : 0u;
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const u32 y = transpose8(packed[j]);
            b[j] = y & first, b[2 + j] = y & ~first;
        }
    } else {
#pragma unroll
        for (int r = 0; r < 4; r++) b[r] = transpose8(packed[r]);
    }
}

//@ if value_by_channel or value_halves then
// The word of a plane and 16 channels; of a 1-bit plane two 16 share one.
__device__ __forceinline__ u32 value_word(Words<VALUE_WORDS> &words, int plane, int k, bool first) {
    if (plane < VALUE_PLANES) return words.get(plane * KD + k, first);
    return words.get(VALUE_PLANES * KD + k / 2, first) >> (k % 2) & 0x55555555u;
}

//@ end
//@ if value_by_channel then
//@ include "lib/values_by_channel.cuh"

//@ else
// Adds the values of a chunk. Its products are summed apart and then added: the tensor cores cut off what does not fit an fp32 sum,
// always towards zero, and over a long context that would show where codes and zeros nearly cancel.
__device__ __forceinline__ void add_sealed_values(State &state, SealedOutput &sealed, const float (&p)[GROUPS][4], const u8 *tiles,
                                                  int lane) {
    constexpr int own = PAIR ? 1 : 2; // groups of a tile that a lane has
    const int g = lane >> 2;
    if constexpr (VALUE_BITS == 16) {
        u32 b[TILES][4];
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            u32 packed[2 * own];
#pragma unroll
            for (int r = 0; r < 2 * own; r++) {
                const float(&from)[4] = p[own * t + r / 2];
                packed[r] = pack_element(from[2 * (r & 1)], from[2 * (r & 1) + 1]);
            }
            spread_weights(b[t], packed, lane);
        }
#pragma unroll
        for (int i = 0; i < KD; i++) {
            float sum[4] = {0, 0, 0, 0};
#pragma unroll
            for (int m = 0; m < 2 * TILES; m++) {
                const uint4 w = ((const uint4 *)(tiles + m / 2 * VALUE_TILE_BYTES))[(i * 2 + m % 2) * 32 + lane];
                mma_element(sum, w.x, w.y, w.z, w.w, b[m / 2][m % 2 * 2], b[m / 2][m % 2 * 2 + 1]);
            }
#pragma unroll
            for (int e = 0; e < 4; e++) state.out[i][e] += sum[e];
        }
    } else {
        const float unit = power_of_two(P_EXPONENT - sealed.exponent);
//@ if VALUE_META8 == 1 then
        const Exponents e8 = exponents_of(tiles - TILES * KEY_TILE_BYTES - KEY_TILES, false); // the stage begins with the header
//@ end
#pragma unroll
        for (int v = 0; v < VALUE_GROUPS; v++) {
            u32 b[TILES][4];
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                // Pairs of tokens g, g + 8, g + 16, g + 24, or of this lane's two.
//@ if VALUE_META8 == 1 then
                const u16 *pairs = (const u16 *)(tiles + t * VALUE_TILE_BYTES + v * 64) + g * 4 + (second_lane(lane) ? 2 : 0);
                u32 pair[2 * own], packed[2 * own];
#pragma unroll
                for (int r = 0; r < 2 * own; r++) pair[r] = pair_of_bytes(pairs[r] & 0xff, pairs[r] >> 8, e8);
//@ else
                const u32 *pairs = (const u32 *)(tiles + t * VALUE_TILE_BYTES + v * 128) + g * 4 + (second_lane(lane) ? 2 : 0);
                u32 pair[2 * own], packed[2 * own];
                const uint2 front = *(const uint2 *)pairs;
                pair[0] = front.x, pair[1] = front.y;
                if constexpr (!PAIR) {
                    const uint2 back = *(const uint2 *)(pairs + 2);
                    pair[2] = back.x, pair[3] = back.y;
                }
//@ end
#pragma unroll
                for (int r = 0; r < 2 * own; r++) {
                    const int j = r & 1;
                    const float(&from)[4] = p[own * t + r / 2];
                    const float zero = half_to_float((u16)(pair[r] >> 16));
                    const float scale = half_to_float((u16)pair[r]) * (j ? unit * 0.0625f : unit);
                    sealed.zero0[v] += from[2 * j] * zero, sealed.zero1[v] += from[2 * j + 1] * zero;
                    packed[r] = pack_half(from[2 * j] * scale, from[2 * j + 1] * scale);
                }
                spread_weights(b[t], packed, lane);
            }
#pragma unroll
//@ if value_halves then
            for (int plane = 0; plane < VALUE_LAYERS; plane++) {
//@ else
            for (int plane = 0; plane < VALUE_PLANES; plane++) {
//@ end
                constexpr int step = 4; // words of a vector
#pragma unroll
                for (int i0 = 0; i0 < VALUE_GROUP / 16; i0 += step) {
                    float sum[step][4];
#pragma unroll
                    for (int i = 0; i < step; i++)
#pragma unroll
                        for (int e = 0; e < 4; e++) sum[i][e] = 0;
#pragma unroll
                    for (int t = 0; t < TILES; t++) {
                        Words<VALUE_WORDS> words(tiles + t * VALUE_TILE_BYTES + VALUE_META_BYTES, lane);
#pragma unroll
                        for (int i = 0; i < step; i++)
                            if (i0 + i < VALUE_GROUP / 16) {
//@ if value_halves then
                                const u32 x = value_word(words, plane, v * (VALUE_GROUP / 16) + i0 + i, i == 0);
//@ else
                                const u32 x = words.get(plane * KD + v * (VALUE_GROUP / 16) + i0 + i, i == 0);
//@ end
                                mma_codes(sum[i], x, b[t][0], b[t][1]);
                                mma_codes(sum[i], x >> 8, b[t][2], b[t][3]);
                            }
                    }
#pragma unroll
                    for (int i = 0; i < step; i++)
                        if (i0 + i < VALUE_GROUP / 16)
#pragma unroll
                            for (int e = 0; e < 4; e++) state.out[v * (VALUE_GROUP / 16) + i0 + i][e] += sum[i][e];
                }
//@ if value_halves then
                if (plane + 1 < VALUE_LAYERS)
//@ else
                if (plane + 1 < VALUE_PLANES)
//@ end
#pragma unroll
                    for (int t = 0; t < TILES; t++)
#pragma unroll
                        for (int r = 0; r < 4; r++) b[t][r] = half2_multiply(b[t][r], 0x44004400u); // times 4
            }
        }
    }
}

// state.out in true units, zeros added once.
__device__ __forceinline__ void finish_sealed(State &state, SealedOutput &sealed, int lane) {
    if constexpr (VALUE_BITS != 16) {
        const float f = power_of_two(sealed.exponent + 24 - P_EXPONENT);
#pragma unroll
        for (int v = 0; v < VALUE_GROUPS; v++) {
            float z0 = sealed.zero0[v], z1 = sealed.zero1[v];
#pragma unroll
            for (int x = PAIR ? 2 : 4; x < 32; x <<= 1) {
                z0 += __shfl_xor_sync(~0u, z0, x);
                z1 += __shfl_xor_sync(~0u, z1, x);
            }
            if (second_lane(lane)) z0 = z1 = 0;
#pragma unroll
            for (int i = v * VALUE_GROUP / 16; i < (v + 1) * VALUE_GROUP / 16; i++) {
                state.out[i][0] = state.out[i][0] * f + z0, state.out[i][1] = state.out[i][1] * f + z1;
                state.out[i][2] = state.out[i][2] * (f * 0.25f) + z0, state.out[i][3] = state.out[i][3] * (f * 0.25f) + z1;
            }
        }
    }
}

//@ end
// ---- exact tokens ----

//@ include "lib/exact.cuh"

// Two rows of 16-bit elements, 16 bytes per lane and 32 channels.
__device__ __forceinline__ void load_rows(uint4 (&x)[D / 32], uint4 (&y)[D / 32], const u16 *row_x, const u16 *row_y, int c) {
#pragma unroll
    for (int k = 0; k < D / 32; k++) {
        x[k] = *(const uint4 *)(row_x + k * 32 + c * 8);
        y[k] = *(const uint4 *)(row_y + k * 32 + c * 8);
    }
}

// Replaces elements that are not finite by 0.
__device__ __forceinline__ void clean_rows(uint4 (&x)[D / 32], uint4 (&y)[D / 32]) {
#pragma unroll
    for (int k = 0; k < D / 32; k++) {
        x[k].x = finite_pair(x[k].x), x[k].y = finite_pair(x[k].y), x[k].z = finite_pair(x[k].z), x[k].w = finite_pair(x[k].w);
        y[k].x = finite_pair(y[k].x), y[k].y = finite_pair(y[k].y), y[k].z = finite_pair(y[k].z), y[k].w = finite_pair(y[k].w);
    }
}

// Whether a lane's rows hold an element that is not finite.
__device__ __forceinline__ bool rows_damaged(const uint4 (&x)[D / 32], const uint4 (&y)[D / 32]) {
    u32 peak = 0; // largest magnitude or NaN
#pragma unroll
    for (int k = 0; k < D / 32; k++) {
        peak = peak_pair(peak_pair(peak_pair(peak_pair(peak, x[k].x), x[k].y), x[k].z), x[k].w);
        peak = peak_pair(peak_pair(peak_pair(peak_pair(peak, y[k].x), y[k].y), y[k].z), y[k].w);
    }
    return nonfinite_bits(peak) != 0;
}

// Logits of 16 exact keys from `first` on, whose rows x (token g) and y (token g + 8) this lane holds; tokens from `end` on do not
// exist.
__device__ __forceinline__ void score_exact(float (&s)[4], const Query &query, const uint4 (&x)[D / 32], const uint4 (&y)[D / 32],
                                            int token, int end) {
#pragma unroll
    for (int i = 0; i < 4; i++) s[i] = 0;
#pragma unroll
    for (int k = 0; k < D / 32; k++) {
        mma_element(s, x[k].x, y[k].x, x[k].y, y[k].y, query.pair[4 * k], query.pair[4 * k + 1]);
        mma_element(s, x[k].z, y[k].z, x[k].w, y[k].w, query.pair[4 * k + 2], query.pair[4 * k + 3]);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) s[i] = token + (i >= 2 ? 8 : 0) < end ? s[i] * query.scale : -infinity();
}

__device__ __forceinline__ void add_exact_values(State &state, const float (&p)[4], const uint4 (&x)[D / 32], const uint4 (&y)[D / 32],
                                                 int lane) {
    const bool low_part = (lane & 3) >= 2;
    const u32 b0 = transpose8(pack_element_part(p[0], p[1], low_part));
    const u32 b1 = transpose8(pack_element_part(p[2], p[3], low_part));
#pragma unroll
    for (int k = 0; k < D / 32; k++) {
        mma_element(state.out[2 * k], transpose8(x[k].x), transpose8(x[k].y), transpose8(y[k].x), transpose8(y[k].y), b0, b1);
        mma_element(state.out[2 * k + 1], transpose8(x[k].z), transpose8(x[k].w), transpose8(y[k].z), transpose8(y[k].w), b0, b1);
    }
}

// ---- copies of sealed chunks ----

__device__ __forceinline__ void start_copy(u8 *stage, const u8 *block, int tile, u64 *barrier, int lane) {
    const u8 *keys = block + KEY_TILES + tile * KEY_TILE_BYTES, *values = block + VALUE_TILES + tile * VALUE_TILE_BYTES;
    u8 *stage_values = stage + KEY_TILES + TILES * KEY_TILE_BYTES;
//@ if value_by_channel then
    const u8 *meta = block + VALUE_META + tile * 32 / VALUE_GROUP * D * (VALUE_META8 == 1 ? 2 : 4);
//@ end
#if KITTY_BULK
    if (lane == 0) {
        barrier_expect(barrier, STAGE_BYTES);
        if constexpr (TILES == PAGE_TILES) {
            bulk_copy(stage, block, STAGE_BYTES, barrier);
        } else {
//@ if value_by_channel then
            bulk_copy(stage_values + TILES * VALUE_TILE_BYTES, meta, META_BYTES, barrier);
//@ end
            bulk_copy(stage, block, KEY_TILES, barrier);
            bulk_copy(stage + KEY_TILES, keys, TILES * KEY_TILE_BYTES, barrier);
            bulk_copy(stage_values, values, TILES * VALUE_TILE_BYTES, barrier);
        }
    }
#else
    for (int i = lane * 16; i < KEY_TILES; i += 512) async_copy16(stage + i, block + i);
    for (int i = lane * 16; i < TILES * KEY_TILE_BYTES; i += 512) async_copy16(stage + KEY_TILES + i, keys + i);
    for (int i = lane * 16; i < TILES * VALUE_TILE_BYTES; i += 512) async_copy16(stage_values + i, values + i);
//@ if value_by_channel then
    for (int i = lane * 16; i < META_BYTES; i += 512) async_copy16(stage_values + TILES * VALUE_TILE_BYTES + i, meta + i);
//@ end
#endif
}

// ---- merging ----

// Merges `count` (at most `most`) partial results of four channels into out, maximum and sum. stat(i) and part(i) load the i-th; all
// loads go before the first use.
template <int most, class Stat, class Part>
__device__ __forceinline__ void merge_parts(int count, const Stat &stat, const Part &part, float4 &out, float &max, float &sum) {
    float2 stats[most];
    float4 parts[most];
#pragma unroll
    for (int i = 0; i < most; i++) stats[i] = stat(min(i, count - 1)), parts[i] = part(min(i, count - 1));
    float all = max;
#pragma unroll
    for (int i = 0; i < most; i++) all = fmaxf(all, stats[i].x);
    const float mine = max == -infinity() ? 0.0f : exp2_fast(max - all);
    out.x *= mine, out.y *= mine, out.z *= mine, out.w *= mine, sum *= mine;
#pragma unroll
    for (int i = 0; i < most; i++) {
        const float weight = i >= count || stats[i].x == -infinity() ? 0.0f : exp2_fast(stats[i].x - all);
        out.x += parts[i].x * weight, out.y += parts[i].y * weight, out.z += parts[i].z * weight, out.w += parts[i].w * weight;
        sum += stats[i].y * weight;
    }
    max = all;
}

__device__ __forceinline__ void store_result(const kt_attend_params &p, int row, int head, int channel, float4 out, float max, float sum) {
    const float scale = 1.0f / sum;
    *(uint2 *)(p.out + row * p.out_row + head * p.out_head + channel) =
        make_uint2(pack_element(out.x * scale, out.y * scale), pack_element(out.z * scale, out.w * scale));
    if (p.lse && channel == 0) p.lse[(long long)row * (p.view.kv_heads * GROUP_HEADS) + head] = (max + log2f(sum)) / LOG2E;
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, BLOCKS) $entry(const __grid_constant__ kt_attend_params p) {
    // In order of launch: the passes of a head side by side, so that all but the first find its pages in the L2 cache; the heads of a
    // split, whose blocks are neighbours; splits; queries, of long sequences first where that is asked for.
    const unsigned turn = blockIdx.y * gridDim.x + blockIdx.x;
    const int head_pass = turn % gridDim.y, kv_head = head_pass / PASSES, pass = head_pass % PASSES;
    const int split = turn / gridDim.y % p.splits, place = turn / gridDim.y / p.splits; // place: slot * max_fresh + query token
    // Before grid_wait only what was final before the launch ahead let this one begin: the step's tables, and pages sealed by earlier
    // steps. A block must not end before it has waited, or the launch behind this one would not wait for the one ahead.
    const int query_token = place % p.max_fresh;
    const int slot_index = p.ordered ? load_settled(&p.view.slots[place / p.max_fresh].order) : place / p.max_fresh;
    const kt_slot slot = load_settled(p.view.slots + slot_index);
    if (query_token >= slot.fresh) {
        grid_wait();
        return;
    }

    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, c = lane & 3;
    const int columns = min(COLUMNS, GROUP_HEADS - pass * COLUMNS);
    const int first_head = kv_head * GROUP_HEADS + pass * COLUMNS;
    const int row = slot.row + query_token;
    const int end = slot.tokens + query_token + 1; // tokens that the query sees

    u16 *shared_query = (u16 *)shared_memory();
    u64 *barriers = (u64 *)(shared_memory() + QUERY_BYTES) + warp * STAGES;
    u8 *stages = shared_memory() + QUERY_BYTES + BARRIER_BYTES + warp * STAGES * STAGE_BYTES;

    const int key_pages = sealed_pages(slot.tokens, KEY_WINDOW), value_pages = sealed_pages(slot.tokens, VALUE_WINDOW);
    const int full_pages = min(key_pages, value_pages);
    const int rest = SINK + key_pages * PAGE;      // first token whose key is exact
    const int sink_units = (min(end, SINK) + 15) / 16, half_units = (key_pages - full_pages) * (PAGE / 16);
    const int units = sink_units + half_units + (max(end - rest, 0) + 15) / 16;
    const int items = units + full_pages * PAGE_CHUNKS;
    const int splits = max(min((items + p.split_items - 1) / p.split_items, p.splits), 1);
    if (split >= splits) {
        grid_wait();
        return;
    }
    const int first_item = warp * splits + split, stride = WARPS * splits;
    // The warp's first item that is a chunk
    const int first_chunk = first_item >= units ? first_item : first_item + (units - first_item + stride - 1) / stride * stride;

    const int *table = p.view.table + (long long)slot_index * p.view.table_stride;
    auto block_of = [&](int page) {
        return p.view.pages + ((long long)load_settled(table + page) * p.view.kv_heads + kv_head) * BLOCK_BYTES;
    };

#if KITTY_BULK
    if (lane < STAGES) barrier_init(barriers + lane, 1);
    barrier_init_fence();
    __syncwarp();
#endif
    // Fill the pipeline before anything else: the copies are the longest wait.
#pragma unroll
    for (int s = 0; s < STAGES; s++) {
        const int item = first_chunk + s * stride, chunk = item - units;
        if (item < items)
            start_copy(stages + s * STAGE_BYTES, block_of(chunk / PAGE_CHUNKS), chunk % PAGE_CHUNKS * TILES, barriers + s, lane);
#if !KITTY_BULK
        async_commit();
#endif
    }

    const Exact exact = exact_of(p.view, slot, kv_head);
    // Where the warp's unit u begins, and whether only its values are exact.
    auto unit_first = [&](int u) { return u < sink_units ? u * 16 : SINK + full_pages * PAGE + (u - sink_units) * 16; };
    auto unit_half = [&](int u) { return u >= sink_units && u < sink_units + half_units; };
    if (first_item < units) { // brings the first unit into the L2 cache
        const int token = min(unit_first(first_item) + (lane & 15), end - 1);
        for (int line = lane >> 4; line < D / 64; line += 2) {
            prefetch_line(exact.value(token) + line * 64);
            if (!unit_half(first_item)) prefetch_line(exact.key(token) + line * 64);
        }
    }

    grid_wait();
    grid_launch_next();
    // The launch ahead may be the step's check. What a step reads is there even where what it brings does not fit.
    const bool ready = load_through(&p.view.control->ready);

    Query query;
    {
        const int column = g & HEAD_MASK;
        const u16 *q = p.query + row * p.query_row + (first_head + column) * p.query_head;
        float largest = 0;
#pragma unroll
        for (int k = 0; k < D / 32; k++) {
            uint4 w = make_uint4(0, 0, 0, 0);
            if (column < columns) w = *(const uint4 *)(q + k * 32 + c * 8);
            query.pair[4 * k] = w.x, query.pair[4 * k + 1] = w.y, query.pair[4 * k + 2] = w.z, query.pair[4 * k + 3] = w.w;
        }
#pragma unroll
        for (int k = 0; k < 2 * KD; k++)
            largest = fmaxf(largest, fmaxf(fabsf(low_element(query.pair[k])), fabsf(high_element(query.pair[k]))));
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
        const int exponent = max(ceil_exponent(largest), -90);
//@ if KEY_ROTATION > 0 then
        // A rotation keeps the length, so that no channel grows by more than 16 >= sqrt(D).
        const float normal = power_of_two(Q_EXPONENT - 4 - exponent), denormal = power_of_two(exponent - Q_EXPONENT + 4);
//@ else
        const float normal = power_of_two(Q_EXPONENT - exponent);
//@ end
#pragma unroll
        for (int k = 0; k < 2 * KD; k++)
            query.half[k] = pack_half(low_element(query.pair[k]) * normal, high_element(query.pair[k]) * normal);
        query.scale = p.scale * LOG2E;
//@ if KEY_ROTATION > 0 then
        rotate_query(query.half, p.view.calibration + kv_head * TABLE_BYTES + TABLE_KEY_ROTATION, lane);
        const float back = query.scale * denormal;
//@ else
        const float back = query.scale * power_of_two(exponent - Q_EXPONENT);
//@ end
        query.back0 = __shfl_sync(~0u, back, ((2 * c) & HEAD_MASK) * 4);
        query.back1 = __shfl_sync(~0u, back, ((2 * c + 1) & HEAD_MASK) * 4);
        query.all = shared_query;
    }
    if constexpr (KEY_BOOSTED > 0) {
        if (g < COLUMNS)
#pragma unroll
            for (int k = 0; k < 2 * KD; k++)
                if (k % WARPS == warp) {
                    const int channel = channel_of(k / 2, 2 * c + 8 * (k & 1));
                    shared_query[channel * COLUMNS + g] = (u16)query.half[k];
                    shared_query[(channel + 1) * COLUMNS + g] = (u16)(query.half[k] >> 16);
                }
        __syncthreads();
    }

    State state;
    KeyOperand operand;
//@ if key_by_token then
    operand.build(query);
//@ end
#pragma unroll
    for (int i = 0; i < KD; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) state.out[i][e] = 0;
    state.max0 = state.max1 = -infinity(), state.sum0 = state.sum1 = 0;

    int item = first_item;
    for (; item < units; item += stride) {
        const bool half = unit_half(item);
        const int token = unit_first(item) + g, limit = item < sink_units ? min(end, SINK) : end;
        uint4 x[D / 32], y[D / 32], value_x[D / 32], value_y[D / 32];
        const u16 *row_x = exact.value(min(token, limit - 1)), *row_y = exact.value(min(token + 8, limit - 1));
        if (VALUES_AHEAD) load_rows(value_x, value_y, row_x, row_y, c);
        float s[1][4], r0, r1;
        if (half) {
            const int group = (item - sink_units) % (PAGE / 16);
            const u8 *block = block_of(full_pages + (item - sink_units) / (PAGE / 16));
//@ if not key_by_token then
            if constexpr (KEY_BITS != 16) operand.build(query, block, group * 16 / KEY_GROUP, lane);
//@ end
//@ if key_by_token and KEY_META8 == 1 then
            operand.exponents = exponents_of(block, true);
//@ end
            score_group(s[0], query, operand, block + KEY_TILES + group / 2 * KEY_TILE_BYTES, group % 2, lane);
        } else {
            load_rows(x, y, exact.key(min(token, limit - 1)), exact.key(min(token + 8, limit - 1)), c);
            if (__any_sync(~0u, rows_damaged(x, y))) clean_rows(x, y);
            score_exact(s[0], query, x, y, token, limit);
        }
        softmax_update<1>(state, s, 1.0f, r0, r1);
        if (!VALUES_AHEAD) load_rows(value_x, value_y, row_x, row_y, c);
        if (__any_sync(~0u, rows_damaged(value_x, value_y))) clean_rows(value_x, value_y);
        add_exact_values(state, s[0], value_x, value_y, lane);
    }

    SealedOutput sealed;
//@ if VALUE_ROTATION > 0 then
    // What comes from sealed values is rotated, and so is what there is already.
    const u8 *rotation = p.view.calibration + kv_head * TABLE_BYTES + TABLE_VALUE_ROTATION;
    const bool chunks = item < items;
    if (chunks) rotate_output(state.out, rotation, lane);
//@ end
    start_sealed(state, sealed, lane);
    int at = 0, parity = 0;
    for (; item < items; item += stride) {
        u8 *stage = stages + at * STAGE_BYTES;
#if KITTY_BULK
        barrier_wait(barriers + at, parity);
#else
        async_wait<STAGES - 1>();
        __syncwarp();
#endif
        const int tile = (item - units) % PAGE_CHUNKS * TILES;
//@ if not value_by_channel then
        const int value_exponent = (signed char)stage[KT_HEADER_VALUE_EXPONENT];
//@ end
        float s[GROUPS][4], r0, r1;
//@ if key_by_token and KEY_META8 == 1 then
        operand.exponents = exponents_of(stage, true);
//@ end
#pragma unroll
        for (int t = 0; t < TILES; t++) {
//@ if not key_by_token then
            if constexpr (KEY_BITS != 16)
                if (t == 0 || t * 32 % KEY_GROUP == 0) operand.build(query, stage, (tile + t) * 32 / KEY_GROUP, lane);
//@ end
            score_sealed(s + (PAIR ? 1 : 2) * t, query, operand, stage + KEY_TILES + t * KEY_TILE_BYTES, lane);
        }
        float also = 1;
//@ if not value_by_channel then
        if (VALUE_BITS != 16 && value_exponent > sealed.exponent) {
            also = power_of_two(sealed.exponent - value_exponent);
            sealed.exponent = value_exponent;
        }
//@ end
        softmax_update<GROUPS>(state, s, also, r0, r1);
//@ if not value_by_channel then
#pragma unroll
        for (int v = 0; v < VALUE_GROUPS; v++) sealed.zero0[v] *= r0, sealed.zero1[v] *= r1;
//@ end
        add_sealed_values(state, sealed, s, stage + KEY_TILES + TILES * KEY_TILE_BYTES, lane);
        __syncwarp(); // every lane is done with the stage
        const int next = item + STAGES * stride, chunk = next - units;
        if (next < items) start_copy(stage, block_of(chunk / PAGE_CHUNKS), chunk % PAGE_CHUNKS * TILES, barriers + at, lane);
#if !KITTY_BULK
        async_commit();
#endif
        if (++at == STAGES) at = 0, parity ^= 1;
    }
    finish_sealed(state, sealed, lane);
//@ if VALUE_ROTATION > 0 then
    if (chunks) rotate_output(state.out, rotation + D * D * 2, lane); // the transpose, or Hadamard again
//@ end

    // One result per warp: sums over all lanes' tokens; columns 4..7 onto columns 0..3 where they are of the same heads.
#pragma unroll
    for (int x = PAIR ? 2 : 4; x < 32; x <<= 1) {
        state.sum0 += __shfl_xor_sync(~0u, state.sum0, x);
        state.sum1 += __shfl_xor_sync(~0u, state.sum1, x);
    }
    if (PAIR)
#pragma unroll
        for (int i = 0; i < KD; i++)
#pragma unroll
            for (int e = 0; e < 4; e++) state.out[i][e] += __shfl_xor_sync(~0u, state.out[i][e], 2);
    __syncthreads(); // the stages are free
    float *outs = (float *)(shared_memory() + QUERY_BYTES + BARRIER_BYTES); // [WARPS, COLUMNS, OUT_STRIDE]
    float2 *stats = (float2 *)(outs + WARPS * COLUMNS * OUT_STRIDE);        // [WARPS, COLUMNS] maximum and sum
#pragma unroll
    for (int e = 0; e < 2; e++) {
        const int column = 2 * c + e;
        if (column < columns) {
            float *out = outs + (warp * COLUMNS + column) * OUT_STRIDE;
#pragma unroll
            for (int i = 0; i < KD; i++) {
                out[channel_of(i, g)] = state.out[i][e];
                out[channel_of(i, g + 8)] = state.out[i][2 + e];
            }
            if (g == 0) stats[warp * COLUMNS + column] = make_float2(e ? state.max1 : state.max0, e ? state.sum1 : state.sum0);
        }
    }
    __syncthreads();
    const long long first_row = (long long)row * (p.view.kv_heads * GROUP_HEADS) + first_head; // of [rows, heads]
    for (int i = threadIdx.x; i < columns * (D / 4); i += WARPS * 32) {
        const int column = i / (D / 4), channel = i % (D / 4) * 4;
        float4 out = make_float4(0, 0, 0, 0);
        float max = -infinity(), sum = 0;
        merge_parts<WARPS>(WARPS, [&](int w) { return stats[w * COLUMNS + column]; },
                           [&](int w) { return *(const float4 *)(outs + (w * COLUMNS + column) * OUT_STRIDE + channel); }, out, max, sum);
        if (splits == 1) {
            if (ready) store_result(p, row, first_head + column, channel, out, max, sum);
        } else {
            const long long at = (first_row + column) * p.splits + split;
            *(float4 *)(p.partial + at * D + channel) = out;
            if (channel == 0) ((float2 *)p.stats)[at] = make_float2(max, sum);
        }
    }
    if (splits == 1) return;

    // The last block to arrive merges all splits. The barriers and the count, which releases and acquires, order every thread's writes
    // before every thread's reads.
    __syncthreads();
    int *last = (int *)shared_memory();
    if (threadIdx.x == 0) {
        int *arrivals = p.arrivals + (long long)place * gridDim.y + head_pass;
        *last = count_in(arrivals) == splits - 1;
        if (*last) *arrivals = 0;
    }
    __syncthreads();
    if (!*last) return;
    for (int i = threadIdx.x; i < columns * (D / 4); i += WARPS * 32) {
        const int column = i / (D / 4), channel = i % (D / 4) * 4;
        const long long at = (first_row + column) * p.splits;
        const float2 *from_stats = (const float2 *)p.stats + at;
        const float4 *from = (const float4 *)(p.partial + at * D + channel);
        float4 out = make_float4(0, 0, 0, 0);
        float max = -infinity(), sum = 0;
        for (int k = 0; k < splits; k += 8)
            merge_parts<8>(min(splits - k, 8), [&](int i) { return from_stats[k + i]; }, [&](int i) { return from[(k + i) * (D / 4)]; }, out,
                           max, sum);
        if (ready) store_result(p, row, first_head + column, channel, out, max, sum);
    }
}
