// Who is served when in a scenario: a plan of sequences that join, wait, take several tokens at once and leave.
#ifndef KG_SCHEDULE_H
#define KG_SCHEDULE_H

#include "spec.h"

enum {
    KG_SLOTS = 6,
    KG_VISITS = 8,
    KG_STEPS = 320,      // the default
    KG_STEPS_LONG = 100, // with fewer steps no sequence is long
};

// What one slot does in one step. A visit is one sequence's stay in a slot; its first turn is its prompt.
typedef struct {
    int visit;  // -1: the slot is empty
    int before; // tokens of the sequence before the step; 0: it joins
    int fresh;  // new tokens; 0: it waits
    int row;    // the first of them among the step's rows
} kg_turn;

typedef struct {
    int steps;
    kg_turn *turns;          // [steps, KG_SLOTS]
    int tokens[KG_VISITS];   // with which each visit ends
    int most_rows, most_tokens; // rows of a step; tokens of a sequence
    int most_pages;          // at once
    long total;              // tokens of all visits
} kg_schedule;

// The visits: one shorter than the sinks for its whole life; one whose prompt ends at the edge of a page; one past 2,000
// tokens; five uneven ones, of which two take over slots that others left. Returns an exit code: without memory KG_MACHINE.
int kg_schedule_make(const kg_spec *spec, int steps, kg_schedule *schedule);
void kg_schedule_free(kg_schedule *schedule);

#endif
