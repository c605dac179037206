// Elements of the spec's type: fp16 or bf16, by DTYPE.
__device__ __forceinline__ float element_to_float(u16 e) {
    if constexpr (DTYPE == 0) return half_to_float(e);
    else return __uint_as_float((u32)e << 16);
}
__device__ __forceinline__ u16 float_to_element(float f) {
    if constexpr (DTYPE == 0) return float_to_half(f);
    else return float_to_bfloat(f);
}
__device__ __forceinline__ u32 pack_element(float low, float high) {
    if constexpr (DTYPE == 0) return pack_half(low, high);
    else return pack_bfloat(low, high);
}
__device__ __forceinline__ void mma_element(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    if constexpr (DTYPE == 0) mma_half(c, a0, a1, a2, a3, b0, b1);
    else mma_bfloat(c, a0, a1, a2, a3, b0, b1);
}

// Infinities and NaNs have an exponent of ones; adding one unit of it carries into the sign bit of its half.
constexpr u32 EXPONENT_BITS = DTYPE == 0 ? 0x7c007c00u : 0x7f807f80u;
constexpr u32 EXPONENT_UNIT = DTYPE == 0 ? 0x04000400u : 0x00800080u;
// Bits 15 and 31: whether the low and the high element of a pair is not finite.
__device__ __forceinline__ u32 nonfinite_bits(u32 pair) { return ((pair & EXPONENT_BITS) + EXPONENT_UNIT) & 0x80008000u; }
// Per element the larger magnitude; NaN where either is.
__device__ __forceinline__ u32 peak_pair(u32 a, u32 b) {
    if constexpr (DTYPE == 0) return half2_peak(a, b);
    else return bfloat2_peak(a, b);
}
// Per element the smaller and the larger; NaN where either is.
__device__ __forceinline__ u32 smaller_pair(u32 a, u32 b) {
    if constexpr (DTYPE == 0) return half2_min(a, b);
    else return bfloat2_min(a, b);
}
__device__ __forceinline__ u32 larger_pair(u32 a, u32 b) {
    if constexpr (DTYPE == 0) return half2_max(a, b);
    else return bfloat2_max(a, b);
}
// Per element: all ones where a >= b, else 0.
__device__ __forceinline__ u32 pair_reaches(u32 a, u32 b) {
    if constexpr (DTYPE == 0) return half2_reaches(a, b);
    else return bfloat2_reaches(a, b);
}
// The pair with elements that are not finite replaced by 0.
__device__ __forceinline__ u32 finite_pair(u32 pair) {
    const u32 bad = nonfinite_bits(pair);
    return pair & ~((bad & 0x8000u ? 0xffffu : 0) | (bad & 0x80000000u ? 0xffff0000u : 0));
}

__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }
// 2^e for e in [-126, 127]
__device__ __forceinline__ float power_of_two(int e) { return __int_as_float((e + 127) << 23); }
// Smallest e with x <= 2^e, for a finite normal x > 0; -126 or less for 0 and subnormal x.
__device__ __forceinline__ int ceil_exponent(float x) {
    const int bits = __float_as_int(x);
    return (bits >> 23) - 127 + ((bits & 0x7fffff) != 0);
}
// Pages sealed once a sequence has `tokens` tokens.
__device__ __forceinline__ int sealed_pages(int tokens, int window) {
    const int rest = tokens - SINK - window;
    return rest < 0 ? 0 : rest / PAGE;
}
// Loads of what nothing writes any more, past the L1 cache, which may hold it as it was before.
__device__ __forceinline__ int load_settled(const int *p) { return load_through(p); }
__device__ __forceinline__ uint4 load_settled(const uint4 *p) { return load_through(p); }
__device__ __forceinline__ kt_slot load_settled(const kt_slot *p) {
    const int *w = (const int *)p;
    kt_slot slot;
    slot.tokens = load_through(w), slot.fresh = load_through(w + 1), slot.row = load_through(w + 2);
    slot.slab = load_through(w + 4), slot.slab_next = load_through(w + 5);
    return slot;
}
