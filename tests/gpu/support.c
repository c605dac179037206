#include "support.h"

#include <dirent.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core.h"
#include "emit.h"
#include "engine.h"
#include "temporary.h"

char failure[KG_ERROR];

int fail(int code, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(failure, sizeof failure, format, arguments);
    va_end(arguments);
    return code;
}

int refused(const char *call, kt_status status)
{
    return fail(kg_exit_code(status), "%.*s: %s: %s", (int)strcspn(call, "("), call, kt_status_name(status), kt_message());
}

double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static int by_name(const void *a, const void *b) { return strcmp(a, b); }

int list_specs(const char *folder, char names[MOST_LISTED][KG_NAME], int *count)
{
    DIR *stream = opendir(folder);
    if (!stream)
        return fail(KG_MACHINE, "%s: no such folder", folder);
    *count = 0;
    for (const struct dirent *entry; *count < MOST_LISTED && (entry = readdir(stream));) {
        const size_t length = strlen(entry->d_name);
        if (length > 4 && length - 4 < KG_NAME && !strcmp(entry->d_name + length - 4, ".lua"))
            snprintf(names[(*count)++], KG_NAME, "%.*s", (int)length - 4, entry->d_name);
    }
    closedir(stream);
    qsort(names, (size_t)*count, sizeof *names, by_name);
    return *count < MOST_LISTED ? KG_OK : fail(KG_USER, "%s: more than %d specs", folder, MOST_LISTED - 1);
}

int load_spec(const char *name, const char *dtype, kg_spec *spec)
{
    kg_spec *specs;
    int count;
    TRY(kg_spec_load(name, &(kg_spec_options){.dtype = dtype}, &specs, &count, failure, sizeof failure));
    *spec = specs[0];
    free(specs);
    return count == 1 ? KG_OK : fail(KG_USER, "%s: %d specs; exactly one is needed", name, count);
}

void spread_ways(kg_spec *spec, int layers)
{
    if (!spec->more_count)
        return;
    spec->model.layers = layers;
    for (int layer = 0; layer < layers; layer++)
        spec->layer_way[layer] = (unsigned char)(layer % (1 + spec->more_count));
}

int require_alike(const kg_spec *spec)
{
    return spec->more_count ? fail(KG_USER, "%s: its layers differ; name a spec whose layers are all alike", spec->name) : KG_OK;
}

// Leaves of the selection's rows for attend only that of the kernel number `config`; the last, where there are fewer.
static int select_kernel(const char *folder, int config)
{
    static const char row[] = "    {\"op\": \"attend\"";
    char path[KG_PATH + 16];
    char *manifest = NULL;
    size_t size;
    int rows = 0, at = 0;
    kg_text kept = {0};
    snprintf(path, sizeof path, "%s/manifest.json", folder);
    TRY(kg_file_read(path, 1 << 20, &manifest, &size, failure, sizeof failure));
    for (const char *line = manifest; (line = strstr(line, row)); line += sizeof row)
        rows++;
    config = config < rows ? config : rows - 1;
    for (const char *line = manifest; *line;) {
        const char *end = strchr(line, '\n');
        const size_t length = end ? (size_t)(end - line) + 1 : strlen(line);
        if (strncmp(line, row, sizeof row - 1) || at++ == config)
            kg_text_bytes(&kept, line, length);
        line += length;
    }
    const int code = kept.failed ? fail(KG_MACHINE, "out of memory") : kg_file_write(path, kept.data, kept.size, 1, failure, sizeof failure);
    free(manifest);
    kg_text_free(&kept);
    return code;
}

static int open_device(const char *folder, kt_device device, kt_engine **engine)
{
    CALL(kt_open(&(kt_open_args){.size = sizeof(kt_open_args), .package = folder, .device = device}, engine));
    return KG_OK;
}

int open_engines(const kg_spec *spec, int config, kt_engine **cuda, kt_engine **cpu)
{
    char folder[KG_PATH];
    TRY(kg_temporary_make(folder, failure, sizeof failure));
    int code = kg_emit_package(spec, folder, failure, sizeof failure);
    if (!code && config >= 0)
        code = select_kernel(folder, config);
    if (!code && cuda)
        code = open_device(folder, KT_DEVICE_CUDA, cuda);
    if (!code && cpu) {
        code = open_device(folder, KT_DEVICE_CPU, cpu);
        if (code && cuda) {
            kt_close(*cuda);
            *cuda = NULL;
        }
    }
    kg_temporary_remove(folder);
    return code;
}

const kt_format *layer_format(const kt_engine *engine, int layer)
{
    return &engine->package.formats[kt__layer_format(&engine->package, layer)];
}

int add_budget(const kt_engine *engine, kt_cache_args *cache, uint64_t pages, uint64_t slabs)
{
    for (int layer = 0; layer < cache->layers; layer++) {
        uint64_t block, slab;
        CALL(kt_layer_bytes(engine, layer, &block, &slab));
        cache->budget_bytes += (uint64_t)cache->kv_heads * (pages * block + slabs * slab);
    }
    return KG_OK;
}

const char *data_path(const char *name, char path[KG_PATH])
{
    const char *base = getenv("KT_TEST_DATA");
    snprintf(path, KG_PATH, "%s/data/%s", base && *base ? base : "tests", name);
    return path;
}

int read_integer(const char *option, const char *text, int low, int high, int *number)
{
    char *end;
    const long value = strtol(text, &end, 10);
    if (end == text || *end || value < low || value > high)
        return fail(KG_USER, "%s: '%s' is not allowed; allowed: %d to %d", option, text, low, high);
    *number = (int)value;
    return KG_OK;
}

double error_limit(int dtype) { return dtype == KT_BF16 ? 8e-3 : 2e-3; }
