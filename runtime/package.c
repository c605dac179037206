// Reads a kernel package: manifest.json and the sources it names. Nothing of it is trusted: every number is checked
// against its range before anybody computes with it, and every source against its digest.
#include "internal.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cjson/cJSON.h>

#include "sha256.h"

const char *const kt__op_names[KT__OP_COUNT] = {"append", "attend", "reference", "check", "advance"};
const char *const kt__factor_names[KT__FACTOR_COUNT] = {"1", "units", "splits", "kv_heads", "passes", "q_heads", "slots", "fresh"};

enum { MANIFEST_LIMIT = 16 << 20, SOURCE_LIMIT = 16 << 20, LIST_LIMIT = 4096, BYTES_LIMIT = 1 << 30, TILE = 32 };

// A place in the manifest: "kernels[3].", and the first failure met.
typedef struct {
    const char *path;
    char at[64];
    kt_status status;
} reader;

static void refuse(reader *r, const char *field, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void refuse(reader *r, const char *field, const char *format, ...)
{
    if (r->status)
        return;
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    r->status = kt__fail(KT_PACKAGE, "%s: %s%s: %s", r->path, r->at, field, text);
}

// ---- values ----------------------------------------------------------------------------------------------------------

static const cJSON *get(reader *r, const cJSON *object, const char *field, const char *expected)
{
    const cJSON *value = cJSON_GetObjectItemCaseSensitive(object, field);
    if (!value)
        refuse(r, field, "missing; expected %s", expected);
    return value;
}

static void wrong_kind(reader *r, const char *field, const cJSON *value, const char *expected)
{
    char *text = cJSON_PrintUnformatted(value);
    refuse(r, field, "%.64s is not %s", text ? text : "?", expected);
    cJSON_free(text);
}

static int get_int(reader *r, const cJSON *object, const char *field, int low, int high)
{
    char expected[64];
    snprintf(expected, sizeof expected, "an integer in %d..%d", low, high);
    const cJSON *value = get(r, object, field, expected);
    if (!value)
        return low;
    const double n = value->valuedouble;
    if (!cJSON_IsNumber(value) || !(n >= low && n <= high) || n != floor(n)) {
        wrong_kind(r, field, value, expected);
        return low;
    }
    return (int)n;
}

static int get_int_or(reader *r, const cJSON *object, const char *field, int low, int high, int otherwise)
{
    return cJSON_GetObjectItemCaseSensitive(object, field) ? get_int(r, object, field, low, high) : otherwise;
}

// Text of 1 to size - 1 characters that `allowed` accepts.
static void get_text(reader *r, const cJSON *object, const char *field, int (*allowed)(int), const char *expected, char *to, size_t size)
{
    *to = 0;
    const cJSON *value = get(r, object, field, expected);
    if (!value)
        return;
    const char *text = cJSON_GetStringValue(value);
    const size_t length = text ? strlen(text) : 0;
    size_t good = 0;
    while (good < length && allowed((unsigned char)text[good]))
        good++;
    if (!length || good < length)
        wrong_kind(r, field, value, expected);
    else if (length >= size)
        refuse(r, field, "%zu characters long; at most %zu are allowed", length, size - 1);
    else
        memcpy(to, text, length + 1);
}

static int in_name(int c) { return isalnum(c) || c == '_' || c == '-' || c == '.'; }
static int in_entry(int c) { return isalnum(c) || c == '_'; }
static int in_digest(int c) { return isdigit(c) || (c >= 'a' && c <= 'f'); }

// Index of `text` among `names`, or -1.
static int find(const char *text, size_t length, const char *const *names, int count)
{
    for (int i = 0; i < count; i++)
        if (strlen(names[i]) == length && !memcmp(names[i], text, length))
            return i;
    return -1;
}

static void list(char *to, size_t size, const char *const *names, int count)
{
    size_t used = 0;
    *to = 0;
    for (int i = 0; i < count && used < size; i++)
        used += (size_t)snprintf(to + used, size - used, "%s%s", i ? ", " : "", names[i]);
}

static kt__op get_op(reader *r, const cJSON *object)
{
    char expected[96] = "one of ";
    list(expected + 7, sizeof expected - 7, kt__op_names, KT__OP_COUNT);
    const cJSON *value = get(r, object, "op", expected);
    const char *text = value ? cJSON_GetStringValue(value) : 0;
    const int op = text ? find(text, strlen(text), kt__op_names, KT__OP_COUNT) : -1;
    if (value && op < 0)
        wrong_kind(r, "op", value, expected);
    return op < 0 ? KT__APPEND : (kt__op)op;
}

static const cJSON *get_list(reader *r, const cJSON *object, const char *field)
{
    const cJSON *value = get(r, object, field, "a list");
    if (!value)
        return 0;
    if (!cJSON_IsArray(value))
        wrong_kind(r, field, value, "a list");
    else if (!cJSON_GetArraySize(value) || cJSON_GetArraySize(value) > LIST_LIMIT)
        refuse(r, field, "has %d elements; expected 1..%d", cJSON_GetArraySize(value), LIST_LIMIT);
    return value;
}

static const cJSON *get_object(reader *r, const cJSON *object, const char *field)
{
    const cJSON *value = get(r, object, field, "an object");
    if (value && !cJSON_IsObject(value))
        wrong_kind(r, field, value, "an object");
    return value;
}

// ---- files -----------------------------------------------------------------------------------------------------------

// The whole file, and a zero byte behind; null with a message of `status` that names the path.
static char *read_file(const char *path, long limit, kt_status status, size_t *size)
{
    char *text = 0;
    struct stat about;
    const int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); // so that a FIFO is refused, not waited for
    FILE *file = descriptor < 0 ? 0 : fdopen(descriptor, "rb");
    if (!file || fstat(descriptor, &about)) {
        kt__fail(status, "%s: %s", path, strerror(errno));
        goto done;
    }
    if (!S_ISREG(about.st_mode) || about.st_size > limit) {
        kt__fail(status, "%s: not a file of at most %ld bytes", path, limit);
        goto done;
    }
    text = malloc((size_t)about.st_size + 1);
    if (!text) {
        kt__fail(status, "%s: no memory for %lld bytes", path, (long long)about.st_size);
        goto done;
    }
    *size = fread(text, 1, (size_t)about.st_size, file);
    text[*size] = 0;
    if (*size != (size_t)about.st_size) {
        kt__fail(status, "%s: could not be read whole", path);
        free(text);
        text = 0;
    }
done:
    if (file)
        fclose(file);
    return text;
}

// The same of a text.
static char *read_text(const char *path, long limit, kt_status status)
{
    size_t size;
    char *text = read_file(path, limit, status, &size);
    if (text && strlen(text) != size) {
        kt__fail(status, "%s: holds a zero byte; expected text", path);
        free(text);
        text = 0;
    }
    return text;
}

// Reads the file that `object` names with its digest; null where it refused. Its text, or with `size` its bytes.
static char *read_named(reader *r, const char *folder, const cJSON *object, char digest[KT__SHA256_HEX], size_t *size)
{
    char file[128], path[4096], found[KT__SHA256_HEX];
    get_text(r, object, "file", in_name, "a file name in the package (letters, digits, '_', '-', '.')", file, sizeof file);
    get_text(r, object, "sha256", in_digest, "64 lower-case hex digits", digest, KT__SHA256_HEX);
    if (r->status)
        return 0;
    if (file[0] == '.') {
        refuse(r, "file", "\"%s\" must not begin with '.'", file);
        return 0;
    }
    if (strlen(digest) != KT__SHA256_HEX - 1) {
        refuse(r, "sha256", "%zu digits; expected 64 lower-case hex digits", strlen(digest));
        return 0;
    }
    if ((size_t)snprintf(path, sizeof path, "%s/%s", folder, file) >= sizeof path) {
        refuse(r, "file", "\"%s\" makes a path longer than %zu characters", file, sizeof path - 1);
        return 0;
    }
    char *data = size ? read_file(path, BYTES_LIMIT, KT_PACKAGE, size) : read_text(path, SOURCE_LIMIT, KT_PACKAGE);
    if (!data) {
        r->status = kt__within(KT_PACKAGE, "%s: %sfile", r->path, r->at);
        return 0;
    }
    kt__sha256_text(data, size ? *size : strlen(data), found);
    if (strcmp(found, digest))
        refuse(r, "sha256", "%s has digest %s, the manifest says %s; a changed %s needs `kittygen emit` again", file, found, digest,
               size ? "file" : "source");
    return data;
}

// ---- parts of the manifest -------------------------------------------------------------------------------------------

// Words of a lane for codes of a tile's `channels`: 16 each of a 2-bit plane, 32 of a 1-bit one.
static int64_t plane_words(int channels, int bits) { return (bits / 2 * channels + 15) / 16 + (bits % 2 * channels + 31) / 32; }

static void check_codes(reader *r, const kt_format *f)
{
    const int spans[] = {f->key_along ? f->head_dim : f->page, f->value_along ? f->page : f->head_dim};
    for (int part = 0; part < 2; part++) {
        const int bits = part ? f->value_bits : f->key_bits, group = part ? f->value_group : f->key_group;
        if (bits > 4 && bits != 8 && bits != 16)
            refuse(r, part ? "value_bits" : "key_bits", "%d is not allowed; allowed: 1, 2, 3, 4, 8, 16", bits);
        if (spans[part] % group || group % TILE)
            refuse(r, part ? "value_group" : "key_group", "%d is not a multiple of %d that divides %s %d", group, TILE,
                   (part ? f->value_along : !f->key_along) ? "page" : "head_dim", spans[part]);
    }
    if (f->key_boosted && f->key_along)
        refuse(r, "key_boosted", "%d with groups along channels, where a channel has no scale of its own; expected 0", f->key_boosted);
    if (f->key_boosted && f->key_boost_bits > 8)
        refuse(r, "key_boost_bits", "%d is not allowed where channels are boosted; allowed: up to 8", f->key_boost_bits);
}

static void read_format(reader *r, const cJSON *object, kt_format *f)
{
    static const struct { const char *field; int low, high, multiple; } rules[] = {
        {"dtype", 0, 1, 1}, {"head_dim", 32, 256, 32}, {"group_heads", 1, 1024, 1}, {"page", TILE, 4096, TILE}, {"sink", 0, 1 << 20, 1},
        {"key_bits", 1, 16, 1}, {"key_boost_bits", 1, 16, 1}, {"key_boosted", 0, 256, 1}, {"key_score", 0, 4, 1},
        {"key_seed", INT_MIN, INT_MAX, 1}, {"key_group", 1, 4096, 1}, {"key_window", 0, 1 << 20, 1}, {"key_rows", 16, 4096, 16},
        {"value_bits", 1, 16, 1}, {"value_group", 1, 256, 1}, {"value_window", 0, 1 << 20, 1}, {"key_ring", 1, 1 << 21, 1},
        {"value_ring", 1, 1 << 21, 1}, {"key_range", 0, 1, 1}, {"value_range", 0, 1, 1},
        {"key_rotation", 0, 2, 1}, {"value_rotation", 0, 2, 1}, {"key_along", 0, 1, 1}, {"value_along", 0, 1, 1}, {"key_meta8", 0, 1, 1}, {"value_meta8", 0, 1, 1},
    };
    static const struct { const char *name; size_t offset; } fields[] = {
#define X(field, constant, meaning) {#field, offsetof(kt_format, field)},
        KT_FORMAT_FIELDS(X)
#undef X
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        int low = 0, high = BYTES_LIMIT, multiple = 4; // an offset or a size, of words or 16-bit elements
        for (size_t j = 0; j < sizeof rules / sizeof *rules; j++)
            if (!strcmp(rules[j].field, fields[i].name))
                low = rules[j].low, high = rules[j].high, multiple = rules[j].multiple;
        const int n = get_int(r, object, fields[i].name, low, high);
        if (n % multiple)
            refuse(r, fields[i].name, "%d is not a multiple of %d", n, multiple);
        memcpy((char *)f + fields[i].offset, &n, sizeof n);
    }
    if (r->status)
        return;

    check_codes(r, f);
    if (r->status)
        return;

    // What a table must hold.
    const int64_t matrices = 4 * (int64_t)f->head_dim * f->head_dim;
    int64_t table = f->key_score == 4 ? (int64_t)f->table_boosted + f->key_boosted : 0;
    if (f->key_rotation == 2 && f->table_key_rotation + matrices > table)
        table = f->table_key_rotation + matrices;
    if (f->value_rotation == 2 && f->table_value_rotation + matrices > table)
        table = f->table_value_rotation + matrices;

    // Regions must follow each other inside their block or slab, and groups must divide what they cut.
    const int64_t tiles = f->page / TILE, token = 2 * (int64_t)f->head_dim;
    const bool codes = f->key_bits < 16, value_codes = f->value_bits < 16;
    const int64_t pair = f->key_meta8 ? 2 : 4, value_pair = f->value_meta8 ? 2 : 4;
    const int64_t key_metas = codes && !f->key_along ? f->page / f->key_group * f->head_dim * pair : 0;
    const int64_t key_tile_metas = codes && f->key_along ? f->head_dim / f->key_group * TILE * pair : 0;
    const int64_t key_words = codes ? plane_words(f->head_dim, f->key_bits) + plane_words(f->key_boosted, f->key_boost_bits - f->key_bits) : 0;
    const int64_t value_tile_metas = value_codes && !f->value_along ? f->head_dim / f->value_group * TILE * value_pair : 0;
    const int64_t value_metas = value_codes && f->value_along ? f->page / f->value_group * f->head_dim * value_pair : 0;
    const int64_t value_words = value_codes ? plane_words(f->head_dim, f->value_bits) : 0;
    const struct { const char *field; int64_t value, low, high; } bounds[] = {
        {"key_boosted", f->key_boosted, 0, f->head_dim},
        {"key_boost_bits", f->key_boost_bits, f->key_bits, 16},
        {"key_meta", f->key_meta, KT_HEADER_BYTES, f->key_index},
        {"key_index", f->key_index, f->key_meta + key_metas, f->key_tiles},
        {"key_rows", f->key_rows, 16 * key_words, 4096},
        {"key_meta_bytes", f->key_meta_bytes, key_tile_metas, f->key_tile_bytes},
        {"key_tile_bytes", f->key_tile_bytes, codes ? f->key_meta_bytes + key_words * 128 : TILE * token, BYTES_LIMIT},
        {"key_tiles", f->key_tiles, f->key_index + f->key_boosted * (f->key_bits < 16), f->value_tiles},
        {"value_tiles", f->value_tiles, f->key_tiles + tiles * f->key_tile_bytes, f->block_bytes},
        {"value_meta_bytes", f->value_meta_bytes, value_tile_metas, f->value_tile_bytes},
        {"value_tile_bytes", f->value_tile_bytes, value_codes ? f->value_meta_bytes + value_words * 128 : TILE * token, BYTES_LIMIT},
        {"value_meta", f->value_meta, f->value_along ? f->value_tiles + tiles * f->value_tile_bytes : 0, f->block_bytes - value_metas},
        {"block_bytes", f->block_bytes, f->value_tiles + tiles * f->value_tile_bytes, BYTES_LIMIT},
        {"slab_sink_value", f->slab_sink_value, f->sink * token, BYTES_LIMIT},
        {"slab_key", f->slab_key, f->slab_sink_value + f->sink * token, BYTES_LIMIT},
        {"slab_value", f->slab_value, f->slab_key + f->key_ring * token, BYTES_LIMIT},
        {"slab_bytes", f->slab_bytes, f->slab_value + f->value_ring * token, BYTES_LIMIT},
        {"key_ring", f->key_ring, (int64_t)f->page + f->key_window, 1 << 21},
        {"value_ring", f->value_ring, (int64_t)f->page + f->value_window, 1 << 21},
        {"table_bytes", f->table_bytes, table, BYTES_LIMIT},
    };
    for (size_t i = 0; i < sizeof bounds / sizeof *bounds; i++)
        if (bounds[i].value < bounds[i].low || bounds[i].value > bounds[i].high)
            refuse(r, bounds[i].field, "%lld does not fit the other fields; expected %lld..%lld", (long long)bounds[i].value,
                   (long long)bounds[i].low, (long long)bounds[i].high);
    if ((f->key_rotation == 1 || f->value_rotation == 1) && f->head_dim & (f->head_dim - 1))
        refuse(r, f->key_rotation == 1 ? "key_rotation" : "value_rotation", "1, Hadamard, with head_dim %d, which is no power of two", f->head_dim);
    if (f->block_bytes % 16 || f->slab_bytes % 16)
        refuse(r, f->block_bytes % 16 ? "block_bytes" : "slab_bytes", "%d is not a multiple of 16",
               f->block_bytes % 16 ? f->block_bytes : f->slab_bytes);
}

// What formats of one package must share.
static void check_shared(reader *r, const kt_format *f, const kt_format *first)
{
    const struct { const char *field; int value, expected; } shared[] = {
        {"dtype", f->dtype, first->dtype}, {"head_dim", f->head_dim, first->head_dim}, {"group_heads", f->group_heads, first->group_heads},
        {"page", f->page, first->page}, {"sink", f->sink, first->sink},
    };
    for (size_t i = 0; i < sizeof shared / sizeof *shared; i++)
        if (shared[i].value != shared[i].expected)
            refuse(r, shared[i].field, "%d is not that of formats[0], %d; one package has one", shared[i].value, shared[i].expected);
}

static void add_reach(kt__package *p, int reach)
{
    int at = p->reach_count;
    while (at && p->reaches[at - 1] > reach)
        at--;
    if (at && p->reaches[at - 1] == reach)
        return;
    memmove(&p->reaches[at + 1], &p->reaches[at], (size_t)(p->reach_count++ - at) * sizeof *p->reaches);
    p->reaches[at] = reach;
}

// Reads `format`, or of a package whose layers differ the list `formats`.
static void read_formats(reader *r, const cJSON *root, kt__package *p)
{
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(root, "formats"), *item;
    if (!list) {
        const cJSON *format = get_object(r, root, "format");
        if (r->status)
            return;
        strcpy(r->at, "format.");
        read_format(r, format, &p->formats[p->format_count++]);
    } else if (!cJSON_IsArray(list)) {
        wrong_kind(r, "formats", list, "a list");
    } else if (cJSON_GetArraySize(list) < 1 || cJSON_GetArraySize(list) > KT_FORMATS) {
        refuse(r, "formats", "has %d elements; expected 1..%d", cJSON_GetArraySize(list), KT_FORMATS);
    } else {
        cJSON_ArrayForEach(item, list) {
            snprintf(r->at, sizeof r->at, "formats[%d].", p->format_count);
            if (!cJSON_IsObject(item)) {
                r->at[strlen(r->at) - 1] = 0;
                wrong_kind(r, "", item, "an object");
            }
            if (r->status)
                return;
            read_format(r, item, &p->formats[p->format_count++]);
            check_shared(r, &p->formats[p->format_count - 1], &p->formats[0]);
        }
    }
    for (int i = 0; i < 2 * p->format_count; i++) {
        const kt_format *f = &p->formats[i / 2];
        add_reach(p, f->sink + (i % 2 ? f->value_window : f->key_window));
    }
}

// The index in `formats` of each layer's.
static void read_layer_formats(reader *r, const cJSON *root, kt__package *p)
{
    const cJSON *list = get(r, root, "layer_formats", "a list"), *item;
    int layer = 0;
    if (r->status)
        return;
    if (!cJSON_IsArray(list))
        wrong_kind(r, "layer_formats", list, "a list");
    else if (cJSON_GetArraySize(list) != p->layers)
        refuse(r, "layer_formats", "has %d elements; expected one for each of %d layers", cJSON_GetArraySize(list), p->layers);
    if (r->status)
        return;
    cJSON_ArrayForEach(item, list) {
        const double n = item->valuedouble;
        if (!cJSON_IsNumber(item) || !(n >= 0 && n < p->format_count) || n != floor(n)) {
            char field[32], expected[64];
            snprintf(field, sizeof field, "layer_formats[%d]", layer);
            snprintf(expected, sizeof expected, "an integer in 0..%d", p->format_count - 1);
            wrong_kind(r, field, item, expected);
            return;
        }
        p->layer_formats[layer++] = (unsigned char)n;
    }
}

int kt__layer_format(const kt__package *p, int layer) { return p->format_count > 1 ? p->layer_formats[layer] : 0; }
const kt_format *kt__format_of(const kt__package *p, int layer) { return &p->formats[kt__layer_format(p, layer)]; }

size_t kt__layer_tables(const kt__package *p, int layer)
{
    size_t start = 0;
    for (int l = 0; l < layer; l++)
        start += (size_t)p->kv_heads * (size_t)p->formats[p->layer_formats[l]].table_bytes;
    return start;
}

static void read_model(reader *r, const cJSON *object, kt__package *p)
{
    p->layers = get_int(r, object, "layers", 1, KT__LAYERS);
    p->q_heads = get_int(r, object, "q_heads", 1, 4096);
    p->kv_heads = get_int(r, object, "kv_heads", 1, 4096);
    const cJSON *scale = get(r, object, "scale", "a number, 0 or more");
    if (scale && (!cJSON_IsNumber(scale) || !(scale->valuedouble >= 0 && scale->valuedouble <= 1e30)))
        wrong_kind(r, "scale", scale, "a number, 0 or more");
    else if (scale)
        p->scale = scale->valuedouble;
}

// Kernels index by what they find in a table.
static void check_table(reader *r, const kt_format *f, const unsigned char *table, int layer, int head)
{
    for (int i = 0; f->key_score == 4 && i < f->key_boosted; i++) {
        const unsigned char *list = table + f->table_boosted;
        if (list[i] >= f->head_dim || (i && list[i] <= list[i - 1]))
            refuse(r, "file", "boosted channel %d of layer %d, KV head %d is %d; expected an ascending list of channels below %d", i, layer, head,
                   list[i], f->head_dim);
    }
}

static void read_tables(reader *r, const char *folder, const cJSON *root, kt__package *p)
{
    char digest[KT__SHA256_HEX];
    size_t size;
    const size_t expected = kt__layer_tables(p, p->layers);
    const cJSON *object = expected && !r->status ? get_object(r, root, "tables") : 0;
    if (!object || r->status)
        return;
    strcpy(r->at, "tables.");
    p->tables = (unsigned char *)read_named(r, folder, object, digest, &size);
    if (!r->status && size != expected && p->format_count == 1)
        refuse(r, "file", "%zu bytes; expected %zu: %d layers x %d KV heads x %d", size, expected, p->layers, p->kv_heads, p->formats[0].table_bytes);
    else if (!r->status && size != expected)
        refuse(r, "file", "%zu bytes; expected %zu: %d layers x %d KV heads, each as its format says", size, expected, p->layers, p->kv_heads);
    for (int layer = 0; layer < p->layers && !r->status; layer++) {
        const kt_format *f = &p->formats[p->layer_formats[layer]];
        for (int head = 0; head < p->kv_heads && f->table_bytes && !r->status; head++)
            check_table(r, f, p->tables + kt__layer_tables(p, layer) + (size_t)head * (size_t)f->table_bytes, layer, head);
    }
    r->at[0] = 0;
}

static void read_grid(reader *r, const cJSON *object, kt__kernel *k)
{
    const char *expected = "a list of 3 products such as \"kv_heads*passes\"";
    const cJSON *grid = get(r, object, "grid", expected);
    if (!grid)
        return;
    if (!cJSON_IsArray(grid) || cJSON_GetArraySize(grid) != 3) {
        wrong_kind(r, "grid", grid, expected);
        return;
    }
    for (int d = 0; d < 3; d++) {
        const cJSON *value = cJSON_GetArrayItem(grid, d);
        const char *text = cJSON_GetStringValue(value);
        if (!text) {
            wrong_kind(r, "grid", value, "a product such as \"kv_heads*passes\"");
            return;
        }
        int count = 0;
        for (const char *end; text; text = *end ? end + 1 : 0) {
            end = text + strcspn(text, "*");
            const int factor = find(text, (size_t)(end - text), kt__factor_names, KT__FACTOR_COUNT);
            if (factor < 0) {
                char names[96];
                list(names, sizeof names, kt__factor_names, KT__FACTOR_COUNT);
                refuse(r, "grid", "\"%.*s\" is not a factor; the factors are %s", (int)(end - text), text, names);
                return;
            }
            if (count == KT__GRID_FACTORS) {
                refuse(r, "grid", "\"%s\" has more than %d factors", cJSON_GetStringValue(value), KT__GRID_FACTORS);
                return;
            }
            k->grid[d][count++] = (unsigned char)factor;
        }
    }
}

static void read_kernel(reader *r, const char *folder, const cJSON *object, const kt__package *p, kt__kernel *k)
{
    if (!cJSON_IsObject(object)) {
        r->at[strlen(r->at) - 1] = 0;
        wrong_kind(r, "", object, "an object");
        return;
    }
    get_text(r, object, "name", in_entry, "a name (letters, digits, '_')", k->name, sizeof k->name);
    k->op = get_op(r, object);
    get_text(r, object, "entry", in_entry, "the extern \"C\" name in the source", k->entry, sizeof k->entry);
    k->format = get_int_or(r, object, "format", 0, p->format_count - 1, 0);
    const bool attend = k->op == KT__ATTEND;
    const kt_format *f = &p->formats[k->format];
    k->threads = get_int(r, object, "threads", 1, 1024);
    k->shared = get_int(r, object, "shared", 0, 1 << 20);
    k->warps = attend ? get_int(r, object, "warps", 1, 32) : get_int_or(r, object, "warps", 0, 32, 0);
    k->stages = attend ? get_int(r, object, "stages", 1, 64) : get_int_or(r, object, "stages", 0, 64, 0);
    k->tiles = attend ? get_int(r, object, "tiles", 1, f->page / TILE) : get_int_or(r, object, "tiles", 0, f->page / TILE, 0);
    k->passes = attend ? get_int(r, object, "passes", 1, f->group_heads) : get_int_or(r, object, "passes", 0, f->group_heads, 0);
    if (attend && !r->status && k->threads != 32 * k->warps)
        refuse(r, "threads", "%d is not 32 * warps (%d)", k->threads, k->warps);
    read_grid(r, object, k);
    k->source = read_named(r, folder, object, k->digest, 0);
}

static int find_kernel(const kt__package *p, int count, const char *name)
{
    for (int i = 0; i < count; i++)
        if (!strcmp(p->kernels[i].name, name))
            return i;
    return -1;
}

static void read_choice(reader *r, const cJSON *object, const kt__package *p, kt__choice *c)
{
    if (!cJSON_IsObject(object)) {
        r->at[strlen(r->at) - 1] = 0;
        wrong_kind(r, "", object, "an object");
        return;
    }
    char name[64];
    c->op = get_op(r, object);
    c->format = get_int_or(r, object, "format", 0, p->format_count - 1, 0);
    c->max_sequences = get_int(r, object, "sequences", 0, INT_MAX);
    c->max_pages = get_int(r, object, "pages", 0, INT_MAX);
    c->blocks_per_sm = get_int(r, object, "blocks_per_sm", 1, 64);
    get_text(r, object, "kernel", in_entry, "the name of a kernel", name, sizeof name);
    if (r->status)
        return;
    c->kernel = find_kernel(p, p->kernel_count, name);
    if (c->kernel < 0)
        refuse(r, "kernel", "\"%s\" is not the name of a kernel of this package", name);
    else if (p->kernels[c->kernel].op != c->op)
        refuse(r, "kernel", "\"%s\" is a kernel for %s, not for %s", name, kt__op_names[p->kernels[c->kernel].op], kt__op_names[c->op]);
    else if (p->kernels[c->kernel].format != c->format)
        refuse(r, "kernel", "\"%s\" is a kernel for format %d, not for %d", name, p->kernels[c->kernel].format, c->format);
}

// Every operation must have a kernel, of what is by layer one for each format, and a last row that takes whatever the rows before did not.
static void check_complete(reader *r, const kt__package *p)
{
    for (int i = 0; i < KT__OP_COUNT * p->format_count; i++) {
        const int op = i % KT__OP_COUNT, format = i / KT__OP_COUNT;
        bool kernel = false, last = false;
        char of[32] = "";
        if (format && (op == KT__CHECK || op == KT__ADVANCE))
            continue;
        if (p->format_count > 1)
            snprintf(of, sizeof of, " of format %d", format);
        for (int k = 0; k < p->kernel_count; k++)
            kernel |= (int)p->kernels[k].op == op && p->kernels[k].format == format;
        for (int c = 0; c < p->choice_count; c++)
            last |= (int)p->choices[c].op == op && p->choices[c].format == format && !p->choices[c].max_sequences && !p->choices[c].max_pages;
        if (!kernel)
            refuse(r, "kernels", "none for %s%s; expected at least one", kt__op_names[op], of);
        else if (!last)
            refuse(r, "select", "no row for %s%s with sequences 0 and pages 0; expected one that takes every shape", kt__op_names[op], of);
    }
}

static void read_lists(reader *r, const char *folder, const cJSON *root, kt__package *p)
{
    const cJSON *kernels = get_list(r, root, "kernels"), *choices = get_list(r, root, "select"), *item;
    if (r->status)
        return;
    p->kernels = calloc((size_t)cJSON_GetArraySize(kernels), sizeof *p->kernels);
    p->choices = calloc((size_t)cJSON_GetArraySize(choices), sizeof *p->choices);
    if (!p->kernels || !p->choices) {
        r->status = kt__fail(KT_MEMORY, "%s: no memory for %d kernels", r->path, cJSON_GetArraySize(kernels));
        return;
    }
    cJSON_ArrayForEach(item, kernels) {
        kt__kernel *k = &p->kernels[p->kernel_count];
        snprintf(r->at, sizeof r->at, "kernels[%d].", p->kernel_count);
        read_kernel(r, folder, item, p, k);
        const int before = find_kernel(p, p->kernel_count++, k->name);
        if (before >= 0)
            refuse(r, "name", "\"%s\" is taken by kernels[%d]", k->name, before);
        if (r->status)
            return;
    }
    cJSON_ArrayForEach(item, choices) {
        snprintf(r->at, sizeof r->at, "select[%d].", p->choice_count);
        read_choice(r, item, p, &p->choices[p->choice_count++]);
        if (r->status)
            return;
    }
    r->at[0] = 0;
    check_complete(r, p);
}

static void read_manifest(reader *r, const char *folder, const cJSON *root, kt__package *p)
{
    if (!cJSON_IsObject(root)) {
        r->status = kt__fail(KT_PACKAGE, "%s: expected a JSON object", r->path);
        return;
    }
    const int version = get_int(r, root, "kittygen", 1, INT_MAX);
    if (!r->status && version != KT_FORMAT_VERSION)
        refuse(r, "kittygen", "format version %d; this libkitty (%s) reads version %d: emit the package with its own kittygen", version,
               KT_VERSION, KT_FORMAT_VERSION);
    get_text(r, root, "spec", in_name, "a name (letters, digits, '_', '-', '.')", p->spec, sizeof p->spec);
    const cJSON *model = get_object(r, root, "model");
    if (r->status)
        return;
    read_formats(r, root, p);
    strcpy(r->at, "model.");
    read_model(r, model, p);
    if (!r->status && p->q_heads != p->kv_heads * p->formats[0].group_heads)
        refuse(r, "q_heads", "%d is not kv_heads %d * format.group_heads %d", p->q_heads, p->kv_heads, p->formats[0].group_heads);
    r->at[0] = 0;
    if (p->format_count > 1)
        read_layer_formats(r, root, p);
    read_tables(r, folder, root, p);
    if (!r->status)
        read_lists(r, folder, root, p);
}

// ---- entry -----------------------------------------------------------------------------------------------------------

kt_status kt__package_read(const char *folder, kt__package *package)
{
    *package = (kt__package){0};
    char path[4096];
    struct stat about;
    cJSON *root = 0;
    char *text = 0;
    reader r = {.path = path};

    if ((size_t)snprintf(path, sizeof path, "%s/manifest.json", folder) >= sizeof path)
        return kt__fail(KT_IO, "%.64s...: path longer than %zu characters", folder, sizeof path - 1);
    if (stat(folder, &about))
        return kt__fail(KT_IO, "%s: %s; expected the folder of a kernel package (kittygen emit)", folder, strerror(errno));
    if (!S_ISDIR(about.st_mode))
        return kt__fail(KT_IO, "%s: not a folder; expected the folder of a kernel package (kittygen emit)", folder);
    text = read_text(path, MANIFEST_LIMIT, KT_PACKAGE);
    if (!text) {
        r.status = KT_PACKAGE;
        goto fail;
    }
    const char *end = text;
    root = cJSON_ParseWithOpts(text, &end, 1);
    if (!root) {
        int line = 1, column = 1;
        for (const char *c = text; c < end; c++)
            column = *c == '\n' ? 1 : column + 1, line += *c == '\n';
        r.status = kt__fail(KT_PACKAGE, "%s:%d:%d: not valid JSON", path, line, column);
        goto fail;
    }
    package->folder = strdup(folder);
    if (package->folder)
        read_manifest(&r, folder, root, package);
    else
        r.status = kt__fail(KT_MEMORY, "%s: no memory", path);
fail:
    cJSON_Delete(root);
    free(text);
    if (r.status)
        kt__package_free(package);
    return r.status;
}

void kt__package_free(kt__package *package)
{
    for (int i = 0; i < package->kernel_count; i++)
        free(package->kernels[i].source);
    free(package->kernels);
    free(package->choices);
    free(package->folder);
    free(package->tables);
    *package = (kt__package){0};
}
