// manifest.json: all that the runtime knows of a package. Fields in declared order; read by runtime/package.c.
#include "emit.h"
#include "sha256.h"

static void add_kernel(const kg_kernel *kernel, kg_text *out)
{
    char digest[KT__SHA256_HEX];
    kt__sha256_text(kernel->source.data, kernel->source.size, digest);
    kg_text_addf(out, "    {\"name\": \"%s\", \"op\": \"%s\", \"file\": \"%s.cu\", \"entry\": \"%s\",\n", kernel->name, kernel->op,
                 kernel->name, kernel->entry);
    kg_text_addf(out, "     \"sha256\": \"%s\",\n     \"threads\": %d, \"shared\": %d, ", digest, kernel->threads, kernel->shared);
    if (kernel->config.warps)
        kg_text_addf(out, "\"warps\": %d, \"stages\": %d, \"tiles\": %d, \"passes\": %d, ", kernel->config.warps,
                     kernel->config.stages, kernel->config.tiles, kernel->config.passes);
    kg_text_addf(out, "\"grid\": [\"%s\", \"%s\", \"%s\"]}", kernel->grid[0], kernel->grid[1], kernel->grid[2]);
}

static void add_choice(const kg_kernel *kernel, int sequences, int pages, const char *separator, kg_text *out)
{
    kg_text_addf(out, "    {\"op\": \"%s\", \"sequences\": %d, \"pages\": %d, \"kernel\": \"%s\", \"blocks_per_sm\": %d}%s\n", kernel->op,
                 sequences, pages, kernel->name, kernel->config.blocks ? kernel->config.blocks : 1, separator);
}

void kg_manifest(const kg_package *package, kg_text *out)
{
    const kg_spec *spec = &package->spec;
    kg_text_addf(out, "{\n  \"kittygen\": %d,\n  \"spec\": ", KT_FORMAT_VERSION);
    kg_text_json(out, spec->name);
    kg_text_addf(out, ",\n  \"model\": {\"layers\": %d, \"q_heads\": %d, \"kv_heads\": %d, \"scale\": ", spec->model.layers,
                 spec->model.q_heads, spec->model.kv_heads);
    kg_text_number(out, spec->model.scale);
    kg_text_add(out, "},\n  \"format\": {\n");
    const char *separator = "";
#define X(field, constant, meaning) \
    kg_text_addf(out, "%s    \"%s\": %d", separator, #field, package->format.field), separator = ",\n";
    KT_FORMAT_FIELDS(X)
#undef X
    kg_text_add(out, "\n  },\n");
    if (package->tables) {
        char digest[KT__SHA256_HEX];
        kt__sha256_text(package->tables, package->table_size, digest);
        kg_text_addf(out, "  \"tables\": {\"file\": \"tables.bin\", \"sha256\": \"%s\"},\n", digest);
    }
    kg_text_add(out, "  \"kernels\": [\n");
    for (int i = 0; i < package->count; i++) {
        kg_text_add(out, i ? ",\n" : "");
        add_kernel(&package->kernels[i], out);
    }
    // The first row that applies and whose kernel fits the card's shared memory is taken.
    kg_text_add(out, "\n  ],\n  \"select\": [\n");
    const kg_attend_plan *plan = &package->plan;
    for (int i = 0; i < plan->row_count; i++)
        add_choice(&package->kernels[plan->rows[i].config], plan->rows[i].sequences, plan->rows[i].pages, ",", out);
    for (int i = plan->count; i < package->count; i++)
        add_choice(&package->kernels[i], 0, 0, i + 1 < package->count ? "," : "", out);
    kg_text_add(out, "  ]\n}\n");
}
