// From the tuned table to the plan of a package.
#include "tuned.h"

#include <stdlib.h>
#include <string.h>

#include "core.h"

int kg_tuned_pages(const kt_format *f, int context) { return kt__power_above(kt__pages_for(f, context)); }

kg_tuned_set *kg_tuned_find(const kg_tuned *table, const kt_format *f)
{
    for (int i = 0; i < table->count; i++) {
        kg_tuned_set *set = &table->sets[i];
        if (set->head_dim == f->head_dim && set->group_heads == f->group_heads && set->page == f->page && set->block_bytes == f->block_bytes)
            return set;
    }
    return 0;
}

// Query heads of a pass and passes decide which code a kernel is made of.
static bool alike(const kg_tuned_set *set, const kt_format *f)
{
    int passes, columns, set_passes, set_columns;
    kg_attend_passes(f->group_heads, &passes, &columns);
    kg_attend_passes(set->group_heads, &set_passes, &set_columns);
    return set->head_dim == f->head_dim && set->page == f->page && passes == set_passes && (columns <= 4) == (set_columns <= 4) &&
           4LL * set->block_bytes <= 5LL * f->block_bytes && 4LL * f->block_bytes <= 5LL * set->block_bytes;
}

kg_tuned_set *kg_tuned_nearest(const kg_tuned *table, const kt_format *f)
{
    kg_tuned_set *best = 0;
    int bytes = 0, heads = 0; // how far away
    for (int i = 0; i < table->count; i++) {
        kg_tuned_set *set = &table->sets[i];
        const int b = abs(set->block_bytes - f->block_bytes), h = abs(set->group_heads - f->group_heads);
        if (alike(set, f) && (!best || b < bytes || (b == bytes && h < heads)))
            best = set, bytes = b, heads = h;
    }
    return best;
}

static int add_config(kg_attend_plan *plan, const kg_attend_config *c)
{
    const int at = kg_attend_index(plan, c->warps, c->stages, c->tiles, c->blocks);
    if (at >= 0)
        return at;
    plan->configs[plan->count] = *c;
    return plan->count++;
}

// The rows from `at` on that are for as many sequences.
static int rows_alike(const kg_attend_plan *plan, int at)
{
    int count = 1;
    while (at + count < plan->row_count && plan->rows[at + count].sequences == plan->rows[at].sequences)
        count++;
    return count;
}

static void remove_rows(kg_attend_plan *plan, int at, int count)
{
    memmove(&plan->rows[at], &plan->rows[at + count], (size_t)(plan->row_count - at - count) * sizeof *plan->rows);
    plan->row_count -= count;
}

// Opens the ends and leaves out rows whose successors say the same.
static void simplify(kg_attend_plan *plan)
{
    for (int at = 0; at < plan->row_count; at += rows_alike(plan, at)) {
        plan->rows[at + rows_alike(plan, at) - 1].pages = 0;
        for (int i = at; i + 1 < at + rows_alike(plan, at);)
            if (plan->rows[i].config == plan->rows[i + 1].config)
                remove_rows(plan, i, 1);
            else
                i++;
    }
    for (int at = 0; at < plan->row_count;) {
        const int count = rows_alike(plan, at), next = at + count;
        bool same = next < plan->row_count && rows_alike(plan, next) == count;
        for (int i = 0; same && i < count; i++)
            same = plan->rows[at + i].pages == plan->rows[next + i].pages && plan->rows[at + i].config == plan->rows[next + i].config;
        if (same)
            remove_rows(plan, at, count);
        else
            at = next;
    }
    const int last = plan->row_count ? plan->rows[plan->row_count - 1].sequences : 0;
    for (int i = 0; i < plan->row_count; i++)
        if (plan->rows[i].sequences == last)
            plan->rows[i].sequences = 0;
}

int kg_tuned_plan(const kt_format *f, kg_attend_plan *plan, kg_tuned_set *from, char *error)
{
    char path[KG_PATH];
    kg_tuned table = {0};
    int code = kg_tuned_path(path, error);
    if (!code)
        code = kg_tuned_read(path, &table, error);
    const kg_tuned_set *own = kg_tuned_find(&table, f), *set = own ? own : kg_tuned_nearest(&table, f);
    *plan = (kg_attend_plan){0};
    for (int i = 0; !code && set && i < set->count; i++) {
        const kg_tuned_row *row = &set->rows[i];
        kg_attend_config config;
        if (kg_attend_fit(f, row->warps, row->stages, row->tiles, row->blocks, KG_LARGE_SHARED, &config))
            plan->rows[plan->row_count++] = (kg_attend_row){row->sequences, kg_tuned_pages(f, row->context), add_config(plan, &config)};
        else if (own)
            code = kg_fail(KG_USER, error, KG_ERROR, "%s: %s, %d x %d: %d warps x %d stages x %d tiles x %d blocks do not fit a multiprocessor; measure "
                           "again with kittygen tune", path, own->spec, row->sequences, row->context, row->warps, row->stages, row->tiles, row->blocks);
    }
    simplify(plan);
    if (from)
        *from = set && plan->row_count ? *set : (kg_tuned_set){0};
    if (!plan->row_count)
        kg_attend_rules(f, plan);
    else
        kg_attend_small(f, plan);
    kg_tuned_free(&table);
    return code;
}
