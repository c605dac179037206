// Beyond one shape: unequal lengths and scaling.
#include <stdlib.h>

#include "bench.h"

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
