// The driver's side: buffers, compiling and loading kernels, reports.
#include "machine.h"

#include <dlfcn.h>
#include <link.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <memory>

namespace emulate {

// ---- buffers ----
static std::map<const u8 *, std::unique_ptr<region>> regions; // by start
static region *latest;                                        // looked up

region *global_region(const void *address)
{
    const u8 *at = (const u8 *)address;
    if (latest && (size_t)(at - latest->start) < latest->bytes)
        return latest;
    auto found = regions.upper_bound(at);
    if (found == regions.begin())
        return nullptr;
    latest = std::prev(found)->second.get();
    return (size_t)(at - latest->start) < latest->bytes ? latest : nullptr;
}

std::string nearest_region(const void *address)
{
    const u8 *at = (const u8 *)address;
    char text[200];
    auto found = regions.upper_bound(at);
    if (found != regions.begin()) {
        const region *before = std::prev(found)->second.get();
        if (found == regions.end() || at < before->start + before->bytes + 65536) {
            snprintf(text, sizeof text, "'%s'+%zu of %zu bytes", before->name.c_str(), (size_t)(at - before->start), before->bytes);
            return text;
        }
    }
    if (found != regions.end()) {
        const region *after = found->second.get();
        snprintf(text, sizeof text, "%zu bytes before '%s'", (size_t)(after->start - at), after->name.c_str());
        return text;
    }
    snprintf(text, sizeof text, "%p", address);
    return text;
}

// ---- reports ----
bool in_image(const void *address)
{
    return (const u8 *)address >= m.kernel->low && (const u8 *)address < m.kernel->high;
}

// A word of the shell, whatever is in it.
static std::string quoted(const std::string &word)
{
    std::string text = "'";
    for (char c : word)
        text += c == '\'' ? std::string("'\\''") : std::string(1, c);
    return text + "'";
}

// File and line of the kernel, of the innermost frame that is not the emulator's header.
std::string line_of(u32 pc)
{
    static std::map<std::pair<std::string, u32>, std::string> known;
    if (!pc)
        return "";
    auto key = std::make_pair(m.kernel->object, pc);
    auto found = known.find(key);
    if (found != known.end())
        return found->second;
    char hex[64];
    snprintf(hex, sizeof hex, "0x%x", pc - 1);
    std::string line, command = "addr2line -i -e " + quoted(m.kernel->object) + " " + hex + " 2>/dev/null";
    FILE *pipe = popen(command.c_str(), "r");
    char buffer[1024];
    while (pipe && fgets(buffer, sizeof buffer, pipe)) {
        char *remark = strstr(buffer, " (discriminator");
        *(remark ? remark : buffer + strcspn(buffer, "\n")) = 0;
        const char *name = strrchr(buffer, '/');
        if (line.empty() && !strstr(buffer, "/emulate.h:") && buffer[0] != '?')
            line = std::string("line ") + (name ? name + 1 : buffer);
    }
    if (pipe)
        pclose(pipe);
    if (line.empty())
        line = hex;
    return known[key] = line;
}

static std::string who_is(const thread *t)
{
    const unsigned *b = t->home->index;
    char text[160];
    snprintf(text, sizeof text, ", block (%u,%u,%u), thread %d (warp %d, lane %d)", b[0], b[1], b[2], t->index, t->team->index, t->lane);
    return text;
}

static const char *const kind_names[EMULATE_KINDS] = {"uninitialised", "bounds", "barrier", "mask", "race", "alignment", "wait", "copy",
                                                      "assumption", "endless", "launch"};

void report(emulate_kind kind, u32 pc, const thread *who, const char *format, ...)
{
    std::string line = line_of(pc);
    if (pc && m.reported[{kind, line}])
        return;
    m.reported[{kind, line}] = true;
    char text[EMULATE_TEXT];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    std::string whole = m.kernel->name + (who ? who_is(who) : "") + (line.empty() ? "" : ", " + line) + ", seed " +
                        std::to_string(m.args->seed) + ": " + kind_names[kind] + ": " + text;
    emulate_report r;
    r.kind = kind;
    snprintf(r.text, sizeof r.text, "%s", whole.c_str());
    m.reports.push_back(r);
    if ((int)m.reports.size() >= m.report_limit) {
        m.stop = true;
        if (m.self)
            give_up();
    }
}

}

using namespace emulate;

const char *emulate_kind_name(emulate_kind kind) { return kind_names[kind]; }

void emulate_register(void *address, size_t bytes, int initialised, const char *name)
{
    auto r = std::make_unique<region>();
    r->start = (u8 *)address;
    r->bytes = bytes;
    r->name = name ? name : "unnamed";
    if (!initialised)
        r->written.assign(bytes, 0);
    region_open(r.get());
    regions[r->start] = std::move(r);
}

void emulate_unregister(void *address)
{
    auto found = regions.find((u8 *)address);
    if (found == regions.end())
        return;
    region_close(found->second.get());
    regions.erase(found);
    latest = nullptr;
}

void *emulate_alloc(size_t bytes, int initialised, const char *name)
{
    void *p = nullptr;
    if (posix_memalign(&p, 256, (bytes + 511) / 256 * 256))
        return nullptr;
    memset(p, initialised ? 0 : 0xd7, bytes);
    emulate_register(p, bytes, initialised, name);
    return p;
}

void emulate_free(void *address)
{
    emulate_unregister(address);
    free(address);
}

void emulate_initialised(void *address, size_t bytes, int initialised)
{
    region *r = global_region(address);
    if (!r || (initialised && r->written.empty()))
        return;
    if (r->written.empty())
        r->written.assign(r->bytes, 1);
    size_t offset = (size_t)((u8 *)address - r->start);
    memset(r->written.data() + offset, initialised, bytes < r->bytes - offset ? bytes : r->bytes - offset);
}

void emulate_name(void *start, const char *name)
{
    region *r = global_region(start);
    if (r)
        r->name = name;
}

int emulate_buffer(const void *address, void **start, size_t *bytes)
{
    region *r = global_region(address);
    if (!r)
        return 0;
    *start = r->start;
    *bytes = r->bytes;
    return 1;
}

// ---- kernels ----
static int shell(const std::string &command, char *error, size_t error_bytes)
{
    FILE *pipe = popen((command + " 2>&1").c_str(), "r");
    if (!pipe)
        return -1;
    size_t used = 0;
    for (int c; (c = fgetc(pipe)) != EOF;)
        if (used + 1 < error_bytes)
            error[used++] = (char)c;
    error[used] = 0;
    return pclose(pipe) ? -1 : 0;
}

static bool newer(const char *object, const std::string &source)
{
    struct stat a, b;
    return !stat(object, &a) && !stat(source.c_str(), &b) &&
           (a.st_mtim.tv_sec > b.st_mtim.tv_sec || (a.st_mtim.tv_sec == b.st_mtim.tv_sec && a.st_mtim.tv_nsec > b.st_mtim.tv_nsec));
}

int emulate_compile(const emulate_build *build, char *error, size_t error_bytes)
{
    const std::string here = EMULATE_FOLDER, object = build->output, part = object + "." + std::to_string(getpid());
    const char *compiler = getenv("CXX");
    if (newer(build->output, build->source) && newer(build->output, here + "/emulate.h") && newer(build->output, here + "/entry.cpp") &&
        newer(build->output, here + "/host.cpp")) // the options below
        return 0;
    std::string cxx = compiler && *compiler ? compiler : "g++";
    // Without the sanitizers' libraries: what the compiled code calls is in this one.
    const std::string command = cxx + " -shared -nodefaultlibs -std=c++17 -O1 -gdwarf-4 -fno-var-tracking -fPIC -w -ffp-contract=off "
        "-fno-strict-aliasing -ftrivial-auto-var-init=pattern -fno-exceptions -fno-rtti -fno-asynchronous-unwind-tables -DKITTY_EMULATE" +
        (build->checks ? " -DEMULATE_CHECKS -fsanitize=thread,alignment --param=tsan-instrument-func-entry-exit=0" : "") +
        " -Wl,--wrap=memcpy,--wrap=memmove,--wrap=memset,--wrap=__ubsan_handle_type_mismatch_v1 -I" + quoted(here) + " -DEMULATE_SOURCE=" +
        quoted("\"" + std::string(build->source) + "\"") + " -DEMULATE_ENTRY=" + build->entry + " " + quoted(here + "/entry.cpp") + " -o " +
        quoted(part) + " && mv " + quoted(part) + " " + quoted(object);
    return shell(command, error, error_bytes);
}

static int find_image(struct dl_phdr_info *info, size_t, void *data)
{
    emulate_kernel *kernel = (emulate_kernel *)data;
    if ((const u8 *)info->dlpi_addr != kernel->base)
        return 0;
    kernel->low = (const u8 *)~0ull;
    kernel->high = nullptr;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        if (info->dlpi_phdr[i].p_type != PT_LOAD)
            continue;
        const u8 *start = kernel->base + info->dlpi_phdr[i].p_vaddr, *end = start + info->dlpi_phdr[i].p_memsz;
        kernel->low = start < kernel->low ? start : kernel->low;
        kernel->high = end > kernel->high ? end : kernel->high;
    }
    return 1;
}

emulate_kernel *emulate_load(const char *object, const char *entry, char *error, size_t error_bytes)
{
    std::string path = strchr(object, '/') ? object : std::string("./") + object;
    void *handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        snprintf(error, error_bytes, "%s", dlerror());
        return nullptr;
    }
    emulate_kernel *kernel = new emulate_kernel;
    struct link_map *map = nullptr;
    kernel->name = entry;
    kernel->object = object;
    kernel->handle = handle;
    kernel->entry = (void (*)(const void *))dlsym(handle, "emulate_entry");
    kernel->params_bytes = (unsigned long (*)())dlsym(handle, "emulate_params_bytes");
    kernel->checked = dlsym(handle, "emulate_checked");
    dlinfo(handle, RTLD_DI_LINKMAP, &map);
    kernel->base = (const u8 *)map->l_addr;
    dl_iterate_phdr(find_image, kernel);
    if (!kernel->entry || !kernel->params_bytes) {
        snprintf(error, error_bytes, "%s: not made by emulate_compile", object);
        emulate_unload(kernel);
        return nullptr;
    }
    return kernel;
}

void emulate_unload(emulate_kernel *kernel)
{
    if (kernel)
        dlclose(kernel->handle);
    delete kernel;
}
