#include "spec.h"

#include "calibration.h"
#include "fields.h"
#include "locate.h"
#include "sandbox.h"

#include <ctype.h>
#include <lauxlib.h>
#include <lua.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_ERRORS = 10, MOST_SPECS = 1024, DEEPEST = 8 };
static const char mark[] = "kitty"; // names the metatable that kitty { ... } gives

// ---- kitty { ... } ---------------------------------------------------------------------------------------------------

// Pushes a deep copy of the table at `base`, with the fields of the table at `over` (0: none) put over it.
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
            if (lua_rawget(L, copy) == LUA_TTABLE) // key, value, key, old
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

typedef struct {
    kg_sandbox *sandbox;
    const char *file;
    const kg_spec_options *options;
    const char *folders[2]; // the spec's own and the shipped specs; null: none
    kg_spec *specs, *spec; // all, and the one being read
    int total, index;      // specs in the file, and which this one is
    kg_given given;
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

static void report(reader *r, const char *path, const kg_value *value, const char *reason)
{
    const char *file = r->file;
    char group[128];
    int line = 0;
    snprintf(group, sizeof group, "%.*s", kg_field_group(path), path);
    if (!find_line(r, path, value, &file, &line) && *group) // missing: where its table begins
        find_line(r, group, 0, &file, &line);
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

static void report_unknown(reader *r, const char *group, const char *key)
{
    char names[KG_FIELD_NAMES][32], path[128], shown[128] = "";
    const char *candidates[KG_FIELD_NAMES];
    const int count = kg_field_names(group, names);
    kg_text text = {0};
    kg_text_addf(&text, "unknown field; allowed%s%s: ", *group ? " in " : "", group);
    for (int i = 0; i < count; i++) {
        candidates[i] = names[i];
        kg_text_addf(&text, "%s%s", i ? ", " : "", names[i]);
    }
    const char *nearest = kg_nearest(key, candidates, count);
    if (nearest)
        kg_text_addf(&text, "; did you mean `%s`?", nearest);
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
        if (!kg_field_default(r->spec, field)) {
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

// Reads the value on top as the group at `path`.
static void read_group(reader *r, lua_State *L, const char *path)
{
    const int boost = !strcmp(path, "key.boost"); // the one group that may be left out
    if (boost && !lua_toboolean(L, -1))           // nil or false
        return;
    if (lua_isnil(L, -1) && has_required(path)) {
        report(r, path, 0, "missing; allowed: a table of fields");
    } else if (lua_isnil(L, -1)) { // its defaults, as from an empty table
        lua_newtable(L);
        read_table(r, L, path);
        lua_pop(L, 1);
    } else if (lua_istable(L, -1)) {
        r->given.boost |= boost;
        read_table(r, L, path);
    } else {
        const kg_value value = value_at(L, -1);
        r->reason.size = 0;
        kg_value_show(&r->reason, &value);
        kg_text_addf(&r->reason, " is not allowed; allowed: a table of fields%s", boost ? ", or false" : "");
        report(r, path, &value, r->reason.data ? r->reason.data : "not allowed");
    }
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

static void read_spec(reader *r, lua_State *L)
{
    const int before = r->error_count;
    r->spec = &r->specs[r->index];
    r->given = (kg_given){0, 0, 0};
    read_table(r, L, "");
    if (r->error_count == before)
        kg_spec_finish(r->spec, &r->given, report_finish, r);
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
    else
        kg_text_addf(&r->errors, "%s: returns a %s; %s", r->file, lua_istable(L, -1) ? "plain table" : luaL_typename(L, -1), wanted);
}

// Under lua_pcall: the result at 1, the reader at 2.
static int read_result(lua_State *L)
{
    reader *r = lua_touserdata(L, 2);
    lua_settop(L, 1);
    const int single = is_spec(L, 1);
    if (!single && (!lua_istable(L, 1) || !lua_rawlen(L, 1))) {
        wrong_result(r, L);
        return 0;
    }
    const size_t total = single ? 1 : (size_t)lua_rawlen(L, 1);
    if (total > MOST_SPECS) {
        r->error_count++;
        kg_text_addf(&r->errors, "%s: returns %zu specs; at most %d", r->file, total, MOST_SPECS);
        return 0;
    }
    r->specs = calloc(total, sizeof *r->specs);
    if (!r->specs)
        return luaL_error(L, "out of memory");
    for (r->total = (int)total, r->index = 0; r->index < r->total; r->index++) {
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
    kg_text_free(&r.errors);
    kg_text_free(&r.reason);
    kg_sandbox_close(r.sandbox);
    return code;
}
