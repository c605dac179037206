#include "report.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "progress.h"

static const char *paint(const char *colour) { return kg_colour(stdout) ? colour : ""; }

void kg_report_heading(const kg_report *r, const char *data)
{
    const kt_engine_info *e = &r->engine;
    printf("device: %s%s%s%s\n", e->device_name, *e->reason ? " (" : "", e->reason, *e->reason ? ")" : "");
    printf("data: %s; %d %s\n", data, r->layers, r->layers == 1 ? "layer" : "layers");
    printf("scenario: %d steps, %d sequences of up to %d tokens, %ld tokens in all\n", r->result.steps, r->result.sequences,
           r->result.longest, r->result.tokens);
}

static void print_layers(const kg_report *r)
{
    printf("    by layer:");
    for (int i = 0; i < r->layers; i++)
        printf(" %.3e", r->result.layer_errors[i]);
    printf("\n");
}

void kg_report_one(const kg_report *r, bool verbose)
{
    const kg_scenario_result *s = &r->result;
    printf("%s%s%s\n", paint(KG_BOLD), r->spec->name, paint(KG_PLAIN));
    printf("  memory              %.1f bytes per token and KV head, 1/%.2f of %s's %.0f (sealed pages)\n", r->bytes,
           r->exact_bytes / r->bytes, r->spec->model.dtype ? "bf16" : "fp16", r->exact_bytes);
    printf("  pages sealed        %ld of keys, %ld of values\n", s->key_pages, s->value_pages);
    printf("  kernel error        %.2e at worst, at most %.0e is allowed (step %d, layer %d, sequence %d of %d tokens)\n",
           s->kernel_error, s->kernel_limit, s->worst_step, s->worst_layer, s->worst_sequence, s->worst_tokens);
    printf("  quantisation error  %.3e in the mean of %ld query heads\n", s->quantisation_error, s->outputs);
    if (verbose)
        print_layers(r);
    if (isnan(s->step_seconds))
        printf("  time                not measured: no step was without a prompt\n");
    else
        printf("  time                %.3f ms a step of %d layers, until its outputs are read\n", 1e3 * s->step_seconds, r->layers);
    kg_report_failures(r);
    if (kg_scenario_passed(s))
        printf("  %sall checks held%s; steps aborted and repeated: %ld\n", paint(KG_GREEN), paint(KG_PLAIN), s->aborts);
}

void kg_report_row(const kg_report *r, bool first, bool verbose)
{
    if (first)
        printf("%-28s %12s %8s %13s %19s %9s\n", "spec", "bytes/token", "to exact", "kernel error", "quantisation error", "ms/step");
    printf("%-28s %12.1f %7.2fx %13.2e %19.3e ", r->spec->name, r->bytes, r->exact_bytes / r->bytes, r->result.kernel_error,
           r->result.quantisation_error);
    if (isnan(r->result.step_seconds))
        printf("%9s\n", "-");
    else
        printf("%9.3f\n", 1e3 * r->result.step_seconds);
    if (verbose)
        print_layers(r);
    kg_report_failures(r);
    fflush(stdout);
}

void kg_report_failures(const kg_report *r)
{
    const kg_scenario_result *s = &r->result;
    const char *red = paint(KG_RED), *plain = paint(KG_PLAIN);
    if (!(s->kernel_error <= s->kernel_limit))
        printf("  %sFAILED%s: kernel error %.2e is above %.0e, first at its worst in step %d, layer %d, sequence %d\n", red, plain,
               s->kernel_error, s->kernel_limit, s->worst_step, s->worst_layer, s->worst_sequence);
    const struct {
        long count;
        const char *what;
    } counts[] = {
        {s->unwritten, "elements of the output were left unwritten"},
        {s->stray, "elements behind the output were written"},
        {s->misread, "elements of the cache read back otherwise when their sequence left"},
        {s->leaked, "pages and slabs are missing after the last sequence left"},
        {s->nonfinite, "elements were taken for not finite"},
        {s->overruns, "steps were refused on the device"},
        {!isfinite(s->quantisation_error), "quantisation error is not finite"},
    };
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        if (counts[i].count)
            printf("  %sFAILED%s: %ld %s\n", red, plain, counts[i].count, counts[i].what);
}

static void json_number(kg_text *out, const char *name, double number)
{
    kg_text_addf(out, ", \"%s\": ", name);
    if (isfinite(number))
        kg_text_number(out, number);
    else
        kg_text_add(out, "null");
}

static void json_string(kg_text *out, const char *name, const char *text)
{
    kg_text_addf(out, ", \"%s\": ", name);
    kg_text_json(out, text);
}

void kg_report_json(kg_text *out, const kg_report *r, const char *data)
{
    const kg_scenario_result *s = &r->result;
    const struct {
        const char *name;
        long count;
    } counts[] = {
        {"layers", r->layers},       {"steps", s->steps},         {"sequences", s->sequences}, {"longest", s->longest},
        {"tokens", s->tokens},       {"key_pages", s->key_pages}, {"value_pages", s->value_pages}, {"aborts", s->aborts},
        {"outputs", s->outputs},     {"unwritten", s->unwritten}, {"stray", s->stray},         {"misread", s->misread},
        {"leaked", s->leaked},       {"nonfinite", s->nonfinite}, {"overruns", s->overruns},
    };
    kg_text_add(out, "{\"spec\": ");
    kg_text_json(out, r->spec->name);
    json_string(out, "device", r->engine.device == KT_DEVICE_CUDA ? "cuda" : "cpu");
    json_string(out, "device_name", r->engine.device_name);
    json_string(out, "reason", r->engine.reason);
    json_string(out, "data", data);
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        kg_text_addf(out, ", \"%s\": %ld", counts[i].name, counts[i].count);
    json_number(out, "bytes_per_token", r->bytes);
    json_number(out, "exact_bytes_per_token", r->exact_bytes);
    json_number(out, "kernel_error", s->kernel_error);
    json_number(out, "kernel_limit", s->kernel_limit);
    kg_text_addf(out, ", \"worst\": {\"step\": %d, \"layer\": %d, \"sequence\": %d, \"tokens\": %d}", s->worst_step,
                 s->worst_layer, s->worst_sequence, s->worst_tokens);
    json_number(out, "quantisation_error", s->quantisation_error);
    kg_text_add(out, ", \"layer_errors\": [");
    for (int i = 0; i < r->layers; i++) {
        kg_text_add(out, i ? ", " : "");
        kg_text_number(out, s->layer_errors[i]);
    }
    kg_text_add(out, "]");
    json_number(out, "step_seconds", s->step_seconds);
    kg_text_addf(out, ", \"passed\": %s}", kg_scenario_passed(s) ? "true" : "false");
}

// ---- order -----------------------------------------------------------------------------------------------------------

// Worst first: what the paper finds.
static const char *const variants[] = {"kivi-2", "kivi-2-sink", "kitty", "kitty-pro", "int4", "fp16"};
enum { VARIANTS = sizeof variants / sizeof *variants };

static bool alike(const char *a, const char *b)
{
    for (; *a && *b; a++, b++)
        if ((*a == '_' ? '-' : *a) != (*b == '_' ? '-' : *b))
            return false;
    return *a == *b;
}

static const kg_report *report_of(const kg_report *reports, int count, const char *variant)
{
    for (int i = 0; i < count; i++)
        if (alike(reports[i].spec->variant, variant))
            return &reports[i];
    return 0;
}

// Prints the pair if it fails, or the layers in which it does.
static bool pair_holds(const kg_report *worse, const kg_report *better, bool print)
{
    const bool holds = worse->result.quantisation_error > better->result.quantisation_error;
    int failing = 0;
    for (int i = 0; i < worse->layers; i++)
        failing += !(worse->result.layer_errors[i] > better->result.layer_errors[i]);
    if (!print || (holds && !failing))
        return holds;
    printf("order: %s > %s %s", worse->spec->variant, better->spec->variant, holds ? "holds in the mean" : "FAILS");
    printf("%s", failing ? holds ? ", but not in layer" : ", in layer" : "");
    for (int i = 0, said = 0; i < worse->layers; i++)
        if (!(worse->result.layer_errors[i] > better->result.layer_errors[i]))
            printf("%s %d (%.3e and %.3e)", said++ ? "," : "", i, worse->result.layer_errors[i], better->result.layer_errors[i]);
    printf("\n");
    return holds;
}

bool kg_report_order(const kg_report *reports, int count, bool print)
{
    const kg_report *before = 0;
    bool holds = true;
    kg_text chain = {0};
    for (int i = 0; i < VARIANTS; i++) {
        const kg_report *r = report_of(reports, count, variants[i]);
        if (!r)
            continue;
        if (before && !pair_holds(before, r, print))
            holds = false;
        kg_text_addf(&chain, "%s%s", before ? " > " : "", r->spec->variant);
        before = r;
    }
    if (before && alike(before->spec->variant, "fp16")) {
        kg_text_add(&chain, " = 0");
        if (before->result.quantisation_error != 0) {
            holds = false;
            if (print)
                printf("order: fp16 has a quantisation error of %.3e, not 0\n", before->result.quantisation_error);
        }
    }
    if (print && chain.data && !chain.failed)
        printf("%sorder %s%s: %s\n", paint(holds ? KG_GREEN : KG_RED), holds ? "holds" : "does not hold", paint(KG_PLAIN), chain.data);
    kg_text_free(&chain);
    return holds;
}
