// The card's bandwidth, which shares are of: reads by 16-byte loads or bulk copies, and a copy of memory to memory.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "cuda/backend.h"
#include "cuda/cubin_cache.h"
#include "sha256.h"

enum { THREADS = 256, BULK_THREADS = 128, BULK_CHUNK = 10368, BULK_SHARED = 8 * BULK_CHUNK, REPEATS = 4 };
enum { ROUNDS = 40, SAME = 4 }; // most of them; those in a row that find nothing faster, after which the card's clocks are up
static const size_t MOST = (size_t)4 << 30, LEAST = (size_t)256 << 20;

static int read_source(char **source, char *error)
{
    char folder[KG_PATH], path[KG_PATH + 16];
    size_t size;
    KG_TRY(kg_find_folder("templates", "KT_TEMPLATES", folder, error, KG_ERROR));
    snprintf(path, sizeof path, "%s/bandwidth.cu", folder);
    return kg_file_read(path, 1 << 20, source, &size, error, KG_ERROR);
}

// Compiles templates/bandwidth.cu, by way of the cache of cubins, and loads it.
static int load(kg_bench *b)
{
    kt__environment environment;
    kt__cubins *cubins = malloc(sizeof *cubins);
    kt__kernel kernel = {.name = "bandwidth"};
    kt__cubin cubin = {0};
    kt__cubin_origin origin;
    char arch[KT__ARCH];
    int code = cubins ? read_source(&kernel.source, b->error) : kg_fail(KG_MACHINE, b->error, KG_ERROR, "out of memory");
    if (!code && !kt__cuda_arch(b->gpu.major, b->gpu.minor, arch))
        code = kg_fail(KG_MACHINE, b->error, KG_ERROR, "%s has compute capability %d.%d; 8.0 or higher is needed", b->gpu.name, b->gpu.major, b->gpu.minor);
    if (!code) {
        const kt__driver *driver;
        int version = 0;
        kt_status status = kt__driver_load(&driver);
        if (!status)
            driver->driver_version(&version);
        kt__sha256_text(kernel.source, strlen(kernel.source), kernel.digest);
        kt__environment_read(&environment);
        kt__cubins_open(cubins, &environment, "", version / 1000);
        if (!status)
            status = kt__cubins_get(cubins, &kernel, arch, &cubin, &origin);
        kt__cubins_close(cubins);
        if (status)
            code = kg_bench_refused(b, "bandwidth.cu", status);
    }
    if (!code)
        code = kg_gpu_module_open(cubin.data, &b->module, b->error);
    if (!code)
        code = kg_gpu_function(b->module, "bandwidth_read", 0, &b->read, b->error);
    kt__cubin_free(&cubin);
    free(kernel.source);
    free(cubins);
    return code;
}

typedef struct {
    kg_handle function; // null: a copy of from to to
    const void *from;
    void *to;
    unsigned long long count;
    size_t bytes;
    int blocks, threads, shared;
} pass;

static int queue(kg_bench *b, const pass *p)
{
    if (!p->function)
        return kg_gpu_copy(p->to, p->from, p->bytes, b->stream, b->error);
    unsigned long long count = p->count;
    const void *from = p->from;
    void *parameters[] = {&from, &count, &b->kept};
    return kg_gpu_launch(p->function, p->blocks, p->threads, p->shared, b->stream, parameters, b->error);
}

// Bytes per second of the fastest of several; `moved`: bytes per pass.
static int best_rate(kg_bench *b, const pass *p, double moved, double *rate)
{
    kg_handle events[2] = {0};
    int code = KG_OK;
    for (int i = 0; i < 2 && !code; i++)
        code = kg_gpu_event_open(&events[i], b->error);
    for (int i = 0; i < REPEATS && !code; i++) {
        float us = 0;
        if (!(code = kg_gpu_event_record(events[0], b->stream, b->error)) && !(code = queue(b, p)) &&
            !(code = kg_gpu_event_record(events[1], b->stream, b->error)) && !(code = kg_gpu_stream_wait(b->stream, b->error)))
            code = kg_gpu_event_time(events[0], events[1], &us, b->error);
        if (!code && us > 0 && moved / ((double)us * 1e-6) > *rate)
            *rate = moved / ((double)us * 1e-6);
    }
    kg_gpu_event_close(events[0]);
    kg_gpu_event_close(events[1]);
    return code;
}

static int measure(kg_bench *b, void *from, void *to, size_t bytes)
{
    static const int per_sm[] = {2, 4, 8};
    const pass copy = {.from = from, .to = to, .bytes = bytes};
    pass load = {.function = b->read, .from = from, .count = bytes / 16, .threads = THREADS};
    pass bulk = {.from = from, .count = bytes / BULK_CHUNK, .blocks = 2 * b->gpu.multiprocessors, .threads = BULK_THREADS, .shared = BULK_SHARED};
    if (b->gpu.major >= 9)
        KG_TRY(kg_gpu_function(b->module, "bandwidth_bulk", BULK_SHARED, &bulk.function, b->error));
    for (int round = 0, same = 0; round < ROUNDS && same < SAME; round++) {
        const double read = b->read_rate, copied = b->copy_rate;
        for (int i = 0; i < 3; i++) {
            load.blocks = per_sm[i] * b->gpu.multiprocessors;
            KG_TRY(best_rate(b, &load, (double)bytes, &b->read_rate));
        }
        if (bulk.function)
            KG_TRY(best_rate(b, &bulk, (double)bulk.count * BULK_CHUNK, &b->read_rate));
        KG_TRY(best_rate(b, &copy, 2.0 * (double)bytes, &b->copy_rate));
        same = b->read_rate > 1.0005 * read || b->copy_rate > 1.0005 * copied ? 0 : same + 1;
    }
    return KG_OK;
}

int kg_bench_bandwidth(kg_bench *b)
{
    void *from = 0, *to = 0;
    size_t room;
    KG_TRY(load(b));
    KG_TRY(kg_gpu_alloc(256, &b->kept, b->error));
    KG_TRY(kg_gpu_free_bytes(&room, b->error));
    const size_t bytes = (room / 3 < MOST ? room / 3 : MOST) & ~(size_t)0xffff;
    if (bytes < LEAST)
        return kg_fail(KG_MACHINE, b->error, KG_ERROR, "%zu bytes of %s are free, too few to measure anything", room, b->gpu.name);
    int code = kg_gpu_alloc(bytes, &from, b->error);
    if (!code)
        code = kg_gpu_alloc(bytes, &to, b->error);
    if (!code)
        code = measure(b, from, to, bytes);
    kg_gpu_free(from);
    kg_gpu_free(to);
    return code;
}

int kg_bench_flush(kg_bench *b)
{
    const size_t have = b->data_count * 2, bytes = 4 * b->gpu.l2_bytes; // kg_bench_data holds twice the L2 cache at least
    const pass p = {.function = b->read, .from = b->data, .count = have / 16, .blocks = 4 * b->gpu.multiprocessors, .threads = THREADS};
    for (size_t done = 0; done < bytes; done += have)
        KG_TRY(queue(b, &p));
    return KG_OK;
}
