#include "template.h"

#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TEMPLATE_LIMIT = 1 << 20 };

typedef struct {
    const char *folder;
    kg_text *out;
} expansion;

static const char registry_key = 0;

static expansion *of_state(lua_State *lua)
{
    lua_rawgetp(lua, LUA_REGISTRYINDEX, &registry_key);
    expansion *e = lua_touserdata(lua, -1);
    lua_pop(lua, 1);
    return e;
}

// Turns template text into a Lua chunk of the same number of lines, so that Lua's own messages name the template's lines.
static void to_chunk(const char *text, kg_text *chunk)
{
    while (*text) {
        const size_t length = strcspn(text, "\n");
        const char *code = text + strspn(text, " ");
        if (!strncmp(code, "//@", 3)) {
            kg_text_bytes(chunk, code + 3, length - (size_t)(code + 3 - text));
        } else {
            kg_text_add(chunk, "emit(\"");
            for (size_t i = 0; i < length; i++) {
                size_t name = 0;
                if (text[i] == '$')
                    name = strspn(text + i + 1, "abcdefghijklmnopqrstuvwxyz_");
                if (name) {
                    kg_text_add(chunk, "\",need(\"");
                    kg_text_bytes(chunk, text + i + 1, name);
                    kg_text_add(chunk, "\"),\"");
                    i += name;
                } else if (text[i] == '"' || text[i] == '\\') {
                    kg_text_addf(chunk, "\\%c", text[i]);
                } else {
                    kg_text_bytes(chunk, text + i, 1);
                }
            }
            kg_text_add(chunk, "\\n\")");
        }
        text += length;
        if (*text == '\n')
            text++;
        kg_text_add(chunk, "\n");
    }
}

static int lua_emit(lua_State *lua)
{
    expansion *e = of_state(lua);
    for (int i = 1; i <= lua_gettop(lua); i++)
        kg_text_add(e->out, luaL_checkstring(lua, i));
    return 0;
}

static int lua_need(lua_State *lua)
{
    lua_pushglobaltable(lua);
    lua_pushstring(lua, luaL_checkstring(lua, 1));
    if (lua_rawget(lua, -2) == LUA_TNIL)
        return luaL_error(lua, "$%s has no value", lua_tostring(lua, 1));
    return 1;
}

// A condition on a name that nobody gave a value would be false without a word; locals of a file are not known in those it includes.
static int lua_unknown(lua_State *lua)
{
    return luaL_error(lua, "'%s' is neither a value nor a local of this file", luaL_tolstring(lua, 2, 0));
}

// Leaves an error message on the stack and returns nonzero on failure: Lua errors must not jump past owned memory.
static int run_file(lua_State *lua, const char *file)
{
    char path[KG_PATH], error[KG_ERROR];
    char *text = NULL;
    size_t size;
    kg_text chunk = {0};
    snprintf(path, sizeof path, "%s/%s", of_state(lua)->folder, file);
    int failed = kg_file_read(path, TEMPLATE_LIMIT, &text, &size, error, sizeof error);
    if (failed) {
        lua_pushstring(lua, error);
        return failed;
    }
    to_chunk(text, &chunk);
    char name[KG_PATH + 1];
    snprintf(name, sizeof name, "@%s", file);
    if (chunk.failed) {
        lua_pushliteral(lua, "out of memory");
        failed = 1;
    } else {
        failed = luaL_loadbufferx(lua, chunk.data, chunk.size, name, "t") || lua_pcall(lua, 0, 0, 0);
    }
    kg_text_free(&chunk);
    free(text);
    return failed;
}

static int lua_include(lua_State *lua)
{
    return run_file(lua, luaL_checkstring(lua, 1)) ? lua_error(lua) : 0;
}

int kg_template_expand(const char *folder, const char *file, const kg_template_value *values, int count, kg_text *out,
                       char *error, size_t error_size)
{
    static const luaL_Reg libraries[] = {{LUA_GNAME, luaopen_base}, {LUA_STRLIBNAME, luaopen_string},
                                         {LUA_TABLIBNAME, luaopen_table}, {LUA_MATHLIBNAME, luaopen_math}};
    static const luaL_Reg functions[] = {{"emit", lua_emit}, {"need", lua_need}, {"include", lua_include}};
    expansion e = {folder, out};
    lua_State *lua = luaL_newstate();
    if (!lua)
        return kg_fail(KG_MACHINE, error, error_size, "out of memory");
    for (size_t i = 0; i < sizeof libraries / sizeof *libraries; i++) {
        luaL_requiref(lua, libraries[i].name, libraries[i].func, 1);
        lua_pop(lua, 1);
    }
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        lua_pushcfunction(lua, functions[i].func);
        lua_setglobal(lua, functions[i].name);
    }
    lua_pushglobaltable(lua);
    lua_createtable(lua, 0, 1);
    lua_pushcfunction(lua, lua_unknown);
    lua_setfield(lua, -2, "__index");
    lua_setmetatable(lua, -2);
    lua_pop(lua, 1);
    lua_pushlightuserdata(lua, &e);
    lua_rawsetp(lua, LUA_REGISTRYINDEX, &registry_key);
    for (int i = 0; i < count; i++) {
        if (values[i].value)
            lua_pushstring(lua, values[i].value);
        else
            lua_pushinteger(lua, values[i].number);
        lua_setglobal(lua, values[i].name);
    }
    int code = KG_OK;
    if (run_file(lua, file))
        code = kg_fail(KG_MACHINE, error, error_size, "template %s: %s", file, lua_tostring(lua, -1));
    else if (out->failed)
        code = kg_fail(KG_MACHINE, error, error_size, "template %s: out of memory", file);
    lua_close(lua);
    return code;
}
