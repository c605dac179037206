// What the parts of the GPU suite share: failures, packages, and the entry of each part.
#ifndef GPU_SUPPORT_H
#define GPU_SUPPORT_H

#include "command.h"
#include "kitty.h"
#include "layout.h"
#include "spec.h"
#include "text.h"

// Each returns an exit code (text.h). argv[0] is the part's name.
int part_matrix(int argc, char **argv);
int part_agree(int argc, char **argv);
int part_sanitize(int argc, char **argv);
int part_repeat(int argc, char **argv);
int part_capture(int argc, char **argv);
int part_fork(int argc, char **argv);
int part_time(int argc, char **argv);

// What went wrong last; one thread.
extern char failure[KG_ERROR];
// Sets `failure` and returns `code`.
int fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));
// The same for a refused call of libkitty: its name (up to a bracket), status and message. KG_MACHINE or KG_FAILED.
int refused(const char *call, kt_status status);

// Leave the function with an exit code if a call of libkitty, or one that returns an exit code, fails.
#define CALL(call)                           \
    do {                                     \
        const kt_status status_ = (call);    \
        if (status_)                         \
            return refused(#call, status_);  \
    } while (0)
#define TRY(call)                            \
    do {                                     \
        const int code_ = (call);            \
        if (code_)                           \
            return code_;                    \
    } while (0)

double now(void); // seconds

// Names of the .lua files in a folder, sorted, without the ending.
enum { MOST_LISTED = 64 };
int list_specs(const char *folder, char names[MOST_LISTED][KG_NAME], int *count);
// One spec; more or fewer are an error.
int load_spec(const char *name, const char *dtype, kg_spec *spec);
// Of a spec whose layers differ: one of so many layers that are kept in each of its ways in turn. Others stay as they are.
void spread_ways(kg_spec *spec, int layers);
// KG_USER where layers differ: what a part shows is of one kernel.
int require_alike(const kg_spec *spec);
// Emits the spec into a temporary folder and opens it on each device that has a place. config: the number of the attend
// kernel that is to be used (the last, where there are fewer); -1: whichever the runtime selects.
int open_engines(const kg_spec *spec, int config, kt_engine **cuda, kt_engine **cpu);
const kt_format *layer_format(const kt_engine *engine, int layer);
// Adds to the budget what so many pages and slabs of the cache's layers and KV heads take.
int add_budget(const kt_engine *engine, kt_cache_args *cache, uint64_t pages, uint64_t slabs);
// tests/data/NAME, under $KT_TEST_DATA if set, else under the working folder.
const char *data_path(const char *name, char path[KG_PATH]);
// A whole decimal number in [low, high].
int read_integer(const char *option, const char *text, int low, int high, int *number);
double error_limit(int dtype); // of a kernel, relative L2

// Of a tensor [rows, heads, head_dim].
static inline size_t elements(int rows, int heads, int head_dim) { return (size_t)rows * (size_t)heads * (size_t)head_dim; }

#endif
