// Steps against a model of them: a random stress of the transactions, captured steps and their replays, and failures of the
// device at every call.
#include "reference.h"
#include "suite.h"

#include <stdlib.h>
#include <string.h>

#include "recorder.h"

static ref_world world;

// ---- stress ----

enum { SEQUENCES = 6, PAGES = 24, SPARES = 2, MAX_TOKENS = 400 };

// What the model knows of a sequence.
typedef struct {
    ref_sequence sequence;
    bool open;
    int reserved; // pages that it holds
} member;

static member members[SEQUENCES];

static int pages_for(int tokens) { return ref_pages(&world, tokens); }

// Whether the exact tokens of a layer do not fit its rings.
static bool overflows(const kt_format *f, int tokens, int fresh)
{
    const int keys = tokens - f->sink - kt_sealed(f, KT_KEY, tokens) * f->page;
    const int values = tokens - f->sink - kt_sealed(f, KT_VALUE, tokens) * f->page;
    return (keys > 0 && keys + fresh > f->key_ring) || (values > 0 && values + fresh > f->value_ring);
}

static void check_pools(void)
{
    int held = 0, open = 0;
    for (int i = 0; i < SEQUENCES; i++)
        if (members[i].open) {
            int tokens;
            held += members[i].reserved;
            open++;
            OK(kt_sequence_tokens(world.cache, members[i].sequence.handle, &tokens));
            ck_assert_int_eq(tokens, members[i].sequence.tokens);
        }
    kt_cache_info info = {.size = sizeof info};
    OK(kt_cache_query(world.cache, &info));
    ck_assert_int_eq(info.free_pages, PAGES - held);
    ck_assert_int_eq(info.free_slabs, SEQUENCES + SPARES - open);
    ck_assert_int_eq(info.sequences, open);
}

// A step with a random choice of sequences; it is committed, aborted on the way, or refused as the model foresees.
static void random_step(uint64_t *seed, kt_batch *batch, int slots)
{
    ref_sequence *sequences[SEQUENCES] = {NULL};
    int fresh[SEQUENCES] = {0}, pages = 0, spares = 0, rows = 0;
    bool used[SEQUENCES] = {false}, too_long = false;
    for (int slot = 0; slot < slots; slot++) {
        const int m = (int)(ref_random(seed) % SEQUENCES);
        if (!members[m].open || used[m])
            continue;
        used[m] = true;
        sequences[slot] = &members[m].sequence;
        fresh[slot] = (int)(ref_random(seed) % 3 ? ref_random(seed) % 3 : ref_random(seed) % 90);
        const int tokens = members[m].sequence.tokens, more = pages_for(tokens + fresh[slot]) - members[m].reserved;
        pages += fresh[slot] && more > 0 ? more : 0;
        spares += fresh[slot] && (overflows(ref_format_of(&world, 0), tokens, fresh[slot]) || overflows(ref_format_of(&world, 1), tokens, fresh[slot]));
        too_long |= fresh[slot] && tokens + fresh[slot] > MAX_TOKENS;
        rows += fresh[slot];
    }
    kt_cache_info info = {.size = sizeof info};
    OK(kt_cache_query(world.cache, &info));
    ref_buffers b;
    ref_fill(&world, batch, sequences, fresh, slots, &b);
    const kt_status status = kt_step_begin(batch, NULL);
    ck_assert_int_eq(status, too_long ? KT_INVALID : pages > info.free_pages || spares > SPARES ? KT_FULL : KT_OK);
    if (!status) {
        const int calls = (int)(ref_random(seed) % 8); // 4 or more: the whole step
        for (int n = 0; n < calls && n < 4; n += rows < 20 ? 1 : 2) // attention where it is looked at
            OK(n % 2 ? ref_attend_layer(&world, batch, n / 2, &b) : ref_append(&world, batch, n / 2, &b));
        if (calls >= 4 && rows < 20)
            ref_check(&world, sequences, fresh, slots, &b);
        OK(calls >= 4 ? kt_step_commit(batch) : kt_step_abort(batch));
        for (int slot = 0; calls >= 4 && slot < slots; slot++)
            if (sequences[slot] && fresh[slot]) {
                member *m = (member *)sequences[slot];
                m->sequence.tokens += fresh[slot];
                m->reserved = pages_for(m->sequence.tokens) > m->reserved ? pages_for(m->sequence.tokens) : m->reserved;
            }
    }
    ref_buffers_free(&b);
}

START_TEST(stress)
{
    uint64_t seed = 1000 + (unsigned)_i;
    kg_spec spec;
    ck_assert(ref_spec("range", 64, 2, _i % 2, 32, &spec));
    if (_i == 3)
        ref_mix(&spec);
    ref_open_spec(&world, &spec, PAGES, SEQUENCES, SPARES);
    memset(members, 0, sizeof members);
    kt_batch *batches[] = {ref_batch(&world, 3, MAX_TOKENS, 300), ref_batch(&world, 4, MAX_TOKENS, 400)};
    for (int round = 0; round < 600; round++) {
        member *m = &members[ref_random(&seed) % SEQUENCES];
        const unsigned action = (unsigned)(ref_random(&seed) % 20);
        if (!m->open) {
            ref_join(&world, &m->sequence, (int)(ref_random(&seed) % REF_STREAM));
            m->open = true;
            m->reserved = 0;
        } else if (action == 0) {
            ref_verify(&world, &m->sequence);
            OK(kt_sequence_close(world.cache, m->sequence.handle));
            m->open = false;
        } else if (action == 1) {
            const int tokens = (int)(ref_random(&seed) % MAX_TOKENS), pages = pages_for(tokens);
            kt_cache_info info = {.size = sizeof info};
            OK(kt_cache_query(world.cache, &info));
            const kt_status status = kt_sequence_reserve(world.cache, m->sequence.handle, tokens);
            ck_assert_int_eq(status, pages - m->reserved > info.free_pages ? KT_FULL : KT_OK);
            m->reserved = !status && pages > m->reserved ? pages : m->reserved;
        } else {
            const int which = (int)(ref_random(&seed) % 2);
            random_step(&seed, batches[which], which ? 4 : 3);
        }
        check_pools();
    }
    for (int i = 0; i < SEQUENCES; i++)
        if (members[i].open) {
            ref_verify(&world, &members[i].sequence);
            OK(kt_sequence_close(world.cache, members[i].sequence.handle));
            members[i].open = false;
        }
    check_pools();
    kt_batch_close(batches[0]);
    kt_batch_close(batches[1]);
    ref_close(&world);
}
END_TEST

// ---- captured steps ----

START_TEST(captured)
{
    enum { SLOTS = 3, ROUNDS = 300 };
    kg_spec spec;
    ck_assert(ref_spec("kitty", 64, 2, KT_F16, 128, &spec));
    if (_i)
        ref_mix(&spec);
    ref_open_spec(&world, &spec, 12, 3, 1);
    recorder_install(&world);
    kt_batch *batch = ref_batch(&world, SLOTS, 700, 300);
    ref_sequence a, b;
    ref_join(&world, &a, 0);
    ref_join(&world, &b, 300);
    ref_sequence *const both[SLOTS] = {&a, NULL, &b};
    ref_step(&world, batch, both, (int[]){150, 0, 30}, SLOTS, false);

    ref_buffers buffers;
    ref_fill(&world, batch, both, (int[]){1, 0, 1}, SLOTS, &buffers);
    recorder.capturing = true;
    ck_assert_int_eq(kt_step_begin(batch, NULL), KT_ORDER);
    ck_assert(strstr(kt_message(), "call kt_batch_upload before"));
    ck_assert_int_eq(kt_batch_upload(batch, NULL), KT_ORDER);
    recorder.capturing = false;
    OK(kt_sequence_reserve(world.cache, a.handle, a.tokens + ROUNDS));
    OK(kt_sequence_reserve(world.cache, b.handle, b.tokens + ROUNDS));
    ck_assert_int_eq(kt_step_replayed(batch, 1), KT_ORDER);
    recorder_capture(&world, batch, &buffers);
    ck_assert_int_eq(recorder.count, 2 + 2 * 2 + 1);
    ref_verify(&world, &a); // nothing has run

    for (int i = 0; i < ROUNDS; i++) {
        recorder_refill(&world, &buffers, both, SLOTS);
        recorder_replay(&world);
        if (i % 50 == 0)
            ref_check(&world, both, (int[]){1, 0, 1}, SLOTS, &buffers); // kt_read still gives the tokens before
        OK(kt_step_replayed(batch, 1));
        a.tokens++, b.tokens++;
    }
    ref_verify(&world, &a);
    ref_verify(&world, &b);
    // Eager steps in between need another upload.
    ref_step(&world, batch, both, (int[]){1, 0, 0}, SLOTS, true);
    OK(kt_batch_set(batch, 0, a.handle, 1, -1));
    OK(kt_batch_set(batch, 2, b.handle, 1, -1));
    ck_assert_int_eq(kt_step_replayed(batch, 1), KT_ORDER);
    ck_assert(strstr(kt_message(), "slot 2 has changed since kt_batch_upload"));
    OK(kt_batch_set(batch, 2, b.handle, 1, 200));
    ck_assert_int_eq(kt_batch_upload(batch, NULL), KT_INVALID);
    ck_assert_str_eq(kt_message(), "kt_batch_upload: the slots have rows up to 200; a step of this batch was captured for rows 0 to 2");
    OK(kt_batch_set(batch, 2, b.handle, 1, -1));
    OK(kt_batch_upload(batch, NULL));

    // Past the reservation the device refuses, and says so.
    kt_poll_info poll = {.size = sizeof poll};
    const int room = 32 + 3 * 128 - 1 - b.tokens; // b holds two pages; a has more room
    for (int i = 0; i < room + 3; i++) {
        recorder_refill(&world, &buffers, both, SLOTS);
        recorder_replay(&world);
        if (i < room)
            a.tokens++, b.tokens++;
    }
    OK(kt_poll(batch, &poll));
    ck_assert_int_eq(poll.overruns, 3);
    ck_assert_int_eq(kt_step_replayed(batch, room + 3), KT_FULL);
    ck_assert_str_eq(kt_message(), "kt_step_replayed: 88 replays, but slot 2 had room for 85 (its reservation holds 415 tokens); the "
                     "others changed nothing and are counted as overruns");
    ref_verify(&world, &a);
    ref_verify(&world, &b);
    ref_step(&world, batch, both, (int[]){20, 0, 1}, SLOTS, true);
    ref_verify(&world, &a);
    ref_buffers_free(&buffers);
    kt_batch_close(batch);
    ref_close(&world);
}
END_TEST

// ---- failures ----

// Every upload, launch and mirror of a step fails once; the step is refused or goes on, and nothing is lost.
START_TEST(device_failures)
{
    ref_open(&world, "kitty", 64, 2, KT_F16, 128, 8, 2, 1);
    recorder_install(&world);
    kt_batch *batch = ref_batch(&world, 2, 900, 300);
    ref_sequence a, b;
    ref_join(&world, &a, 0);
    ref_join(&world, &b, 40);
    ref_sequence *const both[] = {&a, &b};
    ref_step(&world, batch, both, (int[]){170, 20}, 2, false);
    for (int at = 0, failed = 1; failed; at++) {
        kt_cache_info before = {.size = sizeof before}, after = {.size = sizeof after};
        OK(kt_cache_query(world.cache, &before));
        ref_buffers buffers;
        ref_fill(&world, batch, both, (int[]){130, 1}, 2, &buffers);
        recorder.until_failure = at;
        kt_status status = kt_step_begin(batch, NULL);
        const bool begun = !status;
        for (int n = 0; !status && n < 4; n++)
            status = n % 2 ? ref_attend_layer(&world, batch, n / 2, &buffers) : ref_append(&world, batch, n / 2, &buffers);
        if (!status)
            status = kt_step_commit(batch);
        recorder.until_failure = -1;
        failed = status != KT_OK;
        if (failed) {
            ck_assert_int_eq(status, KT_DEVICE);
            ck_assert_msg(strstr(kt_message(), " refused"), "%s", kt_message());
            ck_assert_int_eq(kt_step_abort(batch), begun ? KT_OK : KT_ORDER);
            OK(kt_cache_query(world.cache, &after));
            ck_assert_int_eq(before.free_pages, after.free_pages);
            ck_assert_int_eq(before.free_slabs, after.free_slabs);
        } else {
            ck_assert_int_ge(at, 8); // slots, two rows at most, check, 4 launches, advance, mirror
            a.tokens += 130, b.tokens++;
        }
        ref_verify(&world, &a);
        ref_verify(&world, &b);
        ref_buffers_free(&buffers);
    }
    ref_step(&world, batch, both, (int[]){100, 150}, 2, true);
    ref_verify(&world, &a);
    ref_verify(&world, &b);
    kt_batch_close(batch);
    ref_close(&world);
}
END_TEST

// A steady decode step uploads nothing: three launches and the mirror, besides the layers.
START_TEST(steady_state)
{
    ref_open(&world, "kitty", 64, 2, KT_F16, 128, 8, 1, 0);
    recorder_install(&world);
    kt_batch *batch = ref_batch(&world, 1, 900, 300);
    ref_sequence a;
    ref_join(&world, &a, 0);
    OK(kt_sequence_reserve(world.cache, a.handle, 900));
    ref_step(&world, batch, (ref_sequence *[]){&a}, (int[]){100}, 1, false);
    ref_step(&world, batch, (ref_sequence *[]){&a}, (int[]){1}, 1, false);
    for (int i = 0; i < 200; i++) {
        ref_buffers b;
        ref_fill(&world, batch, (ref_sequence *[]){&a}, (int[]){1}, 1, &b);
        recorder.until_failure = 1 << 20;
        OK(kt_step_begin(batch, NULL));
        for (int n = 0; n < 4; n++)
            OK(n % 2 ? ref_attend_layer(&world, batch, n / 2, &b) : ref_append(&world, batch, n / 2, &b));
        OK(kt_step_commit(batch));
        ck_assert_int_eq((1 << 20) - recorder.until_failure, 1 + 4 + 1 + 1);
        a.tokens++;
        ref_buffers_free(&b);
    }
    ref_verify(&world, &a);
    kt_batch_close(batch);
    ref_close(&world);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("steps");
    TCase *tcase = tcase_create("steps");
    tcase_set_timeout(tcase, 240);
    tcase_add_loop_test(tcase, stress, 0, 4);
    tcase_add_loop_test(tcase, captured, 0, 2);
    tcase_add_test(tcase, device_failures);
    tcase_add_test(tcase, steady_state);
    suite_add_tcase(suite, tcase);
    return run_suite(suite);
}
