#include "fields.h"

#include "kitty.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define AT(member) offsetof(kg_spec, member)

const kg_field kg_fields[] = {
    {.path = "name", .kind = KG_FIELD_NAME, .offset = AT(name), .fallback = "",
     .comment = "names the package; default: MODEL.VARIANT"},
    {.path = "variant", .kind = KG_FIELD_NAME, .offset = AT(variant), .fallback = "custom",
     .comment = "names the way of quantising"},
    {.path = "page", .kind = KG_FIELD_INTEGER, .offset = AT(page), .choices = {64, 128, 256}, .fallback = "128",
     .comment = "tokens of a page"},
    {.path = "sink", .kind = KG_FIELD_INTEGER, .offset = AT(sink), .low = 0, .high = 1024, .fallback = "32",
     .comment = "first tokens of a sequence, kept exact"},
    {.path = "calibration", .kind = KG_FIELD_FILE, .offset = AT(calibration), .fallback = "",
     .comment = "safetensors file that has what the spec calls static or matrix; in the spec's folder or the shipped specs"},
    {.path = "model.name", .kind = KG_FIELD_NAME, .offset = AT(model.name), .comment = "names the model"},
    {.path = "model.layers", .kind = KG_FIELD_INTEGER, .offset = AT(model.layers), .low = 1, .high = 1024,
     .comment = "layers with a KV cache"},
    {.path = "model.q_heads", .kind = KG_FIELD_INTEGER, .offset = AT(model.q_heads), .low = 1, .high = 16384,
     .comment = "query heads; a multiple of kv_heads, 1 to 16 times it"},
    {.path = "model.kv_heads", .kind = KG_FIELD_INTEGER, .offset = AT(model.kv_heads), .low = 1, .high = 1024,
     .comment = "KV heads"},
    {.path = "model.head_dim", .kind = KG_FIELD_INTEGER, .offset = AT(model.head_dim), .choices = {64, 96, 128, 192, 256},
     .comment = "channels of a head"},
    {.path = "model.dtype", .kind = KG_FIELD_WORD, .offset = AT(model.dtype), .words = {"fp16", "bf16"},
     .comment = "element type of q, k, v and the output"},
    {.path = "model.scale", .kind = KG_FIELD_NUMBER, .offset = AT(model.scale), .low = 0, .high = 16, .least = 1e-30,
     .fallback = "0", .comment = "softmax scale; 0: 1 / sqrt(head_dim)"},
    {.path = "key.bits", .kind = KG_FIELD_INTEGER, .offset = AT(key.bits), .choices = {1, 2, 3, 4, 8, 16}, .fallback = "2",
     .comment = "bits of a key channel; 16: exact"},
    {.path = "key.group", .kind = KG_FIELD_GROUP, .offset = AT(key.group), .choices = {32, 64, 128, 256}, .words = {"page", "head"},
     .fallback = "page", .comment = "tokens of a channel that share a scale and zero; divides page; along channels: channels of a token, "
                                    "divides head_dim, and \"head\" for all; not with 16 bits"},
    {.path = "key.along", .kind = KG_FIELD_WORD, .offset = AT(key.along), .words = {"tokens", "channels"}, .fallback = "tokens",
     .comment = "what a group runs along: tokens, so that every channel has its own scales, or channels, so that every token has; no boost "
                "along channels"},
    {.path = "key.window", .kind = KG_FIELD_INTEGER, .offset = AT(key.window), .low = 0, .high = 4096, .fallback = "0",
     .comment = "newest tokens whose keys stay exact, on top of the unfinished page; at most value.window"},
    {.path = "key.range", .kind = KG_FIELD_WORD, .offset = AT(key.range), .words = {"extremes", "least_squares"}, .fallback = "extremes",
     .comment = "what a group's codes span: its minimum to its maximum, or of 16 ranges within it the one with the least squared error; "
                "not with 16 bits"},
    {.path = "key.rotation", .kind = KG_FIELD_WORD, .offset = AT(key.rotation), .words = {"none", "hadamard", "matrix"}, .fallback = "none",
     .comment = "rotates keys before they are sealed, and queries; Hadamard: head_dim a power of two; matrix: `key.rotation` of the "
                "calibration; not with 16 bits"},
    {.path = "key.metadata", .kind = KG_FIELD_WORD, .offset = AT(key.metadata), .words = {"fp16", "fp8"}, .fallback = "fp16",
     .comment = "scales and zeros: two bytes each, or one (E4M3 times a power of two per page and head); not with 16 bits"},
    {.path = "key.boost.bits", .kind = KG_FIELD_INTEGER, .offset = AT(key.boost_bits), .choices = {3, 4, 8}, .fallback = "4",
     .comment = "bits of a boosted channel; more than key.bits"},
    {.path = "key.boost.fraction", .kind = KG_FIELD_NUMBER, .offset = AT(key.boost_fraction), .low = 0, .high = 1,
     .comment = "boosted share of a head's channels, rounded down to whole channels; 1: the same as key.bits of so many"},
    {.path = "key.boost.score", .kind = KG_FIELD_WORD, .offset = AT(key.score),
     .words = {"magnitude", "variance", "range", "random", "static"}, .fallback = "magnitude",
     .comment = "how the boosted channels of a page are chosen; static: `key.boosted` of the calibration"},
    {.path = "key.boost.seed", .kind = KG_FIELD_INTEGER, .offset = AT(key.seed), .low = 0, .high = 2147483647, .fallback = "0",
     .comment = "seed of the random score"},
    {.path = "value.bits", .kind = KG_FIELD_INTEGER, .offset = AT(value.bits), .choices = {1, 2, 3, 4, 8, 16}, .fallback = "2",
     .comment = "bits of a value element; 16: exact"},
    {.path = "value.group", .kind = KG_FIELD_GROUP, .offset = AT(value.group), .choices = {32, 64, 128, 256}, .words = {"head", "page"},
     .fallback = "head", .comment = "channels of a token that share a scale and zero; divides head_dim; along tokens: tokens of a channel, "
                                    "divides page, and \"page\" for all; not with 16 bits"},
    {.path = "value.along", .kind = KG_FIELD_WORD, .offset = AT(value.along), .words = {"channels", "tokens"}, .fallback = "channels",
     .comment = "what a group runs along: channels, so that every token has its own scales, or tokens, so that every channel has"},
    {.path = "value.window", .kind = KG_FIELD_INTEGER, .offset = AT(value.window), .low = 0, .high = 4096, .fallback = "128",
     .comment = "newest tokens whose values stay exact, on top of the unfinished page"},
    {.path = "value.range", .kind = KG_FIELD_WORD, .offset = AT(value.range), .words = {"extremes", "least_squares"},
     .fallback = "extremes", .comment = "what a group's codes span, as key.range; not with 16 bits"},
    {.path = "value.rotation", .kind = KG_FIELD_WORD, .offset = AT(value.rotation), .words = {"none", "hadamard", "matrix"},
     .fallback = "none", .comment = "rotates values before they are sealed, and the output back; as key.rotation"},
    {.path = "value.metadata", .kind = KG_FIELD_WORD, .offset = AT(value.metadata), .words = {"fp16", "fp8"}, .fallback = "fp16",
     .comment = "scales and zeros, as key.metadata; not with 16 bits"},
    {.path = "layers.first", .kind = KG_FIELD_INTEGER, .offset = AT(layers.first), .low = 0, .high = KG_LAYERS - 1,
     .comment = "`layers` is a list of tables { first = 0, last = 1, key = { bits = 16 } }: layers, counted from 0, whose `key` and `value` have "
                "other fields than the spec's; what is not given is as there, or with bits = 16 the window alone. This is the first of them"},
    {.path = "layers.last", .kind = KG_FIELD_INTEGER, .offset = AT(layers.last), .low = 0, .high = KG_LAYERS - 1, .fallback = "",
     .comment = "the last of them; default: the first"},
};
const int kg_field_count = sizeof kg_fields / sizeof *kg_fields;

// ---- paths -----------------------------------------------------------------------------------------------------------

const kg_field *kg_field_find(const char *path)
{
    for (int i = 0; i < kg_field_count; i++)
        if (!strcmp(kg_fields[i].path, path))
            return &kg_fields[i];
    return 0;
}

int kg_field_group(const char *path)
{
    const char *dot = strrchr(path, '.');
    return dot ? (int)(dot - path) : 0;
}

int kg_field_is_group(const char *path)
{
    const size_t length = strlen(path);
    for (int i = 0; i < kg_field_count; i++)
        if (!strncmp(kg_fields[i].path, path, length) && kg_fields[i].path[length] == '.')
            return 1;
    return 0;
}

int kg_field_names(const char *group, char names[KG_FIELD_NAMES][32])
{
    const size_t length = *group ? strlen(group) + 1 : 0;
    int count = 0;
    for (int i = 0; i < kg_field_count && count < KG_FIELD_NAMES; i++) {
        const char *path = kg_fields[i].path;
        if (length && (strncmp(path, group, length - 1) || path[length - 1] != '.'))
            continue;
        char name[32];
        snprintf(name, sizeof name, "%.*s", (int)strcspn(path + length, "."), path + length);
        if (!count || strcmp(names[count - 1], name))
            memcpy(names[count++], name, sizeof name);
    }
    return count;
}

// ---- values ----------------------------------------------------------------------------------------------------------

static int is_listed(const kg_field *field, double number)
{
    for (const int *c = field->choices; *c; c++)
        if (number == *c)
            return 1;
    return 0;
}

static int word_index(const kg_field *field, const char *text)
{
    for (int i = 0; field->words[i]; i++)
        if (!strcmp(field->words[i], text))
            return i;
    return -1;
}

void kg_field_allowed(kg_text *out, const kg_field *field)
{
    const char *separator = "";
    switch (field->kind) {
    case KG_FIELD_NAME:
        kg_text_addf(out, "1 to %d letters, digits, '.', '_', '-', the first a letter or digit", KG_NAME - 1);
        return;
    case KG_FIELD_FILE:
        kg_text_addf(out, "a path of 1 to %d letters, digits, '.', '_', '-', '/', down from the folder", KG_FILE - 1);
        return;
    case KG_FIELD_NUMBER:
        if (field->least > 0)
            kg_text_addf(out, "%d, %g to %d", field->low, field->least, field->high);
        else
            kg_text_addf(out, "%d to %d", field->low, field->high);
        return;
    case KG_FIELD_INTEGER:
        if (!field->choices[0])
            kg_text_addf(out, "%d to %d", field->low, field->high);
        break;
    case KG_FIELD_WORD:
    case KG_FIELD_GROUP:
        for (int i = 0; field->words[i]; i++, separator = ", ")
            kg_text_addf(out, "%s\"%s\"", separator, field->words[i]);
        break;
    }
    for (const int *c = field->choices; *c; c++, separator = ", ")
        kg_text_addf(out, "%s%d", separator, *c);
}

void kg_value_show(kg_text *out, const kg_value *value)
{
    if (value->kind == KG_VALUE_NUMBER && isnan(value->number))
        kg_text_add(out, "nan"); // its sign differs between machines
    else if (value->kind == KG_VALUE_NUMBER)
        kg_text_number(out, value->number);
    else if (value->kind == KG_VALUE_TEXT && strlen(value->text) <= 200)
        kg_text_json(out, value->text);
    else
        kg_text_add(out, value->kind == KG_VALUE_TEXT ? "a long text" : value->text);
}

static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/"; // the last of a path alone

// Never above the folder: no part begins with a dot.
static int valid_file(const char *text)
{
    const size_t length = strlen(text);
    return length > 0 && length < KG_FILE && strspn(text, letters) == length && *text != '/' && *text != '.' && !strstr(text, "/.");
}

static int valid_name(const char *text)
{
    const size_t length = strlen(text);
    if (strchr(text, '/'))
        return 0;
    return length > 0 && length < KG_NAME && strspn(text, letters) == length && *text != '.' && *text != '_' && *text != '-';
}

static int store(kg_spec *spec, const kg_field *field, const kg_value *value)
{
    void *target = (char *)spec + field->offset;
    int *integer = target;
    const int text = value->kind == KG_VALUE_TEXT, number = value->kind == KG_VALUE_NUMBER;
    switch (field->kind) {
    case KG_FIELD_NAME:
        if (!text || !valid_name(value->text))
            return 0;
        memcpy(target, value->text, strlen(value->text) + 1);
        return 1;
    case KG_FIELD_FILE:
        if (!text || !valid_file(value->text))
            return 0;
        memcpy(target, value->text, strlen(value->text) + 1);
        return 1;
    case KG_FIELD_NUMBER:
        if (!number || !(value->number >= field->low && value->number <= field->high) || (value->number > 0 && value->number < field->least))
            return 0;
        *(double *)target = value->number;
        return 1;
    case KG_FIELD_WORD:
        if (!text || word_index(field, value->text) < 0)
            return 0;
        *integer = word_index(field, value->text);
        return 1;
    case KG_FIELD_GROUP:
        if (text ? word_index(field, value->text) < 0 : !number || !is_listed(field, value->number))
            return 0;
        *integer = text ? -word_index(field, value->text) : (int)value->number;
        return 1;
    case KG_FIELD_INTEGER:
        if (!number)
            return 0;
        if (field->choices[0] ? !is_listed(field, value->number)
                              : !(value->number >= field->low && value->number <= field->high && value->number == floor(value->number)))
            return 0;
        *integer = (int)value->number;
        return 1;
    }
    return 0;
}

int kg_field_set(kg_spec *spec, const kg_field *field, const kg_value *value, kg_text *reason)
{
    if (store(spec, field, value))
        return 1;
    kg_value_show(reason, value);
    kg_text_add(reason, " is not allowed; allowed: ");
    kg_field_allowed(reason, field);
    if (field->kind == KG_FIELD_INTEGER && !field->choices[0] && value->kind == KG_VALUE_NUMBER && value->number != floor(value->number))
        kg_text_add(reason, ", whole numbers");
    int words = 0;
    while (field->words[words])
        words++;
    const char *nearest = value->kind == KG_VALUE_TEXT ? kg_nearest(value->text, field->words, words) : 0;
    if (nearest)
        kg_text_addf(reason, "; did you mean \"%s\"?", nearest);
    return 0;
}

int kg_field_default(kg_spec *spec, const kg_field *field)
{
    if (!field->fallback)
        return 0;
    kg_value value = {KG_VALUE_TEXT, 0, field->fallback};
    char *end;
    value.number = strtod(field->fallback, &end);
    if (*field->fallback && !*end)
        value.kind = KG_VALUE_NUMBER;
    return !*field->fallback || store(spec, field, &value);
}

// ---- several fields --------------------------------------------------------------------------------------------------

void kg_spec_finish(kg_spec *spec, const kg_given *given, void (*report)(void *user, const char *path, const char *reason),
                    void *user)
{
    char reason[256];
#define REPORT(path, ...) (snprintf(reason, sizeof reason, __VA_ARGS__), report(user, path, reason))
    const int q = spec->model.q_heads, kv = spec->model.kv_heads, d = spec->model.head_dim;
    if (q % kv || q / kv > 16)
        REPORT("model.q_heads", "%d with kv_heads %d is not allowed; allowed: 1 to 16 times kv_heads", q, kv);

    struct {
        const char *path, *along;
        int bits, given, by_token, *group;
    } parts[] = {
        {"key.group", "key.along", spec->key.bits, given->key_group, spec->key.along, &spec->key.group},
        {"value.group", "value.along", spec->value.bits, given->value_group, !spec->value.along, &spec->value.group},
    };
    for (int i = 0; i < 2; i++) {
        const int by_token = parts[i].by_token, span = by_token ? d : spec->page, group = *parts[i].group;
        const char *whole = by_token ? "head" : "page";
        if (parts[i].bits == 16 && parts[i].given)
            REPORT(parts[i].path, "not allowed with %s.bits 16, which is exact; leave it out", i ? "value" : "key");
        else if (parts[i].bits == 16 && (i ? spec->value.along : spec->key.along))
            REPORT(parts[i].along, "not allowed with %s.bits 16, which is exact; leave it out", i ? "value" : "key");
        else if (parts[i].given && group <= 0 && (group == 0) != (i == by_token))
            REPORT(parts[i].path, "\"%s\" with groups along %s; allowed: \"%s\" or a number", by_token ? "page" : "head",
                   by_token ? "channels" : "tokens", whole);
        else if (group > 0 && span % group)
            REPORT(parts[i].path, "%d does not divide %s %d; allowed: \"%s\" or a divisor of it%s", group, by_token ? "head_dim" : "page", span,
                   whole, by_token ? ": 32, 64, 128" : " from 32 on");
        else if (by_token && group > 128)
            REPORT(parts[i].path, "%d with groups along channels; allowed: \"head\", 32, 64, 128", group);
        if (group <= 0)
            *parts[i].group = by_token ? (i ? KG_GROUP_HEAD : d == 256 ? 128 : d) : spec->page;
    }

    if (spec->key.window > spec->value.window)
        REPORT("key.window", "%d is larger than value.window %d, so that values would be sealed before their keys; allowed: at most "
               "value.window", spec->key.window, spec->value.window);

    const struct {
        const char *path, *word;
        int given, bits;
    } inexact[] = {
        {"key.range", "least_squares", spec->key.range, spec->key.bits},
        {"value.range", "least_squares", spec->value.range, spec->value.bits},
        {"key.metadata", "fp8", spec->key.metadata, spec->key.bits},
        {"value.metadata", "fp8", spec->value.metadata, spec->value.bits},
    };
    for (int i = 0; i < 4; i++)
        if (inexact[i].given && inexact[i].bits == 16)
            REPORT(inexact[i].path, "\"%s\" with %.*s.bits 16, which is exact; leave it out", inexact[i].word,
                   (int)strcspn(inexact[i].path, "."), inexact[i].path);
    static const char *const rotated[] = {"key.rotation", "value.rotation"};
    const int rotations[] = {spec->key.rotation, spec->value.rotation}, bits[] = {spec->key.bits, spec->value.bits};
    for (int i = 0; i < 2; i++)
        if (rotations[i] && bits[i] == 16)
            REPORT(rotated[i], "not allowed with %.*s.bits 16, which is exact; leave it out", (int)strcspn(rotated[i], "."), rotated[i]);
        else if (rotations[i] == 1 && d & (d - 1))
            REPORT(rotated[i], "\"hadamard\" with head_dim %d, which is no power of two; allowed: \"none\", or \"matrix\" with a calibration", d);
        else if (rotations[i] == 2 && !*spec->calibration)
            REPORT(rotated[i], "\"matrix\" without a calibration; name the file that has `%s` in the field `calibration`", rotated[i]);

    int boosted = given->boost ? (int)floor(spec->key.boost_fraction * d + 1e-9) : 0;
    if (given->boost && spec->key.bits == 16)
        REPORT("key.boost", "not allowed with key.bits 16, which is exact; leave it out or write boost = false");
    else if (given->boost && spec->key.along)
        REPORT("key.boost", "not allowed with key.along \"channels\", where a channel has no scale of its own; leave it out or write boost = false");
    else if (given->boost && spec->key.boost_bits <= spec->key.bits)
        REPORT("key.boost.bits", "%d is not more than key.bits %d; allowed: %s", spec->key.boost_bits, spec->key.bits,
               spec->key.bits == 2 ? "3, 4, 8" : spec->key.bits == 3 ? "4, 8" : spec->key.bits == 4 ? "8" : "none: write boost = false");
    else if (!boosted && given->boost && spec->key.boost_fraction > 0)
        REPORT("key.boost.fraction", "%g boosts no channel of head_dim %d; allowed: 0, or %g to 1", spec->key.boost_fraction, d, 1.0 / d);
    if (boosted == d && given->boost && spec->key.bits < spec->key.boost_bits) { // all channels, which needs no list
        spec->key.bits = spec->key.boost_bits;
        boosted = 0;
    }
    const int listed = boosted && spec->key.score == KG_SCORE_STATIC;
    if (listed && !*spec->calibration)
        REPORT("key.boost.score", "\"static\" without a calibration; name the file that has `key.boosted` in the field `calibration`");
    if (!boosted) {
        spec->key.boost_bits = spec->key.bits;
        spec->key.boost_fraction = 0;
    }
#undef REPORT
    if (!*spec->name)
        snprintf(spec->name, sizeof spec->name, "%s.%s", spec->model.name, spec->variant);
}

int kg_spec_calibrated(const kg_spec *spec)
{
    const int boosted = spec->key.boost_bits > spec->key.bits && spec->key.boost_fraction > 0;
    return (boosted && spec->key.score == KG_SCORE_STATIC) || spec->key.rotation == 2 || spec->value.rotation == 2;
}

// ---- layers ----------------------------------------------------------------------------------------------------------

// "NAME-f1"; a name that is too long for it is cut.
static void add_way(char *name, int size, int way)
{
    const int room = size - 4, length = (int)strlen(name);
    snprintf(name + (length < room ? length : room), 4, "-f%d", way);
}

kg_spec kg_spec_way(const kg_spec *spec, int way)
{
    kg_spec one = *spec;
    if (way) {
        one.key = spec->more[way - 1].key;
        one.value = spec->more[way - 1].value;
    }
    one.more_count = 0;
    memset(one.layer_way, 0, sizeof one.layer_way);
    if (!kg_spec_calibrated(&one))
        *one.calibration = 0;
    if (spec->more_count) {
        add_way(one.name, sizeof one.name, way);
        add_way(one.variant, sizeof one.variant, way);
    }
    return one;
}

int kg_spec_layers(const kg_spec *spec, int way)
{
    int count = 0;
    for (int layer = 0; layer < spec->model.layers; layer++)
        count += spec->layer_way[layer] == way;
    return count;
}

// The last of the layers from `first` on that are kept as it is.
static int last_alike(const kg_spec *spec, int first)
{
    int last = first;
    while (last + 1 < spec->model.layers && spec->layer_way[last + 1] == spec->layer_way[first])
        last++;
    return last;
}

void kg_spec_list_layers(kg_text *out, const kg_spec *spec, int way)
{
    const char *separator = "";
    for (int first = 0, last; first < spec->model.layers; first = last + 1) {
        last = last_alike(spec, first);
        if (spec->layer_way[first] != way)
            continue;
        kg_text_addf(out, "%s%d", separator, first);
        if (last > first)
            kg_text_addf(out, "-%d", last);
        separator = ", ";
    }
}

int kg_spec_split(kg_spec **specs, int *count, char *error, size_t error_size)
{
    int total = 0;
    for (int s = 0; s < *count; s++)
        total += 1 + (*specs)[s].more_count;
    kg_spec *all = malloc((size_t)(total + 1) * sizeof *all);
    if (!all)
        return kg_fail(KG_MACHINE, error, error_size, "out of memory");
    total = 0;
    for (int s = 0; s < *count; s++)
        for (int way = 0; way <= (*specs)[s].more_count; way++)
            all[total++] = kg_spec_way(&(*specs)[s], way);
    free(*specs);
    *specs = all;
    *count = total;
    return KG_OK;
}

// ---- output ----------------------------------------------------------------------------------------------------------

static void add_value(kg_text *out, const kg_spec *spec, const kg_field *field)
{
    const void *source = (const char *)spec + field->offset;
    const int integer = field->kind == KG_FIELD_NAME || field->kind == KG_FIELD_FILE || field->kind == KG_FIELD_NUMBER ? 0 : *(const int *)source;
    if (field->kind == KG_FIELD_NAME || field->kind == KG_FIELD_FILE)
        kg_text_json(out, source);
    else if (field->kind == KG_FIELD_NUMBER)
        kg_text_number(out, *(const double *)source);
    else if (field->kind == KG_FIELD_WORD || (field->kind == KG_FIELD_GROUP && integer == KG_GROUP_HEAD))
        kg_text_json(out, field->words[integer]);
    else
        kg_text_addf(out, "%d", integer);
}

// Whether a field has no meaning in this spec, or is one of the plain ways of keys and values: the first word of each.
static int is_idle(const kg_spec *spec, const kg_field *field)
{
    const char *path = field->path;
    const int part = !strncmp(path, "key.", 4) ? spec->key.bits : !strncmp(path, "value.", 6) ? spec->value.bits : 0;
    if (!strncmp(path, "layers.", 7) || (!strncmp(path, "key.boost.", 10) && spec->key.boost_bits == spec->key.bits) ||
        (field->kind == KG_FIELD_FILE && !*spec->calibration) || (field->kind == KG_FIELD_GROUP && part == 16))
        return 1;
    return field->kind == KG_FIELD_WORD && part && !strchr(strchr(path, '.') + 1, '.') && !*(const int *)((const char *)spec + field->offset);
}

// The fields, or of an override those of `key` and `value`, with their groups' braces.
static void add_fields(kg_text *out, const kg_spec *spec, int override)
{
    char open[64] = ""; // the group whose braces are open
    const char *separator = override ? ", " : "";
    for (int i = 0; i < kg_field_count; i++) {
        const char *path = kg_fields[i].path;
        char group[64];
        snprintf(group, sizeof group, "%.*s", kg_field_group(path), path);
        if (is_idle(spec, &kg_fields[i]) || (override && strncmp(path, "key.", 4) && strncmp(path, "value.", 6)))
            continue;
        while (*open && strcmp(open, group) && (strncmp(group, open, strlen(open)) || group[strlen(open)] != '.')) {
            kg_text_add(out, "}");
            open[kg_field_group(open)] = 0;
            separator = ", ";
        }
        if (strcmp(open, group)) { // groups nest one by one
            const int outer = kg_field_group(group);
            kg_text_addf(out, "%s\"%s\": {", separator, group + (outer ? outer + 1 : 0));
            memcpy(open, group, sizeof open);
            separator = "";
        }
        const int outer = kg_field_group(path);
        kg_text_addf(out, "%s\"%s\": ", separator, path + (outer ? outer + 1 : 0));
        add_value(out, spec, &kg_fields[i]);
        if (kg_fields[i].kind == KG_FIELD_FILE)
            kg_text_addf(out, ", \"%s_sha256\": \"%s\"", path, spec->calibration_sha256);
        separator = ", ";
    }
    for (; *open; open[kg_field_group(open)] = 0)
        kg_text_add(out, "}");
}

void kg_spec_json(kg_text *out, const kg_spec *spec)
{
    kg_text_add(out, "{");
    add_fields(out, spec, 0);
    for (int first = 0, last, count = 0; spec->more_count && first < spec->model.layers; first = last + 1) {
        const int way = spec->layer_way[first];
        last = last_alike(spec, first);
        if (!way)
            continue;
        const kg_spec one = kg_spec_way(spec, way);
        kg_text_addf(out, "%s{\"first\": %d, \"last\": %d", count++ ? ", " : ", \"layers\": [", first, last);
        add_fields(out, &one, 1);
        kg_text_add(out, "}");
    }
    kg_text_add(out, spec->more_count ? "]}" : "}");
}

void kg_field_reference(kg_text *out, int json)
{
    static const char *const kinds[] = {"integer", "number", "word", "group", "name", "file"};
    for (int i = 0; i < kg_field_count; i++) {
        const kg_field *f = &kg_fields[i];
        kg_text allowed = {0};
        kg_field_allowed(&allowed, f);
        if (json) {
            kg_text_addf(out, "%s{\"field\": \"%s\", \"type\": \"%s\", \"allowed\": ", i ? ",\n " : "[", f->path, kinds[f->kind]);
            kg_text_json(out, allowed.data ? allowed.data : "");
            kg_text_add(out, ", \"default\": ");
            if (f->fallback && *f->fallback)
                kg_text_json(out, f->fallback);
            else
                kg_text_add(out, "null");
            kg_text_addf(out, ", \"required\": %s, \"comment\": ", f->fallback ? "false" : "true");
            kg_text_json(out, f->comment);
            kg_text_add(out, "}");
        } else {
            kg_text_addf(out, "%s\n    %s\n    allowed: %s\n    ", f->path, f->comment, allowed.data ? allowed.data : "");
            if (!f->fallback)
                kg_text_addf(out, "must be given%s\n", !strncmp(f->path, "key.boost.", 10) ? " if there is a boost" :
                             !strncmp(f->path, "layers.", 7) ? " in every table" : "");
            else
                kg_text_addf(out, "default: %s\n", *f->fallback ? f->fallback : "see above");
        }
        out->failed |= allowed.failed;
        kg_text_free(&allowed);
    }
    if (json)
        kg_text_add(out, "]\n");
}
