// Decode times of the variants, where there is a GPU.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "emit.h"
#include "engine.h"
#include "explore.h"

enum { REPLAYS = 60 };

// What a time depends on beside the shape: the card, the kernels, the table that chooses among them, and how many KV heads there are.
static int describe(const kg_explore *x, const kg_spec *spec, kg_text *text, char *error)
{
    kg_package package;
    const int code = kg_package_make(spec, 0, &package, error, KG_ERROR);
    if (!code) {
        kg_text_addf(text, "attend on %s\n", x->device);
        kg_manifest(&package, text);
    }
    kg_package_free(&package);
    return code ? code : text->failed ? kg_fail(KG_MACHINE, error, KG_ERROR, "out of memory") : KG_OK;
}

static void time_digest(const kg_text *text, kg_shape shape, char digest[KT__SHA256_HEX])
{
    char line[64];
    unsigned char bytes[KT__SHA256_BYTES];
    kt__sha256 sha;
    kt__sha256_begin(&sha);
    kt__sha256_add(&sha, text->data, text->size);
    kt__sha256_add(&sha, line, (size_t)snprintf(line, sizeof line, "%d x %d\n", shape.sequences, shape.tokens));
    kt__sha256_end(&sha, bytes);
    kt__sha256_hex(bytes, digest);
}

static int measure(kg_bench *b, const kg_spec *spec, kt_engine *engine, kg_shape shape, kg_time *time)
{
    int *lengths = malloc((size_t)shape.sequences * sizeof *lengths);
    kg_bed bed;
    double unused;
    if (!lengths)
        return kg_fail(KG_MACHINE, b->error, KG_ERROR, "out of memory");
    for (int i = 0; i < shape.sequences; i++)
        lengths[i] = shape.tokens;
    int code = kg_bed_open(b, spec, engine, lengths, shape.sequences, 0, &bed);
    if (!code && bed.layers)
        code = kg_bench_attend(&bed, time, &unused);
    else if (!code) {
        kg_progress_clear(&b->progress);
        fprintf(stderr, "kittygen explore: %s, %d x %d: no time: too little memory for one layer\n", spec->name, shape.sequences, shape.tokens);
    }
    kg_bed_close(&bed);
    free(lengths);
    return code;
}

// The layers that are kept one way, at all shapes; their kernels are compiled only if a time is missing. Adds their share of the mean layer's
// time, which is 0 where one has none.
static int time_way(kg_explore *x, kg_bench *b, kg_variant *v, int way, const volatile sig_atomic_t *stop, int *wrong)
{
    const kg_spec one = kg_spec_way(&v->spec, way);
    const double share = (double)v->formats.layers[way] / v->formats.all_layers;
    kt_engine *engine = 0;
    kg_text text = {0};
    int code = describe(x, &one, &text, b->error);
    for (int i = 0; i < x->shape_count && !code && !*stop; i++) {
        char digest[KT__SHA256_HEX];
        kg_time time = {0}, *sum = &v->times[i];
        time_digest(&text, x->shapes[i], digest);
        if (!kg_explore_load_time(digest, &time)) {
            if (!engine)
                code = kg_engine_open(&one, KT_DEVICE_CUDA, &engine, b->error, KG_ERROR);
            if (!code)
                code = measure(b, &one, engine, x->shapes[i], &time);
            if (!code && time.us > 0)
                kg_explore_save_time(digest, &time);
        }
        if (code == KG_FAILED) {
            kg_progress_clear(&b->progress);
            fprintf(stderr, "kittygen explore: %s\n", b->error);
            ++*wrong;
            time = (kg_time){0};
            code = KG_OK;
        }
        *sum = time.us > 0 && (!way || sum->us > 0)
                   ? (kg_time){sum->us + share * time.us, sum->low + share * time.low, sum->high + share * time.high} : (kg_time){0};
        kg_progress_to(&b->progress, ++b->done);
    }
    kt_close(engine);
    kg_text_free(&text);
    return code;
}

int kg_explore_find_gpu(kg_explore *x, char *error)
{
    kg_gpu gpu;
    KG_TRY(kg_gpu_hold(error));
    KG_TRY(kg_gpu_query(&gpu, error));
    snprintf(x->device, sizeof x->device, "%s", gpu.name);
    return KG_OK;
}

int kg_explore_times(kg_explore *x, const volatile sig_atomic_t *stop, int *wrong, char *error)
{
    kg_bench *b = calloc(1, sizeof *b);
    int count, *order = kg_explore_order(x, &count), code = KG_OK;
    if (!b || !order)
        code = kg_fail(KG_MACHINE, error, KG_ERROR, "out of memory");
    if (!code) {
        b->replays = REPLAYS;
        b->brief = true;
        if (!(code = kg_gpu_query(&b->gpu, b->error)))
            code = kg_gpu_stream_open(&b->stream, b->error);
        long ways = 0;
        for (int i = 0; i < count; i++)
            ways += x->variants[order[i]].formats.count;
        kg_progress_begin(&b->progress, "timing", ways * x->shape_count);
        for (int i = 0; i < count; i++) {
            kg_variant *v = &x->variants[order[i]];
            for (int way = 0; way < v->formats.count && !code && !*stop; way++)
                code = time_way(x, b, v, way, stop, wrong);
            if (*stop) // a mean of some layers is none
                for (int s = 0; s < x->shape_count && v->formats.count > 1; s++)
                    v->times[s] = (kg_time){0};
        }
        kg_progress_end(&b->progress);
        kg_gpu_free(b->data);
        kg_gpu_stream_close(b->stream);
        if (code)
            kg_fail(code, error, KG_ERROR, "%s", b->error);
    }
    free(order);
    free(b);
    return code;
}
