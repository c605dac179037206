// Sealing the values of a page: codes and packing of the page in `work`. By all threads of a block.

// Pairs of all groups, stored as well; their steps, or what quantises by multiplication. Lanes next to each other take parts of a group,
// each from another unit of 16 bytes on, so that no two share a bank.
constexpr int VALUE_PARTS = VALUE_PAIRS * 4 <= THREADS ? 4 : VALUE_PAIRS * 2 <= THREADS ? 2 : 1;
__device__ __forceinline__ void measure_values(Work *work, u8 *block, int page) {
    constexpr int UNITS = VALUE_GROUP / 8 / VALUE_PARTS, LANE_STEPS = (2 + VALUE_PARTS) / VALUE_PARTS;
    static_assert(VALUE_PAIRS % 32 == 0 && UNITS > 0, "whole warps, and a unit for each part");
    u32 largest = 0;
    int overflows = 0;
    for (int i = threadIdx.x; i < VALUE_PAIRS * VALUE_PARTS; i += THREADS) {
        const int part = i % VALUE_PARTS, token = i / VALUE_PARTS % PAGE, group = i / VALUE_PARTS / PAGE, t = token & 31;
        u16 *elements = work->element + token * ROW + (group * VALUE_PARTS + part) * UNITS * 8;
        const int turn = (UNITS < 8 ? part * UNITS / 8 : part) * (8 / VALUE_PARTS);
        u32 both; // the low half of the one, the high half of the other
#pragma unroll 1
        for (;;) {
            u32 low = EXPONENT_BITS, high = EXPONENT_BITS | 0x80008000u; // infinities
#pragma unroll
            for (int k = 0; k < UNITS; k++) {
                const uint4 w = *(const uint4 *)(elements + (k + turn) % UNITS * 8);
                low = smaller_pair(smaller_pair(low, smaller_pair(w.x, w.y)), smaller_pair(w.z, w.w));
                high = larger_pair(larger_pair(high, larger_pair(w.x, w.y)), larger_pair(w.z, w.w));
            }
            low = smaller_pair(low, low >> 16), high = larger_pair(high, high << 16);
            both = (low & 0xffffu) | (high & 0xffff0000u);
            if (!nonfinite_bits(both)) break;
            int count = 0;
            for (int k = 0; k < UNITS; k++) count += clean_eight(elements + k * 8);
            atomicOr(&work->damaged, 1);
            if (SINK + page * PAGE + token >= work->source.slot.tokens) atomicAdd(&work->count, count);
        }
        u32 low = both, high = both;
#pragma unroll
        for (int x = 1; x < VALUE_PARTS; x *= 2)
            low = smaller_pair(low, __shfl_xor_sync(~0u, low, x)), high = larger_pair(high, __shfl_xor_sync(~0u, high, x));
        bool over;
        const u32 pair = pair_of(element_to_float((u16)low), element_to_float((u16)(high >> 16)), largest_code(VALUE_BITS), over);
        overflows += over && part == 0, largest = max(largest, pair & 0xffff);
        if (part == 0)
            ((u32 *)(block + VALUE_TILES + token / 32 * VALUE_TILE_BYTES))[group * 32 + (t & 7) * 4 + (t >> 3)] = pair;
        if constexpr (VALUE_STEPS) {
            u16 *step = work->step + (group * (PAGE / 2) + token / 2) * 8 + token % 2;
#pragma unroll
            for (int s = 0; s < LANE_STEPS; s++) {
                const int code = 1 + part * LANE_STEPS + s;
                if (code < 4) step[2 * (code - 1)] = step_of(pair, code);
            }
        } else if (part == 0) {
            const int at = token * VALUE_GROUPS + group;
            work->pair[at] = pair, work->quantiser[at] = quantiser_of(pair, largest_code(VALUE_BITS));
        }
    }
    note_scales(work, largest, overflows);
}

//@ if VALUE_RANGE == 1 then
// The same by least squares, of a page that is finite.
__device__ __forceinline__ void fit_values(Work *work, u8 *block) {
    u32 largest = 0;
    int overflows = 0;
    for (int i = threadIdx.x; i < VALUE_PAIRS * RANGE_LANES; i += THREADS) {
        const int part = i % RANGE_LANES, token = i / RANGE_LANES % PAGE, group = i / RANGE_LANES / PAGE, t = token & 31;
        const u16 *elements = work->element + token * ROW + group * VALUE_GROUP;
        bool over;
        const u32 pair = fit_pair<VALUE_GROUP>(largest_code(VALUE_BITS), part, over, [&](int c) { return element_to_float(elements[c]); });
        if constexpr (VALUE_STEPS)
            if (part) work->step[(group * (PAGE / 2) + token / 2) * 8 + token % 2 + 2 * (part - 1)] = step_of(pair, part);
        if (part == 0) {
            const int at = token * VALUE_GROUPS + group;
            if constexpr (!VALUE_STEPS) work->pair[at] = pair, work->quantiser[at] = quantiser_of(pair, largest_code(VALUE_BITS));
            overflows += over, largest = max(largest, pair & 0xffff);
            ((u32 *)(block + VALUE_TILES + token / 32 * VALUE_TILE_BYTES))[group * 32 + (t & 7) * 4 + (t >> 3)] = pair;
        }
    }
    note_scales(work, largest, overflows);
}

//@ end
// The k-th and the next word of a tile: tokens 16 m + 2 c + 8 j + e, four channels of a run of eight.
__device__ __forceinline__ void step_value_words(u32 (&words)[2], const Work *work, int tile, int k, int lane) {
    const int g = lane >> 2, c = lane & 3, channel = channel_of(k, g & 6), group = channel / VALUE_GROUP;
    const u16 *element = work->element + (tile * 32 + 2 * c) * ROW + channel;
    const uint4 *step = (const uint4 *)work->step + group * (PAGE / 2) + tile * 16 + c;
    const u32 pick = g & 1 ? 0x7632 : 0x5410; // the channel of both tokens
#pragma unroll
    for (int y = 0; y < 4; y++) { // y = 2 m + j
        const uint4 even = *(const uint4 *)(element + 8 * y * ROW), odd = *(const uint4 *)(element + (8 * y + 1) * ROW), s = step[4 * y];
        const Steps steps = {s.x, s.y, s.z};
        const int at = 8 * (y >> 1) + 4 * (y & 1);
        put_codes(words[0], __byte_perm(even.x, odd.x, pick), steps, at);
        put_codes(words[0], __byte_perm(even.y, odd.y, pick), steps, at + 2);
        put_codes(words[1], __byte_perm(even.z, odd.z, pick), steps, at);
        put_codes(words[1], __byte_perm(even.w, odd.w, pick), steps, at + 2);
    }
}

// The k-th words of a tile's planes, by multiplication.
__device__ __forceinline__ void product_value_words(u32 (&words)[VALUE_PLANES], const Work *work, int tile, int k, int lane) {
    constexpr float most = largest_code(VALUE_BITS);
    const int g = lane >> 2, c = lane & 3, channel = channel_of(k, g), group = channel / VALUE_GROUP; // half 1: two channels on
    const u16 *element = work->element + (tile * 32 + 2 * c) * ROW;
    const int first = (tile * 32 + 2 * c) * VALUE_GROUPS + group;
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
    if (doubt <= CERTAIN) return;
#pragma unroll
    for (int p = 0; p < VALUE_PLANES; p++) words[p] = 0;
#pragma unroll 1
    for (int y = 0; y < 16; y++) {
        const int half = y >> 3, m = y >> 2 & 1, j = y >> 1 & 1, e = y & 1, token = 16 * m + 8 * j + e;
        const u32 code =
            exact_code(element_to_float(element[token * ROW + channel + 2 * half]), work->pair[first + token * VALUE_GROUPS], most);
        put_code(words, code, 16 * e + 8 * m + 4 * j + 2 * half);
    }
}

// Words made of steps are in `held`; all else is stored.
__device__ __forceinline__ void seal_value(Work *work, int page, u8 *block, u32 (&held)[2 * ROUNDS]) {
    const int lane = threadIdx.x % 32;
    u8 *tiles = block + VALUE_TILES;
    if constexpr (VALUE_BITS == 16) {
        clean_exact(work, page);
        for (int i = threadIdx.x; i < PAGE_TILES * KD * 2 * 32; i += THREADS) {
            const int m = i / 32 % 2, k = i / 64 % KD, tile = i / 64 / KD, g = lane >> 2, c = lane & 3;
            u32 w[4];
            for (int r = 0; r < 4; r++) {
                const int half = r & 1, j = r >> 1;
                const u16 *first = work->element + (tile * 32 + 16 * m + 2 * c + 8 * j) * ROW + channel_of(k, 8 * half + g);
                w[r] = first[0] | (u32)first[ROW] << 16;
            }
            ((uint4 *)tiles)[i] = make_uint4(w[0], w[1], w[2], w[3]);
        }
    } else {
//@ if VALUE_RANGE == 1 then
        clean_exact(work, page);
        fit_values(work, block);
//@ else
        measure_values(work, block, page);
//@ end
        __syncthreads();
        if constexpr (VALUE_STEPS) {
#pragma unroll
            for (int round = 0; round < ROUNDS; round++) {
                const Place at = place_of(round);
                u32 words[2] = {0, 0};
                if (at.real) step_value_words(words, work, at.tile, at.k, lane);
                held[2 * round] = words[0], held[2 * round + 1] = words[1];
            }
        } else {
            for (int i = threadIdx.x; i < PAGE_TILES * KD * 32; i += THREADS) {
                const int k = i / 32 % KD, tile = i / 32 / KD;
                u32 words[VALUE_PLANES];
                product_value_words(words, work, tile, k, lane);
#pragma unroll
                for (int p = 0; p < VALUE_PLANES; p++)
                    ((u32 *)(tiles + tile * VALUE_TILE_BYTES + VALUE_META_BYTES))[lane_word(p * KD + k, VALUE_WORDS, lane)] = words[p];
            }
        }
    }
}
