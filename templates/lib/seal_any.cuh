// Sealing of what lib/seal_keys.cuh and lib/seal_values.cuh do not take: 1-bit planes, keys with scales by token, values with scales by
// channel. By all threads of a block; `keys`: which part.
template <bool keys> struct Part {
    static constexpr int BITS = keys ? KEY_BITS : VALUE_BITS, PLANES = BITS / 2, HALF = BITS % 2; // 2-bit planes and a 1-bit one
    static constexpr int GROUP = keys ? KEY_GROUP : VALUE_GROUP, RANGE = keys ? KEY_RANGE : VALUE_RANGE;
    static constexpr bool BY_TOKEN = keys ? KEY_ALONG == 1 : VALUE_ALONG == 0;                    // scales
    static constexpr int GROUPS = (BY_TOKEN ? D : PAGE) / GROUP, COUNT = GROUPS * (BY_TOKEN ? PAGE : D);
    static constexpr int WORDS = keys ? KEY_WORDS : VALUE_WORDS;
    static constexpr int TILES = keys ? KEY_TILES : VALUE_TILES, TILE_BYTES = keys ? KEY_TILE_BYTES : VALUE_TILE_BYTES;
    static constexpr int PAIR_BYTES = TILE_BYTES - WORDS * 128;                                   // at the head of a tile
//@ if KEY_META8 + VALUE_META8 > 0 then
    static constexpr bool SMALL = keys ? KEY_META8 == 1 : VALUE_META8 == 1;
//@ end
    // Where a token and channel have their pair in `work`.
    static __device__ __forceinline__ int pair_at(int token, int channel) {
        return BY_TOKEN ? token * GROUPS + channel / GROUP : token / GROUP * D + channel;
    }
};

//@ if KEY_META8 + VALUE_META8 > 0 then
// Exponents with which fp16 holds what a byte stands for; of the pairs that have been noted.
__device__ __forceinline__ int meta8_exponent(u32 half) {
    return half ? min(max(ceil_exponent(half_to_float((u16)half)), -7), 15) : -7;
}
__device__ __forceinline__ Exponents meta8_exponents(const Work *work) { return {meta8_exponent(work->largest), meta8_exponent(work->largest_zero)}; }

__device__ __forceinline__ u32 meta8_byte(float x, int exponent, int up) {
    return kt_meta8_round((u32)__float_as_int(__fmul_rn(fabsf(x), power_of_two(8 - exponent))), up) | (x < 0 ? 0x80u : 0);
}
// The nearest zero of 8 bits, and the smallest scale that reaches from it to where the group ended; the pair that they are, as fp16.
__device__ __forceinline__ u32 pack_meta8(u32 pair, float most, Exponents e, u32 &scale_byte, u32 &zero_byte) {
    const float end = __fadd_rn(zero_of(pair), __fmul_rn(scale_of(pair), most));
    zero_byte = meta8_byte(zero_of(pair), e.zero, 0);
    const float scale = __fdiv_rn(__fsub_rn(end, meta8_value(zero_byte, e.zero)), most);
    scale_byte = (pair & 0xffff) && scale > 0 ? meta8_byte(scale, e.scale, 1) : 0;
    return pair_of_bytes(scale_byte, zero_byte, e);
}

// Packs the pairs of a part, and stores them.
template <bool keys> __device__ __forceinline__ void small_pairs(Work *work, u8 *block) {
    using P = Part<keys>;
    const Exponents e = meta8_exponents(work);
    for (int n = threadIdx.x; n < P::COUNT; n += THREADS) {
        const int group = n / (P::BY_TOKEN ? PAGE : D), token = n % PAGE, channel = n % D, at = P::BY_TOKEN ? token * P::GROUPS + group : n;
        const bool boosted = keys && KEY_BOOSTED > 0 && !P::BY_TOKEN && work->boosted[channel];
        const float most = boosted ? largest_code(KEY_BOOST_BITS) : largest_code(P::BITS);
        u32 scale, zero;
        const u32 pair = pack_meta8(work->pair[at], most, e, scale, zero);
        work->pair[at] = pair, work->quantiser[at] = quantiser_of(pair, most);
        if constexpr (P::BY_TOKEN) {
            const int t = token % 32;
            ((u16 *)(block + P::TILES + token / 32 * P::TILE_BYTES))[group * 32 + (t & 7) * 4 + (t >> 3)] = (u16)(scale | zero << 8);
        } else {
            u8 *scales = block + (keys ? KEY_META : VALUE_META) + group * 2 * D;
            scales[channel] = (u8)scale, scales[D + channel] = (u8)zero;
        }
    }
}

//@ end
template <int count, class Element> __device__ __forceinline__ u32 plain_pair(float most, bool &over, const Element &element) {
    float low = element(0), high = low;
    for (int i = 1; i < count; i++) low = fminf(low, element(i)), high = fmaxf(high, element(i));
    return pair_of(low, high, most, over);
}

// Pairs of all groups of a finite page, stored as well, and what the codes are made with.
template <bool keys> __device__ __forceinline__ void any_pairs(Work *work, u8 *block) {
    using P = Part<keys>;
    constexpr int LANES = P::RANGE ? RANGE_LANES : 1, STRIDE = P::BY_TOKEN ? 1 : ROW;
    u32 largest = 0;
//@ if KEY_META8 + VALUE_META8 > 0 then
    u32 largest_zero = 0;
//@ end
    int overflows = 0;
    for (int i = threadIdx.x; i < P::COUNT * LANES; i += THREADS) {
        const int part = i % LANES, n = i / LANES, group = n / (P::BY_TOKEN ? PAGE : D), token = n % PAGE, channel = n % D;
        const u16 *first = work->element + (P::BY_TOKEN ? token * ROW + group * P::GROUP : group * P::GROUP * ROW + channel);
        const bool boosted = keys && KEY_BOOSTED > 0 && work->boosted[channel];
        const float most = boosted ? largest_code(KEY_BOOST_BITS) : largest_code(P::BITS);
        auto element = [&](int j) { return element_to_float(first[j * STRIDE]); };
        bool over;
        u32 pair;
        if constexpr (P::RANGE == 1) pair = fit_pair<P::GROUP>(most, part, over, element);
        else pair = plain_pair<P::GROUP>(most, over, element);
        if (part) continue;
        const int at = P::BY_TOKEN ? token * P::GROUPS + group : n;
        work->pair[at] = pair, work->quantiser[at] = quantiser_of(pair, most);
        overflows += over, largest = max(largest, pair & 0xffff);
//@ if KEY_META8 + VALUE_META8 > 0 then
        if (P::SMALL) {
            largest_zero = max(largest_zero, pair >> 16 & 0x7fff);
            continue;
        }
//@ end
        if constexpr (P::BY_TOKEN) {
            const int t = token % 32;
            ((u32 *)(block + P::TILES + token / 32 * P::TILE_BYTES))[group * 32 + (t & 7) * 4 + (t >> 3)] = pair;
        } else {
            u16 *scales = (u16 *)(block + (keys ? KEY_META : VALUE_META)) + group * 2 * D;
            scales[channel] = (u16)pair, scales[D + channel] = (u16)(pair >> 16);
        }
    }
    note_scales(work, largest, overflows);
//@ if KEY_META8 + VALUE_META8 > 0 then
    if constexpr (P::SMALL) { // the page's exponents are known behind a barrier
        if (largest_zero) atomicMax(&work->largest_zero, largest_zero);
        __syncthreads();
        small_pairs<keys>(work, block);
    }
//@ end
}

template <bool keys> __device__ __forceinline__ u32 any_code(const Work *work, int token, int channel) {
    const int at = Part<keys>::pair_at(token, channel);
    const bool boosted = keys && KEY_BOOSTED > 0 && work->boosted[channel];
    const float most = boosted ? largest_code(KEY_BOOST_BITS) : largest_code(Part<keys>::BITS), x = element_to_float(work->element[token * ROW + channel]);
    float doubt = 0;
    const u32 code = quick_code(x, work->quantiser[at], most, doubt) & 0xff;
    return doubt <= CERTAIN ? code : exact_code(x, work->pair[at], most);
}

// The i-th code of a lane's word: its token of the tile, and its row of 16.
template <bool keys> __device__ __forceinline__ void place_of_code(int lane, int i, int &token, int &x) {
    const int e = i >> 3, m = i >> 2 & 1, j = i >> 1 & 1, half = i & 1, outer = 8 * half + (lane >> 2), inner = 2 * (lane & 3) + 8 * j + e;
    token = 16 * m + (keys ? outer : inner), x = keys ? inner : outer;
}

// Words of all channels, those of the 2-bit planes 2 k and 2 k + 1 and the one of the 1-bit plane for both.
template <bool keys> __device__ __forceinline__ void any_words(const Work *work, u8 *block) {
    using P = Part<keys>;
    for (int n = threadIdx.x; n < PAGE_TILES * (KD / 2) * 32; n += THREADS) {
        const int lane = n % 32, k = n / 32 % (KD / 2), tile = n / 32 / (KD / 2);
        u32 words[2 * P::PLANES + 1];
#pragma unroll
        for (int w = 0; w < 2 * P::PLANES + 1; w++) words[w] = 0;
#pragma unroll 1
        for (int i = 0; i < 32; i++) {
            int token, x;
            place_of_code<keys>(lane, i / 2, token, x);
            const u32 code = any_code<keys>(work, tile * 32 + token, channel_of(2 * k + i % 2, x));
#pragma unroll
            for (int p = 0; p < P::PLANES; p++) {
                const u32 two = (code >> (2 * p) & 3) << (i & ~1);
                if (i % 2) words[2 * p + 1] |= two;
                else words[2 * p] |= two;
            }
            if constexpr (P::HALF == 1) words[2 * P::PLANES] |= (code >> (2 * P::PLANES) & 1) << i;
        }
        u32 *to = (u32 *)(block + P::TILES + tile * P::TILE_BYTES + P::PAIR_BYTES);
#pragma unroll
        for (int w = 0; w < 2 * P::PLANES; w++) to[lane_word(w / 2 * KD + 2 * k + w % 2, P::WORDS, lane)] = words[w];
        if constexpr (P::HALF == 1) to[lane_word(P::PLANES * KD + k, P::WORDS, lane)] = words[2 * P::PLANES];
    }
}
//@ if any_key then

// Further words of the boosted channels: their 2-bit planes one behind the other, then their 1-bit plane.
__device__ __forceinline__ void any_boosted_words(const Work *work, u8 *block) {
    using P = Part<true>;
    constexpr int EXTRA = KEY_BOOST_BITS - KEY_BITS, FULL_ROWS = EXTRA / 2 * KEY_BOOSTED, FULL = (FULL_ROWS + 15) / 16;
    constexpr int FIRST = P::PLANES * KD + P::HALF * KD / 2, FURTHER = KEY_WORDS - FIRST;
    for (int n = threadIdx.x; n < PAGE_TILES * FURTHER * 32; n += THREADS) {
        const int lane = n % 32, w = n / 32 % FURTHER, tile = n / 32 / FURTHER;
        u32 word = 0;
#pragma unroll 1
        for (int i = 0; i < (w < FULL ? 16 : 32); i++) {
            int token, x;
            place_of_code<true>(lane, w < FULL ? i : i / 2, token, x);
            const int row = w < FULL ? w * 16 + x : (w - FULL) * 32 + i % 2 * 16 + x, plane = w < FULL ? row / BOOST_LIST : EXTRA / 2;
            if (row >= (w < FULL ? FULL_ROWS : KEY_BOOSTED)) continue;
            const u32 code = any_code<true>(work, tile * 32 + token, work->list[w < FULL ? row % BOOST_LIST : row]) >> (KEY_BITS + 2 * plane);
            word |= w < FULL ? (code & 3) << (2 * i) : (code & 1) << i;
        }
        ((u32 *)(block + KEY_TILES + tile * KEY_TILE_BYTES + P::PAIR_BYTES))[lane_word(FIRST + w, KEY_WORDS, lane)] = word;
    }
}

__device__ __forceinline__ void seal_key(Work *work, const kt_view &view, int page, u8 *block, u32 (&)[2 * ROUNDS]) {
//@ if KEY_ALONG == 0 then
    measure_keys(work, view, page);
    if constexpr (KEY_BOOSTED > 0) {
        if (threadIdx.x < 32) select_channels(work);
        __syncthreads();
    }
//@ else
    clean_exact(work, page);
//@ end
    any_pairs<true>(work, block);
    for (int i = threadIdx.x; i < KEY_TILES - KEY_INDEX; i += THREADS) block[KEY_INDEX + i] = i < KEY_BOOSTED ? work->list[i] : 0;
    __syncthreads();
    any_words<true>(work, block);
    if constexpr (KEY_BOOSTED > 0) any_boosted_words(work, block);
}
//@ end
//@ if any_value then

__device__ __forceinline__ void seal_value(Work *work, int page, u8 *block, u32 (&)[2 * ROUNDS]) {
    clean_exact(work, page);
    any_pairs<false>(work, block);
    __syncthreads();
    any_words<false>(work, block);
}
//@ end
