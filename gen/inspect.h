// What the parts of kittygen inspect share: a page byte by byte, and what the kernels of a step cost.
#ifndef KG_INSPECT_H
#define KG_INSPECT_H

#include "arch.h"
#include "emit.h"
#include "layout.h"

// A stretch of bytes, `count` times, `stride` apart. Stretches ascend by offset; those of one stride follow each other within it.
typedef struct {
    int offset, size, count, stride;
    char what[320];
} kg_region;

enum { KG_REGIONS = 96 };

// inspect_page.c: a block of one page, layer and KV head; a slab, one sequence's exact tokens of one layer and KV head. Every byte lies in
// just one region. Return how many there are.
int kg_page_regions(const kt_format *format, kg_region regions[KG_REGIONS]);
int kg_slab_regions(const kt_format *format, kg_region regions[KG_REGIONS]);
// What calibration gives a layer and KV head (format->table_bytes).
int kg_table_regions(const kt_format *format, kg_region regions[KG_REGIONS]);

// inspect_kernels.c: one launch in a step of one new token for each of `batch` sequences of `context` tokens, the new ones included.
typedef struct {
    const kg_kernel *kernel;
    const char *when;       // "every layer" (of its format), "every step", "checks"; of attend kernels that another shape takes: ""
    long grid[3];           // 0 where it is not launched
    int blocks;             // of a multiprocessor at once, as planned
    double read, written;   // bytes of one launch; append's in the mean of the steps until a page is complete
    char what[160];         // of the bytes; or for which shapes an attend kernel is
} kg_launch;

typedef struct {
    long batch, context;
    const kg_card *card;
    kg_package package;
    kg_launch launches[KG_KERNELS]; // as many as the package has kernels
    double read, written;   // of a step, all layers
    // Bytes of all layers and KV heads: of sealed pages, of exact tokens; of as many tokens in the model's dtype.
    double pages, exact, plain;
} kg_costs;

// Returns an exit code with a message in `error` (KG_ERROR bytes). kg_package_free(&costs->package) is due in any case.
int kg_costs_make(const kg_spec *spec, long batch, long context, const kg_card *card, kg_costs *costs, char *error);

#endif
