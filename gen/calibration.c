#include "calibration.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "internal.h"
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

// ---- rotations ----

static float element_at(const kg_tensor *t, size_t index)
{
    const unsigned char *bytes = t->data;
    unsigned short narrow;
    float wide;
    if (!strcmp(t->dtype, "F32"))
        return memcpy(&wide, bytes + 4 * index, sizeof wide), wide;
    return memcpy(&narrow, bytes + 2 * index, sizeof narrow), kt__to_float(!strcmp(t->dtype, "F16") ? KT_F16 : KT_BF16, narrow);
}

// Furthest of R R^T from the identity; infinity where R has what is not finite.
static double distance(const float *r, int d)
{
    double most = 0;
    for (int i = 0; i < d; i++)
        for (int j = 0; j <= i; j++) {
            double dot = 0;
            for (int k = 0; k < d; k++)
                dot += (double)r[i * d + k] * (double)r[j * d + k];
            const double off = fabs(dot - (i == j));
            most = off <= most ? most : off == off ? off : INFINITY;
        }
    return most;
}

// Puts the matrix and its transpose into every table.
static int read_rotations(const kg_spec *spec, const kt_format *f, const kg_safetensors *file, const char *name, int offset,
                          unsigned char *tables, char *error, size_t error_size)
{
    static const char *const labels[] = {"layers or 1", "kv_heads or 1", 0, 0};
    const int layers = spec->model.layers, heads = spec->model.kv_heads, d = f->head_dim;
    const int64_t shape[] = {-1, -1, d, d};
    char found[128];
    const kg_tensor *t = kg_safetensors_require(file, name, "F16 BF16 F32", 4, shape, labels, error, error_size);
    if (!t)
        return KG_USER;
    if ((t->shape[0] != 1 && t->shape[0] != layers) || (t->shape[1] != 1 && t->shape[1] != heads))
        return kg_fail(KG_USER, error, error_size, "%s: %s has shape %s; expected [%d or 1, %d or 1, %d, %d]", spec->calibration, name,
                       kg_tensor_shape(t, found, sizeof found), layers, heads, d, d);
    float *r = malloc((size_t)(d * d) * sizeof *r);
    int code = r ? KG_OK : kg_fail(KG_MACHINE, error, error_size, "out of memory");
    for (int i = 0; i < layers * heads && !code; i++) {
        const int layer = t->shape[0] == 1 ? 0 : i / heads, head = t->shape[1] == 1 ? 0 : i % heads, from = layer * (int)t->shape[1] + head;
        unsigned char *matrix = tables + (size_t)i * (size_t)f->table_bytes + offset, *transposed = matrix + 2 * d * d;
        for (int j = 0; j < d; j++)
            for (int k = 0; k < d; k++) {
                const unsigned short half = kt__float_to_half(element_at(t, (size_t)from * (size_t)(d * d) + (size_t)(j * d + k)));
                r[j * d + k] = kt__half_to_float(half);
                for (int b = 0; b < 2; b++)
                    matrix[2 * (j * d + k) + b] = transposed[2 * (k * d + j) + b] = (unsigned char)(half >> 8 * b);
            }
        const int first = layer == i / heads && head == i % heads; // others are the same again
        const double off = first ? distance(r, d) : 0;
        if (off > 0.01)
            code = kg_fail(KG_USER, error, error_size, "%s: %s: the matrix of layer %d, KV head %d is not orthogonal: R R^T is off by %.3g; "
                           "at most 0.01 is allowed", spec->calibration, name, layer, head, off);
    }
    free(r);
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
    if (!code && f->key_rotation == 2)
        code = read_rotations(spec, f, file, "key.rotation", f->table_key_rotation, *tables, error, error_size);
    if (!code && f->value_rotation == 2)
        code = read_rotations(spec, f, file, "value.rotation", f->table_value_rotation, *tables, error, error_size);
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
    size_t size;
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
    for (int way = 0; way <= spec->more_count && !code; way++) {
        const kg_spec one = kg_spec_way(spec, way);
        unsigned char *tables = 0;
        kt_format format;
        const char *refused = kg_layout(&one, &format);
        code = refused ? kg_fail(KG_USER, error, error_size, "%s", refused) : kg_calibration_read(&one, &format, &tables, &size, error, error_size);
        free(tables);
    }
    return code;
}
