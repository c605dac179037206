// What the command line names: a spec file, or shipped models and variants.
#define _GNU_SOURCE
#include "sandbox.h"
#include "spec.h"

#include <ctype.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int kg_is_lua(const char *path)
{
    const size_t length = strlen(path);
    return length >= 4 && !strcmp(path + length - 4, ".lua");
}

static int is_lua(const struct dirent *entry) { return kg_is_lua(entry->d_name) && *entry->d_name != '.'; }

typedef struct {
    struct dirent **entries;
    const char **names; // without ".lua", sorted
    int count;
} listing;

static void listing_free(listing *l)
{
    for (int i = 0; i < l->count; i++)
        free(l->entries[i]);
    free(l->entries);
    free(l->names);
}

static int list_folder(listing *l, const char *specs, const char *folder, char *error, size_t error_size)
{
    char path[KG_PATH + 32];
    snprintf(path, sizeof path, "%s/%s", specs, folder);
    *l = (listing){0};
    const int count = scandir(path, &l->entries, is_lua, alphasort);
    if (count <= 0)
        return kg_fail(KG_MACHINE, error, error_size, "%s: no shipped specs", path);
    l->count = count;
    l->names = calloc((size_t)count, sizeof *l->names);
    if (!l->names)
        return kg_fail(KG_MACHINE, error, error_size, "%s: out of memory", path);
    for (int i = 0; i < count; i++) {
        l->entries[i]->d_name[strlen(l->entries[i]->d_name) - 4] = 0;
        l->names[i] = l->entries[i]->d_name;
    }
    return KG_OK;
}

// The name that a word stands for, in the first of the listings that has it. *found: which. Null after a message.
static const char *pick(const listing *lists, int listings, const char *kind, const char *word, size_t length, const char *what,
                        int *found, char *error, size_t error_size)
{
    enum { MOST = 256 };
    const char *names[MOST];
    char folded[64];
    int count = 0;
    snprintf(folded, sizeof folded, "%.*s", (int)(length < 63 ? length : 63), word);
    for (char *c = folded; *c; c++)
        *c = *c == '-' || *c == '.' ? '_' : (char)tolower((unsigned char)*c);
    kg_text list = {0};
    for (*found = 0; *found < listings; ++*found)
        for (int i = 0; i < lists[*found].count && count < MOST; i++) {
            names[count] = lists[*found].names[i];
            if (!strcmp(names[count], folded)) {
                kg_text_free(&list);
                return names[count];
            }
            kg_text_addf(&list, "%s%s", count ? ", " : "", names[count]);
            count++;
        }
    const char *nearest = kg_nearest(folded, names, count);
    kg_fail(KG_USER, error, error_size, "%s: no shipped %s \"%s\"; shipped: %s%s%s%s", what, kind, folded, list.data ? list.data : "",
            nearest ? "; did you mean `" : "", nearest ? nearest : "", nearest ? "`?" : "");
    kg_text_free(&list);
    return 0;
}

// The project's own, and those published for other methods.
static int list_variants(listing variants[2], const char *specs, char *error, size_t error_size)
{
    const int code = list_folder(&variants[0], specs, "variants", error, error_size);
    return code ? code : list_folder(&variants[1], specs, "variants/published", error, error_size);
}

static int add_require(kg_text *out, const listing variants[2], const char *word, size_t length, const char *what, char *error, size_t error_size)
{
    int found;
    const char *variant = pick(variants, 2, "variant", word, length, what, &found, error, error_size);
    if (!variant)
        return KG_USER;
    kg_text_addf(out, "require \"variants.%s%s\"", found ? "published." : "", variant);
    return KG_OK;
}

int kg_spec_require(kg_text *out, const char *word, const char *what, char *error, size_t error_size)
{
    char specs[KG_PATH];
    listing variants[2] = {{0}};
    int code = kg_find_folder("specs", "KT_SPECS", specs, error, error_size);
    if (!code)
        code = list_variants(variants, specs, error, error_size);
    if (!code)
        code = add_require(out, variants, word, strlen(word), what, error, error_size);
    listing_free(&variants[0]);
    listing_free(&variants[1]);
    return code;
}

// Writes the Lua that composes shipped models and variants.
static int compose(kg_text *text, const char *what, char *error, size_t error_size)
{
    char specs[KG_PATH];
    listing models = {0}, variants[2] = {{0}};
    int found;
    const size_t model_length = strcspn(what, "/");
    int code = kg_find_folder("specs", "KT_SPECS", specs, error, error_size);
    if (code || (code = list_folder(&models, specs, "models", error, error_size)) ||
        (code = list_variants(variants, specs, error, error_size)))
        goto fail;
    const char *model = pick(&models, 1, "model", what, model_length, what, &found, error, error_size);
    if (!model) {
        code = KG_USER;
        if (!access(what, F_OK))
            kg_fail(code, error, error_size, "%s: exists, but no shipped model has this name, and the names of spec files end in .lua", what);
        goto fail;
    }
    kg_text_addf(text, "local model = require \"models.%s\"\nreturn {\n", model);
    const char *list = what + model_length;
    for (int i = 0; !*list && i < variants->count; i++)
        kg_text_addf(text, "    require \"variants.%s\" { model = model },\n", variants->names[i]);
    while (*list) {
        list++; // the slash or a comma
        const size_t length = strcspn(list, ",");
        kg_text_add(text, "    ");
        if ((code = add_require(text, variants, list, length, what, error, error_size)))
            goto fail;
        kg_text_add(text, " { model = model },\n");
        list += length;
    }
    kg_text_add(text, "}\n");
    if (text->failed)
        code = kg_fail(KG_MACHINE, error, error_size, "%s: out of memory", what);
fail:
    listing_free(&models);
    listing_free(&variants[0]);
    listing_free(&variants[1]);
    return code;
}

int kg_spec_load(const char *what, const kg_spec_options *options, kg_spec **specs, int *count, char *error, size_t error_size)
{
    *specs = 0;
    *count = 0;
    if (strstr(what, ".lua,") && access(what, F_OK))
        return kg_fail(KG_USER, error, error_size, "%s: no such file; commas are between variants, specs are given one by one: A.lua B.lua", what);
    if (!kg_is_lua(what)) {
        kg_text text = {0};
        int code = compose(&text, what, error, error_size);
        if (!code)
            code = kg_spec_load_text(what, text.data, text.size, 0, options, specs, count, error, error_size);
        kg_text_free(&text);
        return code;
    }
    char *text;
    size_t size;
    int code = kg_file_read(what, KG_SANDBOX_FILE, &text, &size, error, error_size);
    if (code)
        return code;
    char *folder = kg_folder_of(what);
    code = folder ? kg_spec_load_text(what, text, size, folder, options, specs, count, error, error_size)
                  : kg_fail(KG_MACHINE, error, error_size, "%s: out of memory", what);
    free(folder);
    free(text);
    return code;
}
