#include "safetensors.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { LENGTH_BYTES = 8 };
static const uint64_t HEADER_LIMIT = 100000000; // as the format's own reader has it
static const double EXACT_LIMIT = 9007199254740992.0; // 2^53: JSON numbers are doubles here

static const struct {
    const char *name;
    int bytes;
} dtypes[] = {
    {"BOOL", 1}, {"U8", 1},   {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"U16", 2}, {"I16", 2}, {"F16", 2},
    {"BF16", 2}, {"U32", 4}, {"I32", 4}, {"F32", 4},     {"U64", 8},     {"I64", 8}, {"F64", 8},
};
enum { DTYPES = sizeof dtypes / sizeof *dtypes };

struct kg_safetensors {
    char *path;
    unsigned char *map;
    size_t size;
    cJSON *header;
    const cJSON *metadata;
    kg_tensor *tensors; // by name
    int count;
};

typedef struct {
    const char *path;
    char *text;
    size_t size;
} sink;

static bool refuse(const sink *error, const char *format, ...) __attribute__((format(printf, 2, 3)));
static bool refuse(const sink *error, const char *format, ...)
{
    const int used = snprintf(error->text, error->size, "%s: ", error->path);
    if (used >= 0 && (size_t)used < error->size) {
        va_list args;
        va_start(args, format);
        vsnprintf(error->text + used, error->size - (size_t)used, format, args);
        va_end(args);
    }
    return false;
}

char *kg_tensor_shape(const kg_tensor *tensor, char *text, size_t size)
{
    size_t used = (size_t)snprintf(text, size, "[");
    for (int i = 0; i < tensor->rank && used < size; i++)
        used += (size_t)snprintf(text + used, size - used, "%s%lld", i ? ", " : "", (long long)tensor->shape[i]);
    if (used < size)
        snprintf(text + used, size - used, "]");
    return text;
}

static bool whole(const cJSON *number, uint64_t *value)
{
    if (!cJSON_IsNumber(number) || !(number->valuedouble >= 0) || number->valuedouble > EXACT_LIMIT)
        return false;
    *value = (uint64_t)number->valuedouble;
    return (double)*value == number->valuedouble;
}

static bool map_file(kg_safetensors *file, const sink *error)
{
    struct stat status;
    const int fd = open(file->path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return refuse(error, "cannot be opened: %s", strerror(errno));
    bool ok = false;
    if (fstat(fd, &status))
        refuse(error, "cannot be read: %s", strerror(errno));
    else if (!S_ISREG(status.st_mode))
        refuse(error, "not a regular file");
    else if (status.st_size < LENGTH_BYTES)
        refuse(error, "truncated: %lld bytes, but the header's length alone takes %d", (long long)status.st_size, LENGTH_BYTES);
    else {
        file->size = (size_t)status.st_size;
        void *map = mmap(0, file->size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (map == MAP_FAILED)
            refuse(error, "cannot be mapped: %s", strerror(errno));
        else {
            file->map = map;
            ok = true;
        }
    }
    close(fd);
    return ok;
}

static bool parse_header(kg_safetensors *file, size_t *data, const sink *error)
{
    uint64_t length = 0;
    for (int i = LENGTH_BYTES - 1; i >= 0; i--)
        length = length << 8 | file->map[i];
    if (length > HEADER_LIMIT)
        return refuse(error, "header of %llu bytes; at most %llu are allowed (is this a safetensors file?)",
                      (unsigned long long)length, (unsigned long long)HEADER_LIMIT);
    if (length > file->size - LENGTH_BYTES)
        return refuse(error, "truncated: header of %llu bytes, but only %zu follow its length", (unsigned long long)length,
                      file->size - LENGTH_BYTES);
    const char *text = (const char *)file->map + LENGTH_BYTES, *end = 0;
    file->header = cJSON_ParseWithLengthOpts(text, length, &end, 0);
    const size_t at = end ? (size_t)(end - text) : 0;
    if (!file->header)
        return refuse(error, "header is not JSON, at its byte %zu", at);
    for (size_t i = at; i < length; i++)
        if (text[i] != ' ' && text[i] != '\n' && text[i] != '\r' && text[i] != '\t' && text[i] != '\0')
            return refuse(error, "header is not JSON, at its byte %zu", i);
    if (!cJSON_IsObject(file->header))
        return refuse(error, "header is not a JSON object");
    *data = LENGTH_BYTES + (size_t)length;
    return true;
}

static bool parse_metadata(kg_safetensors *file, const cJSON *item, const sink *error)
{
    if (!cJSON_IsObject(item))
        return refuse(error, "__metadata__ is not an object");
    const cJSON *entry;
    cJSON_ArrayForEach(entry, item) {
        if (!cJSON_IsString(entry))
            return refuse(error, "__metadata__: \"%s\" is not a string", entry->string);
    }
    file->metadata = item;
    return true;
}

// `data`: offset of the tensors' bytes in the file
static bool parse_tensor(const kg_safetensors *file, const cJSON *item, size_t data, kg_tensor *tensor, const sink *error)
{
    const char *name = tensor->name = item->string;
    if (!cJSON_IsObject(item))
        return refuse(error, "tensor \"%s\": not an object", name);
    const cJSON *dtype = cJSON_GetObjectItemCaseSensitive(item, "dtype");
    const cJSON *shape = cJSON_GetObjectItemCaseSensitive(item, "shape");
    const cJSON *offsets = cJSON_GetObjectItemCaseSensitive(item, "data_offsets");
    if (!cJSON_IsString(dtype))
        return refuse(error, "tensor \"%s\": no dtype", name);
    uint64_t product = 0;
    for (int i = 0; i < DTYPES; i++) {
        if (!strcmp(dtypes[i].name, dtype->valuestring)) {
            tensor->dtype = dtypes[i].name;
            product = (uint64_t)dtypes[i].bytes;
        }
    }
    if (!product)
        return refuse(error, "tensor \"%s\": unknown dtype \"%s\"", name, dtype->valuestring);
    if (!cJSON_IsArray(shape))
        return refuse(error, "tensor \"%s\": no shape", name);
    const cJSON *length;
    cJSON_ArrayForEach(length, shape) {
        uint64_t n;
        if (tensor->rank == KG_TENSOR_RANK)
            return refuse(error, "tensor \"%s\": more than %d dimensions", name, KG_TENSOR_RANK);
        if (!whole(length, &n))
            return refuse(error, "tensor \"%s\": shape[%d] is not a length", name, tensor->rank);
        tensor->shape[tensor->rank++] = (int64_t)n;
        if (__builtin_mul_overflow(product, n, &product))
            return refuse(error, "tensor \"%s\": the shape's size overflows", name);
    }
    uint64_t begin, end;
    if (!cJSON_IsArray(offsets) || cJSON_GetArraySize(offsets) != 2 || !whole(offsets->child, &begin) ||
        !whole(offsets->child->next, &end))
        return refuse(error, "tensor \"%s\": data_offsets is not a pair of offsets", name);
    if (begin > end)
        return refuse(error, "tensor \"%s\": data_offsets [%llu, %llu] run backwards", name, (unsigned long long)begin,
                      (unsigned long long)end);
    if (end > file->size - data)
        return refuse(error, "truncated: tensor \"%s\" ends at byte %llu of the data, the file at %zu", name,
                      (unsigned long long)end, file->size - data);
    char text[256];
    if (end - begin != product)
        return refuse(error, "tensor \"%s\": %llu bytes of data, but %s %s takes %llu", name,
                      (unsigned long long)(end - begin), tensor->dtype, kg_tensor_shape(tensor, text, sizeof text),
                      (unsigned long long)product);
    tensor->data = file->map + data + begin;
    tensor->bytes = (size_t)product;
    return true;
}

static int by_place(const void *a, const void *b)
{
    const kg_tensor *x = a, *y = b;
    if (x->data != y->data)
        return x->data < y->data ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

static int by_name(const void *a, const void *b) { return strcmp(((const kg_tensor *)a)->name, ((const kg_tensor *)b)->name); }

// The format allows no gap, overlap or trailing bytes; a file that has them was damaged.
static bool check_places(kg_safetensors *file, size_t data, const sink *error)
{
    const unsigned char *next = file->map + data;
    qsort(file->tensors, (size_t)file->count, sizeof *file->tensors, by_place);
    for (int i = 0; i < file->count; i++) {
        const kg_tensor *tensor = &file->tensors[i];
        const unsigned char *begin = tensor->data;
        if (begin < next)
            return refuse(error, "tensor \"%s\" overlaps tensor \"%s\"", tensor->name, file->tensors[i - 1].name);
        if (begin > next)
            return refuse(error, "%zu bytes before tensor \"%s\" belong to none", (size_t)(begin - next), tensor->name);
        next = begin + tensor->bytes;
    }
    const size_t left = (size_t)(file->map + file->size - next);
    return !left || refuse(error, "%zu bytes after the last tensor belong to none", left);
}

static bool parse(kg_safetensors *file, const sink *error)
{
    size_t data = 0;
    if (!map_file(file, error) || !parse_header(file, &data, error))
        return false;
    const int entries = cJSON_GetArraySize(file->header);
    file->tensors = calloc((size_t)entries + 1, sizeof *file->tensors);
    if (!file->tensors)
        return refuse(error, "out of memory");
    const cJSON *item;
    cJSON_ArrayForEach(item, file->header) {
        if (!strcmp(item->string, "__metadata__")) {
            if (!parse_metadata(file, item, error))
                return false;
        } else if (!parse_tensor(file, item, data, &file->tensors[file->count++], error))
            return false;
    }
    if (!check_places(file, data, error))
        return false;
    qsort(file->tensors, (size_t)file->count, sizeof *file->tensors, by_name);
    for (int i = 1; i < file->count; i++)
        if (!strcmp(file->tensors[i].name, file->tensors[i - 1].name))
            return refuse(error, "tensor \"%s\" is there twice", file->tensors[i].name);
    return true;
}

bool kg_safetensors_open(const char *path, kg_safetensors **result, char *error, size_t error_size)
{
    const sink problem = {path, error, error_size};
    *result = 0;
    kg_safetensors *file = calloc(1, sizeof *file);
    if (!file || !(file->path = strdup(path))) {
        refuse(&problem, "out of memory");
        goto fail;
    }
    if (!parse(file, &problem))
        goto fail;
    *result = file;
    return true;
fail:
    kg_safetensors_close(file);
    return false;
}

void kg_safetensors_close(kg_safetensors *file)
{
    if (!file)
        return;
    if (file->map)
        munmap(file->map, file->size);
    cJSON_Delete(file->header);
    free(file->tensors);
    free(file->path);
    free(file);
}

const char *kg_safetensors_path(const kg_safetensors *file) { return file->path; }
int kg_safetensors_count(const kg_safetensors *file) { return file->count; }
const kg_tensor *kg_safetensors_at(const kg_safetensors *file, int index) { return &file->tensors[index]; }

const kg_tensor *kg_safetensors_find(const kg_safetensors *file, const char *name)
{
    const kg_tensor wanted = {.name = name};
    return bsearch(&wanted, file->tensors, (size_t)file->count, sizeof wanted, by_name);
}

const char *kg_safetensors_metadata(const kg_safetensors *file, const char *key)
{
    return cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(file->metadata, key));
}

// Whether `word` is one of the space-separated words of `list`.
static bool listed(const char *list, const char *word)
{
    const size_t length = strlen(word);
    for (const char *at = list; (at = strstr(at, word)); at += length)
        if ((at == list || at[-1] == ' ') && (at[length] == ' ' || !at[length]))
            return true;
    return false;
}

const kg_tensor *kg_safetensors_require(const kg_safetensors *file, const char *name, const char *allowed, int rank,
                                        const int64_t *shape, const char *const *labels, char *error, size_t error_size)
{
    const sink problem = {file->path, error, error_size};
    const kg_tensor *tensor = kg_safetensors_find(file, name);
    if (!tensor) {
        refuse(&problem, "no tensor \"%s\" (it has %d, from \"%s\")", name, file->count,
               file->count ? file->tensors[0].name : "");
        return 0;
    }
    if (allowed && !listed(allowed, tensor->dtype)) {
        refuse(&problem, "tensor \"%s\" has dtype %s, expected one of %s", name, tensor->dtype, allowed);
        return 0;
    }
    bool fits = tensor->rank == rank;
    for (int i = 0; fits && i < rank; i++)
        fits = shape[i] < 0 || shape[i] == tensor->shape[i];
    if (fits)
        return tensor;
    char found[256], expected[256];
    size_t used = (size_t)snprintf(expected, sizeof expected, "[");
    for (int i = 0; i < rank && used < sizeof expected; i++) {
        if (shape[i] < 0)
            used += (size_t)snprintf(expected + used, sizeof expected - used, "%s%s", i ? ", " : "", labels ? labels[i] : "any");
        else
            used += (size_t)snprintf(expected + used, sizeof expected - used, "%s%lld", i ? ", " : "", (long long)shape[i]);
    }
    refuse(&problem, "tensor \"%s\" has shape %s, expected %s]", name, kg_tensor_shape(tensor, found, sizeof found), expected);
    return 0;
}
