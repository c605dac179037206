#include "bed.h"

#include <stdlib.h>

#include "bench.h"
#include "cuda.h"
#include "exact.h"
#include "random.h"

// Random elements of [rows, heads, head_dim] on the device.
static int draw(bed *b, int what, int rows, int heads, char **device)
{
    const int d = b->format.head_dim;
    const size_t count = elements(rows, heads, d);
    float *drawn = malloc(elements(rows, 1, d) * sizeof *drawn);
    uint16_t *host = malloc(count * sizeof *host);
    int code = drawn && host ? KG_OK : fail(KG_MACHINE, "out of memory");
    for (int h = 0; h < heads && !code; h++) {
        if (what == KT_KEY)
            kg_random_keys(KG_KEYS_MILD, 1, 0, h, rows, d, drawn);
        else
            kg_random_rows(1, what, 0, h, rows, d, drawn);
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < d; c++)
                host[elements(r, heads, d) + (size_t)(h * d + c)] = kg_from_float(b->format.dtype, drawn[r * d + c]);
    }
    if (!code) {
        kt_status status = kt_memory_alloc(b->engine, count * 2, (void **)device);
        if (!status)
            status = kt_memory_write(b->engine, *device, host, count * 2, b->stream);
        if (status)
            code = refused("kt_memory_write", status);
    }
    free(drawn);
    free(host);
    return code;
}

int bed_open(bed *b, const char *spec, const char *dtype, int config, int layers, int kv_heads, int sequences, int max_tokens)
{
    *b = (bed){.sequences = sequences, .max_tokens = max_tokens};
    TRY(load_spec(spec, dtype, &b->spec));
    if (layers)
        spread_ways(&b->spec, layers);
    const char *why = kg_layout(&b->spec, &b->format);
    if (why)
        return fail(KG_USER, "%s", why);
    b->layers = layers ? layers : b->spec.model.layers;
    b->kv_heads = kv_heads ? kv_heads : b->spec.model.kv_heads;
    b->q_heads = b->kv_heads * b->format.group_heads;
    b->out_bytes = elements(sequences, b->q_heads, b->format.head_dim) * 2;
    TRY(cuda_hold());
    TRY(open_engines(&b->spec, config, &b->engine, NULL));
    TRY(cuda_stream_open(&b->stream));

    const uint64_t pages = (uint64_t)(max_tokens / b->format.page + 1) * (uint64_t)sequences;
    const int rows = BED_BLOCK > sequences ? BED_BLOCK : sequences;
    kt_cache_args cache = {.size = sizeof cache, .layers = b->layers, .kv_heads = b->kv_heads, .max_sequences = sequences, .spare_slabs = 1};
    TRY(add_budget(b->engine, &cache, pages, (uint64_t)sequences + 1));
    CALL(kt_cache_open(b->engine, &cache, &b->cache));
    CALL(kt_batch_open(b->cache, &(kt_batch_args){.size = sizeof(kt_batch_args), .slots = sequences, .max_tokens = max_tokens,
                                                  .max_rows = rows}, &b->batch));
    b->handles = calloc((size_t)sequences, sizeof *b->handles);
    if (!b->handles)
        return fail(KG_MACHINE, "out of memory");
    for (int i = 0; i < sequences; i++)
        CALL(kt_sequence_open(b->cache, &b->handles[i]));
    TRY(draw(b, 2, sequences, b->q_heads, &b->query));
    TRY(draw(b, KT_KEY, rows, b->kv_heads, &b->key));
    return draw(b, KT_VALUE, rows, b->kv_heads, &b->value);
}

void bed_close(bed *b)
{
    kt_batch_close(b->batch);
    kt_cache_close(b->cache);
    kt_memory_free(b->engine, b->query);
    kt_memory_free(b->engine, b->key);
    kt_memory_free(b->engine, b->value);
    kt_close(b->engine);
    cuda_stream_close(b->stream);
    free(b->handles);
}

int bed_append(bed *b, int layer)
{
    CALL(kt_append(b->batch, &(kt_append_args){.size = sizeof(kt_append_args), .layer = layer, .key = b->key, .value = b->value}));
    return KG_OK;
}

int bed_attend(bed *b, int layer, void *out, unsigned flags)
{
    CALL(kt_attend(b->batch, &(kt_attend_args){.size = sizeof(kt_attend_args), .layer = layer, .query = b->query, .out = out,
                                               .flags = flags}));
    return KG_OK;
}

int bed_fill(bed *b, int index, int tokens)
{
    while (tokens) {
        const int count = tokens < BED_BLOCK ? tokens : BED_BLOCK;
        CALL(kt_batch_set(b->batch, index, b->handles[index], count, 0));
        CALL(kt_step_begin(b->batch, b->stream));
        for (int layer = 0; layer < b->layers; layer++)
            TRY(bed_append(b, layer));
        CALL(kt_step_commit(b->batch));
        tokens -= count;
    }
    CALL(kt_batch_set(b->batch, index, 0, 0, -1));
    return KG_OK;
}

int bed_decode(bed *b)
{
    for (int i = 0; i < b->sequences; i++)
        CALL(kt_batch_set(b->batch, i, b->handles[i], 1, -1));
    return KG_OK;
}

double bed_bytes(const bed *b, int tokens, int fresh) { return kg_bench_attend_bytes(&b->format, b->kv_heads, tokens, fresh); }

double bed_difference(const bed *b, const uint16_t *value, const uint16_t *reference, size_t count)
{
    kg_error error = {0};
    for (size_t i = 0; i < count; i++) {
        const double r = kg_to_float(b->format.dtype, reference[i]), d = kg_to_float(b->format.dtype, value[i]) - r;
        error.difference += d * d;
        error.reference += r * r;
    }
    return kg_error_relative(error);
}
