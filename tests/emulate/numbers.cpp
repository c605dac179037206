// Conversions and matrix products as PTX defines them.
#include <math.h>
#include <string.h>

#include "machine.h"

#include "emulate.h"

static float bits_float(u32 bits)
{
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static u32 float_bits(float f)
{
    u32 bits;
    memcpy(&bits, &f, 4);
    return bits;
}

static float widen_half(u16 h)
{
    int exponent = h >> 10 & 31, fraction = h & 1023;
    u32 sign = (u32)(h & 0x8000) << 16;
    if (exponent == 31)
        return bits_float(fraction ? 0x7fffffff : sign | 0x7f800000);
    float magnitude = exponent ? ldexpf((float)(1024 + fraction), exponent - 25) : ldexpf((float)fraction, -24);
    return bits_float(sign | float_bits(magnitude));
}

struct half_table {
    float value[65536];
    half_table()
    {
        for (int i = 0; i < 65536; i++)
            value[i] = widen_half((u16)i);
    }
};
static const half_table halves;

float half_to_float(u16 h) { return halves.value[h]; }

// Rounds a magnitude to a multiple of 2^-24 or to 11 significant bits, whichever is coarser, ties to even: adding and taking
// away a power of two does it in the FPU's own rounding.
u16 float_to_half(float f)
{
    u32 bits = float_bits(f), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000)
        return 0x7fff;
    if (magnitude >= 0x477ff000) // 65520, half way to 2^16
        return (u16)(sign | 0x7c00);
    if (magnitude < 0x38800000) { // below 2^-14
        volatile float shifted = bits_float(magnitude) + 0.5f; // its last place is 2^-24
        return (u16)(sign | (float_bits(shifted) - 0x3f000000));
    }
    u32 rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    return (u16)(sign | ((rounded - 0x38000000) >> 13));
}

u16 float_to_bfloat(float f)
{
    u32 bits = float_bits(f);
    if ((bits & 0x7fffffff) > 0x7f800000)
        return 0x7fff;
    return (u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float exp2_fast(float x)
{
    if (fabsf(x) < 1.17549435e-38f)
        x = 0;
    float y = exp2f(x);
    return y < 1.17549435e-38f ? 0 : y;
}

u32 half2_multiply(u32 a, u32 b)
{
    u16 low = float_to_half(half_to_float((u16)a) * half_to_float((u16)b));
    u16 high = float_to_half(half_to_float((u16)(a >> 16)) * half_to_float((u16)(b >> 16)));
    return low | (u32)high << 16;
}

// Rounded once: the sum in double, cut to fp32 with its last bit set where something was cut off, then to a half.
static u16 multiply_add(u16 a, u16 b, u16 c)
{
    const double sum = (double)half_to_float(a) * half_to_float(b) + half_to_float(c);
    float cut = (float)sum;
    if (cut != sum && cut == cut) {
        if (fabs((double)cut) > fabs(sum))
            cut = nextafterf(cut, 0);
        cut = bits_float(float_bits(cut) | 1);
    }
    return float_to_half(cut);
}

u32 half2_multiply_add(u32 a, u32 b, u32 c)
{
    return multiply_add((u16)a, (u16)b, (u16)c) | (u32)multiply_add((u16)(a >> 16), (u16)(b >> 16), (u16)(c >> 16)) << 16;
}

namespace emulate {

static float element(u32 word, int e, int bfloat)
{
    u16 bits = (u16)(word >> 16 * e);
    return bfloat ? bits_float((u32)bits << 16) : halves.value[bits];
}

// c += a b over the fragments of 32 lanes. Products are exact; PTX leaves the order and the rounding of the sum open, here it is
// exact to double and rounded once.
static void multiply_elements(thread *const *lanes)
{
    int bfloat = lanes[0]->op.how == EMULATE_BFLOAT;
    float a[16][16], b[16][8];
    for (int lane = 0; lane < LANES; lane++) {
        const request &op = lanes[lane]->op;
        int g = lane / 4, t = lane % 4;
        for (int e = 0; e < 2; e++) {
            a[g][2 * t + e] = element(op.a[0], e, bfloat);
            a[g + 8][2 * t + e] = element(op.a[1], e, bfloat);
            a[g][2 * t + 8 + e] = element(op.a[2], e, bfloat);
            a[g + 8][2 * t + 8 + e] = element(op.a[3], e, bfloat);
            b[2 * t + e][g] = element(op.b[0], e, bfloat);
            b[2 * t + 8 + e][g] = element(op.b[1], e, bfloat);
        }
    }
    double sum[16][8] = {};
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 16; k++)
            for (int j = 0; j < 8; j++)
                sum[i][j] += (double)a[i][k] * b[k][j];
    for (int lane = 0; lane < LANES; lane++) {
        float *c = (float *)lanes[lane]->op.c;
        int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; i++)
            c[i] = (float)(c[i] + sum[g + 8 * (i / 2)][2 * t + i % 2]);
    }
}

// The same with 32 unsigned bytes of a and signed ones of b; sums wrap around.
static void multiply_bytes(thread *const *lanes)
{
    for (int lane = 0; lane < LANES; lane++) {
        int *c = (int *)lanes[lane]->op.c;
        for (int i = 0; i < 4; i++) {
            const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
            u32 sum = (u32)c[i];
            for (int k = 0; k < 32; k++) {
                const int t = k % 16 / 4, e = k % 4;
                const int a = (int)(lanes[row % 8 * 4 + t]->op.a[row / 8 + k / 16 * 2] >> 8 * e & 255);
                sum += (u32)(a * (signed char)(lanes[column * 4 + t]->op.b[k / 16] >> 8 * e));
            }
            c[i] = (int)sum;
        }
    }
}

void multiply_fragments(thread *const *lanes)
{
    if (lanes[0]->op.how == EMULATE_BYTES)
        multiply_bytes(lanes);
    else
        multiply_elements(lanes);
}

}
