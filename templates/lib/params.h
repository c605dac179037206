// Structures that the runtime fills and the kernels read: plain C, pasted into every emitted kernel. All pointers are
// device addresses (host addresses on the CPU backend); strides count elements; everything is little endian.

// One entry of a device batch, 32 bytes. `fresh` = 0: idle, nothing of the entry is read or written.
typedef struct {
    int tokens;    // tokens of the sequence before this step
    int fresh;     // tokens this step brings
    int row;       // the entry's first row in q, k, v and out; its tokens are consecutive rows
    int capacity;  // tokens that the reserved pages can hold
    int slab;      // exact tokens as they were before the step
    int slab_next; // where the step's exact tokens go: `slab` itself where nothing live is overwritten
    int order;     // of entry i: the slot that comes i-th where long sequences go first
    int unused;
} kt_slot;

// State of a batch that kernels change.
typedef struct {
    int ready;                   // 1: the step fits its reservations; 0: every kernel of the step returns at once
    int overrun;                 // steps refused on the device because a reservation was too small
    unsigned long long nonfinite; // elements that were not finite, and groups whose scale or zero was beyond 65504
} kt_control;

// One layer's share of the pools and the batch it is used with.
typedef struct {
    unsigned char *pages;          // block (page, head) at pages + (page * kv_heads + head) * BLOCK_BYTES
    unsigned char *slabs;          // slab (slab, head) at slabs + (slab * kv_heads + head) * SLAB_BYTES
    const kt_slot *slots;          // [slot_count]
    const int *table;              // [slot_count, table_stride] page indices of each sequence, in token order
    kt_control *control;
    const unsigned short *key;     // fresh tokens [rows, kv_heads, HEAD_DIM]; only the innermost stride is 1
    const unsigned short *value;
    long long key_row, key_head, value_row, value_head;
    int table_stride, slot_count, kv_heads, layer;
    const unsigned char *calibration; // [kv_heads, TABLE_BYTES] of this layer; null where TABLE_BYTES is 0
} kt_view;

typedef struct {
    kt_view view;
    int behind;                    // 1: launched right behind an attend, which has waited for all that this kernel reads
} kt_append_params;

typedef struct {
    kt_view view;
    const unsigned short *query;   // [rows, kv_heads * GROUP_HEADS, HEAD_DIM]
    unsigned short *out;           // [rows, kv_heads * GROUP_HEADS, HEAD_DIM]
    float *lse;                    // [rows, kv_heads * GROUP_HEADS] natural log of the sum of exponentials, or null
    long long query_row, query_head, out_row, out_head;
    float *partial;                // [rows, heads, splits, HEAD_DIM] outputs of splits, where there are several
    float *stats;                  // [rows, heads, splits, 2] their maxima (of logits in units of log2) and sums
    int *arrivals;                 // [slots * max_fresh * kv_heads * passes], zero between launches
    float scale;                   // softmax scale
    int max_fresh;                 // largest `fresh` of the batch
    int splits;                    // most splits of a sequence: width of the grid
    int split_items;               // items of work that make a split worth while; see attend.cu
    int ordered;                   // 1: blocks go by kt_slot.order, for very unequal lengths; 0: by slot
} kt_attend_params;

typedef struct {
    kt_slot *slots;
    kt_control *control;
    int slot_count;
} kt_step_params;
