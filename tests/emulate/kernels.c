// Runs the list of cases (../gpu/cases.h) under the emulator, through the public API, beside the CPU backend: blocks must be equal byte
// for byte, attention within the bounds that hold on a GPU, and nothing may be reported. Without operands it goes over every kernel of
// every shipped spec (of best-2bit, one model's), on both paths of the code, and fails unless each was launched.
//
//   emulate_kernels [SPEC...] [--seed N] [--record FOLDER] [--jobs N]
//
// With specs all runs in this process, for a debugger.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "beside.h"
#include "parallel.h"
#include "pool.h"

enum { LIMIT = 600 }; // seconds of a case

typedef struct {
    case_list list;
    uint64_t seed;
    const char *folder; // for records; may be null
    int *tasks;         // numbers of the cases that run
} plan;

typedef struct {
    pool_result end;
    emulation run;
    double seconds;
} outcome;

static int run_case(const plan *p, const test_case *c, outcome *o)
{
    record record = {0};
    int code = run_beside_cpu(c, p->seed, NULL, &record, &o->run);
    if (!code && p->folder)
        code = record_write(&p->list, c, &record, p->folder);
    record_free(&record);
    return code;
}

static int work(void *context, int task, void *result)
{
    const plan *p = context;
    outcome *o = result;
    const double begin = now();
    const int code = run_case(p, &p->list.all[p->tasks[task]], o);
    o->seconds = now() - begin;
    return code;
}

// Kernels of all manifests whose source was launched and not at fault, on both paths.
static int count_kernels(const plan *p, const outcome *outcomes, int tasks)
{
    const case_list *list = &p->list;
    char (*run)[PATHS] = calloc((size_t)list->sources + 1, sizeof *run);
    int executed = 0;
    if (!run)
        return fail(KG_MACHINE, "out of memory");
    for (int t = 0; t < tasks; t++)
        for (int k = 0; k < list->all[p->tasks[t]].package.kernel_count && !outcomes[t].end.code; k++)
            for (int path = 0; path < PATHS; path++)
                run[list->all[p->tasks[t]].sources[k]][path] |= outcomes[t].run.launches[k][path] > 0;
    for (int i = 0; i < list->count; i++)
        for (int k = 0; k < list->all[i].package.kernel_count; k++)
            for (int path = 0; path < PATHS; path++) {
                executed += run[list->all[i].sources[k]][path];
                if (!run[list->all[i].sources[k]][path])
                    printf("NOT RUN %s of %s with %s\n", list->all[i].package.kernels[k].name, list->all[i].name,
                           path ? "bulk copies" : "cp.async");
            }
    free(run);
    printf("%d of %d kernels, %.4g %%: those of %d packages with bulk copies and with cp.async; %d different sources, header comments aside\n",
           executed, PATHS * list->kernels, 100.0 * executed / (PATHS * list->kernels), list->count, list->sources);
    return executed == PATHS * list->kernels ? KG_OK : KG_FAILED;
}

static int run_all(plan *p, int tasks, int jobs)
{
    outcome *outcomes = calloc((size_t)tasks, sizeof *outcomes);
    const pool pool = {.what = "packages", .count = tasks, .jobs = jobs, .limit = LIMIT, .result_bytes = sizeof *outcomes,
                       .results = (char *)outcomes, .work = work, .context = p};
    int code = outcomes ? pool_run(&pool) : fail(KG_MACHINE, "out of memory");
    for (int t = 0; t < tasks && !code; t++) {
        const outcome *o = &outcomes[t];
        printf("%s %s: %ld attends, worst relative L2 distance %.2g; %.1f s%s%s\n", o->end.code ? "FAIL" : "ok  ", p->list.all[p->tasks[t]].name,
               o->run.found.attends, o->run.found.worst.distance, o->seconds, o->end.code ? "\n     " : "", o->end.message);
    }
    for (int t = 0; t < tasks; t++)
        code = outcomes && outcomes[t].end.code > code ? outcomes[t].end.code : code;
    if (outcomes) {
        const int counted = count_kernels(p, outcomes, tasks);
        code = code ? code : counted;
    }
    free(outcomes);
    return code;
}

int main(int argc, char **argv)
{
    const char *seed_text = NULL, *jobs_text = NULL;
    plan p = {.seed = 1};
    int code, seed = 1, tasks = 0, jobs = kg_parallel_workers();
    const kg_option options[] = {
        {"--seed", "N", "of the inputs (default 1)", NULL, &seed_text},
        {"--record", "FOLDER", "keep what the emulator gave there, for gpu_suite agree", NULL, &p.folder},
        {"--jobs", "N", "processes at a time (default: the cores)", NULL, &jobs_text},
        {NULL, NULL, NULL, NULL, NULL},
    };
    const kg_usage usage = {"emulate_kernels [SPEC...] [options]",
                            "Runs emitted kernels on the CPU, beside the CPU backend: those of these specs, in this process; without\n"
                            "any those of every shipped spec, which must all have been launched.\n", options, 0, -1};
    const int specs = kg_options(&usage, argc, argv, &code);
    if (specs < 0)
        return code;
    code = seed_text ? read_integer("--seed", seed_text, 0, 1 << 30, &seed) : KG_OK;
    if (!code && jobs_text)
        code = read_integer("--jobs", jobs_text, 1, 64, &jobs);
    p.seed = (uint64_t)seed;
    if (!code)
        code = cases_make(&p.list, argv + 1, specs);
    p.tasks = calloc((size_t)p.list.count + 1, sizeof *p.tasks);
    for (int i = 0; p.tasks && i < p.list.count; i++)
        if (p.list.all[i].runs)
            p.tasks[tasks++] = i;
    *failure = code ? *failure : 0;
    if (!code)
        code = run_all(&p, tasks, specs ? 0 : jobs);
    if (code && *failure)
        fprintf(stderr, "emulate_kernels: %s\n", failure);
    free(p.tasks);
    cases_free(&p.list);
    return code;
}
