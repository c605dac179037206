// kittygen inspect: a page byte by byte, the memory of a model, and what the kernels of a step cost.
#include "inspect.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"
#include "kitty.h"
#include "progress.h"

enum { MOST_CARDS = 32 };

// ---- text ------------------------------------------------------------------------------------------------------------

static void add_regions(kg_text *out, const kg_region *regions, int count)
{
    kg_text_addf(out, "  %8s %8s %5s %8s  %s\n", "offset", "bytes", "times", "apart", "what");
    for (int i = 0; i < count; i++) {
        const kg_region *r = &regions[i];
        kg_text_addf(out, "  %8d %8d ", r->offset, r->size);
        if (r->count > 1)
            kg_text_addf(out, "%5d %8d  ", r->count, r->stride);
        else
            kg_text_addf(out, "%5s %8s  ", "", "");
        kg_text_addf(out, "%s\n", r->what);
    }
}

static const char *amount(double bytes, char text[32])
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
    int unit = 0;
    for (; bytes >= 10000 && unit < 4; unit++)
        bytes /= 1024;
    snprintf(text, 32, unit ? "%.1f %s" : "%.0f %s", bytes, units[unit]);
    return text;
}

static void add_kernels(kg_text *out, const kg_costs *c)
{
    const int width = c->package.format_count > 1 ? 19 : 16;
    kg_text_addf(out, "  %-*s %-12s %14s %8s %7s %9s %12s %12s  %s\n", width, "kernel", "when", "grid", "threads", "shared", "blocks/SM", "reads", "writes", "what");
    for (int i = 0; i < c->package.count; i++) {
        const kg_launch *l = &c->launches[i];
        char grid[48] = "-", read[32] = "-", written[32] = "-", when[32];
        const int layers = kg_spec_layers(&c->package.spec, l->kernel->format);
        if (c->package.format_count > 1 && !strcmp(l->when, "every layer"))
            snprintf(when, sizeof when, "%d layer%s", layers, layers > 1 ? "s" : "");
        else
            snprintf(when, sizeof when, "%s", l->when);
        if (l->grid[0]) {
            snprintf(grid, sizeof grid, "%ld,%ld,%ld", l->grid[0], l->grid[1], l->grid[2]);
            amount(l->read, read);
            amount(l->written, written);
        }
        kg_text_addf(out, "  %-*s %-12s %14s %8d %7d %9d %12s %12s  %s\n", width, l->kernel->name, when, grid, l->kernel->threads, l->kernel->shared,
                     l->blocks, read, written, l->what);
    }
}

// A page, a slab and a table of the layers that have a format.
static void add_format(kg_text *out, const kg_costs *c, int index)
{
    const kt_format *f = &c->package.formats[index].format;
    const char *bold = kg_colour(stdout) ? KG_BOLD : "", *plain = kg_colour(stdout) ? KG_PLAIN : "";
    kg_region regions[KG_REGIONS];
    if (c->package.format_count > 1) {
        kg_text_addf(out, "\n%sformat %d%s of layer%s ", bold, index, plain, kg_spec_layers(&c->package.spec, index) > 1 ? "s" : "");
        kg_spec_list_layers(out, &c->package.spec, index);
        kg_text_add(out, "\n");
    }
    kg_text_addf(out, "\n%spage%s: %d tokens of one layer and KV head, %d bytes, %.4g a token; %s %.0f\n", bold, plain, f->page, f->block_bytes,
                 kg_bytes_per_token(f), f->dtype == KT_BF16 ? "bf16" : "fp16", 4.0 * f->head_dim);
    add_regions(out, regions, kg_page_regions(f, regions));
    kg_text_addf(out, "\n%sexact tokens%s of one sequence, layer and KV head: %d bytes\n", bold, plain, f->slab_bytes);
    add_regions(out, regions, kg_slab_regions(f, regions));
    if (f->table_bytes) {
        kg_text_addf(out, "\n%scalibration%s of a layer and KV head: %d bytes\n", bold, plain, f->table_bytes);
        add_regions(out, regions, kg_table_regions(f, regions));
    }
}

static void add_text(kg_text *out, const kg_costs *c)
{
    const kg_spec *spec = &c->package.spec;
    const char *bold = kg_colour(stdout) ? KG_BOLD : "", *plain = kg_colour(stdout) ? KG_PLAIN : "";
    char a[32], b[32];
    kg_text_addf(out, "%s%s%s\n", bold, spec->name, plain);
    for (int i = 0; i < c->package.format_count; i++)
        add_format(out, c, i);
    kg_text_addf(out, "\n%smemory%s: %ld %s of %ld tokens, %d layers, %d KV heads\n", bold, plain, c->batch, c->batch == 1 ? "sequence" : "sequences",
                 c->context, spec->model.layers, spec->model.kv_heads);
    kg_text_addf(out, "  pages  %14s\n  exact  %14s\n", amount(c->pages, a), amount(c->exact, b));
    kg_text_addf(out, "  in all %14s, 1/%.2f of %s in %s\n", amount(c->pages + c->exact, a), c->plain / (c->pages + c->exact), amount(c->plain, b),
                 spec->model.dtype == KT_BF16 ? "bf16" : "fp16");
    kg_text_addf(out, "\n%skernels%s of a step of one token for each, on %s (%s, %d multiprocessors); bytes are of one launch\n", bold, plain,
                 c->card->name, c->card->arch, c->card->multiprocessors);
    add_kernels(out, c);
    kg_text_addf(out, "  a step of %d layers reads %s and writes %s: %.1f us at %.2f TB/s\n", spec->model.layers, amount(c->read, a),
                 amount(c->written, b), 1e6 * (c->read + c->written) / c->card->bandwidth, c->card->bandwidth / 1e12);
}

// ---- JSON ------------------------------------------------------------------------------------------------------------

static void add_json_regions(kg_text *out, const char *name, int bytes, const kg_region *regions, int count)
{
    kg_text_addf(out, ",\n  \"%s\": {\"bytes\": %d, \"regions\": [", name, bytes);
    for (int i = 0; i < count; i++) {
        kg_text_addf(out, "%s\n    {\"offset\": %d, \"bytes\": %d, \"times\": %d, \"apart\": %d, \"what\": ", i ? "," : "", regions[i].offset,
                     regions[i].size, regions[i].count, regions[i].stride);
        kg_text_json(out, regions[i].what);
        kg_text_add(out, "}");
    }
    kg_text_add(out, "]}");
}

static void add_json_format(kg_text *out, const kt_format *f)
{
    kg_region regions[KG_REGIONS];
    add_json_regions(out, "page", f->block_bytes, regions, kg_page_regions(f, regions));
    add_json_regions(out, "exact", f->slab_bytes, regions, kg_slab_regions(f, regions));
    add_json_regions(out, "calibration", f->table_bytes, regions, kg_table_regions(f, regions));
}

static void add_json(kg_text *out, const kg_costs *c)
{
    const kg_package *p = &c->package;
    kg_text_add(out, "{\"spec\": ");
    kg_spec_json(out, &p->spec);
    if (p->format_count == 1)
        add_json_format(out, &p->formats[0].format);
    for (int i = 0; i < p->format_count && p->format_count > 1; i++) {
        kg_text_addf(out, "%s{\"layers\": %d", i ? ",\n " : ",\n \"formats\": [", kg_spec_layers(&p->spec, i));
        add_json_format(out, &p->formats[i].format);
        kg_text_add(out, i + 1 < p->format_count ? "}" : "}]");
    }
    kg_text_addf(out, ",\n  \"sequences\": %ld, \"context\": %ld,\n  \"memory\": {\"pages\": %.0f, \"exact\": %.0f, \"plain\": %.0f}", c->batch, c->context,
                 c->pages, c->exact, c->plain);
    kg_text_addf(out, ",\n  \"card\": \"%s\", \"arch\": \"%s\", \"multiprocessors\": %d, \"bandwidth\": %.4g,\n  \"kernels\": [", c->card->name, c->card->arch,
                 c->card->multiprocessors, c->card->bandwidth);
    for (int i = 0; i < c->package.count; i++) {
        const kg_launch *l = &c->launches[i];
        kg_text_addf(out, "%s\n    {\"kernel\": \"%s\", \"op\": \"%s\", \"when\": \"%s\", \"grid\": [%ld, %ld, %ld], \"threads\": %d, \"shared\": %d, "
                     "\"blocks_per_sm\": %d, \"read\": %.0f, \"written\": %.0f, \"what\": ", i ? "," : "", l->kernel->name, l->kernel->op, l->when,
                     l->grid[0], l->grid[1], l->grid[2], l->kernel->threads, l->kernel->shared, l->blocks, l->read, l->written);
        kg_text_json(out, l->what);
        kg_text_add(out, "}");
    }
    kg_text_addf(out, "],\n  \"step\": {\"read\": %.0f, \"written\": %.0f}}", c->read, c->written);
}

// ---- the command -----------------------------------------------------------------------------------------------------

static int inspect(const char *what, const kg_spec_options *options, long batch, long context, const kg_card *card, bool json, kg_text *out, char *error)
{
    kg_spec *specs;
    int count, code = kg_spec_load(what, options, &specs, &count, error, KG_ERROR);
    for (int i = 0; i < count && !code; i++) {
        static kg_costs costs;
        code = kg_costs_make(&specs[i], batch, context, card, &costs, error);
        if (!code) {
            kg_text_add(out, !out->size ? json ? "[" : "" : json ? ",\n " : "\n");
            (json ? add_json : add_text)(out, &costs);
        }
        kg_package_free(&costs.package);
    }
    free(specs);
    return code;
}

int kg_command_inspect(int argc, char **argv)
{
    const char *names[MOST_CARDS], *batch = "1", *context = "8192", *card = "h100";
    kg_spec_options options = {0};
    int json = 0, code, chosen = 0;
    long sequences, tokens;
    const kg_option table[] = {
        {"--batch", "N", "sequences (default: 1)", 0, &batch},
        {"--context", "N", "tokens of each, the new one included (default: 8192)", 0, &context},
        {"--card", "NAME", "a100, a10, rtx3090, rtx4090, l40s, h100 (default), h200, b200, rtx5090", 0, &card},
        {"--dtype", "fp16|bf16", "override the model's element type", 0, &options.dtype},
        {"--json", 0, "print JSON: an array", &json, 0},
        {0, 0, 0, 0, 0},
    };
    const kg_usage usage = {
        "kittygen inspect SPEC... [options]",
        "Shows where every byte of a sealed page and of a sequence's exact tokens lies, what memory the model takes for a batch and a\n"
        "context, and what each kernel of a decode step costs: what it reads and writes, its launch, its shared memory. Splits are\n"
        "those that the runtime chooses on such a card for sequences of one length. Registers are what kittygen build shows.\n",
        table, 1, -1};
    const int count = kg_options(&usage, argc, argv, &code);
    if (count < 0)
        return code;
    for (int i = 0; i < kg_card_count; i++)
        names[i] = kg_cards[i].name;
    if ((code = kg_option_integer("inspect", "--batch", batch, 1, 4096, &sequences)) ||
        (code = kg_option_integer("inspect", "--context", context, 2, 1 << 22, &tokens)) ||
        (code = kg_option_word("inspect", "--card", card, names, kg_card_count, &chosen)))
        return code;
    char error[KG_ERROR] = "";
    kg_text out = {0};
    for (int i = 1; i <= count && !code; i++)
        code = inspect(argv[i], &options, sequences, tokens, &kg_cards[chosen], json, &out, error);
    if (!code && json)
        kg_text_add(&out, "]\n");
    if (!code && out.failed)
        code = kg_fail(KG_MACHINE, error, sizeof error, "out of memory");
    if (code)
        fprintf(stderr, "kittygen inspect: %s\n", error);
    else
        fputs(out.data, stdout);
    kg_text_free(&out);
    return code;
}
