// fork: sequences that fork, are cut back and go on at random, on the GPU and on the CPU at once: what they hold, what is refused, and the
// pools must agree.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "exact.h"
#include "keys.h"
#include "support.h"

enum { LAYERS = 2, HEADS = 2, SLOTS = 4, MEMBERS = 6, SPARES = 2, MOST = 900, ROWS = 4 * 300, ATTENDED = 24, STREAM = 1500, PARTS = 3 };

typedef struct {
    kt_engine *engine;
    kt_cache *cache;
    kt_batch *batch;
    kt_sequence handles[MEMBERS];
    char *inputs[PARTS], *out; // on the device: [LAYERS, ROWS or ATTENDED, heads, head_dim]
    uint16_t *host;            // a copy of out
    unsigned char *block;
    float *exact;
} side;

typedef struct {
    kg_spec spec;
    kt_format format;
    kg_inputs inputs;
    kg_random random;
    side sides[2]; // GPU, CPU
    uint16_t *rows;
    int joined[MEMBERS], tokens[MEMBERS];
    int forks, cuts, refusals, steps, aborts, blocks, attends;
    double worst;
} state;

static int heads_of(const state *s, int part) { return part ? s->inputs.kv_heads : s->inputs.q_heads; }
static size_t row_bytes(const state *s, int part) { return elements(1, heads_of(s, part), s->format.head_dim) * 2; }
static int below(state *s, int n) { return kg_random_below(&s->random, n); }

static int open_side(state *s, side *on)
{
    const kt_format *f = &s->format;
    const uint64_t pages = 3 * MOST / (uint64_t)f->page; // too few for all members at their longest
    kt_engine_info info = {.size = sizeof info};
    kt_cache_args cache = {.size = sizeof cache, .layers = LAYERS, .kv_heads = HEADS, .max_sequences = MEMBERS, .spare_slabs = SPARES};
    TRY(add_budget(on->engine, &cache, pages, MEMBERS + SPARES));
    CALL(kt_engine_query(on->engine, &info));
    CALL(kt_cache_open(on->engine, &cache, &on->cache));
    CALL(kt_batch_open(on->cache, &(kt_batch_args){sizeof(kt_batch_args), SLOTS, MOST, ROWS}, &on->batch));
    for (int part = 0; part < PARTS; part++)
        CALL(kt_memory_alloc(on->engine, LAYERS * ROWS * row_bytes(s, part), (void **)&on->inputs[part]));
    CALL(kt_memory_alloc(on->engine, LAYERS * ATTENDED * row_bytes(s, 0), (void **)&on->out));
    on->host = malloc(LAYERS * ATTENDED * row_bytes(s, 0));
    on->block = malloc(info.block_bytes);
    on->exact = malloc(MOST * (size_t)f->head_dim * sizeof *on->exact);
    return on->host && on->block && on->exact ? KG_OK : fail(KG_MACHINE, "out of memory");
}

static void close_side(side *on)
{
    kt_batch_close(on->batch);
    kt_cache_close(on->cache);
    for (int part = 0; part < PARTS; part++)
        kt_memory_free(on->engine, on->inputs[part]);
    kt_memory_free(on->engine, on->out);
    kt_close(on->engine);
    free(on->host);
    free(on->block);
    free(on->exact);
}

// ---- both alike ------------------------------------------------------------------------------------------------------

// A call on both sides that may be refused: *done where it was not.
static int agree(state *s, const char *call, const kt_status status[2], int *done)
{
    *done = !status[0];
    s->refusals += status[0] != KT_OK;
    if (status[0] != status[1])
        return fail(KG_FAILED, "%s: %s on the GPU, %s on the CPU: %s", call, kt_status_name(status[0]), kt_status_name(status[1]), kt_message());
    return status[0] == KT_OK || status[0] == KT_FULL || status[0] == KT_UNSUPPORTED ? KG_OK : refused(call, status[0]);
}

static int compare_pools(const state *s)
{
    kt_cache_info info[2] = {{.size = sizeof *info}, {.size = sizeof *info}};
    for (int i = 0; i < 2; i++)
        CALL(kt_cache_query(s->sides[i].cache, &info[i]));
    if (info[0].free_pages != info[1].free_pages || info[0].free_slabs != info[1].free_slabs || info[0].sequences != info[1].sequences)
        return fail(KG_FAILED, "%lld pages, %lld slabs free with %d sequences; expected %lld, %lld, %d", (long long)info[0].free_pages,
                    (long long)info[0].free_slabs, info[0].sequences, (long long)info[1].free_pages, (long long)info[1].free_slabs,
                    info[1].sequences);
    return KG_OK;
}

static int compare(state *s, int m)
{
    for (int at = 0; at < LAYERS * HEADS; at++) {
        const kt_format *f = layer_format(s->sides[0].engine, at / HEADS);
        for (int page = 0; page < kt_sealed(f, KT_KEY, s->tokens[m]); page++) {
            for (int i = 0; i < 2; i++)
                CALL(kt_read_block(s->sides[i].cache, s->sides[i].handles[m], at / HEADS, at % HEADS, page, s->sides[i].block));
            s->blocks++;
            if (memcmp(s->sides[0].block, s->sides[1].block, (size_t)f->block_bytes))
                return fail(KG_FAILED, "sequence %d of %d tokens: layer %d head %d page %d differs from the CPU's", m, s->tokens[m], at / HEADS,
                            at % HEADS, page);
        }
        for (int part = 0; part < 2; part++) {
            for (int i = 0; i < 2; i++)
                CALL(kt_read(s->sides[i].cache, s->sides[i].handles[m], at / HEADS, at % HEADS, (kt_part)part, 0, s->tokens[m],
                             s->sides[i].exact));
            if (memcmp(s->sides[0].exact, s->sides[1].exact, (size_t)s->tokens[m] * (size_t)f->head_dim * sizeof(float)))
                return fail(KG_FAILED, "sequence %d of %d tokens: layer %d head %d %s differ from the CPU's", m, s->tokens[m], at / HEADS,
                            at % HEADS, part == KT_KEY ? "keys" : "values");
        }
    }
    return KG_OK;
}

// ---- what can happen -------------------------------------------------------------------------------------------------

static int join(state *s, int m)
{
    const int from = below(s, MEMBERS), forks = from != m && s->joined[from];
    for (int i = 0; i < 2; i++) {
        side *on = &s->sides[i];
        if (forks)
            CALL(kt_sequence_fork(on->cache, on->handles[from], NULL, &on->handles[m]));
        else
            CALL(kt_sequence_open(on->cache, &on->handles[m]));
    }
    s->joined[m] = 1;
    s->tokens[m] = forks ? s->tokens[from] : 0;
    s->forks += forks;
    return forks ? compare(s, m) : KG_OK;
}

static int leave(state *s, int m)
{
    TRY(compare(s, m));
    for (int i = 0; i < 2; i++)
        CALL(kt_sequence_close(s->sides[i].cache, s->sides[i].handles[m]));
    s->joined[m] = 0;
    return KG_OK;
}

static int cut(state *s, int m)
{
    int least[2], done;
    kt_status status[2];
    for (int i = 0; i < 2; i++)
        CALL(kt_sequence_undo(s->sides[i].cache, s->sides[i].handles[m], &least[i]));
    if (least[0] != least[1])
        return fail(KG_FAILED, "sequence %d can go back to %d tokens; expected %d", m, least[0], least[1]);
    const int to = below(s, 3) ? least[0] : below(s, s->tokens[m] + 1);
    for (int i = 0; i < 2; i++)
        status[i] = kt_sequence_truncate(s->sides[i].cache, s->sides[i].handles[m], to);
    TRY(agree(s, "kt_sequence_truncate", status, &done));
    s->tokens[m] = done ? to : s->tokens[m];
    s->cuts += done;
    return compare(s, m);
}

// Tokens for `rows` rows, the same for both, from anywhere in the stream.
static int draw(state *s, int rows)
{
    for (int layer = 0; layer < LAYERS; layer++) {
        const kg_layer *l = &s->inputs.layers[layer];
        const uint16_t *const streams[PARTS] = {l->query, l->key, l->value};
        const int first = below(s, l->tokens);
        for (int part = 0; part < PARTS; part++) {
            const size_t bytes = row_bytes(s, part);
            for (int r = 0; r < rows; r++)
                memcpy((char *)s->rows + (size_t)r * bytes, (const char *)streams[part] + (size_t)((first + r) % l->tokens) * bytes, bytes);
            for (int i = 0; i < 2; i++)
                CALL(kt_memory_write(s->sides[i].engine, s->sides[i].inputs[part] + (size_t)layer * ROWS * bytes, s->rows, (size_t)rows * bytes,
                                     NULL));
        }
    }
    return KG_OK;
}

static int queue(state *s, side *on, int attended, int abort)
{
    for (int layer = 0; layer < LAYERS - abort; layer++) {
        char *at[PARTS];
        for (int part = 0; part < PARTS; part++)
            at[part] = on->inputs[part] + (size_t)layer * ROWS * row_bytes(s, part);
        CALL(kt_append(on->batch, &(kt_append_args){.size = sizeof(kt_append_args), .layer = layer, .key = at[1], .value = at[2]}));
        if (attended)
            CALL(kt_attend(on->batch, &(kt_attend_args){.size = sizeof(kt_attend_args), .layer = layer, .query = at[0],
                                                        .out = on->out + (size_t)layer * ATTENDED * row_bytes(s, 0),
                                                        .scale = (float)s->inputs.layers[layer].scale}));
    }
    if (abort)
        CALL(kt_step_abort(on->batch));
    else
        CALL(kt_step_commit(on->batch));
    return KG_OK;
}

static int compare_out(state *s, int rows)
{
    const size_t layer_bytes = ATTENDED * row_bytes(s, 0), count = (size_t)rows * row_bytes(s, 0) / 2;
    for (int i = 0; i < 2; i++)
        CALL(kt_memory_read(s->sides[i].engine, s->sides[i].host, s->sides[i].out, LAYERS * layer_bytes));
    for (int layer = 0; layer < LAYERS; layer++) {
        kg_error error = {0};
        for (size_t i = 0; i < count; i++) {
            const size_t at = (size_t)layer * layer_bytes / 2 + i;
            const double expected = kg_to_float(s->format.dtype, s->sides[1].host[at]);
            const double d = kg_to_float(s->format.dtype, s->sides[0].host[at]) - expected;
            error.difference += d * d;
            error.reference += expected * expected;
        }
        const double relative = kg_error_relative(error);
        s->worst = relative > s->worst ? relative : s->worst;
        if (!(relative <= error_limit(s->format.dtype)))
            return fail(KG_FAILED, "layer %d: attention is %.2e off, over %d rows", layer, relative, rows);
    }
    s->attends++;
    return KG_OK;
}

static int step(state *s)
{
    int in_slot[SLOTS], fresh[SLOTS], rows = 0, done;
    kt_status status[2];
    for (int slot = 0; slot < SLOTS; slot++) {
        int m = below(s, MEMBERS);
        for (int other = 0; other < slot; other++)
            m = in_slot[other] == m ? -1 : m;
        in_slot[slot] = m >= 0 && s->joined[m] ? m : -1;
        fresh[slot] = below(s, 4) ? below(s, 3) : below(s, 300);
        if (in_slot[slot] >= 0 && s->tokens[m] + fresh[slot] > MOST)
            fresh[slot] = MOST - s->tokens[m];
        rows += in_slot[slot] >= 0 ? fresh[slot] : 0;
    }
    TRY(draw(s, rows));
    const int abort = !below(s, 6), attended = !abort && rows && rows <= ATTENDED;
    for (int i = 0; i < 2; i++) {
        side *on = &s->sides[i];
        for (int slot = 0; slot < SLOTS; slot++)
            CALL(kt_batch_set(on->batch, slot, 0, 0, -1));
        for (int slot = 0; slot < SLOTS; slot++)
            if (in_slot[slot] >= 0)
                CALL(kt_batch_set(on->batch, slot, on->handles[in_slot[slot]], fresh[slot], -1));
        status[i] = kt_step_begin(on->batch, NULL);
    }
    TRY(agree(s, "kt_step_begin", status, &done));
    for (int i = 0; i < 2 && done; i++)
        TRY(queue(s, &s->sides[i], attended, abort));
    for (int slot = 0; slot < SLOTS && done && !abort; slot++)
        if (in_slot[slot] >= 0)
            s->tokens[in_slot[slot]] += fresh[slot];
    s->steps += done && !abort;
    s->aborts += done && abort;
    return done && attended ? compare_out(s, rows) : KG_OK;
}

// ---- the part --------------------------------------------------------------------------------------------------------

static int go(state *s, const char *name, const char *dtype, int rounds)
{
    TRY(load_spec(name, dtype, &s->spec));
    spread_ways(&s->spec, LAYERS);
    const char *why = kg_layout(&s->spec, &s->format);
    if (why)
        return fail(KG_USER, "%s", why);
    TRY(keys_make(KEYS_MILD, &s->spec, LAYERS, HEADS, STREAM, &s->inputs));
    TRY(open_engines(&s->spec, -1, &s->sides[0].engine, &s->sides[1].engine));
    for (int i = 0; i < 2; i++)
        TRY(open_side(s, &s->sides[i]));
    s->rows = malloc(ROWS * row_bytes(s, 0));
    if (!s->rows)
        return fail(KG_MACHINE, "out of memory");
    s->random = kg_random_seed(11, 0);
    for (int round = 0; round < rounds; round++) {
        const int m = below(s, MEMBERS), action = below(s, 12);
        TRY(!s->joined[m] ? join(s, m) : action == 0 ? leave(s, m) : action < 4 ? cut(s, m) : step(s));
        TRY(compare_pools(s));
    }
    for (int m = 0; m < MEMBERS; m++)
        if (s->joined[m])
            TRY(leave(s, m));
    TRY(compare_pools(s));
    kt_cache_info info = {.size = sizeof info};
    CALL(kt_cache_query(s->sides[0].cache, &info));
    if (info.free_pages != info.pages || info.free_slabs != info.slabs)
        return fail(KG_FAILED, "%lld pages and %lld slabs are missing after the last sequence left", (long long)(info.pages - info.free_pages),
                    (long long)(info.slabs - info.free_slabs));
    printf("%s %s: %d forks, %d truncations, %d steps and %d aborted, %d refusals alike; %d blocks equal; %d attends, worst error %.2e: ok\n",
           s->spec.name, dtype, s->forks, s->cuts, s->steps, s->aborts, s->refusals, s->blocks, s->attends, s->worst);
    return KG_OK;
}

int part_fork(int argc, char **argv)
{
    const char *spec = "qwen3_8b/kitty_pro", *dtype = "fp16", *rounds_text = NULL;
    int rounds = 400, code;
    const kg_option options[] = {
        {"--spec", "MODEL/VARIANT", "what to run (default qwen3_8b/kitty_pro)", NULL, &spec},
        {"--dtype", "fp16|bf16", "element type (default fp16)", NULL, &dtype},
        {"--rounds", "N", "steps, forks and truncations (default 400)", NULL, &rounds_text},
        {NULL, NULL, NULL, NULL, NULL},
    };
    const kg_usage usage = {"gpu_suite fork [options]",
                            "Sequences fork, are truncated and take steps at random, on the GPU and on the CPU backend with the same\n"
                            "tokens: every sealed page and exact token, the pools, and what is refused must be the same.\n",
                            options, 0, 0};
    if (kg_options(&usage, argc, argv, &code) < 0)
        return code;
    if (rounds_text)
        TRY(read_integer("--rounds", rounds_text, 1, 1000000, &rounds));
    state *s = calloc(1, sizeof *s);
    if (!s)
        return fail(KG_MACHINE, "out of memory");
    code = go(s, spec, dtype, rounds);
    for (int i = 0; i < 2; i++)
        close_side(&s->sides[i]);
    kg_inputs_free(&s->inputs);
    free(s->rows);
    free(s);
    return code;
}
