// Runs the list of cases (../gpu/cases.h) under the emulator, through the public API, beside the CPU backend: blocks must be equal byte
// for byte, attention within the bounds that hold on a GPU, and nothing may be reported. Without operands it goes over every kernel of
// every shipped spec, on both paths of the code, and fails unless each was launched.
//
//   emulate_kernels [SPEC...] [--seed N] [--record FOLDER] [--jobs N]
//
// With specs all runs in this process, for a debugger.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend.h"
#include "cases.h"
#include "parallel.h"
#include "pool.h"

enum { LIMIT = 600, PATHS = 2 };

typedef struct {
    case_list list;
    uint64_t seed;
    const char *folder; // for records; may be null
    int *tasks;         // numbers of the cases that run
} plan;

typedef struct {
    int code;
    char message[2048];
    int launches[CASE_KERNELS][PATHS];
    agreement found;
    double seconds;
} outcome;

// The first byte that differs of the blocks a step leaves, where records_compare has seen that one does.
static void find_byte(const case_run *both, char *message, size_t size)
{
    const int bytes = both->given->package.format.block_bytes;
    unsigned char *blocks = malloc(2 * (size_t)bytes);
    for (int at = 0; blocks && at < CASE_SLOTS * CASE_LAYERS * CASE_HEADS; at++) {
        const int head = at % CASE_HEADS, layer = at / CASE_HEADS % CASE_LAYERS, sequence = at / CASE_HEADS / CASE_LAYERS;
        for (int page = 0;; page++) {
            if (case_block(&both[0], sequence, layer, head, page, blocks) || case_block(&both[1], sequence, layer, head, page, blocks + bytes))
                break; // no such page
            for (int i = 0; i < bytes; i++)
                if (blocks[i] != blocks[bytes + i]) {
                    snprintf(message, size, "; byte %d of sequence %d, layer %d, head %d, page %d is 0x%02x, on the CPU 0x%02x", i, sequence,
                             layer, head, page, blocks[i], blocks[bytes + i]);
                    free(blocks);
                    return;
                }
        }
    }
    free(blocks);
}

static int run_steps(case_run *both, record *all, outcome *o)
{
    const int bf16 = both->given->package.format.dtype == KT_BF16;
    const difference limits = {error_limit(bf16), 4 * error_limit(bf16), INFINITY};
    for (int step = 0; step < CASE_STEPS; step++) {
        record records[2] = {0};
        // Each path in turn, with a block to each unit of append and with fewer.
        kt__emulate_card(both[0].engine->backend, step % 2, step / 2 % 2 ? 3 : 1 << 20);
        int code = case_step(&both[0], step, &records[0]);
        if (!code)
            code = case_step(&both[1], step, &records[1]);
        if (!code)
            records_compare(both->given, &records[0], &records[1], &limits, &o->found);
        if (!code && *o->found.fault) {
            char where[256] = "";
            find_byte(both, where, sizeof where);
            code = fail(KG_FAILED, "%s%s", o->found.fault, where);
        }
        kg_text_bytes(&all->blocks, records[0].blocks.data, records[0].blocks.size);
        kg_text_bytes(&all->outputs, records[0].outputs.data, records[0].outputs.size);
        record_free(&records[0]);
        record_free(&records[1]);
        if (code) {
            char message[KG_ERROR];
            snprintf(message, sizeof message, "%s", failure);
            return fail(code, "step %d, %s: %.3000s", step, both[0].engine->backend->device_name, message);
        }
    }
    return KG_OK;
}

static int run_case(const plan *p, const test_case *c, outcome *o)
{
    kt_engine *engines[2] = {NULL, NULL};
    case_run both[2] = {{0}, {0}};
    record all = {0};
    int code = KG_OK;
    for (int i = 0; i < 2 && !code; i++) {
        const kt_open_args args = {.size = sizeof args, .package = c->folder, .device = i ? KT_DEVICE_CPU : KT_DEVICE_CUDA};
        const kt_status status = kt_open(&args, &engines[i]);
        code = status ? refused("kt_open", status) : case_open(&both[i], c, engines[i], p->seed);
    }
    if (!code)
        code = run_steps(both, &all, o);
    for (int k = 0; k < c->package.kernel_count && engines[0]; k++)
        for (int path = 0; path < PATHS; path++)
            o->launches[k][path] = kt__emulate_launches(engines[0]->backend, k, path);
    for (int i = 0; i < 2; i++) {
        case_close(&both[i]);
        kt_close(engines[i]);
    }
    if (!code && p->folder)
        code = record_write(&p->list, c, &all, p->folder);
    record_free(&all);
    return code;
}

static int work(void *context, int task, void *result)
{
    const plan *p = context;
    outcome *o = result;
    const double begin = now();
    o->code = run_case(p, &p->list.all[p->tasks[task]], o);
    if (o->code)
        snprintf(o->message, sizeof o->message, "%.2000s", failure);
    o->seconds = now() - begin;
    return 1;
}

static void lost(void *context, int task, void *result, const char *why)
{
    (void)context, (void)task;
    outcome *o = result;
    o->code = KG_MACHINE;
    snprintf(o->message, sizeof o->message, "%s", why);
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
        for (int k = 0; k < list->all[p->tasks[t]].package.kernel_count && !outcomes[t].code; k++)
            for (int path = 0; path < PATHS; path++)
                run[list->all[p->tasks[t]].sources[k]][path] |= outcomes[t].launches[k][path] > 0;
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
    pool pool = {.count = tasks, .jobs = jobs, .limit = LIMIT, .result_bytes = sizeof *outcomes, .results = (char *)outcomes,
                 .work = work, .lost = lost, .context = p};
    int code = outcomes ? KG_OK : fail(KG_MACHINE, "out of memory");
    if (!code && jobs)
        code = pool_run(&pool);
    for (int t = 0; t < tasks && !code && !jobs; t++)
        work(p, t, &outcomes[t]);
    for (int t = 0; t < tasks && !code; t++) {
        const outcome *o = &outcomes[t];
        printf("%s %s: %ld attends, worst relative L2 distance %.2g; %.1f s%s%s\n", o->code ? "FAIL" : "ok  ", p->list.all[p->tasks[t]].name,
               o->found.attends, o->found.worst.distance, o->seconds, o->code ? "\n     " : "", o->message);
    }
    for (int t = 0; t < tasks; t++)
        code = outcomes && outcomes[t].code > code ? outcomes[t].code : code;
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
