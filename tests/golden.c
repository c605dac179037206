// Golden files: the emitted package of one spec, byte for byte, under tests/golden/, and the manifest of one whose layers differ, which
// has the digests of the rest. `golden` compares, `golden --update`
// rewrites them after a wanted change (./dev golden); the diff is then read before it is committed.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "emit.h"
#include "temporary.h"

static const struct {
    const char *name;
    int manifest_only;
} golden_specs[] = {{"qwen3_8b/kitty_pro", 0}, {"qwen3_8b/kitty_pro_boundary", 1}};

static int same(const char *path, const kg_text *text)
{
    char *data, error[KG_ERROR];
    size_t size;
    if (kg_file_read(path, 1 << 22, &data, &size, error, sizeof error)) {
        fprintf(stderr, "golden: %s\n", error);
        return 0;
    }
    size_t at = 0;
    while (at < size && at < text->size && data[at] == text->data[at])
        at++;
    const int equal = size == text->size && at == size;
    if (!equal) {
        int line = 1;
        for (size_t i = 0; i < at; i++)
            line += data[i] == '\n';
        fprintf(stderr, "golden: %s:%d: what is emitted now differs; if that is wanted: ./dev golden, and read the diff\n", path, line);
    }
    free(data);
    return equal;
}

int main(int argc, char **argv)
{
    const int update = argc == 2 && !strcmp(argv[1], "--update");
    const char *data = getenv("KT_TEST_DATA");
    char error[KG_ERROR], path[KG_PATH];
    int failed = 0, compared = 0;
    for (size_t i = 0; i < sizeof golden_specs / sizeof *golden_specs; i++) {
        kg_spec *specs;
        int count;
        kg_package package, again;
        if (kg_spec_load(golden_specs[i].name, NULL, &specs, &count, error, sizeof error) ||
            kg_package_make(&specs[0], NULL, &package, error, sizeof error) || kg_package_make(&specs[0], NULL, &again, error, sizeof error)) {
            fprintf(stderr, "golden: %s\n", error);
            return 1;
        }
        snprintf(path, sizeof path, "%s/golden/%s", data ? data : KT_TEST_DATA, specs[0].name);
        if (update)
            kg_temporary_remove(path); // kernels of other names too
        if (update && kg_emit_package(&specs[0], path, error, sizeof error)) {
            fprintf(stderr, "golden: %s\n", error);
            return 1;
        }
        for (int k = 0; update && golden_specs[i].manifest_only && k < package.count; k++) {
            char source[KG_PATH + 80];
            snprintf(source, sizeof source, "%s/%s.cu", path, package.kernels[k].name);
            remove(source);
        }
        kg_text manifest = {0};
        kg_manifest(&package, &manifest);
        for (int k = 0; k <= package.count; k++) {
            const kg_text *text = k < package.count ? &package.kernels[k].source : &manifest;
            const char *name = k < package.count ? package.kernels[k].name : "manifest";
            snprintf(path, sizeof path, "%s/golden/%s/%s.%s", data ? data : KT_TEST_DATA, specs[0].name, name,
                     k < package.count ? "cu" : "json");
            if (k < package.count && strcmp(text->data, again.kernels[k].source.data)) {
                fprintf(stderr, "golden: %s: two emissions of the same spec differ\n", name);
                failed++;
            }
            if (golden_specs[i].manifest_only && k < package.count)
                continue;
            failed += !update && !same(path, text);
            compared++;
        }
        kg_text_free(&manifest);
        kg_package_free(&package);
        kg_package_free(&again);
        free(specs);
    }
    printf("%d passed, %d failed\n", compared - failed, failed);
    return failed > 0;
}
