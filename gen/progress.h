// A progress bar on stderr with the time that is left, only where that is a terminal, and the rule for colour.
#ifndef KG_PROGRESS_H
#define KG_PROGRESS_H

#include <stdbool.h>
#include <stdio.h>

typedef struct {
    const char *label; // must outlive the bar
    long total, done;
    int percent;       // as drawn; -1: nothing yet
    bool shown;
    double begun;      // seconds
} kg_progress;

// Shown on stderr if that is a terminal; the other calls do nothing if not.
void kg_progress_begin(kg_progress *progress, const char *label, long total);
void kg_progress_to(kg_progress *progress, long done);
// Wipes the bar, so that what is printed next starts on a clean line; kg_progress_to draws it again.
void kg_progress_clear(kg_progress *progress);
// Wipes it for good. May be called twice.
void kg_progress_end(kg_progress *progress);

// Whether to colour text on that stream: a terminal, and NO_COLOR unset or empty.
bool kg_colour(FILE *stream);
#define KG_RED "\033[31m"
#define KG_GREEN "\033[32m"
#define KG_BOLD "\033[1m"
#define KG_PLAIN "\033[0m"

#endif
