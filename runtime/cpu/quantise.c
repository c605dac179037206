// The definition of a sealed block, in plain loops: scores, codes, and their order (templates/lib/page.cuh). Every kernel
// must produce the same bytes. Compiled without contraction: each fp32 operation rounds.
#include "cpu.h"

#include <math.h>
#include <string.h>

#include "../../templates/lib/hash.h"
#include "../../templates/lib/meta8.h"

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

// Of a part: groups that overflowed, and the exponents of its largest scale and zero.
typedef struct {
    int overflows, exponent, zero_exponent;
} group_sums;

static int larger(int a, int b) { return a > b ? a : b; }

static void count_group(group_sums *sums, group_meta g)
{
    sums->overflows += g.overflow;
    sums->exponent = larger(sums->exponent, exponent_of(g.scale));
    sums->zero_exponent = larger(sums->zero_exponent, exponent_of(g.zero & 0x7fff));
}

enum { LEAST_META8 = -7, MOST_META8 = 15 }; // exponents with which fp16 holds what a byte stands for

static int meta8_exponent(int exponent) { return exponent < LEAST_META8 ? LEAST_META8 : exponent > MOST_META8 ? MOST_META8 : exponent; }

static float meta8_value(unsigned byte, int exponent) { return ldexpf(kt__half_to_float((unsigned short)kt_meta8_half(byte)), exponent); }

static unsigned meta8_byte(float x, int exponent, int up)
{
    const float units = ldexpf(fabsf(x), 8 - exponent);
    uint32_t bits;
    memcpy(&bits, &units, sizeof bits);
    return kt_meta8_round(bits, up) | (x < 0 ? 0x80u : 0);
}

// Where the scales and zeros of a part are, and how they are stored; by_token: pairs at the head of tiles, else [groups, 2, head_dim].
typedef struct {
    unsigned char *at;
    int group, bits, boost_bits, range;
    const bool *boosted;     // flags by channel; null: none
    bool by_token, small;    // small: of 8 bits
    int tile_bytes;
    group_sums sums;
} group_plan;

static void store_meta(const kt_format *f, group_plan *p, int token, int channel, unsigned scale, unsigned zero)
{
    const int size = p->small ? 1 : 2;
    unsigned char *to = p->at, *second;
    if (p->by_token) {
        to += token / KT__TILE * p->tile_bytes + (channel / p->group * KT__TILE + pair_position(token % KT__TILE)) * 2 * size;
        second = to + size;
    } else {
        to += (token / p->group * 2 * f->head_dim + channel) * size;
        second = to + f->head_dim * size;
    }
    if (p->small) {
        *to = (unsigned char)scale;
        *second = (unsigned char)zero;
    } else {
        store16(to, scale);
        store16(second, zero);
    }
}

// The nearest zero of 8 bits, and the smallest scale that reaches from it to where the group ended.
static group_meta pack_meta8(group_meta g, int bits, const group_sums *sums, unsigned *scale_byte, unsigned *zero_byte)
{
    const int e = meta8_exponent(sums->exponent), ez = meta8_exponent(sums->zero_exponent);
    const float most = (float)((1 << bits) - 1), zero = kt__half_to_float((unsigned short)g.zero);
    const float end = zero + kt__half_to_float((unsigned short)g.scale) * most;
    *zero_byte = meta8_byte(zero, ez, 0);
    const float from = meta8_value(*zero_byte, ez), scale = (end - from) / most;
    *scale_byte = g.scale && scale > 0 ? meta8_byte(scale, e, 1) : 0;
    g.scale = kt__float_to_half(meta8_value(*scale_byte, e));
    g.zero = kt__float_to_half(from);
    return g;
}

// Elements of the group that begins at a token and a channel; returns its scale and zero before they are packed.
static group_meta load_group(const kt_format *f, const group_plan *p, const unsigned short *const *rows, int token, int channel, int bits, float *x)
{
    for (int i = 0; i < p->group; i++)
        x[i] = kt__element(f->dtype, p->by_token ? rows[token][channel + i] : rows[token + i][channel]);
    return measure(x, p->group, bits, p->range);
}

// Codes [page, head_dim] of a part, and its scales and zeros.
static void seal_groups(const kt_format *f, const unsigned short *const *rows, group_plan *p, unsigned char *codes)
{
    const int d = f->head_dim, down = p->by_token ? 1 : p->group, across = p->by_token ? p->group : 1;
    float x[KT__MAX_PAGE];
    unsigned char group_codes[KT__MAX_PAGE];
    p->sums = (group_sums){0, -24, -24};
    for (int pass = p->small ? 0 : 1; pass < 2; pass++) // what is small needs the part's exponents first
        for (int t = 0; t < f->page; t += down)
            for (int c = 0; c < d; c += across) {
                const int bits = p->boosted && p->boosted[c] ? p->boost_bits : p->bits;
                group_meta g = load_group(f, p, rows, t, c, bits, x);
                unsigned scale = g.scale, zero = g.zero;
                if (!p->small || !pass)
                    count_group(&p->sums, g);
                if (!pass)
                    continue;
                if (p->small)
                    g = pack_meta8(g, bits, &p->sums, &scale, &zero);
                store_meta(f, p, t, c, scale, zero);
                encode(x, p->group, bits, g, group_codes);
                for (int i = 0; i < p->group; i++)
                    codes[(p->by_token ? t : t + i) * d + (p->by_token ? c + i : c)] = group_codes[i];
            }
    if (p->small) {
        p->sums.exponent = meta8_exponent(p->sums.exponent);
        p->sums.zero_exponent = meta8_exponent(p->sums.zero_exponent);
    } else {
        p->sums.zero_exponent = 0; // nothing is said of it
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
    group_plan plan = {.at = block + (f->key_along ? f->key_tiles : f->key_meta), .group = f->key_group, .bits = f->key_bits,
                       .boost_bits = f->key_boost_bits, .range = f->key_range, .boosted = boosted, .by_token = f->key_along,
                       .small = f->key_meta8, .tile_bytes = f->key_tile_bytes};
    seal_groups(f, rows, &plan, codes);
    word_map map;
    map_key(f, block + f->key_index, &map);
    for (int tile = 0; tile < f->page / KT__TILE; tile++)
        pack_tile(f, KT_KEY, &map, codes + tile * KT__TILE * f->head_dim, block + f->key_tiles + tile * f->key_tile_bytes + f->key_meta_bytes);
    block[KT_HEADER_KEY_FLAGS] = nonfinite || plan.sums.overflows;
    block[KT_HEADER_KEY_EXPONENT] = (unsigned char)plan.sums.exponent;
    block[KT_HEADER_KEY_ZERO] = (unsigned char)plan.sums.zero_exponent;
    return plan.sums.overflows;
}

// The scale and zero of a group of keys or values, at a token of the page and a channel.
static void meta_at(const kt_format *f, kt_part part, const unsigned char *block, int token, int channel, float *scale, float *zero)
{
    const bool keys = part == KT_KEY, by_token = keys ? f->key_along : !f->value_along;
    const int d = f->head_dim, group = keys ? f->key_group : f->value_group, size = (keys ? f->key_meta8 : f->value_meta8) ? 1 : 2;
    const unsigned char *at, *second;
    if (by_token) {
        at = block + (keys ? f->key_tiles + token / KT__TILE * f->key_tile_bytes : f->value_tiles + token / KT__TILE * f->value_tile_bytes);
        at += (channel / group * KT__TILE + pair_position(token % KT__TILE)) * 2 * size;
        second = at + size;
    } else {
        at = block + (keys ? f->key_meta : f->value_meta) + (token / group * 2 * d + channel) * size;
        second = at + d * size;
    }
    if (size == 1) {
        *scale = meta8_value(*at, (signed char)block[keys ? KT_HEADER_KEY_EXPONENT : KT_HEADER_VALUE_EXPONENT]);
        *zero = meta8_value(*second, (signed char)block[keys ? KT_HEADER_KEY_ZERO : KT_HEADER_VALUE_ZERO]);
    } else {
        *scale = kt__half_to_float((unsigned short)load16(at));
        *zero = kt__half_to_float((unsigned short)load16(second));
    }
}

static void decode_codes(const kt_format *f, kt_part part, const unsigned char *table, const unsigned char *block, int tile,
                         const unsigned char *codes, float *out)
{
    const int d = f->head_dim;
    for (int t = 0; t < KT__TILE; t++) {
        for (int c = 0; c < d; c++) {
            float scale, zero;
            meta_at(f, part, block, tile * KT__TILE + t, c, &scale, &zero);
            out[t * d + c] = (float)codes[t * d + c] * scale + zero;
        }
        if (kt__cpu_rotated(f, part))
            kt__cpu_rotate_back(f, part, table, out + t * d);
    }
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
    group_plan plan = {.at = block + (f->value_along ? f->value_meta : f->value_tiles), .group = f->value_group, .bits = f->value_bits,
                       .range = f->value_range, .by_token = !f->value_along, .small = f->value_meta8, .tile_bytes = f->value_tile_bytes};
    seal_groups(f, rows, &plan, codes);
    word_map map;
    map_value(f, &map);
    for (int tile = 0; tile < f->page / KT__TILE; tile++)
        pack_tile(f, KT_VALUE, &map, codes + tile * KT__TILE * f->head_dim, tiles + tile * f->value_tile_bytes + f->value_meta_bytes);
    block[KT_HEADER_VALUE_FLAGS] = nonfinite || plan.sums.overflows;
    block[KT_HEADER_VALUE_EXPONENT] = (unsigned char)plan.sums.exponent;
    block[KT_HEADER_VALUE_ZERO] = (unsigned char)plan.sums.zero_exponent;
    return plan.sums.overflows;
}

// ---- back ----

void kt__cpu_decode_tile(const kt_format *f, kt_part part, const unsigned char *table, const unsigned char *block, int tile, float *out)
{
    const bool keys = part == KT_KEY;
    const unsigned char *at = block + (keys ? f->key_tiles + tile * f->key_tile_bytes : f->value_tiles + tile * f->value_tile_bytes);
    if ((keys ? f->key_bits : f->value_bits) == 16) {
        decode_exact(f, part, at, out);
        return;
    }
    unsigned char codes[KT__TILE * KT__MAX_DIM];
    word_map map;
    if (keys)
        map_key(f, block + f->key_index, &map);
    else
        map_value(f, &map);
    unpack_tile(f, part, &map, at + (keys ? f->key_meta_bytes : f->value_meta_bytes), codes);
    decode_codes(f, part, table, block, tile, codes, out);
}

void kt__cpu_decode(const kt_format *f, kt_part part, const unsigned char *table, const unsigned char *block, float *out)
{
    for (int tile = 0; tile < f->page / KT__TILE; tile++)
        kt__cpu_decode_tile(f, part, table, block, tile, out + tile * KT__TILE * f->head_dim);
}
