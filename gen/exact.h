// Attention in float64, and sums of errors against it: what kittygen run and check compare the kernels with.
#ifndef KG_EXACT_H
#define KG_EXACT_H

#include <stdint.h>

// Keys or values of one KV head: token t is the head_dim floats at base + ((first + t) % wrap) * head_dim.
typedef struct {
    const float *base;
    int first, wrap;
} kg_rows;

// softmax(scale q k^T) v in double over tokens 0 .. tokens - 1, for `heads` query heads that share the KV head.
// query, out: [heads, head_dim]; head_dim is a multiple of 8; scratch: heads * (tokens + 2 * head_dim) doubles.
void kg_exact_attend(kg_rows key, kg_rows value, int head_dim, const float *query, int heads, int tokens, double scale,
                     double *out, double *scratch);

// Sum of squares of a difference and of the reference.
typedef struct {
    double difference, reference;
} kg_error;

void kg_error_add(kg_error *error, const double *reference, const double *value, int count);
void kg_error_join(kg_error *error, kg_error more);
// Relative L2: sqrt(difference / reference). 0 where both are 0; infinite where only the reference is, or a NaN got in.
double kg_error_relative(kg_error error);

// Elements of a kt_dtype (0 fp16, 1 bf16): written apart from the runtime's, which they check. Rounds to nearest even.
float kg_to_float(int dtype, uint16_t element);
uint16_t kg_from_float(int dtype, float value);

#endif
