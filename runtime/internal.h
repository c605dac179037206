// What the parts of libkitty share: errors, the package, and the seam between the core and its two backends.
#ifndef KT_INTERNAL_H
#define KT_INTERNAL_H

#include <stdbool.h>

#include "format.h"
#include "kitty.h"
#include "../templates/lib/params.h"

// ---- errors (error.c) ----
// Sets the calling thread's message and returns `status`.
kt_status kt__fail(kt_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));
// Puts "context: " before the current message; returns `status`.
kt_status kt__within(kt_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

// ---- environment, read once in kt_open ----
typedef struct {
    char cache_dir[1024]; // KT_CACHE_DIR, XDG_CACHE_HOME/kittygen, ~/.cache/kittygen
    char cuda_home[1024]; // KT_CUDA_HOME or empty
    char dump_dir[1024];  // KT_DUMP: emitted sources and cubins are copied here
    int log;              // KT_LOG: 0 silent, 1 one line per compile or load, 2 launches too (stderr)
    bool no_jit;          // KT_NO_JIT: a cubin that is not in the cache is an error
} kt__environment;
void kt__environment_read(kt__environment *environment);

// ---- package (package.c) ----
typedef enum { KT__APPEND, KT__ATTEND, KT__REFERENCE, KT__CHECK, KT__ADVANCE, KT__OP_COUNT } kt__op;
extern const char *const kt__op_names[KT__OP_COUNT]; // "append", ...

enum { KT__GRID_FACTORS = 3 };
// Factors of a grid dimension, multiplied; the manifest spells them "kv_heads*passes".
typedef enum { KT__ONE, KT__UNITS, KT__SPLITS, KT__KV_HEADS, KT__PASSES, KT__Q_HEADS, KT__SLOTS, KT__FRESH, KT__FACTOR_COUNT } kt__factor;
extern const char *const kt__factor_names[KT__FACTOR_COUNT]; // "1", "units", ...

typedef struct {
    kt__op op;
    int format;      // index into formats of the layers that it is for; of check and advance, which are of all, it says nothing
    char name[64];   // unique in the package: "attend_8x2x4"
    char entry[64];  // extern "C" name in the source
    char digest[65]; // SHA-256 of the source, hex
    char *source;    // text of the .cu, owned
    int warps, stages, tiles, passes; // attend only
    int threads, shared;
    unsigned char grid[3][KT__GRID_FACTORS];
} kt__kernel;

// First row of the layer's format with sequences <= its bound, pages <= its bound (0: any) whose kernel fits the card is taken.
typedef struct {
    kt__op op;
    int format;
    int max_sequences, max_pages;
    int kernel;           // index into kernels
    int blocks_per_sm;    // splits are chosen so that about this many blocks run per multiprocessor
} kt__choice;

enum { KT__LAYERS = 4096 }; // most of a package

typedef struct {
    char *folder;         // where it was read; owned
    char spec[128];
    kt_format formats[KT_FORMATS];
    int format_count;
    unsigned char layer_formats[KT__LAYERS]; // [layers]
    int reaches[2 * KT_FORMATS]; // tokens, sink and window, that stay exact beside an unfinished page: of any format's keys or values; ascending, none twice
    int reach_count;
    int layers, q_heads, kv_heads;
    double scale;
    unsigned char *tables; // of each layer [kv_heads, table_bytes of its format]; owned; null where nothing is calibrated
    kt__kernel *kernels;
    int kernel_count;
    kt__choice *choices;
    int choice_count;
} kt__package;
kt_status kt__package_read(const char *folder, kt__package *package);
void kt__package_free(kt__package *package);
// A layer's format, and where its tables begin. Where there is one format the layer may be beyond the package's.
int kt__layer_format(const kt__package *package, int layer);
const kt_format *kt__format_of(const kt__package *package, int layer); // that format
size_t kt__layer_tables(const kt__package *package, int layer);
// Sealed pages of what has the reach: the first of the package's is sealed soonest.
static inline int kt__sealed_at(const kt__package *p, int reach, int tokens) { return kt_sealed_pages(tokens, 0, p->reaches[reach], p->formats[0].page); }

// ---- backends (cpu/backend.c, cuda/backend.c) ----
// Addresses are device addresses; on the CPU they are host addresses and streams are ignored.
typedef struct kt__backend kt__backend;
typedef struct {
    int ones[KT__FACTOR_COUNT]; // value of each factor for this launch; [KT__ONE] = 1
} kt__extent;

typedef struct {
    void *to;
    const void *from;
    size_t bytes;
} kt__copy;

typedef struct {
    void (*close)(kt__backend *);
    kt_status (*alloc)(kt__backend *, size_t bytes, void **address); // 256-byte aligned, zeroed
    void (*free)(kt__backend *, void *address);
    // Queued copies to the device, in order; the sources may be reused at once. Waits only where the device is megabytes, or hundreds of
    // calls, behind.
    kt_status (*upload)(kt__backend *, const kt__copy *copies, int count, void *stream);
    // Queued copy on the device: `count` stretches of `bytes`, `stride` bytes apart.
    kt_status (*copy)(kt__backend *, void *to, const void *from, size_t bytes, int count, size_t stride, void *stream);
    kt_status (*download)(kt__backend *, void *to, const void *from, size_t bytes); // waits for all work of the device
    // Memory that the device writes and the host reads without waiting.
    kt_status (*mirror_alloc)(kt__backend *, size_t bytes, void **host);
    void (*mirror_free)(kt__backend *, void *host);
    kt_status (*mirror)(kt__backend *, void *host, const void *device, size_t bytes, void *stream); // queued
    kt_status (*capturing)(kt__backend *, void *stream, bool *capturing);
    // params: kt_append_params, kt_attend_params (reference too) or kt_step_params
    kt_status (*launch)(kt__backend *, int kernel, const kt__extent *extent, const void *params, size_t bytes, void *stream);
} kt__backend_calls;

struct kt__backend {
    const kt__backend_calls *calls;
    const kt__package *package;
    int multiprocessors;  // 1 on the CPU
    int shared_limit;     // bytes of dynamic shared memory a block may have
    int compiled, loaded;
    char device_name[128];
};
kt_status kt__cpu_open(const kt__package *package, kt__backend **backend);
// `usable` (may be null) is false where there simply is no GPU, driver, NVRTC: AUTO then takes the CPU.
kt_status kt__cuda_open(const kt__package *package, const kt__environment *environment, int ordinal, bool *usable,
                        kt__backend **backend);

// ---- CPU operations (cpu/): the reference; same parameters as the kernels ----
void kt__cpu_append(const kt_format *format, const kt_append_params *params);
void kt__cpu_attend(const kt_format *format, const kt_attend_params *params);
void kt__cpu_check(const kt_step_params *params);
void kt__cpu_advance(const kt_step_params *params);
// Seals the key or the value part of a block from rows[page], each the head_dim elements of one token of one head.
// table: what calibration gives the layer and head, as in kt_view; page_index: the page's position in its sequence. Returns the number of
// groups whose scale or zero was beyond 65504.
int kt__cpu_seal_key(const kt_format *format, const unsigned char *table, const unsigned short *const *rows, int layer, int head,
                     int page_index, unsigned char *block);
int kt__cpu_seal_value(const kt_format *format, const unsigned char *table, const unsigned short *const *rows, unsigned char *block);
// Decodes a part of a block, [page, head_dim], to fp32, rotated back.
void kt__cpu_decode(const kt_format *format, kt_part part, const unsigned char *table, const unsigned char *block, float *out);
float kt__to_float(int dtype, unsigned short element);
unsigned short kt__from_float(int dtype, float value);
float kt__half_to_float(unsigned short half);
unsigned short kt__float_to_half(float value);

#endif
