// Raw products of `groups` groups of 16 tokens of a key tile that has 1-bit planes, from group m0 on.
constexpr u32 HALF_BITS = 0x55555555u; // of a word that holds a 1-bit plane of two groups of 16 rows, those of the first

template <int groups>
__device__ __forceinline__ void score_codes(float (*s)[4], const KeyOperand &operand, const u8 *tile, int m0, int lane) {
    constexpr int FULL = KEY_PLANES * KD;
    Words<KEY_WORDS> words(tile, lane);
    float plane[groups][4];
    auto meet = [&](float(&to)[4], u32 x, int m, int at) {
        mma_codes(to, x >> (8 * (m0 + m)), operand.high[2 * at], operand.high[2 * at + 1]);
        if (!PAIR) mma_codes(to, x >> (8 * (m0 + m)), operand.low[2 * at], operand.low[2 * at + 1]);
    };
#pragma unroll
    for (int m = 0; m < groups; m++)
#pragma unroll
        for (int i = 0; i < 4; i++) s[m][i] = plane[m][i] = 0;
#pragma unroll
    for (int w = 0; w < KEY_WORDS; w++) {
        // Planes of all channels but the first reuse the operand and are weighted afterwards.
        const bool base = w < BASE_WORDS, half = base ? w >= FULL : w >= BASE_WORDS + EXTRA_WORDS, weighted = base && w >= KD;
        const int p = base ? half ? KEY_PLANES : w / KD : 0;
        const int at = base ? half ? 2 * (w - FULL) : w % KD : half ? KD + EXTRA_WORDS + 2 * (w - BASE_WORDS - EXTRA_WORDS) : KD + w - BASE_WORDS;
        const bool last = half ? w == BASE_WORDS - 1 : w % KD == KD - 1;
        const u32 x = words.get(w, w == 0);
#pragma unroll
        for (int m = 0; m < groups; m++) {
            float(&to)[4] = weighted ? plane[m] : s[m];
            if (half) {
                meet(to, x & HALF_BITS, m, at);
                meet(to, x >> 1 & HALF_BITS, m, at + 1);
            } else {
                meet(to, x, m, at);
            }
            if (weighted && last)
#pragma unroll
                for (int i = 0; i < 4; i++) s[m][i] += plane[m][i] * (float)(1 << (2 * p)), plane[m][i] = 0;
        }
    }
}
