// capture: a decode step as one CUDA graph, replayed beside the same steps run one by one.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bed.h"
#include "cuda.h"
#include "exact.h"
#include "random.h"

enum { POISON = 0xfffe, LAYERS = 2, SEQUENCES = 3, PARTS = 3, SLACK = 2, JOIN = 100, HURRY = 7 };
static const int prompts[SEQUENCES] = {150, 411, 20};

// One of the two: replayed or eager.
typedef struct {
    bed bed;
    char *inputs[PARTS]; // the step's query, key and value: [LAYERS, SEQUENCES, heads, head_dim]
    char *out;           // [LAYERS, SEQUENCES, q_heads, head_dim]
    uint16_t *host;
} lane;

typedef struct {
    lane eager, replayed;
    cuda_handle graph;
    long compared, differ, pages, bad_pages;
} state;

static int heads_of(const bed *b, int part) { return part ? b->kv_heads : b->q_heads; }

static int open_lane(lane *l, const char *spec, const char *dtype, int max_tokens)
{
    TRY(bed_open(&l->bed, spec, dtype, -1, LAYERS, 2, SEQUENCES, max_tokens));
    for (int part = 0; part < PARTS; part++)
        CALL(kt_memory_alloc(l->bed.engine, LAYERS * elements(SEQUENCES, heads_of(&l->bed, part), l->bed.format.head_dim) * 2,
                             (void **)&l->inputs[part]));
    CALL(kt_memory_alloc(l->bed.engine, LAYERS * l->bed.out_bytes, (void **)&l->out));
    l->host = malloc(LAYERS * l->bed.out_bytes);
    if (!l->host)
        return fail(KG_MACHINE, "out of memory");
    for (int i = 0; i < SEQUENCES; i++)
        TRY(bed_fill(&l->bed, i, prompts[i]));
    return KG_OK;
}

static void close_lane(lane *l)
{
    for (int part = 0; part < PARTS; part++)
        kt_memory_free(l->bed.engine, l->inputs[part]);
    kt_memory_free(l->bed.engine, l->out);
    free(l->host);
    bed_close(&l->bed);
}

// The tokens of a step, the same for both; and poison where they write.
static int upload(lane *l, int step)
{
    const bed *b = &l->bed;
    for (int part = 0; part < PARTS; part++) {
        const int rows = LAYERS * SEQUENCES * heads_of(b, part), d = b->format.head_dim;
        const size_t count = elements(rows, 1, d);
        float *drawn = malloc(count * sizeof *drawn);
        uint16_t *packed = malloc(count * sizeof *packed);
        kt_status status = KT_MEMORY;
        if (drawn && packed) {
            kg_random_rows(7, part, step, 0, rows, d, drawn);
            for (size_t i = 0; i < count; i++)
                packed[i] = kg_from_float(b->format.dtype, drawn[i]);
            status = kt_memory_write(b->engine, l->inputs[part], packed, count * 2, b->stream);
        }
        free(drawn);
        free(packed);
        if (status)
            return refused("kt_memory_write", status);
    }
    for (size_t i = 0; i < LAYERS * b->out_bytes / 2; i++)
        l->host[i] = POISON;
    CALL(kt_memory_write(b->engine, l->out, l->host, LAYERS * b->out_bytes, b->stream));
    return KG_OK;
}

static int queue_step(lane *l)
{
    bed *b = &l->bed;
    CALL(kt_step_begin(b->batch, b->stream));
    for (int layer = 0; layer < LAYERS; layer++) {
        char *at[PARTS];
        for (int part = 0; part < PARTS; part++)
            at[part] = l->inputs[part] + (size_t)layer * elements(SEQUENCES, heads_of(b, part), b->format.head_dim) * 2;
        CALL(kt_append(b->batch, &(kt_append_args){.size = sizeof(kt_append_args), .layer = layer, .key = at[1], .value = at[2],
                                                        .flags = layer % 2 == 0 ? KT_APPEND_BEHIND_ATTEND : 0}));
        CALL(kt_attend(b->batch, &(kt_attend_args){.size = sizeof(kt_attend_args), .layer = layer, .query = at[0],
                                                   .out = l->out + (size_t)layer * b->out_bytes}));
    }
    CALL(kt_step_commit(b->batch));
    return KG_OK;
}

static int read_out(lane *l)
{
    CALL(kt_memory_read(l->bed.engine, l->host, l->out, LAYERS * l->bed.out_bytes));
    return KG_OK;
}

// Rows of the sequences that take part must be the same; to a rounding, once one has joined that the captured division did not know of.
// The others stay as they were.
static void compare(state *s, int taking_part)
{
    const bed *b = &s->eager.bed;
    const size_t row = elements(1, b->q_heads, b->format.head_dim);
    for (int layer = 0; layer < LAYERS; layer++) {
        for (int r = 0; r < SEQUENCES; r++) {
            const size_t at = (size_t)layer * SEQUENCES * row + (size_t)r * row;
            s->compared++;
            if (r < taking_part && taking_part < SEQUENCES)
                s->differ += memcmp(s->replayed.host + at, s->eager.host + at, row * 2) != 0;
            else if (r < taking_part)
                s->differ += !(bed_difference(b, s->replayed.host + at, s->eager.host + at, row) <= error_limit(b->format.dtype));
            else
                for (size_t i = 0; i < row; i++)
                    s->differ += s->replayed.host[at + i] != POISON;
        }
    }
}

static int compare_pages(state *s)
{
    kt_engine_info info = {.size = sizeof info};
    CALL(kt_engine_query(s->eager.bed.engine, &info));
    unsigned char *blocks = malloc(2 * info.block_bytes);
    int code = blocks ? KG_OK : fail(KG_MACHINE, "out of memory");
    for (int i = 0; i < SEQUENCES && !code; i++) {
        int tokens[2];
        lane *lanes[] = {&s->eager, &s->replayed};
        kt_status status = KT_OK;
        for (int k = 0; k < 2 && !status; k++)
            status = kt_sequence_tokens(lanes[k]->bed.cache, lanes[k]->bed.handles[i], &tokens[k]);
        if (!status && tokens[0] != tokens[1])
            code = fail(KG_FAILED, "sequence %d has %d tokens after replays, expected %d", i, tokens[1], tokens[0]);
        for (int at = 0; at < LAYERS * s->eager.bed.kv_heads && !status && !code; at++) {
            const int head = at % s->eager.bed.kv_heads, layer = at / s->eager.bed.kv_heads;
            const kt_format *f = layer_format(s->eager.bed.engine, layer);
            for (int page = 0; page < kt_sealed(f, KT_KEY, tokens[0]) && !status; page++) {
                for (int k = 0; k < 2 && !status; k++)
                    status = kt_read_block(lanes[k]->bed.cache, lanes[k]->bed.handles[i], layer, head, page, blocks + k * f->block_bytes);
                s->pages++;
                s->bad_pages += memcmp(blocks, blocks + f->block_bytes, (size_t)f->block_bytes) != 0;
            }
        }
        if (status)
            code = refused("kt_read_block", status);
    }
    free(blocks);
    return code;
}

// The third sequence joins later: first it has a slot, but no new tokens.
static int set_slots(bed *b, int taking_part)
{
    for (int i = 0; i < SEQUENCES; i++)
        CALL(kt_batch_set(b->batch, i, b->handles[i], i < taking_part, -1));
    return KG_OK;
}

static int record(state *s)
{
    bed *b = &s->replayed.bed;
    CALL(kt_batch_upload(b->batch, b->stream));
    TRY(cuda_stream_wait(b->stream));
    TRY(cuda_capture_begin(b->stream));
    const int code = queue_step(&s->replayed);
    char message[KG_ERROR];
    snprintf(message, sizeof message, "%s", failure);
    const int ended = cuda_capture_end(b->stream, &s->graph);
    return code ? fail(code, "%.4000s", message) : ended;
}

static int step(state *s, int index, int taking_part)
{
    TRY(upload(&s->eager, index));
    TRY(queue_step(&s->eager));
    TRY(read_out(&s->eager));
    TRY(upload(&s->replayed, index));
    TRY(cuda_graph_launch(s->graph, s->replayed.bed.stream));
    TRY(read_out(&s->replayed));
    compare(s, taking_part);
    CALL(kt_step_replayed(s->replayed.bed.batch, 1));
    return KG_OK;
}

// Several replays before the host looks.
static int hurry(state *s, int index, int taking_part)
{
    for (int i = 0; i < HURRY; i++) {
        TRY(upload(&s->eager, index));
        TRY(queue_step(&s->eager));
    }
    TRY(read_out(&s->eager));
    TRY(upload(&s->replayed, index));
    for (int i = 0; i < HURRY; i++)
        TRY(cuda_graph_launch(s->graph, s->replayed.bed.stream));
    TRY(read_out(&s->replayed));
    compare(s, taking_part);
    CALL(kt_step_replayed(s->replayed.bed.batch, HURRY));
    return KG_OK;
}

// Takes back the last token of each, which may have completed a page.
static int take_back(state *s, int taking_part)
{
    bed *const beds[] = {&s->eager.bed, &s->replayed.bed};
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < taking_part; i++) {
            int tokens;
            CALL(kt_sequence_tokens(beds[k]->cache, beds[k]->handles[i], &tokens));
            CALL(kt_sequence_truncate(beds[k]->cache, beds[k]->handles[i], tokens - 1));
        }
    for (int k = 0; k < 2; k++)
        CALL(kt_batch_upload(beds[k]->batch, beds[k]->stream));
    return KG_OK;
}

// Replays that no longer fit: nothing is written, they are counted, and the host is told.
static int overrun(state *s, int index)
{
    bed *b = &s->replayed.bed;
    kt_poll_info before = {.size = sizeof before}, after = {.size = sizeof after};
    CALL(kt_poll(b->batch, &before));
    TRY(upload(&s->replayed, index));
    for (int i = 0; i < SLACK; i++)
        TRY(cuda_graph_launch(s->graph, b->stream));
    TRY(read_out(&s->replayed));
    CALL(kt_poll(b->batch, &after));
    for (size_t i = 0; i < LAYERS * b->out_bytes / 2; i++)
        if (s->replayed.host[i] != POISON)
            return fail(KG_FAILED, "a replay past the reservation wrote its output");
    if (before.overruns || after.overruns != SLACK)
        return fail(KG_FAILED, "overruns went from %d to %d; expected 0 to %d", before.overruns, after.overruns, SLACK);
    const kt_status status = kt_step_replayed(b->batch, SLACK);
    if (status != KT_FULL)
        return fail(KG_FAILED, "kt_step_replayed past the reservation gave %s; expected KT_FULL", kt_status_name(status));
    return KG_OK;
}

// Pages of which any layer has something sealed.
static int pages_of(const bed *b, int tokens)
{
    int most = 0;
    for (int layer = 0; layer < LAYERS; layer++) {
        const int pages = kt_pages(layer_format(b->engine, layer), tokens);
        most = pages > most ? pages : most;
    }
    return most;
}

// Tokens that a sequence can have with the pages that `tokens` tokens need.
static int capacity(const bed *b, int tokens)
{
    int most = tokens;
    while (pages_of(b, most + 1) <= pages_of(b, tokens))
        most++;
    return most;
}

static int go(state *s, const char *spec, const char *dtype, int steps)
{
    const int reserved = prompts[1] + steps; // the longest sequence is the first that does not fit
    TRY(open_lane(&s->eager, spec, dtype, reserved + 1024));
    TRY(open_lane(&s->replayed, spec, dtype, reserved + 1024));
    const int last = capacity(&s->replayed.bed, reserved) - prompts[1];
    lane *const lanes[] = {&s->eager, &s->replayed};
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < SEQUENCES; i++)
            CALL(kt_sequence_reserve(lanes[k]->bed.cache, lanes[k]->bed.handles[i], reserved));
    TRY(set_slots(&s->eager.bed, SEQUENCES - 1));
    CALL(kt_batch_upload(s->eager.bed.batch, s->eager.bed.stream)); // divides its steps as the captured one
    TRY(set_slots(&s->replayed.bed, SEQUENCES - 1));
    TRY(record(s));
    for (int done = 0; done < last;) {
        if (done == JOIN) { // without another capture
            TRY(set_slots(&s->eager.bed, SEQUENCES));
            TRY(set_slots(&s->replayed.bed, SEQUENCES));
            CALL(kt_batch_upload(s->eager.bed.batch, s->eager.bed.stream));
            CALL(kt_batch_upload(s->replayed.bed.batch, s->replayed.bed.stream));
        }
        const int taking_part = done < JOIN ? SEQUENCES - 1 : SEQUENCES, several = done > JOIN && done % 50 == 0 && last - done > HURRY;
        TRY(several ? hurry(s, done, taking_part) : step(s, done, taking_part));
        done += several ? HURRY : 1;
        if ((prompts[1] + done - s->eager.bed.format.sink) % s->eager.bed.format.page < HURRY) { // a page has turned: another token instead
            TRY(take_back(s, taking_part));
            TRY(step(s, done + last, taking_part));
        }
    }
    TRY(overrun(s, last));
    TRY(compare_pages(s));
    printf("%s %s: a captured step of %d layers, %d replays: %ld rows of output compared, %ld wrong; %ld pages compared, %ld differ; "
           "overruns counted: %s\n", s->eager.bed.spec.name, dtype, LAYERS, last, s->compared, s->differ, s->pages, s->bad_pages,
           s->differ || s->bad_pages ? "FAILED" : "ok");
    return s->differ || s->bad_pages ? KG_FAILED : KG_OK;
}

int part_capture(int argc, char **argv)
{
    const char *spec = "qwen3_8b/kitty_pro", *dtype = "fp16", *steps_text = NULL;
    int steps = 300, code;
    const kg_option options[] = {
        {"--spec", "MODEL/VARIANT", "what to run (default qwen3_8b/kitty_pro)", NULL, &spec},
        {"--dtype", "fp16|bf16", "element type (default fp16)", NULL, &dtype},
        {"--steps", "N", "replays at least (default 300)", NULL, &steps_text},
        {NULL, NULL, NULL, NULL, NULL},
    };
    const kg_usage usage = {"gpu_suite capture [options]",
                            "Captures one decode step and replays it over page turns, with a sequence that joins later and tokens\n"
                            "that are taken back, beside the same steps run one by one: outputs and pages must be the same. Replays past\n"
                            "the reservation must change nothing and be counted.\n",
                            options, 0, 0};
    if (kg_options(&usage, argc, argv, &code) < 0)
        return code;
    if (steps_text)
        TRY(read_integer("--steps", steps_text, 2 * JOIN, 100000, &steps));
    state s = {0};
    code = go(&s, spec, dtype, steps);
    cuda_graph_close(s.graph);
    close_lane(&s.eager);
    close_lane(&s.replayed);
    return code;
}
