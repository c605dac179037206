// safetensors files: what a good one holds, and what is said of each damaged one.
#include "safetensors.h"
#include "suite.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char path[] = "/tmp/kittygen-safetensors-XXXXXX";
static char error[512];

// Header length, header, and `data` zero bytes.
static void write_file(unsigned long long length, const char *header, size_t header_bytes, size_t data)
{
    FILE *file = fopen(path, "wb");
    ck_assert_ptr_nonnull(file);
    for (int i = 0; i < 8; i++)
        fputc((int)(length >> 8 * i & 255), file);
    fwrite(header, 1, header_bytes, file);
    for (size_t i = 0; i < data; i++)
        fputc((int)i, file);
    ck_assert_int_eq(fclose(file), 0);
}

static void setup(void)
{
    strcpy(path + strlen(path) - 6, "XXXXXX");
    const int fd = mkstemp(path);
    ck_assert_int_ge(fd, 0);
    close(fd);
}

static void teardown(void) { unlink(path); }

START_TEST(good)
{
    const char *header = "{\"__metadata__\":{\"scale\":\"0.125\"},"
                         "\"q.0\":{\"dtype\":\"F16\",\"shape\":[2,3],\"data_offsets\":[4,16]},"
                         "\"mask\":{\"dtype\":\"BOOL\",\"shape\":[4],\"data_offsets\":[0,4]},"
                         "\"empty\":{\"dtype\":\"F32\",\"shape\":[0,7],\"data_offsets\":[4,4]},"
                         "\"one\":{\"dtype\":\"I32\",\"shape\":[],\"data_offsets\":[16,20]}}   ";
    write_file(strlen(header), header, strlen(header), 20);
    kg_safetensors *file;
    ck_assert_msg(kg_safetensors_open(path, &file, error, sizeof error), "%s", error);
    ck_assert_str_eq(kg_safetensors_path(file), path);
    ck_assert_str_eq(kg_safetensors_metadata(file, "scale"), "0.125");
    ck_assert_ptr_null(kg_safetensors_metadata(file, "model"));
    ck_assert_int_eq(kg_safetensors_count(file), 4);
    static const char *const names[] = {"empty", "mask", "one", "q.0"};
    for (int i = 0; i < 4; i++)
        ck_assert_str_eq(kg_safetensors_at(file, i)->name, names[i]);
    ck_assert_ptr_null(kg_safetensors_find(file, "q"));
    const kg_tensor *q = kg_safetensors_find(file, "q.0");
    ck_assert_ptr_nonnull(q);
    ck_assert_str_eq(q->dtype, "F16");
    ck_assert_int_eq(q->rank, 2);
    ck_assert_int_eq(q->shape[1], 3);
    ck_assert_uint_eq(q->bytes, 12);
    ck_assert_int_eq(*(const unsigned char *)q->data, 4);
    ck_assert_int_eq(kg_safetensors_find(file, "one")->rank, 0);
    char text[32];
    ck_assert_str_eq(kg_tensor_shape(q, text, sizeof text), "[2, 3]");

    static const char *const labels[] = {"tokens", 0};
    const int64_t fits[] = {-1, 3}, differs[] = {-1, 4};
    ck_assert_ptr_eq(kg_safetensors_require(file, "q.0", "BF16 F16", 2, fits, labels, error, sizeof error), q);
    char expected[512];
    ck_assert_ptr_null(kg_safetensors_require(file, "q.0", 0, 2, differs, labels, error, sizeof error));
    snprintf(expected, sizeof expected, "%s: tensor \"q.0\" has shape [2, 3], expected [tokens, 4]", path);
    ck_assert_str_eq(error, expected);
    ck_assert_ptr_null(kg_safetensors_require(file, "q.0", 0, 1, fits, labels, error, sizeof error));
    snprintf(expected, sizeof expected, "%s: tensor \"q.0\" has shape [2, 3], expected [tokens]", path);
    ck_assert_str_eq(error, expected);
    ck_assert_ptr_null(kg_safetensors_require(file, "q.0", "BF16 F32", 2, fits, labels, error, sizeof error));
    snprintf(expected, sizeof expected, "%s: tensor \"q.0\" has dtype F16, expected one of BF16 F32", path);
    ck_assert_str_eq(error, expected);
    ck_assert_ptr_null(kg_safetensors_require(file, "q.1", 0, 2, fits, labels, error, sizeof error));
    snprintf(expected, sizeof expected, "%s: no tensor \"q.1\" (it has 4, from \"empty\")", path);
    ck_assert_str_eq(error, expected);
    kg_safetensors_close(file);
    kg_safetensors_close(0);
}
END_TEST

#define X "{\"x\":"
#define F16_TENSOR "{\"dtype\":\"F16\",\"shape\":[4],\"data_offsets\":[0,8]}"

static const struct {
    const char *header;
    size_t data;
    const char *message;
} damaged[] = {
    {"{\"x\":{", 0, "header is not JSON, at its byte 5"},
    {"", 0, "header is not JSON, at its byte 0"},
    {"{} {}", 0, "header is not JSON, at its byte 3"},
    {"[]", 0, "header is not a JSON object"},
    {"{\"__metadata__\":3}", 0, "__metadata__ is not an object"},
    {"{\"__metadata__\":{\"a\":3}}", 0, "__metadata__: \"a\" is not a string"},
    {X "7}", 0, "tensor \"x\": not an object"},
    {X "{}}", 0, "tensor \"x\": no dtype"},
    {X "{\"dtype\":\"F17\"}}", 0, "tensor \"x\": unknown dtype \"F17\""},
    {X "{\"dtype\":\"F16\"}}", 0, "tensor \"x\": no shape"},
    {X "{\"dtype\":\"F16\",\"shape\":[2,-1]}}", 0, "tensor \"x\": shape[1] is not a length"},
    {X "{\"dtype\":\"F16\",\"shape\":[1.5]}}", 0, "tensor \"x\": shape[0] is not a length"},
    {X "{\"dtype\":\"F16\",\"shape\":[\"4\"]}}", 0, "tensor \"x\": shape[0] is not a length"},
    {X "{\"dtype\":\"F16\",\"shape\":[1e30]}}", 0, "tensor \"x\": shape[0] is not a length"},
    {X "{\"dtype\":\"F16\",\"shape\":[1,1,1,1,1,1,1,1,1]}}", 0, "tensor \"x\": more than 8 dimensions"},
    {X "{\"dtype\":\"F16\",\"shape\":[4294967296,4294967296]}}", 0, "tensor \"x\": the shape's size overflows"},
    {X "{\"dtype\":\"F16\",\"shape\":[4]}}", 8, "tensor \"x\": data_offsets is not a pair of offsets"},
    {X "{\"dtype\":\"F16\",\"shape\":[4],\"data_offsets\":[8]}}", 8, "tensor \"x\": data_offsets is not a pair of offsets"},
    {X "{\"dtype\":\"F16\",\"shape\":[4],\"data_offsets\":[-8,0]}}", 8, "tensor \"x\": data_offsets is not a pair of offsets"},
    {X "{\"dtype\":\"F16\",\"shape\":[4],\"data_offsets\":[8,0]}}", 8, "tensor \"x\": data_offsets [8, 0] run backwards"},
    {X F16_TENSOR "}", 7, "truncated: tensor \"x\" ends at byte 8 of the data, the file at 7"},
    {X "{\"dtype\":\"F16\",\"shape\":[5],\"data_offsets\":[0,8]}}", 8,
     "tensor \"x\": 8 bytes of data, but F16 [5] takes 10"},
    {X F16_TENSOR "}", 9, "1 bytes after the last tensor belong to none"},
    {"{}", 3, "3 bytes after the last tensor belong to none"},
    {X "{\"dtype\":\"F16\",\"shape\":[4],\"data_offsets\":[2,10]}}", 10, "2 bytes before tensor \"x\" belong to none"},
    {X F16_TENSOR ",\"y\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[6,10]}}", 10, "tensor \"y\" overlaps tensor \"x\""},
    {X F16_TENSOR ",\"x\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[8,12]}}", 12, "tensor \"x\" is there twice"},
};

START_TEST(damage)
{
    const size_t length = strlen(damaged[_i].header);
    write_file(length, damaged[_i].header, length, damaged[_i].data);
    kg_safetensors *file;
    char expected[512];
    snprintf(expected, sizeof expected, "%s: %s", path, damaged[_i].message);
    ck_assert(!kg_safetensors_open(path, &file, error, sizeof error));
    ck_assert_ptr_null(file);
    ck_assert_str_eq(error, expected);
}
END_TEST

START_TEST(header_length)
{
    static const struct {
        unsigned long long length;
        const char *message;
    } lengths[] = {
        {100000001, "header of 100000001 bytes; at most 100000000 are allowed (is this a safetensors file?)"},
        {~0ULL, "header of 18446744073709551615 bytes; at most 100000000 are allowed (is this a safetensors file?)"},
        {3, "truncated: header of 3 bytes, but only 2 follow its length"},
    };
    kg_safetensors *file;
    char expected[512];
    for (unsigned i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        write_file(lengths[i].length, "{}", 2, 0);
        snprintf(expected, sizeof expected, "%s: %s", path, lengths[i].message);
        ck_assert(!kg_safetensors_open(path, &file, error, sizeof error));
        ck_assert_str_eq(error, expected);
    }
    ck_assert_int_eq(truncate(path, 5), 0);
    snprintf(expected, sizeof expected, "%s: truncated: 5 bytes, but the header's length alone takes 8", path);
    ck_assert(!kg_safetensors_open(path, &file, error, sizeof error));
    ck_assert_str_eq(error, expected);
    ck_assert(!kg_safetensors_open("/nowhere/x.safetensors", &file, error, sizeof error));
    ck_assert_str_eq(error, "/nowhere/x.safetensors: cannot be opened: No such file or directory");
    ck_assert(!kg_safetensors_open("/", &file, error, sizeof error));
    ck_assert_str_eq(error, "/: not a regular file");
}
END_TEST

// A file cut anywhere, or with any one byte of its header changed, is refused or read within its bounds.
START_TEST(every_cut)
{
    const char *header = X F16_TENSOR "}";
    const size_t length = strlen(header);
    kg_safetensors *file;
    for (size_t cut = 0; cut < 8 + length + 8; cut++) {
        write_file(length, header, length, 8);
        ck_assert_int_eq(truncate(path, (off_t)cut), 0);
        ck_assert(!kg_safetensors_open(path, &file, error, sizeof error));
    }
    static const char bytes[] = "\0\"\\,:019-.e[]{} xn\x80\xff";
    char changed[256];
    for (size_t i = 0; i < length; i++) {
        for (size_t b = 0; b < sizeof bytes; b++) {
            memcpy(changed, header, length);
            changed[i] = bytes[b];
            write_file(length, changed, length, 8);
            if (!kg_safetensors_open(path, &file, error, sizeof error))
                continue;
            for (int t = 0; t < kg_safetensors_count(file); t++)
                ck_assert_uint_le(kg_safetensors_at(file, t)->bytes, 8);
            kg_safetensors_close(file);
        }
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("safetensors");
    TCase *tests = tcase_create("safetensors");
    tcase_set_timeout(tests, 60);
    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_add_test(tests, good);
    tcase_add_loop_test(tests, damage, 0, sizeof damaged / sizeof *damaged);
    tcase_add_test(tests, header_length);
    tcase_add_test(tests, every_cut);
    suite_add_tcase(suite, tests);
    return run_suite(suite);
}
