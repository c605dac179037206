// The tuned table as a file, and its sets.
#include "tuned.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { VERSION = 1, MOST_SETS = 4096, MOST_FILE = 16 << 20, MOST_BYTES = 1 << 30, MOST_TOKENS = 1 << 30, SHOWN = 64 };

// A place in the file: "tuned[2].rows[0].", and the first fault.
typedef struct {
    const char *path;
    char at[64];
    char *error;
    int code;
} reader;

static void refuse(reader *r, const char *field, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void refuse(reader *r, const char *field, const char *format, ...)
{
    char text[1024];
    if (r->code)
        return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    r->code = kg_fail(KG_USER, r->error, KG_ERROR, "%s: %s%s: %s", r->path, r->at, field, text);
}

static void wrong_kind(reader *r, const char *field, const cJSON *value, const char *expected)
{
    char *text = value ? cJSON_PrintUnformatted(value) : 0;
    if (text && strlen(text) > SHOWN)
        strcpy(text + SHOWN - 3, "...");
    refuse(r, field, value ? "%s is not %s" : "%s; expected %s", value ? text ? text : "?" : "missing", expected);
    cJSON_free(text);
}

static int get_int(reader *r, const cJSON *object, const char *field, int low, int high)
{
    char expected[64];
    const cJSON *value = cJSON_GetObjectItemCaseSensitive(object, field);
    const double n = cJSON_IsNumber(value) ? value->valuedouble : NAN;
    if (n >= low && n <= high && n == floor(n))
        return (int)n;
    snprintf(expected, sizeof expected, "an integer in %d..%d", low, high);
    wrong_kind(r, field, value, expected);
    return low;
}

static double get_positive(reader *r, const cJSON *object, const char *field)
{
    const cJSON *value = cJSON_GetObjectItemCaseSensitive(object, field);
    if (cJSON_IsNumber(value) && value->valuedouble > 0 && value->valuedouble < 1e12)
        return value->valuedouble;
    wrong_kind(r, field, value, "a number above 0");
    return 0;
}

static void get_text(reader *r, const cJSON *object, const char *field, char *to, size_t size)
{
    char expected[64];
    const cJSON *value = cJSON_GetObjectItemCaseSensitive(object, field);
    const char *text = cJSON_GetStringValue(value);
    if (text && *text && strlen(text) < size) {
        strcpy(to, text);
        return;
    }
    snprintf(expected, sizeof expected, "a text of 1 to %zu characters", size - 1);
    wrong_kind(r, field, value, expected);
}

static const cJSON *get_list(reader *r, const cJSON *object, const char *field, int most)
{
    char expected[64];
    const cJSON *value = cJSON_GetObjectItemCaseSensitive(object, field);
    if (cJSON_IsArray(value) && cJSON_GetArraySize(value) <= most)
        return value;
    snprintf(expected, sizeof expected, "a list of at most %d elements", most);
    wrong_kind(r, field, value, expected);
    return 0;
}

// The element is an object with no other fields than these; ends in a null.
static void only_fields(reader *r, const cJSON *object, const char *const *names)
{
    int count = 0;
    const cJSON *item;
    if (!cJSON_IsObject(object)) {
        r->at[strlen(r->at) - 1] = 0;
        wrong_kind(r, "", object, "an object");
        return;
    }
    while (names[count])
        count++;
    cJSON_ArrayForEach(item, object) {
        int known = 0;
        for (int i = 0; i < count; i++)
            known |= !strcmp(item->string, names[i]);
        const char *nearest = known ? 0 : kg_nearest(item->string, names, count);
        if (!known)
            refuse(r, item->string, "not a field%s%s%s", nearest ? "; did you mean `" : "", nearest ? nearest : "", nearest ? "`?" : "");
    }
}

static int by_shape(const kg_tuned_row *a, const kg_tuned_row *b)
{
    return a->sequences != b->sequences ? (a->sequences > b->sequences) - (a->sequences < b->sequences)
                                        : (a->context > b->context) - (a->context < b->context);
}

static int by_key(const kg_tuned_set *a, const kg_tuned_set *b)
{
    const int x[] = {a->head_dim, a->group_heads, a->page, a->block_bytes, a->kv_heads};
    const int y[] = {b->head_dim, b->group_heads, b->page, b->block_bytes, b->kv_heads};
    for (int i = 0; i < 5; i++)
        if (x[i] != y[i])
            return x[i] < y[i] ? -1 : 1;
    return 0;
}

static int same_kernel(const kg_tuned_row *a, const kg_tuned_row *b)
{
    return a->warps == b->warps && a->stages == b->stages && a->tiles == b->tiles && a->blocks == b->blocks;
}

static int kernels_of(const kg_tuned_set *set)
{
    int kernels = 0;
    for (int i = 0; i < set->count; i++) {
        int first = 0;
        while (!same_kernel(&set->rows[first], &set->rows[i]))
            first++;
        kernels += first == i;
    }
    return kernels;
}

static void read_row(reader *r, const cJSON *object, kg_tuned_row *row)
{
    static const char *const fields[] = {"sequences", "context", "warps", "stages", "tiles", "blocks", "us", "date", 0};
    only_fields(r, object, fields);
    row->sequences = get_int(r, object, "sequences", 1, MOST_TOKENS);
    row->context = get_int(r, object, "context", 1, MOST_TOKENS);
    row->warps = get_int(r, object, "warps", 1, 16);
    row->stages = get_int(r, object, "stages", 1, 16);
    row->tiles = get_int(r, object, "tiles", 1, 8);
    row->blocks = get_int(r, object, "blocks", 1, 16);
    row->us = get_positive(r, object, "us");
    get_text(r, object, "date", row->date, sizeof row->date);
}

static void read_set(reader *r, const cJSON *object, kg_tuned_set *set)
{
    static const char *const fields[] = {"head_dim", "group_heads", "page", "block_bytes", "kv_heads", "spec", "card", "rows", 0};
    const cJSON *item;
    char at[32];
    only_fields(r, object, fields);
    set->head_dim = get_int(r, object, "head_dim", 32, 256);
    set->group_heads = get_int(r, object, "group_heads", 1, 1024);
    set->page = get_int(r, object, "page", 32, 4096);
    set->block_bytes = get_int(r, object, "block_bytes", 1, MOST_BYTES);
    set->kv_heads = get_int(r, object, "kv_heads", 1, 4096);
    get_text(r, object, "spec", set->spec, sizeof set->spec);
    get_text(r, object, "card", set->card, sizeof set->card);
    const cJSON *rows = get_list(r, object, "rows", KG_ATTEND_ROWS - 1);
    snprintf(at, sizeof at, "%s", r->at);
    cJSON_ArrayForEach(item, rows) {
        snprintf(r->at, sizeof r->at, "%srows[%d].", at, set->count);
        kg_tuned_row *row = &set->rows[set->count++];
        read_row(r, item, row);
        if (set->count > 1 && by_shape(row - 1, row) >= 0)
            refuse(r, "context", "%d x %d after %d x %d; rows ascend by sequences, then context", row->sequences, row->context, row[-1].sequences,
                   row[-1].context);
    }
    snprintf(r->at, sizeof r->at, "%s", at);
    if (!set->count)
        refuse(r, "rows", "none; expected at least one");
    if (!r->code && kernels_of(set) > KG_TUNED_KERNELS)
        refuse(r, "rows", "%d different kernels; at most %d are allowed", kernels_of(set), KG_TUNED_KERNELS);
}

static void read_table(reader *r, const cJSON *root, kg_tuned *table)
{
    static const char *const fields[] = {"version", "tuned", 0};
    const cJSON *item;
    if (!cJSON_IsObject(root)) {
        r->code = kg_fail(KG_USER, r->error, KG_ERROR, "%s: not a JSON object", r->path);
        return;
    }
    only_fields(r, root, fields);
    get_int(r, root, "version", VERSION, VERSION);
    const cJSON *sets = get_list(r, root, "tuned", MOST_SETS);
    if (r->code)
        return;
    table->sets = calloc((size_t)cJSON_GetArraySize(sets) + 1, sizeof *table->sets);
    if (!table->sets) {
        r->code = kg_fail(KG_MACHINE, r->error, KG_ERROR, "%s: out of memory", r->path);
        return;
    }
    cJSON_ArrayForEach(item, sets) {
        snprintf(r->at, sizeof r->at, "tuned[%d].", table->count);
        kg_tuned_set *set = &table->sets[table->count++];
        read_set(r, item, set);
        if (table->count > 1 && by_key(set - 1, set) >= 0)
            refuse(r, "head_dim", "sets ascend by head_dim, group_heads, page, block_bytes and kv_heads, none twice");
    }
}

int kg_tuned_path(char path[KG_PATH], char *error)
{
    char specs[KG_PATH];
    const char *given = getenv("KT_TUNED");
    int length;
    if (given && *given) {
        if (access(given, R_OK))
            return kg_fail(KG_USER, error, KG_ERROR, "KT_TUNED=%s: %s; kittygen tune -o makes such a file", given, strerror(errno));
        length = snprintf(path, KG_PATH, "%s", given);
    } else {
        const int code = kg_find_folder("specs", "KT_SPECS", specs, error, KG_ERROR);
        if (code)
            return code;
        length = snprintf(path, KG_PATH, "%s/tuned/h100.json", specs);
    }
    return length < KG_PATH ? KG_OK : kg_fail(KG_USER, error, KG_ERROR, "%.64s...: the path is longer than %d bytes", path, KG_PATH - 1);
}

int kg_tuned_read(const char *path, kg_tuned *table, char *error)
{
    char *text;
    size_t size;
    const char *end = 0;
    reader r = {.path = path, .error = error};
    *table = (kg_tuned){0};
    const int code = kg_file_read(path, MOST_FILE, &text, &size, error, KG_ERROR);
    if (code)
        return code;
    cJSON *root = cJSON_ParseWithLengthOpts(text, size + 1, &end, 1);
    if (root)
        read_table(&r, root, table);
    else {
        int line = 1, column = 1;
        for (const char *s = text; s < end && s < text + size; s++) {
            column = *s == '\n' ? 1 : column + 1;
            line += *s == '\n';
        }
        r.code = kg_fail(KG_USER, error, KG_ERROR, "%s:%d:%d: malformed JSON", path, line, column);
    }
    cJSON_Delete(root);
    free(text);
    return r.code;
}

void kg_tuned_free(kg_tuned *table)
{
    free(table->sets);
    *table = (kg_tuned){0};
}

static void add_set(kg_text *out, const kg_tuned_set *set)
{
    kg_text_addf(out, "  {\"head_dim\": %d, \"group_heads\": %d, \"page\": %d, \"block_bytes\": %d, \"kv_heads\": %d, \"spec\": ",
                 set->head_dim, set->group_heads, set->page, set->block_bytes, set->kv_heads);
    kg_text_json(out, set->spec);
    kg_text_add(out, ", \"card\": ");
    kg_text_json(out, set->card);
    kg_text_add(out, ", \"rows\": [\n");
    for (int i = 0; i < set->count; i++) {
        const kg_tuned_row *row = &set->rows[i];
        kg_text_addf(out, "    {\"sequences\": %d, \"context\": %d, \"warps\": %d, \"stages\": %d, \"tiles\": %d, \"blocks\": %d, \"us\": %.4g, \"date\": ",
                     row->sequences, row->context, row->warps, row->stages, row->tiles, row->blocks, row->us);
        kg_text_json(out, row->date);
        kg_text_add(out, i + 1 < set->count ? "},\n" : "}]}");
    }
}

void kg_tuned_text(const kg_tuned *table, kg_text *out)
{
    kg_text_addf(out, "{\"version\": %d, \"tuned\": [", VERSION);
    for (int i = 0; i < table->count; i++) {
        kg_text_add(out, i ? ",\n" : "\n");
        add_set(out, &table->sets[i]);
    }
    kg_text_add(out, table->count ? "\n]}\n" : "]}\n");
}

int kg_tuned_write(const char *path, const kg_tuned *table, char *error)
{
    kg_text out = {0};
    kg_tuned_text(table, &out);
    const int code = out.failed ? kg_fail(KG_MACHINE, error, KG_ERROR, "%s: out of memory", path)
                                : kg_file_write(path, out.data, out.size, 1, error, KG_ERROR);
    kg_text_free(&out);
    return code;
}

int kg_tuned_put(kg_tuned *table, const kg_tuned_set *set, char *error)
{
    int at = 0;
    while (at < table->count && by_key(&table->sets[at], set) < 0)
        at++;
    if (at < table->count && !by_key(&table->sets[at], set)) {
        table->sets[at] = *set;
        return KG_OK;
    }
    kg_tuned_set *sets = realloc(table->sets, ((size_t)table->count + 1) * sizeof *sets);
    if (!sets)
        return kg_fail(KG_MACHINE, error, KG_ERROR, "out of memory");
    table->sets = sets;
    memmove(&sets[at + 1], &sets[at], (size_t)(table->count++ - at) * sizeof *sets);
    sets[at] = *set;
    return KG_OK;
}
