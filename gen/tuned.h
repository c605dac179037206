// The tuned table: which attend kernels were measured to be the fastest, by what shapes a kernel and by (sequences, context). A file
// of JSON, specs/tuned/h100.json or what KT_TUNED names, read wherever a package is made and written by kittygen tune.
#ifndef KG_TUNED_H
#define KG_TUNED_H

#include "layout.h"
#include "text.h"

// The fastest measured for so many sequences of so many tokens each, the new one included.
typedef struct {
    int sequences, context;
    int warps, stages, tiles, blocks;
    double us;      // of attend, per layer
    char date[11];  // "2026-11-24"
} kg_tuned_row;

// What was measured of one kind of kernel, on one card; rows ascend by sequences, then context, none twice, with at most
// KG_TUNED_KERNELS different kernels.
typedef struct {
    int head_dim, group_heads, page, block_bytes; // what they are for; sets ascend by it, then by
    int kv_heads;                                 // of the model that was measured: as many sequences are so much work
    char spec[2 * KG_NAME], card[64];             // what was measured, and on what
    kg_tuned_row rows[KG_ATTEND_ROWS - 1];
    int count;
} kg_tuned_set;

typedef struct {
    kg_tuned_set *sets;
    int count;
} kg_tuned;

enum { KG_TUNED_KERNELS = 4 };

// The table's file: KT_TUNED, else tuned/h100.json of the shipped specs. Functions return an exit code (text.h); `error` has KG_ERROR bytes.
int kg_tuned_path(char path[KG_PATH], char *error);
// Reads the table; a fault in it is KG_USER: "FILE: tuned[2].rows[0].warps: 40 is not an integer in 1..16". Freed by kg_tuned_free in
// any case.
int kg_tuned_read(const char *path, kg_tuned *table, char *error);
// The table as its file has it.
void kg_tuned_text(const kg_tuned *table, kg_text *out);
// Writes the table, whole or not at all.
int kg_tuned_write(const char *path, const kg_tuned *table, char *error);
void kg_tuned_free(kg_tuned *table);

// An empty set for a format and a number of KV heads.
kg_tuned_set kg_tuned_set_for(const kt_format *format, int kv_heads);
// The set of just this format and number of KV heads, or null.
kg_tuned_set *kg_tuned_find(const kg_tuned *table, const kt_format *format, int kv_heads);
// The set that a format goes by: its own; else, of those with the same head_dim, page and passes, the same sides of four and
// eight query heads a pass, and blocks between 4/5 and 5/4 as large, the nearest in size, then in query heads, then in KV heads, then the first; else null.
kg_tuned_set *kg_tuned_nearest(const kg_tuned *table, const kt_format *format, int kv_heads);
// Puts a set in its place, instead of one that is for the same.
int kg_tuned_put(kg_tuned *table, const kg_tuned_set *set, char *error);

// Pages by which the runtime looks up sequences of so many tokens: a power of two.
int kg_tuned_pages(const kt_format *format, int context);

// The plan of a package: the rows of the set that it goes by, each for up to so many sequences and pages of the longest. The longest of
// all rows are for longer ones too, those of the most sequences for more; what no row takes gets the kernel of the row with the most
// tokens. Where KV heads differ, numbers of sequences are those that make as many heads; rows for less than one sequence are left out,
// and so are rows of another format's set that do not fit; in a set of its own that is a fault of the table. Without a set: the rules
// (kg_attend_rules). `from` (may be null) becomes a copy of the set, with a head_dim of 0 for none.
int kg_tuned_plan(const kt_format *format, int kv_heads, kg_attend_plan *plan, kg_tuned_set *from, char *error);

#endif
