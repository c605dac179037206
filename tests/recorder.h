// A backend between the core and the real one: launches under "capture" are recorded instead of done, and replayed like a graph; any
// upload, copy, launch or mirror can be made to fail.
#ifndef KT_TEST_RECORDER_H
#define KT_TEST_RECORDER_H

#include "core.h"
#include "reference.h"

// What decides the bits of an attend, and how large its grid is.
typedef struct {
    int kernel, splits, split_items, max_fresh;
    kt__extent extent;
} recorder_attend;

typedef struct {
    bool capturing;
    int count;          // recorded launches and mirrors
    int until_failure;  // calls before one that fails: 0 is the next; below, none does
    int copies;         // of uploads, ever
    long long places;   // slots times fresh of launched appends and attends, ever
    recorder_attend attend; // the last one, launched or recorded
} recorder_state;
extern recorder_state recorder;

// Puts the recorder into the world's engine, with nothing recorded.
void recorder_install(ref_world *world);
// Uploads the batch and records a step of it behind what is recorded already; its slots bring one token each.
void recorder_capture(const ref_world *world, kt_batch *batch, const ref_buffers *buffers);
void recorder_replay(const ref_world *world);
// Puts the next token of each sequence into the buffers that were captured.
void recorder_refill(const ref_world *world, const ref_buffers *buffers, ref_sequence *const *sequences, int count);

#endif
