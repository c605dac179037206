// What chunks in the sandbox can call. Everything here is bounded by its arguments' size or charges the budget.
#include "sandbox.h"

#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <stdlib.h>
#include <string.h>

// ---- base ------------------------------------------------------------------------------------------------------------

static int base_tostring(lua_State *L)
{
    luaL_checkany(L, 1);
    switch (lua_type(L, 1)) {
    case LUA_TNUMBER: lua_pushvalue(L, 1); lua_tostring(L, -1); break;
    case LUA_TSTRING: lua_pushvalue(L, 1); break;
    case LUA_TBOOLEAN: lua_pushstring(L, lua_toboolean(L, 1) ? "true" : "false"); break;
    default: lua_pushstring(L, luaL_typename(L, 1)); // no address
    }
    return 1;
}

typedef struct {
    int type; // ordered: booleans, numbers, strings
    double number;
    const char *string;
    size_t size;
    lua_Integer integer;
    int is_integer;
} sort_key;

static int compare_keys(const void *a, const void *b)
{
    const sort_key *x = a, *y = b;
    if (x->type != y->type)
        return x->type - y->type;
    if (x->type != LUA_TSTRING)
        return x->number != y->number ? (x->number > y->number) - (x->number < y->number)
                                      : (x->integer > y->integer) - (x->integer < y->integer);
    const int order = memcmp(x->string, y->string, x->size < y->size ? x->size : y->size);
    return order ? order : (x->size > y->size) - (x->size < y->size);
}

static int pairs_next(lua_State *L)
{
    for (;;) {
        const lua_Integer i = lua_tointeger(L, lua_upvalueindex(3)) + 1;
        lua_pushinteger(L, i);
        lua_replace(L, lua_upvalueindex(3));
        if (lua_rawgeti(L, lua_upvalueindex(2), i) == LUA_TNIL)
            return 1;
        lua_pushvalue(L, -1);
        if (lua_rawget(L, lua_upvalueindex(1)) != LUA_TNIL)
            return 2;
        lua_pop(L, 2); // removed during the loop
    }
}

static int base_pairs(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_settop(L, 1);
    size_t count = 0;
    for (lua_pushnil(L); lua_next(L, 1); lua_pop(L, 1)) {
        const int type = lua_type(L, -2);
        if (type != LUA_TSTRING && type != LUA_TNUMBER && type != LUA_TBOOLEAN)
            return luaL_error(L, "pairs: a key is a %s; allowed: strings, numbers, booleans", luaL_typename(L, -2));
        count++;
    }
    kg_sandbox_charge(L, count * 16);
    sort_key *keys = lua_newuserdatauv(L, count * sizeof *keys + 1, 0);
    size_t n = 0;
    for (lua_pushnil(L); lua_next(L, 1); lua_pop(L, 1)) {
        sort_key *key = &keys[n++];
        *key = (sort_key){.type = lua_type(L, -2)};
        if (key->type == LUA_TSTRING)
            key->string = lua_tolstring(L, -2, &key->size); // the table keeps it alive
        else if (key->type == LUA_TBOOLEAN)
            key->number = lua_toboolean(L, -2);
        else {
            key->number = lua_tonumber(L, -2);
            key->is_integer = lua_isinteger(L, -2);
            key->integer = key->is_integer ? lua_tointeger(L, -2) : 0;
        }
    }
    qsort(keys, count, sizeof *keys, compare_keys);
    lua_pushvalue(L, 1);
    lua_createtable(L, count > 1 << 20 ? 0 : (int)count, 0);
    for (size_t i = 0; i < count; i++) {
        if (keys[i].type == LUA_TSTRING)
            lua_pushlstring(L, keys[i].string, keys[i].size);
        else if (keys[i].type == LUA_TBOOLEAN)
            lua_pushboolean(L, keys[i].number != 0);
        else if (keys[i].is_integer)
            lua_pushinteger(L, keys[i].integer);
        else
            lua_pushnumber(L, keys[i].number);
        lua_rawseti(L, -2, (lua_Integer)i + 1);
    }
    lua_pushinteger(L, 0);
    lua_pushcclosure(L, pairs_next, 3);
    return 1;
}

static int undefined_global(lua_State *L)
{
    static const char *const removed[] = {
        "pcall", "xpcall", "io", "os", "load", "loadstring", "loadfile", "dofile", "debug", "package", "coroutine", "print", "next",
        "setmetatable", "getmetatable", "rawget", "rawset", "rawequal", "rawlen", "collectgarbage", "warn", "utf8", "_G",
    };
    lua_pushvalue(L, 2);
    if (lua_rawget(L, lua_upvalueindex(1)) != LUA_TNIL)
        return 1;
    const char *name = lua_tostring(L, 2);
    for (size_t i = 0; name && i < sizeof removed / sizeof *removed; i++)
        if (!strcmp(name, removed[i]))
            return luaL_error(L, "`%s` is not available in a spec", name);
    return luaL_error(L, "`%s` is not defined; a text needs quotes", name ? name : "?");
}

static int assigned_global(lua_State *L)
{
    const char *name = lua_tostring(L, 2);
    return luaL_error(L, "global `%s` cannot be assigned; write `local %s`", name ? name : "?", name ? name : "?");
}

// ---- string, table ---------------------------------------------------------------------------------------------------

// Not Lua's own: that loops in C for as long as it is told when the string is empty.
static int string_rep(lua_State *L)
{
    size_t size, separator_size;
    const char *string = luaL_checklstring(L, 1, &size), *separator = luaL_optlstring(L, 3, "", &separator_size);
    const lua_Integer count = luaL_checkinteger(L, 2);
    if (count <= 0 || size + separator_size == 0) {
        lua_pushliteral(L, "");
        return 1;
    }
    if ((size_t)count > KG_SANDBOX_STRING / (size + separator_size))
        return luaL_error(L, "string.rep: the result is longer than %d bytes", KG_SANDBOX_STRING);
    luaL_Buffer buffer;
    luaL_buffinit(L, &buffer);
    for (lua_Integer i = 0; i < count; i++) {
        if (i)
            luaL_addlstring(&buffer, separator, separator_size);
        luaL_addlstring(&buffer, string, size);
    }
    luaL_pushresult(&buffer);
    return 1;
}

// The end of a conversion's flags, width and precision: two digits each, as Lua demands.
static const char *conversion(const char *f)
{
    f += strspn(f, "-+ #0");
    for (int part = 0; part < 2; part++) {
        const size_t digits = strspn(f, "0123456789");
        if (digits > 2)
            return 0;
        f += digits;
        if (part || *f != '.')
            break;
        f++;
    }
    return f;
}

// Lua's own (the upvalue) without the conversions that show addresses.
static int string_format(lua_State *L)
{
    for (const char *f = luaL_checkstring(L, 1); *f; f++) {
        if (*f != '%')
            continue;
        f = conversion(f + 1);
        if (!f)
            return luaL_error(L, "string.format: a width or precision has more than 2 digits");
        if (!*f || !strchr("dixXcsfge%", *f))
            return luaL_error(L, "string.format: '%%%c' is not allowed; allowed: d i x X c s f g e %%", *f ? *f : ' ');
    }
    const int count = lua_gettop(L);
    for (int i = 2; i <= count; i++)
        if (lua_type(L, i) > LUA_TSTRING || lua_type(L, i) == LUA_TLIGHTUSERDATA)
            return luaL_error(L, "string.format: argument %d is a %s", i, luaL_typename(L, i));
    lua_pushvalue(L, lua_upvalueindex(1));
    lua_insert(L, 1);
    // Caught only to say where; nothing in Lua runs in between.
    const int status = lua_pcall(L, count, 1, 0);
    if (status == LUA_ERRRUN)
        return luaL_error(L, "string.format: %s", lua_tostring(L, -1));
    return status ? lua_error(L) : 1;
}

// Elements of the table at 1 from the argument i, else 1, to the next one, else its length: *first, and how many.
static lua_Integer check_range(lua_State *L, int i, lua_Integer *first)
{
    *first = luaL_optinteger(L, i, 1);
    const lua_Integer last = luaL_optinteger(L, i + 1, (lua_Integer)lua_rawlen(L, 1));
    const lua_Unsigned more = (lua_Unsigned)last - (lua_Unsigned)*first;
    return last < *first ? 0 : more < LUA_MAXINTEGER ? (lua_Integer)more + 1 : LUA_MAXINTEGER;
}

static int table_concat(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TTABLE);
    const char *separator = luaL_optstring(L, 2, "");
    lua_Integer first;
    const lua_Integer count = check_range(L, 3, &first);
    luaL_Buffer buffer;
    luaL_buffinit(L, &buffer);
    for (lua_Integer i = 0; i < count; i++) {
        kg_sandbox_charge(L, 1);
        if (i)
            luaL_addstring(&buffer, separator);
        if (lua_rawgeti(L, 1, first + i) != LUA_TSTRING && lua_type(L, -1) != LUA_TNUMBER)
            return luaL_error(L, "table.concat: element %I is a %s", (LUAI_UACINT)(first + i), luaL_typename(L, -1));
        luaL_addvalue(&buffer);
    }
    luaL_pushresult(&buffer);
    return 1;
}

static int table_insert(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TTABLE);
    const int arguments = lua_gettop(L);
    if (arguments != 2 && arguments != 3)
        return luaL_error(L, "table.insert: %d arguments; allowed: a table, a position or none, a value", arguments);
    const lua_Integer count = (lua_Integer)lua_rawlen(L, 1);
    const lua_Integer at = arguments == 3 ? luaL_checkinteger(L, 2) : count + 1;
    luaL_argcheck(L, at >= 1 && at <= count + 1, 2, "position out of bounds");
    kg_sandbox_charge(L, (size_t)(count + 1 - at));
    for (lua_Integer i = count; i >= at; i--) {
        lua_rawgeti(L, 1, i);
        lua_rawseti(L, 1, i + 1);
    }
    lua_rawseti(L, 1, at); // the last argument
    return 0;
}

static int table_unpack(lua_State *L)
{
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_Integer first;
    const lua_Integer count = check_range(L, 2, &first);
    if (count > 200)
        return luaL_error(L, "table.unpack: %I elements; at most 200", (LUAI_UACINT)count);
    luaL_checkstack(L, (int)count, 0);
    for (lua_Integer i = 0; i < count; i++)
        lua_rawgeti(L, 1, first + i);
    return (int)count;
}

static int undefined_member(lua_State *L)
{
    return luaL_error(L, "`%s.%s` is not available in a spec", lua_tostring(L, lua_upvalueindex(1)),
                      lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "?");
}

// ---- the globals -----------------------------------------------------------------------------------------------------

// Expects a library on top; leaves a table with only the listed members, whose other members raise an error.
static void restrict_library(lua_State *L, const char *name, const char *const *members)
{
    lua_newtable(L);
    for (; *members; members++) {
        lua_getfield(L, -2, *members);
        lua_setfield(L, -2, *members);
    }
    lua_newtable(L);
    lua_pushstring(L, name);
    lua_pushcclosure(L, undefined_member, 1);
    lua_setfield(L, -2, "__index");
    lua_setmetatable(L, -2);
    lua_remove(L, -2);
}

int kg_sandbox_library(lua_State *L)
{
    static const char *const base[] = {"assert", "error", "ipairs", "select", "tonumber", "type", 0};
    static const char *const math[] = {"abs", "ceil", "floor", "fmod", "huge", "max", "min", "pi", "sqrt", "tointeger", "type", 0};
    static const char *const string[] = {"byte", "char", "format", "len", "lower", "reverse", "sub", "upper", 0};
    static const char *const none[] = {0};
    static const luaL_Reg own[] = {{"tostring", base_tostring}, {"pairs", base_pairs}, {0, 0}};
    static const luaL_Reg tables[] = {{"concat", table_concat}, {"insert", table_insert}, {"unpack", table_unpack}, {0, 0}};
    const luaL_Reg *more = lua_touserdata(L, 1);

    lua_newtable(L); // the globals, at index 2
    lua_pushcfunction(L, luaopen_base);
    lua_call(L, 0, 1);
    for (int i = 0; base[i]; i++) {
        lua_getfield(L, -1, base[i]);
        lua_setfield(L, 2, base[i]);
    }
    lua_settop(L, 2);
    luaL_setfuncs(L, own, 0);
    if (more)
        luaL_setfuncs(L, more, 0);
    lua_newtable(L);
    lua_pushcclosure(L, kg_sandbox_require, 1);
    lua_setfield(L, 2, "require");

    lua_pushcfunction(L, luaopen_math);
    lua_call(L, 0, 1);
    restrict_library(L, "math", math);
    lua_setfield(L, 2, "math");

    lua_pushcfunction(L, luaopen_string);
    lua_call(L, 0, 1);
    restrict_library(L, "string", string);
    lua_getfield(L, -1, "format");
    lua_pushcclosure(L, string_format, 1);
    lua_setfield(L, -2, "format");
    lua_pushcfunction(L, string_rep);
    lua_setfield(L, -2, "rep");
    lua_pushliteral(L, ""); // methods of strings come from the same members
    lua_newtable(L);
    lua_pushvalue(L, -3);
    lua_setfield(L, -2, "__index");
    lua_setmetatable(L, -2);
    lua_pop(L, 1);
    lua_setfield(L, 2, "string");

    lua_newtable(L);
    restrict_library(L, "table", none);
    luaL_setfuncs(L, tables, 0);
    lua_setfield(L, 2, "table");

    lua_newtable(L); // what chunks see as their globals: empty, in front of the real ones
    lua_newtable(L);
    lua_pushvalue(L, 2);
    lua_pushcclosure(L, undefined_global, 1);
    lua_setfield(L, -2, "__index");
    lua_pushcfunction(L, assigned_global);
    lua_setfield(L, -2, "__newindex");
    lua_setmetatable(L, -2);
    lua_rawseti(L, LUA_REGISTRYINDEX, LUA_RIDX_GLOBALS);
    return 0;
}
