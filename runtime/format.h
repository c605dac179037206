// The format of a cache: every number that the generator, the kernels, the runtime and the CPU backend must agree on.
// gen/layout.c computes it, the manifest carries it, emitted kernels name it as constants, runtime/package.c reads it.
// Nothing else derives an offset. All sizes are bytes unless the comment says otherwise.
#ifndef KT_FORMAT_H
#define KT_FORMAT_H

#define KT_FORMAT_VERSION 2

enum { KT_FORMATS = 8 }; // most of a package: layers may have different ones, which share dtype, head_dim, group_heads, page and sink

// X(field, constant in emitted kernels, meaning)
#define KT_FORMAT_FIELDS(X)                                                                                  \
    X(dtype, DTYPE, "element type of q, k, v and out: 0 fp16, 1 bf16")                                       \
    X(head_dim, HEAD_DIM, "channels of a head")                                                              \
    X(group_heads, GROUP_HEADS, "query heads per KV head (GQA)")                                             \
    X(page, PAGE, "tokens of a page")                                                                        \
    X(sink, SINK, "first tokens of a sequence, kept exact")                                                  \
    X(key_bits, KEY_BITS, "bits of a key channel; 16: exact")                                                \
    X(key_boost_bits, KEY_BOOST_BITS, "bits of a boosted key channel; key_bits where none is boosted")       \
    X(key_boosted, KEY_BOOSTED, "boosted channels per page and head")                                        \
    X(key_score, KEY_SCORE, "0 magnitude, 1 variance, 2 range, 3 random, 4 static")                          \
    X(key_seed, KEY_SEED, "seed of the random score")                                                        \
    X(key_group, KEY_GROUP, "tokens, or channels of a token, that share a key scale and zero")               \
    X(key_window, KEY_WINDOW, "newest tokens whose keys stay exact, on top of the unfinished page")          \
    X(key_rows, KEY_ROWS, "16 for each word that a lane has of a key tile: rows of 2-bit planes")            \
    X(value_bits, VALUE_BITS, "bits of a value element; 16: exact")                                          \
    X(value_group, VALUE_GROUP, "channels of a token, or tokens, that share a value scale and zero")         \
    X(value_window, VALUE_WINDOW, "newest tokens whose values stay exact, on top of the unfinished page")    \
    X(block_bytes, BLOCK_BYTES, "a block: header, key part, value part of one page and head")                \
    X(key_meta, KEY_META, "offset of [groups, 2, head_dim] fp16 scales, then zeros, along tokens")           \
    X(key_index, KEY_INDEX, "offset of the ascending list of boosted channels, one byte each")               \
    X(key_tiles, KEY_TILES, "offset of the key tiles of 32 tokens")                                          \
    X(key_tile_bytes, KEY_TILE_BYTES, "a key tile")                                                          \
    X(value_tiles, VALUE_TILES, "offset of the value tiles of 32 tokens; also the end of the key part")      \
    X(value_meta_bytes, VALUE_META_BYTES, "(scale, zero) pairs at the head of a value tile")                 \
    X(value_tile_bytes, VALUE_TILE_BYTES, "a value tile, its pairs included")                                \
    X(slab_bytes, SLAB_BYTES, "a slab: the exact tokens of one sequence and head")                           \
    X(slab_sink_value, SLAB_SINK_VALUE, "offset of the sinks' values; their keys are at 0")                  \
    X(slab_key, SLAB_KEY, "offset of the key ring")                                                          \
    X(slab_value, SLAB_VALUE, "offset of the value ring")                                                    \
    X(key_ring, KEY_RING, "tokens of the key ring; token t (>= sink) is at (t - sink) mod key_ring")         \
    X(value_ring, VALUE_RING, "tokens of the value ring, likewise")                                          \
    X(table_bytes, TABLE_BYTES, "what calibration gives a layer and KV head; 0: nothing")                    \
    X(table_boosted, TABLE_BOOSTED, "offset in it of the ascending list of boosted channels, one byte each") \
    X(key_range, KEY_RANGE, "of a group of keys: 0 its extremes, 1 the range of least squares")              \
    X(value_range, VALUE_RANGE, "of a group of values, likewise")                                            \
    X(key_rotation, KEY_ROTATION, "of keys before they are sealed: 0 none, 1 Hadamard, 2 a matrix")          \
    X(value_rotation, VALUE_ROTATION, "of values, likewise")                                                 \
    X(table_key_rotation, TABLE_KEY_ROTATION, "offset in what calibration gives of the matrix [head_dim, head_dim] fp16, then its transpose") \
    X(table_value_rotation, TABLE_VALUE_ROTATION, "likewise of values")                                      \
    X(key_along, KEY_ALONG, "what a group of keys runs along: 0 the tokens of a channel, 1 the channels of a token") \
    X(key_meta_bytes, KEY_META_BYTES, "(scale, zero) pairs at the head of a key tile, where groups run along channels") \
    X(value_along, VALUE_ALONG, "what a group of values runs along: 0 the channels of a token, 1 the tokens of a channel") \
    X(value_meta, VALUE_META, "offset of [groups, 2, head_dim] fp16 scales, then zeros, of values whose groups run along tokens") \
    X(key_meta8, KEY_META8, "scales and zeros of keys: 0 fp16, 1 a byte each (templates/lib/meta8.h)")       \
    X(value_meta8, VALUE_META8, "scales and zeros of values, likewise")

typedef struct {
#define X(field, constant, meaning) int field;
    KT_FORMAT_FIELDS(X)
#undef X
} kt_format;

// Header of a block, 16 bytes; the rest is zero.
enum {
    KT_HEADER_KEY_FLAGS = 0,   // bit 0: a key element was not finite or a group overflowed, and counts as 0
    KT_HEADER_KEY_EXPONENT,    // int8: smallest e with every key scale <= 2^e; -24 where all are 0
    KT_HEADER_VALUE_FLAGS,     // as for keys
    KT_HEADER_VALUE_EXPONENT,  // int8, likewise
    KT_HEADER_KEY_ZERO,        // int8: of scales and zeros of 8 bits, the zeros' exponent; KEY_EXPONENT is the scales'
    KT_HEADER_VALUE_ZERO,      // int8, likewise
    KT_HEADER_BYTES = 16
};

// Sealed pages of a sequence of `tokens` tokens, for keys or for values by their window.
static inline int kt_sealed_pages(int tokens, int sink, int window, int page)
{
    int rest = tokens - sink - window;
    return rest < 0 ? 0 : rest / page;
}

// The same of a format; part: KT_KEY or KT_VALUE.
static inline int kt_sealed(const kt_format *f, int part, int tokens)
{
    return kt_sealed_pages(tokens, f->sink, part ? f->value_window : f->key_window, f->page);
}

// Pages of which a sequence of `tokens` tokens has keys or values sealed.
static inline int kt_pages(const kt_format *f, int tokens)
{
    const int keys = kt_sealed(f, 0, tokens), values = kt_sealed(f, 1, tokens);
    return keys > values ? keys : values;
}

#endif
