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

// Tokens [first, first + count) of one part, which are all sinks or lie in one tile of a page.
static void load_chunk(const kt__head *h, kt_part part, int first, int count, float *out)
{
    const kt_format *f = h->format;
    const int paged = first - f->sink;
    if (paged >= 0 && paged / f->page < kt_sealed(f, part, h->slot->tokens)) {
        const unsigned char *block = kt__cpu_block(h, paged / f->page);
        kt__cpu_decode_tile(f, part, h->calibration, block, paged % f->page / KT__TILE, out);
        return;
    }
    for (int i = 0; i < count; i++) {
        const unsigned short *row = kt__cpu_exact(h, part, first + i);
        for (int c = 0; c < f->head_dim; c++)
            out[i * f->head_dim + c] = kt__element(f->dtype, row[c]);
    }
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
    const double *query = q->query[at];
    double logits[KT__TILE], most = q->most[at], *out = q->out[at];
    for (int t = 0; t < count; t++) {
        logits[t] = dot(query, key + t * d, d);
        most = logits[t] > most ? logits[t] : most;
    }
    if (most > q->most[at]) {
        const double factor = exp(q->most[at] - most); // 0 the first time
        q->sum[at] *= factor;
        for (int c = 0; c < d; c++)
            out[c] *= factor;
        q->most[at] = most;
    }
    for (int t = 0; t < count; t++) {
        const double p = exp(logits[t] - most);
        q->sum[at] += p;
        for (int c = 0; c < d; c++)
            out[c] += p * (double)value[t * d + c];
    }
}

static void run_block(const kt__head *h, query_block *q)
{
    const kt_format *f = h->format;
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
        load_chunk(h, KT_KEY, first, end - first, key);
        load_chunk(h, KT_VALUE, first, end - first, value);
        for (int i = 0; i < q->count; i++) {
            const int seen = q->visible[i] < end ? q->visible[i] - first : end - first;
            if (seen > 0)
                meet(q, i, key, value, seen, f->head_dim);
        }
    }
}

static void attend_head(const kt__head *h, const void *params)
{
    const kt_attend_params *p = params;
    const int d = h->format->head_dim, group = h->format->group_heads;
    query_block q;
    for (int done = 0; done < h->slot->fresh * group; done += q.count) {
        q.count = h->slot->fresh * group - done;
        q.count = q.count < QUERIES ? q.count : QUERIES;
        for (int i = 0; i < q.count; i++) {
            const int j = (done + i) / group, head = h->head * group + (done + i) % group;
            const unsigned short *from = p->query + (long long)(h->slot->row + j) * p->query_row + head * p->query_head;
            for (int c = 0; c < d; c++)
                q.query[i][c] = (double)p->scale * (double)kt__to_float(h->format->dtype, from[c]);
            memset(q.out[i], 0, (size_t)d * sizeof(double));
            q.visible[i] = h->slot->tokens + j + 1;
            q.most[i] = -INFINITY;
            q.sum[i] = 0;
        }
        run_block(h, &q);
        for (int i = 0; i < q.count; i++) {
            const long long row = h->slot->row + (done + i) / group;
            const int head = h->head * group + (done + i) % group;
            for (int c = 0; c < d; c++)
                p->out[row * p->out_row + head * p->out_head + c] =
                    kt__from_float(h->format->dtype, (float)(q.out[i][c] / q.sum[i]));
            if (p->lse)
                p->lse[row * h->view->kv_heads * group + head] = (float)(q.most[i] + log(q.sum[i]));
        }
    }
}

void kt__cpu_attend(const kt_format *f, const kt_attend_params *params) { kt__cpu_each_head(f, &params->view, attend_head, params); }
