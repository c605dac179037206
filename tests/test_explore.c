// kittygen explore: its errors against attention over a cache as it is at every step, its fronts, and the command from outside.
#include <cjson/cJSON.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine.h"
#include "explore.h"
#include "temporary.h"
#include "suite.h"

enum { TOKENS = 416, LAYERS = 2, Q_HEADS = 4, KV_HEADS = 2, DIM = 64 };

static char folder[KG_PATH], kv[KG_PATH + 32], output[1 << 20];

static const char *in_folder(const char *name)
{
    static char path[KG_PATH + 64];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void write_text(const char *name, const char *text)
{
    char error[KG_ERROR];
    ck_assert_msg(!kg_file_write(in_folder(name), text, strlen(text), 1, error, sizeof error), "%s", error);
}

// Random layers as captured ones lie in a file; `seed` makes others of them.
static void write_kv(const char *path, uint64_t seed, int tokens)
{
    static const char parts[] = "qkv";
    kg_text header = {0};
    long at = 0;
    FILE *file = fopen(path, "wb");
    ck_assert_ptr_nonnull(file);
    kg_text_add(&header, "{\"__metadata__\": {\"scale\": \"0.2\", \"layers\": \"2,0\", \"sliding\": \"layer 1: window <512>\"}");
    for (int layer = 0; layer < LAYERS; layer++)
        for (int p = 0; p < 3; p++) {
            const int heads = p ? KV_HEADS : Q_HEADS;
            const long bytes = 4L * tokens * heads * DIM;
            kg_text_addf(&header, ", \"%c.%d\": {\"dtype\": \"F32\", \"shape\": [%d, %d, %d], \"data_offsets\": [%ld, %ld]}", parts[p], layer, tokens, heads,
                         DIM, at, at + bytes);
            at += bytes;
        }
    kg_text_add(&header, "}");
    const uint64_t size = header.size;
    fwrite(&size, 8, 1, file);
    fwrite(header.data, 1, header.size, file);
    kg_text_free(&header);
    float *drawn = malloc(sizeof *drawn * (size_t)tokens * DIM), *all = malloc(sizeof *all * (size_t)tokens * Q_HEADS * DIM);
    for (int layer = 0; layer < LAYERS; layer++)
        for (int p = 0; p < 3; p++) {
            const int heads = p ? KV_HEADS : Q_HEADS;
            for (int h = 0; h < heads; h++) {
                if (p == 1)
                    kg_random_keys(KG_KEYS_OUTLIER, seed, layer, h, tokens, DIM, drawn);
                else
                    kg_random_rows(seed, p, layer, h, tokens, DIM, drawn);
                for (int t = 0; t < tokens; t++)
                    memcpy(all + ((long)t * heads + h) * DIM, drawn + (long)t * DIM, DIM * sizeof *drawn);
            }
            fwrite(all, sizeof *all, (size_t)tokens * (size_t)heads * DIM, file);
        }
    ck_assert_int_eq(fclose(file), 0);
    free(drawn);
    free(all);
}

#define MODEL MODEL_OF("3")
#define MODEL_OF(layers) "local model = { name = 'm', layers = " layers ", q_heads = 4, kv_heads = 2, head_dim = 64, dtype = 'fp16' }\n"
static const char sweep[] = MODEL
    "local pro = require 'variants.kitty_pro'\n"
    "return {\n"
    "    pro { model = model, page = 64, value = { window = 64 } },\n"
    "    pro { model = model, variant = 'ranged', page = 64, key = { boost = { score = 'range' }, window = 32 }, value = { window = 32, group = 32 } },\n"
    "    require 'variants.fp16' { model = model },\n"
    "}\n";

static const char turned[] = MODEL
    "return {\n"
    "    require 'variants.kitty_pro' { model = model, page = 64, key = { rotation = 'hadamard', range = 'least_squares' },\n"
    "        value = { window = 64, rotation = 'hadamard' } },\n"
    "    require 'variants.kitty_pro' { model = model, variant = 'values', page = 64, value = { window = 64, rotation = 'hadamard', range = 'least_squares' } },\n"
    "    kitty { model = model, variant = 'across', page = 64, key = { bits = 3, along = 'channels', group = 32 },\n"
    "        value = { bits = 1, along = 'tokens', window = 64 } },\n"
    "}\n";

static void setup(void)
{
    char error[KG_ERROR];
    ck_assert_msg(!kg_temporary_make(folder, error, sizeof error), "%s", error);
    snprintf(kv, sizeof kv, "%s/kv.safetensors", folder);
    write_kv(kv, 1, TOKENS);
    write_text("sweep.lua", sweep);
    write_text("turned.lua", turned);
}

static void teardown(void)
{
    char command[KG_PATH + 32];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    ck_assert_int_eq(system(command), 0);
}

// ---- errors ----------------------------------------------------------------------------------------------------------

static void open_explore(kg_explore *x, const char *spec)
{
    char error[KG_ERROR] = "";
    const char *const files[] = {kv};
    char *const specs[] = {(char *)in_folder(spec)};
    *x = (kg_explore){.context = 8192, .against = "kitty-pro"};
    ck_assert_msg(!kg_explore_specs(x, specs, 1, 0, error), "%s", error);
    ck_assert_msg(!kg_explore_inputs(x, files, 1, 0, error), "%s", error);
}

// Takes the tokens one by one through a cache, as decoding does; at every sampled query attends over what kt_read gives just then.
static void decode(const kg_explore *x, const kg_spec *spec, kg_error *out)
{
    const kg_explore_bed *b = &x->bed;
    const kg_inputs *in = &b->in;
    enum { group = Q_HEADS / KV_HEADS };
    char error[KG_ERROR];
    kt_engine *engine = 0;
    kt_cache *cache;
    kt_batch *batch;
    kt_sequence sequence;
    ck_assert_msg(!kg_engine_open(spec, KT_DEVICE_CPU, &engine, error, sizeof error), "%s", error);
    OK(kt_cache_open(engine, &(kt_cache_args){.size = sizeof(kt_cache_args), .budget_bytes = 64 << 20, .layers = LAYERS, .kv_heads = KV_HEADS,
                                              .max_sequences = 1}, &cache));
    OK(kt_sequence_open(cache, &sequence));
    OK(kt_batch_open(cache, &(kt_batch_args){.size = sizeof(kt_batch_args), .slots = 1, .max_tokens = TOKENS, .max_rows = 1}, &batch));
    float *read[2] = {malloc(sizeof(float) * TOKENS * DIM), malloc(sizeof(float) * TOKENS * DIM)}, query[group * DIM];
    double expected[group * DIM], got[group * DIM], *scratch = malloc(sizeof *scratch * group * (TOKENS + 2 * DIM));
    for (int t = 0, next = 0; t < TOKENS; t++) {
        for (int layer = 0; layer < LAYERS && next < b->positions && b->at[next] == t; layer++)
            for (int head = 0; head < KV_HEADS; head++) {
                const kg_rows exact[2] = {kg_inputs_keys(in, layer, head, 0), kg_inputs_values(in, layer, head, 0)};
                for (int part = 0; part < 2; part++) {
                    OK(kt_read(cache, sequence, layer, head, (kt_part)part, 0, t, read[part]));
                    memcpy(read[part] + (long)t * DIM, exact[part].base + (long)t * DIM, DIM * sizeof(float));
                }
                for (int i = 0; i < group * DIM; i++)
                    query[i] = kg_to_float(in->dtype, in->layers[layer].query[((long)t * Q_HEADS + head * group) * DIM + i]);
                kg_exact_attend(exact[0], exact[1], DIM, query, group, t + 1, in->layers[layer].scale, expected, scratch);
                kg_exact_attend((kg_rows){read[0], 0, TOKENS}, (kg_rows){read[1], 0, TOKENS}, DIM, query, group, t + 1, in->layers[layer].scale, got, scratch);
                for (int q = 0; q < group; q++)
                    kg_error_add(&out[layer * Q_HEADS + head * group + q], expected + q * DIM, got + q * DIM, DIM);
            }
        next += next < b->positions && b->at[next] == t;
        OK(kt_batch_set(batch, 0, sequence, 1, -1));
        OK(kt_step_begin(batch, 0));
        for (int layer = 0; layer < LAYERS; layer++)
            OK(kt_append(batch, &(kt_append_args){.size = sizeof(kt_append_args), .layer = layer, .key = in->layers[layer].key + (long)t * KV_HEADS * DIM,
                                                  .value = in->layers[layer].value + (long)t * KV_HEADS * DIM}));
        OK(kt_step_commit(batch));
    }
    kt_batch_close(batch);
    kt_cache_close(cache);
    kt_close(engine);
    free(read[0]);
    free(read[1]);
    free(scratch);
}

START_TEST(errors_are_those_of_decoding)
{
    kg_explore x;
    char error[KG_ERROR];
    open_explore(&x, _i ? "turned.lua" : "sweep.lua");
    ck_assert_int_eq(x.count, 3);
    ck_assert_int_eq(x.bed.positions, KG_EXPLORE_QUERIES);
    ck_assert_int_eq(x.bed.at[KG_EXPLORE_QUERIES - 1], TOKENS - 1); // its own step completes a page, which it does not see yet
    for (int i = 0; i < x.count; i++) {
        kg_variant *v = &x.variants[i];
        kg_error out[LAYERS * Q_HEADS] = {0};
        double mean = 0, worst = 0;
        ck_assert_msg(!kg_explore_measure(&x.bed, &v->spec, 0, &v->explored, error), "%s", error);
        kg_variant_sum(&x, v);
        decode(&x, &v->spec, out);
        for (int h = 0; h < LAYERS * Q_HEADS; h++) {
            const double expected = kg_error_relative(out[h]);
            ck_assert_double_le(fabs(v->explored.out[h] - expected), 1e-9 * expected);
            ck_assert(i == 2 && !_i ? v->explored.out[h] == 0 && v->explored.logits[h] == 0 : v->explored.out[h] > 0.01 && v->explored.logits[h] > 0.01);
            mean += expected / (LAYERS * Q_HEADS);
            worst = expected > worst ? expected : worst;
        }
        ck_assert_double_eq_tol(v->out_mean, mean, 1e-9);
        ck_assert_double_eq_tol(v->out_worst, worst, 1e-9);
        ck_assert_double_eq_tol(v->explored.out[v->worst_layer * Q_HEADS + v->worst_head], v->out_worst, 1e-12);
    }
    ck_assert_double_ne(x.variants[0].out_mean, x.variants[1].out_mean);
    kg_explore_close(&x);
}
END_TEST

START_TEST(logits_channels_and_codes)
{
    kg_explore x;
    char error[KG_ERROR];
    open_explore(&x, "sweep.lua");
    kg_variant *v = &x.variants[0];
    const kg_inputs *in = &x.bed.in;
    ck_assert_msg(!kg_explore_measure(&x.bed, &v->spec, 0, &v->explored, error), "%s", error);
    // One head's logits again, from what a cache of all tokens decodes to: pages sealed before the query, all else exact.
    kt_engine *engine = 0;
    kt_cache *cache;
    kt_batch *batch;
    kt_sequence sequence;
    ck_assert_msg(!kg_engine_open(&v->spec, KT_DEVICE_CPU, &engine, error, sizeof error), "%s", error);
    OK(kt_cache_open(engine, &(kt_cache_args){.size = sizeof(kt_cache_args), .budget_bytes = 64 << 20, .layers = LAYERS, .kv_heads = KV_HEADS,
                                              .max_sequences = 1, .spare_slabs = 1}, &cache));
    OK(kt_sequence_open(cache, &sequence));
    OK(kt_batch_open(cache, &(kt_batch_args){.size = sizeof(kt_batch_args), .slots = 1, .max_tokens = TOKENS, .max_rows = TOKENS}, &batch));
    OK(kt_batch_set(batch, 0, sequence, TOKENS, -1));
    OK(kt_step_begin(batch, 0));
    for (int layer = 0; layer < LAYERS; layer++)
        OK(kt_append(batch, &(kt_append_args){.size = sizeof(kt_append_args), .layer = layer, .key = in->layers[layer].key, .value = in->layers[layer].value}));
    OK(kt_step_commit(batch));
    float *keys = malloc(sizeof *keys * TOKENS * DIM);
    const int layer = 1, q = 3, head = 1;
    OK(kt_read(cache, sequence, layer, head, KT_KEY, 0, TOKENS, keys));
    const kg_rows exact = kg_inputs_keys(in, layer, head, 0);
    kg_error logits = {0};
    for (int i = 0; i < x.bed.positions; i++) {
        const int end = 32 + (x.bed.at[i] - 32) / 64 * 64;
        for (int t = 0; t <= x.bed.at[i]; t++) {
            double a = 0, b = 0;
            for (int c = 0; c < DIM; c++) {
                const double element = (double)kg_to_float(in->dtype, in->layers[layer].query[((long)x.bed.at[i] * Q_HEADS + q) * DIM + c]);
                a += element * (double)exact.base[(long)t * DIM + c];
                b += element * (double)(t >= 32 && t < end ? keys : exact.base)[(long)t * DIM + c];
            }
            logits.difference += (a - b) * (a - b);
            logits.reference += a * a;
        }
    }
    ck_assert_double_eq_tol(v->explored.logits[layer * Q_HEADS + q], kg_error_relative(logits), 1e-9);
    free(keys);
    kt_batch_close(batch);
    kt_cache_close(cache);
    kt_close(engine);

    // A quarter of the channels of every head is boosted, outlier channels (one in 16) always. 6 pages of keys, 5 of values.
    for (int h = 0; h < LAYERS * KV_HEADS; h++) {
        double sum = 0;
        int always = 0;
        for (int c = 0; c < DIM; c++) {
            const double share = v->explored.boosted[h * DIM + c];
            ck_assert(share >= 0 && share <= 1 + 1e-9);
            sum += share;
            always += share > 1 - 1e-9;
        }
        ck_assert_double_eq_tol(sum, DIM / 4, 1e-6);
        ck_assert_int_ge(always, DIM / 16);
    }
    const double pages[KG_CODES] = {6 * 0.75, 6 * 0.25, 5};
    const int bars[KG_CODES] = {4, 16, 4};
    for (int k = 0; k < KG_CODES; k++) {
        double sum = 0;
        for (int i = 0; i < KG_EXPLORE_BARS; i++) {
            ck_assert(i < bars[k] ? v->explored.codes[k][i] > 0 : v->explored.codes[k][i] == 0);
            sum += v->explored.codes[k][i];
        }
        ck_assert_double_eq_tol(sum, pages[k] * 64 * DIM * LAYERS * KV_HEADS, 0.5);
    }
    kg_explore_close(&x);
}
END_TEST

// Of the model's three layers the file has the last and the first: each must be sealed with its own list of channels.
START_TEST(calibrated)
{
    enum { MODEL_LAYERS = 3, LISTED = 16 };
    static const char header[] = "{\"key.boosted\": {\"dtype\": \"U8\", \"shape\": [3, 2, 16], \"data_offsets\": [0, 96]}}";
    const uint64_t size = sizeof header - 1;
    FILE *file = fopen(in_folder("lists.safetensors"), "wb");
    fwrite(&size, 8, 1, file);
    fwrite(header, 1, size, file);
    for (int i = 0; i < MODEL_LAYERS * KV_HEADS * LISTED; i++) // layer l, head h: every third or so from 2 l + h on
        fputc((2 * (i / LISTED / KV_HEADS) + i / LISTED % KV_HEADS + 3 * (i % LISTED)), file);
    ck_assert_int_eq(fclose(file), 0);
    static const char text[] = "local model = { name = 'm', layers = %d, q_heads = 4, kv_heads = 2, head_dim = 64, dtype = 'fp16' }\nreturn require "
                               "'variants.kitty_pro' { model = model, page = 64, calibration = 'lists.safetensors', key = { boost = { score = 'static' } } }\n";
    char spec[1024], error[KG_ERROR];
    kg_explore x;
    snprintf(spec, sizeof spec, text, MODEL_LAYERS);
    write_text("static.lua", spec);
    open_explore(&x, "static.lua");
    kg_variant *v = &x.variants[0];
    ck_assert_msg(!kg_explore_measure(&x.bed, &v->spec, 0, &v->explored, error), "%s", error);
    ck_assert(x.bed.in.layers[0].origin == 2 && x.bed.in.layers[1].origin == 0);
    for (int layer = 0; layer < LAYERS; layer++)
        for (int head = 0; head < KV_HEADS; head++)
            for (int c = 0; c < DIM; c++) {
                const int from = c - 2 * x.bed.in.layers[layer].origin - head;
                const bool listed = from >= 0 && from % 3 == 0 && from / 3 < LISTED;
                ck_assert_msg(fabs(v->explored.boosted[(layer * KV_HEADS + head) * DIM + c] - listed) < 1e-9, "layer %d, head %d, channel %d", layer, head, c);
            }
    // Each layer has its own tokens: the errors are not one layer's twice.
    for (int h = 0; h < Q_HEADS; h++)
        ck_assert(v->explored.out[h] > 0.01 && v->explored.out[Q_HEADS + h] > 0.01 && v->explored.out[h] < 1 && v->explored.out[Q_HEADS + h] < 1);

    const char *const files[] = {kv};
    kg_explore_close(&x);
    snprintf(spec, sizeof spec, "%s", MODEL_OF("2") "return require 'variants.kitty_pro' { model = model, variant = 'two', page = 64, "
                                      "key = { boost = { score = 'static' } }, calibration = 'two.safetensors' }\n");
    write_text("two.lua", spec);
    char command[3 * KG_PATH];
    snprintf(command, sizeof command, "cd '%s' && sed 's/\\[3, 2, 16\\]/[2, 2, 16]/; s/96/64/' lists.safetensors | head -c %zu > two.safetensors", folder,
             8 + sizeof header - 1 + 64);
    ck_assert_int_eq(system(command), 0);
    char two[2 * KG_PATH];
    snprintf(two, sizeof two, "%s", in_folder("two.lua"));
    char *const specs[] = {(char *)in_folder("static.lua"), two};
    x = (kg_explore){.context = 8192, .against = "kitty-pro"};
    ck_assert_msg(!kg_explore_specs(&x, specs, 2, 0, error), "%s", error);
    ck_assert_int_eq(kg_explore_inputs(&x, files, 1, 0, error), KG_USER);
    ck_assert_str_eq(error, "m.two: its calibration is for 2 layers, and layer 0 of the --kv files is the model's layer 2");
    kg_explore_close(&x);
    const char *const twice[] = {kv, kv};
    char *const three[] = {(char *)in_folder("static.lua")};
    x = (kg_explore){.context = 8192, .against = "kitty-pro"};
    ck_assert_msg(!kg_explore_specs(&x, three, 1, 0, error), "%s", error);
    ck_assert_int_eq(kg_explore_inputs(&x, twice, 2, 0, error), KG_USER);
    ck_assert_str_eq(error, "m.kitty-pro: its calibration is by layer, and layers 0 and 2 of the --kv files are both the model's layer 2");
    kg_explore_close(&x);
}
END_TEST

// Of the model's three layers the file has the last and the first: each must be kept as that one is, and count so in the means.
START_TEST(by_layer)
{
    static const char text[] = "local model = { name = 'm', layers = 3, q_heads = 4, kv_heads = 2, head_dim = 64, dtype = 'fp16' }\n"
                               "local pro, other = require 'variants.kitty_pro', { key = { bits = 16 }, value = { bits = 4, window = 64 } }\n"
                               "local function of(variant, layers)\n"
                               "    return pro { model = model, variant = variant, page = 64, value = { window = 32 }, layers = layers }\n"
                               "end\n"
                               "return { of('mixed', { { first = 2, key = other.key, value = other.value } }), of('plain'),\n"
                               "         kitty { model = model, variant = 'other', page = 64, sink = 32, key = other.key, value = other.value },\n"
                               "         of('unseen', { { first = 1, value = { bits = 3 } } }) }\n";
    char error[KG_ERROR];
    kg_explore x;
    write_text("layers.lua", text);
    open_explore(&x, "layers.lua");
    ck_assert_msg(strstr(x.warning.data, "unseen: the --kv files have none of its layers 1, whose errors are not in the means"), "%s", x.warning.data);
    kg_variant *v = x.variants;
    for (int i = 0; i < 3; i++) {
        ck_assert_msg(!kg_explore_measure(&x.bed, &v[i].spec, 0, &v[i].explored, error), "%s", error);
        kg_variant_sum(&x, &v[i]);
    }
    for (int layer = 0; layer < LAYERS; layer++) {
        const kg_explored *alone = &v[layer ? 1 : 2].explored;
        for (int h = layer * Q_HEADS; h < (layer + 1) * Q_HEADS; h++) {
            ck_assert_double_eq(v->explored.out[h], alone->out[h]);
            ck_assert_double_eq(v->explored.logits[h], alone->logits[h]);
        }
        for (int c = layer * KV_HEADS * DIM; c < (layer + 1) * KV_HEADS * DIM; c++)
            ck_assert(v->explored.boosted[c] == alone->boosted[c] && (layer || !alone->boosted[c]));
    }
    for (int i = 0; i < 4; i++) // codes are those of layers as the spec itself says: half of the plain one's
        ck_assert(v->explored.codes[KG_CODES_KEY][i] > 0 && v->explored.codes[KG_CODES_KEY][i] < v[1].explored.codes[KG_CODES_KEY][i]);
    ck_assert_double_eq_tol(v->out_mean, (v[1].out_mean + v[2].out_mean) / 2, 0.3 * v->out_mean);
    ck_assert_double_eq_tol(v->bytes, (2 * v[1].bytes + v[2].bytes) / 3, 1e-9);
    ck_assert_double_gt(v->bytes_context, v[1].bytes_context);
    kg_explore_close(&x);

    char *const specs[] = {(char *)in_folder("layers.lua")};
    const char *const files[] = {kv};
    write_text("layers.lua", MODEL "local pro = require 'variants.kitty_pro'\nlocal of3 = pro { model = model, page = 64 }\nmodel.layers = 2\n"
                             "return { of3, pro { model = model, variant = 'two', page = 64, layers = { { first = 0, key = { bits = 16 } } } } }\n");
    x = (kg_explore){.context = 8192, .against = "kitty-pro"};
    ck_assert_msg(!kg_explore_specs(&x, specs, 1, 0, error), "%s", error);
    ck_assert_int_eq(kg_explore_inputs(&x, files, 1, 0, error), KG_USER);
    ck_assert_str_eq(error, "m.two: its formats are for 2 layers, and layer 0 of the --kv files is the model's layer 2");
    kg_explore_close(&x);
}
END_TEST

// Of a sweep by layer every variant has its note, however many there are.
START_TEST(notes_of_many)
{
    enum { MANY = 40 };
    kg_explore x;
    write_text("many.lua", "local model = { name = 'm', layers = 3, q_heads = 4, kv_heads = 2, head_dim = 64, dtype = 'fp16' }\n"
                           "local many = {}\nfor i = 1, 40 do\n    many[i] = require 'variants.kitty_pro' { model = model, variant = 'unseen-' .. i, page = 64,\n"
                           "        value = { window = 64 }, layers = { { first = 1, value = { bits = 3 } } } }\nend\nreturn many\n");
    open_explore(&x, "many.lua");
    ck_assert_ptr_nonnull(strstr(x.warning.data, "kv.safetensors: a sliding window in the model"));
    for (int i = 1; i <= MANY; i++) {
        char note[128];
        snprintf(note, sizeof note, "; unseen-%d: the --kv files have none of its layers 1, whose errors are not in the means", i);
        ck_assert_msg(strstr(x.warning.data, note), "no note \"%s\" in: %s", note, x.warning.data);
    }
    kg_explore_close(&x);
}
END_TEST

START_TEST(codes_of_other_kinds)
{
    kg_explore x;
    char error[KG_ERROR];
    open_explore(&x, "turned.lua");
    for (int i = 0; i < 2; i++) {
        kg_variant *v = &x.variants[i];
        ck_assert_msg(!kg_explore_measure(&x.bed, &v->spec, 0, &v->explored, error), "%s", error);
        for (int k = 0; k < KG_CODES; k++)
            for (int b = 0; b < 4; b++)
                ck_assert(i && k != KG_CODES_VALUE ? v->explored.codes[k][b] > 0 : v->explored.codes[k][b] == 0);
    }
    // Groups the other way: 6 pages of keys at 3 bits, 5 of values at 1.
    kg_variant *v = &x.variants[2];
    ck_assert_msg(!kg_explore_measure(&x.bed, &v->spec, 0, &v->explored, error), "%s", error);
    double sums[KG_CODES] = {0};
    for (int k = 0; k < KG_CODES; k++)
        for (int b = 0; b < KG_EXPLORE_BARS; b++) {
            ck_assert(b < (k == KG_CODES_KEY ? 8 : k == KG_CODES_VALUE ? 2 : 0) ? v->explored.codes[k][b] > 0 : v->explored.codes[k][b] == 0);
            sums[k] += v->explored.codes[k][b];
        }
    ck_assert_double_eq(sums[KG_CODES_KEY], 6.0 * 64 * DIM * LAYERS * KV_HEADS);
    ck_assert_double_eq(sums[KG_CODES_VALUE], 5.0 * 64 * DIM * LAYERS * KV_HEADS);
    kg_explore_close(&x);
}
END_TEST

// ---- comparing -------------------------------------------------------------------------------------------------------

START_TEST(fronts)
{
    //                          0       1       2          3       4       5        6       7
    const kg_point points[] = {{1, 9}, {2, 5}, {2, 5}, {-1, 0}, {2, 4}, {3, 4}, {4, 0}, {5, 0}};
    const bool on[] = {true, false, false, false, true, false, true, false};
    for (int i = 0; i < 8; i++)
        ck_assert_int_eq(kg_on_front(points, 8, i), on[i]);
    const kg_point twice[] = {{2, 5}, {2, 5}};
    ck_assert(kg_on_front(twice, 2, 0) && !kg_on_front(twice, 2, 1));
}
END_TEST

START_TEST(comparisons)
{
    kg_explore x;
    int count;
    const kg_variant *better, *smaller;
    open_explore(&x, "sweep.lua");
    // 420 tokens, pages of 64: (420 - 32) / 64 = 6 pages of keys; 128 bytes a token exact, of 2 * 32 sinks, 64 and 128 of the rings.
    const kt_format *f = x.variants[0].formats.formats;
    ck_assert_double_eq_tol(kg_explore_bytes(&x.variants[0].formats, 420), (6.0 * f->block_bytes + 128 * (64 + 64 + 128)) / 420, 1e-9);
    const double bytes[] = {100, 90, 200}, errors[] = {0.5, 0.6, 0.4};
    for (int i = 0; i < 3; i++) {
        x.variants[i].done = true;
        x.variants[i].bytes_context = bytes[i];
        x.variants[i].out_mean = errors[i];
    }
    int *order = kg_explore_order(&x, &count);
    ck_assert_int_eq(count, 3);
    ck_assert(order[0] == 1 && order[1] == 0 && order[2] == 2);
    ck_assert_ptr_eq(kg_explore_compare(&x, order, count, &better, &smaller), &x.variants[0]);
    ck_assert(!better && !smaller);
    x.variants[1].out_mean = 0.5; // as much error, fewer bytes
    kg_explore_compare(&x, order, count, &better, &smaller);
    ck_assert(!better && smaller == &x.variants[1]);
    x.variants[1].out_mean = 0.4;
    kg_explore_compare(&x, order, count, &better, &smaller);
    ck_assert(better == &x.variants[1] && smaller == &x.variants[1]);
    x.against = "nothing";
    ck_assert_ptr_null(kg_explore_compare(&x, order, count, &better, &smaller));
    free(order);
    x.variants[0].done = false;
    order = kg_explore_order(&x, &count);
    ck_assert_int_eq(count, 2);
    free(order);
    kg_explore_close(&x);
}
END_TEST

// ---- the command -----------------------------------------------------------------------------------------------------

// $D stands for the folder; standard error too if `all`.
static int explore(const char *settings, const char *arguments, bool all)
{
    char command[4 * KG_PATH];
    int at = snprintf(command, sizeof command, "CUDA_VISIBLE_DEVICES= KT_CACHE_DIR='%s/cache' %s '%s' explore ", folder, settings, getenv("KT_KITTYGEN"));
    for (const char *a = arguments; *a; a++)
        at += !strncmp(a, "$D", 2) ? snprintf(command + at, sizeof command - (size_t)at, "%s", (a++, folder))
                                   : snprintf(command + at, sizeof command - (size_t)at, "%c", *a);
    snprintf(command + at, sizeof command - (size_t)at, all ? " 2>&1" : " 2>/dev/null");
    return run_shell(command, output, sizeof output);
}

static cJSON *explore_json(const char *settings, const char *arguments, int expected)
{
    const int code = explore(settings, arguments, false);
    cJSON *json = cJSON_Parse(output);
    ck_assert_msg(code == expected && json, "explore %s: exit %d: %s", arguments, code, output);
    return json;
}

static const cJSON *variant_of(const cJSON *json, const char *name)
{
    const cJSON *v;
    cJSON_ArrayForEach(v, cJSON_GetObjectItem(json, "variants"))
        if (!strcmp(cJSON_GetObjectItem(v, "variant")->valuestring, name))
            return v;
    ck_abort_msg("no variant %s", name);
}

static double number(const cJSON *object, const char *name)
{
    const cJSON *item = cJSON_GetObjectItem(object, name);
    ck_assert_msg(cJSON_IsNumber(item), "%s", name);
    return item->valuedouble;
}

static int kept(const cJSON *json)
{
    const cJSON *v;
    int count = 0;
    cJSON_ArrayForEach(v, cJSON_GetObjectItem(json, "variants"))
        count += cJSON_IsTrue(cJSON_GetObjectItem(v, "kept"));
    return count;
}

START_TEST(kept_between_runs)
{
    static const char command[] = "$D/sweep.lua --kv $D/kv.safetensors --device cpu --json";
    cJSON *first = explore_json("", command, KG_OK), *again = explore_json("", command, KG_OK);
    ck_assert_int_eq(kept(first), 0);
    ck_assert_int_eq(kept(again), 3);
    for (int i = 0; i < 3; i++) { // the same to the last digit
        cJSON *a = cJSON_GetArrayItem(cJSON_GetObjectItem(first, "variants"), i), *b = cJSON_GetArrayItem(cJSON_GetObjectItem(again, "variants"), i);
        cJSON_DeleteItemFromObject(a, "kept");
        cJSON_DeleteItemFromObject(b, "kept");
        ck_assert(cJSON_Compare(a, b, true));
    }
    ck_assert_str_eq(cJSON_GetObjectItem(first, "device")->valuestring, "CPU");
    ck_assert(cJSON_IsTrue(cJSON_GetObjectItem(variant_of(first, "fp16"), "front")));
    ck_assert_int_eq(cJSON_GetArraySize(cJSON_GetObjectItem(variant_of(first, "fp16"), "output_errors")), LAYERS);
    cJSON_Delete(first);
    cJSON_Delete(again);

    // One variant of the two is another.
    write_text("sweep.lua", MODEL "local pro = require 'variants.kitty_pro'\nreturn { pro { model = model, page = 64, value = { window = 64 } },\n"
                                  "pro { model = model, variant = 'ranged', page = 64, value = { window = 64 }, key = { boost = { score = 'variance' } } } }\n");
    cJSON *json = explore_json("", command, KG_OK);
    ck_assert(cJSON_IsTrue(cJSON_GetObjectItem(variant_of(json, "kitty-pro"), "kept")));
    ck_assert(cJSON_IsFalse(cJSON_GetObjectItem(variant_of(json, "ranged"), "kept")));
    cJSON_Delete(json);
    json = explore_json("", "$D/sweep.lua --kv $D/kv.safetensors --device cpu --json --fresh", KG_OK);
    ck_assert_int_eq(kept(json), 0);
    cJSON_Delete(json);
    json = explore_json("", "$D/sweep.lua --kv $D/kv.safetensors --layers 1 --device cpu --json", KG_OK);
    ck_assert_int_eq(kept(json), 0);
    cJSON_Delete(json);

    // A damaged file is measured again, other inputs under the same name are others.
    char path[2 * KG_PATH];
    snprintf(path, sizeof path, "for f in '%s'/cache/explore/*.json; do echo '{\"logits\": [1]' > \"$f\"; done", folder);
    ck_assert_int_eq(system(path), 0);
    json = explore_json("", command, KG_OK);
    ck_assert_int_eq(kept(json), 0);
    const double before = number(variant_of(json, "kitty-pro"), "output_error");
    cJSON_Delete(json);
    write_kv(kv, 2, TOKENS);
    json = explore_json("", command, KG_OK);
    ck_assert_int_eq(kept(json), 0);
    ck_assert_double_ne(number(variant_of(json, "kitty-pro"), "output_error"), before);
    cJSON_Delete(json);
}
END_TEST

// What a page may not have: anything from elsewhere.
static const char *const outside[] = {"http:", "https:", "//", "src=", "url(", "@import", "<script", "<link", "<img", "<iframe"};
static const char *const sections[] = {"memory", "time", "layers", "heads", "channels", "codes", "all"};

static int occurrences(const char *text, const char *what)
{
    int count = 0;
    for (; (text = strstr(text, what)); text += strlen(what))
        count++;
    return count;
}

static char *read_report(const char *name)
{
    char *page, error[KG_ERROR];
    size_t size;
    ck_assert_msg(!kg_file_read(in_folder(name), 64 << 20, &page, &size, error, sizeof error), "%s", error);
    ck_assert_uint_eq(strlen(page), size);
    return page;
}

static void check_page(const char *page)
{
    for (size_t i = 0; i < sizeof outside / sizeof *outside; i++)
        ck_assert_msg(!strstr(page, outside[i]), "the report has \"%s\"", outside[i]);
    for (size_t i = 0; i < sizeof sections / sizeof *sections; i++) {
        char begin[64];
        snprintf(begin, sizeof begin, "<section id=\"%s\">", sections[i]);
        const char *at = strstr(page, begin), *end = at ? strstr(at, "</section>") : 0;
        ck_assert_msg(end != 0, "the report has no section %s", sections[i]);
        const char *table = strstr(at, "<table>"), *none = strstr(at, "class=\"none\"");
        ck_assert_msg((table && table < end) || (none && none < end), "section %s has no table", sections[i]);
    }
    static const char *const tags[] = {"section", "table", "tr", "svg", "details", "h2", "h3", "p", "title", "text", "dl", "div"};
    for (size_t i = 0; i < sizeof tags / sizeof *tags; i++) {
        char open[32], bare[32], close[32];
        snprintf(open, sizeof open, "<%s ", tags[i]);
        snprintf(bare, sizeof bare, "<%s>", tags[i]);
        snprintf(close, sizeof close, "</%s>", tags[i]);
        ck_assert_msg(occurrences(page, open) + occurrences(page, bare) == occurrences(page, close), "<%s> and </%s> differ", tags[i], tags[i]);
    }
    ck_assert_int_eq(occurrences(page, "prefers-color-scheme: dark"), 1);
    ck_assert_ptr_null(strstr(page, "nan"));
}

START_TEST(report)
{
    ck_assert_int_eq(explore("", "$D/sweep.lua --kv $D/kv.safetensors --device cpu -o '$D/<report>.html'", true), KG_OK);
    ck_assert_ptr_nonnull(strstr(output, "report: "));
    ck_assert_ptr_nonnull(strstr(output, "against kitty-pro: "));
    char *page = read_report("<report>.html");
    check_page(page);
    // Pictures of the memory front, of layers, of two variants with errors by head and channels, and 3 histograms of each.
    ck_assert_int_eq(occurrences(page, "<svg"), 1 + 1 + 2 + 2 + 6);
    ck_assert_int_eq(occurrences(page, "<circle"), 3);
    ck_assert_ptr_nonnull(strstr(page, "16 of 64 channels"));
    ck_assert_ptr_nonnull(strstr(page, "No times: --device cpu."));
    ck_assert_ptr_nonnull(strstr(page, "a sliding window in the model (layer 1: window &lt;512&gt;), but"));
    ck_assert_ptr_nonnull(strstr(output, "a sliding window in the model (layer 1: window <512>), but"));
    free(page);
    // The numbers are those of the JSON.
    cJSON *json = explore_json("", "$D/sweep.lua --kv $D/kv.safetensors --device cpu --json -o $D/again.html", KG_OK);
    page = read_report("again.html");
    char cell[64];
    snprintf(cell, sizeof cell, "<td>%.3f</td>", 100 * number(variant_of(json, "ranged"), "output_error"));
    ck_assert_ptr_nonnull(strstr(page, cell));
    snprintf(cell, sizeof cell, "<td>%.1f</td>", number(variant_of(json, "ranged"), "bytes_per_token_in_all"));
    ck_assert_ptr_nonnull(strstr(page, cell));
    cJSON_Delete(json);
    free(page);
}
END_TEST

START_TEST(the_papers_order)
{
    static const char *const worst_first[] = {"kivi-2", "kivi-2-sink", "kitty-pro", "fp16"};
    double before = INFINITY;
    cJSON *json = explore_json("", "smollm2_135m/kivi_2,kivi_2_sink,kitty_pro,fp16 --kv " KT_TEST_DATA "/data/smollm2.safetensors --layers 1 --device cpu --json", KG_OK);
    for (int i = 0; i < 4; i++) {
        const double error = number(variant_of(json, worst_first[i]), "output_error");
        ck_assert_double_lt(error, before);
        before = error;
    }
    ck_assert_double_eq(before, 0);
    cJSON_Delete(json);
}
END_TEST

// A run of many variants, interrupted when its second row is out.
START_TEST(interrupted)
{
    write_text("many.lua", MODEL "local many = {}\nfor seed = 1, 14 do\n    many[seed] = require 'variants.kitty_pro' { model = model, page = 64,\n"
                                 "        variant = 'seed-' .. seed, key = { boost = { score = 'random', seed = seed } } }\nend\nreturn many\n");
    char cache[KG_PATH + 16], spec[KG_PATH + 16], page_path[KG_PATH + 16];
    snprintf(cache, sizeof cache, "%s/cache", folder);
    snprintf(spec, sizeof spec, "%s/many.lua", folder);
    snprintf(page_path, sizeof page_path, "%s/part.html", folder);
    int ends[2];
    ck_assert_int_eq(pipe(ends), 0);
    const pid_t child = fork();
    if (!child) {
        dup2(ends[1], STDOUT_FILENO);
        close(ends[0]);
        close(ends[1]);
        setenv("KT_CACHE_DIR", cache, 1);
        execl(getenv("KT_KITTYGEN"), "kittygen", "explore", spec, "--kv", kv, "--device", "cpu", "-o", page_path, (char *)0);
        _exit(99);
    }
    close(ends[1]);
    FILE *rows = fdopen(ends[0], "r");
    char line[512];
    while (fgets(line, sizeof line, rows) && strncmp(line, "seed-2 ", 7))
        ;
    ck_assert_int_eq(kill(child, SIGINT), 0);
    bool front = false;
    while (fgets(line, sizeof line, rows))
        front |= strstr(line, "The front of") != 0;
    fclose(rows);
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 130, "status %x", (unsigned)status);
    ck_assert(front);
    char *page = read_report("part.html");
    check_page(page);
    const int done = occurrences(page, "<circle");
    ck_assert(done >= 2 && done < 14);
    ck_assert_ptr_nonnull(strstr(page, "Interrupted"));
    free(page);
    cJSON *json = explore_json("", "$D/many.lua --kv $D/kv.safetensors --device cpu --json -o $D/whole.html", KG_OK);
    ck_assert_int_eq(cJSON_GetArraySize(cJSON_GetObjectItem(json, "variants")), 14);
    ck_assert_int_eq(kept(json), done);
    cJSON_Delete(json);
    page = read_report("whole.html");
    ck_assert_ptr_null(strstr(page, "Interrupted"));
    free(page);
}
END_TEST

// ---- times, of the made-up card --------------------------------------------------------------------------------------

static const char *card(const char *more)
{
    static char settings[2 * KG_PATH];
    snprintf(settings, sizeof settings, "LD_LIBRARY_PATH='%s' KT_CUDA_HOME='%s' FAKE_SCALE=20 FAKE_MEMORY_MB=1024 %s", getenv("KT_FAKE"), getenv("KT_FAKE"), more);
    return settings;
}

static int timed(const cJSON *json)
{
    const cJSON *v;
    int count = 0;
    cJSON_ArrayForEach(v, cJSON_GetObjectItem(json, "variants"))
        count += cJSON_GetArraySize(cJSON_GetObjectItem(v, "times"));
    return count;
}

START_TEST(times)
{
    static const char command[] = "$D/sweep.lua --kv $D/kv.safetensors --shapes 1x512,2x256 --json -o $D/times.html";
    cJSON *json = explore_json(card(""), command, KG_OK);
    ck_assert_str_eq(cJSON_GetObjectItem(json, "device")->valuestring, "Fake H100");
    ck_assert_int_eq(timed(json), 6);
    const cJSON *time = cJSON_GetArrayItem(cJSON_GetObjectItem(variant_of(json, "ranged"), "times"), 1);
    ck_assert_double_eq(number(time, "sequences"), 2);
    ck_assert_double_eq(number(time, "context"), 256);
    const double us = number(time, "us");
    ck_assert_double_ge(us, 1000);
    cJSON_Delete(json);
    char *page = read_report("times.html");
    check_page(page);
    ck_assert_ptr_nonnull(strstr(page, "<h3>Time over memory, 1 x 512</h3>"));
    ck_assert_ptr_nonnull(strstr(page, "<h3>Error over time, 2 x 256</h3>"));
    ck_assert_ptr_nonnull(strstr(page, "Fake H100"));
    free(page);
    // Kept: a card that takes ten times as long is not asked, nor a compiler.
    json = explore_json(card("FAKE_SCALE=200 KT_NO_JIT=1"), command, KG_OK);
    ck_assert_int_eq(timed(json), 6);
    ck_assert_double_eq_tol(number(cJSON_GetArrayItem(cJSON_GetObjectItem(variant_of(json, "ranged"), "times"), 1), "us"), us, 1e-3 * us);
    cJSON_Delete(json);
    json = explore_json(card("FAKE_SCALE=200"), "$D/sweep.lua --kv $D/kv.safetensors --shapes 1x448 --json", KG_OK);
    ck_assert_double_ge(number(cJSON_GetArrayItem(cJSON_GetObjectItem(variant_of(json, "ranged"), "times"), 0), "us"), 10000);
    cJSON_Delete(json);
}
END_TEST

START_TEST(times_cut_short)
{
    cJSON *json = explore_json(card("FAKE_INTERRUPT_AFTER=30"), "$D/sweep.lua --kv $D/kv.safetensors --device cuda --shapes 1x512,2x256 --json", 130);
    ck_assert_int_eq(cJSON_GetArraySize(cJSON_GetObjectItem(json, "variants")), 3);
    ck_assert(cJSON_IsTrue(cJSON_GetObjectItem(json, "interrupted")));
    const int first = timed(json);
    ck_assert(first >= 1 && first < 6);
    cJSON_Delete(json);
    // What the card cannot do any more is the machine's fault, but errors and times up to then are told.
    json = explore_json(card("FAKE_LOST_AFTER=1"), "$D/sweep.lua --kv $D/kv.safetensors --device cuda --shapes 1x512,2x256 --json", KG_MACHINE);
    ck_assert_int_eq(timed(json), first);
    cJSON_Delete(json);
    // No kernel may be wrong: its time is not told.
    ck_assert_int_eq(explore(card("FAKE_WRONG=4x2x2x2"), "$D/sweep.lua --kv $D/kv.safetensors --device cuda --shapes 64x256", true), KG_FAILED);
    ck_assert_ptr_nonnull(strstr(output, "no time is given"));
    ck_assert_ptr_nonnull(strstr(output, "The front of"));
}
END_TEST

// ---- wrong input -----------------------------------------------------------------------------------------------------

#define KV " --kv $D/kv.safetensors --device cpu"
static const struct {
    const char *arguments;
    int code;
    const char *says;
} cases[] = {
    {"", KG_USER, "too few arguments"},
    {"$D/sweep.lua", KG_USER, "--kv FILE is needed"},
    {"$D/sweep.lua --kv", KG_USER, "--kv needs a value"},
    {"$D/sweep.lua --kv $D/none.safetensors", KG_USER, "none.safetensors: "},
    {"$D/sweep.lua --kv $D/sweep.lua", KG_USER, "sweep.lua: "},
    {"smollm2_135m/kitty" KV, KG_USER, "tensor \"q.0\""},
    {"qwen3_8b/kitty" KV, KG_USER, "[416, 4, 64]"},
    {"$D/none.lua" KV, KG_USER, "none.lua"},
    {"$D/empty.lua" KV, KG_USER, "empty.lua"},
    {"$D/sweep.lua smollm2_135m/kitty" KV, KG_USER, "model.q_heads is not that of m.kitty-pro (9 and 4)"},
    {"$D/sweep.lua $D/other.lua" KV, KG_USER, "two different specs are named m.kitty-pro"},
    {"$D/long.lua" KV, KG_USER, "m.long: its first page of values is sealed after 544 tokens, and the --kv files have 416 a layer"},
    {"$D/sweep.lua" KV " --layers 3", KG_USER, "--layers 3: the --kv files hold 2"},
    {"$D/sweep.lua" KV " --layers 0", KG_USER, "--layers: '0' is not allowed"},
    {"$D/sweep.lua" KV " --context 12", KG_USER, "--context: '12' is not allowed"},
    {"$D/sweep.lua" KV " --shapes 1x4096", KG_USER, "--shapes: nothing is timed with --device cpu"},
    {"$D/sweep.lua --kv $D/kv.safetensors --shapes 1by4096", KG_USER, "--shapes: '1by4096' is not allowed"},
    {"$D/sweep.lua --kv $D/kv.safetensors --device tpu", KG_USER, "--device: 'tpu' is not allowed; allowed: auto, cuda, cpu"},
    {"$D/sweep.lua --kv $D/kv.safetensors --device cuda", KG_MACHINE, "--device cuda: no NVIDIA "},
    {"$D/sweep.lua" KV " -o $D/none/report.html", KG_USER, "/none/report.html: cannot be written: No such file"},
    {"$D/sweep.lua" KV " -o $D", KG_USER, ": not a regular file; nothing else is replaced"},
    {"$D/sweep.lua" KV " --against fp15", KG_USER, "--against: 'fp15' is not allowed; allowed: kitty-pro, ranged, fp16; did you mean `fp16`?"},
    {"$D/turned.lua" KV " --against kitty_pro", KG_USER, "allowed: kitty-pro, values, across; did you mean `kitty-pro`?"},
    {"$D/sweep.lua" KV " --jsn", KG_USER, "did you mean `--json`?"},
    {"--help", KG_OK, "relative L2"},
};

START_TEST(wrong_input)
{
    write_text("empty.lua", "return {}\n");
    write_text("other.lua", MODEL "return require 'variants.kitty_pro' { model = model }\n");
    write_text("long.lua", MODEL "return require 'variants.kitty_pro' { model = model, variant = 'long', page = 256, value = { window = 256 } }\n");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const int code = explore("", cases[i].arguments, true);
        ck_assert_msg(code == cases[i].code && strstr(output, cases[i].says), "explore %s: exit %d: %s", cases[i].arguments, code, output);
        ck_assert_msg(code != KG_USER || !strstr(output, "output mean"), "explore %s: something was measured", cases[i].arguments);
    }
}
END_TEST

START_TEST(same_spec_twice)
{
    cJSON *json = explore_json("", "$D/sweep.lua $D/sweep.lua" KV " --json", KG_OK);
    ck_assert_int_eq(cJSON_GetArraySize(cJSON_GetObjectItem(json, "variants")), 3);
    cJSON_Delete(json);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("explore");
    TCase *tests = tcase_create("explore");
    setenv("KT_SPECS", KT_TEST_DATA "/../specs", 0);
    setenv("KT_TEMPLATES", KT_TEST_DATA "/../templates", 0);
    tcase_set_timeout(tests, 120);
    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_loop_test(tests, errors_are_those_of_decoding, 0, 2);
    tcase_add_test(tests, calibrated);
    tcase_add_test(tests, by_layer);
    tcase_add_test(tests, notes_of_many);
    tcase_add_test(tests, codes_of_other_kinds);
    tcase_add_test(tests, logits_channels_and_codes);
    tcase_add_test(tests, fronts);
    tcase_add_test(tests, comparisons);
    tcase_add_test(tests, kept_between_runs);
    tcase_add_test(tests, report);
    tcase_add_test(tests, the_papers_order);
    tcase_add_test(tests, interrupted);
    tcase_add_test(tests, times);
    tcase_add_test(tests, times_cut_short);
    tcase_add_test(tests, wrong_input);
    tcase_add_test(tests, same_spec_twice);
    suite_add_tcase(suite, tests);
    return run_suite(suite);
}
