// Ranges by least squares: of the RANGES ranges that are the extremes, each moved inwards by k / RANGE_STEPS of their distance, a group
// takes the one whose codes are the nearest to its elements, of equals the widest. The arithmetic is that of runtime/cpu/quantise.c, one
// rounding per operation and in the order of the elements, so that the choice is the same everywhere. Four neighbouring lanes to a
// group, each with a quarter of the ranges.
constexpr int RANGES = 16, RANGE_STEPS = 64, RANGE_LANES = 4, RANGE_EACH = RANGES / RANGE_LANES;

// The pair of a group of `count` elements, in all of its lanes; part: threadIdx.x % RANGE_LANES. By whole warps.
template <int count, class Element>
__device__ __forceinline__ u32 fit_pair(float most, int part, bool &over, const Element &element) {
    u32 pair[RANGE_EACH];
    float scale[RANGE_EACH], zero[RANGE_EACH], inverse[RANGE_EACH], error[RANGE_EACH];
    bool beyond[RANGE_EACH];
    float low = element(0), high = low;
    for (int i = 1; i < count; i++) low = fminf(low, element(i)), high = fmaxf(high, element(i));
    low = __fadd_rn(low, 0.0f), high = __fadd_rn(high, 0.0f); // -0 becomes +0
    const u32 widest = pair_of(low, high, most, over);
#pragma unroll
    for (int j = 0; j < RANGE_EACH; j++) {
        const float inset = __fmul_rn(__fsub_rn(high, low), (float)(part * RANGE_EACH + j) * (1.0f / RANGE_STEPS));
        pair[j] = pair_of(__fadd_rn(low, inset), __fsub_rn(high, inset), most, beyond[j]);
        scale[j] = scale_of(pair[j]), zero[j] = zero_of(pair[j]);
        inverse[j] = scale[j] != 0 ? __fdiv_rn(1.0f, scale[j]) : 0.0f;
        error[j] = 0;
    }
#pragma unroll 2
    for (int i = 0; i < count; i++) {
        const float x = element(i);
#pragma unroll
        for (int j = 0; j < RANGE_EACH; j++) {
            const float code = rintf(fminf(fmaxf(__fmul_rn(__fsub_rn(x, zero[j]), inverse[j]), 0.0f), most));
            const float off = __fsub_rn(x, __fadd_rn(__fmul_rn(code, scale[j]), zero[j]));
            error[j] = __fadd_rn(error[j], __fmul_rn(off, off));
        }
    }
    int best = 0;
#pragma unroll
    for (int j = 0; j < RANGE_EACH; j++) {
        if (beyond[j]) error[j] = infinity();
        if (error[j] < error[0]) error[0] = error[j], pair[0] = pair[j], best = j;
    }
    best += part * RANGE_EACH;
#pragma unroll
    for (int x = 1; x < RANGE_LANES; x <<= 1) {
        const float other = __shfl_xor_sync(~0u, error[0], x);
        const u32 other_pair = __shfl_xor_sync(~0u, pair[0], x);
        const int other_best = __shfl_xor_sync(~0u, best, x);
        if (other < error[0] || (other == error[0] && other_best < best)) error[0] = other, pair[0] = other_pair, best = other_best;
    }
    return over ? widest : pair[0];
}
