// kittygen check: reads specs, refuses what is wrong, and shows what they cost.
#include "command.h"
#include "fields.h"
#include "kitty.h"
#include "layout.h"
#include "tuned.h"

#include <stdio.h>
#include <stdlib.h>

enum { CONTEXT = 8192 };

// What a spec costs, in bytes.
typedef struct {
    kg_formats formats;
    double token, token_fp16;          // per token and KV head, sealed, the mean of the layers
    double ratio;
    long long model, model_fp16;       // one sequence of CONTEXT tokens, all layers and heads, exact tokens too
    kg_attend_plan plans[KT_FORMATS];
    kg_tuned_set tuned[KT_FORMATS];    // where the plans are from; head_dim 0: the rules
} costs;

static int compute_costs(costs *c, const kg_spec *spec, const char *from, char *error)
{
    const char *why = kg_formats_of(spec, &c->formats);
    if (why)
        return kg_fail(KG_USER, error, KG_ERROR, "%s: %s: %s", from, spec->name, why);
    c->token = kg_formats_token(&c->formats);
    c->token_fp16 = 4.0 * spec->model.head_dim;
    c->ratio = c->token_fp16 / c->token;
    c->model = (long long)(spec->model.kv_heads * (kg_formats_sealed(&c->formats, CONTEXT) + kg_formats_exact(&c->formats)));
    c->model_fp16 = (long long)spec->model.layers * spec->model.kv_heads * CONTEXT * 4 * spec->model.head_dim;
    int code = KG_OK;
    for (int i = 0; i < c->formats.count && !code; i++)
        code = kg_tuned_plan(&c->formats.formats[i], spec->model.kv_heads, &c->plans[i], &c->tuned[i], error);
    return code;
}

// What the layers of a format keep.
static void add_format(kg_text *out, const kt_format *f)
{
    static const char *const rotations[] = {"", ", rotated by Hadamard", ", rotated by a matrix"};
    kg_text_addf(out, "  keys       %d bits", f->key_bits);
    if (f->key_boosted)
        kg_text_addf(out, ", %d of %d channels at %d", f->key_boosted, f->head_dim, f->key_boost_bits);
    if (f->key_bits < 16)
        kg_text_addf(out, ", groups of %d %s%s", f->key_group, f->key_along ? "channels" : "tokens", f->key_range ? ", ranges by least squares" : "");
    if (f->key_meta8)
        kg_text_add(out, ", scales and zeros of 8 bits");
    kg_text_addf(out, "%s, window %d\n  values     %d bits", rotations[f->key_rotation], f->key_window, f->value_bits);
    if (f->value_bits < 16)
        kg_text_addf(out, ", groups of %d %s%s", f->value_group, f->value_along ? "tokens" : "channels", f->value_range ? ", ranges by least squares" : "");
    if (f->value_meta8)
        kg_text_add(out, ", scales and zeros of 8 bits");
    kg_text_addf(out, "%s, window %d\n", rotations[f->value_rotation], f->value_window);
    kg_text_addf(out, "  page       %d tokens: %d bytes per KV head (header %d, keys %d, values %d); sink %d\n", f->page, f->block_bytes,
                 KT_HEADER_BYTES, f->value_tiles - KT_HEADER_BYTES, f->block_bytes - f->value_tiles, f->sink);
    kg_text_addf(out, "  per token  %.4g bytes per KV head; fp16 %.0f, %.2f times that\n", kg_bytes_per_token(f), 4.0 * f->head_dim,
                 4.0 * f->head_dim / kg_bytes_per_token(f));
    kg_text_addf(out, "  exact      %d bytes per sequence and KV head\n", f->slab_bytes);
}

static void add_memory(kg_text *out, const costs *c)
{
    const double mib = 1 << 20;
    kg_text_addf(out, "  memory     %.1f MiB for one sequence of %d tokens; fp16 %.1f MiB\n", (double)c->model / mib, CONTEXT,
                 (double)c->model_fp16 / mib);
}

static void add_kernels(kg_text *out, const kg_attend_plan *plan, const kg_tuned_set *tuned)
{
    kg_text_addf(out, "  attend     %d kernels (warps x stages x tiles x blocks):", plan->count);
    for (int i = 0; i < plan->count; i++) {
        const kg_attend_config *k = &plan->configs[i];
        kg_text_addf(out, " %dx%dx%dx%d", k->warps, k->stages, k->tiles, k->blocks);
    }
    if (tuned->head_dim)
        kg_text_addf(out, "; measured for %s on %s\n", tuned->spec, tuned->card);
    else
        kg_text_add(out, "; by rule: nothing like it was measured (kittygen tune)\n");
}

static void add_text(kg_text *out, const kg_spec *spec, const costs *c)
{
    const kg_formats *f = &c->formats;
    kg_text_addf(out, "%s\n", spec->name);
    kg_text_addf(out, "  model      %d layers, %d query heads, %d KV heads, head_dim %d, %s\n", spec->model.layers, spec->model.q_heads,
                 spec->model.kv_heads, spec->model.head_dim, spec->model.dtype == KT_BF16 ? "bf16" : "fp16");
    for (int i = 0; i < f->count; i++) {
        if (f->count > 1) {
            kg_text_addf(out, " layer%s ", f->layers[i] > 1 ? "s" : "");
            kg_spec_list_layers(out, spec, i);
            kg_text_add(out, "\n");
        }
        add_format(out, &f->formats[i]);
        if (f->count == 1)
            add_memory(out, c);
        add_kernels(out, &c->plans[i], &c->tuned[i]);
    }
    if (f->count > 1) {
        kg_text_addf(out, " all layers\n  per token  %.4g bytes per KV head, the mean; fp16 %.0f, %.2f times that\n", c->token, c->token_fp16, c->ratio);
        add_memory(out, c);
    }
}

static void add_json_format(kg_text *out, const kt_format *f, const kg_tuned_set *tuned)
{
    kg_text_addf(out, "\"page_bytes\": %d, \"key_bytes\": %d, \"value_bytes\": %d, \"boosted_channels\": %d, \"slab_bytes\": %d, \"tuned\": ",
                 f->block_bytes, f->value_tiles - KT_HEADER_BYTES, f->block_bytes - f->value_tiles, f->key_boosted, f->slab_bytes);
    if (tuned->head_dim)
        kg_text_json(out, tuned->spec);
    else
        kg_text_add(out, "null");
}

static void add_json(kg_text *out, const kg_spec *spec, const costs *c)
{
    kg_text_add(out, "{\"spec\": ");
    kg_spec_json(out, spec);
    kg_text_add(out, ",\n  ");
    if (c->formats.count == 1)
        add_json_format(out, &c->formats.formats[0], &c->tuned[0]);
    for (int i = 0; i < c->formats.count && c->formats.count > 1; i++) {
        kg_text_addf(out, "%s{\"layers\": %d, ", i ? ", " : "\"formats\": [", c->formats.layers[i]);
        add_json_format(out, &c->formats.formats[i], &c->tuned[i]);
        kg_text_add(out, i + 1 < c->formats.count ? "}" : "}]");
    }
    kg_text_add(out, ",\n  \"bytes_per_token\": ");
    kg_text_number(out, c->token);
    kg_text_add(out, ", \"fp16_bytes_per_token\": ");
    kg_text_number(out, c->token_fp16);
    kg_text_addf(out, ", \"ratio\": %.4f,\n  \"context\": %d, \"memory_bytes\": %lld, \"fp16_memory_bytes\": %lld}", c->ratio, CONTEXT, c->model,
                 c->model_fp16);
}

static int print_text(kg_text *out)
{
    const int failed = out->failed;
    if (failed)
        fprintf(stderr, "kittygen check: out of memory\n");
    else if (out->data)
        fputs(out->data, stdout);
    kg_text_free(out);
    return failed ? KG_MACHINE : KG_OK;
}

int kg_command_check(int argc, char **argv)
{
    int json = 0, fields = 0, code;
    kg_spec_options options = {0};
    const kg_option list[] = {
        {"--dtype", "fp16|bf16", "element type, instead of the model's", 0, &options.dtype},
        {"--fields", 0, "print what a spec may say, and stop", &fields, 0},
        {"--json", 0, "print JSON", &json, 0},
        {0},
    };
    const kg_usage usage = {
        "kittygen check SPEC... [options]",
        "Checks specs and shows their page format and memory. A SPEC is a .lua file, MODEL/VARIANT,\n"
        "MODEL/VARIANT,VARIANT or MODEL of the shipped ones.\n",
        list, 0, -1};
    const int count = kg_options(&usage, argc, argv, &code);
    if (count < 0)
        return code;
    kg_text out = {0};
    if (fields) {
        kg_field_reference(&out, json);
        return print_text(&out);
    }
    if (!count) {
        fprintf(stderr, "kittygen check: too few arguments\nusage: %s\n", usage.usage);
        return KG_USER;
    }
    code = KG_OK;
    const char *separator = json ? "[" : "";
    for (int i = 1; i <= count; i++) {
        char error[KG_ERROR];
        kg_spec *specs;
        int found;
        const int failed = kg_spec_load(argv[i], &options, &specs, &found, error, sizeof error);
        if (failed) {
            fprintf(stderr, "%s\n", error);
            code = code > failed ? code : failed;
            continue;
        }
        for (int s = 0; s < found; s++) {
            static costs c;
            const int wrong = compute_costs(&c, &specs[s], argv[i], error);
            if (wrong) {
                fprintf(stderr, "%s\n", error);
                code = code > wrong ? code : wrong;
                continue;
            }
            kg_text_add(&out, separator);
            if (json)
                add_json(&out, &specs[s], &c);
            else
                add_text(&out, &specs[s], &c);
            separator = json ? ",\n " : "\n";
        }
        free(specs);
    }
    if (json)
        kg_text_add(&out, out.size ? "]\n" : "[]\n");
    const int printed = print_text(&out);
    return printed ? printed : code;
}
