// The bytes of a page and of a slab, in the words of templates/lib/page.cuh.
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "inspect.h"
#include "kitty.h"

enum { TILE = 32, LANES = 32, WORD = 4 * LANES }; // WORD: one word of every lane

typedef struct {
    kg_region *at;
    int count;
    int tiles, tile_bytes; // of the tiles that regions are in; 1 and 0 outside
} list;

static void add(list *l, int offset, int size, const char *format, ...) __attribute__((format(printf, 4, 5)));
static void add(list *l, int offset, int size, const char *format, ...)
{
    if (!size || l->count == KG_REGIONS)
        return;
    kg_region *r = &l->at[l->count++];
    *r = (kg_region){offset, size, l->tiles, l->tile_bytes, ""};
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(r->what, sizeof r->what, format, arguments);
    va_end(arguments);
}

// Rows of a matrix of 2-bit codes that come from one place, or pairs of rows of 1-bit codes.
typedef struct {
    int first, count, bit, bits; // bit: the lower of 2, or the one of 1
    const char *what;            // "channels"; null: zeros
    int channels;                // in all
} rows;

// Describes rows [first, end) of `parts`.
static void describe(const rows *parts, int count, int first, int end, char *text, size_t size)
{
    size_t length = 0;
    for (int i = 0; i < count; i++) {
        const rows *p = &parts[i];
        const int low = first > p->first ? first : p->first, high = end < p->first + p->count ? end : p->first + p->count;
        if (low >= high)
            continue;
        const int each = p->bits == 1 ? 2 : 1, from = (low - p->first) * each, to = (high - p->first) * each;
        length += (size_t)snprintf(text + length, length < size ? size - length : 0, "%s", length ? "; " : "");
        if (!p->what)
            length += (size_t)snprintf(text + length, length < size ? size - length : 0, "%d rows of zeros", high - low);
        else if (p->bits == 1)
            length += (size_t)snprintf(text + length, length < size ? size - length : 0, "bit %d of %s %d to %d", p->bit, p->what, from,
                                       (to < p->channels ? to : p->channels) - 1);
        else
            length += (size_t)snprintf(text + length, length < size ? size - length : 0, "bits %d and %d of %s %d to %d", p->bit, p->bit + 1, p->what,
                                       from, to - 1);
    }
}

// The planes of bits [bit, end) of so many channels from `row` on: of 2 bits each, then of 1. Returns the row behind, a multiple of 16.
static int add_planes(rows *parts, int *count, int row, int bit, int end, int channels, const char *what)
{
    for (; bit + 2 <= end; bit += 2, row += channels)
        parts[(*count)++] = (rows){row, channels, bit, 2, what, channels};
    if (row % 16) {
        parts[(*count)++] = (rows){row, 16 - row % 16, 0, 0, 0, 0};
        row += 16 - row % 16;
    }
    if (bit < end && channels) {
        const int pairs = (channels + 31) / 32 * 16;
        parts[(*count)++] = (rows){row, pairs, bit, 1, what, channels};
        row += pairs;
    }
    return row;
}

static const char *const metas[] = {"fp16", "8-bit"};

// (scale, zero) pairs at the head of a tile.
static void add_pairs(list *l, int offset, int groups, int group, int small)
{
    const int bytes = TILE * (small ? 2 : 4);
    for (int g = 0; g < groups; g++)
        add(l, offset + g * bytes, bytes, "%s (scale, zero) of the tile's 32 tokens, channels %d to %d", metas[small], g * group,
            (g + 1) * group - 1);
}

// Scales and zeros by channel.
static void add_scales(list *l, const kt_format *f, int offset, int group, int small)
{
    const int bytes = f->head_dim * (small ? 1 : 2);
    for (int g = 0; g < f->page / group; g++)
        for (int zero = 0; zero < 2; zero++)
            add(l, offset + (2 * g + zero) * bytes, bytes, "%s %s of channels 0 to %d, tokens %d to %d", metas[small],
                zero ? "zeros" : "scales", f->head_dim - 1, g * group, (g + 1) * group - 1);
}

// Words of 16 rows each, by fours, then a pair, then one: what lies together in a lane's vector.
static void add_words(list *l, int offset, int words, const rows *parts, int part_count)
{
    for (int w = 0; w < words;) {
        const int left = words - w, width = left >= 4 ? 4 : left >= 2 ? 2 : 1;
        char text[256];
        describe(parts, part_count, 16 * w, 16 * (w + width), text, sizeof text);
        add(l, offset + w * WORD, width * WORD, "%d bytes of each lane: %s", 4 * width, text);
        w += width;
    }
}

static void add_key_tiles(list *l, const kt_format *f)
{
    l->tiles = f->page / TILE;
    l->tile_bytes = f->key_tile_bytes;
    if (f->key_bits == 16) {
        for (int m = 0; m < 2; m++)
            add(l, f->key_tiles + m * f->key_tile_bytes / 2, f->key_tile_bytes / 2, "keys of tokens %d to %d of the tile, %s", 16 * m, 16 * m + 15,
                f->dtype == KT_BF16 ? "bf16" : "fp16");
        return;
    }
    if (f->key_along)
        add_pairs(l, f->key_tiles, f->head_dim / f->key_group, f->key_group, f->key_meta8);
    rows parts[12];
    int count = 0;
    const int row = add_planes(parts, &count, 0, 0, f->key_bits, f->head_dim, "channels");
    add_planes(parts, &count, row, f->key_bits, f->key_boost_bits, f->key_boosted, "boosted channels");
    add_words(l, f->key_tiles + f->key_meta_bytes, f->key_rows / 16, parts, count);
}

static void add_value_tiles(list *l, const kt_format *f)
{
    l->tiles = f->page / TILE;
    l->tile_bytes = f->value_tile_bytes;
    if (f->value_bits == 16) {
        add(l, f->value_tiles, f->value_tile_bytes, "values of the tile's 32 tokens, %s", f->dtype == KT_BF16 ? "bf16" : "fp16");
        return;
    }
    if (!f->value_along)
        add_pairs(l, f->value_tiles, f->head_dim / f->value_group, f->value_group, f->value_meta8);
    rows parts[6];
    int count = 0;
    const int end = add_planes(parts, &count, 0, 0, f->value_bits, f->head_dim, "channels");
    add_words(l, f->value_tiles + f->value_meta_bytes, end / 16, parts, count);
    l->tiles = 1, l->tile_bytes = 0;
    if (f->value_along)
        add_scales(l, f, f->value_meta, f->value_group, f->value_meta8);
}

int kg_page_regions(const kt_format *f, kg_region regions[KG_REGIONS])
{
    list l = {.at = regions, .tiles = 1};
    static const char *const parts[2] = {"keys", "values"};
    for (int p = 0; p < 2; p++) {
        add(&l, KT_HEADER_KEY_FLAGS + 2 * p, 1, "flags of the %s; bit 0: one was not finite or a group overflowed, and counts as 0", parts[p]);
        add(&l, KT_HEADER_KEY_EXPONENT + 2 * p, 1, "exponent of the %s: the smallest e with every scale <= 2^e", parts[p]);
    }
    const int small[2] = {f->key_meta8, f->value_meta8};
    int zero = KT_HEADER_KEY_ZERO; // the first byte of which nothing is said
    for (int p = 0; p < 2; p++) {
        if (!small[p])
            continue;
        add(&l, zero, KT_HEADER_KEY_ZERO + p - zero, "zero");
        add(&l, KT_HEADER_KEY_ZERO + p, 1, "exponent of the %s' zeros: the smallest e with every zero within 2^e", parts[p]);
        zero = KT_HEADER_KEY_ZERO + p + 1;
    }
    add(&l, zero, KT_HEADER_BYTES - zero, "zero");
    if (f->key_bits < 16 && !f->key_along)
        add_scales(&l, f, f->key_meta, f->key_group, f->key_meta8);
    add(&l, f->key_index, f->key_boosted, "boosted channels, ascending");
    add(&l, f->key_index + f->key_boosted, f->key_tiles - f->key_index - f->key_boosted, "zero, up to a line of 128 bytes");
    add_key_tiles(&l, f);
    add_value_tiles(&l, f);
    return l.count;
}

int kg_slab_regions(const kt_format *f, kg_region regions[KG_REGIONS])
{
    list l = {.at = regions, .tiles = 1};
    const char *more = f->sink == 1 ? "" : "s";
    add(&l, 0, f->slab_sink_value, "keys of the first %d token%s", f->sink, more);
    add(&l, f->slab_sink_value, f->slab_key - f->slab_sink_value, "values of the first %d token%s", f->sink, more);
    add(&l, f->slab_key, f->slab_value - f->slab_key, "keys of the newest tokens: a ring of %d", f->key_ring);
    add(&l, f->slab_value, f->slab_bytes - f->slab_value, "values of the newest tokens: a ring of %d", f->value_ring);
    return l.count;
}

int kg_table_regions(const kt_format *f, kg_region regions[KG_REGIONS])
{
    list l = {.at = regions, .tiles = 1};
    const int matrix = 2 * f->head_dim * f->head_dim;
    int end = f->table_bytes; // of the list: the first matrix, if there is one
    const int rotations[2] = {f->key_rotation == 2 ? f->table_key_rotation : -1, f->value_rotation == 2 ? f->table_value_rotation : -1};
    for (int p = 0; p < 2; p++)
        end = rotations[p] >= 0 && rotations[p] < end ? rotations[p] : end;
    const int listed = end ? f->key_boosted : 0;
    add(&l, f->table_boosted, listed, "boosted channels, ascending");
    add(&l, f->table_boosted + listed, end - listed, "zero, up to a line of 128 bytes");
    for (int p = 0; p < 2; p++)
        for (int back = 0; back < 2 && rotations[p] >= 0; back++)
            add(&l, rotations[p] + back * matrix, matrix, "fp16 matrix that rotates %s%s", p ? "values" : "keys", back ? " back: its transpose" : "");
    return l.count;
}
