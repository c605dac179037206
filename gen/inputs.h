// Queries, keys and values for a run: drawn at random, or captured from a real model (safetensors).
#ifndef KG_INPUTS_H
#define KG_INPUTS_H

#include <stddef.h>
#include <stdint.h>

#include "exact.h"
#include "random.h"
#include "spec.h"

// One layer's stream of tokens; a sequence is a stretch of it that wraps around at the end.
typedef struct {
    int tokens;
    int origin;                    // number of the layer in the model, as its file tells it; else its number here
    double scale;                  // softmax scale
    uint16_t *query, *key, *value; // [tokens, heads, head_dim] in the spec's dtype
    float *exact_key, *exact_value; // [kv_heads, tokens, head_dim], the same numbers
} kg_layer;

typedef struct {
    int count;
    int q_heads, kv_heads, head_dim, dtype;
    kg_layer *layers;
} kg_inputs;

// Both return an exit code (text.h) with a message, and leave nothing to free on failure.

// `tokens` random tokens of `layers` layers.
int kg_inputs_draw(const kg_spec *spec, int layers, int tokens, kg_keys kind, uint64_t seed, kg_inputs *inputs, char *error,
                   size_t error_size);
// Tensors q.<i> [tokens, q_heads, head_dim], k.<i> and v.<i> [tokens, kv_heads, head_dim], i = 0, 1, ..., F16, BF16 or F32,
// of each file in turn, converted to the spec's dtype. The string "scale" in a file's metadata overrides the spec's softmax
// scale; "layers", "0,7,15", says which of the model's they are. layers: how many to take; 0: all, but at most `most`.
int kg_inputs_read(const kg_spec *spec, const char *const *paths, int path_count, int layers, int most, kg_inputs *inputs,
                   char *error, size_t error_size);
void kg_inputs_free(kg_inputs *inputs);

// Tokens 0, 1, ... of a sequence that starts at `first` in the stream.
kg_rows kg_inputs_keys(const kg_inputs *inputs, int layer, int kv_head, int first);
kg_rows kg_inputs_values(const kg_inputs *inputs, int layer, int kv_head, int first);

#endif
