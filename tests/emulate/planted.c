// Faults planted in the kernels themselves: each changes the text of an emitted kernel in one place. The emulator must report it and call
// it by its kind, or, where nothing is wrong but the numbers, the results must differ from the CPU's. A text that the kernels do not
// have any more is a failure: plant the fault anew.
//
//   emulate_planted [NUMBER]     all, or that one with what was found
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "beside.h"
#include "parallel.h"
#include "pool.h"

enum { LIMIT = 600, SEED = 1 };

typedef struct {
    const char *fault, *kinds[2]; // as the emulator calls it, by who comes first; "differs": no report, other results
    const char *spec;             // of shapes.lua
    change change;
} planted;

static const char pair[] = "d64-g1-kitty", wide[] = "d128-g7-range"; // a head's low parts beside it; apart
static const char rows[] = "d64-g9-groups", several[] = "d64-g11-odd"; // heads as rows; with a q' for several planes

static const planted all[] = {
    {"a dropped barrier", {"wait", "race"}, pair, {KT__ATTEND, "    __syncthreads(); // the stages are free\n", ""}},
    {"a dropped barrier", {"uninitialised", "race"}, pair, {KT__ATTEND, "*arrivals = 0;\n    }\n    __syncthreads();\n", "*arrivals = 0;\n    }\n"}},
    {"a dropped barrier", {"uninitialised", "race"}, pair,
     {KT__APPEND, "        async_wait<0>();\n        __syncthreads();\n", "        async_wait<0>();\n"}},
    {"a missing wait", {"wait"}, pair, {KT__ATTEND, "        barrier_wait(barrier, parity);\n", ""}},
    {"a missing wait", {"wait"}, pair, {KT__ATTEND, "        async_wait<pending>();\n", ""}},
    {"a wait for too little", {"wait"}, pair, {KT__ATTEND, "copy_wait<2 * STAGES - 1>", "copy_wait<2 * STAGES>"}},
    {"a missing wait", {"wait"}, wide, {KT__APPEND, "        async_wait<0>();\n", ""}},
    {"a missing wait", {"race"}, wide, {KT__ATTEND, "    grid_wait();\n    grid_launch_next();\n", "    grid_launch_next();\n"}},
    {"an off-by-one", {"bounds", "race"}, pair, {KT__ATTEND, "GROUP_HEADS) + head] =", "GROUP_HEADS) + head + 1] ="}},
    {"an off-by-one", {"bounds"}, pair, {KT__ATTEND, "(first_head + column) * p.query_head", "(first_head + column + 1) * p.query_head"}},
    {"an off-by-one", {"differs"}, pair, {KT__APPEND, "table_stride + u.page)", "table_stride + u.page + 1)"}},
    {"a wrong mask", {"mask"}, pair, {KT__ATTEND, "__shfl_xor_sync(~0u, state.sum0, x)", "__shfl_xor_sync(0xffffu, state.sum0, x)"}},
    {"a wrong mask", {"mask"}, wide, {KT__APPEND, "__shfl_xor_sync(~0u, largest, x)", "__shfl_xor_sync(~1u, largest, x)"}},
    {"a swapped fragment", {"differs"}, pair,
     {KT__ATTEND, "word & 0x000c000cu, word & 0x00300030u", "word & 0x00300030u, word & 0x000c000cu"}},
    {"a swapped fragment", {"differs"}, wide,
     {KT__ATTEND, "front & second, next & first", "next & first, front & second"}},
    {"a swapped fragment", {"differs"}, wide, {KT__ATTEND, "mma_element(s, x[k].x, y[k].x, x[k].y,", "mma_element(s, x[k].x, x[k].y, y[k].x,"}},
    {"a swapped fragment", {"differs"}, pair,
     {KT__APPEND, "const int at = 8 * (y >> 1) + 2 * (y & 1);", "const int at = 8 * (y & 1) + 2 * (y >> 1);"}},
    {"an uninitialised tile", {"uninitialised"}, pair, {KT__ATTEND, "async_copy16(to + i, values + i)", "continue"}},
    {"an uninitialised tile", {"uninitialised"}, pair,
     {KT__ATTEND, "to[0] = (u16)two, to[PAIR ? COLUMNS : 8 * EIGHTS]", "to[0]"}},
    {"an uninitialised tile", {"uninitialised"}, wide, {KT__APPEND, "work->dirty = 0, work->damaged = 0", "work->damaged = 0"}},
    {"a missing wait", {"wait"}, rows, {KT__ATTEND, "        copy_wait<2 * STAGES - 1>(barriers + 2 * at + 1, parity);\n", ""}},
    {"a wrong mask", {"mask"}, rows, {KT__ATTEND, "__shfl_xor_sync(~0u, least0, x)", "__shfl_xor_sync(0xffffu, least0, x)"}},
    {"a swapped fragment", {"differs"}, rows,
     {KT__ATTEND, "word & 0x00030003u, word & 0x00300030u", "word & 0x00300030u, word & 0x00030003u"}},
    {"codes counted upwards", {"differs"}, rows, {KT__ATTEND, "y = ~(x >> 8)", "y = x >> 8"}},
    {"a sum left out", {"differs"}, rows, {KT__ATTEND, "total[0][0] * upwards", "total[0][0]"}},
    {"an uninitialised tile", {"uninitialised"}, several, {KT__ATTEND, "operand.stored[step * 32 + lane] = a;", ""}},
    {"a race in the merge", {"race"}, pair, {KT__ATTEND, "count_in(arrivals)", "atomicAdd(arrivals, 1)"}},
    {"a race in the merge", {"race"}, wide, {KT__ATTEND, "    __syncthreads();\n    int *last", "    int *last"}},
};
enum { COUNT = sizeof all / sizeof *all };

typedef struct {
    case_list list;
    int first;
} plan;

typedef struct {
    pool_result end; // its message: what was found instead
    int found;
} outcome;

static const test_case *case_of(const case_list *list, const char *spec)
{
    for (int i = 0; i < list->count; i++)
        if (!strcmp(list->all[i].name, spec))
            return &list->all[i];
    return NULL;
}

static int work(void *context, int task, void *result)
{
    const plan *p = context;
    const planted *fault = &all[p->first + task];
    const test_case *given = case_of(&p->list, fault->spec);
    outcome *o = result;
    record record = {0};
    emulation emulation = {0};
    const int code = given ? run_beside_cpu(given, SEED, &fault->change, &record, &emulation) : fail(KG_USER, "no spec of that name");
    snprintf(o->end.message, sizeof o->end.message, "%.2000s", code ? failure : "nothing was found");
    for (int i = 0; i < 2 && fault->kinds[i] && code; i++) {
        char kind[64];
        snprintf(kind, sizeof kind, ": %s: ", fault->kinds[i]);
        o->found |= strcmp(fault->kinds[i], "differs") ? strstr(failure, kind) && strstr(failure, ".cu:") : *emulation.found.fault != 0;
    }
    record_free(&record);
    return KG_OK;
}

int main(int argc, char **argv)
{
    static outcome outcomes[COUNT];
    const char *tests = getenv("KT_TEST_DATA");
    char shapes[KG_PATH], *specs[] = {shapes};
    plan p = {.first = 0};
    int number = 0, failed = 0;
    if (argc > 2 || (argc == 2 && read_integer("emulate_planted", argv[1], 1, COUNT, &number))) {
        fprintf(stderr, "%s\nusage: emulate_planted [NUMBER]\n", failure);
        return KG_USER;
    }
    snprintf(shapes, sizeof shapes, "%s/emulate/shapes.lua", tests && *tests ? tests : "tests");
    p.first = number ? number - 1 : 0;
    const pool pool = {.what = "faults", .count = number ? 1 : COUNT, .jobs = number ? 0 : kg_parallel_workers(), .limit = LIMIT,
                       .result_bytes = sizeof *outcomes, .results = (char *)outcomes, .work = work, .context = &p};
    int code = cases_make(&p.list, specs, 1);
    if (!code)
        code = pool_run(&pool);
    for (int i = 0; i < pool.count && !code; i++) {
        const planted *fault = &all[p.first + i];
        printf("%s %d, %s in %s, %s%s%s\n", outcomes[i].found ? "ok  " : "FAIL", p.first + i + 1, fault->fault,
               kt__op_names[fault->change.op], fault->kinds[0], outcomes[i].found && !number ? "" : "\n     ",
               outcomes[i].found && !number ? "" : outcomes[i].end.message);
        failed += !outcomes[i].found;
    }
    if (code)
        fprintf(stderr, "emulate_planted: %s\n", failure);
    else
        printf("%d faults planted, %d not found as they should be\n", pool.count, failed);
    cases_free(&p.list);
    return code ? code : failed ? KG_FAILED : KG_OK;
}
