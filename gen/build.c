// kittygen build: compiles the kernels of specs for every architecture, ahead of time and without a GPU; shows what they use.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "command.h"
#include "cuda/cubin_cache.h"
#include "emit.h"
#include "progress.h"

static const char *const usual[] = {"sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a"};
static const char *const known[] = {"sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a", "sm_103a", "sm_110a", "sm_121a", "all"};
enum { USUAL = sizeof usual / sizeof *usual, KNOWN = sizeof known / sizeof *known, ARCHS = 16 };

typedef struct {
    const char *archs[ARCHS];
    int arch_count, threads, json;
    const char *to;
    kt__environment environment;
    kt__nvrtc nvrtc;
    int packages, cubins, compiled, spilling; // totals
    kg_text folders; // written in this run, a line each
} build;

// "sm_90a,sm_80" or "all"; returns an exit code.
static int parse_archs(const char *text, build *b)
{
    while (text) {
        char word[32];
        const size_t length = strcspn(text, ",");
        snprintf(word, sizeof word, "%.*s", (int)(length < sizeof word ? length : sizeof word - 1), text);
        const char *found = 0;
        for (int i = 0; i < KNOWN; i++)
            if (!strcmp(word, known[i]))
                found = known[i];
        if (!found)
            return kg_value_error("build", "--arch", word, known, KNOWN);
        const int all = !strcmp(found, "all");
        for (int i = 0; i < (all ? USUAL : 1); i++) {
            const char *arch = all ? usual[i] : found;
            int seen = 0;
            for (int j = 0; j < b->arch_count; j++)
                seen |= b->archs[j] == arch || !strcmp(b->archs[j], arch);
            if (!seen)
                b->archs[b->arch_count++] = arch;
        }
        text = text[length] ? text + length + 1 : 0;
    }
    return KG_OK;
}

static int exit_code(kt_status status) { return status == KT_COMPILE ? KG_FAILED : KG_MACHINE; }

// ---- reports ---------------------------------------------------------------------------------------------------------

static const char *count_text(int n, char text[16])
{
    if (n < 0)
        return "?";
    snprintf(text, 16, "%d", n);
    return text;
}

static void print_table(const build *b, const char *spec, const kt__compile_job *jobs, int count)
{
    const bool colour = kg_colour(stdout);
    printf("%s%s%s, NVRTC %d.%d\n", colour ? KG_BOLD : "", spec, colour ? KG_PLAIN : "", b->nvrtc.major, b->nvrtc.minor);
    printf("  %-16s %-8s %9s %9s %9s %7s %8s\n", "kernel", "arch", "registers", "shared", "spilled", "stack", "ms");
    for (int i = 0; i < count; i++) {
        const kt__cubin_stats *s = &jobs[i].cubin.stats;
        char registers[16], shared[16], spilled[16], stack[16], ms[16];
        if (jobs[i].status) {
            printf("  %-16s %-8s %sfailed%s\n", jobs[i].kernel->name, jobs[i].arch, colour ? KG_RED : "", colour ? KG_PLAIN : "");
            continue;
        }
        const bool spills = s->spill_stores > 0 || s->spill_loads > 0;
        printf("  %-16s %-8s %9s %9s %s%9s%s %7s %8s%s\n", jobs[i].kernel->name, jobs[i].arch, count_text(s->registers, registers),
               count_text(s->shared < 0 ? -1 : s->shared + jobs[i].kernel->shared, shared), spills && colour ? KG_RED : "",
               count_text(s->spill_stores, spilled), spills && colour ? KG_PLAIN : "", count_text(s->stack, stack),
               jobs[i].origin == KT__COMPILED ? count_text(s->milliseconds, ms) : "cached", spills ? "  spills" : "");
    }
}

static void print_json(const build *b, const char *spec, const kt__compile_job *jobs, int count)
{
    kg_text out = {0};
    kg_text_add(&out, b->packages ? ",\n {\"spec\": " : "\n {\"spec\": ");
    kg_text_json(&out, spec);
    kg_text_addf(&out, ", \"nvrtc\": \"%d.%d\", \"kernels\": [", b->nvrtc.major, b->nvrtc.minor);
    for (int i = 0; i < count; i++) {
        const kt__cubin_stats *s = &jobs[i].cubin.stats;
        kg_text_addf(&out, "%s\n  {\"kernel\": \"%s\", \"arch\": \"%s\"", i ? "," : "", jobs[i].kernel->name, jobs[i].arch);
        if (jobs[i].status) {
            kg_text_addf(&out, ", \"status\": \"%s\", \"message\": ", kt_status_name(jobs[i].status));
            kg_text_json(&out, jobs[i].message);
        } else {
            const struct { const char *name; int value; } numbers[] = {
                {"registers", s->registers}, {"dynamic_shared", jobs[i].kernel->shared}, {"static_shared", s->shared},
                {"spill_stores", s->spill_stores}, {"spill_loads", s->spill_loads}, {"stack", s->stack}, {"ms", s->milliseconds},
            };
            kg_text_add(&out, ", \"status\": \"KT_OK\"");
            for (size_t n = 0; n < sizeof numbers / sizeof *numbers; n++)
                kg_text_addf(&out, numbers[n].value < 0 ? ", \"%s\": null" : ", \"%s\": %d", numbers[n].name, numbers[n].value);
            kg_text_addf(&out, ", \"bytes\": %zu, \"compiled\": %s", jobs[i].cubin.bytes, jobs[i].origin == KT__COMPILED ? "true" : "false");
        }
        kg_text_add(&out, "}");
    }
    kg_text_add(&out, "]}");
    fputs(out.data ? out.data : "", stdout);
    kg_text_free(&out);
}

// ---- one spec --------------------------------------------------------------------------------------------------------

// What went wrong: once per kernel, for the first architecture it failed for; once in all where all say the same.
static int print_failures(const kt__compile_job *jobs, int count)
{
    int failed = 0;
    const kt__compile_job *shown = 0;
    for (int i = 0; i < count; i++) {
        if (!jobs[i].status)
            continue;
        if (!shown || (jobs[i].kernel != shown->kernel && strcmp(jobs[i].message, shown->message)))
            fprintf(stderr, "%s\n", jobs[i].message);
        shown = &jobs[i];
        failed++;
    }
    return failed;
}

static void draw(void *bar, int finished) { kg_progress_to(bar, finished); }

static int build_spec(build *b, const kg_spec *spec, char *error, size_t error_size)
{
    char folder[KG_PATH] = "";
    kg_package package;
    kt__kernel kernels[KG_KERNELS];
    kg_progress bar;
    kt__compile_job *jobs = 0;
    kt__cubins *cubins = 0;
    int count = 0;
    int code = kg_package_make(spec, 0, &package, error, error_size);
    if (code)
        goto fail;
    if (b->to && snprintf(folder, sizeof folder, "%s/%s", b->to, spec->name) >= KG_PATH - 1024) {
        code = kg_fail(KG_USER, error, error_size, "-o: path too long");
        goto fail;
    }
    if (b->to && kg_text_seen(&b->folders, folder)) {
        code = kg_fail(KG_USER, error, error_size, "%s: two specs of this run would go to this folder; give them different names", folder);
        goto fail;
    }
    if (b->to && (code = kg_package_write(&package, folder, error, error_size)))
        goto fail;
    jobs = calloc((size_t)(package.count * b->arch_count), sizeof *jobs);
    cubins = calloc(1, sizeof *cubins);
    if (!jobs || !cubins) {
        code = kg_fail(KG_MACHINE, error, error_size, "out of memory");
        goto fail;
    }
    for (int k = 0; k < package.count; k++) {
        kg_kernel_job(&package.kernels[k], &kernels[k]);
        for (int a = 0; a < b->arch_count; a++, count++) {
            jobs[count].kernel = &kernels[k];
            snprintf(jobs[count].arch, sizeof jobs->arch, "%s", b->archs[a]);
        }
    }

    kt__cubins_open(cubins, &b->environment, folder, 0);
    cubins->write_bundle = b->to != 0;
    kg_progress_begin(&bar, spec->name, count);
    const kt_status status = kt__compile_all(cubins, jobs, count, b->threads, draw, &bar);
    kg_progress_end(&bar);
    kt__cubins_close(cubins);

    (b->json ? print_json : print_table)(b, spec->name, jobs, count);
    b->packages++;
    if (status) {
        code = kg_fail(exit_code(status), error, error_size, "%s: %d of %d compilations failed", spec->name, print_failures(jobs, count), count);
        goto fail;
    }
    for (int i = 0; i < count; i++) {
        b->cubins++;
        b->compiled += jobs[i].origin == KT__COMPILED;
        b->spilling += jobs[i].cubin.stats.spill_stores > 0 || jobs[i].cubin.stats.spill_loads > 0;
    }
fail:
    for (int i = 0; i < count; i++)
        kt__cubin_free(&jobs[i].cubin);
    free(jobs);
    free(cubins);
    kg_package_free(&package);
    return code;
}

// ---- command ---------------------------------------------------------------------------------------------------------

int kg_command_build(int argc, char **argv)
{
    build b = {0};
    const char *arch = "all", *jobs = 0, *dtype = 0;
    const kg_option options[] = {
        {"--arch", "ARCH,...", "sm_80, sm_86, sm_89, sm_90a, sm_100a, sm_120a, sm_103a, sm_110a, sm_121a; all: the first six (default)", 0, &arch},
        {"-o", "FOLDER", "write each package with its cubins to FOLDER/SPEC, for machines without NVRTC", 0, &b.to},
        {"--jobs", "N", "compilations at a time (default: one per core)", 0, &jobs},
        {"--dtype", "fp16|bf16", "override the model's element type", 0, &dtype},
        {"--json", 0, "report as JSON", &b.json, 0},
        {0, 0, 0, 0, 0},
    };
    const kg_usage usage = {"kittygen build SPEC... [options]",
                            "Compiles each spec's kernels with NVRTC, without a GPU, into the cache (KT_CACHE_DIR), so that kt_open\n"
                            "compiles nothing; with -o also into ready packages. Shows registers per thread, shared memory per block,\n"
                            "bytes spilled to local memory, and the stack frame of every kernel.\n",
                            options, 1, -1};
    int code;
    const int operands = kg_options(&usage, argc, argv, &code);
    if (operands < 0)
        return code;
    long threads = 0;
    if ((code = parse_archs(arch, &b)) || (jobs && (code = kg_option_integer("build", "--jobs", jobs, 1, 64, &threads))))
        return code;
    b.threads = (int)threads;
    kt__environment_read(&b.environment);
    if (kt__nvrtc_find(&b.environment, 0, &b.nvrtc)) {
        fprintf(stderr, "kittygen build: %s\n", kt_message());
        return KG_MACHINE;
    }

    char error[KG_ERROR];
    struct timespec begin, end;
    const kg_spec_options spec_options = {.dtype = dtype};
    clock_gettime(CLOCK_MONOTONIC, &begin);
    if (b.json)
        printf("[");
    for (int i = 1; i <= operands && !code; i++) {
        kg_spec *specs = 0;
        int count = 0;
        code = kg_spec_load(argv[i], &spec_options, &specs, &count, error, sizeof error);
        for (int s = 0; s < count && !code; s++)
            code = build_spec(&b, &specs[s], error, sizeof error);
        free(specs);
    }
    kg_text_free(&b.folders);
    clock_gettime(CLOCK_MONOTONIC, &end);
    const double seconds = (double)(end.tv_sec - begin.tv_sec) + (double)(end.tv_nsec - begin.tv_nsec) * 1e-9;
    if (b.json)
        printf("]\n");
    else if (!code)
        printf("%d cubins: %d compiled, %d from the cache, %d with spills; %.1f s\n", b.cubins, b.compiled, b.cubins - b.compiled, b.spilling, seconds);
    if (code)
        fprintf(stderr, "kittygen build: %s\n", error);
    return code;
}
