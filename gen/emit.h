// Emission: a spec becomes a kernel package, a folder with manifest.json and one self-contained .cu per kernel.
#ifndef KG_EMIT_H
#define KG_EMIT_H

#include <stddef.h>

#include "internal.h"
#include "layout.h"
#include "spec.h"
#include "text.h"

// One kernel of a package. `source` is owned.
typedef struct {
    const char *op;
    char name[64], entry[80];
    kg_text source;
    kg_attend_config config; // attend only
    int format;              // of the package's; of what is one for all layers 0
    int threads, shared;
    const char *grid[3];     // factors by dimension, as the manifest spells them
} kg_kernel;

enum { KG_KERNELS = KG_ATTEND_MENU + 4 }; // or KG_ATTEND_CONFIGS + 2 for each format, and 2

typedef struct {
    kt_format format;
    kg_attend_plan plan;
    int first;             // of the plan's kernels among the package's; append and reference follow them
} kg_package_format;

typedef struct {
    kg_spec spec;
    kg_package_format formats[KT_FORMATS]; // of each way of the spec
    int format_count;
    int layers;
    unsigned char layer_formats[KG_LAYERS];
    kg_kernel kernels[KG_KERNELS];
    int count;
    unsigned char *tables; // what calibration gives: tables.bin; null where there is none
    size_t table_size;
} kg_package;

// Expands every kernel of the spec in memory, with the attend kernels of `plan`, for a spec whose layers are all alike; null: those of the
// tuned table (tuned.h), at most KG_ATTEND_CONFIGS a format. The same spec, templates and table give the same bytes, on any machine, in any folder. Returns KG_OK, KG_USER
// (the spec has no layout, the table is wrong) or KG_MACHINE. The package is freed by kg_package_free in any case.
int kg_package_make(const kg_spec *spec, const kg_attend_plan *plan, kg_package *package, char *error, size_t error_size);
void kg_package_free(kg_package *package);

// Makes of it a package of `count` layers, each as that layer of the spec's model. KG_MACHINE: no memory.
int kg_package_take(kg_package *package, const int *layers, int count, char *error, size_t error_size);

// What the runtime's compiler takes (cuda/cubin_cache.h); it points into the kernel.
void kg_kernel_job(const kg_kernel *kernel, kt__kernel *job);

// manifest.c: the manifest's text, onto `out`.
void kg_manifest(const kg_package *package, kg_text *out);

// Writes into `folder`, which is made where it is missing; files of other names in it are left alone. Kernels are written
// before the manifest, each file whole or not at all.
int kg_package_write(const kg_package *package, const char *folder, char *error, size_t error_size);
// Makes the spec's own package and writes it.
int kg_emit_package(const kg_spec *spec, const char *folder, char *error, size_t error_size);

#endif
