// agree: the list of cases on the card, against what the emulator gave for them (tests/emulate/, ctest -R emulate_kernels).
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cases.h"
#include "cuda.h"
#include "parallel.h"
#include "pool.h"

enum { SECONDS = 150, SEED = 1 };

typedef struct {
    case_list list;
    int *tasks, task_count;
    const char *folder;
    int on_cpu;
} plan;

typedef struct {
    pool_result end;
    agreement found;
} outcome;

// The card and the emulator do the same operations in the same order and differ where PTX leaves the rounding open: sums of the tensor
// cores, ex2.approx, and what the compiler contracts, each off by a few units of 2^-23. That turns a rounding to the output's type, or
// of a probability to 16 bits, the other way in a few places, by one unit in the last place there. So the relative L2 of an attend stays
// below 2^-11 in fp16 and 2^-8 in bf16, half a unit, which every second element turned would reach, and no element is off by more than
// 4 units: its own rounding, and those of the few probabilities that carry a head. An emulator that cuts the terms of a product off two
// bits below fp32, strays by 2 ulp in ex2 and contracts is off by 1.1e-4 and 4.0e-4, and by 1.25 units, on these cases. A logit ends a
// chain of ten or more products whose partial sums reach 2^8 where channels stick out, each cut off at 2^-23 of that: 5e-4 of log-sum-exp.
static difference limits_of(const plan *p, int dtype)
{
    if (p->on_cpu)
        return (difference){error_limit(dtype), 4 * error_limit(dtype), INFINITY};
    return (difference){dtype == KT_BF16 ? 0x1p-8 : 0x1p-11, 5e-4, 6};
}

static int run_case(const plan *p, const test_case *c, outcome *o)
{
    const difference limits = limits_of(p, c->package.formats[0].dtype);
    record recorded = {0}, here = {0};
    kt_engine *engine = NULL;
    case_run run = {0};
    int code = record_read(&p->list, c, p->folder, &recorded);
    if (!code && !p->on_cpu)
        code = cuda_hold();
    if (!code) {
        const kt_open_args args = {.size = sizeof args, .package = c->folder, .device = p->on_cpu ? KT_DEVICE_CPU : KT_DEVICE_CUDA};
        const kt_status status = kt_open(&args, &engine);
        code = status ? refused("kt_open", status) : case_open(&run, c, engine, SEED);
    }
    for (int step = 0; step < CASE_STEPS && !code; step++)
        code = case_step(&run, step, &here);
    if (!code)
        records_compare(c, &here, &recorded, &limits, &o->found);
    if (!code && *o->found.fault)
        code = fail(KG_FAILED, "%s", o->found.fault);
    case_close(&run);
    kt_close(engine);
    record_free(&here);
    record_free(&recorded);
    return code;
}

static int work(void *context, int task, void *result)
{
    const plan *p = context;
    return run_case(p, &p->list.all[p->tasks[task]], result);
}

static int print(const plan *p, const outcome *outcomes)
{
    agreement all[2]; // by dtype
    int code = KG_OK, kernels = 0;
    memset(all, 0, sizeof all);
    printf("%-32s %6s %7s %9s %9s %6s %8s\n", "case", "blocks", "attends", "L2", "lse", "ulps", "equal");
    for (int t = 0; t < p->task_count; t++) {
        const test_case *c = &p->list.all[p->tasks[t]];
        const agreement *a = &outcomes[t].found;
        agreement *sum = &all[c->package.formats[0].dtype == KT_BF16];
        printf("%-32s %6ld %7ld %9.2e %9.2e %6.2f %7.2f%%%s%s\n", c->name, a->blocks, a->attends, a->worst.distance, a->worst.lse,
               a->worst.ulps, a->elements ? 100.0 * (double)a->equal / (double)a->elements : 100.0, outcomes[t].end.code ? "\n    FAILED: " : "",
               outcomes[t].end.message);
        for (int k = 0; k < c->package.kernel_count; k++)
            kernels += c->first[k] && c->package.kernels[k].op == KT__ATTEND;
        sum->worst.distance = fmax(sum->worst.distance, a->worst.distance), sum->worst.lse = fmax(sum->worst.lse, a->worst.lse);
        sum->worst.ulps = fmax(sum->worst.ulps, a->worst.ulps);
        sum->blocks += a->blocks, sum->attends += a->attends, sum->elements += a->elements, sum->equal += a->equal;
        code = outcomes[t].end.code > code ? outcomes[t].end.code : code;
    }
    for (int dtype = 0; dtype < 2; dtype++) {
        const difference limits = limits_of(p, dtype);
        const agreement *a = &all[dtype];
        if (a->blocks)
            printf("%s: %ld blocks byte for byte; %ld attends, %.2f %% of %ld elements bit for bit; worst L2 %.2e of %.2e, lse %.1e of %.1e, "
                   "%.2f of %.0f ulps\n", dtype ? "bf16" : "fp16", a->blocks, a->attends, 100.0 * (double)a->equal / (double)a->elements,
                   a->elements, a->worst.distance, limits.distance, a->worst.lse, limits.lse, a->worst.ulps, limits.ulps);
    }
    printf("%d cases, %d attend kernels, %s against the emulator: %s\n", p->task_count, kernels, p->on_cpu ? "the CPU" : "the card",
           code ? "FAILED" : "ok");
    return code;
}

static int run_plan(plan *p, int jobs)
{
    outcome *outcomes = calloc((size_t)p->task_count, sizeof *outcomes);
    if (!outcomes)
        return fail(KG_MACHINE, "out of memory");
    const pool pool = {.what = "cases", .count = p->task_count, .jobs = jobs, .limit = SECONDS, .result_bytes = sizeof *outcomes,
                       .results = (char *)outcomes, .work = work, .context = p};
    int code = pool_run(&pool);
    code = code ? code : print(p, outcomes);
    free(outcomes);
    return code;
}

static int begins_with_any(const char *name, char **starts, int count)
{
    for (int i = 0; i < count; i++)
        if (!strncmp(name, starts[i], strlen(starts[i])))
            return 1;
    return !count;
}

static const char *beside_program(const char *name, char path[KG_PATH])
{
    const ssize_t length = readlink("/proc/self/exe", path, KG_PATH / 2);
    path[length < 0 ? 0 : length] = 0;
    char *slash = strrchr(path, '/');
    strcpy(slash ? slash + 1 : path, name);
    return path;
}

int part_agree(int argc, char **argv)
{
    const char *jobs_text = NULL, *device = "cuda";
    char path[KG_PATH];
    int code, jobs = kg_parallel_workers();
    plan p = {.folder = beside_program("emulated", path)};
    const kg_option options[] = {
        {"--records", "FOLDER", "what the emulator gave (default: emulated, beside this program)", NULL, &p.folder},
        {"--jobs", "N", "processes at a time (default: the cores)", NULL, &jobs_text},
        {"--device", "cuda|cpu", "cpu: the CPU against the emulator, within the kernels' error", NULL, &device},
        {NULL, NULL, NULL, NULL, NULL},
    };
    const kg_usage usage = {"gpu_suite agree [NAME...] [options]",
                            "Runs the cases whose names begin so, or all, and compares with the emulator's records of them: sealed\n"
                            "blocks and exact rows byte for byte, attention within rounding. Columns: the worst relative L2 of an\n"
                            "attend, difference of log-sum-exp, and of an element in units of the last place; equal: elements with\n"
                            "the same bits.\n",
                            options, 0, -1};
    const int names = kg_options(&usage, argc, argv, &code);
    if (names < 0)
        return code;
    if (jobs_text)
        TRY(read_integer("--jobs", jobs_text, 1, 64, &jobs));
    if (strcmp(device, "cuda") && strcmp(device, "cpu"))
        return fail(KG_USER, "--device: '%s' is not allowed; allowed: cuda, cpu", device);
    p.on_cpu = !strcmp(device, "cpu");
    if (access(p.folder, R_OK))
        return fail(KG_USER, "%s: no such folder; the test emulate_kernels makes it (./dev test -R emulate_kernels)", p.folder);
    code = cases_make(&p.list, NULL, 0);
    p.tasks = calloc((size_t)p.list.count + 1, sizeof *p.tasks);
    for (int i = 0; p.tasks && !code && i < p.list.count; i++)
        if (p.list.all[i].runs && begins_with_any(p.list.all[i].name, argv + 1, names))
            p.tasks[p.task_count++] = i;
    if (!code)
        code = p.task_count ? run_plan(&p, jobs) : fail(KG_USER, "no case of those names");
    free(p.tasks);
    cases_free(&p.list);
    return code;
}
