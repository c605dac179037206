// Sealing the keys of a page: scores, selection, codes and packing of the page in `work`. By all threads of a block.

__device__ __forceinline__ float4 element_quad(uint2 w) {
    return make_float4(element_to_float((u16)w.x), element_to_float((u16)(w.x >> 16)), element_to_float((u16)w.y), element_to_float((u16)(w.y >> 16)));
}

// Sums over the lanes of a channel's parts, by the rest of the tree: those whose numbers differ by 4, by 2, by 1.
__device__ __forceinline__ float join_sum(float s) {
#pragma unroll
    for (int k = 0; k < 3; k++) s = __fadd_rn(s, __shfl_xor_sync(~0u, s, k == 0 ? 8 : k == 1 ? 4 : 16));
    return s;
}
__device__ __forceinline__ float4 page_mean(float4 s) {
    constexpr float share = 1.0f / PAGE;
    return make_float4(__fmul_rn(join_sum(s.x), share), __fmul_rn(join_sum(s.y), share), __fmul_rn(join_sum(s.z), share),
                       __fmul_rn(join_sum(s.w), share));
}

// Extremes of every group, and of boosted keys the scores; notes what is not finite. A warp takes sixteen channels, a lane four of them
// in the tokens of one part: even parts in one half of the warp, odd ones in the other, so that no two rows share a bank.
__device__ __forceinline__ void measure_channels(Work *work) {
    static_assert(PARTS == 8 && KEY_GROUP % PARTS == 0, "a warp's lanes, and each part in every group");
    constexpr bool sums = KEY_BOOSTED > 0 && KEY_SCORE <= 1;
    const int lane = threadIdx.x % 32, part = (lane >> 2 & 3) * 2 + (lane >> 4);
    for (int base = threadIdx.x / 32 * 16; base < D; base += THREADS / 32 * 16) {
        const int channel = base + lane % 4 * 4;
        const u16 *column = work->element + part * ROW + channel;
        uint2 low[KEY_GROUPS], high[KEY_GROUPS];
#pragma unroll
        for (int group = 0; group < KEY_GROUPS; group++) {
            low[group] = make_uint2(EXPONENT_BITS, EXPONENT_BITS); // infinities
            high[group] = make_uint2(EXPONENT_BITS | 0x80008000u, EXPONENT_BITS | 0x80008000u);
        }
        auto take = [&](int t) {
            const uint2 w = *(const uint2 *)(column + t * ROW);
            uint2 &least = low[t / KEY_GROUP], &most = high[t / KEY_GROUP];
            least.x = smaller_pair(least.x, w.x), most.x = larger_pair(most.x, w.x);
            least.y = smaller_pair(least.y, w.y), most.y = larger_pair(most.y, w.y);
            return w;
        };
        float4 score = make_float4(0, 0, 0, 0);
        if constexpr (sums) {
            score = page_mean(tree_sum<PARTS>(0, [&](int t) {
                const float4 x = element_quad(take(t));
                return KEY_SCORE == 0 ? make_float4(fabsf(x.x), fabsf(x.y), fabsf(x.z), fabsf(x.w)) : x;
            }));
        } else {
#pragma unroll
            for (int t = 0; t < PAGE; t += PARTS) take(t);
        }
#pragma unroll
        for (int group = 0; group < KEY_GROUPS; group++) {
            uint2 &least = low[group], &most = high[group];
#pragma unroll
            for (int x = 4; x < 32; x *= 2) {
                least.x = smaller_pair(least.x, __shfl_xor_sync(~0u, least.x, x)), most.x = larger_pair(most.x, __shfl_xor_sync(~0u, most.x, x));
                least.y = smaller_pair(least.y, __shfl_xor_sync(~0u, least.y, x)), most.y = larger_pair(most.y, __shfl_xor_sync(~0u, most.y, x));
            }
            if (part) continue;
            const u32 bad = nonfinite_bits(least.x) | nonfinite_bits(least.y) | nonfinite_bits(most.x) | nonfinite_bits(most.y);
            if (bad) atomicOr(&work->dirty, 1);
            *(uint2 *)(work->low + (group * D + channel) / 2) = least, *(uint2 *)(work->high + (group * D + channel) / 2) = most;
        }
        if constexpr (sums && KEY_SCORE == 1)
            score = page_mean(tree_sum<PARTS>(0, [&](int t) {
                float4 x = element_quad(*(const uint2 *)(column + t * ROW));
                x.x = __fsub_rn(x.x, score.x), x.y = __fsub_rn(x.y, score.y), x.z = __fsub_rn(x.z, score.z), x.w = __fsub_rn(x.w, score.w);
                return make_float4(__fmul_rn(x.x, x.x), __fmul_rn(x.y, x.y), __fmul_rn(x.z, x.z), __fmul_rn(x.w, x.w));
            }));
        if constexpr (sums)
            if (part == 0) *(float4 *)(work->score + channel) = score;
    }
}

__device__ __forceinline__ void group_extremes(const Work *work, int group, int channel, float &low, float &high) {
    const int at = group * D + channel; // as 16-bit elements
    low = element_to_float(((const u16 *)work->low)[at]), high = element_to_float(((const u16 *)work->high)[at]);
}

// The page is finite afterwards.
__device__ __forceinline__ void measure_keys(Work *work, const kt_view &view, int page) {
    for (;;) {
        measure_channels(work);
        __syncthreads();
        if (!work->dirty) break;
        clean_page(work, page);
        __syncthreads();
        if (threadIdx.x == 0) work->dirty = 0;
        __syncthreads();
    }
//@ if KEY_SCORE == 4 then
    // The listed channels score 1, the others 0.
    const u8 *list = view.calibration + blockIdx.y * TABLE_BYTES + TABLE_BOOSTED;
    for (int channel = threadIdx.x; channel < D; channel += THREADS) work->score[channel] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < KEY_BOOSTED; i += THREADS) work->score[list[i]] = 1;
    __syncthreads();
//@ else
    if constexpr (KEY_BOOSTED > 0 && KEY_SCORE > 1) {
        for (int channel = threadIdx.x; channel < D; channel += THREADS) {
            float low, high;
            group_extremes(work, 0, channel, low, high);
            for (int group = 1; group < KEY_GROUPS; group++) {
                float a, b;
                group_extremes(work, group, channel, a, b);
                low = fminf(low, a), high = fmaxf(high, b);
            }
            work->score[channel] = KEY_SCORE == 2 ? __fsub_rn(__fadd_rn(high, 0.0f), __fadd_rn(low, 0.0f))
                                                  : kt_random_score(KEY_SEED, view.layer, blockIdx.y, page, channel);
        }
        __syncthreads();
    }
//@ end
}

// Flags the KEY_BOOSTED channels with the highest scores, ties to the lower channel, and lists them. One warp.
__device__ __forceinline__ void select_channels(Work *work) {
    constexpr int EACH = D / 32;
    const int lane = threadIdx.x % 32;
    u32 score[EACH], least = ~0u, most = 0; // not negative, so their bits order like them
#pragma unroll
    for (int j = 0; j < EACH; j++) {
        const float s = work->score[j * 32 + lane];
        score[j] = s != s ? 0x7f800000u : (u32)__float_as_int(s); // sums of bf16 can reach infinity
        least = min(least, score[j]), most = max(most, score[j]);
    }
    least = __reduce_min_sync(~0u, least), most = __reduce_max_sync(~0u, most);
    // The largest bound that KEY_BOOSTED scores or more reach, found two bits at a time from the highest one in which scores differ.
    const int differ = least == most ? -2 : (31 - __clz(least ^ most)) & ~1;
    u32 bound = differ < 0 ? least : least & ~((4u << differ) - 1);
#pragma unroll 1
    for (int bit = differ; bit >= 0; bit -= 2) {
        u32 counts = 0; // of scores that reach the bound with 1, 2 and 3 for these bits, ten bits each
#pragma unroll
        for (int j = 0; j < EACH; j++)
#pragma unroll
            for (u32 x = 1; x < 4; x++) counts += score[j] >= bound + (x << bit) ? 1u << (10 * (x - 1)) : 0;
        counts = __reduce_add_sync(~0u, counts);
        const u32 one = counts & 1023, two = counts >> 10 & 1023, three = counts >> 20;
        const u32 x = three >= KEY_BOOSTED ? 3 : two >= KEY_BOOSTED ? 2 : one >= KEY_BOOSTED ? 1 : 0;
        bound += x << bit;
        if (one == KEY_BOOSTED || two == KEY_BOOSTED || three == KEY_BOOSTED) break;
    }
    int above = 0, ties = 0, at = 0; // scores above the bound; of those at it and of chosen ones, in lower channels
#pragma unroll
    for (int j = 0; j < EACH; j++) above += __popc(__ballot_sync(~0u, score[j] > bound));
    const u32 lower = (1u << lane) - 1;
#pragma unroll
    for (int j = 0; j < EACH; j++) {
        const u32 tied = __ballot_sync(~0u, score[j] == bound);
        const bool chosen = score[j] > bound || (score[j] == bound && above + ties + __popc(tied & lower) < KEY_BOOSTED);
        const u32 all = __ballot_sync(~0u, chosen);
        work->boosted[j * 32 + lane] = chosen;
        if (chosen) work->list[at + __popc(all & lower)] = (u8)(j * 32 + lane);
        ties += __popc(tied), at += __popc(all);
        if constexpr (KEY_STEPS) { // four channels' bits of each of the plane's words
            const u32 four = all >> (lane * 4 % 32);
            const u32 mask = (four & 1) * 0x0f0fu | (four >> 2 & 1) * 0xf0f0u | (four >> 1 & 1) * 0x0f0f0000u | (four >> 3 & 1) * 0xf0f00000u;
            if (lane < 8) work->mask[j * 8 + lane] = mask;
        }
    }
}

//@ if not any_key then
// What needs no selection: pairs and steps of all groups with the spec's bits, and what they would be boosted.
__device__ __forceinline__ void measure_plain(Work *work, int thread, int threads) {
    for (int i = thread; i < KEY_PAIRS + BOOST_PAIRS; i += threads) {
        const bool boost = i >= KEY_PAIRS;
        const int at = boost ? i - KEY_PAIRS : i, group = at / D, channel = at % D;
        const float most = boost ? largest_code(KEY_BOOST_BITS) : largest_code(KEY_BITS);
        float low, high;
        bool over;
        group_extremes(work, group, channel, low, high);
        const u32 pair = pair_of(low, high, most, over), marked = over ? ~0u : pair; // no pair has these bits
        if (boost) {
            work->boost_pair[at] = marked, work->boost_quantiser[at] = quantiser_of(pair, most);
            continue;
        }
        work->pair[at] = marked;
        if constexpr (KEY_STEPS)
#pragma unroll
            for (int code = 1; code < 4; code++) work->step[(group * 3 + code - 1) * D + channel] = step_of(pair, code);
        else work->quantiser[at] = quantiser_of(pair, most);
    }
}

// Makes the pairs final and stores them.
__device__ __forceinline__ void finish_pairs(Work *work, u8 *block) {
    u32 largest = 0;
    int overflows = 0;
    for (int i = threadIdx.x; i < KEY_PAIRS; i += THREADS) {
        const int group = i / D, channel = i % D;
        const bool boosted = KEY_BOOSTED > 0 && work->boosted[channel];
        u32 pair = boosted ? work->boost_pair[i] : work->pair[i];
        overflows += pair == ~0u;
        if (pair == ~0u) pair = 0;
        largest = max(largest, pair & 0xffff);
        if constexpr (!KEY_STEPS) {
            work->pair[i] = pair;
            if (boosted) work->quantiser[i] = work->boost_quantiser[i];
            if (group == 0) work->most[channel] = boosted ? largest_code(KEY_BOOST_BITS) : largest_code(KEY_BITS);
        }
        u16 *scales = (u16 *)(block + KEY_META) + group * 2 * D;
        scales[channel] = (u16)pair, scales[D + channel] = (u16)(pair >> 16);
    }
    note_scales(work, largest, overflows);
    for (int i = threadIdx.x; i < KEY_TILES - KEY_INDEX; i += THREADS) block[KEY_INDEX + i] = i < KEY_BOOSTED ? work->list[i] : 0;
}

//@ if KEY_RANGE == 1 then
// Pairs of all groups by least squares, stored as well, and what the codes are made with.
__device__ __forceinline__ void fit_keys(Work *work, u8 *block) {
    u32 largest = 0;
    int overflows = 0;
    for (int i = threadIdx.x; i < KEY_PAIRS * RANGE_LANES; i += THREADS) {
        const int part = i % RANGE_LANES, at = i / RANGE_LANES, group = at / D, channel = at % D;
        const bool boosted = KEY_BOOSTED > 0 && work->boosted[channel];
        const float most = boosted ? largest_code(KEY_BOOST_BITS) : largest_code(KEY_BITS);
        const u16 *column = work->element + group * KEY_GROUP * ROW + channel;
        bool over;
        const u32 pair = fit_pair<KEY_GROUP>(most, part, over, [&](int t) { return element_to_float(column[t * ROW]); });
        if constexpr (KEY_STEPS)
            if (part) work->step[(group * 3 + part - 1) * D + channel] = step_of(boosted ? 0 : pair, part);
        if (part == 0) {
            if (boosted) work->boost_pair[at] = pair, work->boost_quantiser[at] = quantiser_of(pair, most);
            if constexpr (!KEY_STEPS) work->pair[at] = pair, work->quantiser[at] = quantiser_of(pair, most), work->most[channel] = most;
            overflows += over, largest = max(largest, pair & 0xffff);
            u16 *scales = (u16 *)(block + KEY_META) + group * 2 * D;
            scales[channel] = (u16)pair, scales[D + channel] = (u16)(pair >> 16);
        }
    }
    note_scales(work, largest, overflows);
    for (int i = threadIdx.x; i < KEY_TILES - KEY_INDEX; i += THREADS) block[KEY_INDEX + i] = i < KEY_BOOSTED ? work->list[i] : 0;
}

//@ end
// The k-th and the next word of all channels: rows g + 8 y of the tile, eight neighbouring channels.
__device__ __forceinline__ void step_words(u32 (&words)[2], const Work *work, int tile, int k, int lane) {
    const int g = lane >> 2, c = lane & 3, channel = channel_of(k, 2 * c);
    const u16 *element = work->element + (tile * 32 + g) * ROW + channel;
    const u16 *step = work->step + tile * 32 / KEY_GROUP * 3 * D + channel;
    uint4 row[4];
#pragma unroll
    for (int y = 0; y < 4; y++) row[y] = *(const uint4 *)(element + 8 * y * ROW);
    const uint4 one = *(const uint4 *)step, two = *(const uint4 *)(step + D), three = *(const uint4 *)(step + 2 * D);
#pragma unroll
    for (int y = 0; y < 4; y++) { // token 16 m + 8 half + g: y = 2 m + half
        const int at = 8 * (y >> 1) + 2 * (y & 1);
        put_codes(words[0], row[y].x, {one.x, two.x, three.x}, at);
        put_codes(words[0], row[y].y, {one.y, two.y, three.y}, at + 4);
        put_codes(words[1], row[y].z, {one.z, two.z, three.z}, at);
        put_codes(words[1], row[y].w, {one.w, two.w, three.w}, at + 4);
    }
}

// The k-th words of the planes of all channels, by multiplication: tokens 16 m + 8 half + g, four neighbouring channels.
__device__ __forceinline__ void product_words(u32 (&words)[KEY_PLANES], const Work *work, int tile, int k, int lane) {
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
        const float most = KEY_BOOSTED > 0 ? work->most[channel + x] : largest_code(KEY_BITS);
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
        const float most = KEY_BOOSTED > 0 ? work->most[channel + x] : largest_code(KEY_BITS);
        const u32 code = exact_code(element_to_float(element[8 * y * ROW + x]), work->pair[group + x], most);
        put_code(words, code, 16 * (x & 1) + 8 * (y >> 1) + 4 * (x >> 1) + 2 * (y & 1));
    }
}

// Four codes, one to a byte as below, as the plane's bits of a row: 8 m + 2 half.
__device__ __forceinline__ u32 plane_of(u32 codes, int plane) {
    const u32 bits = codes >> (2 * plane);
    return (bits & 0x0303u) | (bits >> 14 & 0x0c0cu);
}

// The codes of a boosted channel at tokens g + 8 y of the tile, token 16 m + 8 half + g in byte m + 2 half.
__device__ __forceinline__ u32 boosted_codes(const Work *work, int group, int channel, const u16 *element) {
    constexpr float most = largest_code(KEY_BOOST_BITS);
    const Quantiser q = work->boost_quantiser[group * D + channel];
    float doubt = 0;
    u32 codes = 0;
#pragma unroll
    for (int y = 0; y < 4; y++)
        codes |= (quick_code(element_to_float(element[8 * y * ROW]), q, most, doubt) & 0xffu) << (8 * (y >> 1) + 16 * (y & 1));
    if (doubt <= CERTAIN) return codes;
    codes = 0;
    const u32 pair = work->boost_pair[group * D + channel];
#pragma unroll 1
    for (int y = 0; y < 4; y++)
        codes |= exact_code(element_to_float(element[8 * y * ROW]), pair, most) << (8 * (y >> 1) + 16 * (y & 1));
    return codes;
}

// The words of the boosted channels' further planes; rows beyond them are 0. A warp takes four rows, a lane the eighth of a tile's
// tokens, so that a channel is the same for all lanes. With a channel's first further plane goes what the low plane has of it, where
// that is made of steps.
__device__ __forceinline__ void boosted_words(Work *work, u8 *tiles) {
    constexpr int FIRST = KEY_PLANES * KD, FURTHER = KEY_WORDS - FIRST, RUNS = (PAGE_TILES + 3) / 4; // of 32 lanes over the tiles
    const int lane = threadIdx.x % 32, g = lane % 8;
    for (int i = threadIdx.x / 32; i < FURTHER * 4 * RUNS; i += THREADS / 32) {
        const int c = i % 4, k = i / 4 % FURTHER, tile = i / 4 / FURTHER * 4 + lane / 8;
        if (PAGE_TILES % 4 && tile >= PAGE_TILES) continue;
        u32 word = 0;
#pragma unroll
        for (int x = 0; x < 4; x++) { // rows 2 c + 8 j + e
            const int j = x >> 1, e = x & 1, row = k * 16 + 2 * c + 8 * j + e, further = row / BOOST_LIST;
            if (row >= KEY_EXTRA * KEY_BOOSTED) continue;
            const int channel = work->list[row - further * BOOST_LIST];
            const u32 codes = boosted_codes(work, tile * 32 / KEY_GROUP, channel, work->element + (tile * 32 + g) * ROW + channel);
            word |= plane_of(codes, KEY_PLANES + further) << (16 * e + 4 * j);
            if (KEY_STEPS && further == 0) {
                const int at = channel >> 5 << 1 | (channel >> 2 & 1), to = g << 2 | (channel >> 3 & 3);
                atomicOr(work->patch + (tile * KD + at) * 32 + to, plane_of(codes, 0) << (16 * (channel & 1) + 2 * (channel & 2)));
            }
        }
        ((u32 *)(tiles + tile * KEY_TILE_BYTES))[lane_word(FIRST + k, KEY_WORDS, g * 4 + c)] = word;
    }
}

// Of low planes made of steps the words are in `held`, without the boosted channels; all else is stored.
__device__ __forceinline__ void seal_key(Work *work, const kt_view &view, int page, u8 *block, u32 (&held)[2 * ROUNDS]) {
    const int lane = threadIdx.x % 32;
    u8 *tiles = block + KEY_TILES;
    if constexpr (KEY_BITS == 16) {
        clean_exact(work, page);
        for (int i = threadIdx.x; i < PAGE_TILES * 2 * KD * 32; i += THREADS) {
            const int k = i / 32 % KD, m = i / 32 / KD % 2, tile = i / 32 / KD / 2, g = lane >> 2, c = lane & 3;
            u32 w[4];
            for (int r = 0; r < 4; r++) {
                const int half = r & 1, j = r >> 1;
                const u16 *row = work->element + (tile * 32 + 16 * m + 8 * half + g) * ROW;
                w[r] = row[channel_of(k, 2 * c + 8 * j)] | (u32)row[channel_of(k, 2 * c + 8 * j + 1)] << 16;
            }
            ((uint4 *)tiles)[i] = make_uint4(w[0], w[1], w[2], w[3]);
        }
    } else {
        measure_keys(work, view, page);
//@ if KEY_RANGE == 1 then
        if constexpr (KEY_BOOSTED > 0) {
            if (threadIdx.x < 32) select_channels(work);
            for (int i = threadIdx.x; i < PATCHES; i += THREADS) work->patch[i] = 0;
            __syncthreads();
        }
        fit_keys(work, block);
        __syncthreads();
//@ else
        if constexpr (KEY_BOOSTED > 0) { // one warp selects, the others need not wait
            if (threadIdx.x < 32) select_channels(work);
            else measure_plain(work, threadIdx.x - 32, THREADS - 32);
            for (int i = threadIdx.x; i < PATCHES; i += THREADS) work->patch[i] = 0;
        } else {
            measure_plain(work, threadIdx.x, THREADS);
        }
        __syncthreads();
        finish_pairs(work, block);
//@ end
        if constexpr (KEY_WORDS > KEY_PLANES * KD) boosted_words(work, tiles);
        if constexpr (KEY_STEPS) {
#pragma unroll
            for (int round = 0; round < ROUNDS; round++) {
                const Place at = place_of(round);
                u32 words[2] = {0, 0};
                if (at.real) step_words(words, work, at.tile, at.k, lane);
                held[2 * round] = words[0], held[2 * round + 1] = words[1];
            }
        } else {
            __syncthreads();
            for (int i = threadIdx.x; i < PAGE_TILES * KD * 32; i += THREADS) {
                const int k = i / 32 % KD, tile = i / 32 / KD;
                u32 words[KEY_PLANES];
                product_words(words, work, tile, k, lane);
#pragma unroll
                for (int p = 0; p < KEY_PLANES; p++)
                    ((u32 *)(tiles + tile * KEY_TILE_BYTES))[lane_word(p * KD + k, KEY_WORDS, lane)] = words[p];
            }
        }
    }
}
//@ end
