// Attention of up to 8 query heads, which are the columns of every product: tokens (of q k^T) and then channels (of the output) are its rows.
// Sealed keys meet q' = q * scale as two signed bytes (m16n8k32). Where a pass has at most 4 heads (PAIR), columns 4..7 carry the low bytes
// of columns 0..3 in q k^T, and other tokens of the same heads in the output, so that no column is idle; otherwise high and low bytes are apart.

constexpr int GROUPS = PAIR ? TILES : 2 * TILES; // of 16 tokens of a chunk, whose logits a lane holds
constexpr int EXACT_GROUPS = 1;
constexpr int HEADROOM = 2; // log2 of by how much a logit may exceed the largest one when State's maximum was last raised
constexpr int P_EXPONENT = W_EXPONENT - HEADROOM;
constexpr int LEAST_EXPONENT = -24;              // of the smallest scale there is
typedef float Probabilities[GROUPS][4];
//@ if KEY_BITS == 16 or KEY_ALONG == 0 then
constexpr int DIGIT = 254; // the low byte of q' is in units of 1 / DIGIT of the high byte, so that halves of these are at most 127
constexpr int KEY_PAIRS = (KD + BOOST_TILES + 1) / 2; // of words that meet q' as bytes; planes of all channels meet the same q'
//@ end

// Running softmax of a warp. Heads of columns 2 c (0) and 2 c + 1 (1); rows of `out` are channels channel_of(i, g + 8 half).
// What probabilities are relative to is the largest logit when one was last above it by more than HEADROOM, so that it seldom grows.
struct State {
    float out[KD][4];
    float max0, max1;   // that logit, in units of log2; 0 before the first
    float sum0, sum1;   // this lane's tokens only
};

// The lanes of columns 4..7, where those repeat the heads of columns 0..3.
__device__ __forceinline__ bool second_lane(int lane) { return PAIR && (lane & 2); }

__device__ __forceinline__ void scale_output(State &state, float by) {
#pragma unroll
    for (int i = 0; i < KD; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) state.out[i][e] *= by;
}

// Elements nearest to x and y; in the lanes that carry low parts, what these leave over.
__device__ __forceinline__ u32 pack_element_part(float x, float y, bool low_part) {
    u32 high = pack_element(x, y);
    if (!PAIR) return high;
    u32 low = pack_element(x - low_element(high), y - high_element(high));
    return low_part ? low : high;
}

// One word's codes as subnormal halves, times the weights 1, 4, 16, 64 of their bit positions, times b[at], b[at + 1];
// `word` is shifted by 8 for the second group of 16.
template <int count, int most>
__device__ __forceinline__ void mma_codes(float (&c)[count][4], int to, u32 word, const u32 (&b)[most], int at) {
    mma_half(c[to], word & 0x00030003u, word & 0x000c000cu, word & 0x00300030u, word & 0x00c000c0u, b[at], b[at + 1]);
}

// ---- keys ----

//@ if KEY_BITS < 16 and KEY_ALONG == 1 then
//@ include "lib/keys_by_token.cuh"
//@ else
// q' = q * scale for one group of a sealed key page, as the B operand, and the zeros' share of the logits.
struct KeyOperand {
    // Bytes, of words 2 i and 2 i + 1: x, y high and z, w low ones of rows 2 c and 2 c + 8; PAIR: x, y alone, low ones in columns 4..7.
    uint4 digits[KEY_PAIRS];
    float factor0, factor1;              // of the products with codes, to logits in units of log2, columns 2 c and 2 c + 1
    float zero0, zero1;                  // q . zero in units of log2, and what rounding q' left over

    // A column's q' becomes high + low / DIGIT, two bytes, times a power of two that its largest |q'| allows: within 2^-14 of that.
    // What rounding leaves over counts for codes in the middle of theirs, and goes to the zeros' share: so only how far codes are from
    // there meets it.
    __device__ __forceinline__ void build_digits(const Query &query, const u8 *block, const u16 *scales, int lane) {
        constexpr int COUNT = 2 * (KD + BOOST_TILES);
        constexpr u32 ROUND = 0x66006600u; // 1536: a half near it is an integer, its low byte two's complement
        const int c = lane & 3, exponent = max((int)(signed char)block[KT_HEADER_KEY_EXPONENT], -15);
        const float unit = power_of_two(-exponent);
        const u32 units = pack_half(unit, unit);
        // Middles of the codes: of all channels, of further 2-bit planes and of a further 1-bit plane.
        const float middle = ((1 << KEY_BITS) - 1) * 0.5f;
        const u32 base = pack_half(middle, middle), further = pack_half(1.5f * EXTRA_WEIGHT, 1.5f * EXTRA_WEIGHT);
        const u32 last = pack_half(0.5f * EXTRA_WEIGHT, 0.5f * EXTRA_WEIGHT);
        constexpr int BOOST = 4 * KEY_PAIRS - 2 * KD;             // words of boosted channels, and of zeros where those are odd
        u32 scale[4 * KEY_PAIRS], boosted[BOOST ? BOOST : 1]; // scales at most 1, times the weights of higher planes; q
#pragma unroll
        for (int k = 0; k < D / 32; k++) {
//@ if KEY_META8 == 1 then
            const uint4 m = halves_of_bytes((const u8 *)scales + k * 32 + c * 8, exponents_of(block, true).scale);
//@ else
            const uint4 m = *(const uint4 *)(scales + k * 32 + c * 8);
//@ end
            scale[4 * k] = half2_multiply(m.x, units), scale[4 * k + 1] = half2_multiply(m.y, units);
            scale[4 * k + 2] = half2_multiply(m.z, units), scale[4 * k + 3] = half2_multiply(m.w, units);
        }
#pragma unroll
        for (int k = 0; k < BOOST; k++) {
            if (k < 2 * BOOST_TILES) {
                u32 x[1], weight;
                gather_boosted(x, scale[2 * KD + k], weight, query, block, scales, k / 2, k & 1, lane);
                scale[2 * KD + k] = half2_multiply(half2_multiply(scale[2 * KD + k], units), weight);
                boosted[k] = x[0];
            } else {
                scale[2 * KD + k] = boosted[k] = 0;
            }
        }
        auto words = [&](u32(&q)[4], int i) { // q of words 4 i to 4 i + 3; from shared memory twice rather than kept
            if (i < KD / 2) {
                const uint4 x = query.four(i, lane);
                q[0] = x.x, q[1] = x.y, q[2] = x.z, q[3] = x.w;
            } else {
#pragma unroll
                for (int e = 0; e < 4; e++) q[e] = boosted[4 * i + e - 2 * KD];
            }
        };
        u32 peaks = 0;
#pragma unroll
        for (int i = 0; i < KEY_PAIRS; i++) {
            u32 q[4];
            words(q, i);
#pragma unroll
            for (int e = 0; e < 4; e++)
                if (4 * i + e < COUNT) peaks = half2_peak(peaks, half2_multiply(q[e], scale[4 * i + e]));
        }
        float peak = fmaxf(half_to_float((u16)peaks), half_to_float((u16)(peaks >> 16)));
        peak = fmaxf(peak, __shfl_xor_sync(~0u, peak, 1));
        peak = fmaxf(peak, __shfl_xor_sync(~0u, peak, 2));
        // q' times 2^(7 - x) is at most 126. Where every q' is less than 2^-9 of the largest q times the largest scale, its last bits do
        // not matter, and x stays where scale * 2^(7 - x) is below 65504.
        const int x = max(ceil_exponent(peak * (128.0f / 126.0f)), -1);
        const float grow = power_of_two(7 - x), back = power_of_two(exponent + x - 7) * (1.0f / DIGIT);
        const u32 grows = pack_half(grow, grow);
        u32 left = 0; // in units of the low byte
#pragma unroll
        for (int i = 0; i < KEY_PAIRS; i++) {
            u32 digit[2][2], q[4];
            words(q, i);
#pragma unroll
            for (int j = 0; j < 2; j++) {
                u32 high[2], low[2];
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const u32 y = q[2 * e + j], s = half2_multiply(scale[4 * i + 2 * e + j], grows);
                    high[e] = half2_multiply_add(y, s, ROUND);
                    const u32 rest = half2_multiply_add(y, s, half2_multiply_add(high[e], 0xbc00bc00u, ROUND)); // less what is in `high`
                    low[e] = half2_multiply_add(rest, 0x5bf05bf0u, ROUND);                                      // times DIGIT
                    const u32 over = half2_multiply_add(rest, 0x5bf05bf0u, half2_multiply_add(low[e], 0xbc00bc00u, ROUND));
                    left = half2_multiply_add(over, i < KD / 2 ? base : i < (KD + EXTRA_TILES) / 2 ? further : last, left);
                }
                digit[0][j] = __byte_perm(high[0], high[1], 0x6420);
                digit[1][j] = __byte_perm(low[0], low[1], 0x6420);
            }
            const bool low_part = PAIR && lane >= 16;
            const uint4 four = make_uint4(low_part ? digit[1][0] : digit[0][0], low_part ? digit[1][1] : digit[0][1], digit[1][0], digit[1][1]);
            digits[i] = four;
        }
        float share = (half_to_float((u16)left) + half_to_float((u16)(left >> 16))) * back;
        share += __shfl_xor_sync(~0u, share, 1);
        share += __shfl_xor_sync(~0u, share, 2);
        const int from = 8 * (c & (HEAD_MASK >> 1)); // lane of column 2 c's head
        factor0 = __shfl_sync(~0u, back, from), factor1 = __shfl_sync(~0u, back, from + 4);
        zero0 = __shfl_sync(~0u, share, from), zero1 = __shfl_sync(~0u, share, from + 4);
    }

    __device__ __forceinline__ void build(const Query &query, const u8 *block, int group, int lane) {
//@ if KEY_META8 == 1 then
        const u16 *scales = (const u16 *)(block + KEY_META) + group * D; // bytes
//@ else
        const u16 *scales = (const u16 *)(block + KEY_META) + group * 2 * D, *zeros = scales + D;
//@ end
        float front[4], back[4];
#pragma unroll
        for (int i = 0; i < 4; i++) front[i] = back[i] = 0;
#pragma unroll
        for (int k = 0; k < D / 32; k++) {
//@ if KEY_META8 == 1 then
            const uint4 z = halves_of_bytes((const u8 *)scales + D + k * 32 + (lane & 3) * 8, exponents_of(block, true).zero);
//@ else
            const uint4 z = *(const uint4 *)(zeros + k * 32 + (lane & 3) * 8);
//@ end
            // rows g of `front` and g + 8 of `back` count
            const uint4 q = query.stored(k, lane);
            mma_half(front, z.x, z.y, z.z, z.w, q.x, q.y);
            mma_half(back, z.x, z.y, z.z, z.w, q.z, q.w);
        }
        build_digits(query, block, scales, lane);
        const int from = 8 * (lane & 3 & (HEAD_MASK >> 1)); // lane of column 2 c's head
        const float back0 = __shfl_sync(~0u, query.back[0], from), back1 = __shfl_sync(~0u, query.back[0], from + 4);
        factor0 *= back0, factor1 *= back1;
        zero0 = (front[0] + back[2] + zero0) * back0, zero1 = (front[1] + back[3] + zero1) * back1;
    }
};

constexpr int DIGITS = PAIR ? 1 : 2; // products of a group of 8 columns: high and low bytes apart, or side by side in columns 0..3 and 4..7

// Products of `groups` groups of 16 tokens of a key tile, from group m0 on, with the high and the low bytes of q', exact. Rows are
// tokens g (elements 0, 1) and g + 8 (2, 3). Codes are bytes too: two words' of a group side by side.
template <int groups>
__device__ __forceinline__ void multiply_codes(int (&sum)[groups][DIGITS][4], const KeyOperand &operand, const u8 *tile, int m0, int lane) {
    // Steps, of two words or of one that holds a 1-bit plane of two, by the higher plane first: each is 4 times the next.
    constexpr int PLANE = KD / 2, HALF = KEY_BITS % 2 * PLANE, BASE = HALF + KEY_PLANES * PLANE;
    constexpr int EXTRA = (KEY_EXTRA * KEY_BOOSTED + 15) / 16, FURTHER = BASE + (EXTRA + 1) / 2; // boosted channels' words, steps
    constexpr int STEPS = FURTHER + (KEY_BOOST_BITS - KEY_BITS) % 2 * ((KEY_BOOSTED + 31) / 32);
    Words<KEY_WORDS> words(tile, lane);
#pragma unroll
    for (int m = 0; m < groups; m++)
#pragma unroll
        for (int d = 0; d < DIGITS; d++)
#pragma unroll
            for (int i = 0; i < 4; i++) sum[m][d][i] = 0;
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
        const bool base = i < BASE, half = i < HALF || i >= FURTHER;
        const int row = base ? i % PLANE : PLANE + i - BASE; // of q'
        const int from = i < HALF        ? KEY_PLANES * KD + i
                         : base          ? KD * (KEY_PLANES - 1 - (i - HALF) / PLANE) + i % PLANE * 2
                         : i < FURTHER   ? KEY_PLANES * KD + HALF + 2 * (i - BASE)
                                         : KEY_PLANES * KD + HALF + EXTRA + i - FURTHER;
        const bool two = !half && (base || 2 * (i - BASE) + 1 < EXTRA);
        u32 x = words.get(from, base ? i % PLANE == 0 : i == BASE || i == FURTHER), y = two ? words.get(from + 1, false) : 0;
        if (half) y = x >> 1 & 0x55555555u, x &= 0x55555555u;
#pragma unroll
        for (int m = 0; m < groups; m++) {
            const u32 codes = __byte_perm(x, y, m0 + m ? 0x7531 : 0x6420), front = base ? codes : codes << 2, next = base ? codes >> 4 : codes >> 2;
            const u32 first = base ? 0x03030303u : 0x0c0c0c0cu, second = first << 2; // further planes are EXTRA_WEIGHT times what they were
            const uint4 b = operand.digits[row];
#pragma unroll
            for (int d = 0; d < DIGITS; d++) {
                if (base && i >= PLANE && i % PLANE == 0)
#pragma unroll
                    for (int e = 0; e < 4; e++) sum[m][d][e] *= 4;
                mma_bytes(sum[m][d], front & first, front & second, next & first, next & second,
                          d ? b.z : b.x, d ? b.w : b.y);
            }
        }
    }
}

// a u + b v; codes of several planes may reach past 32 bits.
__device__ __forceinline__ float join_digits(int a, int u, int b, int v) {
    return KEY_BITS > 2 ? (float)a * (float)u + (float)b * (float)v : (float)(a * u + b * v);
}

// Logits in units of log2, relative to the running maximum, of one group.
__device__ __forceinline__ void scale_logits(float (&s)[4], const Query &query, const KeyOperand &operand, const State &state) {
    if constexpr (KEY_BITS == 16) {
        s[0] = s[0] * query.scale - state.max0, s[1] = s[1] * query.scale - state.max1;
        s[2] = s[2] * query.scale - state.max0, s[3] = s[3] * query.scale - state.max1;
    } else {
        const float f0 = operand.factor0, f1 = operand.factor1, zero0 = operand.zero0 - state.max0, zero1 = operand.zero1 - state.max1;
        s[0] = s[0] * f0 + zero0, s[1] = s[1] * f1 + zero1;
        s[2] = s[2] * (f0 * 0.25f) + zero0, s[3] = s[3] * (f1 * 0.25f) + zero1; // rows g + 8 meet codes times 4
    }
}

// Raw products of `groups` groups of an exact key tile, from m0 on.
template <int groups, int most>
__device__ __forceinline__ void score_elements(float (&s)[most][4], int at, const Query &query, const u8 *tile, int m0, int lane) {
    const uint4 *a = (const uint4 *)tile + lane;
#pragma unroll
    for (int m = 0; m < groups; m++) {
#pragma unroll
        for (int i = 0; i < 4; i++) s[at + m][i] = 0;
#pragma unroll
        for (int k = 0; k < KD; k++) {
            const uint4 w = a[((m0 + m) * KD + k) * 32];
            mma_element(s[at + m], w.x, w.y, w.z, w.w, query.pair[0][2 * k], query.pair[0][2 * k + 1]);
        }
    }
}

// PAIR: weights of a lane's products, high ones in columns 0..3, and of those in the other columns of its heads.
__device__ __forceinline__ int own_digit(int lane) { return second_lane(lane) ? 1 : DIGIT; }
__device__ __forceinline__ int other_digit(int lane) { return second_lane(lane) ? DIGIT : 1; }

// Logits of one group of a sealed tile, in all columns.
__device__ __forceinline__ void score_group(float (&s)[1][4], const Query &query, const KeyOperand &operand,
                                            const State &state, const u8 *tile, int m, int lane) {
    if constexpr (KEY_BITS == 16) {
        score_elements<1>(s, 0, query, tile, m, lane);
    } else {
        int sum[1][DIGITS][4];
        multiply_codes<1>(sum, operand, tile, m, lane);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int mine = sum[0][0][i];
            if constexpr (PAIR) s[0][i] = join_digits(mine, own_digit(lane), __shfl_xor_sync(~0u, mine, 2), other_digit(lane));
            else s[0][i] = join_digits(mine, DIGIT, sum[0][DIGITS - 1][i], 1);
        }
    }
    scale_logits(s[0], query, operand, state);
}

// Logits of the t-th sealed tile of a chunk. PAIR: a lane of columns 0..3 gets tokens 0..15 of the tile, one of columns 4..7 the others,
// of the same heads.
__device__ __forceinline__ void score_sealed(float (&s)[GROUPS][4], int t, const Query &query, const KeyOperand &operand,
                                             const State &state, const u8 *tile, int lane) {
    constexpr int own = PAIR ? 1 : 2; // groups of a tile that a lane keeps
    const bool second = second_lane(lane);
    if constexpr (KEY_BITS == 16) {
        float both[2][4];
        score_elements<2>(both, 0, query, tile, 0, lane);
#pragma unroll
        for (int m = 0; m < own; m++)
#pragma unroll
            for (int i = 0; i < 4; i++) s[own * t + m][i] = PAIR && second ? both[1][i] : both[m][i];
    } else {
        int sum[2][DIGITS][4];
        multiply_codes<2>(sum, operand, tile, 0, lane);
#pragma unroll
        for (int m = 0; m < own; m++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int mine = sum[m][0][i];
                if constexpr (PAIR) {
                    const int other = sum[1][0][i], got = __shfl_xor_sync(~0u, second ? mine : other, 2);
                    s[t][i] = join_digits(second ? other : mine, own_digit(lane), got, other_digit(lane));
                } else {
                    s[2 * t + m][i] = join_digits(mine, DIGIT, sum[m][DIGITS - 1][i], 1);
                }
            }
    }
#pragma unroll
    for (int m = 0; m < own; m++) scale_logits(s[own * t + m], query, operand, state);
}

//@ end
// ---- softmax ----

// Turns `groups` groups of logits, relative to the running maximum, into probabilities. Where one is far above it, or none was before
// (`first`), the maximum is raised, what was summed before is scaled to it by r0 and r1, and the result is true.
template <int groups>
__device__ __forceinline__ bool softmax_update(State &state, float (&s)[groups][4], bool first, float &r0, float &r1) {
    float top0 = -infinity(), top1 = -infinity();
#pragma unroll
    for (int m = 0; m < groups; m++) {
        top0 = fmaxf(top0, fmaxf(s[m][0], s[m][2]));
        top1 = fmaxf(top1, fmaxf(s[m][1], s[m][3]));
    }
    const bool raise = __any_sync(~0u, first || fmaxf(top0, top1) > HEADROOM);
    if (raise) {
#pragma unroll
        for (int x = PAIR ? 2 : 4; x < 32; x <<= 1) {
            top0 = fmaxf(top0, __shfl_xor_sync(~0u, top0, x));
            top1 = fmaxf(top1, __shfl_xor_sync(~0u, top1, x));
        }
        const float max0 = first || top0 > HEADROOM ? state.max0 + top0 : state.max0;
        const float max1 = first || top1 > HEADROOM ? state.max1 + top1 : state.max1;
        const float by0 = max0 - state.max0, by1 = max1 - state.max1; // as rounded
        r0 = first ? 0 : exp2_fast(-by0), r1 = first ? 0 : exp2_fast(-by1);
        state.max0 = max0, state.max1 = max1;
        state.sum0 *= r0, state.sum1 *= r1;
#pragma unroll
        for (int i = 0; i < KD; i++) {
            state.out[i][0] *= r0, state.out[i][1] *= r1;
            state.out[i][2] *= r0, state.out[i][3] *= r1;
        }
#pragma unroll
        for (int m = 0; m < groups; m++) s[m][0] -= by0, s[m][1] -= by1, s[m][2] -= by0, s[m][3] -= by1;
    }
#pragma unroll
    for (int m = 0; m < groups; m++) {
        s[m][0] = exp2_fast(s[m][0]), s[m][1] = exp2_fast(s[m][1]);
        s[m][2] = exp2_fast(s[m][2]), s[m][3] = exp2_fast(s[m][3]);
        state.sum0 += s[m][0] + s[m][2], state.sum1 += s[m][1] + s[m][3];
    }
    return raise;
}

__device__ __forceinline__ void exact_probabilities(State &state, float (&s)[1][4], bool first) {
    float r0, r1;
    softmax_update<1>(state, s, first, r0, r1);
}

// ---- sealed values ----

//@ if VALUE_BITS == 16 or VALUE_ALONG == 0 then
// While sealed chunks are worked on, State::out is in units of 2^(exponent + 24 - P_EXPONENT), exponent that of the largest scale so far, rows g + 8 in a quarter of that: what
// the products give. Zeros are summed apart.
struct SealedOutput {
    float zero0[VALUE_GROUPS], zero1[VALUE_GROUPS]; // this lane's tokens only
//@ if VALUE_META8 == 1 then
    Exponents exponents;                            // of the page at hand
//@ end
};

__device__ __forceinline__ void start_sealed(State &state, SealedOutput &sealed, int exponent, int lane) {
    // Until here both lanes of a head had the same tokens.
    if (second_lane(lane)) state.sum0 = state.sum1 = 0;
#pragma unroll
    for (int v = 0; v < VALUE_GROUPS; v++) sealed.zero0[v] = sealed.zero1[v] = 0;
    if constexpr (VALUE_BITS != 16) {
        const float f = power_of_two(P_EXPONENT - 24 - exponent);
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

//@ if VALUE_BITS < 16 and VALUE_ALONG == 1 then
//@ include "lib/values_by_channel.cuh"

//@ else
// Weights of a tile's tokens, as the B operand: probabilities times the scales of group v of their values. Adds zeros up.
__device__ __forceinline__ void weigh(u32 (&b)[4 * TILES], int at, SealedOutput &sealed, float unit, int v,
                                      const float (&p)[GROUPS][4], int t, const u8 *tile, int lane) {
    constexpr int own = PAIR ? 1 : 2; // groups of a tile that a lane has
    // Pairs of tokens g, g + 8, g + 16, g + 24, or of this lane's two.
    u32 pair[2 * own];
//@ if VALUE_META8 == 1 then
    const u16 *pairs = (const u16 *)(tile + v * 64) + (lane >> 2) * 4 + (second_lane(lane) ? 2 : 0);
#pragma unroll
    for (int r = 0; r < 2 * own; r++) pair[r] = pair_of_bytes(pairs[r] & 0xff, pairs[r] >> 8, sealed.exponents);
//@ else
    const u32 *pairs = (const u32 *)(tile + v * 128) + (lane >> 2) * 4 + (second_lane(lane) ? 2 : 0);
    const uint2 front = *(const uint2 *)pairs;
    pair[0] = front.x, pair[1] = front.y;
    if constexpr (!PAIR) {
        const uint2 back = *(const uint2 *)(pairs + 2);
        pair[2] = back.x, pair[3] = back.y;
    }
//@ end
    u32 packed[2 * own], spread[4];
#pragma unroll
    for (int r = 0; r < 2 * own; r++) {
        const int j = r & 1;
        const float(&from)[4] = p[own * t + r / 2];
        const float zero = half_to_float((u16)(pair[r] >> 16));
        const float scale = half_to_float((u16)pair[r]) * (j ? unit * 0.0625f : unit);
        sealed.zero0[v] += from[2 * j] * zero, sealed.zero1[v] += from[2 * j + 1] * zero;
        packed[r] = pack_half(from[2 * j] * scale, from[2 * j + 1] * scale);
    }
    spread_weights(spread, packed, lane);
#pragma unroll
    for (int r = 0; r < 4; r++) b[4 * at + r] = spread[r];
}

// Adds the values of group v of a chunk. Their products are summed apart and then added: the tensor cores cut off what does not
// fit an fp32 sum, always towards zero, and over a long context that would show where codes and zeros nearly cancel.
__device__ __forceinline__ void add_weighed(State &state, u32 (&b)[4 * TILES], int v, const u8 *tiles, int lane) {
#pragma unroll
//@ if VALUE_BITS % 2 == 1 then
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
//@ if VALUE_BITS % 2 == 1 then
                        const u32 x = value_word(words, plane, v * (VALUE_GROUP / 16) + i0 + i, i == 0);
//@ else
                        const u32 x = words.get(plane * KD + v * (VALUE_GROUP / 16) + i0 + i, i == 0);
//@ end
                        mma_codes(sum, i, x, b, 4 * t);
                        mma_codes(sum, i, x >> 8, b, 4 * t + 2);
                    }
            }
#pragma unroll
            for (int i = 0; i < step; i++)
                if (i0 + i < VALUE_GROUP / 16)
#pragma unroll
                    for (int e = 0; e < 4; e++) state.out[v * (VALUE_GROUP / 16) + i0 + i][e] += sum[i][e];
        }
//@ if VALUE_BITS % 2 == 1 then
        if (plane + 1 < VALUE_LAYERS)
//@ else
        if (plane + 1 < VALUE_PLANES)
//@ end
#pragma unroll
            for (int r = 0; r < 4 * TILES; r++) b[r] = half2_multiply(b[r], 0x44004400u); // times 4
    }
}

// Adds the values of a chunk.
__device__ __forceinline__ void add_sealed_values(State &state, SealedOutput &sealed, int exponent,
                                                  const float (&p)[GROUPS][4], const u8 *stage, int lane) {
    const u8 *tiles = stage + KEY_TILES + TILES * KEY_TILE_BYTES;
    if constexpr (VALUE_BITS == 16) {
        constexpr int own = PAIR ? 1 : 2; // groups of a tile that a lane has
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
            float sum[4];
#pragma unroll
            for (int e = 0; e < 4; e++) sum[e] = 0;
#pragma unroll
            for (int m = 0; m < 2 * TILES; m++) {
                const uint4 w = ((const uint4 *)(tiles + m / 2 * VALUE_TILE_BYTES))[(i * 2 + m % 2) * 32 + lane];
                mma_element(sum, w.x, w.y, w.z, w.w, b[m / 2][m % 2 * 2], b[m / 2][m % 2 * 2 + 1]);
            }
#pragma unroll
            for (int e = 0; e < 4; e++) state.out[i][e] += sum[e];
        }
    } else {
        const float unit = power_of_two(P_EXPONENT - exponent);
#pragma unroll
        for (int v = 0; v < VALUE_GROUPS; v++) {
            u32 b[4 * TILES];
#pragma unroll
            for (int t = 0; t < TILES; t++) weigh(b, t, sealed, unit, v, p, t, tiles + t * VALUE_TILE_BYTES, lane);
            add_weighed(state, b, v, tiles, lane);
        }
    }
}

// state.out in true units, zeros added once.
__device__ __forceinline__ void finish_sealed(State &state, const SealedOutput &sealed, int exponent, int lane) {
    if constexpr (VALUE_BITS != 16) {
        const float f = power_of_two(exponent + 24 - P_EXPONENT);
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
//@ if VALUE_ROTATION > 0 then
// State::out times the matrix, or its Hadamard transform, which is its own inverse.
__device__ __forceinline__ void rotate_output(float (&out)[KD][4], const u8 *matrix, int lane) {
//@ if VALUE_ROTATION == 1 then
#pragma unroll
    for (int e = 0; e < 2; e++) { // of a channel's bits 1, 2, 5 .. are a register's number, bits 0, 3, 4 the lane's g
        float x[2 * KD];
#pragma unroll
        for (int n = 0; n < 2 * KD; n++) x[n] = out[n / 2][n % 2 * 2 + e];
        hadamard(x, lane, 28);
#pragma unroll
        for (int n = 0; n < 2 * KD; n++) out[n / 2][n % 2 * 2 + e] = x[n] * HADAMARD_SHARE;
    }
//@ else
    float largest = 0;
#pragma unroll
    for (int i = 0; i < KD; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) largest = fmaxf(largest, fabsf(out[i][e]));
#pragma unroll
    for (int x = 1; x < 32; x *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, x));
    const int exponent = min(max(ceil_exponent(largest), -100), 100);
    const float down = power_of_two(8 - exponent), up = power_of_two(exponent - 8);
    u32 high[2 * KD], low[2 * KD]; // a pair of halves each, exact to 2^-22
#pragma unroll
    for (int n = 0; n < 2 * KD; n++) {
        const float x = out[n / 2][n % 2 * 2] * down, y = out[n / 2][n % 2 * 2 + 1] * down;
        const u32 both = pack_half(x, y);
        high[n] = transpose8(both);
        low[n] = transpose8(pack_half(x - half_to_float((u16)both), y - half_to_float((u16)(both >> 16))));
    }
#pragma unroll
    for (int i = 0; i < KD; i++) {
        float sum[4] = {0, 0, 0, 0};
        multiply_tile(sum, (const u16 *)matrix, i, high, lane);
        multiply_tile(sum, (const u16 *)matrix, i, low, lane);
#pragma unroll
        for (int e = 0; e < 4; e++) out[i][e] = sum[e] * up;
    }
//@ end
}
//@ end
// ---- exact tokens ----

// Logits, relative to the running maximum, of 16 exact keys from `first` on, of which this lane holds rows g (x) and g + 8 (y); tokens from
// `end` on do not exist.
__device__ __forceinline__ void score_exact(float (&logits)[1][4], const Query &query, const State &state, const uint4 (&x)[D / 32],
                                            const uint4 (&y)[D / 32], int first, int end, int lane) {
    float(&s)[4] = logits[0];
    const int token = first + (lane >> 2);
    const u32(&q)[2 * KD] = query.pair[0];
    clear(logits);
#pragma unroll
    for (int k = 0; k < D / 32; k++) {
        mma_element(s, x[k].x, y[k].x, x[k].y, y[k].y, q[4 * k], q[4 * k + 1]);
        mma_element(s, x[k].z, y[k].z, x[k].w, y[k].w, q[4 * k + 2], q[4 * k + 3]);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) s[i] = token + (i >= 2 ? 8 : 0) < end ? s[i] * query.scale - (i & 1 ? state.max1 : state.max0) : -infinity();
}

__device__ __forceinline__ void add_exact_values(State &state, const float (&p)[1][4], const uint4 (&x)[D / 32],
                                                 const uint4 (&y)[D / 32], int lane) {
    const bool low_part = (lane & 3) >= 2;
    u32 b[2];
    b[0] = transpose8(pack_element_part(p[0][0], p[0][1], low_part));
    b[1] = transpose8(pack_element_part(p[0][2], p[0][3], low_part));
#pragma unroll
    for (int i = 0; i < KD; i++) {
        const uint4 &u = x[i / 2], &v = y[i / 2];
        const u32 a0 = transpose8(i & 1 ? u.z : u.x), a1 = transpose8(i & 1 ? u.w : u.y);
        const u32 a2 = transpose8(i & 1 ? v.z : v.x), a3 = transpose8(i & 1 ? v.w : v.y);
        mma_element(state.out[i], a0, a1, a2, a3, b[0], b[1]);
    }
}

// ---- chunks and results ----

// A chunk's probabilities; keys_done() once its keys are no longer needed. `tile`: the chunk's first of its page.
template <class Done>
__device__ __forceinline__ void chunk_probabilities(Probabilities &p, const Query &query, KeyOperand &operand, State &state, SealedOutput &sealed,
                                                    bool &fresh, const u8 *stage, int tile, int lane, const Done &keys_done) {
#pragma unroll
    for (int t = 0; t < TILES; t++) {
//@ if KEY_BITS < 16 and KEY_ALONG == 0 then
        if (t == 0 || t * 32 % KEY_GROUP == 0) operand.build(query, stage, (tile + t) * 32 / KEY_GROUP, lane);
//@ end
        score_sealed(p, t, query, operand, state, stage + KEY_TILES + t * KEY_TILE_BYTES, lane);
    }
    keys_done();
    float r0, r1;
//@ if VALUE_BITS < 16 and VALUE_ALONG == 1 then
    softmax_update<GROUPS>(state, p, fresh, r0, r1);
//@ else
    if (softmax_update<GROUPS>(state, p, fresh, r0, r1)) // what was summed before is now r0 and r1 times what it was
#pragma unroll
        for (int v = 0; v < VALUE_GROUPS; v++) sealed.zero0[v] *= r0, sealed.zero1[v] *= r1;
//@ end
    fresh = false;
}

// The warp's results, [COLUMNS, OUT_STRIDE], and [COLUMNS] maximum and sum: over all lanes' tokens; columns 4..7 onto columns 0..3 where they
// are of the same heads.
__device__ __forceinline__ void store_partial(State &state, float *outs, float2 *stats, int columns, int lane) {
    const int g = lane >> 2, c = lane & 3;
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
#pragma unroll
    for (int e = 0; e < 2; e++) {
        const int column = 2 * c + e;
        if (column < columns) {
            float *out = outs + column * OUT_STRIDE;
#pragma unroll
            for (int i = 0; i < KD; i++) {
                out[channel_of(i, g)] = state.out[i][e];
                out[channel_of(i, g + 8)] = state.out[i][2 + e];
            }
            if (g == 0) stats[column] = make_float2(e ? state.max1 : state.max0, e ? state.sum1 : state.sum0);
        }
    }
}
