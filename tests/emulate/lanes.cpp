// What lanes ask for: where they are, block barriers, warp operations.
#include "machine.h"

#include <vector>

#include "emulate.h"
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

using namespace emulate;

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
int emulate_bulk(void) { return m.args->bulk; }

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
    w->alike &= ~mask;
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
    const thread *first = w->alike ? &w->home->threads[w->first + __builtin_ctz(w->alike)] : t;
    const u32 alike = same_operation(first->op, op) ? w->alike | 1u << t->lane : 0;
    w->alike |= alike;
    bool all = (w->waiting & op.mask) == op.mask;
    for (u32 left = op.mask & w->waiting & ~alike; left; left &= left - 1) {
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

void emulate_mma(int elements, void *c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1)
{
    request op;
    op.what = MATRIX;
    op.how = elements;
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
