// Kernel packages: what a good one reads as, and the exact message for every malformed one.
#include "internal.h"
#include "sha256.h"
#include "suite.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char source[] = "extern \"C\" __global__ void kitty_test() {}\n";
// The last kernel and the first row of the table.
#define ADVANCE                                                                                                                      \
    ",\n  {\"name\": \"advance\", \"op\": \"advance\", \"file\": \"a.cu\", \"entry\": \"kitty_advance\", \"sha256\": \"@\", \"threads\": 256,\n" \
    "   \"shared\": 0, \"grid\": [\"1\", \"1\", \"1\"]}],\n"                                                                                  \
    " \"select\": [{\"op\": \"advance\", \"sequences\": 0, \"pages\": 0, \"kernel\": \"advance\", \"blocks_per_sm\": 1},\n  "
static const char good[] =
    "{\"kittygen\": 2, \"spec\": \"tiny.kitty\",\n"
    " \"model\": {\"layers\": 2, \"q_heads\": 8, \"kv_heads\": 2, \"scale\": 0.125},\n"
    " \"format\": {\"dtype\": 0, \"head_dim\": 64, \"group_heads\": 4, \"page\": 128, \"sink\": 32, \"key_bits\": 2,\n"
    "  \"key_boost_bits\": 4, \"key_boosted\": 8, \"key_score\": 3, \"key_seed\": -7, \"key_group\": 128, \"key_window\": 0,\n"
    "  \"key_rows\": 80, \"value_bits\": 2, \"value_group\": 64, \"value_window\": 128, \"block_bytes\": 5424, \"key_meta\": 16,\n"
    "  \"key_index\": 272, \"key_tiles\": 288, \"key_tile_bytes\": 640, \"value_tiles\": 2848, \"value_meta_bytes\": 128,\n"
    "  \"value_tile_bytes\": 640, \"slab_bytes\": 57344, \"slab_sink_value\": 4096, \"slab_key\": 8192, \"slab_value\": 24576,\n"
    "  \"key_ring\": 128, \"value_ring\": 256,\n"
    "  \"key_range\": 0, \"value_range\": 0,\n"
    "  \"key_rotation\": 0, \"value_rotation\": 0, \"table_key_rotation\": 0, \"table_value_rotation\": 0,\n"
    "  \"key_along\": 0, \"key_meta_bytes\": 0, \"value_along\": 0, \"value_meta\": 0,\n"
    "  \"key_meta8\": 0, \"value_meta8\": 0,\n"
    "  \"table_boosted\": 0, \"table_bytes\": 0},\n"
    " \"kernels\": [\n"
    "  {\"name\": \"append\", \"op\": \"append\", \"file\": \"a.cu\", \"entry\": \"kitty_append\", \"sha256\": \"@\", \"threads\": 256,\n"
    "   \"shared\": 20000, \"grid\": [\"units\", \"kv_heads\", \"slots\"]},\n"
    "  {\"name\": \"attend_8x2x4\", \"op\": \"attend\", \"file\": \"a.cu\", \"entry\": \"kitty_attend\", \"sha256\": \"@\", \"threads\": 256,\n"
    "   \"shared\": 90000, \"warps\": 8, \"stages\": 2, \"tiles\": 4, \"passes\": 1, \"grid\": [\"splits\", \"kv_heads*passes\", \"slots*fresh\"]},\n"
    "  {\"name\": \"reference\", \"op\": \"reference\", \"file\": \"a.cu\", \"entry\": \"kitty_reference\", \"sha256\": \"@\", \"threads\": 128,\n"
    "   \"shared\": 0, \"grid\": [\"q_heads\", \"slots*fresh\", \"1\"]},\n"
    "  {\"name\": \"check\", \"op\": \"check\", \"file\": \"a.cu\", \"entry\": \"kitty_check\", \"sha256\": \"@\", \"threads\": 256, \"shared\": 0,\n"
    "   \"grid\": [\"1\", \"1\", \"1\"]}"
    ADVANCE
    "{\"op\": \"append\", \"sequences\": 0, \"pages\": 0, \"kernel\": \"append\", \"blocks_per_sm\": 1},\n"
    "  {\"op\": \"attend\", \"sequences\": 4, \"pages\": 64, \"kernel\": \"attend_8x2x4\", \"blocks_per_sm\": 2},\n"
    "  {\"op\": \"attend\", \"sequences\": 0, \"pages\": 0, \"kernel\": \"attend_8x2x4\", \"blocks_per_sm\": 1},\n"
    "  {\"op\": \"reference\", \"sequences\": 0, \"pages\": 0, \"kernel\": \"reference\", \"blocks_per_sm\": 1},\n"
    "  {\"op\": \"check\", \"sequences\": 0, \"pages\": 0, \"kernel\": \"check\", \"blocks_per_sm\": 1}]}\n";

static char folder[] = "/tmp/kittygen-package-XXXXXX", digest[KT__SHA256_HEX];

static void write_file(const char *name, const char *text, size_t bytes)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fwrite(text, 1, bytes, file), bytes);
    ck_assert_int_eq(fclose(file), 0);
}

// The good manifest with the first `from` replaced by `to`, and every @ by the digest.
static void write_manifest(const char *from, const char *to)
{
    static char text[16384];
    const char *at = from ? strstr(good, from) : good;
    ck_assert_msg(at != 0, "the good manifest has no %s", from);
    char edited[8192];
    snprintf(edited, sizeof edited, "%.*s%s%s", (int)(at - good), good, to ? to : "", at + (from ? strlen(from) : 0));
    size_t used = 0;
    for (const char *c = edited; *c; c++)
        used += (size_t)snprintf(text + used, sizeof text - used, "%.*s", *c == '@' ? 64 : 1, *c == '@' ? digest : c);
    write_file("manifest.json", text, used);
}

static void setup(void)
{
    strcpy(folder + strlen(folder) - 6, "XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    kt__sha256_text(source, strlen(source), digest);
    write_file("a.cu", source, strlen(source));
}

static void teardown(void)
{
    char path[256];
    static const char *const names[] = {"a.cu", "zero.cu", "manifest.json"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
    ck_assert_int_eq(rmdir(folder), 0);
}

START_TEST(reads_all)
{
    kt__package p;
    write_manifest(0, 0);
    ck_assert_msg(kt__package_read(folder, &p) == KT_OK, "%s", kt_message());
    ck_assert_str_eq(p.spec, "tiny.kitty");
    ck_assert_str_eq(p.folder, folder);
    ck_assert_int_eq(p.layers, 2);
    ck_assert_int_eq(p.q_heads, 8);
    ck_assert_int_eq(p.kv_heads, 2);
    ck_assert_double_eq(p.scale, 0.125);
    ck_assert_int_eq(p.formats[0].key_seed, -7);
    ck_assert_int_eq(p.formats[0].value_ring, 256);
    ck_assert_int_eq(p.formats[0].slab_bytes, 57344);
    ck_assert_int_eq(p.kernel_count, 5);
    const kt__kernel *k = &p.kernels[1];
    ck_assert_int_eq(k->op, KT__ATTEND);
    ck_assert_str_eq(k->entry, "kitty_attend");
    ck_assert_str_eq(k->source, source);
    ck_assert_str_eq(k->digest, digest);
    ck_assert_int_eq(k->warps, 8);
    ck_assert_int_eq(k->shared, 90000);
    const unsigned char grid[3][KT__GRID_FACTORS] = {{KT__SPLITS, KT__ONE, KT__ONE}, {KT__KV_HEADS, KT__PASSES, KT__ONE}, {KT__SLOTS, KT__FRESH, KT__ONE}};
    ck_assert_mem_eq(k->grid, grid, sizeof grid);
    ck_assert_int_eq(p.choice_count, 6);
    ck_assert_int_eq(p.choices[2].max_sequences, 4);
    ck_assert_int_eq(p.choices[2].max_pages, 64);
    ck_assert_int_eq(p.choices[2].kernel, 1);
    ck_assert_int_eq(p.choices[2].blocks_per_sm, 2);
    kt__package_free(&p);
    ck_assert_ptr_null(p.kernels);
}
END_TEST

// `expected` follows "FOLDER/manifest.json: " unless it begins with ':'; %F in it is the folder.
static const struct { const char *from, *to, *expected; } bad[] = {
    {"{\"kittygen\"", "{\"kittygen\":, \"x\"", ":1:13: not valid JSON"},
    {"\"layers\": 2", "\"layers\": ?", ":2:22: not valid JSON"},
    {"\"kittygen\": 2, ", "", "kittygen: missing; expected an integer in 1..2147483647"},
    {"\"kittygen\": 2", "\"kittygen\": 1", "kittygen: format version 1; this libkitty (" KT_VERSION ") reads version 2: emit the package with its own kittygen"},
    {"\"kittygen\": 2", "\"kittygen\": \"1\"", "kittygen: \"1\" is not an integer in 1..2147483647"},
    {"\"table_bytes\": 0", "\"table_bytes\": 16", "tables: missing; expected an object"},
    {"\"key_score\": 3", "\"key_score\": 4", "format.table_bytes: 0 does not fit the other fields; expected 8..1073741824"},
    {"\"table_bytes\": 0},", "\"table_bytes\": 16}, \"tables\": {\"file\": \"a.cu\", \"sha256\": \"@\"},",
     "tables.file: 43 bytes; expected 64: 2 layers x 2 KV heads x 16"},
    {"\"tiny.kitty\"", "\"tiny/kitty\"", "spec: \"tiny/kitty\" is not a name (letters, digits, '_', '-', '.')"},
    {"\"model\"", "\"modle\"", "model: missing; expected an object"},
    {"\"layers\": 2", "\"layers\": 0", "model.layers: 0 is not an integer in 1..4096"},
    {"\"layers\": 2", "\"layers\": 1e300", "model.layers: 1e+300 is not an integer in 1..4096"},
    {"\"layers\": 2", "\"layers\": 2.5", "model.layers: 2.5 is not an integer in 1..4096"},
    {"\"q_heads\": 8", "\"q_heads\": 6", "model.q_heads: 6 is not kv_heads 2 * format.group_heads 4"},
    {"\"scale\": 0.125", "\"scale\": -1", "model.scale: -1 is not a number, 0 or more"},
    {"\"dtype\": 0", "\"dtype\": 2", "format.dtype: 2 is not an integer in 0..1"},
    {"\"head_dim\": 64", "\"head_dim\": 65", "format.head_dim: 65 is not a multiple of 32"},
    {"\"sink\": 32, ", "", "format.sink: missing; expected an integer in 0..1048576"},
    {"\"key_boosted\": 8", "\"key_boosted\": 65", "format.key_boosted: 65 does not fit the other fields; expected 0..64"},
    {"\"key_boost_bits\": 4", "\"key_boost_bits\": 18", "format.key_boost_bits: 18 is not an integer in 1..16"},
    {"\"key_group\": 128", "\"key_group\": 96", "format.key_group: 96 is not a multiple of 32 that divides page 128"},
    {"\"value_group\": 64", "\"value_group\": 48", "format.value_group: 48 is not a multiple of 32 that divides head_dim 64"},
    {"\"key_group\": 128", "\"key_group\": 1", "format.key_group: 1 is not a multiple of 32 that divides page 128"},
    {"\"key_group\": 128", "\"key_group\": 32", "format.key_index: 272 does not fit the other fields; expected 1040..288"},
    {"\"value_group\": 64", "\"value_group\": 32", "format.value_meta_bytes: 128 does not fit the other fields; expected 256..640"},
    {"\"key_bits\": 2", "\"key_bits\": 5", "format.key_bits: 5 is not allowed; allowed: 1, 2, 3, 4, 8, 16"},
    {"\"value_bits\": 2", "\"value_bits\": 4", "format.value_tile_bytes: 640 does not fit the other fields; expected 1152..1073741824"},
    {"\"key_boost_bits\": 4", "\"key_boost_bits\": 8", "format.key_rows: 80 does not fit the other fields; expected 96..4096"},
    {"\"key_boost_bits\": 4", "\"key_boost_bits\": 9", "format.key_boost_bits: 9 is not allowed where channels are boosted; allowed: up to 8"},
    {"\"block_bytes\": 5424", "\"block_bytes\": 5392", "format.block_bytes: 5392 does not fit the other fields; expected 5408..1073741824"},
    {"\"block_bytes\": 5424", "\"block_bytes\": 5412", "format.block_bytes: 5412 is not a multiple of 16"},
    {"\"block_bytes\": 5424", "\"block_bytes\": 4294967296", "format.block_bytes: 4294967296 is not an integer in 0..1073741824"},
    {"\"key_tile_bytes\": 640", "\"key_tile_bytes\": 1073741824", "format.value_tiles: 2848 does not fit the other fields; expected 4294967584..5424"},
    {"\"key_meta\": 16", "\"key_meta\": 8", "format.key_meta: 8 does not fit the other fields; expected 16..272"},
    {"\"slab_key\": 8192", "\"slab_key\": 8188", "format.slab_key: 8188 does not fit the other fields; expected 8192..1073741824"},
    {"\"slab_bytes\": 57344", "\"slab_bytes\": 57328", "format.slab_bytes: 57328 does not fit the other fields; expected 57344..1073741824"},
    {"\"key_ring\": 128", "\"key_ring\": 64", "format.key_ring: 64 does not fit the other fields; expected 128..2097152"},
    {"\"kernels\": [", "\"kernels\": {}, \"x\": [", "kernels: {} is not a list"},
    {"\"kernels\": [", "\"kernels\": [], \"x\": [", "kernels: has 0 elements; expected 1..4096"},
    {"\"kernels\": [", "\"kernels\": [3,", "kernels[0]: 3 is not an object"},
    {"\"name\": \"append\"", "\"name\": \"../append\"", "kernels[0].name: \"../append\" is not a name (letters, digits, '_')"},
    {"\"name\": \"append\"", "\"name\": \"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"", "kernels[0].name: 64 characters long; at most 63 are allowed"},
    {"\"name\": \"reference\"", "\"name\": \"append\"", "kernels[2].name: \"append\" is taken by kernels[0]"},
    {"\"op\": \"append\"", "\"op\": \"apend\"", "kernels[0].op: \"apend\" is not one of append, attend, reference, check, advance"},
    {"\"file\": \"a.cu\"", "\"file\": \"../a.cu\"", "kernels[0].file: \"../a.cu\" is not a file name in the package (letters, digits, '_', '-', '.')"},
    {"\"file\": \"a.cu\"", "\"file\": \"..\"", "kernels[0].file: \"..\" must not begin with '.'"},
    {"\"file\": \"a.cu\"", "\"file\": \"b.cu\"", "kernels[0].file: %F/b.cu: No such file or directory"},
    {"\"file\": \"a.cu\"", "\"file\": \"zero.cu\"", "kernels[0].file: %F/zero.cu: holds a zero byte; expected text"},
    {"\"entry\": \"kitty_append\"", "\"entry\": \"\"", "kernels[0].entry: \"\" is not the extern \"C\" name in the source"},
    {"\"sha256\": \"@\"", "\"sha256\": \"00\"", "kernels[0].sha256: 2 digits; expected 64 lower-case hex digits"},
    {"\"sha256\": \"@\"", "\"sha256\": \"zz\"", "kernels[0].sha256: \"zz\" is not 64 lower-case hex digits"},
    {"\"sha256\": \"@\"", "\"sha256\": \"0000000000000000000000000000000000000000000000000000000000000000\"",
     "kernels[0].sha256: a.cu has digest %D, the manifest says 0000000000000000000000000000000000000000000000000000000000000000; a changed source needs `kittygen emit` again"},
    {"\"threads\": 256", "\"threads\": 2048", "kernels[0].threads: 2048 is not an integer in 1..1024"},
    {"\"shared\": 20000", "\"shared\": -1", "kernels[0].shared: -1 is not an integer in 0..1048576"},
    {"\"warps\": 8", "\"warps\": 4", "kernels[1].threads: 256 is not 32 * warps (4)"},
    {"\"stages\": 2, ", "", "kernels[1].stages: missing; expected an integer in 1..64"},
    {"\"tiles\": 4", "\"tiles\": 5", "kernels[1].tiles: 5 is not an integer in 1..4"},
    {"\"kv_heads*passes\"", "\"kv_heads*pass\"", "kernels[1].grid: \"pass\" is not a factor; the factors are 1, units, splits, kv_heads, passes, q_heads, slots, fresh"},
    {"\"kv_heads*passes\"", "\"kv_heads*1*1*1\"", "kernels[1].grid: \"kv_heads*1*1*1\" has more than 3 factors"},
    {"\"kv_heads*passes\"", "\"\"", "kernels[1].grid: \"\" is not a factor; the factors are 1, units, splits, kv_heads, passes, q_heads, slots, fresh"},
    {"\"kv_heads*passes\", ", "", "kernels[1].grid: [\"splits\",\"slots*fresh\"] is not a list of 3 products such as \"kv_heads*passes\""},
    {"\"kv_heads*passes\"", "7", "kernels[1].grid: 7 is not a product such as \"kv_heads*passes\""},
    {"\"sequences\": 4", "\"sequences\": 4294967297", "select[2].sequences: 4294967297 is not an integer in 0..2147483647"},
    {"\"blocks_per_sm\": 2", "\"blocks_per_sm\": 0", "select[2].blocks_per_sm: 0 is not an integer in 1..64"},
    {"\"pages\": 64, \"kernel\": \"attend_8x2x4\"", "\"pages\": 64, \"kernel\": \"attend\"", "select[2].kernel: \"attend\" is not the name of a kernel of this package"},
    {"\"pages\": 64, \"kernel\": \"attend_8x2x4\"", "\"pages\": 64, \"kernel\": \"check\"", "select[2].kernel: \"check\" is a kernel for check, not for attend"},
    {"\"sequences\": 0, \"pages\": 0, \"kernel\": \"attend_8x2x4\"", "\"sequences\": 8, \"pages\": 0, \"kernel\": \"attend_8x2x4\"",
     "select: no row for attend with sequences 0 and pages 0; expected one that takes every shape"},
    {ADVANCE, "], \"select\": [", "kernels: none for advance; expected at least one"},
};

START_TEST(refuses)
{
    char text[1024], expected[2048];
    kt__package p;
    write_file("zero.cu", "a\0b", 3);
    write_manifest(bad[_i].from, bad[_i].to);
    size_t used = 0;
    for (const char *c = bad[_i].expected; *c; c++)
        if (*c == '%')
            used += (size_t)snprintf(text + used, sizeof text - used, "%s", *++c == 'F' ? folder : digest);
        else
            text[used++] = *c;
    text[used] = 0;
    snprintf(expected, sizeof expected, "%s/manifest.json%s%s", folder, *text == ':' ? "" : ": ", text);
    ck_assert_int_eq(kt__package_read(folder, &p), KT_PACKAGE);
    ck_assert_str_eq(kt_message(), expected);
    ck_assert_ptr_null(p.kernels);
}
END_TEST

START_TEST(refuses_folders)
{
    char path[256], expected[512];
    kt__package p;
    snprintf(path, sizeof path, "%s/none", folder);
    ck_assert_int_eq(kt__package_read(path, &p), KT_IO);
    snprintf(expected, sizeof expected, "%s: No such file or directory; expected the folder of a kernel package (kittygen emit)", path);
    ck_assert_str_eq(kt_message(), expected);

    snprintf(path, sizeof path, "%s/a.cu", folder);
    ck_assert_int_eq(kt__package_read(path, &p), KT_IO);
    snprintf(expected, sizeof expected, "%s: not a folder; expected the folder of a kernel package (kittygen emit)", path);
    ck_assert_str_eq(kt_message(), expected);

    ck_assert_int_eq(kt__package_read(folder, &p), KT_PACKAGE);
    snprintf(expected, sizeof expected, "%s/manifest.json: No such file or directory", folder);
    ck_assert_str_eq(kt_message(), expected);

    snprintf(path, sizeof path, "%s/manifest.json", folder);
    ck_assert_int_eq(mkfifo(path, 0600), 0); // must be refused, not waited for
    ck_assert_int_eq(kt__package_read(folder, &p), KT_PACKAGE);
    snprintf(expected, sizeof expected, "%s/manifest.json: not a file of at most 16777216 bytes", folder);
    ck_assert_str_eq(kt_message(), expected);
}
END_TEST

// Every prefix of a good manifest is refused, and none crashes.
START_TEST(refuses_truncations)
{
    char path[256], all[16384];
    kt__package p;
    write_manifest(0, 0);
    snprintf(path, sizeof path, "%s/manifest.json", folder);
    FILE *file = fopen(path, "rb");
    const size_t bytes = fread(all, 1, sizeof all, file);
    fclose(file);
    for (size_t n = 0; n < bytes - 2; n += 7) {
        write_file("manifest.json", all, n);
        ck_assert_int_eq(kt__package_read(folder, &p), KT_PACKAGE);
    }
}
END_TEST

START_TEST(messages)
{
    ck_assert_int_eq(kt__fail(KT_FULL, "%d pages", 7), KT_FULL);
    ck_assert_str_eq(kt_message(), "7 pages");
    ck_assert_int_eq(kt__within(KT_FULL, "layer %d", 3), KT_FULL);
    ck_assert_str_eq(kt_message(), "layer 3: 7 pages");
    kt__fail(KT_IO, "again: %s", kt_message());
    ck_assert_str_eq(kt_message(), "again: layer 3: 7 pages");
    ck_assert_str_eq(kt_status_name(KT_COMPILE), "KT_COMPILE");
    ck_assert_str_eq(kt_status_name((kt_status)99), "unknown status");
}
END_TEST

START_TEST(digests)
{
    static const struct { const char *text; int repeat; const char *digest; } known_digests[] = { // FIPS 180-4 examples
        {"", 1, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {"abc", 1, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 1, "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
        {"aaaaaaaaaa", 100000, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"},
    };
    for (size_t i = 0; i < sizeof known_digests / sizeof *known_digests; i++) {
        kt__sha256 sha;
        unsigned char bytes[KT__SHA256_BYTES];
        char hex[KT__SHA256_HEX];
        kt__sha256_begin(&sha);
        for (int n = 0; n < known_digests[i].repeat; n++)
            kt__sha256_add(&sha, known_digests[i].text, strlen(known_digests[i].text));
        kt__sha256_end(&sha, bytes);
        kt__sha256_hex(bytes, hex);
        ck_assert_str_eq(hex, known_digests[i].digest);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("package");
    TCase *all = tcase_create("all");
    tcase_add_checked_fixture(all, setup, teardown);
    tcase_add_test(all, reads_all);
    tcase_add_loop_test(all, refuses, 0, sizeof bad / sizeof *bad);
    tcase_add_test(all, refuses_folders);
    tcase_add_test(all, refuses_truncations);
    tcase_add_test(all, messages);
    tcase_add_test(all, digests);
    suite_add_tcase(suite, all);
    return run_suite(suite);
}
