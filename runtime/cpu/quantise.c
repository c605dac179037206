// The definition of a sealed block, in plain loops: scores, codes, and their order (templates/lib/page.cuh). Every kernel
// must produce the same bytes. Compiled without contraction: each fp32 operation rounds.
#include "cpu.h"

#include <math.h>
#include <string.h>

#include "../../templates/lib/hash.h"

// ---- order ----

static int channel_of(int tile, int x)
{
    return (tile >> 1) * 32 + ((x & 7) >> 1) * 8 + ((tile & 1) * 2 + (x >> 3)) * 2 + (x & 1);
}

// Index of word `w` of `words` per lane: full groups of four words, then a pair, then a single one.
static int lane_word(int w, int words, int lane)
{
    const int first = w & ~3, left = words - first;
    if (left >= 4)
        return first * 32 + lane * 4 + (w - first);
    if (left >= 2 && w - first < 2)
        return first * 32 + lane * 2 + (w - first);
    return w * 32 + lane;
}

// Position of the pair of a tile's token among the 32 of a value group.
static int pair_position(int token) { return (token & 7) * 4 + (token >> 3); }

static void store16(unsigned char *to, unsigned value)
{
    to[0] = (unsigned char)value;
    to[1] = (unsigned char)(value >> 8);
}

static unsigned load16(const unsigned char *from) { return from[0] | (unsigned)from[1] << 8; }

static void store32(unsigned char *to, uint32_t value)
{
    store16(to, value & 0xffff);
    store16(to + 2, value >> 16);
}

static uint32_t load32(const unsigned char *from) { return load16(from) | (uint32_t)load16(from + 2) << 16; }

// What the words of a tile hold: of 2-bit planes 16 rows to a word, of a 1-bit plane, the last of its channels, 32.
enum { MAX_WORDS = KT__MAX_DIM / 4 + 8 };
typedef struct {
    int count;
    unsigned char mask[MAX_WORDS]; // 3, or 1 for each half
    struct {
        short channel;             // -1: none
        unsigned char shift;
    } row[MAX_WORDS][16][2];       // by half
} word_map;

// Adds the planes of bits [first, last) of `count` channels: those of `list`, else all in the order of the words.
static void map_planes(word_map *map, int first, int last, const unsigned char *list, int count)
{
    const int planes = (last - first) / 2, full = (planes * count + 15) / 16, halves = (last - first) % 2 ? (count + 31) / 32 : 0;
    for (int w = 0; w < full + halves; w++, map->count++) {
        map->mask[map->count] = w < full ? 3 : 1;
        for (int x = 0; x < 16; x++)
            for (int h = 0; h < 2; h++) {
                const int row = w < full ? w * 16 + x : (w - full) * 32 + h * 16 + x, plane = w < full ? row / count : planes;
                const int at = w < full ? row % count : row;
                const bool real = w < full ? h == 0 && plane < planes : at < count;
                map->row[map->count][x][h].channel = (short)(!real ? -1 : list ? list[at] : channel_of(at / 16, at % 16));
                map->row[map->count][x][h].shift = (unsigned char)(first + 2 * plane);
            }
    }
}

static void map_key(const kt_format *f, const unsigned char *list, word_map *map)
{
    map->count = 0;
    map_planes(map, 0, f->key_bits, NULL, f->head_dim);
    if (f->key_boosted)
        map_planes(map, f->key_bits, f->key_boost_bits, list, f->key_boosted);
}

static void map_value(const kt_format *f, word_map *map)
{
    map->count = 0;
    map_planes(map, 0, f->value_bits, NULL, f->head_dim);
}

// Token and row of the i-th code of a lane's word.
static void place_of(kt_part part, int lane, int i, int *token, int *x)
{
    const int e = i >> 3, m = i >> 2 & 1, j = i >> 1 & 1, half = i & 1, outer = 8 * half + lane / 4, inner = 2 * (lane & 3) + 8 * j + e;
    *token = 16 * m + (part == KT_KEY ? outer : inner);
    *x = part == KT_KEY ? inner : outer;
}

// codes: [32, head_dim]
static void pack_tile(const kt_format *f, kt_part part, const word_map *map, const unsigned char *codes, unsigned char *tile)
{
    for (int w = 0; w < map->count; w++)
        for (int lane = 0; lane < 32; lane++) {
            uint32_t word = 0;
            for (int i = 0; i < 16; i++) {
                int token, x;
                place_of(part, lane, i, &token, &x);
                for (int h = 0; h < 2; h++)
                    if (map->row[w][x][h].channel >= 0)
                        word |= (uint32_t)(codes[token * f->head_dim + map->row[w][x][h].channel] >> map->row[w][x][h].shift & map->mask[w])
                                << (2 * i + h);
            }
            store32(tile + 4 * lane_word(w, map->count, lane), word);
        }
}

static void unpack_tile(const kt_format *f, kt_part part, const word_map *map, const unsigned char *tile, unsigned char *codes)
{
    memset(codes, 0, (size_t)(KT__TILE * f->head_dim));
    for (int w = 0; w < map->count; w++)
        for (int lane = 0; lane < 32; lane++) {
            const uint32_t word = load32(tile + 4 * lane_word(w, map->count, lane));
            for (int i = 0; i < 16; i++) {
                int token, x;
                place_of(part, lane, i, &token, &x);
                for (int h = 0; h < 2; h++)
                    if (map->row[w][x][h].channel >= 0)
                        codes[token * f->head_dim + map->row[w][x][h].channel] |=
                            (unsigned char)((word >> (2 * i + h) & map->mask[w]) << map->row[w][x][h].shift);
            }
        }
}

// ---- groups ----

typedef struct {
    unsigned scale, zero; // fp16
    bool overflow;
} group_meta;

static group_meta meta_of(float low, float high, int bits)
{
    group_meta g = {0};
    g.zero = kt__float_to_half(low);
    g.scale = kt__float_to_half((high - low) / (float)((1 << bits) - 1));
    if (!kt__element_finite(KT_F16, (unsigned short)g.zero) || !kt__element_finite(KT_F16, (unsigned short)g.scale))
        g = (group_meta){.overflow = true};
    return g;
}

// By multiplication and from the first element to the last: what templates/lib/range.cuh sums.
static float squared_error(const float *x, int count, int bits, group_meta g)
{
    const float scale = kt__half_to_float((unsigned short)g.scale), zero = kt__half_to_float((unsigned short)g.zero);
    const float most = (float)((1 << bits) - 1), inverse = scale > 0 ? 1.0f / scale : 0;
    float sum = 0;
    for (int i = 0; i < count; i++) {
        float code = (x[i] - zero) * inverse;
        code = rintf(code < 0 ? 0 : code > most ? most : code);
        const float off = x[i] - (code * scale + zero);
        sum += off * off;
    }
    return sum;
}

enum { RANGES = 16, RANGE_STEPS = 64 };

// The scale and zero of a group; range: as kt_format.key_range.
static group_meta measure(const float *x, int count, int bits, int range)
{
    float low = x[0], high = x[0];
    for (int i = 1; i < count; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    group_meta best = meta_of(low, high, bits);
    if (!range || best.overflow)
        return best;
    float least = squared_error(x, count, bits, best);
    for (int k = 1; k < RANGES; k++) {
        const float inset = (high - low) * ((float)k / RANGE_STEPS);
        const group_meta g = meta_of(low + inset, high - inset, bits);
        const float error = g.overflow ? INFINITY : squared_error(x, count, bits, g);
        if (error < least)
            least = error, best = g;
    }
    return best;
}

static void encode(const float *x, int count, int bits, group_meta g, unsigned char *codes)
{
    const float scale = kt__half_to_float((unsigned short)g.scale), zero = kt__half_to_float((unsigned short)g.zero);
    const float most = (float)((1 << bits) - 1);
    for (int i = 0; i < count; i++) {
        float code = 0;
        if (scale > 0) {
            code = rintf((x[i] - zero) / scale);
            code = code < 0 ? 0 : code > most ? most : code;
        }
        codes[i] = (unsigned char)code;
    }
}

// Smallest e with scale <= 2^e; -24 for 0.
static int exponent_of(unsigned scale)
{
    int exponent;
    if (!scale)
        return -24;
    return frexpf(kt__half_to_float((unsigned short)scale), &exponent) == 0.5f ? exponent - 1 : exponent;
}

// Of a part: groups that overflowed, and the exponent of its largest scale.
typedef struct {
    int overflows, exponent;
} group_sums;

static void count_group(group_sums *sums, group_meta g)
{
    const int exponent = exponent_of(g.scale);
    sums->overflows += g.overflow;
    sums->exponent = exponent > sums->exponent ? exponent : sums->exponent;
}

// Codes [page, head_dim] of groups of tokens of a channel; meta: [groups, 2, head_dim]. boosted: flags, may be null.
static void seal_channels(const kt_format *f, const unsigned short *const *rows, int group, int range, const bool *boosted, int bits,
                          int boost_bits, unsigned char *meta, unsigned char *codes, group_sums *sums)
{
    const int d = f->head_dim;
    float x[KT__MAX_PAGE];
    unsigned char group_codes[KT__MAX_PAGE];
    for (int c = 0; c < d; c++) {
        const int own = boosted && boosted[c] ? boost_bits : bits;
        for (int first = 0; first < f->page; first += group) {
            for (int i = 0; i < group; i++)
                x[i] = kt__element(f->dtype, rows[first + i][c]);
            const group_meta g = measure(x, group, own, range);
            unsigned char *scale = meta + first / group * d * 4 + c * 2;
            store16(scale, g.scale);
            store16(scale + d * 2, g.zero);
            count_group(sums, g);
            encode(x, group, own, g, group_codes);
            for (int i = 0; i < group; i++)
                codes[(first + i) * d + c] = group_codes[i];
        }
    }
}

// The same of groups of channels of a token; tiles begin with their pairs.
static void seal_tokens(const kt_format *f, const unsigned short *const *rows, int group, int bits, int range, unsigned char *tiles,
                        int tile_bytes, unsigned char *codes, group_sums *sums)
{
    const int d = f->head_dim;
    float x[KT__MAX_DIM];
    for (int t = 0; t < f->page; t++) {
        for (int c = 0; c < d; c++)
            x[c] = kt__element(f->dtype, rows[t][c]);
        for (int first = 0; first < d; first += group) {
            const group_meta g = measure(x + first, group, bits, range);
            unsigned char *pair = tiles + t / KT__TILE * tile_bytes + (first / group * KT__TILE + pair_position(t % KT__TILE)) * 4;
            store16(pair, g.scale);
            store16(pair + 2, g.zero);
            count_group(sums, g);
            encode(x + first, group, bits, g, codes + t * d + first);
        }
    }
}

// ---- scores ----

// Sum by the fixed tree; overwrites s. count is a power of two.
static float tree_sum(float *s, int count)
{
    for (int w = count / 2; w >= 1; w /= 2)
        for (int i = 0; i < w; i++)
            s[i] += s[i + w];
    return s[0];
}

// Score of one channel by its elements x[page]. A score that is no number (bf16 sums can reach infinity minus infinity)
// counts as infinity.
static float score(const kt_format *f, const float *x)
{
    float s[KT__MAX_PAGE], low = x[0], high = x[0], result;
    const float page = (float)f->page;
    switch (f->key_score) {
    case 0:
        for (int t = 0; t < f->page; t++)
            s[t] = fabsf(x[t]);
        result = tree_sum(s, f->page) / page;
        break;
    case 1:
        memcpy(s, x, (size_t)f->page * sizeof *s);
        const float mean = tree_sum(s, f->page) / page;
        for (int t = 0; t < f->page; t++)
            s[t] = (x[t] - mean) * (x[t] - mean);
        result = tree_sum(s, f->page) / page;
        break;
    default:
        for (int t = 1; t < f->page; t++) {
            low = x[t] < low ? x[t] : low;
            high = x[t] > high ? x[t] : high;
        }
        result = high - low;
    }
    return isnan(result) ? INFINITY : result;
}

// Highest scores first, ties to the lower channel; the list ascends.
static void select_boosted(const kt_format *f, const float *scores, unsigned char *list, bool *boosted)
{
    int count = 0;
    for (int c = 0; c < f->head_dim; c++) {
        int better = 0;
        for (int o = 0; o < f->head_dim; o++)
            better += scores[o] > scores[c] || (scores[o] == scores[c] && o < c);
        boosted[c] = better < f->key_boosted;
        if (boosted[c])
            list[count++] = (unsigned char)c;
    }
}

// ---- 16-bit parts ----

static unsigned exact(int dtype, unsigned short element)
{
    return !kt__element_finite(dtype, element) || element == 0x8000 ? 0 : element; // -0 becomes +0
}

// Byte offset of (token, channel) in a 16-bit key or value tile; see page.cuh.
static int exact_offset(const kt_format *f, kt_part part, int token, int channel)
{
    // Inverse of channel_of: bits of the channel within 32 are (x >> 1 & 3, tile & 1, x >> 3, x & 1).
    const int tile = channel / 32 * 2 + (channel >> 2 & 1);
    const int x = (channel >> 1 & 1) * 8 + (channel >> 3 & 3) * 2 + (channel & 1);
    const int m = token >> 4, u = token & 15;
    if (part == KT_KEY) {
        const int lane = (u & 7) * 4 + (x & 7) / 2, word = (u >> 3) + 2 * (x >> 3);
        return (((m * (f->head_dim / 16) + tile) * 32 + lane) * 4 + word) * 4 + (x & 1) * 2;
    }
    const int lane = (x & 7) * 4 + (u & 7) / 2, word = (x >> 3) + 2 * (u >> 3);
    return (((tile * 2 + m) * 32 + lane) * 4 + word) * 4 + (u & 1) * 2;
}

static void seal_exact(const kt_format *f, kt_part part, const unsigned short *const *rows, unsigned char *tiles, int tile_bytes)
{
    for (int t = 0; t < f->page; t++)
        for (int c = 0; c < f->head_dim; c++)
            store16(tiles + t / KT__TILE * tile_bytes + exact_offset(f, part, t % KT__TILE, c), exact(f->dtype, rows[t][c]));
}

static void decode_exact(const kt_format *f, kt_part part, const unsigned char *tile, float *out)
{
    for (int t = 0; t < KT__TILE; t++)
        for (int c = 0; c < f->head_dim; c++)
            out[t * f->head_dim + c] = kt__to_float(f->dtype, (unsigned short)load16(tile + exact_offset(f, part, t, c)));
}

// The rows of a page as they are sealed: `rows`, or rotated, in `storage` and `rotated`.
static const unsigned short *const *rotate_rows(const kt_format *f, kt_part part, const unsigned char *table,
                                                const unsigned short *const *rows, unsigned short *storage, const unsigned short **rotated)
{
    if (!kt__cpu_rotated(f, part))
        return rows;
    for (int t = 0; t < f->page; t++) {
        kt__cpu_rotate(f, part, table, rows[t], storage + t * f->head_dim);
        rotated[t] = storage + t * f->head_dim;
    }
    return rotated;
}

static bool any_nonfinite(const kt_format *f, const unsigned short *const *rows)
{
    for (int t = 0; t < f->page; t++)
        for (int c = 0; c < f->head_dim; c++)
            if (!kt__element_finite(f->dtype, rows[t][c]))
                return true;
    return false;
}

// ---- keys ----

int kt__cpu_seal_key(const kt_format *f, const unsigned char *table, const unsigned short *const *rows, int layer, int head,
                     int page_index, unsigned char *block)
{
    memset(block + KT_HEADER_BYTES, 0, (size_t)(f->value_tiles - KT_HEADER_BYTES));
    const bool nonfinite = any_nonfinite(f, rows);
    if (f->key_bits == 16) {
        block[KT_HEADER_KEY_FLAGS] = nonfinite;
        block[KT_HEADER_KEY_EXPONENT] = 0;
        seal_exact(f, KT_KEY, rows, block + f->key_tiles, f->key_tile_bytes);
        return 0;
    }

    unsigned short storage[KT__MAX_PAGE * KT__MAX_DIM];
    const unsigned short *rotated[KT__MAX_PAGE];
    rows = rotate_rows(f, KT_KEY, table, rows, storage, rotated);
    float column[KT__MAX_PAGE], scores[KT__MAX_DIM] = {0};
    bool boosted[KT__MAX_DIM] = {false};
    if (f->key_boosted && f->key_score == 4) {
        memcpy(block + f->key_index, table + f->table_boosted, (size_t)f->key_boosted);
        for (int i = 0; i < f->key_boosted; i++)
            boosted[table[f->table_boosted + i]] = true;
    } else if (f->key_boosted) {
        for (int c = 0; c < f->head_dim; c++) {
            for (int t = 0; t < f->page; t++)
                column[t] = kt__element(f->dtype, rows[t][c]);
            scores[c] = f->key_score == 3 ? kt_random_score(f->key_seed, layer, head, page_index, c) : score(f, column);
        }
        select_boosted(f, scores, block + f->key_index, boosted);
    }

    unsigned char codes[KT__MAX_PAGE * KT__MAX_DIM];
    group_sums sums = {0, -24};
    if (f->key_along)
        seal_tokens(f, rows, f->key_group, f->key_bits, f->key_range, block + f->key_tiles, f->key_tile_bytes, codes, &sums);
    else
        seal_channels(f, rows, f->key_group, f->key_range, boosted, f->key_bits, f->key_boost_bits, block + f->key_meta, codes, &sums);
    word_map map;
    map_key(f, block + f->key_index, &map);
    for (int tile = 0; tile < f->page / KT__TILE; tile++)
        pack_tile(f, KT_KEY, &map, codes + tile * KT__TILE * f->head_dim, block + f->key_tiles + tile * f->key_tile_bytes + f->key_meta_bytes);
    block[KT_HEADER_KEY_FLAGS] = nonfinite || sums.overflows;
    block[KT_HEADER_KEY_EXPONENT] = (unsigned char)sums.exponent;
    return sums.overflows;
}

// The scale and zero of a group of keys or values, at a token of the page and a channel.
static group_meta meta_at(const kt_format *f, kt_part part, const unsigned char *block, int token, int channel)
{
    const int d = f->head_dim, group = part == KT_KEY ? f->key_group : f->value_group;
    const unsigned char *at;
    if (part == KT_KEY ? f->key_along : !f->value_along) {
        at = block + (part == KT_KEY ? f->key_tiles + token / KT__TILE * f->key_tile_bytes : f->value_tiles + token / KT__TILE * f->value_tile_bytes);
        at += (channel / group * KT__TILE + pair_position(token % KT__TILE)) * 4;
        return (group_meta){load16(at), load16(at + 2), false};
    }
    at = block + (part == KT_KEY ? f->key_meta : f->value_meta) + token / group * d * 4 + channel * 2;
    return (group_meta){load16(at), load16(at + 2 * d), false};
}

static void decode_codes(const kt_format *f, kt_part part, const unsigned char *table, const unsigned char *block, int tile,
                         const unsigned char *codes, float *out)
{
    const int d = f->head_dim;
    for (int t = 0; t < KT__TILE; t++) {
        for (int c = 0; c < d; c++) {
            const group_meta g = meta_at(f, part, block, tile * KT__TILE + t, c);
            out[t * d + c] = (float)codes[t * d + c] * kt__half_to_float((unsigned short)g.scale) + kt__half_to_float((unsigned short)g.zero);
        }
        if (kt__cpu_rotated(f, part))
            kt__cpu_rotate_back(f, part, table, out + t * d);
    }
}

void kt__cpu_decode_key_tile(const kt_format *f, const unsigned char *table, const unsigned char *block, int tile, float *out)
{
    const unsigned char *at = block + f->key_tiles + tile * f->key_tile_bytes;
    if (f->key_bits == 16) {
        decode_exact(f, KT_KEY, at, out);
        return;
    }
    unsigned char codes[KT__TILE * KT__MAX_DIM];
    word_map map;
    map_key(f, block + f->key_index, &map);
    unpack_tile(f, KT_KEY, &map, at + f->key_meta_bytes, codes);
    decode_codes(f, KT_KEY, table, block, tile, codes, out);
}

// ---- values ----

int kt__cpu_seal_value(const kt_format *f, const unsigned char *table, const unsigned short *const *rows, unsigned char *block)
{
    unsigned char *tiles = block + f->value_tiles;
    memset(tiles, 0, (size_t)(f->block_bytes - f->value_tiles));
    const bool nonfinite = any_nonfinite(f, rows);
    if (f->value_bits == 16) {
        block[KT_HEADER_VALUE_FLAGS] = nonfinite;
        block[KT_HEADER_VALUE_EXPONENT] = 0;
        seal_exact(f, KT_VALUE, rows, tiles, f->value_tile_bytes);
        return 0;
    }

    unsigned short storage[KT__MAX_PAGE * KT__MAX_DIM];
    const unsigned short *rotated[KT__MAX_PAGE];
    rows = rotate_rows(f, KT_VALUE, table, rows, storage, rotated);
    unsigned char codes[KT__MAX_PAGE * KT__MAX_DIM];
    group_sums sums = {0, -24};
    if (f->value_along)
        seal_channels(f, rows, f->value_group, f->value_range, NULL, f->value_bits, 0, block + f->value_meta, codes, &sums);
    else
        seal_tokens(f, rows, f->value_group, f->value_bits, f->value_range, tiles, f->value_tile_bytes, codes, &sums);
    word_map map;
    map_value(f, &map);
    for (int tile = 0; tile < f->page / KT__TILE; tile++)
        pack_tile(f, KT_VALUE, &map, codes + tile * KT__TILE * f->head_dim, tiles + tile * f->value_tile_bytes + f->value_meta_bytes);
    block[KT_HEADER_VALUE_FLAGS] = nonfinite || sums.overflows;
    block[KT_HEADER_VALUE_EXPONENT] = (unsigned char)sums.exponent;
    return sums.overflows;
}

void kt__cpu_decode_value_tile(const kt_format *f, const unsigned char *table, const unsigned char *block, int tile, float *out)
{
    const unsigned char *at = block + f->value_tiles + tile * f->value_tile_bytes;
    if (f->value_bits == 16) {
        decode_exact(f, KT_VALUE, at, out);
        return;
    }
    unsigned char codes[KT__TILE * KT__MAX_DIM];
    word_map map;
    map_value(f, &map);
    unpack_tile(f, KT_VALUE, &map, at + f->value_meta_bytes, codes);
    decode_codes(f, KT_VALUE, table, block, tile, codes, out);
}

void kt__cpu_decode_key(const kt_format *f, const unsigned char *table, const unsigned char *block, float *out)
{
    for (int tile = 0; tile < f->page / KT__TILE; tile++)
        kt__cpu_decode_key_tile(f, table, block, tile, out + tile * KT__TILE * f->head_dim);
}

void kt__cpu_decode_value(const kt_format *f, const unsigned char *table, const unsigned char *block, float *out)
{
    for (int tile = 0; tile < f->page / KT__TILE; tile++)
        kt__cpu_decode_value_tile(f, table, block, tile, out + tile * KT__TILE * f->head_dim);
}
