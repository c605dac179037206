// Agreement with the original's own simulation, by the rule in tests/data/vectors/README.md.
#include "fields.h"
#include "reference.h"
#include "safetensors.h"
#include "suite.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PAGE = 128 };

static const struct {
    const char *name;
    int bits, boost_bits;
    double fraction;
    kg_score score;
    int group;
} keys[] = {
    {"kivi2", 2, 2, 0, KG_SCORE_MAGNITUDE, PAGE},          {"kitty", 2, 4, 0.125, KG_SCORE_MAGNITUDE, PAGE},
    {"kittypro", 2, 4, 0.25, KG_SCORE_MAGNITUDE, PAGE},    {"kittypro_var", 2, 4, 0.25, KG_SCORE_VARIANCE, PAGE},
    {"k2g32", 2, 4, 0.25, KG_SCORE_MAGNITUDE, 32},         {"k4", 4, 4, 0, KG_SCORE_MAGNITUDE, PAGE},
    {"k2b8", 2, 8, 0.125, KG_SCORE_MAGNITUDE, PAGE},
};
static const struct {
    const char *name;
    int bits, group;
} values[] = {{"v2", 2, KG_GROUP_HEAD}, {"v2g32", 2, 32}, {"v4", 4, KG_GROUP_HEAD}};

typedef struct {
    double difference, step, error, its_error;
    long long masks_wrong;
} totals;

static const unsigned short *need(const kg_safetensors *file, const char *prefix, const char *name, const kg_tensor **tensor)
{
    char full[64];
    snprintf(full, sizeof full, "%s%s%s", prefix, *name ? "." : "", name);
    *tensor = kg_safetensors_find(file, full);
    ck_assert_msg(*tensor != NULL, "%s has no %s", kg_safetensors_path(file), full);
    unsigned short *copy = malloc((*tensor)->bytes + 1);
    memcpy(copy, (*tensor)->data, (*tensor)->bytes);
    return copy;
}

// Mean scale of the page's elements, from the decoded metadata: read through the public offsets of the format.
static double steps(const kt_format *f, kt_part part, const unsigned char *block)
{
    double sum = 0;
    if (part == KT_KEY) {
        const int groups = f->page / f->key_group;
        for (int i = 0; i < groups * f->head_dim; i++) {
            unsigned short scale;
            memcpy(&scale, block + f->key_meta + (i / f->head_dim * 2 * f->head_dim + i % f->head_dim) * 2, 2);
            sum += kt__half_to_float(scale) * f->key_group;
        }
    } else {
        for (int tile = 0; tile < f->page / 32; tile++)
            for (int i = 0; i < f->value_meta_bytes / 4; i++) {
                unsigned short scale;
                memcpy(&scale, block + f->value_tiles + tile * f->value_tile_bytes + 4 * i, 2);
                sum += kt__half_to_float(scale) * f->value_group;
            }
    }
    return sum;
}

static void compare_page(const kt_format *f, kt_part part, const unsigned short *in, const unsigned short *theirs,
                         const unsigned char *mask, totals *sum)
{
    unsigned char *block = calloc(1, (size_t)f->block_bytes);
    float *ours = malloc((size_t)f->page * f->head_dim * sizeof *ours);
    const unsigned short *rows[PAGE];
    for (int t = 0; t < PAGE; t++)
        rows[t] = in + t * f->head_dim;
    if (part == KT_KEY) {
        kt__cpu_seal_key(f, NULL, rows, 0, 0, 0, block);
        kt__cpu_decode(f, KT_KEY, NULL, block, ours);
        unsigned char boosted[256] = {0};
        for (int i = 0; i < f->key_boosted; i++)
            boosted[block[f->key_index + i]] = 1;
        for (int c = 0; c < f->head_dim; c++)
            sum->masks_wrong += boosted[c] != (mask[c] != 0);
    } else {
        kt__cpu_seal_value(f, NULL, rows, block);
        kt__cpu_decode(f, KT_VALUE, NULL, block, ours);
    }
    sum->step += steps(f, part, block);
    for (int i = 0; i < PAGE * f->head_dim; i++) {
        const double x = kt__half_to_float(in[i]), y = kt__half_to_float(theirs[i]);
        sum->difference += fabs(ours[i] - y);
        sum->error += fabs(ours[i] - x);
        sum->its_error += fabs(y - x);
    }
    free(ours);
    free(block);
}

static void check_variant(const kg_safetensors *file, kt_part part, const char *name, kg_spec *spec)
{
    const kg_tensor *input, *output, *masks = NULL;
    const char *which = part == KT_KEY ? "key" : "value";
    const unsigned short *in = need(file, which, "", &input), *theirs = need(file, which, name, &output), *mask = NULL;
    if (part == KT_KEY)
        mask = need(file, "mask", name, &masks);
    ck_assert_int_eq(input->rank, 4);
    ck_assert_str_eq(input->dtype, "F16");
    ck_assert_uint_eq(input->bytes, output->bytes);
    ck_assert_int_eq(input->shape[2] % PAGE, 0);

    spec->page = PAGE;
    spec->model.layers = spec->model.kv_heads = spec->model.q_heads = 1;
    spec->model.head_dim = (int)input->shape[3];
    kt_format f;
    const char *why = kg_layout(spec, &f);
    ck_assert_msg(!why, "%s", why ? why : "");
    const long long pages = input->shape[0] * input->shape[1] * input->shape[2] / PAGE, elements = (long long)PAGE * f.head_dim;
    ck_assert_int_gt(pages, 0);
    if (part == KT_KEY)
        ck_assert_int_eq((long long)masks->bytes, pages * f.head_dim);
    totals sum = {0};
    for (long long p = 0; p < pages; p++)
        compare_page(&f, part, in + p * elements, theirs + p * elements,
                     mask ? (const unsigned char *)mask + p * f.head_dim : NULL, &sum);
    ck_assert_msg(sum.masks_wrong == 0, "%s %s: %lld channels are boosted in one only", which, name, sum.masks_wrong);
    ck_assert_msg(sum.difference <= 0.01 * sum.step, "%s %s: mean difference is %.5f of the mean step, at most 0.01",
                  which, name, sum.difference / sum.step);
    ck_assert_msg(sum.error <= 1.0005 * sum.its_error, "%s %s: error is %.6f of the original's, at most 1.0005", which,
                  name, sum.error / sum.its_error);
    if (getenv("KT_VECTORS_SHOW"))
        printf("d%d %s %s: difference %.5f of a step, error %.6f of the original's\n", f.head_dim, which, name,
               sum.difference / sum.step, sum.error / sum.its_error);
    free((void *)in);
    free((void *)theirs);
    free((void *)mask);
}

static void check_file(const char *path)
{
    kg_safetensors *file;
    char error[512];
    ck_assert_msg(kg_safetensors_open(path, &file, error, sizeof error), "%s", error);
    for (unsigned i = 0; i < sizeof keys / sizeof *keys; i++) {
        kg_spec spec = {0};
        spec.key.bits = keys[i].bits;
        spec.key.boost_bits = keys[i].boost_bits;
        spec.key.boost_fraction = keys[i].fraction;
        spec.key.score = keys[i].score;
        spec.key.group = keys[i].group;
        spec.value.bits = 2;
        check_variant(file, KT_KEY, keys[i].name, &spec);
    }
    for (unsigned i = 0; i < sizeof values / sizeof *values; i++) {
        kg_spec spec = {0};
        spec.key.bits = spec.key.boost_bits = 2;
        spec.key.group = PAGE;
        spec.value.bits = values[i].bits;
        spec.value.group = values[i].group;
        check_variant(file, KT_VALUE, values[i].name, &spec);
    }
    kg_safetensors_close(file);
}

// Returns how many files it read.
static int check_folder(const char *folder)
{
    DIR *dir = opendir(folder);
    ck_assert_msg(dir != NULL, "cannot read %s", folder);
    int files = 0;
    for (struct dirent *entry; (entry = readdir(dir));) {
        const char *dot = strrchr(entry->d_name, '.');
        if (!dot || strcmp(dot, ".safetensors"))
            continue;
        char path[1024];
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        check_file(path);
        files++;
    }
    closedir(dir);
    return files;
}

START_TEST(shipped)
{
    char folder[1024];
    snprintf(folder, sizeof folder, "%s/data/vectors", ref_data());
    ck_assert_int_ge(check_folder(folder), 2);
}
END_TEST

// ---- the README's table of the original's options --------------------------------------------------------------------

enum { OPTIONS = 8, FIELDS = 2 };
static const char *const options[OPTIONS] = {"kbits", "vbits", "promote_ratio", "promote_bit", "channel_selection", "group_size", "sink_length", "buffer_length"};

typedef char mapping[OPTIONS][FIELDS][32];

// The fields of each option: from a row "| `kbits` | `key.bits` | ...".
static void read_mapping(mapping map)
{
    char path[1024], error[512], *text;
    size_t size;
    snprintf(path, sizeof path, "%s/../README.md", ref_data());
    ck_assert_msg(!kg_file_read(path, 1 << 20, &text, &size, error, sizeof error), "%s", error);
    memset(map, 0, sizeof(mapping));
    for (int o = 0; o < OPTIONS; o++) {
        char row[64];
        snprintf(row, sizeof row, "\n| `%s` | ", options[o]);
        const char *at = strstr(text, row);
        ck_assert_msg(at != NULL, "README.md has no row of %s", options[o]);
        at += strlen(row);
        for (int f = 0; f < FIELDS && *at == '`'; f++) {
            ck_assert_int_eq(sscanf(at, "`%31[^`]`", map[o][f]), 1);
            ck_assert_msg(kg_field_find(map[o][f]) != NULL, "README.md maps %s to %s, which is no field", options[o], map[o][f]);
            at += strlen(map[o][f]) + 2;
            at += *at == ',' ? 2 : 0;
        }
        ck_assert_msg(*map[o][0], "README.md maps %s to nothing", options[o]);
    }
    free(text);
}

// The spec that the table makes of "kbits=2 promote_ratio=0.25".
static kg_spec translate(mapping map, const char *settings)
{
    char text[2048] = "local s = { model = { name = 'm', layers = 1, q_heads = 1, kv_heads = 1, head_dim = 64, dtype = 'fp16' }, key = { boost = {} }, value = {} }\n";
    char copy[256], error[KG_ERROR];
    snprintf(copy, sizeof copy, "%s", settings);
    char *rest = NULL;
    for (char *word = strtok_r(copy, " ", &rest); word; word = strtok_r(NULL, " ", &rest)) {
        char *value = strchr(word, '=');
        *value++ = 0;
        int o = 0;
        while (o < OPTIONS && strcmp(options[o], word))
            o++;
        ck_assert_msg(o < OPTIONS, "no option %s", word);
        for (int f = 0; f < FIELDS && *map[o][f]; f++) {
            const size_t length = strlen(text);
            const char *quote = *value >= 'a' && *value <= 'z' ? "'" : "";
            snprintf(text + length, sizeof text - length, "s.%s = %s%s%s\n", map[o][f], quote, value, quote);
        }
    }
    strcat(text, "if s.key.boost.fraction == 0 then s.key.boost = false end\nreturn kitty(s)\n");
    kg_spec *specs;
    int count;
    ck_assert_msg(!kg_spec_load_text("options", text, strlen(text), NULL, NULL, &specs, &count, error, sizeof error), "%s", error);
    const kg_spec spec = specs[0];
    free(specs);
    return spec;
}

static const struct {
    kt_part part;
    const char *name, *settings;
} simulated[] = {
    {KT_KEY, "kivi2", "kbits=2 promote_ratio=0"},
    {KT_KEY, "kitty", "kbits=2 promote_ratio=0.125 promote_bit=4 channel_selection=magnitude buffer_length=128"},
    {KT_KEY, "kittypro_var", "kbits=2 promote_ratio=0.25 promote_bit=4 channel_selection=variance"},
    {KT_KEY, "k2g32", "kbits=2 promote_ratio=0.25 promote_bit=4 channel_selection=magnitude group_size=32"},
    {KT_KEY, "k4", "kbits=4 promote_ratio=0"},
    {KT_KEY, "k2b8", "kbits=2 promote_ratio=0.125 promote_bit=8 channel_selection=magnitude"},
    {KT_VALUE, "v2g32", "promote_ratio=0 vbits=2 group_size=32"},
    {KT_VALUE, "v4", "promote_ratio=0 vbits=4"},
};

START_TEST(options_of_the_original)
{
    char path[1024], error[512];
    mapping map;
    kg_safetensors *file;
    read_mapping(map);
    snprintf(path, sizeof path, "%s/data/vectors/original_sim_d64.safetensors", ref_data());
    ck_assert_msg(kg_safetensors_open(path, &file, error, sizeof error), "%s", error);
    for (size_t i = 0; i < sizeof simulated / sizeof *simulated; i++) {
        kg_spec spec = translate(map, simulated[i].settings);
        check_variant(file, simulated[i].part, simulated[i].name, &spec);
    }
    kg_safetensors_close(file);
    // What no page shows: the first and the newest tokens.
    const kg_spec spec = translate(map, "promote_ratio=0 sink_length=64 buffer_length=256");
    ck_assert_int_eq(spec.sink, 64);
    ck_assert_int_eq(spec.page, 256);
    ck_assert_int_eq(spec.value.window, 256);
}
END_TEST

START_TEST(further)
{
    ck_assert_int_ge(check_folder(getenv("KT_VECTORS")), 1);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("vectors");
    TCase *tcase = tcase_create("vectors");
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, shipped);
    tcase_add_test(tcase, options_of_the_original);
    if (getenv("KT_VECTORS"))
        tcase_add_test(tcase, further);
    suite_add_tcase(suite, tcase);
    return run_suite(suite);
}
