// A cache full of random tokens, and steps over it.
#include <stdlib.h>

#include "bench.h"
#include "engine.h"
#include "exact.h"
#include "layout.h"
#include "random.h"

enum { SHIFTS = 512 }; // rows by which sequences, and keys and values, are apart in the bench's elements
static const double SHARE = 0.85; // of the free memory

int kg_bench_refused(kg_bench *bench, const char *call, kt_status status)
{
    int length = 0;
    while (call[length] && call[length] != '(')
        length++;
    return kg_fail(kg_exit_code(status), bench->error, KG_ERROR, "%.*s: %s: %s", length, call, kt_status_name(status), kt_message());
}

static int draw(kg_bench *b, int dtype, uint64_t seed, size_t count, void *device)
{
    uint16_t *host = malloc(count * sizeof *host);
    if (!host)
        return kg_fail(KG_MACHINE, b->error, KG_ERROR, "out of memory");
    kg_random random = kg_random_seed(seed, 0);
    for (size_t i = 0; i < count; i++)
        host[i] = kg_from_float(dtype, kg_random_normal(&random));
    const int code = kg_gpu_write(device, host, count * sizeof *host, b->error);
    free(host);
    return code;
}

int kg_bench_data(kg_bench *b, int dtype, size_t count)
{
    if (b->data && b->data_dtype == dtype && b->data_count >= count)
        return KG_OK;
    kg_gpu_free(b->data);
    b->data = 0;
    b->data_count = 0;
    count = (count + 7) & ~(size_t)7;
    const size_t all = count > b->gpu.l2_bytes ? count : b->gpu.l2_bytes & ~(size_t)7; // elements of 2 bytes: twice the L2 cache
    KG_TRY(kg_gpu_alloc(all * 2, &b->data, b->error));
    KG_TRY(draw(b, dtype, 1, count, b->data));
    for (size_t done = count; done < all; done += count) // further ones only displace what is in the L2 cache
        KG_TRY(kg_gpu_copy((uint16_t *)b->data + done, b->data, 2 * (all - done < count ? all - done : count), b->stream, b->error));
    b->data_count = all;
    b->data_dtype = dtype;
    return kg_gpu_stream_wait(b->stream, b->error);
}

static kt_append_args tokens_of(const kg_bed *bed, int layer, int shift)
{
    const size_t row = (size_t)bed->spec->model.kv_heads * (size_t)bed->format.head_dim;
    const uint16_t *key = (const uint16_t *)bed->bench->data + (size_t)(shift % SHIFTS) * row;
    return (kt_append_args){.size = sizeof(kt_append_args), .layer = layer, .key = key, .value = key + SHIFTS * row};
}

int kg_bed_append(kg_bed *bed, kt_batch *batch, int layer, unsigned flags)
{
    kt_append_args args = tokens_of(bed, layer, 0);
    args.flags = flags;
    KG_BENCH_CALL(bed->bench, kt_append(batch, &args));
    return KG_OK;
}

int kg_bed_attend(kg_bed *bed, kt_batch *batch, int layer, unsigned flags)
{
    KG_BENCH_CALL(bed->bench, kt_attend(batch, &(kt_attend_args){.size = sizeof(kt_attend_args), .layer = layer, .query = bed->query,
                                                                .out = bed->out, .flags = flags}));
    return KG_OK;
}

static int fill(kg_bed *bed, kt_batch *batch, int index)
{
    kg_bench *b = bed->bench;
    for (int done = 0; done < bed->lengths[index] - 1;) {
        const int rest = bed->lengths[index] - 1 - done, count = rest < KG_BENCH_CHUNK ? rest : KG_BENCH_CHUNK;
        KG_BENCH_CALL(b, kt_batch_set(batch, 0, bed->handles[index], count, 0));
        KG_BENCH_CALL(b, kt_step_begin(batch, b->stream));
        for (int layer = 0; layer < bed->layers; layer++) {
            const kt_append_args args = tokens_of(bed, layer, index * 61 + done / KG_BENCH_CHUNK * 17);
            KG_BENCH_CALL(b, kt_append(batch, &args));
        }
        KG_BENCH_CALL(b, kt_step_commit(batch));
        done += count;
    }
    KG_BENCH_CALL(b, kt_batch_set(batch, 0, 0, 0, -1));
    return KG_OK;
}

static int fill_all(kg_bed *bed)
{
    kt_batch *batch = 0;
    int code = KG_OK;
    KG_BENCH_CALL(bed->bench, kt_batch_open(bed->cache, &(kt_batch_args){.size = sizeof(kt_batch_args), .slots = 1,
                                            .max_tokens = bed->most_tokens, .max_rows = KG_BENCH_CHUNK}, &batch));
    for (int i = 0; i < bed->sequences && !code; i++)
        code = fill(bed, batch, i);
    if (!code)
        code = kg_gpu_stream_wait(bed->bench->stream, bed->bench->error);
    kt_batch_close(batch);
    return code;
}

// Chooses the layers and opens the cache; it stays null where no layer fits.
static int open_cache(kg_bed *bed, int extra)
{
    kg_bench *b = bed->bench;
    const kt_format *f = &bed->format;
    const int kv_heads = bed->spec->model.kv_heads;
    double read = 0, pages = 0;
    size_t room;
    for (int i = 0; i < bed->sequences; i++) {
        read += kg_bench_attend_bytes(f, kv_heads, bed->lengths[i] - 1, 1);
        pages += (bed->lengths[i] + extra) / f->page + 1;
    }
    const double held = kv_heads * (pages * f->block_bytes + (bed->sequences + 1.0) * f->slab_bytes);
    KG_TRY(kg_gpu_free_bytes(&room, b->error));
    bed->layers = kg_bench_layers(read, held, (double)b->gpu.l2_bytes, SHARE * (double)room, b->brief);
    if (bed->layers && b->layers)
        bed->layers = b->layers * held <= SHARE * (double)room ? (int)b->layers : 0;
    if (!bed->layers)
        return KG_OK;
    const kt_cache_args args = {.size = sizeof args, .budget_bytes = (uint64_t)(held * bed->layers), .layers = bed->layers,
                                .kv_heads = kv_heads, .max_sequences = bed->sequences, .spare_slabs = 1};
    KG_BENCH_CALL(b, kt_cache_open(bed->engine, &args, &bed->cache));
    for (int i = 0; i < bed->sequences; i++)
        KG_BENCH_CALL(b, kt_sequence_open(bed->cache, &bed->handles[i]));
    return KG_OK;
}

int kg_bed_open(kg_bench *b, const kg_spec *spec, kt_engine *engine, const int *lengths, int sequences, int extra, kg_bed *bed)
{
    *bed = (kg_bed){.bench = b, .spec = spec, .engine = engine, .sequences = sequences};
    const char *why = kg_layout(spec, &bed->format);
    if (why)
        return kg_fail(KG_USER, b->error, KG_ERROR, "%s: %s", spec->name, why);
    const size_t d = (size_t)bed->format.head_dim, rows = KG_BENCH_CHUNK + 2 * SHIFTS;
    const size_t out = (size_t)sequences * (size_t)spec->model.q_heads * d;
    bed->lengths = malloc((size_t)sequences * sizeof *bed->lengths);
    bed->handles = calloc((size_t)sequences, sizeof *bed->handles);
    if (!bed->lengths || !bed->handles)
        return kg_fail(KG_MACHINE, b->error, KG_ERROR, "out of memory");
    for (int i = 0; i < sequences; i++) {
        bed->lengths[i] = lengths[i];
        bed->most_tokens = lengths[i] + extra > bed->most_tokens ? lengths[i] + extra : bed->most_tokens;
    }
    KG_TRY(kg_bench_data(b, bed->format.dtype, rows * (size_t)spec->model.kv_heads * d));
    KG_TRY(kg_gpu_alloc(2 * out, &bed->query, b->error));
    KG_TRY(kg_gpu_alloc(2 * out, &bed->out, b->error));
    KG_TRY(draw(b, bed->format.dtype, 2, out, bed->query));
    KG_TRY(open_cache(bed, extra));
    return bed->layers ? fill_all(bed) : KG_OK;
}

void kg_bed_close(kg_bed *bed)
{
    kt_cache_close(bed->cache);
    kg_gpu_free(bed->query);
    kg_gpu_free(bed->out);
    free(bed->lengths);
    free(bed->handles);
}

static int set_all(kg_bed *bed, kt_batch *batch, int further)
{
    for (int i = 0; i < bed->sequences; i++) {
        const int room = bed->lengths[i] + further;
        KG_BENCH_CALL(bed->bench, kt_sequence_reserve(bed->cache, bed->handles[i], room));
        KG_BENCH_CALL(bed->bench, kt_batch_set(batch, i, bed->handles[i], 1, -1));
    }
    KG_BENCH_CALL(bed->bench, kt_batch_upload(batch, bed->bench->stream));
    return kg_gpu_stream_wait(bed->bench->stream, bed->bench->error);
}

int kg_bed_batch(kg_bed *bed, int further, kt_batch **batch)
{
    int longest = 0;
    for (int i = 0; i < bed->sequences; i++)
        longest = bed->lengths[i] > longest ? bed->lengths[i] : longest;
    KG_BENCH_CALL(bed->bench, kt_batch_open(bed->cache, &(kt_batch_args){.size = sizeof(kt_batch_args), .slots = bed->sequences,
                                            .max_tokens = longest + further, .max_rows = bed->sequences}, batch));
    const int code = set_all(bed, *batch, further);
    if (code) {
        kt_batch_close(*batch);
        *batch = 0;
    }
    return code;
}
