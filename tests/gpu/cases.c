#include "cases.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "../emulate/body.h"
#include "emit.h"
#include "exact.h"
#include "temporary.h"

enum { MOST_SPECS = 512 };

// ---- the list --------------------------------------------------------------------------------------------------------

static int add_case(case_list *list, const kg_spec *spec)
{
    test_case *c = &list->all[list->count];
    if (list->count == MOST_SPECS)
        return fail(KG_USER, "more than %d specs", MOST_SPECS);
    snprintf(c->name, sizeof c->name, "%s", spec->name);
    if (snprintf(c->folder, sizeof c->folder, "%s/%s", list->folder, spec->name) >= (int)sizeof c->folder)
        return fail(KG_MACHINE, "%s: the path is too long", list->folder);
    list->count++;
    TRY(kg_emit_package(spec, c->folder, failure, sizeof failure));
    CALL(kt__package_read(c->folder, &c->package));
    if (c->package.kernel_count > CASE_KERNELS)
        return fail(KG_FAILED, "%s: %d kernels; at most %d were expected", spec->name, c->package.kernel_count, CASE_KERNELS);
    for (int k = 0; k < c->package.kernel_count; k++, list->kernels++) {
        const char *body = kernel_body(c->package.kernels[k].source);
        char *digest = list->digests[list->sources];
        int known = 0;
        kt__sha256_text(body, strlen(body), digest);
        while (strcmp(list->digests[known], digest))
            known++;
        c->sources[k] = known;
        c->first[k] = known == list->sources;
        c->runs |= c->first[k];
        list->sources += c->first[k];
    }
    return KG_OK;
}

// The emulator takes long for a search of ranges: of the models one stands for all.
static bool left_out(const kg_spec *spec)
{
    return !strcmp(spec->variant, "best-2bit") && strcmp(spec->model.name, "smollm2-135m");
}

static int add_specs(case_list *list, const char *what)
{
    kg_spec *specs;
    int count, code = KG_OK;
    TRY(kg_spec_load(what, NULL, &specs, &count, failure, sizeof failure));
    for (int i = 0; i < count && !code; i++)
        if (!left_out(&specs[i]))
            code = add_case(list, &specs[i]);
    free(specs);
    return code;
}

// Every model with every variant but for those left out, and the files beside the folders of both.
static int add_shipped(case_list *list)
{
    static const char *const folders[] = {"/models", ""};
    char specs[KG_PATH], path[2 * KG_PATH], names[MOST_LISTED][KG_NAME];
    int count;
    TRY(kg_find_folder("specs", "KT_SPECS", specs, failure, sizeof failure));
    for (int f = 0; f < 2; f++) {
        snprintf(path, sizeof path, "%s%s", specs, folders[f]);
        TRY(list_specs(path, names, &count));
        for (int i = 0; i < count; i++) {
            snprintf(path, sizeof path, "%s/%s.lua", specs, names[i]);
            TRY(add_specs(list, f ? path : names[i]));
        }
    }
    const char *tests = getenv("KT_TEST_DATA");
    snprintf(path, sizeof path, "%s/emulate/shapes.lua", tests && *tests ? tests : "tests");
    return add_specs(list, path);
}

int cases_make(case_list *list, char **specs, int count)
{
    *list = (case_list){.all = calloc(MOST_SPECS, sizeof *list->all),
                        .digests = calloc(MOST_SPECS * CASE_KERNELS + 1, sizeof *list->digests)};
    if (!list->all || !list->digests)
        return fail(KG_MACHINE, "out of memory");
    TRY(kg_temporary_make(list->folder, failure, sizeof failure));
    for (int i = 0; i < count; i++)
        TRY(add_specs(list, specs[i]));
    return count ? KG_OK : add_shipped(list);
}

const kt_format *case_format(const test_case *given, int layer) { return &given->package.formats[kt__layer_format(&given->package, layer)]; }

int case_block_bytes(const test_case *given)
{
    int most = 0;
    for (int i = 0; i < given->package.format_count; i++)
        most = given->package.formats[i].block_bytes > most ? given->package.formats[i].block_bytes : most;
    return most;
}

void cases_free(case_list *list)
{
    for (int i = 0; i < list->count; i++) {
        kt__package_free(&list->all[i].package);
        kg_temporary_remove(list->all[i].folder);
    }
    if (*list->folder)
        kg_temporary_remove(list->folder);
    free(list->all);
    free(list->digests);
}

// ---- records ---------------------------------------------------------------------------------------------------------

static void blame(agreement *a, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void blame(agreement *a, const char *format, ...)
{
    va_list arguments;
    if (*a->fault)
        return;
    va_start(arguments, format);
    vsnprintf(a->fault, sizeof a->fault, format, arguments);
    va_end(arguments);
}

static void compare_blocks(const record *device, const record *other, agreement *to)
{
    const block_digest *a = (const void *)device->blocks.data, *b = (const void *)other->blocks.data;
    const size_t count = device->blocks.size / sizeof *a;
    if (device->blocks.size != other->blocks.size)
        blame(to, "%zu blocks and runs of exact rows; the other has %zu", count, other->blocks.size / sizeof *b);
    for (size_t i = 0; i < count && !*to->fault; i++) {
        to->blocks += a[i].page >= 0 && a[i].sequence >= 0;
        if (!memcmp(&a[i], &b[i], sizeof *a))
            continue;
        if (a[i].sequence < 0)
            blame(to, "step %d: counters of overruns and of elements that are not finite differ", a[i].step);
        else
            blame(to, "step %d: %s of sequence %d, layer %d, head %d, page %d differs", a[i].step,
                  a[i].page >= 0 ? "block" : a[i].page == -1 ? "exact keys" : "exact values", a[i].sequence, a[i].layer, a[i].head, a[i].page);
    }
}

// The unit in the last place of a number of the type.
static double unit_of(int dtype, double x)
{
    const int bits = dtype == KT_BF16 ? 8 : 11, least = dtype == KT_BF16 ? -133 : -24;
    int exponent;
    frexp(x, &exponent);
    return ldexp(1, exponent - bits > least ? exponent - bits : least);
}

static double larger(double a, double b) { return b > a || isnan(b) ? b : a; }

// Of one attend: `heads` heads of `width` elements, and their log-sum-exps.
static difference compare_outputs(int dtype, size_t heads, int width, const uint16_t *a, const uint16_t *b, const float *lse_a,
                                  const float *lse_b, long *equal)
{
    difference d = {0};
    kg_error all = {0};
    for (size_t h = 0; h < heads; h++, a += width, b += width) {
        double squares = 0;
        for (int i = 0; i < width; i++)
            squares += (double)kg_to_float(dtype, b[i]) * (double)kg_to_float(dtype, b[i]);
        for (int i = 0; i < width; i++) {
            const double y = (double)kg_to_float(dtype, b[i]), off = (double)kg_to_float(dtype, a[i]) - y;
            kg_error_join(&all, (kg_error){off * off, y * y});
            d.ulps = larger(d.ulps, fabs(off) / unit_of(dtype, fmax(fabs(y), sqrt(squares / width))));
            *equal += a[i] == b[i];
        }
        d.lse = larger(d.lse, fabs((double)lse_a[h] - (double)lse_b[h]));
    }
    d.distance = kg_error_relative(all);
    return d;
}

void records_compare(const test_case *given, const record *device, const record *other, const difference *limits, agreement *to)
{
    const kt_format *f = &given->package.formats[0];
    const char *a = device->outputs.data, *b = other->outputs.data, *end = a + device->outputs.size;
    compare_blocks(device, other, to);
    if (device->outputs.size != other->outputs.size)
        blame(to, "%zu bytes of outputs; the other has %zu", device->outputs.size, other->outputs.size);
    while (a < end && !*to->fault) {
        const output_head *head = (const void *)a;
        const size_t heads = (size_t)head->rows * CASE_HEADS * (size_t)f->group_heads, out = heads * (size_t)f->head_dim * 2;
        const char *kernel = given->package.kernels[head->kernel].name;
        if (memcmp(a, b, sizeof *head))
            return blame(to, "step %d, layer %d: outputs of other attends", head->step, head->layer);
        a += sizeof *head, b += sizeof *head;
        const difference d = compare_outputs(f->dtype, heads, f->head_dim, (const void *)a, (const void *)b, (const void *)(a + out),
                                             (const void *)(b + out), &to->equal);
        to->worst.distance = larger(to->worst.distance, d.distance);
        to->worst.lse = larger(to->worst.lse, d.lse);
        to->worst.ulps = larger(to->worst.ulps, d.ulps);
        to->attends++;
        to->elements += (long)(out / 2);
        if (!(d.distance <= limits->distance && d.lse <= limits->lse && d.ulps <= limits->ulps))
            blame(to, "step %d, layer %d, %s: relative L2 distance %.3g, log-sum-exp off by %.3g, an element by %.3g units in the last place; "
                  "at most %.3g, %.3g and %.3g are allowed", head->step, head->layer, kernel, d.distance, d.lse, d.ulps, limits->distance,
                  limits->lse, limits->ulps);
        a += out + heads * sizeof(float), b += out + heads * sizeof(float);
    }
}

void record_free(record *record)
{
    kg_text_free(&record->blocks);
    kg_text_free(&record->outputs);
}

// A file begins with the sources that gave it, so that no record of others is taken for one of these.
typedef struct {
    char kind[24], name[2 * KG_NAME], digests[CASE_KERNELS][KT__SHA256_HEX];
    uint64_t blocks, outputs;
} file_head;

static int head_of(const case_list *list, const test_case *c, const char *folder, file_head *head, char path[KG_PATH])
{
    *head = (file_head){.kind = "kitty cases 1"};
    snprintf(head->name, sizeof head->name, "%s", c->name);
    for (int k = 0; k < c->package.kernel_count; k++)
        memcpy(head->digests[k], list->digests[c->sources[k]], KT__SHA256_HEX);
    return snprintf(path, KG_PATH, "%s/%s.bin", folder, c->name) < KG_PATH ? KG_OK : fail(KG_USER, "%s: the path is too long", folder);
}

int record_write(const case_list *list, const test_case *c, const record *record, const char *folder)
{
    file_head head;
    char path[KG_PATH];
    kg_text all = {0};
    TRY(head_of(list, c, folder, &head, path));
    head.blocks = record->blocks.size, head.outputs = record->outputs.size;
    if (mkdir(folder, 0777) && errno != EEXIST)
        return fail(KG_MACHINE, "%s: %s", folder, strerror(errno));
    kg_text_bytes(&all, (const char *)&head, sizeof head);
    kg_text_bytes(&all, record->blocks.data, record->blocks.size);
    kg_text_bytes(&all, record->outputs.data, record->outputs.size);
    const int code = all.failed || record->blocks.failed || record->outputs.failed ? fail(KG_MACHINE, "out of memory")
                     : kg_file_write(path, all.data, all.size, 1, failure, sizeof failure);
    kg_text_free(&all);
    return code;
}

int record_read(const case_list *list, const test_case *c, const char *folder, record *record)
{
    file_head head, found;
    char path[KG_PATH], *data;
    size_t size;
    TRY(head_of(list, c, folder, &head, path));
    TRY(kg_file_read(path, 64 << 20, &data, &size, failure, sizeof failure));
    if (size >= sizeof found)
        memcpy(&found, data, sizeof found), head.blocks = found.blocks, head.outputs = found.outputs;
    int code = KG_OK;
    if (size < sizeof found || memcmp(&found, &head, sizeof head) || found.blocks + found.outputs != size - sizeof head)
        code = fail(KG_USER, "%s is of other kernels than these; make it again: ./dev test -R emulate_kernels", path);
    if (!code) {
        kg_text_bytes(&record->blocks, data + sizeof head, head.blocks);
        kg_text_bytes(&record->outputs, data + sizeof head + head.blocks, head.outputs);
    }
    free(data);
    return code;
}
