// Raw products of `groups` groups of 16 tokens of a key tile that has 1-bit planes, from group m0 on: s[h][at + m].
constexpr u32 HALF_BITS = 0x55555555u; // of a word that holds a 1-bit plane of two groups of 16 rows, those of the first

template <int groups, int most>
__device__ __forceinline__ void score_codes(float (&s)[HALVES][most][4], int at, const KeyOperand &operand, const u8 *tile, int m0, int lane) {
    constexpr int FULL = KEY_PLANES * KD;
    Words<KEY_WORDS> words(tile, lane);
    float sum[HALVES][groups][4], plane[HALVES][groups][4];
#pragma unroll
    for (int m = 0; m < groups; m++)
#pragma unroll
        for (int i = 0; i < 4; i++) sum[0][m][i] = plane[0][m][i] = 0;
#pragma unroll
    for (int w = 0; w < KEY_WORDS; w++) {
        // Planes of all channels but the first reuse the operand and are weighted afterwards.
        const bool base = w < BASE_WORDS, half = base ? w >= FULL : w >= BASE_WORDS + EXTRA_WORDS, weighted = base && w >= KD;
        const int p = base ? half ? KEY_PLANES : w / KD : 0;
        const int row = base ? half ? 2 * (w - FULL) : w % KD : half ? KD + EXTRA_TILES + 2 * (w - BASE_WORDS - EXTRA_WORDS) : KD + w - BASE_WORDS;
        const bool last = half ? w == BASE_WORDS - 1 : w % KD == KD - 1;
        const u32 x = words.get(w, w == 0);
#pragma unroll
        for (int m = 0; m < groups; m++) {
            float(&to)[HALVES][groups][4] = weighted ? plane : sum;
            if (half) {
                mma_codes(to, m, (x & HALF_BITS) >> (8 * (m0 + m)), operand.high, 2 * row);
                mma_codes(to, m, (x >> 1 & HALF_BITS) >> (8 * (m0 + m)), operand.high, 2 * row + 2);
            } else {
                mma_codes(to, m, x >> (8 * (m0 + m)), operand.high, 2 * row);
            }
            if (weighted && last)
#pragma unroll
                for (int i = 0; i < 4; i++) sum[0][m][i] += plane[0][m][i] * (float)(1 << (2 * p)), plane[0][m][i] = 0;
        }
    }
#pragma unroll
    for (int m = 0; m < groups; m++)
#pragma unroll
        for (int i = 0; i < 4; i++) s[0][at + m][i] = sum[0][m][i];
}
