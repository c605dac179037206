// matrix: every model, variant and dtype. sanitize: a short run of the kernels, alone in one process.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda.h"
#include "parallel.h"
#include "pool.h"
#include "table.h"

enum { MOST_COMBINATIONS = 1024, LAYERS = 2, HEADS = 2, STREAM = 1499, SECONDS = 150 };

// ---- what there is ---------------------------------------------------------------------------------------------------

// Whether `name` is in a list "a,b"; hyphens, dots and underscores are alike. A null list has everything.
static int listed(const char *list, const char *name)
{
    while (list && *list) {
        const size_t length = strcspn(list, ",");
        size_t i = 0;
        for (; i < length && name[i]; i++)
            if (list[i] != name[i] && !(strchr("-._", list[i]) && strchr("-._", name[i])))
                break;
        if (i == length && !name[i])
            return 1;
        list += length + (list[length] == ',');
    }
    return !list;
}

static int add_model(plan *p, const char *model, const char *variants, const char *dtype)
{
    kg_spec *specs;
    int count;
    char what[2 * KG_PATH]; // the published variants are run where they are named
    snprintf(what, sizeof what, "%s%s%s", model, variants ? "/" : "", variants ? variants : "");
    TRY(kg_spec_load(what, &(kg_spec_options){.dtype = dtype}, &specs, &count, failure, sizeof failure));
    const int split = kg_spec_split(&specs, &count, failure, sizeof failure); // layers that differ are combinations of their own
    if (split) {
        free(specs);
        return split;
    }
    for (int i = 0; i < count && p->count < MOST_COMBINATIONS; i++) {
        combination *c = &p->all[p->count];
        *c = (combination){.spec = specs[i], .like = p->count};
        const char *why = kg_layout(&c->spec, &c->format);
        if (why) {
            free(specs);
            return fail(KG_USER, "%s", why);
        }
        // Everything that is compiled in is in the format.
        for (int j = p->count - 1; j >= 0; j--)
            if (!memcmp(&c->format, &p->all[j].format, sizeof c->format))
                c->like = p->all[j].like;
        p->count++;
    }
    free(specs);
    return KG_OK;
}

static int list_combinations(plan *p, const char *models, const char *variants, const char *dtypes)
{
    static const char *const both[] = {"fp16", "bf16"};
    char folder[KG_PATH], path[KG_PATH + 16], names[MOST_LISTED][KG_NAME];
    int count;
    TRY(kg_find_folder("specs", "KT_SPECS", folder, failure, sizeof failure));
    snprintf(path, sizeof path, "%s/models", folder);
    TRY(list_specs(path, names, &count));
    for (int m = 0; m < count; m++)
        for (int d = 0; d < 2; d++)
            if (listed(models, names[m]) && listed(dtypes, both[d]))
                TRY(add_model(p, names[m], variants, both[d]));
    return p->count ? KG_OK : fail(KG_USER, "nothing to run: no model, variant and dtype of those names");
}

// ---- one combination -------------------------------------------------------------------------------------------------

// Sequences: A never outgrows the sinks; B begins at the edge of a page; C turns key and value pages inside a step of three
// tokens; D is past 2,000 tokens and turns a page in a decode step; E leaves; F takes its slot without a prompt; G joins late.
static int full_moves(const kt_format *f, move *moves)
{
    const int s = f->sink, p = f->page, a = s ? s * 5 / 8 : 5, b = s + 2 * p, c = s + f->value_window + 4 * p - 3,
              d = s + (2000 / p + 1) * p - 2;
    const move all[] = {
        {{{0, a}, {1, b}, {2, c}, {-1, 0}, {4, 333}, {-1, 0}}, MOVE_ATTEND},
        {{{0, 0}, {1, 0}, {2, 0}, {3, d}, {4, 0}, {-1, 0}}, 0},
        {{{0, 1}, {1, 1}, {2, 1}, {3, 1}, {4, 1}, {-1, 0}}, MOVE_ATTEND | MOVE_CPU},
        {{{0, 1}, {1, 1}, {2, 1}, {3, 1}, {4, 1}, {-1, 0}}, MOVE_ATTEND | MOVE_ABORT},
        {{{0, 3}, {1, 3}, {2, 3}, {3, 3}, {4, 3}, {-1, 0}}, MOVE_ATTEND | MOVE_CPU},
        {{{0, 0}, {1, 1}, {2, 1}, {3, 1}, {5, 1}, {6, s + p + 40}}, MOVE_ATTEND},
        {{{0, 1}, {1, 1}, {2, 1}, {3, 1}, {5, 1}, {6, 1}}, MOVE_ATTEND},
        {{{0, 1}, {1, 0}, {2, 2}, {3, 1}, {5, 5}, {6, 1}}, MOVE_ATTEND | MOVE_ABORT},
        {{{0, 1}, {1, 1}, {-1, 0}, {3, 1}, {5, 1}, {6, 1}}, MOVE_ATTEND | MOVE_CPU},
    };
    memcpy(moves, all, sizeof all);
    return sizeof all / sizeof *all;
}

// For a tool that slows everything down: few launches, no reference kernel.
static int brief_moves(const kt_format *f, move *moves)
{
    const int s = f->sink, p = f->page, a = s ? s * 5 / 8 : 5;
    const move all[] = {
        {{{0, a}, {1, s + 2 * p - 1}, {-1, 0}, {3, s + f->value_window + p - 2}, {-1, 0}, {-1, 0}}, MOVE_ATTEND | MOVE_CPU},
        {{{0, 1}, {1, 1}, {-1, 0}, {3, 1}, {-1, 0}, {-1, 0}}, MOVE_ATTEND | MOVE_CPU},
        {{{0, 2}, {1, 3}, {-1, 0}, {3, 3}, {-1, 0}, {-1, 0}}, MOVE_ATTEND | MOVE_CPU},
        {{{0, 1}, {1, 1}, {-1, 0}, {3, 0}, {-1, 0}, {-1, 0}}, MOVE_ATTEND | MOVE_CPU},
    };
    memcpy(moves, all, sizeof all);
    return sizeof all / sizeof *all;
}

static int run_kind(const plan *p, const combination *c, key_kind kind, kt_engine *gpu, kt_engine *cpu, outcome *o)
{
    move moves[16];
    kg_inputs inputs;
    TRY(keys_make(kind, &c->spec, p->brief ? 1 : LAYERS, p->brief ? 1 : HEADS, p->brief ? 449 : STREAM, &inputs));
    const twin_args args = {
        .spec = &c->spec, .inputs = &inputs, .gpu = gpu, .cpu = cpu, .moves = moves,
        .count = (p->brief ? brief_moves : full_moves)(&c->format, moves), .reference = !p->brief,
        .extremes = kind == KEYS_HUGE, .nonfinite = kind == KEYS_NONFINITE,
    };
    const int code = twin_run(&args, &o->verdicts[kind]);
    kg_inputs_free(&inputs);
    o->ran[kind] = !code;
    if (code) {
        char message[KG_ERROR];
        snprintf(message, sizeof message, "%s", failure);
        return fail(code, "%s keys: %.3000s", key_kind_names[kind], message);
    }
    return KG_OK;
}

static int run_combination(const plan *p, const combination *c, outcome *o)
{
    kt_engine *gpu = NULL, *cpu = NULL;
    const double begin = now();
    int code = KG_OK;
    if (!p->on_cpu)
        TRY(cuda_hold());
    TRY(p->on_cpu ? open_engines(&c->spec, p->config, NULL, &gpu) : open_engines(&c->spec, p->config, &gpu, NULL));
    o->open_seconds = now() - begin;
    code = open_engines(&c->spec, -1, NULL, &cpu);
    kt_engine_info info = {.size = sizeof info};
    if (!code && !kt_engine_query(gpu, &info)) {
        snprintf(o->device, sizeof o->device, "%s", info.device_name);
        o->compiled = info.compiled;
        o->loaded = info.loaded;
    }
    for (int kind = 0; kind < KEYS_COUNT && !code; kind++)
        if (p->brief ? kind == KEYS_OUTLIER : kind != KEYS_CAPTURED || keys_captured(&c->spec))
            code = run_kind(p, c, (key_kind)kind, gpu, cpu, o);
    kt_close(cpu);
    kt_close(gpu);
    o->seconds = now() - begin;
    return code;
}

static int work(void *context, int task, void *result)
{
    const plan *p = context;
    return run_combination(p, &p->all[p->tasks[task]], result);
}

// ---- the commands ----------------------------------------------------------------------------------------------------

static int run_plan(plan *p, int jobs, const char *json, const char *markdown)
{
    outcome *results = calloc((size_t)p->task_count, sizeof *results), *outcomes = calloc((size_t)p->count, sizeof *outcomes);
    int code = results && outcomes ? KG_OK : fail(KG_MACHINE, "out of memory");
    const double begin = now();
    const pool pool = {.what = "combinations", .count = p->task_count, .jobs = jobs, .limit = SECONDS, .result_bytes = sizeof *results,
                       .results = (char *)results, .work = work, .context = p};
    code = code ? code : pool_run(&pool);
    for (int i = 0; i < p->task_count && !code; i++)
        outcomes[p->tasks[i]] = results[i];
    if (!code) {
        code = table_print(p, outcomes, now() - begin);
        const int written = table_write(p, outcomes, json, markdown);
        code = code ? code : written;
    }
    free(results);
    free(outcomes);
    return code;
}

static int make_plan(plan *p, int most)
{
    p->all = calloc((size_t)most, sizeof *p->all);
    p->tasks = calloc((size_t)most, sizeof *p->tasks);
    return p->all && p->tasks ? KG_OK : fail(KG_MACHINE, "out of memory");
}

static void free_plan(plan *p)
{
    free(p->all);
    free(p->tasks);
}

int part_matrix(int argc, char **argv)
{
    const char *models = NULL, *variants = NULL, *dtypes = NULL, *jobs_text = NULL, *json = NULL, *markdown = NULL,
               *device = "cuda", *config_text = NULL;
    int every = 0, config = -1, code;
    int jobs = kg_parallel_workers();
    const kg_option options[] = {
        {"--models", "A,B", "only these models", NULL, &models},
        {"--variants", "A,B", "only these variants, published ones too", NULL, &variants},
        {"--dtypes", "A,B", "fp16, bf16", NULL, &dtypes},
        {"--every", NULL, "run each model, also where another has the same kernels", &every, NULL},
        {"--jobs", "N", "processes at a time (default: the cores)", NULL, &jobs_text},
        {"--config", "N", "the N-th attend kernel of each package, from 0 (default: as selected)", NULL, &config_text},
        {"--device", "cuda|cpu", "cpu: the CPU against itself, to try the suite", NULL, &device},
        {"--json", "FILE", "write every figure as JSON", NULL, &json},
        {"--markdown", "FILE", "write the table as Markdown", NULL, &markdown},
        {NULL, NULL, NULL, NULL, NULL},
    };
    const kg_usage usage = {"gpu_suite matrix [options]",
                            "Runs a serving scenario for every model, variant and dtype: uneven prompts, page turns, steps of several\n"
                            "tokens, joining and leaving. Columns by kind of keys: the worst relative L2 error of a (step, layer,\n"
                            "sequence) against float64 attention over the same cache. lse: the same for log-sum-exp. cpu: of the\n"
                            "float64 kernel against the CPU. Pages and exact tokens are compared byte for byte.\n",
                            options, 0, 0};
    if (kg_options(&usage, argc, argv, &code) < 0)
        return code;
    if (jobs_text)
        TRY(read_integer("--jobs", jobs_text, 1, 64, &jobs));
    if (strcmp(device, "cuda") && strcmp(device, "cpu"))
        return fail(KG_USER, "--device: '%s' is not allowed; allowed: cuda, cpu", device);
    if (config_text)
        TRY(read_integer("--config", config_text, 0, KG_ATTEND_CONFIGS, &config));
    plan p = {.on_cpu = !strcmp(device, "cpu"), .config = config};
    code = make_plan(&p, MOST_COMBINATIONS);
    if (!code)
        code = list_combinations(&p, models, variants, dtypes);
    for (int i = 0; i < p.count && !code; i++) {
        p.all[i].like = every ? i : p.all[i].like;
        if (p.all[i].like == i)
            p.tasks[p.task_count++] = i;
    }
    if (!code)
        code = run_plan(&p, jobs, json, markdown);
    free_plan(&p);
    return code;
}

// One of kitty and kitty-pro, one of kivi-2 and kivi-2-sink, int4 and fp16 for each head_dim and group of heads, in turns
// with the dtypes.
static int worth_sanitizing(const plan *p, int index)
{
    static const char *const pairs[][2] = {{"kitty", "kitty-pro"}, {"kivi-2", "kivi-2-sink"}, {"int4", "int4"}, {"fp16", "fp16"}};
    const combination *c = &p->all[index];
    int shape = 0; // among those of different head_dim and group
    for (int i = 0; i < index; i++) {
        int first = 1;
        for (int j = 0; j < i; j++)
            first &= p->all[j].format.head_dim != p->all[i].format.head_dim || p->all[j].format.group_heads != p->all[i].format.group_heads;
        const int same = p->all[i].format.head_dim == c->format.head_dim && p->all[i].format.group_heads == c->format.group_heads;
        if (same)
            break;
        shape += first;
    }
    for (int i = 0; i < 4; i++)
        if (listed(pairs[i][shape % 2], c->spec.variant))
            return (shape / 2 + i) % 2 == c->spec.model.dtype;
    return 0;
}

int part_sanitize(int argc, char **argv)
{
    const char *part = "1/1", *device = "cuda", *config_text = NULL;
    int every = 0, config = -1, code;
    const kg_option options[] = {
        {"--part", "I/N", "only the I-th of N parts (default 1/1)", NULL, &part},
        {"--every", NULL, "all kernels, not a selection that has every shape and kind of variant", &every, NULL},
        {"--config", "N", "the N-th attend kernel of each package, from 0 (default: as selected)", NULL, &config_text},
        {"--device", "cuda|cpu", "cpu: the CPU against itself, to try the suite", NULL, &device},
        {NULL, NULL, NULL, NULL, NULL},
    };
    const kg_usage usage = {"gpu_suite sanitize [options]",
                            "A short scenario per kernel in one process, checked against the CPU:\n"
                            "compute-sanitizer --tool memcheck build/gpu_suite sanitize --part 1/4\n",
                            options, 0, 0};
    if (kg_options(&usage, argc, argv, &code) < 0)
        return code;
    int i = 0, n = 0;
    if (sscanf(part, "%d/%d", &i, &n) != 2 || i < 1 || i > n)
        return fail(KG_USER, "--part: '%s' is not allowed; allowed: I/N with 1 <= I <= N", part);
    if (config_text)
        TRY(read_integer("--config", config_text, 0, KG_ATTEND_CONFIGS, &config));
    plan p = {.on_cpu = !strcmp(device, "cpu"), .brief = 1, .config = config};
    code = make_plan(&p, MOST_COMBINATIONS);
    if (!code)
        code = list_combinations(&p, NULL, NULL, NULL);
    int kept = 0, found = 0;
    for (int c = 0; c < p.count && !code; c++)
        if (p.all[c].like == c && (every || worth_sanitizing(&p, c)) && found++ % n == i - 1)
            p.tasks[p.task_count++] = c;
    // What is not run is not reported either.
    for (; kept < p.task_count; kept++) {
        p.all[kept] = p.all[p.tasks[kept]];
        p.all[kept].like = p.tasks[kept] = kept;
    }
    p.count = kept;
    if (!code && !kept)
        code = fail(KG_USER, "--part %s: nothing is left in it", part);
    if (!code)
        code = run_plan(&p, 0, NULL, NULL);
    free_plan(&p);
    return code;
}
