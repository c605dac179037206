// kittygen new: writes a spec from a Hugging Face config.json.
#include "command.h"
#include "fields.h"
#include "sandbox.h"

#include <cjson/cJSON.h>
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *path;
    cJSON *root;
    const cJSON *text; // the language model's part: root, or its text_config
    char *error;
    size_t error_size;
} config;

static int refuse(config *c, const char *key, const char *why)
{
    return kg_fail(KG_USER, c->error, c->error_size, "%s: %s: %s", c->path, key, why);
}

static const cJSON *find(const config *c, const char *key)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(c->text, key);
    if (!item || cJSON_IsNull(item))
        item = cJSON_GetObjectItemCaseSensitive(c->root, key);
    return item && !cJSON_IsNull(item) ? item : 0;
}

static int parse(config *c, const char *data, size_t size)
{
    const char *end = 0;
    c->root = cJSON_ParseWithLengthOpts(data, size + 1, &end, 1);
    if (!c->root) {
        int line = 1, column = 1;
        for (const char *s = data; s < end && s < data + size; s++) {
            column = *s == '\n' ? 1 : column + 1;
            line += *s == '\n';
        }
        return kg_fail(KG_USER, c->error, c->error_size, "%s:%d:%d: malformed JSON", c->path, line, column);
    }
    if (!cJSON_IsObject(c->root))
        return kg_fail(KG_USER, c->error, c->error_size, "%s: not a JSON object; a config.json is one", c->path);
    const cJSON *nested = cJSON_GetObjectItemCaseSensitive(c->root, "text_config");
    c->text = cJSON_IsObject(nested) ? nested : c->root;
    return KG_OK;
}

// What the kernels cannot do yet.
static int check_kind(config *c)
{
    if (find(c, "kv_lora_rank"))
        return refuse(c, "kv_lora_rank", "multi-head latent attention has no keys and values per head; not supported");
    const cJSON *cap = find(c, "attn_logit_softcapping");
    if (cap && (!cJSON_IsNumber(cap) || cap->valuedouble != 0))
        return refuse(c, "attn_logit_softcapping", "a soft cap on logits is not supported");
    // With kinds of layers given, those with full attention are taken (read_kinds); else a window is of all layers.
    const cJSON *window = find(c, "sliding_window"), *use = find(c, "use_sliding_window");
    if (!find(c, "layer_types") && cJSON_IsNumber(window) && !cJSON_IsFalse(use))
        return refuse(c, "sliding_window", "sliding windows are not supported; set it to null if every layer is to attend all tokens");
    return KG_OK;
}

// Sets a field from a number in the config, or from `otherwise` where the key is missing and that is not 0.
static int set_number(config *c, kg_spec *spec, const char *path, const char *key, double otherwise, double *number)
{
    const cJSON *item = find(c, key);
    if (!item && !otherwise)
        return refuse(c, key, "missing");
    kg_value value = {KG_VALUE_NUMBER, item ? item->valuedouble : otherwise, 0};
    if (item && !cJSON_IsNumber(item))
        value = (kg_value){KG_VALUE_OTHER, 0, cJSON_IsString(item) ? "a text" : "a value that is no number"};
    kg_text reason = {0};
    int code = KG_OK;
    if (!kg_field_set(spec, kg_field_find(path), &value, &reason))
        code = refuse(c, key, reason.data ? reason.data : "not allowed");
    kg_text_free(&reason);
    *number = value.number;
    return code;
}

// Where kinds of layers are given, the layers are those with full attention.
static int read_kinds(config *c, kg_spec *spec)
{
    const cJSON *kinds = find(c, "layer_types"), *kind;
    if (!kinds)
        return KG_OK;
    if (!cJSON_IsArray(kinds))
        return refuse(c, "layer_types", "is no list; allowed: a list of kinds, one for each layer");
    const int count = cJSON_GetArraySize(kinds);
    if (count != spec->model.layers) {
        char why[128];
        snprintf(why, sizeof why, "%d kinds with num_hidden_layers %d; allowed: one for each layer", count, spec->model.layers);
        return refuse(c, "layer_types", why);
    }
    int full = 0;
    cJSON_ArrayForEach(kind, kinds) full += cJSON_IsString(kind) && !strcmp(kind->valuestring, "full_attention");
    if (!full)
        return refuse(c, "layer_types", "no layer has full attention; others are not supported");
    spec->model.layers = full;
    return KG_OK;
}

// Falcon's names: multi_query is one KV head for all, but for the new architecture, which has num_kv_heads.
static int read_kv_heads(config *c, kg_spec *spec, double heads)
{
    double kv_heads;
    const int one = cJSON_IsTrue(find(c, "multi_query")) && !cJSON_IsTrue(find(c, "new_decoder_architecture"));
    const int falcon = !one && !find(c, "num_key_value_heads") && find(c, "num_kv_heads");
    return set_number(c, spec, "model.kv_heads", falcon ? "num_kv_heads" : "num_key_value_heads", one ? 1 : heads, &kv_heads);
}

static int read_scale(config *c, kg_spec *spec)
{
    const cJSON *scalar = find(c, "query_pre_attn_scalar"), *multiplier = find(c, "attention_multiplier");
    if (scalar && multiplier)
        return refuse(c, "attention_multiplier", "query_pre_attn_scalar is given too; allowed: one of them");
    if (!scalar && !multiplier)
        return KG_OK;
    const kg_field *field = kg_field_find("model.scale");
    const cJSON *given = scalar ? scalar : multiplier;
    const double number = cJSON_GetNumberValue(given), scale = scalar ? 1 / sqrt(number) : number;
    if (!(scale >= field->least && scale <= field->high)) { // nan too, of what is no number
        char why[128], *value = cJSON_PrintUnformatted(given);
        snprintf(why, sizeof why, "%.32s is not allowed; allowed: numbers %s %g to %d", value ? value : "?",
                 scalar ? "of which 1 / sqrt, the softmax scale, is" : "from", field->least, field->high);
        cJSON_free(value);
        return refuse(c, scalar ? "query_pre_attn_scalar" : "attention_multiplier", why);
    }
    spec->model.scale = scale == 1 / sqrt(spec->model.head_dim) ? 0 : scale; // 0: the default
    return KG_OK;
}

static int read_shape(config *c, kg_spec *spec)
{
    double layers, heads, head_dim, derived = 0;
    const cJSON *hidden = find(c, "hidden_size");
    int code;
    if ((code = set_number(c, spec, "model.layers", "num_hidden_layers", 0, &layers)) ||
        (code = set_number(c, spec, "model.q_heads", "num_attention_heads", 0, &heads)) || (code = read_kv_heads(c, spec, heads)) ||
        (code = read_kinds(c, spec)))
        return code;
    if (!find(c, "head_dim")) {
        if (!hidden || !cJSON_IsNumber(hidden))
            return refuse(c, "head_dim", "missing, and so is hidden_size, from which it would follow");
        derived = hidden->valuedouble / heads;
    }
    if ((code = set_number(c, spec, "model.head_dim", "head_dim", derived, &head_dim)))
        return code;
    return read_scale(c, spec);
}

static int read_dtype(config *c, kg_spec *spec, const char *given)
{
    static const struct { const char *theirs, *ours; } types[] = {{"float16", "fp16"}, {"bfloat16", "bf16"}};
    const char *key = find(c, "dtype") ? "dtype" : "torch_dtype";
    const cJSON *item = find(c, key);
    kg_value value = {KG_VALUE_TEXT, 0, given};
    if (!given) {
        if (!item)
            return refuse(c, "torch_dtype", "missing; give --dtype fp16 or --dtype bf16");
        for (int i = 0; i < 2; i++)
            if (cJSON_IsString(item) && !strcmp(item->valuestring, types[i].theirs))
                value.text = types[i].ours;
        if (!value.text) {
            char why[256];
            snprintf(why, sizeof why, "\"%.64s\" is not allowed; allowed: \"float16\", \"bfloat16\"; or give --dtype fp16 or --dtype bf16",
                     cJSON_IsString(item) ? item->valuestring : "?");
            return refuse(c, key, why);
        }
    }
    kg_text reason = {0};
    int code = KG_OK;
    if (!kg_field_set(spec, kg_field_find("model.dtype"), &value, &reason))
        code = kg_fail(KG_USER, c->error, c->error_size, "--dtype: %s", reason.data ? reason.data : "not allowed");
    kg_text_free(&reason);
    return code;
}

static int read_name(config *c, kg_spec *spec, const char *given)
{
    char name[KG_NAME] = "";
    const char *source = given;
    if (!given) {
        const cJSON *item = find(c, "_name_or_path");
        if (!cJSON_IsString(item) || !*item->valuestring)
            item = find(c, "model_type");
        if (!cJSON_IsString(item))
            return refuse(c, "model_type", "missing; give --name NAME");
        const char *slash = strrchr(item->valuestring, '/');
        source = slash && slash[1] ? slash + 1 : item->valuestring;
        snprintf(name, sizeof name, "%s", source);
        for (char *s = name; *s; s++)
            *s = isalnum((unsigned char)*s) || *s == '.' ? (char)tolower((unsigned char)*s) : '-';
        source = name;
    }
    const kg_value value = {KG_VALUE_TEXT, 0, source};
    kg_text reason = {0};
    int code = KG_OK;
    if (!kg_field_set(spec, kg_field_find("model.name"), &value, &reason))
        code = kg_fail(KG_USER, c->error, c->error_size, "%s: %s", given ? "--name" : c->path, reason.data ? reason.data : "not allowed");
    kg_text_free(&reason);
    return code;
}

// A Lua string.
static int add_file(config *c, kg_text *out, const char *name)
{
    for (const char *s = name; *s; s++)
        if (iscntrl((unsigned char)*s) || *s == '"' || *s == '\\')
            return kg_fail(KG_USER, c->error, c->error_size, "--calibration: a name with quotes, backslashes or control characters is not allowed");
    kg_text_addf(out, "    calibration = \"%s\",\n", name);
    return KG_OK;
}

static int add_spec(config *c, kg_text *out, const kg_spec *spec, const char *variant, const char *calibration)
{
    kg_text_addf(out, "-- %s, from its config.json.\nreturn ", spec->model.name);
    int code = kg_spec_require(out, variant, "--variant", c->error, c->error_size);
    kg_text_add(out, " {\n");
    if (!code && calibration)
        code = add_file(c, out, calibration);
    kg_text_addf(out, "    model = {\n        name = \"%s\",\n        layers = %d,\n        q_heads = %d,\n        kv_heads = %d,\n",
                 spec->model.name, spec->model.layers, spec->model.q_heads, spec->model.kv_heads);
    kg_text_addf(out, "        head_dim = %d,\n        dtype = \"%s\",\n", spec->model.head_dim,
                 kg_field_find("model.dtype")->words[spec->model.dtype]);
    if (spec->model.scale != 0) {
        kg_text_add(out, "        scale = ");
        kg_text_number(out, spec->model.scale);
        kg_text_add(out, ",\n");
    }
    kg_text_add(out, "    },\n}\n");
    return code;
}

// The whole spec is read back before anything is written, as everyone will read it.
static int make_spec(config *c, kg_text *out, char *name, const char *variant, const char *given_name, const char *dtype, const char *calibration,
                     const char *file)
{
    kg_spec spec = {0};
    int code;
    if ((code = check_kind(c)) || (code = read_shape(c, &spec)) || (code = read_dtype(c, &spec, dtype)) ||
        (code = read_name(c, &spec, given_name)) || (code = add_spec(c, out, &spec, variant, calibration)))
        return code;
    char *folder = kg_folder_of(file ? file : ""); // where the spec will be: its calibration is looked for there
    if (out->failed || !folder) {
        free(folder);
        return kg_fail(KG_MACHINE, c->error, c->error_size, "%s: out of memory", c->path);
    }
    kg_spec *specs;
    int count;
    code = kg_spec_load_text("(new spec)", out->data, out->size, folder, 0, &specs, &count, c->error, c->error_size);
    free(specs);
    free(folder);
    snprintf(name, KG_NAME, "%s", spec.model.name);
    return code;
}

int kg_command_new(int argc, char **argv)
{
    const char *from = 0, *file = 0, *variant = "kitty-pro", *given_name = 0, *dtype = 0, *calibration = 0;
    int force = 0, json = 0, code;
    const kg_option list[] = {
        {"--from-config", "FILE", "a Hugging Face config.json", 0, &from},
        {"-o", "FILE", "the spec to write, a .lua file, - for standard output (default: NAME.lua)", 0, &file},
        {"--variant", "NAME", "a shipped variant (default: kitty-pro)", 0, &variant},
        {"--name", "NAME", "the model's name (default: from the config)", 0, &given_name},
        {"--dtype", "fp16|bf16", "element type, instead of the config's", 0, &dtype},
        {"--calibration", "FILE", "for variants that want one: a .safetensors file, named as the spec finds it from its folder", 0, &calibration},
        {"--force", 0, "overwrite an existing file", &force, 0},
        {"--json", 0, "print what was written as JSON", &json, 0},
        {0},
    };
    const kg_usage usage = {"kittygen new --from-config FILE [options]",
                            "Writes a spec from the shape that a Hugging Face config.json describes.\n", list, 0, 0};
    if (kg_options(&usage, argc, argv, &code) < 0)
        return code;
    if (!from) {
        fprintf(stderr, "kittygen new: --from-config FILE is missing\nusage: %s\n", usage.usage);
        return KG_USER;
    }
    if (file && strcmp(file, "-") && !kg_is_lua(file)) {
        fprintf(stderr, "kittygen new: -o %s is not allowed; allowed: a name that ends in .lua, - for standard output\n", file);
        return KG_USER;
    }
    if (file && !strcmp(file, "-") && json) {
        fprintf(stderr, "kittygen new: -o - prints the spec; it does not go with --json\n");
        return KG_USER;
    }
    char error[KG_ERROR], name[KG_NAME], path[KG_NAME + 8], *data = 0;
    size_t size;
    kg_text out = {0}, line = {0};
    config c = {.path = from, .error = error, .error_size = sizeof error};
    code = kg_file_read(from, KG_SANDBOX_FILE, &data, &size, error, sizeof error);
    if (code || (code = parse(&c, data, size)) || (code = make_spec(&c, &out, name, variant, given_name, dtype, calibration, file)))
        goto fail;
    if (file && !strcmp(file, "-")) {
        fputs(out.data, stdout);
        goto fail;
    }
    if (!file) {
        snprintf(path, sizeof path, "%s.lua", name);
        file = path;
    }
    code = kg_file_write(file, out.data, out.size, force, error, sizeof error);
    if (code)
        goto fail;
    if (json) {
        kg_text_add(&line, "{\"file\": ");
        kg_text_json(&line, file);
        kg_text_addf(&line, ", \"model\": \"%s\"}\n", name);
        fputs(line.data ? line.data : "", stdout);
    } else
        printf("%s: written; next: kittygen check %s\n", file, file);
fail:
    if (code)
        fprintf(stderr, "%s\n", error);
    cJSON_Delete(c.root);
    kg_text_free(&out);
    kg_text_free(&line);
    free(data);
    return code;
}
