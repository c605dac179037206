//@ local key_by_token = KEY_BITS < 16 and KEY_ALONG == 1
//@ local key_by_channel = KEY_BITS < 16 and KEY_ALONG == 0
//@ local key_halves = key_by_channel and KEY_BITS % 2 + KEY_BOOST_BITS % 2 > 0 -- 1-bit planes
//@ local value_by_channel = VALUE_BITS < 16 and VALUE_ALONG == 1
//@ local value_halves = VALUE_BITS < 16 and VALUE_BITS % 2 == 1
//@ local passes = -(-GROUP_HEADS // (HEAD_DIM <= 128 and 16 or 8)) -- as kg_attend_passes has them
//@ local rows = -(-GROUP_HEADS // passes) > 8 -- heads are rows of the products, else columns
//@ local key_again = rows and key_by_channel and KEY_BITS > 2 -- q' meets several planes
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
// Query heads are columns of the matrix products where a pass has up to 8 (lib/heads_in_columns.cuh), else rows (lib/heads_in_rows.cuh).
// Lane = 4 g + c.
constexpr int D = HEAD_DIM;
constexpr int KD = D / 16;                 // groups of 16 channels
constexpr bool PAIR = COLUMNS <= 4;
constexpr int EIGHTS = (COLUMNS + 7) / 8;  // of query heads
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
constexpr bool VALUES_AHEAD = D * EIGHTS <= 128; // exact values are loaded with their keys, where there are registers for both
constexpr int BARRIER_BYTES = (WARPS * STAGES * 16 + 127) / 128 * 128; // a stage has one for keys and one for values
constexpr int OUT_STRIDE = D + 4;          // floats of a warp's result, off the bank stride
constexpr float LOG2E = 1.4426950408889634f;
// q' is at most 2^Q_EXPONENT, so that its multiples by the weights of higher planes stay below 65504; products with codes that are
// subnormal halves are off by 2^-24. What values' codes meet, probabilities times scales, is at most 2^W_EXPONENT likewise.
//@ if key_halves then
constexpr int Q_EXPONENT = 8;
//@ else
constexpr int Q_EXPONENT = 9;
//@ end
//@ if rows then
constexpr int EXTRA_WEIGHT = 1;
//@ else
constexpr int EXTRA_WEIGHT = 4; // of codes of further planes beside those of all channels: what their q' need not carry
//@ end
//@ if key_again then
constexpr int SCALED_BYTES = (KD + BOOST_TILES) * 512; // q' of a warp, by 16 rows: no registers could hold it
//@ else
constexpr int SCALED_BYTES = 0;
//@ end
constexpr int QUERY_BYTES = PAIR ? (D * COLUMNS * 2 + 127) / 128 * 128 : D * EIGHTS * 32 + WARPS * SCALED_BYTES;
//@ if value_by_channel then
constexpr int W_EXPONENT = 15;
//@ elseif value_halves then
constexpr int W_EXPONENT = 17 - 2 * VALUE_LAYERS;
//@ else
constexpr int W_EXPONENT = 17 - VALUE_BITS;
//@ end
static_assert(PAGE_TILES % TILES == 0, "chunks divide a page");
static_assert(QUERY_BYTES + BARRIER_BYTES + WARPS * STAGES * STAGE_BYTES <= SHARED_BYTES, "stages fit");
static_assert(QUERY_BYTES + BARRIER_BYTES + WARPS * COLUMNS * (OUT_STRIDE + 2) * 4 <= SHARED_BYTES, "partial results fit");

// What a lane knows of the query: heads g and g + 8, of 16 (EIGHTS 2), or g & HEAD_MASK; channels as channel_of orders them.
struct Query {
    u32 pair[EIGHTS][2 * KD];    // element pairs in DTYPE: [2 k + j] channels channel_of(k, 2 c + 8 j) and the next
    u32 half[PAIR ? 2 * KD : 1]; // the same in fp16, as stored() has them, times 2^(Q_EXPONENT - e) with every |q| of the head <= 2^e
    const uint4 *halves;         // unless PAIR: that of all lanes, shared
    const u16 *all;              // that of all channels, shared [D, COLUMNS]; unless PAIR [D, 8, EIGHTS]
    float back[EIGHTS];          // scale * log2(e) * 2^(e - Q_EXPONENT) of the heads
    float scale;                 // scale * log2(e)

//@ if rows then
    // Halves of channels channel_of(k, ..) as the A operand; where keys' scales are of tokens, those of channels 2 c + 8 are a sixteenth.
    __device__ __forceinline__ uint4 rows(int k, int lane) const { return halves[k * 32 + lane]; }
    // Elements, likewise.
    __device__ __forceinline__ uint4 elements(int k) const {
        return make_uint4(pair[0][2 * k], pair[1][2 * k], pair[0][2 * k + 1], pair[1][2 * k + 1]);
    }
//@ else
    // Halves 0, 2, 1 and 3 of channels 32 k + 8 c and so on.
    __device__ __forceinline__ uint4 stored(int k, int lane) const {
        if constexpr (PAIR) return make_uint4(half[4 * k], half[4 * k + 1], half[4 * k + 2], half[4 * k + 3]);
        else return halves[k * 32 + lane];
    }
    // The same in their order.
    __device__ __forceinline__ uint4 four(int k, int lane) const {
        const uint4 q = stored(k, lane);
        return make_uint4(q.x, q.z, q.y, q.w);
    }
//@ end
};

__device__ __forceinline__ float low_element(u32 pair) { return element_to_float((u16)pair); }
__device__ __forceinline__ float high_element(u32 pair) { return element_to_float((u16)(pair >> 16)); }

// Words of a lane out of a tile of `words` per lane, read in ascending order and as vectors of four; w must be a constant after
// unrolling, `first` true for the first word read and wherever the order starts anew.
template <int words> struct Words {
    const u32 *base;
    int lane;
    uint4 four;
    Words() = default;
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

//@ if value_by_channel or value_halves then
// The word of a plane and 16 channels; of a 1-bit plane two 16 share one.
__device__ __forceinline__ u32 value_word(Words<VALUE_WORDS> &words, int plane, int k, bool first) {
    if (plane < VALUE_PLANES) return words.get(plane * KD + k, first);
    return words.get(VALUE_PLANES * KD + k / 2, first) >> (k % 2) & 0x55555555u;
}

//@ end
//@ if value_by_channel then
// Scales and zeros of the channels, of the group of tokens that a held chunk's tile t is in; they follow the chunk's tiles.
struct ChannelPairs {
//@ if VALUE_META8 == 1 then
    const u8 *scales;
    Exponents exponents;
    __device__ __forceinline__ ChannelPairs(const u8 *tiles, int t, const Exponents &exponents)
        : scales(tiles + TILES * VALUE_TILE_BYTES + t * 32 / VALUE_GROUP * 2 * D), exponents(exponents) {}
    __device__ __forceinline__ float scale(int channel) const { return meta8_value(scales[channel], exponents.scale); }
    __device__ __forceinline__ float zero(int channel) const { return meta8_value(scales[D + channel], exponents.zero); }
//@ else
    const u16 *scales;
    __device__ __forceinline__ ChannelPairs(const u8 *tiles, int t)
        : scales((const u16 *)(tiles + TILES * VALUE_TILE_BYTES) + t * 32 / VALUE_GROUP * 2 * D) {}
    __device__ __forceinline__ float scale(int channel) const { return half_to_float(scales[channel]); }
    __device__ __forceinline__ float zero(int channel) const { return half_to_float(scales[D + channel]); }
//@ end
};

//@ end
//@ if KEY_ROTATION + VALUE_ROTATION > 0 then
//@ include "lib/rotate.cuh"

//@ end
//@ if not key_by_token then
// The boosted channels' rows 2 c + 8 j and the next of their k-th tile: q of the lane's columns, scales, and the weights of their
// planes, less what the codes carry.
__device__ __forceinline__ void gather_boosted(u32 (&q)[EIGHTS], u32 &scale, u32 &weight, const Query &query, const u8 *block,
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
        if constexpr (EIGHTS == 2) both[e] = real ? ((const u32 *)query.all + g)[channel * 8] : 0;
        else both[e] = real ? query.all[channel * (PAIR ? COLUMNS : 8) + head] : 0;
//@ if KEY_META8 == 1 then
        two[e] = float_to_half(meta8_value(((const u8 *)scales)[channel], exponents_of(block, true).scale));
//@ else
        two[e] = scales[channel];
//@ end
    }
#pragma unroll
    for (int h = 0; h < EIGHTS; h++) q[h] = __byte_perm(both[0], both[1], h ? 0x7632 : 0x5410);
    scale = two[0] | two[1] << 16, weight = pack_half(times[0], times[1]);
}

//@ end
template <int count> __device__ __forceinline__ void clear(float (&x)[count][4]) {
#pragma unroll
    for (int n = 0; n < count; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) x[n][e] = 0;
}

//@ if rows then
//@ include "lib/heads_in_rows.cuh"
//@ else
//@ include "lib/heads_in_columns.cuh"
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
    auto block_at = [&](int id) { return blocks + (long long)id * p.view.kv_heads * BLOCK_BYTES; };
    auto block_of = [&](int page) { return block_at(load_settled(table + page)); };

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
    query.halves = (const uint4 *)(shared_query + (PAIR ? 0 : D * EIGHTS * 8));
    query.all = shared_query;
    query.scale = p.scale * LOG2E;
    auto load_pairs = [&](int h) {
        const int column = 8 * h + (g & HEAD_MASK);
        const u16 *q = p.query + row * p.query_row + (first_head + column) * p.query_head;
#pragma unroll
        for (int k = 0; k < D / 32; k++) {
            uint4 w = make_uint4(0, 0, 0, 0);
            if (column < columns) w = *(const uint4 *)(q + k * 32 + c * 8);
            u32(&pair)[2 * KD] = query.pair[h];
            pair[4 * k] = w.x, pair[4 * k + 1] = w.y, pair[4 * k + 2] = w.z, pair[4 * k + 3] = w.w;
        }
    };
#pragma unroll
    for (int h = 0; h < EIGHTS; h++) {
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
//@ if rows then
                        u32 *words = (u32 *)(query.halves + 2 * k * 32 + lane) + h;
#pragma unroll
                        for (int i = 0; i < 4; i++)
//@ if key_by_token then
                            words[i / 2 * 128 + i % 2 * 2] = i % 2 ? half2_multiply(half[4 * k + i], 0x2c002c00u) : half[4 * k + i];
//@ else
                            words[i / 2 * 128 + i % 2 * 2] = half[4 * k + i];
//@ end
//@ else
                        if constexpr (!PAIR)
                            ((uint4 *)query.halves)[k * 32 + lane] = make_uint4(half[4 * k], half[4 * k + 2], half[4 * k + 1], half[4 * k + 3]);
//@ end
#pragma unroll
                        for (int i = 0; i < 4; i++) {
                            const u32 two = half[4 * k + i];
                            u16 *to = shared_query + (PAIR ? (k * 32 + c * 8 + 2 * i) * COLUMNS + g : ((k * 32 + c * 8 + 2 * i) * 8 + g) * EIGHTS + h);
                            to[0] = (u16)two, to[PAIR ? COLUMNS : 8 * EIGHTS] = (u16)(two >> 16);
                        }
                    }
        }
    }
    if constexpr (KEY_BITS != 16 && (!PAIR || KEY_BOOSTED > 0)) __syncthreads();

    State state;
    KeyOperand operand;
//@ if key_by_token then
    operand.build(query, lane);
//@ elseif key_again then
    operand.stored = (uint4 *)(shared_memory() + D * EIGHTS * 32 + warp * SCALED_BYTES);
//@ end
    clear(state.out);
    state.max0 = state.max1 = state.sum0 = state.sum1 = 0;

    bool fresh = true; // until the warp has had logits
    int item = first_item;
    for (; item < units; item += stride) {
        const bool half = unit_half(item);
        const int first = unit_first(item), token = first + g, limit = item < sink_units ? min(end, SINK) : end;
        uint4 x[D / 32], y[D / 32], value_x[D / 32], value_y[D / 32];
        const u16 *row_x = exact.value(min(token, limit - 1)), *row_y = exact.value(min(token + 8, limit - 1));
        if (VALUES_AHEAD) load_rows(value_x, value_y, row_x, row_y, c);
        float s[EXACT_GROUPS][4];
        if (half) {
            const int group = (item - sink_units) % (PAGE / 16);
            const u8 *block = block_of(full_pages + (item - sink_units) / (PAGE / 16));
//@ if key_by_token and KEY_META8 == 1 then
            operand.exponents = exponents_of(block, true);
//@ end
//@ if rows then
            score_group(s, query, operand, state, block, group, lane);
//@ else
//@ if key_by_channel then
            operand.build(query, block, group * 16 / KEY_GROUP, lane);
//@ end
            score_group(s, query, operand, state, block + KEY_TILES + group / 2 * KEY_TILE_BYTES, group % 2, lane);
//@ end
        } else {
            if constexpr (EIGHTS > 1 && KEY_BITS != 16) // again: no registers could keep them
#pragma unroll
                for (int h = 0; h < EIGHTS; h++) load_pairs(h);
            load_rows(x, y, exact.key(min(token, limit - 1)), exact.key(min(token + 8, limit - 1)), c);
            if (__any_sync(~0u, rows_damaged(x, y))) clean_rows(x, y);
            score_exact(s, query, state, x, y, first, limit, lane);
        }
        exact_probabilities(state, s, fresh);
        fresh = false;
        if (!VALUES_AHEAD) load_rows(value_x, value_y, row_x, row_y, c);
        if (__any_sync(~0u, rows_damaged(value_x, value_y))) clean_rows(value_x, value_y);
        add_exact_values(state, s, value_x, value_y, lane);
    }

    SealedOutput sealed;
//@ if VALUE_ROTATION > 0 then
    // What comes from sealed values is rotated, and so is what there is already.
    const u8 *rotation = p.view.calibration + kv_head * TABLE_BYTES + TABLE_VALUE_ROTATION;
    const bool chunks = item < items;
    if (chunks) rotate_output(state.out, rotation, lane);
//@ end
    int exponent = LEAST_EXPONENT;
    start_sealed(state, sealed, exponent, lane);
    int at = 0, parity = 0;
    for (; item < items; item += stride) {
        u8 *stage = stages + at * STAGE_BYTES;
        const int next = item + STAGES * stride, next_chunk = next - units, next_tile = next_chunk % PAGE_CHUNKS * TILES;
        const int next_page = next < items ? load_settled(table + next_chunk / PAGE_CHUNKS) : 0; // now: it takes as long as keys do
        copy_wait<2 * STAGES - 1>(barriers + 2 * at, parity);
        const int tile = (item - units) % PAGE_CHUNKS * TILES;
//@ if not value_by_channel then
        const int value_exponent = (signed char)stage[KT_HEADER_VALUE_EXPONENT];
//@ end
//@ if key_by_token and KEY_META8 == 1 then
        operand.exponents = exponents_of(stage, true);
//@ end
//@ if VALUE_BITS < 16 and VALUE_META8 == 1 then
        sealed.exponents = exponents_of(stage, false);
//@ end
//@ if not value_by_channel then
        if (VALUE_BITS != 16 && value_exponent > exponent) {
            scale_output(state, power_of_two(exponent - value_exponent));
            exponent = value_exponent;
        }
//@ end
        const u8 *next_block = nullptr;
        auto keys_done = [&] { // by every lane
            __syncwarp();
            if (next < items) {
                next_block = block_at(next_page);
                copy_keys(stage, next_block, next_tile, barriers + 2 * at, lane);
            }
            copy_commit();
        };
        Probabilities chunk;
        chunk_probabilities(chunk, query, operand, state, sealed, fresh, stage, tile, lane, keys_done);
        copy_wait<2 * STAGES - 1>(barriers + 2 * at + 1, parity);
        add_sealed_values(state, sealed, exponent, chunk, stage, lane);
        __syncwarp(); // every lane is done with the values
        if (next < items) copy_values(stage, next_block, next_tile, barriers + 2 * at, lane);
        copy_commit();
        if (++at == STAGES) at = 0, parity ^= 1;
    }

    if (fresh) state.max0 = state.max1 = -infinity();
    finish_sealed(state, sealed, exponent, lane);
//@ if VALUE_ROTATION > 0 then
    if (chunks) rotate_output(state.out, rotation + D * D * 2, lane); // the transpose, or Hadamard again
//@ end
    __syncthreads(); // the stages are free
    float *outs = (float *)(shared_memory() + QUERY_BYTES + BARRIER_BYTES); // [WARPS, COLUMNS, OUT_STRIDE]
    float2 *stats = (float2 *)(outs + WARPS * COLUMNS * OUT_STRIDE);        // [WARPS, COLUMNS] maximum and sum
    store_partial(state, outs + warp * COLUMNS * OUT_STRIDE, stats + warp * COLUMNS, columns, lane);
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
