// Rotations of tokens before they are sealed, in fp32 and in the order of templates/lib/rotate_page.cuh, and back again.
#include "cpu.h"

#include <math.h>

enum { NONE, HADAMARD }; // and a matrix

// Sums and differences of the channels whose numbers differ in the lowest bit, then in the next, and so on.
#define TRANSFORM(x, d)                                                \
    for (int h = 1; h < (d); h *= 2)                                   \
        for (int c = 0; c < (d); c++)                                  \
            if (!(c & h)) {                                            \
                const __typeof__(*(x)) a = (x)[c], b = (x)[c + h];     \
                (x)[c] = a + b;                                        \
                (x)[c + h] = a - b;                                    \
            }

static float half_at(const unsigned char *from) { return kt__half_to_float((unsigned short)(from[0] | from[1] << 8)); }

// [head_dim, head_dim] fp16; its transpose follows.
static const unsigned char *matrix_of(const kt_format *f, kt_part part, const unsigned char *table)
{
    return table + (part == KT_KEY ? f->table_key_rotation : f->table_value_rotation);
}

static unsigned short limited(int dtype, float x)
{
    const float most = dtype == KT_F16 ? 65504.0f : 0x1.fep127f;
    return kt__from_float(dtype, x >= most ? most : x > -most ? x : -most); // a NaN becomes -most
}

bool kt__cpu_rotated(const kt_format *f, kt_part part) { return (part == KT_KEY ? f->key_rotation : f->value_rotation) != NONE; }

void kt__cpu_rotate(const kt_format *f, kt_part part, const unsigned char *table, const unsigned short *row, unsigned short *out)
{
    const int d = f->head_dim;
    float x[KT__MAX_DIM], y[KT__MAX_DIM] = {0};
    for (int c = 0; c < d; c++)
        x[c] = kt__element(f->dtype, row[c]);
    if ((part == KT_KEY ? f->key_rotation : f->value_rotation) == HADAMARD) {
        const float share = (float)(1 / sqrt(d));
        TRANSFORM(x, d)
        for (int c = 0; c < d; c++)
            y[c] = x[c] * share;
    } else {
        const unsigned char *transposed = matrix_of(f, part, table) + 2 * d * d;
        for (int i = 0; i < d; i++)
            for (int j = 0; j < d; j++)
                y[j] += half_at(transposed + 2 * (i * d + j)) * x[i];
    }
    for (int c = 0; c < d; c++)
        out[c] = limited(f->dtype, y[c]);
}

void kt__cpu_rotate_back(const kt_format *f, kt_part part, const unsigned char *table, float *row)
{
    const int d = f->head_dim;
    double x[KT__MAX_DIM], y[KT__MAX_DIM] = {0};
    for (int c = 0; c < d; c++)
        x[c] = (double)row[c];
    if ((part == KT_KEY ? f->key_rotation : f->value_rotation) == HADAMARD) {
        TRANSFORM(x, d)
        for (int c = 0; c < d; c++)
            y[c] = x[c] / sqrt(d);
    } else {
        const unsigned char *matrix = matrix_of(f, part, table);
        for (int j = 0; j < d; j++)
            for (int i = 0; i < d; i++)
                y[i] += (double)half_at(matrix + 2 * (j * d + i)) * x[j];
    }
    for (int c = 0; c < d; c++)
        row[c] = (float)y[c];
}
