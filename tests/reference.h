// What several suites need: formats of the named variants, inputs that look like keys, attention in float64.
#ifndef KT_TEST_REFERENCE_H
#define KT_TEST_REFERENCE_H

#include "internal.h"
#include "layout.h"

// A small generator of its own, so that a seed means the same inputs everywhere.
uint64_t ref_random(uint64_t *state);
double ref_uniform(uint64_t *state); // [0, 1)
double ref_normal(uint64_t *state);

enum { REF_VARIANTS = 12 };
extern const char *const ref_variants[REF_VARIANTS]; // "kitty", "kitty-pro", "kivi-2", ...

// Spec of a variant for a small model of 2 KV heads and 2 layers; false for an unknown name.
bool ref_spec(const char *variant, int head_dim, int group_heads, int dtype, int page, kg_spec *spec);
// Keeps the spec's second layer in another way: exact keys, values of 4 bits, larger windows.
void ref_mix(kg_spec *spec);
// Its format; fails the test where there is none.
kt_format ref_format(const char *variant, int head_dim, int group_heads, int dtype, int page);

// count x head_dim elements: a few channels with 10 to 30 times the spread, a few with an offset, as keys have.
void ref_tokens(int dtype, int count, int head_dim, uint64_t seed, unsigned short *out);

// out[d] and the natural log-sum-exp of softmax(scale q k^T) v in float64; key and value: [count, d].
void ref_attend(const float *query, const float *key, const float *value, int count, int d, double scale, double *out,
                double *lse);

// ---- a world: an engine on the CPU, a cache, and a stream of tokens that every sequence takes its tokens from ----

enum { REF_STREAM = 1024, REF_SLOTS = 16, REF_TURNS = 64 };

typedef struct {
    kg_spec spec;
    kt_format format; // of the first layer, and of all where they are alike
    kt_engine *engine;
    kt_cache *cache;
    int kv_heads, q_heads;
    unsigned short *query, *key, *value; // [layers, REF_STREAM, heads, head_dim]
} ref_world;

// A sequence and where in the stream its tokens come from: token t is token (origin + t) mod REF_STREAM, with the origin of the last turn
// at or before t.
typedef struct {
    kt_sequence handle;
    int origin, tokens, turns;
    struct {
        int token, origin;
    } turn[REF_TURNS];
} ref_sequence;

void ref_open(ref_world *world, const char *variant, int head_dim, int group_heads, int dtype, int page, int pages,
              int max_sequences, int spare_slabs);
// The same with a spec that the caller has changed: sinks and windows.
void ref_open_spec(ref_world *world, const kg_spec *spec, int pages, int max_sequences, int spare_slabs);
void ref_close(ref_world *world);
// A layer's format.
const kt_format *ref_format_of(const ref_world *world, int layer);
// Pages of which any layer has keys or values sealed.
int ref_pages(const ref_world *world, int tokens);
kt_batch *ref_batch(ref_world *world, int slots, int max_tokens, int max_rows);
void ref_join(ref_world *world, ref_sequence *sequence, int origin);

// What comes next is from elsewhere in the stream.
void ref_turn(ref_sequence *sequence, int origin);
// Where in the stream a token is.
int ref_index(const ref_sequence *sequence, int token);
// Keys or values of `count` tokens from the stream, as rows for the quantiser.
const unsigned short *ref_row(const ref_world *world, kt_part part, int layer, int head, const ref_sequence *sequence, int token);

// Buffers of one step.
typedef struct {
    int rows;
    unsigned short *query, *key, *value, *out; // [layers, rows, heads, head_dim]
    float *lse;                                // [layers, rows, q_heads]
} ref_buffers;

// Fills slots 0 .. count - 1 of the batch with sequences and their new tokens (null: empties the slot), and inputs.
void ref_fill(ref_world *world, kt_batch *batch, ref_sequence *const *sequences, const int *fresh, int count, ref_buffers *buffers);
void ref_buffers_free(ref_buffers *buffers);
kt_status ref_append(const ref_world *world, kt_batch *batch, int layer, const ref_buffers *buffers);
kt_status ref_attend_layer(const ref_world *world, kt_batch *batch, int layer, const ref_buffers *buffers);
// Compares out and lse with float64 attention over kt_read's decoded tokens and the exact new ones. In an open step.
void ref_check(const ref_world *world, ref_sequence *const *sequences, const int *fresh, int count, const ref_buffers *buffers);
// fill, begin, append, commit; attend and check where asked.
void ref_step(ref_world *world, kt_batch *batch, ref_sequence *const *sequences, const int *fresh, int count, bool check);
// Every byte of the sequence's blocks and every exact token against the stream, sealed here and now.
void ref_verify(const ref_world *world, const ref_sequence *sequence);

// Folder tests/ of the source tree.
const char *ref_data(void);

#endif
