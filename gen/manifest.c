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
    kg_text_add(out, "\n  },\n  \"kernels\": [\n");
    for (int i = 0; i < package->count; i++) {
        kg_text_add(out, i ? ",\n" : "");
        add_kernel(&package->kernels[i], out);
    }
    // The first row that applies and whose kernel fits the card's shared memory is taken.
    kg_text_add(out, "\n  ],\n  \"select\": [\n");
    separator = "";
    for (int i = 0; i < package->count; i++) {
        const kg_attend_config *c = &package->kernels[i].config;
        kg_text_addf(out, "%s    {\"op\": \"%s\", \"sequences\": %d, \"pages\": %d, \"kernel\": \"%s\", \"blocks_per_sm\": %d}", separator,
                     package->kernels[i].op, c->most_sequences, c->most_pages, package->kernels[i].name, c->blocks ? c->blocks : 1);
        separator = ",\n";
    }
    kg_text_add(out, "\n  ]\n}\n");
}
