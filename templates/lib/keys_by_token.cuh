// Sealed keys whose scales and zeros are of a token and a group of channels: they fold into the logits, and the operand is the query alone.
constexpr int KEY_GROUPS = D / KEY_GROUP;
constexpr u32 HALF_BITS = 0x55555555u;     // of a word that holds a 1-bit plane of two groups of 16 channels, those of the first

struct KeyOperand {
    u32 high[2 * KD];                           // columns 8..15 of a product meet codes times 16
    float factor0, factor1;                     // of q, to units of log2, for the heads of columns 2 c and 2 c + 1
    float zero0[KEY_GROUPS], zero1[KEY_GROUPS]; // sums of q in units of log2
//@ if KEY_META8 == 1 then
    Exponents exponents;                        // of the page at hand
//@ end

    __device__ __forceinline__ void build(const Query &query, int lane) {
        constexpr u32 ones = 0x3c003c00u, sixteenths = 0x2c002c00u;
        const int from = 8 * (lane & 3 & (HEAD_MASK >> 1)); // lane of column 2 c's head
        factor0 = __shfl_sync(~0u, query.back[0], from), factor1 = __shfl_sync(~0u, query.back[0], from + 4);
#pragma unroll
        for (int k = 0; k < D / 32; k++) {
            const uint4 q = query.four(k, lane);
            high[4 * k] = q.x, high[4 * k + 1] = q.y, high[4 * k + 2] = q.z, high[4 * k + 3] = q.w;
        }
#pragma unroll
        for (int v = 0; v < KEY_GROUPS; v++) {
            float sum[4] = {0, 0, 0, 0};
#pragma unroll
            for (int k = v * KEY_GROUP / 16; k < (v + 1) * KEY_GROUP / 16; k++)
                mma_half(sum, ones, ones, ones, ones, high[2 * k], high[2 * k + 1]); // every row is the sum
            zero0[v] = sum[0] * factor0, zero1[v] = sum[1] * factor1;
        }
#pragma unroll
        for (int n = 1; n < 2 * KD; n += 2) high[n] = half2_multiply(high[n], sixteenths);
    }
};

// Logits in units of log2, relative to the running maximum, of `groups` groups of 16 tokens of a tile, from m0 on, in all columns:
// s[at + m].
template <int groups, int most>
__device__ __forceinline__ void score_tokens(float (&s)[most][4], int at, const KeyOperand &operand, const State &state,
                                             const u8 *tile, int m0, int lane) {
    constexpr int FULL = KEY_PLANES * KD; // words of 2-bit planes
    Words<KEY_WORDS> words(tile + KEY_META_BYTES, lane);
    const float unit = power_of_two(24);
    float sum[groups][4];
#pragma unroll
    for (int m = 0; m < groups; m++)
#pragma unroll
        for (int i = 0; i < 4; i++) s[at + m][i] = sum[m][i] = 0;
#pragma unroll
    for (int w = 0; w < KEY_WORDS; w++) {
        const bool half = w >= FULL;
        const int p = w / KD, k = half ? 2 * (w - FULL) : w % KD, v = k * 16 / KEY_GROUP, last = half ? k + 1 : k;
        const u32 x = words.get(w, w == 0);
#pragma unroll
        for (int m = 0; m < groups; m++) {
            if (half) {
                mma_codes(sum, m, (x & HALF_BITS) >> (8 * (m0 + m)), operand.high, 2 * k);
                mma_codes(sum, m, (x >> 1 & HALF_BITS) >> (8 * (m0 + m)), operand.high, 2 * k + 2);
            } else {
                mma_codes(sum, m, x >> (8 * (m0 + m)), operand.high, 2 * k);
            }
        }
        if ((last + 1) * 16 % KEY_GROUP) continue;
        const float weight = (float)(1 << (2 * p)); // of the plane
//@ if KEY_META8 == 1 then
        const uint2 bytes = *(const uint2 *)(tile + v * 64 + (lane >> 2) * 8); // of tokens g, g + 8, g + 16, g + 24
        auto pair = [&](u32 two) { return pair_of_bytes(two & 0xff, two >> 8 & 0xff, operand.exponents); };
        const uint4 four = make_uint4(pair(bytes.x), pair(bytes.x >> 16), pair(bytes.y), pair(bytes.y >> 16));
//@ else
        const uint4 four = *(const uint4 *)(tile + v * 128 + (lane >> 2) * 16); // pairs of tokens g, g + 8, g + 16, g + 24
//@ end
#pragma unroll
        for (int m = 0; m < groups; m++) {
            const u32 a = m0 + m ? four.z : four.x, b = m0 + m ? four.w : four.y;
            const float scale = half_to_float((u16)a) * weight, scale8 = half_to_float((u16)b) * (weight * 0.25f); // codes times 4
            const float zero = half_to_float((u16)(a >> 16)), zero8 = half_to_float((u16)(b >> 16));
            const float f0 = operand.factor0 * unit, f1 = operand.factor1 * unit;
            float(&to)[4] = s[at + m], (&from)[4] = sum[m];
            to[0] += from[0] * f0 * scale, to[1] += from[1] * f1 * scale;
            to[2] += from[2] * f0 * scale8, to[3] += from[3] * f1 * scale8;
            if (p == 0) {
                to[0] += zero * operand.zero0[v], to[1] += zero * operand.zero1[v];
                to[2] += zero8 * operand.zero0[v], to[3] += zero8 * operand.zero1[v];
            }
#pragma unroll
            for (int i = 0; i < 4; i++) from[i] = 0;
        }
    }
#pragma unroll
    for (int m = 0; m < groups; m++)
#pragma unroll
        for (int i = 0; i < 4; i++) s[at + m][i] -= i & 1 ? state.max1 : state.max0;
}

__device__ __forceinline__ void score_group(float (&s)[1][4], const Query &, const KeyOperand &operand, const State &state,
                                            const u8 *tile, int m, int lane) {
    score_tokens<1>(s, 0, operand, state, tile, m, lane);
}

// Logits of the t-th sealed tile. PAIR: a lane of columns 0..3 gets tokens 0..15 of the tile, one of columns 4..7 the others, of the same
// heads.
__device__ __forceinline__ void score_sealed(float (&s)[GROUPS][4], int t, const Query &, const KeyOperand &operand,
                                             const State &state, const u8 *tile, int lane) {
    if constexpr (PAIR) {
        float both[2][4];
        score_tokens<2>(both, 0, operand, state, tile, 0, lane);
        const bool second = second_lane(lane);
#pragma unroll
        for (int i = 0; i < 4; i++) s[t][i] = second ? both[1][i] : both[0][i];
    } else {
        score_tokens<2>(s, 2 * t, operand, state, tile, 0, lane);
    }
}
