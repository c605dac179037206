// time: attend by itself, as decoding runs it: a CUDA graph over layers with pages of their own.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bed.h"
#include "cuda.h"

enum { WARM = 5, REPLAYS = 60, MOST_LAYERS = 256 };
static const double MOST_BYTES = 40e9;

typedef struct {
    double median, low, high; // microseconds of attend per layer; low and high: the tenth and the ninetieth percentile
    double step;              // of append and attend, per layer
    double error;
} timing;

static int by_size(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

// A graph of one step's appends, and one of its attends, which change nothing and can be replayed alone.
static int capture(bed *b, char *out, cuda_handle graphs[2])
{
    TRY(bed_decode(b));
    for (int i = 0; i < b->sequences; i++)
        CALL(kt_sequence_reserve(b->cache, b->handles[i], b->max_tokens));
    CALL(kt_batch_upload(b->batch, b->stream));
    TRY(cuda_stream_wait(b->stream));
    TRY(cuda_capture_begin(b->stream));
    CALL(kt_step_begin(b->batch, b->stream));
    for (int layer = 0; layer < b->layers; layer++)
        TRY(bed_append(b, layer));
    TRY(cuda_capture_end(b->stream, &graphs[0]));
    TRY(cuda_capture_begin(b->stream));
    for (int layer = 0; layer < b->layers; layer++)
        TRY(bed_attend(b, layer, out, 0));
    TRY(cuda_capture_end(b->stream, &graphs[1]));
    CALL(kt_step_abort(b->batch));
    return KG_OK;
}

static int time_graph(bed *b, cuda_handle graph, double *median, double *low, double *high)
{
    float samples[REPLAYS];
    TRY(cuda_graph_time(graph, b->stream, WARM, samples));
    TRY(cuda_graph_time(graph, b->stream, REPLAYS, samples));
    qsort(samples, REPLAYS, sizeof *samples, by_size);
    *median = (double)(samples[REPLAYS / 2 - 1] + samples[REPLAYS / 2]) / 2 / b->layers;
    *low = (double)samples[REPLAYS / 10] / b->layers;
    *high = (double)samples[REPLAYS - 1 - REPLAYS / 10] / b->layers;
    return KG_OK;
}

// What the graph of attends leaves, against the reference kernel over the same state. All layers hold the same tokens.
static int check(bed *b, cuda_handle attends, char *out, double *error)
{
    const size_t count = b->out_bytes / 2;
    uint16_t *host = malloc(2 * b->out_bytes);
    int code = host ? KG_OK : fail(KG_MACHINE, "out of memory");
    if (!code) {
        memset(host, 0xff, b->out_bytes); // NaN in both dtypes
        const kt_status status = kt_memory_write(b->engine, out, host, b->out_bytes, b->stream);
        code = status ? refused("kt_memory_write", status) : cuda_graph_launch(attends, b->stream);
    }
    if (!code) {
        kt_status status = kt_memory_read(b->engine, host, out, b->out_bytes);
        if (!status)
            status = kt_step_begin(b->batch, b->stream);
        for (int layer = 0; layer < b->layers && !code && !status; layer++)
            code = bed_append(b, layer);
        if (!code && !status)
            code = bed_attend(b, b->layers - 1, out, KT_ATTEND_REFERENCE);
        if (!code && !status)
            status = kt_step_abort(b->batch);
        if (!code && !status)
            status = kt_memory_read(b->engine, host + count, out, b->out_bytes);
        code = code ? code : status ? refused("kt_attend", status) : KG_OK;
    }
    if (!code)
        *error = bed_difference(b, host, host + count, count);
    free(host);
    return code;
}

static int measure(bed *b, int context, timing *t)
{
    char *out = NULL;
    cuda_handle graphs[2] = {0};
    double append = 0, unused;
    int code = KG_OK;
    for (int i = 0; i < b->sequences && !code; i++)
        code = bed_fill(b, i, context - 1);
    if (!code) {
        const kt_status status = kt_memory_alloc(b->engine, b->out_bytes, (void **)&out);
        code = status ? refused("kt_memory_alloc", status) : capture(b, out, graphs);
    }
    if (!code)
        code = cuda_graph_launch(graphs[0], b->stream);
    if (!code)
        code = check(b, graphs[1], out, &t->error);
    if (!code)
        code = time_graph(b, graphs[1], &t->median, &t->low, &t->high);
    if (!code)
        code = time_graph(b, graphs[0], &append, &unused, &unused);
    t->step = append + t->median;
    cuda_graph_close(graphs[0]);
    cuda_graph_close(graphs[1]);
    kt_memory_free(b->engine, out);
    return code;
}

// Layers whose pages together are four times the L2 cache and at least 8, as far as memory goes.
static int choose_layers(const char *name, const char *dtype, int sequences, int context, int *layers)
{
    bed b = {0};
    size_t l2;
    TRY(load_spec(name, dtype, &b.spec));
    const char *why = kg_layout(&b.spec, &b.format);
    if (why)
        return fail(KG_USER, "%s", why);
    TRY(cuda_hold());
    TRY(cuda_l2_bytes(&l2));
    b.kv_heads = b.spec.model.kv_heads;
    const double layer = sequences * bed_bytes(&b, context - 1, 1), wanted = 4.0 * (double)l2 / layer + 1;
    *layers = wanted < 8 ? 8 : wanted > MOST_LAYERS ? MOST_LAYERS : (int)wanted;
    if (*layers * layer > MOST_BYTES)
        *layers = (int)(MOST_BYTES / layer);
    return *layers ? KG_OK : fail(KG_USER, "one layer of %d x %d tokens is %.0f bytes, more than %.0f", sequences, context, layer, MOST_BYTES);
}

static int run(const char *spec, const char *dtype, int config, int sequences, int context, int layers, int json)
{
    bed b;
    timing t = {0};
    if (!layers)
        TRY(choose_layers(spec, dtype, sequences, context, &layers));
    int code = bed_open(&b, spec, dtype, config, layers, 0, sequences, context);
    if (!code)
        code = require_alike(&b.spec);
    if (!code)
        code = measure(&b, context, &t);
    if (!code && !(t.error <= error_limit(b.format.dtype)))
        code = fail(KG_FAILED, "the error is %.2e, above %.0e: no time is given", t.error, error_limit(b.format.dtype));
    if (!code) {
        kt_engine_info info = {.size = sizeof info};
        const kt_status status = kt_engine_query(b.engine, &info);
        const double bytes = sequences * bed_bytes(&b, context - 1, 1);
        const char *type = b.format.dtype ? "bf16" : "fp16";
        if (status)
            code = refused("kt_engine_query", status);
        else if (json)
            printf("{\"op\": \"attend\", \"spec\": \"%s\", \"dtype\": \"%s\", \"device\": \"%s\", \"sequences\": %d, \"context\": %d, "
                   "\"q_heads\": %d, \"kv_heads\": %d, \"head_dim\": %d, \"layers\": %d, \"us\": %.3f, \"us_p10\": %.3f, "
                   "\"us_p90\": %.3f, \"step_us\": %.3f, \"bytes\": %.0f, \"error\": %.3e}\n", b.spec.name, type, info.device_name,
                   sequences, context, b.q_heads, b.kv_heads, b.format.head_dim, layers, t.median, t.low, t.high, t.step, bytes, t.error);
        else
            printf("%s %s, %d x %d tokens, %d/%d heads, %d layers on %s: attend %.2f us per layer (%.2f to %.2f), %.0f bytes, %.0f GB/s; "
                   "with append %.2f us; error %.1e\n", b.spec.name, type, sequences, context, b.q_heads, b.kv_heads, layers,
                   info.device_name, t.median, t.low, t.high, bytes, bytes / t.median / 1e3, t.step, t.error);
    }
    bed_close(&b);
    return code;
}

int part_time(int argc, char **argv)
{
    const char *spec = "qwen3_8b/kitty_pro", *dtype = "fp16", *sequences_text = "32", *context_text = "8192", *layers_text = NULL,
               *config_text = NULL;
    int json = 0, code, sequences, context, layers = 0, config = -1;
    const kg_option options[] = {
        {"--sequences", "N", "of equal length (default 32)", NULL, &sequences_text},
        {"--context", "T", "tokens of each, the new one included (default 8192)", NULL, &context_text},
        {"--spec", "MODEL/VARIANT", "what to run (default qwen3_8b/kitty_pro)", NULL, &spec},
        {"--dtype", "fp16|bf16", "element type (default fp16)", NULL, &dtype},
        {"--layers", "L", "of the graph (default: at least 8, and four times the L2 cache)", NULL, &layers_text},
        {"--config", "N", "the N-th attend kernel of the package, from 0 (default: as selected)", NULL, &config_text},
        {"--json", NULL, "one line of JSON", &json, NULL},
        {NULL, NULL, NULL, NULL, NULL},
    };
    const kg_usage usage = {"gpu_suite time [options]",
                            "Microseconds of attend per layer, for one new token per sequence: the median of replays of a CUDA graph\n"
                            "over layers with pages of their own. The bytes are those that must be read: sealed pages and exact\n"
                            "tokens. The output is checked against the float64 kernel first.\n",
                            options, 0, 0};
    if (kg_options(&usage, argc, argv, &code) < 0)
        return code;
    TRY(read_integer("--sequences", sequences_text, 1, 4096, &sequences));
    TRY(read_integer("--context", context_text, 2, 1 << 22, &context));
    if (layers_text)
        TRY(read_integer("--layers", layers_text, 1, 4096, &layers));
    if (config_text)
        TRY(read_integer("--config", config_text, 0, KG_ATTEND_CONFIGS, &config));
    return run(spec, dtype, config, sequences, context, layers, json);
}
