#include "keys.h"

#include <math.h>

#include "support.h"

const char *const key_kind_names[KEYS_COUNT] = {"mild", "outlier", "captured", "huge", "nonfinite"};

enum { SEED = 20, HUGE_EXTENT = 65000 };

static const struct {
    int q_heads, kv_heads, head_dim;
    const char *file;
} captures[] = {{9, 3, 64, "smollm2.safetensors"}, {4, 1, 256, "gemma3_a.safetensors"}};

static const char *capture_of(const kg_spec *spec)
{
    for (unsigned i = 0; i < sizeof captures / sizeof *captures; i++)
        if (spec->model.q_heads == captures[i].q_heads && spec->model.kv_heads == captures[i].kv_heads &&
            spec->model.head_dim == captures[i].head_dim)
            return captures[i].file;
    return NULL;
}

int keys_captured(const kg_spec *spec) { return capture_of(spec) != NULL; }

// Channels of a head, drawn by (layer, head).
static void fill_outlier(const kg_inputs *in, int layer)
{
    kg_layer *l = &in->layers[layer];
    for (int h = 0; h < in->kv_heads; h++) {
        kg_random random = kg_random_seed(SEED, (uint64_t)(100 + layer * 64 + h));
        const int wide = kg_random_below(&random, 16), away = kg_random_below(&random, 8);
        for (int c = 0; c < in->head_dim; c++) {
            const float offset = c % 8 == away ? 40 * kg_random_uniform(&random) - 20 : 0;
            const float extent = c % 16 == wide ? 30 + 30 * kg_random_uniform(&random) : 0;
            for (int t = 0; t < l->tokens; t++) {
                // A wide channel is evenly spread over its extent, the others are normal.
                const float x = extent > 0 ? extent * (2 * kg_random_uniform(&random) - 1) : offset + kg_random_normal(&random);
                l->key[((long)t * in->kv_heads + h) * in->head_dim + c] = kg_from_float(in->dtype, x);
            }
        }
    }
}

static void fill_huge(const kg_inputs *in, int layer)
{
    kg_layer *l = &in->layers[layer];
    uint16_t *to = layer % 2 ? l->value : l->key;
    kg_random random = kg_random_seed(SEED, (uint64_t)(200 + layer));
    for (long i = 0; i < (long)l->tokens * in->kv_heads * in->head_dim; i++)
        to[i] = kg_from_float(in->dtype, HUGE_EXTENT * (2 * kg_random_uniform(&random) - 1));
    if (layer % 2 == 0) // logits of deviation 2
        l->scale = 2 * sqrt(3.0) / HUGE_EXTENT / sqrt(in->head_dim);
}

static void spoil(const kg_inputs *in, int layer)
{
    static const uint16_t bad[2][3] = {{0x7c00, 0xfc00, 0x7e01}, {0x7f80, 0xff80, 0x7fc1}};
    kg_random random = kg_random_seed(SEED, (uint64_t)(300 + layer));
    for (int part = 0; part < 2; part++) {
        uint16_t *to = part ? in->layers[layer].value : in->layers[layer].key;
        for (long i = 0; i < (long)in->layers[layer].tokens * in->kv_heads * in->head_dim; i++)
            if (!kg_random_below(&random, 300))
                to[i] = bad[in->dtype][kg_random_below(&random, 3)];
    }
}

int keys_make(key_kind kind, const kg_spec *spec, int layers, int most_heads, int tokens, kg_inputs *in)
{
    if (kind == KEYS_CAPTURED) {
        char path[KG_PATH];
        const char *const paths[] = {data_path(capture_of(spec), path)};
        return kg_inputs_read(spec, paths, 1, layers, layers, in, failure, sizeof failure);
    }
    kg_spec small = *spec;
    if (small.model.kv_heads > most_heads) {
        small.model.q_heads = spec->model.q_heads / spec->model.kv_heads * most_heads;
        small.model.kv_heads = most_heads;
    }
    TRY(kg_inputs_draw(&small, layers, tokens, KG_KEYS_MILD, SEED + (uint64_t)kind, in, failure, sizeof failure));
    for (int layer = 0; layer < layers; layer++) {
        if (kind == KEYS_OUTLIER)
            fill_outlier(in, layer);
        else if (kind == KEYS_HUGE)
            fill_huge(in, layer);
        else if (kind == KEYS_NONFINITE)
            spoil(in, layer);
    }
    return KG_OK;
}
