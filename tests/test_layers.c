// Specs whose layers are kept in different ways: what the language makes of them, the package, and what it costs.
#include "reference.h"
#include "suite.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core.h"
#include "emit.h"
#include "inspect.h"
#include "temporary.h"

static kg_spec load(const char *text)
{
    char folder[KG_PATH], error[KG_ERROR] = "";
    kg_spec *specs, spec;
    int count;
    snprintf(folder, sizeof folder, "%s/emulate", ref_data());
    ck_assert_msg(!kg_spec_load_text("text.lua", text, strlen(text), folder, 0, &specs, &count, error, sizeof error), "%s", error);
    ck_assert_int_eq(count, 1);
    spec = *specs;
    free(specs);
    return spec;
}

#define MODEL(layers) "model = { name = 'm', layers = " #layers ", q_heads = 4, kv_heads = 2, head_dim = 64, dtype = 'fp16' }"
#define PRO "variant = 'pro', key = { bits = 2, range = 'least_squares', window = 32, boost = { bits = 4, fraction = 0.25, score = 'range' } }, " \
            "value = { bits = 2, group = 32, rotation = 'hadamard', window = 96 }, "

static void expect_layers(const kg_spec *spec, const char *expected)
{
    char text[64] = "";
    for (int layer = 0; layer < spec->model.layers; layer++)
        snprintf(text + strlen(text), sizeof text - strlen(text), "%d", spec->layer_way[layer]);
    ck_assert_str_eq(text, expected);
}

// ---- the language ----------------------------------------------------------------------------------------------------

// What an override does not give is as in the spec; of 16 bits nothing but the window.
START_TEST(inherits)
{
    const kg_spec s = load("return kitty { " MODEL(8) ", " PRO "layers = { { first = 6, last = 7, value = { bits = 4 } }, "
                           "{ first = 0, last = 1, key = { bits = 16 }, value = { bits = 16, window = 128 } }, "
                           "{ first = 2, key = { boost = { fraction = 0.5 } } }, { first = 3, key = { boost = false, bits = 3 } } } }");
    expect_layers(&s, "11230044");
    ck_assert_int_eq(s.more_count, 4);
    const kg_spec exact = kg_spec_way(&s, 1), half = kg_spec_way(&s, 2), three = kg_spec_way(&s, 3), values = kg_spec_way(&s, 4);
    ck_assert(exact.key.bits == 16 && exact.key.boost_bits == 16 && !exact.key.range && exact.key.window == 32);
    ck_assert(exact.value.bits == 16 && !exact.value.rotation && exact.value.window == 128);
    ck_assert(half.key.bits == 2 && half.key.boost_bits == 4 && half.key.boost_fraction == 0.5 && half.key.score == KG_SCORE_RANGE && half.key.range == 1);
    ck_assert(half.value.group == 32 && half.value.rotation == 1 && half.value.window == 96);
    ck_assert(three.key.bits == 3 && three.key.boost_bits == 3 && three.key.range == 1);
    ck_assert(values.value.bits == 4 && values.value.group == 32 && values.value.rotation == 1 && values.key.boost_bits == 4);
    ck_assert_str_eq(exact.name, "m.pro-f1");
    ck_assert_str_eq(exact.variant, "pro-f1");
    ck_assert_int_eq(exact.more_count, 0);
    ck_assert_int_eq(kg_spec_layers(&s, 1), 2);
    kg_text text = {0};
    kg_spec_list_layers(&text, &s, 0);
    ck_assert_str_eq(text.data, "4-5");
    text.size = 0;
    kg_spec_json(&text, &s);
    const char *layers = strstr(text.data, ", \"layers\": [");
    ck_assert_str_eq(layers, ", \"layers\": [{\"first\": 0, \"last\": 1, \"key\": {\"bits\": 16, \"window\": 32}, \"value\": {\"bits\": 16, \"window\": 128}}, "
                     "{\"first\": 2, \"last\": 2, \"key\": {\"bits\": 2, \"group\": 128, \"window\": 32, \"range\": \"least_squares\", \"boost\": {\"bits\": 4, "
                     "\"fraction\": 0.5, \"score\": \"range\", \"seed\": 0}}, \"value\": {\"bits\": 2, \"group\": 32, \"window\": 96, \"rotation\": \"hadamard\"}}, "
                     "{\"first\": 3, \"last\": 3, \"key\": {\"bits\": 3, \"group\": 128, \"window\": 32, \"range\": \"least_squares\"}, \"value\": {\"bits\": 2, "
                     "\"group\": 32, \"window\": 96, \"rotation\": \"hadamard\"}}, "
                     "{\"first\": 6, \"last\": 7, \"key\": {\"bits\": 2, \"group\": 128, \"window\": 32, \"range\": \"least_squares\", \"boost\": {\"bits\": 4, "
                     "\"fraction\": 0.25, \"score\": \"range\", \"seed\": 0}}, \"value\": {\"bits\": 4, \"group\": 32, \"window\": 96, \"rotation\": \"hadamard\"}}]}");
    kg_text_free(&text);

    char error[KG_ERROR];
    int count = 1;
    kg_spec *all = malloc(sizeof *all);
    *all = s;
    ck_assert(!kg_spec_split(&all, &count, error, sizeof error));
    ck_assert_int_eq(count, 5);
    ck_assert_str_eq(all[4].name, "m.pro-f4");
    ck_assert_int_eq(all[4].value.bits, 4);
    free(all);
}
END_TEST

static void expect_same_package(const kg_spec *a, const kg_spec *b)
{
    const kg_spec *const specs[] = {a, b};
    char error[KG_ERROR];
    static kg_package packages[2];
    kg_text texts[2] = {{0}};
    for (int i = 0; i < 2; i++) {
        ck_assert_msg(!kg_package_make(specs[i], 0, &packages[i], error, sizeof error), "%s", error);
        kg_manifest(&packages[i], &texts[i]); // it has the digests of the sources
    }
    ck_assert_str_eq(texts[0].data, texts[1].data);
    for (int i = 0; i < 2; i++) {
        kg_text_free(&texts[i]);
        texts[i] = (kg_text){0};
        kg_spec_json(&texts[i], specs[i]);
        kg_package_free(&packages[i]);
    }
    ck_assert_str_eq(texts[0].data, texts[1].data);
    kg_text_free(&texts[0]);
    kg_text_free(&texts[1]);
}

// What says the same is the same package, byte for byte.
START_TEST(folds)
{
    const kg_spec plain = load("return kitty { " MODEL(4) ", " PRO "}");
    const kg_spec equal = load("return kitty { " MODEL(4) ", " PRO "layers = { { first = 1, last = 2, key = { boost = { fraction = 0.251 } }, value = { bits = 2 } } } }");
    ck_assert_int_eq(equal.more_count, 0);
    expect_same_package(&plain, &equal);
    const kg_spec none = load("return kitty { " MODEL(4) ", " PRO "layers = false }");
    expect_same_package(&plain, &none);
    // Nothing is left of what no layer has.
    const kg_spec all = load("return kitty { " MODEL(4) ", variant = 'pro', key = { bits = 8 }, value = { bits = 8 }, layers = { "
                             "{ first = 2, last = 3, key = { bits = 4 }, value = { bits = 4 } }, { first = 0, last = 1, key = { bits = 4 }, value = { bits = 4 } } } }");
    const kg_spec four = load("return kitty { " MODEL(4) ", variant = 'pro', key = { bits = 4 }, value = { bits = 4 } }");
    ck_assert_int_eq(all.more_count, 0);
    expect_same_package(&four, &all);
    // A list in place of another, not element by element.
    const kg_spec over = load("return kitty({ " MODEL(4) ", layers = { { first = 0, last = 1, key = { bits = 4 } }, { first = 3, value = { bits = 4 } } } }, "
                              "{ layers = { { first = 2, key = { bits = 8 } } } })");
    expect_layers(&over, "0010");
}
END_TEST

// ---- the package -----------------------------------------------------------------------------------------------------

static const char mixed[] = "return kitty { " MODEL(4) ", " PRO "page = 64, layers = { { first = 0, key = { bits = 16 }, value = { bits = 16 } }, "
                            "{ first = 3, value = { bits = 4, window = 256 } } } }";

START_TEST(packages)
{
    const kg_spec s = load(mixed);
    static kg_package p;
    char error[KG_ERROR];
    expect_layers(&s, "1002");
    ck_assert_msg(!kg_package_make(&s, 0, &p, error, sizeof error), "%s", error);
    ck_assert_int_eq(p.format_count, 3);
    int appends = 0, others = 0;
    for (int i = 0; i < p.count; i++) {
        const kg_kernel *k = &p.kernels[i];
        char end[8] = "", bits[64];
        if (k->format)
            snprintf(end, sizeof end, "_f%d", k->format);
        ck_assert_msg(strlen(k->name) > strlen(end) && !strcmp(k->name + strlen(k->name) - strlen(end), end), "%s", k->name);
        ck_assert(k->format || !strstr(k->name, "_f"));
        appends += !strcmp(k->op, "append");
        others += !strcmp(k->op, "check") || !strcmp(k->op, "advance");
        snprintf(bits, sizeof bits, "constexpr int VALUE_BITS = %d;", k->format == 1 ? 16 : k->format ? 4 : 2);
        ck_assert_msg(strcmp(k->op, "append") || strstr(k->source.data, bits), "%s", k->name);
    }
    ck_assert_int_eq(appends, 3);
    ck_assert_int_eq(others, 2);
    ck_assert(!kg_package_take(&p, (int[]){3, 1, 3}, 3, error, sizeof error));
    ck_assert_int_eq(p.layers, 3);
    ck_assert(p.layer_formats[0] == 2 && p.layer_formats[1] == 0 && p.layer_formats[2] == 2);
    kg_package_free(&p);
}
END_TEST

// Of a calibration each layer gets what its own format takes.
START_TEST(tables)
{
#define STATIC "calibration = 'calibration.safetensors', key = { boost = { fraction = 0.25, score = 'static' } } }"
    const kg_spec all = load("return kitty { model = { name = 'm', layers = 2, q_heads = 2, kv_heads = 2, head_dim = 64, dtype = 'fp16' }, " STATIC);
    const kg_spec second = load("return kitty { model = { name = 'm', layers = 2, q_heads = 2, kv_heads = 2, head_dim = 64, dtype = 'fp16' }, "
                                "calibration = 'calibration.safetensors', layers = { { first = 1, key = { boost = { fraction = 0.25, score = 'static' } } } } }");
    const kg_spec one = load("return kitty { model = { name = 'm', layers = 2, q_heads = 2, kv_heads = 2, head_dim = 64, dtype = 'fp16' }, "
                             "calibration = 'calibration.safetensors', key = { boost = { fraction = 0.25, score = 'static' } }, "
                             "layers = { { first = 1, key = { bits = 16 } } } }");
    const kg_spec *const specs[] = {&all, &second, &one};
    static kg_package p[3];
    char error[KG_ERROR], folder[KG_PATH];
    for (int i = 0; i < 3; i++)
        ck_assert_msg(!kg_package_make(specs[i], 0, &p[i], error, sizeof error), "%s", error);
    const size_t layer = p[0].table_size / 2;
    ck_assert_uint_eq(layer, 2 * 128);
    ck_assert_uint_eq(p[1].table_size, layer);
    ck_assert_mem_eq(p[1].tables, p[0].tables + layer, layer);
    ck_assert_uint_eq(p[2].table_size, layer);
    ck_assert_mem_eq(p[2].tables, p[0].tables, layer);
    ck_assert_int_eq(kg_spec_way(&second, 1).calibration[0], 'c');
    ck_assert_int_eq(kg_spec_way(&second, 0).calibration[0], 0);
    ck_assert(!kg_package_take(&p[0], (int[]){1, 1, 0}, 3, error, sizeof error));
    ck_assert_uint_eq(p[0].table_size, 3 * layer);
    ck_assert_mem_eq(p[0].tables, p[1].tables, layer);
    ck_assert_mem_eq(p[0].tables + layer, p[1].tables, layer);
    ck_assert_mem_eq(p[0].tables + 2 * layer, p[2].tables, layer);
    // The runtime finds them.
    kt__package read;
    ck_assert(!kg_temporary_make(folder, error, sizeof error) && !kg_package_write(&p[1], folder, error, sizeof error));
    ck_assert_msg(kt__package_read(folder, &read) == KT_OK, "%s", kt_message());
    kg_temporary_remove(folder);
    ck_assert_uint_eq(kt__layer_tables(&read, 1), 0);
    ck_assert_uint_eq(kt__layer_tables(&read, 2), layer);
    kt__package_free(&read);
    for (int i = 0; i < 3; i++)
        kg_package_free(&p[i]);
}
END_TEST

static const struct {
    const char *from, *to, *message;
} bad[] = {
    {"\"layer_formats\": [1, 0, 0, 2]", "\"layer_formats\": [1, 0, 0, 3]", "layer_formats[3]: 3 is not an integer in 0..2"},
    {"\"layer_formats\": [1, 0, 0, 2]", "\"layer_formats\": [1, 0, 0]", "layer_formats: has 3 elements; expected one for each of 4 layers"},
    {"\"layer_formats\": [1, 0, 0, 2]", "\"other\": 0", "layer_formats: missing; expected a list"},
    {"\"layer_formats\": [1, 0, 0, 2]", "\"layer_formats\": 7", "layer_formats: 7 is not a list"},
    {"\"formats\": [", "\"formats\": [5, ", "formats[0]: 5 is not an object"},
    {"\"formats\": [", "\"formats\": 5, \"more\": [", "formats: 5 is not a list"},
    {"\"formats\": [", "\"formats\": [], \"more\": [", "formats: has 0 elements; expected 1..8"},
    {"\"formats\": [", "\"more\": [", "format: missing; expected an object"},
    {"\"op\": \"append\", \"format\": 2, \"file\"", "\"op\": \"append\", \"format\": 3, \"file\"", "format: 3 is not an integer in 0..2"},
    {"\"op\": \"append\", \"format\": 2, \"file\"", "\"op\": \"append\", \"format\": 1, \"file\"", "\"append_f2\" is a kernel for format 1, not for 2"},
    {"{\"op\": \"append\", \"format\": 2, \"sequences\": 0", "{\"op\": \"append\", \"format\": 2, \"sequences\": 1",
     "select: no row for append of format 2 with sequences 0 and pages 0; expected one that takes every shape"},
};

static char folder[KG_PATH], manifest[KG_PATH + 16];

static void emit_mixed(void)
{
    char error[KG_ERROR];
    const kg_spec s = load(mixed);
    ck_assert(!kg_temporary_make(folder, error, sizeof error));
    snprintf(manifest, sizeof manifest, "%s/manifest.json", folder);
    ck_assert_msg(!kg_emit_package(&s, folder, error, sizeof error), "%s", error);
}

static void remove_mixed(void) { kg_temporary_remove(folder); }

// Replaces the last of `from` in the manifest.
static void edit(const char *from, const char *to)
{
    char *text, error[KG_ERROR];
    const char *at = 0;
    size_t size;
    ck_assert(!kg_file_read(manifest, 1 << 20, &text, &size, error, sizeof error));
    for (const char *next = strstr(text, from); next; next = strstr(next + 1, from))
        at = next;
    ck_assert_msg(at != 0, "no %s", from);
    kg_text edited = {0};
    kg_text_bytes(&edited, text, (size_t)(at - text));
    kg_text_add(&edited, to);
    kg_text_add(&edited, at + strlen(from));
    ck_assert(!kg_file_write(manifest, edited.data, edited.size, 1, error, sizeof error));
    kg_text_free(&edited);
    free(text);
}

START_TEST(refuses)
{
    kt__package p;
    edit(bad[_i].from, bad[_i].to);
    ck_assert_int_eq(kt__package_read(folder, &p), KT_PACKAGE);
    ck_assert_msg(strstr(kt_message(), bad[_i].message), "%s", kt_message());
}
END_TEST

// What one package has one of.
START_TEST(refuses_unlike)
{
    kt__package p;
    edit("\"sink\": 32", "\"sink\": 31"); // the last format's: it has more than enough room
    ck_assert_int_eq(kt__package_read(folder, &p), KT_PACKAGE);
    ck_assert_msg(strstr(kt_message(), "formats[2].sink: 31 is not that of formats[0], 32; one package has one"), "%s", kt_message());
}
END_TEST

START_TEST(reads)
{
    kt__package p;
    ck_assert_msg(kt__package_read(folder, &p) == KT_OK, "%s", kt_message());
    ck_assert_int_eq(p.format_count, 3);
    ck_assert(kt__layer_format(&p, 0) == 1 && kt__layer_format(&p, 1) == 0 && kt__layer_format(&p, 3) == 2);
    const int reaches[] = {32 + 32, 32 + 96, 32 + 256}; // sinks and windows of 32, 96 and 256
    ck_assert_int_eq(p.reach_count, 3);
    ck_assert_mem_eq(p.reaches, reaches, sizeof reaches);
    kt__package_free(&p);
}
END_TEST

// ---- what it costs ---------------------------------------------------------------------------------------------------

START_TEST(engine)
{
    kt_engine *engine;
    kt_cache *cache = 0;
    kt_engine_info info = {.size = sizeof info};
    uint64_t block[5], slab[5], blocks = 0, slabs = 0, most = 0;
    OK(kt_open(&(kt_open_args){.size = sizeof(kt_open_args), .package = folder, .device = KT_DEVICE_CPU}, &engine));
    OK(kt_engine_query(engine, &info));
    for (int layer = 0; layer < 4; layer++) {
        OK(kt_layer_bytes(engine, layer, &block[layer], &slab[layer]));
        blocks += block[layer], slabs += slab[layer];
        most = slab[layer] > most ? slab[layer] : most;
    }
    ck_assert(block[0] > block[3] && block[3] > block[1] && block[1] == block[2]);
    ck_assert_uint_eq(info.block_bytes, block[0]);
    ck_assert_uint_eq(info.slab_bytes, most);
    FAILS(KT_INVALID, "kt_layer_bytes: layer is 4; m.pro has layers 0 to 3", kt_layer_bytes(engine, 4, &block[4], &slab[4]));
    kt_cache_args args = {.size = sizeof args, .max_sequences = 1, .kv_heads = 3, .budget_bytes = 3 * (slabs + 5 * blocks) + 3 * blocks - 1};
    OK(kt_cache_open(engine, &args, &cache));
    kt_cache_info held = {.size = sizeof held};
    OK(kt_cache_query(cache, &held));
    ck_assert_int_eq(held.pages, 5);
    ck_assert_uint_eq(held.bytes, 3 * (slabs + 5 * blocks));
    kt_cache_close(cache);
    args.layers = 5;
    FAILS(KT_INVALID, "kt_cache_open: layers is 5; m.pro says how 4 layers are kept, and they differ", kt_cache_open(engine, &args, &cache));
    args.layers = 2; // the first ones
    args.budget_bytes = 3 * (slab[0] + slab[1] + block[0] + block[1]);
    OK(kt_cache_open(engine, &args, &cache));
    kt_cache_close(cache);
    kt_close(engine);
}
END_TEST

START_TEST(costs)
{
    const kg_spec s = load(mixed);
    static kg_costs c;
    kg_formats f;
    char error[KG_ERROR];
    const int context = 5000;
    ck_assert_ptr_null(kg_formats_of(&s, &f));
    const double page = f.formats[1].block_bytes + 2.0 * f.formats[0].block_bytes + f.formats[2].block_bytes;
    const double exact = f.formats[1].slab_bytes + 2.0 * f.formats[0].slab_bytes + f.formats[2].slab_bytes;
    ck_assert_double_eq(kg_formats_token(&f), page / 4 / 64);
    ck_assert_msg(!kg_costs_make(&s, 3, context, &kg_cards[0], &c, error), "%s", error);
    ck_assert_double_eq(c.pages, 3 * 2 * page * ((context - 32 - 32) / 64)); // the format that seals first
    ck_assert_double_eq(c.exact, 3 * 2 * exact);
    double read = 0;
    for (int i = 0; i < c.package.count; i++)
        read += c.launches[i].read * (!strcmp(c.launches[i].when, "every layer") ? c.launches[i].kernel->format ? 1 : 2 : !strcmp(c.launches[i].when, "every step"));
    ck_assert_double_eq(c.read, read);
    kg_package_free(&c.package);
}
END_TEST

int main(void)
{
    char templates[KG_PATH];
    snprintf(templates, sizeof templates, "%s/../templates", ref_data());
    setenv("KT_TEMPLATES", templates, 0);
    Suite *suite = suite_create("layers");
    TCase *all = tcase_create("specs"), *made = tcase_create("packages");
    tcase_add_test(all, inherits);
    tcase_add_test(all, folds);
    tcase_add_test(all, packages);
    tcase_add_test(all, tables);
    tcase_add_test(all, costs);
    tcase_add_checked_fixture(made, emit_mixed, remove_mixed);
    tcase_add_loop_test(made, refuses, 0, sizeof bad / sizeof *bad);
    tcase_add_test(made, refuses_unlike);
    tcase_add_test(made, reads);
    tcase_add_test(made, engine);
    suite_add_tcase(suite, all);
    suite_add_tcase(suite, made);
    return run_suite(suite);
}
