// Lua for data: no files, no clock, no addresses, bounded memory and work. The same text always gives the same result.
//
// Chunks see: assert, error, ipairs, pairs (in sorted order), select, tonumber, tostring, type, require; math (abs, ceil,
// floor, fmod, huge, max, min, pi, sqrt, tointeger, type); string (byte, char, format, len, lower, rep, reverse, sub, upper);
// table (concat, insert, unpack). There are no metatables and no pcall: nothing can catch the end of the budget. Globals
// cannot be assigned, and reading an undefined one is an error.
#ifndef KG_SANDBOX_H
#define KG_SANDBOX_H

#include <stddef.h>

struct lua_State;
struct luaL_Reg;
typedef struct kg_sandbox kg_sandbox;

enum { KG_SANDBOX_MEMORY = 64 << 20, KG_SANDBOX_BUDGET = 20000000, KG_SANDBOX_STRING = 64 << 10, KG_SANDBOX_FILE = 1 << 20 };

// `require` looks in `folder`, then in `shipped`; either may be null. `more` are further globals, ending in a null name; may be
// null. Returns null without memory. Close frees everything.
kg_sandbox *kg_sandbox_open(const char *folder, const char *shipped, const struct luaL_Reg *more);
void kg_sandbox_close(kg_sandbox *sandbox);

// The state, for reading results. Outside kg_sandbox_run, whatever may allocate in it belongs under lua_pcall.
struct lua_State *kg_sandbox_lua(kg_sandbox *sandbox);

// Runs a chunk of text; `name` is its file in messages. On KG_OK its first result (or nil) is on top of the stack. Else
// nothing is, and the message begins with the place: KG_USER; KG_MACHINE when malloc itself failed. Once the budget (about
// one unit per instruction and 64 allocated bytes) is spent, the sandbox is dead: every run gives the same message.
int kg_sandbox_run(kg_sandbox *sandbox, const char *name, const char *text, size_t size, char *error, size_t error_size);

// The texts that were run or required so far, in that order: returns the name of the i-th, null at the end.
const char *kg_sandbox_source(const kg_sandbox *sandbox, int i, const char **text);

// ---- between sandbox.c and sandbox_library.c -------------------------------------------------------------------------

// Takes units of work, done in C, off the budget.
void kg_sandbox_charge(struct lua_State *L, size_t units);
// Upvalue 1: the table of loaded modules.
int kg_sandbox_require(struct lua_State *L);
// Makes the globals; argument 1: a light userdata with the further ones.
int kg_sandbox_library(struct lua_State *L);

#endif
