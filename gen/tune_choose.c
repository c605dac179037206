// Which few kernels a spec's package is to have, and the table's rows.
#include <math.h>
#include <string.h>
#include <time.h>

#include "tune.h"

static const double WORTH = 0.005; // what a kernel must save in the mean, for what compiling and keeping it costs

typedef struct {
    double log_us[KG_BENCH_SHAPES][KG_ATTEND_MENU]; // of done shapes; infinite: cannot be taken
    int shapes, kernels, most;
    double best_cost;
    int best[KG_TUNED_KERNELS], best_count;
} search;

static void take(const search *s, int kernel, const double *before, double *after)
{
    for (int i = 0; i < s->shapes; i++)
        after[i] = fmin(before[i], s->log_us[i][kernel]);
}

// Goes through the sets that have `chosen` and any kernels from `from` on; taken: what `chosen` take at each shape.
static void try_sets(search *s, int from, const int *chosen, int count, const double *taken)
{
    double sum = 0, after[KG_BENCH_SHAPES];
    int more[KG_TUNED_KERNELS];
    for (int i = 0; i < s->shapes; i++)
        sum += taken[i];
    const double cost = sum / s->shapes + WORTH * count;
    if (cost < s->best_cost) {
        s->best_cost = cost;
        s->best_count = count;
        memcpy(s->best, chosen, (size_t)count * sizeof *chosen);
    }
    memcpy(more, chosen, (size_t)count * sizeof *chosen);
    for (int k = from; k < s->kernels && count < s->most; k++) {
        take(s, k, taken, after);
        more[count] = k;
        try_sets(s, k + 1, more, count + 1, after);
    }
}

static void sort(int *numbers, int count)
{
    for (int i = 1; i < count; i++)
        for (int j = i; j && numbers[j] < numbers[j - 1]; j--) {
            const int kept = numbers[j];
            numbers[j] = numbers[j - 1];
            numbers[j - 1] = kept;
        }
}

int kg_tune_choose(const kg_tune_result *results, int count, int kernels, const bool *wanted, int most, int chosen[KG_TUNED_KERNELS])
{
    search s = {.kernels = kernels, .most = most, .best_cost = INFINITY};
    double taken[KG_BENCH_SHAPES];
    int first[KG_TUNED_KERNELS] = {0}, first_count = 0;
    for (int i = 0; i < count; i++) {
        if (!results[i].done)
            continue;
        taken[s.shapes] = INFINITY;
        for (int k = 0; k < kernels; k++)
            s.log_us[s.shapes][k] = results[i].us[k] > 0 ? log(results[i].us[k]) : INFINITY;
        s.shapes++;
    }
    for (int k = 0; k < kernels; k++) {
        if (!wanted[k])
            continue;
        if (first_count == most)
            return 0;
        first[first_count++] = k;
        take(&s, k, taken, taken);
    }
    if (s.shapes)
        try_sets(&s, 0, first, first_count, taken);
    memcpy(chosen, s.best, (size_t)s.best_count * sizeof *chosen);
    sort(chosen, s.best_count);
    return s.best_count;
}

int kg_tune_fastest(const kg_tune_result *result, const int *chosen, int count)
{
    int best = -1;
    for (int i = 0; i < count; i++)
        if (result->us[chosen[i]] > 0 && (best < 0 || result->us[chosen[i]] < result->us[best]))
            best = chosen[i];
    return best;
}

static const kg_tune_result *result_of(const kg_tune *t, const kg_tuned_row *row)
{
    for (int i = 0; i < t->count; i++)
        if (t->results[i].done && t->results[i].shape.sequences == row->sequences && t->results[i].shape.tokens == row->context)
            return &t->results[i];
    return 0;
}

static void put_row(kg_tuned_set *set, const kg_tuned_row *row)
{
    int at = 0;
    while (at < set->count && (set->rows[at].sequences < row->sequences ||
                               (set->rows[at].sequences == row->sequences && set->rows[at].context < row->context)))
        at++;
    memmove(&set->rows[at + 1], &set->rows[at], (size_t)(set->count++ - at) * sizeof *row);
    set->rows[at] = *row;
}

int kg_tune_merge(kg_tune *t, kg_tuned *table, int chosen[KG_TUNED_KERNELS], int *count)
{
    const kg_tuned_set *old = kg_tuned_find(table, &t->format, t->spec->model.kv_heads);
    kg_tuned_set set = kg_tuned_set_for(&t->format, t->spec->model.kv_heads);
    bool wanted[KG_ATTEND_MENU] = {0};
    int strange = 0, rows = t->count;
    snprintf(set.spec, sizeof set.spec, "%s", t->spec->name);
    snprintf(set.card, sizeof set.card, "%.63s", t->bench.gpu.name);
    for (int i = 0; old && i < old->count; i++) {
        const kg_tuned_row *row = &old->rows[i];
        if (result_of(t, row))
            continue;
        const int k = kg_attend_index(&t->menu, row->warps, row->stages, row->tiles, row->blocks);
        strange += k < 0;
        if (k >= 0)
            wanted[k] = true;
        set.rows[set.count++] = *row;
    }
    for (int i = 0; i < t->count; i++)
        rows -= !t->results[i].done;
    if (set.count + rows > KG_ATTEND_ROWS - 1)
        return kg_fail(KG_USER, t->bench.error, KG_ERROR, "%s: %d rows in the table and %d more; at most %d are allowed", set.spec, set.count, rows,
                       KG_ATTEND_ROWS - 1);
    *count = strange ? 0 : kg_tune_choose(t->results, t->count, t->menu.count, wanted, KG_TUNED_KERNELS, chosen);
    if (!*count)
        return kg_fail(KG_FAILED, t->bench.error, KG_ERROR, "%s: no %d kernels can do every shape, older rows of the table included; measure all shapes at "
                       "once, or take this spec's rows out of it", set.spec, KG_TUNED_KERNELS);
    const time_t now = time(0);
    for (int i = 0; i < t->count; i++) {
        const kg_tune_result *r = &t->results[i];
        if (!r->done)
            continue;
        const int k = kg_tune_fastest(r, chosen, *count);
        const kg_attend_config *c = &t->menu.configs[k];
        kg_tuned_row row = {r->shape.sequences, r->shape.tokens, c->warps, c->stages, c->tiles, c->blocks, r->us[k], ""};
        struct tm day;
        strftime(row.date, sizeof row.date, "%Y-%m-%d", gmtime_r(&now, &day));
        put_row(&set, &row);
    }
    return kg_tuned_put(table, &set, t->bench.error);
}
