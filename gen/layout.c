#include "layout.h"

#include <math.h>

// Tokens of a tile; bytes of one word per lane; what blocks and their tiles are aligned to: copies from elsewhere were a tenth slower
// (one H100).
enum { TILE = 32, WORDS = 128, LINE = 128 };

static int round_up(int n, int to) { return (n + to - 1) / to * to; }

// Words per lane of a tile that so many channels take: 16 to a word of a 2-bit plane, 32 of a 1-bit plane.
static int words(int channels, int bits) { return (bits / 2 * channels + 15) / 16 + (bits % 2 * channels + 31) / 32; }

const char *kg_layout(const kg_spec *spec, kt_format *f)
{
    *f = (kt_format){0};
    const int d = spec->model.head_dim;
    f->dtype = spec->model.dtype;
    f->head_dim = d;
    f->group_heads = spec->model.q_heads / spec->model.kv_heads;
    f->page = spec->page;
    f->sink = spec->sink;
    const int tiles = f->page / TILE;

    f->key_bits = spec->key.bits;
    f->key_window = spec->key.window;
    f->key_meta = KT_HEADER_BYTES;
    if (f->key_bits == 16) {
        f->key_boost_bits = 16;
        f->key_group = f->page;
        f->key_rows = d;
        f->key_index = KT_HEADER_BYTES;
        f->key_tiles = LINE;
        f->key_tile_bytes = TILE * d * 2;
    } else {
        // The epsilon forgives a decimal fraction that falls just short of a whole channel.
        const int boosted = (int)floor(spec->key.boost_fraction * d + 1e-9);
        f->key_boosted = spec->key.boost_bits > f->key_bits ? boosted : 0;
        f->key_boost_bits = f->key_boosted ? spec->key.boost_bits : f->key_bits;
        f->key_score = (int)spec->key.score;
        f->key_seed = spec->key.seed;
        f->key_group = spec->key.group;
        f->key_range = spec->key.range;
        f->key_along = spec->key.along;
        f->key_meta8 = spec->key.metadata;
        const int pair = f->key_meta8 ? 2 : 4;
        f->key_meta_bytes = f->key_along ? d / f->key_group * TILE * pair : 0;
        f->key_rows = 16 * (words(d, f->key_bits) + words(f->key_boosted, f->key_boost_bits - f->key_bits));
        f->key_index = f->key_meta + (f->key_along ? 0 : f->page / f->key_group * d * pair);
        f->key_tiles = round_up(f->key_index + f->key_boosted, LINE);
        f->key_tile_bytes = f->key_meta_bytes + f->key_rows / 16 * WORDS;
    }
    f->value_tiles = f->key_tiles + tiles * f->key_tile_bytes;
    if (f->key_boosted && f->key_score == KG_SCORE_STATIC)
        f->table_bytes = round_up(f->key_boosted, LINE);

    f->value_bits = spec->value.bits;
    f->value_window = spec->value.window;
    if (f->value_bits == 16) {
        f->value_group = d;
        f->value_tile_bytes = TILE * d * 2;
    } else {
        f->value_along = spec->value.along;
        f->value_range = spec->value.range;
        f->value_group = spec->value.group != KG_GROUP_HEAD ? spec->value.group : d == 256 ? 128 : d;
        f->value_meta8 = spec->value.metadata;
        f->value_meta_bytes = f->value_along ? 0 : d / f->value_group * TILE * (f->value_meta8 ? 2 : 4);
        f->value_tile_bytes = f->value_meta_bytes + words(d, f->value_bits) * WORDS;
    }
    f->block_bytes = f->value_tiles + tiles * f->value_tile_bytes;
    if (f->value_along) {
        f->value_meta = f->block_bytes;
        f->block_bytes += f->page / f->value_group * d * (f->value_meta8 ? 2 : 4);
    }
    f->key_rotation = spec->key.rotation;
    f->value_rotation = spec->value.rotation;
    const int matrices = 4 * d * d;
    if (f->key_rotation == 2)
        f->table_key_rotation = f->table_bytes, f->table_bytes += matrices;
    if (f->value_rotation == 2)
        f->table_value_rotation = f->table_bytes, f->table_bytes += matrices;

    if (f->key_window > f->value_window)
        return "key.window: larger than value.window, so that values would be sealed before their keys; allowed: at most value.window";

    f->key_ring = f->page + f->key_window;
    f->value_ring = f->page + f->value_window;
    const int token = d * 2;
    f->slab_sink_value = f->sink * token;
    f->slab_key = 2 * f->sink * token;
    f->slab_value = f->slab_key + f->key_ring * token;
    f->slab_bytes = f->slab_value + f->value_ring * token;
    return 0;
}

const char *kg_formats_of(const kg_spec *spec, kg_formats *f)
{
    const char *refused = 0;
    *f = (kg_formats){.count = 1 + spec->more_count, .all_layers = spec->model.layers};
    for (int i = 0; i < f->count && !refused; i++) {
        const kg_spec one = kg_spec_way(spec, i);
        refused = kg_layout(&one, &f->formats[i]);
        f->layers[i] = kg_spec_layers(spec, i);
    }
    return refused;
}

static double page_bytes(const kg_formats *f)
{
    double bytes = 0;
    for (int i = 0; i < f->count; i++)
        bytes += (double)f->layers[i] * f->formats[i].block_bytes;
    return bytes;
}

double kg_formats_sealed(const kg_formats *f, int tokens)
{
    int most = 0;
    for (int i = 0; i < f->count; i++) {
        const int pages = kt_pages(&f->formats[i], tokens);
        most = pages > most ? pages : most;
    }
    return most * page_bytes(f);
}

double kg_formats_exact(const kg_formats *f)
{
    double bytes = 0;
    for (int i = 0; i < f->count; i++)
        bytes += (double)f->layers[i] * f->formats[i].slab_bytes;
    return bytes;
}

double kg_formats_token(const kg_formats *f) { return page_bytes(f) / f->all_layers / f->formats[0].page; }

const kt_format *kg_formats_at(const kg_formats *f, const kg_spec *spec, int layer) { return &f->formats[spec->layer_way[layer]]; }

void kg_attend_passes(int group_heads, int head_dim, int *passes, int *columns)
{
    const int most = head_dim <= 128 ? 16 : 8; // for whose outputs there are registers
    *passes = (group_heads + most - 1) / most;
    *columns = (group_heads + *passes - 1) / *passes;
}

bool kg_attend_fit(const kt_format *f, int warps, int stages, int tiles, int blocks, int limit, kg_attend_config *c)
{
    const int barriers = round_up(warps * stages * 16, 128), tiles_of_page = f->page / TILE; // one for keys, one for values
    *c = (kg_attend_config){.warps = warps, .stages = stages, .tiles = tiles, .blocks = blocks};
    kg_attend_passes(f->group_heads, f->head_dim, &c->passes, &c->columns);
    if (tiles > tiles_of_page || tiles_of_page % tiles)
        return false;
    // Per stage: header, key meta and index, then whole key and value tiles, then what the values' groups have of meta.
    const int value_groups = !f->value_along ? 0 : tiles * TILE > f->value_group ? tiles * TILE / f->value_group : 1;
    const int64_t stage = f->key_tiles + tiles * (f->key_tile_bytes + f->value_tile_bytes) + value_groups * f->head_dim * (f->value_meta8 ? 2 : 4);
    // After the last page the stages are reused for each warp's partial result: head_dim outputs (the rows
    // padded by four), maximum and sum.
    const int64_t partial = (int64_t)warps * c->columns * (f->head_dim + 6) * 4;
    // Up to 4 columns in natural order only; more, in eights, as an operand too; of two eights also each warp's q' in
    // halves, 32 rows of keys at a time, where there are several planes for it.
    const int eights = (c->columns + 7) / 8, more = f->key_boost_bits - f->key_bits;
    const int steps = f->head_dim / 32 + (words(f->key_boosted, more / 2 * 2) + 1) / 2 + words(f->key_boosted, more % 2);
    const int query = (c->columns <= 4 ? round_up(f->head_dim * c->columns * 2, 128) : eights * f->head_dim * 32) +
                      (eights > 1 && f->key_bits > 2 && f->key_bits != 16 && !f->key_along ? warps * eights * steps * 512 : 0);
    const int64_t buffers = warps * stages * stage, most = buffers > partial ? buffers : partial;
    if (most > limit)
        return false;
    c->buffers = (int)buffers;
    c->shared = round_up(query + barriers + (int)most, 128);
    // Each block costs 1 KB of the multiprocessor's shared memory besides its own.
    return blocks * (c->shared + 1024) <= limit + 1024;
}

typedef struct {
    int warps, stages, tiles;
} shape;

// The first of a menu that fits, added to the plan; or false.
static bool add_first(const kt_format *f, const shape *menu, int count, int limit, int blocks, int sequences, int pages, kg_attend_plan *plan)
{
    for (int i = 0; i < count; i++)
        if (kg_attend_fit(f, menu[i].warps, menu[i].stages, menu[i].tiles, blocks, limit, &plan->configs[plan->count])) {
            plan->rows[plan->row_count++] = (kg_attend_row){sequences, pages, plan->count++};
            return true;
        }
    return false;
}

static const shape many[] = {{4, 2, 4}, {4, 2, 2}, {4, 1, 4}, {4, 1, 2}, {4, 2, 1}, {4, 1, 1}, {2, 1, 1}};
enum { MANY = sizeof many / sizeof *many };

void kg_attend_rules(const kt_format *f, kg_attend_plan *plan)
{
    // Two blocks to a multiprocessor let one load its query or merge while the other streams; a lone sequence of moderate length wants
    // all warps of a multiprocessor to end together, and short chunks (tests/bench/RESULTS.md).
    static const shape lone[] = {{8, 2, 2}, {8, 1, 2}, {8, 2, 1}, {8, 1, 1}};
    enum { LONE = sizeof lone / sizeof *lone };
    *plan = (kg_attend_plan){0};
    add_first(f, lone, LONE, KG_LARGE_SHARED, 1, 2, 64 * 1024 / f->page, plan);
    // Small pages: more warps keep as many bytes under way, where there are registers for them.
    if (f->head_dim > 96 || f->group_heads > (f->head_dim > 64 ? 4 : 8) || !add_first(f, many, 1, KG_LARGE_SHARED, 3, 0, 0, plan))
        add_first(f, many, MANY, KG_LARGE_SHARED, 2, 0, 0, plan);
    kg_attend_small(f, plan);
}

void kg_attend_small(const kt_format *f, kg_attend_plan *plan)
{
    const kg_attend_row *last = &plan->rows[plan->row_count - 1];
    if (plan->row_count && !last->sequences && !last->pages && plan->configs[last->config].shared <= KG_SMALL_SHARED)
        return;
    for (int i = 0; i < plan->count; i++)
        if (plan->configs[i].shared <= KG_SMALL_SHARED) {
            plan->rows[plan->row_count++] = (kg_attend_row){0, 0, i};
            return;
        }
    add_first(f, many, MANY, KG_SMALL_SHARED, 1, 0, 0, plan);
}

int kg_attend_index(const kg_attend_plan *plan, int warps, int stages, int tiles, int blocks)
{
    for (int i = 0; i < plan->count; i++) {
        const kg_attend_config *c = &plan->configs[i];
        if (c->warps == warps && c->stages == stages && c->tiles == tiles && c->blocks == blocks)
            return i;
    }
    return -1;
}

const kg_attend_row *kg_attend_row_for(const kg_attend_plan *plan, int limit, int sequences, int pages)
{
    for (int i = 0; i < plan->row_count; i++) {
        const kg_attend_row *row = &plan->rows[i];
        if (plan->configs[row->config].shared <= limit && (!row->sequences || sequences <= row->sequences) && (!row->pages || pages <= row->pages))
            return row;
    }
    return 0;
}

int kg_append_shared(const kt_format *f)
{
    // struct Work of templates/append.cu
    const int d = f->head_dim, page = f->page * (d + 8) * 2;
    const int key_pairs = (f->key_along ? d : f->page) / f->key_group * (f->key_along ? f->page : d);
    const int value_pairs = (f->value_along ? f->page : d) / f->value_group * (f->value_along ? d : f->page);
    const int pairs = key_pairs > value_pairs ? key_pairs : value_pairs;
    const bool key_steps = f->key_bits == 2 && f->key_boost_bits % 2 == 0 && !f->key_along && !f->key_meta8;
    const bool value_steps = f->value_bits == 2 && !f->value_along && !f->value_meta8;
    const int key_products = key_steps ? 0 : key_pairs, value_products = value_steps ? 0 : value_pairs;
    const int products = (key_products > value_products ? key_products : value_products) * 8 + (key_products ? d * 4 : 0);
    const int boosts = f->key_boosted ? key_pairs * 12 : 0, patches = key_steps && f->key_boosted ? f->page * d / 4 : 0;
    return round_up(page + pairs * 12 + key_pairs * 4 + boosts + products + patches + d * 7 + 192, 128);
}

int kg_append_blocks(int shared)
{
    const int most = KG_LARGE_SHARED / (shared + 1024);
    return most < 1 ? 1 : most < 4 ? most : 4;
}

int kg_reference_shared(const kt_format *f, int threads)
{
    // Logits of a run of tokens and the query in float64, rotated too, and a place per channel.
    return round_up(threads * 8 + f->head_dim * (f->key_rotation || f->value_rotation ? 17 : 9), 128);
}

double kg_bytes_per_token(const kt_format *f) { return (double)f->block_bytes / f->page; }
