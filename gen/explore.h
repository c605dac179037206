// What the parts of kittygen explore share: inputs with what is known of them exactly, variants, and what was measured of them.
// Functions that can fail return an exit code (text.h) with a message in `error`, KG_ERROR bytes.
#ifndef KG_EXPLORE_H
#define KG_EXPLORE_H

#include <signal.h>
#include <stdbool.h>

#include "bench.h"
#include "exact.h"
#include "inputs.h"
#include "layout.h"
#include "sha256.h"

enum {
    KG_EXPLORE_QUERIES = 64, // positions of a layer whose queries attend, at most
    KG_EXPLORE_BARS = 16,    // of a histogram of codes
    KG_EXPLORE_FILES = 16,
    KG_EXPLORE_LAYERS = 256
};

// Histograms of codes.
typedef enum { KG_CODES_KEY, KG_CODES_BOOSTED, KG_CODES_VALUE, KG_CODES } kg_codes;

// ---- explore_measure.c -----------------------------------------------------------------------------------------------

// The inputs and the float64 reference that all variants share. Read only once it is made, but for the workers' scratch: any number of
// threads. Rows are queries: query head h of a KV head at the i-th position is row i * group_heads + h.
typedef struct {
    kg_inputs in;
    int group_heads, tokens;    // query heads per KV head; tokens that are used of each layer: as many as the shortest has
    int positions;              // sampled
    int at[KG_EXPLORE_QUERIES]; // tokens before each, ascending; the last is the last token
    double *query;              // [layers, kv_heads, rows, head_dim]
    double *out;                // [layers, kv_heads, rows, head_dim] float64 attention over the exact keys and values
    double *squares;            // [layers, kv_heads, rows] sums of the exact logits' squares
    double *scratch;            // [workers] of scratch_each
    size_t scratch_each;
} kg_explore_bed;

// Reads the files as kg_inputs_read does, and computes the reference. `layers` 0: all of them, at most KG_EXPLORE_LAYERS.
int kg_explore_bed_open(const kg_spec *spec, const char *const *files, int file_count, int layers, kg_explore_bed *bed, char *error);
void kg_explore_bed_close(kg_explore_bed *bed); // also after a failed open

// What a variant does to the inputs. Errors are relative L2 over a head's queries.
typedef struct {
    double *logits, *out;              // [layers, q_heads]
    double *boosted;                   // [layers, kv_heads, head_dim] share of the pages in which a channel is boosted
    double codes[KG_CODES][KG_EXPLORE_BARS]; // counts, in layers of the spec's first way; of codes of more than 4 bits by their highest 4; 0 of what is rotated
    double nonfinite;                  // elements that counted as 0
} kg_explored;

int kg_explored_open(const kg_inputs *in, kg_explored *explored, char *error);
void kg_explored_close(kg_explored *explored);

// Seals the inputs' keys and values, each layer as that of the model which it was captured from, with the CPU backend, whose pages are those of every device, and has every sampled query attend
// over them as a step of one token would: over the pages sealed before it, and every other token exact. `worker`: kg_parallel's.
int kg_explore_measure(const kg_explore_bed *bed, const kg_spec *spec, int worker, kg_explored *explored, char *error);

// ---- explore_variants.c ----------------------------------------------------------------------------------------------

typedef struct {
    kg_spec spec;
    kg_formats formats;
    char digest[KT__SHA256_HEX]; // of spec, inputs and program: names the file that keeps the errors
    double bytes, bytes_context; // per token and KV head, the mean of the model's layers: sealed; of a sequence of `context` tokens, exact tokens and all
    bool done, kept;             // measured; taken from an earlier run
    bool front;                  // no other has less of both: bytes_context and mean output error
    kg_explored explored;
    double logits_mean, logits_worst, out_mean, out_worst;
    int worst_layer, worst_head; // of the output
    kg_time *times;              // [shapes] of attend, microseconds per layer; us 0: not measured
} kg_variant;

typedef struct {
    kg_explore_bed bed;
    char data[KG_PATH];          // where the inputs are from
    kg_text warning;             // what to know about them, or empty
    kg_variant *variants;
    int count;
    long context;                // tokens of a sequence, for bytes_context
    const char *against;         // variant to compare with, where it is there
    kg_shape shapes[KG_BENCH_SHAPES];
    int shape_count;
    char device[128];            // that times are of; empty: there are none
    char reason[KG_ERROR];       // why
    bool interrupted;
} kg_explore;

// Loads the specs, which must be of one model's shape, into variants; explore->context is set. Then the files: the bed, and what a
// variant's errors are kept under. kg_explore_close is due in any case.
int kg_explore_specs(kg_explore *explore, char *const *specs, int spec_count, const char *dtype, char *error);
int kg_explore_inputs(kg_explore *explore, const char *const *files, int file_count, int layers, char *error);
void kg_explore_close(kg_explore *explore);

// The means and the worst heads of what was measured.
void kg_variant_sum(const kg_explore *explore, kg_variant *variant);
// Bytes per token and KV head, the mean of the layers, of a sequence of `context` tokens: its pages and its exact tokens.
double kg_explore_bytes(const kg_formats *formats, long context);

// A variant's place in a picture; without one, x is negative.
typedef struct {
    double x, y;
} kg_point;
// Whether the point is on the front: no other has at most its x and at most its y and less of one of them. Of equal points the first is.
bool kg_on_front(const kg_point *points, int count, int index);
// Marks the variants on the front of memory and error.
void kg_explore_mark(kg_explore *explore);
// Indices of the variants that are done, by bytes_context, then by error; [explore->count], the caller's to free. Null: no memory.
int *kg_explore_order(const kg_explore *explore, int *count);

// ---- explore_store.c: what an earlier run measured -------------------------------------------------------------------

// Takes a variant's errors from the cache folder, if they are there and whole.
bool kg_explore_load(const kg_explore *explore, kg_variant *variant);
// Keeps them. A cache that cannot be written only costs the next run its time: no error.
void kg_explore_save(const kg_explore *explore, const kg_variant *variant);
// The same of a time; the digest is of kernels, card and shape.
bool kg_explore_load_time(const char digest[KT__SHA256_HEX], kg_time *time);
void kg_explore_save_time(const char digest[KT__SHA256_HEX], const kg_time *time);

// ---- explore_time.c --------------------------------------------------------------------------------------------------

// Whether attend can be timed here: fills in explore->device, else explore->reason.
int kg_explore_find_gpu(kg_explore *explore, char *error);
// Times attend of the variants that are done at every shape, until *stop is set. *wrong: outputs that were not those of the reference
// kernel, which get no time and a message on stderr.
int kg_explore_times(kg_explore *explore, const volatile sig_atomic_t *stop, int *wrong, char *error);

// ---- explore_print.c, explore_report.c -------------------------------------------------------------------------------

void kg_explore_heading(const kg_explore *explore);
void kg_explore_row(const kg_variant *variant, bool first);
// Times, the front, and how the best compare with the variant `against`.
void kg_explore_summary(const kg_explore *explore);
// Of the variants of the order, that with less error at no more bytes than `against`, and that with fewer bytes at no more error; null
// where there is none. Returns `against` itself, null if it is not there.
const kg_variant *kg_explore_compare(const kg_explore *explore, const int *order, int count, const kg_variant **better, const kg_variant **smaller);
void kg_explore_json(kg_text *out, const kg_explore *explore);

// The report as a page of HTML that needs nothing else.
int kg_explore_html(const kg_explore *explore, kg_text *out, char *error);

#endif
