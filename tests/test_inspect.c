// kittygen inspect: its pages against sealed ones, its launches against the runtime's, its bytes against those of kittygen bench.
#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "bench.h"
#include "engine.h"
#include "exact.h"
#include "inspect.h"
#include "suite.h"

static char output[1 << 18];

static kg_spec load_text(const char *text)
{
    kg_spec *specs;
    int count;
    char error[KG_ERROR];
    ck_assert_msg(!kg_spec_load_text("spec", text, strlen(text), 0, 0, &specs, &count, error, sizeof error), "%s", error);
    ck_assert_int_eq(count, 1);
    const kg_spec spec = specs[0];
    free(specs);
    return spec;
}

// ---- pages -----------------------------------------------------------------------------------------------------------

// Every byte of `bytes` lies in just one region. (Check writes a file at every assertion: one for all bytes.)
static void check_cover(const char *name, const kg_region *regions, int count, int bytes)
{
    int wrong = -1;
    unsigned char *seen = calloc(1, (size_t)bytes);
    ck_assert_int_lt(count, KG_REGIONS);
    for (int i = 0; i < count; i++)
        for (int k = 0; k < regions[i].count; k++)
            for (int b = 0; b < regions[i].size; b++) {
                const int at = regions[i].offset + k * regions[i].stride + b;
                if (at >= bytes || seen[at]++)
                    wrong = at;
            }
    ck_assert_msg(wrong < 0, "%s: byte %d is beyond the end or in two regions", name, wrong);
    for (int b = 0; b < bytes; b++)
        wrong = seen[b] ? wrong : b;
    ck_assert_msg(wrong < 0, "%s: byte %d is in no region", name, wrong);
    free(seen);
}

START_TEST(every_byte_once)
{
    static const char *const models[] = {"smollm2_135m", "phi3_mini", "qwen3_8b", "gemma3_270m", KT_TEST_DATA "/emulate/shapes.lua",
                                         KT_TEST_DATA "/../specs/sweeps/smollm2.lua", KT_TEST_DATA "/../specs/sweeps/gemma3.lua"};
    kg_region regions[KG_REGIONS];
    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        kg_spec *specs;
        int count;
        char error[KG_ERROR];
        ck_assert_msg(!kg_spec_load(models[m], 0, &specs, &count, error, sizeof error), "%s", error);
        for (int i = 0; i < count; i++) {
            kt_format f;
            ck_assert_ptr_null(kg_layout(&specs[i], &f));
            check_cover(specs[i].name, regions, kg_page_regions(&f, regions), f.block_bytes);
            check_cover(specs[i].name, regions, kg_slab_regions(&f, regions), f.slab_bytes);
            check_cover(specs[i].name, regions, kg_table_regions(&f, regions), f.table_bytes);
        }
        free(specs);
    }
}
END_TEST

#define MODEL "model = { name = 'm', layers = 1, q_heads = 1, kv_heads = 1, head_dim = 64, dtype = 'fp16' }"
enum { PAGE = 64, TOKENS = PAGE, DIM = 64 };

// One page of a spec without sinks and windows, sealed by the runtime.
static void seal(kt_engine *engine, const float *key, const float *value, unsigned char *block)
{
    kt_cache *cache;
    kt_batch *batch;
    kt_sequence sequence;
    uint16_t *elements = malloc(2 * TOKENS * DIM * sizeof *elements);
    for (int i = 0; i < TOKENS * DIM; i++) {
        elements[i] = kg_from_float(KT_F16, key[i]);
        elements[TOKENS * DIM + i] = kg_from_float(KT_F16, value[i]);
    }
    OK(kt_cache_open(engine, &(kt_cache_args){.size = sizeof(kt_cache_args), .budget_bytes = 1 << 20, .max_sequences = 1, .spare_slabs = 1}, &cache));
    OK(kt_sequence_open(cache, &sequence));
    OK(kt_batch_open(cache, &(kt_batch_args){.size = sizeof(kt_batch_args), .slots = 1, .max_tokens = TOKENS, .max_rows = TOKENS}, &batch));
    OK(kt_batch_set(batch, 0, sequence, TOKENS, -1));
    OK(kt_step_begin(batch, 0));
    OK(kt_append(batch, &(kt_append_args){.size = sizeof(kt_append_args), .key = elements, .value = elements + TOKENS * DIM}));
    OK(kt_step_commit(batch));
    OK(kt_read_block(cache, sequence, 0, 0, 0, block));
    kt_batch_close(batch);
    kt_cache_close(cache);
    free(elements);
}

// The region of a byte, and in which of its repetitions it is.
static const kg_region *region_of(const kg_region *regions, int count, int byte, int *tile)
{
    for (int i = 0; i < count; i++)
        for (*tile = 0; *tile < regions[i].count; ++*tile) {
            const int first = regions[i].offset + *tile * regions[i].stride;
            if (byte >= first && byte < first + regions[i].size)
                return &regions[i];
        }
    ck_abort_msg("byte %d is in no region", byte);
}

static const kg_region *region_that_says(const kg_region *regions, int count, const char *what)
{
    for (int i = 0; i < count; i++)
        if (strstr(regions[i].what, what))
            return &regions[i];
    ck_abort_msg("no region says \"%s\"", what);
}

// Data whose groups keep least and greatest: the first two of 32 that a group runs along have them, so that another element in between
// changes its own code alone. Channels 40 to 55 of keys are 8 times as wide: they are boosted.
static void fill(const kt_format *f, float *key, float *value)
{
    for (int t = 0; t < TOKENS; t++)
        for (int c = 0; c < DIM; c++) {
            const float width = !f->key_along && c >= 40 && c < 56 ? 8 : 1;
            const int k = f->key_along ? c : t, v = f->value_along ? t : c;
            key[t * DIM + c] = width * (k % 32 < 2 ? (k % 2 ? 1 : -1) : 0.9f);
            value[t * DIM + c] = v % 32 < 2 ? (v % 2 ? 1 : -1) : 0.9f;
        }
}

static const struct {
    const char *spec;
    int bits, boost_bits;
} sealed[] = {
    {"return kitty { " MODEL ", page = 64, sink = 0, key = { bits = 2, boost = { bits = 4, fraction = 0.25 } }, value = { bits = 2, window = 0 } }", 2, 4},
    {"return kitty { " MODEL ", page = 64, sink = 0, key = { bits = 4, group = 32, boost = { bits = 8, fraction = 0.25 } }, value = { bits = 4, group = 32, window = 0 } }",
     4, 8},
    {"return kitty { " MODEL ", page = 64, sink = 0, key = { bits = 8 }, value = { bits = 8, window = 0 } }", 8, 8},
    {"return kitty { " MODEL ", page = 64, sink = 0, key = { bits = 1, boost = { bits = 4, fraction = 0.25 } }, value = { bits = 3, window = 0 } }", 1, 4},
    {"return kitty { " MODEL ", page = 64, sink = 0, key = { bits = 3, along = 'channels', group = 32 }, value = { bits = 1, along = 'tokens', group = 32, window = 0 } }",
     3, 3},
};

// The bits of something that the text names for what `place` lies in: "bits 2 and 3 of channels 0 to 31; bit 4 of ...", as a set.
static unsigned bits_said(const char *what, const char *of, int place)
{
    unsigned bits = 0;
    for (const char *at = strstr(what, "bit"); at; at = strstr(at + 1, "bit")) {
        int low, high, first, last;
        char name[32];
        if (sscanf(at, "bits %d and %d of %31[a-z ]%d to %d", &low, &high, name, &first, &last) != 5) {
            ck_assert_msg(sscanf(at, "bit %d of %31[a-z ]%d to %d", &low, name, &first, &last) == 4, "%s", at);
            high = low;
        }
        name[strlen(name) - 1] = 0; // the blank
        if (!strcmp(name, of) && place >= first && place <= last)
            bits |= 1u << low | 1u << high;
    }
    return bits;
}

// Flips an element and looks which bytes change: only those of its own codes, in its own tile.
static void check_element(kt_engine *engine, const kt_format *f, bool is_key, int token, int channel, int boost_bits)
{
    kg_region regions[KG_REGIONS];
    const int count = kg_page_regions(f, regions), bits = is_key ? f->key_bits : f->value_bits;
    const bool boosted = is_key && f->key_boosted && channel >= 40 && channel < 56;
    float *data = malloc(2 * sizeof *data * TOKENS * DIM), *key = data, *value = data + TOKENS * DIM;
    unsigned char *before = calloc(2, (size_t)f->block_bytes), *after = before + f->block_bytes;
    fill(f, key, value);
    seal(engine, key, value, before);
    float *element = (is_key ? key : value) + token * DIM + channel;
    *element = -*element;
    seal(engine, key, value, after);
    unsigned seen = 0; // bits
    for (int b = 0; b < f->block_bytes; b++) {
        if (before[b] == after[b])
            continue;
        int tile;
        const kg_region *r = region_of(regions, count, b, &tile);
        ck_assert_int_eq(tile, token / 32);
        ck_assert(is_key ? b < f->value_tiles : b >= f->value_tiles);
        const unsigned own = bits_said(r->what, "channels", channel) | (boosted ? bits_said(r->what, "boosted channels", channel - 40) : 0);
        ck_assert_msg(own != 0, "%s token %d, channel %d changed byte %d: %s", is_key ? "key" : "value", token, channel, b, r->what);
        seen |= own;
    }
    ck_assert_uint_eq(seen, (1u << (boosted ? boost_bits : bits)) - 1);
    free(data);
    free(before);
}

START_TEST(sealed_pages)
{
    const kg_spec spec = load_text(sealed[_i].spec);
    kt_format f;
    ck_assert_ptr_null(kg_layout(&spec, &f));
    char error[KG_ERROR];
    kt_engine *engine = 0;
    ck_assert_msg(!kg_engine_open(&spec, KT_DEVICE_CPU, &engine, error, sizeof error), "%s", error);
    static const int elements[][2] = {{2, 2}, {31, 39}, {40, 41}, {63, 63}};
    for (size_t i = 0; i < sizeof elements / sizeof *elements; i++) {
        check_element(engine, &f, true, elements[i][0], elements[i][1], sealed[_i].boost_bits);
        check_element(engine, &f, false, elements[i][0], elements[i][1], 0);
    }

    // What is told of the rest: exponents, scales, zeros, the list, zeros between.
    kg_region regions[KG_REGIONS];
    const int count = kg_page_regions(&f, regions), steps = (1 << (f.key_along ? f.value_bits : f.key_bits)) - 1;
    float key[TOKENS * DIM], value[TOKENS * DIM];
    unsigned char *block = calloc(1, (size_t)f.block_bytes);
    uint16_t element;
    fill(&f, key, value);
    seal(engine, key, value, block);
    memcpy(&element, block + region_that_says(regions, count, "fp16 scales of channels")->offset + 2 * 7, 2);
    ck_assert_float_eq_tol(kg_to_float(0, element), 2.0f / (float)steps, 1e-3f);
    memcpy(&element, block + region_that_says(regions, count, "fp16 zeros of channels")->offset + 2 * 7, 2);
    ck_assert_float_eq(kg_to_float(0, element), -1);
    const kg_region *pairs = region_that_says(regions, count, "fp16 (scale, zero)");
    memcpy(&element, block + pairs->offset + pairs->stride + 2, 2);
    ck_assert_float_eq(kg_to_float(0, element), -1);
    ck_assert_int_eq((signed char)block[region_that_says(regions, count, "exponent of the values")->offset], (int)ceil(log2(2.0 / ((1 << f.value_bits) - 1))));
    for (int i = 0; i < f.key_boosted; i++)
        ck_assert_int_eq(block[region_that_says(regions, count, "boosted channels, ascending")->offset + i], 40 + i);
    for (int i = 0; i < count; i++)
        for (int b = 0; b < regions[i].size && !strncmp(regions[i].what, "zero", 4); b++)
            ck_assert_int_eq(block[regions[i].offset + b], 0);
    free(block);
    kt_close(engine);
}
END_TEST

// ---- costs -----------------------------------------------------------------------------------------------------------

static const kg_launch *launch_of(const kg_costs *c, const char *op)
{
    for (int i = 0; i < c->package.count; i++)
        if (!strcmp(c->launches[i].kernel->op, op) && *c->launches[i].when)
            return &c->launches[i];
    ck_abort_msg("no launch of %s", op);
}

static const kg_card *card_of(const char *name)
{
    for (int i = 0; i < kg_card_count; i++)
        if (!strcmp(kg_cards[i].name, name))
            return &kg_cards[i];
    ck_abort_msg("no card %s", name);
}

START_TEST(bytes)
{
    static const char *const specs[] = {"smollm2_135m/kitty_pro", "gemma3_270m/fp16", "qwen3_8b/kivi_2"};
    static const int batches[] = {1, 40}, contexts[] = {100, 8192};
    static kg_costs c;
    char error[KG_ERROR];
    for (int s = 0; s < 3; s++)
        for (int i = 0; i < 4; i++) {
            kg_spec *found;
            int count;
            const int batch = batches[i % 2], context = contexts[i / 2];
            ck_assert_msg(!kg_spec_load(specs[s], 0, &found, &count, error, sizeof error), "%s", error);
            const kg_spec spec = found[0];
            free(found);
            ck_assert_msg(!kg_costs_make(&spec, batch, context, card_of("h100"), &c, error), "%s", error);
            const kt_format *f = &c.package.formats[0].format;
            const int heads = spec.model.kv_heads, layers = spec.model.layers;
            const kg_launch *attend = launch_of(&c, "attend"), *append = launch_of(&c, "append");
            const double rows = 2.0 * batch * spec.model.q_heads * f->head_dim;
            const long splits = attend->grid[0] / batch;
            const double partial = splits > 1 ? (double)splits * batch * spec.model.q_heads * (f->head_dim + 2) * 4 : 0;
            ck_assert_double_eq(attend->written, rows + partial);
            ck_assert_double_eq(attend->read, batch * kg_bench_attend_bytes(f, heads, context - 1, 1) + rows + partial);
            // The mean over the steps of a page, as kittygen bench counts each.
            double appended = 0;
            for (int n = 4096; n < 4096 + f->page; n++)
                appended += batch * kg_bench_append_bytes(f, heads, n) / f->page;
            ck_assert_double_eq_tol(append->read + append->written, appended, 1e-9 * appended);
            const int pages = (context - f->sink - f->key_window) / f->page;
            ck_assert_double_eq(c.pages, (double)batch * layers * heads * (context > f->sink ? pages : 0) * f->block_bytes);
            ck_assert_double_eq(c.exact, (double)batch * layers * heads * f->slab_bytes);
            ck_assert_double_eq(c.plain, (double)batch * layers * heads * context * 4 * f->head_dim);
            ck_assert_double_eq(c.read, layers * (attend->read + append->read) + launch_of(&c, "check")->read + launch_of(&c, "advance")->read);
            kg_package_free(&c.package);
        }
}
END_TEST

// The runtime on a made-up H100 says what it launches.
START_TEST(launches)
{
    static const struct {
        const char *spec;
        int batch, context;
    } shapes[] = {{"smollm2_135m/kivi_2", 1, 8192}, {"smollm2_135m/kivi_2", 3, 1000}, {"gemma3_270m/int4", 2, 4096}, {"smollm2_135m/kitty", 200, 300}};
    static kg_costs c;
    char command[4096], error[KG_ERROR], expected[160];
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        kg_spec *specs;
        int count;
        snprintf(command, sizeof command, "LD_LIBRARY_PATH='%s' KT_CUDA_HOME='%s' FAKE_SCALE=20 FAKE_MEMORY_MB=1024 KT_LOG=2 '%s' bench %s --shapes %dx%d --ops "
                 "attend --layers 1 2>&1", getenv("KT_FAKE"), getenv("KT_FAKE"), getenv("KT_KITTYGEN"), shapes[i].spec, shapes[i].batch, shapes[i].context);
        ck_assert_int_eq(run_shell(command, output, sizeof output), 0);
        ck_assert_msg(!kg_spec_load(shapes[i].spec, 0, &specs, &count, error, sizeof error), "%s", error);
        ck_assert_msg(!kg_costs_make(&specs[0], shapes[i].batch, shapes[i].context, card_of("h100"), &c, error), "%s", error);
        static const char *const ops[] = {"attend", "append", "check", "advance"};
        for (int op = 0; op < 4; op++) {
            const kg_launch *l = launch_of(&c, ops[op]);
            snprintf(expected, sizeof expected, "launch %s grid %ld,%ld,%ld\n", l->kernel->name, l->grid[0], l->grid[1], l->grid[2]);
            ck_assert_msg(strstr(output, expected) != 0, "%s, %d x %d: no %sin %s", shapes[i].spec, shapes[i].batch, shapes[i].context, expected, output);
        }
        kg_package_free(&c.package);
        free(specs);
    }
}
END_TEST

// ---- the command -----------------------------------------------------------------------------------------------------

static int inspect(const char *arguments)
{
    char command[4096];
    snprintf(command, sizeof command, "'%s' inspect %s 2>&1", getenv("KT_KITTYGEN"), arguments);
    return run_shell(command, output, sizeof output);
}

static const struct {
    const char *arguments;
    int code;
    const char *says;
} cases[] = {
    {"", KG_USER, "too few arguments"},
    {"qwen3_8b/kity", KG_USER, "did you mean `kitty`?"},
    {"/nowhere/spec.lua", KG_USER, "kittygen inspect: /nowhere/spec.lua"},
    {"qwen3_8b/kitty --batch 0", KG_USER, "--batch: '0' is not allowed; allowed: 1 to 4096"},
    {"qwen3_8b/kitty --context 1", KG_USER, "--context: '1' is not allowed; allowed: 2 to 4194304"},
    {"qwen3_8b/kitty --card h1000", KG_USER, "--card: 'h1000' is not allowed; allowed: a100, a10, rtx3090, rtx4090, l40s, h100, h200, b200, rtx5090; did you mean `h100`?"},
    {"qwen3_8b/kitty --dtype fp8", KG_USER, "fp8"},
    {"qwen3_8b/kitty --jsn", KG_USER, "did you mean `--json`?"},
    {"qwen3_8b/kitty_pro", KG_OK, "page: 128 tokens of one layer and KV head, 10368 bytes, 81 a token; bf16 512"},
    {"phi3_mini/fp16 --card rtx4090", KG_OK, "does not fit the card: a block may have 101376 bytes of shared memory"},
    {"qwen3_8b/kitty_pro --batch 32", KG_OK, "  in all     6748.9 MiB, 1/5.46 of 36.0 GiB in bf16"},
    {"qwen3_8b/kitty_pro --dtype fp16", KG_OK, "in fp16"},
    {"--help", KG_OK, "what each kernel of a decode step costs"},
};

START_TEST(command)
{
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const int code = inspect(cases[i].arguments);
        ck_assert_msg(code == cases[i].code && strstr(output, cases[i].says), "inspect %s: exit %d: %s", cases[i].arguments, code, output);
    }
    ck_assert_int_eq(inspect("smollm2_135m --json --context 4096 --batch 2 --card l40s"), KG_OK);
    cJSON *json = cJSON_Parse(output), *one;
    ck_assert_int_eq(cJSON_GetArraySize(json), 7);
    cJSON_ArrayForEach(one, json)
    {
        double bytes = 0;
        const cJSON *r;
        cJSON *page = cJSON_GetObjectItem(one, "page");
        cJSON_ArrayForEach(r, cJSON_GetObjectItem(page, "regions"))
            bytes += cJSON_GetObjectItem(r, "bytes")->valuedouble * cJSON_GetObjectItem(r, "times")->valuedouble;
        ck_assert_double_eq(bytes, cJSON_GetObjectItem(page, "bytes")->valuedouble);
        ck_assert_int_eq(cJSON_GetObjectItem(one, "sequences")->valueint, 2);
        ck_assert_str_eq(cJSON_GetObjectItem(one, "arch")->valuestring, "sm_89");
        ck_assert_double_gt(cJSON_GetObjectItem(cJSON_GetObjectItem(one, "step"), "read")->valuedouble, 0);
    }
    cJSON_Delete(json);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("inspect");
    TCase *tests = tcase_create("inspect");
    setenv("KT_SPECS", KT_TEST_DATA "/../specs", 0);
    setenv("KT_TEMPLATES", KT_TEST_DATA "/../templates", 0);
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, every_byte_once);
    tcase_add_loop_test(tests, sealed_pages, 0, sizeof sealed / sizeof *sealed);
    tcase_add_test(tests, bytes);
    tcase_add_test(tests, launches);
    tcase_add_test(tests, command);
    suite_add_tcase(suite, tests);
    return run_suite(suite);
}
