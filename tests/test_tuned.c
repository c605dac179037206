// The tuned table without a GPU: the file and its faults, which set a format goes by, and the plan that follows.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tuned.h"
#include "suite.h"

static char path[] = "/tmp/kittygen-tuned-XXXXXX", error[KG_ERROR];

static void setup(void)
{
    strcpy(path + strlen(path) - 6, "XXXXXX");
    const int file = mkstemp(path);
    ck_assert_int_ge(file, 0);
    close(file);
    setenv("KT_TUNED", path, 1);
}

static void teardown(void) { unlink(path); }

static void put(const char *text) { ck_assert_int_eq(kg_file_write(path, text, strlen(text), 1, error, sizeof error), KG_OK); }

static int kv_heads; // of the spec that format_of was asked for last

static kt_format format_of(const char *spec)
{
    kg_spec *specs;
    kt_format f;
    int count;
    ck_assert_msg(!kg_spec_load(spec, 0, &specs, &count, error, sizeof error), "%s", error);
    ck_assert_ptr_null(kg_layout(&specs[0], &f));
    kv_heads = specs[0].model.kv_heads;
    free(specs);
    return f;
}

// A set for a format; rows are added by add_row.
static kg_tuned_set set_for(const kt_format *f, const char *name)
{
    kg_tuned_set set = kg_tuned_set_for(f, kv_heads);
    snprintf(set.spec, sizeof set.spec, "%s", name);
    strcpy(set.card, "Card \"A\"");
    return set;
}

static void add_row(kg_tuned_set *set, int sequences, int context, int warps, int stages, int tiles, int blocks)
{
    set->rows[set->count++] = (kg_tuned_row){sequences, context, warps, stages, tiles, blocks, 12.5, "2026-11-24"};
}

static void put_sets(const kg_tuned_set *sets, int count)
{
    kg_tuned table = {0};
    for (int i = 0; i < count; i++)
        ck_assert_int_eq(kg_tuned_put(&table, &sets[i], error), KG_OK);
    ck_assert_int_eq(kg_tuned_write(path, &table, error), KG_OK);
    kg_tuned_free(&table);
}

// ---- the file --------------------------------------------------------------------------------------------------------

START_TEST(written_and_read)
{
    const char *const specs[] = {"qwen3_8b/kitty_pro", "smollm2_135m/kitty", "qwen3_8b/fp16", "gemma3_270m/kitty"};
    kg_tuned_set sets[4];
    kg_tuned table;
    for (int i = 0; i < 4; i++) {
        const kt_format f = format_of(specs[i]);
        sets[i] = set_for(&f, specs[i]);
        add_row(&sets[i], 1, 1024, 8, 2, 2, 1);
        add_row(&sets[i], 32, 1024, 4, 2, 4, 2);
    }
    put_sets(sets, 4);
    ck_assert_msg(!kg_tuned_read(path, &table, error), "%s", error);
    ck_assert_int_eq(table.count, 4);
    for (int i = 1; i < 4; i++) // ascending, whatever the order in which they came
        ck_assert(table.sets[i - 1].head_dim < table.sets[i].head_dim ||
                  (table.sets[i - 1].head_dim == table.sets[i].head_dim && table.sets[i - 1].block_bytes < table.sets[i].block_bytes));
    for (int i = 0; i < 4; i++) {
        const kt_format f = format_of(specs[i]);
        const kg_tuned_set *found = kg_tuned_find(&table, &f, kv_heads);
        ck_assert_ptr_nonnull(found);
        ck_assert_str_eq(found->spec, specs[i]);
        ck_assert_str_eq(found->card, "Card \"A\"");
        ck_assert_int_eq(found->count, 2);
        ck_assert_int_eq(memcmp(&found->rows[1], &sets[i].rows[1], sizeof found->rows[1]), 0);
    }
    // Written again: the same bytes; a set that is put again takes the place of the old one.
    char *first, *second;
    size_t first_size, second_size;
    ck_assert_int_eq(kg_file_read(path, 1 << 20, &first, &first_size, error, sizeof error), KG_OK);
    ck_assert_int_eq(kg_tuned_put(&table, &sets[1], error), KG_OK);
    ck_assert_int_eq(table.count, 4);
    ck_assert_int_eq(kg_tuned_write(path, &table, error), KG_OK);
    ck_assert_int_eq(kg_file_read(path, 1 << 20, &second, &second_size, error, sizeof error), KG_OK);
    ck_assert_str_eq(first, second);
    free(first);
    free(second);
    kg_tuned_free(&table);
}
END_TEST

#define ROW "{\"sequences\": 1, \"context\": 1024, \"warps\": 8, \"stages\": 2, \"tiles\": 2, \"blocks\": 1, \"us\": 5.5, \"date\": \"2026-11-24\"}"
#define SET "{\"head_dim\": 128, \"group_heads\": 4, \"page\": 128, \"block_bytes\": 10368, \"kv_heads\": 8, \"spec\": \"a\", \"card\": \"b\", \"rows\": [" ROW "]}"
#define GOOD "{\"version\": 1, \"tuned\": [" SET "]}"

// What stands in the good table, what takes its place, and what is said of it after "FILE: "; all of it where `from` is null.
static const struct {
    const char *from, *to, *says;
} faults[] = {
    {0, "{\"version\": 1,\n \"tuned\": [}", ":2:12: malformed JSON"},
    {0, "", ":1:1: malformed JSON"},
    {0, "[]", ": not a JSON object"},
    {0, "{\"version\": 2, \"tuned\": []}", ": version: 2 is not an integer in 1..1"},
    {0, "{\"version\": 1}", ": tuned: missing; expected a list of at most 4096 elements"},
    {0, "{\"version\": 1, \"tuned\": [], \"turned\": 1}", ": turned: not a field; did you mean `tuned`?"},
    {SET, "7", ": tuned[0]: 7 is not an object"},
    {"\"head_dim\": 128, ", "", ": tuned[0].head_dim: missing; expected an integer in 32..256"},
    {"\"page\": 128", "\"page\": 1e9", ": tuned[0].page: 1000000000 is not an integer in 32..4096"},
    {"\"block_bytes\": 10368", "\"block_bytes\": 0.5", ": tuned[0].block_bytes: 0.5 is not an integer in 1..1073741824"},
    {"\"kv_heads\": 8", "\"kv_heads\": 0", ": tuned[0].kv_heads: 0 is not an integer in 1..4096"},
    {"\"spec\": \"a\"", "\"spec\": \"\"", ": tuned[0].spec: \"\" is not a text of 1 to 127 characters"},
    {"\"card\": \"b\"", "\"card\": [1]", ": tuned[0].card: [1] is not a text of 1 to 63 characters"},
    {"[" ROW "]", "[]", ": tuned[0].rows: none; expected at least one"},
    {"[" ROW "]", "\"none\"", ": tuned[0].rows: \"none\" is not a list of at most 95 elements"},
    {"\"warps\": 8", "\"warps\": 40", ": tuned[0].rows[0].warps: 40 is not an integer in 1..16"},
    {"\"tiles\": 2", "\"tiles\": \"2\"", ": tuned[0].rows[0].tiles: \"2\" is not an integer in 1..8"},
    {"\"us\": 5.5", "\"us\": -1", ": tuned[0].rows[0].us: -1 is not a number above 0"},
    {"\"date\": \"2026-11-24\"", "\"date\": \"24 November 2026\"", ": tuned[0].rows[0].date: \"24 November 2026\" is not a text of 1 to 10 characters"},
    {"\"stages\": 2", "\"stage\": 2", ": tuned[0].rows[0].stage: not a field; did you mean `stages`?"},
    {ROW, ROW ", " ROW, ": tuned[0].rows[1].context: 1 x 1024 after 1 x 1024; rows ascend by sequences, then context"},
    {SET, SET ", " SET, ": tuned[1].head_dim: sets ascend by head_dim, group_heads, page, block_bytes and kv_heads, none twice"},
};

START_TEST(faults_in_the_file)
{
    char text[4096] = GOOD, expected[512];
    kg_tuned table;
    kt_format f = format_of("qwen3_8b/kitty_pro");
    kg_attend_plan plan;
    put(text);
    ck_assert_msg(!kg_tuned_read(path, &table, error), "%s", error);
    kg_tuned_free(&table);
    const char *from = faults[_i].from, *at = from ? strstr(GOOD, from) : 0;
    ck_assert(!from || at);
    if (from)
        snprintf(text, sizeof text, "%.*s%s%s", (int)(at - GOOD), GOOD, faults[_i].to, at + strlen(from));
    put(from ? text : faults[_i].to);
    ck_assert_int_eq(kg_tuned_read(path, &table, error), KG_USER);
    snprintf(expected, sizeof expected, "%s%s", path, faults[_i].says);
    ck_assert_str_eq(error, expected);
    kg_tuned_free(&table);
    ck_assert_int_eq(kg_tuned_plan(&f, kv_heads, &plan, 0, error), KG_USER); // nothing is emitted from it either
    ck_assert_str_eq(error, expected);
}
END_TEST

START_TEST(too_many_kernels)
{
    const kt_format f = format_of("qwen3_8b/kitty_pro");
    kg_tuned_set set = set_for(&f, "a");
    kg_tuned table;
    for (int i = 0; i < 5; i++)
        add_row(&set, 1, 1024 << i, 4, 1 + i % 4, i / 4 + 1, 1);
    put_sets(&set, 1);
    ck_assert_int_eq(kg_tuned_read(path, &table, error), KG_USER);
    ck_assert_ptr_nonnull(strstr(error, ": tuned[0].rows: 5 different kernels; at most 4 are allowed"));
    kg_tuned_free(&table);
}
END_TEST

START_TEST(where_it_is)
{
    char found[KG_PATH];
    setenv("KT_TUNED", "/no/such/table.json", 1);
    ck_assert_int_eq(kg_tuned_path(found, error), KG_USER);
    ck_assert_str_eq(error, "KT_TUNED=/no/such/table.json: No such file or directory; kittygen tune -o makes such a file");
    unsetenv("KT_TUNED");
    ck_assert_int_eq(kg_tuned_path(found, error), KG_OK);
    ck_assert_ptr_nonnull(strstr(found, "/tuned/h100.json"));
    // The shipped table is in order, and every set of it makes a plan of its own kernels.
    kg_tuned table;
    ck_assert_msg(!kg_tuned_read(found, &table, error), "%s", error);
    kg_tuned_free(&table);
    static const char *const models[] = {"qwen3_8b", "qwen3_32b", "qwen3_0_6b", "qwen3_14b", "smollm2_135m", "gemma3_270m", "phi3_mini"};
    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        kg_spec *specs;
        int count;
        ck_assert_int_eq(kg_spec_load(models[m], 0, &specs, &count, error, sizeof error), KG_OK);
        for (int i = 0; i < count; i++) {
            kt_format f;
            kg_attend_plan plan;
            ck_assert_ptr_null(kg_layout(&specs[i], &f));
            ck_assert_msg(!kg_tuned_plan(&f, specs[i].model.kv_heads, &plan, 0, error), "%s", error);
            ck_assert_int_le(plan.count, KG_ATTEND_CONFIGS);
            int small = 0;
            for (int r = 0; r < plan.row_count; r++)
                small |= !plan.rows[r].sequences && !plan.rows[r].pages && plan.configs[plan.rows[r].config].shared <= KG_SMALL_SHARED;
            ck_assert_msg(small, "%s has no row for any shape on small cards", specs[i].name);
        }
        free(specs);
    }
}
END_TEST

// ---- which set -------------------------------------------------------------------------------------------------------

static const char *nearest(const char *spec)
{
    static char name[2 * KG_NAME];
    kg_tuned table;
    const kt_format f = format_of(spec);
    ck_assert_msg(!kg_tuned_read(path, &table, error), "%s", error);
    const kg_tuned_set *set = kg_tuned_nearest(&table, &f, kv_heads);
    snprintf(name, sizeof name, "%s", set ? set->spec : "none");
    kg_tuned_free(&table);
    return name;
}

START_TEST(the_nearest_set)
{
    const char *const measured[] = {"qwen3_8b/kitty_pro", "qwen3_8b/kivi_2", "qwen3_32b/kitty_pro", "qwen3_0_6b/kitty_pro", "smollm2_135m/kitty_pro"};
    kg_tuned_set sets[5];
    for (int i = 0; i < 5; i++) {
        const kt_format f = format_of(measured[i]);
        sets[i] = set_for(&f, measured[i]);
        add_row(&sets[i], 1, 1024, 4, 1, 1, 1);
    }
    put_sets(sets, 5);
    ck_assert_str_eq(nearest("qwen3_8b/kitty_pro"), "qwen3_8b/kitty_pro");     // its own
    ck_assert_str_eq(nearest("llama3_1_8b/kitty_pro"), "qwen3_8b/kitty_pro");  // which has the same format
    ck_assert_str_eq(nearest("qwen3_8b/kitty"), "qwen3_8b/kivi_2");            // 9856 bytes: 9344 and 10368 are as near
    ck_assert_str_eq(nearest("qwen3_0_6b/kitty_pro"), "qwen3_0_6b/kitty_pro"); // 2 query heads
    ck_assert_str_eq(nearest("qwen3_14b/kitty_pro"), "qwen3_32b/kitty_pro");   // 5 query heads go by 8, not by 4
    ck_assert_str_eq(nearest("qwen3_8b/int4"), "none");                        // 1.7 times as large
    ck_assert_str_eq(nearest("gemma3_270m/kitty_pro"), "none");                // another head_dim
    ck_assert_str_eq(nearest("smollm2_135m/kivi_2"), "smollm2_135m/kitty_pro");
}
END_TEST

// ---- the plan --------------------------------------------------------------------------------------------------------

static void plan_for(const char *spec, kg_attend_plan *plan, const char *from)
{
    const kt_format f = format_of(spec);
    kg_tuned_set set;
    ck_assert_msg(!kg_tuned_plan(&f, kv_heads, plan, &set, error), "%s", error);
    ck_assert_str_eq(set.head_dim ? set.spec : "rules", from);
}

// "8x2x2x1" of the row that takes the shape.
static const char *taken(const kg_attend_plan *plan, int sequences, int pages)
{
    static char name[48];
    const kg_attend_row *row = kg_attend_row_for(plan, KG_LARGE_SHARED, sequences, pages);
    const kg_attend_config *c = &plan->configs[row->config];
    snprintf(name, sizeof name, "%dx%dx%dx%d", c->warps, c->stages, c->tiles, c->blocks);
    return name;
}

START_TEST(rows_and_their_ends)
{
    const kt_format f = format_of("qwen3_8b/kitty_pro");
    kg_tuned_set set = set_for(&f, "measured");
    kg_attend_plan plan;
    add_row(&set, 1, 1024, 8, 2, 2, 1);   // 7 pages: up to 8
    add_row(&set, 1, 4096, 8, 2, 2, 1);   // the same up to 32
    add_row(&set, 1, 65536, 4, 2, 2, 2);
    add_row(&set, 2, 1024, 8, 2, 2, 1);
    add_row(&set, 2, 4096, 8, 2, 2, 1);
    add_row(&set, 2, 65536, 4, 2, 2, 2);  // two sequences as one
    add_row(&set, 32, 4096, 6, 2, 2, 2);  // and any more
    add_row(&set, 32, 16384, 4, 2, 4, 2); // the most tokens: for all else
    put_sets(&set, 1);
    plan_for("qwen3_8b/kitty_pro", &plan, "measured");
    ck_assert_int_eq(plan.count, 4);
    const kg_attend_row expected[] = {{2, 32, 0}, {2, 0, 1}, {0, 32, 2}, {0, 0, 3}};
    ck_assert_int_eq(plan.row_count, 4);
    ck_assert_int_eq(memcmp(plan.rows, expected, sizeof expected), 0);
    ck_assert_str_eq(taken(&plan, 1, 1), "8x2x2x1");
    ck_assert_str_eq(taken(&plan, 2, 32), "8x2x2x1");
    ck_assert_str_eq(taken(&plan, 2, 64), "4x2x2x2");
    ck_assert_str_eq(taken(&plan, 1, 4096), "4x2x2x2"); // longer than any that was measured
    ck_assert_str_eq(taken(&plan, 3, 8), "6x2x2x2");
    ck_assert_str_eq(taken(&plan, 500, 32), "6x2x2x2");
    ck_assert_str_eq(taken(&plan, 500, 1024), "4x2x4x2");
    plan_for("qwen3_8b/kivi_2", &plan, "measured"); // one that is near goes by it too
    ck_assert_str_eq(taken(&plan, 500, 32), "6x2x2x2");
    plan_for("qwen3_8b/fp16", &plan, "rules");
    // Few sequences are longer than was measured for so few, and many are short: the row for more sequences, then that with the most tokens.
    set.count = 0;
    add_row(&set, 1, 1024, 8, 2, 2, 1);
    add_row(&set, 8, 32768, 6, 2, 2, 2);
    add_row(&set, 128, 1024, 4, 2, 2, 2);
    put_sets(&set, 1);
    plan_for("qwen3_8b/kitty_pro", &plan, "measured");
    ck_assert_str_eq(taken(&plan, 1, 8), "8x2x2x1");
    ck_assert_str_eq(taken(&plan, 1, 16), "6x2x2x2");
    ck_assert_str_eq(taken(&plan, 128, 8), "4x2x2x2");
    ck_assert_str_eq(taken(&plan, 128, 128), "6x2x2x2");
    // One row is for everything.
    set.count = 0;
    add_row(&set, 8, 16384, 6, 2, 2, 2);
    put_sets(&set, 1);
    plan_for("qwen3_8b/kitty_pro", &plan, "measured");
    ck_assert_int_eq(plan.row_count, 1);
    ck_assert_str_eq(taken(&plan, 1, 1), "6x2x2x2");
}
END_TEST

START_TEST(other_numbers_of_kv_heads)
{
    const kt_format f = format_of("qwen3_8b/kitty_pro"); // 8 KV heads
    kg_tuned_set sets[2] = {set_for(&f, "of 8"), set_for(&f, "of 2")};
    kg_attend_plan plan;
    kg_tuned_set from;
    for (int i = 0; i < 2; i++) {
        add_row(&sets[i], 1, 4096, 8, 2, 2, 1);
        add_row(&sets[i], 2, 4096, 8, 2, 2, 1);
        add_row(&sets[i], 3, 4096, 6, 2, 2, 2);
        add_row(&sets[i], 32, 4096, 4, 2, 4, 2);
        add_row(&sets[i], 64, 4096, 4, 2, 2, 2);
    }
    sets[1].kv_heads = 2;
    put_sets(sets, 2);
    ck_assert_int_eq(kg_tuned_plan(&f, 8, &plan, &from, error), KG_OK);
    ck_assert_str_eq(from.spec, "of 8");
    ck_assert_str_eq(taken(&plan, 3, 32), "6x2x2x2");
    ck_assert_int_eq(kg_tuned_plan(&f, 4, &plan, &from, error), KG_OK); // 2 is nearer; 3 sequences are 1, as 2 are, 32 are 16
    ck_assert_str_eq(from.spec, "of 2");
    ck_assert_str_eq(taken(&plan, 1, 32), "6x2x2x2");
    ck_assert_str_eq(taken(&plan, 2, 32), "4x2x4x2");
    ck_assert_str_eq(taken(&plan, 16, 32), "4x2x4x2");
    ck_assert_str_eq(taken(&plan, 17, 32), "4x2x2x2");
    ck_assert_int_eq(plan.count, 3);
    ck_assert_int_eq(kg_tuned_plan(&f, 32, &plan, &from, error), KG_OK); // of 8: 4 sequences less each
    ck_assert_str_eq(from.spec, "of 8");
    ck_assert_str_eq(taken(&plan, 1, 32), "4x2x4x2");
    ck_assert_str_eq(taken(&plan, 8, 32), "4x2x4x2");
    ck_assert_str_eq(taken(&plan, 9, 32), "4x2x2x2");
    ck_assert_int_eq(kg_tuned_plan(&f, 1000, &plan, &from, error), KG_OK); // more work than was measured
    ck_assert_str_eq(taken(&plan, 1, 32), "4x2x2x2");
    ck_assert_int_eq(plan.count, 1);
    put_sets(sets, 1);
    ck_assert_int_eq(kg_tuned_plan(&f, 1, &plan, &from, error), KG_OK);
    ck_assert_str_eq(taken(&plan, 16, 32), "8x2x2x1");
    ck_assert_str_eq(taken(&plan, 17, 32), "6x2x2x2");
    ck_assert_str_eq(taken(&plan, 256, 32), "4x2x4x2");
}
END_TEST

START_TEST(what_does_not_fit)
{
    // 8 x 2 x 4 x 1 is 161 KB for kitty-pro, and too much for a block that is a fifth larger.
    kt_format f = format_of("qwen3_8b/kitty_pro"), larger = f;
    kg_attend_config c;
    kg_attend_plan plan;
    kg_tuned_set set = set_for(&f, "measured"), from;
    ck_assert(kg_attend_fit(&f, 8, 2, 4, 1, KG_LARGE_SHARED, &c));
    ck_assert_int_eq(c.buffers, 8 * 2 * (f.key_tiles + 4 * (f.key_tile_bytes + f.value_tile_bytes)));
    ck_assert(!kg_attend_fit(&f, 8, 2, 4, 2, KG_LARGE_SHARED, &c));
    ck_assert(!kg_attend_fit(&f, 8, 2, 4, 1, KG_SMALL_SHARED, &c));
    ck_assert(!kg_attend_fit(&f, 4, 1, 3, 1, KG_LARGE_SHARED, &c));
    ck_assert(!kg_attend_fit(&f, 4, 1, 8, 1, KG_LARGE_SHARED, &c));
    ck_assert(kg_attend_fit(&f, 4, 4, 1, 1, KG_LARGE_SHARED, &c));

    add_row(&set, 1, 4096, 4, 2, 2, 2);
    add_row(&set, 32, 4096, 10, 1, 4, 2); // 21 stages of 10.3 KB
    put_sets(&set, 1);
    ck_assert_int_eq(kg_tuned_plan(&f, kv_heads, &plan, &from, error), KG_OK);
    ck_assert_str_eq(taken(&plan, 500, 32), "10x1x4x2");
    larger.block_bytes = f.block_bytes * 6 / 5; // as a format with more boosted channels
    larger.key_tile_bytes = f.key_tile_bytes + f.block_bytes / 5 / 4;
    ck_assert_int_eq(kg_tuned_plan(&larger, kv_heads, &plan, &from, error), KG_OK);
    ck_assert_str_eq(from.spec, "measured");
    ck_assert_str_eq(taken(&plan, 500, 32), "4x2x2x2"); // the row that fits, for any shape

    // In a set of its own it is a fault.
    set = set_for(&larger, "its own");
    add_row(&set, 32, 4096, 10, 1, 4, 2);
    put_sets(&set, 1);
    ck_assert_int_eq(kg_tuned_plan(&larger, kv_heads, &plan, &from, error), KG_USER);
    ck_assert_ptr_nonnull(strstr(error, "its own, 32 x 4096: 10 warps x 1 stages x 4 tiles x 2 blocks do not fit a multiprocessor; measure again with"));
}
END_TEST

START_TEST(small_cards)
{
    const kt_format f = format_of("qwen3_8b/kitty_pro");
    kg_tuned_set set = set_for(&f, "measured");
    kg_attend_plan plan;
    add_row(&set, 32, 4096, 8, 2, 4, 1); // 162 KB: sm_86 cannot
    put_sets(&set, 1);
    plan_for("qwen3_8b/kitty_pro", &plan, "measured");
    ck_assert_int_eq(plan.count, 2);
    ck_assert_int_eq(plan.row_count, 2);
    ck_assert_int_le(plan.configs[plan.rows[1].config].shared, KG_SMALL_SHARED);
    ck_assert(!plan.rows[1].sequences && !plan.rows[1].pages);
    // One that is there anyway is taken for them.
    set.count = 0;
    add_row(&set, 1, 4096, 8, 2, 2, 1);
    add_row(&set, 32, 4096, 8, 2, 4, 1);
    put_sets(&set, 1);
    plan_for("qwen3_8b/kitty_pro", &plan, "measured");
    ck_assert_int_eq(plan.count, 2);
    ck_assert_int_eq(plan.row_count, 3);
    ck_assert_int_eq(plan.rows[2].config, 0);
}
END_TEST

START_TEST(rules)
{
    static const struct {
        const char *spec, *lone, *many;
    } known[] = {
        {"qwen3_8b/kitty_pro", "8x2x2x1", "4x2x4x2"}, {"qwen3_8b/fp16", "8x1x1x1", "4x1x1x2"}, {"smollm2_135m/kitty_pro", "8x2x2x1", "4x2x4x3"},
        {"phi3_mini/kitty_pro", "8x2x2x1", "4x2x4x3"}, {"gemma3_270m/kitty_pro", "8x2x2x1", "4x2x2x2"}, {"qwen3_8b/int4", "8x2x2x1", "4x2x2x2"},
    };
    kg_attend_plan plan;
    put("{\"version\": 1, \"tuned\": []}\n");
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        plan_for(known[i].spec, &plan, "rules");
        ck_assert_str_eq(taken(&plan, 2, 512), known[i].lone);
        ck_assert_str_eq(taken(&plan, 3, 1), known[i].many);
        ck_assert_str_eq(taken(&plan, 1, 1024), known[i].many);
    }
    plan_for("gemma3_270m/fp16", &plan, "rules"); // pages of 128 KB: only one tile at a time
    ck_assert_int_ge(plan.row_count, 1);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("tuned");
    TCase *tests = tcase_create("tuned");
    setenv("KT_SPECS", KT_TEST_DATA "/../specs", 0);
    tcase_add_checked_fixture(tests, setup, teardown);
    tcase_set_timeout(tests, 60);
    tcase_add_test(tests, written_and_read);
    tcase_add_loop_test(tests, faults_in_the_file, 0, sizeof faults / sizeof *faults);
    tcase_add_test(tests, too_many_kernels);
    tcase_add_test(tests, where_it_is);
    tcase_add_test(tests, the_nearest_set);
    tcase_add_test(tests, rows_and_their_ends);
    tcase_add_test(tests, other_numbers_of_kv_heads);
    tcase_add_test(tests, what_does_not_fit);
    tcase_add_test(tests, small_cards);
    tcase_add_test(tests, rules);
    suite_add_tcase(suite, tests);
    return run_suite(suite);
}
