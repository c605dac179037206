// Order: what lanes know of each other's accesses, through barriers, fences and atomics.
#include "machine.h"

#include <string.h>

#include <algorithm>

#include "emulate.h"

namespace emulate {

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

}

using namespace emulate;

// ---- fences and atomics ----
void __threadfence(void)
{
    thread *t = m.self;
    clock *c = clock_own(t);
    for (auto &entry : c->collected)
        raise(entry.first == t->home->linear ? c->known : c->others[entry.first], entry.second);
    c->collected.clear();
    raise(c->fenced, c->others);
    stamps &own = c->fenced[t->home->linear];
    raise(own, c->known);
    own[t->index] = t->team->stamp++;
    own[m.threads + t->index] = t->groups_done;
}

static u64 combine(u64 old, int how, int type, int bytes, u64 operand, u64 expected)
{
    if (type == EMULATE_FLOAT) {
        float a, b;
        memcpy(&a, &old, 4);
        memcpy(&b, &operand, 4);
        a += b;
        u64 sum = 0;
        memcpy(&sum, &a, 4);
        return sum;
    }
    long long a = bytes == 4 ? (long long)(int)old : (long long)old, b = bytes == 4 ? (long long)(int)operand : (long long)operand;
    bool less = type == EMULATE_INT ? a < b : old < operand;
    switch (how) {
    case EMULATE_ADD: return old + operand;
    case EMULATE_MAX: return less ? operand : old;
    case EMULATE_MIN: return less ? old : operand;
    case EMULATE_OR: return old | operand;
    case EMULATE_AND: return old & operand;
    case EMULATE_SWAP: return old == expected ? operand : old;
    default: return operand;
    }
}

u64 emulate_atomic(void *address, int how, int type, int bytes, u64 operand, u64 expected)
{
    if (!(draw() & 3))
        yield_self();
    thread *t = m.self;
    u32 pc = pc_of(__builtin_return_address(0));
    check_aligned(address, bytes, pc);
    check(address, bytes, ATOMIC, pc);
    knowledge &here = m.published[address];
    if (!here.empty())
        raise(clock_own(t)->collected, here);
    raise(here, t->view->fenced);
    u64 old = 0;
    memcpy(&old, address, bytes);
    u64 result = combine(old, how, type, bytes, operand, expected);
    memcpy(address, &result, bytes);
    return old;
}
