#include "cpu.h"

#include <string.h>

static float from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t to_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

float kt__half_to_float(unsigned short half)
{
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, mantissa = half & 0x3ff;
    if (exponent == 31)
        return from_bits(sign | 0x7f800000 | mantissa << 13);
    if (exponent == 0)
        return from_bits(sign | to_bits((float)mantissa * 0x1p-24f));
    return from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

// Rounds to nearest even; beyond 65520 infinity.
unsigned short kt__float_to_half(float value)
{
    const uint32_t bits = to_bits(value), magnitude = bits & 0x7fffffff;
    const unsigned sign = bits >> 16 & 0x8000;
    uint32_t half;
    if (magnitude > 0x7f800000)
        half = 0x7e00 | (magnitude >> 13 & 0x3ff);
    else if (magnitude >= 0x477ff000)
        half = 0x7c00;
    else if (magnitude < 0x38800000) // subnormal: the sum with 0.5 has steps of 2^-24, so the hardware rounds
        half = to_bits(from_bits(magnitude) + 0.5f) - 0x3f000000;
    else
        half = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
    return (unsigned short)(sign | half);
}

float kt__to_float(int dtype, unsigned short element)
{
    return dtype == KT_F16 ? kt__half_to_float(element) : from_bits((uint32_t)element << 16);
}

unsigned short kt__from_float(int dtype, float value)
{
    if (dtype == KT_F16)
        return kt__float_to_half(value);
    const uint32_t bits = to_bits(value);
    if ((bits & 0x7fffffff) > 0x7f800000)
        return (unsigned short)(bits >> 16 | 0x40);
    return (unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
