#include <stdlib.h>
#include <string.h>

#include "cases.h"
#include "exact.h"

enum { MAX_TOKENS = 2048, MAX_ROWS = 1536, UNWRITTEN = 0xff };

// ---- steps -----------------------------------------------------------------------------------------------------------

enum { PREFILL, ATTEND, REFERENCE }; // PREFILL: nothing attends; REFERENCE: the reference kernel does, too

// What each sequence brings to a step: prompts in uneven pieces over page boundaries, one below the sinks, sequences that wait, steps of
// several tokens that see those before them; long enough that each warp of a block refills its stages where the card has one
// multiprocessor, and shared among many blocks where it has many.
typedef struct {
    int fresh[CASE_SLOTS], what, multiprocessors;
} step;

static step step_of(const kt__package *p, int index)
{
    const int page = p->formats[0].page, ahead = p->reaches[p->reach_count - 1];
    const step steps[CASE_STEPS] = {
        {{ahead + page + 5, 7, 0}, PREFILL, 1},
        {{1, 1, 1}, REFERENCE, 4},
        {{2, 5, 3}, ATTEND, 1},
        {{page - 6, 33, page + 1}, PREFILL, 1},
        {{1, ahead + 1100, 1}, PREFILL, 1},
        {{1, 1, 1}, ATTEND, 1},
        {{2, 1, 0}, ATTEND, 1},
        {{0, 2, 1}, ATTEND, 24},
        {{1, 0, 0}, REFERENCE, 24},
        {{0, 1, 1}, ATTEND, 24},
    };
    return steps[index];
}

int case_open(case_run *run, const test_case *given, kt_engine *engine, uint64_t seed)
{
    kt_engine_info info = {.size = sizeof info};
    *run = (case_run){.given = given, .engine = engine, .random = kg_random_seed(seed, 0)};
    CALL(kt_engine_query(engine, &info));
    const kt_cache_args cache = {
        .size = sizeof cache, .layers = CASE_LAYERS, .kv_heads = CASE_HEADS, .max_sequences = CASE_SLOTS, .spare_slabs = CASE_SLOTS,
        .budget_bytes = CASE_LAYERS * CASE_HEADS * (48 * info.block_bytes + 2 * CASE_SLOTS * info.slab_bytes) + 65536,
    };
    CALL(kt_cache_open(engine, &cache, &run->cache));
    const kt_batch_args batch = {.size = sizeof batch, .slots = CASE_SLOTS, .max_tokens = MAX_TOKENS, .max_rows = MAX_ROWS};
    CALL(kt_batch_open(run->cache, &batch, &run->batch));
    for (int i = 0; i < CASE_SLOTS; i++)
        CALL(kt_sequence_open(run->cache, &run->sequences[i]));
    return KG_OK;
}

void case_close(case_run *run)
{
    kt_batch_close(run->batch);
    kt_cache_close(run->cache);
}

// A tensor [rows, heads, dim] of random elements on the device, of just that size; rows are `stride` elements apart, with NaNs between.
static int bring(case_run *run, int rows, int heads, int stride, bool keys, bool damage, void **device)
{
    const kt_format *f = &run->given->package.formats[0];
    const int width = heads * f->head_dim;
    const size_t count = (size_t)(rows - 1) * (size_t)stride + (size_t)width;
    uint16_t *host = malloc(count * sizeof *host);
    if (!host)
        return fail(KG_MACHINE, "out of memory");
    for (size_t i = 0; i < count; i++) {
        const int at = (int)(i % (size_t)stride), channel = at % f->head_dim;
        float x = kg_random_normal(&run->random);
        if (keys)
            x *= channel % 17 == 3 ? 8.0f : channel % 23 == 5 ? 1e-5f : 1.0f;
        host[i] = at < width ? kg_from_float(f->dtype, x) : 0x7e01;
    }
    for (size_t i = (size_t)kg_random_below(&run->random, 3000); damage && i < count; i += (size_t)kg_random_below(&run->random, 20000))
        if ((int)(i % (size_t)stride) < width)
            host[i] = i % 2 ? 0x7f80 : 0xffc0; // bf16: infinity, NaN; fp16: two NaNs
    const kt_status made = kt_memory_alloc(run->engine, count * sizeof *host, device);
    const kt_status written = made ? made : kt_memory_write(run->engine, *device, host, count * sizeof *host, NULL);
    free(host);
    return written ? refused(made ? "kt_memory_alloc" : "kt_memory_write", written) : KG_OK;
}

// One attend of a step: where its results are.
typedef struct {
    int kernel, same; // same: as that attend of the layer; itself where it has results of its own
    void *out;
    float *lse;
} attend;

typedef struct {
    void *query, *key, *value;
    attend attends[CASE_KERNELS];
    int count;
} layer;

static int results_make(case_run *run, int rows, attend *a)
{
    const size_t heads = (size_t)rows * CASE_HEADS * (size_t)run->given->package.formats[0].group_heads;
    const size_t bytes = heads * (size_t)run->given->package.formats[0].head_dim * 2;
    unsigned char *blank = malloc(bytes);
    if (!blank)
        return fail(KG_MACHINE, "out of memory");
    memset(blank, UNWRITTEN, bytes);
    kt_status status = kt_memory_alloc(run->engine, bytes, &a->out);
    status = status ? status : kt_memory_alloc(run->engine, heads * sizeof(float), (void **)&a->lse);
    status = status ? status : kt_memory_write(run->engine, a->out, blank, bytes, NULL);
    status = status ? status : kt_memory_write(run->engine, a->lse, blank, heads * sizeof(float), NULL);
    free(blank);
    return status ? refused("kt_memory", status) : KG_OK;
}

static int results_read(case_run *run, const output_head *head, const attend *a, record *record)
{
    const size_t heads = (size_t)head->rows * CASE_HEADS * (size_t)run->given->package.formats[0].group_heads;
    const size_t bytes = heads * (size_t)run->given->package.formats[0].head_dim * 2;
    char *host = malloc(bytes + heads * sizeof(float));
    if (!host)
        return fail(KG_MACHINE, "out of memory");
    kt_status status = kt_memory_read(run->engine, host, a->out, bytes);
    status = status ? status : kt_memory_read(run->engine, host + bytes, a->lse, heads * sizeof(float));
    kg_text_bytes(&record->outputs, (const char *)head, sizeof *head);
    kg_text_bytes(&record->outputs, host, bytes + heads * sizeof(float));
    free(host);
    return status ? refused("kt_memory_read", status) : record->outputs.failed ? fail(KG_MACHINE, "out of memory") : KG_OK;
}

static void layer_free(case_run *run, layer *l)
{
    void *const all[] = {l->query, l->key, l->value};
    for (int i = 0; i < 3; i++)
        kt_memory_free(run->engine, all[i]);
    for (int i = 0; i < l->count; i++) {
        kt_memory_free(run->engine, l->attends[i].out);
        kt_memory_free(run->engine, l->attends[i].lse);
    }
}

// Appends a layer and attends by every kernel that is this case's, whatever the package's table would select. On the CPU all are one.
static int queue_layer(case_run *run, int at, const step *s, int index, int rows, layer *l)
{
    kt__package *p = &run->engine->package;
    const int format = kt__layer_format(p, at);
    const kt_format *f = &p->formats[format];
    const int q_heads = CASE_HEADS * f->group_heads, padded = index % 2;
    const int query_row = q_heads * f->head_dim + (padded ? 8 : 0), kv_row = CASE_HEADS * f->head_dim + (padded ? 16 : 0);
    TRY(bring(run, rows, q_heads, query_row, false, false, &l->query));
    TRY(bring(run, rows, CASE_HEADS, kv_row, true, at == 1, &l->key));
    TRY(bring(run, rows, CASE_HEADS, kv_row, false, at == 1, &l->value));
    CALL(kt_append(run->batch, &(kt_append_args){.size = sizeof(kt_append_args), .layer = at, .key = l->key, .value = l->value,
                                                 .key_row = kv_row, .value_row = kv_row,
                                                 .flags = s->what != PREFILL ? KT_APPEND_BEHIND_ATTEND : 0}));
    for (int i = 0; i < p->kernel_count && s->what != PREFILL; i++) {
        const int k = (i + index) % p->kernel_count; // each has its turn right after the append
        const bool reference = p->kernels[k].op == KT__REFERENCE;
        const bool turn = p->format_count > 1 || (k + at + index / 2) % 2 == 0; // where layers are alike, every second in each
        if (p->kernels[k].format != format || !run->given->first[k] || !turn || !(p->kernels[k].op == KT__ATTEND || (reference && s->what == REFERENCE)))
            continue;
        attend *a = &l->attends[l->count++];
        const bool again = run->engine->device == KT_DEVICE_CPU && l->count > 1;
        *a = (attend){.kernel = k, .same = again ? 0 : l->count - 1};
        if (again)
            continue;
        if (p->kernels[k].shared > run->engine->backend->shared_limit)
            return fail(KG_MACHINE, "%s needs %d bytes of shared memory; %s has %d for a block", p->kernels[k].name, p->kernels[k].shared,
                        run->engine->backend->device_name, run->engine->backend->shared_limit);
        TRY(results_make(run, rows, a));
        for (int c = 0; c < p->choice_count && !reference; c++)
            if (p->choices[c].op == KT__ATTEND && p->choices[c].format == format)
                p->choices[c].kernel = k;
        CALL(kt_attend(run->batch, &(kt_attend_args){.size = sizeof(kt_attend_args), .layer = at, .query = l->query, .query_row = query_row,
                                                     .out = a->out, .lse = a->lse, .flags = reference ? KT_ATTEND_REFERENCE : 0}));
    }
    return KG_OK;
}

// ---- what a step leaves ----------------------------------------------------------------------------------------------

static uint64_t digest_of(const void *data, size_t bytes)
{
    uint64_t hash = 0xcbf29ce484222325u; // FNV-1a
    for (size_t i = 0; i < bytes; i++)
        hash = (hash ^ ((const unsigned char *)data)[i]) * 0x100000001b3u;
    return hash;
}

static void add_digest(record *record, block_digest d, const void *data, size_t bytes)
{
    d.digest = digest_of(data, bytes);
    kg_text_bytes(&record->blocks, (const char *)&d, sizeof d);
}

int case_block(const case_run *run, int sequence, int at, int head, int page, unsigned char *block)
{
    const kt_format *f = case_format(run->given, at);
    int tokens;
    CALL(kt_sequence_tokens(run->cache, run->sequences[sequence], &tokens));
    CALL(kt_read_block(run->cache, run->sequences[sequence], at, head, page, block));
    if (page >= kt_sealed(f, KT_VALUE, tokens)) { // what its values are is open until they are sealed
        memset(block + KT_HEADER_VALUE_FLAGS, 0, 2);
        memset(block + f->value_tiles, 0, (size_t)(f->block_bytes - f->value_tiles));
    }
    return KG_OK;
}

static int digest_sequence(case_run *run, int index, int sequence, unsigned char *block, float *rows, record *record)
{
    int tokens;
    CALL(kt_sequence_tokens(run->cache, run->sequences[sequence], &tokens));
    for (int i = 0; i < CASE_LAYERS * CASE_HEADS; i++) {
        const kt_format *f = case_format(run->given, i / CASE_HEADS);
        const int sinks = tokens < f->sink ? tokens : f->sink;
        block_digest d = {.step = index, .sequence = sequence, .layer = i / CASE_HEADS, .head = i % CASE_HEADS};
        for (; d.page < kt_sealed(f, KT_KEY, tokens); d.page++) {
            TRY(case_block(run, sequence, d.layer, d.head, d.page, block));
            add_digest(record, d, block, (size_t)f->block_bytes);
        }
        for (int part = 0; part < 2; part++) {
            const int from = sinks + kt_sealed(f, part, tokens) * f->page;
            const int spans[2][2] = {{0, sinks}, {from, tokens - from}};
            d.page = -1 - part;
            for (int s = 0; s < 2; s++) {
                if (!spans[s][1])
                    continue;
                CALL(kt_read(run->cache, run->sequences[sequence], d.layer, d.head, (kt_part)part, spans[s][0], spans[s][1], rows));
                add_digest(record, d, rows, (size_t)spans[s][1] * (size_t)f->head_dim * sizeof *rows);
            }
        }
    }
    return KG_OK;
}

static int digest_caches(case_run *run, int index, record *record)
{
    const kt_format *f = &run->given->package.formats[0];
    unsigned char *block = malloc((size_t)case_block_bytes(run->given));
    float *rows = malloc((size_t)MAX_TOKENS * (size_t)f->head_dim * sizeof *rows);
    kt_poll_info poll = {.size = sizeof poll};
    int code = block && rows ? KG_OK : fail(KG_MACHINE, "out of memory");
    for (int i = 0; i < CASE_SLOTS && !code; i++)
        code = digest_sequence(run, index, i, block, rows, record);
    free(block);
    free(rows);
    TRY(code);
    CALL(kt_poll(run->batch, &poll)); // the reads have waited for the step
    const uint64_t counters[] = {(uint64_t)poll.overruns, poll.nonfinite};
    add_digest(record, (block_digest){.step = index, .sequence = -1}, counters, sizeof counters);
    return record->blocks.failed ? fail(KG_MACHINE, "out of memory") : KG_OK;
}

int case_step(case_run *run, int index, record *record)
{
    const step s = step_of(&run->given->package, index);
    layer layers[CASE_LAYERS] = {0};
    int rows = 0, code = KG_OK;
    run->engine->backend->multiprocessors = s.multiprocessors; // how attend is divided follows from it
    for (int i = 0; i < CASE_SLOTS; rows += s.fresh[i++])
        CALL(kt_batch_set(run->batch, i, run->sequences[i], s.fresh[i], -1));
    CALL(kt_step_begin(run->batch, NULL));
    for (int at = 0; at < CASE_LAYERS && !code; at++)
        code = queue_layer(run, at, &s, index, rows, &layers[at]);
    const kt_status status = code ? KT_OK : kt_step_commit(run->batch);
    code = status ? refused("kt_step_commit", status) : code;
    for (int at = 0; at < CASE_LAYERS; at++) {
        for (int i = 0; i < layers[at].count && !code; i++) {
            const attend *all = layers[at].attends;
            code = results_read(run, &(output_head){index, at, rows, all[i].kernel}, &all[all[i].same], record);
        }
        layer_free(run, &layers[at]);
    }
    return code ? code : digest_caches(run, index, record);
}
