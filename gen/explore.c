// kittygen explore: what variants cost and what they do to a model's own queries, keys and values.
#include "explore.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"
#include "parallel.h"

enum { INTERRUPTED = 130, AUTO = 0, GPU, CPU };
static const char default_shapes[] = "1x32768,32x8192";

static volatile sig_atomic_t interrupted;

static void interrupt(int signal) { interrupted = signal; }

// ---- errors, by all cores --------------------------------------------------------------------------------------------

typedef struct {
    kg_explore *explore;
    bool quiet, fresh;
    pthread_mutex_t lock; // of what follows
    kg_progress progress;
    int done, printed;    // variants
    int code;             // of the first that failed
    char *error;
} work;

// Rows are printed in the order of the specs, each as soon as those before it are done.
static void print_rows(work *w)
{
    const kg_explore *x = w->explore;
    kg_progress_clear(&w->progress);
    for (; w->printed < x->count && x->variants[w->printed].done; w->printed++)
        if (!w->quiet)
            kg_explore_row(&x->variants[w->printed], !w->printed);
    kg_progress_to(&w->progress, w->done);
}

static void measure_one(void *context, int index, int worker)
{
    work *w = context;
    kg_variant *v = &w->explore->variants[index];
    char error[KG_ERROR] = "";
    pthread_mutex_lock(&w->lock);
    const bool stop = interrupted || w->code;
    pthread_mutex_unlock(&w->lock);
    if (stop)
        return;
    v->kept = !w->fresh && kg_explore_load(w->explore, v);
    const int code = v->kept ? KG_OK : kg_explore_measure(&w->explore->bed, &v->spec, worker, &v->explored, error);
    if (!code) {
        kg_variant_sum(w->explore, v);
        if (!v->kept)
            kg_explore_save(w->explore, v);
    }
    pthread_mutex_lock(&w->lock);
    if (code && !w->code) {
        w->code = code;
        kg_fail(code, w->error, KG_ERROR, "%s", error);
    }
    v->done = !code;
    w->done += !code;
    print_rows(w);
    pthread_mutex_unlock(&w->lock);
}

static int measure_all(kg_explore *x, bool quiet, bool fresh, char *error)
{
    work w = {.explore = x, .quiet = quiet, .fresh = fresh, .error = error};
    pthread_mutex_init(&w.lock, 0);
    kg_progress_begin(&w.progress, "explore", x->count);
    kg_parallel(x->count, measure_one, &w);
    kg_progress_end(&w.progress);
    for (int i = w.printed; i < x->count && !quiet; i++) // behind one that was interrupted
        if (x->variants[i].done)
            kg_explore_row(&x->variants[i], !w.printed++);
    pthread_mutex_destroy(&w.lock);
    return w.code;
}

// ---- the command -----------------------------------------------------------------------------------------------------

// A variant to compare with that was named must be there.
static int check_against(const kg_explore *x, const char *name, char *error)
{
    const char **names = calloc((size_t)x->count + 1, sizeof *names);
    if (!names)
        return kg_fail(KG_MACHINE, error, KG_ERROR, "out of memory");
    for (int i = 0; i < x->count; i++)
        names[i] = x->variants[i].spec.variant;
    int chosen;
    const int code = kg_option_word("explore", "--against", name, names, x->count, &chosen);
    free(names);
    return code;
}

static int find_device(kg_explore *x, int device, char *error)
{
    if (device == CPU) {
        snprintf(x->reason, sizeof x->reason, "--device cpu");
        return KG_OK;
    }
    const int code = kg_explore_find_gpu(x, x->reason);
    if (!code || device == AUTO)
        return KG_OK;
    return kg_fail(code, error, KG_ERROR, "--device cuda: %s", x->reason);
}

static int write_report(const kg_explore *x, const char *path, bool quiet, char *error)
{
    kg_text page = {0};
    int code = kg_explore_html(x, &page, error);
    if (!code)
        code = kg_file_write(path, page.data, page.size, 1, error, KG_ERROR);
    if (!code && !quiet)
        printf("report: %s\n", path);
    kg_text_free(&page);
    return code;
}

// Everything that is done by now, also where something went wrong.
static int give(kg_explore *x, const char *report, bool json, char *error)
{
    kg_text text = {0};
    int done = 0, code = KG_OK;
    for (int i = 0; i < x->count; i++)
        done += x->variants[i].done;
    kg_explore_mark(x);
    if (json) {
        kg_explore_json(&text, x);
        code = text.failed ? kg_fail(KG_MACHINE, error, KG_ERROR, "out of memory") : KG_OK;
        if (!code)
            fputs(text.data, stdout);
        kg_text_free(&text);
    } else if (done)
        kg_explore_summary(x);
    if (!code && report && done)
        code = write_report(x, report, json, error);
    return code;
}

static int explore(kg_explore *x, int device, const char *report, bool json, bool fresh, char *error)
{
    int wrong = 0;
    char later[KG_ERROR];
    if (!json)
        kg_explore_heading(x);
    fflush(stdout);
    sigaction(SIGINT, &(struct sigaction){.sa_handler = interrupt, .sa_flags = SA_RESETHAND}, 0); // a second one ends at once
    int code = measure_all(x, json, fresh, error);
    if (!code && *x->device && device != CPU)
        code = kg_explore_times(x, &interrupted, &wrong, error);
    x->interrupted = interrupted;
    const int given = give(x, report, json, later);
    if (given && !code)
        code = kg_fail(given, error, KG_ERROR, "%s", later);
    if (code || !interrupted)
        return code ? code : wrong ? KG_FAILED : KG_OK;
    fprintf(stderr, "kittygen explore: interrupted; what is done is kept, and the same command goes on from there\n");
    return INTERRUPTED;
}

int kg_command_explore(int argc, char **argv)
{
    static const char *const devices[] = {"auto", "cuda", "cpu"};
    static kg_explore x;
    const char *files[KG_EXPLORE_FILES], *file = 0, *device = 0, *shapes = 0, *report = 0, *layers = 0, *dtype = 0, *against = 0;
    const char *context = "8192";
    int code, file_count = 0, chosen = AUTO, json = 0, fresh = 0;
    long layer_count = 0;
    char error[KG_ERROR] = "";
    const kg_option table[] = {
        {"--kv", "FILE", "captured queries, keys and values (safetensors); again for more layers", 0, &file},
        {"--device", "auto|cuda|cpu", "cuda: also time attend; cpu: do not; auto (default): where there is a GPU", 0, &device},
        {"--shapes", "LIST|FILE", "sequences x tokens to time: 1x4096,32x8192 (default: 1x32768,32x8192)", 0, &shapes},
        {"-o", "FILE", "write a report as a page of HTML that needs nothing else", 0, &report},
        {"--layers", "N", "layers (default: all in the --kv files)", 0, &layers},
        {"--context", "N", "tokens of the sequence whose bytes are told (default: 8192)", 0, &context},
        {"--against", "VARIANT", "which to compare with at the end (default: kitty-pro, where it is there)", 0, &against},
        {"--dtype", "fp16|bf16", "override the model's element type", 0, &dtype},
        {"--fresh", 0, "measure again what an earlier run has kept", &fresh, 0},
        {"--json", 0, "print JSON", &json, 0},
        {0, 0, 0, 0, 0},
    };
    const kg_usage usage = {
        "kittygen explore SPEC... --kv FILE [options]",
        "Compares the variants of a sweep, or of several specs of one model's shape, on a model's own queries, keys and values:\n"
        "  bytes   per token and KV head: of sealed pages, and of a whole sequence with its exact tokens (--context)\n"
        "  errors  of the logits and of attention's output against float64 attention over the exact inputs, relative L2 over the\n"
        "          queries of a head; the mean and the worst of all heads. Up to 64 queries of each head, from the last three\n"
        "          quarters of the tokens, attend as steps of one token do: over the pages that were sealed before\n"
        "  times   of attend for every shape, on a GPU, checked as kittygen bench does\n"
        "Pages have the same bytes on every device, so errors are measured on the CPU's, by all cores. What was measured is kept in\n"
        "the cache folder (KT_CACHE_DIR) by spec, files and program: the same command goes on where Ctrl-C ended it.\n\n"
        "A --kv file holds q.<i> [tokens, q_heads, head_dim], k.<i> and v.<i> [tokens, kv_heads, head_dim], keys rotated, for\n"
        "i = 0, 1, ..., as F16, BF16 or F32, as python/capture.py writes it.\n",
        table, 1, -1};
    if ((argc = kg_option_files("explore", "--kv", argc, argv, files, KG_EXPLORE_FILES, &file_count)) < 0)
        return KG_USER;
    const int specs = kg_options(&usage, argc, argv, &code);
    if (specs < 0)
        return code;
    x.against = against ? against : "kitty-pro";
    if ((code = kg_option_word("explore", "--device", device, devices, 3, &chosen)) ||
        (layers && (code = kg_option_integer("explore", "--layers", layers, 1, 256, &layer_count))) ||
        (code = kg_option_integer("explore", "--context", context, 256, 1 << 22, &x.context)))
        return code;
    if (!file_count)
        code = kg_fail(KG_USER, error, KG_ERROR, "--kv FILE is needed: captured queries, keys and values (python/capture.py)");
    else if (chosen == CPU && shapes)
        code = kg_fail(KG_USER, error, KG_ERROR, "--shapes: nothing is timed with --device cpu");
    else
        code = kg_bench_shapes(shapes ? shapes : default_shapes, x.shapes, &x.shape_count, error);
    if (!code && report)
        code = kg_file_probe(report, error, KG_ERROR);
    if (!code)
        code = kg_explore_specs(&x, argv + 1, specs, dtype, error);
    if (!code)
        code = check_against(&x, against, error);
    if (!code)
        code = kg_explore_inputs(&x, files, file_count, (int)layer_count, error);
    if (!code)
        code = find_device(&x, chosen, error);
    for (int i = 0; i < file_count; i++) {
        const size_t length = strlen(x.data);
        snprintf(x.data + length, sizeof x.data - length, "%s%s", i ? ", " : "", files[i]);
    }
    if (!code)
        code = explore(&x, chosen, report, json, fresh, error);
    if (code && *error && code != INTERRUPTED)
        fprintf(stderr, "kittygen explore: %s\n", error);
    kg_explore_close(&x);
    return code;
}
