// The CPU quantiser against hand-computed codes and against a decoder written from templates/lib/page.cuh alone.
#include "reference.h"
#include "suite.h"

#include "../templates/lib/meta8.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_PAGE = 128, MAX_DIM = 256 };
static const int head_dims[] = {64, 96, 128, 192, 256};

static unsigned short storage[MAX_PAGE * MAX_DIM];
static const unsigned short *rows[MAX_PAGE];
static unsigned char block[MAX_PAGE * MAX_DIM * 5];
static float decoded[MAX_PAGE * MAX_DIM];

static void point_rows(const kt_format *f)
{
    for (int t = 0; t < f->page; t++)
        rows[t] = storage + t * f->head_dim;
    memset(block, 0, sizeof block);
    ck_assert_int_le(f->block_bytes, (int)sizeof block);
}

// ---- a decoder of its own ----

static unsigned read16(int at) { return block[at] | (unsigned)block[at + 1] << 8; }
static unsigned read32(int at) { return read16(at) | read16(at + 2) << 16; }
static double half(unsigned h)
{
    const int exponent = h >> 10 & 31, mantissa = h & 1023;
    const double value = exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
    return h >> 15 ? -value : value;
}
static int natural_channel(int tile, int x)
{
    return (tile / 2) * 32 + (x % 8 / 2) * 8 + (tile % 2 * 2 + x / 8) * 2 + x % 2;
}
static int word_index(int w, int words, int lane)
{
    const int vectors = words / 4, left = words % 4;
    if (w < vectors * 4)
        return (w / 4) * 128 + lane * 4 + w % 4;
    const int r = w - vectors * 4;
    if (left == 1)
        return vectors * 128 + lane;
    if (left == 2 || r < 2)
        return vectors * 128 + lane * 2 + r;
    return vectors * 128 + 64 + lane;
}

// Planes of the key matrix at (row, token).
static int key_plane(const kt_format *f, int row, int token)
{
    const int tile = token / 32, t = token % 32, m = t / 16, half_ = t % 16 / 8, g = t % 8;
    const int k = row / 16, x = row % 16, j = x / 8, c = x % 8 / 2, e = x % 2;
    const unsigned word = read32(f->key_tiles + tile * f->key_tile_bytes + 4 * word_index(k, f->key_rows / 16, 4 * g + c));
    return (int)(word >> (16 * e + 8 * m + 4 * j + 2 * half_) & 3);
}

static int key_code(const kt_format *f, int token, int channel, bool *boosted)
{
    const int d = f->head_dim;
    int row = 0, at = -1, code = 0;
    while (natural_channel(row / 16, row % 16) != channel)
        row++;
    for (int i = 0; i < f->key_boosted; i++)
        if (block[f->key_index + i] == channel)
            at = i;
    *boosted = at >= 0;
    for (int p = 0; p < f->key_bits / 2; p++)
        code |= key_plane(f, p * d + row, token) << 2 * p;
    if (at >= 0)
        for (int p = f->key_bits / 2, i = 0; p < f->key_boost_bits / 2; p++, i++)
            code |= key_plane(f, f->key_bits / 2 * d + i * f->key_boosted + at, token) << 2 * p;
    return code;
}

static double key_at(const kt_format *f, int token, int channel)
{
    bool boosted;
    if (f->key_bits == 16) {
        for (int k = 0; k < f->head_dim / 16; k++)
            for (int x = 0; x < 16; x++)
                if (natural_channel(k, x) == channel) {
                    const int t = token % 32, lane = t % 8 * 4 + x % 8 / 2, a = t % 16 / 8 + 2 * (x / 8);
                    const int vector = (t / 16 * (f->head_dim / 16) + k) * 32 + lane;
                    const int at = f->key_tiles + token / 32 * f->key_tile_bytes + vector * 16 + a * 4 + x % 2 * 2;
                    return kt__to_float(f->dtype, (unsigned short)read16(at));
                }
    }
    const int scale = f->key_meta + token / f->key_group * f->head_dim * 4 + channel * 2;
    return (float)((float)(key_code(f, token, channel, &boosted) * half(read16(scale))) + half(read16(scale + f->head_dim * 2)));
}

static double value_at(const kt_format *f, int token, int channel)
{
    const int tile = f->value_tiles + token / 32 * f->value_tile_bytes, t = token % 32;
    int i = 0, x = 0, code = 0;
    while (natural_channel(i, x) != channel)
        i += x == 15, x = (x + 1) % 16;
    const int half_ = x / 8, g = x % 8, m = t / 16, j = t % 16 / 8, c = t % 8 / 2, e = t % 2;
    if (f->value_bits == 16)
        return kt__to_float(f->dtype, (unsigned short)read16(tile + ((i * 2 + m) * 32 + 4 * g + c) * 16 + (half_ + 2 * j) * 4 + e * 2));
    const int words = f->head_dim / 16 * f->value_bits / 2;
    for (int p = 0; p < f->value_bits / 2; p++) {
        const int at = tile + f->value_meta_bytes + 4 * word_index(p * (f->head_dim / 16) + i, words, 4 * g + c);
        code |= (int)(read32(at) >> (16 * e + 8 * m + 4 * j + 2 * half_) & 3) << 2 * p;
    }
    const int pair = tile + (channel / f->value_group * 32 + t % 8 * 4 + t / 8) * 4;
    return (float)((float)(code * half(read16(pair))) + half(read16(pair + 2)));
}

// ---- round trips ----

START_TEST(layout)
{
    const char *variant = ref_variants[_i / 5];
    for (int dtype = 0; dtype < 2; dtype++) {
        const kt_format f = ref_format(variant, head_dims[_i % 5], 4, dtype, 128);
        ref_tokens(dtype, f.page, f.head_dim, 100 + (unsigned)_i, storage);
        point_rows(&f);
        ck_assert_int_eq(kt__cpu_seal_key(&f, NULL, rows, 1, 2, 3, block), 0);
        for (int i = f.value_tiles; i < f.block_bytes; i++)
            ck_assert_msg(!block[i], "sealing keys wrote byte %d of the value part", i);
        ck_assert_int_eq(kt__cpu_seal_value(&f, NULL, rows, block), 0);
        ck_assert_int_eq(block[KT_HEADER_KEY_FLAGS] | block[KT_HEADER_VALUE_FLAGS], 0);

        int list = -1;
        for (int i = 0; i < f.key_boosted; i++) {
            ck_assert_int_gt(block[f.key_index + i], list);
            list = block[f.key_index + i];
        }
        ck_assert_int_lt(list, f.head_dim);
        double error = 0, step = 0;
        kt__cpu_decode(&f, KT_KEY, NULL, block, decoded);
        for (int t = 0; t < f.page; t++)
            for (int c = 0; c < f.head_dim; c++) {
                ck_assert_msg(decoded[t * f.head_dim + c] == key_at(&f, t, c), "%s, key token %d channel %d: %g and %g", variant, t,
                              c, (double)decoded[t * f.head_dim + c], key_at(&f, t, c));
                const double x = kt__to_float(dtype, rows[t][c]), scale = f.key_bits == 16 ? 0
                    : half(read16(f.key_meta + t / f.key_group * f.head_dim * 4 + c * 2));
                error = fmax(error, fabs(decoded[t * f.head_dim + c] - x) - 0.51 * scale);
                step = fmax(step, scale);
            }
        ck_assert_msg(error <= 0.06, "%s: a key is off by %g more than half a step", variant, error);
        if (f.key_bits < 16)
            ck_assert(ldexp(1, (signed char)block[KT_HEADER_KEY_EXPONENT]) >= step &&
                      ldexp(0.5, (signed char)block[KT_HEADER_KEY_EXPONENT]) < step);
        kt__cpu_decode(&f, KT_VALUE, NULL, block, decoded);
        for (int t = 0; t < f.page; t++)
            for (int c = 0; c < f.head_dim; c++)
                ck_assert_msg(decoded[t * f.head_dim + c] == value_at(&f, t, c), "%s, value token %d channel %d", variant, t, c);
    }
}
END_TEST

// ---- codes by hand ----

// Sets a key channel of a kivi-2 page of 32 tokens, seals, and compares codes, scale and zero.
static void by_hand(int dtype, const float *x, int count, unsigned scale, unsigned zero, const char *codes)
{
    const kt_format f = ref_format("kivi-2", 64, 1, dtype, 32);
    memset(storage, 0, sizeof storage);
    for (int t = 0; t < 32; t++)
        storage[t * 64 + 21] = kt__from_float(dtype, x[t % count]);
    point_rows(&f);
    ck_assert_int_eq(kt__cpu_seal_key(&f, NULL, rows, 0, 0, 0, block), 0);
    ck_assert_uint_eq(read16(f.key_meta + 21 * 2), scale);
    ck_assert_uint_eq(read16(f.key_meta + (f.head_dim + 21) * 2), zero);
    for (int t = 0; t < 32; t++) {
        bool boosted;
        ck_assert_msg(key_code(&f, t, 21, &boosted) == codes[t % count] - '0', "token %d is %d, not %c", t,
                      key_code(&f, t, 21, &boosted), codes[t % count]);
    }
}

START_TEST(codes)
{
    by_hand(KT_F16, (float[]){0, 1, 2, 3, 0.5f, 1.5f, 2.5f}, 7, 0x3c00, 0, "0123022");              // ties to even
    by_hand(KT_F16, (float[]){-3, 3, -0.9f, 0.9f, -1.1f}, 5, 0x4000, 0xc200, "03121");              // scale 2, zero -3
    by_hand(KT_F16, (float[]){-0.0f, -0.0f}, 2, 0, 0, "00");                                        // -0 is +0
    by_hand(KT_F16, (float[]){5, 5}, 2, 0, 0x4500, "00");                                           // constant
    by_hand(KT_F16, (float[]){0, 0x3p-24f, 0x1p-24f, 0x2p-24f}, 4, 0x0001, 0, "0312");              // subnormal scale
    by_hand(KT_F16, (float[]){0, 0x1p-24f}, 2, 0, 0, "00");             // a third of the least subnormal rounds to scale 0
    by_hand(KT_F16, (float[]){0, 0x2p-24f, 0x1p-24f}, 3, 0x0001, 0, "021"); // two thirds round up: the top code is not reached
    by_hand(KT_F16, (float[]){-65504, 65504, 0}, 3, 0x7955, 0xfbff, "031"); // 43669.3 rounds to 43680; 0 is at 1.4996
    by_hand(KT_BF16, (float[]){0, 3.0f * 65504.0f / 4.0f, 0x1p-40f}, 3, 0x7400, 0, "030");
    by_hand(KT_BF16, (float[]){-0x1p-60f, 0x1p-60f}, 2, 0, 0x8000, "00");   // fp16 of a tiny negative minimum is -0
}
END_TEST

START_TEST(half_conversion)
{
    for (unsigned h = 0; h < 0x10000; h++) {
        const float x = kt__half_to_float((unsigned short)h);
        if ((h & 0x7c00) == 0x7c00) {
            ck_assert((h & 0x3ff) ? isnan(x) : isinf(x));
            continue;
        }
        ck_assert(x == (float)half(h) && !signbit(x) == !(h >> 15));
        ck_assert_uint_eq(kt__float_to_half(x), h);
        if ((h & 0x7fff) == 0x7bff || h >> 15)
            continue;
        // Halfway to the next half goes to the even one, the neighbours of halfway to their own.
        const float next = kt__half_to_float((unsigned short)(h + 1)), middle = (float)(((double)x + next) / 2);
        ck_assert_uint_eq(kt__float_to_half(middle), h & 1 ? h + 1 : h);
        ck_assert_uint_eq(kt__float_to_half(nextafterf(middle, 0)), h);
        ck_assert_uint_eq(kt__float_to_half(nextafterf(middle, 1e9f)), h + 1);
    }
    ck_assert_uint_eq(kt__float_to_half(65519.996f), 0x7bff);
    ck_assert_uint_eq(kt__float_to_half(65520), 0x7c00);
    ck_assert_uint_eq(kt__float_to_half(-INFINITY), 0xfc00);
    ck_assert_uint_eq(kt__float_to_half(NAN) & 0x7e00, 0x7e00);
    ck_assert_uint_eq(kt__from_float(KT_BF16, 1.00390625f), 0x3f80); // halfway, to even
    ck_assert_uint_eq(kt__from_float(KT_BF16, 1.01171875f), 0x3f82);
    ck_assert_uint_eq(kt__from_float(KT_BF16, 3.4e38f), 0x7f80);
    ck_assert_uint_eq(kt__from_float(KT_BF16, NAN) & 0x7fc0, 0x7fc0);
}
END_TEST

// ---- what is not finite, what is too large ----

START_TEST(nonfinite)
{
    const int dtype = _i;
    const unsigned short bad[] = {dtype ? 0x7f80 : 0x7c00, dtype ? 0xff80 : 0xfc00, dtype ? 0x7fc1 : 0x7e01, dtype ? 0xffff : 0xfc01};
    static const char *const names[] = {"kitty", "fp16"};
    for (int n = 0; n < 2; n++) {
        const kt_format f = ref_format(names[n], 64, 1, dtype, 128);
        static unsigned char clean[sizeof block];
        ref_tokens(dtype, f.page, f.head_dim, 5, storage);
        for (int i = 0; i < 4; i++)
            storage[(17 * i + 3) * 64 + 20 * i] = 0;
        point_rows(&f);
        kt__cpu_seal_key(&f, NULL, rows, 0, 0, 0, block);
        kt__cpu_seal_value(&f, NULL, rows, block);
        memcpy(clean, block, sizeof block);
        for (int i = 0; i < 4; i++)
            storage[(17 * i + 3) * 64 + 20 * i] = bad[i];
        point_rows(&f);
        ck_assert_int_eq(kt__cpu_seal_key(&f, NULL, rows, 0, 0, 0, block), 0);
        ck_assert_int_eq(kt__cpu_seal_value(&f, NULL, rows, block), 0);
        ck_assert_int_eq(block[KT_HEADER_KEY_FLAGS], 1);
        ck_assert_int_eq(block[KT_HEADER_VALUE_FLAGS], 1);
        clean[KT_HEADER_KEY_FLAGS] = clean[KT_HEADER_VALUE_FLAGS] = 1;
        ck_assert_mem_eq(block, clean, (size_t)f.block_bytes);
    }
}
END_TEST

START_TEST(overflow)
{
    const kt_format f = ref_format("kitty", 64, 1, KT_BF16, 128);
    ref_tokens(KT_BF16, f.page, f.head_dim, 6, storage);
    for (int t = 0; t < f.page; t++)
        storage[t * 64 + 9] = kt__from_float(KT_BF16, -70000); // zero beyond 65504, constant
    storage[40 * 64 + 33] = kt__from_float(KT_BF16, 3e38f);    // scale beyond
    storage[41 * 64 + 33] = kt__from_float(KT_BF16, -3e38f);   // and the difference beyond fp32
    point_rows(&f);
    ck_assert_int_eq(kt__cpu_seal_key(&f, NULL, rows, 0, 0, 0, block), 2);
    ck_assert_int_eq(kt__cpu_seal_value(&f, NULL, rows, block), f.page); // channel 9 spoils every token
    ck_assert_int_eq(block[KT_HEADER_KEY_FLAGS], 1);
    ck_assert_int_eq(block[KT_HEADER_VALUE_FLAGS], 1);
    ck_assert_int_eq((signed char)block[KT_HEADER_VALUE_EXPONENT], -24);
    kt__cpu_decode(&f, KT_KEY, NULL, block, decoded);
    for (int t = 0; t < f.page; t++) {
        bool boosted;
        ck_assert(decoded[t * 64 + 9] == 0 && decoded[t * 64 + 33] == 0);
        ck_assert_int_eq(key_code(&f, t, 9, &boosted), 0);
        ck_assert(boosted); // it has the largest mean all the same
    }
    ck_assert_float_ne(decoded[64 + 10], 0);
    kt__cpu_decode(&f, KT_VALUE, NULL, block, decoded);
    for (int i = 0; i < f.page * 64; i++)
        ck_assert_float_eq(decoded[i], 0);
}
END_TEST

// bf16 sums beyond fp32 make scores of infinity and NaN; the list still has its length.
START_TEST(infinite_scores)
{
    const kt_format f = ref_format("variance", 64, 1, KT_BF16, 128);
    ref_tokens(KT_BF16, f.page, f.head_dim, 7, storage);
    for (int t = 0; t < f.page; t++)
        for (int c = 1; c < 64; c += 3)
            storage[t * 64 + c] = kt__from_float(KT_BF16, (t & 32) == 0 ? 3e38f : c % 2 ? -3e38f : 3e38f);
    point_rows(&f);
    kt__cpu_seal_key(&f, NULL, rows, 0, 0, 0, block);
    for (int i = 0; i < f.key_boosted; i++)
        ck_assert_int_eq(block[f.key_index + i], 1 + 3 * i); // all infinite: the lower ones
}
END_TEST

// ---- selection ----

START_TEST(selection)
{
    const char *variant = (const char *const[]){"kitty-pro", "variance", "range"}[_i];
    const kt_format f = ref_format(variant, 64, 1, KT_F16, 128);
    memset(storage, 0, sizeof storage);
    // Channels 50, 40, ... stand out in one way each; all others tie at 0.
    const int loud[] = {63, 50, 40};
    for (int t = 0; t < f.page; t++)
        for (int i = 0; i < 3; i++)
            storage[t * 64 + loud[i]] = kt__from_float(KT_F16, _i ? (t % 2 ? 2.0f : -2.0f) : 2.0f);
    if (_i)
        for (int t = 0; t < f.page; t++)
            storage[t * 64 + 10] = kt__from_float(KT_F16, 100); // large but constant
    point_rows(&f);
    kt__cpu_seal_key(&f, NULL, rows, 0, 0, 0, block);
    for (int i = 0; i < f.key_boosted - 3; i++)
        ck_assert_int_eq(block[f.key_index + i], i);
    for (int i = 0; i < 3; i++)
        ck_assert_int_eq(block[f.key_index + f.key_boosted - 3 + i], loud[2 - i]);
}
END_TEST

// Every byte but the NaNs stands for itself; what lies between goes to the nearest, ties to even, or up.
START_TEST(small_metadata)
{
    for (unsigned b = 0; b < 0x7e; b++) {
        const float x = 256 * kt__half_to_float((unsigned short)kt_meta8_half(b)), next = 256 * kt__half_to_float((unsigned short)kt_meta8_half(b + 1));
        const float expected = b < 8 ? ldexpf((float)b, -9) : ldexpf((float)(8 + (b & 7)), (int)(b >> 3) - 10), between = (x + next) / 2;
        const float at[] = {x, nextafterf(x, 1e9f), between, nextafterf(between, 0), nextafterf(between, 1e9f), next};
        const unsigned nearest[] = {b, b, b + (b & 1), b, b + 1, b + 1}, up[] = {b, b + 1, b + 1, b + 1, b + 1, b + 1};
        ck_assert(x == expected);
        for (int i = 0; i < 6; i++) {
            uint32_t bits;
            memcpy(&bits, &at[i], sizeof bits);
            ck_assert_uint_eq(kt_meta8_round(bits, 0), nearest[i]);
            ck_assert_uint_eq(kt_meta8_round(bits, 1), up[i]);
        }
    }
    ck_assert_uint_eq(kt_meta8_round(0x7f000000, 1), 0x7e);
}
END_TEST

// Every way of grouping and number of bits: what is decoded is within half a step of what came, by the extremes of its group.
START_TEST(combinations)
{
    static const int bits[] = {1, 2, 3, 4, 8}, boosts[] = {0, 3, 4, 8};
    const int own = bits[_i % 5], head_dim = _i / 5 % 2 ? 96 : 64, small = _i / 10;
    for (int along = 0; along < 2; along++)
        for (int b = 0; b < (along ? 1 : 4); b++) {
            kg_spec spec;
            kt_format f;
            if (b && boosts[b] <= own)
                continue;
            ck_assert(ref_spec("kitty-pro", head_dim, 1, KT_F16, 64, &spec));
            spec.key.bits = spec.value.bits = own;
            spec.key.boost_bits = b ? boosts[b] : own;
            spec.key.boost_fraction = b ? 0.3 : 0;
            spec.key.along = along, spec.value.along = !along;
            spec.key.group = spec.value.group = 32;
            spec.key.metadata = spec.value.metadata = small;
            ck_assert_ptr_null(kg_layout(&spec, &f));
            ref_tokens(KT_F16, f.page, f.head_dim, 21, storage);
            point_rows(&f);
            ck_assert_int_eq(kt__cpu_seal_key(&f, NULL, rows, 0, 0, 0, block), 0);
            ck_assert_int_eq(kt__cpu_seal_value(&f, NULL, rows, block), 0);
            for (int part = 0; part < 2; part++) {
                kt__cpu_decode(&f, part, NULL, block, decoded);
                const bool by_token = part ? !f.value_along : f.key_along;
                for (int t = 0; t < f.page; t++)
                    for (int c = 0; c < f.head_dim; c++) {
                        double low = INFINITY, high = -INFINITY, width = own;
                        for (int i = 0; i < 32; i++) {
                            const double x = by_token ? kt__to_float(KT_F16, rows[t][c / 32 * 32 + i])
                                                      : kt__to_float(KT_F16, rows[t / 32 * 32 + i][c]);
                            low = fmin(low, x), high = fmax(high, x);
                        }
                        for (int i = 0; i < f.key_boosted && !part; i++)
                            width = block[f.key_index + i] == c ? f.key_boost_bits : width;
                        const double x = kt__to_float(KT_F16, rows[t][c]), step = (high - low) / (exp2(width) - 1);
                        // A zero of 8 bits is off by a 16th, which widens the step by as much; a scale by an eighth.
                        const double far = fmax(fabs(low), fabs(high)), zero = small ? fabs(low) / 16 + 0x1p-16 * 64 : 0;
                        ck_assert_msg(fabs(decoded[t * f.head_dim + c] - x) <= (small ? 0.57 : 0.501) * (step + zero) + zero + 0.002 * far,
                                      "%d bits, boost %d, %s by %s: token %d channel %d is %g, was %g in steps of %g", own, f.key_boost_bits,
                                      part ? "value" : "key", by_token ? "token" : "channel", t, c, (double)decoded[t * f.head_dim + c], x, step);
                    }
            }
        }
}
END_TEST

// No group is further from its elements than by its extremes, and all together are nearer.
START_TEST(least_squares)
{
    kt_format wide = ref_format("groups", 64, 1, KT_BF16, 128), f = wide;
    static unsigned char blocks[2][sizeof block];
    static float out[2][MAX_PAGE * 64];
    f.key_range = f.value_range = 1;
    double sums[2][2] = {{0}};
    for (int i = 0; i < 2; i++) {
        ref_tokens(KT_BF16, f.page, f.head_dim, 11, storage);
        point_rows(&f);
        kt__cpu_seal_key(i ? &f : &wide, NULL, rows, 0, 0, 0, blocks[i]);
        kt__cpu_seal_value(i ? &f : &wide, NULL, rows, blocks[i]);
    }
    ck_assert_mem_eq(blocks[0] + f.key_index, blocks[1] + f.key_index, (size_t)f.key_boosted);
    for (int part = 0; part < 2; part++) {
        for (int i = 0; i < 2; i++)
            kt__cpu_decode(&f, part, NULL, blocks[i], out[i]);
        for (int g = 0; g < 128 * 64 / 32; g++) { // keys: 4 groups of 64 channels; values: 128 tokens of 2 groups
            double errors[2] = {0, 0};
            for (int i = 0; i < 2; i++)
                for (int k = 0; k < 32; k++) {
                    const int at = part ? g * 32 + k : (g / 64 * 32 + k) * 64 + g % 64;
                    const double off = (double)kt__to_float(KT_BF16, storage[at]) - (double)out[i][at];
                    errors[i] += off * off;
                    sums[part][i] += off * off;
                }
            ck_assert_msg(errors[1] <= errors[0] * (1 + 1e-5), "part %d, group %d: %g, by its extremes %g", part, g, errors[1], errors[0]);
        }
    }
    ck_assert(sums[0][1] < 0.9 * sums[0][0] && sums[1][1] < 0.99 * sums[1][0]);
}
END_TEST

START_TEST(static_list)
{
    kt_format f = ref_format("kitty-pro", 64, 1, KT_F16, 128);
    unsigned char table[48] = {0};
    f.key_score = 4, f.table_bytes = 48, f.table_boosted = 32;
    for (int i = 0; i < f.key_boosted; i++)
        table[32 + i] = (unsigned char)(3 * i + 1);
    ref_tokens(KT_F16, f.page, f.head_dim, 8, storage);
    point_rows(&f);
    kt__cpu_seal_key(&f, table, rows, 0, 0, 0, block);
    ck_assert_mem_eq(block + f.key_index, table + 32, (size_t)f.key_boosted);
    for (int c = 0; c < 64; c++) {
        bool boosted;
        key_code(&f, 0, c, &boosted);
        ck_assert_int_eq(boosted, c % 3 == 1 && c < 3 * f.key_boosted);
    }
}
END_TEST

START_TEST(random_score)
{
    const kt_format f = ref_format("random", 128, 1, KT_F16, 128);
    unsigned char lists[4][32];
    ref_tokens(KT_F16, f.page, f.head_dim, 8, storage);
    for (int i = 0; i < 4; i++) {
        point_rows(&f);
        kt__cpu_seal_key(&f, NULL, rows, i == 1, i == 2, i == 3, block);
        memcpy(lists[i], block + f.key_index, 32);
        for (int other = 0; other < i; other++)
            ck_assert(memcmp(lists[i], lists[other], 32));
    }
    ref_tokens(KT_F16, f.page, f.head_dim, 9, storage); // the data does not matter
    point_rows(&f);
    kt__cpu_seal_key(&f, NULL, rows, 0, 0, 0, block);
    ck_assert_mem_eq(lists[0], block + f.key_index, 32);
}
END_TEST

// ---- splits ----

enum { HEADS = 2, TOKENS = 700, PAGES = 8 };

typedef struct {
    unsigned char *pages, *slabs;
    unsigned long long nonfinite;
    int tokens, slab;
} world;

// Brings `fresh` tokens through kt__cpu_append, in place or into the other slab.
static void bring(const kt_format *f, const unsigned short *input, int fresh, bool in_place, world *w)
{
    static const int table[PAGES] = {5, 0, 7, 2, 1, 3, 6, 4};
    const kt_slot slot = {.tokens = w->tokens, .fresh = fresh, .row = 3, .capacity = TOKENS, .slab = w->slab,
                          .slab_next = in_place ? w->slab : !w->slab};
    kt_control control = {.ready = 1, .nonfinite = w->nonfinite};
    const long long row = HEADS * f->head_dim;
    const kt_append_params params = {
        .view = {.pages = w->pages, .slabs = w->slabs, .slots = &slot, .table = table, .control = &control,
                 .key = input + (w->tokens - 3) * row, .value = input + (TOKENS + w->tokens - 3) * row, .key_row = row,
                 .key_head = f->head_dim, .value_row = row, .value_head = f->head_dim, .table_stride = PAGES, .slot_count = 1,
                 .kv_heads = HEADS, .layer = 4}};
    kt__cpu_append(f, &params);
    w->tokens += fresh;
    w->slab = slot.slab_next;
    w->nonfinite = control.nonfinite;
}

static world new_world(const kt_format *f)
{
    world w = {0};
    w.pages = calloc(PAGES * HEADS, (size_t)f->block_bytes);
    w.slabs = calloc(2 * HEADS, (size_t)f->slab_bytes);
    ck_assert(w.pages && w.slabs);
    return w;
}

START_TEST(splits)
{
    const kt_format f = ref_format(ref_variants[_i], 64, 1, _i % 2, 128);
    const int row = HEADS * f.head_dim;
    unsigned short *tokens = malloc((size_t)(2 * TOKENS + 8) * row * 2), *input = tokens + 4 * row;
    ref_tokens(f.dtype, 2 * TOKENS, row, 77, input);
    uint64_t seed = 5;
    for (int i = 0; i < 40; i++) // some of these pass through the rings, some do not
        input[ref_random(&seed) % (2 * TOKENS * (unsigned)row)] = f.dtype ? 0x7f80 : 0x7e00;
    world one = new_world(&f), other = new_world(&f);
    for (int t = 0; t < TOKENS; t++)
        bring(&f, input, 1, true, &one);
    ck_assert_uint_ge(one.nonfinite, 35);
    for (int round = 0; round < 3; round++) {
        memset(other.pages, 0, (size_t)f.block_bytes * PAGES * HEADS);
        other.tokens = 0;
        other.nonfinite = 0;
        while (other.tokens < TOKENS) {
            int fresh = round == 0 ? TOKENS : (int)(1 + ref_random(&seed) % (round == 1 ? 7 : 300));
            fresh = fresh < TOKENS - other.tokens ? fresh : TOKENS - other.tokens;
            bring(&f, input, fresh, other.tokens == 0 || fresh == 1, &other);
        }
        ck_assert_mem_eq(one.pages, other.pages, (size_t)f.block_bytes * PAGES * HEADS);
        ck_assert_uint_eq(one.nonfinite, other.nonfinite);
        for (int head = 0; head < HEADS; head++) { // sinks and live ring places
            const unsigned char *a = one.slabs + (size_t)(one.slab * HEADS + head) * f.slab_bytes;
            const unsigned char *b = other.slabs + (size_t)(other.slab * HEADS + head) * f.slab_bytes;
            ck_assert_mem_eq(a, b, 2 * (size_t)f.sink * f.head_dim * 2);
            for (int part = 0; part < 2; part++) {
                const int ring = part ? f.value_ring : f.key_ring, at = part ? f.slab_value : f.slab_key;
                const int pages = kt_sealed(&f, part, TOKENS);
                for (int t = f.sink + pages * f.page; t < TOKENS; t++) {
                    const int place = at + (t - f.sink) % ring * f.head_dim * 2;
                    ck_assert_mem_eq(a + place, b + place, (size_t)f.head_dim * 2);
                    ck_assert_mem_eq(a + place, input + (size_t)(part * TOKENS + t) * row + head * f.head_dim, (size_t)f.head_dim * 2);
                }
            }
        }
    }
    free(one.pages), free(one.slabs), free(other.pages), free(other.slabs), free(tokens);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("quantise");
    TCase *tcase = tcase_create("quantise");
    tcase_set_timeout(tcase, 120);
    tcase_add_loop_test(tcase, layout, 0, REF_VARIANTS * 5);
    tcase_add_test(tcase, codes);
    tcase_add_test(tcase, half_conversion);
    tcase_add_loop_test(tcase, nonfinite, 0, 2);
    tcase_add_test(tcase, overflow);
    tcase_add_test(tcase, infinite_scores);
    tcase_add_loop_test(tcase, selection, 0, 3);
    tcase_add_test(tcase, small_metadata);
    tcase_add_loop_test(tcase, combinations, 0, 20);
    tcase_add_test(tcase, least_squares);
    tcase_add_test(tcase, static_list);
    tcase_add_test(tcase, random_score);
    tcase_add_loop_test(tcase, splits, 0, REF_VARIANTS);
    suite_add_tcase(suite, tcase);
    return run_suite(suite);
}
