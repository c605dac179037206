// What a step's kernels read, write and are launched with, by the runtime's own division of the work.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "core.h"
#include "inspect.h"
#include "tuned.h"

// Splits of an attend over sequences of one length, from a batch that has only what the division looks at.
static int splits_of(const kg_costs *c, const kt_format *format, const kg_attend_config *config, int *splits)
{
    kt_engine *engine = calloc(1, sizeof *engine);
    kt_slot *slots = calloc((size_t)c->batch, sizeof *slots);
    int *items = calloc((size_t)c->batch, sizeof *items), unused;
    const bool memory = engine && slots && items;
    if (memory) {
        kt__backend backend = {.multiprocessors = c->card->multiprocessors};
        const kg_spec *spec = &c->package.spec;
        kt_cache cache = {.engine = engine, .kv_heads = spec->model.kv_heads, .q_heads = spec->model.q_heads};
        const size_t ample = (size_t)1 << 48; // equal lengths do not fill the workspace
        kt_batch batch = {.cache = &cache, .used_slots = (int)c->batch, .rows = (int)c->batch, .max_fresh = 1, .run_count = 1,
                          .runs = {{.count = (int)c->batch, .max_fresh = 1}}, .planned = slots, .items = items,
                          .partial_floats = ample, .arrival_count = ample};
        const kt__kernel kernel = {.warps = config->warps, .stages = config->stages, .tiles = config->tiles, .passes = config->passes};
        engine->package.formats[0] = *format;
        engine->backend = &backend;
        for (long i = 0; i < c->batch; i++)
            slots[i] = (kt_slot){.tokens = (int)c->context - 1, .fresh = 1};
        kt__divide(&batch, &kernel, config->blocks, splits, &unused);
    }
    free(engine);
    free(slots);
    free(items);
    return memory ? KG_OK : KG_MACHINE;
}

static int add_attend(kg_costs *c, kg_launch *l)
{
    const kt_format *f = &c->package.formats[l->kernel->format].format;
    const kg_spec *spec = &c->package.spec;
    const kg_attend_config *config = &l->kernel->config;
    const double rows = (double)c->batch * spec->model.q_heads, tokens = 2.0 * rows * f->head_dim;
    int splits = 1;
    if (splits_of(c, f, config, &splits))
        return KG_MACHINE;
    // Each split leaves head_dim sums, a maximum and a sum of each row, which the last one merges.
    const double partial = splits > 1 ? rows * splits * (f->head_dim + 2) * 4 : 0;
    l->when = "every layer";
    l->grid[0] = (long)splits * c->batch;
    l->grid[1] = (long)spec->model.kv_heads * config->passes;
    l->grid[2] = 1;
    // Every pass over the query heads reads the KV head again.
    l->read = (double)c->batch * config->passes * kg_bench_attend_bytes(f, spec->model.kv_heads, (int)c->context - 1, 1) + tokens + partial +
              (double)spec->model.kv_heads * f->table_bytes;
    l->written = tokens + partial;
    snprintf(l->what, sizeof l->what, "pages, exact tokens, queries and outputs%s%s", splits > 1 ? ", the splits' partial results" : "",
             f->table_bytes ? ", what is calibrated" : "");
    return KG_OK;
}

// The shapes that take an attend kernel on this card.
static void add_other(const kg_costs *c, const kg_attend_plan *plan, int index, kg_launch *l)
{
    size_t length = 0;
    if (plan->configs[index].shared > c->card->shared_limit) {
        snprintf(l->what, sizeof l->what, "does not fit the card: a block may have %d bytes of shared memory", c->card->shared_limit);
        return;
    }
    for (int i = 0; i < plan->row_count; i++) {
        const kg_attend_row *row = &plan->rows[i];
        if (row->config != index || length >= sizeof l->what)
            continue;
        char sequences[24] = "any", pages[24] = "any";
        if (row->sequences)
            snprintf(sequences, sizeof sequences, "%d", row->sequences);
        if (row->pages)
            snprintf(pages, sizeof pages, "%d", row->pages);
        length += (size_t)snprintf(l->what + length, sizeof l->what - length, "%s%s x %s", length ? ", " : "for up to (sequences x pages) ", sequences, pages);
    }
}

static void add_append(kg_costs *c, kg_launch *l)
{
    const kt_format *f = &c->package.formats[l->kernel->format].format;
    const double heads = (double)c->batch * c->package.spec.model.kv_heads, token = 4.0 * f->head_dim;
    l->when = "every layer";
    l->grid[0] = 1;
    l->grid[1] = c->package.spec.model.kv_heads;
    l->grid[2] = c->batch;
    l->blocks = l->kernel->config.blocks;
    l->read = heads * (token + token); // the new token, and once a page the page's exact tokens
    l->written = heads * (token + (double)f->block_bytes / f->page);
    snprintf(l->what, sizeof l->what, "the new tokens; once in %d steps also a page: its exact tokens, and what they are sealed to (the mean)", f->page);
}

static void add_launch(kg_costs *c, kg_launch *l)
{
    const double slots = (double)c->batch * sizeof(kt_slot);
    l->grid[0] = l->grid[1] = l->grid[2] = 1;
    l->blocks = 1;
    if (!strcmp(l->kernel->op, "append"))
        add_append(c, l);
    else if (!strcmp(l->kernel->op, "reference")) {
        memset(l->grid, 0, sizeof l->grid);
        l->when = "checks";
        snprintf(l->what, sizeof l->what, "attention in float64, where it is asked for");
    } else {
        const bool advances = !strcmp(l->kernel->op, "advance");
        l->when = "every step";
        l->read = slots;
        l->written = advances ? slots : sizeof(int);
        snprintf(l->what, sizeof l->what, advances ? "the new tokens become part of their sequences" : "whether the new tokens fit what is reserved");
    }
}

int kg_costs_make(const kg_spec *spec, long batch, long context, const kg_card *card, kg_costs *c, char *error)
{
    *c = (kg_costs){.batch = batch, .context = context, .card = card};
    KG_TRY(kg_package_make(spec, 0, &c->package, error, KG_ERROR));
    for (int i = 0; i < c->package.count; i++) {
        const int format = c->package.kernels[i].format;
        const kg_package_format *f = &c->package.formats[format];
        const kg_attend_row *row = kg_attend_row_for(&f->plan, card->shared_limit, (int)batch, kg_tuned_pages(&f->format, (int)context));
        if (!row)
            return kg_fail(KG_USER, error, KG_ERROR, "%s: no attend kernel fits %s", spec->name, card->name);
        kg_launch *l = &c->launches[i];
        const int index = i - f->first;
        *l = (kg_launch){.kernel = &c->package.kernels[i], .when = ""};
        if (index < f->plan.count)
            l->blocks = f->plan.configs[index].blocks;
        if (index == row->config && add_attend(c, l))
            return kg_fail(KG_MACHINE, error, KG_ERROR, "out of memory");
        if (index < f->plan.count && index != row->config)
            add_other(c, &f->plan, index, l);
        if (index >= f->plan.count)
            add_launch(c, l);
        const double times = !strcmp(l->when, "every layer") ? kg_spec_layers(spec, format) : !strcmp(l->when, "every step");
        c->read += times * l->read;
        c->written += times * l->written;
    }
    kg_formats formats;
    kg_formats_of(spec, &formats); // as the package's
    c->pages = (double)batch * spec->model.kv_heads * kg_formats_sealed(&formats, (int)context);
    c->exact = (double)batch * spec->model.kv_heads * kg_formats_exact(&formats);
    c->plain = (double)batch * spec->model.layers * spec->model.kv_heads * (double)context * 4 * spec->model.head_dim;
    return KG_OK;
}
