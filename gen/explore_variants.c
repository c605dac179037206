// The variants of an exploration: which, what they cost, how they compare.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "explore.h"
#include "safetensors.h"

// ---- loading ---------------------------------------------------------------------------------------------------------

static bool same_text(const kg_spec *a, const kg_spec *b)
{
    kg_text x = {0}, y = {0};
    kg_spec_json(&x, a);
    kg_spec_json(&y, b);
    const bool same = !x.failed && !y.failed && !strcmp(x.data, y.data);
    kg_text_free(&x);
    kg_text_free(&y);
    return same;
}

static int check_model(const kg_spec *spec, const kg_spec *first, char *error)
{
    const struct {
        const char *name;
        double here, there;
    } facts[] = {
        {"q_heads", spec->model.q_heads, first->model.q_heads},    {"kv_heads", spec->model.kv_heads, first->model.kv_heads},
        {"head_dim", spec->model.head_dim, first->model.head_dim}, {"dtype", spec->model.dtype, first->model.dtype},
        {"scale", spec->model.scale, first->model.scale},
    };
    for (size_t i = 0; i < sizeof facts / sizeof *facts; i++)
        if (facts[i].here != facts[i].there)
            return kg_fail(KG_USER, error, KG_ERROR, "%s: model.%s is not that of %s (%g and %g); variants are compared on the same inputs, so all "
                           "specs need the same q_heads, kv_heads, head_dim, dtype and scale", spec->name, facts[i].name, first->name,
                           facts[i].here, facts[i].there);
    return KG_OK;
}

// Adds a spec that is not there yet; one that is there word for word is left out.
static int add_spec(kg_explore *x, const kg_spec *spec, char *error)
{
    for (int i = 0; i < x->count; i++) {
        const kg_spec *other = &x->variants[i].spec;
        if (strcmp(other->name, spec->name))
            continue;
        return same_text(other, spec) ? KG_OK : kg_fail(KG_USER, error, KG_ERROR, "two different specs are named %s; give each a variant of its own",
                                                        spec->name);
    }
    if (x->count)
        KG_TRY(check_model(spec, &x->variants[0].spec, error));
    kg_variant v = {.spec = *spec};
    const char *why = kg_formats_of(spec, &v.formats);
    if (why)
        return kg_fail(KG_USER, error, KG_ERROR, "%s: %s", spec->name, why);
    v.bytes = kg_formats_token(&v.formats);
    v.bytes_context = kg_explore_bytes(&v.formats, x->context);
    v.times = calloc(KG_BENCH_SHAPES, sizeof *v.times);
    kg_variant *more = realloc(x->variants, (size_t)(x->count + 1) * sizeof *more);
    if (more)
        x->variants = more;
    if (!more || !v.times) {
        free(v.times);
        return kg_fail(KG_MACHINE, error, KG_ERROR, "out of memory");
    }
    x->variants[x->count++] = v;
    return KG_OK;
}

int kg_explore_specs(kg_explore *x, char *const *names, int name_count, const char *dtype, char *error)
{
    for (int i = 0; i < name_count; i++) {
        kg_spec *specs;
        int count, code = kg_spec_load(names[i], &(kg_spec_options){.dtype = dtype}, &specs, &count, error, KG_ERROR);
        for (int s = 0; s < count && !code; s++)
            code = add_spec(x, &specs[s], error);
        free(specs);
        if (code)
            return code;
    }
    return KG_OK;
}

// ---- inputs ----------------------------------------------------------------------------------------------------------

static int add_file(kt__sha256 *sha, const char *path, char *error)
{
    unsigned char buffer[1 << 15];
    size_t got;
    FILE *file = fopen(path, "rb");
    while (file && (got = fread(buffer, 1, sizeof buffer, file)))
        kt__sha256_add(sha, buffer, got);
    const bool whole = file && !ferror(file);
    if (file)
        fclose(file);
    return whole ? KG_OK : kg_fail(KG_MACHINE, error, KG_ERROR, "%s: cannot be read", path);
}

// A build of it: when the file was written tells apart those of one version.
static void add_program(kt__sha256 *sha)
{
    struct stat file = {0};
    char text[128];
    stat("/proc/self/exe", &file);
    const int length = snprintf(text, sizeof text, "kittygen " KT_VERSION ", %lld bytes of %lld.%09ld\n", (long long)file.st_size,
                                (long long)file.st_mtim.tv_sec, file.st_mtim.tv_nsec);
    kt__sha256_add(sha, text, (size_t)length);
}

static const char *separator(const kg_text *list) { return list->size ? "; " : ""; }

// What python/capture.py writes into the metadata: that the model attends in a window where here every query attends to all tokens before it.
static int look_at_file(kg_explore *x, const char *path, char *error)
{
    kg_safetensors *file;
    if (!kg_safetensors_open(path, &file, error, KG_ERROR))
        return KG_USER;
    const char *sliding = kg_safetensors_metadata(file, "sliding");
    if (sliding && strcmp(sliding, "none"))
        kg_text_addf(&x->warning, "%s%s: a sliding window in the model (%s), but here queries see all tokens before them", separator(&x->warning), path,
                     sliding);
    kg_safetensors_close(file);
    return KG_OK;
}

// A calibration is by layer, and so may the ways be in which keys and values are kept.
static int check_layers(kg_explore *x, const kg_variant *v, char *error)
{
    const kg_layer *layers = x->bed.in.layers;
    const int calibrated = *v->spec.calibration;
    bool seen[KT_FORMATS] = {false};
    for (int i = 0; i < x->bed.in.count && (calibrated || v->spec.more_count); i++) {
        if (layers[i].origin >= v->spec.model.layers)
            return kg_fail(KG_USER, error, KG_ERROR, "%s: its %s for %d layers, and layer %d of the --kv files is the model's layer %d", v->spec.name,
                           calibrated ? "calibration is" : "formats are", v->spec.model.layers, i, layers[i].origin);
        for (int j = 0; j < i && calibrated; j++)
            if (layers[j].origin == layers[i].origin)
                return kg_fail(KG_USER, error, KG_ERROR, "%s: its calibration is by layer, and layers %d and %d of the --kv files are both the model's layer %d",
                               v->spec.name, j, i, layers[i].origin);
        seen[v->spec.layer_way[layers[i].origin]] = true;
    }
    for (int way = 0; way < v->formats.count && v->spec.more_count; way++) {
        if (seen[way])
            continue;
        kg_text_addf(&x->warning, "%s%s: the --kv files have none of its layers ", separator(&x->warning), v->spec.variant);
        kg_spec_list_layers(&x->warning, &v->spec, way);
        kg_text_add(&x->warning, ", whose errors are not in the means");
    }
    return KG_OK;
}

// A part of a cache that is to be quantised and never is would show no error.
static int check_sealed(const kg_explore_bed *bed, const kg_variant *v, char *error)
{
    for (int i = 0; i < 2 * v->formats.count; i++) {
        const kt_format *f = &v->formats.formats[i / 2];
        const int part = i % 2, bits[2] = {f->key_bits, f->value_bits}, windows[2] = {f->key_window, f->value_window};
        if (bits[part] < 16 && !kt_sealed(f, part, bed->tokens - 1))
            return kg_fail(KG_USER, error, KG_ERROR, "%s: its first page of %s is sealed after %d tokens, and the --kv files have %d a layer: none would be "
                           "quantised", v->spec.name, part == KT_KEY ? "keys" : "values", f->sink + windows[part] + f->page, bed->tokens);
    }
    return KG_OK;
}

int kg_explore_inputs(kg_explore *x, const char *const *files, int file_count, int layers, char *error)
{
    kt__sha256 inputs;
    KG_TRY(kg_explore_bed_open(&x->variants[0].spec, files, file_count, layers, &x->bed, error));
    // Whatever the errors depend on: this program, what it reads, how much of it, and the spec.
    kt__sha256_begin(&inputs);
    add_program(&inputs);
    for (int i = 0; i < file_count; i++) {
        KG_TRY(add_file(&inputs, files[i], error));
        KG_TRY(look_at_file(x, files[i], error));
    }
    for (int i = 0; i < x->count; i++) {
        kg_variant *v = &x->variants[i];
        KG_TRY(check_sealed(&x->bed, v, error));
        KG_TRY(check_layers(x, v, error));
        kt__sha256 sha = inputs;
        kg_text text = {0};
        unsigned char digest[KT__SHA256_BYTES];
        kg_text_addf(&text, "%d files, %d layers, ", file_count, x->bed.in.count);
        kg_spec_json(&text, &v->spec);
        const bool failed = text.failed;
        if (!failed)
            kt__sha256_add(&sha, text.data, text.size);
        kg_text_free(&text);
        if (failed)
            return kg_fail(KG_MACHINE, error, KG_ERROR, "out of memory");
        kt__sha256_end(&sha, digest);
        kt__sha256_hex(digest, v->digest);
        KG_TRY(kg_explored_open(&x->bed.in, &v->explored, error));
    }
    return x->warning.failed ? kg_fail(KG_MACHINE, error, KG_ERROR, "out of memory") : KG_OK;
}

void kg_explore_close(kg_explore *x)
{
    for (int i = 0; i < x->count; i++) {
        kg_explored_close(&x->variants[i].explored);
        free(x->variants[i].times);
    }
    free(x->variants);
    kg_text_free(&x->warning);
    kg_explore_bed_close(&x->bed);
    *x = (kg_explore){0};
}

// ---- comparing -------------------------------------------------------------------------------------------------------

double kg_explore_bytes(const kg_formats *f, long context)
{
    return (kg_formats_sealed(f, (int)context) + kg_formats_exact(f)) / f->all_layers / (double)context;
}

void kg_variant_sum(const kg_explore *x, kg_variant *v)
{
    const int q_heads = x->bed.in.q_heads, heads = x->bed.in.count * q_heads;
    v->logits_mean = v->out_mean = v->logits_worst = v->out_worst = 0;
    v->worst_layer = v->worst_head = 0;
    for (int i = 0; i < heads; i++) {
        const double logits = v->explored.logits[i], out = v->explored.out[i];
        v->logits_mean += logits / heads;
        v->out_mean += out / heads;
        v->logits_worst = logits > v->logits_worst ? logits : v->logits_worst;
        if (out > v->out_worst) {
            v->out_worst = out;
            v->worst_layer = i / q_heads;
            v->worst_head = i % q_heads;
        }
    }
}

bool kg_on_front(const kg_point *p, int count, int index)
{
    const kg_point at = p[index];
    if (at.x < 0)
        return false;
    for (int i = 0; i < count; i++) {
        const bool no_more = p[i].x >= 0 && p[i].x <= at.x && p[i].y <= at.y, less = p[i].x < at.x || p[i].y < at.y;
        if (no_more && (less || i < index))
            return false;
    }
    return true;
}

void kg_explore_mark(kg_explore *x)
{
    kg_point *points = malloc((size_t)x->count * sizeof *points);
    for (int i = 0; points && i < x->count; i++)
        points[i] = (kg_point){x->variants[i].done ? x->variants[i].bytes_context : -1, x->variants[i].out_mean};
    for (int i = 0; points && i < x->count; i++)
        x->variants[i].front = kg_on_front(points, x->count, i);
    free(points);
}

static int by_cost(const void *a, const void *b, void *context)
{
    const kg_variant *v = context, *x = &v[*(const int *)a], *y = &v[*(const int *)b];
    if (x->bytes_context != y->bytes_context)
        return x->bytes_context < y->bytes_context ? -1 : 1;
    if (x->out_mean != y->out_mean)
        return x->out_mean < y->out_mean ? -1 : 1;
    return x < y ? -1 : x > y;
}

int *kg_explore_order(const kg_explore *x, int *count)
{
    int *order = malloc((size_t)(x->count + 1) * sizeof *order);
    *count = 0;
    for (int i = 0; order && i < x->count; i++)
        if (x->variants[i].done)
            order[(*count)++] = i;
    if (order)
        qsort_r(order, (size_t)*count, sizeof *order, by_cost, x->variants);
    return order;
}

const kg_variant *kg_explore_compare(const kg_explore *x, const int *order, int count, const kg_variant **better, const kg_variant **smaller)
{
    const kg_variant *base = 0;
    *better = *smaller = 0;
    for (int i = 0; i < count; i++)
        if (!strcmp(x->variants[order[i]].spec.variant, x->against))
            base = &x->variants[order[i]];
    for (int i = 0; i < count && base; i++) {
        const kg_variant *v = &x->variants[order[i]];
        if (v->bytes_context <= base->bytes_context && v->out_mean < (*better ? *better : base)->out_mean)
            *better = v;
        if (v->out_mean <= base->out_mean && v->bytes_context < (*smaller ? *smaller : base)->bytes_context)
            *smaller = v;
    }
    return base;
}
