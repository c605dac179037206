//@ local key_by_token = KEY_BITS < 16 and KEY_ALONG == 1
//@ local key_by_channel = KEY_BITS < 16 and KEY_ALONG == 0
//@ local key_halves = key_by_channel and KEY_BITS % 2 + KEY_BOOST_BITS % 2 > 0 -- 1-bit planes
//@ local value_by_channel = VALUE_BITS < 16 and VALUE_ALONG == 1
//@ local value_halves = VALUE_BITS < 16 and VALUE_BITS % 2 == 1
//@ local passes = -(-GROUP_HEADS // (HEAD_DIM <= 128 and 16 or 8)) -- as kg_attend_passes has them
//@ local wide = key_by_channel and -(-GROUP_HEADS // passes) > 8
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
// A product has 8 columns. Sealed keys meet q' = q * scale as two signed bytes (m16n8k32). Where a pass has at most 4 heads (PAIR),
// columns 4..7 carry the low bytes of columns 0..3 in q k^T, and other tokens of the same heads in the output, so that no column is
// idle. Otherwise a pass takes one or two groups of 8 heads (HALVES) with the same codes, and high and low bytes apart. Of two groups
// q' is in halves: to split that of 16 heads into bytes and to join what comes of them takes longer than the codes' other form.
constexpr int D = HEAD_DIM;
constexpr int KD = D / 16;                 // groups of 16 channels
constexpr bool PAIR = COLUMNS <= 4;
constexpr int HALVES = (COLUMNS + 7) / 8;  // products of 8 columns
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
constexpr int EXTRA_WORDS = (KEY_EXTRA * KEY_BOOSTED + 15) / 16;               // further 2-bit planes of the boosted ones, then a 1-bit one
constexpr int EXTRA_TILES = (EXTRA_WORDS + 1) / 2 * 2;                         // of q', bytes of two words side by side
constexpr int BOOST_TILES = EXTRA_TILES + (KEY_BOOST_BITS - KEY_BITS) % 2 * ((KEY_BOOSTED + 31) / 32 * 2);
//@ elseif not key_by_token then
constexpr int BOOST_TILES = KEY_BITS == 16 ? 0 : KEY_ROWS / 16 - KEY_PLANES * KD, EXTRA_TILES = BOOST_TILES + BOOST_TILES % 2;
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
constexpr bool VALUES_AHEAD = D * HALVES <= 128; // exact values are loaded with their keys, where there are registers for both
constexpr int BARRIER_BYTES = (WARPS * STAGES * 16 + 127) / 128 * 128; // a stage has one for keys and one for values
constexpr int OUT_STRIDE = D + 4;          // floats of a warp's result, off the bank stride
constexpr float LOG2E = 1.4426950408889634f;
constexpr int HELD = HALVES == 1 || TILES == 1 ? TILES : 2; // tiles whose logits, and then sums of whose values, are held at once: registers
constexpr int GROUPS = PAIR ? HELD : 2 * HELD; // of 16 tokens whose logits a lane holds
constexpr int HEADROOM = 2; // log2 of the largest probability, relative to what State says
// q' is at most 2^Q_EXPONENT, so that its multiples by the weights of higher planes stay below 65504; products with codes that are
// subnormal halves are off by 2^-24. Probabilities likewise.
//@ if key_halves then
constexpr int Q_EXPONENT = 8;
//@ else
constexpr int Q_EXPONENT = 9;
//@ end
//@ if not key_by_token then
//@ if wide then
constexpr int EXTRA_WEIGHT = 1;
constexpr int KEY_STEPS = KD + BOOST_TILES;  // of 16 rows of q'
constexpr int SCALED_BYTES = KEY_STEPS * 512; // q' of a warp: no registers could hold it
//@ else
constexpr int DIGIT = 254; // the low byte of q' is in units of 1 / DIGIT of the high byte, so that halves of these are at most 127
constexpr int EXTRA_WEIGHT = 4; // of codes of further planes beside those of all channels: what their q' need not carry
constexpr int KEY_PAIRS = (KD + BOOST_TILES + 1) / 2; // of words that meet q' as bytes; planes of all channels meet the same q'
//@ end
//@ end
//@ if not wide then
constexpr int SCALED_BYTES = 0;
//@ end
constexpr int QUERY_BYTES = PAIR ? (D * COLUMNS * 2 + 127) / 128 * 128 : D * HALVES * 32 + WARPS * SCALED_BYTES;
//@ if value_by_channel then
constexpr int P_EXPONENT = 15 - HEADROOM;
//@ elseif value_halves then
constexpr int P_EXPONENT = 17 - HEADROOM - 2 * VALUE_LAYERS;
//@ else
constexpr int P_EXPONENT = VALUE_BITS == 16 ? 0 : 17 - HEADROOM - VALUE_BITS;
//@ end
static_assert(PAGE_TILES % TILES == 0, "chunks divide a page");
static_assert(QUERY_BYTES + BARRIER_BYTES + WARPS * STAGES * STAGE_BYTES <= SHARED_BYTES, "stages fit");
static_assert(QUERY_BYTES + BARRIER_BYTES + WARPS * COLUMNS * (OUT_STRIDE + 2) * 4 <= SHARED_BYTES, "partial results fit");

// What a lane knows of the query: column g of each product, channels as channel_of orders them.
struct Query {
    u32 pair[HALVES][2 * KD];            // element pairs in DTYPE: [2 k + j] channels channel_of(k, 2 c + 8 j) and the next
    u32 half[PAIR ? 2 * KD : 1];         // the same in fp16, as stored() has them, times 2^(Q_EXPONENT - e) with every |q| of the column's head <= 2^e
    const uint4 *halves;                 // unless PAIR: that, shared [D / 32, HALVES, 32 lanes]
    const u16 *all;                      // that of all channels, shared [D, COLUMNS]; unless PAIR [D, 8, HALVES]
    float back[HALVES];                  // scale * log2(e) * 2^(e - Q_EXPONENT) of the column's head
    float scale;                         // scale * log2(e)

    // Of product h, halves 0, 2, 1 and 3 of channels 32 k + 8 c and so on.
    __device__ __forceinline__ uint4 stored(int h, int k, int lane) const {
        if constexpr (PAIR) return make_uint4(half[4 * k], half[4 * k + 1], half[4 * k + 2], half[4 * k + 3]);
        else return halves[(k * HALVES + h) * 32 + lane];
    }
    // The same in their order.
    __device__ __forceinline__ uint4 four(int h, int k, int lane) const {
        const uint4 q = stored(h, k, lane);
        return make_uint4(q.x, q.z, q.y, q.w);
    }
};

// Running softmax of a warp, per product. Heads of columns 2 c (0) and 2 c + 1 (1); rows of `out` are channels channel_of(i, g + 8 half).
// What probabilities are relative to is the largest logit when one was last above it by more than HEADROOM, so that it seldom grows.
struct State {
    float out[KD][4];
    float max0, max1;   // that logit, in units of log2; 0 before the first
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
// unrolling, `first` true for the first word read and wherever the order starts anew.
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

// One word's codes as subnormal halves, times the weights 1, 4, 16, 64 of their bit positions, times product h's b[h][at], b[h][at + 1];
// `word` is shifted by 8 for the second group of 16.
template <int count, int most>
__device__ __forceinline__ void mma_codes(float (&c)[HALVES][count][4], int to, u32 word, const u32 (&b)[HALVES][most], int at) {
#pragma unroll
    for (int h = 0; h < HALVES; h++)
        mma_half(c[h][to], word & 0x00030003u, word & 0x000c000cu, word & 0x00300030u, word & 0x00c000c0u, b[h][at], b[h][at + 1]);
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
//@ if wide then
    uint4 *stored;                                       // the warp's [KEY_STEPS, 32 lanes], shared: halves of rows 2 c and 2 c + 8 of each product
//@ else
    // Bytes, of words 2 i and 2 i + 1: x, y high and z, w low ones of rows 2 c and 2 c + 8; PAIR: x, y alone, low ones in columns 4..7.
    uint4 digits[KEY_PAIRS];
//@ end
    float factor0[HALVES], factor1[HALVES];              // of the products with codes, to logits in units of log2, columns 2 c and 2 c + 1
    float zero0[HALVES], zero1[HALVES];                  // q . zero in units of log2, and what rounding q' left over

    // The boosted channels' rows 2 c + 8 j and the next of their k-th tile: q of the lane's columns, scales, and the weights of their
    // planes, less what the codes carry.
    __device__ __forceinline__ static void gather(u32 (&q)[HALVES], u32 &scale, u32 &weight, const Query &query, const u8 *block,
                                                  const u16 *scales, int k, int j, int lane) {
        const int g = lane >> 2, head = g & HEAD_MASK;
        u32 both[2], two[2];
        float times[2];
#pragma unroll
        for (int e = 0; e < 2; e++) {
//@ if key_halves then
            const bool half = k >= EXTRA_TILES;
            const int row = (half ? k - EXTRA_TILES : k) * 16 + 2 * (lane & 3) + 8 * j + e, plane = half ? KEY_EXTRA : row / BOOST_LIST;
            const bool real = row < (half ? KEY_BOOSTED : KEY_EXTRA * KEY_BOOSTED) && head < COLUMNS;
            const int channel = real ? block[KEY_INDEX + (half ? row : row - plane * BOOST_LIST)] : 0;
            times[e] = real ? (float)(1 << (KEY_BITS + 2 * plane)) / EXTRA_WEIGHT : 0;
//@ else
            const int row = k * 16 + 2 * (lane & 3) + 8 * j + e, plane = row / BOOST_LIST;
            const bool real = row < KEY_EXTRA * KEY_BOOSTED && head < COLUMNS;
            const int channel = real ? block[KEY_INDEX + row - plane * BOOST_LIST] : 0;
            times[e] = real ? (float)(1 << (KEY_BITS + 2 * (KEY_EXTRA > 1 ? plane : 0))) / EXTRA_WEIGHT : 0;
//@ end
            if constexpr (HALVES == 2) both[e] = real ? *(const u32 *)(query.all + (channel * 8 + g) * 2) : 0;
            else both[e] = real ? query.all[channel * (PAIR ? COLUMNS : 8) + head] : 0;
//@ if KEY_META8 == 1 then
            two[e] = float_to_half(meta8_value(((const u8 *)scales)[channel], exponents_of(block, true).scale));
//@ else
            two[e] = scales[channel];
//@ end
        }
#pragma unroll
        for (int h = 0; h < HALVES; h++) q[h] = __byte_perm(both[0], both[1], h ? 0x7632 : 0x5410);
        scale = two[0] | two[1] << 16, weight = pack_half(times[0], times[1]);
    }

//@ if wide then
//@ include "lib/keys_wide.cuh"
//@ else
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
        u32 scale[4 * KEY_PAIRS], boosted[HALVES][BOOST ? BOOST : 1]; // scales at most 1, times the weights of higher planes; q
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
                u32 x[HALVES], weight;
                gather(x, scale[2 * KD + k], weight, query, block, scales, k / 2, k & 1, lane);
                scale[2 * KD + k] = half2_multiply(half2_multiply(scale[2 * KD + k], units), weight);
#pragma unroll
                for (int h = 0; h < HALVES; h++) boosted[h][k] = x[h];
            } else {
                scale[2 * KD + k] = boosted[0][k] = boosted[HALVES - 1][k] = 0;
            }
        }
#pragma unroll
        for (int h = 0; h < HALVES; h++) {
            auto words = [&](u32(&q)[4], int i) { // q of words 4 i to 4 i + 3; from shared memory twice rather than kept
                if (i < KD / 2) {
                    const uint4 x = query.four(h, i, lane);
                    q[0] = x.x, q[1] = x.y, q[2] = x.z, q[3] = x.w;
                } else {
#pragma unroll
                    for (int e = 0; e < 4; e++) q[e] = boosted[h][4 * i + e - 2 * KD];
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
            factor0[h] = __shfl_sync(~0u, back, from), factor1[h] = __shfl_sync(~0u, back, from + 4);
            zero0[h] = __shfl_sync(~0u, share, from), zero1[h] = __shfl_sync(~0u, share, from + 4);
        }
    }

//@ end
    __device__ __forceinline__ void build(const Query &query, const u8 *block, int group, int lane) {
//@ if KEY_META8 == 1 then
        const u16 *scales = (const u16 *)(block + KEY_META) + group * D; // bytes
//@ else
        const u16 *scales = (const u16 *)(block + KEY_META) + group * 2 * D, *zeros = scales + D;
//@ end
        float front[HALVES][4], back[HALVES][4];
#pragma unroll
        for (int h = 0; h < HALVES; h++)
#pragma unroll
            for (int i = 0; i < 4; i++) front[h][i] = back[h][i] = 0;
#pragma unroll
        for (int k = 0; k < D / 32; k++) {
//@ if KEY_META8 == 1 then
            const uint4 z = halves_of_bytes((const u8 *)scales + D + k * 32 + (lane & 3) * 8, exponents_of(block, true).zero);
//@ else
            const uint4 z = *(const uint4 *)(zeros + k * 32 + (lane & 3) * 8);
//@ end
#pragma unroll
            for (int h = 0; h < HALVES; h++) { // rows g of `front` and g + 8 of `back` count
                const uint4 q = query.stored(h, k, lane);
                mma_half(front[h], z.x, z.y, z.z, z.w, q.x, q.y);
                mma_half(back[h], z.x, z.y, z.z, z.w, q.z, q.w);
            }
        }
//@ if wide then
        build_halves(query, block, scales, lane);
//@ else
        build_digits(query, block, scales, lane);
//@ end
#pragma unroll
        for (int h = 0; h < HALVES; h++) {
            const int from = 8 * (lane & 3 & (HEAD_MASK >> 1)); // lane of column 2 c's head
            const float back0 = __shfl_sync(~0u, query.back[h], from), back1 = __shfl_sync(~0u, query.back[h], from + 4);
            factor0[h] *= back0, factor1[h] *= back1;
            zero0[h] = (front[h][0] + back[h][2] + zero0[h]) * back0, zero1[h] = (front[h][1] + back[h][3] + zero1[h]) * back1;
        }
    }
};

//@ if not wide then
constexpr int DIGITS = PAIR ? 1 : 2; // products of a group of 8 columns: high and low bytes apart, or side by side in columns 0..3 and 4..7

// Products of `groups` groups of 16 tokens of a key tile, from group m0 on, with the high and the low bytes of q', exact. Rows are
// tokens g (elements 0, 1) and g + 8 (2, 3). Codes are bytes too: two words' of a group side by side.
template <int groups>
__device__ __forceinline__ void multiply_codes(int (&sum)[groups][HALVES][DIGITS][4], const KeyOperand &operand, const u8 *tile, int m0, int lane) {
    // Steps, of two words or of one that holds a 1-bit plane of two, by the higher plane first: each is 4 times the next.
    constexpr int PLANE = KD / 2, HALF = KEY_BITS % 2 * PLANE, BASE = HALF + KEY_PLANES * PLANE;
    constexpr int EXTRA = (KEY_EXTRA * KEY_BOOSTED + 15) / 16, FURTHER = BASE + (EXTRA + 1) / 2; // boosted channels' words, steps
    constexpr int STEPS = FURTHER + (KEY_BOOST_BITS - KEY_BITS) % 2 * ((KEY_BOOSTED + 31) / 32);
    Words<KEY_WORDS> words(tile, lane);
#pragma unroll
    for (int m = 0; m < groups; m++)
#pragma unroll
        for (int h = 0; h < HALVES; h++)
#pragma unroll
            for (int d = 0; d < DIGITS; d++)
#pragma unroll
                for (int i = 0; i < 4; i++) sum[m][h][d][i] = 0;
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
#pragma unroll
            for (int h = 0; h < HALVES; h++) {
                const uint4 b = operand.digits[row];
#pragma unroll
                for (int d = 0; d < DIGITS; d++) {
                    if (base && i >= PLANE && i % PLANE == 0)
#pragma unroll
                        for (int e = 0; e < 4; e++) sum[m][h][d][e] *= 4;
                    mma_bytes(sum[m][h][d], front & first, front & second, next & first, next & second,
                              d ? b.z : b.x, d ? b.w : b.y);
                }
            }
        }
    }
}

// a u + b v; codes of several planes may reach past 32 bits.
__device__ __forceinline__ float join_digits(int a, int u, int b, int v) {
    return KEY_BITS > 2 ? (float)a * (float)u + (float)b * (float)v : (float)(a * u + b * v);
}

//@ end
// Logits in units of log2, relative to the running maximum, of one group, product h.
__device__ __forceinline__ void scale_logits(float (&s)[4], const Query &query, const KeyOperand &operand, const State &state, int h) {
    if constexpr (KEY_BITS == 16) {
        s[0] = s[0] * query.scale - state.max0, s[1] = s[1] * query.scale - state.max1;
        s[2] = s[2] * query.scale - state.max0, s[3] = s[3] * query.scale - state.max1;
    } else {
        const float f0 = operand.factor0[h], f1 = operand.factor1[h], zero0 = operand.zero0[h] - state.max0, zero1 = operand.zero1[h] - state.max1;
        s[0] = s[0] * f0 + zero0, s[1] = s[1] * f1 + zero1;
        s[2] = s[2] * (f0 * 0.25f) + zero0, s[3] = s[3] * (f1 * 0.25f) + zero1; // rows g + 8 meet codes times 4
    }
}

//@ if wide then
// Logits of `groups` groups of 16 tokens of a sealed tile, from m0 on: s[h][at ...].
template <int groups, int most>
__device__ __forceinline__ void score_codes(float (&s)[HALVES][most][4], int at, const Query &query, const KeyOperand &operand,
                                            const State (&state)[HALVES], const u8 *tile, int m0, int lane) {
#pragma unroll
    for (int h = 0; h < HALVES; h++)
#pragma unroll
        for (int m = 0; m < groups; m++)
#pragma unroll
            for (int e = 0; e < 4; e++) s[h][at + m][e] = 0;
    Words<KEY_WORDS> words(tile, lane);
    // By the higher plane of all channels first: each is 4 times the next. The further planes of the boosted ones come last.
    constexpr int LAST = KEY_BITS % 2 * KD, BASE = LAST + KEY_PLANES * KD; // steps of a 1-bit plane, two to a word; of all planes
//@ if key_halves then
    constexpr int EXTRA = EXTRA_WORDS;
//@ else
    constexpr int EXTRA = BOOST_TILES;
//@ end
    constexpr int FURTHER = KEY_PLANES * KD + LAST / 2; // words before those of the boosted channels
#pragma unroll
    for (int i = 0; i < BASE + BOOST_TILES; i++) {
        const bool base = i < BASE;
        const int k = base ? i % KD : KD + i - BASE, extra = i - BASE; // of q'
        u32 x;
        if (i < LAST) {
            x = words.get(KEY_PLANES * KD + i / 2, i == 0) >> i % 2 & 0x55555555u;
        } else if (base) {
            x = words.get((KEY_PLANES - 1 - (i - LAST) / KD) * KD + i % KD, i % KD == 0);
        } else if (extra < EXTRA) {
            x = words.get(FURTHER + extra, extra == 0);
//@ if key_halves then
        } else if (extra < EXTRA_TILES) {
            continue; // no such rows
        } else {
            x = words.get(FURTHER + EXTRA + (extra - EXTRA_TILES) / 2, extra == EXTRA_TILES) >> (extra - EXTRA_TILES) % 2 & 0x55555555u;
//@ end
        }
        const uint4 two = operand.stored[k * 32 + lane];
        const u32 b[HALVES][2] = {{two.x, two.y}, {two.z, two.w}};
#pragma unroll
        for (int m = 0; m < groups; m++) {
            if (base && i >= KD && i % KD == 0)
#pragma unroll
                for (int h = 0; h < HALVES; h++)
#pragma unroll
                    for (int e = 0; e < 4; e++) s[h][at + m][e] *= 4;
            mma_codes(s, at + m, m0 + m ? x >> 8 : x, b, 0);
        }
    }
#pragma unroll
    for (int h = 0; h < HALVES; h++)
#pragma unroll
        for (int m = 0; m < groups; m++) scale_logits(s[h][at + m], query, operand, state[h], h);
}

// Logits of one group of a sealed tile, in all columns.
__device__ __forceinline__ void score_group(float (&s)[HALVES][1][4], const Query &query, const KeyOperand &operand,
                                            const State (&state)[HALVES], const u8 *tile, int m, int lane) {
    score_codes<1>(s, 0, query, operand, state, tile, m, lane);
}

// Logits of the t-th sealed tile of a chunk.
__device__ __forceinline__ void score_sealed(float (&s)[HALVES][GROUPS][4], int t, const Query &query, const KeyOperand &operand,
                                             const State (&state)[HALVES], const u8 *tile, int lane) {
    score_codes<2>(s, 2 * t, query, operand, state, tile, 0, lane);
}

//@ else
// Raw products of `groups` groups of an exact key tile, from m0 on.
template <int groups, int most>
__device__ __forceinline__ void score_elements(float (&s)[HALVES][most][4], int at, const Query &query, const u8 *tile, int m0, int lane) {
    const uint4 *a = (const uint4 *)tile + lane;
#pragma unroll
    for (int m = 0; m < groups; m++) {
#pragma unroll
        for (int h = 0; h < HALVES; h++)
#pragma unroll
            for (int i = 0; i < 4; i++) s[h][at + m][i] = 0;
#pragma unroll
        for (int k = 0; k < KD; k++) {
            const uint4 w = a[((m0 + m) * KD + k) * 32];
#pragma unroll
            for (int h = 0; h < HALVES; h++)
                mma_element(s[h][at + m], w.x, w.y, w.z, w.w, query.pair[h][2 * k], query.pair[h][2 * k + 1]);
        }
    }
}

// PAIR: weights of a lane's products, high ones in columns 0..3, and of those in the other columns of its heads.
__device__ __forceinline__ int own_digit(int lane) { return second_lane(lane) ? 1 : DIGIT; }
__device__ __forceinline__ int other_digit(int lane) { return second_lane(lane) ? DIGIT : 1; }

// Logits of one group of a sealed tile, in all columns.
__device__ __forceinline__ void score_group(float (&s)[HALVES][1][4], const Query &query, const KeyOperand &operand,
                                            const State (&state)[HALVES], const u8 *tile, int m, int lane) {
    if constexpr (KEY_BITS == 16) {
        score_elements<1>(s, 0, query, tile, m, lane);
    } else {
        int sum[1][HALVES][DIGITS][4];
        multiply_codes<1>(sum, operand, tile, m, lane);
#pragma unroll
        for (int h = 0; h < HALVES; h++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int mine = sum[0][h][0][i];
                if constexpr (PAIR) s[h][0][i] = join_digits(mine, own_digit(lane), __shfl_xor_sync(~0u, mine, 2), other_digit(lane));
                else s[h][0][i] = join_digits(mine, DIGIT, sum[0][h][DIGITS - 1][i], 1);
            }
    }
#pragma unroll
    for (int h = 0; h < HALVES; h++) scale_logits(s[h][0], query, operand, state[h], h);
}

// Logits of the t-th sealed tile of a chunk. PAIR: a lane of columns 0..3 gets tokens 0..15 of the tile, one of columns 4..7 the others,
// of the same heads.
__device__ __forceinline__ void score_sealed(float (&s)[HALVES][GROUPS][4], int t, const Query &query, const KeyOperand &operand,
                                             const State (&state)[HALVES], const u8 *tile, int lane) {
    constexpr int own = PAIR ? 1 : 2; // groups of a tile that a lane keeps
    const bool second = second_lane(lane);
    if constexpr (KEY_BITS == 16) {
        float both[HALVES][2][4];
        score_elements<2>(both, 0, query, tile, 0, lane);
#pragma unroll
        for (int h = 0; h < HALVES; h++)
#pragma unroll
            for (int m = 0; m < own; m++)
#pragma unroll
                for (int i = 0; i < 4; i++) s[h][own * t + m][i] = PAIR && second ? both[h][1][i] : both[h][m][i];
    } else {
        int sum[2][HALVES][DIGITS][4];
        multiply_codes<2>(sum, operand, tile, 0, lane);
#pragma unroll
        for (int h = 0; h < HALVES; h++)
#pragma unroll
            for (int m = 0; m < own; m++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int mine = sum[m][h][0][i];
                    if constexpr (PAIR) {
                        const int other = sum[1][h][0][i], got = __shfl_xor_sync(~0u, second ? mine : other, 2);
                        s[h][t][i] = join_digits(second ? other : mine, own_digit(lane), got, other_digit(lane));
                    } else {
                        s[h][2 * t + m][i] = join_digits(mine, DIGIT, sum[m][h][DIGITS - 1][i], 1);
                    }
                }
    }
#pragma unroll
    for (int h = 0; h < HALVES; h++)
#pragma unroll
        for (int m = 0; m < own; m++) scale_logits(s[h][own * t + m], query, operand, state[h], h);
}

//@ end
//@ end
// ---- softmax ----

// Turns `groups` groups of logits, relative to the running maximum, into probabilities. Where one is far above it, or none was before
// (`first`), the maximum is raised, what was summed before is scaled to it by r0 and r1, and the result is true.
template <int groups>
__device__ __forceinline__ bool softmax_update(State (&state)[HALVES], float (&s)[HALVES][groups][4], bool first, float (&r0)[HALVES], float (&r1)[HALVES]) {
    float top0[HALVES], top1[HALVES];
    bool above = first;
#pragma unroll
    for (int h = 0; h < HALVES; h++) {
        top0[h] = top1[h] = -infinity();
#pragma unroll
        for (int m = 0; m < groups; m++) {
            top0[h] = fmaxf(top0[h], fmaxf(s[h][m][0], s[h][m][2]));
            top1[h] = fmaxf(top1[h], fmaxf(s[h][m][1], s[h][m][3]));
        }
        above = above || fmaxf(top0[h], top1[h]) > HEADROOM;
    }
    const bool raise = __any_sync(~0u, above);
    if (raise)
#pragma unroll
        for (int h = 0; h < HALVES; h++) {
#pragma unroll
            for (int x = PAIR ? 2 : 4; x < 32; x <<= 1) {
                top0[h] = fmaxf(top0[h], __shfl_xor_sync(~0u, top0[h], x));
                top1[h] = fmaxf(top1[h], __shfl_xor_sync(~0u, top1[h], x));
            }
            State &of = state[h];
            const float max0 = first || top0[h] > HEADROOM ? of.max0 + top0[h] : of.max0, max1 = first || top1[h] > HEADROOM ? of.max1 + top1[h] : of.max1;
            const float by0 = max0 - of.max0, by1 = max1 - of.max1; // as rounded
            r0[h] = first ? 0 : exp2_fast(-by0), r1[h] = first ? 0 : exp2_fast(-by1);
            of.max0 = max0, of.max1 = max1;
            of.sum0 *= r0[h], of.sum1 *= r1[h];
#pragma unroll
            for (int i = 0; i < KD; i++) {
                of.out[i][0] *= r0[h], of.out[i][1] *= r1[h];
                of.out[i][2] *= r0[h], of.out[i][3] *= r1[h];
            }
#pragma unroll
            for (int m = 0; m < groups; m++) s[h][m][0] -= by0, s[h][m][1] -= by1, s[h][m][2] -= by0, s[h][m][3] -= by1;
        }
#pragma unroll
    for (int h = 0; h < HALVES; h++)
#pragma unroll
        for (int m = 0; m < groups; m++) {
            s[h][m][0] = exp2_fast(s[h][m][0]), s[h][m][1] = exp2_fast(s[h][m][1]);
            s[h][m][2] = exp2_fast(s[h][m][2]), s[h][m][3] = exp2_fast(s[h][m][3]);
            state[h].sum0 += s[h][m][0] + s[h][m][2], state[h].sum1 += s[h][m][1] + s[h][m][3];
        }
    return raise;
}

// ---- sealed values ----

//@ if not value_by_channel then
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
// Weights of a tile's tokens, as the B operand: probabilities times the scales of group v of their values. Adds zeros up.
__device__ __forceinline__ void weigh(u32 (&b)[HALVES][4 * HELD], int at, SealedOutput (&sealed)[HALVES], float unit, int v,
                                      const float (&p)[HALVES][GROUPS][4], int t, const u8 *tile, int lane) {
    constexpr int own = PAIR ? 1 : 2; // groups of a tile that a lane has
    // Pairs of tokens g, g + 8, g + 16, g + 24, or of this lane's two.
    u32 pair[2 * own];
//@ if VALUE_META8 == 1 then
    const u16 *pairs = (const u16 *)(tile + v * 64) + (lane >> 2) * 4 + (second_lane(lane) ? 2 : 0);
#pragma unroll
    for (int r = 0; r < 2 * own; r++) pair[r] = pair_of_bytes(pairs[r] & 0xff, pairs[r] >> 8, sealed[0].exponents);
//@ else
    const u32 *pairs = (const u32 *)(tile + v * 128) + (lane >> 2) * 4 + (second_lane(lane) ? 2 : 0);
    const uint2 front = *(const uint2 *)pairs;
    pair[0] = front.x, pair[1] = front.y;
    if constexpr (!PAIR) {
        const uint2 back = *(const uint2 *)(pairs + 2);
        pair[2] = back.x, pair[3] = back.y;
    }
//@ end
#pragma unroll
    for (int h = 0; h < HALVES; h++) {
        u32 packed[2 * own], spread[4];
#pragma unroll
        for (int r = 0; r < 2 * own; r++) {
            const int j = r & 1;
            const float(&from)[4] = p[h][own * t + r / 2];
            const float zero = half_to_float((u16)(pair[r] >> 16));
            const float scale = half_to_float((u16)pair[r]) * (j ? unit * 0.0625f : unit);
            sealed[h].zero0[v] += from[2 * j] * zero, sealed[h].zero1[v] += from[2 * j + 1] * zero;
            packed[r] = pack_half(from[2 * j] * scale, from[2 * j + 1] * scale);
        }
        spread_weights(spread, packed, lane);
#pragma unroll
        for (int r = 0; r < 4; r++) b[h][4 * at + r] = spread[r];
    }
}

// Adds the values of group v of HELD tiles. Their products are summed apart and then added: the tensor cores cut off what does not
// fit an fp32 sum, always towards zero, and over a long context that would show where codes and zeros nearly cancel.
__device__ __forceinline__ void add_weighed(State (&state)[HALVES], u32 (&b)[HALVES][4 * HELD], int v, const u8 *tiles, int lane) {
#pragma unroll
//@ if value_halves then
    for (int plane = 0; plane < VALUE_LAYERS; plane++) {
//@ else
    for (int plane = 0; plane < VALUE_PLANES; plane++) {
//@ end
        constexpr int step = 4; // words of a vector
#pragma unroll
        for (int i0 = 0; i0 < VALUE_GROUP / 16; i0 += step) {
            float sum[HALVES][step][4];
#pragma unroll
            for (int h = 0; h < HALVES; h++)
#pragma unroll
                for (int i = 0; i < step; i++)
#pragma unroll
                    for (int e = 0; e < 4; e++) sum[h][i][e] = 0;
#pragma unroll
            for (int t = 0; t < HELD; t++) {
                Words<VALUE_WORDS> words(tiles + t * VALUE_TILE_BYTES + VALUE_META_BYTES, lane);
#pragma unroll
                for (int i = 0; i < step; i++)
                    if (i0 + i < VALUE_GROUP / 16) {
//@ if value_halves then
                        const u32 x = value_word(words, plane, v * (VALUE_GROUP / 16) + i0 + i, i == 0);
//@ else
                        const u32 x = words.get(plane * KD + v * (VALUE_GROUP / 16) + i0 + i, i == 0);
//@ end
                        mma_codes(sum, i, x, b, 4 * t);
                        mma_codes(sum, i, x >> 8, b, 4 * t + 2);
                    }
            }
#pragma unroll
            for (int h = 0; h < HALVES; h++)
#pragma unroll
                for (int i = 0; i < step; i++)
                    if (i0 + i < VALUE_GROUP / 16)
#pragma unroll
                        for (int e = 0; e < 4; e++) state[h].out[v * (VALUE_GROUP / 16) + i0 + i][e] += sum[h][i][e];
        }
//@ if value_halves then
        if (plane + 1 < VALUE_LAYERS)
//@ else
        if (plane + 1 < VALUE_PLANES)
//@ end
#pragma unroll
            for (int h = 0; h < HALVES; h++)
#pragma unroll
                for (int r = 0; r < 4 * HELD; r++) b[h][r] = half2_multiply(b[h][r], 0x44004400u); // times 4
    }
}

// Adds the values of HELD tiles of a chunk, from `first` on.
__device__ __forceinline__ void add_sealed_values(State (&state)[HALVES], SealedOutput (&sealed)[HALVES], int exponent,
                                                  const float (&p)[HALVES][GROUPS][4], const u8 *stage, int first, int lane) {
    const u8 *tiles = stage + KEY_TILES + TILES * KEY_TILE_BYTES + first * VALUE_TILE_BYTES;
    if constexpr (VALUE_BITS == 16) {
        constexpr int own = PAIR ? 1 : 2; // groups of a tile that a lane has
        u32 b[HALVES][HELD][4];
#pragma unroll
        for (int t = 0; t < HELD; t++)
#pragma unroll
            for (int h = 0; h < HALVES; h++) {
                u32 packed[2 * own];
#pragma unroll
                for (int r = 0; r < 2 * own; r++) {
                    const float(&from)[4] = p[h][own * t + r / 2];
                    packed[r] = pack_element(from[2 * (r & 1)], from[2 * (r & 1) + 1]);
                }
                spread_weights(b[h][t], packed, lane);
            }
#pragma unroll
        for (int i = 0; i < KD; i++) {
            float sum[HALVES][4];
#pragma unroll
            for (int h = 0; h < HALVES; h++)
#pragma unroll
                for (int e = 0; e < 4; e++) sum[h][e] = 0;
#pragma unroll
            for (int m = 0; m < 2 * HELD; m++) {
                const uint4 w = ((const uint4 *)(tiles + m / 2 * VALUE_TILE_BYTES))[(i * 2 + m % 2) * 32 + lane];
#pragma unroll
                for (int h = 0; h < HALVES; h++) mma_element(sum[h], w.x, w.y, w.z, w.w, b[h][m / 2][m % 2 * 2], b[h][m / 2][m % 2 * 2 + 1]);
            }
#pragma unroll
            for (int h = 0; h < HALVES; h++)
#pragma unroll
                for (int e = 0; e < 4; e++) state[h].out[i][e] += sum[h][e];
        }
    } else {
        const float unit = power_of_two(P_EXPONENT - exponent);
#pragma unroll
        for (int v = 0; v < VALUE_GROUPS; v++) {
            u32 b[HALVES][4 * HELD];
#pragma unroll
            for (int t = 0; t < HELD; t++) weigh(b, t, sealed, unit, v, p, t, tiles + t * VALUE_TILE_BYTES, lane);
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

// Logits, relative to the running maximum, of 16 exact keys from `first` on, whose rows x (token g) and y (token g + 8) this lane holds; tokens from `end` on do not
// exist.
__device__ __forceinline__ void score_exact(float (&s)[4], const Query &query, int h, const State &state, const uint4 (&x)[D / 32],
                                            const uint4 (&y)[D / 32], int token, int end) {
#pragma unroll
    for (int i = 0; i < 4; i++) s[i] = 0;
#pragma unroll
    for (int k = 0; k < D / 32; k++) {
        mma_element(s, x[k].x, y[k].x, x[k].y, y[k].y, query.pair[h][4 * k], query.pair[h][4 * k + 1]);
        mma_element(s, x[k].z, y[k].z, x[k].w, y[k].w, query.pair[h][4 * k + 2], query.pair[h][4 * k + 3]);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) s[i] = token + (i >= 2 ? 8 : 0) < end ? s[i] * query.scale - (i & 1 ? state.max1 : state.max0) : -infinity();
}

__device__ __forceinline__ void add_exact_values(State (&state)[HALVES], const float (&p)[HALVES][1][4], const uint4 (&x)[D / 32],
                                                 const uint4 (&y)[D / 32], int lane) {
    const bool low_part = (lane & 3) >= 2;
    u32 b[HALVES][2];
#pragma unroll
    for (int h = 0; h < HALVES; h++) {
        b[h][0] = transpose8(pack_element_part(p[h][0][0], p[h][0][1], low_part));
        b[h][1] = transpose8(pack_element_part(p[h][0][2], p[h][0][3], low_part));
    }
#pragma unroll
    for (int i = 0; i < KD; i++) {
        const uint4 &u = x[i / 2], &v = y[i / 2];
        const u32 a0 = transpose8(i & 1 ? u.z : u.x), a1 = transpose8(i & 1 ? u.w : u.y);
        const u32 a2 = transpose8(i & 1 ? v.z : v.x), a3 = transpose8(i & 1 ? v.w : v.y);
#pragma unroll
        for (int h = 0; h < HALVES; h++) mma_element(state[h].out[i], a0, a1, a2, a3, b[h][0], b[h][1]);
    }
}

// ---- copies of sealed chunks ----

// Ends a group of copies: the keys or the values of one chunk, or nothing at a sequence's end.
__device__ __forceinline__ void copy_commit() {
    if (!KITTY_BULK) async_commit();
}
// Waits for a group: by its barrier, or until at most `pending` younger ones are under way.
template <int pending> __device__ __forceinline__ void copy_wait(u64 *barrier, int parity) {
    if (KITTY_BULK) {
        barrier_wait(barrier, parity);
    } else {
        async_wait<pending>();
        __syncwarp();
    }
}

// A stage has a block's key part, of which the chunk's tiles, and the chunk's value tiles. Its halves are copied and waited for apart:
// the next chunk's keys come while values are worked on, and its values while keys are.
__device__ __forceinline__ void copy_keys(u8 *stage, const u8 *block, int tile, u64 *barriers, int lane) {
    const u8 *keys = block + KEY_TILES + tile * KEY_TILE_BYTES;
    if (KITTY_BULK) {
        if (lane != 0) return;
        barrier_expect(barriers, KEY_TILES + TILES * KEY_TILE_BYTES);
        if constexpr (TILES == PAGE_TILES) {
            bulk_copy(stage, block, KEY_TILES + TILES * KEY_TILE_BYTES, barriers);
        } else {
            bulk_copy(stage, block, KEY_TILES, barriers);
            bulk_copy(stage + KEY_TILES, keys, TILES * KEY_TILE_BYTES, barriers);
        }
    } else {
        for (int i = lane * 16; i < KEY_TILES; i += 512) async_copy16(stage + i, block + i);
        for (int i = lane * 16; i < TILES * KEY_TILE_BYTES; i += 512) async_copy16(stage + KEY_TILES + i, keys + i);
    }
}

__device__ __forceinline__ void copy_values(u8 *stage, const u8 *block, int tile, u64 *barriers, int lane) {
    const u8 *values = block + VALUE_TILES + tile * VALUE_TILE_BYTES;
    u8 *to = stage + KEY_TILES + TILES * KEY_TILE_BYTES;
//@ if value_by_channel then
    const u8 *meta = block + VALUE_META + tile * 32 / VALUE_GROUP * D * (VALUE_META8 == 1 ? 2 : 4);
//@ end
    if (KITTY_BULK) {
        if (lane != 0) return;
//@ if value_by_channel then
        barrier_expect(barriers + 1, TILES * VALUE_TILE_BYTES + META_BYTES);
        bulk_copy(to + TILES * VALUE_TILE_BYTES, meta, META_BYTES, barriers + 1);
//@ else
        barrier_expect(barriers + 1, TILES * VALUE_TILE_BYTES);
//@ end
        bulk_copy(to, values, TILES * VALUE_TILE_BYTES, barriers + 1);
    } else {
        for (int i = lane * 16; i < TILES * VALUE_TILE_BYTES; i += 512) async_copy16(to + i, values + i);
//@ if value_by_channel then
        for (int i = lane * 16; i < META_BYTES; i += 512) async_copy16(to + TILES * VALUE_TILE_BYTES + i, meta + i);
//@ end
    }
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
    u64 *barriers = (u64 *)(shared_memory() + QUERY_BYTES) + warp * STAGES * 2;
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
    const u8 *blocks = p.view.pages + (long long)kv_head * BLOCK_BYTES;
    auto block_of = [&](int page) { return blocks + (long long)load_settled(table + page) * p.view.kv_heads * BLOCK_BYTES; };

    if (KITTY_BULK) {
        if (lane < 2 * STAGES) barrier_init(barriers + lane, 1);
        barrier_init_fence();
        __syncwarp();
    }
    // Fill the pipeline before anything else: the copies are the longest wait.
#pragma unroll
    for (int s = 0; s < STAGES; s++) {
        const int item = first_chunk + s * stride, chunk = item - units, tile = chunk % PAGE_CHUNKS * TILES;
        const u8 *block = item < items ? block_of(chunk / PAGE_CHUNKS) : nullptr;
        if (item < items) copy_keys(stages + s * STAGE_BYTES, block, tile, barriers + 2 * s, lane);
        copy_commit();
        if (item < items) copy_values(stages + s * STAGE_BYTES, block, tile, barriers + 2 * s, lane);
        copy_commit();
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
    query.halves = (const uint4 *)(shared_query + (PAIR ? 0 : D * HALVES * 8));
    query.all = shared_query;
    query.scale = p.scale * LOG2E;
    auto load_pairs = [&](int h) {
        const int column = 8 * h + (g & HEAD_MASK);
        const u16 *q = p.query + row * p.query_row + (first_head + column) * p.query_head;
#pragma unroll
        for (int k = 0; k < D / 32; k++) {
            uint4 w = make_uint4(0, 0, 0, 0);
            if (column < columns) w = *(const uint4 *)(q + k * 32 + c * 8);
            query.pair[h][4 * k] = w.x, query.pair[h][4 * k + 1] = w.y, query.pair[h][4 * k + 2] = w.z, query.pair[h][4 * k + 3] = w.w;
        }
    };
#pragma unroll
    for (int h = 0; h < HALVES; h++) {
        float largest = 0;
        load_pairs(h);
#pragma unroll
        for (int k = 0; k < 2 * KD; k++)
            largest = fmaxf(largest, fmaxf(fabsf(low_element(query.pair[h][k])), fabsf(high_element(query.pair[h][k]))));
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
        const int exponent = max(ceil_exponent(largest), -90);
//@ if KEY_ROTATION > 0 then
        // A rotation keeps the length, so that no channel grows by more than 16 >= sqrt(D).
        const float normal = power_of_two(Q_EXPONENT - 4 - exponent);
        query.back[h] = query.scale * power_of_two(exponent - Q_EXPONENT + 4);
//@ else
        const float normal = power_of_two(Q_EXPONENT - exponent);
        query.back[h] = query.scale * power_of_two(exponent - Q_EXPONENT);
//@ end
        u32 half[2 * KD];
#pragma unroll
        for (int k = 0; k < 2 * KD; k++)
            half[k] = pack_half(low_element(query.pair[h][k]) * normal, high_element(query.pair[h][k]) * normal);
//@ if KEY_ROTATION > 0 then
        rotate_query(half, p.view.calibration + kv_head * TABLE_BYTES + TABLE_KEY_ROTATION, lane);
//@ end
        if constexpr (PAIR)
#pragma unroll
            for (int k = 0; k < 2 * KD; k++) query.half[k] = half[k % 4 == 1 ? k + 1 : k % 4 == 2 ? k - 1 : k];
        if constexpr (KEY_BITS != 16 && (!PAIR || KEY_BOOSTED > 0)) {
            if (!PAIR || g < COLUMNS)
#pragma unroll
                for (int k = 0; k < D / 32; k++)
                    if (k % WARPS == warp) {
                        if constexpr (!PAIR)
                            ((uint4 *)query.halves)[(k * HALVES + h) * 32 + lane] =
                                make_uint4(half[4 * k], half[4 * k + 2], half[4 * k + 1], half[4 * k + 3]);
#pragma unroll
                        for (int i = 0; i < 4; i++) {
                            const u32 two = half[4 * k + i];
                            u16 *to = shared_query + (PAIR ? (k * 32 + c * 8 + 2 * i) * COLUMNS + g : ((k * 32 + c * 8 + 2 * i) * 8 + g) * HALVES + h);
                            to[0] = (u16)two, to[PAIR ? COLUMNS : 8 * HALVES] = (u16)(two >> 16);
                        }
                    }
        }
    }
    if constexpr (KEY_BITS != 16 && (!PAIR || KEY_BOOSTED > 0)) __syncthreads();

    State state[HALVES];
    KeyOperand operand;
//@ if key_by_token then
    operand.build(query, lane);
//@ elseif wide then
    operand.stored = (uint4 *)(shared_memory() + D * HALVES * 32 + warp * SCALED_BYTES);
//@ end
#pragma unroll
    for (int h = 0; h < HALVES; h++) {
#pragma unroll
        for (int i = 0; i < KD; i++)
#pragma unroll
            for (int e = 0; e < 4; e++) state[h].out[i][e] = 0;
        state[h].max0 = state[h].max1 = state[h].sum0 = state[h].sum1 = 0;
    }

    bool fresh = true; // until the warp has had logits
    int item = first_item;
    for (; item < units; item += stride) {
        const bool half = unit_half(item);
        const int token = unit_first(item) + g, limit = item < sink_units ? min(end, SINK) : end;
        uint4 x[D / 32], y[D / 32], value_x[D / 32], value_y[D / 32];
        const u16 *row_x = exact.value(min(token, limit - 1)), *row_y = exact.value(min(token + 8, limit - 1));
        if (VALUES_AHEAD) load_rows(value_x, value_y, row_x, row_y, c);
        float s[HALVES][1][4], r0[HALVES], r1[HALVES];
        if (half) {
            const int group = (item - sink_units) % (PAGE / 16);
            const u8 *block = block_of(full_pages + (item - sink_units) / (PAGE / 16));
//@ if not key_by_token then
            if constexpr (KEY_BITS != 16) operand.build(query, block, group * 16 / KEY_GROUP, lane);
//@ end
//@ if key_by_token and KEY_META8 == 1 then
            operand.exponents = exponents_of(block, true);
//@ end
            score_group(s, query, operand, state, block + KEY_TILES + group / 2 * KEY_TILE_BYTES, group % 2, lane);
        } else {
            if constexpr (HALVES > 1 && KEY_BITS != 16) // again: no registers could keep them
#pragma unroll
                for (int h = 0; h < HALVES; h++) load_pairs(h);
            load_rows(x, y, exact.key(min(token, limit - 1)), exact.key(min(token + 8, limit - 1)), c);
            if (__any_sync(~0u, rows_damaged(x, y))) clean_rows(x, y);
#pragma unroll
            for (int h = 0; h < HALVES; h++) score_exact(s[h][0], query, h, state[h], x, y, token, limit);
        }
        softmax_update<1>(state, s, fresh, r0, r1);
        fresh = false;
        if (!VALUES_AHEAD) load_rows(value_x, value_y, row_x, row_y, c);
        if (__any_sync(~0u, rows_damaged(value_x, value_y))) clean_rows(value_x, value_y);
        add_exact_values(state, s, value_x, value_y, lane);
    }

    SealedOutput sealed[HALVES];
//@ if VALUE_ROTATION > 0 then
    // What comes from sealed values is rotated, and so is what there is already.
    const u8 *rotation = p.view.calibration + kv_head * TABLE_BYTES + TABLE_VALUE_ROTATION;
    const bool chunks = item < items;
    if (chunks)
#pragma unroll
        for (int h = 0; h < HALVES; h++) rotate_output(state[h].out, rotation, lane);
//@ end
    int exponent = -24; // of the smallest scale there is
#pragma unroll
    for (int h = 0; h < HALVES; h++) start_sealed(state[h], sealed[h], exponent, lane);
    int at = 0, parity = 0;
    for (; item < items; item += stride) {
        u8 *stage = stages + at * STAGE_BYTES;
        copy_wait<2 * STAGES - 1>(barriers + 2 * at, parity);
        const int tile = (item - units) % PAGE_CHUNKS * TILES;
//@ if not value_by_channel then
        const int value_exponent = (signed char)stage[KT_HEADER_VALUE_EXPONENT];
//@ end
//@ if key_by_token and KEY_META8 == 1 then
        operand.exponents = exponents_of(stage, true);
//@ end
//@ if VALUE_BITS < 16 and VALUE_META8 == 1 then
        sealed[0].exponents = exponents_of(stage, false);
//@ end
//@ if not value_by_channel then
        if (VALUE_BITS != 16 && value_exponent > exponent) {
            const float by = power_of_two(exponent - value_exponent);
            exponent = value_exponent;
#pragma unroll
            for (int h = 0; h < HALVES; h++)
#pragma unroll
                for (int i = 0; i < KD; i++)
#pragma unroll
                    for (int e = 0; e < 4; e++) state[h].out[i][e] *= by;
        }
//@ end
        const u8 *keys = stage + KEY_TILES;
        auto score = [&](float(&s)[HALVES][GROUPS][4], int first) {
#pragma unroll
            for (int t = 0; t < HELD; t++) {
//@ if not key_by_token then
                if constexpr (KEY_BITS != 16)
                    if (first + t == 0 || (first + t) * 32 % KEY_GROUP == 0)
                        operand.build(query, stage, (tile + first + t) * 32 / KEY_GROUP, lane);
//@ end
                score_sealed(s, t, query, operand, state, keys + (first + t) * KEY_TILE_BYTES, lane);
            }
        };
        const int next = item + STAGES * stride, next_chunk = next - units, next_tile = next_chunk % PAGE_CHUNKS * TILES;
        const u8 *next_block = nullptr;
        auto keys_done = [&] { // by every lane
            __syncwarp();
            if (next < items) {
                next_block = block_of(next_chunk / PAGE_CHUNKS);
                copy_keys(stage, next_block, next_tile, barriers + 2 * at, lane);
            }
            copy_commit();
        };
#pragma unroll 1
        for (int first = 0; first < TILES; first += HELD) {
            float s[HALVES][GROUPS][4], r0[HALVES], r1[HALVES];
            score(s, first);
            if (first + HELD == TILES) keys_done();
//@ if value_by_channel then
            softmax_update<GROUPS>(state, s, fresh, r0, r1);
//@ else
            if (softmax_update<GROUPS>(state, s, fresh, r0, r1)) // what was summed before is now r0 and r1 times what it was
#pragma unroll
                for (int h = 0; h < HALVES; h++)
#pragma unroll
                    for (int v = 0; v < VALUE_GROUPS; v++) sealed[h].zero0[v] *= r0[h], sealed[h].zero1[v] *= r1[h];
//@ end
            fresh = false;
            if (first == 0) copy_wait<2 * STAGES - (HELD == TILES ? 1 : 2)>(barriers + 2 * at + 1, parity);
            add_sealed_values(state, sealed, exponent, s, stage, first, lane);
        }
        __syncwarp(); // every lane is done with the values
        if (next < items) copy_values(stage, next_block, next_tile, barriers + 2 * at, lane);
        copy_commit();
        if (++at == STAGES) at = 0, parity ^= 1;
    }

    // One result per warp: sums over all lanes' tokens; columns 4..7 onto columns 0..3 where they are of the same heads.
#pragma unroll
    for (int h = 0; h < HALVES; h++) {
        if (fresh) state[h].max0 = state[h].max1 = -infinity();
        finish_sealed(state[h], sealed[h], exponent, lane);
//@ if VALUE_ROTATION > 0 then
        if (chunks) rotate_output(state[h].out, rotation + D * D * 2, lane); // the transpose, or Hadamard again
//@ end
#pragma unroll
        for (int x = PAIR ? 2 : 4; x < 32; x <<= 1) {
            state[h].sum0 += __shfl_xor_sync(~0u, state[h].sum0, x);
            state[h].sum1 += __shfl_xor_sync(~0u, state[h].sum1, x);
        }
        if (PAIR)
#pragma unroll
            for (int i = 0; i < KD; i++)
#pragma unroll
                for (int e = 0; e < 4; e++) state[h].out[i][e] += __shfl_xor_sync(~0u, state[h].out[i][e], 2);
    }
    __syncthreads(); // the stages are free
    float *outs = (float *)(shared_memory() + QUERY_BYTES + BARRIER_BYTES); // [WARPS, COLUMNS, OUT_STRIDE]
    float2 *stats = (float2 *)(outs + WARPS * COLUMNS * OUT_STRIDE);        // [WARPS, COLUMNS] maximum and sum
#pragma unroll
    for (int h = 0; h < HALVES; h++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const State &from = state[h];
            const int column = 8 * h + 2 * c + e;
            if (column < columns) {
                float *out = outs + (warp * COLUMNS + column) * OUT_STRIDE;
#pragma unroll
                for (int i = 0; i < KD; i++) {
                    out[channel_of(i, g)] = from.out[i][e];
                    out[channel_of(i, g + 8)] = from.out[i][2 + e];
                }
                if (g == 0) stats[warp * COLUMNS + column] = make_float2(e ? from.max1 : from.max0, e ? from.sum1 : from.sum0);
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
