// Scales and zeros of 8 bits: E4M3 (a sign, four bits of exponent, three of fraction) over 256, times a power of two per page; the same in
// the CPU reference and in every kernel.
#ifdef __CUDACC__
#define KT_META_FUNCTION __device__ __forceinline__
#else
#define KT_META_FUNCTION static inline
#endif

// What a byte stands for, without the page's power of two, as fp16.
KT_META_FUNCTION unsigned kt_meta8_half(unsigned byte) { return (byte & 0x7f) << 7 | (byte & 0x80) << 8; }

// The byte for a number >= 0 whose fp32 bits are `bits`, in units of E4M3: rounded to nearest even, or up; at most 448.
KT_META_FUNCTION unsigned kt_meta8_round(unsigned bits, int up)
{
    const int shift = 141 - (int)(bits >> 23); // steps of 2^-9 below 2^-6
    unsigned code;
    if (bits >= 121u << 23) {
        code = ((bits + (up ? 0xfffffu : 0x7ffffu + (bits >> 20 & 1))) >> 20) - (120u << 3);
    } else if (shift > 24) {
        code = up && bits;
    } else {
        const unsigned whole = (bits & 0x7fffff) | 0x800000, rest = whole & ((1u << shift) - 1), half = 1u << (shift - 1);
        code = whole >> shift;
        code += up ? rest != 0 : rest > half || (rest == half && (code & 1));
    }
    return code < 0x7e ? code : 0x7e;
}
