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

// Rows that a word takes from one place: `width` bits, from `bit` on, of `what` number first to last; what null: zeros.
typedef struct {
    int bit, width, first, last;
    const char *what;
} piece;

enum { MOST_WORDS = 80, MOST_PIECES = 6 };

typedef struct {
    int count, pieces[MOST_WORDS];
    piece piece[MOST_WORDS][MOST_PIECES];
} word_map;

// Whether `next` goes on where the piece ends; then it does.
static bool join(piece *p, const piece *next)
{
    if (p->what != next->what || p->bit != next->bit || p->width != next->width || (p->what && p->last + 1 != next->first))
        return false;
    p->last += next->last - next->first + 1;
    return true;
}

static void add_row(word_map *map, const piece *row)
{
    int *count = &map->pieces[map->count];
    if (*count && join(&map->piece[map->count][*count - 1], row))
        return;
    if (*count < MOST_PIECES)
        map->piece[map->count][(*count)++] = *row;
}

// The planes of bits [first, last) of `count` channels: 16 rows of 2-bit planes to a word, 32 of a last 1-bit plane.
static void add_planes(word_map *map, int first, int last, const char *what, int count)
{
    const int planes = (last - first) / 2, full = (planes * count + 15) / 16, halves = (last - first) % 2 ? (count + 31) / 32 : 0;
    for (int w = 0; w < full + halves; w++, map->count++) {
        const bool wide = w < full;
        for (int x = 0; x < (wide ? 16 : 32); x++) {
            const int row = wide ? 16 * w + x : 32 * (w - full) + x, plane = wide ? row / count : planes, at = wide ? row % count : row;
            const bool real = wide ? plane < planes : at < count;
            add_row(map, real ? &(piece){first + 2 * plane, wide ? 2 : 1, at, at, what} : &(piece){0});
        }
    }
}

static void describe(const word_map *map, int first, int end, char *text, size_t size)
{
    piece all[4 * MOST_PIECES];
    int count = 0;
    size_t length = 0;
    for (int w = first; w < end; w++)
        for (int i = 0; i < map->pieces[w]; i++)
            if (!count || !join(&all[count - 1], &map->piece[w][i]))
                all[count++] = map->piece[w][i];
    for (int i = 0; i < count && length < size; i++) {
        const piece *p = &all[i];
        const char *separator = i ? "; " : "";
        if (!p->what)
            length += (size_t)snprintf(text + length, size - length, "%s%d rows of zeros", separator, p->last - p->first + 1);
        else if (p->width == 2)
            length += (size_t)snprintf(text + length, size - length, "%sbits %d and %d of %s %d to %d", separator, p->bit, p->bit + 1, p->what, p->first, p->last);
        else
            length += (size_t)snprintf(text + length, size - length, "%sbit %d of %s %d to %d", separator, p->bit, p->what, p->first, p->last);
    }
}

// By fours, then a pair, then one: what lies together in a lane's vector.
static void add_words(list *l, int offset, const word_map *map)
{
    for (int w = 0; w < map->count;) {
        const int left = map->count - w, width = left >= 4 ? 4 : left >= 2 ? 2 : 1;
        char text[256];
        describe(map, w, w + width, text, sizeof text);
        add(l, offset + w * WORD, width * WORD, "%d bytes of each lane: %s", 4 * width, text);
        w += width;
    }
}

// The scales of groups along channels, at the head of a tile.
static void add_pairs(list *l, int offset, int group, int bytes)
{
    for (int g = 0; g < bytes / (TILE * 4); g++)
        add(l, offset + g * TILE * 4, TILE * 4, "fp16 (scale, zero) of the tile's 32 tokens, channels %d to %d", g * group, (g + 1) * group - 1);
}

// The scales of groups along tokens, of a whole page.
static void add_scales(list *l, const kt_format *f, int offset, int group)
{
    for (int g = 0; g < f->page / group; g++)
        for (int zero = 0; zero < 2; zero++)
            add(l, offset + (2 * g + zero) * 2 * f->head_dim, 2 * f->head_dim, "fp16 %s of channels 0 to %d, tokens %d to %d", zero ? "zeros" : "scales",
                f->head_dim - 1, g * group, (g + 1) * group - 1);
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
    add_pairs(l, f->key_tiles, f->key_group, f->key_meta_bytes);
    word_map map = {0};
    add_planes(&map, 0, f->key_bits, "channels", f->head_dim);
    add_planes(&map, f->key_bits, f->key_boost_bits, "boosted channels", f->key_boosted);
    add_words(l, f->key_tiles + f->key_meta_bytes, &map);
}

static void add_value_tiles(list *l, const kt_format *f)
{
    l->tiles = f->page / TILE;
    l->tile_bytes = f->value_tile_bytes;
    if (f->value_bits == 16) {
        add(l, f->value_tiles, f->value_tile_bytes, "values of the tile's 32 tokens, %s", f->dtype == KT_BF16 ? "bf16" : "fp16");
        return;
    }
    add_pairs(l, f->value_tiles, f->value_group, f->value_meta_bytes);
    word_map map = {0};
    add_planes(&map, 0, f->value_bits, "channels", f->head_dim);
    add_words(l, f->value_tiles + f->value_meta_bytes, &map);
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
    if (f->key_bits < 16 && !f->key_along)
        add_scales(&l, f, f->key_meta, f->key_group);
    add(&l, f->key_index, f->key_boosted, "boosted channels, ascending");
    add(&l, f->key_index + f->key_boosted, f->key_tiles - f->key_index - f->key_boosted, "zero, up to a line of 128 bytes");
    add_key_tiles(&l, f);
    add_value_tiles(&l, f);
    l.tiles = 1;
    l.tile_bytes = 0;
    if (f->value_bits < 16 && f->value_along)
        add_scales(&l, f, f->value_meta, f->value_group);
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
