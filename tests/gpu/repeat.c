// repeat: launches over one state, back to back, give one result, to the bit.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bed.h"
#include "exact.h"

enum { POISON = 0xfffe, ROUND = 100 };

// `rounds` times a step that attends ROUND times and is thrown away. Counts launches that differ from the first.
static int launch_all(bed *b, int rounds, char *device, uint16_t *host, uint16_t *first, long *differ)
{
    const size_t count = b->out_bytes / 2;
    for (int round = 0; round < rounds; round++) {
        for (size_t i = 0; i < ROUND * count; i++)
            host[i] = POISON;
        CALL(kt_memory_write(b->engine, device, host, ROUND * b->out_bytes, b->stream));
        CALL(kt_step_begin(b->batch, b->stream));
        TRY(bed_append(b, 0));
        for (int i = 0; i < ROUND; i++)
            TRY(bed_attend(b, 0, device + (size_t)i * b->out_bytes, 0));
        CALL(kt_step_abort(b->batch));
        CALL(kt_memory_read(b->engine, host, device, ROUND * b->out_bytes));
        if (!round)
            memcpy(first, host, b->out_bytes);
        for (int i = 0; i < ROUND; i++)
            *differ += memcmp(host + (size_t)i * count, first, b->out_bytes) != 0;
    }
    return KG_OK;
}

// The launches were right, too.
static int check(bed *b, char *device, uint16_t *host, const uint16_t *first, double *error)
{
    CALL(kt_step_begin(b->batch, b->stream));
    TRY(bed_append(b, 0));
    TRY(bed_attend(b, 0, device, KT_ATTEND_REFERENCE));
    CALL(kt_step_abort(b->batch));
    CALL(kt_memory_read(b->engine, host, device, b->out_bytes));
    *error = bed_difference(b, first, host, b->out_bytes / 2);
    return KG_OK;
}

static int run_shape(const char *spec, int config, int sequences, int context, int launches)
{
    bed b;
    char *device = NULL;
    uint16_t *host = NULL, *first = NULL;
    long differ = 0;
    double error = 0;
    int code = bed_open(&b, spec, "fp16", config, 1, 0, sequences, context + 1);
    if (!code)
        code = require_alike(&b.spec);
    // Uneven: each a few tokens shorter than the one before.
    for (int i = 0; i < sequences && !code; i++)
        code = bed_fill(&b, i, context - i * (context / 16));
    if (!code)
        code = bed_decode(&b);
    if (!code) {
        const kt_status status = kt_memory_alloc(b.engine, ROUND * b.out_bytes, (void **)&device);
        host = malloc(ROUND * b.out_bytes);
        first = malloc(b.out_bytes);
        code = status ? refused("kt_memory_alloc", status) : host && first ? KG_OK : fail(KG_MACHINE, "out of memory");
    }
    if (!code)
        code = launch_all(&b, launches / ROUND, device, host, first, &differ);
    if (!code)
        code = check(&b, device, host, first, &error);
    if (!code) {
        const int ok = !differ && error <= error_limit(b.format.dtype);
        printf("%s, %d x %d tokens: %d launches, %ld differ from the first, error %.2e against float64: %s\n", b.spec.name, sequences,
               context, launches, differ, error, ok ? "ok" : "FAILED");
        code = ok ? KG_OK : KG_FAILED;
    }
    free(host);
    free(first);
    kt_memory_free(b.engine, device);
    bed_close(&b);
    return code;
}

int part_repeat(int argc, char **argv)
{
    const char *spec = "qwen3_8b/kitty_pro", *launches_text = NULL, *config_text = NULL;
    int launches = 1000, config = -1, code;
    const kg_option options[] = {
        {"--spec", "MODEL/VARIANT", "what to run (default qwen3_8b/kitty_pro)", NULL, &spec},
        {"--launches", "N", "in hundreds (default 1000)", NULL, &launches_text},
        {"--config", "N", "the N-th attend kernel of the package, from 0 (default: as selected)", NULL, &config_text},
        {NULL, NULL, NULL, NULL, NULL},
    };
    const kg_usage usage = {"gpu_suite repeat [options]",
                            "Launches attend over one state back to back: one sequence of 4096 tokens, then 8 uneven ones of up to\n"
                            "1024. All outputs must be the same to the bit, and right.\n",
                            options, 0, 0};
    if (kg_options(&usage, argc, argv, &code) < 0)
        return code;
    if (launches_text)
        TRY(read_integer("--launches", launches_text, ROUND, 1000000, &launches));
    if (config_text)
        TRY(read_integer("--config", config_text, 0, KG_ATTEND_CONFIGS, &config));
    code = run_shape(spec, config, 1, 4096, launches);
    const int uneven = code == KG_OK || code == KG_FAILED ? run_shape(spec, config, 8, 1024, launches) : code;
    return code > uneven ? code : uneven;
}
