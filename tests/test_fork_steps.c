// Forks and truncation among other things: steps that are aborted or fail, captured steps, exhausted pools, misuse, and a random walk.
#include <stdlib.h>
#include <string.h>

#include "forking.h"

// ---- transactions ----

// Steps of a fork are transactions as well: aborted or failed at any call, shared pages are shared as before.
START_TEST(fork_steps)
{
    open_world(32, 0, 128, 40, 3, 2);
    recorder_install(&world);
    batch = ref_batch(&world, 3, 700, 600);
    ref_sequence a, b;
    ref_join(&world, &a, 0);
    step(&a, 32 + 128 + 31); // the next token seals the values of a page whose keys are sealed
    for (int at = 0; at < 3; at++) {
        recorder.until_failure = 0;
        FAILS(KT_DEVICE, "kt_sequence_fork: copy refused", kt_sequence_fork(world.cache, a.handle, NULL, &b.handle));
        check_counts();
        ck_assert_int_eq(query().sequences, 1);
    }
    recorder.until_failure = -1;
    forked(&a, &b);
    ref_turn(&b, 500);
    const kt_cache_info before = query();
    for (int at = 0, failed = 1; failed; at++) {
        ref_buffers buffers;
        ref_fill(&world, batch, (ref_sequence *[]){&a, &b}, (int[]){2, 70}, 2, &buffers);
        recorder.until_failure = at;
        kt_status status = kt_step_begin(batch, NULL);
        for (int layer = 0; layer < 2 && !status; layer++)
            status = ref_append(&world, batch, layer, &buffers);
        if (!status)
            status = kt_step_commit(batch);
        recorder.until_failure = -1;
        failed = status != KT_OK;
        if (failed) {
            kt_step_abort(batch);
            ck_assert_int_eq(query().free_pages, before.free_pages);
            ck_assert_int_eq(query().free_slabs, before.free_slabs);
            check_counts();
        } else {
            ck_assert_int_ge(at, 7); // copies of 3 pages, upload, check, 2 launches, advance, mirror
            a.tokens += 2, b.tokens += 70;
        }
        ref_verify(&world, &a);
        ref_verify(&world, &b);
        ref_buffers_free(&buffers);
    }
    // Each sealed into pages of its own; the one before has no user left.
    check_counts();
    end(&a);
    ref_verify(&world, &b);
    end(&b);
    check_empty();
    close_world();
}
END_TEST

// What a step in place has written over is not gone back to once the step is aborted.
START_TEST(abort_in_place)
{
    open_world(32, 0, 0, 10, 1, 1);
    batch = ref_batch(&world, 1, 300, 300);
    ref_sequence a;
    ref_buffers b;
    ref_join(&world, &a, 0);
    step(&a, 63);
    step(&a, 1); // completes a page
    ref_fill(&world, batch, (ref_sequence *[]){&a}, (int[]){1}, 1, &b);
    OK(kt_step_begin(batch, NULL));
    OK(kt_step_abort(batch));
    ck_assert_int_eq(undo_of(&a), 63); // nothing was written
    OK(kt_step_begin(batch, NULL));
    OK(ref_append(&world, batch, 0, &b));
    OK(kt_step_abort(batch));
    ck_assert_int_eq(undo_of(&a), 64);
    FAILS(KT_UNSUPPORTED, "kt_sequence_truncate: tokens is 63, where a sealed page would be needed exact again; possible for this sequence "
          "are 64 to 64", kt_sequence_truncate(world.cache, a.handle, 63));
    ref_buffers_free(&b);
    ref_verify(&world, &a);
    // Where nothing was sealed, nothing is lost; nor where the step went to another slab.
    step(&a, 1);
    ref_fill(&world, batch, (ref_sequence *[]){&a}, (int[]){40}, 1, &b);
    OK(kt_step_begin(batch, NULL));
    OK(ref_append(&world, batch, 0, &b));
    OK(kt_step_abort(batch));
    ref_buffers_free(&b);
    ck_assert_int_eq(undo_of(&a), 64);
    truncated(&a, 64);
    ref_verify(&world, &a);
    close_world();
}
END_TEST

// ---- slabs that are kept ----

START_TEST(kept_slabs)
{
    open_world(32, 0, 0, 60, 4, 2);
    batch = ref_batch(&world, 4, 900, 900);
    ref_sequence s[4], fork;
    for (int i = 0; i < 3; i++) {
        ref_join(&world, &s[i], 100 * i);
        step(&s[i], 50);
    }
    step(&s[0], 40);
    step(&s[1], 40);
    ck_assert_int_eq(query().free_slabs, 3); // two of them kept
    ck_assert_int_eq(world.cache->free_slab_count, 1);
    ck_assert_int_eq(undo_of(&s[0]), 50);
    ck_assert_int_eq(undo_of(&s[1]), 50);
    step(&s[2], 40);
    ck_assert_int_eq(world.cache->free_slab_count, 0);
    forked(&s[0], &fork); // takes the oldest, s[0]'s own
    ck_assert_int_eq(undo_of(&s[0]), least_of(90));
    ck_assert_int_eq(undo_of(&s[1]), 50);
    FAILS(KT_UNSUPPORTED, "kt_sequence_truncate: tokens is 50, where a sealed page would be needed exact again; possible for this sequence "
          "are 64 to 90", kt_sequence_truncate(world.cache, s[0].handle, 50));
    FAILS(KT_UNSUPPORTED, "kt_sequence_truncate: tokens is 60, where a sealed page would be needed exact again; possible for this sequence "
          "are 64 to 90, and 0 to 50, before its last step", kt_sequence_truncate(world.cache, s[1].handle, 60));
    step(&s[0], 1);
    step(&s[0], 40); // takes s[1]'s
    ck_assert_int_eq(undo_of(&s[1]), 64);
    ck_assert_int_eq(undo_of(&s[0]), 91);
    step(&s[0], 40); // s[2]'s is older than its own
    ck_assert_int_eq(undo_of(&s[2]), 64);
    // A step with all the spares there are, and one that is aborted.
    ref_step(&world, batch, (ref_sequence *[]){&s[1], &s[2]}, (int[]){40, 40}, 2, true);
    ck_assert_int_eq(undo_of(&s[1]), 90);
    ck_assert_int_eq(undo_of(&s[2]), 90);
    ref_buffers b;
    ref_fill(&world, batch, (ref_sequence *[]){&s[1], &fork}, (int[]){40, 1}, 2, &b);
    OK(kt_step_begin(batch, NULL));
    OK(ref_append(&world, batch, 0, &b));
    OK(kt_step_abort(batch));
    ref_buffers_free(&b);
    ck_assert_int_eq(undo_of(&s[2]), 90);
    truncated(&s[2], 90);
    for (int i = 0; i < 3; i++)
        ref_verify(&world, &s[i]);
    ref_verify(&world, &fork);
    check_counts();
    for (int i = 0; i < 3; i++)
        end(&s[i]);
    end(&fork);
    check_empty();
    close_world();
}
END_TEST

// ---- pools ----

START_TEST(exhausted)
{
    open_world(32, 0, 32, 4, 3, 0);
    batch = ref_batch(&world, 2, 300, 300);
    ref_sequence a, b, c;
    ref_join(&world, &a, 0);
    step(&a, 32 + 32 + 31 + 32); // 2 key pages, 1 value page: the next token seals the second one's values
    OK(kt_sequence_reserve(world.cache, a.handle, 32 + 3 * 32));
    forked(&a, &b);
    ref_join(&world, &c, 0);
    OK(kt_sequence_reserve(world.cache, c.handle, 64));
    FAILS(KT_FULL, "kt_sequence_fork: all 3 sequences are open (max_sequences); close one first",
          kt_sequence_fork(world.cache, a.handle, NULL, &(kt_sequence){0}));
    ck_assert_int_eq(query().free_pages, 0);
    OK(kt_batch_set(batch, 0, a.handle, 1, -1));
    const kt_status status = kt_step_begin(batch, NULL); // its new page is reserved, but not the copy of the one shared
    ck_assert_int_eq(status, KT_FULL);
    ck_assert_str_eq(kt_message(), "kt_step_begin: the step needs 1 more pages; 0 of 4 are free. Close a sequence or open the cache with a "
                     "larger budget");
    FAILS(KT_FULL, "kt_batch_upload: replays will seal values into 1 pages that forks share, and need copies of them; 0 of 4 pages are free",
          kt_batch_upload(batch, NULL));
    check_counts();
    end(&b); // no longer shared
    step(&a, 1);
    ref_verify(&world, &a);
    end(&a);
    end(&c);
    check_empty();
    close_world();
}
END_TEST

// ---- captured steps ----

// Replays over page turns, with forks and truncation in between, each followed by an upload.
START_TEST(replays)
{
    open_world(32, 0, 32, 40, 3, 1);
    recorder_install(&world);
    batch = ref_batch(&world, 1, 600, 300);
    ref_sequence a, b;
    ref_buffers buffers;
    ref_join(&world, &a, 0);
    step(&a, 120);
    OK(kt_sequence_reserve(world.cache, a.handle, 400));
    ref_fill(&world, batch, (ref_sequence *[]){&a}, (int[]){1}, 1, &buffers);
    OK(kt_batch_upload(batch, NULL));
    recorder.capturing = true;
    FAILS(KT_ORDER, "kt_sequence_fork: the stream is under graph capture, and a replay would copy again; fork outside of it",
          kt_sequence_fork(world.cache, a.handle, NULL, &b.handle));
    OK(kt_step_begin(batch, NULL));
    for (int layer = 0; layer < 2; layer++)
        OK(ref_append(&world, batch, layer, &buffers));
    OK(kt_step_commit(batch));
    recorder.capturing = false;
    for (int round = 0; round < 12; round++) {
        for (int i = 0; i < 9; i++, a.tokens++) { // pages turn at any place in a round
            recorder_refill(&world, &buffers, (ref_sequence *[]){&a}, 1);
            recorder_replay(&world);
            OK(kt_step_replayed(batch, 1));
            ck_assert_int_eq(undo_of(&a), a.tokens);
        }
        ref_verify(&world, &a);
        if (round % 3 == 1) {
            if (round > 1)
                end(&b);
            forked(&a, &b);
        } else {
            truncated(&a, a.tokens - 1);
            ref_turn(&a, 100 * round);
        }
        FAILS(KT_ORDER, "kt_step_replayed: slot 0 has changed since kt_batch_upload; what was replayed is not what the host has",
              kt_step_replayed(batch, 1));
        OK(kt_batch_upload(batch, NULL));
        check_counts();
        if (round)
            ref_verify(&world, &b);
    }
    ref_verify(&world, &a);
    ck_assert_int_gt(a.tokens, 200);
    ref_buffers_free(&buffers);
    end(&a);
    ref_verify(&world, &b);
    end(&b);
    check_empty();
    close_world();
}
END_TEST

// ---- misuse ----

START_TEST(refusals)
{
    open_world(32, 0, 0, 10, 3, 0);
    batch = ref_batch(&world, 1, 300, 300);
    ref_sequence a, b;
    kt_sequence fork = 77;
    int least;
    ref_join(&world, &a, 0);
    ref_join(&world, &b, 0);
    end(&b);
    FAILS(KT_INVALID, "kt_sequence_fork: cache is null", kt_sequence_fork(NULL, a.handle, NULL, &fork));
    FAILS(KT_INVALID, "kt_sequence_fork: fork is null", kt_sequence_fork(world.cache, a.handle, NULL, NULL));
    FAILS(KT_STALE, "kt_sequence_fork: sequence 0x100000002 is not open in this cache: it was closed, or never opened here",
          kt_sequence_fork(world.cache, b.handle, NULL, &fork));
    FAILS(KT_INVALID, "kt_sequence_truncate: cache is null", kt_sequence_truncate(NULL, a.handle, 0));
    FAILS(KT_STALE, "kt_sequence_truncate: sequence 0x100000002 is not open in this cache: it was closed, or never opened here",
          kt_sequence_truncate(world.cache, b.handle, 0));
    FAILS(KT_INVALID, "kt_sequence_undo: least is null", kt_sequence_undo(world.cache, a.handle, NULL));
    FAILS(KT_INVALID, "kt_sequence_undo: cache is null", kt_sequence_undo(NULL, a.handle, &least));
    FAILS(KT_STALE, "kt_sequence_undo: sequence 0x100000002 is not open in this cache: it was closed, or never opened here",
          kt_sequence_undo(world.cache, b.handle, &least));
    ck_assert_int_eq(undo_of(&a), 0);
    truncated(&a, 0);
    step(&a, 30);
    FAILS(KT_INVALID, "kt_sequence_truncate: tokens is 31; 0 to 30, which the sequence has, are allowed",
          kt_sequence_truncate(world.cache, a.handle, 31));
    FAILS(KT_INVALID, "kt_sequence_truncate: tokens is -1; 0 to 30, which the sequence has, are allowed",
          kt_sequence_truncate(world.cache, a.handle, -1));
    ref_buffers buffers;
    ref_fill(&world, batch, (ref_sequence *[]){&a}, (int[]){1}, 1, &buffers);
    OK(kt_step_begin(batch, NULL));
    FAILS(KT_ORDER, "kt_sequence_truncate: sequence 0x100000001 is part of an open step; commit or abort it first",
          kt_sequence_truncate(world.cache, a.handle, 29));
    FAILS(KT_ORDER, "kt_sequence_fork: sequence 0x100000001 is part of an open step; commit or abort it first",
          kt_sequence_fork(world.cache, a.handle, NULL, &fork));
    ck_assert_uint_eq(fork, 77);
    OK(kt_step_abort(batch));
    ref_buffers_free(&buffers);
    ref_verify(&world, &a);
    end(&a);
    check_empty();
    close_world();
}
END_TEST

// ---- anything at any time ----

enum { MEMBERS = 6, MOST = 500 };
static ref_sequence members[MEMBERS];
static bool joined[MEMBERS];

// A sum of every byte of the pages that several sequences have now, by their list in `shared`, or of all those that have been listed.
static uint64_t sum_shared(bool *shared, bool list)
{
    const kt_cache *c = world.cache;
    uint64_t sum = 0;
    for (int page = 0; page < c->page_total; page++) {
        if (list)
            shared[page] = c->page_references[page] > 1;
        for (int layer = 0; layer < c->layers && shared[page]; layer++) {
            const size_t bytes = (size_t)c->kv_heads * (size_t)ref_format_of(&world, layer)->block_bytes;
            for (size_t i = 0; i < bytes; i++)
                sum = sum * 31 + kt__layer_pages(c, layer)[(size_t)page * bytes + i];
        }
    }
    return sum;
}

// A step of some members, committed, or aborted on the way; or refused, and then nothing has changed. Shared pages stay as they are.
static void walk_step(uint64_t *seed)
{
    ref_sequence *all[4] = {NULL};
    int fresh[4] = {0};
    bool too_long = false;
    for (int slot = 0; slot < 4; slot++) {
        const int m = (int)(ref_random(seed) % MEMBERS);
        if (!joined[m] || all[0] == &members[m] || all[1] == &members[m] || all[2] == &members[m])
            continue;
        all[slot] = &members[m];
        fresh[slot] = (int)(ref_random(seed) % 4 ? ref_random(seed) % 3 : ref_random(seed) % 80);
        too_long |= members[m].tokens + fresh[slot] > MOST && fresh[slot];
    }
    const kt_cache_info before = query();
    const bool abort = ref_random(seed) % 5 == 0;
    bool shared[64];
    const uint64_t sum = sum_shared(shared, true);
    ref_buffers b;
    ref_fill(&world, batch, all, fresh, 4, &b);
    kt_status status = kt_step_begin(batch, NULL);
    if (status)
        ck_assert_int_eq(status, too_long ? KT_INVALID : KT_FULL);
    for (int layer = 0; layer < 2 && !status; layer++)
        OK(abort && layer ? KT_OK : ref_append(&world, batch, layer, &b));
    if (!status)
        OK(abort ? kt_step_abort(batch) : kt_step_commit(batch));
    ck_assert_uint_eq(sum_shared(shared, false), sum);
    if (status || abort) {
        ck_assert_int_eq(query().free_pages, before.free_pages);
        ck_assert_int_eq(query().free_slabs, before.free_slabs);
    }
    for (int slot = 0; slot < 4; slot++)
        if (all[slot] && !status && !abort)
            all[slot]->tokens += fresh[slot];
    ref_buffers_free(&b);
}

static void walk_truncate(uint64_t *seed, int m)
{
    ref_sequence *s = &members[m];
    const int least = undo_of(s), floor = least_of(s->tokens), choice = (int)(ref_random(seed) % 4);
    const int tokens = choice == 0 ? least : choice == 1 ? (int)(ref_random(seed) % (unsigned)(s->tokens + 1)) :
                       choice == 2 ? floor : s->tokens - (s->tokens > 0);
    const bool possible = tokens >= floor || (tokens <= least && same_pages(tokens, least));
    const kt_status status = kt_sequence_truncate(world.cache, s->handle, tokens);
    ck_assert_msg(status == (possible ? KT_OK : KT_UNSUPPORTED), "%d to %d, least %d: %s", s->tokens, tokens, least, kt_message());
    if (status)
        return;
    s->tokens = tokens;
    ref_turn(s, (int)(ref_random(seed) % REF_STREAM));
}

START_TEST(walk)
{
    static const int windows[][2] = {{0, 0}, {0, 32}, {0, 129}, {31, 200}, {0, 1}};
    uint64_t seed = 77 + (unsigned)_i;
    memset(joined, 0, sizeof joined);
    (_i == 4 ? open_mixed_world : open_world)(_i % 2 ? 32 : 5, windows[_i][0], windows[_i][1], 40, MEMBERS, 2);
    batch = ref_batch(&world, 4, MOST, 400);
    for (int round = 0; round < 1500; round++) {
        const int m = (int)(ref_random(&seed) % MEMBERS), other = (int)(ref_random(&seed) % MEMBERS), action = (int)(ref_random(&seed) % 16);
        if (!joined[m]) {
            joined[m] = true;
            if (other != m && joined[other] && members[other].turns < REF_TURNS / 2)
                forked(&members[other], &members[m]);
            else
                ref_join(&world, &members[m], (int)(ref_random(&seed) % REF_STREAM));
            ref_turn(&members[m], (int)(ref_random(&seed) % REF_STREAM));
        } else if (action == 0 || members[m].turns > REF_TURNS - 2) {
            end(&members[m]);
            joined[m] = false;
        } else if (action == 1) {
            const kt_status status = kt_sequence_reserve(world.cache, members[m].handle, (int)(ref_random(&seed) % MOST));
            ck_assert(status == KT_OK || status == KT_FULL);
        } else if (action < 6) {
            walk_truncate(&seed, m);
        } else {
            walk_step(&seed);
        }
        check_counts();
        if (joined[other] && round % 8 == 0)
            ref_verify(&world, &members[other]);
    }
    for (int m = 0; m < MEMBERS; m++)
        if (joined[m]) {
            ref_verify(&world, &members[m]);
            end(&members[m]);
        }
    check_empty();
    close_world();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("fork_steps");
    TCase *tcase = tcase_create("fork_steps");
    tcase_set_timeout(tcase, 240);
    tcase_add_test(tcase, fork_steps);
    tcase_add_test(tcase, abort_in_place);
    tcase_add_test(tcase, kept_slabs);
    tcase_add_test(tcase, exhausted);
    tcase_add_test(tcase, replays);
    tcase_add_test(tcase, refusals);
    tcase_add_loop_test(tcase, walk, 0, 5);
    suite_add_tcase(suite, tcase);
    return run_suite(suite);
}
