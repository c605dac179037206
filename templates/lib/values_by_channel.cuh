// Sealed values whose scales and zeros are of a channel and a group of tokens: they fold into the output, once per group.
struct SealedOutput { // nothing is left to the end
//@ if VALUE_META8 == 1 then
    Exponents exponents; // of the page at hand
//@ end
};
constexpr int SPAN = VALUE_GROUP / 32 < TILES ? VALUE_GROUP / 32 : TILES; // tiles that share their scales, of those held

__device__ __forceinline__ void start_sealed(State &state, SealedOutput &, int, int lane) {
    // Until here both lanes of a head had the same tokens.
    if (second_lane(lane)) state.sum0 = state.sum1 = 0;
}
__device__ __forceinline__ void finish_sealed(State &, const SealedOutput &, int, int) {}

// Adds the values of a chunk; scales and zeros follow the chunk's tiles.
__device__ __forceinline__ void add_sealed_values(State &state, SealedOutput &sealed, int, const float (&p)[GROUPS][4],
                                                  const u8 *stage, int lane) {
    const u8 *tiles = stage + KEY_TILES + TILES * KEY_TILE_BYTES;
    constexpr int own = PAIR ? 1 : 2; // groups of a tile that a lane has
    const int g = lane >> 2;
    const float unit = power_of_two(P_EXPONENT), back = power_of_two(24 - P_EXPONENT);
#pragma unroll
    for (int t0 = 0; t0 < TILES; t0 += SPAN) {
//@ if VALUE_META8 == 1 then
        const ChannelPairs pairs(tiles, t0, sealed.exponents);
//@ else
        const ChannelPairs pairs(tiles, t0);
//@ end
        float sum0 = 0, sum1 = 0; // of probabilities, then over the lanes of a column
        u32 b[4 * SPAN];
#pragma unroll
        for (int t = 0; t < SPAN; t++) {
            u32 packed[2 * own], spread[4];
#pragma unroll
            for (int r = 0; r < 2 * own; r++) {
                const int j = r & 1;
                const float(&from)[4] = p[own * (t0 + t) + r / 2];
                const float scale = j ? unit * 0.0625f : unit;
                sum0 += from[2 * j], sum1 += from[2 * j + 1];
                packed[r] = pack_half(from[2 * j] * scale, from[2 * j + 1] * scale);
            }
            spread_weights(spread, packed, lane);
#pragma unroll
            for (int r = 0; r < 4; r++) b[4 * t + r] = spread[r];
        }
#pragma unroll
        for (int x = 4; x < 32; x <<= 1) {
            sum0 += __shfl_xor_sync(~0u, sum0, x);
            sum1 += __shfl_xor_sync(~0u, sum1, x);
        }
#pragma unroll
        for (int plane = 0; plane < VALUE_LAYERS; plane++) {
            const float weight = back * (float)(1 << (2 * plane));
#pragma unroll
            for (int i0 = 0; i0 < KD; i0 += 2) {
                float sum[2][4];
#pragma unroll
                for (int i = 0; i < 2; i++)
#pragma unroll
                    for (int e = 0; e < 4; e++) sum[i][e] = 0;
#pragma unroll
                for (int t = 0; t < SPAN; t++) {
                    Words<VALUE_WORDS> words(tiles + (t0 + t) * VALUE_TILE_BYTES + VALUE_META_BYTES, lane);
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        const u32 x = value_word(words, plane, i0 + i, i == 0);
                        mma_codes(sum, i, x, b, 4 * t);
                        mma_codes(sum, i, x >> 8, b, 4 * t + 2);
                    }
                }
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const int channel = channel_of(i0 + i, g), channel8 = channel_of(i0 + i, g + 8);
                    const float scale = pairs.scale(channel) * weight, scale8 = pairs.scale(channel8) * (weight * 0.25f);
                    const float zero = pairs.zero(channel), zero8 = pairs.zero(channel8);
                    float(&out)[4] = state.out[i0 + i];
                    out[0] += sum[i][0] * scale, out[1] += sum[i][1] * scale;
                    out[2] += sum[i][2] * scale8, out[3] += sum[i][3] * scale8; // codes times 4
                    if (plane == 0) {
                        out[0] += zero * sum0, out[1] += zero * sum1;
                        out[2] += zero8 * sum0, out[3] += zero8 * sum1;
                    }
                }
            }
        }
    }
}
