// The walk over a batch's slots and heads, and where their tokens lie.
#include "cpu.h"

void kt__cpu_each_head(const kt_format *f, const kt_view *view, void (*work)(const kt__head *, const void *), const void *params)
{
    if (!view->control->ready)
        return;
    for (int i = 0; i < view->slot_count; i++) {
        const kt_slot *slot = &view->slots[i];
        for (int head = 0; slot->fresh && head < view->kv_heads; head++) {
            const long long slab = (long long)slot->slab * view->kv_heads + head, next = (long long)slot->slab_next * view->kv_heads + head;
            const kt__head h = {f, view, slot, view->table + (long long)i * view->table_stride, head,
                                view->calibration ? view->calibration + (long long)head * f->table_bytes : NULL, view->slabs + slab * f->slab_bytes, view->slabs + next * f->slab_bytes};
            work(&h, params);
        }
    }
}

unsigned char *kt__cpu_block(const kt__head *h, int page)
{
    return h->view->pages + ((long long)h->table[page] * h->view->kv_heads + h->head) * h->format->block_bytes;
}

long long kt__cpu_place(const kt_format *f, kt_part part, int token)
{
    const long long bytes = 2 * f->head_dim;
    if (token < f->sink)
        return (part == KT_KEY ? 0 : f->slab_sink_value) + token * bytes;
    const int ring = part == KT_KEY ? f->key_ring : f->value_ring;
    return (part == KT_KEY ? f->slab_key : f->slab_value) + (token - f->sink) % ring * bytes;
}

const unsigned short *kt__cpu_exact(const kt__head *h, kt_part part, int token)
{
    const kt_view *v = h->view;
    if (token < h->slot->tokens)
        return (const unsigned short *)(h->slab + kt__cpu_place(h->format, part, token));
    const long long row = (long long)h->slot->row + token - h->slot->tokens;
    return part == KT_KEY ? v->key + row * v->key_row + h->head * v->key_head : v->value + row * v->value_row + h->head * v->value_head;
}
