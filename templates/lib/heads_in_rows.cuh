// Attention of 9 to 16 query heads, which are the rows of every product: tokens (of q k^T) and then channels (of the output) are its
// columns, 8 at a time. So probabilities are where the output's product wants them, and a lane knows all of its two heads, g (0) and g + 8 (1).
// q' is in halves: to split that of 16 heads into bytes and to join what comes of them takes longer than the codes' other form.
constexpr int EXACT_GROUPS = 2;
constexpr int LEAST_EXPONENT = 0;        // smaller scales need no other unit
typedef uint4 Probabilities[2 * TILES];  // the A operand of 16 tokens each: in DTYPE where values are exact, else halves
constexpr int ABOVE = 5; // log2 of by how much the limit is above the largest logit: seldom raised, and few probabilities are subnormal halves
constexpr u32 HALF_ONES = 0x3c003c00u;
constexpr u32 SIXTEENTHS = 0x2c002c00u;

// Running softmax of a warp. Probabilities are relative to a limit that is ABOVE the largest logit when one last was above it; logits are kept
// as how far they are below it.
struct State {
    float out[2 * KD][4]; // [2 i + j] heads g (elements 0, 1) and g + 8 (2, 3), channels channel_of(i, 8 j + 2 c) and the next
    float max0, max1;     // that limit, in units of log2; 0 before the first
    float sum0, sum1;     // this lane's tokens only, where their values are exact, until add_up
};

// Sums of all lanes' tokens.
__device__ __forceinline__ void add_up(State &state) {
#pragma unroll
    for (int x = 1; x < 4; x <<= 1) state.sum0 += __shfl_xor_sync(~0u, state.sum0, x), state.sum1 += __shfl_xor_sync(~0u, state.sum1, x);
}

__device__ __forceinline__ void scale_output(State &state, float by) {
#pragma unroll
    for (int n = 0; n < 2 * KD; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) state.out[n][e] *= by;
}

// One word's codes as subnormal halves, times the weights 1, 4, 16, 64 of their bit positions, in columns: tokens or channels 0..7 go to
// c[to], those of 8..15, codes times 4, to the next. `word` is shifted by 8 for the second group of 16.
template <int count> __device__ __forceinline__ void mma_codes(float (&c)[count][4], int to, const uint4 &a, u32 word) {
    mma_half(c[to], a.x, a.y, a.z, a.w, word & 0x00030003u, word & 0x00300030u);
    mma_half(c[to + 1], a.x, a.y, a.z, a.w, word & 0x000c000cu, word & 0x00c000c0u);
}

// The same of a word of an exact tile.
template <int count> __device__ __forceinline__ void mma_elements(float (&c)[count][4], int to, const uint4 &a, const uint4 &b) {
    mma_element(c[to], a.x, a.y, a.z, a.w, b.x, b.z);
    mma_element(c[to + 1], a.x, a.y, a.z, a.w, b.y, b.w);
}

//@ if KEY_BITS < 16 and KEY_ALONG == 1 or VALUE_BITS < 16 and VALUE_ALONG == 0 then
// Scales and zeros of a tile's tokens and group v of channels.
struct TokenPairs {
    uint4 x, y; // of tokens 2 c, + 8, + 16, + 24; of the next ones
    __device__ __forceinline__ u32 at(int n, int e) const { // of token 8 n + 2 c + e
        const uint4 &from = e ? y : x;
        return n == 0 ? from.x : n == 1 ? from.y : n == 2 ? from.z : from.w;
    }
};
//@ end
//@ if KEY_BITS < 16 and KEY_ALONG == 1 and KEY_META8 == 1 or VALUE_BITS < 16 and VALUE_ALONG == 0 and VALUE_META8 == 1 then
__device__ __forceinline__ TokenPairs token_pairs(const u8 *tile, int v, int lane, const Exponents &exponents) {
    const uint4 bytes = *(const uint4 *)(tile + v * 64 + (lane & 3) * 16);
    auto pair = [&](u32 two) { return pair_of_bytes(two & 0xff, two >> 8 & 0xff, exponents); };
    return {make_uint4(pair(bytes.x), pair(bytes.x >> 16), pair(bytes.y), pair(bytes.y >> 16)),
            make_uint4(pair(bytes.z), pair(bytes.z >> 16), pair(bytes.w), pair(bytes.w >> 16))};
}
//@ end
//@ if KEY_BITS < 16 and KEY_ALONG == 1 and KEY_META8 == 0 or VALUE_BITS < 16 and VALUE_ALONG == 0 and VALUE_META8 == 0 then
__device__ __forceinline__ TokenPairs token_pairs(const u8 *tile, int v, int lane) {
    const uint4 *pairs = (const uint4 *)(tile + v * 128) + (lane & 3) * 2;
    return {pairs[0], pairs[1]};
}
//@ end

// ---- keys ----

//@ if KEY_BITS == 16 then
struct KeyOperand {};

// How far logits are below the limit, of 16 (`groups` 1) or 32 tokens each of `tiles` sealed tiles from `tile` on: s[at + 2 groups t +
// 2 (m - m0) + j] of tokens 16 m + 8 j + 2 c of the t-th and the next. `block`: their page, or the part of it that is held.
template <int tiles, int groups, int count>
__device__ __forceinline__ void score_tiles(float (&s)[count][4], int at, const Query &query, const KeyOperand &, const State &state, const u8 *, int,
                                            const u8 *tile, int m0, int lane) {
#pragma unroll
    for (int n = 0; n < 2 * groups * tiles; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) s[at + n][e] = 0;
#pragma unroll
    for (int k = 0; k < KD; k++)
#pragma unroll
        for (int t = 0; t < tiles; t++)
#pragma unroll
            for (int m = 0; m < groups; m++)
                mma_elements(s, at + 2 * groups * t + 2 * m, query.elements(k),
                             ((const uint4 *)(tile + t * KEY_TILE_BYTES))[((m0 + m) * KD + k) * 32 + lane]);
#pragma unroll
    for (int n = 0; n < 2 * groups * tiles; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) s[at + n][e] = (e / 2 ? state.max1 : state.max0) - s[at + n][e] * query.scale;
}
//@ elseif KEY_ALONG == 1 then
// Scales and zeros of a token and a group of channels fold into the logits, and the operand is the query alone.
constexpr int KEY_GROUPS = D / KEY_GROUP;
struct KeyOperand {
    float factor0, factor1;                     // of q, to units of log2
    float zero0[KEY_GROUPS], zero1[KEY_GROUPS]; // sums of q in units of log2
//@ if KEY_META8 == 1 then
    Exponents exponents;                        // of the page at hand
//@ end

    __device__ __forceinline__ void build(const Query &query, int lane) {
        factor0 = query.back[0], factor1 = query.back[1];
#pragma unroll
        for (int v = 0; v < KEY_GROUPS; v++) {
            float sum[4] = {0, 0, 0, 0};
#pragma unroll
            for (int k = v * KEY_GROUP / 16; k < (v + 1) * KEY_GROUP / 16; k++) {
                const uint4 q = query.rows(k, lane);
                mma_half(sum, q.x, q.y, q.z, q.w, HALF_ONES, 0x4c004c00u); // every column is the sum; 16 times a sixteenth
            }
            zero0[v] = sum[0] * factor0, zero1[v] = sum[2] * factor1;
        }
    }
};

// How far logits are below the limit, as of other keys.
template <int tiles, int groups, int count>
__device__ __forceinline__ void score_tiles(float (&s)[count][4], int at, const Query &query, const KeyOperand &operand, const State &state,
                                            const u8 *, int, const u8 *tile, int m0, int lane) {
    constexpr int FULL = KEY_PLANES * KD; // words of 2-bit planes
#pragma unroll
    for (int t = 0; t < tiles; t++) {
        const u8 *from = tile + t * KEY_TILE_BYTES;
        Words<KEY_WORDS> words(from + KEY_META_BYTES, lane);
        float sum[2 * groups][4];
        clear(sum);
#pragma unroll
        for (int n = 0; n < 2 * groups; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) s[at + 2 * groups * t + n][e] = e / 2 ? state.max1 : state.max0;
#pragma unroll
        for (int w = 0; w < KEY_WORDS; w++) {
            const bool half = w >= FULL;
            const int p = w / KD, k = half ? 2 * (w - FULL) : w % KD, v = k * 16 / KEY_GROUP, last = half ? k + 1 : k;
            const u32 x = words.get(w, w == 0);
#pragma unroll
            for (int part = 0; part <= last - k; part++) { // of a 1-bit plane of two groups of 16 channels
                const uint4 q = query.rows(k + part, lane);
                const u32 codes = half ? x >> part & 0x55555555u : x;
#pragma unroll
                for (int m = 0; m < groups; m++) mma_codes(sum, 2 * m, q, m0 + m ? codes >> 8 : codes);
            }
            if ((last + 1) * 16 % KEY_GROUP) continue;
            const float weight = (float)(1 << (2 * p)) * 16777216.0f; // of the plane; codes are subnormal halves
            const TokenPairs pairs = token_pairs(from, v, lane
//@ if KEY_META8 == 1 then
                                                 , operand.exponents
//@ end
            );
#pragma unroll
            for (int n = 0; n < 2 * groups; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const u32 pair = pairs.at(2 * m0 + n, e);
                    const float scale = half_to_float((u16)pair) * (n % 2 ? weight * 0.25f : weight); // codes times 4
                    const float zero = half_to_float((u16)(pair >> 16));
                    float(&to)[4] = s[at + 2 * groups * t + n];
                    to[e] -= sum[n][e] * operand.factor0 * scale, to[2 + e] -= sum[n][2 + e] * operand.factor1 * scale;
                    if (p == 0) to[e] -= zero * operand.zero0[v], to[2 + e] -= zero * operand.zero1[v];
                    sum[n][e] = sum[n][2 + e] = 0;
                }
        }
    }
}
//@ else
// q' = q * scale for one group of a sealed key page, as the A operand, and the zeros' share of the logits, of heads g and g + 8.
struct KeyOperand {
//@ if KEY_BITS > 2 then
    uint4 *stored;          // the warp's [steps of 16 rows, 32 lanes], shared; each lane's own
//@ end
    float factor0, factor1; // of the products with codes, to logits in units of log2
    float zero0, zero1;     // q . zero in units of log2, and what rounding q' left over

    // use(step, a) has each step of 16 rows as it is made. Rows 2 c + 8 and the next of 16 meet codes times 16. What rounding leaves over, the
    // exact sum less that of q', counts for codes in the middle of theirs, and goes to the zeros' share: so only how far codes are from there
    // meets it.
    template <class Use> __device__ __forceinline__ void build(const Query &query, const u8 *block, int group, int lane, const Use &use) {
//@ if KEY_META8 == 1 then
        const u16 *scales = (const u16 *)(block + KEY_META) + group * D; // bytes
//@ else
        const u16 *scales = (const u16 *)(block + KEY_META) + group * 2 * D;
//@ end
        constexpr u32 minus_ones = 0xbc00bc00u, minus_sixteens = 0xcc00cc00u;
        constexpr float middle = ((1 << KEY_BITS) - 1) * 0.5f;
        const bool odd = lane & 4; // of columns of scales, the others are of zeros
        const int c = lane & 3, exponent = max((int)(signed char)block[KT_HEADER_KEY_EXPONENT], -15);
        const float unit = power_of_two(-exponent), back = power_of_two(exponent);
        const u32 units = pack_half(unit, unit);
        float sum[2][4], left[3][4]; // q . zero and q . scale, by columns; rest of all channels, of further planes of 2 bits and of 1 bit
        clear(sum), clear(left);
        auto make = [&](int step, float(&rest)[4], const uint4 &q, u32 scale, u32 scale8) {
            const uint4 y = make_uint4(half2_multiply(q.x, scale), half2_multiply(q.y, scale), half2_multiply(q.z, scale8), half2_multiply(q.w, scale8));
            mma_half(rest, y.x, y.y, y.z, y.w, minus_ones, minus_sixteens);
            use(step, y);
        };
#pragma unroll
        for (int k = 0; k < D / 32; k++) {
//@ if KEY_META8 == 1 then
            const Exponents exponents = exponents_of(block, true);
            const uint4 m = halves_of_bytes((const u8 *)scales + k * 32 + c * 8, exponents.scale);
            const uint4 z = halves_of_bytes((const u8 *)scales + (odd ? 0 : D) + k * 32 + c * 8, odd ? exponents.scale : exponents.zero);
//@ else
            const uint4 m = *(const uint4 *)(scales + k * 32 + c * 8), z = *(const uint4 *)(scales + (odd ? 0 : D) + k * 32 + c * 8);
//@ end
            const uint4 q = query.rows(2 * k, lane), next = query.rows(2 * k + 1, lane);
            mma_half(sum[0], q.x, q.y, q.z, q.w, z.x, z.y);
            mma_half(sum[1], next.x, next.y, next.z, next.w, z.z, z.w);
            const u32 eights = half2_multiply(units, SIXTEENTHS);
            make(2 * k, left[0], q, half2_multiply(m.x, units), half2_multiply(m.y, eights));
            make(2 * k + 1, left[0], next, half2_multiply(m.z, units), half2_multiply(m.w, eights));
        }
#pragma unroll
        for (int k = 0; k < BOOST_TILES; k++) {
            u32 q[2][2], scale[2];
#pragma unroll
            for (int j = 0; j < 2; j++) {
                u32 weight;
                gather_boosted(q[j], scale[j], weight, query, block, scales, k, j, lane);
                scale[j] = half2_multiply(half2_multiply(scale[j], units), weight); // times the weights of higher planes
            }
            float(&rest)[4] = left[k >= EXTRA_TILES ? 2 : KEY_BITS == 2 ? 0 : 1];
            const uint4 both = make_uint4(q[0][0], q[0][1], q[1][0], q[1][1]);
            mma_half(rest, both.x, both.y, both.z, both.w, scale[0], scale[1]);
            make(KD + k, rest, both, scale[0], half2_multiply(scale[1], SIXTEENTHS));
        }
        auto rest = [&](int e) { return ((sum[0][e + 1] + sum[1][e + 1]) * unit + left[0][e]) * middle + left[1][e] * 1.5f + left[2][e] * 0.5f; };
        zero0 = (sum[0][0] + sum[1][0] + rest(0) * back) * query.back[0], zero1 = (sum[0][2] + sum[1][2] + rest(2) * back) * query.back[1];
        factor0 = query.back[0] * back * 16777216.0f, factor1 = query.back[1] * back * 16777216.0f; // codes are subnormal halves
    }
};

// How far logits are below the limit, as of other keys; q' of the tokens' `group`, which is made first.
template <int tiles, int groups, int count>
__device__ __forceinline__ void score_tiles(float (&s)[count][4], int at, const Query &query, KeyOperand &operand, const State &state,
                                            const u8 *block, int group, const u8 *tile, int m0, int lane) {
#pragma unroll
    for (int n = 0; n < 2 * groups * tiles; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) s[at + n][e] = 0;
    // By the higher plane of all channels first: each is 4 times the next. The further planes of the boosted ones come last.
    constexpr int LAST = KEY_BITS % 2 * KD, BASE = LAST + KEY_PLANES * KD; // steps of a 1-bit plane, two to a word; of all planes
//@ if KEY_BITS % 2 + KEY_BOOST_BITS % 2 > 0 then
    constexpr int EXTRA = EXTRA_WORDS;
//@ else
    constexpr int EXTRA = BOOST_TILES;
//@ end
    constexpr int FURTHER = KEY_PLANES * KD + LAST / 2; // words before those of the boosted channels
    Words<KEY_WORDS> words[tiles];
#pragma unroll
    for (int t = 0; t < tiles; t++) words[t] = Words<KEY_WORDS>(tile + t * KEY_TILE_BYTES, lane);
    auto score_step = [&](int i, const uint4 &a) {
        const bool base = i < BASE;
        const int extra = i - BASE;
//@ if KEY_BITS % 2 + KEY_BOOST_BITS % 2 > 0 then
        if (!base && extra >= EXTRA && extra < EXTRA_TILES) return; // no such rows
//@ end
#pragma unroll
        for (int t = 0; t < tiles; t++) {
            u32 x;
            if (i < LAST) x = words[t].get(KEY_PLANES * KD + i / 2, i == 0) >> i % 2 & 0x55555555u;
            else if (base) x = words[t].get((KEY_PLANES - 1 - (i - LAST) / KD) * KD + i % KD, i % KD == 0);
            else if (extra < EXTRA) x = words[t].get(FURTHER + extra, extra == 0);
            else x = words[t].get(FURTHER + EXTRA + (extra - EXTRA_TILES) / 2, extra == EXTRA_TILES) >> (extra - EXTRA_TILES) % 2 & 0x55555555u;
#pragma unroll
            for (int m = 0; m < groups; m++) mma_codes(s, at + 2 * groups * t + 2 * m, a, m0 + m ? x >> 8 : x);
        }
    };
//@ if KEY_BITS > 2 then
    operand.build(query, block, group, lane, [&](int step, const uint4 &a) { operand.stored[step * 32 + lane] = a; });
#pragma unroll
    for (int i = 0; i < BASE + BOOST_TILES; i++) {
        if (i < BASE && i >= KD && i % KD == 0)
#pragma unroll
            for (int n = 0; n < 2 * groups * tiles; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) s[at + n][e] *= 4;
        score_step(i, operand.stored[(i < BASE ? i % KD : KD + i - BASE) * 32 + lane]);
    }
//@ else
    operand.build(query, block, group, lane, score_step); // one plane of all channels: each step of q' is used once, as it is made
//@ end
    const float base0 = state.max0 - operand.zero0, base1 = state.max1 - operand.zero1;
#pragma unroll
    for (int n = 0; n < 2 * groups * tiles; n++) {
        float(&to)[4] = s[at + n];
        const float f0 = operand.factor0 * (n % 2 ? 0.25f : 1.0f), f1 = operand.factor1 * (n % 2 ? 0.25f : 1.0f);
        to[0] = base0 - to[0] * f0, to[1] = base0 - to[1] * f0;
        to[2] = base1 - to[2] * f1, to[3] = base1 - to[3] * f1;
    }
}

//@ end

// Of the page's `group` of 16 tokens.
__device__ __forceinline__ void score_group(float (&s)[2][4], const Query &query, KeyOperand &operand, const State &state, const u8 *block, int group,
                                            int lane) {
    score_tiles<1, 1>(s, 0, query, operand, state, block, group * 16 / KEY_GROUP, block + KEY_TILES + group / 2 * KEY_TILE_BYTES, group % 2, lane);
}

// ---- softmax ----

// Whether a logit is above the limit.
template <int count> __device__ __forceinline__ bool above_limit(const float (&s)[count][4]) {
    int signs = 0;
#pragma unroll
    for (int n = 0; n < count; n++) signs |= __float_as_int(s[n][0]) | __float_as_int(s[n][1]) | __float_as_int(s[n][2]) | __float_as_int(s[n][3]);
    return signs < 0;
}

// Raises the limit of heads of which a logit is above it, or all where there was none before (`first`). What was summed before is scaled by
// r0 and r1.
template <int count> __device__ __forceinline__ void raise_limit(State &state, float (&s)[count][4], bool first, float &r0, float &r1) {
    float least0 = infinity(), least1 = infinity();
#pragma unroll
    for (int n = 0; n < count; n++) {
        least0 = fminf(least0, fminf(s[n][0], s[n][1]));
        least1 = fminf(least1, fminf(s[n][2], s[n][3]));
    }
#pragma unroll
    for (int x = 1; x < 4; x <<= 1) {
        least0 = fminf(least0, __shfl_xor_sync(~0u, least0, x));
        least1 = fminf(least1, __shfl_xor_sync(~0u, least1, x));
    }
    const float max0 = first || least0 < 0 ? state.max0 - least0 + ABOVE : state.max0;
    const float max1 = first || least1 < 0 ? state.max1 - least1 + ABOVE : state.max1;
    const float by0 = max0 - state.max0, by1 = max1 - state.max1; // as rounded
    r0 = first ? 0 : exp2_fast(-by0), r1 = first ? 0 : exp2_fast(-by1);
    state.max0 = max0, state.max1 = max1;
    state.sum0 *= r0, state.sum1 *= r1;
#pragma unroll
    for (int n = 0; n < 2 * KD; n++) state.out[n][0] *= r0, state.out[n][1] *= r0, state.out[n][2] *= r1, state.out[n][3] *= r1;
#pragma unroll
    for (int n = 0; n < count; n++) s[n][0] += by0, s[n][1] += by0, s[n][2] += by1, s[n][3] += by1;
}

// ---- sealed values ----

//@ if VALUE_BITS == 16 then
struct SealedOutput {};
__device__ __forceinline__ void start_sealed(State &, SealedOutput &, int, int) {}
__device__ __forceinline__ void finish_sealed(State &state, const SealedOutput &, int, int) { add_up(state); }

// Adds the values of a chunk. Their products are summed apart and then added: the tensor cores cut off what does not fit an fp32 sum.
__device__ __forceinline__ void add_sealed_values(State &state, SealedOutput &, int, const Probabilities &p, const u8 *stage, int lane) {
    const u8 *tiles = stage + KEY_TILES + TILES * KEY_TILE_BYTES;
#pragma unroll
    for (int i = 0; i < KD; i += 2) {
        float sum[4][4];
        clear(sum);
#pragma unroll
        for (int m = 0; m < 2 * TILES; m++)
#pragma unroll
            for (int n = 0; n < 2; n++)
                mma_elements(sum, 2 * n, p[m], ((const uint4 *)(tiles + m / 2 * VALUE_TILE_BYTES))[((i + n) * 2 + m % 2) * 32 + lane]);
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) state.out[2 * i + n][e] += sum[n][e];
    }
}
//@ elseif VALUE_ALONG == 1 then
// Scales and zeros of a channel and a group of tokens fold into the output, once per group.
struct SealedOutput {
//@ if VALUE_META8 == 1 then
    Exponents exponents; // of the page at hand
//@ end
};
__device__ __forceinline__ void start_sealed(State &state, SealedOutput &, int, int) { add_up(state); }
__device__ __forceinline__ void finish_sealed(State &, const SealedOutput &, int, int) {}

// Adds the values of a chunk; scales and zeros follow its tiles.
__device__ __forceinline__ void add_sealed_values(State &state, SealedOutput &sealed, int, const Probabilities &p, const u8 *stage, int lane) {
    constexpr int SPAN = VALUE_GROUP / 32 < TILES ? VALUE_GROUP / 32 : TILES; // tiles that share their scales
    const u8 *tiles = stage + KEY_TILES + TILES * KEY_TILE_BYTES;
#pragma unroll
    for (int t0 = 0; t0 < TILES; t0 += SPAN) {
//@ if VALUE_META8 == 1 then
        const ChannelPairs pairs(tiles, t0, sealed.exponents);
//@ else
        const ChannelPairs pairs(tiles, t0);
//@ end
        uint4 w[2 * SPAN];
        float total[1][4];
        clear(total);
#pragma unroll
        for (int m = 0; m < 2 * SPAN; m++) {
            const uint4 &from = p[2 * t0 + m];
            mma_half(total[0], from.x, from.y, from.z, from.w, HALF_ONES, HALF_ONES);
            w[m] = make_uint4(half2_multiply(from.x, 0x4c004c00u), half2_multiply(from.y, 0x4c004c00u), from.z, from.w); // + 8 meet codes times 16
        }
        const float sum0 = total[0][0], sum1 = total[0][2];
        state.sum0 += sum0, state.sum1 += sum1;
#pragma unroll
        for (int plane = 0; plane < VALUE_LAYERS; plane++) {
            const float weight = (float)(1 << (2 * plane)) * 1048576.0f; // codes are subnormal halves, w 16 times p
#pragma unroll
            for (int i0 = 0; i0 < KD; i0 += 2) {
                float sum[4][4];
                clear(sum);
#pragma unroll
                for (int t = 0; t < SPAN; t++) {
                    Words<VALUE_WORDS> words(tiles + (t0 + t) * VALUE_TILE_BYTES + VALUE_META_BYTES, lane);
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        const u32 x = value_word(words, plane, i0 + i, i == 0);
                        mma_codes(sum, 2 * i, w[2 * t], x);
                        mma_codes(sum, 2 * i, w[2 * t + 1], x >> 8);
                    }
                }
#pragma unroll
                for (int n = 0; n < 4; n++)
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        const int channel = channel_of(i0 + n / 2, n % 2 * 8 + 2 * (lane & 3) + e);
                        const float scale = pairs.scale(channel) * (n % 2 ? weight * 0.25f : weight), zero = pairs.zero(channel); // codes times 4
                        float(&out)[4] = state.out[2 * i0 + n];
                        out[e] += sum[n][e] * scale, out[2 + e] += sum[n][2 + e] * scale;
                        if (plane == 0) out[e] += zero * sum0, out[2 + e] += zero * sum1;
                    }
            }
        }
    }
}
//@ else
// While sealed chunks are worked on, State::out is in units of 2^(exponent + 24 - W_EXPONENT), exponent that of the largest scale so far or
// LEAST_EXPONENT, odd ones in a quarter of that: what the products give, added up by the tensor cores. They cut off what does not fit an fp32
// sum, always towards zero, which would show in large sums of codes that sums of zeros nearly cancel. So codes of every other 16 tokens are
// counted from the largest code downwards: what State::out sums up is then about how far values are from the middle of their range.
constexpr float LARGEST_CODE = (1 << VALUE_BITS) - 1;
struct SealedOutput {
    float from0[VALUE_GROUPS], from1[VALUE_GROUPS]; // lanes of even c: p . zero; of odd c: p . scale of tokens that are counted downwards
//@ if VALUE_META8 == 1 then
    Exponents exponents; // of the page at hand
//@ end
};
__device__ __forceinline__ void start_sealed(State &state, SealedOutput &sealed, int exponent, int) {
    add_up(state);
#pragma unroll
    for (int v = 0; v < VALUE_GROUPS; v++) sealed.from0[v] = sealed.from1[v] = 0;
    const float f = power_of_two(W_EXPONENT - 24 - exponent);
#pragma unroll
    for (int n = 0; n < 2 * KD; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) state.out[n][e] *= n % 2 ? 4 * f : f;
}

// Adds the values of a chunk.
__device__ __forceinline__ void add_sealed_values(State &state, SealedOutput &sealed, int exponent, const Probabilities &p, const u8 *stage, int lane) {
    constexpr int COUNT = VALUE_GROUP / 16;
    const u8 *tiles = stage + KEY_TILES + TILES * KEY_TILE_BYTES;
    const bool odd = lane & 4; // columns of sums: odd ones of ones, 0 and 4 of zeros, 2 and 6 of scales
    const u32 pick = lane & 8 ? 0x5410 : 0x7632;
    const float upwards = lane & 1 ? 0 : 1; // whether tokens that are counted upwards count for SealedOutput
    const float unit = power_of_two(W_EXPONENT - exponent);
    const u32 unit0 = pack_half(unit, unit), unit1 = pack_half(unit * 0.0625f, unit * 0.0625f); // tokens 2 c + 8 meet codes times 16
#pragma unroll
    for (int v = 0; v < VALUE_GROUPS; v++) {
        float total[2][4];
        clear(total);
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            const TokenPairs pairs = token_pairs(tiles + t * VALUE_TILE_BYTES, v, lane
//@ if VALUE_META8 == 1 then
                                                 , sealed.exponents
//@ end
            );
            uint4 w[2];
#pragma unroll
            for (int m = 0; m < 2; m++) {
                const uint4 &from = p[2 * t + m];
                const u32 x0 = pairs.at(2 * m, 0), x1 = pairs.at(2 * m + 1, 0), y0 = pairs.at(2 * m, 1), y1 = pairs.at(2 * m + 1, 1);
                const u32 scale0 = half2_multiply(__byte_perm(x0, y0, 0x5410), m ? half2_negate(unit0) : unit0);
                const u32 scale1 = half2_multiply(__byte_perm(x1, y1, 0x5410), m ? half2_negate(unit1) : unit1);
                mma_half(total[m], from.x, from.y, from.z, from.w, odd ? HALF_ONES : __byte_perm(x0, y0, pick),
                         odd ? HALF_ONES : __byte_perm(x1, y1, pick));
                w[m] = make_uint4(half2_multiply(from.x, scale0), half2_multiply(from.y, scale0), half2_multiply(from.z, scale1),
                                  half2_multiply(from.w, scale1));
            }
            Words<VALUE_WORDS> words(tiles + t * VALUE_TILE_BYTES + VALUE_META_BYTES, lane);
#pragma unroll
//@ if VALUE_BITS % 2 == 1 then
            for (int plane = 0; plane < VALUE_LAYERS; plane++) {
//@ else
            for (int plane = 0; plane < VALUE_PLANES; plane++) {
//@ end
                if (plane > 0)
#pragma unroll
                    for (int m = 0; m < 2; m++)
                        w[m] = make_uint4(half2_multiply(w[m].x, 0x44004400u), half2_multiply(w[m].y, 0x44004400u), // times 4
                                          half2_multiply(w[m].z, 0x44004400u), half2_multiply(w[m].w, 0x44004400u));
#pragma unroll
                for (int i = 0; i < COUNT; i++) {
//@ if VALUE_BITS % 2 == 1 then
                    const u32 x = value_word(words, plane, v * COUNT + i, i == 0), y = ~(x >> 8) & (plane < VALUE_PLANES ? ~0u : 0x55555555u);
//@ else
                    const u32 x = words.get(plane * KD + v * COUNT + i, i == 0), y = ~(x >> 8);
//@ end
                    mma_codes(state.out, 2 * (v * COUNT + i), w[0], x);
                    mma_codes(state.out, 2 * (v * COUNT + i), w[1], y);
                }
            }
        }
        sealed.from0[v] += total[0][0] * upwards + total[1][0], sealed.from1[v] += total[0][2] * upwards + total[1][2];
        if (v == 0) state.sum0 += total[0][1] + total[1][1], state.sum1 += total[0][3] + total[1][3];
    }
}

// state.out in true units.
__device__ __forceinline__ void finish_sealed(State &state, const SealedOutput &sealed, int exponent, int lane) {
    const float f = power_of_two(exponent + 24 - W_EXPONENT), times = lane & 1 ? LARGEST_CODE : 1;
#pragma unroll
    for (int v = 0; v < VALUE_GROUPS; v++) {
        float from0 = sealed.from0[v] * times, from1 = sealed.from1[v] * times;
        from0 += __shfl_xor_sync(~0u, from0, 1), from1 += __shfl_xor_sync(~0u, from1, 1);
#pragma unroll
        for (int n = v * VALUE_GROUP / 8; n < (v + 1) * VALUE_GROUP / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) state.out[n][e] = state.out[n][e] * (n % 2 ? f * 0.25f : f) + (e / 2 ? from1 : from0);
    }
}
//@ end
//@ if VALUE_ROTATION > 0 then

// State::out times the matrix, or its Hadamard transform, which is its own inverse.
__device__ __forceinline__ void rotate_output(float (&out)[2 * KD][4], const u8 *matrix, int lane) {
//@ if VALUE_ROTATION == 1 then
#pragma unroll
    for (int h = 0; h < 2; h++) { // of a channel's bits 0, 1, 2, 5 .. are a register's number, bits 3 and 4 the lane's c
        float x[4 * KD];
#pragma unroll
        for (int n = 0; n < 4 * KD; n++) x[n] = out[n / 2][2 * h + n % 2];
        hadamard(x, lane, 3);
#pragma unroll
        for (int n = 0; n < 4 * KD; n++) out[n / 2][2 * h + n % 2] = x[n] * HADAMARD_SHARE;
    }
//@ else
    float largest = 0;
#pragma unroll
    for (int n = 0; n < 2 * KD; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) largest = fmaxf(largest, fabsf(out[n][e]));
#pragma unroll
    for (int x = 1; x < 32; x *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, x));
    const int exponent = min(max(ceil_exponent(largest), -100), 100);
    const float down = power_of_two(8 - exponent), up = power_of_two(exponent - 8);
    uint4 high[KD], low[KD]; // a pair of halves each, exact to 2^-22
#pragma unroll
    for (int k = 0; k < KD; k++) {
        u32 first[4], second[4];
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const float x = out[2 * k + r / 2][r % 2 * 2] * down, y = out[2 * k + r / 2][r % 2 * 2 + 1] * down;
            first[r] = pack_half(x, y);
            second[r] = pack_half(x - half_to_float((u16)first[r]), y - half_to_float((u16)(first[r] >> 16)));
        }
        high[k] = make_uint4(first[0], first[1], first[2], first[3]), low[k] = make_uint4(second[0], second[1], second[2], second[3]);
    }
#pragma unroll
    for (int n = 0; n < 2 * KD; n++) {
        const u16 *row = (const u16 *)matrix + channel_of(n / 2, n % 2 * 8 + (lane >> 2)) * D + (lane & 3) * 8;
        float sum[4] = {0, 0, 0, 0};
#pragma unroll
        for (int k = 0; k < KD; k++) {
            const uint4 m = *(const uint4 *)(row + k / 2 * 32);
            const u32 b0 = k % 2 ? m.z : m.x, b1 = k % 2 ? m.w : m.y;
            mma_half(sum, high[k].x, high[k].y, high[k].z, high[k].w, b0, b1);
            mma_half(sum, low[k].x, low[k].y, low[k].z, low[k].w, b0, b1);
        }
#pragma unroll
        for (int e = 0; e < 4; e++) out[n][e] = sum[e] * up;
    }
//@ end
}
//@ end

// ---- exact tokens ----

// How far logits are below the limit, of 16 exact keys from `first` on, of which this lane holds rows g (x) and g + 8 (y); tokens from
// `end` on do not exist.
__device__ __forceinline__ void score_exact(float (&s)[2][4], const Query &query, const State &state, const uint4 (&x)[D / 32],
                                            const uint4 (&y)[D / 32], int first, int end, int lane) {
    clear(s);
#pragma unroll
    for (int k = 0; k < D / 32; k++) {
        const uint4 q = query.elements(2 * k), next = query.elements(2 * k + 1);
        mma_element(s[0], q.x, q.y, q.z, q.w, x[k].x, x[k].y);
        mma_element(s[1], q.x, q.y, q.z, q.w, y[k].x, y[k].y);
        mma_element(s[0], next.x, next.y, next.z, next.w, x[k].z, x[k].w);
        mma_element(s[1], next.x, next.y, next.z, next.w, y[k].z, y[k].w);
    }
#pragma unroll
    for (int j = 0; j < 2; j++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            s[j][e] = first + 8 * j + 2 * (lane & 3) + e % 2 < end ? (e / 2 ? state.max1 : state.max0) - s[j][e] * query.scale : infinity();
}

__device__ __forceinline__ void exact_probabilities(State &state, float (&s)[2][4], bool first) {
    float r0, r1;
    if (__any_sync(~0u, first || above_limit(s))) raise_limit(state, s, first, r0, r1);
#pragma unroll
    for (int j = 0; j < 2; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) s[j][e] = exp2_fast(-s[j][e]);
}

__device__ __forceinline__ void add_exact_values(State &state, const float (&p)[2][4], const uint4 (&x)[D / 32],
                                                 const uint4 (&y)[D / 32], int) {
    const u32 a0 = pack_element(p[0][0], p[0][1]), a1 = pack_element(p[0][2], p[0][3]);
    const u32 a2 = pack_element(p[1][0], p[1][1]), a3 = pack_element(p[1][2], p[1][3]);
    state.sum0 += p[0][0] + p[0][1] + p[1][0] + p[1][1], state.sum1 += p[0][2] + p[0][3] + p[1][2] + p[1][3];
#pragma unroll
    for (int i = 0; i < KD; i++) {
        const uint4 &u = x[i / 2], &v = y[i / 2];
        mma_element(state.out[2 * i], a0, a1, a2, a3, transpose8(i & 1 ? u.z : u.x), transpose8(i & 1 ? v.z : v.x));
        mma_element(state.out[2 * i + 1], a0, a1, a2, a3, transpose8(i & 1 ? u.w : u.y), transpose8(i & 1 ? v.w : v.y));
    }
}

// ---- chunks and results ----

// A chunk's probabilities; keys_done() once its keys are no longer needed. `tile`: the chunk's first of its page.
template <class Done>
__device__ __forceinline__ void chunk_probabilities(Probabilities &p, const Query &query, KeyOperand &operand, State &state, SealedOutput &sealed,
                                                    bool &fresh, const u8 *stage, int tile, int lane, const Done &keys_done) {
    float s[4 * TILES][4];
//@ if KEY_BITS < 16 and KEY_ALONG == 0 then
    constexpr int SPAN = KEY_GROUP / 32 < TILES ? KEY_GROUP / 32 : TILES; // tiles that share their scales
//@ else
    constexpr int SPAN = TILES;
//@ end
#pragma unroll
    for (int t = 0; t < TILES; t += SPAN)
        score_tiles<SPAN, 2>(s, 4 * t, query, operand, state, stage, (tile + t) * 32 / KEY_GROUP, stage + KEY_TILES + t * KEY_TILE_BYTES, 0, lane);
    keys_done();
    if (__any_sync(~0u, fresh || above_limit(s))) {
        float r0, r1;
        raise_limit(state, s, fresh, r0, r1);
//@ if VALUE_BITS < 16 and VALUE_ALONG == 0 then
#pragma unroll
        for (int v = 0; v < VALUE_GROUPS; v++) sealed.from0[v] *= r0, sealed.from1[v] *= r1;
//@ end
    }
    fresh = false;
#pragma unroll
    for (int n = 0; n < 2 * TILES; n++) {
        float x[8];
#pragma unroll
        for (int e = 0; e < 8; e++) x[e] = exp2_fast(-s[2 * n + e / 4][e % 4]);
//@ if VALUE_BITS == 16 then
        state.sum0 += x[0] + x[1] + x[4] + x[5], state.sum1 += x[2] + x[3] + x[6] + x[7];
        p[n] = make_uint4(pack_element(x[0], x[1]), pack_element(x[2], x[3]), pack_element(x[4], x[5]), pack_element(x[6], x[7]));
//@ else
        p[n] = make_uint4(pack_half(x[0], x[1]), pack_half(x[2], x[3]), pack_half(x[4], x[5]), pack_half(x[6], x[7]));
//@ end
    }
}

// The warp's results, [COLUMNS, OUT_STRIDE], and [COLUMNS] maximum and sum.
__device__ __forceinline__ void store_partial(const State &state, float *outs, float2 *stats, int columns, int lane) {
    const int c = lane & 3;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int head = 8 * h + (lane >> 2);
        if (head < columns) {
#pragma unroll
            for (int n = 0; n < 2 * KD; n += 2) // four channels from channel_of(n / 2, 2 c) on
                *(float4 *)(outs + head * OUT_STRIDE + n / 4 * 32 + c * 8 + n % 4 * 2) =
                    make_float4(state.out[n][2 * h], state.out[n][2 * h + 1], state.out[n + 1][2 * h], state.out[n + 1][2 * h + 1]);
            if (c == 0) stats[head] = h ? make_float2(state.max1, state.sum1) : make_float2(state.max0, state.sum0);
        }
    }
}
