// Asynchronous copies: bulk copies that report to an mbarrier, and 16-byte copies waited for by group. They land as late as
// a wait allows, or at random, by the seed.
#include "machine.h"

#include <string.h>

#include "emulate.h"

namespace emulate {

enum { ACTOR_COPIES = 1, ACTOR_MBARRIERS = 2 }; // actors: lanes, each lane's copies, mbarriers

static bool passed(const mbarrier *bar, int parity) { return (int)(bar->phase & 1) != parity; }

// The current phase of a barrier may be over: nobody to arrive, nothing to land.
static void phase_check(block *b, int index)
{
    mbarrier *bar = &b->mbarriers[index];
    if (bar->pending || bar->bytes)
        return;
    bar->phase++;
    bar->pending = bar->expected;
    clock_drop(bar->memo_from);
    clock_drop(bar->memo_to);
    bar->memo_from = bar->memo_to = nullptr;
    for (thread &t : b->threads)
        if (t.state == AT_MBARRIER && t.mbarrier_index == index && passed(bar, t.parity))
            make_ready(&t);
}

static void land(block *b, size_t i)
{
    copy *c = &b->copies[i];
    c->landed = true;
    b->under_way--;
    memcpy(c->to, c->from, c->bytes);
    if (c->barrier >= 0) {
        b->mbarriers[c->barrier].bytes -= c->bytes;
        phase_check(b, c->barrier);
    }
}

static void start(block *b, const copy &c)
{
    b->copies.push_back(c);
    b->under_way++;
}

// Copies of an mbarrier, or of a lane's groups, up to `round` have been waited for.
static void waited(block *b, const thread *by, int barrier, u32 round)
{
    size_t kept = 0;
    for (size_t i = 0; i < b->copies.size(); i++) {
        const bool over = b->copies[i].barrier == barrier && b->copies[i].round <= round && (barrier >= 0 || b->copies[i].by == by);
        if (!over || !b->copies[i].landed)
            b->copies[kept++] = b->copies[i];
    }
    b->copies.resize(kept);
}

bool land_one(block *b)
{
    if (!b->under_way)
        return false;
    size_t i = draw() % b->copies.size();
    while (b->copies[i].landed)
        i = (i + 1) % b->copies.size();
    land(b, i);
    return true;
}

void block_copies_end(block *b)
{
    for (const copy &c : b->copies)
        report(EMULATE_WAIT, c.pc, c.by, "starts a copy of %d bytes to %s that nobody waits for before the block ends", c.bytes,
               ("shared+" + std::to_string(c.to - b->shared.start)).c_str());
}

std::string waiting_for(const thread *t)
{
    const mbarrier &bar = t->home->mbarriers[t->mbarrier_index];
    char text[200];
    snprintf(text, sizeof text, "in barrier_wait for parity %d of the mbarrier at shared+%u, which misses %d arrivals and %lld bytes, ",
             t->parity, bar.offset, bar.pending, bar.bytes);
    return text + line_of(t->barrier_pc);
}

// The mbarrier at `bar`, or a report and the end.
static int find_mbarrier(const u64 *bar, const char *what, u32 pc)
{
    block *b = m.self->home;
    if (!m.args->bulk) {
        report(EMULATE_COPY, pc, m.self, "%s, which does nothing on a card without bulk copies", what);
        give_up();
    }
    u64 offset = (u64)((const u8 *)bar - b->shared.start);
    for (size_t i = 0; i < b->mbarriers.size(); i++)
        if (b->mbarriers[i].offset == offset) {
            if (!knows(m.self, b->mbarriers[i].maker, b->mbarriers[i].made))
                report(EMULATE_RACE, pc, m.self, "%s on the mbarrier at shared+%llu, which nothing orders after its barrier_init",
                       what, offset);
            return (int)i;
        }
    report(EMULATE_COPY, pc, m.self, "%s on %s, where no mbarrier was initialised", what, place_of(bar).c_str());
    give_up();
}

}

using namespace emulate;

// ---- mbarriers. Stamp p of a barrier's actor: the copies of its p-th phase, from 1. ----
void barrier_init(u64 *bar, int arrivals)
{
    thread *t = m.self;
    block *b = t->home;
    u32 pc = pc_of(__builtin_return_address(0));
    u64 offset = (u64)((u8 *)bar - b->shared.start);
    if (offset + 8 > b->shared.bytes || offset % 8 || arrivals < 1 || b->mbarriers.size() == MAX_MBARRIERS) {
        report(EMULATE_COPY, pc, t, "barrier_init of %s with %d arrivals; it must be 8 aligned bytes of shared memory, at least 1 arrival, "
               "at most %d barriers", place_of(bar).c_str(), arrivals, MAX_MBARRIERS);
        give_up();
    }
    if (b->barrier_bytes[offset / 8]) {
        report(EMULATE_COPY, pc, t, "barrier_init of the mbarrier at shared+%llu, which is one already", offset);
        return;
    }
    check(bar, 8, WRITE, pc);
    b->barrier_bytes[offset / 8] = 1;
    mbarrier made;
    made.offset = (u32)offset;
    made.expected = made.pending = arrivals;
    made.released.assign(m.actors, 0);
    made.maker = t->index;
    made.made = t->team->stamp;
    b->mbarriers.push_back(made);
}

void barrier_init_fence(void)
{
    for (mbarrier &bar : m.self->home->mbarriers)
        if (bar.maker == m.self->index)
            bar.fenced = true;
}

void barrier_expect(u64 *bar, int bytes)
{
    thread *t = m.self;
    u32 pc = pc_of(__builtin_return_address(0));
    int index = find_mbarrier(bar, "barrier_expect", pc);
    mbarrier *b = &t->home->mbarriers[index];
    if (bytes < 0 || bytes >= 1 << 20 || !b->pending) {
        report(EMULATE_COPY, pc, t, "barrier_expect of %d bytes on the mbarrier at shared+%u: %s", bytes, b->offset,
               b->pending ? "0 to 1048575 are possible" : "all of the phase's arrivals have come");
        give_up();
    }
    stamps mine = t->view->known;
    mine[t->index] = t->team->stamp++;
    raise(b->released, mine);
    b->pending--;
    b->bytes += bytes;
    phase_check(t->home, index);
}

void barrier_wait(u64 *bar, int parity)
{
    thread *t = m.self;
    u32 pc = pc_of(__builtin_return_address(0));
    int index = find_mbarrier(bar, "barrier_wait", pc);
    if (parity & ~1) {
        report(EMULATE_COPY, pc, t, "barrier_wait for parity %d; 0 and 1 are possible", parity);
        give_up();
    }
    if (!passed(&t->home->mbarriers[index], parity)) {
        t->mbarrier_index = index;
        t->parity = parity;
        t->barrier_pc = pc;
        t->state = AT_MBARRIER;
        block_self();
    }
    mbarrier *b = &t->home->mbarriers[index];
    waited(t->home, t, index, b->phase);
    clock *before = t->view;
    if (before != b->memo_from) {
        clock *after = new clock(*before);
        after->references = 1;
        raise(after->known, b->released);
        after->known[ACTOR_MBARRIERS * m.threads + index] = b->phase;
        clock_drop(b->memo_from);
        clock_drop(b->memo_to);
        b->memo_from = before;
        b->memo_to = after;
        before->references++;
    }
    t->view = b->memo_to;
    t->view->references++;
    clock_drop(before);
}

void bulk_copy(void *dst, const void *src, int bytes, u64 *bar)
{
    thread *t = m.self;
    u32 pc = pc_of(__builtin_return_address(0));
    int index = find_mbarrier(bar, "bulk_copy", pc);
    mbarrier *b = &t->home->mbarriers[index];
    if (!b->fenced)
        report(EMULATE_COPY, pc, t, "bulk_copy reports to the mbarrier at shared+%u, which no barrier_init_fence made visible", b->offset);
    if (((u64)dst | (u64)src | (u64)(u32)bytes) & 15 || bytes <= 0) {
        report(EMULATE_ALIGNMENT, pc, t, "bulk_copy of %d bytes from %s to %s; addresses and size must be multiples of 16, size positive",
               bytes, place_of(src).c_str(), place_of(dst).c_str());
        give_up();
    }
    check_copy((u8 *)dst, (const u8 *)src, bytes, ACTOR_MBARRIERS * m.threads + index, b->phase + 1, pc);
    copy c;
    c.by = t;
    c.to = (u8 *)dst;
    c.from = (const u8 *)src;
    c.bytes = bytes;
    c.barrier = index;
    c.round = b->phase + 1;
    c.pc = pc;
    start(t->home, c);
}

// ---- groups of 16-byte copies. Stamp of a lane's copies: number of the group, from 1. ----
void async_copy16(void *dst, const void *src)
{
    thread *t = m.self;
    u32 pc = pc_of(__builtin_return_address(0));
    if (((u64)dst | (u64)src) & 15) {
        report(EMULATE_ALIGNMENT, pc, t, "async_copy16 from %s to %s; both must be multiples of 16", place_of(src).c_str(),
               place_of(dst).c_str());
        give_up();
    }
    check_copy((u8 *)dst, (const u8 *)src, 16, ACTOR_COPIES * m.threads + t->index, t->groups + 1, pc);
    copy c;
    c.by = t;
    c.to = (u8 *)dst;
    c.from = (const u8 *)src;
    c.bytes = 16;
    c.round = t->groups + 1;
    c.pc = pc;
    start(t->home, c);
}

void async_commit(void) { m.self->groups++; }

void emulate_async_wait(int pending)
{
    thread *t = m.self;
    block *b = t->home;
    if (t->groups > (u32)pending && t->groups - pending > t->groups_done)
        t->groups_done = t->groups - pending;
    const size_t count = b->copies.size(), first = count ? draw() % count : 0;
    for (size_t i = 0; i < count; i++) {
        const copy &c = b->copies[(first + i) % count];
        if (c.by == t && c.barrier < 0 && c.round <= t->groups_done && !c.landed)
            land(b, (first + i) % count);
    }
    waited(b, t, -1, t->groups_done);
}
