// What kittygen tune prints.
#include <math.h>

#include "tune.h"

static const char *kernel_name(const kg_attend_plan *menu, int kernel, char name[48])
{
    const kg_attend_config *c = &menu->configs[kernel];
    snprintf(name, 48, "%dx%dx%dx%d", c->warps, c->stages, c->tiles, c->blocks);
    return name;
}

void kg_tune_print(const kg_tune *t, const kg_tune_result *r)
{
    char name[48], before[48];
    int order[KG_ATTEND_MENU], usable = 0;
    const int now = kg_tune_selected(t, r->shape);
    for (int k = 0; k < t->menu.count; k++)
        if (r->us[k] > 0)
            order[usable++] = k;
    const int best = kg_tune_fastest(r, order, usable);
    if (best < 0)
        printf("  %3d x %-6d no kernel is right\n", r->shape.sequences, r->shape.tokens);
    else
        printf("  %3d x %-6d best of %d: %-10s %8.2f us; selected so far: %-10s %8.2f us\n", r->shape.sequences, r->shape.tokens, usable,
               kernel_name(&t->menu, best, name), r->us[best], kernel_name(&t->menu, now, before), r->us[now]);
    fflush(stdout);
}

void kg_tune_json(kg_text *out, const kg_tune *t, const kg_tune_result *r, const int *chosen, int count)
{
    char name[48];
    kg_text_add(out, out->size ? ",\n {\"op\": \"tune\", \"spec\": " : "{\"op\": \"tune\", \"spec\": ");
    kg_text_json(out, t->spec->name);
    kg_text_add(out, ", \"card\": ");
    kg_text_json(out, t->bench.gpu.name);
    kg_text_addf(out, ", \"sequences\": %d, \"context\": %d, \"selected\": \"%s\", \"chosen\": ", r->shape.sequences, r->shape.tokens,
                 kernel_name(&t->menu, kg_tune_selected(t, r->shape), name));
    kg_text_addf(out, count ? "\"%s\", \"us\": {" : "null, \"us\": {", count ? kernel_name(&t->menu, kg_tune_fastest(r, chosen, count), name) : "");
    const char *separator = "";
    for (int k = 0; k < t->menu.count; k++) {
        if (!(r->us[k] > 0))
            continue;
        kg_text_addf(out, "%s\"%s\": %.5g", separator, kernel_name(&t->menu, k, name), r->us[k]);
        separator = ", ";
    }
    kg_text_add(out, "}}");
}

void kg_tune_print_choice(const kg_tune *t, const char *path, const int *chosen, int count)
{
    char name[48];
    double gain = 0;
    int done = 0;
    printf("  chosen:");
    for (int i = 0; i < count; i++)
        printf(" %s", kernel_name(&t->menu, chosen[i], name));
    for (int i = 0; i < t->count; i++) {
        const kg_tune_result *r = &t->results[i];
        const double before = r->us[kg_tune_selected(t, r->shape)];
        if (!r->done || !(before > 0))
            continue;
        gain += log(before / r->us[kg_tune_fastest(r, chosen, count)]);
        done++;
    }
    printf("; %.1f %% less time than before in the mean of %d shapes; in %s\n", done ? 100 * (1 - exp(-gain / done)) : 0, done, path);
    fflush(stdout);
}
