// What the parts of kittygen tune share: a menu of attend kernels for one spec, and what they take at each shape.
// Functions that can fail return an exit code (text.h) with a message in tune->bench.error.
#ifndef KG_TUNE_H
#define KG_TUNE_H

#include "bench.h"
#include "tuned.h"

typedef struct {
    kg_shape shape;
    bool done;
    double us[KG_ATTEND_MENU]; // of each kernel of the menu, per layer; 0: it cannot be taken
} kg_tune_result;

typedef struct {
    kg_bench bench;
    const char *arch;       // "sm_90a"
    int shared_limit;       // bytes that a block may have there
    int newest_major;       // CUDA version of the driver; 0: any
    const kg_spec *spec;
    kt_format format;
    kg_attend_plan now;     // what the spec's package has
    kg_attend_plan menu;    // what is to be measured; a row each, for any shape
    int kept;               // the first of the menu, which are not left out for spilling
    kt_engine *engine;      // over the menu
    double until;           // seconds of kg_tune_clock, when this spec's time is over; 0: never
    kg_tune_result results[KG_BENCH_SHAPES];
    int count;              // of results
} kg_tune;

double kg_tune_clock(void);
// Whether the time is over, or Ctrl-C was pressed.
bool kg_tune_stopped(const kg_tune *tune);
// The kernel of the menu that the package takes for a shape now.
int kg_tune_selected(const kg_tune *tune, kg_shape shape);

// ---- tune_menu.c -----------------------------------------------------------------------------------------------------

// The kernels of `now` and of the table's set `old` (may be null): *kept. Then every other worth trying: 4, 6, 8 or 12 warps; 1 to 4
// stages; 1, 2, 4 or 8 tiles; 1 to 4 blocks to a multiprocessor, that fit, leave a thread 128 registers, and have 64 KB under way.
void kg_tune_menu(const kt_format *format, int shared_limit, const kg_attend_plan *now, const kg_tuned_set *old, kg_attend_plan *menu, int *kept);
// Compiles the menu into the cache, on every core, and leaves in it what compiles without spilling. Stops, with what there is, at
// `until` (0: never).
int kg_tune_compile(kg_tune *tune, double until);

// ---- tune_measure.c --------------------------------------------------------------------------------------------------

// Opens an engine over the menu.
int kg_tune_open(kg_tune *tune);
// Times every kernel of the menu with few replays, then the best with many. Where memory is too small or the time is over the result is
// not done. A kernel whose output is wrong, or that cannot be launched, is reported and left out; bench.failed is set.
int kg_tune_shape(kg_tune *tune, kg_tune_result *result, kg_progress *bar);

// ---- tune_choose.c ---------------------------------------------------------------------------------------------------

// At most `most` of `kernels` kernels, ascending in `chosen`: all that are `wanted`, and those with which the done shapes take the least
// time in the mean; a further one must save half a per cent. Returns how many; 0 if no choice has a kernel for every done shape.
int kg_tune_choose(const kg_tune_result *results, int count, int kernels, const bool *wanted, int most, int chosen[KG_TUNED_KERNELS]);
// The fastest of the chosen at a done shape.
int kg_tune_fastest(const kg_tune_result *result, const int *chosen, int count);
// Puts the done results into the table, beside older rows of other shapes. KG_FAILED if no choice can be made.
int kg_tune_merge(kg_tune *tune, kg_tuned *table, int chosen[KG_TUNED_KERNELS], int *count);

// ---- tune_report.c ---------------------------------------------------------------------------------------------------

// A line for a done result: the best kernel, and the one that was selected so far.
void kg_tune_print(const kg_tune *tune, const kg_tune_result *result);
// A line for the choice, and how much it saves.
void kg_tune_print_choice(const kg_tune *tune, const char *path, const int *chosen, int count);
// An element of the JSON array: every time of a done result.
void kg_tune_json(kg_text *out, const kg_tune *tune, const kg_tune_result *result, const int *chosen, int count);

#endif
