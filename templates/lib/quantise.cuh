// Scales, zeros and codes. All arithmetic is IEEE fp32, one rounding per operation, in the order of runtime/cpu/quantise.c, which
// defines the bytes.
constexpr __host__ __device__ float largest_code(int bits) { return (float)((1 << bits) - 1); }

// Scale (low) and zero (high) of a group with these extremes; 0, which decodes to 0, and `over` where one is beyond 65504.
__device__ __forceinline__ u32 pair_of(float low, float high, float most, bool &over) {
    low = __fadd_rn(low, 0.0f), high = __fadd_rn(high, 0.0f); // -0 becomes +0
    const u32 zero = float_to_half(low), scale = float_to_half(__fdiv_rn(__fsub_rn(high, low), most));
    over = (zero & 0x7c00) == 0x7c00 || (scale & 0x7c00) == 0x7c00;
    return over ? 0 : scale | zero << 16;
}
__device__ __forceinline__ float scale_of(u32 pair) { return half_to_float((u16)pair); }
__device__ __forceinline__ float zero_of(u32 pair) { return half_to_float((u16)(pair >> 16)); }

// The definition, before the clamp: rounds half to even, after an IEEE division.
__device__ __noinline__ float exact_quotient(float x, u32 pair) {
    return rintf(__fdiv_rn(__fsub_rn(x, zero_of(pair)), scale_of(pair)));
}

__device__ __forceinline__ u32 exact_code(float x, u32 pair, float most) {
    return scale_of(pair) == 0 ? 0 : (u32)fminf(fmaxf(exact_quotient(x, pair), 0), most);
}

// The same by multiplications, which are off by less than 1e-4; `doubt` grows to how far from a whole number the quotient was, and above
// CERTAIN the code may be the wrong one of two. The code is in the low 8 bits of what is returned.
struct Quantiser {
    float inverse, zero; // 1 / (scale * largest code), 0 where the scale is 0
};
__device__ __forceinline__ Quantiser quantiser_of(u32 pair, float most) {
    const float scale = scale_of(pair);
    return {scale != 0 ? __fdiv_rn(1.0f, __fmul_rn(scale, most)) : 0.0f, zero_of(pair)};
}
constexpr float CERTAIN = 0.4999f;
__device__ __forceinline__ u32 quick_code(float x, Quantiser q, float most, float &doubt) {
    const float magic = 12582912.0f; // adding it rounds to a whole number, which its low bits then hold
    const float share = __saturatef(__fmul_rn(__fsub_rn(x, q.zero), q.inverse));
    const float sum = __fmaf_rn(share, most, magic);
    doubt = fmaxf(doubt, fabsf(__fmaf_rn(share, most, __fsub_rn(magic, sum))));
    return (u32)__float_as_int(sum);
}

// ---- steps: a code of few bits counts how many of its group's steps an element has reached ----

// Elements in ascending order, as integers; both zeros are 0.
__device__ __forceinline__ int order_of(u16 e) { return e & 0x8000 ? -(int)(e & 0x7fff) : (int)e; }
__device__ __forceinline__ u16 element_at(int order) { return (u16)(order < 0 ? 0x8000 | -order : order); }

// How far an element is beyond the real number from which on the code is `step`, which is (code - 1/2) * scale; where that is less than
// 2^-22 of `step`, only the definition tells.
__device__ __forceinline__ float beyond_step(int order, u32 pair, float step) {
    return __fsub_rn(__fsub_rn(element_to_float(element_at(order)), zero_of(pair)), step);
}

__device__ __noinline__ u16 search_step(int at, u32 pair, int code) {
    auto reaches = [&](int order) { return exact_quotient(element_to_float(element_at(order)), pair) >= (float)code; };
    constexpr int END = EXPONENT_BITS & 0xffff;
    int below = -END, reached = END;
    if (reaches(at)) { // next to `at`, nearly always
        reached = at;
        if (!reaches(at - 1)) below = at - 1;
    } else {
        below = at;
        if (reaches(at + 1)) reached = at + 1;
    }
#pragma unroll 1
    while (reached - below > 1) {
        const int middle = below + (reached - below) / 2;
        if (reaches(middle)) reached = middle;
        else below = middle;
    }
    return element_at(reached);
}

// The smallest element whose code is `code` or more; infinity where there is none. An element that lies on the step has the quotient
// code - 1/2 exactly, which rounds to the even one of two codes: often so in fp16, whose elements near 0 are finer than scales and zeros.
__device__ __forceinline__ u16 step_of(u32 pair, int code) {
    if ((pair & 0xffff) == 0) return EXPONENT_BITS & 0xffff; // infinity
    const float middle = (float)code - 0.5f, step = __fmul_rn(scale_of(pair), middle), close = step * 0x1p-22f;
    const float goal = __fmaf_rn(scale_of(pair), middle, zero_of(pair));
    const bool even = code % 2 == 0;
    int at = order_of(float_to_element(goal));
    at += element_to_float(element_at(at)) < goal;
    at += !even && beyond_step(at, pair, step) == 0;
    const float here = beyond_step(at, pair, step), below = beyond_step(at - 1, pair, step);
    if ((here > close || (even && here == 0)) && (below < -close || (!even && below == 0))) return element_at(at);
    return search_step(at, pair, code);
}

// The steps of two elements each, one to a half.
struct Steps {
    u32 one, two, three;
};
// Puts the 2-bit codes of a pair of elements into the word, at bits `at` and 16 + at.
__device__ __forceinline__ void put_codes(u32 &word, u32 pair, const Steps &steps, int at) {
    const u32 upper = pair_reaches(pair, steps.two), lower = pair_reaches(pair, (steps.one & ~upper) | (steps.three & upper));
    const u32 high = 0x00020002u << at, low = 0x00010001u << at;
    word = (word & ~high) | (upper & high);
    word = (word & ~low) | (lower & low);
}

// Puts two bits of a code into each plane's word, at bit `at`.
template <int planes> __device__ __forceinline__ void put_code(u32 (&words)[planes], u32 code, int at) {
#pragma unroll
    for (int p = 0; p < planes; p++) words[p] += (code >> (2 * p) & 3u) << at;
}
