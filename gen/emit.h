// Emission: a spec becomes a kernel package, a folder with manifest.json and one self-contained .cu per kernel.
#ifndef KG_EMIT_H
#define KG_EMIT_H

#include <stddef.h>

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

enum { KG_KERNELS = KG_ATTEND_CONFIGS + 4 };

typedef struct {
    kg_spec spec;
    kt_format format;
    kg_kernel kernels[KG_KERNELS];
    int count;
} kg_package;

// Expands every kernel of the spec in memory. The same spec gives the same bytes, on any machine, in any folder.
// Returns KG_OK, KG_USER (the spec has no layout) or KG_MACHINE. The package is freed by kg_package_free in any case.
int kg_package_make(const kg_spec *spec, kg_package *package, char *error, size_t error_size);
void kg_package_free(kg_package *package);

// manifest.c: the manifest's text, onto `out`.
void kg_manifest(const kg_package *package, kg_text *out);

// Emits into `folder`, which is made where it is missing; files of other names in it are left alone. Kernels are written
// before the manifest, each file whole or not at all.
int kg_emit_package(const kg_spec *spec, const char *folder, char *error, size_t error_size);

#endif
