// What kittygen explore prints: a row as each variant is done, a summary, or JSON.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "explore.h"

static const char *bold(void) { return kg_colour(stdout) ? KG_BOLD : ""; }
static const char *plain(void) { return kg_colour(stdout) ? KG_PLAIN : ""; }

void kg_explore_heading(const kg_explore *x)
{
    const kg_inputs *in = &x->bed.in;
    printf("data: %s; %d %s of %d tokens, %d queries of each of %d heads\n", x->data, in->count, in->count == 1 ? "layer" : "layers", x->bed.tokens,
           x->bed.positions, in->q_heads);
    printf("layers of the model:");
    for (int i = 0; i < in->count; i++)
        printf("%s %d", i ? "," : "", x->bed.in.layers[i].origin);
    printf("\n");
    if (x->warning.size)
        printf("note: %s\n", x->warning.data);
    if (*x->device)
        printf("times: %s\n", x->device);
    else
        printf("times: none (%s)\n", x->reason);
    printf("bytes: per token and KV head, sealed, and of a sequence of %ld tokens with its exact ones; errors: relative L2 in %%\n", x->context);
}

void kg_explore_row(const kg_variant *v, bool first)
{
    char worst[32], name[KG_NAME + 16];
    if (first)
        printf("%s%-28s %8s %8s %11s %8s %11s %8s  %s%s\n", bold(), "variant", "bytes", "in all", "logits mean", "worst", "output mean", "worst",
               "layer.head", plain());
    snprintf(worst, sizeof worst, "%d.%d", v->worst_layer, v->worst_head);
    snprintf(name, sizeof name, "%s%s", v->spec.variant, v->explored.nonfinite > 0 ? " (!)" : "");
    printf("%-28s %8.1f %8.1f %11.3f %8.3f %11.3f %8.3f  %s\n", name, v->bytes, v->bytes_context, 100 * v->logits_mean, 100 * v->logits_worst,
           100 * v->out_mean, 100 * v->out_worst, v->out_worst > 0 ? worst : "-");
    fflush(stdout);
}

// ---- summary ---------------------------------------------------------------------------------------------------------

static void print_times(const kg_explore *x, const int *order, int count)
{
    printf("\n%s%-28s", bold(), "attend, us per layer");
    for (int s = 0; s < x->shape_count; s++) {
        char shape[32];
        snprintf(shape, sizeof shape, "%d x %d", x->shapes[s].sequences, x->shapes[s].tokens);
        printf(" %13s", shape);
    }
    printf("%s\n", plain());
    for (int i = 0; i < count; i++) {
        const kg_variant *v = &x->variants[order[i]];
        printf("%-28s", v->spec.variant);
        for (int s = 0; s < x->shape_count; s++)
            if (v->times[s].us > 0)
                printf(" %13.2f", v->times[s].us);
            else
                printf(" %13s", "-");
        printf("\n");
    }
}

static void print_comparison(const kg_explore *x, const int *order, int count)
{
    const kg_variant *better, *smaller, *base = kg_explore_compare(x, order, count, &better, &smaller);
    if (better)
        printf("against %s: %s has %.1f %% less output error, at %.1f bytes and not %.1f\n", x->against, better->spec.variant,
               100 * (1 - better->out_mean / base->out_mean), better->bytes_context, base->bytes_context);
    if (smaller)
        printf("against %s: %s has %.1f %% fewer bytes, with an output error of %.3f %% and not %.3f %%\n", x->against, smaller->spec.variant,
               100 * (1 - smaller->bytes_context / base->bytes_context), 100 * smaller->out_mean, 100 * base->out_mean);
    if (base && !better && !smaller)
        printf("against %s: nothing has less output error at as many bytes, or fewer bytes at as much error\n", x->against);
}

void kg_explore_summary(const kg_explore *x)
{
    int count, fronts = 0, *order = kg_explore_order(x, &count);
    if (!order)
        return;
    if (*x->device && count)
        print_times(x, order, count);
    for (int i = 0; i < count; i++)
        fronts += x->variants[order[i]].front;
    printf("\nThe front of bytes in all and mean output error, %d of %d:\n", fronts, count);
    for (int i = 0, first = 1; i < count; i++)
        if (x->variants[order[i]].front) {
            kg_explore_row(&x->variants[order[i]], first);
            first = 0;
        }
    print_comparison(x, order, count);
    for (int i = 0; i < count; i++)
        if (x->variants[order[i]].explored.nonfinite > 0)
            printf("(!) %s: %.0f elements or groups were beyond fp16, and count as 0\n", x->variants[order[i]].spec.variant,
                   x->variants[order[i]].explored.nonfinite);
    free(order);
}

// ---- JSON ------------------------------------------------------------------------------------------------------------

static void add_number(kg_text *out, const char *name, double number)
{
    kg_text_addf(out, ", \"%s\": ", name);
    if (isfinite(number))
        kg_text_number(out, number);
    else
        kg_text_add(out, "null");
}

static void add_heads(kg_text *out, const char *name, const double *numbers, const kg_inputs *in)
{
    kg_text_addf(out, ",\n   \"%s\": [", name);
    for (int i = 0; i < in->count * in->q_heads; i++) {
        kg_text_add(out, i % in->q_heads ? ", " : i ? "], [" : "[");
        if (isfinite(numbers[i]))
            kg_text_number(out, numbers[i]);
        else
            kg_text_add(out, "null");
    }
    kg_text_add(out, "]]");
}

static void add_variant(kg_text *out, const kg_explore *x, const kg_variant *v)
{
    kg_text_add(out, "{\"spec\": ");
    kg_spec_json(out, &v->spec);
    kg_text_add(out, ",\n   \"variant\": ");
    kg_text_json(out, v->spec.variant);
    add_number(out, "bytes_per_token", v->bytes);
    add_number(out, "bytes_per_token_in_all", v->bytes_context);
    add_number(out, "logits_error", v->logits_mean);
    add_number(out, "logits_error_worst", v->logits_worst);
    add_number(out, "output_error", v->out_mean);
    add_number(out, "output_error_worst", v->out_worst);
    kg_text_addf(out, ", \"worst_layer\": %d, \"worst_head\": %d, \"nonfinite\": %.0f, \"front\": %s, \"kept\": %s", v->worst_layer, v->worst_head,
                 v->explored.nonfinite, v->front ? "true" : "false", v->kept ? "true" : "false");
    add_heads(out, "logits_errors", v->explored.logits, &x->bed.in);
    add_heads(out, "output_errors", v->explored.out, &x->bed.in);
    kg_text_add(out, ",\n   \"times\": [");
    for (int s = 0, more = 0; s < x->shape_count; s++)
        if (v->times[s].us > 0)
            kg_text_addf(out, "%s{\"sequences\": %d, \"context\": %d, \"us\": %.6g, \"us_p10\": %.6g, \"us_p90\": %.6g}", more++ ? ", " : "",
                         x->shapes[s].sequences, x->shapes[s].tokens, v->times[s].us, v->times[s].low, v->times[s].high);
    kg_text_add(out, "]}");
}

void kg_explore_json(kg_text *out, const kg_explore *x)
{
    kg_text_add(out, "{\"data\": ");
    kg_text_json(out, x->data);
    kg_text_add(out, ", \"warning\": ");
    kg_text_json(out, x->warning.size ? x->warning.data : "");
    kg_text_add(out, ", \"layers_of_model\": [");
    for (int i = 0; i < x->bed.in.count; i++)
        kg_text_addf(out, "%s%d", i ? ", " : "", x->bed.in.layers[i].origin);
    kg_text_addf(out, "], \"layers\": %d, \"tokens\": %d, \"queries\": %d, \"context\": %ld, \"device\": ", x->bed.in.count, x->bed.tokens,
                 x->bed.positions, x->context);
    kg_text_json(out, *x->device ? x->device : "CPU");
    kg_text_addf(out, ", \"interrupted\": %s, \"variants\": [", x->interrupted ? "true" : "false");
    for (int i = 0, more = 0; i < x->count; i++)
        if (x->variants[i].done) {
            kg_text_add(out, more++ ? ",\n  " : "\n  ");
            add_variant(out, x, &x->variants[i]);
        }
    kg_text_add(out, "]}\n");
}
