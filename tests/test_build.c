// kittygen build as people run it: wrong input, a machine without NVRTC, and one spec compiled into a bundle.
#include "cuda/nvrtc.h"
#include "suite.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static char folder[] = "/tmp/kittygen-build-XXXXXX", output[65536];

// Runs `kittygen build ARGUMENTS`; its output, both streams, is in `output`. Returns the exit code.
static int run(const char *arguments)
{
    char command[2048];
    const char *kittygen = getenv("KT_KITTYGEN");
    ck_assert_msg(kittygen != 0, "KT_KITTYGEN must name the kittygen to test");
    snprintf(command, sizeof command, "'%s' build %s 2>&1", kittygen, arguments);
    return run_shell(command, output, sizeof output);
}

static void setup(void)
{
    strcpy(folder + strlen(folder) - 6, "XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    setenv("KT_SPECS", KT_TEST_DATA "/../specs", 0);
    setenv("KT_TEMPLATES", KT_TEST_DATA "/../templates", 0);
    setenv("KT_CACHE_DIR", folder, 1);
}

static void teardown(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    ck_assert_int_eq(system(command), 0);
}

START_TEST(wrong_input)
{
    ck_assert_int_eq(run("smollm2-135m/kitty --arch sm_90"), 2);
    ck_assert_ptr_nonnull(strstr(output, "kittygen build: --arch: 'sm_90' is not allowed; allowed: sm_80, sm_86, "));
    ck_assert_ptr_nonnull(strstr(output, "did you mean `sm_90a`?"));
    ck_assert_int_eq(run("smollm2-135m/kitty --arch sm_80,"), 2);
    ck_assert_ptr_nonnull(strstr(output, "--arch: '' is not allowed"));
    ck_assert_int_eq(run("smollm2-135m/kitty --jobs 0"), 2);
    ck_assert_str_eq(output, "kittygen build: --jobs: '0' is not allowed; allowed: 1 to 64\n");
    ck_assert_int_eq(run(""), 2);
}
END_TEST

START_TEST(no_nvrtc)
{
    char expected[512];
    setenv("KT_CUDA_HOME", folder, 1);
    ck_assert_int_eq(run("smollm2-135m/kitty"), 3);
    snprintf(expected, sizeof expected, "kittygen build: NVRTC not found in KT_CUDA_HOME=%s (its lib64, lib, targets/*/lib)\n", folder);
    ck_assert_str_eq(output, expected);
}
END_TEST

// A template that asks for a value nobody gives is refused, and not taken for one that is false.
START_TEST(unknown_value)
{
    char command[1024];
    snprintf(command, sizeof command,
             "cp -r \"$KT_TEMPLATES\" '%s/templates' && printf '//@ if KEY_BITZ == 2 then\\n//@ end\\n' > '%s/templates/check.cu' && "
             "KT_TEMPLATES='%s/templates' '%s' emit smollm2-135m/kitty -o '%s/out' 2>&1",
             folder, folder, folder, getenv("KT_KITTYGEN"), folder);
    ck_assert_int_eq(run_shell(command, output, sizeof output), 3);
    ck_assert_msg(strstr(output, "template check.cu: check.cu:1: 'KEY_BITZ' is neither a value nor a local of this file") != 0, "%s", output);
    snprintf(command, sizeof command, "%s/out", folder);
    ck_assert_int_ne(access(command, F_OK), 0);
}
END_TEST

// Where a disk is full after some kernels nothing is left of the folders that were made, and all of what was there.
START_TEST(disk_full)
{
    static const char *const to[] = {"a/b/out", "mine", "mine/out/"};
    char command[1024], path[256];
    snprintf(command, sizeof command,
             "cp -r \"$KT_TEMPLATES\" '%s/templates' && yes // | head -n 150000 >> '%s/templates/check.cu' && mkdir '%s/mine' && touch '%s/mine/note'",
             folder, folder, folder, folder);
    ck_assert_int_eq(run_shell(command, output, sizeof output), 0);
    for (int i = 0; i < 3; i++) {
        snprintf(command, sizeof command, "trap '' XFSZ && ulimit -f 200 && KT_TEMPLATES='%s/templates' '%s' emit smollm2-135m/kitty -o '%s/%s' 2>&1",
                 folder, getenv("KT_KITTYGEN"), folder, to[i]);
        ck_assert_int_eq(run_shell(command, output, sizeof output), 3);
        ck_assert_msg(strstr(output, "/check.cu: File too large\n") != 0, "%s", output);
    }
    snprintf(path, sizeof path, "%s/mine/note", folder);
    ck_assert_int_eq(access(path, F_OK), 0);
    snprintf(path, sizeof path, "%s/mine/out", folder);
    ck_assert_int_ne(access(path, F_OK), 0);
    snprintf(path, sizeof path, "%s/a", folder);
    ck_assert_int_ne(access(path, F_OK), 0);
}
END_TEST

START_TEST(bundle)
{
    char arguments[256];
    kt__package package;
    snprintf(arguments, sizeof arguments, "smollm2-135m/kitty --arch sm_80 -o '%s/out' --json", folder);
    ck_assert_msg(run(arguments) == 0, "%s", output);
    ck_assert_ptr_nonnull(strstr(output, "\"spec\": \"smollm2-135m.kitty\""));
    ck_assert_ptr_nonnull(strstr(output, "\"compiled\": true"));
    ck_assert_ptr_null(strstr(output, "\"compiled\": false"));
    ck_assert_ptr_null(strstr(output, "null")); // every statistic is known

    char path[256];
    snprintf(path, sizeof path, "%s/out/smollm2-135m.kitty", folder);
    ck_assert_msg(kt__package_read(path, &package) == KT_OK, "%s", kt_message());
    for (int i = 0; i < package.kernel_count; i++) {
        char cubin[512];
        snprintf(cubin, sizeof cubin, "%s/cubin/sm_80/%s.cubin", path, package.kernels[i].name);
        ck_assert_msg(!access(cubin, R_OK), "%s is missing", cubin);
    }
    kt__package_free(&package);

    // Again: nothing is compiled, and the statistics are the same.
    static char before[65536];
    strcpy(before, output);
    ck_assert_int_eq(run(arguments), 0);
    ck_assert_ptr_null(strstr(output, "\"compiled\": true"));
    for (char *at; (at = strstr(before, "\"compiled\": true"));) {
        memmove(at + strlen("\"compiled\": false"), at + strlen("\"compiled\": true"), strlen(at + strlen("\"compiled\": true")) + 1);
        memcpy(at, "\"compiled\": false", strlen("\"compiled\": false"));
    }
    ck_assert_str_eq(output, before);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("build");
    TCase *all = tcase_create("all");
    kt__nvrtc nvrtc;
    kt__environment environment;
    kt__environment_read(&environment);
    tcase_add_checked_fixture(all, setup, teardown);
    tcase_set_timeout(all, 200);
    tcase_add_test(all, no_nvrtc);
    tcase_add_test(all, wrong_input);
    tcase_add_test(all, unknown_value);
    tcase_add_test(all, disk_full);
    if (kt__nvrtc_find(&environment, 0, &nvrtc))
        printf("build: nothing is compiled: %s\n", kt_message());
    else
        tcase_add_test(all, bundle);
    suite_add_tcase(suite, all);
    return run_suite(suite);
}
