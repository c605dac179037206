// A spec: the facts of a model and a quantisation variant, read from Lua (spec.c) and checked against one table of fields.
#ifndef KG_SPEC_H
#define KG_SPEC_H

#include "text.h"

#include <stddef.h>
#include <stdint.h>

#include "format.h"

enum { KG_GROUP_HEAD = 0 };   // value.group = "head"
enum { KG_LAYERS = 1024 };    // most of a model
enum { KG_NAME = 64, KG_FILE = 256, KG_DIGEST = 65 };

typedef enum { KG_SCORE_MAGNITUDE, KG_SCORE_VARIANCE, KG_SCORE_RANGE, KG_SCORE_RANDOM, KG_SCORE_STATIC } kg_score;

// How keys are kept.
typedef struct {
    int bits, group, window;
    int along;            // what a group runs along: 0 the tokens of a channel, 1 the channels of a token
    int range;            // 0 the extremes of a group, 1 least squares
    int metadata;         // of scales and zeros: 0 fp16, 1 of 8 bits
    int rotation;         // 0 none, 1 Hadamard, 2 a matrix
    int boost_bits;       // bits where there is no boost
    double boost_fraction;
    kg_score score;
    int seed;
} kg_key_spec;

// How values are.
typedef struct {
    int bits, group, window, range, rotation; // group in channels; KG_GROUP_HEAD: the whole head, 256 as two of 128
    int along;            // 0 the channels of a token, 1 the tokens of a channel
    int metadata;
} kg_value_spec;

typedef struct {
    char name[2 * KG_NAME];   // "qwen3-8b.kitty-pro"
    struct {
        char name[KG_NAME];
        int layers, q_heads, kv_heads, head_dim;
        int dtype;            // kt_dtype
        double scale;         // softmax scale; 0: 1 / sqrt(head_dim)
    } model;
    char variant[KG_NAME];
    int page, sink;
    char calibration[KG_FILE];           // as the spec names it; empty: none
    char calibration_path[KG_FILE + 4096]; // where it was found
    char calibration_sha256[KG_DIGEST];  // of the file
    kg_key_spec key;
    kg_value_spec value;
    // What layers differ in. No two ways have the same format, and each is some layer's.
    struct {
        kg_key_spec key;
        kg_value_spec value;
    } more[KT_FORMATS - 1];
    int more_count;                      // 0: every layer is as `key` and `value` say
    unsigned char layer_way[KG_LAYERS];  // of each layer: 0 `key` and `value`, i more[i - 1]
    struct {
        int first, last;
    } layers;                            // of an override, while it is read
} kg_spec;

// What the command line may override.
typedef struct {
    const char *dtype; // "fp16", "bf16"; null: as the model says
} kg_spec_options;

// Loads the specs that `what` stands for: a .lua file, which returns one spec or a list; or shipped ones: "MODEL/VARIANT",
// "MODEL/VARIANT,VARIANT", "MODEL" (every variant, by name); hyphens, dots and underscores are alike. `options` may be null.
// *specs is an array of *count >= 1 checked specs with different names, the caller's to free. On failure it is null, and
// `error` (KG_ERROR bytes hold them all) has up to ten messages, a line each: "FILE:LINE: FIELD: what; what is allowed".
// Returns KG_OK, KG_USER (wrong input) or KG_MACHINE (memory, disk, no shipped specs).
int kg_spec_load(const char *what, const kg_spec_options *options, kg_spec **specs, int *count, char *error, size_t error_size);

// The same for a spec's text; `name` stands for the file in messages; modules come from `folder` (null: none) and the
// shipped specs.
int kg_spec_load_text(const char *name, const char *text, size_t size, const char *folder, const kg_spec_options *options,
                      kg_spec **specs, int *count, char *error, size_t error_size);

// Whether a path is a spec file's: ends in .lua.
int kg_is_lua(const char *path);

// Adds `require "MODULE"` of the shipped variant that a word names; `what` begins messages.
int kg_spec_require(kg_text *out, const char *word, const char *what, char *error, size_t error_size);

// ---- fields (fields.c) -----------------------------------------------------------------------------------------------

// The spec of the layers that are kept one way, as one of a model whose layers are all alike; way: 0 to more_count. Where there are several
// its name and variant end in "-f0", "-f1", ...
kg_spec kg_spec_way(const kg_spec *spec, int way);
// Layers that are kept so.
int kg_spec_layers(const kg_spec *spec, int way);
// Which those are: "0-1, 35".
void kg_spec_list_layers(kg_text *out, const kg_spec *spec, int way);
// Replaces an array of specs, the caller's to free, by the ways of each: *specs, *count. KG_MACHINE: no memory; the array is as before.
int kg_spec_split(kg_spec **specs, int *count, char *error, size_t error_size);

// The spec as a JSON object, every field with its value, defaults included; no newline at its end.
void kg_spec_json(kg_text *out, const kg_spec *spec);

#endif
