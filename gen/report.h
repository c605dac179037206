// What kittygen run prints: one spec in full, a sweep as a table, the order of a sweep's variants, or JSON.
#ifndef KG_REPORT_H
#define KG_REPORT_H

#include <stdbool.h>

#include "kitty.h"
#include "scenario.h"
#include "spec.h"

typedef struct {
    const kg_spec *spec;
    int layers;
    kt_engine_info engine;
    double bytes, exact_bytes; // per token and KV head, sealed; of fp16 or bf16
    kg_scenario_result result;
} kg_report;

// `data` says where the inputs are from.
void kg_report_heading(const kg_report *report, const char *data);
void kg_report_one(const kg_report *report, bool verbose);
void kg_report_row(const kg_report *report, bool first, bool verbose);
// What did not hold, a line each; nothing where all did.
void kg_report_failures(const kg_report *report);
void kg_report_json(kg_text *out, const kg_report *report, const char *data);

// Lists the variants by quantisation error and prints whether kivi-2 > kivi-2-sink > kitty > kitty-pro > int4 > fp16 = 0
// holds among those that are there, or which pair fails and in which layers. `print` false: only returns whether.
bool kg_report_order(const kg_report *reports, int count, bool print);

#endif
