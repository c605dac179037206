// Computes the format of a spec: offsets, strides and sizes, and the launch configurations that fit. The only place.
#ifndef KG_LAYOUT_H
#define KG_LAYOUT_H

#include "format.h"
#include "spec.h"

// A way to launch attend. Shared memory decides which cards can run it.
typedef struct {
    int warps, stages, tiles; // warps of a block; copies in flight per warp; 32-token tiles per copy
    int blocks;               // of a multiprocessor at once
    int columns, passes;      // query heads of one pass, passes per KV head
    int shared;               // bytes of dynamic shared memory
    int most_sequences, most_pages; // what it is for; 0: any number
} kg_attend_config;

enum { KG_ATTEND_CONFIGS = 3 };

// Null, or why the (valid) spec has no layout; static text.
const char *kg_layout(const kg_spec *spec, kt_format *format);

// Fills the configurations in the order in which they are to be tried; returns how many. At least one fits in 99 KB (sm_86, 89 and
// 120) and is for any number of sequences and pages.
int kg_attend_configs(const kt_format *format, kg_attend_config configs[KG_ATTEND_CONFIGS]);

// Bytes of dynamic shared memory of a block of append.
int kg_append_shared(const kt_format *format);
// Blocks of append to be had at once on a multiprocessor, so that some load while others work.
int kg_append_blocks(int shared);

// The same of reference, whose blocks have `threads` threads.
int kg_reference_shared(const kt_format *format, int threads);

// Bytes per token and KV head of sealed pages.
double kg_bytes_per_token(const kt_format *format);

#endif
