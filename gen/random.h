// Seeded numbers, the same on every machine, and keys, values and queries drawn from them.
#ifndef KG_RANDOM_H
#define KG_RANDOM_H

#include <stdint.h>

typedef struct {
    uint64_t state;
} kg_random;

// A generator for (seed, stream): different streams of one seed are unrelated.
kg_random kg_random_seed(uint64_t seed, uint64_t stream);
uint64_t kg_random_next(kg_random *random);
// Uniform in [0, n), n >= 1.
int kg_random_below(kg_random *random, int n);
// Uniform in [0, 1).
float kg_random_uniform(kg_random *random);
// Mean 0, deviation 1, within +-4: a sum of uniforms.
float kg_random_normal(kg_random *random);

typedef enum {
    KG_KEYS_MILD,    // deviations 0.5 to 1.5, means within +-1; one channel in 16 is 4 times as wide
    KG_KEYS_OUTLIER, // as mild, but that channel is 8 to 16 times as wide
    KG_KEYS_OFFSET,  // means within +-8, deviations 0.25 to 0.5: all of a channel lies far from 0
    KG_KEYS_COUNT
} kg_keys;

extern const char *const kg_keys_names[KG_KEYS_COUNT]; // "mild", "outlier", "offset"

// Keys of one layer and head, [tokens, head_dim]: the channels' means and widths depend on (seed, layer, head) alone.
void kg_random_keys(kg_keys kind, uint64_t seed, int layer, int head, int tokens, int head_dim, float *out);
// Standard normal rows, [tokens, head_dim]; `what` keeps queries, values and others apart.
void kg_random_rows(uint64_t seed, int what, int layer, int head, int tokens, int head_dim, float *out);

#endif
