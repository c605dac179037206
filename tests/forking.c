#include "forking.h"

#include <stdlib.h>
#include <string.h>

ref_world world;
kt_batch *batch;

static void open_any(bool mixed, int sink, int key_window, int value_window, int pages, int max_sequences, int spare_slabs)
{
    kg_spec spec;
    ck_assert(ref_spec("kitty", 64, 1, KT_F16, 32, &spec));
    spec.sink = sink;
    spec.key.window = key_window;
    spec.value.window = value_window;
    if (mixed)
        ref_mix(&spec);
    ref_open_spec(&world, &spec, pages, max_sequences, spare_slabs);
}

void open_world(int sink, int key_window, int value_window, int pages, int max_sequences, int spare_slabs)
{
    open_any(false, sink, key_window, value_window, pages, max_sequences, spare_slabs);
}

void open_mixed_world(int sink, int key_window, int value_window, int pages, int max_sequences, int spare_slabs)
{
    open_any(true, sink, key_window, value_window, pages, max_sequences, spare_slabs);
}

void close_world(void)
{
    kt_batch_close(batch);
    ref_close(&world);
}

void step(ref_sequence *s, int fresh)
{
    enum { MOST = 600, ROW = 2 * 64 };
    static _Alignas(64) unsigned short rows[2][MOST][ROW];
    ck_assert_int_le(fresh, MOST);
    for (int slot = 1; slot < batch->slots; slot++)
        kt_batch_set(batch, slot, 0, 0, -1);
    OK(kt_batch_set(batch, 0, s->handle, fresh, -1));
    kt_status status = kt_step_begin(batch, NULL);
    for (int layer = 0; layer < 2 && !status; layer++) {
        for (int part = 0; part < 2; part++)
            for (int i = 0; i < fresh; i++) // a token's heads are neighbours
                memcpy(rows[part][i], ref_row(&world, (kt_part)part, layer, 0, s, s->tokens + i), sizeof rows[part][i]);
        status = kt_append(batch, &(kt_append_args){.size = sizeof(kt_append_args), .layer = layer, .key = rows[0], .value = rows[1]});
    }
    OK(status ? status : kt_step_commit(batch));
    s->tokens += fresh;
}

void end(ref_sequence *s) { OK(kt_sequence_close(world.cache, s->handle)); }

void forked(const ref_sequence *from, ref_sequence *s)
{
    *s = *from;
    OK(kt_sequence_fork(world.cache, from->handle, NULL, &s->handle));
}

void truncated(ref_sequence *s, int tokens)
{
    OK(kt_sequence_truncate(world.cache, s->handle, tokens));
    s->tokens = tokens;
}

int undo_of(const ref_sequence *s)
{
    int least = -1;
    OK(kt_sequence_undo(world.cache, s->handle, &least));
    return least;
}

kt_cache_info query(void)
{
    kt_cache_info info = {.size = sizeof info};
    OK(kt_cache_query(world.cache, &info));
    return info;
}

int sealed(kt_part part, int tokens)
{
    const kt_format *f = &world.format;
    return kt_sealed(f, part, tokens);
}

bool same_pages(int a, int b)
{
    for (int i = 0; i < 4; i++) {
        const kt_format *f = ref_format_of(&world, i / 2);
        if (kt_sealed(f, i % 2, a) != kt_sealed(f, i % 2, b))
            return false;
    }
    return true;
}

int least_of(int tokens)
{
    while (tokens && same_pages(tokens - 1, tokens))
        tokens--;
    return tokens;
}

bool moves(int tokens, int fresh)
{
    const kt_format *f = &world.format;
    const int keys = tokens - f->sink - sealed(KT_KEY, tokens) * f->page, values = tokens - f->sink - sealed(KT_VALUE, tokens) * f->page;
    return (keys > 0 && keys + fresh > f->key_ring) || (values > 0 && values + fresh > f->value_ring);
}

void check_same(const ref_sequence *a, const ref_sequence *b)
{
    const size_t block = (size_t)world.format.block_bytes, row = (size_t)world.format.head_dim;
    unsigned char *blocks = malloc(2 * block);
    float *rows = malloc(2 * (size_t)(a->tokens + 1) * row * sizeof *rows), *other = rows + (size_t)(a->tokens + 1) * row;
    ck_assert_int_eq(a->tokens, b->tokens);
    for (int at = 0; at < 4; at++) {
        for (int page = 0; page < sealed(KT_KEY, a->tokens); page++) {
            OK(kt_read_block(world.cache, a->handle, at / 2, at % 2, page, blocks));
            OK(kt_read_block(world.cache, b->handle, at / 2, at % 2, page, blocks + block));
            ck_assert_mem_eq(blocks, blocks + block, block);
        }
        for (int part = 0; part < 2; part++) {
            OK(kt_read(world.cache, a->handle, at / 2, at % 2, (kt_part)part, 0, a->tokens, rows));
            OK(kt_read(world.cache, b->handle, at / 2, at % 2, (kt_part)part, 0, a->tokens, other));
            ck_assert_mem_eq(rows, other, (size_t)a->tokens * row * sizeof *rows);
        }
    }
    free(blocks);
    free(rows);
}

void check_counts(void)
{
    const kt_cache *c = world.cache;
    int *counts = calloc((size_t)c->page_total, sizeof *counts), used = 0, slabs = 0;
    for (int i = 0; i < c->max_sequences; i++) {
        const kt__sequence *s = &c->sequences[i];
        if (!s->open)
            continue;
        slabs++;
        for (int p = 0; p < s->page_count; p++)
            counts[s->pages[p]]++;
    }
    ck_assert_mem_eq(counts, c->page_references, (size_t)c->page_total * sizeof *counts);
    for (int i = 0; i < c->page_total; i++)
        used += counts[i] > 0;
    for (int i = 0; i < c->max_sequences; i++) {
        const kt__sequence *s = &c->sequences[i];
        for (int p = ref_pages(&world, s->tokens); s->open && p < s->page_count; p++)
            if (counts[s->pages[p]] != 1)
                ck_abort_msg("page %d of sequence %d is not sealed, and counted %d times", p, i, counts[s->pages[p]]);
    }
    ck_assert_int_eq(c->free_page_count, c->page_total - used);
    ck_assert_int_eq(query().free_slabs, c->slab_total - slabs);
    free(counts);
}

void check_empty(void)
{
    const kt_cache_info info = query();
    ck_assert_int_eq(info.sequences, 0);
    ck_assert_int_eq(info.free_pages, info.pages);
    ck_assert_int_eq(info.free_slabs, info.slabs);
    check_counts();
}
