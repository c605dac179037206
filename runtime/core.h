// The structures of the core: engine, pools, sequences, batches.
#ifndef KT_CORE_H
#define KT_CORE_H

#include "internal.h"

struct kt_engine {
    kt__environment environment;
    kt__package package;
    kt__backend *backend;
    kt_device device;
    unsigned char *tables; // the package's, on the device; null where it has none
    char reason[256];
};

typedef struct {
    unsigned generation; // of the handle; 0 before the first use
    bool open;
    int tokens;          // committed
    int slab;
    int *pages;          // page_count pool pages in token order, room for page_room
    int page_count, page_room;
    int reserved;        // pages that were reserved ahead
    uint64_t stamp;      // changes with `pages`, forks and truncation; no two sequences or changes share one
    // The state before the last step, for as long as its exact tokens are there: in undo_slab, which is `slab` after a step in place, else
    // a slab that is kept until the pool needs it, or -1.
    int undo_tokens;     // -1: not known
    int undo_slab;
    uint64_t undo_age;   // stamp of the time since when the slab is kept
    kt_batch *step;      // the batch whose open step it is part of, or null
} kt__sequence;

struct kt_cache {
    kt_engine *engine;
    int layers, kv_heads, q_heads;
    int max_sequences, spare_slabs;
    unsigned char *pages, *slabs; // device
    // Of a page and of a slab: bytes of the layers before each, all heads; [layers] is of all. A layer of a pool is at base + count * that.
    uint64_t *page_starts, *slab_starts; // [layers + 1]
    uint64_t bytes;
    int page_total, free_page_count;
    int *page_references, *free_pages; // a page is free when nobody counts on it
    int slab_total, free_slab_count, kept_slabs, spares_used; // spares of open steps
    int *free_slabs;
    kt__sequence *sequences;
    int open_sequences;
    uint64_t stamps;
    kt_batch *batches; // list
};

// What the caller has put into a slot.
typedef struct {
    kt_sequence sequence;
    int fresh, row; // row < 0: after the slots before it
} kt__entry;

typedef struct {
    int tokens, slot; // tokens -1: idle
} kt__length;

// Consecutive slots that one launch goes over.
typedef struct {
    int first, count;
    int max_fresh, units; // largest of a slot; units as append counts them, largest of the formats
} kt__run;

enum { KT__RUNS = 16 };

struct kt_batch {
    kt_cache *cache;
    kt_batch *next;
    int slots, max_tokens, max_rows, table_stride;
    kt__entry *entries;

    // Device memory, and what the host knows it to hold.
    kt_slot *slots_device;
    int *table_device;
    kt_control *control_device, *mirror;
    float *partial;
    int *arrivals;
    size_t partial_floats, arrival_count;
    kt_slot *planned, *uploaded;
    int *table;          // image of table_device
    uint64_t *stamps;    // of the page list that each row of the table came from
    bool uploaded_valid; // false where the slots on the device are unknown
    bool ahead;          // kt_batch_upload has been called, and no slot was set since
    kt__copy *copies;    // of an upload: at most one per slot, and the slots

    // The open step.
    bool open, captured;
    bool reserved;           // launched as any step within the reservations: captured, or as if
    void *stream;
    kt_view *views;          // per layer
    bool *appended;          // per layer
    bool written;            // an append was launched
    int *pages_before;       // per slot
    int *shared;             // [slots, half_pages] pages that the step replaced by copies of its own, or -1
    int half_pages;          // most pages of a sequence whose keys are sealed and whose values are not
    int active, max_fresh, rows, max_pages, used_slots;
    kt__run runs[KT__RUNS];
    int run_count;
    kt__length *lengths;     // of the slots, longest first where `ordered`
    bool ordered;
    int *items;              // per slot, in attend's units of work
    bool deferred;           // an append waits for the next attend:
    int deferred_layer;
    struct {
        const kt__kernel *kernel; // that it is for, or null: not yet
        int splits, split_items;
    } divided[KT_FORMATS];   // the step's division
    int captured_rows;       // rows that every captured step is sized for; 0: none was captured
    uint64_t *row_owner, row_stamp; // finds rows that two slots share
};

// ---- engine.c ----
kt_status kt__check_size(size_t size, size_t expected, const char *call, const char *type);
// The power of two by which attend's kernel is looked up for `pages` pages: at least as many.
int kt__power_above(int pages);
// Kernel of an operation, for layers of a format, for this many sequences and pages each; blocks_per_sm may be null.
kt_status kt__pick(const kt_engine *engine, kt__op op, int format, int sequences, int pages, int *kernel, int *blocks_per_sm);

// ---- pool.c ----
// Callers have checked that enough are free.
int kt__page_take(kt_cache *cache);
int kt__page_share(kt_cache *cache, int page); // counts once more; the page
void kt__page_release(kt_cache *cache, int page);
int kt__slab_take(kt_cache *cache); // takes the slab kept longest for an undo where no other is free
void kt__slab_release(kt_cache *cache, int slab);
// Queue a copy of a page or slab, all layers and heads.
kt_status kt__page_copy(const kt_cache *cache, int to, int from, void *stream);
kt_status kt__slab_copy(const kt_cache *cache, int to, int from, void *stream);
unsigned char *kt__layer_pages(const kt_cache *cache, int layer);
unsigned char *kt__layer_slabs(const kt_cache *cache, int layer);

// ---- sequence.c ----
// Null, with a message, for a handle that is not open.
kt__sequence *kt__sequence_find(const kt_cache *cache, kt_sequence sequence, const char *call);
// Pages of which any layer has keys or values sealed, and those of which all layers have both.
int kt__pages_for(const kt__package *package, int tokens);
int kt__pages_whole(const kt__package *package, int tokens);
// Most tokens that `pages` pages can hold.
int kt__capacity(const kt__package *package, int pages);
kt_status kt__sequence_room(kt__sequence *sequence, int pages);
void kt__sequence_grow(kt_cache *cache, kt__sequence *sequence, int pages);
void kt__sequence_shrink(kt_cache *cache, kt__sequence *sequence, int pages);
// Moves to the slab that a step has filled, which may be the same; the state before, of `tokens` tokens, is what an undo goes back to.
void kt__sequence_move(kt_cache *cache, kt__sequence *sequence, int tokens, int slab);
// Whether a slab is kept for an undo; giving it back.
bool kt__sequence_keeps(const kt__sequence *sequence);
void kt__sequence_forget(kt_cache *cache, kt__sequence *sequence);

// ---- batch.c ----
// Fills planned, rows, max_fresh and the like from the entries as they are; reserves nothing.
kt_status kt__batch_plan(kt_batch *batch, const char *call);
kt__sequence *kt__batch_sequence(const kt_batch *batch, int slot);
// Whether the device already has what is planned.
bool kt__batch_current(const kt_batch *batch);
// Whether blocks go by length rather than by slot: the longest sequence is well above the shortest.
static inline bool kt__uneven(int shortest, int longest) { return longest - shortest > shortest / 4; }
// Brings the device what is planned.
kt_status kt__batch_flush(kt_batch *batch, void *stream);
// KT_INVALID where the planned rows are more than every captured step can do.
kt_status kt__batch_check_rows(const kt_batch *batch, const char *call);
// Makes every slot idle on the device, where a graph that is replayed without an upload then finds nothing to do.
kt_status kt__batch_withdraw(kt_batch *batch, void *stream);

// ---- reserve.c ----
// What the planned step takes from the pools. Check: KT_FULL where they do not have it.
kt_status kt__reserve_check(const kt_batch *batch);
kt_status kt__reserve(kt_batch *batch, void *stream); // on failure undo is due
void kt__reserve_undo(kt_batch *batch);
void kt__reserve_settle(kt_batch *batch); // the step is committed
// Gives the planned slots pages of their own where captured steps will seal values.
kt_status kt__unshare(kt_batch *batch, void *stream);

// ---- step.c ----
// Ends the open step on the host, as if it had never been.
void kt__step_drop(kt_batch *batch);

// ---- divide.c ----
// Splits for the widest query of the step, and the items that make one (kt_attend_params), so that the blocks fill the card evenly; by the
// kernel's format.
void kt__divide(kt_batch *batch, const kt__kernel *kernel, int blocks_per_sm, int *splits, int *split_items);

#endif
