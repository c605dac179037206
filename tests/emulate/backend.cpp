#include "backend.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "body.h"
#include "emulate_host.h"

extern "C" {
#include "sha256.h"
}

namespace {

enum { PATHS = 2 }; // of the code: cp.async (sm_80), bulk copies (sm_90)

struct emulator {
    kt__backend base;
    std::string folder; // of compiled kernels
    struct {
        emulate_kernel *loaded; // when it is first launched
        int launches[PATHS];
    } kernels[KT__EMULATE_KERNELS];
    std::set<void *> pools; // pages and slabs seen, which start without contents
    uint64_t seed;
    int launches, attend_limit, bulk, checks, most_units;
    const void *taken_in; // keys of the last append
};

emulator *of(kt__backend *backend) { return (emulator *)(void *)backend; }

void close_backend(kt__backend *backend)
{
    for (auto &kernel : of(backend)->kernels)
        emulate_unload(kernel.loaded);
    delete of(backend);
}

kt_status alloc(kt__backend *, size_t bytes, void **address)
{
    *address = emulate_alloc(bytes, 1, "memory");
    return *address ? KT_OK : kt__fail(KT_MEMORY, "%zu bytes of memory could not be had", bytes);
}

void release(kt__backend *backend, void *address)
{
    of(backend)->pools.erase(address);
    emulate_free(address);
}

kt_status upload(kt__backend *, const kt__copy *copies, int count, void *)
{
    for (int i = 0; i < count; i++) {
        memcpy(copies[i].to, copies[i].from, copies[i].bytes);
        emulate_initialised(copies[i].to, copies[i].bytes, 1);
    }
    emulate_settle();
    return KT_OK;
}

kt_status copy(kt__backend *, void *to, const void *from, size_t bytes, int count, size_t stride, void *)
{
    for (int i = 0; i < count; i++) {
        memcpy((char *)to + (size_t)i * stride, (const char *)from + (size_t)i * stride, bytes);
        emulate_initialised((char *)to + (size_t)i * stride, bytes, 1);
    }
    emulate_settle();
    return KT_OK;
}

kt_status download(kt__backend *, void *to, const void *from, size_t bytes)
{
    memcpy(to, from, bytes);
    emulate_settle();
    return KT_OK;
}

kt_status mirror_alloc(kt__backend *, size_t bytes, void **host)
{
    *host = calloc(1, bytes);
    return *host ? KT_OK : kt__fail(KT_MEMORY, "%zu bytes of memory could not be had", bytes);
}

void mirror_free(kt__backend *, void *host) { free(host); }

kt_status mirror(kt__backend *backend, void *host, const void *device, size_t bytes, void *)
{
    return download(backend, host, device, bytes);
}

kt_status capturing(kt__backend *, void *, bool *yes)
{
    *yes = false;
    return KT_OK;
}

// ---- compiling ----
int number(const char *name, int fallback)
{
    const char *text = getenv(name);
    return text && *text ? atoi(text) : fallback;
}

bool write_source(const std::string &path, const char *text)
{
    if (!access(path.c_str(), R_OK))
        return true;
    const std::string part = path + "." + std::to_string(getpid());
    FILE *file = fopen(part.c_str(), "w");
    bool done = file && fputs(text, file) >= 0;
    if (file)
        done = !fclose(file) && done;
    return done && !rename(part.c_str(), path.c_str());
}

// The kernel, compiled and loaded where it is not yet. Equal sources share an object, whatever spec they are of.
kt_status kernel_of(emulator *e, int index, emulate_kernel **kernel)
{
    const kt__kernel *k = &e->base.package->kernels[index];
    const char *body = kernel_body(k->source);
    char digest[KT__SHA256_HEX], error[2048] = "";
    emulate_kernel **place = &e->kernels[index].loaded;
    if (!*place) {
        kt__sha256_text(body, strlen(body), digest);
        const std::string name = e->folder + "/" + k->name + "-" + std::string(digest).substr(0, 24), source = name + ".cu";
        const std::string object = name + (e->checks ? "" : "-fast") + ".so";
        const emulate_build build = {source.c_str(), k->entry, object.c_str(), e->checks};
        if (!write_source(source, k->source))
            return kt__fail(KT_IO, "cannot write %s: %s", source.c_str(), strerror(errno));
        if (emulate_compile(&build, error, sizeof error) || !(*place = emulate_load(object.c_str(), k->entry, error, sizeof error)))
            return kt__fail(KT_COMPILE, "%s: %s", k->name, error);
    }
    *kernel = *place;
    return KT_OK;
}

// ---- the caller's tensors, known only from the parameters ----
struct span {
    char *start, *end;
    std::string name;
    int writes; // whether a kernel of the caller just ahead may write it, or read what was there
};

// Elements [rows, heads, width] with these strides.
void add_span(std::vector<span> &spans, const void *base, long long rows, long long row, long long heads, long long head,
              long long width, int size, const char *name)
{
    if (!base || !rows)
        return;
    span s = {(char *)base, (char *)base + ((rows - 1) * row + (heads - 1) * head + width) * size, name, strcmp(name, "out") && strcmp(name, "lse")};
    spans.push_back(s);
}

// Registers what no buffer holds yet; tensors that overlap (packed q, k and v) become one. Returns the buffers to unregister.
std::vector<void *> register_spans(std::vector<span> &spans)
{
    std::vector<void *> made;
    void *start;
    size_t bytes;
    std::sort(spans.begin(), spans.end(), [](const span &a, const span &b) { return a.start < b.start; });
    for (size_t i = 0; i < spans.size(); i++) {
        span s = spans[i];
        while (i + 1 < spans.size() && spans[i + 1].start < s.end) {
            s.name += "+" + spans[++i].name;
            s.end = std::max(s.end, spans[i].end);
        }
        if (emulate_buffer(s.start, &start, &bytes)) {
            emulate_name(start, s.name.c_str());
            continue;
        }
        emulate_register(s.start, (size_t)(s.end - s.start), 1, s.name.c_str());
        made.push_back(s.start);
    }
    return made;
}

void add_view(std::vector<span> &spans, const kt_view *v, int head_dim, long long *rows)
{
    *rows = 0;
    for (int i = 0; i < v->slot_count; i++)
        if (v->slots[i].fresh)
            *rows = std::max(*rows, (long long)v->slots[i].row + v->slots[i].fresh);
    add_span(spans, v->key, *rows, v->key_row, v->kv_heads, v->key_head, head_dim, 2, "key");
    add_span(spans, v->value, *rows, v->value_row, v->kv_heads, v->value_head, head_dim, 2, "value");
}

void empty_pool(emulator *e, void *address, const char *name)
{
    void *start;
    size_t bytes;
    if (!emulate_buffer(address, &start, &bytes) || !e->pools.insert(start).second)
        return;
    emulate_initialised(start, bytes, 0);
    emulate_name(start, name);
}

kt_status launch(kt__backend *backend, int index, const kt__extent *extent, const void *params, size_t bytes, void *)
{
    emulator *e = of(backend);
    const kt__kernel *k = &backend->package->kernels[index];
    const kt_format *f = &backend->package->formats[k->format];
    const emulate_report *reports;
    emulate_kernel *kernel;
    std::vector<span> spans;
    emulate_launch_args args = {};
    long long rows = 0;
    for (int d = 0; d < 3; d++) {
        args.grid[d] = 1;
        for (int i = 0; i < KT__GRID_FACTORS; i++)
            args.grid[d] *= k->grid[d][i] == KT__ONE     ? 1u
                            : k->grid[d][i] == KT__UNITS ? (unsigned)std::min(extent->ones[KT__UNITS], e->most_units)
                                                         : (unsigned)extent->ones[k->grid[d][i]];
        args.block[d] = d ? 1u : (unsigned)k->threads;
    }
    args.shared = (size_t)k->shared;
    args.params = params;
    args.params_bytes = bytes;
    args.bulk = args.overlap = e->bulk; // as the CUDA backend asks for on such cards
    args.seed = e->seed + (uint64_t)e->launches++;
    if (k->shared > backend->shared_limit)
        return kt__fail(KT_UNSUPPORTED, "%s needs %d bytes of shared memory; the emulated card has %d", k->name, k->shared,
                        backend->shared_limit);

    if (k->op == KT__APPEND || k->op == KT__ATTEND || k->op == KT__REFERENCE) {
        const kt_view *v = (const kt_view *)params; // both structures begin with it
        add_view(spans, v, f->head_dim, &rows);
        empty_pool(e, v->pages, "pages");
        empty_pool(e, v->slabs, "slabs");
    }
    if (k->op == KT__ATTEND || k->op == KT__REFERENCE) {
        const kt_attend_params *p = (const kt_attend_params *)params;
        const int heads = p->view.kv_heads * f->group_heads;
        void *start;
        size_t size;
        add_span(spans, p->query, rows, p->query_row, heads, p->query_head, f->head_dim, 2, "query");
        add_span(spans, p->out, rows, p->out_row, heads, p->out_head, f->head_dim, 2, "out");
        add_span(spans, p->lse, rows, heads, heads, 1, 1, 4, "lse");
        if (p->partial && emulate_buffer(p->partial, &start, &size))
            emulate_initialised(p->partial, size - (size_t)((char *)p->partial - (char *)start), 0);
    }
    if (k->op == KT__ATTEND && ((const kt_attend_params *)params)->max_fresh > e->attend_limit) {
        kt__cpu_attend(f, (const kt_attend_params *)params);
        emulate_settle();
        return KT_OK;
    }
    const kt_status status = kernel_of(e, index, &kernel);
    if (status)
        return status;
    const std::vector<span> tensors = spans;
    std::vector<void *> made = register_spans(spans);
    // An append and the attend beside it read the same keys and values, which were there before the first of the two.
    const bool append = k->op == KT__APPEND;
    const bool known = append ? ((const kt_append_params *)params)->behind : !spans.empty() && e->taken_in == ((const kt_view *)params)->key;
    for (const span &s : tensors)
        if (e->bulk && !(known && (s.name == "key" || s.name == "value")))
            emulate_outside(s.start, (size_t)(s.end - s.start), s.writes, "a kernel of the caller");
    if (append)
        e->taken_in = ((const kt_view *)params)->key;
    const int count = emulate_launch(kernel, &args, &reports);
    e->kernels[index].launches[e->bulk]++;
    for (void *address : made)
        emulate_unregister(address);
    return count ? kt__fail(KT_DEVICE, "%s", reports[0].text) : KT_OK;
}

const kt__backend_calls calls = {close_backend, alloc,       release, upload,    copy,  download,
                                 mirror_alloc,  mirror_free, mirror,  capturing, launch};

}

kt_status kt__emulate_open(const kt__package *package, const char *cache_dir, kt__backend **backend)
{
    const std::string folder = std::string(cache_dir) + "/emulate";
    for (size_t i = 1; i <= folder.size(); i++)
        if ((i == folder.size() || folder[i] == '/') && mkdir(folder.substr(0, i).c_str(), 0777) && errno != EEXIST)
            return kt__fail(KT_IO, "cannot make the folder %s: %s", folder.c_str(), strerror(errno));
    if (package->kernel_count > KT__EMULATE_KERNELS)
        return kt__fail(KT_PACKAGE, "%s has %d kernels; the emulator takes at most %d", package->spec, package->kernel_count, KT__EMULATE_KERNELS);
    emulator *e = new emulator();
    e->base.calls = &calls;
    e->base.package = package;
    e->base.multiprocessors = number("KT_EMULATE_SMS", 4);
    e->folder = folder;
    e->seed = (uint64_t)number("KT_EMULATE_SEED", 0);
    e->checks = !number("KT_EMULATE_FAST", 0);
    e->attend_limit = number("KT_EMULATE_ATTEND", 1 << 30);
    kt__emulate_card(&e->base, number("KT_EMULATE_BULK", 1), number("KT_EMULATE_UNITS", 1 << 30));
    *backend = &e->base;
    return KT_OK;
}

void kt__emulate_card(kt__backend *backend, int bulk, int most_units)
{
    emulator *e = of(backend);
    e->bulk = bulk;
    e->most_units = most_units;
    e->base.shared_limit = number("KT_EMULATE_SHARED", 232448);
    snprintf(e->base.device_name, sizeof e->base.device_name, "emulated sm_%d", bulk ? 90 : 80);
}

int kt__emulate_launches(const kt__backend *backend, int kernel, int bulk)
{
    return ((const emulator *)(const void *)backend)->kernels[kernel].launches[bulk];
}

// What kt_open calls in a program linked with --wrap=kt__cuda_open, or --wrap=kt__cpu_open.
extern "C" kt_status __wrap_kt__cuda_open(const kt__package *package, const kt__environment *environment, int, bool *usable,
                                          kt__backend **backend)
{
    if (usable)
        *usable = true;
    return kt__emulate_open(package, environment->cache_dir, backend);
}

extern "C" kt_status __wrap_kt__cpu_open(const kt__package *package, kt__backend **backend)
{
    kt__environment environment;
    kt__environment_read(&environment);
    return kt__emulate_open(package, environment.cache_dir, backend);
}
