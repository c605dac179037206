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

// ---- order ----
void clock_drop(clock *c)
{
    if (c && --c->references == 0)
        delete c;
}

void raise(stamps &into, const stamps &from)
{
    if (into.size() < from.size())
        into.resize(from.size());
    for (size_t i = 0; i < from.size(); i++)
        into[i] = std::max(into[i], from[i]);
}

void raise(knowledge &into, const knowledge &from)
{
    for (auto &entry : from)
        raise(into[entry.first], entry.second);
}

clock *clock_own(thread *t)
{
    if (t->view->references > 1) {
        t->view->references--;
        t->view = new clock(*t->view);
        t->view->references = 1;
    }
    return t->view;
}

static void clock_join(clock *into, const clock *from)
{
    raise(into->known, from->known);
    raise(into->others, from->others);
    raise(into->fenced, from->fenced);
    raise(into->collected, from->collected);
}

static void own_progress(const thread *t, stamps &known)
{
    known[t->index] = t->team->stamp;
    known[m.threads + t->index] = t->groups_done;
}

void meet(thread *const *lanes, int count)
{
    clock *joined = lanes[0]->view;
    bool same = true;
    for (int i = 1; i < count; i++)
        same = same && lanes[i]->view == joined;
    if (!same || joined->references != count) {
        joined = new clock(*joined);
        joined->references = count;
        for (int i = 0; i < count; i++) {
            clock *view = lanes[i]->view;
            if (!same && i && view != lanes[i - 1]->view)
                clock_join(joined, view);
        }
        for (int i = 0; i < count; i++)
            clock_drop(lanes[i]->view);
    }
    u32 counted = 0;
    for (int i = 0; i < count; i++) {
        lanes[i]->view = joined;
        own_progress(lanes[i], joined->known);
    }
    for (int i = 0; i < count; i++) {
        warp *w = lanes[i]->team;
        counted++;
        if (i + 1 < count && lanes[i + 1]->team == w)
            continue;
        if (counted == LANES)
            w->last_full = w->stamp;
        w->stamp++;
        counted = 0;
    }
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

static std::string doing(const thread *t)
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

// ---- what lanes ask for ----
static uint3 three(const unsigned v[3]) { return {v[0], v[1], v[2]}; }

uint3 emulate_thread_index(void)
{
    const unsigned *size = m.args->block;
    unsigned i = (unsigned)m.self->index;
    return {i % size[0], i / size[0] % size[1], i / size[0] / size[1]};
}
uint3 emulate_block_index(void) { return three(m.self->home->index); }
uint3 emulate_block_size(void) { return three(m.args->block); }
uint3 emulate_grid_size(void) { return three(m.args->grid); }

void emulate_assumption(const char *text)
{
    report(EMULATE_ASSUMPTION, pc_of(__builtin_return_address(0)), m.self, "assumes that %s, which is false", text);
}

u8 *shared_memory(void) { return m.self->home->shared.start; }
u32 shared_address(const void *p) { return (u32)((const u8 *)p - m.self->home->shared.start); }

void __syncthreads(void)
{
    thread *t = m.self;
    block *b = t->home;
    t->state = AT_BARRIER;
    t->times_aside = 0;
    t->barrier_pc = pc_of(__builtin_return_address(0));
    if (++b->at_barrier < (int)m.threads) {
        block_self();
        return;
    }
    std::vector<thread *> lanes;
    for (thread &each : b->threads) {
        lanes.push_back(&each);
        if (each.barrier_pc != t->barrier_pc && line_of(each.barrier_pc) != line_of(t->barrier_pc))
            report(EMULATE_BARRIER, each.barrier_pc, &each, "meets thread %d at another __syncthreads, %s", t->index,
                   line_of(t->barrier_pc).c_str());
    }
    meet(lanes.data(), (int)lanes.size());
    b->at_barrier = 0;
    for (thread *each : lanes)
        make_ready(each);
    t->state = READY;
    t->team->ready &= ~(1u << t->lane);
}

// ---- warp operations ----
static u64 shuffle_result(thread *const *by_lane, const thread *t)
{
    const request &op = t->op;
    int width = op.width, low = t->lane & ~(width - 1), source = t->lane, offset = t->lane - low;
    switch (op.how) {
    case EMULATE_SHUFFLE: source = low + (op.argument & (width - 1)); break;
    case EMULATE_SHUFFLE_XOR: source = t->lane ^ op.argument; source = source < low + width ? source : t->lane; break;
    case EMULATE_SHUFFLE_DOWN: source = offset + op.argument < width ? t->lane + op.argument : t->lane; break;
    default: source = offset - op.argument >= 0 ? t->lane - op.argument : t->lane; break;
    }
    if (!(op.mask >> source & 1))
        report(EMULATE_MASK, op.pc, t, "a shuffle reads lane %d, which is not in its mask 0x%08x", source, op.mask);
    return by_lane[source] ? by_lane[source]->op.value : 0;
}

static void complete(warp *w, u32 mask)
{
    thread *lanes[LANES] = {}, *by_lane[LANES] = {};
    int count = 0;
    u32 votes = 0;
    for (u32 left = mask; left; left &= left - 1) {
        int lane = __builtin_ctz(left);
        thread *t = &w->home->threads[w->first + lane];
        by_lane[lane] = lanes[count++] = t;
        votes |= (u32)(t->op.value != 0) << lane;
    }
    for (int i = 0; i < count; i++) {
        request &op = lanes[i]->op;
        if (op.what == SHUFFLE)
            op.result = shuffle_result(by_lane, lanes[i]);
        else if (op.what == VOTE)
            op.result = op.how == EMULATE_BALLOT ? votes : op.how == EMULATE_ANY ? votes != 0 : votes == mask;
        else if (op.what == TRANSPOSE)
            for (int e = 0; e < 2; e++) { // element (row g, column 2 c + e) of lane 4 g + c comes from (2 c + e, g)
                int g = lanes[i]->lane / 4, from = 4 * (2 * (lanes[i]->lane % 4) + e) + g / 2;
                op.result |= (by_lane[from]->op.value >> 16 * (g & 1) & 0xffff) << 16 * e;
            }
    }
    if (lanes[0]->op.what == MATRIX)
        multiply_fragments(by_lane);
    if (lanes[0]->op.what == SYNC) // the others exchange registers; they order no memory
        meet(lanes, count);
    w->waiting &= ~mask;
    for (int i = 0; i < count; i++)
        make_ready(lanes[i]);
}

static bool same_operation(const request &a, const request &b)
{
    return a.what == b.what && a.how == b.how && a.mask == b.mask && a.width == b.width;
}

// Waits until all lanes of the mask have asked for the same.
static u64 together(const request &op)
{
    thread *t = m.self;
    warp *w = t->team;
    t->op = op;
    t->state = AT_WARP;
    t->times_aside = 0;
    w->waiting |= 1u << t->lane;
    if (!(op.mask >> t->lane & 1) || op.mask & w->exited) {
        report(EMULATE_MASK, op.pc, t, "%s, which %s", doing(t).c_str(),
               op.mask & w->exited ? "names lanes that have exited or do not exist" : "does not name its own lane");
        give_up();
    }
    bool all = (w->waiting & op.mask) == op.mask;
    for (u32 left = op.mask & w->waiting; left; left &= left - 1) {
        const thread *other = &w->home->threads[w->first + __builtin_ctz(left)];
        if (same_operation(other->op, op))
            continue;
        all = false;
        if (other->op.mask >> t->lane & 1) {
            report(EMULATE_MASK, op.pc, t, "%s, while lane %d is %s", doing(t).c_str(), other->lane, doing(other).c_str());
            give_up();
        }
        break;
    }
    if (all) {
        complete(w, op.mask);
        t->state = READY;
        w->ready &= ~(1u << t->lane);
    } else {
        block_self();
    }
    return t->op.result;
}

void __syncwarp_mask(u32 mask)
{
    request op;
    op.what = SYNC;
    op.mask = mask;
    op.pc = pc_of(__builtin_return_address(0));
    together(op);
}

u64 emulate_shuffle(int how, u32 mask, u64 bits, int argument, int width)
{
    request op;
    op.what = SHUFFLE;
    op.how = how;
    op.mask = mask;
    op.value = bits;
    op.argument = argument;
    op.width = width;
    op.pc = pc_of(__builtin_return_address(0));
    return together(op);
}

u32 emulate_vote(int how, u32 mask, int predicate)
{
    request op;
    op.what = VOTE;
    op.how = how;
    op.mask = mask;
    op.value = predicate != 0;
    op.pc = pc_of(__builtin_return_address(0));
    return (u32)together(op);
}

void emulate_mma(int bfloat, float *c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1)
{
    request op;
    op.what = MATRIX;
    op.how = bfloat;
    op.mask = 0xffffffffu;
    op.c = c;
    op.a[0] = a0, op.a[1] = a1, op.a[2] = a2, op.a[3] = a3;
    op.b[0] = b0, op.b[1] = b1;
    op.pc = pc_of(__builtin_return_address(0));
    together(op);
}

u32 transpose8(u32 x)
{
    request op;
    op.what = TRANSPOSE;
    op.mask = 0xffffffffu;
    op.value = x;
    op.pc = pc_of(__builtin_return_address(0));
    return (u32)together(op);
}
