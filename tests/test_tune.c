// kittygen tune: which kernels it tries and chooses, and the command over a made-up card (fake/cuda.c) and compiler (fake/nvrtc.c).
#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tune.h"
#include "suite.h"

// ---- the menu --------------------------------------------------------------------------------------------------------

static kt_format format_of(const char *spec)
{
    kg_spec *specs;
    kt_format f;
    char error[KG_ERROR];
    int count;
    ck_assert_msg(!kg_spec_load(spec, 0, &specs, &count, error, sizeof error), "%s", error);
    ck_assert_ptr_null(kg_layout(&specs[0], &f));
    free(specs);
    return f;
}

START_TEST(menu)
{
    static const char *const specs[] = {"qwen3_8b/kitty_pro", "qwen3_8b/int4", "qwen3_8b/fp16", "smollm2_135m/kitty", "gemma3_270m/kitty_pro",
                                        "gemma3_270m/fp16", "phi3_mini/kivi_2", "qwen3_32b/kitty_pro"};
    for (size_t s = 0; s < sizeof specs / sizeof *specs; s++) {
        const kt_format f = format_of(specs[s]);
        kg_attend_plan now, tried;
        kg_tuned_set old = {.count = 2, .rows = {{1, 1, 2, 1, 1, 1, 1, ""}, {1, 2, 16, 16, 1, 1, 1, ""}}}; // the second cannot be
        int kept;
        kg_attend_rules(&f, &now);
        kg_tune_menu(&f, KG_LARGE_SHARED, &now, &old, &tried, &kept);
        ck_assert_int_eq(kept, now.count + 1);
        ck_assert_int_eq(kg_attend_index(&tried, 2, 1, 1, 1), now.count);
        ck_assert_int_lt(tried.count, KG_ATTEND_MENU); // none is lost for want of room
        ck_assert_int_eq(tried.count, tried.row_count);
        for (int i = 0; i < tried.count; i++) {
            const kg_attend_config *c = &tried.configs[i];
            ck_assert_int_eq(kg_attend_index(&tried, c->warps, c->stages, c->tiles, c->blocks), i);
            ck_assert(i >= kept || c->warps * c->blocks <= 16);
            ck_assert_int_le(c->blocks * (c->shared + 1024), KG_LARGE_SHARED + 1024);
        }
        for (int i = 0; i < now.count; i++)
            ck_assert_int_eq(memcmp(&tried.configs[i], &now.configs[i], sizeof now.configs[i]), 0);
    }
    kg_attend_plan now, tried;
    int kept;
    const kt_format f = format_of("qwen3_8b/kitty_pro");
    kg_attend_rules(&f, &now);
    kg_tune_menu(&f, KG_LARGE_SHARED, &now, 0, &tried, &kept);
    ck_assert_int_ge(kg_attend_index(&tried, 12, 1, 2, 1), kept); // beyond the package's own
    ck_assert_int_ge(kg_attend_index(&tried, 6, 2, 2, 2), kept);
    ck_assert_int_ge(kg_attend_index(&tried, 4, 4, 2, 2), kept);
    ck_assert_int_eq(kg_attend_index(&tried, 8, 4, 4, 1), -1);
    kg_tune_menu(&f, KG_SMALL_SHARED, &now, 0, &tried, &kept); // a smaller card
    ck_assert_int_gt(tried.count, kept);
    for (int i = 0; i < tried.count; i++)
        ck_assert_int_le(tried.configs[i].shared, KG_SMALL_SHARED);
}
END_TEST

// ---- choosing --------------------------------------------------------------------------------------------------------

static kg_tune_result result(int sequences, double a, double b, double c, double d, double e, double f)
{
    return (kg_tune_result){.shape = {sequences, 1024}, .done = true, .us = {a, b, c, d, e, f}};
}

START_TEST(choosing)
{
    int chosen[KG_TUNED_KERNELS];
    bool wanted[KG_ATTEND_MENU] = {false};
    kg_tune_result results[4];
    // One that is best everywhere is enough.
    results[0] = result(1, 10, 9, 11, 12, 13, 14);
    results[1] = result(2, 20, 19, 21, 22, 23, 24);
    ck_assert_int_eq(kg_tune_choose(results, 2, 6, wanted, 4, chosen), 1);
    ck_assert_int_eq(chosen[0], 1);
    // Each shape has one of its own: the four that save most, and the fifth shape makes do.
    results[0] = result(1, 10, 20, 20, 20, 20, 20);
    results[1] = result(2, 20, 10, 20, 20, 20, 20);
    results[2] = result(3, 20, 20, 0, 10, 20, 20);
    results[3] = result(4, 20, 20, 20, 20, 10, 20);
    ck_assert_int_eq(kg_tune_choose(results, 4, 6, wanted, 4, chosen), 4);
    ck_assert(chosen[0] == 0 && chosen[1] == 1 && chosen[2] == 3 && chosen[3] == 4);
    ck_assert_int_eq(kg_tune_fastest(&results[2], chosen, 4), 3);
    ck_assert_int_eq(kg_tune_choose(results, 4, 6, wanted, 2, chosen), 2);
    // What saves less than half a per cent in the mean is not worth a kernel.
    results[0] = result(1, 100, 100.5, 120, 120, 120, 120);
    results[1] = result(2, 100, 99.5, 120, 120, 120, 120);
    ck_assert_int_eq(kg_tune_choose(results, 2, 6, wanted, 4, chosen), 1);
    results[0].us[1] = 103;
    results[1].us[1] = 97;
    ck_assert_int_eq(kg_tune_choose(results, 2, 6, wanted, 4, chosen), 2);
    // What older rows name takes its place, worth it or not.
    wanted[5] = true;
    results[1].us[1] = 100;
    ck_assert_int_eq(kg_tune_choose(results, 2, 6, wanted, 4, chosen), 2);
    ck_assert(chosen[0] == 0 && chosen[1] == 5);
    ck_assert_int_eq(kg_tune_choose(results, 2, 6, wanted, 1, chosen), 1);
    ck_assert_int_eq(chosen[0], 5);
    // A shape that none of the allowed can do; a shape that was not measured does not count.
    results[0].us[5] = 0;
    ck_assert_int_eq(kg_tune_choose(results, 2, 6, wanted, 1, chosen), 0);
    results[0].done = false;
    ck_assert_int_eq(kg_tune_choose(results, 2, 6, wanted, 1, chosen), 1);
    results[1].done = false;
    ck_assert_int_eq(kg_tune_choose(results, 2, 6, wanted, 4, chosen), 0);
}
END_TEST

// ---- the command -----------------------------------------------------------------------------------------------------

static char folder[] = "/tmp/kittygen-tune-XXXXXX", output[65536];

static void setup(void)
{
    strcpy(folder + strlen(folder) - 6, "XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    char path[64], error[KG_ERROR];
    snprintf(path, sizeof path, "%s/empty.json", folder);
    ck_assert_int_eq(kg_tuned_write(path, &(kg_tuned){0}, error), KG_OK);
}

static void teardown(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    ck_assert_int_eq(system(command), 0);
}

// Runs `SETTINGS kittygen ARGUMENTS` on the made-up card, with packages by rule; $D is the test's folder. Returns the exit code; its output is in `output`.
static int run(const char *settings, const char *arguments)
{
    char command[4096];
    const char *kittygen = getenv("KT_KITTYGEN"), *fake = getenv("KT_FAKE");
    ck_assert_msg(kittygen && fake, "KT_KITTYGEN must name the command, KT_FAKE the folder of the made-up libcuda and libnvrtc");
    snprintf(command, sizeof command, "D='%s'; export LD_LIBRARY_PATH='%s' KT_CUDA_HOME='%s' KT_CACHE_DIR=$D/cache KT_TUNED=$D/empty.json; %s '%s' %s 2>&1", folder, fake, fake,
             settings, kittygen, arguments);
    FILE *pipe = popen(command, "r");
    ck_assert_ptr_nonnull(pipe);
    output[fread(output, 1, sizeof output - 1, pipe)] = 0;
    const int status = pclose(pipe);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void expect(int code, int expected, const char *says)
{
    ck_assert_msg(code == expected && strstr(output, says), "exit %d, expected %d and \"%s\":\n%s", code, expected, says, output);
}

static void table(const char *name, kg_tuned *t)
{
    char path[128], error[KG_ERROR];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    ck_assert_msg(!kg_tuned_read(path, t, error), "%s", error);
}

// "6x2x2x2" of the row for a shape of the table's first set; "none".
static const char *row(const kg_tuned *t, int sequences, int context)
{
    static char name[48];
    strcpy(name, "none");
    for (int i = 0; t->count && i < t->sets[0].count; i++) {
        const kg_tuned_row *r = &t->sets[0].rows[i];
        if (r->sequences == sequences && r->context == context)
            snprintf(name, sizeof name, "%dx%dx%dx%d", r->warps, r->stages, r->tiles, r->blocks);
    }
    return name;
}

static const char fast[] = "FAKE_FEW=6x2x2x2 FAKE_MANY=4x1x4x4";

START_TEST(measured_and_used)
{
    kg_tuned t;
    expect(run(fast, "tune qwen3_8b/kitty_pro --dtype fp16 --shapes 1x1024,2x512,16x512 -o $D/t.json"), 0, "chosen: 4x1x4x4 6x2x2x2; ");
    ck_assert_ptr_nonnull(strstr(output, "Fake H100; kernels are"));
    ck_assert_ptr_nonnull(strstr(output, "16 x 512    best of "));
    table("t.json", &t);
    ck_assert_int_eq(t.count, 1);
    ck_assert_str_eq(t.sets[0].spec, "qwen3-8b.kitty-pro");
    ck_assert_str_eq(t.sets[0].card, "Fake H100");
    ck_assert_int_eq(t.sets[0].count, 3);
    ck_assert_str_eq(row(&t, 1, 1024), "6x2x2x2");
    ck_assert_str_eq(row(&t, 2, 512), "6x2x2x2");
    ck_assert_str_eq(row(&t, 16, 512), "4x1x4x4");
    ck_assert_double_eq_tol(t.sets[0].rows[0].us, 50, 1e-3);
    kg_tuned_free(&t);
    // Packages are made by it, of either dtype.
    expect(run("KT_TUNED=$D/t.json", "emit qwen3_8b/kitty_pro -o $D/p && cat $D/p/manifest.json"), 0,
           "{\"op\": \"attend\", \"sequences\": 1, \"pages\": 0, \"kernel\": \"attend_6x2x2x2\", \"blocks_per_sm\": 2},\n"
           "    {\"op\": \"attend\", \"sequences\": 2, \"pages\": 4, \"kernel\": \"attend_6x2x2x2\", \"blocks_per_sm\": 2},\n"
           "    {\"op\": \"attend\", \"sequences\": 0, \"pages\": 0, \"kernel\": \"attend_4x1x4x4\", \"blocks_per_sm\": 4},\n");
    expect(run("KT_TUNED=$D/t.json", "check qwen3_8b/kitty_pro"), 0, "6x2x2x2 4x1x4x4; measured for qwen3-8b.kitty-pro on Fake H100");
}
END_TEST

START_TEST(measured_again)
{
    kg_tuned t;
    expect(run(fast, "tune qwen3_8b/kitty_pro --shapes 1x1024,16x512 -o $D/t.json"), 0, "chosen:");
    // Other kernels are fast now: a shape that is measured again changes, one that is not stays, a new one comes.
    expect(run("FAKE_FEW=12x1x2x1 FAKE_MANY=4x2x2x2", "tune qwen3_8b/kitty_pro --shapes 1x1024,1x512 -o $D/t.json"), 0, "chosen: 4x1x4x4 12x1x2x1; ");
    table("t.json", &t);
    ck_assert_int_eq(t.count, 1);
    ck_assert_str_eq(row(&t, 1, 512), "12x1x2x1");
    ck_assert_str_eq(row(&t, 1, 1024), "12x1x2x1");
    ck_assert_str_eq(row(&t, 16, 512), "4x1x4x4");
    kg_tuned_free(&t);
    // Specs beside it are put in order, one with the same kernels is not measured twice.
    expect(run(fast, "tune smollm2_135m/kitty qwen3_8b/kivi_2,kivi_2_sink --shapes 1x512 -o $D/t.json"), 0, "kivi-2-sink: what would be measured is that of a spec before");
    table("t.json", &t);
    ck_assert_int_eq(t.count, 3);
    ck_assert_str_eq(t.sets[0].spec, "smollm2-135m.kitty");
    ck_assert_str_eq(t.sets[2].spec, "qwen3-8b.kitty-pro");
    ck_assert_int_eq(t.sets[2].count, 3);
    kg_tuned_free(&t);
    // A set of another card may stand among this one's; of a table that is another card's nothing is replaced.
    expect(run("", "--version; sed -i '/kivi-2/s/Fake H100/Other/' $D/t.json"), 0, "kittygen");
    expect(run(fast, "tune qwen3_8b/kitty --shapes 1x512 -o $D/t.json"), 0, "chosen:");
    table("t.json", &t);
    ck_assert_int_eq(t.count, 4);
    kg_tuned_free(&t);
    expect(run("", "--version; sed -i 's/Fake H100/Other/' $D/t.json"), 0, "kittygen");
    expect(run(fast, "tune qwen3_8b/kitty --shapes 1x512 -o $D/t.json"), 2, "t.json: is of Other, and this card is Fake H100; name another file with -o");
}
END_TEST

START_TEST(as_json)
{
    expect(run(fast, "tune qwen3_8b/kitty_pro --shapes 1x512,16x512 -o $D/t.json --json"), 0, "");
    cJSON *rows = cJSON_Parse(output);
    ck_assert_msg(cJSON_IsArray(rows) && cJSON_GetArraySize(rows) == 2, "%s", output);
    const cJSON *first = cJSON_GetArrayItem(rows, 0), *us = cJSON_GetObjectItem(first, "us");
    ck_assert_str_eq(cJSON_GetStringValue(cJSON_GetObjectItem(first, "op")), "tune");
    ck_assert_str_eq(cJSON_GetStringValue(cJSON_GetObjectItem(first, "chosen")), "6x2x2x2");
    ck_assert_str_eq(cJSON_GetStringValue(cJSON_GetObjectItem(first, "selected")), "8x2x2x1");
    ck_assert_double_eq_tol(cJSON_GetObjectItem(us, "6x2x2x2")->valuedouble, 50, 1e-3);
    ck_assert_double_eq_tol(cJSON_GetObjectItem(us, "8x2x2x1")->valuedouble, 113, 1e-3);
    ck_assert_int_gt(cJSON_GetArraySize(us), 20);
    cJSON_Delete(rows);
}
END_TEST

START_TEST(kernels_that_cannot_be_taken)
{
    kg_tuned t;
    // The fastest spills; the next two do not compile: nobody knows.
    expect(run("FAKE_FEW=4x1x4x3 FAKE_SPILLS=4x1x4x3 FAKE_BROKEN=4x1x4x4,12x1x2x1", "tune qwen3_8b/kitty_pro --shapes 1x512 -o $D/a.json"), 0,
           "left out: 1 that spill over 128 bytes, 2 that do not compile, 0 for want of time");
    table("a.json", &t);
    ck_assert_str_ne(row(&t, 1, 512), "4x1x4x3");
    kg_tuned_free(&t);
    // Its output is wrong: said, left out, and the exit code tells.
    expect(run("FAKE_FEW=6x2x2x2 FAKE_WRONG=6x2x2x2", "tune qwen3_8b/kitty_pro --shapes 1x512 -o $D/b.json"), 1,
           "kittygen tune: attend_6x2x2x2: qwen3-8b.kitty-pro: 1 sequences of 512 tokens: attend's error is 3.0");
    table("b.json", &t);
    ck_assert_str_ne(row(&t, 1, 512), "6x2x2x2");
    ck_assert_str_ne(row(&t, 1, 512), "none");
    kg_tuned_free(&t);
    // It cannot be launched.
    expect(run("FAKE_FEW=6x2x2x2 FAKE_REFUSED=6x2x2x2", "tune qwen3_8b/kitty_pro --shapes 1x512,2x512 -o $D/c.json"), 1,
           "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES");
    table("c.json", &t);
    ck_assert_str_eq(row(&t, 2, 512), row(&t, 1, 512));
    ck_assert_str_ne(row(&t, 2, 512), "none");
    kg_tuned_free(&t);
    // The package's own does not compile: nothing can be said.
    expect(run("FAKE_BROKEN=8x2x2x1", "tune qwen3_8b/int4 --shapes 1x512 -o $D/d.json"), 1, "error: as the test wants it");
}
END_TEST

START_TEST(cut_short)
{
    kg_tuned t;
    // The card is lost on the way: what was measured before is kept.
    expect(run("FAKE_FEW=6x2x2x2 FAKE_LOST_AFTER=700", "tune qwen3_8b/kitty_pro --shapes 1x512,2x512,4x512,6x512 -o $D/a.json"), 3, "CUDA_ERROR_LAUNCH_FAILED");
    table("a.json", &t);
    ck_assert_str_eq(row(&t, 1, 512), "6x2x2x2");
    ck_assert_str_eq(row(&t, 6, 512), "none");
    kg_tuned_free(&t);
    // Where the table was to go is gone at the end: it is printed.
    expect(run("mkdir $D/gone; (sleep 2; rm -r $D/gone) & FAKE_STALL_AFTER=700 FAKE_STALL_S=4", "tune qwen3_8b/kitty_pro --shapes 1x512,6x512 -o $D/gone/t.json"),
           2, "gone/t.json: cannot be written: No such file or directory");
    ck_assert_msg(strstr(output, "the table, which could not be written:\n{\"version\": 1, \"tuned\": [\n") && strstr(output, "{\"sequences\": 6, "), "%s", output);
    // Out of time, and Ctrl-C, likewise.
    expect(run("FAKE_STALL_AFTER=700 FAKE_STALL_S=10 FAKE_FEW=6x2x2x2", "tune qwen3_8b/kitty_pro --limit-s 10 --shapes 1x512,2x512,4x512,6x512 -o $D/b.json"),
           0, "kittygen tune: qwen3-8b.kitty-pro: out of time after ");
    table("b.json", &t);
    ck_assert_str_eq(row(&t, 1, 512), "6x2x2x2");
    ck_assert_str_eq(row(&t, 6, 512), "none");
    kg_tuned_free(&t);
    expect(run("FAKE_INTERRUPT_AFTER=700 FAKE_FEW=6x2x2x2", "tune qwen3_8b/kitty_pro qwen3_8b/int4 --shapes 1x512,2x512,4x512,6x512 -o $D/c.json 2>&1; "
               "echo exit $?"), 0, "kittygen tune: qwen3-8b.kitty-pro: stopped after ");
    ck_assert_ptr_nonnull(strstr(output, "exit 130"));
    table("c.json", &t);
    ck_assert_int_eq(t.count, 1); // the spec after it is not begun
    ck_assert_str_eq(row(&t, 1, 512), "6x2x2x2");
    kg_tuned_free(&t);
    // Nothing fits, or no time at all: the table stays.
    expect(run("FAKE_MEMORY_MB=64", "tune qwen3_8b/kitty_pro --shapes 64x65536 -o $D/c.json"), 3, "skipped: too little memory for one layer");
    ck_assert_ptr_nonnull(strstr(output, "nothing was measured, and the table is as before"));
    table("c.json", &t);
    ck_assert_str_eq(row(&t, 1, 512), "6x2x2x2");
    kg_tuned_free(&t);
}
END_TEST

START_TEST(compiled_ahead)
{
    expect(run("", "tune qwen3_8b/kitty_pro --compile sm_90a"), 0, "attend kernels to measure; left out: 0 that spill");
    expect(run("KT_NO_JIT=1", "tune qwen3_8b/kitty_pro --compile sm_90a"), 0, "attend kernels to measure"); // all are there
    expect(run("", "tune qwen3_8b/kitty_pro --compile sm_80"), 3, "does not know sm_80");
}
END_TEST

static const struct {
    const char *arguments;
    int code;
    const char *says;
} cases[] = {
    {"tune", KG_USER, "too few arguments"},
    {"tune qwen3_8b/kitty --shapes 1by4096", KG_USER, "--shapes: '1by4096' is not allowed"},
    {"tune qwen3_8b/kitty --limit-s 0", KG_USER, "--limit-s: '0' is not allowed; allowed: 1 to 86400"},
    {"tune qwen3_8b/kity -o $D/t.json", KG_USER, "did you mean `kitty`?"},
    {"tune qwen3_8b/kitty -o $D/no/such/t.json --shapes 1x512", KG_USER, "$D/no/such/t.json: cannot be written: No such file"},
    {"tune qwen3_8b/kitty -o $D/empty.json/t.json --shapes 1x512", KG_USER, "$D/empty.json/t.json: cannot be written: Not a directory; name"},
    {"tune qwen3_8b/kitty -o /proc/version --shapes 1x512", KG_USER, "/proc/version: cannot be written: "},
    {"tune qwen3_8b/kitty -o $D", KG_USER, "$D: not a regular file; nothing else is replaced"},
    {"bench qwen3_8b/kitty --tune", KG_USER, "unknown option '--tune'"},
    {"bench a.lua,b.lua", KG_USER, "a.lua,b.lua: no such file; commas are between variants, specs are given one by one: A.lua B.lua"},
    {"tune --help", KG_OK, "--limit-s"},
};

START_TEST(wrong_input)
{
    char says[256];
    const int code = run("", cases[_i].arguments);
    if (!strncmp(cases[_i].says, "$D", 2))
        snprintf(says, sizeof says, "%s%s", folder, cases[_i].says + 2);
    else
        snprintf(says, sizeof says, "%s", cases[_i].says);
    expect(code, cases[_i].code, says);
    ck_assert_msg(code == KG_OK || !strstr(output, "best of"), "something was measured: %s", output);
}
END_TEST

START_TEST(no_gpu)
{
    char command[512];
    snprintf(command, sizeof command, "CUDA_VISIBLE_DEVICES= KT_CACHE_DIR='%s' '%s' tune qwen3_8b/kitty 2>&1", folder, getenv("KT_KITTYGEN"));
    expect(run_shell(command, output, sizeof output), KG_MACHINE, "kittygen tune: a GPU is needed, but for --compile: no NVIDIA ");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("tune");
    TCase *tests = tcase_create("tune"), *commands = tcase_create("command");
    setenv("KT_SPECS", KT_TEST_DATA "/../specs", 0);
    setenv("KT_TEMPLATES", KT_TEST_DATA "/../templates", 0);
    tcase_add_test(tests, menu);
    tcase_add_test(tests, choosing);
    tcase_add_checked_fixture(commands, setup, teardown);
    tcase_set_timeout(commands, 200);
    tcase_add_test(commands, measured_and_used);
    tcase_add_test(commands, measured_again);
    tcase_add_test(commands, as_json);
    tcase_add_test(commands, kernels_that_cannot_be_taken);
    tcase_add_test(commands, cut_short);
    tcase_add_test(commands, compiled_ahead);
    tcase_add_loop_test(commands, wrong_input, 0, sizeof cases / sizeof *cases);
    tcase_add_test(commands, no_gpu);
    suite_add_tcase(suite, tests);
    suite_add_tcase(suite, commands);
    return run_suite(suite);
}
