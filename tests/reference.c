#include "reference.h"
#include "suite.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"
#include "emit.h"
#include "temporary.h"

uint64_t ref_random(uint64_t *state)
{
    uint64_t x = *state += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

double ref_uniform(uint64_t *state) { return (double)(ref_random(state) >> 11) * 0x1p-53; }

double ref_normal(uint64_t *state)
{
    double sum = -6;
    for (int i = 0; i < 12; i++)
        sum += ref_uniform(state);
    return sum;
}

// Bits, boost, group and window of keys; bits, group and window of values.
static const struct {
    const char *name;
    int key_bits, boost_bits;
    double fraction;
    kg_score score;
    int key_group, key_window, value_bits, value_group, value_window, sink; // key_group 0: the page
} variants[REF_VARIANTS] = {
    {"kitty", 2, 4, 0.125, KG_SCORE_MAGNITUDE, 0, 0, 2, KG_GROUP_HEAD, 128, 32},
    {"kitty-pro", 2, 4, 0.25, KG_SCORE_MAGNITUDE, 0, 0, 2, KG_GROUP_HEAD, 128, 32},
    {"kivi-2", 2, 2, 0, KG_SCORE_MAGNITUDE, 0, 0, 2, KG_GROUP_HEAD, 128, 0},
    {"kivi-2-sink", 2, 2, 0, KG_SCORE_MAGNITUDE, 0, 0, 2, KG_GROUP_HEAD, 128, 32},
    {"int4", 4, 4, 0, KG_SCORE_MAGNITUDE, 0, 0, 4, KG_GROUP_HEAD, 128, 32},
    {"fp16", 16, 16, 0, KG_SCORE_MAGNITUDE, 0, 0, 16, KG_GROUP_HEAD, 0, 0},
    {"variance", 2, 4, 0.25, KG_SCORE_VARIANCE, 0, 0, 2, KG_GROUP_HEAD, 128, 32},
    {"range", 2, 4, 0.2, KG_SCORE_RANGE, 32, 33, 2, 32, 65, 5},
    {"random", 2, 4, 0.25, KG_SCORE_RANDOM, 0, 0, 2, KG_GROUP_HEAD, 0, 32},
    {"groups", 2, 4, 0.25, KG_SCORE_MAGNITUDE, 32, 0, 4, 32, 128, 32},
    {"boost8", 2, 8, 0.125, KG_SCORE_MAGNITUDE, 0, 96, 2, KG_GROUP_HEAD, 128, 0},
    {"exact-key", 16, 16, 0, KG_SCORE_MAGNITUDE, 0, 0, 2, KG_GROUP_HEAD, 128, 4},
};
const char *const ref_variants[REF_VARIANTS] = {"kitty",    "kitty-pro", "kivi-2", "kivi-2-sink", "int4",   "fp16",
                                                "variance", "range",     "random", "groups",      "boost8", "exact-key"};

bool ref_spec(const char *variant, int head_dim, int group_heads, int dtype, int page, kg_spec *spec)
{
    for (int i = 0; i < REF_VARIANTS; i++) {
        if (strcmp(variants[i].name, variant))
            continue;
        *spec = (kg_spec){.page = page, .sink = variants[i].sink};
        snprintf(spec->name, sizeof spec->name, "test.%s", variant);
        snprintf(spec->model.name, sizeof spec->model.name, "test");
        snprintf(spec->variant, sizeof spec->variant, "%s", variant);
        spec->model.layers = 2;
        spec->model.kv_heads = 2;
        spec->model.q_heads = 2 * group_heads;
        spec->model.head_dim = head_dim;
        spec->model.dtype = dtype;
        spec->key.bits = variants[i].key_bits;
        spec->key.boost_bits = variants[i].boost_bits;
        spec->key.boost_fraction = variants[i].fraction;
        spec->key.score = variants[i].score;
        spec->key.seed = 7;
        spec->key.group = variants[i].key_group ? variants[i].key_group : page;
        spec->key.window = variants[i].key_window;
        spec->value.bits = variants[i].value_bits;
        spec->value.group = variants[i].value_group;
        spec->value.window = variants[i].value_window;
        return true;
    }
    return false;
}

void ref_mix(kg_spec *spec)
{
    spec->more_count = 1;
    spec->layer_way[1] = 1;
    spec->more[0].key = (kg_key_spec){.bits = 16, .boost_bits = 16, .group = spec->page, .window = spec->key.window + 32};
    spec->more[0].value = (kg_value_spec){.bits = 4, .group = 32, .window = spec->value.window + 96};
}

kt_format ref_format(const char *variant, int head_dim, int group_heads, int dtype, int page)
{
    kg_spec spec;
    kt_format format;
    ck_assert_msg(ref_spec(variant, head_dim, group_heads, dtype, page, &spec), "no variant %s", variant);
    const char *why = kg_layout(&spec, &format);
    ck_assert_msg(!why, "%s at head_dim %d: %s", variant, head_dim, why ? why : "");
    return format;
}

void ref_tokens(int dtype, int count, int head_dim, uint64_t seed, unsigned short *out)
{
    uint64_t state = seed;
    double spread[256], offset[256];
    for (int c = 0; c < head_dim; c++) {
        const double kind = ref_uniform(&state);
        spread[c] = kind < 0.1 ? 10 + 20 * ref_uniform(&state) : 0.5 + ref_uniform(&state);
        offset[c] = kind > 0.85 ? 8 * ref_normal(&state) : 0;
    }
    for (int t = 0; t < count; t++)
        for (int c = 0; c < head_dim; c++)
            out[t * head_dim + c] = kt__from_float(dtype, (float)(offset[c] + spread[c] * ref_normal(&state)));
}

void ref_attend(const float *query, const float *key, const float *value, int count, int d, double scale, double *out,
                double *lse)
{
    double *weight = malloc((size_t)count * sizeof *weight), most = -INFINITY, sum = 0;
    ck_assert_ptr_nonnull(weight);
    for (int t = 0; t < count; t++) {
        double dot = 0;
        for (int c = 0; c < d; c++)
            dot += (double)query[c] * (double)key[(size_t)t * d + c];
        weight[t] = scale * dot;
        most = fmax(most, weight[t]);
    }
    for (int c = 0; c < d; c++)
        out[c] = 0;
    for (int t = 0; t < count; t++) {
        const double p = exp(weight[t] - most);
        sum += p;
        for (int c = 0; c < d; c++)
            out[c] += p * (double)value[(size_t)t * d + c];
    }
    for (int c = 0; c < d; c++)
        out[c] /= sum;
    *lse = most + log(sum);
    free(weight);
}

const char *ref_data(void)
{
    static char here[1024];
    const char *folder = getenv("KT_TEST_DATA"), *name = strrchr(__FILE__, '/');
    snprintf(here, sizeof here, "%.*s", name ? (int)(name - __FILE__) : 1, name ? __FILE__ : ".");
    return folder ? folder : here;
}

// ---- worlds ----

void ref_open(ref_world *w, const char *variant, int head_dim, int group_heads, int dtype, int page, int pages,
              int max_sequences, int spare_slabs)
{
    kg_spec spec;
    ck_assert(ref_spec(variant, head_dim, group_heads, dtype, page, &spec));
    ref_open_spec(w, &spec, pages, max_sequences, spare_slabs);
}

void ref_open_spec(ref_world *w, const kg_spec *spec, int pages, int max_sequences, int spare_slabs)
{
    const int dtype = spec->model.dtype, head_dim = spec->model.head_dim;
    char folder[KG_PATH], error[1024];
    *w = (ref_world){.spec = *spec};
    snprintf(folder, sizeof folder, "%s/../templates", ref_data());
    setenv("KT_TEMPLATES", folder, 0);
    ck_assert_ptr_null(kg_layout(spec, &w->format));
    w->kv_heads = w->spec.model.kv_heads;
    w->q_heads = w->spec.model.q_heads;
    ck_assert_msg(!kg_temporary_make(folder, error, sizeof error), "%s", error);
    ck_assert_msg(!kg_emit_package(&w->spec, folder, error, sizeof error), "%s", error);
    OK(kt_open(&(kt_open_args){.size = sizeof(kt_open_args), .package = folder, .device = KT_DEVICE_CPU}, &w->engine));
    kg_temporary_remove(folder);
    uint64_t budget = 0;
    for (int layer = 0; layer < w->spec.model.layers; layer++) {
        uint64_t block, slab;
        OK(kt_layer_bytes(w->engine, layer, &block, &slab));
        ck_assert_uint_eq(block, (uint64_t)ref_format_of(w, layer)->block_bytes);
        budget += (uint64_t)w->kv_heads * ((uint64_t)pages * block + (uint64_t)(max_sequences + spare_slabs) * slab);
    }
    OK(kt_cache_open(w->engine, &(kt_cache_args){.size = sizeof(kt_cache_args), .max_sequences = max_sequences, .spare_slabs = spare_slabs,
                                                 .budget_bytes = budget}, &w->cache));
    const int rows = w->spec.model.layers * REF_STREAM;
    unsigned short **const streams[] = {&w->query, &w->key, &w->value};
    for (int i = 0; i < 3; i++) {
        const int heads = i ? w->kv_heads : w->q_heads;
        *streams[i] = malloc((size_t)rows * (size_t)(heads * head_dim) * 2);
        for (int head = 0; head < heads; head++) { // the head's outlying channels are the same in all tokens
            unsigned short *all = malloc((size_t)rows * (size_t)head_dim * 2);
            ref_tokens(dtype, rows, head_dim, (unsigned)(100 * i + head), all);
            for (int r = 0; r < rows; r++)
                memcpy(*streams[i] + ((size_t)r * heads + head) * head_dim, all + (size_t)r * head_dim, (size_t)head_dim * 2);
            free(all);
        }
    }
}

void ref_close(ref_world *w)
{
    kt_cache_close(w->cache);
    kt_close(w->engine);
    free(w->query);
    free(w->key);
    free(w->value);
}

const kt_format *ref_format_of(const ref_world *w, int layer) { return &w->engine->package.formats[w->spec.layer_way[layer]]; }

int ref_pages(const ref_world *w, int tokens)
{
    int most = 0;
    for (int layer = 0; layer < w->spec.model.layers; layer++)
        most = kt_pages(ref_format_of(w, layer), tokens) > most ? kt_pages(ref_format_of(w, layer), tokens) : most;
    return most;
}

kt_batch *ref_batch(ref_world *w, int slots, int max_tokens, int max_rows)
{
    kt_batch *batch;
    OK(kt_batch_open(w->cache, &(kt_batch_args){sizeof(kt_batch_args), slots, max_tokens, max_rows}, &batch));
    return batch;
}

void ref_join(ref_world *w, ref_sequence *s, int origin)
{
    *s = (ref_sequence){.origin = origin};
    OK(kt_sequence_open(w->cache, &s->handle));
}

void ref_turn(ref_sequence *s, int origin)
{
    while (s->turns && s->turn[s->turns - 1].token >= s->tokens)
        s->turns--;
    ck_assert_int_lt(s->turns, REF_TURNS);
    s->turn[s->turns].token = s->tokens;
    s->turn[s->turns++].origin = origin;
}

int ref_index(const ref_sequence *s, int token)
{
    int origin = s->origin;
    for (int i = 0; i < s->turns && s->turn[i].token <= token; i++)
        origin = s->turn[i].origin;
    return (origin + token) % REF_STREAM;
}

const unsigned short *ref_row(const ref_world *w, kt_part part, int layer, int head, const ref_sequence *s, int token)
{
    const size_t row = (size_t)layer * REF_STREAM + (size_t)ref_index(s, token);
    return (part == KT_KEY ? w->key : w->value) + (row * (size_t)w->kv_heads + (size_t)head) * (size_t)w->format.head_dim;
}

void ref_fill(ref_world *w, kt_batch *batch, ref_sequence *const *sequences, const int *fresh, int count, ref_buffers *b)
{
    *b = (ref_buffers){0};
    for (int i = 0; i < count; i++) { // first out, then in: a sequence may have moved to another slot
        OK(kt_batch_set(batch, i, 0, 0, -1));
        b->rows += sequences[i] ? fresh[i] : 0;
    }
    const int layers = w->spec.model.layers;
    const size_t key = (size_t)(w->kv_heads * w->format.head_dim), query = (size_t)(w->q_heads * w->format.head_dim);
    const size_t rows = (size_t)layers * (size_t)(b->rows ? b->rows : 1);
    b->query = aligned_alloc(64, rows * query * 2);
    b->out = aligned_alloc(64, rows * query * 2);
    b->key = aligned_alloc(64, rows * key * 2);
    b->value = aligned_alloc(64, rows * key * 2);
    b->lse = malloc(rows * (size_t)w->q_heads * sizeof *b->lse);
    ck_assert(b->query && b->out && b->key && b->value && b->lse);
    for (int i = 0, row = 0; i < count; i++) {
        if (!sequences[i])
            continue;
        OK(kt_batch_set(batch, i, sequences[i]->handle, fresh[i], -1));
        for (int j = 0; j < fresh[i]; j++, row++)
            for (int layer = 0; layer < layers; layer++) {
                const size_t to = (size_t)layer * (size_t)b->rows + (size_t)row;
                const size_t from = (size_t)layer * REF_STREAM + (size_t)ref_index(sequences[i], sequences[i]->tokens + j);
                memcpy(b->query + to * query, w->query + from * query, query * 2);
                memcpy(b->key + to * key, w->key + from * key, key * 2);
                memcpy(b->value + to * key, w->value + from * key, key * 2);
            }
    }
}

void ref_buffers_free(ref_buffers *b)
{
    free(b->query);
    free(b->out);
    free(b->key);
    free(b->value);
    free(b->lse);
}

kt_status ref_append(const ref_world *w, kt_batch *batch, int layer, const ref_buffers *b)
{
    const size_t at = (size_t)layer * (size_t)b->rows * (size_t)(w->kv_heads * w->format.head_dim);
    return kt_append(batch, &(kt_append_args){.size = sizeof(kt_append_args), .layer = layer, .key = b->key + at, .value = b->value + at});
}

kt_status ref_attend_layer(const ref_world *w, kt_batch *batch, int layer, const ref_buffers *b)
{
    const size_t row = (size_t)layer * (size_t)b->rows, at = row * (size_t)(w->q_heads * w->format.head_dim);
    return kt_attend(batch, &(kt_attend_args){.size = sizeof(kt_attend_args), .layer = layer, .query = b->query + at,
                                              .out = b->out + at, .lse = b->lse + row * (size_t)w->q_heads});
}

// One row and query head: tokens 0 .. visible - 1 of key and value.
static void check_head(const ref_world *w, const ref_buffers *b, size_t row, int head, const float *key, const float *value, int visible)
{
    const int d = w->format.head_dim;
    const size_t at = (row * (size_t)w->q_heads + (size_t)head) * (size_t)d;
    float query[256];
    double out[256], lse;
    for (int c = 0; c < d; c++)
        query[c] = kt__to_float(w->format.dtype, b->query[at + (size_t)c]);
    ref_attend(query, key, value, visible, d, 1 / sqrt(d), out, &lse);
    for (int c = 0; c < d; c++) {
        const double got = kt__to_float(w->format.dtype, b->out[at + (size_t)c]), unit = w->format.dtype == KT_F16 ? 0x1p-10 : 0x1p-7;
        if (!(fabs(got - out[c]) <= unit * fabs(out[c]) + 1e-5))
            ck_abort_msg("row %zu head %d channel %d: %g, expected %g", row, head, c, got, out[c]);
    }
    const double got = b->lse[row * (size_t)w->q_heads + (size_t)head];
    ck_assert_msg(fabs(got - lse) <= 1e-5 * fabs(lse) + 1e-5, "row %zu head %d: log-sum-exp %g, expected %g", row, head, got, lse);
}

void ref_check(const ref_world *w, ref_sequence *const *sequences, const int *fresh, int count, const ref_buffers *b)
{
    const int d = w->format.head_dim, group = w->format.group_heads;
    for (int layer = 0; layer < w->spec.model.layers; layer++)
        for (int i = 0, row = 0; i < count; row += sequences[i] ? fresh[i] : 0, i++) {
            if (!sequences[i] || !fresh[i])
                continue;
            const int before = sequences[i]->tokens;
            float *kv[2];
            for (int part = 0; part < 2; part++)
                kv[part] = malloc((size_t)(before + fresh[i]) * (size_t)d * sizeof(float));
            for (int head = 0; head < w->kv_heads; head++) {
                for (int part = 0; part < 2; part++) {
                    OK(kt_read(w->cache, sequences[i]->handle, layer, head, (kt_part)part, 0, before, kv[part]));
                    for (int j = 0; j < fresh[i]; j++)
                        for (int c = 0; c < d; c++)
                            kv[part][(size_t)(before + j) * (size_t)d + (size_t)c] =
                                kt__to_float(w->format.dtype, ref_row(w, (kt_part)part, layer, head, sequences[i], before + j)[c]);
                }
                for (int j = 0; j < fresh[i]; j += fresh[i] > 40 && j + 13 < fresh[i] ? 13 : 1)
                    for (int q = 0; q < group; q++)
                        check_head(w, b, (size_t)(layer * b->rows + row + j), head * group + q, kv[0], kv[1], before + j + 1);
            }
            free(kv[0]);
            free(kv[1]);
        }
}

void ref_step(ref_world *w, kt_batch *batch, ref_sequence *const *sequences, const int *fresh, int count, bool check)
{
    ref_buffers b;
    ref_fill(w, batch, sequences, fresh, count, &b);
    OK(kt_step_begin(batch, NULL));
    for (int layer = w->spec.model.layers - 1; layer >= 0; layer--) { // any order will do
        OK(ref_append(w, batch, layer, &b));
        if (check)
            OK(ref_attend_layer(w, batch, layer, &b));
    }
    if (check)
        ref_check(w, sequences, fresh, count, &b);
    OK(kt_step_commit(batch));
    for (int i = 0; i < count; i++)
        if (sequences[i])
            sequences[i]->tokens += fresh[i];
    ref_buffers_free(&b);
}

// What calibration gives a layer and head.
static const unsigned char *ref_table(const ref_world *w, int layer, int head)
{
    const kt__package *p = &w->engine->package;
    return p->tables ? p->tables + kt__layer_tables(p, layer) + (size_t)head * (size_t)p->formats[kt__layer_format(p, layer)].table_bytes : NULL;
}

// Exact tokens [first, last) of a part, as they came.
static void verify_exact(const ref_world *w, const ref_sequence *s, kt_part part, int layer, int head, int first, int last)
{
    const int d = w->format.head_dim;
    if (first >= last)
        return;
    float *out = malloc((size_t)(last - first) * (size_t)d * sizeof *out);
    OK(kt_read(w->cache, s->handle, layer, head, part, first, last - first, out));
    for (int t = first; t < last; t++) {
        const unsigned short *row = ref_row(w, part, layer, head, s, t);
        for (int c = 0; c < d; c++)
            if (out[(size_t)(t - first) * (size_t)d + (size_t)c] != kt__to_float(w->format.dtype, row[c])) // an assertion that holds is slow
                ck_abort_msg("layer %d head %d %s of token %d of %d", layer, head, part == KT_KEY ? "key" : "value", t, s->tokens);
    }
    free(out);
}

// One layer and KV head.
static void verify_head(const ref_world *w, const ref_sequence *s, int layer, int head)
{
    const kt_format *f = ref_format_of(w, layer);
    const int keys = kt_sealed(f, KT_KEY, s->tokens);
    const int values = kt_sealed(f, KT_VALUE, s->tokens);
    unsigned char *expected = malloc((size_t)f->block_bytes), *got = malloc((size_t)f->block_bytes);
    const unsigned short **rows = malloc((size_t)f->page * sizeof *rows);
    for (int page = 0; page < keys; page++) {
        memset(expected, 0, (size_t)f->block_bytes);
        for (int part = 0; part < (page < values ? 2 : 1); part++) {
            for (int t = 0; t < f->page; t++)
                rows[t] = ref_row(w, (kt_part)part, layer, head, s, f->sink + page * f->page + t);
            if (part == KT_KEY)
                kt__cpu_seal_key(f, ref_table(w, layer, head), rows, layer, head, page, expected);
            else
                kt__cpu_seal_value(f, ref_table(w, layer, head), rows, expected);
        }
        OK(kt_read_block(w->cache, s->handle, layer, head, page, got));
        ck_assert_msg(!memcmp(got, expected, (size_t)f->block_bytes), "layer %d head %d page %d of %d tokens differs", layer, head, page, s->tokens);
    }
    for (int part = 0; part < 2; part++) {
        verify_exact(w, s, (kt_part)part, layer, head, 0, s->tokens < f->sink ? s->tokens : f->sink);
        verify_exact(w, s, (kt_part)part, layer, head, f->sink + (part ? values : keys) * f->page, s->tokens);
    }
    free(expected);
    free(got);
    free(rows);
}

void ref_verify(const ref_world *w, const ref_sequence *s)
{
    int tokens;
    OK(kt_sequence_tokens(w->cache, s->handle, &tokens));
    ck_assert_int_eq(tokens, s->tokens);
    for (int layer = 0; layer < w->spec.model.layers; layer++)
        for (int head = 0; head < w->kv_heads; head++)
            verify_head(w, s, layer, head);
}
