// A serving scenario on two engines at once, the GPU and the CPU: every attend against the float64 kernel over the same
// cache, that kernel against the CPU, and every sealed page and exact token byte for byte against the CPU's.
#ifndef GPU_TWIN_H
#define GPU_TWIN_H

#include "keys.h"
#include "kitty.h"
#include "support.h"

enum { TWIN_SLOTS = 6, TWIN_SEQUENCES = 8 };

enum {
    MOVE_ATTEND = 1,    // attend on the GPU, by the kernel and by the reference
    MOVE_CPU = 2,       // and on the CPU
    MOVE_ABORT = 4      // first take the step with other tokens, and throw it away
};

// One step: which sequence sits in each slot (-1: none; one that has gone is closed) and its new tokens.
typedef struct {
    struct {
        int sequence, fresh;
    } slots[TWIN_SLOTS];
    unsigned flags;
} move;

typedef struct {
    const kg_spec *spec;
    const kg_inputs *inputs;
    kt_engine *gpu, *cpu;
    const move *moves;
    int count;
    int reference;       // 0: no reference kernel; the CPU stands in for it, wherever MOVE_CPU is set
    int extremes;        // attend also at the default scale, and look only whether all is finite
    int nonfinite;       // the inputs have elements that are not finite
} twin_args;

typedef struct verdict {
    double kernel;       // worst relative L2 of out over the heads and rows of one (step, layer, sequence)
    double lse;          // worst |difference| / max(1, |lse|)
    double cross;        // worst relative L2 of the reference kernel against the CPU
    long attends;        // (step, layer, sequence)
    long pages;          // sealed pages compared: layers, heads, each once as they leave or at the end
    long bad_pages, bad_exact;
    long unwritten, stray, infinite;
    char worst[120];     // where `kernel` is
    char fault[200];     // the first thing that was wrong; empty: nothing
} verdict;

// The verdict is complete on KG_OK, whatever is wrong in it.
int twin_run(const twin_args *args, verdict *verdict);

#endif
