// kittygen bench: times the kernels of specs on this machine's GPU, beside what its memory can do.
#include "bench.h"

#include <stdlib.h>
#include <string.h>

#include "command.h"
#include "engine.h"
#include "layout.h"

enum { SPECS = 64, LEAST_REPLAYS = 50, MOST_REPLAYS = 10000 };
static const char default_shapes[] = "1x4096,1x32768,8x8192,32x8192";

typedef struct {
    kg_spec specs[SPECS];
    kt_engine *engines[SPECS];
    int spec_count;
    kg_shape shapes[KG_BENCH_SHAPES];
    int shape_count;
    int unequal, scaling;
} plan;

static int load_specs(char **names, int count, const char *dtype, plan *p, char *error)
{
    for (int i = 0; i < count; i++) {
        kg_spec *specs;
        int more;
        KG_TRY(kg_spec_load(names[i], &(kg_spec_options){.dtype = dtype}, &specs, &more, error, KG_ERROR));
        const int split = kg_spec_split(&specs, &more, error, KG_ERROR); // layers that differ are timed apart
        if (split || p->spec_count + more > SPECS) {
            free(specs);
            return split ? split : kg_fail(KG_USER, error, KG_ERROR, "more than %d specs", SPECS);
        }
        for (int s = 0; s < more; s++) {
            int at = p->spec_count++;
            if (!strcmp(specs[s].variant, "fp16")) // first: the others are compared with it
                for (; at; at--)
                    p->specs[at] = p->specs[at - 1];
            p->specs[at] = specs[s];
        }
        free(specs);
    }
    return KG_OK;
}

// What a measurement came to: a failed check is reported, and the others go on.
static int settle(kg_bench *b, int code)
{
    kg_progress_clear(&b->progress);
    if (code == KG_FAILED) {
        fprintf(stderr, "kittygen bench: %s\n", b->error);
        b->failed = true;
        code = KG_OK;
    }
    kg_progress_to(&b->progress, ++b->done);
    return code;
}

static void skipped(kg_bench *b, const kg_spec *spec, kg_shape shape, const char *what)
{
    kg_progress_clear(&b->progress);
    fprintf(stderr, "kittygen bench: %s, %d x %d: skipped: too little memory for %s\n", spec->name, shape.sequences, shape.tokens, what);
}

static int add_row(kg_bench *b, kg_bench_op op, kg_row row, kg_time time, double bytes)
{
    snprintf(row.op, sizeof row.op, "%s", kg_bench_ops[op]);
    row.time = time;
    row.bytes = bytes;
    return kg_bench_row(b, row);
}

// Attend, and what needs whole steps, of one spec at one shape.
static int decode_rows(kg_bench *b, const kg_spec *spec, kt_engine *engine, kg_shape shape)
{
    const unsigned steps = 1u << KG_BENCH_STEP | 1u << KG_BENCH_APPEND | 1u << KG_BENCH_HOST;
    const int replays = b->replays > KG_BENCH_STEPS ? (int)b->replays : KG_BENCH_STEPS;
    // Beside the replays: steps that the host's time is of, warming up, and going past the end of a page.
    const int extra = b->ops & steps ? replays + KG_BENCH_HOST_STEPS + 2 * KG_BENCH_WARM + 8 : 0;
    kg_row row = {.spec = spec, .sequences = shape.sequences, .context = shape.tokens};
    kg_time times[KG_BENCH_OPS];
    double bytes[KG_BENCH_OPS] = {0}, begin_us = 0;
    kg_bed bed;
    int *lengths = malloc((size_t)shape.sequences * sizeof *lengths);
    if (!lengths)
        return kg_fail(KG_MACHINE, b->error, KG_ERROR, "out of memory");
    for (int i = 0; i < shape.sequences; i++)
        lengths[i] = shape.tokens;
    int code = kg_bed_open(b, spec, engine, lengths, shape.sequences, extra, &bed);
    row.layers = bed.layers;
    if (!code && !bed.layers)
        skipped(b, spec, shape, b->layers ? "so many layers" : "one layer");
    if (!code && bed.layers) {
        // The check of attend comes first in any case: a step's time means nothing without it.
        code = kg_bench_attend(&bed, &times[KG_BENCH_ATTEND], &row.error);
        if (!code && b->ops & 1u << KG_BENCH_ATTEND)
            code = add_row(b, KG_BENCH_ATTEND, row, times[KG_BENCH_ATTEND],
                           shape.sequences * kg_bench_attend_bytes(&bed.format, spec->model.kv_heads, shape.tokens - 1, 1));
        row.error = 0;
        if (!code && b->ops & steps)
            code = kg_bench_steps(&bed, times, &begin_us, bytes);
        for (int op = KG_BENCH_STEP; op < KG_BENCH_OPS && !code; op++)
            if (b->ops & steps & 1u << op) {
                row.step_begin_us = op == KG_BENCH_HOST ? begin_us : 0;
                code = add_row(b, (kg_bench_op)op, row, times[op], bytes[op]);
            }
    }
    kg_bed_close(&bed);
    free(lengths);
    return code;
}

static int seal_row(kg_bench *b, const kg_spec *spec, kt_engine *engine, kg_shape shape)
{
    kg_row row = {.spec = spec, .context = shape.tokens, .layers = 1};
    kg_time time;
    kt_format format;
    KG_TRY(kg_bench_seal(b, spec, engine, shape.sequences, shape.tokens, &time, &row.sequences));
    if (row.sequences < shape.sequences)
        skipped(b, spec, (kg_shape){shape.sequences - row.sequences, shape.tokens}, "the inputs of these sequences' prompts");
    if (!row.sequences || kg_layout(spec, &format))
        return KG_OK;
    return add_row(b, KG_BENCH_SEAL, row, time, row.sequences * kg_bench_seal_bytes(&format, spec->model.kv_heads, shape.tokens));
}

static int measure(kg_bench *b, plan *p)
{
    const long total = (long)p->shape_count * p->spec_count * (2 + p->unequal) + p->spec_count * (long)p->scaling;
    kg_progress_begin(&b->progress, "bench", total);
    for (int i = 0; i < p->shape_count; i++)
        for (int s = 0; s < p->spec_count; s++) {
            KG_TRY(settle(b, b->ops & ~(1u << KG_BENCH_SEAL) ? decode_rows(b, &p->specs[s], p->engines[s], p->shapes[i]) : KG_OK));
            KG_TRY(settle(b, b->ops & 1u << KG_BENCH_SEAL ? seal_row(b, &p->specs[s], p->engines[s], p->shapes[i]) : KG_OK));
            if (p->unequal)
                KG_TRY(settle(b, p->shapes[i].sequences == 1 ? KG_OK : kg_bench_unequal(b, &p->specs[s], p->engines[s], p->shapes[i])));
        }
    for (int s = 0; s < p->spec_count && p->scaling; s++)
        KG_TRY(settle(b, kg_bench_scaling(b, &p->specs[s], p->engines[s])));
    return KG_OK;
}

static int run(kg_bench *b, plan *p)
{
    int code = kg_gpu_hold(b->error);
    if (code) {
        char why[KG_ERROR];
        snprintf(why, sizeof why, "%s", b->error);
        return kg_fail(code, b->error, KG_ERROR, "a GPU is needed: %s", why);
    }
    if (!(code = kg_gpu_query(&b->gpu, b->error)) && !(code = kg_gpu_stream_open(&b->stream, b->error)))
        code = kg_bench_bandwidth(b);
    kg_progress_begin(&b->progress, "compiling", p->spec_count);
    for (int s = 0; s < p->spec_count && !code; s++) {
        code = kg_engine_open(&p->specs[s], KT_DEVICE_CUDA, &p->engines[s], b->error, KG_ERROR);
        kg_progress_to(&b->progress, s + 1);
    }
    kg_progress_end(&b->progress);
    if (!code) {
        kg_bench_heading(b);
        code = measure(b, p);
        kg_progress_end(&b->progress);
        printf(b->json ? "]\n" : "");
    }
    if (!code && !b->row_count && !b->failed)
        code = kg_fail(KG_MACHINE, b->error, KG_ERROR, "%s has too little memory for any of the shapes", b->gpu.name);
    for (int s = 0; s < p->spec_count; s++)
        kt_close(p->engines[s]);
    kg_gpu_free(b->data);
    kg_gpu_free(b->kept);
    kg_gpu_module_close(b->module);
    kg_gpu_stream_close(b->stream);
    free(b->rows);
    return code ? code : b->failed ? KG_FAILED : KG_OK;
}

int kg_command_bench(int argc, char **argv)
{
    const char *shapes = default_shapes, *ops = 0, *layers = 0, *replays = "60", *dtype = 0;
    static kg_bench bench;
    static plan p;
    int code, json = 0;
    const kg_option table[] = {
        {"--shapes", "LIST|FILE", "sequences x tokens: 1x4096,32x8192, or a file of them (default: 1x4096,1x32768,8x8192,32x8192)", 0, &shapes},
        {"--ops", "LIST", "of attend, step, append, seal, host (default: all)", 0, &ops},
        {"--layers", "L", "layers of a graph (default: 8 to 36, and more until they are four times the L2 cache)", 0, &layers},
        {"--replays", "N", "of each graph, at least 50 (default: 60)", 0, &replays},
        {"--dtype", "fp16|bf16", "override the model's element type", 0, &dtype},
        {"--unequal", 0, "with several sequences also attend over lengths from T / 32 to T, beside equal ones of the same total", &p.unequal, 0},
        {"--scaling", 0, "also attend over contexts of 1K to 256K, and over batches of 1 to 256 at 8K", &p.scaling, 0},
        {"--json", 0, "an array of rows", &json, 0},
        {0, 0, 0, 0, 0},
    };
    const kg_usage usage = {
        "kittygen bench SPEC... [options]",
        "Times the specs' kernels on a GPU, for B sequences of T tokens each, and sets them beside the card's bandwidth, which is\n"
        "measured first. The operations:\n"
        "  attend  one new token per sequence, T counting it; a CUDA graph over layers with pages of their own\n"
        "  append  beginning a step and appending one token per sequence and layer, where that completes no page\n"
        "  step    whole steps of one token per sequence, from T on and over page turns: append, seal, attend, commit\n"
        "  seal    kt_append of prompts of T tokens to one layer: keys and values together\n"
        "  host    what kt_attend and kt_step_begin take on the CPU where no graph is used\n"
        "Bytes are what must be read, and for append, step and seal also written: sealed pages and exact tokens. Attend is first\n"
        "checked against the float64 kernel; where it is wrong, or faster than memory allows, no time is given and the exit code\n"
        "is 1. With the variant fp16 of a model among the specs, the others show how many times faster they are.\n"
        "Of a spec whose layers differ each way of keeping them has rows of its own, as a spec NAME-f0, NAME-f1, ...\n",
        table, 1, -1};
    const int operands = kg_options(&usage, argc, argv, &code);
    if (operands < 0)
        return code;
    bench.ops = (1u << KG_BENCH_OPS) - 1;
    bench.json = json;
    if ((ops && (code = kg_bench_parse_ops(ops, &bench.ops))) ||
        (layers && (code = kg_option_integer("bench", "--layers", layers, 1, 4096, &bench.layers))) ||
        (code = kg_option_integer("bench", "--replays", replays, LEAST_REPLAYS, MOST_REPLAYS, &bench.replays)))
        return code;
    code = kg_bench_shapes(shapes, p.shapes, &p.shape_count, bench.error);
    if (!code)
        code = load_specs(argv + 1, operands, dtype, &p, bench.error);
    if (!code)
        code = run(&bench, &p);
    if (code && code != KG_FAILED)
        fprintf(stderr, "kittygen bench: %s\n", bench.error);
    return code;
}
