// What earlier runs measured: a file each in the cache folder, named by a digest of all that the numbers depend on.
#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "explore.h"
#include "temporary.h"

enum { MOST_FILE = 64 << 20 };

static bool path_of(const char *digest, char path[KG_PATH])
{
    const int length = kg_cache_folder(path);
    return length < KG_PATH && snprintf(path + length, (size_t)(KG_PATH - length), "/explore/%s.json", digest) < KG_PATH - length;
}

// The file's JSON, the caller's to delete; null where there is none.
static cJSON *read_json(const char *digest)
{
    char path[KG_PATH], *text;
    size_t size;
    if (!path_of(digest, path) || kg_file_read(path, MOST_FILE, &text, &size, 0, 0))
        return 0;
    cJSON *json = cJSON_Parse(text);
    free(text);
    return json;
}

static void write_json(const char *digest, const kg_text *text)
{
    char path[KG_PATH];
    if (!text->failed && path_of(digest, path) && !kg_make_folders(path))
        kg_file_write(path, text->data, text->size, 1, 0, 0);
}

static void add_numbers(kg_text *out, const char *name, const double *numbers, size_t count)
{
    kg_text_addf(out, "%s\"%s\": [", out->size > 1 ? ", " : "", name);
    for (size_t i = 0; i < count; i++) {
        kg_text_add(out, i ? ", " : "");
        if (isfinite(numbers[i]))
            kg_text_number(out, numbers[i]);
        else
            kg_text_add(out, "null");
    }
    kg_text_add(out, "]");
}

// Just `count` numbers that are not negative; null is infinity.
static bool get_numbers(const cJSON *object, const char *name, double *numbers, size_t count)
{
    const cJSON *array = cJSON_GetObjectItemCaseSensitive(object, name), *item;
    if (!cJSON_IsArray(array) || (size_t)cJSON_GetArraySize(array) != count)
        return false;
    cJSON_ArrayForEach(item, array)
    {
        if (!cJSON_IsNull(item) && !(cJSON_IsNumber(item) && item->valuedouble >= 0))
            return false;
        *numbers++ = cJSON_IsNull(item) ? INFINITY : item->valuedouble;
    }
    return true;
}

typedef struct {
    const char *name;
    double *numbers;
    size_t count;
} list;

enum { LISTS = 5 };

static void lists_of(const kg_explore *x, const kg_explored *e, list lists[LISTS])
{
    const kg_inputs *in = &x->bed.in;
    const size_t heads = (size_t)in->count * (size_t)in->q_heads;
    lists[0] = (list){"logits", e->logits, heads};
    lists[1] = (list){"out", e->out, heads};
    lists[2] = (list){"boosted", e->boosted, (size_t)in->count * (size_t)in->kv_heads * (size_t)in->head_dim};
    lists[3] = (list){"codes", (double *)e->codes, KG_CODES * KG_EXPLORE_BARS};
    lists[4] = (list){"nonfinite", (double *)&e->nonfinite, 1};
}

bool kg_explore_load(const kg_explore *x, kg_variant *v)
{
    list lists[LISTS];
    cJSON *json = read_json(v->digest);
    bool whole = json != 0;
    lists_of(x, &v->explored, lists);
    for (int i = 0; i < LISTS && whole; i++)
        whole = get_numbers(json, lists[i].name, lists[i].numbers, lists[i].count);
    cJSON_Delete(json);
    return whole;
}

void kg_explore_save(const kg_explore *x, const kg_variant *v)
{
    list lists[LISTS];
    kg_text text = {0};
    lists_of(x, &v->explored, lists);
    kg_text_add(&text, "{");
    for (int i = 0; i < LISTS; i++)
        add_numbers(&text, lists[i].name, lists[i].numbers, lists[i].count);
    kg_text_add(&text, "}\n");
    write_json(v->digest, &text);
    kg_text_free(&text);
}

bool kg_explore_load_time(const char digest[KT__SHA256_HEX], kg_time *time)
{
    double us[3];
    cJSON *json = read_json(digest);
    const bool whole = json && get_numbers(json, "us", us, 3) && us[0] > 0;
    if (whole)
        *time = (kg_time){us[0], us[1], us[2]};
    cJSON_Delete(json);
    return whole;
}

void kg_explore_save_time(const char digest[KT__SHA256_HEX], const kg_time *time)
{
    kg_text text = {0};
    kg_text_add(&text, "{");
    add_numbers(&text, "us", (const double[]){time->us, time->low, time->high}, 3);
    kg_text_add(&text, "}\n");
    write_json(digest, &text);
    kg_text_free(&text);
}
