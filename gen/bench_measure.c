// The measurements.
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench.h"
#include "exact.h"
#include "layout.h"

enum { HOST_QUEUE = 512 }; // launches that may wait on the GPU without making the host wait

static double now(void) // microseconds
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return 1e6 * (double)time.tv_sec + 1e-3 * (double)time.tv_nsec;
}

static int out_of_memory(kg_bench *b) { return kg_fail(KG_MACHINE, b->error, KG_ERROR, "out of memory"); }

static int append_all(kg_bed *bed, kt_batch *batch)
{
    KG_BENCH_CALL(bed->bench, kt_step_begin(batch, bed->bench->stream));
    for (int layer = 0; layer < bed->layers; layer++)
        KG_TRY(kg_bed_append(bed, batch, layer, 0));
    return KG_OK;
}

static int attend_all(kg_bed *bed, kt_batch *batch)
{
    for (int layer = 0; layer < bed->layers; layer++)
        KG_TRY(kg_bed_attend(bed, batch, layer, 0));
    return KG_OK;
}

static int step_all(kg_bed *bed, kt_batch *batch)
{
    KG_BENCH_CALL(bed->bench, kt_step_begin(batch, bed->bench->stream));
    for (int layer = 0; layer < bed->layers; layer++) {
        KG_TRY(kg_bed_append(bed, batch, layer, KT_APPEND_BEHIND_ATTEND));
        KG_TRY(kg_bed_attend(bed, batch, layer, 0));
    }
    KG_BENCH_CALL(bed->bench, kt_step_commit(batch));
    return KG_OK;
}

static int capture(kg_bed *bed, kt_batch *batch, int (*body)(kg_bed *, kt_batch *), kg_handle *graph)
{
    kg_bench *b = bed->bench;
    KG_TRY(kg_gpu_capture_begin(b->stream, b->error));
    const int code = body(bed, batch);
    char kept[KG_ERROR]; // of what failed first
    memcpy(kept, b->error, sizeof kept);
    const int ended = kg_gpu_capture_end(b->stream, graph, b->error);
    if (code)
        memcpy(b->error, kept, sizeof kept);
    return code ? code : ended;
}

// Warms up, then times `count` replays.
static int replay(kg_bed *bed, kg_handle graph, int warm, int count, float *samples)
{
    kg_bench *b = bed->bench;
    KG_TRY(kg_gpu_graph_time(graph, b->stream, warm, samples, b->error));
    return kg_gpu_graph_time(graph, b->stream, count, samples, b->error);
}

// ---- attend ----------------------------------------------------------------------------------------------------------

static size_t outputs(const kg_bed *bed)
{
    return (size_t)bed->sequences * (size_t)bed->spec->model.q_heads * (size_t)bed->format.head_dim;
}

int kg_attend_test_open(kg_bed *bed, int most_replays, kg_attend_test *t)
{
    *t = (kg_attend_test){.bed = bed};
    t->out = malloc(2 * outputs(bed));
    t->reference = malloc(2 * outputs(bed));
    t->samples = malloc((size_t)(most_replays > KG_BENCH_WARM ? most_replays : KG_BENCH_WARM) * sizeof *t->samples);
    if (!t->out || !t->reference || !t->samples)
        return out_of_memory(bed->bench);
    return kg_bed_batch(bed, 0, &t->batch);
}

void kg_attend_test_close(kg_attend_test *t)
{
    kt_batch_close(t->batch);
    free(t->out);
    free(t->reference);
    free(t->samples);
}

// The reference kernel's output of the last layer.
static int make_reference(kg_attend_test *t)
{
    kg_bed *bed = t->bed;
    kg_bench *b = bed->bench;
    KG_TRY(append_all(bed, t->batch));
    const int code = kg_bed_attend(bed, t->batch, bed->layers - 1, KT_ATTEND_REFERENCE);
    KG_BENCH_CALL(b, kt_step_abort(t->batch));
    if (!code)
        KG_TRY(kg_gpu_read(t->reference, bed->out, 2 * outputs(bed), b->error));
    t->referenced = !code;
    return code;
}

// What the graphs of appends and attends leave, against the reference over the same state; the last layer's.
static int check(kg_attend_test *t, const kg_handle graphs[2], double *error)
{
    kg_bed *bed = t->bed;
    kg_bench *b = bed->bench;
    const size_t count = outputs(bed);
    const double limit = bed->format.dtype == KT_BF16 ? 8e-3 : 2e-3;
    double difference = 0, reference = 0;
    memset(t->out, 0xff, 2 * count); // NaN in both dtypes
    KG_TRY(kg_gpu_write(bed->out, t->out, 2 * count, b->error));
    for (int i = 0; i < 2; i++)
        KG_TRY(kg_gpu_graph_launch(graphs[i], b->stream, b->error));
    KG_TRY(kg_gpu_read(t->out, bed->out, 2 * count, b->error));
    if (!t->referenced)
        KG_TRY(make_reference(t));
    for (size_t i = 0; i < count; i++) {
        const double r = (double)kg_to_float(bed->format.dtype, t->reference[i]);
        const double d = (double)kg_to_float(bed->format.dtype, t->out[i]) - r;
        difference += d * d;
        reference += r * r;
    }
    *error = sqrt(difference / reference); // NaN for two outputs of zeros, which is not within the limit either
    return *error <= limit ? KG_OK : kg_fail(KG_FAILED, b->error, KG_ERROR, "%s: %d sequences of %d tokens: attend's error is %.2e, above %.0e: no "
                                             "time is given", bed->spec->name, bed->sequences, bed->lengths[0], *error, limit);
}

static int capture_both(kg_attend_test *t, kg_handle graphs[2])
{
    kg_bed *bed = t->bed;
    kg_bench *b = bed->bench;
    KG_BENCH_CALL(b, kt_batch_upload(t->batch, b->stream)); // a reference may have run meanwhile
    KG_TRY(kg_gpu_stream_wait(b->stream, b->error));
    int code = capture(bed, t->batch, append_all, &graphs[0]);
    if (!code)
        code = capture(bed, t->batch, attend_all, &graphs[1]);
    const kt_status status = kt_step_abort(t->batch);
    return code || !status ? code : kg_bench_refused(b, "kt_step_abort", status);
}

int kg_attend_test_time(kg_attend_test *t, int warm, int replays, kg_time *time, double *error)
{
    kg_handle graphs[2] = {0};
    int code = capture_both(t, graphs);
    if (!code)
        code = check(t, graphs, error);
    if (!code)
        code = replay(t->bed, graphs[1], warm, replays, t->samples);
    if (!code)
        kg_bench_percentiles(t->samples, replays, t->bed->layers, time);
    kg_gpu_graph_close(graphs[0]);
    kg_gpu_graph_close(graphs[1]);
    return code;
}

int kg_bench_attend(kg_bed *bed, kg_time *time, double *error)
{
    const int replays = (int)bed->bench->replays;
    kg_attend_test test;
    int code = kg_attend_test_open(bed, replays, &test);
    if (!code)
        code = kg_attend_test_time(&test, KG_BENCH_WARM, replays, time, error);
    kg_attend_test_close(&test);
    return code;
}

// ---- whole steps -----------------------------------------------------------------------------------------------------

static void longer(kg_bed *bed, int tokens)
{
    for (int i = 0; i < bed->sequences; i++)
        bed->lengths[i] += tokens;
}

// One step that is not captured. Adds the microseconds of kt_step_begin to *begin, and of the attends to *attends.
static int eager_step(kg_bed *bed, kt_batch *batch, double *begin, double *attends)
{
    kg_bench *b = bed->bench;
    double from = now();
    KG_BENCH_CALL(b, kt_step_begin(batch, b->stream));
    *begin += now() - from;
    for (int layer = 0; layer < bed->layers; layer++) {
        KG_TRY(kg_bed_append(bed, batch, layer, 0)); // or the attends would launch it too
        from = now();
        KG_TRY(kg_bed_attend(bed, batch, layer, 0));
        *attends += now() - from;
    }
    KG_BENCH_CALL(b, kt_step_commit(batch));
    longer(bed, 1);
    return KG_OK;
}

static int host_time(kg_bed *bed, kt_batch *batch, kg_time *time, double *begin_us)
{
    float samples[KG_BENCH_HOST_STEPS];
    double begin = 0, unused = 0;
    int queued = 0;
    for (int i = -KG_BENCH_WARM; i < KG_BENCH_HOST_STEPS; i++) {
        double attends = 0;
        KG_TRY(eager_step(bed, batch, i < 0 ? &unused : &begin, &attends));
        if (i >= 0)
            samples[i] = (float)attends;
        queued += 2 * bed->layers + 4;
        if (queued + 2 * bed->layers + 4 > HOST_QUEUE) {
            KG_TRY(kg_gpu_stream_wait(bed->bench->stream, bed->bench->error));
            queued = 0;
        }
    }
    double sum = 0;
    for (int i = 0; i < KG_BENCH_HOST_STEPS; i++)
        sum += (double)samples[i];
    kg_bench_percentiles(samples, KG_BENCH_HOST_STEPS, bed->layers, time);
    time->us = sum / KG_BENCH_HOST_STEPS / bed->layers;
    *begin_us = begin / KG_BENCH_HOST_STEPS;
    return KG_OK;
}

static int append_time(kg_bed *bed, kt_batch *batch, float *samples, kg_time *time)
{
    kg_bench *b = bed->bench;
    kg_handle graph = 0;
    double unused = 0;
    while (kg_bench_completes(&bed->format, bed->lengths[0] - 1))
        KG_TRY(eager_step(bed, batch, &unused, &unused)); // the pages' sealing is step's, in the mean
    KG_BENCH_CALL(b, kt_batch_upload(batch, b->stream));
    KG_TRY(kg_gpu_stream_wait(b->stream, b->error));
    int code = capture(bed, batch, append_all, &graph);
    if (!code) {
        const kt_status status = kt_step_abort(batch);
        code = status ? kg_bench_refused(b, "kt_step_abort", status) : replay(bed, graph, KG_BENCH_WARM, (int)b->replays, samples);
    }
    if (!code)
        kg_bench_percentiles(samples, (int)b->replays, bed->layers, time);
    kg_gpu_graph_close(graph);
    return code;
}

static int step_time(kg_bed *bed, kt_batch *batch, int steps, float *samples, kg_time *time, double *bytes)
{
    kg_bench *b = bed->bench;
    const int kv_heads = bed->spec->model.kv_heads;
    kg_handle graph = 0;
    double sum = 0;
    KG_BENCH_CALL(b, kt_batch_upload(batch, b->stream));
    KG_TRY(kg_gpu_stream_wait(b->stream, b->error));
    int code = capture(bed, batch, step_all, &graph);
    if (!code)
        code = replay(bed, graph, KG_BENCH_WARM, steps, samples);
    kg_gpu_graph_close(graph);
    if (code)
        return code;
    KG_BENCH_CALL(b, kt_step_replayed(batch, KG_BENCH_WARM + steps));
    kt_poll_info info = {.size = sizeof info};
    KG_BENCH_CALL(b, kt_poll(batch, &info));
    if (info.overruns)
        return kg_fail(KG_FAILED, b->error, KG_ERROR, "%s: %d of %d replayed steps changed nothing", bed->spec->name, info.overruns, steps);
    *bytes = 0;
    longer(bed, KG_BENCH_WARM);
    for (int i = 0; i < steps; i++) {
        sum += (double)samples[i];
        for (int s = 0; s < bed->sequences; s++)
            *bytes += (kg_bench_attend_bytes(&bed->format, kv_heads, bed->lengths[s] - 1, 1) +
                       kg_bench_append_bytes(&bed->format, kv_heads, bed->lengths[s] - 1)) / steps;
        longer(bed, 1);
    }
    kg_bench_percentiles(samples, steps, bed->layers, time);
    time->us = sum / steps / bed->layers;
    return KG_OK;
}

int kg_bench_steps(kg_bed *bed, kg_time times[KG_BENCH_OPS], double *begin_us, double bytes[KG_BENCH_OPS])
{
    kg_bench *b = bed->bench;
    const int steps = b->replays > KG_BENCH_STEPS ? (int)b->replays : KG_BENCH_STEPS;
    int longest = 0;
    for (int i = 0; i < bed->sequences; i++)
        longest = bed->lengths[i] > longest ? bed->lengths[i] : longest;
    kt_batch *batch = 0;
    float *samples = malloc((size_t)steps * sizeof *samples);
    int code = samples ? kg_bed_batch(bed, bed->most_tokens - longest, &batch) : out_of_memory(b);
    if (!code && b->ops & 1u << KG_BENCH_HOST)
        code = host_time(bed, batch, &times[KG_BENCH_HOST], begin_us);
    if (!code && b->ops & 1u << KG_BENCH_APPEND) {
        code = append_time(bed, batch, samples, &times[KG_BENCH_APPEND]);
        bytes[KG_BENCH_APPEND] = bed->sequences * kg_bench_append_bytes(&bed->format, bed->spec->model.kv_heads, bed->lengths[0] - 1);
    }
    if (!code && b->ops & 1u << KG_BENCH_STEP)
        code = step_time(bed, batch, steps, samples, &times[KG_BENCH_STEP], &bytes[KG_BENCH_STEP]);
    kt_batch_close(batch);
    free(samples);
    return code;
}

// ---- sealing ---------------------------------------------------------------------------------------------------------

typedef struct {
    kt_cache *cache;
    kt_batch *batch;
    void *input; // [sequences * tokens, 2, kv_heads, head_dim]: keys, then values, of each token
    kg_handle events[2];
} sealing;

static int seal_open(kg_bench *b, const kg_spec *spec, kt_engine *engine, const kt_format *f, int sequences, int tokens, double held,
                     sealing *s)
{
    const size_t row = 2 * (size_t)spec->model.kv_heads * (size_t)f->head_dim, count = row * (size_t)sequences * (size_t)tokens;
    kt_sequence sequence;
    const kt_cache_args args = {.size = sizeof args, .budget_bytes = (uint64_t)held * (uint64_t)sequences, .layers = 1,
                                .kv_heads = spec->model.kv_heads, .max_sequences = sequences};
    KG_TRY(kg_gpu_alloc(2 * count, &s->input, b->error));
    for (size_t done = 0; done < count; done += b->data_count)
        KG_TRY(kg_gpu_copy((uint16_t *)s->input + done, b->data, 2 * (count - done < b->data_count ? count - done : b->data_count), b->stream, b->error));
    for (int i = 0; i < 2; i++)
        KG_TRY(kg_gpu_event_open(&s->events[i], b->error));
    KG_BENCH_CALL(b, kt_cache_open(engine, &args, &s->cache));
    KG_BENCH_CALL(b, kt_batch_open(s->cache, &(kt_batch_args){.size = sizeof(kt_batch_args), .slots = sequences, .max_tokens = tokens,
                                                              .max_rows = sequences * tokens}, &s->batch));
    for (int i = 0; i < sequences; i++) {
        KG_BENCH_CALL(b, kt_sequence_open(s->cache, &sequence));
        KG_BENCH_CALL(b, kt_batch_set(s->batch, i, sequence, tokens, -1));
    }
    return KG_OK;
}

// The append of empty sequences: aborted, so that it can be done again.
static int seal_once(kg_bench *b, const sealing *s, int64_t row, float *us)
{
    KG_BENCH_CALL(b, kt_step_begin(s->batch, b->stream));
    KG_TRY(kg_bench_flush(b)); // also keeps the GPU busy until the append is queued
    KG_TRY(kg_gpu_event_record(s->events[0], b->stream, b->error));
    KG_BENCH_CALL(b, kt_append(s->batch, &(kt_append_args){.size = sizeof(kt_append_args), .key = s->input, .value = (uint16_t *)s->input + row / 2,
                                                           .key_row = row, .value_row = row}));
    KG_TRY(kg_gpu_event_record(s->events[1], b->stream, b->error));
    KG_BENCH_CALL(b, kt_step_abort(s->batch));
    KG_TRY(kg_gpu_stream_wait(b->stream, b->error));
    return kg_gpu_event_time(s->events[0], s->events[1], us, b->error);
}

int kg_bench_seal(kg_bench *b, const kg_spec *spec, kt_engine *engine, int sequences, int tokens, kg_time *time, int *used)
{
    enum { MOST_ROWS = 1 << 24 };
    kt_format f;
    sealing s = {0};
    size_t room;
    const char *why = kg_layout(spec, &f);
    if (why)
        return kg_fail(KG_USER, b->error, KG_ERROR, "%s: %s", spec->name, why);
    const int64_t row = 2 * (int64_t)spec->model.kv_heads * f.head_dim;
    const double held = (double)spec->model.kv_heads * ((tokens / f.page + 1.0) * f.block_bytes + f.slab_bytes); // per sequence
    KG_TRY(kg_bench_data(b, f.dtype, (size_t)row * KG_BENCH_CHUNK));
    KG_TRY(kg_gpu_free_bytes(&room, b->error));
    *used = sequences;
    while (*used && (*used * (held + 2.0 * (double)row * tokens) > 0.85 * (double)room || (double)*used * tokens > MOST_ROWS))
        --*used;
    if (!*used)
        return KG_OK;
    float *samples = malloc((size_t)b->replays * sizeof *samples), unused;
    int code = samples ? seal_open(b, spec, engine, &f, *used, tokens, held, &s) : out_of_memory(b);
    for (int i = -KG_BENCH_WARM; i < b->replays && !code; i++)
        code = seal_once(b, &s, row, i < 0 ? &unused : &samples[i]);
    if (!code)
        kg_bench_percentiles(samples, (int)b->replays, 1, time);
    kg_gpu_event_close(s.events[0]);
    kg_gpu_event_close(s.events[1]);
    kt_batch_close(s.batch);
    kt_cache_close(s.cache);
    kg_gpu_free(s.input);
    free(samples);
    return code;
}
