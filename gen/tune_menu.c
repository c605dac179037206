// The kernels that are worth measuring: by shared memory and registers, then by what the compiler says.
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "cuda/cubin_cache.h"
#include "emit.h"
#include "tune.h"

enum { LEAST_BUFFERS = 64 * 1024, MOST_WARPS = 16 }; // of a multiprocessor
enum { FEW_SPILLS = 128 };                           // bytes of a thread that cost next to nothing

static void add(kg_attend_plan *menu, const kg_attend_config *c)
{
    if (menu->count < KG_ATTEND_MENU && kg_attend_index(menu, c->warps, c->stages, c->tiles, c->blocks) < 0) {
        menu->rows[menu->row_count++] = (kg_attend_row){0, 0, menu->count};
        menu->configs[menu->count++] = *c;
    }
}

void kg_tune_menu(const kt_format *f, int shared_limit, const kg_attend_plan *now, const kg_tuned_set *old, kg_attend_plan *menu, int *kept)
{
    static const int warps[] = {4, 6, 8, 12}, tiles[] = {1, 2, 4, 8};
    kg_attend_config c;
    *menu = (kg_attend_plan){0};
    for (int i = 0; i < now->count; i++)
        if (now->configs[i].shared <= shared_limit)
            add(menu, &now->configs[i]);
    for (int i = 0; old && i < old->count; i++)
        if (kg_attend_fit(f, old->rows[i].warps, old->rows[i].stages, old->rows[i].tiles, old->rows[i].blocks, shared_limit, &c))
            add(menu, &c);
    *kept = menu->count;
    for (int w = 0; w < 4; w++)
        for (int stages = 1; stages <= 4; stages++)
            for (int t = 0; t < 4; t++)
                for (int blocks = 1; blocks <= 4; blocks++)
                    if (warps[w] * blocks <= MOST_WARPS && kg_attend_fit(f, warps[w], stages, tiles[t], blocks, shared_limit, &c) &&
                        blocks * c.buffers >= LEAST_BUFFERS)
                        add(menu, &c);
}

typedef struct {
    kg_progress bar;
    int before; // finished in earlier turns
} progress;

static void draw(void *context, int finished)
{
    progress *p = context;
    kg_progress_to(&p->bar, p->before + finished);
}

// Compiles in turns, between which it can stop; returns how many jobs have a status.
static int compile(const kg_tune *t, kt__cubins *cubins, kt__compile_job *jobs, int count, double until)
{
    const int turn = 2 * (int)sysconf(_SC_NPROCESSORS_ONLN);
    progress p = {0};
    kg_progress_begin(&p.bar, "compiling", count);
    while (p.before < count && !kg_tune_stopped(t) && (until <= 0 || kg_tune_clock() < until)) {
        const int rest = count - p.before, some = rest < turn ? rest : turn;
        kt__compile_all(cubins, jobs + p.before, some, 0, draw, &p); // each job has its own status
        p.before += some;
    }
    kg_progress_end(&p.bar);
    return p.before;
}

static int keep_good(kg_tune *t, const kt__compile_job *jobs, int tried)
{
    kg_attend_plan good = {0};
    int late = 0, broken = 0, spilling = 0;
    for (int k = 0; k < t->menu.count; k++) {
        const kt__cubin_stats *stats = &jobs[k].cubin.stats;
        if (k >= tried)
            late++;
        else if (jobs[k].status && k < t->kept)
            return kg_fail(KG_FAILED, t->bench.error, KG_ERROR, "%s", jobs[k].message);
        else if (jobs[k].status)
            broken++;
        else if (k >= t->kept && stats->spill_stores > FEW_SPILLS)
            spilling++;
        else
            add(&good, &t->menu.configs[k]);
    }
    if (!t->bench.json)
        printf("%s: %d attend kernels to measure; left out: %d that spill over %d bytes, %d that do not compile, %d for want of time\n", t->spec->name,
               good.count, spilling, FEW_SPILLS, broken, late);
    fflush(stdout);
    t->menu = good;
    return KG_OK;
}

// The attend kernels are jobs[0 ...], in the menu's order; the others must do.
static int compile_package(kg_tune *t, kt__cubins *cubins, kt__compile_job *jobs, kt__kernel *kernels, const kg_package *package, double until)
{
    const int others = package->count - t->menu.count;
    for (int i = 0; i < package->count; i++) {
        kg_kernel_job(&package->kernels[i], &kernels[i]);
        jobs[i].kernel = &kernels[i];
        snprintf(jobs[i].arch, sizeof jobs->arch, "%s", t->arch);
    }
    const kt_status status = kt__compile_all(cubins, jobs + t->menu.count, others, 0, 0, 0);
    if (status)
        return kg_bench_refused(&t->bench, "compiling", status);
    return keep_good(t, jobs, compile(t, cubins, jobs, t->menu.count, until));
}

int kg_tune_compile(kg_tune *t, double until)
{
    kt__environment environment;
    kg_package package;
    int code = kg_package_make(t->spec, &t->menu, &package, t->bench.error, KG_ERROR);
    if (code)
        return code;
    kt__cubins *cubins = malloc(sizeof *cubins);
    kt__compile_job *jobs = calloc((size_t)package.count, sizeof *jobs);
    kt__kernel *kernels = calloc((size_t)package.count, sizeof *kernels);
    if (cubins && jobs && kernels) {
        kt__environment_read(&environment);
        kt__cubins_open(cubins, &environment, "", t->newest_major);
        code = compile_package(t, cubins, jobs, kernels, &package, until);
        kt__cubins_close(cubins);
    } else
        code = kg_fail(KG_MACHINE, t->bench.error, KG_ERROR, "out of memory");
    for (int i = 0; jobs && i < package.count; i++)
        kt__cubin_free(&jobs[i].cubin);
    free(kernels);
    free(jobs);
    free(cubins);
    kg_package_free(&package);
    return code;
}
