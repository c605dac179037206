// libkitty: a low-bit KV cache for LLM inference (Kitty, arXiv 2511.18643), on CUDA and on the CPU.
//
// An *engine* is a compiled kernel package (kittygen emit) on one device. A *cache* is a pool of pages and slabs with a
// byte budget. A *sequence* lives in a cache. A *batch* is a set of slots at fixed device addresses; a *step* brings new
// tokens to the sequences in a batch's slots:
//
//     kt_batch_set(batch, slot, sequence, fresh, -1)  for each slot that changes
//     kt_step_begin(batch, stream)                    reserves everything, or changes nothing
//     kt_append, then kt_attend                       per layer: append once; attend any number of times, or never
//     kt_step_commit(batch) or kt_step_abort(batch)
//
// Sequence and head hold, in token order: `sink` exact tokens, pages of `page` quantised tokens, an exact residual. After n
// tokens floor((n - sink - key.window) / page) key pages and floor((n - sink - value.window) / page) value pages are
// sealed (paper, section 4); windows may differ by layer. A step attends the pages sealed before it and every newer token exactly, causally.
//
// Errors: every call returns a kt_status; on anything but KT_OK nothing has changed, and kt_message() says what was wrong,
// with the values. Threads: an engine may be shared; a cache with its sequences and batches belongs to one thread at a
// time. Memory: q, k, v, out and lse are the caller's, on the engine's device; they must stay valid and unchanged until
// the work queued on the stream has run. Work is queued on the caller's stream (a CUstream; null on the CPU, which works
// at once); steps of one cache on several streams are the caller's to order. No call from kt_step_begin to
// kt_step_commit waits for the GPU, compiles, or allocates.
#ifndef KITTY_H
#define KITTY_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define KT_API
#else
#define KT_API __attribute__((visibility("default")))
#endif

#define KT_VERSION "0.1.0"

#define KT_STATUS_LIST(X)                                                                    \
    X(KT_OK, 0, "ok")                                                                        \
    X(KT_INVALID, 1, "invalid argument")                                                     \
    X(KT_ORDER, 2, "call out of order")                                                      \
    X(KT_STALE, 3, "stale handle")                                                           \
    X(KT_FULL, 4, "out of pages, slabs or slots")                                            \
    X(KT_UNSUPPORTED, 5, "not supported")                                                    \
    X(KT_PACKAGE, 6, "bad kernel package")                                                   \
    X(KT_DEVICE, 7, "device error")                                                          \
    X(KT_COMPILE, 8, "kernel compilation failed")                                            \
    X(KT_IO, 9, "file error")                                                                \
    X(KT_MEMORY, 10, "out of memory")

typedef enum {
#define X(name, code, text) name = code,
    KT_STATUS_LIST(X)
#undef X
} kt_status;

typedef struct kt_engine kt_engine;
typedef struct kt_cache kt_cache;
typedef struct kt_batch kt_batch;
typedef uint64_t kt_sequence; // index and generation; 0 is no sequence

typedef enum { KT_DEVICE_AUTO, KT_DEVICE_CUDA, KT_DEVICE_CPU } kt_device;
typedef enum { KT_F16, KT_BF16 } kt_dtype;

// Name of a status ("KT_FULL"); static.
KT_API const char *kt_status_name(kt_status status);
// What the calling thread's last failed call found wrong, with values; valid until its next call. Never null.
KT_API const char *kt_message(void);

// ---- engine ----------------------------------------------------------------------------------------------------------

typedef struct {
    size_t size;          // sizeof(kt_open_args); first in every argument struct
    const char *package;  // folder with manifest.json and the emitted kernels
    kt_device device;     // AUTO: CUDA where a GPU and NVRTC or ready cubins are found, else CPU; CUDA never falls back
    int ordinal;          // CUDA device; 0 unless you have several
    const char *cache_dir; // cubins; null: KT_CACHE_DIR, else the user's cache folder
} kt_open_args;

typedef struct {
    size_t size;
    kt_device device;      // what was taken, never AUTO
    char device_name[128]; // "NVIDIA H100 80GB HBM3", "CPU"
    char reason[256];      // why AUTO chose the CPU; empty otherwise
    char spec[128];        // name of the package
    int head_dim, group_heads, page, sink;
    int layers, kv_heads;  // the model's, defaults for a cache
    kt_dtype dtype;
    uint64_t block_bytes, slab_bytes; // per layer and KV head; where layers differ (kt_layer_bytes), of the largest
    int compiled, loaded;  // kernels compiled now, and taken from the disk cache
} kt_engine_info;

// Compiles or loads every kernel of the package: after this nothing compiles. The primary context of the device is
// retained until kt_close. KT_UNSUPPORTED: no such device, or compute capability below 8.0.
KT_API kt_status kt_open(const kt_open_args *args, kt_engine **engine);
KT_API void kt_close(kt_engine *engine); // null is fine; caches must be closed before
KT_API kt_status kt_engine_query(const kt_engine *engine, kt_engine_info *info);
// Bytes of one layer and KV head of a page and of a slab; layers of one package may be kept in different ways.
KT_API kt_status kt_layer_bytes(const kt_engine *engine, int layer, uint64_t *block_bytes, uint64_t *slab_bytes);

// ---- memory on the engine's device, for programs without a CUDA runtime of their own --------------------------------

// 256-byte aligned and zeroed. On the CPU it is plain memory. Free it before kt_close.
KT_API kt_status kt_memory_alloc(kt_engine *engine, size_t bytes, void **address);
KT_API void kt_memory_free(kt_engine *engine, void *address); // null is fine
// Copies to the device, in the stream's order; `from` may be reused at once. May wait for the stream.
KT_API kt_status kt_memory_write(kt_engine *engine, void *to, const void *from, size_t bytes, void *stream);
// Copies from the device after all work queued on it.
KT_API kt_status kt_memory_read(kt_engine *engine, void *to, const void *from, size_t bytes);

// ---- cache and sequences ---------------------------------------------------------------------------------------------

typedef struct {
    size_t size;
    uint64_t budget_bytes; // device memory for pages and exact tokens (slabs) of all layers
    int layers, kv_heads;  // 0: the package's model; of a package whose layers differ at most its layers
    int max_sequences;     // slabs that are set aside; the rest of the budget becomes pages
    int spare_slabs;       // further slabs, one per sequence that takes a step of several tokens on a filled cache; those that no step
                           // uses hold what kt_sequence_truncate may go back to
} kt_cache_args;

typedef struct {
    size_t size;
    uint64_t bytes;                  // device memory held
    int64_t pages, free_pages;       // a page: all layers and heads of `page` tokens
    int64_t slabs, free_slabs;       // a slab: all layers and heads of one sequence's exact tokens; one that is only kept is free
    int sequences;
} kt_cache_info;

// KT_FULL: the budget does not hold the slabs and one page; the message says what would.
KT_API kt_status kt_cache_open(kt_engine *engine, const kt_cache_args *args, kt_cache **cache);
KT_API void kt_cache_close(kt_cache *cache); // null is fine; ends its sequences; batches must be closed before
KT_API kt_status kt_cache_query(const kt_cache *cache, kt_cache_info *info);

KT_API kt_status kt_sequence_open(kt_cache *cache, kt_sequence *sequence);
// KT_ORDER while the sequence is part of an open step. Slots that name it become idle.
KT_API kt_status kt_sequence_close(kt_cache *cache, kt_sequence sequence);
KT_API kt_status kt_sequence_tokens(const kt_cache *cache, kt_sequence sequence, int *tokens);
// Reserves pages so that the sequence can grow to `tokens` without another reservation. All or nothing.
KT_API kt_status kt_sequence_reserve(kt_cache *cache, kt_sequence sequence, int tokens);

// A second sequence with the same tokens. Sealed pages are shared and counted; one whose values are still exact is copied by the step, or
// the kt_batch_upload, that is to seal them (KT_FULL where no page is free then). Exact tokens are copied on the stream, behind the steps
// queued there; later steps of both sequences belong behind it. Reservations are not copied.
// KT_FULL: no sequence or slab left. KT_ORDER: `from` is part of an open step, or the stream is under graph capture.
KT_API kt_status kt_sequence_fork(kt_cache *cache, kt_sequence from, void *stream, kt_sequence *fork);
// Forgets the newest tokens so that `tokens` are left, as if they had never come: later steps give the bytes of a fresh run. Possible
// - where no page that is sealed now would be unsealed at `tokens`,
// - back to before the sequence's last step, and further where no page that was sealed then would be unsealed. A step that took no
//   spare slab, as one of a single token never does, can be taken back until the next step, even if that is aborted. One that took a
//   spare slab can while the old slab is kept: until the next step is committed, or until a step, a fork or an open needs a slab and
//   this one has been kept longest.
// Otherwise KT_UNSUPPORTED, with what is possible, and nothing changes. KT_ORDER: the sequence is part of an open step. Of replays, the
// last is the last step. Pages of the tokens that go are given back, or stay reserved; those that a fork has stay the fork's.
// Forks and truncation go by the host's lengths: report replays (kt_step_replayed) before.
KT_API kt_status kt_sequence_truncate(kt_cache *cache, kt_sequence sequence, int tokens);
// The sequence's tokens before its last step, if kt_sequence_truncate can go back to them now, else the fewest it can go back to.
KT_API kt_status kt_sequence_undo(const kt_cache *cache, kt_sequence sequence, int *least);

// ---- batches and steps -----------------------------------------------------------------------------------------------

typedef struct {
    size_t size;
    int slots;      // sequences at a time
    int max_tokens; // longest sequence: width of the page table
    int max_rows;   // most new tokens of one step, over all slots
} kt_batch_args;

KT_API kt_status kt_batch_open(kt_cache *cache, const kt_batch_args *args, kt_batch **batch);
KT_API void kt_batch_close(kt_batch *batch); // null is fine; aborts an open step
// Puts a sequence into a slot with `fresh` new tokens a step (0: idle). sequence 0 empties the slot. A sequence may be in
// one slot of a batch only. Rows of q, k, v and out are in slot order: slot s starts at the sum of `fresh` before it, or,
// with row >= 0, at `row`.
KT_API kt_status kt_batch_set(kt_batch *batch, int slot, kt_sequence sequence, int fresh, int row);
// Reserves pages and slabs for the step and queues its tables; on failure nothing has changed. On a stream under graph
// capture nothing is reserved or uploaded: every slot must be reserved ahead (kt_sequence_reserve), have fresh <= 1, and
// have been uploaded by kt_batch_upload. A captured step has rows up to its slots' last, and at least one for each slot of the
// batch; one with more rows than a step captured before is refused.
KT_API kt_status kt_step_begin(kt_batch *batch, void *stream);
// Uploads slots, reservations and lengths as the host has them, for a step to be captured or replayed: call it after kt_batch_set, any
// kt_sequence call but _tokens and _undo, and a step that was not captured, before a graph of the batch is replayed again. Until the next
// kt_batch_set a step that stays within the reservations is divided for them, captured or not, and its bits are those of a replay.
// KT_INVALID: a slot has fresh > 1, or a row that a captured step does not have. KT_FULL: no page for the copy of one that a fork shares.
// Between an aborted or failed step and the next upload replays do nothing.
KT_API kt_status kt_batch_upload(kt_batch *batch, void *stream);

typedef struct {
    size_t size;
    int layer;
    const void *key, *value;                                 // [rows, kv_heads, head_dim], 16-byte aligned
    int64_t key_row, key_head, value_row, value_head;        // strides in elements, multiples of 8; 0: contiguous
    unsigned flags;
} kt_append_args;

// Queue the work right behind the step's next kt_attend, which does not need it, rather than now, so that the two overlap: where
// every layer is attended, the faster way. Without a kt_attend to come it is queued by the next kt_append or by kt_step_commit. Key
// and value must be written by work queued before that kt_attend, and stay unchanged until what queued the append has run.
enum { KT_APPEND_BEHIND_ATTEND = 1 };

// Takes in the step's keys (already rotated) and values of one layer and seals the pages they complete. Key and value
// must stay unchanged until the layer's kt_attend has run.
KT_API kt_status kt_append(kt_batch *batch, const kt_append_args *args);

enum { KT_ATTEND_REFERENCE = 1 }; // attend by the plain float64 reference kernel: slow, for checking

typedef struct {
    size_t size;
    int layer;
    const void *query;                                       // [rows, q_heads, head_dim], 16-byte aligned
    void *out;                                               // [rows, q_heads, head_dim]
    float *lse;                                              // [rows, q_heads] natural log-sum-exp, or null
    int64_t query_row, query_head, out_row, out_head;        // strides in elements, multiples of 8; 0: contiguous
    float scale;                                             // softmax scale; 0: 1 / sqrt(head_dim)
    int window;                                              // sliding window; must be 0 until supported
    float softcap;                                           // logit soft cap; must be 0 until supported
    unsigned flags;
} kt_attend_args;

// softmax(scale q k^T) v over sinks, pages and residual, fp32 accumulation, causal among the step's tokens.
KT_API kt_status kt_attend(kt_batch *batch, const kt_attend_args *args);
// Makes the step's tokens part of their sequences. KT_ORDER unless every layer was appended. A step need not be attended:
// a caller may attend a prompt over its own exact keys and values.
KT_API kt_status kt_step_commit(kt_batch *batch);
// Back to the state before kt_step_begin. KT_DEVICE: the device cannot be told; the step is still open.
KT_API kt_status kt_step_abort(kt_batch *batch);
// After `count` replays of a captured step: the host's lengths follow. KT_FULL: more than the reservations hold; the
// lengths follow as far as the device went, which has refused the rest (kt_poll: overruns). KT_ORDER: what was replayed is not
// what kt_batch_upload would have uploaded. The next upload or step starts from the host's lengths, but replays that it was not told
// of have overwritten exact tokens if they went past the end of a page: close their sequences.
KT_API kt_status kt_step_replayed(kt_batch *batch, int count);

typedef struct {
    size_t size;
    int overruns;       // captured steps that changed nothing because a reservation was too small
    uint64_t nonfinite; // elements that were not finite and groups beyond 65504; they count as 0
} kt_poll_info;

// What the device had reported when its last finished step ended; does not wait.
KT_API kt_status kt_poll(const kt_batch *batch, kt_poll_info *info);

// ---- looking inside (waits for the device) ---------------------------------------------------------------------------

typedef enum { KT_KEY, KT_VALUE } kt_part;

// Decoded keys or values of tokens [first, first + count) of one layer and KV head as committed: code * scale + zero in
// fp32 where sealed, rotated back where the spec rotates, exact where not. out: [count, head_dim].
KT_API kt_status kt_read(const kt_cache *cache, kt_sequence sequence, int layer, int kv_head, kt_part part, int first,
                         int count, float *out);
// The bytes of one block, as many as kt_layer_bytes says. page < sealed key pages of the sequence in that layer.
KT_API kt_status kt_read_block(const kt_cache *cache, kt_sequence sequence, int layer, int kv_head, int page, void *out);

#ifdef __cplusplus
}
#endif
#endif
