// Specs: the shipped ones, the fields, the sandbox, and every rejection in tests/bad with its exact message.
#define _GNU_SOURCE
#include "fields.h"
#include "kitty.h"
#include "layout.h"
#include "locate.h"
#include "sandbox.h"
#include "spec.h"
#include "suite.h"

#include <cjson/cJSON.h>
#include <dirent.h>
#include <lauxlib.h>
#include <lua.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef KT_TEST_DATA
#define KT_TEST_DATA "tests"
#endif

static char data[KG_PATH], kittygen[KG_PATH], folder[64];

static void enter_folder(void)
{
    snprintf(folder, sizeof folder, "/tmp/kittygen-spec-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    ck_assert_int_eq(chdir(folder), 0);
}

static void leave_folder(void)
{
    char command[128];
    ck_assert_int_eq(chdir("/"), 0);
    snprintf(command, sizeof command, "rm -r '%s'", folder);
    ck_assert_int_eq(system(command), 0);
}

static void write_file(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    ck_assert_ptr_nonnull(file);
    fputs(text, file);
    fclose(file);
}

static char *read_file(const char *path)
{
    char *text, error[KG_ERROR];
    size_t size;
    ck_assert_msg(!kg_file_read(path, 1 << 20, &text, &size, error, sizeof error), "%s", error);
    return text;
}

static kg_spec load_one(const char *what)
{
    kg_spec *specs, spec;
    int count;
    char error[KG_ERROR] = "";
    ck_assert_msg(!kg_spec_load(what, 0, &specs, &count, error, sizeof error), "%s", error);
    ck_assert_int_eq(count, 1);
    spec = *specs;
    free(specs);
    return spec;
}

static kg_spec load_text(const char *text)
{
    kg_spec *specs, spec;
    int count;
    char error[KG_ERROR] = "";
    ck_assert_msg(!kg_spec_load_text("text.lua", text, strlen(text), 0, 0, &specs, &count, error, sizeof error), "%s", error);
    ck_assert_int_eq(count, 1);
    spec = *specs;
    free(specs);
    return spec;
}

// ---- the shipped specs -----------------------------------------------------------------------------------------------

static const struct {
    const char *file, *name;
    int q_heads, kv_heads, head_dim, layers, dtype;
} models[] = {
    {"qwen3_0_6b", "qwen3-0.6b", 16, 8, 128, 28, KT_BF16},   {"qwen3_8b", "qwen3-8b", 32, 8, 128, 36, KT_BF16},
    {"qwen3_14b", "qwen3-14b", 40, 8, 128, 40, KT_BF16},     {"qwen3_32b", "qwen3-32b", 64, 8, 128, 64, KT_BF16},
    {"llama3_1_8b", "llama3.1-8b", 32, 8, 128, 32, KT_BF16}, {"llama3_3_70b", "llama3.3-70b", 64, 8, 128, 80, KT_BF16},
    {"phi3_mini", "phi3-mini", 32, 32, 96, 32, KT_BF16},     {"smollm2_135m", "smollm2-135m", 9, 3, 64, 30, KT_F16},
    {"gemma3_270m", "gemma3-270m", 4, 1, 256, 18, KT_BF16},
};
enum { MODELS = sizeof models / sizeof *models, VARIANTS = 7 };

static const struct {
    const char *name;
    int key_bits, boost_bits;
    double fraction;
    int value_bits, sink, window;
} variants[VARIANTS] = {
    {"best-2bit", 2, 4, 0.25, 2, 32, 128},
    {"fp16", 16, 16, 0, 16, 0, 0},       {"int4", 4, 4, 0, 4, 32, 128},    {"kitty", 2, 4, 0.125, 2, 32, 128},
    {"kitty-pro", 2, 4, 0.25, 2, 32, 128}, {"kivi-2", 2, 2, 0, 2, 0, 128}, {"kivi-2-sink", 2, 2, 0, 2, 32, 128},
};

START_TEST(shipped_models)
{
    kg_spec *specs;
    int count;
    char error[KG_ERROR] = "", name[2 * KG_NAME];
    ck_assert_msg(!kg_spec_load(models[_i].file, 0, &specs, &count, error, sizeof error), "%s", error);
    ck_assert_int_eq(count, VARIANTS);
    for (int v = 0; v < VARIANTS; v++) {
        const kg_spec *s = &specs[v];
        snprintf(name, sizeof name, "%s.%s", models[_i].name, variants[v].name);
        ck_assert_str_eq(s->name, name);
        ck_assert_str_eq(s->model.name, models[_i].name);
        ck_assert_str_eq(s->variant, variants[v].name);
        ck_assert_int_eq(s->model.q_heads, models[_i].q_heads);
        ck_assert_int_eq(s->model.kv_heads, models[_i].kv_heads);
        ck_assert_int_eq(s->model.head_dim, models[_i].head_dim);
        ck_assert_int_eq(s->model.layers, models[_i].layers);
        ck_assert_int_eq(s->model.dtype, models[_i].dtype);
        ck_assert_double_eq(s->model.scale, models[_i].head_dim == 256 ? 0.0625 : 0);
        ck_assert_int_eq(s->page, 128);
        ck_assert_int_eq(s->sink, variants[v].sink);
        ck_assert_int_eq(s->key.bits, variants[v].key_bits);
        ck_assert_int_eq(s->key.boost_bits, variants[v].boost_bits);
        ck_assert_double_eq(s->key.boost_fraction, variants[v].fraction);
        ck_assert_int_eq(s->key.score, KG_SCORE_MAGNITUDE);
        ck_assert_int_eq(s->key.group, 128);
        ck_assert_int_eq(s->key.window, 0);
        ck_assert_int_eq(s->value.bits, variants[v].value_bits);
        ck_assert_int_eq(s->value.group, KG_GROUP_HEAD);
        ck_assert_int_eq(s->value.window, variants[v].window);
        kt_format format;
        ck_assert_ptr_null(kg_layout(s, &format));
        ck_assert_int_eq(format.key_boosted, (int)(variants[v].fraction * models[_i].head_dim));
    }
    free(specs);
}
END_TEST

START_TEST(command_line_names)
{
    static const char *const same[] = {"qwen3_8b/kitty_pro", "qwen3-8b/kitty-pro", "Qwen3-8B/Kitty-Pro"};
    for (int i = 0; i < 3; i++)
        ck_assert_str_eq(load_one(same[i]).name, "qwen3-8b.kitty-pro");
    ck_assert_str_eq(load_one("llama3.1-8b/fp16").name, "llama3.1-8b.fp16");
    kg_spec *specs;
    int count;
    char error[KG_ERROR];
    ck_assert_int_eq(kg_spec_load("phi3-mini/kitty,fp16", 0, &specs, &count, error, sizeof error), KG_OK);
    ck_assert_int_eq(count, 2);
    ck_assert_str_eq(specs[0].name, "phi3-mini.kitty");
    ck_assert_str_eq(specs[1].name, "phi3-mini.fp16");
    free(specs);

    kg_spec_options options = {"fp16"};
    ck_assert_int_eq(kg_spec_load("qwen3-8b/kitty", &options, &specs, &count, error, sizeof error), KG_OK);
    ck_assert_int_eq(specs->model.dtype, KT_F16);
    free(specs);
    options.dtype = "fp8";
    ck_assert_int_eq(kg_spec_load("qwen3-8b/kitty", &options, &specs, &count, error, sizeof error), KG_USER);
    ck_assert_str_eq(error, "--dtype: \"fp8\" is not allowed; allowed: \"fp16\", \"bf16\"");
    ck_assert_ptr_null(specs);
}
END_TEST

#define PUBLISHED ", hadamard_2, hadamard_4, int4_token, k4v2, k8v4, kitty_pro_boundary, kitty_static, kivi_2_g32, kivi_4, oscar_2"
static const struct {
    const char *what, *message;
} wrong_names[] = {
    {"qwen3_8b/kity", "qwen3_8b/kity: no shipped variant \"kity\"; shipped: best_2bit, fp16, int4, kitty, kitty_pro, kivi_2, kivi_2_sink" PUBLISHED "; "
                      "did you mean `kitty`?"},
    {"qwen3_8b/", "qwen3_8b/: no shipped variant \"\"; shipped: best_2bit, fp16, int4, kitty, kitty_pro, kivi_2, kivi_2_sink" PUBLISHED},
    {"qwen3_8b/kitty,", "qwen3_8b/kitty,: no shipped variant \"\"; shipped: best_2bit, fp16, int4, kitty, kitty_pro, kivi_2, kivi_2_sink" PUBLISHED},
    {"../models/x", "../models/x: no shipped model \"__\"; shipped: gemma3_270m, llama3_1_8b, llama3_3_70b, phi3_mini, qwen3_0_6b, "
                    "qwen3_14b, qwen3_32b, qwen3_8b, smollm2_135m"},
    {"quen3-8b", "quen3-8b: no shipped model \"quen3_8b\"; shipped: gemma3_270m, llama3_1_8b, llama3_3_70b, phi3_mini, qwen3_0_6b, "
                 "qwen3_14b, qwen3_32b, qwen3_8b, smollm2_135m; did you mean `qwen3_8b`?"},
    {"/dev/null", "/dev/null: exists, but no shipped model has this name, and the names of spec files end in .lua"},
    {"no/such.lua", "no/such.lua: No such file or directory"},
    {"/.lua", "/.lua: No such file or directory"},
    {"qwen3_8b/kitty,kitty", "qwen3_8b/kitty,kitty: name: \"qwen3-8b.kitty\" is the name of spec 1 too; give each a `name` or "
                             "`variant` of its own [spec 2 of 2]"},
};

// Of other methods: bytes of a token and KV head at head_dim 128.
static const struct {
    const char *what;
    double bytes;
} published[] = {
    {"qwen3-8b/kivi-2-g32", 97}, {"qwen3-8b/kivi-4", 161}, {"qwen3-8b/int4-token", 145}, {"qwen3-8b/k4v2", 129},
    {"qwen3-8b/k8v4", 201}, {"qwen3-8b/hadamard-4", 137}, {"qwen3-8b/hadamard-2", 73},
    {"qwen3-8b/kitty-pro-boundary", (32 * 81 + 4 * 513) / 36.0},
};

START_TEST(published_variants)
{
    kg_formats formats;
    const kg_spec s = load_one(published[_i].what);
    ck_assert_ptr_null(kg_formats_of(&s, &formats));
    ck_assert_double_eq(kg_formats_token(&formats), published[_i].bytes);
}
END_TEST

// What takes a calibration says so, and works with one.
START_TEST(calibrated_variants)
{
    static const char *const names[] = {"kitty_static", "oscar_2"};
    kg_spec *specs;
    int count;
    char error[KG_ERROR], text[1024], shapes[2 * KG_PATH];
    snprintf(text, sizeof text, "qwen3-8b/%s", names[_i]);
    ck_assert_int_eq(kg_spec_load(text, 0, &specs, &count, error, sizeof error), KG_USER);
    ck_assert_msg(strstr(error, "without a calibration"), "%s", error);
    snprintf(shapes, sizeof shapes, "%s/emulate", data);
    snprintf(text, sizeof text, "return require 'variants.published.%s' { model = { name = 'm', layers = 2, q_heads = 2, kv_heads = 2, head_dim = "
                                "64, dtype = 'bf16' }, calibration = 'calibration.safetensors' }", names[_i]);
    ck_assert_msg(!kg_spec_load_text("text.lua", text, strlen(text), shapes, 0, &specs, &count, error, sizeof error), "%s", error);
    kg_text json = {0};
    kg_spec_json(&json, specs);
    ck_assert_ptr_nonnull(strstr(json.data, "\"calibration\": \"calibration.safetensors\", \"calibration_sha256\": \""));
    kg_text_free(&json);
    free(specs);
}
END_TEST

START_TEST(wrong_command_line_names)
{
    kg_spec *specs;
    int count;
    char error[KG_ERROR];
    ck_assert_int_eq(kg_spec_load(wrong_names[_i].what, 0, &specs, &count, error, sizeof error), KG_USER);
    ck_assert_str_eq(error, wrong_names[_i].message);
    ck_assert_ptr_null(specs);
}
END_TEST

START_TEST(no_shipped_specs)
{
    kg_spec *specs;
    int count;
    char error[KG_ERROR];
    setenv("KT_SPECS", "/no/such/folder", 1);
    ck_assert_int_eq(kg_spec_load("qwen3_8b", 0, &specs, &count, error, sizeof error), KG_MACHINE);
    ck_assert_str_eq(error, "KT_SPECS=/no/such/folder: not a folder");
}
END_TEST

START_TEST(tutorial_and_sweep)
{
    char path[2 * KG_PATH], error[KG_ERROR];
    snprintf(path, sizeof path, "%s/example.lua", getenv("KT_SPECS"));
    kg_spec example = load_one(path), pro = load_one("qwen3_8b/kitty_pro");
    ck_assert_str_eq(example.name, "qwen3-8b.example");
    kt_format a, b;
    kg_layout(&example, &a);
    kg_layout(&pro, &b);
    ck_assert_mem_eq(&a, &b, sizeof a);

    kg_spec *specs;
    int count;
    snprintf(path, sizeof path, "%s/sweep.lua", getenv("KT_SPECS"));
    ck_assert_msg(!kg_spec_load(path, 0, &specs, &count, error, sizeof error), "%s", error);
    ck_assert_int_eq(count, 8);
    ck_assert_str_eq(specs[3].name, "qwen3-8b.boost-12.5-variance");
    ck_assert_int_eq(specs[3].key.score, KG_SCORE_VARIANCE);
    ck_assert_double_eq(specs[3].key.boost_fraction, 0.125);
    ck_assert_int_eq(specs[0].key.boost_bits, 2);
    free(specs);
}
END_TEST

// ---- fields ----------------------------------------------------------------------------------------------------------

#define MODEL "model = { name = 'm', layers = 2, q_heads = 6, kv_heads = 2, head_dim = 128, dtype = 'bf16' }"

START_TEST(defaults)
{
    const kg_spec s = load_text("return kitty { " MODEL " }");
    ck_assert_str_eq(s.name, "m.custom");
    ck_assert_int_eq(s.page, 128);
    ck_assert_int_eq(s.sink, 32);
    ck_assert_int_eq(s.key.bits, 2);
    ck_assert_int_eq(s.key.boost_bits, 2);
    ck_assert_int_eq(s.key.group, 128);
    ck_assert_int_eq(s.value.bits, 2);
    ck_assert_int_eq(s.value.window, 128);
    ck_assert_int_eq(load_text("return kitty { page = 256, " MODEL " }").key.group, 256);
}
END_TEST

START_TEST(composition)
{
    // A variant's fields one by one under the overrides; the model is not shared with the specs made from it.
    kg_spec s = load_text("local m = require 'models.qwen3_8b'\n"
                          "local s = require 'variants.kitty_pro' { model = m, key = { boost = { score = 'range' } }, sink = 0 }\n"
                          "m.layers = 7\n"
                          "s.value.window = 64\n"
                          "return s");
    ck_assert_int_eq(s.key.score, KG_SCORE_RANGE);
    ck_assert_double_eq(s.key.boost_fraction, 0.25);
    ck_assert_int_eq(s.sink, 0);
    ck_assert_int_eq(s.model.layers, 36);
    ck_assert_int_eq(s.value.window, 64);
    s = load_text("return require 'variants.kitty' { model = require 'models.qwen3_8b', key = { boost = false } }");
    ck_assert_int_eq(s.key.boost_bits, 2);
    s = load_text("return kitty { name = 'n', sink = 64.0, " MODEL ", value = { group = 32 } }");
    ck_assert_str_eq(s.name, "n");
    ck_assert_int_eq(s.sink, 64);
    ck_assert_int_eq(s.value.group, 32);
}
END_TEST

// Sinks and windows are whole numbers, and take no more room than they are.
START_TEST(exact_tokens)
{
    kt_format f;
    const kg_spec s = load_text("return kitty { " MODEL ", page = 64, sink = 4, key = { window = 33 }, value = { window = 100 } }");
    ck_assert_ptr_null(kg_layout(&s, &f));
    const int token = 2 * f.head_dim, expected[] = {4, 33, 100, 97, 164, 4 * token, 8 * token, 105 * token, 269 * token};
    const int found[] = {f.sink, f.key_window, f.value_window, f.key_ring, f.value_ring, f.slab_sink_value, f.slab_key, f.slab_value, f.slab_bytes};
    for (int i = 0; i < 9; i++)
        ck_assert_int_eq(found[i], expected[i]);
}
END_TEST

// Every value the reference lists is accepted at least in one spec.
START_TEST(whole_range)
{
    static const char *const texts[] = {
        "page = 64, key = { group = 32, window = 4096 }, value = { window = 4096 }", "page = 128, key = { group = 64, bits = 4, boost = { bits = 8, fraction = 0.5 } }",
        "page = 256, key = { group = 128 }", "page = 256, key = { group = 256, bits = 8 }", "sink = 1024, value = { window = 4096 }",
        "sink = 1, key = { window = 1 }, value = { window = 1 }", "sink = 1023, key = { window = 4095 }, value = { window = 4095 }",
        "sink = 0, value = { bits = 8, group = 64 }", "value = { bits = 4, group = 128 }", "value = { bits = 16 }, key = { bits = 16 }",
        "key = { boost = { bits = 8, fraction = 1, score = 'random', seed = 2147483647 } }", "key = { boost = { fraction = 0 } }",
        "key = { metadata = 'fp8', group = 32 }, value = { metadata = 'fp8', group = 32 }", "key = { bits = 1, boost = { bits = 3, fraction = 0.5 } }, value = { bits = 1 }", "key = { bits = 3, along = 'channels' }, value = { bits = 3 }",
        "page = 256, key = { along = 'channels', group = 32 }, value = { along = 'tokens', group = 256 }",
        "page = 64, key = { along = 'channels', group = 'head' }, value = { along = 'tokens', group = 'page' }",
        "key = { rotation = 'hadamard', range = 'least_squares' }, value = { rotation = 'hadamard', range = 'least_squares' }",
        "key = { bits = 2, boost = { bits = 4, fraction = 1 / 128 } }", "key = { bits = 16 }, value = { bits = 2 }",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        char text[512];
        snprintf(text, sizeof text, "return kitty { " MODEL ", %s }", texts[i]);
        const kg_spec s = load_text(text);
        kt_format format;
        const char *why = kg_layout(&s, &format);
        ck_assert_msg(!why, "%s: %s", texts[i], why);
        ck_assert_int_le(format.key_rows, s.key.bits == 16 ? s.model.head_dim : 1024);
    }
    const int dims[] = {64, 96, 128, 192, 256};
    for (int d = 0; d < 5; d++)
        for (int group = 1; group <= 16; group++) {
            char text[256];
            snprintf(text, sizeof text, "return kitty { model = { name = 'm', layers = 1024, q_heads = %d, kv_heads = 3, head_dim = %d, "
                                        "dtype = 'fp16' } }", 3 * group, dims[d]);
            ck_assert_int_eq(load_text(text).model.q_heads, 3 * group);
        }
}
END_TEST

START_TEST(json)
{
    kg_text out = {0};
    const kg_spec pro = load_one("gemma3_270m/kitty_pro"), exact = load_one("gemma3_270m/fp16");
    kg_spec_json(&out, &pro);
    ck_assert_str_eq(out.data, "{\"name\": \"gemma3-270m.kitty-pro\", \"variant\": \"kitty-pro\", \"page\": 128, \"sink\": 32, \"model\": {\"name\": "
                               "\"gemma3-270m\", \"layers\": 18, \"q_heads\": 4, \"kv_heads\": 1, \"head_dim\": 256, \"dtype\": \"bf16\", \"scale\": "
                               "0.0625}, \"key\": {\"bits\": 2, \"group\": 128, \"window\": 0, \"boost\": {\"bits\": 4, \"fraction\": 0.25, \"score\": "
                               "\"magnitude\", \"seed\": 0}}, \"value\": {\"bits\": 2, \"group\": \"head\", \"window\": 128}}");
    out.size = 0;
    kg_spec_json(&out, &exact);
    cJSON *root = cJSON_Parse(out.data);
    ck_assert_ptr_nonnull(root);
    const cJSON *key = cJSON_GetObjectItem(root, "key");
    ck_assert_int_eq(cJSON_GetArraySize(key), 2); // bits and window; an exact key has no group and no boost
    cJSON_Delete(root);

    out.size = 0;
    kg_field_reference(&out, 1);
    root = cJSON_Parse(out.data);
    ck_assert_int_eq(cJSON_GetArraySize(root), kg_field_count);
    ck_assert_str_eq(cJSON_GetObjectItem(cJSON_GetArrayItem(root, 12), "allowed")->valuestring, "1, 2, 3, 4, 8, 16");
    cJSON_Delete(root);
    kg_text_free(&out);
}
END_TEST

START_TEST(lines)
{
    static const char text[] = "-- key = { bits = 2 }\n"
                               "local s = 'key = { bits = 2 }' --[[ key = { bits = 2 }\n"
                               "]] local t = [==[ key = { bits = 2 }\n"
                               "]==]\n"
                               "return kitty { value = { bits = 2 },\n"
                               "  key = { -- }\n"
                               "    ok = a == 2, bits =\n"
                               "      2 } }\n"
                               "spec.key.bits = 4\n";
    const kg_value two = {KG_VALUE_NUMBER, 2, 0}, four = {KG_VALUE_NUMBER, 4, 0};
    int line = 0;
    ck_assert_int_gt(kg_locate(text, "key.bits", &two, &line), 0);
    ck_assert_int_eq(line, 7);
    ck_assert_int_gt(kg_locate(text, "key.bits", &four, &line), 0);
    ck_assert_int_eq(line, 9);
    ck_assert_int_gt(kg_locate(text, "value.bits", &two, &line), 0);
    ck_assert_int_eq(line, 5);
    ck_assert_int_eq(kg_locate(text, "key.ok.more", 0, &line), 0);
    // Texts that end anywhere are read to their end and no further.
    for (size_t i = 0; i < sizeof text; i++) {
        char *part = strndup(text, i);
        kg_locate(part, "key.bits", &two, &line);
        free(part);
    }
}
END_TEST

START_TEST(nearest)
{
    static const char *const words[] = {"bits", "group", "window", "boost"};
    ck_assert_str_eq(kg_nearest("boots", words, 4), "boost");
    ck_assert_str_eq(kg_nearest("bit", words, 4), "bits");
    ck_assert_str_eq(kg_nearest("Windows", words, 4), "window");
    ck_assert_ptr_null(kg_nearest("page", words, 4));
    ck_assert_ptr_null(kg_nearest("", words, 4));
    ck_assert_ptr_null(kg_nearest("x", words, 4));
}
END_TEST

#define KEPT "\u00e9\u20ac\ufffd\U0001f600\U0010ffff\ud7ff\ue000\u0800\U00010000"
START_TEST(texts)
{
    kg_text t = {0};
    kg_text_json(&t, "a\"\\\n\t\x7f" "é");
    ck_assert_str_eq(t.data, "\"a\\\"\\\\\\n\\u0009\\u007f" "é\"");
    // What is UTF-8 stays; every other byte is replaced, also of what is cut off, too long a form, a surrogate, beyond U+10FFFF.
    static const char *const utf8[][2] = {
        {KEPT, "\"" KEPT "\""},
        {"b\xff.st", "\"b\ufffd.st\""},
        {"\x80\xe2\x82", "\"\ufffd\ufffd\ufffd\""},
        {"\xe2\"\xf0\x9f\x98", "\"\ufffd\\\"\ufffd\ufffd\ufffd\""},
        {"\xc0\xaf\xe0\x9f\xbf", "\"\ufffd\ufffd\ufffd\ufffd\ufffd\""},
        {"\xed\xa0\x80\xf4\x90\x80\x80", "\"\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd\ufffd\""},
        {"\xf0\x8f\xbf\xbf\xf5", "\"\ufffd\ufffd\ufffd\ufffd\ufffd\""},
    };
    for (size_t i = 0; i < sizeof utf8 / sizeof *utf8; i++) {
        t.size = 0;
        kg_text_json(&t, utf8[i][0]);
        ck_assert_str_eq(t.data, utf8[i][1]);
    }
    const double numbers[] = {0, 0.1, 1.0 / 3, 0.0625, 1e300, -2.5};
    for (int i = 0; i < 6; i++) {
        t.size = 0;
        kg_text_number(&t, numbers[i]);
        ck_assert_double_eq(strtod(t.data, 0), numbers[i]);
    }
    t.size = 0;
    kg_text_number(&t, 0.1);
    ck_assert_str_eq(t.data, "0.1");
    kg_text_free(&t);
}
END_TEST

// ---- rejections ------------------------------------------------------------------------------------------------------

static int is_lua(const struct dirent *entry)
{
    const char *dot = strrchr(entry->d_name, '.');
    return dot && !strcmp(dot, ".lua");
}

static struct dirent **bad;
static int bad_count;

START_TEST(rejections)
{
    char path[2 * KG_PATH], error[KG_ERROR] = "";
    const char *name = bad[_i]->d_name;
    snprintf(path, sizeof path, "%s/bad", data);
    ck_assert_int_eq(chdir(path), 0);
    kg_spec *specs;
    int count;
    const int code = kg_spec_load(name, 0, &specs, &count, error, sizeof error - 1);
    ck_assert_msg(code == KG_USER, "%s: returned %d: %s", name, code, error);
    ck_assert_ptr_null(specs);
    snprintf(path, sizeof path, "%.*s.txt", (int)strlen(name) - 4, name);
    char *expected = read_file(path);
    strcat(error, "\n");
    ck_assert_str_eq(error, expected);
    free(expected);
}
END_TEST

// ---- the sandbox -----------------------------------------------------------------------------------------------------

static int run(kg_sandbox *s, const char *text, char *error)
{
    return kg_sandbox_run(s, "text.lua", text, strlen(text), error, KG_ERROR);
}

// What specs do not get.
static int catch_all(lua_State *L)
{
    lua_pushboolean(L, !lua_pcall(L, lua_gettop(L) - 1, 0, 0));
    return 1;
}

// Most of the budget at once, for the sake of the test's time.
static int spend(lua_State *L)
{
    kg_sandbox_charge(L, KG_SANDBOX_BUDGET / 20 * 19);
    return 0;
}

// Even if something caught errors, the end of the budget could not be caught, and the sandbox stays dead.
START_TEST(dead_for_good)
{
    static const luaL_Reg more[] = {{"catch", catch_all}, {"spend", spend}, {0, 0}};
    static const char *const texts[] = {
        "while true do\n catch(function() while true do end end)\nend",
        "local function f() catch(f) return f() end f()",
        "while true do catch(string.rep, 'x', 60000) end",
        "while true do catch(function() local t = {} while true do t[#t + 1] = {} end end) end",
    };
    for (int i = 0; i < 4; i++) {
        char error[KG_ERROR] = "", again[KG_ERROR] = "";
        kg_sandbox *s = kg_sandbox_open(0, 0, more);
        ck_assert_int_eq(run(s, "spend()", error), KG_OK);
        ck_assert_int_eq(run(s, texts[i], error), KG_USER);
        // Of steps, or on a slow machine of time.
        ck_assert_msg(strstr(error, "stopped: it took more than 20000000 steps") || strstr(error, "stopped: it ran for more than"), "%d: %s", i, error);
        ck_assert_int_eq(run(s, "return 1", again), KG_USER);
        ck_assert_str_eq(error, again);
        kg_sandbox_close(s);
    }
}
END_TEST

START_TEST(only_what_is_listed)
{
    static const char *const words[] = {
        "pcall", "xpcall", "io", "os", "load", "loadstring", "loadfile", "dofile", "debug", "package", "coroutine", "print", "next",
        "setmetatable", "getmetatable", "rawget", "rawset", "rawequal", "rawlen", "collectgarbage", "warn", "utf8", "_G",
        "string.find", "string.match", "string.gmatch", "string.gsub", "string.dump", "string.pack", "string.unpack", "math.random",
        "math.randomseed", "table.move", "table.sort", "table.remove",
    };
    char error[KG_ERROR], text[64], expected[128];
    kg_sandbox *s = kg_sandbox_open(0, 0, 0);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        snprintf(text, sizeof text, "return %s", words[i]);
        snprintf(expected, sizeof expected, "text.lua:1: `%s` is not available in a spec", words[i]);
        ck_assert_int_eq(run(s, text, error), KG_USER);
        ck_assert_str_eq(error, expected);
    }
    kg_sandbox_close(s);
}
END_TEST

START_TEST(library)
{
    static const char text[] =
        "assert(table.concat({1, 'b', 2.5}, ' ') == '1 b 2.5')\n"
        "local t = {1, 3} table.insert(t, 2, 2) table.insert(t, 4)\n"
        "assert(table.concat(t, ',') == '1,2,3,4')\n"
        "local a, b = table.unpack({5, 6}) assert(a == 5 and b == 6)\n"
        "assert(table.concat(t, ',', 2, 3) == '2,3' and table.concat(t, ',', 3) == '3,4' and table.concat(t, ',', 3, 2) == '')\n"
        "assert(table.concat(t, ',', nil, 2) == '1,2' and table.concat({[-1] = 'x', [0] = 'y'}, '', -1) == 'xy')\n"
        "local last = 0x7fffffffffffffff\n"
        "assert(table.concat({[last] = 'x'}, ',', last, last) == 'x' and table.concat(t, ',', last, -last - 1) == '')\n"
        "assert(select('#', table.unpack(t, 2)) == 3 and table.unpack(t, 2) == 2)\n"
        "assert(select('#', table.unpack(t, 2, 3)) == 2 and select('#', table.unpack(t, 3, 2)) == 0)\n"
        "a, b = table.unpack(t, 4, 5) assert(a == 4 and b == nil and table.unpack(t, nil, 1) == 1)\n"
        "a, b = table.unpack({[last] = 'x'}, last - 1, last) assert(a == nil and b == 'x')\n"
        "assert(('ab'):rep(3, '-') == 'ab-ab-ab' and ('x'):rep(-1) == '')\n"
        "assert(string.format('%d %5.2f %s %x %%', 3, 1.5, 'x', 255) == '3  1.50 x ff %')\n"
        "assert(string.format('%s %s %s', 1, true, nil) == '1 true nil')\n"
        "assert(('Abc'):upper():lower():sub(2, -1):len() == 2)\n"
        "assert(tostring(1.5) == '1.5' and tostring({}) == 'table' and tostring(nil) == 'nil' and tostring(false) == 'false')\n"
        "assert(math.floor(2.5) == 2 and math.sqrt(16) == 4 and math.type(1) == 'integer')\n"
        "local seen = {} for k, v in pairs { c = 3, a = 1, b = 2, 7, 8 } do seen[#seen + 1] = k .. '=' .. v end\n"
        "assert(table.concat(seen, ' ') == '1=7 2=8 a=1 b=2 c=3')\n"
        "local u = { a = 1, b = 2, c = 3 } local n = 0\n"
        "for k in pairs(u) do u.b = nil n = n + 1 end\n"
        "assert(n == 2)\n"
        "for _ in pairs {} do error('empty') end\n"
        "return 1";
    char error[KG_ERROR] = "";
    kg_sandbox *s = kg_sandbox_open(0, 0, 0);
    ck_assert_msg(!run(s, text, error), "%s", error);
    ck_assert_int_eq(lua_tointeger(kg_sandbox_lua(s), -1), 1);
    kg_sandbox_close(s);
}
END_TEST

START_TEST(library_rejections)
{
    static const struct { const char *text, *message; } cases[] = {
        {"table.concat({'a'}, ',', 'x')", "bad argument #3 to 'concat' (number expected, got string)"},
        {"table.concat({'a'}, ',', 1, 2)", "table.concat: element 2 is a nil"},
        {"table.concat({}, '', 1.5)", "bad argument #3 to 'concat' (number has no integer representation)"},
        {"table.concat({}, '', -0x7fffffffffffffff - 1, 0x7fffffffffffffff)", "table.concat: element -9223372036854775808 is a nil"},
        {"table.unpack({}, 1, 201)", "table.unpack: 201 elements; at most 200"},
        {"table.unpack({}, -0x7fffffffffffffff - 1, 0x7fffffffffffffff)", "table.unpack: 9223372036854775807 elements; at most 200"},
        {"table.unpack({}, true)", "bad argument #2 to 'unpack' (number expected, got boolean)"},
        {"table.insert({}, 1, 2, 3)", "table.insert: 4 arguments; allowed: a table, a position or none, a value"},
        {"table.insert({})", "table.insert: 1 arguments; allowed: a table, a position or none, a value"},
        {"table.insert({}, 3, 2)", "bad argument #2 to 'insert' (position out of bounds)"},
    };
    char error[KG_ERROR];
    kg_sandbox *s = kg_sandbox_open(0, 0, 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ck_assert_int_eq(run(s, cases[i].text, error), KG_USER);
        ck_assert_msg(!strncmp(error, "text.lua:1: ", 12) && !strcmp(error + 12, cases[i].message), "%s: %s", cases[i].text, error);
    }
    kg_sandbox_close(s);
}
END_TEST

START_TEST(modules_stay_inside)
{
    char error[KG_ERROR];
    enter_folder();
    write_file("secret.lua", "return { secret = true }");
    ck_assert_int_eq(mkdir("inside", 0777), 0);
    ck_assert_int_eq(mkdir("inside-too", 0777), 0);
    ck_assert_int_eq(mkdir("shipped", 0777), 0);
    write_file("inside-too/a.lua", "return 1");
    write_file("inside/own.lua", "return 'own'");
    write_file("shipped/own.lua", "return 'shipped'");
    write_file("shipped/other.lua", "return 'other'");
    ck_assert_int_eq(symlink("../secret.lua", "inside/link.lua"), 0);
    ck_assert_int_eq(symlink("..", "inside/up"), 0);
    ck_assert_int_eq(symlink("../inside-too", "inside/beside"), 0);
    ck_assert_int_eq(symlink("own.lua", "inside/alias.lua"), 0);
    ck_assert_int_eq(mkfifo("inside/fifo.lua", 0666), 0);
    kg_sandbox *s = kg_sandbox_open("inside", "shipped", 0);
    static const struct { const char *text, *message; } cases[] = {
        {"return require 'link'", "text.lua:1: require \"link\": inside/link.lua leads out of its folder"},
        {"return require 'up.secret'", "text.lua:1: require \"up.secret\": inside/up/secret.lua leads out of its folder"},
        {"return require 'beside.a'", "text.lua:1: require \"beside.a\": inside/beside/a.lua leads out of its folder"},
        {"return require 'fifo'", "text.lua:1: require \"fifo\": inside/fifo.lua: not a regular file"},
        {"return require ''", "text.lua:1: require \"\": not a module name; allowed: words joined by dots, as in \"models.qwen3_8b\""},
        {"return require 'a..b'", "text.lua:1: require \"a..b\": not a module name; allowed: words joined by dots, as in \"models.qwen3_8b\""},
        {"return require '.own'", "text.lua:1: require \".own\": not a module name; allowed: words joined by dots, as in \"models.qwen3_8b\""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ck_assert_int_eq(run(s, cases[i].text, error), KG_USER);
        ck_assert_str_eq(error, cases[i].message);
    }
    ck_assert_int_eq(run(s, "return require 'own' .. require 'other' .. require 'alias'", error), KG_OK);
    ck_assert_str_eq(lua_tostring(kg_sandbox_lua(s), -1), "ownotherown");
    kg_sandbox_close(s);
    leave_folder();
}
END_TEST

// ---- the command -----------------------------------------------------------------------------------------------------

// Runs kittygen with shell-quoted arguments; returns its exit code, its output and errors in `output`.
static int command(const char *arguments, char output[16384])
{
    char line[2 * KG_PATH];
    snprintf(line, sizeof line, "'%s' 2>&1 %s", kittygen, arguments);
    return run_shell(line, output, 16384);
}

static const struct {
    const char *arguments;
    int code;
    const char *begins;
} commands[] = {
    {"--version", 0, "kittygen " KT_VERSION "\n"},
    {"--help", 0, "usage: kittygen COMMAND"},
    {"check --help", 0, "usage: kittygen check SPEC..."},
    {"new --help", 0, "usage: kittygen new --from-config FILE"},
    {"", 2, "kittygen: no command; see kittygen --help\n"},
    {"chekc", 2, "kittygen: unknown command 'chekc'; see kittygen --help; did you mean `check`?\n"},
    {"check", 2, "kittygen check: too few arguments\n"},
    {"check --jsno x", 2, "kittygen check: unknown option '--jsno'; see kittygen check --help; did you mean `--json`?\n"},
    {"check --json=1 x", 2, "kittygen check: --json takes no value\n"},
    {"check x --dtype", 2, "kittygen check: --dtype needs a value: fp16|bf16\n"},
    {"check --dtype=fp32 qwen3_8b", 2, "--dtype: \"fp32\" is not allowed; allowed: \"fp16\", \"bf16\"\n"},
    {"check --fields", 0, "name\n"},
    {"check --fields --json", 0, "[{\"field\": \"name\""},
    {"check qwen3-8b/kitty-pro", 0,
     "qwen3-8b.kitty-pro\n"
     "  model      36 layers, 32 query heads, 8 KV heads, head_dim 128, bf16\n"
     "  keys       2 bits, 32 of 128 channels at 4, groups of 128 tokens, window 0\n"
     "  values     2 bits, groups of 128 channels, window 128\n"
     "  page       128 tokens: 10368 bytes per KV head (header 16, keys 5744, values 4608); sink 32\n"
     "  per token  81 bytes per KV head; fp16 512, 6.32 times that\n"
     "  exact      114688 bytes per sequence and KV head\n"
     "  memory     210.9 MiB for one sequence of 8192 tokens; fp16 1152.0 MiB\n"},
    {"check -- --json", 2, "--json: no shipped model"},
    {"check no.lua qwen3_8b/int4", 2, "no.lua: No such file or directory\nqwen3-8b.int4\n"},
    {"check qwen3_8b/int4 > /dev/full", 3, "kittygen: cannot write to the standard output\n"},
    {"new", 2, "kittygen new: --from-config FILE is missing\n"},
    {"new --from-config c.json -o - --json", 2, "kittygen new: -o - prints the spec; it does not go with --json\n"},
    {"emit qwen3_8b/int4 --kernel attend -o out", 2, "kittygen emit: --kernel prints a source; it does not go with -o\n"},
    {"emit qwen3_8b/int4 --kernel attend --json", 2, "kittygen emit: --kernel prints a source; it does not go with --json\n"},
    {"new x", 2, "kittygen new: too many arguments\n"},
};

START_TEST(command_line)
{
    char output[16384];
    const int code = command(commands[_i].arguments, output);
    ck_assert_msg(code == commands[_i].code, "%s: exit code %d\n%s", commands[_i].arguments, code, output);
    ck_assert_msg(!strncmp(output, commands[_i].begins, strlen(commands[_i].begins)), "%s:\n%s", commands[_i].arguments, output);
}
END_TEST

START_TEST(check_json)
{
    char output[16384];
    ck_assert_int_eq(command("check qwen3-8b --json", output), 0);
    cJSON *root = cJSON_Parse(output);
    ck_assert_int_eq(cJSON_GetArraySize(root), VARIANTS);
    const cJSON *fp16 = cJSON_GetArrayItem(root, 1), *kitty = cJSON_GetArrayItem(root, 3);
    ck_assert_double_eq(cJSON_GetObjectItem(kitty, "bytes_per_token")->valuedouble, 77);
    ck_assert_double_eq(cJSON_GetObjectItem(kitty, "boosted_channels")->valuedouble, 16);
    ck_assert_double_eq(cJSON_GetObjectItem(fp16, "fp16_memory_bytes")->valuedouble, 36.0 * 8 * 8192 * 512);
    cJSON_Delete(root);
    ck_assert_int_eq(command("check no.lua --json 2> /dev/null", output), 2);
    ck_assert_str_eq(output, "[]\n");
}
END_TEST

START_TEST(new_spec)
{
    char output[16384];
    enter_folder();
    write_file("config.json", "{\"model_type\": \"qwen3\", \"num_attention_heads\": 32, \"num_key_value_heads\": 8, \"head_dim\": 128,\n"
                              " \"num_hidden_layers\": 36, \"torch_dtype\": \"bfloat16\", \"hidden_size\": 4096}");
    ck_assert_int_eq(command("new --from-config config.json", output), 0);
    ck_assert_str_eq(output, "qwen3.lua: written; next: kittygen check qwen3.lua\n");
    char *text = read_file("qwen3.lua");
    ck_assert_str_eq(text, "-- qwen3, from its config.json.\nreturn require \"variants.kitty_pro\" {\n    model = {\n        name = \"qwen3\",\n"
                           "        layers = 36,\n        q_heads = 32,\n        kv_heads = 8,\n        head_dim = 128,\n        dtype = \"bf16\",\n"
                           "    },\n}\n");
    free(text);
    kg_spec made = load_one("qwen3.lua");
    ck_assert_str_eq(made.name, "qwen3.kitty-pro");
    ck_assert_int_eq(made.model.q_heads, 32);

    // Kept, unless forced; nothing else is left behind.
    write_file("qwen3.lua", "mine");
    ck_assert_int_eq(command("new --from-config config.json", output), 2);
    ck_assert_str_eq(output, "qwen3.lua: exists; --force overwrites it\n");
    text = read_file("qwen3.lua");
    ck_assert_str_eq(text, "mine");
    free(text);
    ck_assert_int_eq(command("new --from-config config.json --force --name other --variant int4 -o qwen3.lua --json", output), 0);
    ck_assert_str_eq(output, "{\"file\": \"qwen3.lua\", \"model\": \"other\"}\n");
    ck_assert_str_eq(load_one("qwen3.lua").name, "other.int4");
    // What is no file is not replaced, whatever leads to it.
    struct stat info;
    ck_assert(!mkfifo("fifo.lua", 0600) && !symlink("fifo.lua", "link.lua") && !mkdir("folder.lua", 0700));
    static const char *const others[] = {"fifo.lua", "link.lua", "folder.lua"};
    for (int i = 0; i < 3; i++) {
        char arguments[64], expected[64];
        snprintf(arguments, sizeof arguments, "new --from-config config.json --force -o %s", others[i]);
        snprintf(expected, sizeof expected, "%s: not a regular file; nothing else is replaced\n", others[i]);
        ck_assert_int_eq(command(arguments, output), 2);
        ck_assert_str_eq(output, expected);
    }
    ck_assert(!lstat("fifo.lua", &info) && S_ISFIFO(info.st_mode) && !lstat("link.lua", &info) && S_ISLNK(info.st_mode));
    ck_assert(!unlink("fifo.lua") && !unlink("link.lua") && !rmdir("folder.lua"));
    ck_assert_int_eq(command("new --from-config config.json -o no/such/folder.lua", output), 2);
    ck_assert_str_eq(output, "no/such/folder.lua: cannot be written: No such file or directory\n");
    ck_assert_int_eq(command("new --from-config config.json -o x.txt", output), 2);
    ck_assert_str_eq(output, "kittygen new: -o x.txt is not allowed; allowed: a name that ends in .lua, - for standard output\n");
    ck_assert_int_ne(access("x.txt", F_OK), 0);
    ck_assert_int_eq(command("new --from-config config.json -o -", output), 0);
    ck_assert_msg(!strncmp(output, "-- qwen3", 8), "%s", output);
    ck_assert_int_eq(command("new --from-config config.json --variant kitti", output), 2);
    ck_assert_str_eq(output, "--variant: no shipped variant \"kitti\"; "
                             "shipped: best_2bit, fp16, int4, kitty, kitty_pro, kivi_2, kivi_2_sink" PUBLISHED "; did you mean `kitty`?\n");
    ck_assert_int_eq(command("new --from-config config.json --variant KIVI-4 -o kivi.lua", output), 0);
    ck_assert_str_eq(load_one("kivi.lua").name, "qwen3.kivi-4");
    ck_assert_int_eq(unlink("kivi.lua"), 0);
    // A calibration is looked for beside the spec.
    static const char with[] = "new --from-config config.json --variant kitty-static -o sub/s.lua --calibration";
    static const struct { const char *file, *expected; } calibrations[] = {
        {"no.safetensors", "(new spec):3: calibration: no file no.safetensors in the spec's folder or the shipped specs\n"},
        {"'a\"b'", "--calibration: a name with quotes, backslashes or control characters is not allowed\n"},
        {"c.safetensors", "(new spec):3: calibration: sub/c.safetensors: truncated: 4 bytes, but the header's length alone takes 8\n"},
    };
    ck_assert(!mkdir("sub", 0700));
    write_file("sub/c.safetensors", "none");
    for (int i = 0; i < 3; i++) {
        char arguments[160];
        snprintf(arguments, sizeof arguments, "%s %s", with, calibrations[i].file);
        ck_assert_int_eq(command(arguments, output), 2);
        ck_assert_str_eq(output, calibrations[i].expected);
    }
    ck_assert(!unlink("sub/c.safetensors") && !rmdir("sub"));

    // The language model of a multimodal one; heads = KV heads; head_dim from hidden_size; a scale of its own.
    write_file("nested.json", "{\"architectures\": [\"X\"], \"dtype\": \"float16\", \"text_config\": {\"_name_or_path\": \"org/My Model\", "
                              "\"num_attention_heads\": 4, \"hidden_size\": 384, \"num_hidden_layers\": 2, \"query_pre_attn_scalar\": 64}}");
    ck_assert_int_eq(command("new --from-config nested.json -o nested.lua", output), 0);
    made = load_one("nested.lua");
    ck_assert_str_eq(made.model.name, "my-model");
    ck_assert_int_eq(made.model.kv_heads, 4);
    ck_assert_int_eq(made.model.head_dim, 96);
    ck_assert_int_eq(made.model.dtype, KT_F16);
    ck_assert_double_eq(made.model.scale, 0.125);

    // A softmax scale as Granite has it; Falcon's KV heads, one or as many as the new architecture says; of kinds of layers the full ones.
    static const struct {
        const char *more;
        int layers, kv_heads;
        double scale;
    } read[] = {
        {"", 4, 16, 0},
        {"\"attention_multiplier\": 0.015625", 4, 16, 0.015625},
        {"\"attention_multiplier\": 0.125", 4, 16, 0}, // 1 / sqrt(head_dim), the default
        {"\"multi_query\": true, \"new_decoder_architecture\": false, \"num_kv_heads\": 16", 4, 1, 0},
        {"\"multi_query\": true, \"new_decoder_architecture\": true, \"num_kv_heads\": 8", 4, 8, 0},
        {"\"multi_query\": false, \"num_kv_heads\": null", 4, 16, 0},
        {"\"layer_types\": [\"full_attention\", \"sliding_attention\", \"full_attention\", \"x\"], \"sliding_window\": 4096", 2, 16, 0},
    };
    for (size_t i = 0; i < sizeof read / sizeof *read; i++) {
        char config[512];
        snprintf(config, sizeof config, "{\"num_attention_heads\": 16, \"hidden_size\": 1024, \"num_hidden_layers\": 4%s%s}",
                 *read[i].more ? ", " : "", read[i].more);
        write_file("nested.json", config);
        ck_assert_int_eq(command("new --from-config nested.json -o nested.lua --name m --dtype fp16 --force", output), 0);
        made = load_one("nested.lua");
        ck_assert_int_eq(made.model.layers, read[i].layers);
        ck_assert_int_eq(made.model.kv_heads, read[i].kv_heads);
        ck_assert_double_eq(made.model.scale, read[i].scale);
    }

    struct dirent **names;
    int count = scandir(".", &names, 0, alphasort); // ., .., config.json, nested.json, nested.lua, qwen3.lua
    ck_assert_int_eq(count, 6);
    while (count)
        free(names[--count]);
    free(names);
    leave_folder();
}
END_TEST

#define SHAPE "\"model_type\": \"m\", \"num_attention_heads\": 8, \"num_hidden_layers\": 2, \"head_dim\": 128"
#define SCALAR " is not allowed; allowed: numbers of which 1 / sqrt, the softmax scale, is 1e-30 to 16\n"
static const struct {
    const char *config, *options, *message;
} bad_configs[] = {
    {0, "", "config.json: No such file or directory\n"},
    {"", "", "config.json:1:1: malformed JSON\n"},
    {"{\"a\": 1,\n \"b\" 2}", "", "config.json:2:6: malformed JSON\n"},
    {"{} x", "", "config.json:1:4: malformed JSON\n"},
    {"[1]", "", "config.json: not a JSON object; a config.json is one\n"},
    {"{}", "", "config.json: num_hidden_layers: missing\n"},
    {"{\"num_hidden_layers\": 2}", "", "config.json: num_attention_heads: missing\n"},
    {"{\"num_hidden_layers\": \"2\"}", "", "config.json: num_hidden_layers: a text is not allowed; allowed: 1 to 1024\n"},
    {"{\"num_hidden_layers\": [2]}", "", "config.json: num_hidden_layers: a value that is no number is not allowed; allowed: 1 to 1024\n"},
    {"{\"num_hidden_layers\": 2.5}", "", "config.json: num_hidden_layers: 2.5 is not allowed; allowed: 1 to 1024, whole numbers\n"},
    {"{\"num_attention_heads\": 8, \"num_hidden_layers\": 2}", "",
     "config.json: head_dim: missing, and so is hidden_size, from which it would follow\n"},
    {"{\"num_attention_heads\": 8, \"num_hidden_layers\": 2, \"hidden_size\": 640}", "",
     "config.json: head_dim: 80 is not allowed; allowed: 64, 96, 128, 192, 256\n"},
    {"{" SHAPE "}", "", "config.json: torch_dtype: missing; give --dtype fp16 or --dtype bf16\n"},
    {"{" SHAPE ", \"torch_dtype\": \"float32\"}", "",
     "config.json: torch_dtype: \"float32\" is not allowed; allowed: \"float16\", \"bfloat16\"; or give --dtype fp16 or --dtype bf16\n"},
    {"{" SHAPE "}", "--dtype half", "--dtype: \"half\" is not allowed; allowed: \"fp16\", \"bf16\"\n"},
    {"{" SHAPE "}", "--dtype fp16 --name 'a b'",
     "--name: \"a b\" is not allowed; allowed: 1 to 63 letters, digits, '.', '_', '-', the first a letter or digit\n"},
    {"{" SHAPE "}", "--dtype fp16 --variant 'x\" }'",
     "--variant: no shipped variant \"x\" }\"; shipped: best_2bit, fp16, int4, kitty, kitty_pro, kivi_2, kivi_2_sink" PUBLISHED "\n"},
    {"{" SHAPE ", \"num_key_value_heads\": 3}", "--dtype fp16",
     "(new spec):6: model.q_heads: 8 with kv_heads 3 is not allowed; allowed: 1 to 16 times kv_heads\n"},
    {"{" SHAPE ", \"query_pre_attn_scalar\": 0}", "--dtype fp16", "config.json: query_pre_attn_scalar: 0" SCALAR},
    {"{" SHAPE ", \"query_pre_attn_scalar\": 1e308}", "--dtype fp16", "config.json: query_pre_attn_scalar: 1e+308" SCALAR},
    {"{" SHAPE ", \"query_pre_attn_scalar\": \"64\"}", "--dtype fp16", "config.json: query_pre_attn_scalar: \"64\"" SCALAR},
    {"{" SHAPE ", \"attention_multiplier\": 0}", "--dtype fp16",
     "config.json: attention_multiplier: 0 is not allowed; allowed: numbers from 1e-30 to 16\n"},
    {"{" SHAPE ", \"attention_multiplier\": 1, \"query_pre_attn_scalar\": 1}", "--dtype fp16",
     "config.json: attention_multiplier: query_pre_attn_scalar is given too; allowed: one of them\n"},
    {"{" SHAPE ", \"layer_types\": \"foo\", \"sliding_window\": 4096}", "--dtype fp16",
     "config.json: layer_types: is no list; allowed: a list of kinds, one for each layer\n"},
    {"{" SHAPE ", \"layer_types\": [\"full_attention\"]}", "--dtype fp16",
     "config.json: layer_types: 1 kinds with num_hidden_layers 2; allowed: one for each layer\n"},
    {"{\"model_type\": \"falcon\", \"hidden_size\": 4544, \"num_attention_heads\": 71, \"num_hidden_layers\": 32,"
     "\"multi_query\": true}", "--dtype bf16",
     "(new spec):6: model.q_heads: 71 with kv_heads 1 is not allowed; allowed: 1 to 16 times kv_heads\n"},
    {"{" SHAPE ", \"attn_logit_softcapping\": 50.0}", "--dtype fp16",
     "config.json: attn_logit_softcapping: a soft cap on logits is not supported\n"},
    {"{" SHAPE ", \"kv_lora_rank\": 512}", "--dtype fp16",
     "config.json: kv_lora_rank: multi-head latent attention has no keys and values per head; not supported\n"},
    {"{\"num_attention_heads\": 8, \"num_hidden_layers\": 2, \"head_dim\": 64}", "--dtype fp16",
     "config.json: model_type: missing; give --name NAME\n"},
};

START_TEST(bad_config)
{
    char output[16384], arguments[256];
    enter_folder();
    if (bad_configs[_i].config)
        write_file("config.json", bad_configs[_i].config);
    snprintf(arguments, sizeof arguments, "new --from-config config.json -o out.lua %s", bad_configs[_i].options);
    ck_assert_int_eq(command(arguments, output), 2);
    ck_assert_str_eq(output, bad_configs[_i].message);
    ck_assert_int_ne(access("out.lua", F_OK), 0);
    leave_folder();
}
END_TEST

// ----------------------------------------------------------------------------------------------------------------------

static int set_paths(void)
{
    const char *given = getenv("KT_TEST_DATA"), *binary = getenv("KT_KITTYGEN");
    char path[2 * KG_PATH], executable[KG_PATH];
    if (!realpath(given ? given : KT_TEST_DATA, data))
        return 0;
    snprintf(path, sizeof path, "%s/../specs", data);
    if (!getenv("KT_SPECS"))
        setenv("KT_SPECS", path, 1);
    if (!realpath(getenv("KT_SPECS"), executable))
        return 0;
    setenv("KT_SPECS", executable, 1);
    const ssize_t length = readlink("/proc/self/exe", executable, sizeof executable - 1);
    executable[length < 0 ? 0 : length] = 0;
    char *slash = strrchr(executable, '/');
    static const char *const places[] = {"", "/.."};
    for (int i = 0; i < 2 && slash && !binary; i++) {
        *slash = 0;
        snprintf(path, sizeof path, "%s%s/kittygen", executable, places[i]);
        if (!access(path, X_OK))
            binary = path;
    }
    if (!realpath(binary ? binary : "kittygen", kittygen))
        return 0;
    snprintf(path, sizeof path, "%s/bad", data);
    bad_count = scandir(path, &bad, is_lua, alphasort);
    return bad_count > 0;
}

int main(void)
{
    if (!set_paths()) {
        fprintf(stderr, "test_spec: set KT_TEST_DATA, KT_SPECS and KT_KITTYGEN\n");
        return 1;
    }
    Suite *suite = suite_create("spec");
    TCase *specs = tcase_create("specs"), *limits = tcase_create("rejections"), *shell = tcase_create("command");
    tcase_set_timeout(limits, 60);
    tcase_set_timeout(shell, 60);
    tcase_add_loop_test(specs, shipped_models, 0, MODELS);
    tcase_add_loop_test(specs, published_variants, 0, sizeof published / sizeof *published);
    tcase_add_loop_test(specs, calibrated_variants, 0, 2);
    tcase_add_test(specs, command_line_names);
    tcase_add_loop_test(specs, wrong_command_line_names, 0, sizeof wrong_names / sizeof *wrong_names);
    tcase_add_test(specs, no_shipped_specs);
    tcase_add_test(specs, tutorial_and_sweep);
    tcase_add_test(specs, defaults);
    tcase_add_test(specs, composition);
    tcase_add_test(specs, exact_tokens);
    tcase_add_test(specs, whole_range);
    tcase_add_test(specs, json);
    tcase_add_test(specs, lines);
    tcase_add_test(specs, nearest);
    tcase_add_test(specs, texts);
    tcase_add_loop_test(limits, rejections, 0, bad_count);
    tcase_add_test(limits, dead_for_good);
    tcase_add_test(limits, only_what_is_listed);
    tcase_add_test(limits, library);
    tcase_add_test(limits, library_rejections);
    tcase_add_test(limits, modules_stay_inside);
    tcase_add_loop_test(shell, command_line, 0, sizeof commands / sizeof *commands);
    tcase_add_test(shell, check_json);
    tcase_add_test(shell, new_spec);
    tcase_add_loop_test(shell, bad_config, 0, sizeof bad_configs / sizeof *bad_configs);
    suite_add_tcase(suite, specs);
    suite_add_tcase(suite, limits);
    suite_add_tcase(suite, shell);
    const int failed = run_suite(suite);
    for (int i = 0; i < bad_count; i++)
        free(bad[i]);
    free(bad);
    return failed;
}
