// A serving loop over libkitty, to read and to start from. It has everything of a server but the model and the network:
// requests arrive, wait in a queue, are served together in one batch (prompts in chunks, answers token by token), are
// pushed out and queued again when the cache is full, and leave.
//
//     serve PACKAGE [auto|cuda|cpu] [MEGABYTES]
//
// PACKAGE is a folder written by `kittygen emit`. Queries, keys and values are random; comments say where a model's would
// come in. Prints a summary; exit code 1 if anything went wrong.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kitty.h"

enum {
    LAYERS = 2,     // a real engine takes info.layers
    SLOTS = 4,      // sequences served at a time
    REQUESTS = 12,  // that arrive in all
    CHUNK = 64,     // tokens of a prompt that one step takes in, so that a long prompt does not hold up the others
    MOST_TOKENS = 1024,
    MOST_ROWS = SLOTS * CHUNK,
};

// What a client wants: an answer of `answer` tokens to a prompt of `prompt` tokens.
typedef struct {
    int arrives; // step
    int prompt, answer;
    int tokens;  // prompt and answer tokens that exist; what must be in the cache to go on
    int served;  // order of admission; the youngest is pushed out first
    enum { FUTURE, QUEUED, SERVED, FINISHED, DROPPED } state;
} request;

typedef struct {
    kt_engine *engine;
    kt_cache *cache;
    kt_batch *batch;
    kt_engine_info info;
    void *query, *key, *value, *out; // on the device
    request requests[REQUESTS];
    int queue[REQUESTS], queue_count; // indices of requests, first come first
    int in_slot[SLOTS];               // index of a request; -1: the slot is free
    kt_sequence sequences[SLOTS];
    int cached[SLOTS], fresh[SLOTS];  // tokens in the cache; tokens that the step brings
    long steps, tokens, preempted, admissions;
} server;

static uint32_t random_state = 1;

static uint32_t random_next(void)
{
    random_state = random_state * 1664525u + 1013904223u;
    return random_state >> 8;
}

static int within(int low, int high) { return low + (int)(random_next() % (uint32_t)(high - low + 1)); }

// Every call says in kt_message() what was wrong, with the values.
static int failed(kt_status status, const char *what)
{
    if (status)
        fprintf(stderr, "serve: %s: %s: %s\n", what, kt_status_name(status), kt_message());
    return status != KT_OK;
}

// ---- set-up ----------------------------------------------------------------------------------------------------------

// Random numbers in [-2, 2) as 16-bit elements. Both dtypes are put together from a sign, an exponent and a fraction.
static int fill(server *s, void *to, size_t count)
{
    uint16_t *rows = malloc(count * sizeof *rows);
    if (!rows)
        return 1;
    for (size_t i = 0; i < count; i++) {
        const uint32_t r = random_next();
        const uint32_t sign = r & 1, fraction = r >> 1, down = r >> 12 & 3; // 2^-down
        rows[i] = (uint16_t)(s->info.dtype == KT_F16 ? sign << 15 | (15 - down) << 10 | (fraction & 0x3ff)
                                                     : sign << 15 | (127 - down) << 7 | (fraction & 0x7f));
    }
    const kt_status status = kt_memory_write(s->engine, to, rows, count * sizeof *rows, NULL);
    free(rows);
    return failed(status, "kt_memory_write");
}

static int open_server(server *s, const char *package, kt_device device, double megabytes)
{
    // Compiles the kernels, or takes them from the disk cache: after this nothing is compiled.
    const kt_open_args open = {.size = sizeof open, .package = package, .device = device};
    if (failed(kt_open(&open, &s->engine), "kt_open"))
        return 1;
    s->info.size = sizeof s->info;
    if (failed(kt_engine_query(s->engine, &s->info), "kt_engine_query"))
        return 1;
    printf("%s on %s%s%s\n", s->info.spec, s->info.device_name, *s->info.reason ? ": " : "", s->info.reason);

    // The budget is for pages and exact tokens together. A server takes what the model's weights leave free; this one takes
    // so little that it runs full: the slabs of all slots, and pages for one request of MOST_TOKENS.
    uint64_t budget = (uint64_t)(megabytes * 1048576.0), block, slab;
    for (int layer = 0; layer < LAYERS && megabytes <= 0; layer++) {
        if (failed(kt_layer_bytes(s->engine, layer, &block, &slab), "kt_layer_bytes"))
            return 1;
        budget += (uint64_t)s->info.kv_heads * (2 * SLOTS * slab + (uint64_t)(MOST_TOKENS / s->info.page) * block);
    }
    // Prompts are taken in chunks: a step of several tokens on a filled cache needs a spare slab for each such sequence,
    // so that the step can be taken back.
    const kt_cache_args cache = {.size = sizeof cache, .budget_bytes = budget, .layers = LAYERS, .kv_heads = s->info.kv_heads,
                                 .max_sequences = SLOTS, .spare_slabs = SLOTS};
    if (failed(kt_cache_open(s->engine, &cache, &s->cache), "kt_cache_open"))
        return 1;
    const kt_batch_args batch = {.size = sizeof batch, .slots = SLOTS, .max_tokens = MOST_TOKENS, .max_rows = MOST_ROWS};
    if (failed(kt_batch_open(s->cache, &batch, &s->batch), "kt_batch_open"))
        return 1;

    // A CUDA engine has buffers of its own; the kt_memory calls are for programs without a CUDA runtime.
    const size_t kv = (size_t)MOST_ROWS * (size_t)s->info.kv_heads * (size_t)s->info.head_dim;
    const size_t q = kv * (size_t)s->info.group_heads;
    if (failed(kt_memory_alloc(s->engine, 2 * q, &s->query), "kt_memory_alloc") ||
        failed(kt_memory_alloc(s->engine, 2 * kv, &s->key), "kt_memory_alloc") ||
        failed(kt_memory_alloc(s->engine, 2 * kv, &s->value), "kt_memory_alloc") ||
        failed(kt_memory_alloc(s->engine, 2 * q, &s->out), "kt_memory_alloc"))
        return 1;
    return fill(s, s->query, q) || fill(s, s->key, kv) || fill(s, s->value, kv);
}

static void close_server(server *s)
{
    // Batches before their cache, caches and memory before their engine.
    kt_batch_close(s->batch);
    kt_cache_close(s->cache);
    kt_memory_free(s->engine, s->query);
    kt_memory_free(s->engine, s->key);
    kt_memory_free(s->engine, s->value);
    kt_memory_free(s->engine, s->out);
    kt_close(s->engine);
}

// ---- requests come and go --------------------------------------------------------------------------------------------

static int unserved(const server *s)
{
    int count = 0;
    for (int i = 0; i < REQUESTS; i++)
        count += s->requests[i].state < FINISHED;
    return count;
}

static int serving(const server *s)
{
    int count = 0;
    for (int slot = 0; slot < SLOTS; slot++)
        count += s->in_slot[slot] >= 0;
    return count;
}

static void take_arrivals(server *s)
{
    for (int i = 0; i < REQUESTS; i++) {
        if (s->requests[i].state == FUTURE && s->requests[i].arrives <= s->steps) {
            s->requests[i].state = QUEUED;
            s->queue[s->queue_count++] = i;
        }
    }
}

// Nothing else holds pages, and still there are too few.
static void drop(server *s, int index)
{
    printf("request %d of %d tokens does not fit the cache: %s\n", index, s->requests[index].tokens, kt_message());
    s->requests[index].state = DROPPED;
}

// Gives free slots to those who wait longest, as long as there are pages for all of their tokens so far: a sequence that
// is let in and soon pushed out again only costs time. It may join at any step; its length is its own.
static int admit(server *s)
{
    for (int slot = 0; slot < SLOTS && s->queue_count; slot++) {
        if (s->in_slot[slot] >= 0)
            continue;
        const int index = s->queue[0];
        request *r = &s->requests[index];
        if (failed(kt_sequence_open(s->cache, &s->sequences[slot]), "kt_sequence_open"))
            return 1;
        const kt_status status = kt_sequence_reserve(s->cache, s->sequences[slot], r->tokens);
        if (status) {
            const int alone = !serving(s);
            if (status != KT_FULL)
                return failed(status, "kt_sequence_reserve");
            if (alone)
                drop(s, index);
            if (failed(kt_sequence_close(s->cache, s->sequences[slot]), "kt_sequence_close"))
                return 1;
            if (!alone)
                return 0; // someone will leave
        } else {
            s->in_slot[slot] = index;
            s->cached[slot] = 0;
            r->state = SERVED;
            r->served = (int)s->admissions++;
        }
        memmove(s->queue, s->queue + 1, (size_t)--s->queue_count * sizeof *s->queue);
    }
    return 0;
}

// Closing a sequence gives its pages and its slab back at once; the slot becomes idle.
static int release(server *s, int slot)
{
    s->in_slot[slot] = -1;
    s->fresh[slot] = 0;
    return failed(kt_sequence_close(s->cache, s->sequences[slot]), "kt_sequence_close");
}

// The cache is full: the request that was admitted last goes back to the head of the queue. What it has said is not lost:
// prompt and answer so far are run through again as one prompt. If it is alone, it can never fit.
static int preempt(server *s)
{
    int youngest = -1;
    for (int slot = 0; slot < SLOTS; slot++)
        if (s->in_slot[slot] >= 0 &&
            (youngest < 0 || s->requests[s->in_slot[slot]].served > s->requests[s->in_slot[youngest]].served))
            youngest = slot;
    const int index = s->in_slot[youngest];
    if (serving(s) == 1) {
        drop(s, index);
    } else {
        s->requests[index].state = QUEUED;
        memmove(s->queue + 1, s->queue, (size_t)s->queue_count++ * sizeof *s->queue);
        s->queue[0] = index;
        s->preempted++;
    }
    return release(s, youngest);
}

// ---- a step ----------------------------------------------------------------------------------------------------------

// Chooses each sequence's new tokens: the next chunk of what is not cached yet, which is one token once it answers.
static int set_slots(server *s)
{
    for (int slot = 0; slot < SLOTS; slot++) {
        const int used = s->in_slot[slot] >= 0;
        const int missing = used ? s->requests[s->in_slot[slot]].tokens - s->cached[slot] : 0;
        s->fresh[slot] = missing < CHUNK ? missing : CHUNK;
        // row -1: the slots' rows follow each other in q, k, v and out.
        if (failed(kt_batch_set(s->batch, slot, used ? s->sequences[slot] : 0, s->fresh[slot], -1), "kt_batch_set"))
            return 1;
    }
    return 0;
}

// A step is a transaction over all layers: everything it needs is reserved by kt_step_begin, or nothing has changed.
static int step(server *s)
{
    kt_status status;
    if (set_slots(s))
        return 1;
    while ((status = kt_step_begin(s->batch, NULL)) == KT_FULL) {
        if (preempt(s) || set_slots(s))
            return 1;
        if (!serving(s))
            return 0;
    }
    if (failed(status, "kt_step_begin"))
        return 1;
    for (int layer = 0; layer < LAYERS; layer++) {
        // The model's projections of this layer put q, k (rotated) and v here, in the order of the slots.
        const kt_append_args append = {.size = sizeof append, .layer = layer, .key = s->key, .value = s->value,
                                       .flags = KT_APPEND_BEHIND_ATTEND};
        const kt_attend_args attend = {.size = sizeof attend, .layer = layer, .query = s->query, .out = s->out};
        if (failed(kt_append(s->batch, &append), "kt_append") || failed(kt_attend(s->batch, &attend), "kt_attend"))
            return 1; // kt_step_abort would take the step back; kt_batch_close does so too
        // The rest of the layer reads s->out.
    }
    return failed(kt_step_commit(s->batch), "kt_step_commit");
}

// Counts the step's tokens, "samples" the next one of each sequence, and lets go of those that are done.
static int collect(server *s)
{
    for (int slot = 0; slot < SLOTS; slot++) {
        if (s->in_slot[slot] < 0 || !s->fresh[slot])
            continue;
        request *r = &s->requests[s->in_slot[slot]];
        s->cached[slot] += s->fresh[slot];
        s->tokens += s->fresh[slot];
        if (s->cached[slot] < r->tokens)
            continue; // more of the prompt to come
        if (r->tokens < r->prompt + r->answer) {
            r->tokens++; // the logits of the sequence's last row give the next token
            continue;
        }
        r->state = FINISHED;
        if (release(s, slot))
            return 1;
    }
    return 0;
}

static int finite_outputs(server *s)
{
    const size_t count = (size_t)s->info.kv_heads * (size_t)s->info.group_heads * (size_t)s->info.head_dim;
    const int exponent = s->info.dtype == KT_F16 ? 0x7c00 : 0x7f80;
    uint16_t *row = malloc(count * sizeof *row);
    if (!row || failed(kt_memory_read(s->engine, row, s->out, count * sizeof *row), "kt_memory_read")) {
        free(row);
        return 0;
    }
    int finite = 1;
    for (size_t i = 0; i < count; i++)
        finite = finite && (row[i] & exponent) != exponent;
    free(row);
    return finite;
}

static int serve(server *s)
{
    for (int i = 0; i < REQUESTS; i++) {
        s->requests[i] = (request){.arrives = within(0, 100), .prompt = within(1, MOST_TOKENS / 2), .answer = within(1, 200)};
        s->requests[i].tokens = s->requests[i].prompt;
    }
    for (int slot = 0; slot < SLOTS; slot++)
        s->in_slot[slot] = -1;
    for (; unserved(s); s->steps++) {
        take_arrivals(s);
        if (admit(s))
            return 1;
        if (serving(s) && (step(s) || collect(s)))
            return 1;
    }
    if (!finite_outputs(s)) {
        fprintf(stderr, "serve: the last step's output is not finite\n");
        return 1;
    }
    // Polling does not wait: what the device reported when its last finished step ended.
    kt_poll_info poll = {.size = sizeof poll};
    kt_cache_info cache = {.size = sizeof cache};
    if (failed(kt_poll(s->batch, &poll), "kt_poll") || failed(kt_cache_query(s->cache, &cache), "kt_cache_query"))
        return 1;
    int finished = 0, dropped = 0;
    for (int i = 0; i < REQUESTS; i++) {
        finished += s->requests[i].state == FINISHED;
        dropped += s->requests[i].state == DROPPED;
    }
    printf("%d requests finished, %d dropped, %ld preemptions; %ld steps, %ld tokens\n", finished, dropped, s->preempted,
           s->steps, s->tokens);
    printf("cache: %.1f MiB, %lld of %lld pages free at the end; %llu elements not finite\n", (double)cache.bytes / 1048576.0,
           (long long)cache.free_pages, (long long)cache.pages, (unsigned long long)poll.nonfinite);
    return dropped || cache.free_pages != cache.pages || poll.nonfinite;
}

int main(int argc, char **argv)
{
    static const char *const devices[] = {"auto", "cuda", "cpu"};
    int device = 0;
    while (argc > 2 && device < 3 && strcmp(argv[2], devices[device]))
        device++;
    if (argc < 2 || argc > 4 || device == 3) {
        fprintf(stderr, "usage: serve PACKAGE [auto|cuda|cpu] [MEGABYTES]\n");
        return 2;
    }
    static server s;
    const int code = open_server(&s, argv[1], (kt_device)device, argc > 3 ? atof(argv[3]) : 0) || serve(&s);
    close_server(&s);
    return code;
}
