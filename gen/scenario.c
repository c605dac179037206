#include "scenario.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine.h"
#include "parallel.h"

enum { POISON = 0xfffe, OFFSET = 613, PARTS = 3 }; // POISON: a NaN in both dtypes, and not the usual one

// The sequence in a slot.
typedef struct {
    kt_sequence handle;
    int visit;          // -1: the slot is empty
    int tokens;
    int first;          // token 0 in the stream of inputs
    int capacity;       // rows of each copy
    float *copies[2];   // the cache as decoded, by kt_part: [layers, kv_heads, capacity, head_dim]
    int tokens_read;    // whose sealed pages are in the copies
} guest;

// What one (slot, layer, KV head) adds to the errors.
typedef struct {
    kg_error kernel;
    double quantisation;
    long outputs;
} sums;

typedef struct {
    const kg_scenario *args;
    const kg_spec *spec;
    const kg_inputs *in;
    kg_scenario_result *result;
    char *error;
    size_t error_size;
    kg_schedule schedule;
    const kg_turn *turns; // of the step
    int step, rows;
    guest guests[KG_SLOTS];
    kt_cache *cache;
    kt_batch *batch;
    char *inputs[PARTS];  // query, key, value on the device: [layers, most_rows, heads, head_dim]
    char *out;            // on the device: [layers, most_rows + 1, q_heads, head_dim]
    uint16_t *gather;     // one layer's rows on their way to the device
    uint16_t *outputs;    // as `out`, on the host
    double *scratch;      // [workers, scratch_each]
    size_t scratch_each;
    sums *items;          // [slots, layers, kv_heads]
    double *layer_sums;
    long *layer_outputs;
    float *page;          // [most_tokens, head_dim]
    double seconds;
    int timed;
} state;

static int refused(const state *s, const char *call, kt_status status)
{
    return kg_fail(kg_exit_code(status), s->error, s->error_size, "step %d: %s: %s: %s", s->step, call, kt_status_name(status),
                   kt_message());
}

// Leaves the function with an exit code if a call of libkitty fails.
#define CALL(s, call)                                            \
    do {                                                         \
        const kt_status status_ = call;                          \
        if (status_)                                             \
            return refused(s, #call, status_);                   \
    } while (0)

static int out_of_memory(const state *s) { return kg_fail(KG_MACHINE, s->error, s->error_size, "out of memory"); }

static int heads_of(const state *s, int part) { return part ? s->in->kv_heads : s->in->q_heads; }

static size_t layer_elements(const state *s, int heads, int rows)
{
    return (size_t)rows * (size_t)heads * (size_t)s->in->head_dim;
}

static float *copy_of(const state *s, const guest *g, kt_part part, int layer, int head)
{
    return g->copies[part] + ((size_t)layer * (size_t)s->in->kv_heads + (size_t)head) * (size_t)g->capacity * (size_t)s->in->head_dim;
}

static const kt_format *format_of(const state *s, int layer)
{
    return kg_formats_at(s->args->formats, s->spec, s->in->layers[layer].origin);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

// ---- joining and leaving ---------------------------------------------------------------------------------------------

static int arrive(state *s, guest *g, int visit)
{
    *g = (guest){.visit = visit, .first = visit * OFFSET, .capacity = s->schedule.tokens[visit]};
    const size_t floats = (size_t)s->in->count * layer_elements(s, s->in->kv_heads, g->capacity);
    for (int part = 0; part < 2; part++)
        if (!(g->copies[part] = malloc(floats * sizeof(float))))
            return out_of_memory(s);
    CALL(s, kt_sequence_open(s->cache, &g->handle));
    s->result->sequences++;
    return KG_OK;
}

// Reads the whole sequence back: sealed pages must not have changed since, and newer tokens must be what went in.
static int leave(state *s, guest *g)
{
    int tokens;
    CALL(s, kt_sequence_tokens(s->cache, g->handle, &tokens));
    if (tokens != g->tokens)
        return kg_fail(KG_FAILED, s->error, s->error_size, "step %d: a sequence of %d tokens says that it has %d", s->step,
                       g->tokens, tokens);
    for (int part = 0; part < 2; part++) {
        for (int layer = 0; layer < s->in->count; layer++) {
            for (int head = 0; head < s->in->kv_heads; head++) {
                const float *copy = copy_of(s, g, (kt_part)part, layer, head);
                CALL(s, kt_read(s->cache, g->handle, layer, head, (kt_part)part, 0, tokens, s->page));
                for (long i = 0; i < (long)tokens * s->in->head_dim; i++)
                    s->result->misread += s->page[i] != copy[i];
            }
        }
    }
    CALL(s, kt_sequence_close(s->cache, g->handle));
    free(g->copies[0]);
    free(g->copies[1]);
    *g = (guest){.visit = -1};
    return KG_OK;
}

// ---- a step ----------------------------------------------------------------------------------------------------------

static int fill_batch(state *s)
{
    int code = KG_OK;
    // Whoever leaves makes room first.
    for (int slot = 0; slot < KG_SLOTS && !code; slot++)
        if (s->guests[slot].visit >= 0 && s->guests[slot].visit != s->turns[slot].visit)
            code = leave(s, &s->guests[slot]);
    for (int slot = 0; slot < KG_SLOTS && !code; slot++)
        if (s->guests[slot].visit != s->turns[slot].visit)
            code = arrive(s, &s->guests[slot], s->turns[slot].visit);
    if (code)
        return code;
    s->rows = 0;
    for (int slot = 0; slot < KG_SLOTS; slot++) {
        const guest *g = &s->guests[slot];
        CALL(s, kt_batch_set(s->batch, slot, g->visit < 0 ? 0 : g->handle, s->turns[slot].fresh, -1));
        s->rows += s->turns[slot].fresh;
    }
    return KG_OK;
}

// Brings the step's tokens of all layers to the device, `shift` further on in the stream, and poisons the outputs.
static int upload(state *s, int shift)
{
    const int d = s->in->head_dim;
    for (int layer = 0; layer < s->in->count; layer++) {
        const kg_layer *l = &s->in->layers[layer];
        const uint16_t *const streams[PARTS] = {l->query, l->key, l->value};
        for (int part = 0; part < PARTS; part++) {
            const size_t row = (size_t)heads_of(s, part) * (size_t)d;
            uint16_t *to = s->gather;
            for (int slot = 0; slot < KG_SLOTS; slot++) {
                for (int i = 0; i < s->turns[slot].fresh; i++, to += row) {
                    const int token = (s->guests[slot].first + s->turns[slot].before + i + shift) % l->tokens;
                    memcpy(to, streams[part] + (size_t)token * row, row * sizeof *to);
                }
            }
            char *device = s->inputs[part] + (size_t)layer * layer_elements(s, heads_of(s, part), s->schedule.most_rows) * 2;
            CALL(s, kt_memory_write(s->args->engine, device, s->gather, (size_t)s->rows * row * sizeof *to, 0));
        }
        const size_t outputs = layer_elements(s, s->in->q_heads, s->rows + 1);
        for (size_t i = 0; i < outputs; i++)
            s->gather[i] = POISON;
        char *out = s->out + (size_t)layer * layer_elements(s, s->in->q_heads, s->schedule.most_rows + 1) * 2;
        CALL(s, kt_memory_write(s->args->engine, out, s->gather, outputs * sizeof *s->gather, 0));
    }
    return KG_OK;
}

static int queue_layers(state *s)
{
    for (int layer = 0; layer < s->in->count; layer++) {
        const char *at[PARTS];
        for (int part = 0; part < PARTS; part++)
            at[part] = s->inputs[part] + (size_t)layer * layer_elements(s, heads_of(s, part), s->schedule.most_rows) * 2;
        CALL(s, kt_append(s->batch, &(kt_append_args){.size = sizeof(kt_append_args), .layer = layer, .key = at[1], .value = at[2]}));
        CALL(s, kt_attend(s->batch, &(kt_attend_args){
            .size = sizeof(kt_attend_args), .layer = layer, .query = at[0], .scale = (float)s->in->layers[layer].scale,
            .out = s->out + (size_t)layer * layer_elements(s, s->in->q_heads, s->schedule.most_rows + 1) * 2}));
    }
    return KG_OK;
}

static int read_outputs(state *s)
{
    const size_t stride = layer_elements(s, s->in->q_heads, s->schedule.most_rows + 1);
    for (int layer = 0; layer < s->in->count; layer++)
        CALL(s, kt_memory_read(s->args->engine, s->outputs + (size_t)layer * stride, s->out + (size_t)layer * stride * 2,
                               layer_elements(s, s->in->q_heads, s->rows + 1) * 2));
    return KG_OK;
}

// The step with other tokens, taken back: nothing of it may show later.
static int take_and_abort(state *s)
{
    int code = upload(s, 1000);
    if (code)
        return code;
    CALL(s, kt_step_begin(s->batch, 0));
    code = queue_layers(s);
    if (code)
        return code;
    CALL(s, kt_step_abort(s->batch));
    s->result->aborts++;
    return KG_OK;
}

static int take(state *s)
{
    int code = upload(s, 0);
    if (code)
        return code;
    CALL(s, kt_memory_read(s->args->engine, s->outputs, s->out, sizeof *s->outputs)); // waits until the inputs are there
    const double start = now();
    CALL(s, kt_step_begin(s->batch, 0));
    code = queue_layers(s);
    if (code)
        return code;
    CALL(s, kt_step_commit(s->batch));
    code = read_outputs(s);
    int prompt = 0;
    for (int slot = 0; slot < KG_SLOTS; slot++)
        prompt |= s->turns[slot].visit >= 0 && !s->turns[slot].before;
    if (!prompt) {
        s->seconds += now() - start;
        s->timed++;
    }
    return code;
}

// ---- checks ----------------------------------------------------------------------------------------------------------

static void check_written(state *s)
{
    const size_t stride = layer_elements(s, s->in->q_heads, s->schedule.most_rows + 1);
    const size_t written = layer_elements(s, s->in->q_heads, s->rows), all = layer_elements(s, s->in->q_heads, s->rows + 1);
    for (int layer = 0; layer < s->in->count; layer++) {
        const uint16_t *out = s->outputs + (size_t)layer * stride;
        for (size_t i = 0; i < all; i++) {
            if (i < written)
                s->result->unwritten += out[i] == POISON;
            else
                s->result->stray += out[i] != POISON;
        }
    }
}

// Both errors of one slot, layer and KV head. First puts the step's tokens into the copies.
static void check_item(void *context, int index, int worker)
{
    const state *s = context;
    const kg_inputs *in = s->in;
    const int d = in->head_dim, heads = in->q_heads / in->kv_heads;
    const int head = index % in->kv_heads, layer = index / in->kv_heads % in->count, slot = index / in->kv_heads / in->count;
    const guest *g = &s->guests[slot];
    const kg_turn *turn = &s->turns[slot];
    if (!turn->fresh)
        return;
    const kg_rows exact[2] = {kg_inputs_keys(in, layer, head, g->first), kg_inputs_values(in, layer, head, g->first)};
    kg_rows decoded[2];
    for (int part = 0; part < 2; part++) {
        float *copy = copy_of(s, g, (kt_part)part, layer, head);
        decoded[part] = (kg_rows){copy, 0, g->capacity};
        for (int t = turn->before; t < turn->before + turn->fresh; t++)
            memcpy(copy + (long)t * d, exact[part].base + (long)((exact[part].first + t) % exact[part].wrap) * d, (size_t)d * sizeof *copy);
    }
    const size_t outs = (size_t)heads * (size_t)d;
    double *over_cache = s->scratch + (size_t)worker * s->scratch_each, *over_inputs = over_cache + outs;
    double *given = over_inputs + outs, *scratch = given + outs;
    float *query = (float *)(scratch + (size_t)heads * (size_t)(s->schedule.most_tokens + 2 * d));
    const kg_layer *l = &in->layers[layer];
    sums *sum = &s->items[index];
    *sum = (sums){0};
    for (int i = turn->fresh > KG_CHECKED_ALL ? turn->fresh - KG_CHECKED_LAST : 0; i < turn->fresh; i++) {
        const int tokens = turn->before + i + 1;
        const size_t at = (size_t)head * outs;
        const uint16_t *q = l->query + (size_t)((g->first + tokens - 1) % l->tokens) * (size_t)in->q_heads * (size_t)d + at;
        const uint16_t *out = s->outputs + at + ((size_t)layer * (size_t)(s->schedule.most_rows + 1) + (size_t)(turn->row + i)) *
                                                    (size_t)in->q_heads * (size_t)d;
        for (size_t c = 0; c < outs; c++) {
            query[c] = kg_to_float(in->dtype, q[c]);
            given[c] = (double)kg_to_float(in->dtype, out[c]);
        }
        kg_exact_attend(decoded[0], decoded[1], d, query, heads, tokens, l->scale, over_cache, scratch);
        kg_error_add(&sum->kernel, over_cache, given, (int)outs);
        sum->outputs += heads;
        if (!kt_pages(format_of(s, layer), g->tokens_read))
            continue; // nothing is quantised
        kg_exact_attend(exact[0], exact[1], d, query, heads, tokens, l->scale, over_inputs, scratch);
        for (int h = 0; h < heads; h++) {
            kg_error error = {0};
            kg_error_add(&error, over_inputs + h * d, over_cache + h * d, d);
            sum->quantisation += kg_error_relative(error);
        }
    }
}

static void check_step(state *s)
{
    const int items = s->in->count * s->in->kv_heads;
    check_written(s);
    for (int i = 0; i < KG_SLOTS * items; i++)
        s->items[i] = (sums){0};
    kg_parallel(KG_SLOTS * items, check_item, s);
    for (int slot = 0; slot < KG_SLOTS; slot++) {
        for (int layer = 0; layer < s->in->count; layer++) {
            kg_error kernel = {0};
            for (int head = 0; head < s->in->kv_heads; head++) {
                const sums *sum = &s->items[(slot * s->in->count + layer) * s->in->kv_heads + head];
                kg_error_join(&kernel, sum->kernel);
                s->layer_sums[layer] += sum->quantisation;
                s->layer_outputs[layer] += sum->outputs;
            }
            const double error = kg_error_relative(kernel);
            if (error > s->result->kernel_error) {
                s->result->kernel_error = error;
                s->result->worst_step = s->step;
                s->result->worst_layer = layer;
                s->result->worst_sequence = s->guests[slot].visit;
                s->result->worst_tokens = s->turns[slot].before + s->turns[slot].fresh;
            }
        }
    }
}

// Brings the pages that the step sealed into the copies.
static int read_sealed(state *s)
{
    const int page = s->spec->page;
    for (int slot = 0; slot < KG_SLOTS; slot++) {
        guest *g = &s->guests[slot];
        g->tokens = s->turns[slot].before + s->turns[slot].fresh;
        for (int layer = 0; layer < s->in->count && g->visit >= 0; layer++) {
            const kt_format *f = format_of(s, layer);
            for (int part = 0; part < 2; part++)
                for (int i = kt_sealed(f, part, g->tokens_read); i < kt_sealed(f, part, g->tokens); i++) {
                    const int first = f->sink + i * page;
                    for (int head = 0; head < s->in->kv_heads; head++)
                        CALL(s, kt_read(s->cache, g->handle, layer, head, (kt_part)part, first, page,
                                        copy_of(s, g, (kt_part)part, layer, head) + (long)first * s->in->head_dim));
                    if (!layer)
                        *(part == KT_KEY ? &s->result->key_pages : &s->result->value_pages) += 1;
                }
        }
        g->tokens_read = g->tokens;
    }
    return KG_OK;
}

// ---- the run ---------------------------------------------------------------------------------------------------------

static int allocate(state *s)
{
    const size_t layers = (size_t)s->in->count, heads = (size_t)(s->in->q_heads / s->in->kv_heads), d = (size_t)s->in->head_dim;
    const size_t outputs = layer_elements(s, s->in->q_heads, s->schedule.most_rows + 1);
    s->scratch_each = heads * (3 * d + (size_t)s->schedule.most_tokens + 2 * d) + (heads * d + 1) / 2;
    s->gather = malloc(outputs * sizeof *s->gather);
    s->outputs = malloc(layers * outputs * sizeof *s->outputs);
    s->scratch = malloc((size_t)kg_parallel_workers() * s->scratch_each * sizeof *s->scratch);
    s->items = malloc(KG_SLOTS * layers * (size_t)s->in->kv_heads * sizeof *s->items);
    s->layer_sums = calloc(layers, sizeof *s->layer_sums);
    s->layer_outputs = calloc(layers, sizeof *s->layer_outputs);
    s->page = malloc((size_t)s->schedule.most_tokens * d * sizeof *s->page);
    s->result->layer_errors = calloc(layers, sizeof *s->result->layer_errors);
    if (!s->gather || !s->outputs || !s->scratch || !s->items || !s->layer_sums || !s->layer_outputs || !s->page ||
        !s->result->layer_errors)
        return out_of_memory(s);
    for (int part = 0; part < PARTS; part++) {
        const size_t bytes = layers * layer_elements(s, heads_of(s, part), s->schedule.most_rows) * 2;
        CALL(s, kt_memory_alloc(s->args->engine, bytes, (void **)&s->inputs[part]));
    }
    CALL(s, kt_memory_alloc(s->args->engine, layers * outputs * 2, (void **)&s->out));
    return KG_OK;
}

// A cache that just holds the schedule: a page or slab too many in use, and the run fails.
static int open_cache(state *s)
{
    kt_cache_args cache = {.size = sizeof cache, .layers = s->in->count, .kv_heads = s->in->kv_heads, .max_sequences = KG_SLOTS,
                           .spare_slabs = KG_SLOTS};
    for (int layer = 0; layer < s->in->count; layer++) {
        uint64_t block, slab;
        CALL(s, kt_layer_bytes(s->args->engine, layer, &block, &slab));
        cache.budget_bytes += (uint64_t)s->in->kv_heads * ((uint64_t)s->schedule.most_pages * block + 2 * KG_SLOTS * slab);
    }
    CALL(s, kt_cache_open(s->args->engine, &cache, &s->cache));
    CALL(s, kt_batch_open(s->cache, &(kt_batch_args){.size = sizeof(kt_batch_args), .slots = KG_SLOTS,
                                                     .max_tokens = s->schedule.most_tokens, .max_rows = s->schedule.most_rows},
                          &s->batch));
    return KG_OK;
}

static int finish(state *s)
{
    int code = KG_OK;
    for (int slot = 0; slot < KG_SLOTS && !code; slot++)
        if (s->guests[slot].visit >= 0)
            code = leave(s, &s->guests[slot]);
    if (code)
        return code;
    kt_poll_info poll = {.size = sizeof poll};
    kt_cache_info info = {.size = sizeof info};
    CALL(s, kt_poll(s->batch, &poll));
    CALL(s, kt_cache_query(s->cache, &info));
    kg_scenario_result *r = s->result;
    r->nonfinite = (long)poll.nonfinite;
    r->overruns = poll.overruns;
    r->leaked = (long)(info.pages - info.free_pages + info.slabs - info.free_slabs);
    double sum = 0;
    for (int layer = 0; layer < s->in->count; layer++) {
        r->layer_errors[layer] = s->layer_sums[layer] / (double)s->layer_outputs[layer];
        sum += s->layer_sums[layer];
        r->outputs += s->layer_outputs[layer];
    }
    r->quantisation_error = sum / (double)r->outputs;
    r->step_seconds = s->timed ? s->seconds / s->timed : NAN;
    return KG_OK;
}

static int go(state *s)
{
    int code = kg_schedule_make(s->spec, s->args->steps, &s->schedule) ? out_of_memory(s) : allocate(s);
    if (!code)
        code = open_cache(s);
    s->result->steps = s->args->steps;
    s->result->tokens = s->schedule.total;
    s->result->longest = s->schedule.most_tokens;
    for (s->step = 0; s->step < s->args->steps && !code; s->step++) {
        s->turns = s->schedule.turns + (size_t)s->step * KG_SLOTS;
        code = fill_batch(s);
        if (!code && s->rows) {
            if (s->step % 97 == 50)
                code = take_and_abort(s);
            if (!code)
                code = take(s);
            if (!code) {
                check_step(s);
                code = read_sealed(s);
            }
        }
        if (s->args->progress)
            kg_progress_to(s->args->progress, s->args->done + s->step + 1);
    }
    return code ? code : finish(s);
}

int kg_scenario_run(const kg_scenario *scenario, kg_scenario_result *result, char *error, size_t error_size)
{
    *result = (kg_scenario_result){.kernel_limit = scenario->inputs->dtype ? 8e-3 : 2e-3};
    state s = {.args = scenario, .spec = scenario->spec, .in = scenario->inputs, .result = result, .error = error,
               .error_size = error_size};
    for (int slot = 0; slot < KG_SLOTS; slot++)
        s.guests[slot].visit = -1;
    const int code = go(&s);
    kt_batch_close(s.batch);
    kt_cache_close(s.cache);
    for (int part = 0; part < PARTS; part++)
        kt_memory_free(scenario->engine, s.inputs[part]);
    kt_memory_free(scenario->engine, s.out);
    for (int slot = 0; slot < KG_SLOTS; slot++) {
        free(s.guests[slot].copies[0]);
        free(s.guests[slot].copies[1]);
    }
    free(s.gather);
    free(s.outputs);
    free(s.scratch);
    free(s.items);
    free(s.layer_sums);
    free(s.layer_outputs);
    free(s.page);
    kg_schedule_free(&s.schedule);
    return code;
}

void kg_scenario_free(kg_scenario_result *result)
{
    free(result->layer_errors);
    *result = (kg_scenario_result){0};
}

int kg_scenario_passed(const kg_scenario_result *r)
{
    return r->kernel_error <= r->kernel_limit && isfinite(r->quantisation_error) && !r->unwritten && !r->stray && !r->misread &&
           !r->leaked && !r->nonfinite && !r->overruns;
}
