//@ include "lib/kernel.cuh"
// Attention in float64 over the decoded cache, with plain loops: what attend is checked against.
//   grid (slots * max_fresh, q_heads), block THREADS; a block serves one query token and head, thread d channel d of the output
// It follows the definition, not the layout's purpose: one element at a time, no tensor cores.
constexpr int D = HEAD_DIM;
constexpr int KD = D / 16;
constexpr int KEY_PLANES = KEY_BITS / 2;
constexpr int KEY_EXTRA = (KEY_BOOST_BITS - KEY_BITS) / 2;
//@ if KEY_ALONG == 1 then
constexpr int KEY_WORDS = (KEY_TILE_BYTES - KEY_META_BYTES) / 128;
//@ else
constexpr int KEY_WORDS = KEY_TILE_BYTES / 128;
//@ end
constexpr int VALUE_PLANES = VALUE_BITS / 2;
constexpr int VALUE_WORDS = (VALUE_TILE_BYTES - VALUE_META_BYTES) / 128;
static_assert(THREADS >= D, "a thread per channel");

//@ local rotated = KEY_ROTATION + VALUE_ROTATION > 0
struct Work {
    double logit[THREADS], query[D];
//@ if rotated then
    double turned[D]; // the rotated query, then the output from sealed values
//@ end
    u8 place[D]; // 1 + place in the page's list of boosted channels, 0: not boosted
};
static_assert(sizeof(Work) <= SHARED_BYTES, "work fits");

// The inverse of channel_of.
__device__ void find_channel(int channel, int &tile, int &x) {
    const int within = channel % 32, word = within % 8 / 2;
    tile = channel / 32 * 2 + word / 2;
    x = word % 2 * 8 + within / 8 * 2 + within % 2;
}

__device__ double pair_value(u32 code, u32 pair) {
    return (double)__fadd_rn(__fmul_rn((float)code, half_to_float((u16)pair)), half_to_float((u16)(pair >> 16)));
}

__device__ u32 key_plane(const u8 *tile_base, int token, int row) {
    const int k = row / 16, x = row % 16, j = x / 8, c = x % 8 / 2, e = x % 2, m = token / 16, half = token % 16 / 8, g = token % 8;
    const u32 word = ((const u32 *)tile_base)[lane_word(k, KEY_WORDS, 4 * g + c)];
    return word >> (16 * e + 8 * m + 4 * j + 2 * half) & 3;
}

//@ if KEY_BITS % 2 + KEY_BOOST_BITS % 2 > 0 then
// Of a 1-bit plane, 32 rows to a word from word `first` on.
__device__ u32 key_half_plane(const u8 *tile_base, int token, int first, int row) {
    const int x = row % 16, j = x / 8, c = x % 8 / 2, e = x % 2, m = token / 16, half = token % 16 / 8, g = token % 8;
    const u32 word = ((const u32 *)tile_base)[lane_word(first + row / 32, KEY_WORDS, 4 * g + c)];
    return word >> (16 * e + 8 * m + 4 * j + 2 * half + row / 16 % 2) & 1;
}

//@ end
__device__ double key_element(const u8 *block, const u8 *place, int token, int channel) {
    const u8 *tile_base = block + KEY_TILES + token / 32 * KEY_TILE_BYTES;
    const int t = token % 32;
    int tile, x;
    find_channel(channel, tile, x);
    if constexpr (KEY_BITS == 16) {
        const int m = t / 16, half = t % 16 / 8, g = t % 8, j = x / 8, c = x % 8 / 2, e = x % 2;
        return element_to_float(((const u16 *)tile_base)[(((m * KD + tile) * 32 + 4 * g + c) * 4 + half + 2 * j) * 2 + e]);
    } else {
        u32 code = 0;
//@ if KEY_ALONG == 1 then
//@ if KEY_META8 == 1 then
        const u8 *bytes = tile_base + (channel / KEY_GROUP * 32 + t % 8 * 4 + t / 8) * 2;
        const u32 pair = pair_of_bytes(bytes[0], bytes[1], exponents_of(block, true));
//@ else
        const u32 pair = ((const u32 *)tile_base)[channel / KEY_GROUP * 32 + t % 8 * 4 + t / 8];
//@ end
        tile_base += KEY_META_BYTES;
//@ end
        for (int p = 0; p < KEY_PLANES; p++) code |= key_plane(tile_base, t, p * D + tile * 16 + x) << (2 * p);
//@ if KEY_BITS % 2 + KEY_BOOST_BITS % 2 > 0 then
        constexpr int BASE = KEY_PLANES * KD + KEY_BITS % 2 * KD / 2; // words
        if constexpr (KEY_BITS % 2 == 1) code |= key_half_plane(tile_base, t, KEY_PLANES * KD, tile * 16 + x) << (2 * KEY_PLANES);
        if (KEY_BOOSTED > 0 && place[channel]) {
            const int row = place[channel] - 1;
            for (int p = 0; p < KEY_EXTRA; p++)
                code |= key_plane(tile_base, t, BASE * 16 + p * KEY_BOOSTED + row) << (KEY_BITS + 2 * p);
            if ((KEY_BOOST_BITS - KEY_BITS) % 2 == 1)
                code |= key_half_plane(tile_base, t, BASE + (KEY_EXTRA * KEY_BOOSTED + 15) / 16, row) << (KEY_BITS + 2 * KEY_EXTRA);
        }
//@ else
        if (KEY_BOOSTED > 0 && place[channel])
            for (int p = 0; p < KEY_EXTRA; p++)
                code |= key_plane(tile_base, t, KEY_PLANES * D + p * KEY_BOOSTED + place[channel] - 1) << (2 * (KEY_PLANES + p));
//@ end
//@ if KEY_ALONG == 1 then
        return pair_value(code, pair);
//@ elseif KEY_META8 == 1 then
        const u8 *scales = block + KEY_META + token / KEY_GROUP * 2 * D;
        return pair_value(code, pair_of_bytes(scales[channel], scales[D + channel], exponents_of(block, true)));
//@ else
        const u16 *scales = (const u16 *)(block + KEY_META) + token / KEY_GROUP * 2 * D;
        return pair_value(code, scales[channel] | (u32)scales[D + channel] << 16);
//@ end
    }
}

__device__ double value_element(const u8 *block, int token, int channel) {
    const u8 *tile_base = block + VALUE_TILES + token / 32 * VALUE_TILE_BYTES;
    const int t = token % 32, m = t / 16, j = t % 16 / 8, c = t % 8 / 2, e = t % 2;
    int tile, x;
    find_channel(channel, tile, x);
    const int half = x / 8, g = x % 8;
    if constexpr (VALUE_BITS == 16) {
        return element_to_float(((const u16 *)tile_base)[(((tile * 2 + m) * 32 + 4 * g + c) * 4 + half + 2 * j) * 2 + e]);
    } else {
        u32 code = 0;
        for (int p = 0; p < VALUE_PLANES; p++) {
            const u32 word = ((const u32 *)(tile_base + VALUE_META_BYTES))[lane_word(p * KD + tile, VALUE_WORDS, 4 * g + c)];
            code |= (word >> (16 * e + 8 * m + 4 * j + 2 * half) & 3) << (2 * p);
        }
//@ if VALUE_BITS % 2 == 1 then
        const u32 last = ((const u32 *)(tile_base + VALUE_META_BYTES))[lane_word(VALUE_PLANES * KD + tile / 2, VALUE_WORDS, 4 * g + c)];
        code |= (last >> (16 * e + 8 * m + 4 * j + 2 * half + tile % 2) & 1) << (2 * VALUE_PLANES);
//@ end
//@ if VALUE_ALONG == 1 and VALUE_META8 == 1 then
        const u8 *scales = block + VALUE_META + token / VALUE_GROUP * 2 * D;
        return pair_value(code, pair_of_bytes(scales[channel], scales[D + channel], exponents_of(block, false)));
//@ elseif VALUE_META8 == 1 then
        const u8 *bytes = tile_base + (channel / VALUE_GROUP * 32 + t % 8 * 4 + t / 8) * 2;
        return pair_value(code, pair_of_bytes(bytes[0], bytes[1], exponents_of(block, false)));
//@ elseif VALUE_ALONG == 1 then
        const u16 *scales = (const u16 *)(block + VALUE_META) + token / VALUE_GROUP * 2 * D;
        return pair_value(code, scales[channel] | (u32)scales[D + channel] << 16);
//@ else
        return pair_value(code, ((const u32 *)tile_base)[channel / VALUE_GROUP * 32 + t % 8 * 4 + t / 8]);
//@ end
    }
}

__device__ double exact_element(const u16 *row, int channel) {
    const u16 e = row[channel];
    return nonfinite_bits(e) & 0x8000u ? 0 : element_to_float(e);
}

//@ if rotated then
// Element [j, i] of a rotation: a Hadamard matrix divided by sqrt(D), or a matrix in fp16.
template <int kind> __device__ double rotation_at(const u8 *matrix, int j, int i) {
    if constexpr (kind == 0) return i == j;
    if constexpr (kind == 1) return (__popc(i & j) & 1 ? -1 : 1) / sqrt((double)D);
    return half_to_float(((const u16 *)matrix)[j * D + i]);
}

//@ end
extern "C" __global__ void __launch_bounds__(THREADS) $entry(const __grid_constant__ kt_attend_params p) {
    grid_wait();
    grid_launch_next();
    if (!p.view.control->ready) return;
    const int slot_index = blockIdx.x / p.max_fresh, query_token = blockIdx.x % p.max_fresh, head = blockIdx.y;
    const kt_slot slot = p.view.slots[slot_index];
    if (query_token >= slot.fresh) return;
    Work *work = (Work *)shared_memory();
    const int kv_head = head / GROUP_HEADS, row = slot.row + query_token, end = slot.tokens + query_token + 1, d = threadIdx.x;
    const int key_pages = sealed_pages(slot.tokens, KEY_WINDOW), value_pages = sealed_pages(slot.tokens, VALUE_WINDOW);
    const u8 *slab = p.view.slabs + ((long long)slot.slab * p.view.kv_heads + kv_head) * SLAB_BYTES;
    const int *table = p.view.table + (long long)slot_index * p.view.table_stride;
    auto block_of = [&](int page) { return p.view.pages + ((long long)table[page] * p.view.kv_heads + kv_head) * BLOCK_BYTES; };
    auto fresh_row = [&](const u16 *base, long long stride, long long head_stride, int token) {
        return base + (row - query_token + token - slot.tokens) * stride + kv_head * head_stride;
    };
    if (d < D) work->query[d] = element_to_float(p.query[row * p.query_row + head * p.query_head + d]);

    double max = -infinity(), sum = 0, out = 0;
//@ if rotated then
    const u8 *rotations = p.view.calibration + kv_head * TABLE_BYTES;
    double sealed_out = 0;
    __syncthreads();
    if (d < D) {
        double turned = 0;
        for (int i = 0; i < D; i++) turned += rotation_at<KEY_ROTATION>(rotations + TABLE_KEY_ROTATION, d, i) * work->query[i];
        work->turned[d] = turned;
    }
//@ end
    // Runs of at most THREADS tokens that do not cross the end of the sinks or of a page.
    for (int first = 0, last; first < end; first = last) {
        const int in_page = (first - SINK) % PAGE, page = first < SINK ? -1 : (first - SINK) / PAGE;
        last = min(min(end, first + THREADS), first < SINK ? SINK : first - in_page + PAGE);
        const bool key_sealed = page >= 0 && page < key_pages, value_sealed = page >= 0 && page < value_pages;
        __syncthreads();
        if (KEY_BOOSTED > 0 && key_sealed) {
            if (d < D) work->place[d] = 0;
            __syncthreads();
            if (d < KEY_BOOSTED) work->place[block_of(page)[KEY_INDEX + d]] = (u8)(d + 1);
        }
        __syncthreads();
        if (first + d < last) {
            const int token = first + d;
            const u16 *key = 0;
            if (!key_sealed)
                key = token >= slot.tokens ? fresh_row(p.view.key, p.view.key_row, p.view.key_head, token)
                      : token < SINK       ? (const u16 *)slab + token * D
                                           : (const u16 *)(slab + SLAB_KEY) + (token - SINK) % KEY_RING * D;
            double logit = 0;
//@ if rotated then
            for (int i = 0; i < D; i++)
                logit += key_sealed ? work->turned[i] * key_element(block_of(page), work->place, in_page + d, i)
                                    : work->query[i] * exact_element(key, i);
//@ else
            for (int i = 0; i < D; i++)
                logit += work->query[i] * (key_sealed ? key_element(block_of(page), work->place, in_page + d, i) : exact_element(key, i));
//@ end
            work->logit[d] = logit * p.scale;
        }
        __syncthreads();
        double new_max = max;
        for (int i = 0; i < last - first; i++) new_max = fmax(new_max, work->logit[i]);
        sum *= exp(max - new_max), out *= exp(max - new_max);
//@ if rotated then
        sealed_out *= exp(max - new_max);
//@ end
        max = new_max;
        for (int i = 0; i < last - first; i++) {
            const double weight = exp(work->logit[i] - max);
            sum += weight;
            if (d >= D) continue;
            const int token = first + i;
            double value;
            if (value_sealed)
                value = value_element(block_of(page), in_page + i, d);
            else
                value = exact_element(token >= slot.tokens ? fresh_row(p.view.value, p.view.value_row, p.view.value_head, token)
                                      : token < SINK       ? (const u16 *)(slab + SLAB_SINK_VALUE) + token * D
                                                           : (const u16 *)(slab + SLAB_VALUE) + (token - SINK) % VALUE_RING * D, d);
//@ if rotated then
            if (value_sealed) {
                sealed_out += weight * value;
                continue;
            }
//@ end
            out += weight * value;
        }
    }
//@ if rotated then
    __syncthreads();
    if (d < D) work->turned[d] = sealed_out;
    __syncthreads();
    for (int j = 0; j < D && d < D; j++) out += rotation_at<VALUE_ROTATION>(rotations + TABLE_VALUE_ROTATION, j, d) * work->turned[j];
//@ end
    if (d < D) p.out[row * p.out_row + head * p.out_head + d] = float_to_element((float)(out / sum));
    if (d == 0 && p.lse) p.lse[(long long)row * (p.view.kv_heads * GROUP_HEADS) + head] = (float)(max + log(sum));
}
