#include "schedule.h"

#include <stdlib.h>

#include "format.h"

typedef struct {
    int slot, join, leave; // first step, and the step at which it is gone
    int prompt;
    int most;              // leaves before it would have more tokens; 0: no limit
} visit;

static int larger(int a, int b) { return a > b ? a : b; }

static visit visit_of(const kg_spec *spec, int steps, int index)
{
    const int sink = spec->sink, page = spec->page, brief = sink > 1 ? sink - 1 : page / 2;
    const visit visits[KG_VISITS] = {
        {0, 0, steps, brief / 4 + 1, brief},                              // sinks only, for its whole life
        {1, 0, steps, sink + spec->key.window + 2 * page, 0},             // up to the edge of a page
        {2, 0, steps, steps < KG_STEPS_LONG ? sink + page + 1 : 1960, 0}, // past 2,000 tokens
        {3, steps / 30, steps, 37, 0},
        {4, 0, steps / 2, sink + spec->value.window + page + page / 3, 0},
        {5, 2, steps * 3 / 4, 64, 0},
        {4, steps / 2, steps, 211, 0},                                    // where the last but one was
        {0, steps / 5, steps, 1, 0},                                      // where the first was; no prompt
    };
    return visits[index];
}

// New tokens of a sequence at a step after its prompt: mostly 1, now and then 2 to 5, now and then it waits.
static int pace(int step, int slot)
{
    if ((step * 7 + slot * 5) % 29 == 3)
        return 2 + (step + slot) % 4;
    return (step + 3 * slot) % 41 != 7;
}

int kg_schedule_make(const kg_spec *spec, int steps, kg_schedule *schedule)
{
    *schedule = (kg_schedule){.steps = steps, .turns = calloc((size_t)steps * KG_SLOTS, sizeof *schedule->turns)};
    if (!schedule->turns)
        return KG_MACHINE;
    int least_window = spec->key.window;
    for (int i = 0; i < spec->more_count; i++)
        least_window = spec->more[i].key.window < least_window ? spec->more[i].key.window : least_window;
    kg_turn now[KG_SLOTS];
    int joined[KG_VISITS] = {0};
    for (int slot = 0; slot < KG_SLOTS; slot++)
        now[slot] = (kg_turn){.visit = -1};
    for (int step = 0; step < steps; step++) {
        int rows = 0, pages = 0;
        for (int slot = 0; slot < KG_SLOTS; slot++) {
            kg_turn *turn = &now[slot];
            turn->before += turn->fresh;
            turn->fresh = turn->visit < 0 ? 0 : pace(step, slot);
            if (turn->visit >= 0) {
                const visit v = visit_of(spec, steps, turn->visit);
                if (step >= v.leave || (v.most && turn->before + turn->fresh > v.most))
                    *turn = (kg_turn){.visit = -1};
            }
            for (int i = 0; turn->visit < 0 && i < KG_VISITS; i++) {
                const visit v = visit_of(spec, steps, i);
                if (v.slot == slot && v.join <= step && !joined[i]++)
                    *turn = (kg_turn){.visit = i, .fresh = v.prompt};
            }
            turn->row = rows;
            schedule->turns[step * KG_SLOTS + slot] = *turn;
            if (turn->visit < 0)
                continue;
            const int tokens = turn->before + turn->fresh;
            schedule->tokens[turn->visit] = tokens;
            schedule->total += turn->fresh;
            schedule->most_tokens = larger(schedule->most_tokens, tokens);
            rows += turn->fresh;
            // One more than is sealed: what a step may set aside for the next. Windows of keys are not larger than those of values.
            pages += 1 + kt_sealed_pages(tokens, spec->sink, least_window, spec->page);
        }
        schedule->most_rows = larger(schedule->most_rows, rows);
        schedule->most_pages = larger(schedule->most_pages, pages);
    }
    return KG_OK;
}

void kg_schedule_free(kg_schedule *schedule)
{
    free(schedule->turns);
    *schedule = (kg_schedule){0};
}
