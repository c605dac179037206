// Captured steps and what comes between them: aborts, failures, other captures, replays that the host is not told of; and steps of
// very many or very unequal slots.
#include <stdlib.h>
#include <string.h>

#include "recorder.h"
#include "suite.h"

static ref_world world;

static void replay_once(const ref_buffers *buffers, ref_sequence *s)
{
    recorder_refill(&world, buffers, (ref_sequence *[]){s}, 1);
    recorder_replay(&world);
}

// ---- reservations ----

// The page that an aborted or failed step had taken belongs to another sequence when the graph is replayed.
START_TEST(taken_back)
{
    ref_open(&world, "kitty", 64, 2, KT_F16, 128, 2, 2, 0);
    recorder_install(&world);
    kt_batch *batch = ref_batch(&world, 1, 600, 300), *other = ref_batch(&world, 1, 600, 300);
    ref_sequence a, b;
    ref_buffers buffers, eager;
    ref_join(&world, &a, 0);
    ref_join(&world, &b, 500);
    ref_step(&world, batch, (ref_sequence *[]){&a}, (int[]){150}, 1, false);
    ref_fill(&world, batch, (ref_sequence *[]){&a}, (int[]){1}, 1, &buffers);
    recorder_capture(&world, batch, &buffers);
    while (a.tokens < 159)
        ref_step(&world, batch, (ref_sequence *[]){&a}, (int[]){1}, 1, false);
    ref_fill(&world, batch, (ref_sequence *[]){&a}, (int[]){1}, 1, &eager); // the next token completes a page
    if (_i) {
        recorder.until_failure = 1; // the check, after the upload
        ck_assert_int_eq(kt_step_begin(batch, NULL), KT_DEVICE);
    } else {
        OK(kt_step_begin(batch, NULL));
        OK(ref_append(&world, batch, 0, &eager));
        OK(kt_step_abort(batch));
    }
    ref_step(&world, other, (ref_sequence *[]){&b}, (int[]){290}, 1, false); // takes both pages
    for (int i = 0; i < 3; i++)
        replay_once(&buffers, &a);
    ref_verify(&world, &b);
    ref_verify(&world, &a);
    FAILS(KT_ORDER, "kt_step_replayed: slot 0 has changed since kt_batch_upload; what was replayed is not what the host has",
          kt_step_replayed(batch, 3));
    OK(kt_sequence_close(world.cache, b.handle));
    OK(kt_sequence_reserve(world.cache, a.handle, 170));
    OK(kt_batch_upload(batch, NULL));
    for (int i = 0; i < 5; i++, a.tokens++) {
        replay_once(&buffers, &a);
        OK(kt_step_replayed(batch, 1));
    }
    ref_verify(&world, &a);
    ref_buffers_free(&buffers);
    ref_buffers_free(&eager);
    kt_batch_close(batch);
    kt_batch_close(other);
    ref_close(&world);
}
END_TEST

// An abort that the device cannot be told of has not happened.
START_TEST(abort_fails)
{
    ref_open(&world, "kitty", 64, 2, KT_F16, 128, 4, 1, 0);
    recorder_install(&world);
    kt_batch *batch = ref_batch(&world, 1, 600, 300);
    ref_sequence a;
    ref_buffers eager;
    kt_cache_info info = {.size = sizeof info};
    ref_join(&world, &a, 0);
    ref_fill(&world, batch, (ref_sequence *[]){&a}, (int[]){200}, 1, &eager);
    OK(kt_step_begin(batch, NULL));
    recorder.until_failure = 0;
    FAILS(KT_DEVICE, "kt_step_abort: upload refused", kt_step_abort(batch));
    OK(kt_cache_query(world.cache, &info));
    ck_assert_int_eq(info.free_pages, 3);
    ck_assert_int_eq(kt_sequence_close(world.cache, a.handle), KT_ORDER);
    OK(kt_step_abort(batch));
    OK(kt_cache_query(world.cache, &info));
    ck_assert_int_eq(info.free_pages, 4);
    ref_step(&world, batch, (ref_sequence *[]){&a}, (int[]){200}, 1, true);
    ref_verify(&world, &a);
    ref_buffers_free(&eager);
    kt_batch_close(batch);
    ref_close(&world);
}
END_TEST

// ---- what the host was told ----

// Two captures with different rows: every later call is held to the smaller.
START_TEST(smallest_capture)
{
    ref_open(&world, "kitty", 64, 2, KT_F16, 128, 4, 1, 0);
    recorder_install(&world);
    kt_batch *batch = ref_batch(&world, 2, 600, 300);
    ref_sequence a;
    ref_buffers buffers;
    ref_join(&world, &a, 0);
    ref_step(&world, batch, (ref_sequence *[]){&a}, (int[]){100}, 1, false);
    ref_fill(&world, batch, (ref_sequence *[]){&a}, (int[]){1}, 1, &buffers);
    OK(kt_batch_set(batch, 0, a.handle, 1, 39));
    if (_i) { // the larger first, or last by way of an eager step
        recorder_capture(&world, batch, &buffers);
        OK(kt_batch_set(batch, 0, a.handle, 1, 0));
        recorder_capture(&world, batch, &buffers);
        OK(kt_batch_set(batch, 0, a.handle, 1, 39));
    } else {
        OK(kt_batch_set(batch, 0, a.handle, 1, 1));
        recorder_capture(&world, batch, &buffers);
        OK(kt_batch_set(batch, 0, a.handle, 1, 39));
    }
    FAILS(KT_INVALID, "kt_batch_upload: the slots have rows up to 39; a step of this batch was captured for rows 0 to 1",
          kt_batch_upload(batch, NULL));
    ref_buffers wide;
    ref_fill(&world, batch, (ref_sequence *[]){&a}, (int[]){40}, 1, &wide);
    OK(kt_batch_set(batch, 0, a.handle, 1, 39));
    OK(kt_step_begin(batch, NULL)); // a step that is not captured may
    for (int layer = 0; layer < 2; layer++)
        OK(ref_append(&world, batch, layer, &wide));
    OK(kt_step_commit(batch));
    FAILS(KT_ORDER, "kt_step_replayed: slot 0 has row 39; a step of this batch was captured for rows 0 to 1", kt_step_replayed(batch, 1));
    recorder.capturing = true;
    FAILS(KT_INVALID, "kt_step_begin: the slots have rows up to 39; a step of this batch was captured for rows 0 to 1",
          kt_step_begin(batch, NULL));
    recorder.capturing = false;
    ref_buffers_free(&wide);
    ref_buffers_free(&buffers);
    kt_batch_close(batch);
    ref_close(&world);
}
END_TEST

// Replays of which the host heard nothing, or would hear nothing: what it uploads next counts.
START_TEST(untold)
{
    ref_open(&world, "kitty", 64, 2, KT_F16, 128, 4, 1, 0);
    recorder_install(&world);
    kt_batch *batch = ref_batch(&world, 2, 600, 300);
    ref_sequence a;
    ref_buffers buffers;
    ref_join(&world, &a, 0);
    ref_step(&world, batch, (ref_sequence *[]){&a}, (int[]){100}, 1, false);
    ref_fill(&world, batch, (ref_sequence *[]){&a}, (int[]){1}, 1, &buffers);
    recorder_capture(&world, batch, &buffers);
    for (int i = 0; i < 3; i++)
        replay_once(&buffers, &a);
    OK(kt_batch_upload(batch, NULL));
    for (int i = 0; i < 5; i++, a.tokens++) {
        replay_once(&buffers, &a);
        OK(kt_step_replayed(batch, 1));
    }
    ref_verify(&world, &a);

    for (int i = 0; i < 3; i++)
        replay_once(&buffers, &a);
    OK(kt_batch_set(batch, 0, a.handle, 1, 1));
    FAILS(KT_ORDER, "kt_step_replayed: slot 0 has changed since kt_batch_upload; what was replayed is not what the host has",
          kt_step_replayed(batch, 1));
    for (int i = 0; i < 3; i++)
        ref_step(&world, batch, (ref_sequence *[]){&a}, (int[]){1}, 1, true); // in the slot and row of the replays
    ref_verify(&world, &a);
    ref_step(&world, batch, (ref_sequence *[]){&a}, (int[]){3}, 1, true);
    FAILS(KT_ORDER, "kt_step_replayed: slot 0 has fresh 3; a captured step brings at most one token per slot", kt_step_replayed(batch, 1));
    ref_buffers_free(&buffers);
    kt_batch_close(batch);
    ref_close(&world);
}
END_TEST

// ---- many slots ----

// Every slot turns a page in one step: few copies bring the tables.
START_TEST(all_turn)
{
    enum { SLOTS = 300 };
    static ref_sequence sequences[SLOTS], *all[SLOTS];
    static int fresh[SLOTS];
    ref_open(&world, "fp16", 64, 1, KT_F16, 32, SLOTS, SLOTS, 0);
    recorder_install(&world);
    kt_batch *batch = ref_batch(&world, SLOTS, 4096, SLOTS * 31);
    for (int i = 0; i < SLOTS; i++) {
        ref_join(&world, &sequences[i], 7 * i);
        all[i] = &sequences[i];
        fresh[i] = 31;
    }
    ref_step(&world, batch, all, fresh, SLOTS, false);
    for (int i = 0; i < SLOTS; i++)
        fresh[i] = 1;
    recorder.copies = 0;
    ref_step(&world, batch, all, fresh, SLOTS, false);
    ck_assert_int_le(recorder.copies, 2); // slots and table
    for (int i = 0; i < SLOTS; i += 23)
        ref_verify(&world, &sequences[i]);
    kt_batch_close(batch);
    ref_close(&world);
}
END_TEST

// A long prompt among decoding slots, some of which are idle: grids stay near what there is to do.
START_TEST(prompt_among_decoding)
{
    enum { SLOTS = 96, PROMPT = 900 };
    static ref_sequence sequences[SLOTS], *all[SLOTS];
    static int fresh[SLOTS];
    ref_open(&world, "kitty", 64, 1, KT_F16, 128, 16, SLOTS, 0);
    recorder_install(&world);
    kt_batch *batch = ref_batch(&world, SLOTS, 1000, 1024);
    int rows = 0;
    for (int i = 0; i < SLOTS; i++) {
        ref_join(&world, &sequences[i], 11 * i);
        all[i] = &sequences[i];
        fresh[i] = 1 + i % 10;
    }
    ref_step(&world, batch, all, fresh, SLOTS, false);
    for (int i = 0; i < SLOTS; i++)
        rows += fresh[i] = i == 40 ? PROMPT : i % 5 != 0;
    recorder.places = 0;
    ref_step(&world, batch, all, fresh, SLOTS, true);
    ck_assert_int_le(recorder.places, 2 * world.spec.model.layers * 5 * rows); // of append and attend; one launch would have 96 * 900
    for (int i = 35; i < 45; i++)
        ref_verify(&world, &sequences[i]);
    kt_batch_close(batch);
    ref_close(&world);
}
END_TEST

// After an upload eager steps are launched as captured ones are, whatever the lengths; without one, or past the reservations, by what is there.
START_TEST(divided_alike)
{
    enum { SLOTS = 4 };
    ref_open(&world, "kitty", 64, 2, KT_F16, 128, 60, SLOTS, 0);
    world.engine->backend->multiprocessors = 132;
    recorder_install(&world);
    kt_batch *batch = ref_batch(&world, SLOTS, 4000, 1200);
    ref_sequence sequences[SLOTS], *all[SLOTS];
    int ones[SLOTS];
    for (int i = 0; i < SLOTS; i++) {
        ref_join(&world, &sequences[i], 0);
        all[i] = i == 1 ? NULL : &sequences[i];
        ones[i] = i != 1;
    }
    ref_step(&world, batch, all, (int[]){150, 0, 700, 158}, SLOTS, false);
    ref_step(&world, batch, all, ones, SLOTS, true);
    const int splits = recorder.attend.splits;
    for (int i = 0; i < SLOTS; i++)
        OK(kt_sequence_reserve(world.cache, sequences[i].handle, 1500));
    ref_buffers buffers;
    ref_fill(&world, batch, all, ones, SLOTS, &buffers);
    recorder_capture(&world, batch, &buffers);
    const recorder_attend captured = recorder.attend;
    ck_assert_int_ne(captured.splits, splits);
    for (int i = 0; i < 5; i++) { // the fourth sequence seals a page
        recorder_refill(&world, &buffers, all, SLOTS);
        OK(kt_step_begin(batch, NULL));
        for (int layer = 0; layer < world.spec.model.layers; layer++) {
            OK(ref_append(&world, batch, layer, &buffers));
            OK(ref_attend_layer(&world, batch, layer, &buffers));
        }
        OK(kt_step_commit(batch));
        ck_assert(!memcmp(&recorder.attend, &captured, sizeof captured));
        for (int k = 0; k < SLOTS; k++)
            sequences[k].tokens += ones[k];
    }
    ref_verify(&world, &sequences[3]);
    ref_step(&world, batch, all, ones, SLOTS, true); // sets the slots again
    ck_assert(memcmp(&recorder.attend, &captured, sizeof captured));
    ref_buffers_free(&buffers);
    kt_batch_close(batch);
    ref_close(&world);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("replays");
    TCase *tcase = tcase_create("replays");
    tcase_set_timeout(tcase, 240);
    tcase_add_loop_test(tcase, taken_back, 0, 2);
    tcase_add_test(tcase, abort_fails);
    tcase_add_loop_test(tcase, smallest_capture, 0, 2);
    tcase_add_test(tcase, untold);
    tcase_add_test(tcase, all_turn);
    tcase_add_test(tcase, prompt_among_decoding);
    tcase_add_test(tcase, divided_alike);
    suite_add_tcase(suite, tcase);
    return run_suite(suite);
}
