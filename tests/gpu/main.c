// gpu_suite: what only a GPU can show. Run it from the repository's root.
#include <stdio.h>
#include <string.h>

#include "support.h"

typedef struct {
    const char *name, *about;
    int (*run)(int argc, char **argv);
    int in_all;
} part;

static const part parts[] = {
    {"matrix", "every model, variant and dtype: kernels against float64, pages against the CPU's bytes", part_matrix, 1},
    {"agree", "the emulator's cases again: blocks byte for byte, attention within rounding", part_agree, 1},
    {"repeat", "1,000 launches over one state give the same bits", part_repeat, 1},
    {"capture", "a decode step as a CUDA graph, replayed over page turns and past its reservation", part_capture, 1},
    {"fork", "sequences that fork and are truncated, on the GPU and the CPU at once", part_fork, 1},
    {"sanitize", "short runs of the kernels, meant to be run under compute-sanitizer", part_sanitize, 0},
    {"time", "microseconds of attend per layer", part_time, 0},
};
enum { PARTS = sizeof parts / sizeof *parts };

static int usage(FILE *stream, int code)
{
    fprintf(stream, "usage: gpu_suite PART [options]\n\n  %-10s matrix, agree, repeat, capture and fork\n", "all");
    for (int i = 0; i < PARTS; i++)
        fprintf(stream, "  %-10s %s\n", parts[i].name, parts[i].about);
    fprintf(stream, "\ngpu_suite PART --help lists a part's options.\n");
    return code;
}

static int run(const part *p, int argc, char **argv)
{
    *failure = 0;
    const int code = p->run(argc, argv);
    fflush(stdout);
    if (code && *failure)
        fprintf(stderr, "gpu_suite %s: %s\n", p->name, failure);
    return code;
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc < 2)
        return usage(stderr, KG_USER);
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))
        return usage(stdout, KG_OK);
    if (!strcmp(argv[1], "all")) {
        int worst = KG_OK;
        if (argc > 2)
            return usage(stderr, KG_USER);
        for (int i = 0; i < PARTS; i++) {
            char name[32];
            char *words[] = {name, NULL};
            if (!parts[i].in_all)
                continue;
            snprintf(name, sizeof name, "%s", parts[i].name);
            printf("== %s\n", name);
            const int code = run(&parts[i], 1, words);
            printf("%s: %s\n\n", name, code ? "FAILED" : "ok");
            worst = code > worst ? code : worst;
        }
        return worst;
    }
    for (int i = 0; i < PARTS; i++)
        if (!strcmp(argv[1], parts[i].name))
            return run(&parts[i], argc - 1, argv + 1);
    return usage(stderr, KG_USER);
}
