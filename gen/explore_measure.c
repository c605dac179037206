// Errors of one variant on the inputs, against the reference that all share.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"
#include "explore.h"
#include "parallel.h"

enum { LANES = 8, BLOCK = 16 }; // BLOCK: tokens that meet a row of queries together
typedef double doubles __attribute__((vector_size(LANES * sizeof(double)), aligned(8), may_alias));

// A KV head's tokens for the sampled queries. Of a token t both readings are known; a query sees the decoded one of a key where
// sink <= t < ends[KT_KEY] of its position, of a value likewise.
typedef struct {
    const float *exact[2], *decoded[2]; // by kt_part, [tokens, head_dim]; decoded null: no token is
    int sink;
    const int *ends[2];                 // [positions]
    double scale;
} tokens_seen;

// A worker's scratch.
typedef struct {
    double *logits;                // [tokens, rows]; later the probabilities
    double *out;                   // [rows, head_dim]
    double *most, *sum;            // [rows]
    double *squares, *differences; // [rows] of the logits and of their errors
    double *exact, *decoded, *apart; // [BLOCK, head_dim]; apart: decoded - exact
    float *parts[2];               // [tokens, head_dim] by kt_part, as read back
} scratch;

static int rows_of(const kg_explore_bed *b) { return b->positions * b->group_heads; }

static size_t doubles_of(const kg_explore_bed *b)
{
    const size_t rows = (size_t)rows_of(b), d = (size_t)b->in.head_dim, tokens = (size_t)b->tokens;
    return tokens * rows + rows * d + 4 * rows + 3 * BLOCK * d + tokens * d; // the last: two of floats
}

static scratch scratch_of(const kg_explore_bed *b, int worker)
{
    const size_t rows = (size_t)rows_of(b), d = (size_t)b->in.head_dim, tokens = (size_t)b->tokens;
    scratch s = {.logits = b->scratch + (size_t)worker * b->scratch_each};
    s.out = s.logits + tokens * rows;
    s.most = s.out + rows * d;
    s.sum = s.most + rows;
    s.squares = s.sum + rows;
    s.differences = s.squares + rows;
    s.exact = s.differences + rows;
    s.decoded = s.exact + BLOCK * d;
    s.apart = s.decoded + BLOCK * d;
    s.parts[KT_KEY] = (float *)(s.apart + BLOCK * d);
    s.parts[KT_VALUE] = s.parts[KT_KEY] + tokens * d;
    return s;
}

// ---- attention -------------------------------------------------------------------------------------------------------

static double dot(const double *a, const double *b, int count)
{
    doubles sum = {0};
    for (int c = 0; c < count; c += LANES)
        sum += *(const doubles *)(a + c) * *(const doubles *)(b + c);
    return ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
}

// A block of tokens in double: exact, decoded, and how far apart they are.
static void widen(const tokens_seen *seen, kt_part part, int first, int count, int d, const scratch *s)
{
    const float *exact = seen->exact[part] + (long)first * d, *decoded = seen->decoded[part] ? seen->decoded[part] + (long)first * d : exact;
    for (int i = 0; i < count * d; i++) {
        s->exact[i] = (double)exact[i];
        s->decoded[i] = (double)decoded[i];
        s->apart[i] = s->decoded[i] - s->exact[i];
    }
}

static bool is_decoded(const tokens_seen *seen, kt_part part, int position, int token)
{
    return seen->decoded[part] && token >= seen->sink && token < seen->ends[part][position];
}

static void add_logits(const kg_explore_bed *b, const tokens_seen *seen, const double *query, const scratch *s)
{
    const int d = b->in.head_dim, rows = rows_of(b);
    memset(s->squares, 0, 2 * (size_t)rows * sizeof *s->squares); // and the differences
    for (int r = 0; r < rows; r++)
        s->most[r] = -INFINITY;
    for (int first = 0; first < b->tokens; first += BLOCK) {
        const int count = b->tokens - first < BLOCK ? b->tokens - first : BLOCK;
        widen(seen, KT_KEY, first, count, d, s);
        for (int r = 0; r < rows; r++) {
            const int i = r / b->group_heads, visible = b->at[i] + 1 - first;
            for (int j = 0; j < count && j < visible; j++) {
                const bool decoded = is_decoded(seen, KT_KEY, i, first + j);
                const double logit = seen->scale * dot(query + (long)r * d, (decoded ? s->decoded : s->exact) + j * d, d);
                const double error = decoded ? seen->scale * dot(query + (long)r * d, s->apart + j * d, d) : 0;
                s->logits[(long)(first + j) * rows + r] = logit;
                s->most[r] = logit > s->most[r] ? logit : s->most[r];
                s->squares[r] += logit * logit;
                s->differences[r] += error * error;
            }
        }
    }
}

static void add_values(const kg_explore_bed *b, const tokens_seen *seen, const scratch *s)
{
    const int d = b->in.head_dim, rows = rows_of(b);
    memset(s->out, 0, (size_t)rows * (size_t)d * sizeof *s->out);
    memset(s->sum, 0, (size_t)rows * sizeof *s->sum);
    for (int first = 0; first < b->tokens; first += BLOCK) {
        const int count = b->tokens - first < BLOCK ? b->tokens - first : BLOCK;
        widen(seen, KT_VALUE, first, count, d, s);
        for (int r = 0; r < rows; r++) {
            const int i = r / b->group_heads, visible = b->at[i] + 1 - first < count ? b->at[i] + 1 - first : count;
            double p[BLOCK], *out = s->out + (long)r * d;
            const double *value[BLOCK];
            for (int j = 0; j < visible; j++) {
                s->sum[r] += p[j] = exp(s->logits[(long)(first + j) * rows + r] - s->most[r]);
                value[j] = (is_decoded(seen, KT_VALUE, i, first + j) ? s->decoded : s->exact) + j * d;
            }
            for (int c = 0; c < d && visible > 0; c += LANES) {
                doubles sum = *(doubles *)(out + c);
                for (int j = 0; j < visible; j++)
                    sum += p[j] * *(const doubles *)(value[j] + c);
                *(doubles *)(out + c) = sum;
            }
        }
    }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < d; c++)
            s->out[(long)r * d + c] /= s->sum[r];
}

static size_t head_at(const kg_explore_bed *b, int layer, int head) { return (size_t)layer * (size_t)b->in.kv_heads + (size_t)head; }

static void attend(const kg_explore_bed *b, const tokens_seen *seen, size_t head, const scratch *s)
{
    add_logits(b, seen, b->query + head * (size_t)rows_of(b) * (size_t)b->in.head_dim, s);
    add_values(b, seen, s);
}

// ---- the reference ---------------------------------------------------------------------------------------------------

static tokens_seen exact_tokens(const kg_explore_bed *b, int layer, int head)
{
    const kg_layer *l = &b->in.layers[layer];
    const long at = (long)head * l->tokens * b->in.head_dim;
    return (tokens_seen){.exact = {l->exact_key + at, l->exact_value + at}, .scale = l->scale};
}

static void reference_head(void *context, int index, int worker)
{
    kg_explore_bed *b = context;
    const int head = index % b->in.kv_heads, layer = index / b->in.kv_heads, d = b->in.head_dim, rows = rows_of(b);
    double *query = b->query + (size_t)index * (size_t)rows * (size_t)d;
    for (int r = 0; r < rows; r++) {
        const long token = b->at[r / b->group_heads], at = token * b->in.q_heads + head * b->group_heads + r % b->group_heads;
        for (int c = 0; c < d; c++)
            query[(long)r * d + c] = (double)kg_to_float(b->in.dtype, b->in.layers[layer].query[at * d + c]);
    }
    const tokens_seen seen = exact_tokens(b, layer, head);
    const scratch s = scratch_of(b, worker);
    attend(b, &seen, (size_t)index, &s);
    memcpy(b->out + (size_t)index * (size_t)rows * (size_t)d, s.out, (size_t)rows * (size_t)d * sizeof *s.out);
    memcpy(b->squares + (size_t)index * (size_t)rows, s.squares, (size_t)rows * sizeof *s.squares);
}

int kg_explore_bed_open(const kg_spec *spec, const char *const *files, int file_count, int layers, kg_explore_bed *b, char *error)
{
    *b = (kg_explore_bed){.group_heads = spec->model.q_heads / spec->model.kv_heads};
    int code = kg_inputs_read(spec, files, file_count, layers, KG_EXPLORE_LAYERS, &b->in, error, KG_ERROR);
    if (code)
        return code;
    b->tokens = b->in.layers[0].tokens;
    for (int l = 0; l < b->in.count; l++)
        b->tokens = b->in.layers[l].tokens < b->tokens ? b->in.layers[l].tokens : b->tokens;
    // Queries of the first quarter see little that is sealed.
    const int first = b->tokens / 4, span = b->tokens - first;
    b->positions = span < KG_EXPLORE_QUERIES ? span : KG_EXPLORE_QUERIES;
    for (int i = 0; i < b->positions; i++)
        b->at[i] = first + (int)((long)(i + 1) * span / b->positions) - 1;
    const size_t heads = (size_t)b->in.count * (size_t)b->in.kv_heads, rows = (size_t)rows_of(b), d = (size_t)b->in.head_dim;
    b->scratch_each = doubles_of(b);
    b->query = malloc(heads * rows * d * sizeof *b->query);
    b->out = malloc(heads * rows * d * sizeof *b->out);
    b->squares = malloc(heads * rows * sizeof *b->squares);
    b->scratch = malloc((size_t)kg_parallel_workers() * b->scratch_each * sizeof *b->scratch);
    if (!b->query || !b->out || !b->squares || !b->scratch)
        return kg_fail(KG_MACHINE, error, KG_ERROR, "out of memory for %d layers of %d tokens", b->in.count, b->tokens);
    kg_parallel((int)heads, reference_head, b);
    return KG_OK;
}

void kg_explore_bed_close(kg_explore_bed *b)
{
    kg_inputs_free(&b->in);
    free(b->query);
    free(b->out);
    free(b->squares);
    free(b->scratch);
    *b = (kg_explore_bed){0};
}

// ---- what a variant does ---------------------------------------------------------------------------------------------

int kg_explored_open(const kg_inputs *in, kg_explored *e, char *error)
{
    const size_t heads = (size_t)in->count * (size_t)in->q_heads, channels = (size_t)in->count * (size_t)in->kv_heads * (size_t)in->head_dim;
    *e = (kg_explored){calloc(heads, sizeof(double)), calloc(heads, sizeof(double)), calloc(channels, sizeof(double)), {{0}}, 0};
    if (e->logits && e->out && e->boosted)
        return KG_OK;
    kg_explored_close(e);
    return kg_fail(KG_MACHINE, error, KG_ERROR, "out of memory");
}

void kg_explored_close(kg_explored *e)
{
    free(e->logits);
    free(e->out);
    free(e->boosted);
    *e = (kg_explored){0};
}

typedef struct {
    const kg_explore_bed *bed;
    const kg_spec *spec;
    kg_formats formats;
    kt_engine *engine;
    kt_cache *cache;
    kt_batch *batch;
    kt_sequence sequence;
    unsigned char *block; // room for one of any layer
    scratch scratch;
    kg_explored *explored;
    char *error;
} measurement;

static int refused(const measurement *m, const char *call, kt_status status)
{
    return kg_fail(kg_exit_code(status), m->error, KG_ERROR, "%s: %.*s: %s: %s", m->spec->name, (int)strcspn(call, "("), call,
                   kt_status_name(status), kt_message());
}

#define CALL(m, call)                          \
    do {                                       \
        const kt_status status_ = (call);      \
        if (status_)                           \
            return refused(m, #call, status_); \
    } while (0)

// Whether it matters which of the model's layers one of the inputs is.
static bool is_by_layer(const kg_spec *spec) { return spec->more_count || *spec->calibration; }

static const kt_format *format_of(const measurement *m, int layer)
{
    return kg_formats_at(&m->formats, m->spec, m->bed->in.layers[layer].origin);
}

static int open_engine(measurement *m)
{
    int origins[KG_EXPLORE_LAYERS];
    for (int i = 0; i < m->bed->in.count; i++)
        origins[i] = m->bed->in.layers[i].origin;
    return kg_engine_open_layers(m->spec, is_by_layer(m->spec) ? origins : 0, m->bed->in.count, KT_DEVICE_CPU, &m->engine, m->error, KG_ERROR);
}

// One sequence of all the tokens, in one step.
static int seal(measurement *m)
{
    const kg_inputs *in = &m->bed->in;
    const uint64_t pages = (uint64_t)(m->bed->tokens / m->spec->page + 1), heads = (uint64_t)in->kv_heads;
    kt_cache_args cache = {.size = sizeof cache, .layers = in->count, .kv_heads = in->kv_heads, .max_sequences = 1, .spare_slabs = 1};
    for (int i = 0; i < in->count; i++)
        cache.budget_bytes += heads * (pages * (uint64_t)format_of(m, i)->block_bytes + 2 * (uint64_t)format_of(m, i)->slab_bytes);
    const kt_batch_args batch = {.size = sizeof batch, .slots = 1, .max_tokens = m->bed->tokens, .max_rows = m->bed->tokens};
    CALL(m, kt_cache_open(m->engine, &cache, &m->cache));
    CALL(m, kt_sequence_open(m->cache, &m->sequence));
    CALL(m, kt_batch_open(m->cache, &batch, &m->batch));
    CALL(m, kt_batch_set(m->batch, 0, m->sequence, m->bed->tokens, -1));
    CALL(m, kt_step_begin(m->batch, 0));
    for (int layer = 0; layer < in->count; layer++) {
        const kt_append_args tokens = {.size = sizeof tokens, .layer = layer, .key = in->layers[layer].key, .value = in->layers[layer].value};
        CALL(m, kt_append(m->batch, &tokens));
    }
    CALL(m, kt_step_commit(m->batch));
    kt_poll_info poll = {.size = sizeof poll};
    CALL(m, kt_poll(m->batch, &poll));
    m->explored->nonfinite = (double)poll.nonfinite;
    return KG_OK;
}

// Counts a group of `count` decoded elements: where each lies between the group's least and greatest, in steps of its width.
static void count_codes(const float *element, int count, int stride, int bits, double bars[KG_EXPLORE_BARS])
{
    float least = element[0], most = element[0];
    for (int i = 1; i < count; i++) {
        const float x = element[(long)i * stride];
        least = x < least ? x : least;
        most = x > most ? x : most;
    }
    const float top = (float)((1 << bits) - 1), step = most > least ? top / (most - least) : 0;
    for (int i = 0; i < count; i++) {
        const int code = (int)((element[(long)i * stride] - least) * step + 0.5f);
        bars[bits > 4 ? code >> (bits - 4) : code]++;
    }
}

static int read_boosted(measurement *m, int layer, int head, unsigned char boosted[256], int page)
{
    const kt_format *f = format_of(m, layer);
    memset(boosted, 0, 256);
    if (!f->key_boosted)
        return KG_OK;
    CALL(m, kt_read_block(m->cache, m->sequence, layer, head, page, m->block));
    for (int i = 0; i < f->key_boosted; i++)
        boosted[m->block[f->key_index + i]] = 1;
    return KG_OK;
}

// The codes of a part whose groups run along channels.
static void count_tokens(measurement *m, const kt_format *f, kt_part part, int group, int bits, int codes)
{
    const int end = f->sink + kt_sealed(f, part, m->bed->tokens) * f->page;
    for (int t = f->sink; t < end; t++)
        for (int c = 0; c < f->head_dim; c += group)
            count_codes(m->scratch.parts[part] + (long)t * f->head_dim + c, group, 1, bits, m->explored->codes[codes]);
}

// The codes and boosted channels of one head's sealed pages, from the tokens in the scratch; those of rotated ones are not to be seen there.
static int look_at_pages(measurement *m, int layer, int head)
{
    const kt_format *f = format_of(m, layer);
    const bool first = f == m->formats.formats; // of other ways codes may be of other bits
    const int d = f->head_dim, pages = kt_sealed(f, KT_KEY, m->bed->tokens);
    double *share = m->explored->boosted + head_at(m->bed, layer, head) * (size_t)d;
    unsigned char boosted[256];
    for (int page = 0; page < pages && f->key_bits < 16; page++) {
        KG_TRY(read_boosted(m, layer, head, boosted, page));
        for (int c = 0; c < d; c++) {
            share[c] += boosted[c] / (double)pages;
            for (int t = 0; t < f->page && first && !f->key_rotation && !f->key_along; t += f->key_group)
                count_codes(m->scratch.parts[KT_KEY] + (long)(f->sink + page * f->page + t) * d + c, f->key_group, d,
                            boosted[c] ? f->key_boost_bits : f->key_bits, m->explored->codes[boosted[c] ? KG_CODES_BOOSTED : KG_CODES_KEY]);
        }
    }
    if (!first)
        return KG_OK;
    if (f->key_bits < 16 && f->key_along && !f->key_rotation)
        count_tokens(m, f, KT_KEY, f->key_group, f->key_bits, KG_CODES_KEY);
    if (f->value_bits < 16 && !f->value_along && !f->value_rotation)
        count_tokens(m, f, KT_VALUE, f->value_group, f->value_bits, KG_CODES_VALUE);
    const int end = f->sink + kt_sealed(f, KT_VALUE, m->bed->tokens) * f->page;
    for (int t = f->sink; t < end && f->value_bits < 16 && f->value_along && !f->value_rotation; t += f->value_group)
        for (int c = 0; c < d; c++)
            count_codes(m->scratch.parts[KT_VALUE] + (long)t * d + c, f->value_group, d, f->value_bits, m->explored->codes[KG_CODES_VALUE]);
    return KG_OK;
}

static int measure_head(measurement *m, int layer, int head)
{
    const kg_explore_bed *b = m->bed;
    const size_t at = head_at(b, layer, head), rows = (size_t)rows_of(b), d = (size_t)b->in.head_dim;
    const kt_format *f = format_of(m, layer);
    int ends[2][KG_EXPLORE_QUERIES]; // by kt_part: token that the pages sealed before a query's step end at
    tokens_seen seen = exact_tokens(b, layer, head);
    for (int part = 0; part < 2; part++) {
        CALL(m, kt_read(m->cache, m->sequence, layer, head, (kt_part)part, 0, b->tokens, m->scratch.parts[part]));
        for (int i = 0; i < b->positions; i++)
            ends[part][i] = f->sink + kt_sealed(f, part, b->at[i]) * f->page;
        seen.decoded[part] = m->scratch.parts[part];
        seen.ends[part] = ends[part];
    }
    seen.sink = f->sink;
    attend(b, &seen, at, &m->scratch);
    const double *exact = b->out + at * rows * d;
    for (int h = 0; h < b->group_heads; h++) {
        kg_error logits = {0}, out = {0};
        for (size_t r = (size_t)h; r < rows; r += (size_t)b->group_heads) {
            kg_error_join(&logits, (kg_error){m->scratch.differences[r], b->squares[at * rows + r]});
            kg_error_add(&out, exact + r * d, m->scratch.out + r * d, (int)d);
        }
        const size_t q_head = (size_t)layer * (size_t)b->in.q_heads + (size_t)head * (size_t)b->group_heads + (size_t)h;
        m->explored->logits[q_head] = kg_error_relative(logits);
        m->explored->out[q_head] = kg_error_relative(out);
    }
    return look_at_pages(m, layer, head);
}

static int measure(measurement *m)
{
    const kg_explore_bed *b = m->bed;
    memset(m->explored->codes, 0, sizeof m->explored->codes);
    memset(m->explored->boosted, 0, (size_t)b->in.count * (size_t)b->in.kv_heads * (size_t)b->in.head_dim * sizeof(double));
    int most = 0;
    KG_TRY(open_engine(m));
    KG_TRY(seal(m));
    for (int i = 0; i < m->formats.count; i++)
        most = m->formats.formats[i].block_bytes > most ? m->formats.formats[i].block_bytes : most;
    m->block = malloc((size_t)most);
    if (!m->block)
        return kg_fail(KG_MACHINE, m->error, KG_ERROR, "out of memory");
    for (int layer = 0; layer < b->in.count; layer++)
        for (int head = 0; head < b->in.kv_heads; head++)
            KG_TRY(measure_head(m, layer, head));
    return KG_OK;
}

int kg_explore_measure(const kg_explore_bed *bed, const kg_spec *spec, int worker, kg_explored *explored, char *error)
{
    measurement m = {.bed = bed, .spec = spec, .scratch = scratch_of(bed, worker), .explored = explored, .error = error};
    const char *why = kg_formats_of(spec, &m.formats);
    const int code = why ? kg_fail(KG_USER, error, KG_ERROR, "%s: %s", spec->name, why) : measure(&m);
    kt_batch_close(m.batch);
    kt_cache_close(m.cache);
    kt_close(m.engine);
    free(m.block);
    return code;
}
