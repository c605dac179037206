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
    KG_BENCH_CALL(b, kt_batch_upload(t->batch, b->stream)); // the aborted step left the slots idle, for the graphs too
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
