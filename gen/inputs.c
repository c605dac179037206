#include "inputs.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fields.h"
#include "safetensors.h"
#include "text.h"

static int layer_open(const kg_inputs *in, int tokens, kg_layer *layer, char *error, size_t error_size)
{
    const size_t rows = (size_t)tokens * (size_t)in->head_dim, kv = rows * (size_t)in->kv_heads;
    layer->tokens = tokens;
    layer->query = malloc(rows * (size_t)in->q_heads * sizeof *layer->query);
    layer->key = malloc(kv * sizeof *layer->key);
    layer->value = malloc(kv * sizeof *layer->value);
    layer->exact_key = malloc(kv * sizeof *layer->exact_key);
    layer->exact_value = malloc(kv * sizeof *layer->exact_value);
    if (!layer->query || !layer->key || !layer->value || !layer->exact_key || !layer->exact_value)
        return kg_fail(KG_MACHINE, error, error_size, "out of memory for %d tokens", tokens);
    return KG_OK;
}

static int inputs_open(const kg_spec *spec, int layers, kg_inputs *in, char *error, size_t error_size)
{
    *in = (kg_inputs){layers, spec->model.q_heads, spec->model.kv_heads, spec->model.head_dim, spec->model.dtype, 0};
    in->layers = calloc((size_t)layers, sizeof *in->layers);
    return in->layers ? KG_OK : kg_fail(KG_MACHINE, error, error_size, "out of memory");
}

static double default_scale(const kg_spec *spec)
{
    return spec->model.scale > 0 ? spec->model.scale : 1 / sqrt(spec->model.head_dim);
}

// Fills the float copies, [heads, tokens, head_dim], from the elements, [tokens, heads, head_dim].
static void spread(const kg_inputs *in, int tokens, const uint16_t *elements, float *exact)
{
    const int d = in->head_dim;
    for (int t = 0; t < tokens; t++)
        for (int h = 0; h < in->kv_heads; h++)
            for (int c = 0; c < d; c++)
                exact[((long)h * tokens + t) * d + c] = kg_to_float(in->dtype, elements[((long)t * in->kv_heads + h) * d + c]);
}

int kg_inputs_draw(const kg_spec *spec, int layers, int tokens, kg_keys kind, uint64_t seed, kg_inputs *in, char *error,
                   size_t error_size)
{
    enum { QUERY, VALUE };
    float *drawn = 0;
    int code = inputs_open(spec, layers, in, error, error_size);
    if (code)
        goto fail;
    const int d = in->head_dim;
    drawn = malloc((size_t)tokens * (size_t)d * sizeof *drawn);
    if (!drawn) {
        code = kg_fail(KG_MACHINE, error, error_size, "out of memory");
        goto fail;
    }
    for (int l = 0; l < layers; l++) {
        kg_layer *layer = &in->layers[l];
        layer->origin = l;
        layer->scale = default_scale(spec);
        code = layer_open(in, tokens, layer, error, error_size);
        if (code)
            goto fail;
        const struct {
            int heads;
            uint16_t *to;
        } parts[] = {{in->q_heads, layer->query}, {in->kv_heads, layer->key}, {in->kv_heads, layer->value}};
        for (int p = 0; p < 3; p++) {
            for (int h = 0; h < parts[p].heads; h++) {
                if (p == 1)
                    kg_random_keys(kind, seed, l, h, tokens, d, drawn);
                else
                    kg_random_rows(seed, p ? VALUE : QUERY, l, h, tokens, d, drawn);
                for (int t = 0; t < tokens; t++)
                    for (int c = 0; c < d; c++)
                        parts[p].to[((long)t * parts[p].heads + h) * d + c] = kg_from_float(in->dtype, drawn[(long)t * d + c]);
            }
        }
        spread(in, tokens, layer->key, layer->exact_key);
        spread(in, tokens, layer->value, layer->exact_value);
    }
    free(drawn);
    return KG_OK;
fail:
    free(drawn);
    kg_inputs_free(in);
    return code;
}

// Converts a tensor to the inputs' dtype.
static int convert(const kg_safetensors *file, const kg_tensor *tensor, int dtype, uint16_t *to, char *error, size_t error_size)
{
    const int wide = !strcmp(tensor->dtype, "F32"), from = !strcmp(tensor->dtype, "BF16");
    const size_t count = tensor->bytes / (wide ? 4 : 2);
    const unsigned char *at = tensor->data;
    for (size_t i = 0; i < count; i++) {
        float value;
        if (wide)
            memcpy(&value, at + 4 * i, 4);
        else
            value = kg_to_float(from, (uint16_t)(at[2 * i] | at[2 * i + 1] << 8));
        to[i] = kg_from_float(dtype, value);
        if (!isfinite(kg_to_float(dtype, to[i])))
            return kg_fail(KG_USER, error, error_size, "%s: tensor \"%s\": element %zu, %g, is not finite in %s",
                           kg_safetensors_path(file), tensor->name, i, value, dtype ? "bf16" : "fp16");
    }
    return KG_OK;
}

static int read_layer(const kg_safetensors *file, int index, const kg_inputs *in, kg_layer *layer, char *error,
                      size_t error_size)
{
    static const char *const labels[] = {"tokens", "heads", "head_dim"};
    static const char dtypes[] = "F16 BF16 F32";
    const kg_tensor *tensors[3];
    int64_t shape[] = {-1, in->q_heads, in->head_dim};
    for (int p = 0; p < 3; p++) {
        char name[32];
        snprintf(name, sizeof name, "%c.%d", "qkv"[p], index);
        tensors[p] = kg_safetensors_require(file, name, dtypes, 3, shape, labels, error, error_size);
        if (!tensors[p])
            return KG_USER;
        shape[0] = tensors[p]->shape[0];
        shape[1] = in->kv_heads;
    }
    if (shape[0] < 1 || shape[0] > 1 << 24)
        return kg_fail(KG_USER, error, error_size, "%s: tensor \"%s\" has %lld tokens; 1 to %d are allowed",
                       kg_safetensors_path(file), tensors[0]->name, (long long)shape[0], 1 << 24);
    int code = layer_open(in, (int)shape[0], layer, error, error_size);
    uint16_t *const to[] = {layer->query, layer->key, layer->value};
    for (int p = 0; p < 3 && !code; p++)
        code = convert(file, tensors[p], in->dtype, to[p], error, error_size);
    if (code)
        return code;
    spread(in, layer->tokens, layer->key, layer->exact_key);
    spread(in, layer->tokens, layer->value, layer->exact_value);
    return KG_OK;
}

static int read_scale(const kg_safetensors *file, double *scale, char *error, size_t error_size)
{
    const char *text = kg_safetensors_metadata(file, "scale");
    if (!text)
        return KG_OK;
    char *end;
    *scale = strtod(text, &end);
    const kg_field *field = kg_field_find("model.scale");
    if (end != text && !*end && *scale >= field->least && *scale <= field->high)
        return KG_OK;
    return kg_fail(KG_USER, error, error_size, "%s: metadata \"scale\" is \"%.64s\"; allowed: %g to %d", kg_safetensors_path(file), text,
                   field->least, field->high);
}

// Which of the model's layers the file's `count` are, of which `room` are taken: what its metadata says, such as "0,7,15", else as they are
// counted here.
static int read_origins(const kg_safetensors *file, const kg_spec *spec, int count, int first, int room, kg_layer *layers, char *error,
                        size_t error_size)
{
    const char *text = kg_safetensors_metadata(file, "layers"), *at = text;
    for (int i = 0; i < count; i++) {
        long origin = first + i;
        if (text) {
            char *end;
            origin = strtol(at, &end, 10);
            if (end == at || origin < 0 || origin >= spec->model.layers || *end != (i + 1 < count ? ',' : 0))
                return kg_fail(KG_USER, error, error_size, "%s: metadata \"layers\" is \"%.200s\"; allowed: a layer of the model, 0 to %d, for each of "
                               "the file's (%d), joined by commas", kg_safetensors_path(file), text, spec->model.layers - 1, count);
            at = end + 1;
        }
        if (i < room)
            layers[i].origin = (int)origin;
    }
    return KG_OK;
}

// Layers of a file: the i of q.0, q.1, ... up to the first that is missing.
static int count_layers(const kg_safetensors *file)
{
    char name[32];
    int count = 0;
    do
        snprintf(name, sizeof name, "q.%d", count);
    while (kg_safetensors_find(file, name) && ++count);
    return count;
}

int kg_inputs_read(const kg_spec *spec, const char *const *paths, int path_count, int layers, int most, kg_inputs *in,
                   char *error, size_t error_size)
{
    const int wanted = layers ? layers : most;
    int taken = 0, code = inputs_open(spec, wanted, in, error, error_size);
    kg_safetensors *file = 0;
    for (int p = 0; p < path_count && !code; p++) {
        if (!kg_safetensors_open(paths[p], &file, error, error_size)) {
            code = KG_USER;
            break;
        }
        double scale = default_scale(spec);
        code = read_scale(file, &scale, error, error_size);
        // A file without q.0 is refused by read_layer, which says so.
        const int count = count_layers(file);
        if (!code)
            code = read_origins(file, spec, count, taken, wanted - taken, in->layers + taken, error, error_size);
        for (int i = 0; !code && taken < wanted && (i < count || !i); i++) {
            in->layers[taken].scale = scale;
            code = read_layer(file, i, in, &in->layers[taken++], error, error_size);
        }
        kg_safetensors_close(file);
        file = 0;
    }
    if (!code && taken < layers)
        code = kg_fail(KG_USER, error, error_size, "--layers %d: the --kv files hold %d", layers, taken);
    if (code)
        kg_inputs_free(in);
    else
        in->count = taken;
    return code;
}

void kg_inputs_free(kg_inputs *in)
{
    for (int l = 0; in->layers && l < in->count; l++) {
        kg_layer *layer = &in->layers[l];
        free(layer->query);
        free(layer->key);
        free(layer->value);
        free(layer->exact_key);
        free(layer->exact_value);
    }
    free(in->layers);
    *in = (kg_inputs){0};
}

kg_rows kg_inputs_keys(const kg_inputs *in, int layer, int kv_head, int first)
{
    const kg_layer *l = &in->layers[layer];
    return (kg_rows){l->exact_key + (long)kv_head * l->tokens * in->head_dim, first % l->tokens, l->tokens};
}

kg_rows kg_inputs_values(const kg_inputs *in, int layer, int kv_head, int first)
{
    const kg_layer *l = &in->layers[layer];
    return (kg_rows){l->exact_value + (long)kv_head * l->tokens * in->head_dim, first % l->tokens, l->tokens};
}
