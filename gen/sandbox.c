#define _GNU_SOURCE
#include "sandbox.h"

#include "text.h"

#include <lauxlib.h>
#include <lua.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { HOOK = 1000, BYTES_PER_UNIT = 64, SECONDS = 10, SOURCES = 64 };

typedef enum { NOT_REFUSED, REFUSED_MEMORY, REFUSED_STRING, REFUSED_MALLOC } refusal;

struct kg_sandbox {
    lua_State *lua;
    char *folders[2], *real[2]; // as given and resolved; null: none
    size_t used;
    long budget;
    clock_t started;
    refusal refused;
    char dead[512];             // why, once the budget is spent
    struct { char *name, *text; } sources[SOURCES];
    int source_count;
    const char *loading[SOURCES]; // modules being required, outermost first
    int loading_count;
};

static kg_sandbox *sandbox_of(lua_State *L) { return *(kg_sandbox **)lua_getextraspace(L); }

// ---- limits ----------------------------------------------------------------------------------------------------------

static void hook(lua_State *L, lua_Debug *ar)
{
    kg_sandbox *s = sandbox_of(L);
    if (!*s->dead) {
        s->budget -= HOOK;
        // Time is the last resort, for work that the budget counts too low.
        const int late = clock() - s->started > (clock_t)SECONDS * CLOCKS_PER_SEC;
        if (s->budget > 0 && !late)
            return;
        lua_getinfo(L, "Sl", ar);
        char place[256] = "";
        if (ar->currentline > 0)
            snprintf(place, sizeof place, "%s:%d: ", ar->source + (*ar->source == '@'), ar->currentline);
        if (late)
            snprintf(s->dead, sizeof s->dead, "%sstopped: it ran for more than %d seconds", place, SECONDS);
        else
            snprintf(s->dead, sizeof s->dead, "%sstopped: it took more than %d steps", place, KG_SANDBOX_BUDGET);
        lua_sethook(L, hook, LUA_MASKCOUNT, 1); // from now on every instruction fails
    }
    lua_pushstring(L, s->dead);
    lua_error(L);
}

static void charge(kg_sandbox *s, size_t units)
{
    s->budget -= units > KG_SANDBOX_BUDGET ? KG_SANDBOX_BUDGET : (long)units;
    if (s->budget <= 0 && s->lua)
        lua_sethook(s->lua, hook, LUA_MASKCOUNT, 1); // the next instruction ends it
}

void kg_sandbox_charge(lua_State *L, size_t units) { charge(sandbox_of(L), units); }

static void *allocate(void *user, void *block, size_t old, size_t size)
{
    kg_sandbox *s = user;
    const size_t before = block ? old : 0;
    if (!size) {
        free(block);
        s->used -= before;
        return 0;
    }
    if (size > before) {
        refusal why = NOT_REFUSED;
        if (s->used - before + size > KG_SANDBOX_MEMORY)
            why = REFUSED_MEMORY;
        else if (!block && old == LUA_TSTRING && size > KG_SANDBOX_STRING + 64) // 64: the header of a string
            why = REFUSED_STRING;
        if (why) {
            s->refused = why;
            return 0;
        }
        charge(s, (size - before) / BYTES_PER_UNIT);
    }
    void *grown = realloc(block, size);
    if (!grown) {
        s->refused = REFUSED_MALLOC;
        return size <= before ? block : 0; // Lua relies on shrinking
    }
    s->used += size - before;
    return grown;
}

// ---- require ---------------------------------------------------------------------------------------------------------

// "a.b" -> "a/b.lua". Letters, digits, _ and - only, so that no name climbs.
static int module_file(const char *name, char *file, size_t size)
{
    int letters = 0;
    size_t n = 0;
    for (const char *c = name; *c; c++) {
        const int letter = (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || (*c >= '0' && *c <= '9') || *c == '_' || *c == '-';
        if ((!letter && *c != '.') || (*c == '.' && !letters) || n + 5 >= size)
            return 0;
        letters = letter ? letters + 1 : 0;
        file[n++] = *c == '.' ? '/' : *c;
    }
    memcpy(file + n, ".lua", 5);
    return letters > 0;
}

// Takes `text` over; returns the source's index, or -1 when there are too many.
static int add_source(kg_sandbox *s, const char *name, char *text)
{
    char *copy = s->source_count < SOURCES ? strdup(name) : 0;
    if (!copy) {
        free(text);
        return -1;
    }
    s->sources[s->source_count].name = copy;
    s->sources[s->source_count].text = text;
    return s->source_count++;
}

static int load_source(lua_State *L, const char *name, const char *text, size_t size)
{
    lua_pushfstring(L, "@%s", name);
    const int status = luaL_loadbufferx(L, text, size, lua_tostring(L, -1), "t");
    lua_remove(L, -2);
    return status;
}

// Finds, reads and records a module; raises an error if there is none.
static int find_module(lua_State *L, const char *name, const char *file)
{
    kg_sandbox *s = sandbox_of(L);
    for (int i = 0; i < 2; i++) {
        char path[KG_PATH], real[KG_PATH], error[KG_ERROR];
        if (!s->folders[i])
            continue;
        const char *folder = strcmp(s->folders[i], ".") ? s->folders[i] : 0;
        if (snprintf(path, sizeof path, "%s%s%s", folder ? folder : "", folder ? "/" : "", file) >= (int)sizeof path || !realpath(path, real))
            continue;
        const size_t root = strlen(s->real[i]);
        if (strncmp(real, s->real[i], root) || (real[root] != '/' && root > 1))
            return luaL_error(L, "require \"%s\": %s leads out of its folder", name, path);
        char *text;
        size_t size;
        if (kg_file_read(path, KG_SANDBOX_FILE, &text, &size, error, sizeof error))
            return luaL_error(L, "require \"%s\": %s", name, error);
        if (strlen(text) != size) {
            free(text);
            return luaL_error(L, "require \"%s\": %s is not text", name, path);
        }
        const int source = add_source(s, path, text);
        return source < 0 ? luaL_error(L, "require \"%s\": more than %d files", name, SOURCES) : source;
    }
    return luaL_error(L, "require \"%s\": no %s in the spec's folder or the shipped specs", name, file);
}

int kg_sandbox_require(lua_State *L)
{
    kg_sandbox *s = sandbox_of(L);
    const char *name = luaL_checkstring(L, 1);
    char file[256];
    lua_settop(L, 1);
    if (!module_file(name, file, sizeof file))
        return luaL_error(L, "require \"%s\": not a module name; allowed: words joined by dots, as in \"models.qwen3_8b\"", name);
    lua_pushvalue(L, 1);
    if (lua_rawget(L, lua_upvalueindex(1)) != LUA_TNIL)
        return 1;
    for (int i = 0; i < s->loading_count; i++) {
        if (strcmp(s->loading[i], name))
            continue;
        luaL_Buffer cycle;
        luaL_buffinit(L, &cycle);
        for (; i < s->loading_count; i++) {
            luaL_addstring(&cycle, s->loading[i]);
            luaL_addstring(&cycle, " -> ");
        }
        luaL_addstring(&cycle, name);
        luaL_pushresult(&cycle);
        return luaL_error(L, "require \"%s\": a cycle: %s", name, lua_tostring(L, -1));
    }
    const int source = find_module(L, name, file);
    const char *text = s->sources[source].text;
    if (*text == LUA_SIGNATURE[0])
        return luaL_error(L, "require \"%s\": %s is compiled Lua; a module is text", name, s->sources[source].name);
    if (load_source(L, s->sources[source].name, text, strlen(text)))
        return lua_error(L);
    s->loading[s->loading_count++] = name; // at most SOURCES: each has a source
    lua_call(L, 0, 1);
    s->loading_count--;
    if (lua_isnil(L, -1))
        return luaL_error(L, "require \"%s\": %s returns nothing", name, s->sources[source].name);
    lua_pushvalue(L, 1);
    lua_pushvalue(L, -2);
    lua_rawset(L, lua_upvalueindex(1));
    return 1;
}

// ---- the state -------------------------------------------------------------------------------------------------------

kg_sandbox *kg_sandbox_open(const char *folder, const char *shipped, const luaL_Reg *more)
{
    kg_sandbox *s = calloc(1, sizeof *s);
    if (!s)
        return 0;
    s->budget = KG_SANDBOX_BUDGET;
    const char *folders[2] = {folder, shipped};
    for (int i = 0; i < 2; i++) {
        s->real[i] = folders[i] ? realpath(folders[i], 0) : 0;
        s->folders[i] = s->real[i] ? strdup(folders[i]) : 0;
    }
    s->lua = lua_newstate(allocate, s);
    if (!s->lua)
        goto fail;
    *(kg_sandbox **)lua_getextraspace(s->lua) = s;
    lua_pushcfunction(s->lua, kg_sandbox_library);
    lua_pushlightuserdata(s->lua, (void *)more);
    if (lua_pcall(s->lua, 1, 0, 0))
        goto fail;
    s->budget = KG_SANDBOX_BUDGET;
    lua_sethook(s->lua, hook, LUA_MASKCOUNT, HOOK);
    return s;
fail:
    kg_sandbox_close(s);
    return 0;
}

void kg_sandbox_close(kg_sandbox *s)
{
    if (!s)
        return;
    if (s->lua)
        lua_close(s->lua);
    for (int i = 0; i < s->source_count; i++) {
        free(s->sources[i].name);
        free(s->sources[i].text);
    }
    for (int i = 0; i < 2; i++) {
        free(s->folders[i]);
        free(s->real[i]);
    }
    free(s);
}

lua_State *kg_sandbox_lua(kg_sandbox *s) { return s->lua; }

const char *kg_sandbox_source(const kg_sandbox *s, int i, const char **text)
{
    if (i >= s->source_count)
        return 0;
    *text = s->sources[i].text;
    return s->sources[i].name;
}

// Lua shortens a long file name to "..." and its end: puts the whole name back. A message without a place gets the file.
static int fail_at_place(const kg_sandbox *s, const char *file, const char *message, char *error, size_t error_size)
{
    for (int i = 0; i < s->source_count; i++) {
        const char *name = s->sources[i].name;
        const size_t length = strlen(name), kept = LUA_IDSIZE - 1 - 3;
        if (!strncmp(message, name, length) && message[length] == ':')
            return kg_fail(KG_USER, error, error_size, "%s", message);
        if (length > kept && !strncmp(message, "...", 3) && !strncmp(message + 3, name + length - kept, kept))
            return kg_fail(KG_USER, error, error_size, "%s%s", name, message + 3 + kept);
    }
    return kg_fail(KG_USER, error, error_size, "%s: %s", file, message);
}

typedef struct {
    const char *name, *text;
    size_t size;
} chunk;

static int run_chunk(lua_State *L)
{
    const chunk *c = lua_touserdata(L, 1);
    if (load_source(L, c->name, c->text, c->size))
        return lua_error(L);
    lua_call(L, 0, 1);
    return 1;
}

int kg_sandbox_run(kg_sandbox *s, const char *name, const char *text, size_t size, char *error, size_t error_size)
{
    lua_State *L = s->lua;
    if (*s->dead)
        return kg_fail(KG_USER, error, error_size, "%s", s->dead);
    if (size && *text == LUA_SIGNATURE[0])
        return kg_fail(KG_USER, error, error_size, "%s:1: compiled Lua; a spec is text", name);
    char *copy = strndup(text, size);
    if (!copy)
        return kg_fail(KG_MACHINE, error, error_size, "%s: out of memory", name);
    if (strlen(copy) != size) {
        free(copy);
        return kg_fail(KG_USER, error, error_size, "%s: not text: it has a null byte", name);
    }
    if (add_source(s, name, copy) < 0)
        return kg_fail(KG_USER, error, error_size, "%s: more than %d files", name, SOURCES);
    chunk c = {name, text, size};
    s->started = clock();
    s->loading_count = 0;
    lua_pushcfunction(L, run_chunk);
    lua_pushlightuserdata(L, &c);
    const int status = lua_pcall(L, 1, 1, 0);
    if (!status && !*s->dead)
        return KG_OK;
    int code = KG_USER;
    if (*s->dead)
        kg_fail(code, error, error_size, "%s", s->dead);
    else if (status == LUA_ERRMEM && s->refused == REFUSED_MALLOC)
        code = kg_fail(KG_MACHINE, error, error_size, "%s: out of memory", name);
    else if (status == LUA_ERRMEM && s->refused == REFUSED_STRING)
        kg_fail(code, error, error_size, "%s: stopped: a string longer than %d bytes", name, KG_SANDBOX_STRING);
    else if (status == LUA_ERRMEM)
        kg_fail(code, error, error_size, "%s: stopped: it needs more than %d MB of memory", name, KG_SANDBOX_MEMORY >> 20);
    else if (lua_type(L, -1) == LUA_TSTRING)
        fail_at_place(s, name, lua_tostring(L, -1), error, error_size);
    else
        kg_fail(code, error, error_size, "%s: error with a %s, not a message", name, luaL_typename(L, -1));
    lua_pop(L, 1);
    return code;
}
