// The public API on the CPU: serving, transactions, limits, and what is said of every misuse.
#include "core.h"
#include "reference.h"
#include "suite.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static ref_world world;
static kt_batch *batch;

// Counts allocations while `counting`.
static int counting, allocated;
#ifdef __SANITIZE_ADDRESS__
int __sanitizer_install_malloc_and_free_hooks(void (*)(const volatile void *, size_t), void (*)(const volatile void *));
static void allocating(const volatile void *memory, size_t bytes) { (void)memory, (void)bytes, allocated += counting; }
static void freeing(const volatile void *memory) { (void)memory; }
static void count_allocations(void) { __sanitizer_install_malloc_and_free_hooks(allocating, freeing); }
#else
void *__libc_malloc(size_t bytes);
void *malloc(size_t bytes) { return allocated += counting, __libc_malloc(bytes); }
static void count_allocations(void) {}
#endif

static kt_cache_info query_cache(void)
{
    kt_cache_info info = {.size = sizeof info};
    OK(kt_cache_query(world.cache, &info));
    return info;
}

// ---- serving ----

// Three sequences of unequal lengths decode together; one leaves, another takes its slot, idle entries in between.
START_TEST(serving)
{
    const char *variant = (const char *const[]){"kitty-pro", "fp16", "range", "kitty-pro"}[_i];
    kg_spec spec;
    ck_assert(ref_spec(variant, 64, _i == 1 ? 3 : 2, _i % 2 ? KT_BF16 : KT_F16, 128, &spec));
    if (_i == 3)
        ref_mix(&spec);
    ref_open_spec(&world, &spec, 20, 4, 2);
    batch = ref_batch(&world, 4, 900, 700);
    ref_sequence a, b, c, d;
    ref_join(&world, &a, 0);
    ref_join(&world, &b, 400);
    ref_join(&world, &c, 800);
    ref_step(&world, batch, (ref_sequence *[]){&a, NULL, &b, &c}, (int[]){20, 0, 129, 300}, 4, true);
    for (int step = 0; step < 300; step++) {
        const bool with_b = step < 150;
        ref_sequence *second = step < 160 ? NULL : &d;
        if (step == 150)
            OK(kt_sequence_close(world.cache, b.handle));
        if (step == 160)
            ref_join(&world, &d, 77);
        ref_step(&world, batch, (ref_sequence *[]){&a, second, with_b ? &b : NULL, &c},
                 (int[]){1, step == 160 ? 50 : 1, 1, step % 3 != 0}, 4, step % 23 == 0 || step == 160);
        if (step == 149)
            ref_verify(&world, &b);
    }
    ck_assert_int_eq(a.tokens, 320);
    ref_verify(&world, &a);
    ref_verify(&world, &c);
    ref_verify(&world, &d);
    kt_poll_info poll = {.size = sizeof poll};
    OK(kt_poll(batch, &poll));
    ck_assert_int_eq(poll.overruns, 0);
    ck_assert_uint_eq(poll.nonfinite, 0);
    kt_batch_close(batch);
    ref_close(&world);
}
END_TEST

// Steps of several tokens on filled caches, in place and through spare slabs.
START_TEST(several_tokens)
{
    static const int fresh[] = {5, 27, 1, 50, 63, 64, 1, 65, 3, 125, 41, 1, 45};
    ref_open(&world, (const char *const[]){"kitty", "range", "boost8"}[_i], 64, 4, KT_F16, 64, 20, 2, 2);
    batch = ref_batch(&world, 2, 1000, 300);
    ref_sequence a, b;
    ref_join(&world, &a, 3);
    ref_join(&world, &b, 500);
    for (int i = 0; i < 13; i++)
        ref_step(&world, batch, (ref_sequence *[]){&a, &b}, (int[]){fresh[i], fresh[12 - i]}, 2, true);
    ref_verify(&world, &a);
    ref_verify(&world, &b);
    OK(kt_sequence_close(world.cache, a.handle));
    OK(kt_sequence_close(world.cache, b.handle));
    const kt_cache_info info = query_cache();
    ck_assert_int_eq(info.free_pages, info.pages);
    ck_assert_int_eq(info.free_slabs, info.slabs);
    ck_assert_int_eq(info.sequences, 0);
    kt_batch_close(batch);
    ref_close(&world);
}
END_TEST

// Tokens of a part that read back as they came are the sinks and what is newer than the sealed pages, no other.
static void check_exact(const ref_sequence *s, kt_part part, int pages)
{
    const int d = world.format.head_dim, sink = world.format.sink, end = sink + pages * world.format.page;
    float *rows = malloc((size_t)s->tokens * (size_t)d * sizeof *rows);
    OK(kt_read(world.cache, s->handle, 0, 0, part, 0, s->tokens, rows));
    for (int t = 0; t < s->tokens; t++) {
        const unsigned short *row = ref_row(&world, part, 0, 0, s, t);
        bool same = true;
        for (int c = 0; c < d; c++)
            same &= rows[t * d + c] == kt__to_float(world.format.dtype, row[c]);
        ck_assert_msg(same == (t < sink || t >= end), "%s %d of %d, %d sealed pages", part == KT_KEY ? "key" : "value", t, s->tokens, pages);
    }
    free(rows);
}

// Sinks and windows that no tile divides: pages begin at the first token past the sinks, and are sealed once the window is full past them.
START_TEST(any_number)
{
    static const int sinks[] = {1, 4, 31, 33}, windows[] = {1, 5, 100, 127, 129};
    const int sink = sinks[_i % 4], window = windows[_i / 4], key_window = _i % 3 ? _i % 3 == 1 ? 0 : window / 2 + 1 : window;
    kg_spec spec;
    ck_assert(ref_spec("kitty-pro", (_i + _i / 4) % 2 ? 128 : 64, 1, _i / 4 % 2, 64, &spec));
    spec.model.layers = spec.model.kv_heads = spec.model.q_heads = 1;
    spec.sink = sink;
    spec.key.window = key_window;
    spec.value.window = window;
    ref_open_spec(&world, &spec, 8, 1, 1);
    batch = ref_batch(&world, 1, 500, 300);
    ref_sequence s;
    ref_join(&world, &s, 40 * _i);
    // Within the sinks and over their end; to one token before values are sealed, and on; many tokens and a page at once.
    const int fresh[] = {sink, 3, window + 60, 1, 1, 62, 1, 66};
    const int value_pages[] = {0, 0, 0, 1, 1, 1, 2, 3};
    for (unsigned i = 0; i < sizeof fresh / sizeof *fresh; i++) {
        ref_step(&world, batch, (ref_sequence *[]){&s}, &fresh[i], 1, true);
        check_exact(&s, KT_VALUE, value_pages[i]);
        check_exact(&s, KT_KEY, s.tokens < sink + key_window ? 0 : (s.tokens - sink - key_window) / 64);
    }
    ref_verify(&world, &s);
    kt_batch_close(batch);
    ref_close(&world);
}
END_TEST

// An aborted step leaves lengths, pools and every byte as they were; done again it gives what it would have given at once.
START_TEST(abort_restores)
{
    static const int fresh[] = {200, 1, 150, 100, 1, 300};
    ref_open(&world, "kitty", 64, 2, KT_F16, 128, 20, 2, 1);
    batch = ref_batch(&world, 1, 2000, 600);
    ref_sequence a;
    ref_join(&world, &a, 5);
    for (int i = 0; i < 6; i++) {
        const kt_cache_info before = query_cache();
        for (int done = 0; done <= 4; done++) { // abort after so many of the four calls
            ref_buffers b;
            ref_fill(&world, batch, (ref_sequence *[]){&a}, &fresh[i], 1, &b);
            OK(kt_step_begin(batch, NULL));
            for (int n = 0; n < done; n++)
                OK(n % 2 ? ref_attend_layer(&world, batch, n / 2, &b) : ref_append(&world, batch, n / 2, &b));
            OK(kt_step_abort(batch));
            ref_buffers_free(&b);
            const kt_cache_info after = query_cache();
            ck_assert_int_eq(after.free_pages, before.free_pages);
            ck_assert_int_eq(after.free_slabs, before.free_slabs);
            ref_verify(&world, &a);
        }
        ref_step(&world, batch, (ref_sequence *[]){&a}, &fresh[i], 1, true);
        ref_verify(&world, &a);
    }
    // Closing a batch aborts its step.
    ref_buffers b;
    ref_fill(&world, batch, (ref_sequence *[]){&a}, (int[]){128}, 1, &b);
    OK(kt_step_begin(batch, NULL));
    kt_batch_close(batch);
    ref_buffers_free(&b);
    ref_verify(&world, &a);
    OK(kt_sequence_close(world.cache, a.handle));
    ck_assert_int_eq(query_cache().free_pages, 20);
    ref_close(&world);
}
END_TEST

// No call from begin to commit allocates, whatever the number of slots and the order of their lengths.
START_TEST(no_allocation)
{
    enum { SLOTS = 400 };
    static ref_sequence sequences[SLOTS], *all[SLOTS];
    static int fresh[SLOTS];
    ref_open(&world, "fp16", 64, 1, KT_F16, 32, SLOTS, SLOTS, 0);
    batch = ref_batch(&world, SLOTS, 400, 40 * SLOTS);
    for (int i = 0; i < SLOTS; i++) {
        ref_join(&world, &sequences[i], i);
        all[i] = &sequences[i];
        fresh[i] = 1 + i * 7 % 40;
    }
    ref_step(&world, batch, all, fresh, SLOTS, false);
    for (int i = 0; i < SLOTS; i++)
        fresh[i] = 1;
    ref_buffers b;
    ref_fill(&world, batch, all, fresh, SLOTS, &b);
    count_allocations();
    counting = 1;
    void *volatile seen = malloc(1);
    free(seen);
    kt_status status = kt_step_begin(batch, NULL);
    for (int layer = 0; layer < 2 && !status; layer++)
        if (!(status = ref_append(&world, batch, layer, &b)))
            status = ref_attend_layer(&world, batch, layer, &b);
    status = status ? status : kt_step_commit(batch);
    counting = 0;
    OK(status);
    ck_assert_int_eq(allocated, 1); // the one above
    for (int i = 0; i < SLOTS; i++) {
        sequences[i].tokens++;
        ck_assert_int_eq(world.cache->batches->planned[i].order, world.cache->batches->lengths[i].slot);
    }
    for (int i = 1; i < SLOTS; i++) {
        const kt__length *l = &world.cache->batches->lengths[i];
        ck_assert(l[-1].tokens > l->tokens || (l[-1].tokens == l->tokens && l[-1].slot < l->slot));
    }
    ref_verify(&world, &sequences[39]);
    ref_buffers_free(&b);
    kt_batch_close(batch);
    ref_close(&world);
}
END_TEST

// Strided operands and rows in the caller's order give the same as contiguous ones.
START_TEST(strides_and_rows)
{
    enum { D = 64, FRESH = 5, PAD = 8 };
    ref_open(&world, "kitty", D, 2, KT_F16, 128, 4, 2, 0);
    batch = ref_batch(&world, 2, 500, 32);
    ref_sequence a, b;
    ref_join(&world, &a, 0);
    ref_join(&world, &b, 50);
    ref_buffers plain;
    ref_fill(&world, batch, (ref_sequence *[]){&a, &b}, (int[]){FRESH, FRESH}, 2, &plain);
    // The same step with heads outermost, a gap after each row, and b's rows before a's.
    static _Alignas(64) unsigned short key[2][32][D + PAD], value[2][32][D + PAD], query[4][32][D + PAD], out[4][32][D + PAD];
    OK(kt_batch_set(batch, 0, a.handle, FRESH, 20));
    OK(kt_batch_set(batch, 1, b.handle, FRESH, 3));
    OK(kt_step_begin(batch, NULL));
    for (int layer = 0; layer < 2; layer++) {
        for (int r = 0; r < 2 * FRESH; r++) {
            const int row = r < FRESH ? 20 + r : 3 + r - FRESH;
            for (int head = 0; head < 4; head++)
                memcpy(query[head][row], plain.query + ((layer * plain.rows + r) * 4 + head) * D, D * 2);
            for (int head = 0; head < 2; head++) {
                memcpy(key[head][row], plain.key + ((layer * plain.rows + r) * 2 + head) * D, D * 2);
                memcpy(value[head][row], plain.value + ((layer * plain.rows + r) * 2 + head) * D, D * 2);
            }
        }
        const int64_t row = D + PAD, head = 32 * (D + PAD);
        memset(out, 0x5a, sizeof out);
        OK(kt_append(batch, &(kt_append_args){sizeof(kt_append_args), layer, key, value, row, head, row, head, layer ? KT_APPEND_BEHIND_ATTEND : 0}));
        OK(kt_attend(batch, &(kt_attend_args){.size = sizeof(kt_attend_args), .layer = layer, .query = query, .out = out,
                                              .query_row = row, .query_head = head, .out_row = row, .out_head = head,
                                              .flags = layer ? KT_ATTEND_REFERENCE : 0}));
        for (int r = 0; r < 32; r++)
            for (int h = 0; h < 4; h++) {
                const int from = r >= 20 && r < 25 ? r - 20 : r >= 3 && r < 8 ? r - 3 + FRESH : -1;
                if (from >= 0)
                    memcpy(plain.out + ((layer * plain.rows + from) * 4 + h) * D, out[h][r], D * 2);
                for (int c = from >= 0 ? D : 0; c < D + PAD; c++)
                    ck_assert_msg(out[h][r][c] == 0x5a5a, "row %d head %d element %d was written", r, h, c);
            }
    }
    OK(kt_step_commit(batch));
    a.tokens = b.tokens = FRESH;
    ref_verify(&world, &a);
    ref_verify(&world, &b);
    // A contiguous run of the same step in fresh sequences.
    ref_sequence again[2];
    OK(kt_sequence_close(world.cache, a.handle));
    OK(kt_sequence_close(world.cache, b.handle));
    ref_join(&world, &again[0], 0);
    ref_join(&world, &again[1], 50);
    ref_buffers second;
    ref_fill(&world, batch, (ref_sequence *[]){&again[0], &again[1]}, (int[]){FRESH, FRESH}, 2, &second);
    OK(kt_step_begin(batch, NULL));
    for (int layer = 0; layer < 2; layer++) {
        OK(ref_append(&world, batch, layer, &second));
        OK(ref_attend_layer(&world, batch, layer, &second));
    }
    OK(kt_step_commit(batch));
    ck_assert_mem_eq(plain.out, second.out, (size_t)2 * 2 * FRESH * 4 * D * 2);
    ref_buffers_free(&plain);
    ref_buffers_free(&second);
    kt_batch_close(batch);
    ref_close(&world);
}
END_TEST

// ---- limits ----

START_TEST(nonfinite_counts)
{
    ref_open(&world, "kitty", 64, 1, KT_F16, 128, 4, 1, 0);
    batch = ref_batch(&world, 1, 600, 300);
    ref_sequence a;
    ref_join(&world, &a, 0);
    kt_poll_info poll = {.size = sizeof poll};
    ref_buffers b;
    ref_fill(&world, batch, (ref_sequence *[]){&a}, (int[]){200}, 1, &b);
    b.key[(50 * 2 + 1) * 64 + 7] = 0x7c00;                      // layer 0, head 1, token 50: in key page 0
    b.value[(200 + 199) * 2 * 64] = 0xfe00;                     // layer 1, head 0, the last token: exact
    for (int t = 0; t < 200; t++)
        b.key[(t * 2 + 0) * 64 + 9] = t % 2 ? 0x7bff : 0xfbff;  // +-65504: the scale still fits
    for (int layer = 0; layer < 2; layer++) {
        if (!layer)
            OK(kt_step_begin(batch, NULL));
        OK(ref_append(&world, batch, layer, &b));
        OK(ref_attend_layer(&world, batch, layer, &b));
    }
    OK(kt_poll(batch, &poll));
    ck_assert_uint_eq(poll.nonfinite, 0); // the step has not ended
    OK(kt_step_commit(batch));
    OK(kt_poll(batch, &poll));
    ck_assert_uint_eq(poll.nonfinite, 2);
    for (int i = 0; i < 2 * 200 * 2 * 64; i++)
        ck_assert(isfinite(kt__half_to_float(b.out[i])));
    float row[64];
    OK(kt_read(world.cache, a.handle, 1, 0, KT_VALUE, 199, 1, row));
    ck_assert_float_eq(row[0], 0);
    unsigned char *block = malloc((size_t)world.format.block_bytes);
    for (int head = 0; head < 2; head++) {
        OK(kt_read_block(world.cache, a.handle, 0, head, 0, block));
        ck_assert_int_eq(block[KT_HEADER_KEY_FLAGS], head);
    }
    free(block);
    ref_buffers_free(&b);
    kt_batch_close(batch);
    ref_close(&world);
}
END_TEST

START_TEST(out_of_pages)
{
    ref_open(&world, "kitty", 64, 1, KT_F16, 128, 3, 2, 1);
    batch = ref_batch(&world, 2, 2000, 600);
    ref_sequence a, b;
    ref_join(&world, &a, 0);
    ref_join(&world, &b, 9);
    ref_step(&world, batch, (ref_sequence *[]){&a, &b}, (int[]){200, 159}, 2, false);
    ck_assert_int_eq(query_cache().free_pages, 2);
    OK(kt_batch_set(batch, 0, a.handle, 300, -1)); // 2 more pages
    OK(kt_batch_set(batch, 1, b.handle, 1, -1));   // and 1
    FAILS(KT_FULL, "kt_step_begin: the step needs 3 more pages; 2 of 3 are free. Close a sequence or open the cache with a larger "
          "budget", kt_step_begin(batch, NULL));
    ck_assert_int_eq(query_cache().free_pages, 2);
    FAILS(KT_FULL, "kt_sequence_reserve: 600 tokens need 4 pages, 3 more than the sequence has; 2 of 3 are free",
          kt_sequence_reserve(world.cache, a.handle, 600));
    OK(kt_sequence_reserve(world.cache, b.handle, 160));
    ck_assert_int_eq(query_cache().free_pages, 1);
    ref_verify(&world, &a);
    OK(kt_batch_set(batch, 0, a.handle, 100, -1));
    OK(kt_batch_set(batch, 1, b.handle, 100, -1));
    FAILS(KT_FULL, "kt_step_begin: 2 sequences bring several tokens to a filled cache and need a spare slab each; 1 of 1 are free "
          "(spare_slabs)", kt_step_begin(batch, NULL));
    ck_assert_int_eq(query_cache().free_slabs, 1);
    kt_sequence third;
    FAILS(KT_FULL, "kt_sequence_open: all 2 sequences are open (max_sequences); close one first",
          kt_sequence_open(world.cache, &third));
    OK(kt_sequence_close(world.cache, b.handle)); // its slot becomes idle
    ref_step(&world, batch, (ref_sequence *[]){&a, NULL}, (int[]){300, 0}, 2, true);
    ref_verify(&world, &a);
    kt_batch_close(batch);
    ref_close(&world);
}
END_TEST

START_TEST(budget)
{
    ref_open(&world, "kitty", 64, 1, KT_F16, 128, 1, 1, 0);
    const int block = world.format.block_bytes, slab = world.format.slab_bytes;
    kt_cache *cache = NULL;
    char message[256];
    snprintf(message, sizeof message, "kt_cache_open: budget_bytes is 1000; 5 slabs of %d bytes (max_sequences 3, spare_slabs 2) and "
             "one page of %d bytes need %d", 21 * slab, 21 * block, 21 * (5 * slab + block));
    kt_cache_args args = {sizeof args, 1000, 7, 3, 3, 2};
    FAILS(KT_FULL, message, kt_cache_open(world.engine, &args, &cache));
    args.budget_bytes = (uint64_t)21 * (unsigned)(5 * slab + block) - 1;
    ck_assert_int_eq(kt_cache_open(world.engine, &args, &cache), KT_FULL);
    args.budget_bytes++;
    OK(kt_cache_open(world.engine, &args, &cache));
    kt_cache_info info = {.size = sizeof info};
    OK(kt_cache_query(cache, &info));
    ck_assert_int_eq(info.pages, 1);
    ck_assert_int_eq(info.slabs, 5);
    ck_assert_uint_eq(info.bytes, args.budget_bytes);
    kt_cache_close(cache);
    ref_close(&world);
}
END_TEST

// ---- misuse ----

START_TEST(refusals_outside_steps)
{
    ref_open(&world, "kitty", 64, 2, KT_F16, 128, 8, 2, 0);
    batch = ref_batch(&world, 2, 500, 100);
    kt_batch *other = NULL, *never = NULL;
    kt_engine *engine;
    kt_cache *cache;
    kt_engine_info info = {.size = 4};
    ref_sequence a, b;
    ref_join(&world, &a, 0);
    ref_join(&world, &b, 0);

    FAILS(KT_INVALID, "kt_open: args is null", kt_open(NULL, &engine));
    FAILS(KT_INVALID, "kt_open: size is 3; set it to sizeof(kt_open_args), 32 in this version (0.1.0)",
          kt_open(&(kt_open_args){.size = 3}, &engine));
    FAILS(KT_INVALID, "kt_open: package is null; name a folder that kittygen emit wrote",
          kt_open(&(kt_open_args){.size = sizeof(kt_open_args)}, &engine));
    FAILS(KT_INVALID, "kt_open: device is 7; KT_DEVICE_AUTO, KT_DEVICE_CUDA and KT_DEVICE_CPU are allowed",
          kt_open(&(kt_open_args){sizeof(kt_open_args), "x", (kt_device)7, 0, NULL}, &engine));
    FAILS(KT_INVALID, "kt_open: ordinal is -1; devices are counted from 0",
          kt_open(&(kt_open_args){sizeof(kt_open_args), "x", KT_DEVICE_CPU, -1, NULL}, &engine));
    FAILS(KT_INVALID, "kt_engine_query: info is null", kt_engine_query(world.engine, NULL));
    FAILS(KT_INVALID, "kt_engine_query: size is 4; set it to sizeof(kt_engine_info), 576 in this version (0.1.0)",
          kt_engine_query(world.engine, &info));
    FAILS(KT_INVALID, "kt_cache_open: max_sequences is 0; 1 to 1048576 are allowed",
          kt_cache_open(world.engine, &(kt_cache_args){.size = sizeof(kt_cache_args)}, &cache));
    FAILS(KT_INVALID, "kt_cache_open: layers is -1; 0 to 4096 are allowed",
          kt_cache_open(world.engine, &(kt_cache_args){.size = sizeof(kt_cache_args), .layers = -1}, &cache));
    FAILS(KT_INVALID, "kt_batch_open: slots is 0; 1 to 65535 are allowed",
          kt_batch_open(world.cache, &(kt_batch_args){sizeof(kt_batch_args), 0, 1, 1}, &never));
    FAILS(KT_INVALID, "kt_batch_open: max_rows is 99999999; 1 to 16777216 are allowed",
          kt_batch_open(world.cache, &(kt_batch_args){sizeof(kt_batch_args), 1, 1, 99999999}, &never));

    FAILS(KT_INVALID, "kt_batch_set: slot is 2; the batch has slots 0 to 1", kt_batch_set(batch, 2, a.handle, 1, -1));
    FAILS(KT_INVALID, "kt_batch_set: fresh is 101 in slot 0; 0 to 100 (max_rows) are allowed", kt_batch_set(batch, 0, a.handle, 101, -1));
    FAILS(KT_INVALID, "kt_batch_set: slot 0 has rows 98 to 102; the batch has rows 0 to 99 (max_rows)",
          kt_batch_set(batch, 0, a.handle, 5, 98));
    FAILS(KT_STALE, "kt_batch_set: sequence 0x700000001 is not open in this cache: it was closed, or never opened here",
          kt_batch_set(batch, 0, 0x700000001, 1, -1));
    OK(kt_batch_set(batch, 0, a.handle, 60, -1));
    FAILS(KT_INVALID, "kt_batch_set: sequence 0x100000001 is in slot 0 already; empty that slot first",
          kt_batch_set(batch, 1, a.handle, 1, -1));
    OK(kt_batch_set(batch, 1, b.handle, 60, -1));
    FAILS(KT_INVALID, "kt_step_begin: slot 1 has rows 60 to 119; the batch has rows 0 to 99 (max_rows)", kt_step_begin(batch, NULL));
    OK(kt_batch_set(batch, 1, b.handle, 20, 59));
    FAILS(KT_INVALID, "kt_step_begin: row 59 belongs to slots 0 and 1; give them rows of their own", kt_step_begin(batch, NULL));
    other = ref_batch(&world, 1, 50, 100);
    OK(kt_batch_set(other, 0, a.handle, 51, -1));
    FAILS(KT_INVALID, "kt_step_begin: the sequence in slot 0 has 0 tokens and 51 new ones; the batch was opened for 50 (max_tokens)",
          kt_step_begin(other, NULL));
    FAILS(KT_INVALID, "kt_batch_upload: slot 0 has fresh 60; a captured step brings at most one token per slot",
          (kt_batch_set(batch, 1, 0, 0, -1), kt_batch_upload(batch, NULL)));

    FAILS(KT_ORDER, "kt_append: the batch has no open step; call kt_step_begin first",
          kt_append(batch, &(kt_append_args){.size = sizeof(kt_append_args)}));
    FAILS(KT_ORDER, "kt_step_commit: the batch has no open step", kt_step_commit(batch));
    FAILS(KT_ORDER, "kt_step_abort: the batch has no open step", kt_step_abort(batch));
    FAILS(KT_ORDER, "kt_step_replayed: no step of this batch was captured", kt_step_replayed(batch, 1));
    FAILS(KT_INVALID, "kt_sequence_reserve: tokens is -5; it cannot be negative", kt_sequence_reserve(world.cache, a.handle, -5));
    OK(kt_sequence_close(world.cache, b.handle));
    FAILS(KT_STALE, "kt_sequence_close: sequence 0x100000002 is not open in this cache: it was closed, or never opened here",
          kt_sequence_close(world.cache, b.handle));
    ref_join(&world, &b, 0); // the same place, another generation
    ck_assert_uint_eq(b.handle, 0x200000002);
    float out[64];
    FAILS(KT_INVALID, "kt_read: tokens 0 to 0; the sequence has 0", kt_read(world.cache, a.handle, 0, 0, KT_KEY, 0, 1, out));
    FAILS(KT_INVALID, "kt_read: layer is 2; the cache has layers 0 to 1", kt_read(world.cache, a.handle, 2, 0, KT_KEY, 0, 0, out));
    FAILS(KT_INVALID, "kt_read: kv_head is -1; the cache has KV heads 0 to 1", kt_read(world.cache, a.handle, 0, -1, KT_KEY, 0, 0, out));
    FAILS(KT_INVALID, "kt_read_block: page is 0; the sequence has 0 sealed key pages", kt_read_block(world.cache, a.handle, 0, 0, 0, out));
    kt_batch_close(other);
    kt_batch_close(batch);
    ref_close(&world);
}
END_TEST

START_TEST(refusals_in_steps)
{
    ref_open(&world, "kitty", 64, 2, KT_F16, 128, 8, 2, 0);
    batch = ref_batch(&world, 2, 500, 100);
    kt_batch *other = ref_batch(&world, 1, 500, 100);
    ref_sequence a;
    ref_join(&world, &a, 0);
    ref_buffers b;
    ref_fill(&world, batch, (ref_sequence *[]){&a}, (int[]){3}, 1, &b);
    OK(kt_batch_set(other, 0, a.handle, 1, -1));
    OK(kt_step_begin(batch, NULL));
    FAILS(KT_ORDER, "kt_step_begin: the batch has an open step; commit or abort it first", kt_step_begin(batch, NULL));
    FAILS(KT_ORDER, "kt_step_begin: the sequence in slot 0 is part of an open step of another batch", kt_step_begin(other, NULL));
    FAILS(KT_ORDER, "kt_batch_set: the batch has an open step; commit or abort it first", kt_batch_set(batch, 1, 0, 0, -1));
    FAILS(KT_ORDER, "kt_batch_upload: the batch has an open step; commit or abort it first", kt_batch_upload(batch, NULL));
    FAILS(KT_ORDER, "kt_sequence_close: sequence 0x100000001 is part of an open step; commit or abort it first",
          kt_sequence_close(world.cache, a.handle));
    FAILS(KT_ORDER, "kt_sequence_reserve: sequence 0x100000001 is part of an open step; commit or abort it first",
          kt_sequence_reserve(world.cache, a.handle, 10));

    kt_append_args append = {.size = sizeof append, .layer = 2, .key = b.key, .value = b.value};
    FAILS(KT_INVALID, "kt_append: layer is 2; the cache has layers 0 to 1", kt_append(batch, &append));
    append.layer = 0;
    append.value = NULL;
    FAILS(KT_INVALID, "kt_append: layer 0: value is null", kt_append(batch, &append));
    append.value = b.value;
    append.key_row = 132;
    FAILS(KT_INVALID, "kt_append: layer 0: key_row is 132; strides are multiples of 8, at least head_dim (64), or 0 for contiguous",
          kt_append(batch, &append));
    append.key_row = 0;
    append.value_head = 8;
    FAILS(KT_INVALID, "kt_append: layer 0: value_head is 8; strides are multiples of 8, at least head_dim (64), or 0 for contiguous",
          kt_append(batch, &append));
    append.value_head = 0;
    append.key = b.key + 1;
    ck_assert_int_eq(kt_append(batch, &append), KT_INVALID);
    ck_assert(strstr(kt_message(), "it must be aligned to 16 bytes"));
    append.size = 1;
    FAILS(KT_INVALID, "kt_append: size is 1; set it to sizeof(kt_append_args), 72 in this version (0.1.0)", kt_append(batch, &append));

    kt_attend_args attend = {.size = sizeof attend, .query = b.query, .out = b.out};
    FAILS(KT_ORDER, "kt_attend: layer 0 was not appended yet in this step", kt_attend(batch, &attend));
    FAILS(KT_ORDER, "kt_step_commit: layer 0 was not appended; a step goes through all 2 layers", kt_step_commit(batch));
    OK(ref_append(&world, batch, 0, &b));
    FAILS(KT_ORDER, "kt_append: layer 0 was appended already in this step", ref_append(&world, batch, 0, &b));
    attend.window = 512;
    FAILS(KT_UNSUPPORTED, "kt_attend: layer 0: window is 512; sliding windows are not supported yet, set it to 0",
          kt_attend(batch, &attend));
    attend.window = 0;
    attend.softcap = 50;
    FAILS(KT_UNSUPPORTED, "kt_attend: layer 0: softcap is 50; soft caps are not supported yet, set it to 0", kt_attend(batch, &attend));
    attend.softcap = 0;
    attend.scale = -2;
    FAILS(KT_INVALID, "kt_attend: layer 0: scale is -2; it must be positive, or 0 for 1 / sqrt(64)", kt_attend(batch, &attend));
    attend.scale = 0;
    attend.flags = 6;
    FAILS(KT_INVALID, "kt_attend: layer 0: flags is 0x6; only KT_ATTEND_REFERENCE (0x1) is known", kt_attend(batch, &attend));
    attend.flags = 0;
    attend.out = NULL;
    FAILS(KT_INVALID, "kt_attend: layer 0: out is null", kt_attend(batch, &attend));
    OK(ref_attend_layer(&world, batch, 0, &b));
    OK(ref_attend_layer(&world, batch, 0, &b)); // as often as you like
    FAILS(KT_ORDER, "kt_append: layer 0 was appended already in this step", ref_append(&world, batch, 0, &b));
    FAILS(KT_ORDER, "kt_step_commit: layer 1 was not appended; a step goes through all 2 layers", kt_step_commit(batch));
    OK(ref_append(&world, batch, 1, &b));
    OK(kt_step_commit(batch)); // none of it did any harm, and layer 1 need not be attended
    a.tokens = 3;
    ref_verify(&world, &a);
    ref_buffers_free(&b);
    kt_batch_close(other);
    kt_batch_close(batch);
    ref_close(&world);
}
END_TEST

// What a calibration gives, and all that a spec can say of scales: attention is that over what kt_read has, pages are what is sealed alone.
START_TEST(calibrated)
{
    ref_world world;
    ref_sequence a;
    kg_spec spec;
    kt_cache *cache;
    ck_assert(ref_spec("kitty-pro", 64, 2, KT_F16, 64, &spec));
    snprintf(spec.calibration_path, sizeof spec.calibration_path, "%s/emulate/calibration.safetensors", ref_data());
    if (_i) {
        spec.key.boost_fraction = 0, spec.key.boost_bits = spec.key.bits = 3;
        spec.key.along = spec.value.along = 1;
        spec.key.group = 32, spec.value.group = 64;
        spec.key.metadata = spec.value.metadata = 1;
        spec.value.bits = 1;
    } else {
        spec.key.score = KG_SCORE_STATIC;
        spec.key.range = spec.value.range = 1;
    }
    spec.key.rotation = 2, spec.value.rotation = 2 - _i;
    spec.value.window = 32;
    ref_open_spec(&world, &spec, 12, 2, 1);
    kt_batch *batch = ref_batch(&world, 1, 400, 256);
    ref_join(&world, &a, 11);
    const int fresh[] = {190, 1, 60, 5, 1, 1};
    for (int i = 0; i < 6; i++)
        ref_step(&world, batch, (ref_sequence *[]){&a}, &fresh[i], 1, i > 0);
    ref_verify(&world, &a);
    FAILS(KT_INVALID, "kt_cache_open: layers is 3, kv_heads 2; test.kitty-pro is calibrated for 2 layers of 2 KV heads",
          kt_cache_open(world.engine, &(kt_cache_args){.size = sizeof(kt_cache_args), .layers = 3, .max_sequences = 1, .budget_bytes = 1 << 30}, &cache));
    kt_batch_close(batch);
    ref_close(&world);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("api");
    TCase *tcase = tcase_create("api");
    tcase_set_timeout(tcase, 240);
    tcase_add_loop_test(tcase, serving, 0, 4);
    tcase_add_loop_test(tcase, several_tokens, 0, 3);
    tcase_add_loop_test(tcase, any_number, 0, 20);
    tcase_add_test(tcase, abort_restores);
    tcase_add_test(tcase, no_allocation);
    tcase_add_test(tcase, strides_and_rows);
    tcase_add_test(tcase, nonfinite_counts);
    tcase_add_test(tcase, out_of_pages);
    tcase_add_test(tcase, budget);
    tcase_add_test(tcase, refusals_outside_steps);
    tcase_add_test(tcase, refusals_in_steps);
    tcase_add_loop_test(tcase, calibrated, 0, 2);
    suite_add_tcase(suite, tcase);
    return run_suite(suite);
}
