#include "calibration.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "layout.h"
#include "safetensors.h"
#include "sha256.h"

enum { LIMIT = 1 << 30 };

// ---- lists of boosted channels ----

static int64_t channel_at(const kg_tensor *t, size_t index)
{
    const unsigned char *bytes = t->data;
    int32_t narrow;
    int64_t wide;
    if (!strcmp(t->dtype, "U8"))
        return bytes[index];
    if (!strcmp(t->dtype, "I32"))
        return memcpy(&narrow, bytes + 4 * index, sizeof narrow), narrow;
    return memcpy(&wide, bytes + 8 * index, sizeof wide), wide;
}

// Sorts the list of one layer and head into its table.
static int read_list(const kg_spec *spec, const kt_format *f, const kg_tensor *t, int at, unsigned char *list, char *error, size_t error_size)
{
    bool taken[256] = {false};
    const int layer = at / spec->model.kv_heads, head = at % spec->model.kv_heads;
    for (int i = 0; i < f->key_boosted; i++) {
        const int64_t channel = channel_at(t, (size_t)at * (size_t)f->key_boosted + (size_t)i);
        if (channel < 0 || channel >= f->head_dim)
            return kg_fail(KG_USER, error, error_size, "%s: key.boosted: channel %lld of layer %d, KV head %d; allowed: 0 to %d",
                           spec->calibration, (long long)channel, layer, head, f->head_dim - 1);
        if (taken[channel])
            return kg_fail(KG_USER, error, error_size, "%s: key.boosted: channel %lld is twice in the list of layer %d, KV head %d",
                           spec->calibration, (long long)channel, layer, head);
        taken[channel] = true;
    }
    for (int c = 0; c < f->head_dim; c++)
        if (taken[c])
            *list++ = (unsigned char)c;
    return KG_OK;
}

static int read_lists(const kg_spec *spec, const kt_format *f, const kg_safetensors *file, unsigned char *tables, char *error,
                      size_t error_size)
{
    const int64_t shape[] = {spec->model.layers, spec->model.kv_heads, f->key_boosted};
    const kg_tensor *t = kg_safetensors_require(file, "key.boosted", "U8 I32 I64", 3, shape, 0, error, error_size);
    if (!t)
        return KG_USER;
    int code = KG_OK;
    for (int i = 0; i < spec->model.layers * spec->model.kv_heads && !code; i++)
        code = read_list(spec, f, t, i, tables + (size_t)i * (size_t)f->table_bytes + f->table_boosted, error, error_size);
    return code;
}

// ---- entry ----

int kg_calibration_read(const kg_spec *spec, const kt_format *f, unsigned char **tables, size_t *size, char *error, size_t error_size)
{
    kg_safetensors *file;
    *tables = 0;
    *size = (size_t)spec->model.layers * (size_t)spec->model.kv_heads * (size_t)f->table_bytes;
    if (!*size)
        return KG_OK;
    if (!kg_safetensors_open(spec->calibration_path, &file, error, error_size))
        return KG_USER;
    int code = KG_OK;
    *tables = calloc(1, *size);
    if (!*tables)
        code = kg_fail(KG_MACHINE, error, error_size, "out of memory");
    if (!code && f->key_score == KG_SCORE_STATIC && f->key_boosted)
        code = read_lists(spec, f, file, *tables, error, error_size);
    if (code) {
        free(*tables);
        *tables = 0;
    }
    kg_safetensors_close(file);
    return code;
}

int kg_calibration_find(kg_spec *spec, const char *const folders[2], char *error, size_t error_size)
{
    char *path = spec->calibration_path, *data;
    unsigned char *tables;
    size_t size;
    kt_format format;
    bool found = false;
    for (int i = 0; i < 2 && !found; i++)
        found = folders[i] && (size_t)snprintf(path, sizeof spec->calibration_path, "%s/%s", folders[i], spec->calibration) <
                                  sizeof spec->calibration_path && !access(path, F_OK);
    if (!found)
        return kg_fail(KG_USER, error, error_size, "no file %s in the spec's folder or the shipped specs", spec->calibration);
    int code = kg_file_read(path, LIMIT, &data, &size, error, error_size);
    if (code)
        return code;
    kt__sha256_text(data, size, spec->calibration_sha256);
    free(data);
    const char *refused = kg_layout(spec, &format);
    if (refused)
        return kg_fail(KG_USER, error, error_size, "%s", refused);
    code = kg_calibration_read(spec, &format, &tables, &size, error, error_size);
    free(tables);
    return code;
}
