// kittygen bench without a GPU: shapes, bytes, layers, percentiles, and the command from outside.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"
#include "layout.h"
#include "suite.h"

// ---- shapes ----------------------------------------------------------------------------------------------------------

START_TEST(shapes_on_the_command_line)
{
    kg_shape shapes[KG_BENCH_SHAPES];
    char error[KG_ERROR];
    int count;
    ck_assert_int_eq(kg_bench_shapes("1x4096,32x8192", shapes, &count, error), KG_OK);
    ck_assert_int_eq(count, 2);
    ck_assert_int_eq(shapes[0].sequences, 1);
    ck_assert_int_eq(shapes[0].tokens, 4096);
    ck_assert_int_eq(shapes[1].sequences, 32);
    ck_assert_int_eq(shapes[1].tokens, 8192);
    static const char *const bad[] = {"4096", "1x", "x4096", "0x4096", "1x1", "5000x4096", "1x4096x", "1x-5", "-1x5", "1 x4096", "1x99999999999999"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ck_assert_int_eq(kg_bench_shapes(bad[i], shapes, &count, error), KG_USER);
        ck_assert_ptr_nonnull(strstr(error, "is not allowed; allowed: SEQUENCESxTOKENS"));
    }
    ck_assert_int_eq(kg_bench_shapes("", shapes, &count, error), KG_USER);
}
END_TEST

static int from_file(const char *text, kg_shape *shapes, int *count, char *error)
{
    char path[] = "/tmp/kittygen-shapes-XXXXXX";
    const int file = mkstemp(path);
    ck_assert_int_ge(file, 0);
    ck_assert_int_eq(write(file, text, strlen(text)), (ssize_t)strlen(text));
    close(file);
    const int code = kg_bench_shapes(path, shapes, count, error);
    unlink(path);
    return code;
}

START_TEST(shapes_in_a_file)
{
    kg_shape shapes[KG_BENCH_SHAPES];
    char error[KG_ERROR], many[8 * (KG_BENCH_SHAPES + 1) + 1] = "";
    int count;
    ck_assert_int_eq(from_file("# all of them\n1x4096, 8x8192\n\n32x8192 # the usual\n64x2", shapes, &count, error), KG_OK);
    ck_assert_int_eq(count, 4);
    ck_assert_int_eq(shapes[1].sequences, 8);
    ck_assert_int_eq(shapes[3].tokens, 2);
    ck_assert_int_eq(from_file("1x4096\n7y9\n", shapes, &count, error), KG_USER);
    ck_assert_ptr_nonnull(strstr(error, "'7y9' is not allowed"));
    ck_assert_int_eq(from_file("# none\n", shapes, &count, error), KG_USER);
    for (int i = 0; i < KG_BENCH_SHAPES; i++)
        strcat(many, "1x4096\n");
    ck_assert_int_eq(from_file(many, shapes, &count, error), KG_OK);
    ck_assert_int_eq(count, KG_BENCH_SHAPES);
    strcat(many, "1x4096\n");
    ck_assert_int_eq(from_file(many, shapes, &count, error), KG_USER);
}
END_TEST

// ---- bytes -----------------------------------------------------------------------------------------------------------

// Token by token: which are sealed once `tokens` have come, by the rule of the paper.
static double counted(const kt_format *f, int kv_heads, int tokens, int fresh)
{
    const int windows[2] = {f->key_window, f->value_window};
    const double parts[2] = {(double)f->key_tiles + f->page / 32 * f->key_tile_bytes, (double)f->page / 32 * f->value_tile_bytes};
    double bytes = 0;
    for (int part = 0; part < 2; part++) {
        int sealed = 0;
        for (int n = 1; n <= tokens; n++)
            if (n - f->sink - windows[part] >= (sealed + 1) * f->page)
                sealed++;
        bytes += sealed * parts[part];
        for (int t = 0; t < tokens + fresh; t++)
            if (t < f->sink || t >= f->sink + sealed * f->page)
                bytes += 2.0 * f->head_dim;
    }
    return kv_heads * bytes;
}

static const char *const models[] = {"qwen3_8b", "smollm2_135m"};

START_TEST(bytes_of_every_variant)
{
    static const int lengths[] = {0, 1, 31, 32, 159, 160, 161, 287, 288, 289, 1000, 4095, 8191};
    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        kg_spec *specs;
        char error[KG_ERROR];
        int count;
        ck_assert_int_eq(kg_spec_load(models[m], 0, &specs, &count, error, sizeof error), KG_OK);
        ck_assert_int_ge(count, 6);
        for (int s = 0; s < count; s++) {
            kt_format f;
            const int heads = specs[s].model.kv_heads;
            double appended = 0;
            int completed = 0;
            ck_assert_ptr_null(kg_layout(&specs[s], &f));
            for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
                const int n = lengths[i];
                ck_assert_double_eq(kg_bench_attend_bytes(&f, heads, n, 1), counted(&f, heads, n, 1));
                ck_assert_double_eq(kg_bench_seal_bytes(&f, heads, n), counted(&f, heads, n, 0) + 4.0 * n * f.head_dim * heads);
            }
            // Token by token each is read and written; what is sealed is read once more, and its page written.
            for (int n = 0; n < 1000; n++) {
                const double one = kg_bench_append_bytes(&f, heads, n), plain = 8.0 * f.head_dim * heads;
                ck_assert_int_eq(kg_bench_completes(&f, n), one > plain);
                completed += kg_bench_completes(&f, n);
                appended += one;
            }
            const double exact_then = 4.0 * f.head_dim * 1000 * heads, now = counted(&f, heads, 1000, 0);
            const int keys = (1000 - f.sink - f.key_window) / f.page, values = (1000 - f.sink - f.value_window) / f.page;
            const double sealed = 2.0 * f.head_dim * f.page * (keys + values) * heads, parts = now - (exact_then - sealed);
            ck_assert_double_eq(appended, 2 * exact_then + sealed + parts);
            ck_assert_int_ge(completed, values);
        }
        free(specs);
    }
}
END_TEST

START_TEST(numbers)
{
    float samples[100];
    kg_time time;
    for (int i = 0; i < 100; i++)
        samples[i] = (float)((i * 37) % 100 + 1); // 1 to 100
    kg_bench_percentiles(samples, 100, 10, &time);
    ck_assert_double_eq_tol(time.us, 5.05, 1e-9);
    ck_assert_double_eq_tol(time.low, 1.1, 1e-6);
    ck_assert_double_eq_tol(time.high, 9.0, 1e-6);

    ck_assert_int_eq(kg_bench_layers(1e6, 1e6, 50e6, 60e9, false), 200); // four times the L2 cache
    ck_assert_int_eq(kg_bench_layers(1e8, 1e8, 50e6, 60e9, false), 36);
    ck_assert_int_eq(kg_bench_layers(1e9, 1e9, 50e6, 60e9, false), 8);
    ck_assert_int_eq(kg_bench_layers(1e10, 1e10, 50e6, 60e9, false), 6);
    ck_assert_int_eq(kg_bench_layers(1e11, 1e11, 50e6, 60e9, false), 0);
    ck_assert_int_eq(kg_bench_layers(1e6, 1e6, 50e6, 60e9, true), 200);
    ck_assert_int_eq(kg_bench_layers(1e8, 1e8, 50e6, 60e9, true), 4);
    ck_assert_int_eq(kg_bench_layers(1e10, 3e10, 50e6, 60e9, true), 2);

    int lengths[256], again[256], least = 1 << 20, most = 0;
    kg_bench_lengths(8192, 256, lengths);
    kg_bench_lengths(8192, 256, again);
    ck_assert_int_eq(memcmp(lengths, again, sizeof lengths), 0);
    for (int i = 0; i < 256; i++) {
        least = lengths[i] < least ? lengths[i] : least;
        most = lengths[i] > most ? lengths[i] : most;
    }
    ck_assert_int_ge(least, 256);
    ck_assert_int_lt(least, 512);
    ck_assert_int_le(most, 8192);
    ck_assert_int_gt(most, 4096);
}
END_TEST

// ---- the command -----------------------------------------------------------------------------------------------------

static int bench(const char *arguments, char output[8192])
{
    char command[2 * KG_PATH];
    const char *kittygen = getenv("KT_KITTYGEN");
    snprintf(command, sizeof command, "CUDA_VISIBLE_DEVICES= '%s' bench %s 2>&1", kittygen ? kittygen : "./kittygen", arguments);
    return run_shell(command, output, 8192);
}

static const struct {
    const char *arguments;
    int code;
    const char *says;
} cases[] = {
    {"", KG_USER, "too few arguments"},
    {"qwen3_8b/kitty --shapes 1by4096", KG_USER, "--shapes: '1by4096' is not allowed"},
    {"qwen3_8b/kitty --shapes /nowhere/shapes", KG_USER, "'/nowhere/shapes' is not allowed"},
    {"qwen3_8b/kitty --ops attend,steps", KG_USER, "--ops: 'steps' is not allowed; allowed: attend, step, append, seal, host; did you mean `step`?"},
    {"qwen3_8b/kitty --replays 49", KG_USER, "--replays: '49' is not allowed; allowed: 50 to 10000"},
    {"qwen3_8b/kitty --layers 0", KG_USER, "--layers: '0' is not allowed"},
    {"qwen3_8b/kitty --jsn", KG_USER, "did you mean `--json`?"},
    {"qwen3_8b/kity", KG_USER, "kitty"},
    {"qwen3_8b/kitty --dtype fp8", KG_USER, "fp8"},
    {"qwen3_8b/kitty", KG_MACHINE, "kittygen bench: a GPU is needed: no NVIDIA "},
    {"qwen3_8b/fp16,kitty --json --ops seal", KG_MACHINE, "kittygen bench: a GPU is needed: no NVIDIA "},
    {"--help", KG_OK, "whole steps of one token per sequence"},
};

START_TEST(command)
{
    char output[8192];
    const int code = bench(cases[_i].arguments, output);
    ck_assert_msg(code == cases[_i].code && strstr(output, cases[_i].says), "bench %s: exit %d: %s", cases[_i].arguments, code, output);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("bench");
    TCase *tests = tcase_create("bench");
    tcase_set_timeout(tests, 60);
    tcase_add_test(tests, shapes_on_the_command_line);
    tcase_add_test(tests, shapes_in_a_file);
    tcase_add_test(tests, bytes_of_every_variant);
    tcase_add_test(tests, numbers);
    tcase_add_loop_test(tests, command, 0, sizeof cases / sizeof *cases);
    suite_add_tcase(suite, tests);
    return run_suite(suite);
}
