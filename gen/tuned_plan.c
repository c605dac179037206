// From the tuned table to the plan of a package.
#include "tuned.h"

#include <stdlib.h>
#include <string.h>

#include "core.h"

int kg_tuned_pages(const kt_format *f, int context) { return kt__power_above(kt_pages(f, context)); }

static bool is_for(const kg_tuned_set *set, const kt_format *f)
{
    return set->head_dim == f->head_dim && set->group_heads == f->group_heads && set->page == f->page && set->block_bytes == f->block_bytes;
}

kg_tuned_set kg_tuned_set_for(const kt_format *f, int kv_heads)
{
    return (kg_tuned_set){.head_dim = f->head_dim, .group_heads = f->group_heads, .page = f->page, .block_bytes = f->block_bytes, .kv_heads = kv_heads};
}

kg_tuned_set *kg_tuned_find(const kg_tuned *table, const kt_format *f, int kv_heads)
{
    for (int i = 0; i < table->count; i++)
        if (is_for(&table->sets[i], f) && table->sets[i].kv_heads == kv_heads)
            return &table->sets[i];
    return 0;
}

// Query heads of a pass and passes decide which code a kernel is made of.
static bool alike(const kg_tuned_set *set, const kt_format *f)
{
    int passes, columns, set_passes, set_columns;
    kg_attend_passes(f->group_heads, f->head_dim, &passes, &columns);
    kg_attend_passes(set->group_heads, set->head_dim, &set_passes, &set_columns);
    return set->head_dim == f->head_dim && set->page == f->page && passes == set_passes && (columns <= 4) == (set_columns <= 4) && (columns <= 8) == (set_columns <= 8) &&
           4LL * set->block_bytes <= 5LL * f->block_bytes && 4LL * f->block_bytes <= 5LL * set->block_bytes;
}

kg_tuned_set *kg_tuned_nearest(const kg_tuned *table, const kt_format *f, int kv_heads)
{
    kg_tuned_set *best = 0;
    int least[3]; // how far away the best is
    for (int i = 0; i < table->count; i++) {
        kg_tuned_set *set = &table->sets[i];
        const int away[] = {abs(set->block_bytes - f->block_bytes), abs(set->group_heads - f->group_heads), abs(set->kv_heads - kv_heads)};
        int first = 0; // that differs
        while (best && first < 2 && away[first] == least[first])
            first++;
        if (alike(set, f) && (!best || away[first] < least[first])) {
            best = set;
            memcpy(least, away, sizeof least);
        }
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

static bool covers(const kg_attend_row *wide, const kg_attend_row *row)
{
    return wide->config == row->config && wide->sequences >= row->sequences && (!wide->pages || (row->pages && wide->pages >= row->pages));
}

// Opens the ends, leaves out rows whose successors say the same, and adds one for any shape: `last` is its kernel.
static void simplify(kg_attend_plan *plan, int last)
{
    int longest = 0;
    for (int i = 0; i < plan->row_count; i++)
        longest = plan->rows[i].pages > longest ? plan->rows[i].pages : longest;
    for (int i = 0; i < plan->row_count; i++)
        if (plan->rows[i].pages == longest)
            plan->rows[i].pages = 0;
    for (int i = 0; i + 1 < plan->row_count;)
        if (covers(&plan->rows[i + 1], &plan->rows[i]))
            remove_rows(plan, i, 1);
        else
            i++;
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
    const int most = plan->rows[plan->row_count - 1].sequences;
    for (int i = 0; i < plan->row_count; i++)
        if (plan->rows[i].sequences == most)
            plan->rows[i].sequences = 0;
    while (plan->row_count && plan->rows[plan->row_count - 1].config == last)
        plan->row_count--;
    plan->rows[plan->row_count++] = (kg_attend_row){0, 0, last};
}

// For how many sequences a row is where there are `kv_heads` KV heads; 0: for none. Of several rows that come to be for as many, those
// that were measured with the most are it.
static int sequences_of(const kg_tuned_set *set, int row, int kv_heads)
{
    const long long sequences = (long long)set->rows[row].sequences * set->kv_heads / kv_heads;
    for (int i = row + 1; i < set->count; i++)
        if (set->rows[i].sequences != set->rows[row].sequences && (long long)set->rows[i].sequences * set->kv_heads / kv_heads == sequences)
            return 0;
    const bool last = set->rows[row].sequences == set->rows[set->count - 1].sequences;
    return sequences > INT32_MAX ? INT32_MAX : sequences || !last ? (int)sequences : 1;
}

int kg_tuned_plan(const kt_format *f, int kv_heads, kg_attend_plan *plan, kg_tuned_set *from, char *error)
{
    char path[KG_PATH];
    kg_tuned table = {0};
    int code = kg_tuned_path(path, error);
    if (!code)
        code = kg_tuned_read(path, &table, error);
    const kg_tuned_set *set = kg_tuned_nearest(&table, f, kv_heads);
    long long work, most = 0;
    int last = 0;
    *plan = (kg_attend_plan){0};
    for (int i = 0; !code && set && i < set->count; i++) {
        const kg_tuned_row *row = &set->rows[i];
        const int sequences = sequences_of(set, i, kv_heads);
        kg_attend_config config;
        if (!kg_attend_fit(f, row->warps, row->stages, row->tiles, row->blocks, KG_LARGE_SHARED, &config)) {
            if (is_for(set, f))
                code = kg_fail(KG_USER, error, KG_ERROR, "%s: %s, %d x %d: %d warps x %d stages x %d tiles x %d blocks do not fit a multiprocessor; "
                               "measure again with kittygen tune", path, set->spec, row->sequences, row->context, row->warps, row->stages, row->tiles,
                               row->blocks);
        } else if (sequences) {
            const int at = add_config(plan, &config);
            plan->rows[plan->row_count++] = (kg_attend_row){sequences, kg_tuned_pages(f, row->context), at};
            if ((work = (long long)row->sequences * row->context) >= most) {
                most = work;
                last = at;
            }
        }
    }
    if (plan->row_count)
        simplify(plan, last);
    if (from)
        *from = set && plan->row_count ? *set : (kg_tuned_set){0};
    if (!plan->row_count)
        kg_attend_rules(f, plan);
    else
        kg_attend_small(f, plan);
    kg_tuned_free(&table);
    return code;
}
