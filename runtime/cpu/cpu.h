// What the files of the CPU backend share.
#ifndef KT_CPU_H
#define KT_CPU_H

#include "../internal.h"

enum { KT__TILE = 32, KT__MAX_PAGE = 1024, KT__MAX_DIM = 256 };

// No infinity and no NaN.
static inline bool kt__element_finite(int dtype, unsigned short element)
{
    const unsigned exponent = dtype == KT_F16 ? 0x7c00 : 0x7f80;
    return (element & exponent) != exponent;
}

// The element as everything after the append reads it: what is not finite is 0, -0 is +0.
static inline float kt__element(int dtype, unsigned short element)
{
    return kt__element_finite(dtype, element) ? kt__to_float(dtype, element) + 0.0f : 0.0f;
}

// ---- heads.c ----
// One KV head of one slot.
typedef struct {
    const kt_format *format;
    const kt_view *view;
    const kt_slot *slot;
    const int *table;                // of the slot
    int head;
    const unsigned char *calibration; // of the head, or null
    unsigned char *slab, *slab_next; // of the head
} kt__head;
// Goes over the heads of every slot that brings tokens, if the step is ready.
void kt__cpu_each_head(const kt_format *format, const kt_view *view, void (*work)(const kt__head *, const void *params), const void *params);
unsigned char *kt__cpu_block(const kt__head *head, int page);
// Byte offset of an exact token in a slab.
long long kt__cpu_place(const kt_format *format, kt_part part, int token);
// An exact token's elements: of the step's own in the input, else in the slab.
const unsigned short *kt__cpu_exact(const kt__head *head, kt_part part, int token);

// ---- rotate.c ----
bool kt__cpu_rotated(const kt_format *format, kt_part part);
// A token as it is sealed; table: what calibration gives its layer and head.
void kt__cpu_rotate(const kt_format *format, kt_part part, const unsigned char *table, const unsigned short *row, unsigned short *out);
// What was decoded, as it was before.
void kt__cpu_rotate_back(const kt_format *format, kt_part part, const unsigned char *table, float *row);

// A part of a block in steps of 32 tokens, rotated back; out: [32, head_dim].
void kt__cpu_decode_tile(const kt_format *format, kt_part part, const unsigned char *table, const unsigned char *block, int tile, float *out);

#endif
