#include "random.h"

const char *const kg_keys_names[KG_KEYS_COUNT] = {"mild", "outlier", "offset"};

static uint64_t mix(uint64_t x) // the finaliser of splitmix64
{
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

kg_random kg_random_seed(uint64_t seed, uint64_t stream) { return (kg_random){mix(mix(seed) + stream)}; }
uint64_t kg_random_next(kg_random *random) { return mix(random->state += 0x9e3779b97f4a7c15u); }
int kg_random_below(kg_random *random, int n) { return (int)((kg_random_next(random) >> 32) * (uint64_t)n >> 32); }
float kg_random_uniform(kg_random *random) { return (float)(kg_random_next(random) >> 40) * 0x1p-24f; }

float kg_random_normal(kg_random *random)
{
    // Eight 16-bit uniforms: mean 4, variance 8 / 12.
    uint32_t sum = 0;
    for (int i = 0; i < 2; i++)
        for (uint64_t x = kg_random_next(random); x; x >>= 16)
            sum += x & 0xffff;
    return ((float)sum * 0x1p-16f - 4.0f) * 1.2247449f;
}

static uint64_t stream_of(int what, int layer, int head) { return (uint64_t)what << 48 | (uint64_t)layer << 24 | (uint64_t)head; }

void kg_random_keys(kg_keys kind, uint64_t seed, int layer, int head, int tokens, int head_dim, float *out)
{
    float mean[1024], width[1024]; // head_dim is far below
    kg_random random = kg_random_seed(seed, stream_of(0, layer, head));
    for (int c = 0; c < head_dim; c++) {
        mean[c] = (2 * kg_random_uniform(&random) - 1) * (kind == KG_KEYS_OFFSET ? 8.0f : 1.0f);
        width[c] = kind == KG_KEYS_OFFSET ? 0.25f + 0.25f * kg_random_uniform(&random) : 0.5f + kg_random_uniform(&random);
    }
    for (int c = kg_random_below(&random, 16); kind != KG_KEYS_OFFSET && c < head_dim; c += 16)
        width[c] = kind == KG_KEYS_MILD ? 4 * width[c] : 8 + 8 * kg_random_uniform(&random);
    for (int t = 0; t < tokens; t++)
        for (int c = 0; c < head_dim; c++)
            out[(long)t * head_dim + c] = mean[c] + width[c] * kg_random_normal(&random);
}

void kg_random_rows(uint64_t seed, int what, int layer, int head, int tokens, int head_dim, float *out)
{
    kg_random random = kg_random_seed(seed, stream_of(1 + what, layer, head));
    for (long i = 0; i < (long)tokens * head_dim; i++)
        out[i] = kg_random_normal(&random);
}
