// Times of the menu's kernels at one shape.
#include <stdlib.h>
#include <string.h>

#include "core.h"
#include "emit.h"
#include "temporary.h"
#include "tune.h"

enum { FIRST = 3, CAREFUL = 30, FINALISTS = 6 };
static const double CLOSE = 1.1; // to the best of the first round, to be in the second

int kg_tune_open(kg_tune *t)
{
    kg_bench *b = &t->bench;
    char folder[KG_PATH];
    kg_package package;
    KG_TRY(kg_temporary_make(folder, b->error, KG_ERROR));
    int code = kg_package_make(t->spec, &t->menu, &package, b->error, KG_ERROR);
    if (!code)
        code = kg_package_write(&package, folder, b->error, KG_ERROR);
    if (!code) {
        const kt_status status =
            kt_open(&(kt_open_args){.size = sizeof(kt_open_args), .package = folder, .device = KT_DEVICE_CUDA}, &t->engine);
        code = status ? kg_bench_refused(b, "kt_open", status) : KG_OK;
    }
    kg_package_free(&package);
    kg_temporary_remove(folder);
    return code;
}

// Makes every row for attend this kernel's.
static void force(kg_tune *t, int kernel)
{
    kt__package *p = &t->engine->package;
    for (int i = 0; i < p->choice_count; i++)
        if (p->choices[i].op == KT__ATTEND)
            p->choices[i] = (kt__choice){.op = KT__ATTEND, .kernel = kernel, .blocks_per_sm = t->menu.configs[kernel].blocks};
}

// Times one kernel; *us becomes 0, and a line is printed, where its output is wrong or it cannot be launched.
static int time_kernel(kg_tune *t, kg_attend_test *test, int kernel, int warm, int replays, double *us, kg_progress *bar)
{
    kg_bench *b = &t->bench;
    char why[KG_ERROR];
    kg_time time = {0};
    double error;
    force(t, kernel);
    const int code = kg_attend_test_time(test, warm, replays, &time, &error);
    *us = code ? 0 : time.us;
    if (!code)
        return KG_OK;
    snprintf(why, sizeof why, "%s", b->error);
    if (kg_gpu_stream_wait(b->stream, b->error)) { // the card is lost with it
        snprintf(b->error, sizeof b->error, "%s: %s", t->engine->package.kernels[kernel].name, why);
        return code;
    }
    b->failed = true;
    kg_progress_clear(bar);
    fprintf(stderr, "kittygen tune: %s: %s\n", t->engine->package.kernels[kernel].name, why);
    return KG_OK;
}

static int first_round(kg_tune *t, kg_attend_test *test, double *us, kg_progress *bar)
{
    const long before = bar->done;
    double unused;
    KG_TRY(time_kernel(t, test, 0, KG_BENCH_WARM, FIRST, &unused, bar)); // the clocks rise
    for (int k = 0; k < t->menu.count && !kg_tune_stopped(t); k++) {
        KG_TRY(time_kernel(t, test, k, 1, FIRST, &us[k], bar));
        kg_progress_to(bar, before + k + 1);
    }
    return KG_OK;
}

// The best of the first round once more, and the one that is selected now. No other is taken for faster than those.
static int second_round(kg_tune *t, kg_attend_test *test, int selected, double *us, kg_progress *bar)
{
    bool again[KG_ATTEND_MENU] = {0};
    double best = 0, slowest = 0;
    for (int n = 0; n < FINALISTS; n++) {
        int next = -1;
        for (int k = 0; k < t->menu.count; k++)
            if (!again[k] && us[k] > 0 && (next < 0 || us[k] < us[next]))
                next = k;
        if (next < 0 || (n && us[next] > CLOSE * best))
            break;
        best = n ? best : us[next];
        again[next] = true;
    }
    again[selected] |= us[selected] > 0;
    for (int k = 0; k < t->menu.count && !kg_tune_stopped(t); k++)
        if (again[k]) {
            KG_TRY(time_kernel(t, test, k, KG_BENCH_WARM, CAREFUL, &us[k], bar));
            if (us[k] < CLOSE * best)
                slowest = us[k] > slowest ? us[k] : slowest;
        }
    for (int k = 0; k < t->menu.count; k++)
        if (!again[k] && us[k] > 0 && us[k] < slowest)
            us[k] = slowest;
    return KG_OK;
}

int kg_tune_shape(kg_tune *t, kg_tune_result *r, kg_progress *bar)
{
    kg_bench *b = &t->bench;
    const int count = r->shape.sequences;
    kg_attend_test test = {0};
    kg_bed bed = {0};
    int *lengths = malloc((size_t)count * sizeof *lengths);
    if (!lengths)
        return kg_fail(KG_MACHINE, b->error, KG_ERROR, "out of memory");
    for (int i = 0; i < count; i++)
        lengths[i] = r->shape.tokens;
    int code = kg_bed_open(b, t->spec, t->engine, lengths, count, 0, &bed);
    if (!code && bed.layers) {
        code = kg_attend_test_open(&bed, CAREFUL, &test);
        if (!code)
            code = first_round(t, &test, r->us, bar);
        if (!code && !kg_tune_stopped(t))
            code = second_round(t, &test, kg_tune_selected(t, r->shape), r->us, bar);
        r->done = !code && !kg_tune_stopped(t);
        kg_attend_test_close(&test);
    }
    kg_bed_close(&bed);
    free(lengths);
    return code;
}
