#include "twin.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { POISON = 0xfffe, OFFSET = 613, QUERY = 0, KEY, VALUE, PARTS };
// Results of a step, one after the other for each layer.
enum { OUT, LSE, REFERENCE_OUT, REFERENCE_LSE, EXTREME_OUT, EXTREME_LSE, REGIONS };

typedef struct {
    kt_engine *engine;
    kt_cache *cache;
    kt_batch *batch;
    kt_sequence handles[TWIN_SEQUENCES];
    char *inputs[PARTS]; // on the device: [layers, most_rows, heads, head_dim]
    char *results;       // on the device
    char *host;          // a copy of it
} side;

typedef struct {
    const twin_args *args;
    const kg_inputs *in;
    kt_format format;
    verdict *verdict;
    side sides[2];       // GPU, CPU
    int tokens[TWIN_SEQUENCES], open[TWIN_SEQUENCES];
    int first_row[TWIN_SLOTS], rows, most_rows, most_results, most_tokens;
    const move *move;
    int step;
    uint16_t *gather;
    unsigned char *blocks[2];
    float *exact[2];
} state;

static void fault(state *s, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void fault(state *s, const char *format, ...)
{
    va_list arguments;
    if (*s->verdict->fault)
        return;
    va_start(arguments, format);
    vsnprintf(s->verdict->fault, sizeof s->verdict->fault, format, arguments);
    va_end(arguments);
}

static int heads_of(const state *s, int part) { return part == QUERY ? s->in->q_heads : s->in->kv_heads; }

static size_t region_bytes(const state *s, int region, int rows)
{
    const size_t heads = elements(rows + 1, s->in->q_heads, 1); // one row more, which nobody may write
    const size_t bytes = region % 2 ? heads * sizeof(float) : heads * (size_t)s->in->head_dim * 2;
    return (bytes + 255) / 256 * 256;
}

static size_t result_bytes(const state *s, int rows)
{
    size_t bytes = 0;
    for (int region = 0; region < (s->args->extremes ? REGIONS : EXTREME_OUT); region++)
        bytes += region_bytes(s, region, rows);
    return bytes * (size_t)s->in->count;
}

static void *result_at(const state *s, char *base, int layer, int region)
{
    base += result_bytes(s, s->rows) / (size_t)s->in->count * (size_t)layer;
    for (int r = 0; r < region; r++)
        base += region_bytes(s, r, s->rows);
    return base;
}

// ---- one step --------------------------------------------------------------------------------------------------------

// Brings the step's tokens to both devices, `shift` further on in the stream, and poisons what attend is to write.
static int upload(state *s, int shift)
{
    const size_t d = (size_t)s->in->head_dim;
    for (int layer = 0; layer < s->in->count; layer++) {
        const kg_layer *l = &s->in->layers[layer];
        const uint16_t *const streams[PARTS] = {l->query, l->key, l->value};
        for (int part = 0; part < PARTS; part++) {
            const size_t row = (size_t)heads_of(s, part) * d;
            uint16_t *to = s->gather;
            for (int slot = 0; slot < TWIN_SLOTS; slot++) {
                const int sequence = s->move->slots[slot].sequence;
                for (int i = 0; sequence >= 0 && i < s->move->slots[slot].fresh; i++, to += row) {
                    const int token = (sequence * OFFSET + s->tokens[sequence] + i + shift) % l->tokens;
                    memcpy(to, streams[part] + (size_t)token * row, row * sizeof *to);
                }
            }
            const size_t at = (size_t)layer * elements(s->most_rows, heads_of(s, part), s->in->head_dim) * 2;
            for (int i = 0; i < 2; i++)
                CALL(kt_memory_write(s->sides[i].engine, s->sides[i].inputs[part] + at, s->gather, (size_t)s->rows * row * 2, NULL));
        }
    }
    if (!(s->move->flags & MOVE_ATTEND))
        return KG_OK;
    const size_t bytes = result_bytes(s, s->rows);
    for (int i = 0; i < 2; i++) {
        uint16_t *host = (uint16_t *)s->sides[i].host;
        for (size_t j = 0; j < bytes / 2; j++)
            host[j] = POISON;
        CALL(kt_memory_write(s->sides[i].engine, s->sides[i].results, host, bytes, NULL));
    }
    return KG_OK;
}

static int attend(state *s, side *on, int layer, int region, float scale, unsigned flags)
{
    const size_t at = (size_t)layer * elements(s->most_rows, s->in->q_heads, s->in->head_dim) * 2;
    CALL(kt_attend(on->batch, &(kt_attend_args){
        .size = sizeof(kt_attend_args), .layer = layer, .query = on->inputs[QUERY] + at, .scale = scale, .flags = flags,
        .out = result_at(s, on->results, layer, region), .lse = result_at(s, on->results, layer, region + 1)}));
    return KG_OK;
}

static int queue_layers(state *s, int index)
{
    side *on = &s->sides[index];
    const unsigned flags = s->move->flags;
    const int attended = flags & MOVE_ATTEND && (!index || flags & MOVE_CPU);
    for (int layer = 0; layer < s->in->count; layer++) {
        const size_t at = (size_t)layer * elements(s->most_rows, s->in->kv_heads, s->in->head_dim) * 2;
        const float scale = (float)s->in->layers[layer].scale;
        CALL(kt_append(on->batch, &(kt_append_args){.size = sizeof(kt_append_args), .layer = layer, .key = on->inputs[KEY] + at,
                                                    .value = on->inputs[VALUE] + at,
                                                    .flags = attended && layer % 2 == 0 ? KT_APPEND_BEHIND_ATTEND : 0}));
        if (!attended)
            continue;
        TRY(attend(s, on, layer, OUT, scale, 0));
        if (!index && s->args->reference)
            TRY(attend(s, on, layer, REFERENCE_OUT, scale, KT_ATTEND_REFERENCE));
        if (!index && s->args->extremes)
            TRY(attend(s, on, layer, EXTREME_OUT, 0, 0));
    }
    return KG_OK;
}

static int take(state *s, int shift)
{
    TRY(upload(s, shift));
    for (int i = 0; i < 2; i++) {
        side *on = &s->sides[i];
        CALL(kt_step_begin(on->batch, NULL));
        const int code = queue_layers(s, i);
        if (code || shift) {
            const kt_status status = kt_step_abort(on->batch);
            TRY(code);
            if (status)
                return refused("kt_step_abort", status);
            continue;
        }
        CALL(kt_step_commit(on->batch));
        if (s->move->flags & MOVE_ATTEND)
            CALL(kt_memory_read(on->engine, on->host, on->results, result_bytes(s, s->rows)));
    }
    return KG_OK;
}

// ---- judging outputs -------------------------------------------------------------------------------------------------

// Relative L2 of two regions over `count` rows.
static double difference(const state *s, int layer, int row, int count, char *a, int region_a, char *b, int region_b)
{
    const size_t width = elements(1, s->in->q_heads, s->in->head_dim), first = (size_t)row * width;
    const uint16_t *x = (const uint16_t *)result_at(s, a, layer, region_a) + first;
    const uint16_t *y = (const uint16_t *)result_at(s, b, layer, region_b) + first;
    kg_error error = {0};
    for (size_t i = 0; i < (size_t)count * width; i++) {
        const double reference = kg_to_float(s->in->dtype, y[i]), d = kg_to_float(s->in->dtype, x[i]) - reference;
        error.difference += d * d;
        error.reference += reference * reference;
    }
    return kg_error_relative(error);
}

static double lse_difference(const state *s, int layer, int row, int count, char *a, int region_a, char *b, int region_b)
{
    const float *x = (const float *)result_at(s, a, layer, region_a), *y = (const float *)result_at(s, b, layer, region_b);
    double worst = 0;
    for (int i = row * s->in->q_heads; i < (row + count) * s->in->q_heads; i++) {
        const double d = fabs((double)x[i] - y[i]) / fmax(1, fabs((double)y[i]));
        worst = d <= worst ? worst : isnan(d) ? INFINITY : d;
    }
    return worst;
}

static void check_written(state *s, const side *on, int layer, int region)
{
    const uint16_t *out = result_at(s, on->host, layer, region);
    const size_t written = elements(s->rows, s->in->q_heads, s->in->head_dim), all = elements(s->rows + 1, s->in->q_heads, s->in->head_dim);
    long unwritten = 0, stray = 0, infinite = 0;
    for (size_t i = 0; i < all; i++) {
        if (i >= written)
            stray += out[i] != POISON;
        else if (out[i] == POISON)
            unwritten++;
        else
            infinite += !isfinite(kg_to_float(s->in->dtype, out[i]));
    }
    const float *lse = result_at(s, on->host, layer, region + 1);
    for (int i = 0; i < s->rows * s->in->q_heads; i++)
        infinite += !isfinite(lse[i]);
    if (unwritten || stray || infinite)
        fault(s, "step %d layer %d %s: %ld elements not written, %ld written beyond the rows, %ld not finite", s->step, layer,
              region == OUT ? "attend" : region == REFERENCE_OUT ? "reference" : "attend at the default scale", unwritten, stray, infinite);
    s->verdict->unwritten += unwritten;
    s->verdict->stray += stray;
    s->verdict->infinite += infinite;
}

static double larger(double a, double b) { return b > a ? b : a; }

static void judge(state *s)
{
    verdict *v = s->verdict;
    side *gpu = &s->sides[0], *cpu = &s->sides[1];
    const int on_cpu = s->move->flags & MOVE_CPU;
    for (int layer = 0; layer < s->in->count; layer++) {
        check_written(s, gpu, layer, OUT);
        if (s->args->reference)
            check_written(s, gpu, layer, REFERENCE_OUT);
        if (s->args->extremes)
            check_written(s, gpu, layer, EXTREME_OUT);
        for (int slot = 0; slot < TWIN_SLOTS; slot++) {
            const int sequence = s->move->slots[slot].sequence, count = s->move->slots[slot].fresh, row = s->first_row[slot];
            if (sequence < 0 || !count)
                continue;
            if (on_cpu && s->args->reference)
                v->cross = larger(v->cross, difference(s, layer, row, count, gpu->host, REFERENCE_OUT, cpu->host, OUT));
            if (!s->args->reference && !on_cpu)
                continue;
            char *against = s->args->reference ? gpu->host : cpu->host;
            const int region = s->args->reference ? REFERENCE_OUT : OUT;
            const double error = difference(s, layer, row, count, gpu->host, OUT, against, region);
            if (error > v->kernel)
                snprintf(v->worst, sizeof v->worst, "step %d layer %d, sequence %d of %d tokens, %d new", s->step, layer, sequence,
                         s->tokens[sequence] + count, count);
            v->kernel = larger(v->kernel, error);
            v->lse = larger(v->lse, lse_difference(s, layer, row, count, gpu->host, LSE, against, region + 1));
            v->attends++;
        }
    }
}

// ---- judging the cache -----------------------------------------------------------------------------------------------

static int compare_pages(state *s, int sequence, int layer, int head)
{
    const kt_format *f = &s->format;
    const int keys = kt_sealed(f, KT_KEY, s->tokens[sequence]);
    for (int page = 0; page < keys; page++) {
        for (int i = 0; i < 2; i++)
            CALL(kt_read_block(s->sides[i].cache, s->sides[i].handles[sequence], layer, head, page, s->blocks[i]));
        s->verdict->pages++;
        if (!memcmp(s->blocks[0], s->blocks[1], (size_t)f->block_bytes))
            continue;
        s->verdict->bad_pages++;
        int at = 0;
        while (s->blocks[0][at] == s->blocks[1][at])
            at++;
        fault(s, "step %d: sequence %d layer %d head %d page %d differs from the CPU's at byte %d of %d (keys end at %d): %#x, "
                 "expected %#x", s->step, sequence, layer, head, page, at, f->block_bytes, f->value_tiles, s->blocks[0][at],
              s->blocks[1][at]);
    }
    return KG_OK;
}

static int compare_exact(state *s, int sequence, int layer, int head)
{
    const kt_format *f = &s->format;
    const int tokens = s->tokens[sequence], sinks = tokens < f->sink ? tokens : f->sink;
    for (int part = 0; part < 2; part++) {
        const int sealed = kt_sealed(f, part, tokens);
        const int newer = f->sink + sealed * f->page;
        const struct {
            int first, count;
        } stretches[] = {{0, sinks}, {newer, tokens - newer}};
        for (int stretch = 0; stretch < 2; stretch++) {
            const int first = stretches[stretch].first, count = stretches[stretch].count;
            if (count <= 0)
                continue;
            for (int i = 0; i < 2; i++)
                CALL(kt_read(s->sides[i].cache, s->sides[i].handles[sequence], layer, head, (kt_part)part, first, count, s->exact[i]));
            for (int i = 0; i < count * f->head_dim; i++) {
                if (!memcmp(&s->exact[0][i], &s->exact[1][i], sizeof(float)))
                    continue;
                s->verdict->bad_exact++;
                fault(s, "step %d: sequence %d layer %d head %d exact %s of token %d channel %d is %g, expected %g", s->step, sequence,
                      layer, head, part == KT_KEY ? "key" : "value", first + i / f->head_dim, i % f->head_dim,
                      (double)s->exact[0][i], (double)s->exact[1][i]);
            }
        }
    }
    return KG_OK;
}

static int compare_sequence(state *s, int sequence)
{
    for (int layer = 0; layer < s->in->count; layer++) {
        for (int head = 0; head < s->in->kv_heads; head++) {
            TRY(compare_pages(s, sequence, layer, head));
            TRY(compare_exact(s, sequence, layer, head));
        }
    }
    return KG_OK;
}

// ---- the run ---------------------------------------------------------------------------------------------------------

static int leave(state *s, int sequence)
{
    TRY(compare_sequence(s, sequence));
    for (int i = 0; i < 2; i++)
        CALL(kt_sequence_close(s->sides[i].cache, s->sides[i].handles[sequence]));
    s->open[sequence] = 0;
    return KG_OK;
}

static int fill_batch(state *s)
{
    int stays[TWIN_SEQUENCES] = {0};
    for (int slot = 0; slot < TWIN_SLOTS; slot++)
        if (s->move->slots[slot].sequence >= 0)
            stays[s->move->slots[slot].sequence] = 1;
    for (int sequence = 0; sequence < TWIN_SEQUENCES; sequence++)
        if (s->open[sequence] && !stays[sequence])
            TRY(leave(s, sequence));
    s->rows = 0;
    for (int slot = 0; slot < TWIN_SLOTS; slot++) {
        const int sequence = s->move->slots[slot].sequence, fresh = s->move->slots[slot].fresh;
        for (int i = 0; i < 2; i++) {
            side *on = &s->sides[i];
            if (sequence >= 0 && !s->open[sequence])
                CALL(kt_sequence_open(on->cache, &on->handles[sequence]));
            CALL(kt_batch_set(on->batch, slot, sequence < 0 ? 0 : on->handles[sequence], sequence < 0 ? 0 : fresh, -1));
        }
        s->first_row[slot] = s->rows;
        if (sequence < 0)
            continue;
        s->open[sequence] = 1;
        s->rows += fresh;
    }
    return KG_OK;
}

static void measure(state *s)
{
    int tokens[TWIN_SEQUENCES] = {0};
    for (int step = 0; step < s->args->count; step++) {
        int rows = 0;
        for (int slot = 0; slot < TWIN_SLOTS; slot++) {
            const int sequence = s->args->moves[step].slots[slot].sequence, fresh = s->args->moves[step].slots[slot].fresh;
            if (sequence < 0)
                continue;
            rows += fresh;
            tokens[sequence] += fresh;
            s->most_tokens = tokens[sequence] > s->most_tokens ? tokens[sequence] : s->most_tokens;
        }
        s->most_rows = rows > s->most_rows ? rows : s->most_rows;
        if ((s->args->moves[step].flags & MOVE_ATTEND) && rows > s->most_results)
            s->most_results = rows;
    }
}

static int open_side(state *s, side *on, kt_engine *engine)
{
    const kt_format *f = &s->format;
    on->engine = engine;
    const uint64_t pages = (uint64_t)TWIN_SLOTS * (uint64_t)(s->most_tokens / f->page + 1);
    kt_cache_args cache = {.size = sizeof cache, .layers = s->in->count, .kv_heads = s->in->kv_heads, .max_sequences = TWIN_SLOTS,
                           .spare_slabs = TWIN_SLOTS};
    cache.budget_bytes = (uint64_t)s->in->count * (uint64_t)s->in->kv_heads *
                         (pages * (uint64_t)f->block_bytes + 2 * TWIN_SLOTS * (uint64_t)f->slab_bytes);
    CALL(kt_cache_open(engine, &cache, &on->cache));
    CALL(kt_batch_open(on->cache, &(kt_batch_args){.size = sizeof(kt_batch_args), .slots = TWIN_SLOTS, .max_tokens = s->most_tokens,
                                                   .max_rows = s->most_rows}, &on->batch));
    for (int part = 0; part < PARTS; part++)
        CALL(kt_memory_alloc(engine, (size_t)s->in->count * elements(s->most_rows, heads_of(s, part), s->in->head_dim) * 2,
                             (void **)&on->inputs[part]));
    CALL(kt_memory_alloc(engine, result_bytes(s, s->most_results), (void **)&on->results));
    on->host = malloc(result_bytes(s, s->most_results));
    return on->host ? KG_OK : fail(KG_MACHINE, "out of memory");
}

static int finish(state *s)
{
    kt_poll_info polls[2] = {{.size = sizeof *polls}, {.size = sizeof *polls}};
    for (int sequence = 0; sequence < TWIN_SEQUENCES; sequence++)
        if (s->open[sequence])
            TRY(leave(s, sequence));
    for (int i = 0; i < 2; i++) {
        CALL(kt_poll(s->sides[i].batch, &polls[i]));
        kt_cache_info info = {.size = sizeof info};
        CALL(kt_cache_query(s->sides[i].cache, &info));
        if (info.free_pages != info.pages || info.free_slabs != info.slabs)
            fault(s, "%lld pages and %lld slabs are missing after the last sequence left", (long long)(info.pages - info.free_pages),
                  (long long)(info.slabs - info.free_slabs));
        if (polls[i].overruns)
            fault(s, "%d overruns; none was possible", polls[i].overruns);
    }
    // Rotated, the largest numbers of bf16 can be beyond all numbers.
    const int overflow = s->args->extremes && (s->format.key_rotation || s->format.value_rotation);
    if (polls[0].nonfinite != polls[1].nonfinite || (!overflow && !polls[0].nonfinite != !s->args->nonfinite))
        fault(s, "%llu non-finite elements were counted; the CPU counts %llu", (unsigned long long)polls[0].nonfinite,
              (unsigned long long)polls[1].nonfinite);
    return KG_OK;
}

static int go(state *s)
{
    const char *why = kg_layout(s->args->spec, &s->format);
    if (why)
        return fail(KG_USER, "%s", why);
    measure(s);
    TRY(open_side(s, &s->sides[0], s->args->gpu));
    TRY(open_side(s, &s->sides[1], s->args->cpu));
    s->gather = malloc(elements(s->most_rows, s->in->q_heads, s->in->head_dim) * sizeof *s->gather);
    for (int i = 0; i < 2; i++) {
        s->blocks[i] = malloc((size_t)s->format.block_bytes);
        s->exact[i] = malloc(elements(s->format.sink + s->format.value_ring, 1, s->in->head_dim) * sizeof(float));
        if (!s->gather || !s->blocks[i] || !s->exact[i])
            return fail(KG_MACHINE, "out of memory");
    }
    for (s->step = 0; s->step < s->args->count; s->step++) {
        s->move = &s->args->moves[s->step];
        TRY(fill_batch(s));
        if (s->move->flags & MOVE_ABORT)
            TRY(take(s, 1000));
        TRY(take(s, 0));
        if (s->move->flags & MOVE_ATTEND)
            judge(s);
        for (int slot = 0; slot < TWIN_SLOTS; slot++)
            if (s->move->slots[slot].sequence >= 0)
                s->tokens[s->move->slots[slot].sequence] += s->move->slots[slot].fresh;
    }
    return finish(s);
}

int twin_run(const twin_args *args, verdict *verdict)
{
    state s = {.args = args, .in = args->inputs, .verdict = verdict};
    *verdict = (struct verdict){0};
    const int code = go(&s);
    for (int i = 0; i < 2; i++) {
        side *on = &s.sides[i];
        kt_batch_close(on->batch);
        kt_cache_close(on->cache);
        for (int part = 0; part < PARTS; part++)
            kt_memory_free(on->engine, on->inputs[part]);
        kt_memory_free(on->engine, on->results);
        free(on->host);
        free(s.blocks[i]);
        free(s.exact[i]);
    }
    free(s.gather);
    return code;
}
