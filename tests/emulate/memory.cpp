// Every load and store of a kernel, seen through the calls that -fsanitize=thread compiles in (their callees are here, the
// sanitizer's own runtime is not linked): inside a buffer, of written bytes, ordered after the accesses it conflicts with.
#include "machine.h"

#include <string.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <deque>

#include "emulate.h"

namespace emulate {

enum : u32 { SEVERAL = 0xffffffff, SPLIT = 0xffffffff, IS_ATOMIC = 0x80000000, IS_VOID = 0x40000000, STAMP = 0x3fffffff };

// Readers of a byte when there are several warps: of shared memory all (a block has at most MAX_THREADS / LANES), of global
// memory FEW, replaced at random, so that a race with one of many readers shows with some seed.
enum { FEW = 6 };
struct reading {
    u32 warp, stamp, mask, pc;
};
static std::vector<std::vector<reading>> readers; // of cells with SEVERAL; emptied with each launch
static std::deque<std::array<cell, 4>> parts;     // of cells that are SPLIT, likewise
static u32 epoch;

u32 next_epoch()
{
    if (m.resident.empty()) {
        readers.clear();
        parts.clear();
    }
    return ++epoch;
}

bool region_open(region *r)
{
    void *p = mmap(nullptr, (r->bytes / 4 + 1) * sizeof(cell), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    r->cells = p == MAP_FAILED ? nullptr : (cell *)p;
    return r->cells;
}

void region_close(region *r)
{
    if (r->cells)
        munmap(r->cells, (r->bytes / 4 + 1) * sizeof(cell));
    r->cells = nullptr;
}

bool knows(const thread *t, u32 actor, u32 stamp)
{
    if (actor == (u32)t->index)
        return true;
    if (actor == m.threads + t->index)
        return stamp <= t->groups_done;
    return t->view->known[actor] >= stamp;
}

// The same for an actor of the launch.
static bool ordered(const thread *t, u32 actor, u32 stamp)
{
    u32 first = t->home->linear * m.actors;
    if (actor >= first && actor < first + m.actors)
        return knows(t, actor - first, stamp);
    auto found = t->view->others.find(actor / m.actors);
    return found != t->view->others.end() && found->second[actor % m.actors] >= stamp;
}

// Whether the reads of a warp's lanes are ordered before what `t` does now; its own always are.
static bool reads_ordered(const thread *t, u32 warp, u32 stamp, u32 mask)
{
    if (warp / m.warps == t->home->linear && warp % m.warps == (u32)t->team->index) {
        if (stamp <= t->team->last_full)
            return true;
        mask &= ~(1u << t->lane);
    }
    u32 first = warp / m.warps * m.actors + warp % m.warps * LANES;
    for (; mask; mask &= mask - 1)
        if (!ordered(t, first + __builtin_ctz(mask), stamp))
            return false;
    return true;
}

static std::string actor_text(u32 actor)
{
    u32 block = actor / m.actors, local = actor % m.actors;
    std::string text = block == m.self->home->linear ? "" : " of block " + std::to_string(block) + " (linear)";
    if (local >= 2 * m.threads)
        return "a bulk copy for mbarrier " + std::to_string(local - 2 * m.threads) + text;
    if (local >= m.threads)
        return "a 16-byte copy by thread " + std::to_string(local - m.threads) + text;
    return "thread " + std::to_string(local) + text;
}

static const char *const access_names[] = {"read", "write", "atomic", "read"};

static void report_write(const thread *t, const u8 *at, size_t bytes, access how, const cell *c, u32 pc)
{
    u32 actor = c->writer - 1;
    bool copied = actor % m.actors >= m.threads;
    report(copied ? EMULATE_WAIT : EMULATE_RACE, pc, t, "%s of %zu bytes at %s, which nothing orders after the %s by %s, %s",
           access_names[how], bytes, place_of(at).c_str(), copied ? "writing" : c->write_stamp & IS_ATOMIC ? "atomic" : "write",
           actor_text(actor).c_str(), line_of(c->write_pc).c_str());
}

static void report_read(const thread *t, const u8 *at, size_t bytes, access how, const reading &r, u32 pc)
{
    u32 block = r.warp / m.warps;
    std::string where = block == t->home->linear ? "" : " of block " + std::to_string(block) + " (linear)";
    report(EMULATE_RACE, pc, t, "%s of %zu bytes at %s, which nothing orders after the read by warp %u (lanes 0x%08x)%s, %s",
           access_names[how], bytes, place_of(at).c_str(), r.warp % m.warps, r.mask, where.c_str(), line_of(r.pc).c_str());
}

static void add_reader(thread *t, cell *c, bool shared, u32 me, u32 pc)
{
    warp *w = t->team;
    u32 bit = 1u << t->lane;
    if (c->reader == me + 1) {
        if (c->read_stamp != w->stamp && c->read_stamp <= w->last_full)
            c->read_mask = 0;
        c->read_mask |= bit;
    } else if (!c->reader || (c->reader != SEVERAL && reads_ordered(t, c->reader - 1, c->read_stamp, c->read_mask))) {
        c->reader = me + 1;
        c->read_mask = bit;
    } else {
        if (c->reader != SEVERAL) {
            readers.push_back({{c->reader - 1, c->read_stamp, c->read_mask, c->read_pc}});
            c->reader = SEVERAL;
            c->read_stamp = (u32)readers.size() - 1;
        }
        std::vector<reading> &list = readers[c->read_stamp];
        for (reading &r : list)
            if (r.warp == me) {
                r.mask = r.stamp != w->stamp && r.stamp <= w->last_full ? bit : r.mask | bit;
                r.stamp = w->stamp;
                r.pc = pc;
                return;
            }
        if (shared || list.size() < FEW)
            list.push_back({me, w->stamp, bit, pc});
        else
            list[draw() % FEW] = {me, w->stamp, bit, pc};
        return;
    }
    c->read_stamp = w->stamp;
    c->read_pc = pc;
}

static void check_readers(thread *t, cell *c, const u8 *at, size_t bytes, access how, u32 me, u32 pc)
{
    u32 count = c->reader == SEVERAL ? (u32)readers[c->read_stamp].size() : 1;
    for (u32 i = 0; i < count; i++) {
        reading r = c->reader == SEVERAL ? readers[c->read_stamp][i]
                                         : reading{c->reader - 1, c->read_stamp, c->read_mask, c->read_pc};
        if (!reads_ordered(t, r.warp, r.stamp, r.mask)) {
            if (r.warp == me)
                r.mask &= ~(1u << t->lane);
            report_read(t, at, bytes, how, r, pc);
            break;
        }
    }
    if (c->reader == SEVERAL)
        readers[c->read_stamp] = {};
    c->reader = 0;
}

static u32 warp_of(const thread *t) { return t->home->linear * m.warps + (u32)t->team->index; }

// An access, and in whose name a write is recorded.
struct event {
    thread *t;
    region *r;
    const u8 *at;
    size_t bytes;
    access how;
    u32 actor, stamp, pc, warp;
};

// ---- launches that overlap ----
// Earlier launches that may still run, by epoch, with their kernels' names: until the lane's grid_wait, and after it.
typedef std::map<u32, std::string> launches;
static launches before_wait, after_wait;

// A launch begins once all blocks of the one ahead have let it, or ended. If one of them had waited by then, only the launch ahead
// still runs; else also what that one overlaps with. grid_wait waits for the launch ahead alone: what no lane of that one waited for
// may run on.
void launch_overlaps(bool overlap)
{
    if (!overlap)
        emulate_settle();
}

void launch_ended()
{
    if (!m.some_waited)
        after_wait = before_wait;
    if (m.in_order)
        before_wait = after_wait;
    before_wait[m.launch] = m.kernel->name;
}

static void check_launches(const event &e, const cell *c)
{
    const launches &running = e.t->waited ? after_wait : before_wait;
    auto found = running.find(c->epoch);
    if (found == running.end() || !(c->writer || (c->reader && (e.how == WRITE || e.how == ATOMIC))))
        return;
    report(EMULATE_RACE, e.pc, e.t, "%s of %zu bytes at %s, which %s %s, a launch before this one that may still run %s", access_names[e.how],
           e.bytes, place_of(e.at).c_str(), found->second.c_str(), c->writer ? "writes" : "reads",
           e.t->waited ? "as no lane between them waited" : "before grid_wait");
}

// One byte, or four with a cell in common. False after a report.
static bool check_cell(const event &e, cell *c, bool written)
{
    if (c->writer && !ordered(e.t, c->writer - 1, c->write_stamp & STAMP) && !(e.how == ATOMIC && c->write_stamp & IS_ATOMIC)) {
        report_write(e.t, e.at, e.bytes, e.how, c, e.pc);
        return false;
    }
    if (e.r->epoch)
        written = c->writer && !(c->write_stamp & IS_VOID);
    if (!written && (e.how == READ || e.how == ATOMIC)) {
        report(EMULATE_UNINITIALISED, e.pc, e.t, "%s of %zu bytes at %s, some of which nothing wrote%s", access_names[e.how], e.bytes,
               place_of(e.at).c_str(), c->writer ? ", nor what was copied there" : "");
        return false;
    }
    if (e.how == READ || e.how == FETCH) {
        add_reader(e.t, c, e.r->epoch, e.warp, e.pc);
        return true;
    }
    if (c->reader)
        check_readers(e.t, c, e.at, e.bytes, e.how, e.warp, e.pc);
    c->writer = e.actor + 1;
    c->write_stamp = e.how == ATOMIC ? e.stamp | IS_ATOMIC : e.stamp;
    c->write_pc = e.pc;
    return true;
}

static std::array<cell, 4> &split(cell *c)
{
    if (c->writer != SPLIT) {
        parts.push_back({*c, *c, *c, *c});
        if (c->reader == SEVERAL) // each its own list
            for (int i = 1; i < 4; i++) {
                readers.push_back(std::vector<reading>(readers[c->read_stamp]));
                parts.back()[i].read_stamp = (u32)readers.size() - 1;
            }
        c->writer = SPLIT;
        c->write_stamp = (u32)parts.size() - 1;
    }
    return parts[c->write_stamp];
}

static bool all_written(const region *r, size_t from, size_t to)
{
    if (r->written.empty())
        return true;
    while (from < to && r->written[from])
        from++;
    return from == to;
}

static void check_bytes(const event &e)
{
    const u32 now = e.r->epoch ? e.r->epoch : m.launch;
    size_t at = (size_t)(e.at - e.r->start), end = at + e.bytes;
    bool good = true;
    while (at < end && good) {
        cell *c = &e.r->cells[at / 4];
        const size_t next = std::min(end, at / 4 * 4 + 4);
        if (c->epoch != now) {
            if (!e.r->epoch && c->writer != SPLIT)
                check_launches(e, c);
            *c = cell();
            c->epoch = now;
        }
        if (next - at == 4 && c->writer != SPLIT) {
            good = check_cell(e, c, all_written(e.r, at, next));
        } else {
            std::array<cell, 4> &bytes = split(c);
            for (size_t i = at; i < next && good; i++)
                good = check_cell(e, &bytes[i % 4], all_written(e.r, i, i + 1));
            if (next - at == 4 && e.how == WRITE && good)
                *c = bytes[0];
        }
        at = next;
    }
    if (!e.r->written.empty() && (e.how == WRITE || e.how == ATOMIC))
        memset(&e.r->written[(size_t)(e.at - e.r->start)], 1, e.bytes);
}

std::string place_of(const void *address)
{
    const region *r = &m.self->home->shared;
    const u8 *at = (const u8 *)address;
    char text[200];
    if (at >= r->start - 4096 && at < r->start + r->bytes + 4096)
        snprintf(text, sizeof text, "shared%+lld of %zu bytes", (long long)(at - r->start), r->bytes);
    else
        return nearest_region(address);
    return text;
}

// The region that holds all of the access; a report and the end where there is none.
static region *region_of(thread *t, const u8 *at, size_t bytes, access how, u32 pc)
{
    region *r = &t->home->shared;
    if ((size_t)(at - r->start) >= r->bytes)
        r = global_region(at);
    if (r && bytes <= r->bytes - (size_t)(at - r->start))
        return r;
    if (!r && how == READ && in_image(at))
        return nullptr;
    bool stack = false;
    for (const block *b : m.resident)
        for (const thread &other : b->threads)
            stack = stack || (at >= other.stack && at < other.stack + STACK_BYTES);
    report(EMULATE_BOUNDS, pc, t, "%s of %zu bytes at %s, %s", access_names[how], bytes, place_of(at).c_str(),
           stack ? "the local memory of another thread" : r ? "past its end" : "outside every buffer");
    give_up();
}

void check(const void *address, size_t bytes, access how, u32 pc)
{
    thread *t = m.self;
    const u8 *at = (const u8 *)address;
    if (!t || !bytes || (size_t)(at - t->stack) < STACK_BYTES)
        return;
    if (--m.patience < 0) {
        m.patience = PATIENCE;
        if (++t->times_aside > TIMES_ASIDE) {
            report(EMULATE_ENDLESS, pc, t, "does not end: %d million accesses since it last met other lanes", TIMES_ASIDE);
            give_up();
        }
        yield_self();
    }
    region *r = region_of(t, at, bytes, how, pc);
    if (!r || !m.kernel->checked)
        return;
    if (r->epoch && !t->home->mbarriers.empty()) {
        const std::vector<u8> &flags = t->home->barrier_bytes;
        size_t first = (size_t)(at - r->start) / 8, last = ((size_t)(at - r->start) + bytes - 1) / 8;
        if (std::find(flags.begin() + first, flags.begin() + last + 1, 1) != flags.begin() + last + 1)
            report(EMULATE_COPY, pc, t, "plain %s of %zu bytes at %s, which holds an mbarrier", access_names[how], bytes, place_of(at).c_str());
    }
    if (how == WRITE && !r->epoch)
        for (const block *b : m.resident)
            for (const copy &c : b->copies)
                if (at < c.from + c.bytes && c.from < at + bytes)
                    report(EMULATE_WAIT, pc, t, "write of %zu bytes at %s, the source of a copy under way, %s", bytes,
                           place_of(at).c_str(), line_of(c.pc).c_str());
    check_bytes({t, r, at, bytes, how, t->home->linear * m.actors + t->index, t->team->stamp, pc, warp_of(t)});
}

void check_copy(u8 *to, const u8 *from, int bytes, u32 actor, u32 stamp, u32 pc)
{
    thread *t = m.self;
    check(from, bytes, FETCH, pc);
    region *r = region_of(t, to, bytes, WRITE, pc);
    const region *source = global_region(from);
    if (!r || !r->epoch || !source) {
        report(EMULATE_COPY, pc, t, "copy from %s to %s; only global to shared is possible", place_of(from).c_str(), place_of(to).c_str());
        give_up();
    }
    if (!m.kernel->checked)
        return;
    check_bytes({t, r, to, (size_t)bytes, WRITE, t->home->linear * m.actors + actor, stamp, pc, warp_of(t)});
    for (int i = 0; !source->written.empty() && i < bytes; i++)
        if (!source->written[from - source->start + i])
            split(&r->cells[(to - r->start + i) / 4])[i % 4].write_stamp |= IS_VOID;
}

void check_aligned(const void *address, size_t bytes, u32 pc)
{
    if (m.self && (u64)address % bytes)
        report(EMULATE_ALIGNMENT, pc, m.self, "access of %zu bytes at %s, which is not a multiple of it", bytes, place_of(address).c_str());
}

}

using namespace emulate;

// ---- what instrumented code calls ----
#define PC pc_of(__builtin_return_address(0))
#define HOOKS(n)                                                                                             \
    extern "C" void __tsan_read##n(void *p) { check_aligned(p, n, PC), check(p, n, READ, PC); }              \
    extern "C" void __tsan_write##n(void *p) { check_aligned(p, n, PC), check(p, n, WRITE, PC); }            \
    extern "C" void __tsan_unaligned_read##n(void *p) { check(p, n, READ, PC); }                             \
    extern "C" void __tsan_unaligned_write##n(void *p) { check(p, n, WRITE, PC); }                           \
    extern "C" void __tsan_volatile_read##n(void *p) { check_aligned(p, n, PC), check(p, n, READ, PC); }     \
    extern "C" void __tsan_volatile_write##n(void *p) { check_aligned(p, n, PC), check(p, n, WRITE, PC); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
extern "C" void __tsan_read_range(void *p, unsigned long bytes) { check(p, bytes, READ, PC); }
extern "C" void __tsan_write_range(void *p, unsigned long bytes) { check(p, bytes, WRITE, PC); }
extern "C" void __tsan_func_entry(void *) {} // clang cannot leave these two out
extern "C" void __tsan_func_exit(void) {}
extern "C" void __tsan_init(void) {}

// The kernel's object is linked with --wrap for these.
extern "C" void *__wrap_memcpy(void *to, const void *from, size_t bytes)
{
    check(from, bytes, READ, PC), check(to, bytes, WRITE, PC);
    return memcpy(to, from, bytes);
}
extern "C" void *__wrap_memmove(void *to, const void *from, size_t bytes)
{
    check(from, bytes, READ, PC), check(to, bytes, WRITE, PC);
    return memmove(to, from, bytes);
}
extern "C" void *__wrap_memset(void *to, int value, size_t bytes)
{
    check(to, bytes, WRITE, PC);
    return memset(to, value, bytes);
}

// -fsanitize=alignment: the front end knows the types that loads and stores were written with.
struct type_mismatch {
    const char *file;
    u32 line, column;
    const void *type;
    u8 log_alignment, kind;
};
extern "C" void __wrap___ubsan_handle_type_mismatch_v1(type_mismatch *data, void *address)
{
    if (m.self)
        report(EMULATE_ALIGNMENT, PC, m.self, "access of a type aligned to %u bytes at %s, which is not a multiple of it",
               1u << data->log_alignment, place_of(address).c_str());
}

// ---- overlapping launches ----
void grid_wait(void)
{
    m.self->waited = m.some_waited = true;
    m.in_order = m.in_order || !m.self->home->launched_next;
}

void grid_launch_next(void)
{
    m.self->home->launched_next = true;
}

void emulate_outside(const void *address, size_t bytes, int writes, const char *name)
{
    region *r = global_region(address);
    const u32 outside = next_epoch();
    before_wait[outside] = name;
    for (size_t at = r ? (size_t)((const u8 *)address - r->start) / 4 * 4 : 0; r && at < r->bytes && r->start + at < (const u8 *)address + bytes; at += 4) {
        cell *c = &r->cells[at / 4];
        *c = cell();
        c->epoch = outside;
        (writes ? c->writer : c->reader) = 1;
    }
}

void emulate_settle(void)
{
    before_wait.clear();
    after_wait.clear();
}
