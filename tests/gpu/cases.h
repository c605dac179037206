// One list of cases, for the emulator and for a card: the kernels of every shipped spec, and of shapes that no shipped one has
// (tests/emulate/shapes.lua), over the same steps of the same sequences. Inputs, division of work and order of sums depend on no device.
#ifndef GPU_CASES_H
#define GPU_CASES_H

#include "core.h"
#include "random.h"
#include "sha256.h"
#include "support.h"

enum { CASE_SLOTS = 3, CASE_LAYERS = 2, CASE_HEADS = 2, CASE_STEPS = 10, CASE_FORMATS = 2,
       CASE_KERNELS = CASE_FORMATS * (KG_ATTEND_CONFIGS + 2) + 2 };

typedef struct {
    char name[2 * KG_NAME];     // of the spec
    char folder[KG_PATH];
    kt__package package;
    int sources[CASE_KERNELS];  // number of each kernel's source; header comment aside, equal ones share it
    bool first[CASE_KERNELS];   // no case before has it
    bool runs;                  // one of them is first
} test_case;

typedef struct {
    char folder[KG_PATH];       // of the packages
    test_case *all;
    int count, sources, kernels; // cases; different sources; kernels of all manifests
    char (*digests)[KT__SHA256_HEX]; // [sources]
} case_list;

// Emits the packages of `count` specs, or of all there are where count is 0. Returns an exit code; cases_free is due in any case.
int cases_make(case_list *list, char **specs, int count);
void cases_free(case_list *list);

// What a device gave, in the order of the steps. Zero-initialise.
typedef struct {
    kg_text blocks;  // [..] block_digest
    kg_text outputs; // for each attend: output_head, out [rows, q_heads, head_dim], lse [rows, q_heads]
} record;

typedef struct {
    int step, sequence, layer, head;
    int page; // of a sealed block; -1, -2: keys and values that are not sealed
    int unused;
    uint64_t digest;
} block_digest;

typedef struct {
    int step, layer, rows, kernel; // kernel: index in the manifest
} output_head;

void record_free(record *record);
// A file in `folder`, which is made where it is missing.
int record_write(const case_list *list, const test_case *given, const record *record, const char *folder);
// KG_USER where there is none, or one of other sources.
int record_read(const case_list *list, const test_case *given, const char *folder, record *record);

typedef struct {
    const test_case *given;
    kt_engine *engine;
    kt_cache *cache;
    kt_batch *batch;
    kt_sequence sequences[CASE_SLOTS];
    kg_random random;
} case_run;

// Steps 0 to CASE_STEPS - 1 are to be taken in order. They run the kernels that are first in the case, and append. case_close is due
// in any case; the engine is the caller's. Each returns an exit code.
int case_open(case_run *run, const test_case *given, kt_engine *engine, uint64_t seed);
int case_step(case_run *run, int step, record *record);
void case_close(case_run *run);
// The bytes of a sealed block; of the value part 0 where that is not sealed yet.
int case_block(const case_run *run, int sequence, int layer, int head, int page, unsigned char *block);

typedef struct {
    double distance; // relative L2 of one attend
    double lse;      // difference of one log-sum-exp
    double ulps;     // difference of one element, in units of the last place of the output's type at the element or, where that is
                     // larger, at the root mean square of its head
} difference;

typedef struct {
    difference worst;
    long blocks, attends, elements, equal; // equal: elements with the same bits
    char fault[512];                       // the first thing beyond the limits; empty: none
} agreement;

// A layer's format, and bytes of the largest block of any.
const kt_format *case_format(const test_case *given, int layer);
int case_block_bytes(const test_case *given);

// Adds a device's record, held against another's, to what is known.
void records_compare(const test_case *given, const record *device, const record *other, const difference *limits, agreement *to);

#endif
