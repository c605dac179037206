// manifest.json: all that the runtime knows of a package. Fields in declared order; read by runtime/package.c.
#include "emit.h"
#include "sha256.h"

static void add_kernel(const kg_kernel *kernel, kg_text *out)
{
    char digest[KT__SHA256_HEX];
    kt__sha256_text(kernel->source.data, kernel->source.size, digest);
    kg_text_addf(out, "    {\"name\": \"%s\", \"op\": \"%s\", ", kernel->name, kernel->op);
    if (kernel->format)
        kg_text_addf(out, "\"format\": %d, ", kernel->format);
    kg_text_addf(out, "\"file\": \"%s.cu\", \"entry\": \"%s\",\n", kernel->name, kernel->entry);
    kg_text_addf(out, "     \"sha256\": \"%s\",\n     \"threads\": %d, \"shared\": %d, ", digest, kernel->threads, kernel->shared);
    if (kernel->config.warps)
        kg_text_addf(out, "\"warps\": %d, \"stages\": %d, \"tiles\": %d, \"passes\": %d, ", kernel->config.warps,
                     kernel->config.stages, kernel->config.tiles, kernel->config.passes);
    kg_text_addf(out, "\"grid\": [\"%s\", \"%s\", \"%s\"]}", kernel->grid[0], kernel->grid[1], kernel->grid[2]);
}

static void add_choice(const kg_kernel *kernel, int sequences, int pages, kg_text *out)
{
    kg_text_addf(out, "    {\"op\": \"%s\", ", kernel->op);
    if (kernel->format)
        kg_text_addf(out, "\"format\": %d, ", kernel->format);
    kg_text_addf(out, "\"sequences\": %d, \"pages\": %d, \"kernel\": \"%s\", \"blocks_per_sm\": %d}", sequences, pages, kernel->name,
                 kernel->config.blocks ? kernel->config.blocks : 1);
}

static void add_format(const kt_format *format, const char *indent, kg_text *out)
{
    const char *separator = "";
#define X(field, constant, meaning) \
    kg_text_addf(out, "%s%s    \"%s\": %d", separator, indent, #field, format->field), separator = ",\n";
    KT_FORMAT_FIELDS(X)
#undef X
}

// One format, or a list of them and for each layer the index of its own.
static void add_formats(const kg_package *package, kg_text *out)
{
    if (package->format_count == 1) {
        kg_text_add(out, "  \"format\": {\n");
        add_format(&package->formats[0].format, "", out);
        kg_text_add(out, "\n  },\n");
        return;
    }
    kg_text_add(out, "  \"formats\": [\n");
    for (int i = 0; i < package->format_count; i++) {
        kg_text_add(out, i ? ",\n    {\n" : "    {\n");
        add_format(&package->formats[i].format, "  ", out);
        kg_text_add(out, "\n    }");
    }
    kg_text_add(out, "\n  ],\n  \"layer_formats\": [");
    for (int layer = 0; layer < package->layers; layer++)
        kg_text_addf(out, "%s%d", layer ? ", " : "", package->layer_formats[layer]);
    kg_text_add(out, "],\n");
}

void kg_manifest(const kg_package *package, kg_text *out)
{
    const kg_spec *spec = &package->spec;
    kg_text_addf(out, "{\n  \"kittygen\": %d,\n  \"spec\": ", KT_FORMAT_VERSION);
    kg_text_json(out, spec->name);
    kg_text_addf(out, ",\n  \"model\": {\"layers\": %d, \"q_heads\": %d, \"kv_heads\": %d, \"scale\": ", package->layers,
                 spec->model.q_heads, spec->model.kv_heads);
    kg_text_number(out, spec->model.scale);
    kg_text_add(out, "},\n");
    add_formats(package, out);
    if (package->table_size) {
        char digest[KT__SHA256_HEX];
        kt__sha256_text(package->tables, package->table_size, digest);
        kg_text_addf(out, "  \"tables\": {\"file\": \"tables.bin\", \"sha256\": \"%s\"},\n", digest);
    }
    kg_text_add(out, "  \"kernels\": [\n");
    for (int i = 0; i < package->count; i++) {
        kg_text_add(out, i ? ",\n" : "");
        add_kernel(&package->kernels[i], out);
    }
    // The first row of a layer's format that applies and whose kernel fits the card's shared memory is taken.
    kg_text_add(out, "\n  ],\n  \"select\": [\n");
    const char *separator = "";
    for (int i = 0; i < package->count; i++) {
        const kg_kernel *kernel = &package->kernels[i];
        const kg_package_format *f = &package->formats[kernel->format];
        const kg_attend_plan *plan = &f->plan;
        for (int row = 0; row < plan->row_count && i == f->first; row++, separator = ",\n") {
            kg_text_add(out, separator);
            add_choice(&package->kernels[f->first + plan->rows[row].config], plan->rows[row].sequences, plan->rows[row].pages, out);
        }
        if (!kernel->config.warps) { // not attend
            kg_text_add(out, separator);
            add_choice(kernel, 0, 0, out);
            separator = ",\n";
        }
    }
    kg_text_add(out, "\n  ]\n}\n");
}
