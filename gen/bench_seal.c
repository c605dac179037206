// Sealing: prompts of empty sequences.
#include <stdlib.h>

#include "bench.h"
#include "layout.h"

typedef struct {
    kt_cache *cache;
    kt_batch *batch;
    void *input; // [sequences * tokens, 2, kv_heads, head_dim]: keys, then values, of each token
    kg_handle events[2];
} sealing;

static int seal_open(kg_bench *b, const kg_spec *spec, kt_engine *engine, const kt_format *f, int sequences, int tokens, double held,
                     sealing *s)
{
    const size_t row = 2 * (size_t)spec->model.kv_heads * (size_t)f->head_dim, count = row * (size_t)sequences * (size_t)tokens;
    kt_sequence sequence;
    const kt_cache_args args = {.size = sizeof args, .budget_bytes = (uint64_t)held * (uint64_t)sequences, .layers = 1,
                                .kv_heads = spec->model.kv_heads, .max_sequences = sequences};
    KG_TRY(kg_gpu_alloc(2 * count, &s->input, b->error));
    for (size_t done = 0; done < count; done += b->data_count)
        KG_TRY(kg_gpu_copy((uint16_t *)s->input + done, b->data, 2 * (count - done < b->data_count ? count - done : b->data_count), b->stream, b->error));
    for (int i = 0; i < 2; i++)
        KG_TRY(kg_gpu_event_open(&s->events[i], b->error));
    KG_BENCH_CALL(b, kt_cache_open(engine, &args, &s->cache));
    KG_BENCH_CALL(b, kt_batch_open(s->cache, &(kt_batch_args){.size = sizeof(kt_batch_args), .slots = sequences, .max_tokens = tokens,
                                                              .max_rows = sequences * tokens}, &s->batch));
    for (int i = 0; i < sequences; i++) {
        KG_BENCH_CALL(b, kt_sequence_open(s->cache, &sequence));
        KG_BENCH_CALL(b, kt_batch_set(s->batch, i, sequence, tokens, -1));
    }
    return KG_OK;
}

// The append of empty sequences: aborted, so that it can be done again.
static int seal_once(kg_bench *b, const sealing *s, int64_t row, float *us)
{
    KG_BENCH_CALL(b, kt_step_begin(s->batch, b->stream));
    KG_TRY(kg_bench_flush(b)); // also keeps the GPU busy until the append is queued
    KG_TRY(kg_gpu_event_record(s->events[0], b->stream, b->error));
    KG_BENCH_CALL(b, kt_append(s->batch, &(kt_append_args){.size = sizeof(kt_append_args), .key = s->input, .value = (uint16_t *)s->input + row / 2,
                                                           .key_row = row, .value_row = row}));
    KG_TRY(kg_gpu_event_record(s->events[1], b->stream, b->error));
    KG_BENCH_CALL(b, kt_step_abort(s->batch));
    KG_TRY(kg_gpu_stream_wait(b->stream, b->error));
    return kg_gpu_event_time(s->events[0], s->events[1], us, b->error);
}

int kg_bench_seal(kg_bench *b, const kg_spec *spec, kt_engine *engine, int sequences, int tokens, kg_time *time, int *used)
{
    enum { MOST_ROWS = 1 << 24 };
    kt_format f;
    sealing s = {0};
    size_t room;
    const char *why = kg_layout(spec, &f);
    if (why)
        return kg_fail(KG_USER, b->error, KG_ERROR, "%s: %s", spec->name, why);
    const int64_t row = 2 * (int64_t)spec->model.kv_heads * f.head_dim;
    const double held = (double)spec->model.kv_heads * ((tokens / f.page + 1.0) * f.block_bytes + f.slab_bytes); // per sequence
    KG_TRY(kg_bench_data(b, f.dtype, (size_t)row * KG_BENCH_CHUNK));
    KG_TRY(kg_gpu_free_bytes(&room, b->error));
    *used = sequences;
    while (*used && (*used * (held + 2.0 * (double)row * tokens) > 0.85 * (double)room || (double)*used * tokens > MOST_ROWS))
        --*used;
    if (!*used)
        return KG_OK;
    float *samples = malloc((size_t)b->replays * sizeof *samples), unused;
    int code = samples ? seal_open(b, spec, engine, &f, *used, tokens, held, &s) : kg_fail(KG_MACHINE, b->error, KG_ERROR, "out of memory");
    for (int i = -KG_BENCH_WARM; i < b->replays && !code; i++)
        code = seal_once(b, &s, row, i < 0 ? &unused : &samples[i]);
    if (!code)
        kg_bench_percentiles(samples, (int)b->replays, 1, time);
    kg_gpu_event_close(s.events[0]);
    kg_gpu_event_close(s.events[1]);
    kt_batch_close(s.batch);
    kt_cache_close(s.cache);
    kg_gpu_free(s.input);
    free(samples);
    return code;
}
