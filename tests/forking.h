// What the suites of forks and truncation share: a world, its batch, and steps that are not attended.
#ifndef KT_TEST_FORKING_H
#define KT_TEST_FORKING_H

#include "recorder.h"
#include "suite.h"

extern ref_world world;
extern kt_batch *batch;

// Opens `world` with pages of 32 tokens; mixed: with a second layer that is kept otherwise (ref_mix), its windows larger.
void open_world(int sink, int key_window, int value_window, int pages, int max_sequences, int spare_slabs);
void open_mixed_world(int sink, int key_window, int value_window, int pages, int max_sequences, int spare_slabs);
void close_world(void);
// A step of one sequence alone, which nobody attends.
void step(ref_sequence *s, int fresh);
void end(ref_sequence *s);
// A fork, which is a reference sequence of its own.
void forked(const ref_sequence *from, ref_sequence *s);
void truncated(ref_sequence *s, int tokens);
// What kt_sequence_undo says.
int undo_of(const ref_sequence *s);
kt_cache_info query(void);
// Sealed pages of a part, in the first layer.
int sealed(kt_part part, int tokens);
bool same_pages(int a, int b);
// Fewest tokens with the pages of `tokens` tokens.
int least_of(int tokens);
// Whether a step needs a spare slab.
bool moves(int tokens, int fresh);
// Every block and every token of two sequences.
void check_same(const ref_sequence *a, const ref_sequence *b);
// Pages are counted by who has them; those free are the others; a page that has yet to be sealed is in one list only.
void check_counts(void);
// Nothing is left in the pools' use.
void check_empty(void);

#endif
