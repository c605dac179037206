// Attention in float64 over sinks, pages and residual: the reference that the kernels are held against.
//
// Chunks of up to 32 tokens are decoded once and met by a block of queries, which keep running maxima and sums. Nothing is
// allocated.
#include "cpu.h"

#include <math.h>
#include <string.h>

enum { QUERIES = 32 };

// Queries of one KV head that go through the tokens together.
typedef struct {
    int count;
    int visible[QUERIES];              // tokens that the query sees
    double query[QUERIES][KT__MAX_DIM]; // times the softmax scale
    double out[QUERIES][KT__MAX_DIM];
    double most[QUERIES], sum[QUERIES];
} query_block;

// What the tokens of one slot and head are read from.
typedef struct {
    const kt_format *format;
    const kt_view *view;
    const kt_slot *slot;
    const int *table;
    const unsigned char *slab;
    int head;
} source;

static void load_exact(const source *s, kt_part part, int token, float *out)
{
    const kt_format *f = s->format;
    const kt_view *v = s->view;
    const unsigned short *row;
    if (token >= s->slot->tokens) {
        const long long at = (long long)s->slot->row + token - s->slot->tokens;
        row = part == KT_KEY ? v->key + at * v->key_row + s->head * v->key_head
                             : v->value + at * v->value_row + s->head * v->value_head;
    } else if (token < f->sink) {
        row = (const unsigned short *)(s->slab + (part == KT_KEY ? 0 : f->slab_sink_value)) + token * f->head_dim;
    } else {
        const int ring = part == KT_KEY ? f->key_ring : f->value_ring;
        row = (const unsigned short *)(s->slab + (part == KT_KEY ? f->slab_key : f->slab_value)) +
              (token - f->sink) % ring * f->head_dim;
    }
    for (int c = 0; c < f->head_dim; c++)
        out[c] = kt__element(f->dtype, row[c]);
}

// Tokens [first, first + count) of one part, which are all sinks or lie in one tile of a page.
static void load_chunk(const source *s, kt_part part, int first, int count, float *out)
{
    const kt_format *f = s->format;
    const int window = part == KT_KEY ? f->key_window : f->value_window;
    const int paged = first - f->sink;
    if (paged >= 0 && paged / f->page < kt_sealed_pages(s->slot->tokens, f->sink, window, f->page)) {
        const unsigned char *block =
            s->view->pages + ((long long)s->table[paged / f->page] * s->view->kv_heads + s->head) * f->block_bytes;
        (part == KT_KEY ? kt__cpu_decode_key_tile : kt__cpu_decode_value_tile)(f, block, paged % f->page / KT__TILE, out);
        return;
    }
    for (int i = 0; i < count; i++)
        load_exact(s, part, first + i, out + i * f->head_dim);
}

// Four chains, so that the additions do not wait for each other. head_dim is a multiple of 4.
static double dot(const double *a, const float *b, int n)
{
    double s[4] = {0};
    for (int i = 0; i < n; i += 4)
        for (int j = 0; j < 4; j++)
            s[j] += a[i + j] * (double)b[i + j];
    return (s[0] + s[1]) + (s[2] + s[3]);
}

static void meet(query_block *q, int at, const float *key, const float *value, int count, int d)
{
    double logits[KT__TILE], most = q->most[at];
    for (int t = 0; t < count; t++) {
        logits[t] = dot(q->query[at], key + t * d, d);
        most = logits[t] > most ? logits[t] : most;
    }
    if (most > q->most[at]) {
        const double factor = exp(q->most[at] - most); // 0 the first time
        q->sum[at] *= factor;
        for (int c = 0; c < d; c++)
            q->out[at][c] *= factor;
        q->most[at] = most;
    }
    for (int t = 0; t < count; t++) {
        const double p = exp(logits[t] - most);
        q->sum[at] += p;
        for (int c = 0; c < d; c++)
            q->out[at][c] += p * (double)value[t * d + c];
    }
}

static void run_block(const source *s, query_block *q)
{
    const kt_format *f = s->format;
    float key[KT__TILE * KT__MAX_DIM], value[KT__TILE * KT__MAX_DIM];
    int last = 0;
    for (int i = 0; i < q->count; i++)
        last = q->visible[i] > last ? q->visible[i] : last;
    for (int first = 0, end; first < last; first = end) {
        end = first + KT__TILE;
        if (first < f->sink && end > f->sink)
            end = f->sink;
        if (end > last)
            end = last;
        load_chunk(s, KT_KEY, first, end - first, key);
        load_chunk(s, KT_VALUE, first, end - first, value);
        for (int i = 0; i < q->count; i++) {
            const int seen = q->visible[i] < end ? q->visible[i] - first : end - first;
            if (seen > 0)
                meet(q, i, key, value, seen, f->head_dim);
        }
    }
}

static void attend_head(const source *s, const kt_attend_params *p)
{
    const int d = s->format->head_dim, group = s->format->group_heads;
    query_block q;
    for (int done = 0; done < s->slot->fresh * group; done += q.count) {
        q.count = s->slot->fresh * group - done;
        q.count = q.count < QUERIES ? q.count : QUERIES;
        for (int i = 0; i < q.count; i++) {
            const int j = (done + i) / group, head = s->head * group + (done + i) % group;
            const unsigned short *from = p->query + (long long)(s->slot->row + j) * p->query_row + head * p->query_head;
            for (int c = 0; c < d; c++)
                q.query[i][c] = (double)p->scale * (double)kt__to_float(s->format->dtype, from[c]);
            memset(q.out[i], 0, (size_t)d * sizeof(double));
            q.visible[i] = s->slot->tokens + j + 1;
            q.most[i] = -INFINITY;
            q.sum[i] = 0;
        }
        run_block(s, &q);
        for (int i = 0; i < q.count; i++) {
            const long long row = s->slot->row + (done + i) / group;
            const int head = s->head * group + (done + i) % group;
            for (int c = 0; c < d; c++)
                p->out[row * p->out_row + head * p->out_head + c] =
                    kt__from_float(s->format->dtype, (float)(q.out[i][c] / q.sum[i]));
            if (p->lse)
                p->lse[row * s->view->kv_heads * group + head] = (float)(q.most[i] + log(q.sum[i]));
        }
    }
}

void kt__cpu_attend(const kt_format *f, const kt_attend_params *params)
{
    const kt_view *view = &params->view;
    if (!view->control->ready)
        return;
    for (int i = 0; i < view->slot_count; i++) {
        const kt_slot *slot = &view->slots[i];
        if (!slot->fresh)
            continue;
        for (int head = 0; head < view->kv_heads; head++) {
            const source s = {f, view, slot, view->table + (long long)i * view->table_stride,
                              view->slabs + ((long long)slot->slab * view->kv_heads + head) * f->slab_bytes, head};
            attend_head(&s, params);
        }
    }
}
