// What matrix and sanitize run, what came out, and how it is shown.
#ifndef GPU_TABLE_H
#define GPU_TABLE_H

#include "pool.h"
#include "twin.h"

typedef struct {
    kg_spec spec;
    kt_format format;
    int like; // the combination whose compiled kernels are the same; itself where it is the first
} combination;

typedef struct {
    pool_result end;       // KG_OK: the verdicts are complete
    int ran[KEYS_COUNT];
    verdict verdicts[KEYS_COUNT];
    char device[128];
    int compiled, loaded;
    double open_seconds, seconds;
} outcome;

typedef struct {
    combination *all;
    int count;
    int *tasks, task_count; // combinations to run
    int on_cpu, brief;
    int config;             // as open_engines takes it
} plan;

// [count] outcomes, of which those with kernels of their own are filled in.
// Prints a row for each, and what failed; returns an exit code.
int table_print(const plan *plan, const outcome *outcomes, double seconds);
// Writes the files whose names are not null: every figure as JSON, the table as Markdown. Returns an exit code.
int table_write(const plan *plan, const outcome *outcomes, const char *json, const char *markdown);

#endif
