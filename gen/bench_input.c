#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench.h"
#include "command.h"
#include "random.h"

enum { MOST_SEQUENCES = 4096, MOST_TOKENS = 1 << 22, MOST_FILE = 1 << 16, MOST_LAYERS = 36, LEAST_LAYERS = 8, BRIEF_LAYERS = 4, L2_LAYERS = 256 };

const char *const kg_bench_ops[KG_BENCH_OPS] = {"attend", "step", "append", "seal", "host"};

// "32x8192", all of the word.
static bool parse_shape(const char *word, kg_shape *shape)
{
    char *end;
    if (*word < '1' || *word > '9')
        return false;
    const long sequences = strtol(word, &end, 10);
    if (*end != 'x' || end[1] < '1' || end[1] > '9')
        return false;
    const long tokens = strtol(end + 1, &end, 10);
    *shape = (kg_shape){(int)sequences, (int)tokens};
    return !*end && sequences >= 1 && sequences <= MOST_SEQUENCES && tokens >= 2 && tokens <= MOST_TOKENS;
}

static int parse_words(char *text, const char *from, kg_shape shapes[KG_BENCH_SHAPES], int *count, char *error)
{
    char *rest = 0;
    *count = 0;
    for (char *hash = strchr(text, '#'); hash; hash = strchr(hash, '#'))
        memset(hash, ' ', strcspn(hash, "\n"));
    for (char *word = strtok_r(text, ", \t\r\n", &rest); word; word = strtok_r(0, ", \t\r\n", &rest)) {
        if (*count == KG_BENCH_SHAPES)
            return kg_fail(KG_USER, error, KG_ERROR, "%s: more than %d shapes", from, KG_BENCH_SHAPES);
        if (!parse_shape(word, &shapes[(*count)++]))
            return kg_fail(KG_USER, error, KG_ERROR, "%s: '%.64s' is not allowed; allowed: SEQUENCESxTOKENS, 1 to %d sequences of 2 to %d "
                           "tokens (32x8192), or a file of such words", from, word, MOST_SEQUENCES, MOST_TOKENS);
    }
    return *count ? KG_OK : kg_fail(KG_USER, error, KG_ERROR, "%s: no shape; SEQUENCESxTOKENS is needed (32x8192)", from);
}

int kg_bench_shapes(const char *text, kg_shape shapes[KG_BENCH_SHAPES], int *count, char *error)
{
    char *copy = 0;
    size_t size;
    if (access(text, F_OK)) {
        copy = strdup(text);
        if (!copy)
            return kg_fail(KG_MACHINE, error, KG_ERROR, "out of memory");
    } else
        KG_TRY(kg_file_read(text, MOST_FILE, &copy, &size, error, KG_ERROR));
    const int code = parse_words(copy, access(text, F_OK) ? "--shapes" : text, shapes, count, error);
    free(copy);
    return code;
}

int kg_bench_parse_ops(const char *text, unsigned *ops)
{
    *ops = 0;
    while (text) {
        char word[32];
        const size_t length = strcspn(text, ",");
        snprintf(word, sizeof word, "%.*s", (int)(length < sizeof word ? length : sizeof word - 1), text);
        unsigned bit = 0;
        for (int i = 0; i < KG_BENCH_OPS; i++)
            if (!strcmp(word, kg_bench_ops[i]))
                bit = 1u << i;
        if (!bit)
            return kg_value_error("bench", "--ops", word, kg_bench_ops, KG_BENCH_OPS);
        *ops |= bit;
        text = text[length] ? text + length + 1 : 0;
    }
    return KG_OK;
}

// ---- bytes -----------------------------------------------------------------------------------------------------------


static double sealed_bytes(const kt_format *f, int keys, int values)
{
    return (double)keys * f->value_tiles + (double)values * (f->block_bytes - f->value_tiles);
}

// Keys and values of so many tokens each, exact.
static double exact_bytes(const kt_format *f, double keys, double values) { return (keys + values) * f->head_dim * 2; }

double kg_bench_attend_bytes(const kt_format *f, int kv_heads, int tokens, int fresh)
{
    const int keys = kt_sealed(f, KT_KEY, tokens), values = kt_sealed(f, KT_VALUE, tokens), all = tokens + fresh;
    return kv_heads * (sealed_bytes(f, keys, values) + exact_bytes(f, all - (double)keys * f->page, all - (double)values * f->page));
}

double kg_bench_seal_bytes(const kt_format *f, int kv_heads, int tokens)
{
    return kv_heads * exact_bytes(f, tokens, tokens) + kg_bench_attend_bytes(f, kv_heads, tokens, 0);
}

double kg_bench_append_bytes(const kt_format *f, int kv_heads, int tokens)
{
    const int keys = kt_sealed(f, KT_KEY, tokens + 1) - kt_sealed(f, KT_KEY, tokens), values = kt_sealed(f, KT_VALUE, tokens + 1) - kt_sealed(f, KT_VALUE, tokens);
    return kv_heads * (2 * exact_bytes(f, 1, 1) + exact_bytes(f, (double)keys * f->page, (double)values * f->page) + sealed_bytes(f, keys, values));
}

bool kg_bench_completes(const kt_format *f, int tokens)
{
    return kt_sealed(f, KT_KEY, tokens + 1) > kt_sealed(f, KT_KEY, tokens) || kt_sealed(f, KT_VALUE, tokens + 1) > kt_sealed(f, KT_VALUE, tokens);
}

// ---- numbers ---------------------------------------------------------------------------------------------------------

static int by_size(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

void kg_bench_percentiles(float *samples, int count, double divisor, kg_time *time)
{
    qsort(samples, (size_t)count, sizeof *samples, by_size);
    time->us = (double)(samples[(count - 1) / 2] + samples[count / 2]) / 2 / divisor;
    time->low = (double)samples[count / 10] / divisor;
    time->high = (double)samples[count - 1 - count / 10] / divisor;
}

void kg_bench_lengths(int most, int count, int *lengths)
{
    kg_random random = kg_random_seed(1, 32);
    for (int i = 0; i < count; i++) {
        const int length = (int)((double)most * pow(32, (double)kg_random_uniform(&random) - 1));
        lengths[i] = length < 2 ? 2 : length;
    }
}

int kg_bench_layers(double read, double held, double l2, double room, bool brief)
{
    const double needed = ceil(4 * l2 / read), fit = floor(room / held), least = brief ? BRIEF_LAYERS : LEAST_LAYERS;
    double layers = needed > L2_LAYERS ? L2_LAYERS : needed < least ? least : needed;
    if (!brief && layers < MOST_LAYERS && held * MOST_LAYERS < room / 4) // as many as a model has, where that is no burden
        layers = MOST_LAYERS;
    return fit < 1 ? 0 : (int)(layers < fit ? layers : fit);
}
