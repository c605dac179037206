#include "spec.h"

#include "calibration.h"
#include "fields.h"
#include "layout.h"
#include "locate.h"
#include "sandbox.h"

#include <ctype.h>
#include <lauxlib.h>
#include <lua.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_ERRORS = 10, MOST_SPECS = 1024, DEEPEST = 8 };
static const char mark[] = "kitty"; // names the metatable that kitty { ... } gives

// ---- kitty { ... } ---------------------------------------------------------------------------------------------------

// Pushes a deep copy of the table at `base`, with the fields of the table at `over` (0: none) put over it; a list takes the place of
// another whole.
static void merge(lua_State *L, int base, int over, int depth)
{
    if (depth > DEEPEST)
        luaL_error(L, "kitty: tables nest deeper than %d", DEEPEST);
    luaL_checkstack(L, 8, 0);
    lua_newtable(L);
    const int copy = lua_gettop(L);
    for (lua_pushnil(L); lua_next(L, base);) {
        lua_pushvalue(L, -2);
        if (lua_istable(L, -2))
            merge(L, copy + 2, 0, depth + 1);
        else
            lua_pushvalue(L, -2);
        lua_rawset(L, copy);
        lua_pop(L, 1);
    }
    if (!over)
        return;
    for (lua_pushnil(L); lua_next(L, over);) {
        lua_pushvalue(L, -2); // key, value, key
        if (lua_istable(L, -2)) {
            lua_pushvalue(L, -1);
            if (lua_rawget(L, copy) == LUA_TTABLE && !lua_rawlen(L, copy + 2)) // key, value, key, old
                merge(L, copy + 4, copy + 2, depth + 1);
            else
                merge(L, copy + 2, 0, depth + 1);
            lua_remove(L, -2);
        } else
            lua_pushvalue(L, -2);
        lua_rawset(L, copy);
        lua_pop(L, 1);
    }
}

static int lua_kitty(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TTABLE);
    if (!lua_isnoneornil(L, 2))
        luaL_checktype(L, 2, LUA_TTABLE);
    const int over = lua_istable(L, 2) ? 2 : 0;
    merge(L, 1, over, 0);
    luaL_newmetatable(L, mark);
    lua_setmetatable(L, -2);
    return 1;
}

static int is_spec(lua_State *L, int index)
{
    if (!lua_istable(L, index) || !lua_getmetatable(L, index))
        return 0;
    luaL_getmetatable(L, mark);
    const int marked = lua_rawequal(L, -1, -2);
    lua_pop(L, 2);
    return marked;
}

// ---- errors ----------------------------------------------------------------------------------------------------------

// An override of `layers`, as it is read.
typedef struct {
    int first, last;
    kg_key_spec key;
    kg_value_spec value;
    kg_given given;
} override;

typedef struct {
    kg_sandbox *sandbox;
    const char *file;
    const kg_spec_options *options;
    const char *folders[2]; // the spec's own and the shipped specs; null: none
    kg_spec *specs, *spec; // all, and the one being read
    int total, index;      // specs in the file, and which this one is
    kg_given given;
    override *overrides;
    int override_count;
    char place[32];        // "layers[2]." while an override is read
    bool inherits;         // what is not given stays as it is, and does not become the default
    kg_text errors, reason;
    int error_count;
} reader;

// The best line for a path in all the texts that were read: returns how good it is.
static int find_line(const reader *r, const char *path, const kg_value *value, const char **file, int *line)
{
    const char *name, *text;
    int best = 0, here;
    for (int i = 0; (name = kg_sandbox_source(r->sandbox, i, &text)); i++) {
        const int rank = kg_locate(text, path, value, &here);
        if (rank > best) {
            best = rank;
            *file = name;
            *line = here;
        }
    }
    return best;
}

static void add_error(reader *r, const char *file, int line, const char *path, const char *reason)
{
    if (++r->error_count > MOST_ERRORS)
        return;
    kg_text_addf(&r->errors, "%s%s", r->errors.size ? "\n" : "", file);
    if (line)
        kg_text_addf(&r->errors, ":%d", line);
    kg_text_addf(&r->errors, ": %s: %s", path, reason);
    if (r->total > 1)
        kg_text_addf(&r->errors, " [spec %d of %d]", r->index + 1, r->total);
}

static void report(reader *r, const char *field, const kg_value *value, const char *reason)
{
    const char *file = r->file;
    char path[192], group[192];
    int line = 0;
    snprintf(path, sizeof path, "%s%s", r->place, field + (*r->place && !strncmp(field, "layers.", 7) ? 7 : 0));
    if (!*field) // the override itself
        path[strlen(path) - 1] = 0;
    snprintf(group, sizeof group, "%.*s", kg_field_group(path), path);
    if (!find_line(r, path, value, &file, &line) && *group && !find_line(r, group, 0, &file, &line) && *r->place && r->total == 1) // missing: where its table begins
        find_line(r, "layers", 0, &file, &line);
    add_error(r, file, line, path, reason);
}

static void report_finish(void *user, const char *path, const char *reason)
{
    report(user, path, 0, reason);
}

// ---- reading ---------------------------------------------------------------------------------------------------------

static kg_value value_at(lua_State *L, int index)
{
    kg_value value = {KG_VALUE_OTHER, 0, 0};
    size_t size;
    switch (lua_type(L, index)) {
    case LUA_TNUMBER:
        value.kind = KG_VALUE_NUMBER;
        value.number = lua_tonumber(L, index);
        break;
    case LUA_TSTRING:
        value.text = lua_tolstring(L, index, &size);
        if (strlen(value.text) == size)
            value.kind = KG_VALUE_TEXT;
        else
            value.text = "a text with a null byte";
        break;
    case LUA_TBOOLEAN: value.text = lua_toboolean(L, index) ? "true" : "false"; break;
    case LUA_TTABLE: value.text = "a table"; break;
    default: value.text = "a function";
    }
    return value;
}

static void join(char path[128], const char *group, const char *name)
{
    snprintf(path, 128, "%s%s%s", group, *group ? "." : "", name);
}

static int compare_names(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static int is_word(const char *name)
{
    const size_t length = strlen(name);
    return length && length < 64 && !isdigit((unsigned char)*name) &&
           strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") == length;
}

// What is said of a key that is none of `allowed`; place: where those are, "" for the whole spec.
static void add_unknown(kg_text *text, const char *key, const char *place, const char *const *allowed, int count)
{
    kg_text_addf(text, "unknown field; allowed%s%s: ", *place ? " in " : "", place);
    for (int i = 0; i < count; i++)
        kg_text_addf(text, "%s%s", i ? ", " : "", allowed[i]);
    const char *nearest = kg_nearest(key, allowed, count);
    if (nearest)
        kg_text_addf(text, "; did you mean `%s`?", nearest);
}

static void report_unknown(reader *r, const char *group, const char *key)
{
    char names[KG_FIELD_NAMES][32], path[128], shown[128] = "";
    const char *candidates[KG_FIELD_NAMES];
    const int count = kg_field_names(group, names);
    for (int i = 0; i < count; i++)
        candidates[i] = names[i];
    kg_text text = {0};
    add_unknown(&text, key, group, candidates, count);
    if (!is_word(key)) {
        kg_text quoted = {0};
        kg_text_json(&quoted, key);
        snprintf(shown, sizeof shown, "[%.64s]", quoted.data ? quoted.data : "");
        kg_text_free(&quoted);
    }
    join(path, group, *shown ? shown : key);
    report(r, path, 0, text.data ? text.data : "unknown field");
    kg_text_free(&text);
}

// Reports the keys of the table on top that are no fields, by name.
static void find_unknown(reader *r, lua_State *L, const char *group)
{
    enum { MOST = 64 };
    char *keys[MOST] = {0}, path[128];
    int count = 0, unnamed = 0;
    for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1)) {
        if (lua_type(L, -2) != LUA_TSTRING) {
            unnamed++;
            continue;
        }
        const char *key = lua_tostring(L, -2); // the table keeps it alive
        join(path, group, key);
        if ((!is_word(key) || (!kg_field_find(path) && !kg_field_is_group(path))) && count < MOST)
            keys[count++] = (char *)key;
    }
    qsort(keys, (size_t)count, sizeof *keys, compare_names);
    for (int i = 0; i < count; i++)
        report_unknown(r, group, keys[i]);
    if (unnamed)
        report(r, *group ? group : "spec", 0, "elements without a name are not allowed; write NAME = VALUE");
}

static void read_field(reader *r, lua_State *L, const kg_field *field, const char *name)
{
    kg_value value;
    lua_pushstring(L, name);
    lua_rawget(L, -2);
    const int overridden = !strcmp(field->path, "model.dtype") && r->options && r->options->dtype;
    if (overridden)
        value = (kg_value){KG_VALUE_TEXT, 0, r->options->dtype};
    else if (lua_isnil(L, -1)) {
        if (!r->inherits && !kg_field_default(r->spec, field)) {
            r->reason.size = 0;
            kg_text_add(&r->reason, "missing; allowed: ");
            kg_field_allowed(&r->reason, field);
            report(r, field->path, 0, r->reason.data ? r->reason.data : "missing");
        }
        lua_pop(L, 1);
        return;
    } else
        value = value_at(L, -1);
    r->reason.size = 0;
    if (!kg_field_set(r->spec, field, &value, &r->reason))
        report(r, field->path, &value, r->reason.data ? r->reason.data : "not allowed");
    r->given.key_group |= !strcmp(field->path, "key.group");
    r->given.value_group |= !strcmp(field->path, "value.group");
    lua_pop(L, 1);
}

static int has_required(const char *group)
{
    for (int i = 0; i < kg_field_count; i++) {
        const char *path = kg_fields[i].path;
        if (!kg_fields[i].fallback && kg_field_group(path) == (int)strlen(group) && !strncmp(path, group, strlen(group)))
            return 1;
    }
    return 0;
}

static void read_table(reader *r, lua_State *L, const char *group);
static void read_layers(reader *r, lua_State *L);

static void report_value(reader *r, lua_State *L, const char *path, const char *allowed)
{
    const kg_value value = value_at(L, -1);
    r->reason.size = 0;
    kg_value_show(&r->reason, &value);
    kg_text_addf(&r->reason, " is not allowed; allowed: %s", allowed);
    report(r, path, &value, r->reason.data ? r->reason.data : "not allowed");
}

// Reads the value on top as the boost: the one group that may be left out.
static void read_boost(reader *r, lua_State *L)
{
    if (lua_isnil(L, -1)) // an override keeps what there is
        return;
    if (lua_istable(L, -1)) {
        const bool inherits = r->inherits;
        r->inherits = inherits && r->given.boost;
        r->given.boost = 1;
        read_table(r, L, "key.boost");
        r->inherits = inherits;
    } else if (lua_toboolean(L, -1))
        report_value(r, L, "key.boost", "a table of fields, or false");
    else
        r->given.boost = 0;
}

// Reads the value on top as the group at `path`.
static void read_group(reader *r, lua_State *L, const char *path)
{
    if (!strcmp(path, "key.boost")) {
        read_boost(r, L);
        return;
    }
    if (!strcmp(path, "layers")) {
        read_layers(r, L);
        return;
    }
    if (lua_isnil(L, -1) && has_required(path)) {
        report(r, path, 0, "missing; allowed: a table of fields");
    } else if (lua_isnil(L, -1)) { // its defaults, as from an empty table
        lua_newtable(L);
        read_table(r, L, path);
        lua_pop(L, 1);
    } else if (lua_istable(L, -1)) {
        read_table(r, L, path);
    } else
        report_value(r, L, path, "a table of fields");
}

// Reads the table on top as the fields of `group`.
static void read_table(reader *r, lua_State *L, const char *group)
{
    char names[KG_FIELD_NAMES][32], path[128];
    luaL_checkstack(L, 8, 0);
    find_unknown(r, L, group);
    const int count = kg_field_names(group, names);
    for (int i = 0; i < count; i++) {
        join(path, group, names[i]);
        const kg_field *field = kg_field_find(path);
        if (field) {
            read_field(r, L, field, names[i]);
        } else {
            lua_pushstring(L, names[i]);
            lua_rawget(L, -2);
            read_group(r, L, path);
            lua_pop(L, 1);
        }
    }
}

// ---- layers ----------------------------------------------------------------------------------------------------------

// Pushes the field of the table on top.
static int get(lua_State *L, const char *name)
{
    lua_pushstring(L, name);
    return lua_rawget(L, -2);
}

// Sets the fields of `key` or `value` to their defaults, but for the window.
static void reset(kg_spec *spec, kg_given *given, const char *part)
{
    const int key = !strcmp(part, "key"), window = key ? spec->key.window : spec->value.window;
    for (int i = 0; i < kg_field_count; i++)
        if (!strncmp(kg_fields[i].path, part, strlen(part)) && kg_fields[i].path[strlen(part)] == '.')
            kg_field_default(spec, &kg_fields[i]);
    *(key ? &spec->key.window : &spec->value.window) = window;
    *(key ? &given->key_group : &given->value_group) = 0;
    if (key)
        given->boost = 0;
}

// Reads `key` or `value` of the override on top; what it does not give stays as in the spec, or with 16 bits, which take nothing of it,
// becomes the default.
static void read_part(reader *r, lua_State *L, const char *part)
{
    if (get(L, part) == LUA_TTABLE) {
        if (get(L, "bits") == LUA_TNUMBER && lua_tonumber(L, -1) == 16)
            reset(r->spec, &r->given, part);
        lua_pop(L, 1);
        r->inherits = true;
        read_table(r, L, part);
        r->inherits = false;
    } else if (!lua_isnil(L, -1))
        report_value(r, L, part, "a table of fields");
    lua_pop(L, 1);
}

// Reports names in the override on top that it cannot have; those of the spec's other fields with the reason.
static void find_foreign(reader *r, lua_State *L)
{
    static const char *const allowed[] = {"first", "last", "key", "value"};
    enum { MOST = 64 };
    char *keys[MOST];
    int count = 0;
    for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1)) {
        bool known = false;
        for (int i = 0; i < 4 && lua_type(L, -2) == LUA_TSTRING; i++)
            known |= !strcmp(lua_tostring(L, -2), allowed[i]);
        if (lua_type(L, -2) != LUA_TSTRING)
            report(r, "", 0, "elements without a name are not allowed; write NAME = VALUE");
        else if (!known && count < MOST)
            keys[count++] = (char *)lua_tostring(L, -2);
    }
    qsort(keys, (size_t)count, sizeof *keys, compare_names);
    for (int i = 0; i < count; i++) {
        if (is_word(keys[i]) && (kg_field_find(keys[i]) || kg_field_is_group(keys[i]))) {
            report(r, keys[i], 0, "is one for all layers; allowed in an override: first, last, key, value");
            continue;
        }
        r->reason.size = 0;
        add_unknown(&r->reason, keys[i], "an override", allowed, 4);
        report(r, is_word(keys[i]) ? keys[i] : "", 0, r->reason.data ? r->reason.data : "unknown field");
    }
}

// The layers of the override on top; false where they are not as they should be.
static bool read_range(reader *r, lua_State *L)
{
    const int before = r->error_count;
    kg_spec *spec = r->spec;
    read_field(r, L, kg_field_find("layers.first"), "first");
    spec->layers.last = spec->layers.first;
    r->inherits = true;
    read_field(r, L, kg_field_find("layers.last"), "last");
    r->inherits = false;
    if (r->error_count > before)
        return false;
    const int first = spec->layers.first, last = spec->layers.last, layers = spec->model.layers;
    r->reason.size = 0;
    if (last < first)
        kg_text_addf(&r->reason, "%d is before first %d; allowed: %d to %d", last, first, first, layers - 1);
    else if (layers && last >= layers)
        kg_text_addf(&r->reason, "%d with model.layers %d, counted from 0; allowed: 0 to %d", last, layers, layers - 1);
    for (int i = 0; i < r->override_count && !r->reason.size; i++)
        if (first <= r->overrides[i].last && last >= r->overrides[i].first)
            kg_text_addf(&r->reason, "layers %d to %d are in layers[%d] too, which has %d to %d; allowed: each layer in one", first, last, i + 1,
                         r->overrides[i].first, r->overrides[i].last);
    if (!r->reason.size)
        return true;
    const kg_value value = {KG_VALUE_NUMBER, last, 0};
    report(r, get(L, "last") == LUA_TNIL ? "first" : "last", &value, r->reason.data ? r->reason.data : "not allowed");
    lua_pop(L, 1);
    return false;
}

// Reads the override on top, over what the spec says of keys and values.
static void read_override(reader *r, lua_State *L)
{
    override *more = realloc(r->overrides, (size_t)(r->override_count + 1) * sizeof *more);
    if (!more)
        luaL_error(L, "out of memory");
    r->overrides = more;
    find_foreign(r, L);
    kg_spec *const base = r->spec, over = *base;
    const kg_given given = r->given;
    r->spec = &over;
    const bool placed = read_range(r, L);
    bool empty = get(L, "key") == LUA_TNIL;
    lua_pop(L, 1);
    empty &= get(L, "value") == LUA_TNIL;
    lua_pop(L, 1);
    if (empty)
        report(r, "first", 0, "an override without `key` and `value`; allowed: fields of either that differ in these layers");
    read_part(r, L, "key");
    read_part(r, L, "value");
    if (placed)
        r->overrides[r->override_count++] = (override){over.layers.first, over.layers.last, over.key, over.value, r->given};
    r->spec = base;
    r->given = given;
}

// Elements of the table on top; -1 where it is no list: keys have names, or come after a hole.
static int list_length(lua_State *L)
{
    const int count = (int)lua_rawlen(L, -1);
    int all = 0;
    for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1))
        all++;
    return all == count ? count : -1;
}

// Reads the value on top as the list `layers`; nil and false are none.
static void read_layers(reader *r, lua_State *L)
{
    static const char allowed[] = "a list of tables { first = 0, last = 1, key = { ... }, value = { ... } }";
    if (!lua_toboolean(L, -1))
        return;
    if (!lua_istable(L, -1)) {
        report_value(r, L, "layers", allowed);
        return;
    }
    const int count = list_length(L);
    if (count < 0) {
        r->reason.size = 0;
        kg_text_addf(&r->reason, "is no list; allowed: %s", allowed);
        const kg_value value = value_at(L, -1);
        report(r, "layers", &value, r->reason.data ? r->reason.data : "no list");
        return;
    }
    luaL_checkstack(L, 8, 0);
    for (int i = 0; i < count; i++) {
        lua_rawgeti(L, -1, i + 1);
        if (lua_istable(L, -1)) {
            snprintf(r->place, sizeof r->place, "layers[%d].", i + 1);
            read_override(r, L);
            *r->place = 0;
        } else {
            char path[32];
            snprintf(path, sizeof path, "layers[%d]", i + 1);
            report_value(r, L, path, "a table { first = 0, last = 1, key = { ... }, value = { ... } }");
        }
        lua_pop(L, 1);
    }
}

// The way that has the format, added where there is none yet; -1 where there are too many.
static int find_way(kg_spec *spec, const kg_key_spec *key, const kg_value_spec *value, kt_format formats[KT_FORMATS], int *count)
{
    kg_spec one = *spec;
    kt_format format;
    one.key = *key;
    one.value = *value;
    kg_layout(&one, &format);
    for (int i = 0; i < *count; i++)
        if (!memcmp(&formats[i], &format, sizeof format))
            return i;
    if (*count == KT_FORMATS)
        return -1;
    formats[*count] = format;
    if (*count) {
        spec->more[*count - 1].key = *key;
        spec->more[*count - 1].value = *value;
    } else {
        spec->key = *key;
        spec->value = *value;
    }
    return (*count)++;
}

// Gives each layer its way: the spec's own first, the others in the order of their layers; what is some layers' by another name is folded.
static void place_layers(reader *r)
{
    kg_spec *spec = r->spec;
    const kg_key_spec key = spec->key;
    const kg_value_spec value = spec->value;
    const override *owners[KG_LAYERS] = {0};
    kt_format formats[KT_FORMATS];
    int count = 0;
    for (int i = 0; i < r->override_count; i++)
        for (int layer = r->overrides[i].first; layer <= r->overrides[i].last; layer++)
            owners[layer] = &r->overrides[i];
    for (int layer = 0; layer < spec->model.layers; layer++)
        if (!owners[layer] && !count)
            find_way(spec, &key, &value, formats, &count);
    for (int layer = 0; layer < spec->model.layers; layer++) {
        const override *o = owners[layer];
        const int way = find_way(spec, o ? &o->key : &key, o ? &o->value : &value, formats, &count);
        if (way < 0) {
            r->reason.size = 0;
            kg_text_addf(&r->reason, "more than %d different formats; allowed: up to %d, since each has kernels of its own", KT_FORMATS, KT_FORMATS);
            report(r, "layers", 0, r->reason.data ? r->reason.data : "too many formats");
            return;
        }
        spec->layer_way[layer] = (unsigned char)way;
    }
    spec->more_count = count - 1;
}

// Completes the spec and its overrides.
static void finish(reader *r)
{
    const int before = r->error_count;
    kg_spec *const spec = r->spec;
    kg_spec_finish(spec, &r->given, report_finish, r);
    int calibrated = kg_spec_calibrated(spec);
    const int overrides = r->error_count == before ? r->override_count : 0; // else they would repeat the spec's errors
    for (int i = 0; i < overrides; i++) {
        override *o = &r->overrides[i];
        kg_spec over = *spec;
        over.key = o->key;
        over.value = o->value;
        snprintf(r->place, sizeof r->place, "layers[%d].", i + 1);
        kg_spec_finish(&over, &o->given, report_finish, r);
        *r->place = 0;
        o->key = over.key;
        o->value = over.value;
        calibrated |= kg_spec_calibrated(&over);
    }
    if (*spec->calibration && !calibrated)
        report(r, "calibration", 0, "nothing in this spec is calibrated; leave it out");
    if (r->error_count == before)
        place_layers(r);
}

static void read_spec(reader *r, lua_State *L)
{
    const int before = r->error_count;
    r->spec = &r->specs[r->index];
    r->given = (kg_given){0, 0, 0};
    r->override_count = 0;
    read_table(r, L, "");
    if (r->error_count == before)
        finish(r);
    if (r->error_count == before && *r->spec->calibration) {
        char error[KG_ERROR];
        const kg_value value = {KG_VALUE_TEXT, 0, r->spec->calibration};
        if (kg_calibration_find(r->spec, r->folders, error, sizeof error))
            report(r, "calibration", &value, error);
    }
    for (int i = 0; i < r->index && r->error_count == before; i++)
        if (!strcmp(r->specs[i].name, r->spec->name)) {
            r->reason.size = 0;
            kg_text_addf(&r->reason, "\"%s\" is the name of spec %d too; give each a `name` or `variant` of its own",
                         r->spec->name, i + 1);
            add_error(r, r->file, 0, "name", r->reason.data ? r->reason.data : "used twice");
        }
}

static void wrong_result(reader *r, lua_State *L)
{
    static const char wanted[] = "a spec file returns kitty { ... } or a list of them";
    r->error_count++;
    if (lua_isnil(L, -1))
        kg_text_addf(&r->errors, "%s: returns nothing; %s", r->file, wanted);
    else if (lua_isfunction(L, -1))
        kg_text_addf(&r->errors, "%s: returns a function; a variant is called with a model: "
                                 "require \"variants.kitty\" { model = require \"models.qwen3_8b\" }", r->file);
    else if (lua_istable(L, -1) && r->total)
        kg_text_addf(&r->errors, "%s: element %d of the list is not a spec; %s", r->file, r->index + 1, wanted);
    else if (lua_istable(L, -1) && lua_rawlen(L, -1))
        kg_text_addf(&r->errors, "%s: returns a table that is no list: it has keys with names or holes; %s", r->file, wanted);
    else
        kg_text_addf(&r->errors, "%s: returns a %s; %s", r->file, lua_istable(L, -1) ? "plain table" : luaL_typename(L, -1), wanted);
}

// Under lua_pcall: the result at 1, the reader at 2.
static int read_result(lua_State *L)
{
    reader *r = lua_touserdata(L, 2);
    lua_settop(L, 1);
    const int single = is_spec(L, 1);
    const int total = single ? 1 : lua_istable(L, 1) ? list_length(L) : 0;
    if (total <= 0) {
        wrong_result(r, L);
        return 0;
    }
    if (total > MOST_SPECS) {
        r->error_count++;
        kg_text_addf(&r->errors, "%s: returns %d specs; at most %d", r->file, total, MOST_SPECS);
        return 0;
    }
    r->specs = calloc((size_t)total, sizeof *r->specs);
    if (!r->specs)
        return luaL_error(L, "out of memory");
    for (r->total = total, r->index = 0; r->index < r->total; r->index++) {
        if (!single)
            lua_rawgeti(L, 1, r->index + 1);
        if (!single && !is_spec(L, -1)) {
            lua_settop(L, 1);
            wrong_result(r, L);
            return 0;
        }
        read_spec(r, L);
        lua_settop(L, 1);
    }
    return 0;
}

int kg_spec_load_text(const char *name, const char *text, size_t size, const char *folder, const kg_spec_options *options,
                      kg_spec **specs, int *count, char *error, size_t error_size)
{
    static const luaL_Reg functions[] = {{"kitty", lua_kitty}, {0, 0}};
    char shipped[KG_PATH];
    *specs = 0;
    *count = 0;
    if (options && options->dtype) {
        kg_spec scratch;
        kg_text reason = {0};
        const kg_value value = {KG_VALUE_TEXT, 0, options->dtype};
        int code = KG_OK;
        if (!kg_field_set(&scratch, kg_field_find("model.dtype"), &value, &reason))
            code = kg_fail(KG_USER, error, error_size, "--dtype: %s", reason.data ? reason.data : "not allowed");
        kg_text_free(&reason);
        if (code)
            return code;
    }
    const int found = !kg_find_folder("specs", "KT_SPECS", shipped, 0, 0);
    reader r = {.file = name, .options = options, .folders = {folder, found ? shipped : 0}};
    r.sandbox = kg_sandbox_open(folder, found ? shipped : 0, functions);
    if (!r.sandbox)
        return kg_fail(KG_MACHINE, error, error_size, "%s: out of memory", name);
    int code = kg_sandbox_run(r.sandbox, name, text, size, error, error_size);
    if (code)
        goto fail;
    lua_State *L = kg_sandbox_lua(r.sandbox);
    lua_pushcfunction(L, read_result);
    lua_insert(L, -2);
    lua_pushlightuserdata(L, &r);
    if (lua_pcall(L, 2, 0, 0) || r.errors.failed || r.reason.failed) {
        code = kg_fail(KG_MACHINE, error, error_size, "%s: out of memory", name);
        goto fail;
    }
    if (r.error_count > MOST_ERRORS)
        kg_text_addf(&r.errors, "\n%s: and %d more errors", name, r.error_count - MOST_ERRORS);
    if (r.error_count) {
        code = kg_fail(KG_USER, error, error_size, "%s", r.errors.data);
        goto fail;
    }
    *specs = r.specs;
    *count = r.total;
    r.specs = 0;
fail:
    free(r.specs);
    free(r.overrides);
    kg_text_free(&r.errors);
    kg_text_free(&r.reason);
    kg_sandbox_close(r.sandbox);
    return code;
}
