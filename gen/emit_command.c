// kittygen emit: specs become kernel packages.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"
#include "emit.h"

static void print_package(const kg_package *package, const char *folder, int json, int first)
{
    if (json) {
        kg_text out = {0};
        kg_text_add(&out, first ? "" : ",\n ");
        kg_text_add(&out, "{\"spec\": ");
        kg_text_json(&out, package->spec.name);
        kg_text_add(&out, ", \"folder\": ");
        kg_text_json(&out, folder);
        kg_text_add(&out, ", \"kernels\": [");
        for (int i = 0; i < package->count; i++)
            kg_text_addf(&out, "%s\"%s\"", i ? ", " : "", package->kernels[i].name);
        kg_text_add(&out, "]}");
        fputs(out.data ? out.data : "", stdout);
        kg_text_free(&out);
        return;
    }
    printf("%s: %d kernels in %s\n", package->spec.name, package->count, folder);
    for (int i = 0; i < package->count; i++)
        printf("  %-*s %6zu bytes of source, %3d threads, %6d bytes of shared memory\n", package->format_count > 1 ? 19 : 16, package->kernels[i].name,
               package->kernels[i].source.size, package->kernels[i].threads, package->kernels[i].shared);
}

int kg_command_emit(int argc, char **argv)
{
    const char *to = NULL, *dtype = NULL, *only = NULL;
    int json = 0, code;
    const kg_option options[] = {
        {"-o", "FOLDER", "where to; a sweep makes one folder per spec in it (default: the spec's name)", NULL, &to},
        {"--kernel", "NAME", "print this kernel's source instead of writing files", NULL, &only},
        {"--dtype", "fp16|bf16", "override the model's element type", NULL, &dtype},
        {"--json", NULL, "report as JSON", &json, NULL},
        {NULL, NULL, NULL, NULL, NULL},
    };
    const kg_usage usage = {"kittygen emit SPEC... [options]",
                            "Writes each spec's kernel package: manifest.json and one self-contained CUDA file per kernel, ready\n"
                            "for libkitty (kt_open) or for reading. The same spec gives the same bytes.\n",
                            options, 1, -1};
    const int count = kg_options(&usage, argc, argv, &code);
    if (count < 0)
        return code;

    if (only && (json || to)) {
        fprintf(stderr, "kittygen emit: --kernel prints a source; it does not go with %s\n", json ? "--json" : "-o");
        return KG_USER;
    }
    char error[KG_ERROR];
    kg_text folders = {0};
    const kg_spec_options spec_options = {.dtype = dtype};
    int printed = 0;
    if (json)
        printf("[");
    code = KG_OK;
    for (int i = 1; i <= count && !code; i++) {
        kg_spec *specs;
        int specs_count;
        code = kg_spec_load(argv[i], &spec_options, &specs, &specs_count, error, sizeof error);
        for (int s = 0; !code && s < specs_count; s++) {
            kg_package package;
            code = kg_package_make(&specs[s], NULL, &package, error, sizeof error);
            if (!code && only) {
                const kg_kernel *kernel = NULL;
                for (int k = 0; k < package.count; k++)
                    if (!strcmp(package.kernels[k].name, only) || !strcmp(package.kernels[k].op, only))
                        kernel = kernel ? kernel : &package.kernels[k];
                if (kernel)
                    fputs(kernel->source.data, stdout);
                else
                    code = kg_fail(KG_USER, error, sizeof error, "--kernel: %s has no kernel \"%s\"; kittygen emit lists them",
                                   specs[s].name, only);
            } else if (!code) {
                char folder[KG_PATH];
                if (to && specs_count == 1 && count == 1)
                    snprintf(folder, sizeof folder, "%s", to);
                else
                    snprintf(folder, sizeof folder, "%s%s%s", to ? to : "", to ? "/" : "", specs[s].name);
                if (kg_text_seen(&folders, folder))
                    code = kg_fail(KG_USER, error, sizeof error, "%s: two specs of this run would go to this folder; give them different names",
                                   folder);
                else
                    code = kg_package_write(&package, folder, error, sizeof error);
                if (!code)
                    print_package(&package, folder, json, !printed++);
            }
            kg_package_free(&package);
        }
        free(specs);
    }
    kg_text_free(&folders);
    if (json)
        printf("]\n");
    if (code)
        fprintf(stderr, "kittygen emit: %s\n", error);
    return code;
}
