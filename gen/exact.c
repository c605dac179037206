#include "exact.h"

#include <math.h>
#include <string.h>

enum { LANES = 8 };
// Without a target's wide registers the compiler splits these; the sums are the same everywhere.
typedef double doubles __attribute__((vector_size(LANES * sizeof(double)), aligned(8), may_alias));
typedef float floats __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));

static inline const float *row_of(const kg_rows *rows, int token, int head_dim)
{
    int at = rows->first + token;
    if (at >= rows->wrap)
        at %= rows->wrap;
    return rows->base + (long)at * head_dim;
}

static void widen(double *restrict to, const float *restrict from, int count)
{
    for (int c = 0; c < count; c += LANES)
        *(doubles *)(to + c) = __builtin_convertvector(*(const floats *)(from + c), doubles);
}

static double dot(const double *a, const double *b, int count)
{
    doubles sum = {0};
    for (int c = 0; c < count; c += LANES)
        sum += *(const doubles *)(a + c) * *(const doubles *)(b + c);
    return ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
}

void kg_exact_attend(kg_rows key, kg_rows value, int head_dim, const float *query, int heads, int tokens, double scale,
                     double *out, double *scratch)
{
    double *logits = scratch;                       // [heads, tokens]
    double *wide = logits + (long)heads * tokens;   // [heads, head_dim]
    double *row = wide + (long)heads * head_dim;
    widen(wide, query, heads * head_dim);
    for (int t = 0; t < tokens; t++) {
        widen(row, row_of(&key, t, head_dim), head_dim);
        for (int h = 0; h < heads; h++)
            logits[(long)h * tokens + t] = scale * dot(wide + h * head_dim, row, head_dim);
    }
    for (int h = 0; h < heads; h++) {
        double *p = logits + (long)h * tokens, most = -INFINITY, sum = 0;
        for (int t = 0; t < tokens; t++)
            most = p[t] > most ? p[t] : most;
        for (int t = 0; t < tokens; t++)
            sum += p[t] = exp(p[t] - most);
        for (int t = 0; t < tokens; t++)
            p[t] /= sum;
    }
    memset(out, 0, (size_t)heads * head_dim * sizeof *out);
    for (int t = 0; t < tokens; t++) {
        widen(row, row_of(&value, t, head_dim), head_dim);
        for (int h = 0; h < heads; h++) {
            const double p = logits[(long)h * tokens + t];
            double *o = out + h * head_dim;
            for (int c = 0; c < head_dim; c += LANES)
                *(doubles *)(o + c) += p * *(const doubles *)(row + c);
        }
    }
}

void kg_error_add(kg_error *error, const double *reference, const double *value, int count)
{
    for (int i = 0; i < count; i++) {
        const double d = value[i] - reference[i];
        error->difference += d * d;
        error->reference += reference[i] * reference[i];
    }
}

void kg_error_join(kg_error *error, kg_error more)
{
    error->difference += more.difference;
    error->reference += more.reference;
}

double kg_error_relative(kg_error error)
{
    if (error.difference == 0)
        return 0;
    const double relative = sqrt(error.difference / error.reference);
    return isnan(relative) ? INFINITY : relative;
}

static float of_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

float kg_to_float(int dtype, uint16_t e)
{
    if (dtype)
        return of_bits((uint32_t)e << 16);
    const uint32_t sign = (uint32_t)(e & 0x8000) << 16, exponent = e >> 10 & 31, fraction = e & 0x3ff;
    if (exponent == 31)
        return of_bits(sign | 0x7f800000 | fraction << 13);
    const float magnitude = exponent ? of_bits((exponent + 112) << 23 | fraction << 13) : (float)fraction * 0x1p-24f;
    return sign ? -magnitude : magnitude;
}

uint16_t kg_from_float(int dtype, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (dtype) {
        if (value != value)
            return (uint16_t)(bits >> 16 | 0x40);
        return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    const float magnitude = fabsf(value);
    if (value != value)
        return sign | 0x7e00;
    if (magnitude >= 65520.0f)
        return sign | 0x7c00;
    if (magnitude < 0x1p-14f) // subnormal: in units of the smallest half
        return (uint16_t)(sign | (uint16_t)lrintf(magnitude * 0x1p24f));
    bits &= 0x7fffffff;
    bits += 0xfff + (bits >> 13 & 1);
    return (uint16_t)(sign | ((bits >> 13) - (112 << 10)));
}
