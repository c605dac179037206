// Computes the format of a spec: offsets, strides and sizes, and launch configurations and what they need. The only place.
#ifndef KG_LAYOUT_H
#define KG_LAYOUT_H

#include <stdbool.h>

#include "format.h"
#include "spec.h"

// Most shared memory that a block may have: sm_90 and 100; sm_86, 89 and 120.
enum { KG_LARGE_SHARED = 227 * 1024, KG_SMALL_SHARED = 99 * 1024 };

// A way to launch attend, an attend kernel of its own. Shared memory decides which cards can run it.
typedef struct {
    int warps, stages, tiles; // warps of a block; copies in flight per warp; 32-token tiles per copy
    int blocks;               // of a multiprocessor at once
    int columns, passes;      // query heads of one pass, passes per KV head
    int buffers, shared;      // bytes of a block's copies, and of all its dynamic shared memory
} kg_attend_config;

// A row of the selection table: up to so many sequences and pages of the longest, 0 any number; an index in `configs`.
typedef struct {
    int sequences, pages, config;
} kg_attend_row;

enum {
    KG_ATTEND_CONFIGS = 5, // most attend kernels that a package is emitted with
    KG_ATTEND_MENU = 96,   // most of a plan: tuning tries more
    KG_ATTEND_ROWS = 96
};

// The attend kernels of a package, and the rows in the order in which they are to be tried.
typedef struct {
    kg_attend_config configs[KG_ATTEND_MENU];
    int count;
    kg_attend_row rows[KG_ATTEND_ROWS];
    int row_count;
} kg_attend_plan;

// Null, or why the (valid) spec has no layout; static text. Of a spec whose layers differ: that of its first way.
const char *kg_layout(const kg_spec *spec, kt_format *format);

// The formats of a spec's ways, and how many layers have each.
typedef struct {
    kt_format formats[KT_FORMATS];
    int layers[KT_FORMATS];
    int count, all_layers;
} kg_formats;
const char *kg_formats_of(const kg_spec *spec, kg_formats *formats);
// Bytes of a KV head over all layers: of the pages of a sequence of so many tokens (a page is of all layers, and there are as many as the
// format needs that seals first); of its exact tokens.
double kg_formats_sealed(const kg_formats *formats, int tokens);
double kg_formats_exact(const kg_formats *formats);
// Bytes per token and KV head of sealed pages, the mean of the layers.
double kg_formats_token(const kg_formats *formats);
// That of one of the model's layers.
const kt_format *kg_formats_at(const kg_formats *formats, const kg_spec *spec, int layer);

// Passes over a KV head's pages, at most 16 query heads each (8 where head_dim > 128), and the most query heads of one.
void kg_attend_passes(int group_heads, int head_dim, int *passes, int *columns);
// Fills *config; false if the kernel cannot be: tiles that do not divide a page, or blocks that do not fit
// a multiprocessor whose blocks may have `limit` bytes each.
bool kg_attend_fit(const kt_format *format, int warps, int stages, int tiles, int blocks, int limit, kg_attend_config *config);
// The plan for shapes that nobody measured (tuned.h), by head_dim and what fits.
void kg_attend_rules(const kt_format *format, kg_attend_plan *plan);
// Adds what is missing for a plan to have a row for any shape on cards whose blocks may have 99 KB (sm_86, 89 and 120).
void kg_attend_small(const kt_format *format, kg_attend_plan *plan);
// Index of a kernel among the plan's, or -1.
int kg_attend_index(const kg_attend_plan *plan, int warps, int stages, int tiles, int blocks);
// The first row that takes the shape, on a card whose blocks may have `limit` bytes; null if there is none.
const kg_attend_row *kg_attend_row_for(const kg_attend_plan *plan, int limit, int sequences, int pages);

// Bytes of dynamic shared memory of a block of append.
int kg_append_shared(const kt_format *format);
// Blocks of append to be had at once on a multiprocessor, so that some load while others work.
int kg_append_blocks(int shared);

// The same of reference, whose blocks have `threads` threads.
int kg_reference_shared(const kt_format *format, int threads);

// Bytes per token and KV head of sealed pages.
double kg_bytes_per_token(const kt_format *format);

#endif
