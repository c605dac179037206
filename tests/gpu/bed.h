// A cache filled with random tokens, for the parts that look at one attend again and again.
#ifndef GPU_BED_H
#define GPU_BED_H

#include "support.h"

enum { BED_BLOCK = 4096 }; // random tokens, which every sequence and layer repeats

typedef struct {
    kg_spec spec;
    kt_format format;
    int layers, kv_heads, q_heads, sequences, max_tokens;
    kt_engine *engine;
    kt_cache *cache;
    kt_batch *batch;          // a slot per sequence
    kt_sequence *handles;     // [sequences]
    void *stream;
    char *query, *key, *value; // on the device: [BED_BLOCK or sequences, heads, head_dim]
    size_t out_bytes;         // of [sequences, q_heads, head_dim]
} bed;

// Opens a cache of `sequences` empty sequences of up to max_tokens each. layers, kv_heads: 0 for the model's. config: as
// open_engines takes it.
// bed_close is due in any case.
int bed_open(bed *b, const char *spec, const char *dtype, int config, int layers, int kv_heads, int sequences, int max_tokens);
void bed_close(bed *b);
// Appends tokens to one sequence; nothing is attended.
int bed_fill(bed *b, int index, int tokens);
// Every sequence takes one token a step from now on.
int bed_decode(bed *b);
int bed_append(bed *b, int layer);
int bed_attend(bed *b, int layer, void *out, unsigned flags);

// Bytes that attend must read of one layer for a sequence of `tokens` tokens and `fresh` new ones, over all its KV heads.
double bed_bytes(const bed *b, int tokens, int fresh);
// Relative L2 of `count` elements.
double bed_difference(const bed *b, const uint16_t *value, const uint16_t *reference, size_t count);

#endif
