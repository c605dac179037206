// NVRTC and the cubin cache, without a GPU. Where no NVRTC is found, one line says so and only the search is tested.
#include "cuda/cubin_cache.h"
#include "sha256.h"
#include "suite.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

// LeakSanitizer's tracer can crash on the thread-local storage of a library that was loaded late, as NVRTC is.
const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "detect_leaks=0"; }

static const char *const archs[] = {"sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a"};
enum { ARCHS = sizeof archs / sizeof *archs };

static const char scale_source[] =
    "extern \"C\" __global__ void __launch_bounds__(128) scale(float *x, float by)\n"
    "{\n"
    "    __shared__ float row[128];\n"
    "    row[threadIdx.x] = x[threadIdx.x];\n"
    "    __syncthreads();\n"
    "    x[threadIdx.x] = row[127 - threadIdx.x] * by;\n"
    "}\n";
// 120 live values in the 32 registers that 2048 threads leave.
static const char spill_source[] =
    "extern \"C\" __global__ void __launch_bounds__(1024, 1) spill(float *x, int n)\n"
    "{\n"
    "    float v[120];\n"
    "#pragma unroll\n"
    "    for (int i = 0; i < 120; i++) v[i] = x[i * n + threadIdx.x];\n"
    "    __syncthreads();\n"
    "#pragma unroll\n"
    "    for (int i = 0; i < 120; i++) x[i * n + threadIdx.x] = v[i * 7 % 120] * v[119 - i];\n"
    "}\n";

static char folder[] = "/tmp/kittygen-compile-XXXXXX";
static kt__environment environment;
static kt__cubins cubins;

static kt__kernel kernel_of(const char *name, const char *source)
{
    kt__kernel k = {.source = (char *)(size_t)source};
    snprintf(k.name, sizeof k.name, "%s", name);
    snprintf(k.entry, sizeof k.entry, "%s", name);
    kt__sha256_text(source, strlen(source), k.digest);
    return k;
}

static void make_folder(void)
{
    strcpy(folder + strlen(folder) - 6, "XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    kt__environment_read(&environment);
    snprintf(environment.cache_dir, sizeof environment.cache_dir, "%s/deep/cache", folder);
    environment.no_jit = false;
}

static void setup(void)
{
    make_folder();
    kt__cubins_open(&cubins, &environment, 0, 0);
}

static void remove_folder(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    ck_assert_int_eq(system(command), 0);
}

static void teardown(void)
{
    kt__cubins_close(&cubins);
    remove_folder();
}

static kt__cubin get(const kt__kernel *k, const char *arch, kt__cubin_origin expected)
{
    kt__cubin cubin;
    kt__cubin_origin origin;
    ck_assert_msg(kt__cubins_get(&cubins, k, arch, &cubin, &origin) == KT_OK, "%s", kt_message());
    ck_assert_int_eq(origin, expected);
    ck_assert_uint_gt(cubin.bytes, 64);
    ck_assert_mem_eq(cubin.data, "\177ELF", 4);
    return cubin;
}

static char *path_of(const kt__kernel *k, const char *arch)
{
    static char path[2048];
    ck_assert_int_eq(kt__cubins_path(&cubins, k, arch, path, sizeof path), KT_OK);
    return path;
}

// ---- compiling -------------------------------------------------------------------------------------------------------

START_TEST(every_architecture)
{
    const kt__kernel scale = kernel_of("scale", scale_source), spill = kernel_of("spill", spill_source);
    kt__compile_job jobs[2 * ARCHS] = {0};
    for (int i = 0; i < 2 * ARCHS; i++) {
        jobs[i].kernel = i % 2 ? &spill : &scale;
        strcpy(jobs[i].arch, archs[i / 2]);
    }
    ck_assert_msg(kt__compile_all(&cubins, jobs, 2 * ARCHS, 2, 0, 0) == KT_OK, "%s", kt_message());
    for (int i = 0; i < 2 * ARCHS; i++) {
        const kt__cubin_stats *s = &jobs[i].cubin.stats;
        ck_assert_int_eq(jobs[i].origin, KT__COMPILED);
        ck_assert_mem_eq(jobs[i].cubin.data, "\177ELF", 4);
        ck_assert_int_ge(s->milliseconds, 0);
        if (i % 2) {
            ck_assert_int_le(s->registers, 64);
            ck_assert_int_gt(s->registers, 16);
            ck_assert_int_ge(s->spill_stores, 4 * (120 - 64));
            ck_assert_int_ge(s->spill_loads, 4 * (120 - 64));
            ck_assert_int_ge(s->stack, 4 * (120 - 64));
            ck_assert_int_eq(s->shared, 0);
        } else {
            ck_assert_int_ge(s->registers, 4);
            ck_assert_int_le(s->registers, 32);
            ck_assert_int_eq(s->spill_stores, 0);
            ck_assert_int_eq(s->spill_loads, 0);
            ck_assert_int_eq(s->stack, 0);
            ck_assert_int_eq(s->shared, 512);
        }
        kt__cubin_free(&jobs[i].cubin);
    }
}
END_TEST

START_TEST(wrong_source)
{
    const kt__kernel k = kernel_of("broken", "extern \"C\" __global__ void broken() { int x = 1 }\n");
    kt__compile_job jobs[2] = {{.kernel = &k, .arch = "sm_80"}, {.kernel = &k, .arch = "sm_90a"}};
    ck_assert_int_eq(kt__compile_all(&cubins, jobs, 2, 2, 0, 0), KT_COMPILE);
    char expected[128];
    snprintf(expected, sizeof expected, "broken.cu for sm_80 with NVRTC %d.%d: NVRTC_ERROR_COMPILATION\nbroken.cu(1): error: ",
             cubins.nvrtc.major, cubins.nvrtc.minor);
    ck_assert_msg(!strncmp(kt_message(), expected, strlen(expected)), "%s", kt_message());
    ck_assert_ptr_null(jobs[0].cubin.data);
    ck_assert_int_eq(access(path_of(&k, "sm_80"), F_OK), -1); // nothing is cached
}
END_TEST

START_TEST(unknown_architecture)
{
    const kt__kernel k = kernel_of("scale", scale_source);
    kt__cubin cubin;
    kt__cubin_origin origin;
    ck_assert_int_eq(kt__cubins_get(&cubins, &k, "sm_999a", &cubin, &origin), KT_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(kt_message(), "does not know sm_999a; it knows sm_"));
}
END_TEST

// ---- cache -----------------------------------------------------------------------------------------------------------

START_TEST(hit)
{
    const kt__kernel k = kernel_of("scale", scale_source);
    kt__cubin first = get(&k, "sm_90a", KT__COMPILED), second = get(&k, "sm_90a", KT__FROM_CACHE);
    ck_assert_uint_eq(first.bytes, second.bytes);
    ck_assert_mem_eq(first.data, second.data, first.bytes);
    ck_assert_mem_eq(&first.stats, &second.stats, sizeof first.stats);
    ck_assert(cubins.nvrtc.loaded); // compiled by a loaded NVRTC,

    kt__cubins again; // and needed by no later process
    kt__cubins_open(&again, &environment, 0, 0);
    kt__cubin third;
    kt__cubin_origin origin;
    ck_assert_int_eq(kt__cubins_get(&again, &k, "sm_90a", &third, &origin), KT_OK);
    ck_assert_int_eq(origin, KT__FROM_CACHE);
    ck_assert(!again.nvrtc.loaded);
    kt__cubins_close(&again);
    kt__cubin_free(&first);
    kt__cubin_free(&second);
    kt__cubin_free(&third);
}
END_TEST

START_TEST(keys)
{
    const kt__kernel a = kernel_of("scale", scale_source), b = kernel_of("spill", spill_source);
    char first[2048];
    strcpy(first, path_of(&a, "sm_80"));
    ck_assert_str_eq(path_of(&a, "sm_80"), first);
    ck_assert_str_ne(path_of(&a, "sm_86"), first);
    ck_assert_str_ne(path_of(&b, "sm_80"), first);
    cubins.nvrtc.minor++;
    ck_assert_str_ne(path_of(&a, "sm_80"), first);
}
END_TEST

enum { TRUNCATE, EMPTY, EXTEND, FLIP_CODE, FLIP_STATS, FLIP_MAGIC, OTHER_ARCH, DAMAGES };

START_TEST(damage)
{
    const kt__kernel k = kernel_of("scale", scale_source);
    kt__cubin good = get(&k, "sm_80", KT__COMPILED);
    char path[2048];
    strcpy(path, path_of(&k, "sm_80"));
    struct stat about;
    ck_assert_int_eq(stat(path, &about), 0);
    FILE *file = fopen(path, "r+b");
    const long at = _i == FLIP_CODE ? (long)about.st_size - 100 : _i == FLIP_STATS ? 16 : 0;
    if (_i == TRUNCATE || _i == EMPTY)
        ck_assert_int_eq(ftruncate(fileno(file), _i == EMPTY ? 0 : about.st_size - 1), 0);
    else if (_i == EXTEND)
        fseek(file, 0, SEEK_END), fputc(0, file);
    else if (_i == OTHER_ARCH)
        ; // a file that is whole, but of another architecture
    else {
        fseek(file, at, SEEK_SET);
        const int c = fgetc(file);
        fseek(file, at, SEEK_SET);
        fputc(c ^ 1, file);
    }
    fclose(file);
    if (_i == OTHER_ARCH) {
        kt__cubin other = get(&k, "sm_86", KT__COMPILED);
        kt__cubin_free(&other);
        ck_assert_int_eq(rename(path_of(&k, "sm_86"), path), 0);
    }
    kt__cubin repaired = get(&k, "sm_80", KT__COMPILED), hit = get(&k, "sm_80", KT__FROM_CACHE);
    ck_assert_uint_eq(repaired.bytes, good.bytes);
    ck_assert_mem_eq(repaired.data, good.data, good.bytes);
    ck_assert_mem_eq(hit.data, good.data, good.bytes);
    kt__cubin_free(&good);
    kt__cubin_free(&repaired);
    kt__cubin_free(&hit);
}
END_TEST

START_TEST(unwritable)
{
    const kt__kernel k = kernel_of("scale", scale_source);
    char expected[2048], file[256];
    kt__cubin cubin;
    kt__cubin_origin origin;
    snprintf(file, sizeof file, "%s/file", folder);
    fclose(fopen(file, "w"));
    snprintf(cubins.environment.cache_dir, sizeof cubins.environment.cache_dir, "%s/cache", file);
    ck_assert_int_eq(kt__cubins_get(&cubins, &k, "sm_80", &cubin, &origin), KT_IO);
    snprintf(expected, sizeof expected,
             "cannot write to %s/cache: Not a directory; set KT_CACHE_DIR to a folder for compiled kernels that you may write to", file);
    ck_assert_str_eq(kt_message(), expected);
    ck_assert(!cubins.nvrtc.loaded); // found out before compiling

    cubins.environment.cache_dir[0] = 0;
    ck_assert_int_eq(kt__cubins_get(&cubins, &k, "sm_80", &cubin, &origin), KT_IO);
    ck_assert_str_eq(kt_message(),
                     "no folder for compiled kernels: neither KT_CACHE_DIR, XDG_CACHE_HOME nor HOME names one; set KT_CACHE_DIR");
}
END_TEST

START_TEST(no_jit)
{
    const kt__kernel k = kernel_of("scale", scale_source);
    char expected[2048];
    kt__cubin cubin;
    kt__cubin_origin origin;
    cubins.environment.no_jit = true;
    ck_assert_int_eq(kt__cubins_get(&cubins, &k, "sm_80", &cubin, &origin), KT_COMPILE);
    snprintf(expected, sizeof expected, "scale for sm_80 is in neither the package nor the cache (%s), and KT_NO_JIT forbids to compile it",
             environment.cache_dir);
    ck_assert_str_eq(kt_message(), expected);
    cubins.environment.no_jit = false;
    cubin = get(&k, "sm_80", KT__COMPILED);
    kt__cubin_free(&cubin);
    cubins.environment.no_jit = true;
    cubin = get(&k, "sm_80", KT__FROM_CACHE);
    kt__cubin_free(&cubin);
}
END_TEST

// Processes that need the same cubins at the same time all get whole ones, and leave no temporary files.
START_TEST(processes)
{
    const kt__kernel k = kernel_of("scale", scale_source);
    pid_t children[3];
    for (int i = 0; i < 3; i++)
        if (!(children[i] = fork())) {
            kt__cubin cubin;
            kt__cubin_origin origin;
            _exit(kt__cubins_get(&cubins, &k, "sm_80", &cubin, &origin) || memcmp(cubin.data, "\177ELF", 4));
        }
    for (int i = 0; i < 3; i++) {
        int status;
        waitpid(children[i], &status, 0);
        ck_assert_int_eq(status, 0);
    }
    kt__cubin cubin = get(&k, "sm_80", KT__FROM_CACHE);
    kt__cubin_free(&cubin);
    char command[2048];
    snprintf(command, sizeof command, "test $(ls '%s' | wc -l) = 1", environment.cache_dir);
    ck_assert_int_eq(system(command), 0);
}
END_TEST

START_TEST(bundle)
{
    const kt__kernel k = kernel_of("scale", scale_source), changed = kernel_of("scale", spill_source);
    char ready[256];
    kt__cubin cubin, made;
    kt__cubin_origin origin;
    snprintf(cubins.bundle, sizeof cubins.bundle, "%s/package", folder);
    cubins.write_bundle = true;
    made = get(&k, "sm_90a", KT__COMPILED);
    snprintf(ready, sizeof ready, "%s/package/cubin/sm_90a/scale.cubin", folder);
    ck_assert_int_eq(access(ready, R_OK), 0);

    // On a machine with no NVRTC and nothing cached.
    cubins.write_bundle = cubins.have_nvrtc = false;
    strcpy(cubins.no_nvrtc, "NVRTC not found");
    cubins.environment.cache_dir[0] = 0;
    cubin = get(&k, "sm_90a", KT__FROM_BUNDLE);
    ck_assert_uint_eq(cubin.bytes, made.bytes);
    ck_assert_mem_eq(cubin.data, made.data, made.bytes);
    ck_assert_mem_eq(&cubin.stats, &made.stats, sizeof made.stats);
    kt__cubin_free(&cubin);
    kt__cubin_free(&made);
    ck_assert_int_eq(kt__cubins_get(&cubins, &k, "sm_80", &cubin, &origin), KT_UNSUPPORTED);
    ck_assert_str_eq(kt_message(), "scale for sm_80 is not ready in the package, and NVRTC not found");
    ck_assert_int_eq(kt__cubins_get(&cubins, &changed, "sm_90a", &cubin, &origin), KT_UNSUPPORTED);
    ck_assert_str_eq(kt_message(),
                     "scale for sm_90a is not ready in the package: made from another source or for another architecture, and NVRTC not found");
}
END_TEST

START_TEST(dump)
{
    const kt__kernel k = kernel_of("scale", scale_source);
    char path[256];
    snprintf(cubins.environment.dump_dir, sizeof cubins.environment.dump_dir, "%s/dump", folder);
    kt__cubin cubin = get(&k, "sm_80", KT__COMPILED);
    snprintf(path, sizeof path, "%s/dump/scale.%.8s.cu", folder, k.digest);
    struct stat about;
    ck_assert_int_eq(stat(path, &about), 0);
    ck_assert_int_eq(about.st_size, (long)strlen(scale_source));
    snprintf(path, sizeof path, "%s/dump/scale.%.8s.sm_80.cubin", folder, k.digest);
    ck_assert_int_eq(stat(path, &about), 0);
    ck_assert_int_eq(about.st_size, (long)cubin.bytes);
    kt__cubin_free(&cubin);
}
END_TEST

// ---- the search; needs no NVRTC --------------------------------------------------------------------------------------

START_TEST(search)
{
    char lib[256], path[1024], expected[2048];
    kt__nvrtc nvrtc;
    snprintf(environment.cuda_home, sizeof environment.cuda_home, "%s/cuda", folder);
    ck_assert_int_eq(kt__nvrtc_find(&environment, 0, &nvrtc), KT_UNSUPPORTED);
    snprintf(expected, sizeof expected, "NVRTC not found in KT_CUDA_HOME=%s/cuda (its lib64, lib, targets/*/lib)", folder);
    ck_assert_str_eq(kt_message(), expected);

    snprintf(lib, sizeof lib, "%s/cuda/lib64", folder);
    snprintf(path, sizeof path, "mkdir -p '%s' && echo no library > '%s/libnvrtc.so.12'", lib, lib);
    ck_assert_int_eq(system(path), 0);
    ck_assert_int_eq(kt__nvrtc_find(&environment, 0, &nvrtc), KT_UNSUPPORTED);
    const size_t used = strlen(expected);
    snprintf(expected + used, sizeof expected - used, "; %s/libnvrtc.so.12: no libnvrtc-builtins.so.12.* beside it", lib);
    ck_assert_str_eq(kt_message(), expected);

    snprintf(path, sizeof path, "%s/libnvrtc-builtins.so.12.7", lib);
    fclose(fopen(path, "w"));
    ck_assert_int_eq(kt__nvrtc_find(&environment, 12, &nvrtc), KT_OK); // by its files' names, not loaded
    ck_assert_int_eq(nvrtc.major, 12);
    ck_assert_int_eq(nvrtc.minor, 7);
    ck_assert_ptr_null(nvrtc.library);
    ck_assert_int_eq(kt__nvrtc_load(&nvrtc), KT_UNSUPPORTED);
    snprintf(expected, sizeof expected, "NVRTC does not load: %s/libnvrtc.so.12: ", lib);
    ck_assert_msg(!strncmp(kt_message(), expected, strlen(expected)), "%s", kt_message());

    ck_assert_int_eq(kt__nvrtc_find(&environment, 11, &nvrtc), KT_UNSUPPORTED);
    snprintf(expected, sizeof expected,
             "NVRTC not found in KT_CUDA_HOME=%s/cuda (its lib64, lib, targets/*/lib); %s/libnvrtc.so.12: newer than the driver's CUDA 11", folder, lib);
    ck_assert_str_eq(kt_message(), expected);
}
END_TEST

START_TEST(environment_folders)
{
    kt__environment e;
    setenv("KT_CACHE_DIR", "/a", 1);
    setenv("XDG_CACHE_HOME", "/b", 1);
    setenv("HOME", "/c", 1);
    setenv("KT_NO_JIT", "0", 1);
    setenv("KT_LOG", "2", 1);
    kt__environment_read(&e);
    ck_assert_str_eq(e.cache_dir, "/a");
    ck_assert_int_eq(e.log, 2);
    ck_assert(!e.no_jit);
    unsetenv("KT_CACHE_DIR");
    setenv("KT_NO_JIT", "1", 1);
    kt__environment_read(&e);
    ck_assert_str_eq(e.cache_dir, "/b/kittygen");
    ck_assert(e.no_jit);
    setenv("XDG_CACHE_HOME", "relative", 1);
    kt__environment_read(&e);
    ck_assert_str_eq(e.cache_dir, "/c/.cache/kittygen");
    unsetenv("HOME");
    kt__environment_read(&e);
    ck_assert_str_eq(e.cache_dir, "");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("compile");
    TCase *find = tcase_create("search"), *all = tcase_create("nvrtc");
    tcase_add_checked_fixture(find, make_folder, remove_folder);
    tcase_add_test(find, search);
    tcase_add_test(find, environment_folders);
    suite_add_tcase(suite, find);

    kt__nvrtc nvrtc;
    kt__environment_read(&environment);
    if (kt__nvrtc_find(&environment, 0, &nvrtc)) {
        printf("compile: only the search is tested: %s\n", kt_message());
    } else {
        tcase_add_checked_fixture(all, setup, teardown);
        tcase_set_timeout(all, 120);
        tcase_add_test(all, every_architecture);
        tcase_add_test(all, wrong_source);
        tcase_add_test(all, unknown_architecture);
        tcase_add_test(all, hit);
        tcase_add_test(all, keys);
        tcase_add_loop_test(all, damage, 0, DAMAGES);
        tcase_add_test(all, unwritable);
        tcase_add_test(all, no_jit);
        tcase_add_test(all, processes);
        tcase_add_test(all, bundle);
        tcase_add_test(all, dump);
        suite_add_tcase(suite, all);
    }
    return run_suite(suite);
}
