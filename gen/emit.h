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
    int threads, shared;
    const char *grid[3];     // factors by dimension, as the manifest spells them
} kg_kernel;

enum { KG_KERNELS = KG_ATTEND_MENU + 4 };

typedef struct {
    kg_spec spec;
    kt_format format;
    kg_attend_plan plan; // its kernels come first, in this order
    kg_kernel kernels[KG_KERNELS];
    int count;
    unsigned char *tables; // what calibration gives: tables.bin; null where there is none
    size_t table_size;
} kg_package;

// Expands every kernel of the spec in memory, with the attend kernels of `plan`; null: those of the tuned table (tuned.h), at most
// KG_ATTEND_CONFIGS. The same spec, templates and table give the same bytes, on any machine, in any folder. Returns KG_OK, KG_USER
// (the spec has no layout, the table is wrong) or KG_MACHINE. The package is freed by kg_package_free in any case.
int kg_package_make(const kg_spec *spec, const kg_attend_plan *plan, kg_package *package, char *error, size_t error_size);
void kg_package_free(kg_package *package);

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
