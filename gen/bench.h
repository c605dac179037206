// What the parts of kittygen bench share: shapes, rows, the card, and a cache full of random tokens to measure on.
// Functions that can fail return an exit code (text.h) with a message in bench->error.
#ifndef KG_BENCH_H
#define KG_BENCH_H

#include <stdbool.h>
#include <stdint.h>

#include "format.h"
#include "gpu.h"
#include "kitty.h"
#include "progress.h"
#include "spec.h"

typedef enum { KG_BENCH_ATTEND, KG_BENCH_STEP, KG_BENCH_APPEND, KG_BENCH_SEAL, KG_BENCH_HOST, KG_BENCH_OPS } kg_bench_op;
extern const char *const kg_bench_ops[KG_BENCH_OPS];

enum {
    KG_BENCH_WARM = 5,        // untimed replays before the timed ones
    KG_BENCH_STEPS = 256,     // replays of a whole step, at least: two page turns
    KG_BENCH_HOST_STEPS = 32, // timed on the host
    KG_BENCH_CHUNK = 8192,    // tokens of a prompt that go in at a time
    KG_BENCH_SHAPES = 64
};

typedef struct {
    int sequences, tokens; // tokens of each, the new one included
} kg_shape;

typedef struct {
    double us, low, high; // microseconds: the median (of whole steps the mean), 10th and 90th percentile
} kg_time;

typedef struct {
    char op[24];
    const kg_spec *spec;
    int sequences, context, layers;
    kg_time time;         // of one layer
    double bytes;         // of one layer; 0: not a matter of bytes
    double share;         // of the card's bandwidth
    double ratio_fp16;    // time of the fp16 variant to this one; 0: not measured, or not a matter of bytes
    double ratio_equal;   // attend_unequal: time of equal lengths to these; 0 elsewhere
    double step_begin_us; // host
    double error;         // attend: relative L2 against the reference kernel
} kg_row;

typedef struct {
    kg_gpu gpu;
    kg_handle stream, module, read;
    double read_rate, copy_rate; // bytes per second
    void *kept;                  // 4 bytes for the read kernels
    void *data;                  // standard normal elements, data_count of data_dtype, on the device
    size_t data_count;
    int data_dtype;
    unsigned ops;                // bits by kg_bench_op
    long layers, replays;        // layers 0: chosen
    bool json, failed, brief;    // brief: as few layers as will do
    kg_row *rows;
    int row_count, row_room;
    long done;                   // of the progress bar
    kg_progress progress;
    char error[KG_ERROR];
} kg_bench;

// Leave the function with an exit code if a call of libkitty, or one that returns an exit code, fails.
int kg_bench_refused(kg_bench *bench, const char *call, kt_status status);
#define KG_BENCH_CALL(bench, call)                            \
    do {                                                      \
        const kt_status status_ = (call);                     \
        if (status_)                                          \
            return kg_bench_refused(bench, #call, status_);   \
    } while (0)
#define KG_TRY(call)           \
    do {                       \
        const int code_ = (call); \
        if (code_)             \
            return code_;      \
    } while (0)

// ---- bench_input.c: what needs no GPU --------------------------------------------------------------------------------

// "1x4096,32x8192", or the path of a file with such words, separated by white space or commas, '#' to the end of a line
// being a comment. Returns an exit code with a message.
int kg_bench_shapes(const char *text, kg_shape shapes[KG_BENCH_SHAPES], int *count, char *error);
// "attend,seal" to bits; prints an error and returns KG_USER for anything else.
int kg_bench_parse_ops(const char *text, unsigned *ops);
// Bytes that attend must read of one layer for a sequence of `tokens` tokens and `fresh` new ones, over all its KV heads:
// sealed pages and exact tokens.
double kg_bench_attend_bytes(const kt_format *format, int kv_heads, int tokens, int fresh);
// Bytes that are read and written when an empty sequence takes `tokens` tokens: keys and values, sealed parts, and what
// stays exact.
double kg_bench_seal_bytes(const kt_format *format, int kv_heads, int tokens);
// Bytes of appending one token to a sequence that has `tokens`: read and written, with the pages that it completes.
double kg_bench_append_bytes(const kt_format *format, int kv_heads, int tokens);
// Whether the next token of a sequence of `tokens` completes a page of keys or values.
bool kg_bench_completes(const kt_format *format, int tokens);
// Sorts the samples; us is the median. Times are divided by `divisor`.
void kg_bench_percentiles(float *samples, int count, double divisor, kg_time *time);
// `count` lengths between most / 32 and most, log-uniform, seeded.
void kg_bench_lengths(int most, int count, int *lengths);
// Layers: so many that what they read outgrows the L2 cache four times, between 8 and 36, or more where
// the L2 cache needs more; no more than fit in `room` bytes, of which a layer holds `held` and reads `read`. brief: from 4 on.
int kg_bench_layers(double read, double held, double l2, double room, bool brief);

// ---- bench_bandwidth.c -----------------------------------------------------------------------------------------------

// Compiles the read kernels and measures the card: read_rate and copy_rate.
int kg_bench_bandwidth(kg_bench *bench);
// Queues a read of four times the L2 cache, so that nothing of before is left in it.
int kg_bench_flush(kg_bench *bench);

// ---- bench_bed.c -----------------------------------------------------------------------------------------------------

typedef struct {
    kg_bench *bench;
    const kg_spec *spec;
    kt_engine *engine;
    kt_format format;
    int layers, sequences, most_tokens; // room for each sequence
    int *lengths;                       // [sequences] tokens of each, the new one included
    kt_cache *cache;
    kt_sequence *handles;
    void *query, *out;                  // [sequences, q_heads, head_dim]
} kg_bed;

// The bench's normal elements, at least `count` of the dtype.
int kg_bench_data(kg_bench *bench, int dtype, size_t count);
// Sequences that hold lengths[i] - 1 tokens each, with room for `extra` more. layers is 0, and nothing is to be closed, where
// not even one fits in memory. kg_bed_close is due in any case.
int kg_bed_open(kg_bench *bench, const kg_spec *spec, kt_engine *engine, const int *lengths, int sequences, int extra, kg_bed *bed);
void kg_bed_close(kg_bed *bed);
// A batch of all sequences with one new token each, uploaded, with room reserved for `further` tokens after that one.
int kg_bed_batch(kg_bed *bed, int further, kt_batch **batch);
int kg_bed_append(kg_bed *bed, kt_batch *batch, int layer, unsigned flags);
int kg_bed_attend(kg_bed *bed, kt_batch *batch, int layer, unsigned flags);

// ---- bench_measure.c -------------------------------------------------------------------------------------------------

// Attend at the bed's lengths, by whichever kernel the engine selects at each call: a batch, and what the reference kernel says.
typedef struct {
    kg_bed *bed;
    kt_batch *batch;
    bool referenced;
    uint16_t *out, *reference; // [sequences, q_heads, head_dim]
    float *samples;
} kg_attend_test;

int kg_attend_test_open(kg_bed *bed, int most_replays, kg_attend_test *test);
// Checks the output, then times replays after untimed ones (at most KG_BENCH_WARM). KG_FAILED, and no time, if the output is not
// that of the reference kernel.
int kg_attend_test_time(kg_attend_test *test, int warm, int replays, kg_time *time, double *error);
void kg_attend_test_close(kg_attend_test *test); // also after a failed open

// All of that once, with bench->replays. KG_FAILED, and no time, if the output is not that of the reference kernel.
int kg_bench_attend(kg_bed *bed, kg_time *time, double *error);
// Host, append and step, in that order, as far as bench->ops has them; the lengths of the bed grow. bytes: of step, per layer.
int kg_bench_steps(kg_bed *bed, kg_time times[KG_BENCH_OPS], double *begin_us, double bytes[KG_BENCH_OPS]);
// Prompts of `tokens` tokens for as many of `sequences` sequences as memory holds inputs for: *used, which may be 0.
int kg_bench_seal(kg_bench *bench, const kg_spec *spec, kt_engine *engine, int sequences, int tokens, kg_time *time, int *used);

// ---- bench_report.c --------------------------------------------------------------------------------------------------

// Fills in share and ratios, keeps the row and, unless as JSON later, prints it. A share above 1 is KG_FAILED.
int kg_bench_row(kg_bench *bench, kg_row row);
void kg_bench_heading(const kg_bench *bench);
// All rows as an array.
void kg_bench_json(const kg_bench *bench);

// ---- bench_more.c ----------------------------------------------------------------------------------------------------

// Rows attend_unequal and attend_equal.
int kg_bench_unequal(kg_bench *bench, const kg_spec *spec, kt_engine *engine, kg_shape shape);
// Rows attend over contexts at one sequence and over batches at 8K tokens.
int kg_bench_scaling(kg_bench *bench, const kg_spec *spec, kt_engine *engine);

#endif
