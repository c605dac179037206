#include "table.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static int verdict_ok(const combination *c, const verdict *v)
{
    const double limit = error_limit(c->spec.model.dtype);
    return v->kernel <= limit && v->lse <= limit && v->cross <= limit / 2 && v->attends && v->pages && !v->bad_pages && !v->bad_exact &&
           !v->unwritten && !v->stray && !v->infinite && !*v->fault;
}

static int outcome_ok(const combination *c, const outcome *o)
{
    int ran = 0;
    for (int kind = 0; kind < KEYS_COUNT; kind++) {
        if (o->ran[kind] && !verdict_ok(c, &o->verdicts[kind]))
            return 0;
        ran += o->ran[kind];
    }
    return ran && !o->end.code;
}

static const char *dtype_name(const combination *c) { return c->spec.model.dtype ? "bf16" : "fp16"; }

typedef struct {
    long pages, attends;
    double lse, cross;
} sums;

static sums sum_up(const outcome *o)
{
    sums s = {0};
    for (int kind = 0; kind < KEYS_COUNT; kind++) {
        const verdict *v = &o->verdicts[kind];
        s.pages += v->pages;
        s.attends += v->attends;
        s.lse = fmax(s.lse, v->lse);
        s.cross = fmax(s.cross, v->cross);
    }
    return s;
}

// A row of the table; markdown has bars.
static void print_row(FILE *file, const plan *p, const combination *c, const outcome *o, int markdown)
{
    const char *bar = markdown ? " | " : "  ";
    const sums s = sum_up(o);
    fprintf(file, "%s%-14s%s%-11s%s%-4s", markdown ? "| " : "", c->spec.model.name, bar, c->spec.variant, bar, dtype_name(c));
    for (int kind = 0; kind < KEYS_COUNT; kind++) {
        char cell[16] = "-";
        if (o->ran[kind])
            snprintf(cell, sizeof cell, "%.1e", o->verdicts[kind].kernel);
        fprintf(file, "%s%9s", bar, cell);
    }
    fprintf(file, "%s%7.1e%s%7.1e%s%7ld%s%6ld%s%s", bar, s.lse, bar, s.cross, bar, s.attends, bar, s.pages, bar,
            outcome_ok(c, o) ? "ok" : "FAILED");
    if (c->like != c - p->all)
        fprintf(file, " (as %s)", p->all[c->like].spec.model.name);
    fprintf(file, "%s\n", markdown ? " |" : "");
}

static void print_header(FILE *file, int markdown)
{
    const char *bar = markdown ? " | " : "  ";
    fprintf(file, "%s%-14s%s%-11s%s%-4s", markdown ? "| " : "", "model", bar, "variant", bar, "type");
    for (int kind = 0; kind < KEYS_COUNT; kind++)
        fprintf(file, "%s%9s", bar, key_kind_names[kind]);
    fprintf(file, "%s%7s%s%7s%s%7s%s%6s%sresult%s\n", bar, "lse", bar, "cpu", bar, "attends", bar, "pages", bar, markdown ? " |" : "");
    if (markdown) {
        for (int i = 0; i < 8 + KEYS_COUNT; i++)
            fprintf(file, "|---");
        fprintf(file, "|\n");
    }
}

static void print_faults(FILE *file, const combination *c, const outcome *o)
{
    if (o->end.code)
        fprintf(file, "%s %s: %s\n", c->spec.name, dtype_name(c), o->end.message);
    else if (!sum_up(o).attends)
        fprintf(file, "%s %s: nothing was run\n", c->spec.name, dtype_name(c));
    for (int kind = 0; kind < KEYS_COUNT; kind++) {
        const verdict *v = &o->verdicts[kind];
        if (!o->ran[kind] || verdict_ok(c, v))
            continue;
        fprintf(file, "%s %s, %s keys: error %.2e (at %s), lse %.2e, reference against CPU %.2e, pages that differ %ld, exact elements "
                      "that differ %ld, not written %ld, stray %ld, not finite %ld; first: %s\n", c->spec.name, dtype_name(c),
                key_kind_names[kind], v->kernel, *v->worst ? v->worst : "none", v->lse, v->cross, v->bad_pages, v->bad_exact, v->unwritten,
                v->stray, v->infinite, *v->fault ? v->fault : "an error above its limit");
    }
}

static void write_json(kg_text *out, const plan *p, const outcome *outcomes)
{
    kg_text_add(out, "[");
    for (int i = 0; i < p->count; i++) {
        const combination *c = &p->all[i];
        const outcome *o = &outcomes[c->like];
        kg_text_addf(out, "%s{\"model\": ", i ? ",\n " : "");
        kg_text_json(out, c->spec.model.name);
        kg_text_add(out, ", \"variant\": ");
        kg_text_json(out, c->spec.variant);
        kg_text_addf(out, ", \"dtype\": \"%s\", \"same_kernels_as\": ", dtype_name(c));
        kg_text_json(out, p->all[c->like].spec.model.name);
        kg_text_add(out, ", \"device\": ");
        kg_text_json(out, o->device);
        kg_text_addf(out, ", \"ok\": %s, \"limit\": %g, \"message\": ", outcome_ok(c, o) ? "true" : "false",
                     error_limit(c->spec.model.dtype));
        kg_text_json(out, o->end.message);
        kg_text_addf(out, ", \"seconds\": %.2f, \"open_seconds\": %.2f, \"compiled\": %d, \"loaded\": %d, \"keys\": {", o->seconds,
                     o->open_seconds, o->compiled, o->loaded);
        const char *separator = "";
        for (int kind = 0; kind < KEYS_COUNT; kind++) {
            const verdict *v = &o->verdicts[kind];
            if (!o->ran[kind])
                continue;
            const double numbers[] = {v->kernel, v->lse, v->cross};
            static const char *const names[] = {"kernel_error", "lse_error", "reference_error"};
            kg_text_addf(out, "%s\"%s\": {", separator, key_kind_names[kind]);
            for (int n = 0; n < 3; n++)
                isfinite(numbers[n]) ? kg_text_addf(out, "\"%s\": %.3e, ", names[n], numbers[n])
                                     : kg_text_addf(out, "\"%s\": null, ", names[n]);
            kg_text_addf(out, "\"attends\": %ld, \"pages\": %ld, \"bad_pages\": %ld, \"bad_exact\": %ld, \"unwritten\": %ld, "
                              "\"stray\": %ld, \"infinite\": %ld, \"worst\": ", v->attends, v->pages, v->bad_pages, v->bad_exact,
                         v->unwritten, v->stray, v->infinite);
            kg_text_json(out, v->worst);
            kg_text_add(out, ", \"fault\": ");
            kg_text_json(out, v->fault);
            kg_text_add(out, "}");
            separator = ", ";
        }
        kg_text_add(out, "}}");
    }
    kg_text_add(out, "]\n");
}

int table_write(const plan *p, const outcome *outcomes, const char *json, const char *markdown)
{
    int code = KG_OK;
    if (json) {
        kg_text out = {0};
        write_json(&out, p, outcomes);
        code = out.failed ? fail(KG_MACHINE, "out of memory") : kg_file_write(json, out.data, out.size, 1, failure, sizeof failure);
        kg_text_free(&out);
    }
    if (markdown && !code) {
        FILE *file = fopen(markdown, "w");
        if (!file)
            return fail(KG_MACHINE, "%s: cannot be written", markdown);
        print_header(file, 1);
        for (int i = 0; i < p->count; i++)
            print_row(file, p, &p->all[i], &outcomes[p->all[i].like], 1);
        fclose(file);
    }
    return code;
}

// Prints what failed, the same message of other combinations once, and no more than a screen of it.
static void print_failures(const plan *p, const outcome *outcomes)
{
    enum { MOST = 12 };
    int printed = 0, more = 0;
    for (int i = 0; i < p->count; i++) {
        const outcome *o = &outcomes[i];
        int again = 0;
        if (p->all[i].like != i || outcome_ok(&p->all[i], o))
            continue;
        for (int j = 0; j < i && o->end.code; j++)
            again |= p->all[j].like == j && outcomes[j].end.code && !strcmp(outcomes[j].end.message, o->end.message);
        if (again || printed == MOST)
            more++;
        else
            print_faults(stdout, &p->all[i], o), printed++;
    }
    if (more)
        printf("and %d more that failed; --json FILE has them all\n", more);
}

int table_print(const plan *p, const outcome *outcomes, double seconds)
{
    int ok = 0, machine = 0;
    long pages = 0, attends = 0;
    const char *device = "no device";
    print_header(stdout, 0);
    for (int i = 0; i < p->count; i++) {
        const combination *c = &p->all[i];
        const outcome *o = &outcomes[c->like];
        ok += outcome_ok(c, o);
        if (c->like != i)
            continue;
        print_row(stdout, p, c, o, 0);
        machine += o->end.code == KG_MACHINE;
        device = *o->device ? o->device : device;
        pages += sum_up(o).pages;
        attends += sum_up(o).attends;
    }
    for (int i = 0; i < p->count; i++) {
        const combination *c = &p->all[i];
        if (c->like != i && (!i || strcmp(p->all[i - 1].spec.model.name, c->spec.model.name)))
            printf("%s has the kernels of %s\n", c->spec.model.name, p->all[c->like].spec.model.name);
    }
    print_failures(p, outcomes);
    printf("%s: %d combinations, %d of them ok; %d with kernels of their own; %ld attends and %ld pages compared in %.0f s\n", device,
           p->count, ok, p->task_count, attends, pages, seconds);
    return ok == p->count ? KG_OK : machine == p->task_count ? KG_MACHINE : KG_FAILED;
}
