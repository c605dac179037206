// Takes in a step's tokens: stores the exact ones, seals the pages that they complete.
//
// Slabs hold elements as they came, so that a page's bytes and flags do not depend on how its tokens were split into
// steps; every reader counts what is not finite as 0.
#include "cpu.h"

#include <string.h>

static int seal_pages(const kt__head *h, kt_part part)
{
    const kt_format *f = h->format;
    const unsigned short *rows[KT__MAX_PAGE];
    const int after = kt_sealed(f, part, h->slot->tokens + h->slot->fresh);
    int overflows = 0;
    for (int page = kt_sealed(f, part, h->slot->tokens); page < after; page++) {
        for (int i = 0; i < f->page; i++)
            rows[i] = kt__cpu_exact(h, part, f->sink + page * f->page + i);
        unsigned char *block = kt__cpu_block(h, page);
        overflows += part == KT_KEY ? kt__cpu_seal_key(f, h->calibration, rows, h->view->layer, h->head, page, block) : kt__cpu_seal_value(f, h->calibration, rows, block);
    }
    return overflows;
}

// Stores tokens [first, last) where the next step finds them; those that already lie there stay.
static void store(const kt__head *h, kt_part part, int first, int last)
{
    if (h->slab_next == h->slab && first < h->slot->tokens)
        first = h->slot->tokens;
    for (int t = first; t < last; t++)
        memcpy(h->slab_next + kt__cpu_place(h->format, part, t), kt__cpu_exact(h, part, t), (size_t)h->format->head_dim * 2);
}

static int append_part(const kt__head *h, kt_part part)
{
    const kt_format *f = h->format;
    const int before = h->slot->tokens, after = before + h->slot->fresh;
    int count = 0;
    for (int t = before; t < after; t++) {
        const unsigned short *row = kt__cpu_exact(h, part, t);
        for (int c = 0; c < f->head_dim; c++)
            count += !kt__element_finite(f->dtype, row[c]);
    }
    count += seal_pages(h, part);
    store(h, part, 0, after < f->sink ? after : f->sink);
    store(h, part, f->sink + kt_sealed(f, part, after) * f->page, after);
    return count;
}

static void append_head(const kt__head *h, const void *params)
{
    (void)params;
    const int count = append_part(h, KT_KEY) + append_part(h, KT_VALUE);
    h->view->control->nonfinite += (unsigned)count;
}

void kt__cpu_append(const kt_format *f, const kt_append_params *params) { kt__cpu_each_head(f, &params->view, append_head, params); }
