// Lanes, warps, blocks: who runs next, and where they meet. Between two meetings a lane runs alone; which one is drawn from the
// launch's seed, and so are the order of blocks and how many of them are resident at a time.
#include "machine.h"

#include <string.h>
#include <sys/mman.h>

#include <algorithm>

#include "emulate.h"
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

namespace emulate {

machine m;

u32 draw()
{
    m.random ^= m.random << 13;
    m.random ^= m.random >> 7;
    m.random ^= m.random << 17;
    return (u32)(m.random >> 20);
}

// ---- scheduling ----
static std::vector<u8 *> stacks; // kept between launches

static u8 *stack_take()
{
    if (!stacks.empty()) {
        u8 *stack = stacks.back();
        stacks.pop_back();
        return stack;
    }
    void *p = mmap(nullptr, STACK_BYTES + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return nullptr;
    mprotect(p, 4096, PROT_NONE);
    return (u8 *)p + 4096;
}

void make_ready(thread *t)
{
    t->state = READY;
    t->team->ready |= 1u << t->lane;
}

static thread *pick()
{
    for (;;) {
        if (m.eager && !(draw() & 15))
            land_one(m.resident[draw() % m.resident.size()]);
        warp *w = m.self ? m.self->team : nullptr;
        if (!w || !w->ready || !(draw() & 7)) {
            u32 count = (u32)m.resident.size() * m.warps, first = draw() % count;
            w = nullptr;
            for (u32 i = 0; i < count && !w; i++) {
                warp *other = &m.resident[(first + i) % count / m.warps]->warps[(first + i) % count % m.warps];
                w = other->ready ? other : nullptr;
            }
        }
        if (w) {
            u32 turn = draw() & 31, turned = turn ? w->ready >> turn | w->ready << (32 - turn) : w->ready;
            u32 lane = (__builtin_ctz(turned) + turn) & 31;
            return &w->home->threads[w->first + lane];
        }
        bool landed = false;
        u32 first = draw();
        for (size_t i = 0; i < m.resident.size() && !landed; i++)
            landed = land_one(m.resident[(first + i) % m.resident.size()]);
        if (!landed)
            return nullptr;
    }
}

void give_up()
{
    void *nowhere;
    m.stop = true;
    emulate_swap(&nowhere, m.driver);
    __builtin_unreachable();
}

static std::string lanes_text(const std::vector<const thread *> &list)
{
    std::string text = list.size() == 1 ? "thread " : "threads ";
    for (size_t i = 0; i < list.size(); i++) {
        size_t last = i;
        while (last + 1 < list.size() && list[last + 1]->index == list[last]->index + 1)
            last++;
        text += (i ? ", " : "") + std::to_string(list[i]->index);
        if (last > i)
            text += "-" + std::to_string(list[last]->index);
        i = last;
    }
    return text;
}

std::string doing(const thread *t)
{
    static const char *const names[] = {"", "__syncwarp", "a shuffle", "a vote", "an mma", "transpose8"};
    char text[160];
    switch (t->state) {
    case EXITED: return "exited";
    case AT_BARRIER: return "at __syncthreads, " + line_of(t->barrier_pc);
    case AT_MBARRIER: return waiting_for(t);
    case AT_WARP:
        snprintf(text, sizeof text, "at %s with mask 0x%08x, ", names[t->op.what], t->op.mask);
        return text + line_of(t->op.pc);
    default: return "ready";
    }
}

// Nothing can run: say what each lane of the block waits for.
static void report_stuck()
{
    block *b = nullptr;
    for (block *each : m.resident)
        for (const thread &t : each->threads)
            if (t.state != EXITED && t.state != READY && !b)
                b = each;
    emulate_kind kind = EMULATE_COPY;
    std::map<std::string, std::vector<const thread *>> groups;
    const thread *who = nullptr;
    for (const thread &t : b->threads) {
        groups[doing(&t)].push_back(&t);
        if (t.state == AT_WARP && kind != EMULATE_MASK)
            kind = EMULATE_MASK, who = &t;
        if (t.state == AT_BARRIER && kind == EMULATE_COPY)
            kind = EMULATE_BARRIER, who = &t;
        if (!who && t.state == AT_MBARRIER)
            who = &t;
    }
    std::string text;
    for (auto &group : groups)
        text += (text.empty() ? "" : "; ") + lanes_text(group.second) + ": " + group.first;
    report(kind, who->state == AT_WARP ? who->op.pc : who->barrier_pc, who, "waits for ever: %s", text.c_str());
}

static void switch_to(thread *next)
{
    thread *previous = m.self;
    next->team->ready &= ~(1u << next->lane);
    if (next == previous)
        return;
    m.self = next;
    emulate_swap(&previous->stack_pointer, next->stack_pointer);
}

void block_self()
{
    thread *next = pick();
    if (!next) {
        report_stuck();
        give_up();
    }
    switch_to(next);
}

void yield_self()
{
    make_ready(m.self);
    block_self();
}

static void lane_main()
{
    m.kernel->entry(m.args->params);
    thread *t = m.self;
    warp *w = t->team;
    t->state = EXITED;
    w->exited |= 1u << t->lane;
    for (int i = 0; i < LANES && w->first + i < (int)m.threads; i++) {
        const thread *other = &t->home->threads[w->first + i];
        if (other->state == AT_WARP && other->op.mask >> t->lane & 1) {
            report(EMULATE_MASK, other->op.pc, other, "is %s, but lane %d has exited", doing(other).c_str(), t->lane);
            give_up();
        }
    }
    if (--t->home->alive == 0) {
        void *nowhere;
        m.ended = t->home;
        emulate_swap(&nowhere, m.driver);
    }
    block_self();
    __builtin_unreachable();
}

// ---- blocks and launches ----
static bool block_start(block *b, u32 linear)
{
    const emulate_launch_args *args = m.args;
    b->linear = linear;
    b->index[0] = linear % args->grid[0];
    b->index[1] = linear / args->grid[0] % args->grid[1];
    b->index[2] = linear / args->grid[0] / args->grid[1];
    b->threads.resize(m.threads);
    b->warps.assign(m.warps, warp());
    b->alive = (int)m.threads;
    b->launched_next = false;
    b->barrier_bytes.assign(b->shared.bytes / 8 + 1, 0);
    b->shared.epoch = next_epoch();
    if (b->shared.bytes)
        memset(b->shared.start, 0xfd, b->shared.bytes);
    clock *start = new clock;
    start->known.assign(m.actors, 0);
    start->references = (int)m.threads;
    for (u32 i = 0; i < m.threads; i++) {
        thread *t = &b->threads[i];
        u8 *stack = t->stack ? t->stack : stack_take();
        *t = thread();
        t->stack = stack;
        t->home = b;
        t->index = (int)i;
        t->lane = (int)i % LANES;
        t->team = &b->warps[i / LANES];
        t->view = start;
        if (!stack)
            return false;
        t->stack_pointer = fibre_start(stack, STACK_BYTES, lane_main);
        make_ready(t);
    }
    for (u32 i = 0; i < m.warps; i++) {
        warp *w = &b->warps[i];
        w->home = b;
        w->index = (int)i;
        w->first = (int)i * LANES;
        w->exited = ~w->ready;
    }
    return true;
}

static void block_end(block *b)
{
    for (thread &t : b->threads) {
        clock_drop(t.view);
        t.view = nullptr;
    }
    for (mbarrier &bar : b->mbarriers) {
        clock_drop(bar.memo_from);
        clock_drop(bar.memo_to);
    }
    b->mbarriers.clear();
    b->copies.clear();
    b->under_way = 0;
}

static void block_free(block *b)
{
    block_end(b);
    for (thread &t : b->threads)
        if (t.stack)
            stacks.push_back(t.stack);
    if (b->shared.start)
        munmap(b->shared.start, (b->shared.bytes + 4095) / 4096 * 4096 + 4096);
    region_close(&b->shared);
    delete b;
}

static block *block_new()
{
    block *b = new block;
    b->shared.bytes = m.args->shared;
    b->shared.name = "shared";
    void *p = mmap(nullptr, (b->shared.bytes + 4095) / 4096 * 4096 + 4096, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p != MAP_FAILED)
        b->shared.start = (u8 *)p;
    if (p == MAP_FAILED || !region_open(&b->shared)) {
        block_free(b);
        return nullptr;
    }
    return b;
}

static bool launch_refused(const emulate_kernel *kernel, const emulate_launch_args *args)
{
    u64 threads = (u64)args->block[0] * args->block[1] * args->block[2];
    u64 blocks = (u64)args->grid[0] * args->grid[1] * args->grid[2];
    if (!threads || threads > MAX_THREADS)
        report(EMULATE_LAUNCH, 0, nullptr, "%llu threads a block; 1 to %d are possible", threads, MAX_THREADS);
    else if (!blocks || args->grid[1] > 65535 || args->grid[2] > 65535)
        report(EMULATE_LAUNCH, 0, nullptr, "grid %u x %u x %u; each at least 1, the last two at most 65535", args->grid[0],
               args->grid[1], args->grid[2]);
    else if (args->shared > 232448)
        report(EMULATE_LAUNCH, 0, nullptr, "%zu bytes of shared memory; no card has more than 232448", args->shared);
    else if (args->params_bytes != kernel->params_bytes())
        report(EMULATE_LAUNCH, 0, nullptr, "%zu bytes of parameters; the kernel takes %lu", args->params_bytes,
               kernel->params_bytes());
    return !m.reports.empty();
}

static void run_blocks(std::vector<u32> &order)
{
    size_t at_a_time = 1 + draw() % 3, next = 0;
    while (!m.stop) {
        while (m.resident.size() < std::min(at_a_time, order.size()) && next < order.size()) {
            block *b = block_new();
            if (b)
                m.resident.push_back(b);
            if (!b || !block_start(b, order[next++])) {
                report(EMULATE_LAUNCH, 0, nullptr, "out of memory for the emulator");
                return;
            }
        }
        m.self = nullptr;
        m.ended = nullptr;
        thread *first = pick();
        if (!first) {
            report_stuck();
            return;
        }
        first->team->ready &= ~(1u << first->lane);
        m.self = first;
        emulate_swap(&m.driver, first->stack_pointer);
        m.self = nullptr;
        if (!m.ended || m.stop)
            return;
        block_copies_end(m.ended);
        block_end(m.ended);
        if (next < order.size()) {
            block_start(m.ended, order[next++]);
        } else {
            m.resident.erase(std::find(m.resident.begin(), m.resident.end(), m.ended));
            block_free(m.ended);
            if (m.resident.empty())
                return;
        }
    }
}

}

using namespace emulate;

int emulate_launch(const emulate_kernel *kernel, const emulate_launch_args *args, const emulate_report **reports)
{
    m.kernel = kernel;
    m.args = args;
    m.self = nullptr;
    m.stop = false;
    m.reports.clear();
    m.reported.clear();
    m.report_limit = args->report_limit > 0 && args->report_limit < EMULATE_REPORTS ? args->report_limit : EMULATE_REPORTS;
    m.random = (args->seed + 1) * 0x9e3779b97f4a7c15ull | 1;
    for (int i = 0; i < 8; i++)
        draw();
    m.eager = draw() & 1;
    m.launch = next_epoch();
    m.patience = PATIENCE;
    m.some_waited = m.in_order = false;
    launch_overlaps(args->overlap);
    if (!launch_refused(kernel, args)) {
        m.threads = args->block[0] * args->block[1] * args->block[2];
        m.warps = (m.threads + LANES - 1) / LANES;
        m.actors = 2 * m.threads + MAX_MBARRIERS;
        std::vector<u32> order(args->grid[0] * args->grid[1] * args->grid[2]);
        for (u32 i = 0; i < order.size(); i++) {
            u32 j = draw() % (i + 1);
            order[i] = order[j];
            order[j] = i;
        }
        run_blocks(order);
        for (block *b : m.resident)
            block_free(b);
        m.resident.clear();
        m.published.clear();
    }
    if (m.reports.empty())
        launch_ended();
    else
        emulate_settle();
    *reports = m.reports.data();
    return (int)m.reports.size();
}
