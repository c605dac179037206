// What goes into a cache: streams of tokens of one kind.
#ifndef GPU_KEYS_H
#define GPU_KEYS_H

#include "inputs.h"

typedef enum {
    KEYS_MILD,
    KEYS_OUTLIER,   // one channel in 16 reaches +-60, one in 8 lies up to 20 away from 0
    KEYS_CAPTURED,  // queries, keys and values of a real model
    KEYS_HUGE,      // keys (even layers) or values (odd layers) all over +-65000: scales and zeros near the end of fp16
    KEYS_NONFINITE, // mild; one element in 300 is infinite or NaN
    KEYS_COUNT
} key_kind;

extern const char *const key_kind_names[KEYS_COUNT];

// Whether there are captured keys for the model.
int keys_captured(const kg_spec *spec);
// Streams of `layers` layers and at most `most_heads` KV heads (captured: as many as the model has), and softmax scales
// that leave logits of moderate size. Free them with kg_inputs_free. Returns an exit code.
int keys_make(key_kind kind, const kg_spec *spec, int layers, int most_heads, int tokens, kg_inputs *inputs);

#endif
