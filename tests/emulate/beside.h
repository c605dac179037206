// A case of the list (../gpu/cases.h) under the emulator, beside the CPU backend.
#ifndef KITTY_EMULATE_BESIDE_H
#define KITTY_EMULATE_BESIDE_H

#include "backend.h"
#include "cases.h"

enum { PATHS = 2 }; // of the code: cp.async (sm_80), bulk copies (sm_90)

// A change of the source of every kernel of an operation.
typedef struct {
    kt__op op;
    const char *from, *to; // the first place that reads so
} change;

typedef struct {
    int launches[CASE_KERNELS][PATHS];
    agreement found;
} emulation;

// Takes all steps, each path of the code in turn, and stops where the emulator reports, where a block is not the CPU's byte for byte,
// or where attention is beyond the bounds that hold on a GPU. `change` may be null; a text that is nowhere is KG_USER. Adds what the
// emulator gave to `record`. Returns an exit code.
int run_beside_cpu(const test_case *given, uint64_t seed, const change *change, record *record, emulation *emulation);

#endif
