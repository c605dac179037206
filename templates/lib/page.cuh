// Order of a sealed block, as the tensor cores want it: a lane's words lie together and need no transpose.
//
//   header      16 bytes: flags and exponent of the keys, of the values; exponent: smallest e with every scale <= 2^e
//   key part:   [groups, 2, HEAD_DIM] scales (fp16), then zeros (fp16), channels in natural order
//               KEY_BOOSTED bytes: boosted channels, ascending; zero-padded to KEY_TILES, a multiple of 128
//               PAGE / 32 tiles of KEY_TILE_BYTES
//               where groups run along channels no scales, no zeros, no list; a tile begins with pairs, as those of values do
//   value part: PAGE / 32 tiles of VALUE_TILE_BYTES, each: [HEAD_DIM / VALUE_GROUP groups, 32] pairs (scale fp16 low, zero fp16
//               high), then codes
//               pair of token t of the tile at position (t & 7) * 4 + (t >> 3)
//               where groups run along tokens no pairs; scales and zeros as of keys follow the tiles, at VALUE_META
//
// A key page is a matrix of KEY_ROWS rows by tokens, in 2-bit planes, low plane first: for p < KEY_BITS / 2 the p-th planes of
// all channels, then for each further plane of the boosted channels those channels in list order, then zero rows. A tile of 32
// tokens is, for k = 0 .. KEY_ROWS / 16 - 1, one word per lane; lane = 4 g + c holds 16 codes, code (m, half, j, e) at
// bit 16 e + 8 m + 4 j + 2 half:  token 16 m + 8 half + g of the tile, row row_of(k, 2 c + 8 j + e).
// A value tile is, for p < VALUE_BITS / 2, for i = 0 .. HEAD_DIM / 16 - 1, one word per lane: code (m, half, j, e) at the same
// bit: channel channel_of(i, 8 half + g), token 16 m + 2 c + 8 j + e of the tile.
// Odd numbers of bits have one plane of 1 bit, the last of its channels: two groups of 16 rows share a word, the first in the lower bit
// of each place, the second in the upper. It begins with a word of its own: the 2-bit planes before it are padded to 16 rows.
// What is rotated (KEY_ROTATION, VALUE_ROTATION) is sealed as R x, rounded to the element type.
// Words of a lane are grouped by four into 16-byte vectors (the last group may have two or one): word w of the tile is at
// lane_word(w, words, lane).
//
// 16-bit parts have no scales and no list. A key tile is, for m < 2, k < HEAD_DIM / 16, words a0..a3 of each lane (16 bytes per
// lane): a[half + 2 j] = elements (token 16 m + 8 half + g, channels channel_of(k, 2 c + 8 j), channel_of(k, 2 c + 8 j + 1)).
// A value tile: for i < HEAD_DIM / 16, m < 2, words a0..a3: a[half + 2 j] = elements
// (channel channel_of(i, 8 half + g), tokens 16 m + 2 c + 8 j and the next).

enum { KT_HEADER_KEY_FLAGS, KT_HEADER_KEY_EXPONENT, KT_HEADER_VALUE_FLAGS, KT_HEADER_VALUE_EXPONENT };

// Channel at index `x` (0..15) of the `tile`-th group of 16: within 32 channels, a lane's eight are neighbours, so that exact rows
// in natural order load as 16 bytes per lane into the same fragments.
constexpr __host__ __device__ int channel_of(int tile, int x) {
    return (tile >> 1) * 32 + ((x & 7) >> 1) * 8 + ((tile & 1) * 2 + (x >> 3)) * 2 + (x & 1);
}

// 32-bit index of word `w` of `words` per lane.
constexpr __host__ __device__ int lane_word(int w, int words, int lane) {
    const int first = w & ~3, left = words - first;
    const int width = left >= 4 ? 4 : left >= 2 && (w & 3) < 2 ? 2 : 1;
    const int start = width == 4 ? first : width == 2 ? first : left == 3 ? first + 2 : first;
    return start * 32 + lane * width + (w - start);
}
