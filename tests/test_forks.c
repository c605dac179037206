// Forks and truncation: what is left, and what comes of it, is what a fresh run gives.
#include "forking.h"

static const struct {
    int sink, key_window, value_window;
} shapes[] = {{0, 0, 0}, {31, 0, 0}, {0, 0, 32}, {4, 0, 33}, {0, 0, 128}, {32, 0, 128}, {0, 0, 200}, {1, 0, 127}, {33, 5, 5}, {0, 1, 100}};
enum { SHAPES = sizeof shapes / sizeof *shapes };

// ---- forks ----

// A fork and its origin go different ways, in one step and apart; another forks from the fork. Each is as a run of its own.
START_TEST(diverge)
{
    open_world(shapes[_i].sink, shapes[_i].key_window, shapes[_i].value_window, 80, 6, 3);
    batch = ref_batch(&world, 3, 700, 600);
    const int v = world.format.value_window, prompt = world.format.sink + v;
    for (int more = 0; more < 70; more += 23) {
        ref_sequence a, b, c, fresh[3];
        ref_join(&world, &a, 0);
        step(&a, prompt + more);
        const kt_cache_info before = query();
        forked(&a, &b);
        ck_assert_int_eq(query().free_pages, before.free_pages);
        ck_assert_int_eq(query().free_slabs, before.free_slabs - 1);
        check_same(&a, &b);
        ref_turn(&b, 300);
        for (int i = 0; i < 40; i++) // past a page turn, both in one step
            ref_step(&world, batch, (ref_sequence *[]){&a, &b}, (int[]){1, 1}, 2, i % 9 == 0);
        check_counts();
        forked(&b, &c);
        ref_turn(&c, 700);
        ref_step(&world, batch, (ref_sequence *[]){&a, &c, &b}, (int[]){90, 1, 40}, 3, true);
        ref_step(&world, batch, (ref_sequence *[]){&a, &c, NULL}, (int[]){3, 33, 0}, 3, true);
        check_counts();
        ref_sequence *const all[] = {&a, &b, &c};
        for (int i = 0; i < 3; i++)
            ref_verify(&world, all[i]);
        for (int i = 0; i < 3; i++) { // the origin goes first
            fresh[i] = *all[i];
            OK(kt_sequence_open(world.cache, &fresh[i].handle));
            fresh[i].tokens = 0;
            step(&fresh[i], all[i]->tokens);
            check_same(all[i], &fresh[i]);
            end(&fresh[i]);
            end(all[i]);
            for (int j = i + 1; j < 3; j++)
                ref_verify(&world, all[j]);
        }
        check_empty();
    }
    close_world();
}
END_TEST

// ---- truncation ----

// A fork of the sequence and a step of `fresh` more, then `tokens` of them left: whether that is possible, and what follows.
static void cut(const ref_sequence *base, int fresh, int tokens)
{
    ref_sequence s;
    forked(base, &s);
    step(&s, fresh);
    const int before = base->tokens, after = before + fresh;
    const bool possible = same_pages(tokens, after) || (tokens <= before && same_pages(tokens, before)); // spares are free
    ck_assert_int_eq(undo_of(&s), before);
    const kt_status status = kt_sequence_truncate(world.cache, s.handle, tokens);
    ck_assert_msg(status == (possible ? KT_OK : KT_UNSUPPORTED), "%d + %d tokens to %d: %s: %s", before, fresh, tokens, kt_status_name(status),
                  kt_message());
    if (status) {
        ck_assert_int_eq(undo_of(&s), before);
        ref_verify(&world, &s);
        end(&s);
        return;
    }
    s.tokens = tokens;
    ck_assert_int_eq(undo_of(&s), tokens > before || tokens == after ? before : least_of(tokens));
    ck_assert_int_eq(world.cache->kept_slabs, moves(before, fresh) && (tokens > before || tokens == after));
    ref_verify(&world, &s);
    ref_turn(&s, before + 400);
    if ((before + tokens) % 2)
        step(&s, 37);
    else
        for (int i = 0; i < 33; i++)
            step(&s, 1);
    ref_verify(&world, &s);
    check_counts();
    end(&s);
}

START_TEST(truncations)
{
    static const int steps[] = {1, 7, 32, 70};
    open_world(shapes[_i].sink, shapes[_i].key_window, shapes[_i].value_window, 60, 2, 2);
    batch = ref_batch(&world, 1, 900, 900);
    const int sink = world.format.sink, v = world.format.value_window, far = sink + v + 64;
    const int befores[] = {0, sink + 1, sink + v + 31, far - 1, far, far + 17};
    for (unsigned i = 0; i < sizeof befores / sizeof *befores; i++) {
        const int before = befores[i], history = i % 2 ? 3 : 40; // tokens that came one by one
        ref_sequence base;
        ref_join(&world, &base, before);
        if (before > history)
            step(&base, before - history);
        while (base.tokens < before)
            step(&base, 1);
        for (unsigned j = 0; j < sizeof steps / sizeof *steps; j++) {
            const int after = before + steps[j];
            const int counts[] = {after, after - 1, before + 1, before, before - 1, least_of(after), least_of(after) - 1, least_of(before),
                                  least_of(before) - 1, 0};
            for (unsigned k = 0; k < sizeof counts / sizeof *counts; k++) {
                bool seen = counts[k] < 0 || counts[k] > after;
                for (unsigned l = 0; l < k; l++)
                    seen |= counts[l] == counts[k];
                if (!seen)
                    cut(&base, steps[j], counts[k]);
            }
        }
        ref_verify(&world, &base);
        end(&base);
    }
    check_empty();
    close_world();
}
END_TEST

// One token at a time over many pages, and each taken back before it comes again: speculation that always fails.
START_TEST(one_by_one)
{
    open_world(shapes[_i].sink, shapes[_i].key_window, shapes[_i].value_window, 20, 2, 0);
    batch = ref_batch(&world, 1, 600, 600);
    ref_sequence s;
    ref_join(&world, &s, 0);
    while (s.tokens < world.format.sink + world.format.value_window + 100) {
        const int before = s.tokens;
        ref_sequence guess = s;
        ref_turn(&guess, 555);
        step(&guess, 1);
        ck_assert_int_eq(undo_of(&guess), before);
        truncated(&guess, before);
        step(&s, 1);
        if (s.tokens % 13 == 0)
            ref_verify(&world, &s);
        check_counts();
    }
    ref_verify(&world, &s);
    end(&s);
    check_empty();
    close_world();
}
END_TEST

// Forks of one sequence cut back to before its last step and beyond, while it goes on.
START_TEST(cut_forks)
{
    open_world(32, 0, 200, 60, 4, 3);
    batch = ref_batch(&world, 2, 900, 900);
    ref_sequence a, b, c;
    ref_join(&world, &a, 0);
    step(&a, 400);
    step(&a, 10); // in place
    const int free_pages = (int)query().free_pages;
    forked(&a, &b);
    ck_assert_int_eq(undo_of(&b), 400);
    truncated(&b, 395);
    ck_assert_int_eq(undo_of(&b), least_of(395));
    ref_turn(&b, 600);
    step(&a, 60); // moved: a keeps its old slab, a fork of it cannot
    ck_assert_int_eq(undo_of(&a), 410);
    forked(&a, &c);
    ck_assert_int_eq(undo_of(&c), least_of(470));
    truncated(&a, 410); // pages stay with c
    ref_verify(&world, &c);
    ref_turn(&a, 100);
    for (int i = 0; i < 70; i++)
        ref_step(&world, batch, (ref_sequence *[]){&a, &b}, (int[]){1, 1}, 2, i % 30 == 0);
    check_counts();
    ref_verify(&world, &a);
    ref_verify(&world, &b);
    ref_verify(&world, &c);
    // All tokens gone: every page of c's is c's alone, and a begins anew.
    end(&b);
    truncated(&a, a.tokens - 1);
    end(&a);
    ref_verify(&world, &c);
    ck_assert_int_lt(query().free_pages, free_pages + sealed(KT_KEY, 470));
    end(&c);
    check_empty();
    ref_join(&world, &a, 0);
    step(&a, 500);
    forked(&a, &b);
    truncated(&b, 0);
    ck_assert_int_eq(undo_of(&b), 0);
    step(&b, 50);
    ref_verify(&world, &b);
    ref_verify(&world, &a);
    truncated(&a, 0);
    check_counts();
    ref_turn(&a, 99);
    step(&a, 300);
    ref_verify(&world, &a);
    close_world();
}
END_TEST

// A reservation outlives truncation, less the pages that a fork has.
START_TEST(reservations)
{
    open_world(32, 0, 32, 30, 2, 2);
    batch = ref_batch(&world, 2, 900, 900);
    ref_sequence a, b;
    ref_join(&world, &a, 0);
    OK(kt_sequence_reserve(world.cache, a.handle, 32 + 20 * 32));
    ck_assert_int_eq(query().free_pages, 10);
    step(&a, 32 + 5 * 32 - 1);
    step(&a, 1);
    truncated(&a, a.tokens - 1);
    ck_assert_int_eq(query().free_pages, 10);
    step(&a, 1);
    forked(&a, &b);
    ck_assert_int_eq(query().free_pages, 10);
    truncated(&a, a.tokens - 1); // its newest page stays with the fork
    ck_assert_int_eq(query().free_pages, 10);
    check_counts();
    ref_turn(&a, 77);
    step(&a, 19 * 32 - (a.tokens - 32)); // 19 of the 20 pages
    ck_assert_int_eq(query().free_pages, 9); // the copy of a page whose values both seal
    ref_verify(&world, &a);
    ref_verify(&world, &b);
    end(&a);
    end(&b);
    check_empty();
    close_world();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("forks");
    TCase *tcase = tcase_create("forks");
    tcase_set_timeout(tcase, 240);
    tcase_add_loop_test(tcase, diverge, 0, SHAPES);
    tcase_add_loop_test(tcase, truncations, 0, SHAPES);
    tcase_add_loop_test(tcase, one_by_one, 0, SHAPES);
    tcase_add_test(tcase, cut_forks);
    tcase_add_test(tcase, reservations);
    suite_add_tcase(suite, tcase);
    return run_suite(suite);
}
