// kittygen run: a serving scenario on a spec, against float64 attention.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"
#include "engine.h"
#include "layout.h"
#include "report.h"

enum { FILES = 16, LAYERS = 2, MOST_FILE_LAYERS = 4 };

typedef struct {
    const char *files[FILES];
    int file_count;
    kt_device device;
    kg_keys keys;
    long seed, steps, layers;
    int json, verbose, order;
} options;

// Random inputs are of layers that show every way in which the spec keeps them: the first of each, and what follows them, in the model's
// order.
static void choose_layers(const kg_spec *spec, kg_inputs *in)
{
    bool taken[KG_LAYERS] = {false}, shown[KT_FORMATS] = {false};
    int left = in->count;
    for (int layer = 0; layer < spec->model.layers && left; layer++)
        if (!shown[spec->layer_way[layer]]) {
            taken[layer] = shown[spec->layer_way[layer]] = true;
            left--;
        }
    for (int layer = 0; layer < spec->model.layers && left; layer++)
        if (!taken[layer]) {
            taken[layer] = true;
            left--;
        }
    for (int layer = 0, i = 0; layer < spec->model.layers && i < in->count; layer++)
        if (taken[layer])
            in->layers[i++].origin = layer;
}

// Which layers of a spec, whose layers differ, the inputs are.
static int check_layers(const kg_spec *spec, const kg_inputs *in, char *error, size_t error_size)
{
    for (int i = 0; i < in->count; i++)
        if (in->layers[i].origin >= spec->model.layers)
            return kg_fail(KG_USER, error, error_size, "%s: its formats are for %d layers, and layer %d of the inputs is the model's layer %d", spec->name,
                           spec->model.layers, i, in->layers[i].origin);
    return KG_OK;
}

// An engine of the inputs' layers.
static int open_engine(const options *o, const kg_spec *spec, kg_inputs *in, kt_engine **engine, char *error, size_t error_size)
{
    int layers[KG_LAYERS];
    if (!spec->more_count)
        return kg_engine_open(spec, o->device, engine, error, error_size);
    if (!o->file_count)
        choose_layers(spec, in);
    const int code = check_layers(spec, in, error, error_size);
    for (int i = 0; i < in->count; i++)
        layers[i] = in->layers[i].origin;
    return code ? code : kg_engine_open_layers(spec, layers, in->count, o->device, engine, error, error_size);
}

static int run_spec(const options *o, const kg_spec *spec, kg_progress *progress, long done, kg_report *report, char *error,
                    size_t error_size)
{
    kt_engine *engine = 0;
    kg_inputs inputs = {0};
    kg_formats formats;
    const char *why = kg_formats_of(spec, &formats);
    const int layers = LAYERS > spec->more_count ? LAYERS : spec->more_count + 1;
    int code = why ? kg_fail(KG_USER, error, error_size, "%s: %s", spec->name, why)
               : o->file_count
                   ? kg_inputs_read(spec, o->files, o->file_count, (int)o->layers, MOST_FILE_LAYERS, &inputs, error, error_size)
                   : kg_inputs_draw(spec, o->layers ? (int)o->layers : layers, KG_TOKENS, o->keys, (uint64_t)o->seed, &inputs,
                                    error, error_size);
    if (!code)
        code = open_engine(o, spec, &inputs, &engine, error, error_size);
    *report = (kg_report){.spec = spec, .layers = inputs.count, .engine = {.size = sizeof report->engine}};
    if (!code) {
        report->bytes = kg_formats_token(&formats);
        report->exact_bytes = 4.0 * spec->model.head_dim;
        kt_engine_query(engine, &report->engine);
        const kg_scenario scenario = {spec, &formats, &inputs, engine, (int)o->steps, progress, done};
        code = kg_scenario_run(&scenario, &report->result, error, error_size);
    }
    kt_close(engine);
    kg_inputs_free(&inputs);
    return code;
}

// Where the inputs are from, for the reader.
static void describe(const options *o, kg_text *data)
{
    if (!o->file_count)
        kg_text_addf(data, "random %s keys, seed %ld", kg_keys_names[o->keys], o->seed);
    for (int i = 0; i < o->file_count; i++)
        kg_text_addf(data, "%s%s", i ? ", " : "", o->files[i]);
}

static int run_all(const options *o, const kg_spec *specs, int count, char *error, size_t error_size)
{
    if (o->order && count < 2)
        return kg_fail(KG_USER, error, error_size, "--order: one spec has no order; name several variants, or a model alone");
    kg_report *reports = calloc((size_t)count, sizeof *reports);
    kg_text data = {0}, json = {0};
    kg_progress progress;
    describe(o, &data);
    int code = reports && !data.failed ? KG_OK : kg_fail(KG_MACHINE, error, error_size, "out of memory");
    bool passed = true;
    int done = 0;
    for (; done < count && !code; done++) {
        kg_progress_begin(&progress, specs[done].name, count * o->steps);
        code = run_spec(o, &specs[done], &progress, done * o->steps, &reports[done], error, error_size);
        kg_progress_end(&progress);
        if (code)
            break;
        passed = passed && kg_scenario_passed(&reports[done].result);
        if (o->json) {
            kg_text_add(&json, done ? ",\n " : "");
            kg_report_json(&json, &reports[done], data.data);
        } else {
            if (!done)
                kg_report_heading(&reports[0], data.data);
            if (count == 1)
                kg_report_one(&reports[0], o->verbose);
            else
                kg_report_row(&reports[done], !done, o->verbose);
        }
    }
    if (!code && o->json && !json.failed)
        printf(count > 1 ? "[%s]\n" : "%s\n", json.data);
    if (!code && json.failed)
        code = kg_fail(KG_MACHINE, error, error_size, "out of memory");
    if (!code && count > 1 && !kg_report_order(reports, count, !o->json) && o->order)
        passed = false;
    for (int i = 0; reports && i < count; i++)
        kg_scenario_free(&reports[i].result);
    free(reports);
    kg_text_free(&data);
    kg_text_free(&json);
    return code ? code : passed ? KG_OK : KG_FAILED;
}

int kg_command_run(int argc, char **argv)
{
    static const char *const devices[] = {"auto", "cuda", "cpu"};
    const char *device = 0, *keys = 0, *seed = 0, *steps = 0, *layers = 0, *dtype = 0, *file = 0;
    options o = {.seed = 1, .steps = KG_STEPS};
    const kg_option table[] = {
        {"--kv", "FILE", "captured inputs (safetensors) instead of random ones; again for more layers", 0, &file},
        {"--device", "auto|cuda|cpu", "where to run (default: auto, which takes the CPU if there is no GPU)", 0, &device},
        {"--steps", "N", "steps of the scenario (default: 320)", 0, &steps},
        {"--layers", "N", "layers (default: 2, or as many as differ, or those in the --kv files, up to 4)", 0, &layers},
        {"--keys", "mild|outlier|offset", "kind of random keys (default: mild)", 0, &keys},
        {"--seed", "N", "seed of the random inputs (default: 1)", 0, &seed},
        {"--dtype", "fp16|bf16", "override the model's element type", 0, &dtype},
        {"--order", 0, "fail if a sweep's variants are not in the order of the paper", &o.order, 0},
        {"--verbose", 0, "errors by layer", &o.verbose, 0},
        {"--json", 0, "report as JSON: an object, or an array for several specs", &o.json, 0},
        {0, 0, 0, 0, 0},
    };
    const kg_usage usage = {
        "kittygen run SPEC [options]",
        "Serves sequences of very different lengths with the spec's kernels and checks every step: one stays shorter than\n"
        "the sinks, one ends its prompt at a page's edge, one grows past 2,000 tokens (from 100 steps on), others join and\n"
        "leave, wait, take several tokens at a time. Two errors are reported, both relative L2:\n"
        "  kernel error: the output against float64 attention over the decoded cache; worst of all steps, layers, sequences;\n"
        "    at most 2e-3 (bf16: 8e-3) is allowed\n"
        "  quantisation error: float64 attention over the decoded cache against that over the exact inputs; the mean over\n"
        "    steps, layers and query heads\n"
        "Steps of up to 64 tokens of a sequence are checked whole, of a longer prompt the last 8 tokens. No output may be\n"
        "left unwritten, and what was sealed must not change. SPEC may stand for several (MODEL: every variant); then their\n"
        "order by quantisation error is reported.\n\n"
        "A --kv file holds q.<i> [tokens, q_heads, head_dim], k.<i> and v.<i> [tokens, kv_heads, head_dim], keys rotated, for\n"
        "i = 0, 1, ..., as F16, BF16 or F32, and may name the softmax scale in its metadata (\"scale\": \"0.125\") and\n"
        "which of the model's layers they are (\"layers\": \"1,10\"). Sequences start at different tokens of it and wrap around at its\n"
        "end.\n",
        table, 1, 1};
    int code, chosen = 0;
    if ((argc = kg_option_files("run", "--kv", argc, argv, o.files, FILES, &o.file_count)) < 0)
        return KG_USER;
    if (kg_options(&usage, argc, argv, &code) < 0)
        return code;
    if ((code = kg_option_word("run", "--device", device, devices, 3, &chosen)))
        return code;
    o.device = (kt_device)chosen;
    chosen = 0;
    if ((code = kg_option_word("run", "--keys", keys, kg_keys_names, KG_KEYS_COUNT, &chosen)))
        return code;
    o.keys = (kg_keys)chosen;
    if (o.file_count && (keys || seed)) {
        fprintf(stderr, "kittygen run: %s is of random inputs; it does not go with --kv\n", keys ? "--keys" : "--seed");
        return KG_USER;
    }
    if ((seed && (code = kg_option_integer("run", "--seed", seed, 0, 1L << 53, &o.seed))) ||
        (steps && (code = kg_option_integer("run", "--steps", steps, 1, 100000, &o.steps))) ||
        (layers && (code = kg_option_integer("run", "--layers", layers, 1, 256, &o.layers))))
        return code;

    char error[KG_ERROR] = "";
    kg_spec *specs;
    int count;
    code = kg_spec_load(argv[1], &(kg_spec_options){.dtype = dtype}, &specs, &count, error, sizeof error);
    if (!code)
        code = run_all(&o, specs, count, error, sizeof error);
    else
        specs = 0;
    if (code && *error)
        fprintf(stderr, "kittygen run: %s\n", error);
    free(specs);
    return code;
}
