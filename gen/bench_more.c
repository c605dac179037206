// Beyond one shape: unequal lengths, scaling, and tuning.
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "core.h"

// One row of attend over sequences of these lengths; *us is 0, and there is no row, where memory is too small.
static int attend_row(kg_bench *b, const char *op, const kg_spec *spec, kt_engine *engine, const int *lengths, int count, double equal_us, double *us)
{
    kg_bed bed;
    kg_row row = {.spec = spec, .sequences = count};
    double tokens = 0;
    *us = 0;
    int code = kg_bed_open(b, spec, engine, lengths, count, 0, &bed);
    if (!code && bed.layers) {
        code = kg_bench_attend(&bed, &row.time, &row.error);
        snprintf(row.op, sizeof row.op, "%s", op);
        row.layers = bed.layers;
        for (int i = 0; i < count; i++) {
            tokens += lengths[i];
            row.bytes += kg_bench_attend_bytes(&bed.format, spec->model.kv_heads, lengths[i] - 1, 1);
        }
        row.context = (int)(tokens / count);
        row.ratio_equal = equal_us > 0 ? equal_us / row.time.us : 0;
        if (!code)
            code = kg_bench_row(b, row);
        *us = row.time.us;
    }
    kg_bed_close(&bed);
    return code;
}

int kg_bench_unequal(kg_bench *b, const kg_spec *spec, kt_engine *engine, kg_shape shape)
{
    const size_t count = (size_t)shape.sequences;
    int *lengths = malloc(2 * count * sizeof *lengths), *equal = lengths + count;
    double us = 0;
    long long total = 0;
    if (!lengths)
        return kg_fail(KG_MACHINE, b->error, KG_ERROR, "out of memory");
    kg_bench_lengths(shape.tokens, shape.sequences, lengths);
    for (size_t i = 0; i < count; i++)
        total += lengths[i];
    for (size_t i = 0; i < count; i++) // the same total
        equal[i] = (int)(total / shape.sequences) + ((long long)i < total % shape.sequences);
    int code = attend_row(b, "attend_equal", spec, engine, equal, shape.sequences, 0, &us);
    if (!code && us > 0)
        code = attend_row(b, "attend_unequal", spec, engine, lengths, shape.sequences, us, &us);
    free(lengths);
    return code;
}

int kg_bench_scaling(kg_bench *b, const kg_spec *spec, kt_engine *engine)
{
    enum { MOST_BATCH = 256, LONGEST = 256 * 1024, TOKENS = 8192 };
    int lengths[MOST_BATCH];
    double us = 1;
    for (int tokens = 1024; tokens <= LONGEST && us > 0; tokens *= 2)
        KG_TRY(attend_row(b, "attend_scaling", spec, engine, &tokens, 1, 0, &us));
    for (int i = 0; i < MOST_BATCH; i++)
        lengths[i] = TOKENS;
    us = 1;
    for (int count = 1; count <= MOST_BATCH && us > 0; count *= 2)
        KG_TRY(attend_row(b, "attend_scaling", spec, engine, lengths, count, 0, &us));
    return KG_OK;
}

// ---- tuning ----------------------------------------------------------------------------------------------------------

typedef struct {
    kg_shape shape;
    int pages;      // as the runtime looks it up
    int kernel, blocks_per_sm;
    double us, selected_us;
} tuned;

// Makes every row for attend this one.
static void force(kt__package *package, const kt__choice *kept, int kernel, int blocks)
{
    for (int i = 0; i < package->choice_count; i++)
        if (kept[i].op == KT__ATTEND)
            package->choices[i] = (kt__choice){KT__ATTEND, 0, 0, kernel, blocks};
}

static int tune_shape(kg_bed *bed, const kt__choice *kept, tuned *best)
{
    enum { MOST_BLOCKS = 4 };
    kg_bench *b = bed->bench;
    kt__package *package = &bed->engine->package;
    kg_time time;
    double error;
    KG_TRY(kg_bench_attend(bed, &time, &error));
    best->selected_us = time.us;
    for (int k = 0; k < package->kernel_count; k++) {
        const kt__kernel *kernel = &package->kernels[k];
        if (kernel->op != KT__ATTEND || kernel->shared > bed->engine->backend->shared_limit)
            continue;
        for (int blocks = 1; blocks <= MOST_BLOCKS; blocks++) {
            force(package, kept, k, blocks);
            KG_TRY(kg_bench_attend(bed, &time, &error));
            if (!b->json) {
                kg_progress_end(&b->progress);
                printf("  %-24s %d x %d: %s, %d blocks per multiprocessor: %.2f us (%.2f to %.2f)\n", bed->spec->name, bed->sequences,
                       bed->lengths[0], kernel->name, blocks, time.us, time.low, time.high);
                fflush(stdout);
            }
            if (!(best->us > 0) || time.us < best->us) {
                best->us = time.us;
                best->kernel = k;
                best->blocks_per_sm = blocks;
            }
        }
    }
    return KG_OK;
}

static int by_bounds(const void *a, const void *b)
{
    const tuned *x = a, *y = b;
    return x->shape.sequences != y->shape.sequences ? x->shape.sequences - y->shape.sequences : x->pages - y->pages;
}

static int power_above(int n)
{
    int power = 1;
    while (power < n)
        power *= 2;
    return power;
}

// Rows as a manifest has them, the largest shape's being for anything larger too.
static void selection(const kt__package *package, const tuned *results, int count, const char *indent, kg_text *out)
{
    for (int i = 0; i <= count; i++) {
        const tuned *t = &results[i < count ? i : count - 1];
        kg_text_addf(out, "%s%s{\"op\": \"attend\", \"sequences\": %d, \"pages\": %d, \"kernel\": \"%s\", \"blocks_per_sm\": %d}", i ? "," : "", indent,
                     i < count ? t->shape.sequences : 0, i < count ? t->pages : 0, package->kernels[t->kernel].name, t->blocks_per_sm);
    }
}

static void report(const kg_bench *b, const kg_spec *spec, const kt__package *package, const tuned *results, int count, kg_text *json)
{
    kg_text rows = {0};
    if (b->json) {
        kg_text_add(json, ",\n {\"op\": \"tune\", \"spec\": ");
        kg_text_json(json, spec->name);
        kg_text_add(json, ", \"shapes\": [");
        for (int i = 0; i < count; i++)
            kg_text_addf(json, "%s{\"sequences\": %d, \"context\": %d, \"kernel\": \"%s\", \"blocks_per_sm\": %d, \"us\": %.6g, \"us_selected\": %.6g}",
                         i ? ", " : "", results[i].shape.sequences, results[i].shape.tokens, package->kernels[results[i].kernel].name,
                         results[i].blocks_per_sm, results[i].us, results[i].selected_us);
        kg_text_add(json, "], \"select\": [");
        selection(package, results, count, " ", json);
        kg_text_add(json, "]}");
        return;
    }
    for (int i = 0; i < count; i++)
        printf("best for %s, %d x %d: %s, %d blocks per multiprocessor: %.2f us; as the package selects: %.2f us\n", spec->name, results[i].shape.sequences,
               results[i].shape.tokens, package->kernels[results[i].kernel].name, results[i].blocks_per_sm, results[i].us, results[i].selected_us);
    selection(package, results, count, "\n    ", &rows);
    printf("rows of \"select\" for %s on %s, before the package's own:%s\n", spec->name, b->gpu.name, rows.failed ? "" : rows.data);
    kg_text_free(&rows);
}

int kg_bench_tune(kg_bench *b, const kg_spec *spec, kt_engine *engine, const kg_shape *shapes, int count, kg_text *json)
{
    kt__package *package = &engine->package;
    const size_t size = (size_t)package->choice_count * sizeof *package->choices;
    kt__choice *kept = malloc(size ? size : 1);
    tuned results[KG_BENCH_SHAPES];
    int found = 0, code = kept ? KG_OK : kg_fail(KG_MACHINE, b->error, KG_ERROR, "out of memory");
    if (kept)
        memcpy(kept, package->choices, size);
    for (int i = 0; i < count && !code; i++) {
        const kg_shape shape = shapes[i];
        int *lengths = malloc((size_t)shape.sequences * sizeof *lengths);
        kg_bed bed = {0};
        if (!lengths) {
            code = kg_fail(KG_MACHINE, b->error, KG_ERROR, "out of memory");
            break;
        }
        for (int s = 0; s < shape.sequences; s++)
            lengths[s] = shape.tokens;
        code = kg_bed_open(b, spec, engine, lengths, shape.sequences, 0, &bed);
        if (!code && bed.layers) {
            results[found] = (tuned){.shape = shape, .pages = power_above(kt__pages_for(&bed.format, shape.tokens))};
            code = tune_shape(&bed, kept, &results[found++]);
        }
        memcpy(package->choices, kept, size);
        kg_bed_close(&bed);
        free(lengths);
    }
    if (!code && found) {
        qsort(results, (size_t)found, sizeof *results, by_bounds);
        report(b, spec, package, results, found, json);
    }
    free(kept);
    return code;
}
