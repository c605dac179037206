// kittygen tune: measures attend kernels on this machine's GPU and keeps the fastest in the tuned table.
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "command.h"
#include "cuda/backend.h"
#include "cuda/driver.h"
#include "tune.h"

enum { SPECS = 64 };

// Every corner early, so that a run that is cut short has something of each.
static const char default_shapes[] = "32x16384,1x4096,8x4096,128x4096,1x65536,1x131072,32x1024,2x16384,128x1024,8x16384,1x16384,32x4096,2x4096,32x65536,"
                                     "1x1024,8x65536,8x1024,2x65536,128x16384,2x1024,128x65536";

typedef struct {
    char path[KG_PATH]; // of the table
    kg_tuned table;
    kg_spec specs[SPECS];
    int spec_count;
    kg_shape shapes[KG_BENCH_SHAPES];
    int shape_count;
    double until;       // of the run; 0: never
    bool only_compile;
    kg_tuned_set done[SPECS]; // which there were
    int done_count, rows;
    kg_text json;
} plan;

static volatile sig_atomic_t interrupted;

static void interrupt(int signal) { interrupted = signal; }

double kg_tune_clock(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

bool kg_tune_stopped(const kg_tune *t) { return interrupted || (t->until > 0 && kg_tune_clock() >= t->until); }

int kg_tune_selected(const kg_tune *t, kg_shape shape)
{
    const kg_attend_row *row = kg_attend_row_for(&t->now, t->shared_limit, shape.sequences, kg_tuned_pages(&t->format, shape.tokens));
    const kg_attend_config *c = &t->now.configs[row->config];
    return kg_attend_index(&t->menu, c->warps, c->stages, c->tiles, c->blocks);
}

// ---- one spec --------------------------------------------------------------------------------------------------------

static int measure(kg_tune *t, const plan *p)
{
    kg_progress bar;
    const kg_spec *spec = t->spec;
    KG_TRY(kg_tune_open(t));
    kg_progress_begin(&bar, spec->name, (long)p->shape_count * t->menu.count);
    int code = KG_OK;
    for (int i = 0; i < p->shape_count && !code && !kg_tune_stopped(t); i++) {
        kg_tune_result *r = &t->results[t->count++];
        r->shape = p->shapes[i];
        code = kg_tune_shape(t, r, &bar);
        kg_progress_clear(&bar);
        if (r->done && !t->bench.json)
            kg_tune_print(t, r);
        else if (!r->done && !code && !kg_tune_stopped(t))
            fprintf(stderr, "kittygen tune: %s, %d x %d: skipped: too little memory for one layer\n", spec->name, r->shape.sequences, r->shape.tokens);
        kg_progress_to(&bar, (i + 1) * (long)t->menu.count);
    }
    kg_progress_end(&bar);
    return code;
}

// Puts what is done into the table, and the table into its file.
static int keep(kg_tune *t, plan *p)
{
    int chosen[KG_TUNED_KERNELS], count = 0, done = 0;
    for (int i = 0; i < t->count; i++)
        done += t->results[i].done;
    if (done < p->shape_count && kg_tune_stopped(t))
        fprintf(stderr, "kittygen tune: %s: %s after %d of %d shapes\n", t->spec->name, interrupted ? "stopped" : "out of time", done, p->shape_count);
    const int code = !done ? KG_OK : kg_tune_merge(t, &p->table, chosen, &count);
    for (int i = 0; i < t->count; i++)
        if (t->results[i].done)
            kg_tune_json(&p->json, t, &t->results[i], chosen, count);
    if (code || !done)
        return code;
    p->rows += done;
    const int written = kg_tuned_write(p->path, &p->table, t->bench.error);
    if (t->bench.json)
        return written;
    if (!written) {
        kg_tune_print_choice(t, p->path, chosen, count);
    } else { // what took minutes is not lost for a full disk
        kg_text table = {0};
        kg_tuned_text(&p->table, &table);
        printf("  the table, which could not be written:\n%s", table.data ? table.data : "");
        kg_text_free(&table);
    }
    return written;
}

static bool seen(plan *p, const kt_format *f, int kv_heads)
{
    const kg_tuned done = {.sets = p->done, .count = p->done_count};
    if (kg_tuned_find(&done, f, kv_heads))
        return true;
    p->done[p->done_count++] = kg_tuned_set_for(f, kv_heads);
    return false;
}

static int tune_spec(kg_tune *t, plan *p, const kg_spec *spec, int left)
{
    kg_bench *b = &t->bench;
    const double now = kg_tune_clock();
    const char *why = kg_layout(spec, &t->format);
    if (why)
        return kg_fail(KG_USER, b->error, KG_ERROR, "%s: %s", spec->name, why);
    if (seen(p, &t->format, spec->model.kv_heads)) {
        fprintf(stderr, "kittygen tune: %s: what would be measured is that of a spec before\n", spec->name);
        return KG_OK;
    }
    t->spec = spec;
    t->until = p->until > 0 ? now + (p->until - now) / left : 0; // a fair share
    t->count = 0;
    memset(t->results, 0, sizeof t->results);
    KG_TRY(kg_tuned_plan(&t->format, spec->model.kv_heads, &t->now, 0, b->error));
    kg_tune_menu(&t->format, t->shared_limit, &t->now, kg_tuned_find(&p->table, &t->format, spec->model.kv_heads), &t->menu, &t->kept);
    KG_TRY(kg_tune_compile(t, t->until > 0 && !p->only_compile ? (now + t->until) / 2 : t->until));
    if (p->only_compile)
        return KG_OK;
    int code = KG_OK;
    if (t->menu.count >= t->kept && !kg_tune_stopped(t))
        code = measure(t, p);
    kt_close(t->engine);
    t->engine = 0;
    char error[KG_ERROR]; // a failure of the card does not lose what was measured before
    snprintf(error, sizeof error, "%s", b->error);
    const int kept = keep(t, p);
    if (code)
        snprintf(b->error, sizeof b->error, "%s", error);
    return code ? code : kept;
}

// ---- command ---------------------------------------------------------------------------------------------------------

static int open_card(kg_tune *t)
{
    static char arch[16];
    kg_bench *b = &t->bench;
    const kt__driver *driver;
    int version = 0, code = kg_gpu_hold(b->error);
    if (code) {
        char why[KG_ERROR];
        snprintf(why, sizeof why, "%s", b->error);
        return kg_fail(code, b->error, KG_ERROR, "a GPU is needed, but for --compile: %s", why);
    }
    KG_TRY(kg_gpu_query(&b->gpu, b->error));
    KG_TRY(kg_gpu_stream_open(&b->stream, b->error));
    if (!kt__cuda_arch(b->gpu.major, b->gpu.minor, arch))
        return kg_fail(KG_MACHINE, b->error, KG_ERROR, "%s has compute capability %d.%d; 8.0 or higher is needed", b->gpu.name, b->gpu.major, b->gpu.minor);
    KG_BENCH_CALL(b, kt__driver_load(&driver));
    driver->driver_version(&version);
    t->arch = arch;
    t->shared_limit = b->gpu.shared_limit < KG_LARGE_SHARED ? b->gpu.shared_limit : KG_LARGE_SHARED;
    t->newest_major = version / 1000;
    return KG_OK;
}

// The table to add to; none yet is an empty one where the file was named. One that cannot be written is refused before anything is measured.
static int open_table(plan *p, const char *to, const kg_bench *b, bool compile, char *error)
{
    char why[KG_ERROR];
    if (!to)
        KG_TRY(kg_tuned_path(p->path, error));
    else if (snprintf(p->path, sizeof p->path, "%s", to) >= KG_PATH)
        return kg_fail(KG_USER, error, KG_ERROR, "-o: the path is longer than %d bytes", KG_PATH - 1);
    const int code = compile ? KG_OK : kg_file_probe(p->path, why, sizeof why);
    if (code)
        return kg_fail(code, error, KG_ERROR, "%s; name another file with -o", why);
    if (to && access(to, F_OK) && errno == ENOENT)
        return KG_OK;
    KG_TRY(kg_tuned_read(p->path, &p->table, error));
    // Whose table it is, most of its sets say; a few may come from a card that is like it.
    const kg_tuned_set *other = 0;
    int others = 0;
    for (int i = 0; i < p->table.count; i++)
        if (strncmp(p->table.sets[i].card, b->gpu.name, sizeof p->table.sets[i].card - 1))
            other = &p->table.sets[i], others++;
    if (!compile && 2 * others > p->table.count)
        return kg_fail(KG_USER, error, KG_ERROR, "%s: is of %s, and this card is %s; name another file with -o", p->path, other->card, b->gpu.name);
    return KG_OK;
}

static int load_specs(char **names, int count, const char *dtype, plan *p, char *error)
{
    for (int i = 0; i < count; i++) {
        kg_spec *specs;
        int more;
        KG_TRY(kg_spec_load(names[i], &(kg_spec_options){.dtype = dtype}, &specs, &more, error, KG_ERROR));
        const int split = kg_spec_split(&specs, &more, error, KG_ERROR); // layers that differ have kernels of their own
        if (split) {
            free(specs);
            return split;
        }
        const bool fit = p->spec_count + more <= SPECS;
        if (fit)
            memcpy(&p->specs[p->spec_count], specs, (size_t)more * sizeof *specs);
        p->spec_count += more;
        free(specs);
        if (!fit)
            return kg_fail(KG_USER, error, KG_ERROR, "more than %d specs", SPECS);
    }
    return KG_OK;
}

static int limit_of(const char *arch)
{
    static const char *const small[] = {"sm_86", "sm_89", "sm_120a", "sm_121a"};
    for (int i = 0; i < 4; i++)
        if (!strcmp(arch, small[i]))
            return KG_SMALL_SHARED;
    return !strcmp(arch, "sm_80") ? 163 * 1024 : KG_LARGE_SHARED;
}

static int run(kg_tune *t, plan *p, const char *to)
{
    kg_bench *b = &t->bench;
    if (p->only_compile)
        t->shared_limit = limit_of(t->arch);
    else
        KG_TRY(open_card(t));
    KG_TRY(open_table(p, to, b, p->only_compile, b->error));
    if (!b->json && !p->only_compile)
        printf("%s; kernels are WARPSxSTAGESxTILESxBLOCKS, microseconds per layer\n", b->gpu.name);
    int code = KG_OK;
    for (int s = 0; s < p->spec_count && !code && !interrupted; s++)
        code = tune_spec(t, p, &p->specs[s], p->spec_count - s);
    if (!code && !p->rows && !p->only_compile && !interrupted)
        code = kg_fail(KG_MACHINE, b->error, KG_ERROR, "nothing was measured, and the table is as before");
    if (!code && b->failed) { // said when it came up
        code = KG_FAILED;
        *b->error = 0;
    }
    return code;
}

int kg_command_tune(int argc, char **argv)
{
    static kg_tune t;
    static plan p;
    const char *shapes = default_shapes, *to = 0, *dtype = 0, *limit = 0, *arch = 0;
    int code, json = 0;
    long seconds = 0;
    const kg_option table[] = {
        {"--shapes", "LIST|FILE", "sequences x tokens: 1x4096,32x8192, or a file of them (default: 1 to 128 x 1K to 64K, 1 x 128K)", 0, &shapes},
        {"-o", "FILE", "the table to add to, made where there is none (default: KT_TUNED, else the shipped one)", 0, &to},
        {"--dtype", "fp16|bf16", "override the model's element type; the rows are for both", 0, &dtype},
        {"--limit-s", "N", "end after about N seconds, shared among the specs, with what is done by then", 0, &limit},
        {"--compile", "ARCH", "only compile the kernels into the cache, for sm_90a or another, without a GPU", 0, &arch},
        {"--json", 0, "every time that was measured, as an array", &json, 0},
        {0, 0, 0, 0, 0},
    };
    const kg_usage usage = {
        "kittygen tune SPEC... [options]",
        "Finds the fastest attend kernels of the specs on this card: compiles those that fit and hardly spill, times them at every\n"
        "shape (sequences x tokens, one new token each), chooses at most four, and puts which to take up to which shape into the\n"
        "tuned table, by which packages are made from then on. Specs that were not measured go by the nearest that was.\n"
        "Each kernel's output is checked; where it is wrong it is left out, and the exit code is 1. Ctrl-C ends with what is done.\n"
        "Run again, it replaces the rows of the same shapes and keeps the others. Of a spec whose layers differ each way of keeping\n"
        "them is measured, as a spec NAME-f0, NAME-f1, ...\n",
        table, 1, -1};
    const int operands = kg_options(&usage, argc, argv, &code);
    if (operands < 0 || (limit && (code = kg_option_integer("tune", "--limit-s", limit, 1, 86400, &seconds))))
        return code;
    t.bench.json = json;
    t.bench.brief = true;
    p.only_compile = arch != 0;
    t.arch = arch;
    p.until = limit ? kg_tune_clock() + (double)seconds : 0;
    code = kg_bench_shapes(shapes, p.shapes, &p.shape_count, t.bench.error);
    if (!code)
        code = load_specs(argv + 1, operands, dtype, &p, t.bench.error);
    sigaction(SIGINT, &(struct sigaction){.sa_handler = interrupt, .sa_flags = SA_RESETHAND}, 0); // a second one ends at once
    if (!code)
        code = run(&t, &p, to);
    if (json && p.json.size)
        printf("[%s]\n", p.json.data);
    if (code && *t.bench.error)
        fprintf(stderr, "kittygen tune: %s\n", t.bench.error);
    kg_gpu_free(t.bench.data);
    kg_gpu_stream_close(t.bench.stream);
    kg_tuned_free(&p.table);
    kg_text_free(&p.json);
    if (interrupted) {
        fflush(stdout);
        raise(interrupted);
    }
    return code;
}
