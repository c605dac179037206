//@ include "lib/meta8.h"

// The exponents of a block's scales and zeros of 8 bits, of its keys or of its values.
struct Exponents {
    int scale, zero;
};
__device__ __forceinline__ Exponents exponents_of(const u8 *block, bool keys) {
    const signed char *header = (const signed char *)block;
    return {header[keys ? KT_HEADER_KEY_EXPONENT : KT_HEADER_VALUE_EXPONENT], header[keys ? KT_HEADER_KEY_ZERO : KT_HEADER_VALUE_ZERO]};
}

__device__ __forceinline__ float meta8_value(u32 byte, int exponent) {
    return __fmul_rn(half_to_float((u16)kt_meta8_half(byte)), power_of_two(exponent));
}
// Scale (low) and zero (high) as fp16, which holds them.
__device__ __forceinline__ u32 pair_of_bytes(u32 scale, u32 zero, Exponents e) {
    return pack_half(meta8_value(scale, e.scale), meta8_value(zero, e.zero));
}
// Eight bytes as halves.
__device__ __forceinline__ uint4 halves_of_bytes(const u8 *bytes, int exponent) {
    const uint2 eight = *(const uint2 *)bytes;
    const u32 unit = pack_half(power_of_two(exponent), power_of_two(exponent));
    auto pair = [&](u32 two) {
        const u32 x = (two & 0xff) | (two & 0xff00) << 8;
        return half2_multiply((x & 0x007f007fu) << 7 | (x & 0x00800080u) << 8, unit);
    };
    return make_uint4(pair(eight.x), pair(eight.x >> 16), pair(eight.y), pair(eight.y >> 16));
}
