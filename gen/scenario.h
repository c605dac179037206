// A serving scenario through libkitty's public API, checked at every step: sequences of very different lengths that join,
// wait, take several tokens at a time and leave, on one cache, until key and value pages have turned over.
#ifndef KG_SCENARIO_H
#define KG_SCENARIO_H

#include "inputs.h"
#include "kitty.h"
#include "layout.h"
#include "progress.h"
#include "schedule.h"
#include "spec.h"

enum {
    KG_CHECKED_ALL = 64,   // a step of up to so many tokens of a sequence is checked whole
    KG_CHECKED_LAST = 8,   // of a longer one the last so many tokens
    KG_TOKENS = 3001,      // a stream of random tokens that serves every sequence
};

typedef struct {
    const kg_spec *spec;
    const kg_formats *formats; // the spec's
    const kg_inputs *inputs;
    kt_engine *engine;         // of the inputs' layers; which of the spec's they are is each one's `origin`
    int steps;
    kg_progress *progress; // advanced to `done` + step; null: none
    long done;
} kg_scenario;

typedef struct {
    int steps, sequences, longest;  // sequences that took part; tokens of the longest
    long tokens, key_pages, value_pages; // pages sealed, each once for all layers and heads; where layers differ as the first has them
    long aborts;                    // steps that were begun, thrown away and done again
    // Relative L2 of the kernel's output against float64 attention over the decoded cache, over the query heads of one
    // (step, layer, sequence); the worst, and where.
    double kernel_error, kernel_limit;
    int worst_step, worst_layer, worst_sequence, worst_tokens;
    // Relative L2 of float64 attention over the decoded cache against float64 attention over the exact inputs, per query
    // head; the mean of all, and of each layer.
    double quantisation_error;
    double *layer_errors;           // [inputs->count]
    long outputs;                   // query heads that were checked
    long unwritten, stray;          // elements of out that attend did not write, and that were not its to write
    long misread;                   // elements that kt_read gave otherwise when a sequence left
    long leaked;                    // pages and slabs missing after the last sequence left
    long nonfinite, overruns;       // as kt_poll reports them
    double step_seconds;            // mean of the steps without a prompt, from kt_step_begin to the last output; nan: there were none
} kg_scenario_result;

// Runs the scenario; the result is complete on KG_OK, whatever the errors in it. Returns an exit code (text.h); KG_FAILED:
// a call of libkitty was refused. Free the result in any case.
int kg_scenario_run(const kg_scenario *scenario, kg_scenario_result *result, char *error, size_t error_size);
void kg_scenario_free(kg_scenario_result *result);
// Whether every check held.
int kg_scenario_passed(const kg_scenario_result *result);

#endif
