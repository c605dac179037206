// What the files of the CPU backend share.
#ifndef KT_CPU_H
#define KT_CPU_H

#include "../internal.h"

enum { KT__TILE = 32, KT__MAX_PAGE = 1024, KT__MAX_DIM = 256 };

// No infinity and no NaN.
static inline bool kt__element_finite(int dtype, unsigned short element)
{
    const unsigned exponent = dtype == KT_F16 ? 0x7c00 : 0x7f80;
    return (element & exponent) != exponent;
}

// The element as everything after the append reads it: what is not finite is 0, -0 is +0.
static inline float kt__element(int dtype, unsigned short element)
{
    return kt__element_finite(dtype, element) ? kt__to_float(dtype, element) + 0.0f : 0.0f;
}

// A part of a block in steps of 32 tokens; out: [32, head_dim].
void kt__cpu_decode_key_tile(const kt_format *format, const unsigned char *block, int tile, float *out);
void kt__cpu_decode_value_tile(const kt_format *format, const unsigned char *block, int tile, float *out);

#endif
