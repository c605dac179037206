// The report of kittygen explore: one page of HTML with its style and pictures inside.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chart.h"
#include "explore.h"

enum { NAME = 96, MOST_STYLE = 1 << 20 };

// The report in the making: the variants that are done, in order, and those that are shown in detail.
typedef struct {
    const kg_explore *x;
    const kg_variant **v, **shown;
    int count, shown_count;
    kg_text *out;
} page;

static void add_percent(kg_text *out, double share)
{
    if (isfinite(share))
        kg_text_addf(out, "<td>%.3f</td>", 100 * share);
    else
        kg_text_add(out, "<td>inf</td>");
}

static void add_name(kg_text *out, const kg_variant *v)
{
    kg_text_add(out, "<th scope=\"row\">");
    kg_html(out, v->spec.variant);
    kg_text_add(out, v->explored.nonfinite > 0 ? " (!)</th>" : "</th>");
}

static void begin_section(const page *p, const char *id, const char *title, const char *about)
{
    kg_text_addf(p->out, "<section id=\"%s\">\n<h2>%s</h2>\n<p>%s</p>\n", id, title, about);
}

static void end_section(const page *p) { kg_text_add(p->out, "</section>\n"); }

// Tables that are long are folded; what a table is of is said on the fold.
static void begin_table(const page *p, const char *title, bool folded)
{
    if (folded)
        kg_text_addf(p->out, "<details><summary>%s</summary>\n", title);
    kg_text_add(p->out, "<div class=\"scroll\"><table>\n<thead><tr>");
}

static void end_table(const page *p, bool folded) { kg_text_addf(p->out, "</tbody></table></div>%s\n", folded ? "</details>" : ""); }

static bool has_times(const page *p)
{
    for (int i = 0; i < p->count; i++)
        for (int s = 0; s < p->x->shape_count; s++)
            if (p->v[i]->times[s].us > 0)
                return true;
    return false;
}

// ---- fronts ----------------------------------------------------------------------------------------------------------

// The variants' costs and errors; only those on the front, with their numbers, or all.
static void add_costs(const page *p, bool front)
{
    const bool times = has_times(p);
    int number = 0;
    begin_table(p, "All variants", !front);
    kg_text_addf(p->out, "%s<th class=\"text\">variant</th><th>bytes</th><th>in all</th><th>logits, mean</th><th>worst</th><th>output, mean</th>"
                 "<th>worst</th><th>layer.head</th>", front ? "<th></th>" : "");
    for (int s = 0; s < p->x->shape_count && times; s++)
        kg_text_addf(p->out, "<th>%d x %d, us</th>", p->x->shapes[s].sequences, p->x->shapes[s].tokens);
    kg_text_add(p->out, "</tr></thead>\n<tbody>\n");
    for (int i = 0; i < p->count; i++) {
        const kg_variant *v = p->v[i];
        if (front && !v->front)
            continue;
        kg_text_addf(p->out, "<tr%s>", !front && v->front ? " class=\"front\"" : "");
        if (front)
            kg_text_addf(p->out, "<td class=\"number\">%d</td>", ++number);
        add_name(p->out, v);
        kg_text_addf(p->out, "<td>%.1f</td><td>%.1f</td>", v->bytes, v->bytes_context);
        add_percent(p->out, v->logits_mean);
        add_percent(p->out, v->logits_worst);
        add_percent(p->out, v->out_mean);
        add_percent(p->out, v->out_worst);
        kg_text_addf(p->out, v->out_worst > 0 ? "<td>%d.%d</td>" : "<td>-</td>", v->worst_layer, v->worst_head);
        for (int s = 0; s < p->x->shape_count && times; s++)
            kg_text_addf(p->out, v->times[s].us > 0 ? "<td>%.2f</td>" : "<td>-</td>", v->times[s].us);
        kg_text_add(p->out, "</tr>\n");
    }
    end_table(p, !front);
}

// The variants that crowd at the left end, if they are worth a picture of their own.
static int dense_count(const page *p)
{
    int dense = 0;
    while (dense < p->count && p->v[dense]->bytes_context <= 1.6 * p->v[0]->bytes_context)
        dense++;
    return dense > 8 && dense < p->count ? dense : 0;
}

static int memory_front(const page *p)
{
    char axis[NAME], about[512];
    kg_dot *dots = calloc((size_t)p->count, sizeof *dots);
    if (!dots)
        return KG_MACHINE;
    for (int i = 0, number = 0; i < p->count; i++)
        dots[i] = (kg_dot){p->v[i]->spec.variant, p->v[i]->bytes_context, 100 * p->v[i]->out_mean, p->v[i]->front ? ++number : 0, p->v[i]->front};
    snprintf(axis, sizeof axis, "bytes per token and KV head, %ld tokens with the exact ones", p->x->context);
    snprintf(about, sizeof about, "The line is the Pareto front: no other variant has less of both. An error of 0 lies on the axis. Errors were measured "
             "over %d tokens, where sinks and windows weigh more than in a longer sequence.", p->x->bed.tokens);
    begin_section(p, "memory", "Memory and error", about);
    kg_chart_dots(p->out, axis, "output error, mean of heads, %", dots, p->count);
    const int dense = dense_count(p);
    if (dense) {
        kg_text_addf(p->out, "<h3>The %d smallest</h3>\n", dense);
        kg_chart_dots(p->out, axis, "output error, mean of heads, %", dots, dense);
    }
    add_costs(p, true);
    end_section(p);
    free(dots);
    return KG_OK;
}

// One picture of a shape's times: over memory, or under the error.
static int time_front(const page *p, int shape, bool error)
{
    kg_dot *dots = calloc((size_t)p->count, sizeof *dots);
    kg_point *points = calloc((size_t)p->count, sizeof *points);
    char title[NAME], time[NAME];
    int count = 0;
    if (!dots || !points) {
        free(dots);
        free(points);
        return KG_MACHINE;
    }
    for (int i = 0; i < p->count; i++) {
        const kg_variant *v = p->v[i];
        if (v->times[shape].us > 0) {
            dots[count] = (kg_dot){.name = v->spec.variant, .x = error ? v->times[shape].us : v->bytes_context,
                                   .y = error ? 100 * v->out_mean : v->times[shape].us};
            points[count] = (kg_point){dots[count].x, dots[count].y};
            count++;
        }
    }
    for (int i = 0; i < count; i++)
        dots[i].front = kg_on_front(points, count, i);
    // Along the line: from left to right.
    for (int i = 1; i < count; i++)
        for (int j = i; j && dots[j].x < dots[j - 1].x; j--) {
            const kg_dot left = dots[j];
            dots[j] = dots[j - 1];
            dots[j - 1] = left;
        }
    for (int i = 0, number = 0; i < count; i++)
        dots[i].number = dots[i].front ? ++number : 0;
    snprintf(title, sizeof title, "%s, %d x %d", error ? "Error over time" : "Time over memory", p->x->shapes[shape].sequences, p->x->shapes[shape].tokens);
    snprintf(time, sizeof time, "attend, microseconds per layer, %d x %d tokens", p->x->shapes[shape].sequences, p->x->shapes[shape].tokens);
    kg_text_addf(p->out, "<h3>%s</h3>\n", title);
    kg_chart_dots(p->out, error ? time : "bytes per token and KV head, exact tokens too", error ? "output error, mean of heads, %" : time, dots, count);
    begin_table(p, title, false);
    kg_text_addf(p->out, "<th></th><th class=\"text\">variant</th><th>%s</th><th>%s</th></tr></thead>\n<tbody>\n", error ? "us" : "bytes in all", error ? "output error" : "us");
    for (int i = 0; i < count; i++)
        if (dots[i].front) {
            kg_text_addf(p->out, "<tr><td class=\"number\">%d</td><th scope=\"row\">", dots[i].number);
            kg_html(p->out, dots[i].name);
            kg_text_addf(p->out, "</th><td>%.2f</td><td>%.3f</td></tr>\n", dots[i].x, dots[i].y);
        }
    end_table(p, false);
    free(dots);
    free(points);
    return KG_OK;
}

static int times(const page *p)
{
    int code = KG_OK;
    begin_section(p, "time", "Memory and time", "Decode attention: one new token per sequence, whole layers of their own pages in a CUDA graph.");
    if (!has_times(p)) {
        kg_text_add(p->out, "<p class=\"none\">No times: ");
        kg_html(p->out, *p->x->device ? "none was measured" : p->x->reason);
        kg_text_add(p->out, ".</p>\n");
    }
    for (int s = 0; s < p->x->shape_count && has_times(p) && !code; s++)
        if (!(code = time_front(p, s, false)))
            code = time_front(p, s, true);
    end_section(p);
    return code;
}

// ---- errors ----------------------------------------------------------------------------------------------------------

static int layers(const page *p)
{
    const int layer_count = p->x->bed.in.count, q_heads = p->x->bed.in.q_heads;
    double *means = calloc((size_t)p->count * (size_t)layer_count, sizeof *means);
    const char **names = calloc((size_t)p->count, sizeof *names);
    if (!means || !names) {
        free(means);
        free(names);
        return KG_MACHINE;
    }
    for (int i = 0; i < p->count; i++) {
        names[i] = p->v[i]->spec.variant;
        for (int h = 0; h < layer_count * q_heads; h++)
            means[i * layer_count + h / q_heads] += p->v[i]->explored.out[h] / q_heads;
    }
    begin_section(p, "layers", "Error by layer", "Output error in %, mean of the heads of a captured layer; the fewest bytes on top.");
    kg_chart_heat(p->out, names, 0, p->count, "layer", layer_count, means, kg_ramp_of(means, p->count * layer_count));
    begin_table(p, "Output error by layer, %", true);
    kg_text_add(p->out, "<th>variant</th>");
    for (int l = 0; l < layer_count; l++)
        kg_text_addf(p->out, "<th>%d</th>", l);
    kg_text_add(p->out, "</tr></thead>\n<tbody>\n");
    for (int i = 0; i < p->count; i++) {
        kg_text_add(p->out, "<tr>");
        add_name(p->out, p->v[i]);
        for (int l = 0; l < layer_count; l++)
            add_percent(p->out, means[i * layer_count + l]);
        kg_text_add(p->out, "</tr>\n");
    }
    end_table(p, true);
    end_section(p);
    free(means);
    free(names);
    return KG_OK;
}

static void add_matrix(const page *p, const char *title, const double *numbers)
{
    const kg_inputs *in = &p->x->bed.in;
    begin_table(p, title, true);
    kg_text_add(p->out, "<th>layer</th>");
    for (int h = 0; h < in->q_heads; h++)
        kg_text_addf(p->out, "<th>%d</th>", h);
    kg_text_add(p->out, "</tr></thead>\n<tbody>\n");
    for (int l = 0; l < in->count; l++) {
        kg_text_addf(p->out, "<tr><th scope=\"row\">%d</th>", l);
        for (int h = 0; h < in->q_heads; h++)
            add_percent(p->out, numbers[l * in->q_heads + h]);
        kg_text_add(p->out, "</tr>\n");
    }
    end_table(p, true);
}

static void add_heading(const page *p, const kg_variant *v)
{
    kg_text_add(p->out, "<h3>");
    kg_html(p->out, v->spec.variant);
    if (v->formats.count > 1) {
        kg_text_add(p->out, ", layers ");
        kg_spec_list_layers(p->out, &v->spec, 0);
    }
    kg_text_add(p->out, "</h3>\n");
}

static void heads(const page *p)
{
    const kg_inputs *in = &p->x->bed.in;
    kg_ramp ramp = {INFINITY, 0};
    for (int i = 0; i < p->shown_count; i++) { // one for all, so that they compare
        const kg_ramp one = kg_ramp_of(p->shown[i]->explored.out, in->count * in->q_heads);
        ramp = (kg_ramp){fmin(ramp.least, one.least), fmax(ramp.most, one.most)};
    }
    begin_section(p, "heads", "Error by layer and head", "Output error in % of each query head, of the variants on the front and what they are compared with.");
    for (int i = 0; i < p->shown_count; i++) {
        add_heading(p, p->shown[i]);
        kg_chart_heat(p->out, 0, "layer", in->count, "query head", in->q_heads, p->shown[i]->explored.out, ramp);
        add_matrix(p, "Output error by layer and head, %", p->shown[i]->explored.out);
        add_matrix(p, "Logits error by layer and head, %", p->shown[i]->explored.logits);
    }
    end_section(p);
}

// ---- channels and codes ----------------------------------------------------------------------------------------------

// "23, 24 (86 %)": boosted in every page, and in some.
static void add_channels(kg_text *out, const double *share, int head_dim)
{
    bool begun = false;
    for (int c = 0; c < head_dim; c++)
        if (share[c] > 0) {
            kg_text_addf(out, "%s%d", begun ? ", " : "", c);
            if (share[c] < 1 - 1e-9)
                kg_text_addf(out, " (%.0f %%)", 100 * share[c]);
            begun = true;
        }
}

static int channels(const page *p)
{
    const kg_inputs *in = &p->x->bed.in;
    const int rows = in->count * in->kv_heads;
    char(*text)[32] = calloc((size_t)rows, sizeof *text);
    const char **names = calloc((size_t)rows, sizeof *names);
    bool any = false;
    if (!text || !names) {
        free(text);
        free(names);
        return KG_MACHINE;
    }
    for (int r = 0; r < rows; r++) {
        snprintf(text[r], sizeof *text, "layer %d, KV head %d", r / in->kv_heads, r % in->kv_heads);
        names[r] = text[r];
    }
    begin_section(p, "channels", "Boosted channels", "How many of a head's pages boost a key channel: the stronger the colour, the more.");
    for (int i = 0; i < p->shown_count; i++) {
        const kg_formats *f = &p->shown[i]->formats;
        int boosting = 0;
        while (boosting < f->count && !f->formats[boosting].key_boosted)
            boosting++;
        if (boosting == f->count)
            continue;
        any = true;
        kg_text_add(p->out, "<h3>");
        kg_html(p->out, p->shown[i]->spec.variant);
        kg_text_addf(p->out, ": %d of %d channels%s</h3>\n", f->formats[boosting].key_boosted, in->head_dim, f->count > 1 ? ", or as the layer has it" : "");
        kg_chart_shares(p->out, names, rows, in->head_dim, p->shown[i]->explored.boosted);
        begin_table(p, "Boosted channels (share of the pages)", true);
        kg_text_add(p->out, "<th>head</th><th class=\"text\">channels</th></tr></thead>\n<tbody>\n");
        for (int r = 0; r < rows; r++) {
            kg_text_addf(p->out, "<tr><th scope=\"row\">%s</th><td class=\"text\">", names[r]);
            add_channels(p->out, p->shown[i]->explored.boosted + r * in->head_dim, in->head_dim);
            kg_text_add(p->out, "</td></tr>\n");
        }
        end_table(p, true);
    }
    if (!any)
        kg_text_add(p->out, "<p class=\"none\">None of these variants boosts channels.</p>\n");
    end_section(p);
    free(text);
    free(names);
    return KG_OK;
}

static void add_codes(const page *p, const kg_variant *v)
{
    const kt_format *f = v->formats.formats;
    static const char *const names[KG_CODES] = {"keys", "boosted keys", "values"};
    const int bits[KG_CODES] = {f->key_bits, f->key_boosted ? f->key_boost_bits : 16, f->value_bits};
    for (int k = 0; k < KG_CODES; k++) {
        char title[NAME];
        snprintf(title, sizeof title, "%s, %d bits%s", names[k], bits[k], bits[k] > 4 ? " (their highest 4)" : "");
        if (bits[k] < 16 && !(k == KG_CODES_VALUE ? f->value_rotation : f->key_rotation))
            kg_chart_bars(p->out, title, v->explored.codes[k], bits[k] > 4 ? KG_EXPLORE_BARS : 1 << bits[k]);
    }
    begin_table(p, "Codes, %", true);
    kg_text_add(p->out, "<th></th>");
    for (int i = 0; i < KG_EXPLORE_BARS; i++)
        kg_text_addf(p->out, "<th>%d</th>", i);
    kg_text_add(p->out, "</tr></thead>\n<tbody>\n");
    for (int k = 0; k < KG_CODES; k++) {
        double sum = 0;
        for (int i = 0; i < KG_EXPLORE_BARS; i++)
            sum += v->explored.codes[k][i];
        kg_text_addf(p->out, "<tr><th scope=\"row\">%s</th>", names[k]);
        for (int i = 0; i < KG_EXPLORE_BARS && sum > 0; i++)
            kg_text_addf(p->out, "<td>%.2f</td>", 100 * v->explored.codes[k][i] / sum);
        kg_text_add(p->out, "</tr>\n");
    }
    end_table(p, true);
}

static void codes(const page *p)
{
    begin_section(p, "codes", "Codes", "How often a code is stored: where an element lies between the least and the greatest of its group. Of rotated keys and values it is not known.");
    for (int i = 0; i < p->shown_count; i++) {
        const kt_format *f = p->shown[i]->formats.formats;
        if ((f->key_bits == 16 || f->key_rotation) && (f->value_bits == 16 || f->value_rotation)) // no codes, or none that show
            continue;
        add_heading(p, p->shown[i]);
        add_codes(p, p->shown[i]);
    }
    end_section(p);
}

// ---- the page --------------------------------------------------------------------------------------------------------

static int add_head(const page *p, char *error)
{
    char path[KG_PATH + 16], *style;
    size_t size;
    KG_TRY(kg_find_folder("templates", "KT_TEMPLATES", path, error, KG_ERROR));
    strcat(path, "/report.css");
    KG_TRY(kg_file_read(path, MOST_STYLE, &style, &size, error, KG_ERROR));
    kg_text_add(p->out, "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, "
                        "initial-scale=1\">\n<meta name=\"color-scheme\" content=\"light dark\">\n<title>");
    kg_html(p->out, p->x->variants[0].spec.model.name);
    kg_text_addf(p->out, ": %d variants</title>\n<style>\n", p->count);
    kg_text_bytes(p->out, style, size);
    kg_text_add(p->out, "</style>\n</head>\n<body>\n");
    free(style);
    return KG_OK;
}

static void add_comparison(const page *p)
{
    int count, *order = kg_explore_order(p->x, &count);
    const kg_variant *better = 0, *smaller = 0, *base = order ? kg_explore_compare(p->x, order, count, &better, &smaller) : 0;
    free(order);
    if (!base)
        return;
    kg_text_add(p->out, "<p class=\"finding\">Against <b>");
    kg_html(p->out, base->spec.variant);
    kg_text_addf(p->out, "</b> (%.1f bytes, %.3f %% error): ", base->bytes_context, 100 * base->out_mean);
    if (better) {
        kg_text_add(p->out, "<b>");
        kg_html(p->out, better->spec.variant);
        kg_text_addf(p->out, "</b> has %.1f %% less output error at %.1f bytes. ", 100 * (1 - better->out_mean / base->out_mean), better->bytes_context);
    }
    if (smaller) {
        kg_text_add(p->out, "<b>");
        kg_html(p->out, smaller->spec.variant);
        kg_text_addf(p->out, "</b> has %.1f %% fewer bytes with an error of %.3f %%.", 100 * (1 - smaller->bytes_context / base->bytes_context),
                     100 * smaller->out_mean);
    }
    kg_text_addf(p->out, "%s</p>\n", better || smaller ? "" : "nothing has less output error at as many bytes, or fewer bytes at as much error.");
}

static void add_header(const page *p)
{
    const kg_explore *x = p->x;
    const kg_inputs *in = &x->bed.in;
    kg_text_add(p->out, "<header>\n<h1>");
    kg_html(p->out, x->variants[0].spec.model.name);
    kg_text_addf(p->out, ": %d variants of its KV cache</h1>\n<dl>\n<dt>Data</dt><dd>", p->count);
    kg_html(p->out, x->data);
    kg_text_addf(p->out, ": %d %s of %d tokens; %d query heads, %d KV heads, head_dim %d, %s; %d queries of each head</dd>\n", in->count,
                 in->count == 1 ? "layer" : "layers", x->bed.tokens, in->q_heads, in->kv_heads, in->head_dim, in->dtype ? "bf16" : "fp16",
                 x->bed.positions);
    kg_text_add(p->out, "<dt>Layers</dt><dd>");
    for (int i = 0; i < in->count; i++)
        kg_text_addf(p->out, "%s%d: the model's %d", i ? ", " : "", i, x->bed.in.layers[i].origin);
    kg_text_add(p->out, "</dd>\n<dt>Bytes</dt><dd>per token and KV head: of sealed pages; in all, ");
    kg_text_addf(p->out, "of a sequence of %ld tokens with its exact ones</dd>\n<dt>Errors</dt><dd>relative L2 against float64 attention over the exact "
                 "inputs, in %%, of a head's queries</dd>\n<dt>Times</dt><dd>", x->context);
    kg_html(p->out, *x->device ? x->device : "none");
    kg_text_add(p->out, "</dd>\n</dl>\n");
    if (x->warning.size) {
        kg_text_add(p->out, "<p class=\"warning\">");
        kg_html(p->out, x->warning.data);
        kg_text_add(p->out, "</p>\n");
    }
    kg_text_addf(p->out, "%s", x->interrupted ? "<p class=\"warning\">Interrupted: not every variant is here.</p>\n" : "");
    add_comparison(p);
    kg_text_add(p->out, "<nav><a href=\"#memory\">Memory and error</a> <a href=\"#time\">Memory and time</a> <a href=\"#layers\">Layers</a> <a href=\"#heads\">Heads"
                        "</a> <a href=\"#channels\">Channels</a> <a href=\"#codes\">Codes</a> <a href=\"#all\">All variants</a></nav>\n</header>\n<main>\n");
}

static int add_page(const page *p, char *error)
{
    KG_TRY(add_head(p, error));
    add_header(p);
    int code = memory_front(p);
    if (!code)
        code = times(p);
    if (!code)
        code = layers(p);
    heads(p);
    if (!code)
        code = channels(p);
    codes(p);
    begin_section(p, "all", "All variants", "By bytes; those on the front of memory and error are marked.");
    add_costs(p, false);
    end_section(p);
    kg_text_add(p->out, "</main>\n<footer>kittygen " KT_VERSION "</footer>\n</body>\n</html>\n");
    return code || p->out->failed ? kg_fail(KG_MACHINE, error, KG_ERROR, "out of memory") : KG_OK;
}

int kg_explore_html(const kg_explore *x, kg_text *out, char *error)
{
    page p = {.x = x, .out = out};
    int *order = kg_explore_order(x, &p.count), code = KG_MACHINE;
    p.v = calloc((size_t)p.count + 1, sizeof *p.v);
    p.shown = calloc((size_t)p.count + 1, sizeof *p.shown);
    if (order && p.v && p.shown) {
        for (int i = 0; i < p.count; i++) {
            p.v[i] = &x->variants[order[i]];
            // What has no error has nothing to look at.
            if (p.v[i]->out_mean > 0 && (p.v[i]->front || !strcmp(p.v[i]->spec.variant, x->against)))
                p.shown[p.shown_count++] = p.v[i];
        }
        code = add_page(&p, error);
    } else
        kg_fail(code, error, KG_ERROR, "out of memory");
    free(order);
    free(p.v);
    free(p.shown);
    return code;
}
