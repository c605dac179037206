// kittygen run: its arithmetic against plain loops, its schedule against what it promises, and the command from outside.
#include <cjson/cJSON.h>
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "emit.h"
#include "exact.h"
#include "inputs.h"
#include "internal.h"
#include "parallel.h"
#include "scenario.h"
#include "schedule.h"
#include "temporary.h"
#include "suite.h"

// ---- exact -----------------------------------------------------------------------------------------------------------

static double query_at(const float *query, int h, int c, int d) { return (double)query[h * d + c]; }

static void naive(const float *key, const float *value, int first, int wrap, int d, const float *query, int heads, int tokens,
                  double scale, double *out)
{
    for (int h = 0; h < heads; h++) {
        double sum = 0, most = -INFINITY;
        for (int pass = 0; pass < 2; pass++) {
            for (int c = 0; c < d; c++)
                out[h * d + c] = 0;
            sum = 0;
            for (int t = 0; t < tokens; t++) {
                const int at = (first + t) % wrap;
                double logit = 0;
                for (int c = 0; c < d; c++)
                    logit += query_at(query, h, c, d) * (double)key[at * d + c];
                logit *= scale;
                if (!pass && logit > most)
                    most = logit;
                const double p = exp(logit - most);
                sum += p;
                for (int c = 0; c < d; c++)
                    out[h * d + c] += p * (double)value[at * d + c];
            }
        }
        for (int c = 0; c < d; c++)
            out[h * d + c] /= sum;
    }
}

START_TEST(exact_attention)
{
    static const struct {
        int d, heads, tokens, first, wrap;
    } cases[] = {{64, 3, 1, 0, 1}, {64, 1, 33, 30, 40}, {96, 5, 100, 99, 100}, {256, 16, 7, 0, 9}, {128, 8, 250, 77, 83}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const int d = cases[i].d, heads = cases[i].heads, tokens = cases[i].tokens, wrap = cases[i].wrap;
        float *key = malloc(sizeof *key * (size_t)(wrap * d)), *value = malloc(sizeof *value * (size_t)(wrap * d));
        float *query = malloc(sizeof *query * (size_t)(heads * d));
        double *out = malloc(sizeof *out * (size_t)(heads * d)), *expected = malloc(sizeof *out * (size_t)(heads * d));
        double *scratch = malloc(sizeof *scratch * (size_t)(heads * (tokens + 2 * d)));
        kg_random_keys(KG_KEYS_OUTLIER, i, 0, 0, wrap, d, key);
        kg_random_rows(i, 1, 0, 0, wrap, d, value);
        kg_random_rows(i, 0, 0, 0, heads, d, query);
        const kg_rows keys = {key, cases[i].first, wrap}, values = {value, cases[i].first, wrap};
        kg_exact_attend(keys, values, d, query, heads, tokens, 0.3, out, scratch);
        naive(key, value, cases[i].first, wrap, d, query, heads, tokens, 0.3, expected);
        kg_error error = {0};
        kg_error_add(&error, expected, out, heads * d);
        ck_assert_double_gt(error.reference, 0);
        ck_assert_double_lt(kg_error_relative(error), 1e-12);
        free(key), free(value), free(query), free(out), free(expected), free(scratch);
    }
}
END_TEST

START_TEST(error_sums)
{
    const double reference[] = {3, 4}, value[] = {3, 4.5}, broken[] = {3, NAN}, zero[] = {0, 0};
    kg_error error = {0}, sum = {0};
    ck_assert_double_eq(kg_error_relative(error), 0);
    kg_error_add(&error, reference, value, 2);
    ck_assert_double_eq(kg_error_relative(error), 0.1);
    kg_error_join(&sum, error);
    kg_error_join(&sum, error);
    ck_assert_double_eq(kg_error_relative(sum), 0.1);
    kg_error_add(&error, reference, broken, 2);
    ck_assert(isinf(kg_error_relative(error)));
    kg_error none = {0};
    kg_error_add(&none, zero, value, 2);
    ck_assert(isinf(kg_error_relative(none)));
}
END_TEST

// Written twice, once here and once in the runtime: both must agree on every element and on any float.
START_TEST(conversions)
{
    kg_random random = kg_random_seed(7, 7);
    for (int dtype = 0; dtype < 2; dtype++) {
        for (unsigned e = 0; e < 65536; e++) {
            const float ours = kg_to_float(dtype, (uint16_t)e), theirs = kt__to_float(dtype, (unsigned short)e);
            ck_assert(isnan(ours) ? isnan(theirs) : !memcmp(&ours, &theirs, sizeof ours));
            if (!isnan(ours))
                ck_assert_uint_eq(kg_from_float(dtype, ours), e);
        }
        for (int i = 0; i < 2000000; i++) {
            uint32_t bits = (uint32_t)kg_random_next(&random);
            if (i & 1) // ties of fp16
                bits = (bits & 0xffffe000u) | 0x1000;
            float value;
            memcpy(&value, &bits, sizeof value);
            if (!isnan(value))
                ck_assert_uint_eq(kg_from_float(dtype, value), kt__from_float(dtype, value));
        }
    }
}
END_TEST

START_TEST(random_numbers)
{
    enum { TOKENS = 4096, D = 64 };
    static float rows[TOKENS * D];
    kg_random random = kg_random_seed(1, 2);
    ck_assert_uint_eq(kg_random_next(&random), 0x65844c5d623db2daULL); // the same on every machine
    kg_random_rows(3, 1, 0, 0, TOKENS, D, rows);
    double sum = 0, squares = 0;
    for (int i = 0; i < TOKENS * D; i++) {
        sum += (double)rows[i];
        squares += (double)(rows[i] * rows[i]);
    }
    ck_assert_double_lt(fabs(sum / (TOKENS * D)), 0.01);
    ck_assert_double_lt(fabs(squares / (TOKENS * D) - 1), 0.01);
    for (int kind = 0; kind < KG_KEYS_COUNT; kind++) {
        double widest = 0, farthest = 0;
        kg_random_keys((kg_keys)kind, 3, 0, 0, TOKENS, D, rows);
        for (int c = 0; c < D; c++) {
            double mean = 0, variance = 0;
            for (int t = 0; t < TOKENS; t++)
                mean += (double)rows[t * D + c] / TOKENS;
            for (int t = 0; t < TOKENS; t++)
                variance += pow((double)rows[t * D + c] - mean, 2) / TOKENS;
            widest = fmax(widest, sqrt(variance));
            farthest = fmax(farthest, fabs(mean));
        }
        static const double width[][2] = {{1.9, 6.2}, {7.9, 16.2}, {0.2, 0.51}}, mean[][2] = {{0.5, 1.5}, {0.5, 2}, {4, 8.1}};
        ck_assert_msg(widest > width[kind][0] && widest < width[kind][1], "%s: %g", kg_keys_names[kind], widest);
        ck_assert_msg(farthest > mean[kind][0] && farthest < mean[kind][1], "%s: %g", kg_keys_names[kind], farthest);
    }
}
END_TEST

static void count_call(void *context, int index, int worker)
{
    ck_assert_int_lt(worker, kg_parallel_workers());
    ((int *)context)[index]++;
}

START_TEST(parallel_calls)
{
    int calls[1000] = {0};
    kg_parallel(1000, count_call, calls);
    for (int i = 0; i < 1000; i++)
        ck_assert_int_eq(calls[i], 1);
    kg_parallel(0, count_call, calls);
}
END_TEST

// ---- schedule --------------------------------------------------------------------------------------------------------

static kg_spec *load(const char *what, int expected)
{
    char error[KG_ERROR];
    kg_spec *specs;
    int count;
    ck_assert_msg(!kg_spec_load(what, 0, &specs, &count, error, sizeof error), "%s", error);
    ck_assert_int_eq(count, expected);
    return specs;
}

START_TEST(schedule_promises)
{
    kg_spec *specs = load("smollm2-135m", 7);
    for (int i = 0; i < 7; i++) {
        const kg_spec *spec = &specs[i];
        kg_schedule s;
        ck_assert_int_eq(kg_schedule_make(spec, KG_STEPS, &s), KG_OK);
        int several = 0, waits = 0, takes_over = 0, seen[KG_VISITS] = {0};
        long total = 0;
        for (int step = 0; step < s.steps; step++) {
            int row = 0;
            for (int slot = 0; slot < KG_SLOTS; slot++) {
                const kg_turn *turn = &s.turns[step * KG_SLOTS + slot];
                const kg_turn *last = step ? turn - KG_SLOTS : 0;
                ck_assert_int_eq(turn->row, row);
                row += turn->fresh;
                total += turn->fresh;
                if (turn->visit < 0) {
                    ck_assert_int_eq(turn->fresh, 0);
                    continue;
                }
                if (!turn->before) {
                    ck_assert_int_eq(seen[turn->visit]++, 0);
                    ck_assert_int_gt(turn->fresh, 0);
                    takes_over += last && last->visit >= 0;
                } else {
                    ck_assert_int_eq(turn->before, last->before + last->fresh);
                    ck_assert_int_eq(turn->visit, last->visit);
                    several += turn->fresh > 1;
                    waits += !turn->fresh;
                }
            }
            ck_assert_int_le(row, s.most_rows);
        }
        ck_assert_int_eq(total, s.total);
        for (int v = 0; v < KG_VISITS; v++)
            ck_assert_int_eq(seen[v], 1);
        ck_assert_int_gt(several, 20);
        ck_assert_int_gt(waits, 20);
        ck_assert_int_gt(takes_over, 0);
        ck_assert_int_lt(s.tokens[0], spec->sink ? spec->sink : spec->page);
        ck_assert_int_eq((s.turns[1].fresh - spec->sink - spec->key.window) % spec->page, 0);
        ck_assert_int_gt(s.most_tokens, 2000);
        ck_assert_int_ge(kt_sealed_pages(s.most_tokens, spec->sink, spec->value.window, spec->page), 10);
        kg_schedule_free(&s);
    }
    free(specs);
}
END_TEST

// ---- a scenario ------------------------------------------------------------------------------------------------------

// Opens an engine for the spec on the CPU, on a package emitted for it.
static kt_engine *open_engine(const kg_spec *spec)
{
    char folder[KG_PATH], error[KG_ERROR];
    kt_engine *engine;
    ck_assert_msg(!kg_temporary_make(folder, error, sizeof error), "%s", error);
    ck_assert_msg(!kg_emit_package(spec, folder, error, sizeof error), "%s", error);
    const kt_open_args open = {.size = sizeof open, .package = folder, .device = KT_DEVICE_CPU};
    const kt_status status = kt_open(&open, &engine);
    kg_temporary_remove(folder);
    ck_assert_int_ne(access(folder, F_OK), 0);
    ck_assert_msg(!status, "%s", kt_message());
    return engine;
}

// An input that the kernels see otherwise than the check does is found, and where.
START_TEST(scenario_finds_errors)
{
    enum { STEPS = 12, LAYER = 1 };
    kg_spec *spec = load("smollm2-135m/kitty", 1);
    char error[KG_ERROR];
    kg_inputs inputs;
    ck_assert_msg(!kg_inputs_draw(spec, 2, 500, KG_KEYS_MILD, 1, &inputs, error, sizeof error), "%s", error);
    kt_engine *engine = open_engine(spec);
    kg_formats formats;
    ck_assert_ptr_null(kg_formats_of(spec, &formats));
    const kg_scenario scenario = {.spec = spec, .formats = &formats, .inputs = &inputs, .engine = engine, .steps = STEPS};
    kg_scenario_result good, bad;
    ck_assert_msg(!kg_scenario_run(&scenario, &good, error, sizeof error), "%s", error);
    ck_assert(kg_scenario_passed(&good));
    ck_assert_double_gt(good.kernel_error, 0);
    ck_assert_double_gt(good.quantisation_error, 1e-3);
    ck_assert_double_lt(good.quantisation_error, 1);
    ck_assert_int_gt(good.key_pages, 0);
    const long outputs = good.outputs;

    kg_layer *layer = &inputs.layers[LAYER];
    for (int c = 0; c < inputs.head_dim; c++) // token 0 of KV head 0, which visit 0 begins with
        layer->exact_value[c] += 4;
    ck_assert_msg(!kg_scenario_run(&scenario, &bad, error, sizeof error), "%s", error);
    ck_assert(!kg_scenario_passed(&bad));
    ck_assert_double_gt(bad.kernel_error, bad.kernel_limit);
    ck_assert_int_eq(bad.worst_layer, LAYER);
    ck_assert_int_eq(bad.worst_sequence, 0);
    ck_assert_int_ge(bad.misread, inputs.head_dim);
    ck_assert_int_eq(bad.outputs, outputs);
    ck_assert_double_eq(bad.layer_errors[0], good.layer_errors[0]);

    // Each count alone is a failure.
    long *const counts[] = {&good.unwritten, &good.stray, &good.misread, &good.leaked, &good.nonfinite, &good.overruns};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        *counts[i] = 1;
        ck_assert(!kg_scenario_passed(&good));
        *counts[i] = 0;
    }
    good.kernel_error = NAN;
    ck_assert(!kg_scenario_passed(&good));
    kg_scenario_free(&good);
    kg_scenario_free(&bad);
    kt_close(engine);
    kg_inputs_free(&inputs);
    free(spec);
}
END_TEST

START_TEST(device_memory)
{
    kg_spec *spec = load("smollm2-135m/fp16", 1);
    kt_engine *engine = open_engine(spec);
    void *memory;
    char bytes[100], back[100];
    ck_assert_int_eq(kt_memory_alloc(engine, sizeof bytes, &memory), KT_OK);
    ck_assert_uint_eq((uintptr_t)memory % 256, 0);
    ck_assert_int_eq(kt_memory_read(engine, back, memory, sizeof back), KT_OK);
    for (size_t i = 0; i < sizeof bytes; i++) {
        ck_assert_int_eq(back[i], 0);
        bytes[i] = (char)i;
    }
    ck_assert_int_eq(kt_memory_write(engine, memory, bytes, sizeof bytes, 0), KT_OK);
    ck_assert_int_eq(kt_memory_read(engine, back, memory, sizeof back), KT_OK);
    ck_assert_mem_eq(back, bytes, sizeof bytes);
    ck_assert_int_eq(kt_memory_alloc(engine, 0, &memory), KT_INVALID);
    ck_assert_str_eq(kt_message(), "kt_memory_alloc: bytes is 0");
    ck_assert_int_eq(kt_memory_write(engine, 0, bytes, 1, 0), KT_INVALID);
    ck_assert_str_eq(kt_message(), "kt_memory_write: to is null");
    ck_assert_int_eq(kt_memory_read(0, back, memory, 1), KT_INVALID);
    ck_assert_str_eq(kt_message(), "kt_memory_read: engine is null");
    kt_memory_free(engine, memory);
    kt_memory_free(engine, 0);
    kt_close(engine);
    free(spec);
}
END_TEST

// ---- the command -----------------------------------------------------------------------------------------------------

static char folder[KG_PATH], output[1 << 16];

static void setup(void)
{
    char error[KG_ERROR];
    ck_assert_msg(!kg_temporary_make(folder, error, sizeof error), "%s", error);
}

static void teardown(void) { kg_temporary_remove(folder); }

// Runs `kittygen run` with arguments in which a '%' stands for the test's folder; returns its exit code. What it printed,
// errors too, is in `output`.
static int run(const char *arguments)
{
    char command[4 * KG_PATH];
    const char *kittygen = getenv("KT_KITTYGEN");
    size_t used = (size_t)snprintf(command, sizeof command, "'%s' run --device cpu ", kittygen ? kittygen : "./kittygen");
    for (; *arguments; arguments++)
        used += (size_t)snprintf(command + used, sizeof command - used, *arguments == '%' ? "'%s'" : "%.1s",
                                 *arguments == '%' ? folder : arguments);
    snprintf(command + used, sizeof command - used, " 2>&1");
    return run_shell(command, output, sizeof output);
}

// Writes q.0, k.0 and v.0 of `tokens` tokens as FOLDER/name; q with `heads` heads; v ends `cut` bytes early; `metadata` is
// put at the head; element 5 of k is `fifth`.
static void write_kv(const char *name, const char *dtype, int heads, int tokens, int cut, const char *metadata, int fifth)
{
    char header[1024], path[2 * KG_PATH];
    const int q = tokens * heads * 64 * 2, kv = tokens * 3 * 64 * 2;
    const int length = snprintf(header, sizeof header,
                                "{%s\"q.0\":{\"dtype\":\"%s\",\"shape\":[%d,%d,64],\"data_offsets\":[0,%d]},"
                                "\"k.0\":{\"dtype\":\"%s\",\"shape\":[%d,3,64],\"data_offsets\":[%d,%d]},"
                                "\"v.0\":{\"dtype\":\"%s\",\"shape\":[%d,3,64],\"data_offsets\":[%d,%d]}}",
                                metadata, dtype, tokens, heads, q, dtype, tokens, q, q + kv, dtype, tokens, q + kv, q + 2 * kv);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    ck_assert_ptr_nonnull(file);
    for (int i = 0; i < 8; i++)
        fputc(i < 4 ? length >> 8 * i & 255 : 0, file);
    fwrite(header, 1, (size_t)length, file);
    const int bf16 = !strcmp(dtype, "BF16");
    kg_random random = kg_random_seed(1, 1);
    for (int i = 0; i < (q + 2 * kv - cut) / 2; i++) {
        const uint16_t element = i == q / 2 + 5 ? (uint16_t)fifth : kg_from_float(bf16, kg_random_normal(&random));
        fputc(element & 255, file);
        fputc(element >> 8, file);
    }
    ck_assert_int_eq(fclose(file), 0);
}

// Expects the exit code, and that what was printed is, or begins with, or contains a text; '%' as in run.
static void expect(const char *arguments, int code, const char *text)
{
    char expected[4 * KG_PATH];
    size_t used = 0;
    for (; *text; text++)
        used += (size_t)snprintf(expected + used, sizeof expected - used, *text == '%' ? "%s" : "%.1s", *text == '%' ? folder : text);
    const int got = run(arguments);
    ck_assert_msg(got == code, "%s: exit code %d, expected %d:\n%s", arguments, got, code, output);
    ck_assert_msg(strstr(output, expected) != 0, "%s: printed\n%s\nexpected\n%s", arguments, output, expected);
}

#define TINY " --steps 6 --layers 1 "

START_TEST(command_runs)
{
    expect("smollm2-135m/kitty-pro" TINY "--verbose", 0, "smollm2-135m.kitty-pro\n  memory ");
    ck_assert_ptr_nonnull(strstr(output, "data: random mild keys, seed 1; 1 layer\n"));
    ck_assert_ptr_nonnull(strstr(output, "all checks held"));
    ck_assert_ptr_null(strchr(output, '\033')); // no colour into a pipe
    expect("smollm2-135m/kitty --dtype bf16 --keys outlier --seed 5" TINY, 0, "random outlier keys, seed 5");
    expect("smollm2-135m/kitty --help", 0, "last 8 tokens");
}
END_TEST

// Layers that are kept in different ways: of those of the model the first of each.
START_TEST(command_layers)
{
    char path[2 * KG_PATH];
    double each[3];
    snprintf(path, sizeof path, "%s/layers.lua", folder);
    FILE *file = fopen(path, "w");
    ck_assert_ptr_nonnull(file);
    fputs("return require 'variants.kitty' { model = require 'models.smollm2_135m', layers = {\n"
          "    { first = 4, last = 9, key = { bits = 16 }, value = { bits = 16, window = 0 } }, { first = 29, value = { window = 256 } } } }\n", file);
    fclose(file);
    ck_assert_msg(run("%/layers.lua --steps 8 --json") == 0, "%s", output);
    const char *errors = strstr(output, "\"layer_errors\": [");
    ck_assert_msg(errors && sscanf(errors, "\"layer_errors\": [%lf, %lf, %lf]", &each[0], &each[1], &each[2]) == 3, "%s", output);
    ck_assert(each[0] > 1e-3 && each[1] == 0 && each[2] > 1e-3); // layers 0, 4 and 29
    remove(path);
}
END_TEST

START_TEST(command_json)
{
    ck_assert_int_eq(run("smollm2-135m/kitty --json" TINY), 0);
    cJSON *json = cJSON_Parse(output);
    ck_assert_msg(cJSON_IsObject(json), "%s", output);
    ck_assert_str_eq(cJSON_GetStringValue(cJSON_GetObjectItem(json, "spec")), "smollm2-135m.kitty");
    ck_assert_str_eq(cJSON_GetStringValue(cJSON_GetObjectItem(json, "device")), "cpu");
    ck_assert(cJSON_IsTrue(cJSON_GetObjectItem(json, "passed")));
    ck_assert_int_eq(cJSON_GetArraySize(cJSON_GetObjectItem(json, "layer_errors")), 1);
    const double error = cJSON_GetNumberValue(cJSON_GetObjectItem(json, "quantisation_error"));
    ck_assert_double_gt(error, 0);
    cJSON_Delete(json);
    // The same seed gives the same error, another seed another.
    ck_assert_int_eq(run("smollm2-135m/kitty --json --seed 1" TINY), 0);
    json = cJSON_Parse(output);
    ck_assert_double_eq(cJSON_GetNumberValue(cJSON_GetObjectItem(json, "quantisation_error")), error);
    cJSON_Delete(json);
    ck_assert_int_eq(run("smollm2-135m/kitty,fp16 --json --seed 2" TINY), 0);
    json = cJSON_Parse(output);
    ck_assert_int_eq(cJSON_GetArraySize(json), 2);
    const cJSON *item;
    cJSON_ArrayForEach(item, json) {
        const int exact = !strcmp(cJSON_GetStringValue(cJSON_GetObjectItem(item, "spec")), "smollm2-135m.fp16");
        const double other = cJSON_GetNumberValue(cJSON_GetObjectItem(item, "quantisation_error"));
        ck_assert(exact ? other == 0 : other > 0 && other != error);
    }
    cJSON_Delete(json);
}
END_TEST

// The first steps all have a prompt among them, and no time is one of steps without.
START_TEST(command_untimed)
{
    expect("smollm2-135m/kitty --steps 3 --layers 1", 0, "  time                not measured: no step was without a prompt\n");
    expect("smollm2-135m/kitty,fp16 --steps 3 --layers 1", 0, " 0.000e+00         -\n");
    expect("smollm2-135m/kitty --steps 3 --layers 1 --json", 0, "\"step_seconds\": null, ");
    expect("smollm2-135m/kitty" TINY, 0, " ms a step of 1 layers");
}
END_TEST

START_TEST(command_order)
{
    expect("smollm2-135m/int4,fp16 --order" TINY, 0, "order holds: int4 > fp16 = 0\n");
    ck_assert_ptr_nonnull(strstr(output, "spec "));
    // Two specs that a sweep file gives each other's names: int4 cannot be worse than 2 bits, so the order fails.
    char path[2 * KG_PATH];
    snprintf(path, sizeof path, "%s/swapped.lua", folder);
    FILE *file = fopen(path, "w");
    ck_assert_ptr_nonnull(file);
    fputs("local model = require \"models.smollm2_135m\"\n"
          "return { require \"variants.kitty\" { model = model, variant = \"int4\" },\n"
          "         require \"variants.int4\" { model = model, variant = \"kitty\" } }\n", file);
    fclose(file);
    expect("%/swapped.lua" TINY, 0, "order: kitty > int4 FAILS, in layer 0 (");
    ck_assert_ptr_nonnull(strstr(output, "order does not hold: kitty > int4\n"));
    expect("%/swapped.lua --order" TINY, 1, "order does not hold: kitty > int4\n");
    // One spec has no order, and is not run to find that out.
    expect("smollm2-135m/kitty --order --json" TINY, 2, "--order: one spec has no order");
    ck_assert_msg(!strstr(output, "\"spec\""), "it was run: %s", output);
}
END_TEST

#define LAYER "; allowed: a layer of the model, 0 to 29, for each of the file's (1), joined by commas\n"
START_TEST(command_files)
{
    write_kv("good", "F16", 9, 50, 0, "\"__metadata__\":{\"scale\":\"0.5\"},", 0);
    write_kv("brain", "BF16", 9, 20, 0, "", 0);
    write_kv("heads", "F16", 8, 50, 0, "", 0);
    write_kv("cut", "F16", 9, 50, 2, "", 0);
    write_kv("type", "U16", 9, 50, 0, "", 0);
    write_kv("scale", "F16", 9, 50, 0, "\"__metadata__\":{\"scale\":\"-1\"},", 0);
    write_kv("small", "F16", 9, 50, 0, "\"__metadata__\":{\"scale\":\"1e-300\"},", 0);
    write_kv("great", "F16", 9, 50, 0, "\"__metadata__\":{\"scale\":\"1e300\"},", 0);
    write_kv("least", "F16", 9, 50, 0, "\"__metadata__\":{\"scale\":\"1e-30\"},", 0);
    write_kv("most", "F16", 9, 50, 0, "\"__metadata__\":{\"scale\":\"16\"},", 0);
    static const char *const origins[][2] = {{"word", "foo"}, {"far", "5000000000"}, {"beyond", "30"}, {"few", ""}, {"many", "3,4"}, {"last", "29"}};
    for (size_t i = 0; i < sizeof origins / sizeof *origins; i++) {
        char metadata[64];
        snprintf(metadata, sizeof metadata, "\"__metadata__\":{\"layers\":\"%s\"},", origins[i][1]);
        write_kv(origins[i][0], "F16", 9, 50, 0, metadata, 0);
    }
    write_kv("none", "F16", 9, 0, 0, "", 0);
    write_kv("nan", "F16", 9, 50, 0, "", 0x7e00);
    write_kv("large", "BF16", 9, 50, 0, "", 0x4780); // 65536
    const char *spec = "smollm2-135m/kitty --steps 4 --kv ";
    static const struct {
        const char *arguments;
        int code;
        const char *text;
    } cases[] = {
        {"%/good --layers 1", 0, "data: %/good; 1 layer\n"},
        {"%/good --kv=%/brain", 0, "data: %/good, %/brain; 2 layers\n"},
        {"%/large --dtype bf16", 0, "all checks held"},
        {"%/absent", 2, "kittygen run: %/absent: cannot be opened: No such file or directory\n"},
        {"%/cut", 2, "kittygen run: %/cut: truncated: tensor \"v.0\" ends at byte 96000 of the data, the file at 95998\n"},
        {"%/heads", 2, "kittygen run: %/heads: tensor \"q.0\" has shape [50, 8, 64], expected [tokens, 9, 64]\n"},
        {"%/type", 2, "kittygen run: %/type: tensor \"q.0\" has dtype U16, expected one of F16 BF16 F32\n"},
        {"%/scale", 2, "kittygen run: %/scale: metadata \"scale\" is \"-1\"; allowed: 1e-30 to 16\n"},
        {"%/small", 2, "kittygen run: %/small: metadata \"scale\" is \"1e-300\"; allowed: 1e-30 to 16\n"},
        {"%/great", 2, "kittygen run: %/great: metadata \"scale\" is \"1e300\"; allowed: 1e-30 to 16\n"},
        {"%/word", 2, "kittygen run: %/word: metadata \"layers\" is \"foo\"" LAYER},
        {"%/far", 2, "kittygen run: %/far: metadata \"layers\" is \"5000000000\"" LAYER},
        {"%/beyond", 2, "kittygen run: %/beyond: metadata \"layers\" is \"30\"" LAYER},
        {"%/few", 2, "kittygen run: %/few: metadata \"layers\" is \"\"" LAYER},
        {"%/many", 2, "kittygen run: %/many: metadata \"layers\" is \"3,4\"" LAYER},
        {"%/last", 0, "all checks held"},
        {"%/least", 0, "all checks held"},
        {"%/most", 0, "all checks held"},
        {"%/none", 2, "kittygen run: %/none: tensor \"q.0\" has 0 tokens; 1 to 16777216 are allowed\n"},
        {"%/nan", 2, "kittygen run: %/nan: tensor \"k.0\": element 5, nan, is not finite in fp16\n"},
        {"%/large", 2, "kittygen run: %/large: tensor \"k.0\": element 5, 65536, is not finite in fp16\n"},
        {"%/good --layers 2", 2, "kittygen run: --layers 2: the --kv files hold 1\n"},
        {"%/good --device gpu", 2, "kittygen run: --device: 'gpu' is not allowed; allowed: auto, cuda, cpu"},
        {"%/good --keys mold", 2, "did you mean `mild`?"},
        {"%/good --keys outlier", 2, "kittygen run: --keys is of random inputs; it does not go with --kv\n"},
        {"%/good --seed 1", 2, "kittygen run: --seed is of random inputs; it does not go with --kv\n"},
        {"%/good --steps 0", 2, "--steps: '0' is not allowed; allowed: 1 to 100000\n"},
        {"%/good --layers 2x", 2, "--layers: '2x' is not allowed; allowed: 1 to 256\n"},
        {"", 2, "kittygen run: --kv needs a value: FILE\n"},
        {"%/good --kv /dev/null", 2, "kittygen run: /dev/null: not a regular file\n"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char arguments[256];
        snprintf(arguments, sizeof arguments, "%s%s", spec, cases[i].arguments);
        expect(arguments, cases[i].code, cases[i].text);
    }
    expect("smollm2-135m/kittie", 2, "kitty");
}
END_TEST

// No package is left behind in the cache folder.
START_TEST(command_cleans_up)
{
    char command[2 * KG_PATH];
    expect("smollm2-135m/kitty" TINY, 0, "all checks held");
    snprintf(command, sizeof command, "%s/cache", folder);
    ck_assert_int_eq(setenv("KT_CACHE_DIR", command, 1), 0);
    expect("smollm2-135m/kitty" TINY, 0, "all checks held");
    DIR *cache = opendir(command);
    ck_assert_ptr_nonnull(cache);
    for (struct dirent *entry; (entry = readdir(cache));)
        ck_assert_msg(strncmp(entry->d_name, "run-", 4) != 0, "left: %s", entry->d_name);
    closedir(cache);
    kg_temporary_remove(command);
    expect("smollm2-135m/kitty" TINY, 0, "all checks held");
}
END_TEST

// Inputs captured from a real model, with the outlier channels that real keys have.
START_TEST(command_real_keys)
{
    char arguments[2 * KG_PATH], path[KG_PATH];
    const char *data = getenv("KT_TEST_DATA");
    snprintf(path, sizeof path, "%s/data/smollm2.safetensors", data ? data : KT_TEST_DATA);
    snprintf(arguments, sizeof arguments, "smollm2-135m/kitty-pro --steps 40 --kv '%s'", path);
    expect(arguments, 0, "smollm2.safetensors; 4 layers\n");
    ck_assert_ptr_nonnull(strstr(output, "all checks held"));
}
END_TEST

int main(void)
{
    // The shipped folders, for this program and for the command.
    setenv("KT_SPECS", KT_TEST_DATA "/../specs", 0);
    setenv("KT_TEMPLATES", KT_TEST_DATA "/../templates", 0);
    Suite *suite = suite_create("run");
    TCase *parts = tcase_create("parts");
    tcase_set_timeout(parts, 280);
    tcase_add_test(parts, exact_attention);
    tcase_add_test(parts, error_sums);
    tcase_add_test(parts, conversions);
    tcase_add_test(parts, random_numbers);
    tcase_add_test(parts, parallel_calls);
    tcase_add_test(parts, schedule_promises);
    tcase_add_test(parts, scenario_finds_errors);
    tcase_add_test(parts, device_memory);
    suite_add_tcase(suite, parts);
    TCase *command = tcase_create("command");
    tcase_set_timeout(command, 280);
    tcase_add_checked_fixture(command, setup, teardown);
    tcase_add_test(command, command_runs);
    tcase_add_test(command, command_layers);
    tcase_add_test(command, command_json);
    tcase_add_test(command, command_untimed);
    tcase_add_test(command, command_order);
    tcase_add_test(command, command_files);
    tcase_add_test(command, command_cleans_up);
    tcase_add_test(command, command_real_keys);
    suite_add_tcase(suite, command);
    return run_suite(suite);
}
