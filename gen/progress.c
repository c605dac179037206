#include "progress.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { WIDTH = 30, SURE_AFTER = 2 }; // seconds until a rest is told

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

void kg_progress_begin(kg_progress *progress, const char *label, long total)
{
    const char *terminal = getenv("TERM");
    *progress = (kg_progress){.label = label, .total = total > 0 ? total : 1, .percent = -1, .begun = now()};
    progress->shown = isatty(STDERR_FILENO) && !(terminal && !strcmp(terminal, "dumb"));
    kg_progress_to(progress, 0);
}

void kg_progress_to(kg_progress *progress, long done)
{
    progress->done = done < progress->total ? done : progress->total;
    const int percent = (int)(100 * progress->done / progress->total);
    if (!progress->shown || percent == progress->percent)
        return;
    progress->percent = percent;
    char bar[WIDTH + 1];
    const int filled = percent * WIDTH / 100;
    memset(bar, '#', (size_t)filled);
    memset(bar + filled, '.', (size_t)(WIDTH - filled));
    bar[WIDTH] = 0;
    const double passed = now() - progress->begun;
    fprintf(stderr, "\r%s [%s] %3d %%", progress->label, bar, percent);
    if (progress->done && passed > SURE_AFTER)
        fprintf(stderr, ", %.0f s left \033[K", passed * (double)(progress->total - progress->done) / (double)progress->done);
    fflush(stderr);
}

void kg_progress_clear(kg_progress *progress)
{
    if (!progress->shown)
        return;
    progress->percent = -1;
    fprintf(stderr, "\r\033[K");
    fflush(stderr);
}

void kg_progress_end(kg_progress *progress)
{
    kg_progress_clear(progress);
    progress->shown = false;
}

bool kg_colour(FILE *stream)
{
    const char *no = getenv("NO_COLOR");
    return isatty(fileno(stream)) && !(no && *no);
}
