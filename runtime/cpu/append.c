// Takes in a step's tokens: stores the exact ones, seals the pages that they complete.
//
// Slabs hold elements as they came, so that a page's bytes and flags do not depend on how its tokens were split into
// steps; every reader counts what is not finite as 0.
#include "cpu.h"

#include <string.h>

// One head of one slot.
typedef struct {
    const kt_format *format;
    const kt_view *view;
    const kt_slot *slot;
    const int *table;
    int head;
    unsigned char *slab, *slab_next;
} head_state;

static unsigned char *slab_of(const kt_format *f, const kt_view *view, int slab, int head)
{
    return view->slabs + ((long long)slab * view->kv_heads + head) * f->slab_bytes;
}

static const unsigned short *fresh_row(const head_state *s, kt_part part, int token)
{
    const kt_view *v = s->view;
    const long long row = (long long)s->slot->row + token - s->slot->tokens;
    return part == KT_KEY ? v->key + row * v->key_row + s->head * v->key_head
                          : v->value + row * v->value_row + s->head * v->value_head;
}

// Byte offset of an exact token in a slab.
static long long place(const kt_format *f, kt_part part, int token)
{
    const long long bytes = 2 * f->head_dim;
    if (token < f->sink)
        return (part == KT_KEY ? 0 : f->slab_sink_value) + token * bytes;
    const int ring = part == KT_KEY ? f->key_ring : f->value_ring;
    return (part == KT_KEY ? f->slab_key : f->slab_value) + (token - f->sink) % ring * bytes;
}

static const unsigned short *exact_row(const head_state *s, kt_part part, int token)
{
    return token >= s->slot->tokens ? fresh_row(s, part, token)
                                    : (const unsigned short *)(s->slab + place(s->format, part, token));
}

static int window(const kt_format *f, kt_part part) { return part == KT_KEY ? f->key_window : f->value_window; }

static int sealed(const kt_format *f, kt_part part, int tokens)
{
    return kt_sealed_pages(tokens, f->sink, window(f, part), f->page);
}

static int seal_pages(const head_state *s, kt_part part)
{
    const kt_format *f = s->format;
    const unsigned short *rows[KT__MAX_PAGE];
    const int after = sealed(f, part, s->slot->tokens + s->slot->fresh);
    int overflows = 0;
    for (int page = sealed(f, part, s->slot->tokens); page < after; page++) {
        for (int i = 0; i < f->page; i++)
            rows[i] = exact_row(s, part, f->sink + page * f->page + i);
        unsigned char *block =
            s->view->pages + ((long long)s->table[page] * s->view->kv_heads + s->head) * f->block_bytes;
        overflows += part == KT_KEY ? kt__cpu_seal_key(f, rows, s->view->layer, s->head, page, block)
                                    : kt__cpu_seal_value(f, rows, block);
    }
    return overflows;
}

// Stores tokens [first, last) where the next step finds them; those that already lie there stay.
static void store(const head_state *s, kt_part part, int first, int last)
{
    if (s->slab_next == s->slab && first < s->slot->tokens)
        first = s->slot->tokens;
    for (int t = first; t < last; t++)
        memcpy(s->slab_next + place(s->format, part, t), exact_row(s, part, t), (size_t)s->format->head_dim * 2);
}

static int append_part(const head_state *s, kt_part part)
{
    const kt_format *f = s->format;
    const int before = s->slot->tokens, after = before + s->slot->fresh;
    int count = 0;
    for (int t = before; t < after; t++) {
        const unsigned short *row = fresh_row(s, part, t);
        for (int c = 0; c < f->head_dim; c++)
            count += !kt__element_finite(f->dtype, row[c]);
    }
    count += seal_pages(s, part);
    store(s, part, 0, after < f->sink ? after : f->sink);
    store(s, part, f->sink + sealed(f, part, after) * f->page, after);
    return count;
}

void kt__cpu_append(const kt_format *f, const kt_append_params *params)
{
    const kt_view *view = &params->view;
    if (!view->control->ready)
        return;
    for (int i = 0; i < view->slot_count; i++) {
        const kt_slot *slot = &view->slots[i];
        if (!slot->fresh)
            continue;
        for (int head = 0; head < view->kv_heads; head++) {
            const head_state s = {f, view, slot, view->table + (long long)i * view->table_stride, head,
                                  slab_of(f, view, slot->slab, head), slab_of(f, view, slot->slab_next, head)};
            const int count = append_part(&s, KT_KEY) + append_part(&s, KT_VALUE);
            view->control->nonfinite += (unsigned)count;
        }
    }
}
