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

// Rows of a matrix of 2-bit codes that come from one place.
typedef struct {
    int first, count, bit; // bit: the lower of the two
    const char *what;      // "channels"
    int from;              // the first row's place in it
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
        length += (size_t)snprintf(text + length, length < size ? size - length : 0, "%s", length ? "; " : "");
        if (p->what)
            length += (size_t)snprintf(text + length, length < size ? size - length : 0, "bits %d and %d of %s %d to %d", p->bit, p->bit + 1, p->what,
                                       p->from + low - p->first, p->from + high - p->first - 1);
        else
            length += (size_t)snprintf(text + length, length < size ? size - length : 0, "%d rows of zeros", high - low);
    }
}

// Words of 16 rows each, by fours, then a pair, then one: what lies together in a lane's vector.
static void add_words(list *l, int offset, int words, const rows *parts, int part_count)
{
    for (int w = 0; w < words;) {
        const int left = words - w, width = left >= 4 ? 4 : left >= 2 ? 2 : 1;
        char text[120];
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
    rows parts[10];
    int count = 0, row = 0;
    for (int bit = 0; bit < f->key_bits; bit += 2, row += f->head_dim)
        parts[count++] = (rows){row, f->head_dim, bit, "channels", 0};
    for (int bit = f->key_bits; bit < f->key_boost_bits; bit += 2, row += f->key_boosted)
        parts[count++] = (rows){row, f->key_boosted, bit, "boosted channels", 0};
    parts[count++] = (rows){row, f->key_rows - row, 0, 0, 0};
    add_words(l, f->key_tiles, f->key_rows / 16, parts, count);
}

static void add_value_tiles(list *l, const kt_format *f)
{
    l->tiles = f->page / TILE;
    l->tile_bytes = f->value_tile_bytes;
    if (f->value_bits == 16) {
        add(l, f->value_tiles, f->value_tile_bytes, "values of the tile's 32 tokens, %s", f->dtype == KT_BF16 ? "bf16" : "fp16");
        return;
    }
    for (int g = 0; g < f->head_dim / f->value_group; g++)
        add(l, f->value_tiles + g * TILE * 4, TILE * 4, "fp16 (scale, zero) of the tile's 32 tokens, channels %d to %d", g * f->value_group,
            (g + 1) * f->value_group - 1);
    rows parts[4];
    int count = 0;
    for (int bit = 0; bit < f->value_bits; bit += 2, count++)
        parts[count] = (rows){count * f->head_dim, f->head_dim, bit, "channels", 0};
    add_words(l, f->value_tiles + f->value_meta_bytes, count * f->head_dim / 16, parts, count);
}

int kg_page_regions(const kt_format *f, kg_region regions[KG_REGIONS])
{
    list l = {.at = regions, .tiles = 1};
    static const char *const parts[2] = {"keys", "values"};
    for (int p = 0; p < 2; p++) {
        add(&l, KT_HEADER_KEY_FLAGS + 2 * p, 1, "flags of the %s; bit 0: one was not finite or a group overflowed, and counts as 0", parts[p]);
        add(&l, KT_HEADER_KEY_EXPONENT + 2 * p, 1, "exponent of the %s: the smallest e with every scale <= 2^e", parts[p]);
    }
    add(&l, KT_HEADER_VALUE_EXPONENT + 1, KT_HEADER_BYTES - KT_HEADER_VALUE_EXPONENT - 1, "zero");
    const int groups = f->key_bits < 16 ? f->page / f->key_group : 0;
    for (int g = 0; g < groups; g++)
        for (int zero = 0; zero < 2; zero++)
            add(&l, f->key_meta + (2 * g + zero) * 2 * f->head_dim, 2 * f->head_dim, "fp16 %s of channels 0 to %d, tokens %d to %d",
                zero ? "zeros" : "scales", f->head_dim - 1, g * f->key_group, (g + 1) * f->key_group - 1);
    add(&l, f->key_index, f->key_boosted, "boosted channels, ascending");
    add(&l, f->key_index + f->key_boosted, f->key_tiles - f->key_index - f->key_boosted, "zero, up to a line of 128 bytes");
    add_key_tiles(&l, f);
    add_value_tiles(&l, f);
    return l.count;
}

int kg_slab_regions(const kt_format *f, kg_region regions[KG_REGIONS])
{
    list l = {.at = regions, .tiles = 1};
    add(&l, 0, f->slab_sink_value, "keys of the first %d tokens", f->sink);
    add(&l, f->slab_sink_value, f->slab_key - f->slab_sink_value, "values of the first %d tokens", f->sink);
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
