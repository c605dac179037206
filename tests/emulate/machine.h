// Inside the emulator: lanes, warps, blocks, and what each knows about the accesses of the others.
//
// Order ("happens before") is kept as vector clocks. Each warp counts stamps; an access carries its lane's identity and the
// warp's stamp. A clock holds, per actor of the block, the newest stamp whose accesses are known to be over; actors are the
// lanes, each lane's 16-byte copies (counted by group), and the mbarriers (counted by phase). Barriers and warp operations join the
// clocks of those that meet; lanes that know the same share one clock. Between blocks: a fence makes all that a lane knows fit
// for the device, an atomic publishes what is fit at its address and collects what others published there, and a fence makes
// what was collected known. Both travel through barriers, so that the fence may stand on either side of one.
#ifndef KITTY_EMULATE_MACHINE_H
#define KITTY_EMULATE_MACHINE_H

#include <map>
#include <string>
#include <vector>

#include "emulate_host.h"

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct emulate_kernel {
    std::string name, object;
    void *handle;
    void (*entry)(const void *);
    unsigned long (*params_bytes)();
    bool checked;                // its loads and stores are seen
    const u8 *base, *low, *high; // where it is loaded; its code and constants
};

namespace emulate {

enum { LANES = 32, MAX_THREADS = 1024, MAX_MBARRIERS = 64, STACK_BYTES = 256 << 10, PATIENCE = 1 << 18, TIMES_ASIDE = 64 };

// ---- order ----
struct thread;
typedef std::vector<u32> stamps;
typedef std::map<u32, stamps> knowledge; // by block: the newest known stamp of each of its actors
struct clock {
    int references = 1;
    stamps known;         // of the own block
    knowledge others;     // of other blocks
    knowledge fenced;     // of all, as of the last fences
    knowledge collected;  // from atomics since the last fence
};
void clock_drop(clock *); // null is fine
void raise(stamps &into, const stamps &from);
void raise(knowledge &into, const knowledge &from);
clock *clock_own(thread *); // the lane's view, its alone

// ---- memory ----
// The last accesses of four bytes; or SPLIT: write_stamp indexes the cells of each.
struct cell {
    u32 epoch;
    u32 writer, write_stamp, write_pc;            // actor of the launch + 1, 0: none; flags in the stamp's top bits
    u32 reader, read_stamp, read_mask, read_pc;   // warp of the launch + 1, or SEVERAL: read_stamp indexes `readers`
};
struct region {
    u8 *start = nullptr;
    size_t bytes = 0;
    cell *cells = nullptr;    // one per four bytes, mapped on demand
    std::vector<u8> written;  // empty: all of it
    std::string name;
    bool owned = false;
    u32 epoch = 0;            // cells of another epoch are void; 0: the launch
};
enum access { READ, WRITE, ATOMIC, FETCH }; // FETCH: by the copy engine, which may carry bytes that nothing wrote

struct block;

// ---- machine ----
enum operation { NONE, SYNC, SHUFFLE, VOTE, MATRIX, TRANSPOSE };
struct request {
    operation what = NONE;
    int how = 0;           // variety: which shuffle, vote, type
    u32 mask = 0;
    u64 value = 0;
    int argument = 0, width = 0;
    void *c = nullptr;
    u32 a[4] = {}, b[2] = {};
    u64 result = 0;
    u32 pc = 0;
};
struct warp {
    block *home = nullptr;
    int first = 0, index = 0;
    u32 ready = 0, waiting = 0, exited = 0;
    u32 alike = 0; // of the waiting lanes, those known to ask for one and the same
    u32 stamp = 1, last_full = 0; // last_full: accesses up to this stamp are ordered before any by this warp
};
struct mbarrier {
    u32 offset = 0;
    int expected = 0, pending = 0;
    long long bytes = 0;
    u32 phase = 0;         // phases completed
    int maker = 0;         // lane that initialised it, at stamp `made`
    u32 made = 0;
    bool fenced = false;
    stamps released;                                 // by those that arrived
    clock *memo_from = nullptr, *memo_to = nullptr;  // last joining, as 32 lanes do the same
};
struct copy {
    thread *by = nullptr;
    u8 *to = nullptr;
    const u8 *from = nullptr;
    int bytes = 0;
    int barrier = -1;      // index of the mbarrier, or -1: a 16-byte copy
    u32 round = 0;         // its phase or group, from 1
    u32 pc = 0;
    bool landed = false;
};
enum state { READY, AT_BARRIER, AT_WARP, AT_MBARRIER, EXITED };
struct thread {
    void *stack_pointer = nullptr;
    u8 *stack = nullptr;   // [STACK_BYTES]
    block *home = nullptr;
    warp *team = nullptr;
    int index = 0, lane = 0;
    emulate::state state = READY;
    request op;
    u32 barrier_pc = 0;
    int mbarrier_index = 0, parity = 0;
    u32 groups = 0, groups_done = 0; // 16-byte copies: groups committed, groups waited for
    int times_aside = 0;             // set aside since it last met others
    bool waited = false;             // grid_wait has returned
    clock *view = nullptr;
};
struct block {
    u32 linear = 0;
    unsigned index[3] = {};
    std::vector<thread> threads;
    std::vector<warp> warps;
    int alive = 0, at_barrier = 0;
    bool launched_next = false;
    region shared;
    std::vector<u8> barrier_bytes;   // per 8 bytes of shared memory: holds an mbarrier
    std::vector<mbarrier> mbarriers;
    std::vector<copy> copies;        // that nobody has waited for yet
    int under_way = 0;               // of them, not landed
};

struct machine {
    const emulate_kernel *kernel;
    const emulate_launch_args *args;
    thread *self;                    // the lane that runs; null: the driver
    void *driver;                    // its stack pointer while lanes run
    std::vector<block *> resident;
    block *ended;                    // a block whose last lane has just exited
    bool stop;                       // a report that cannot be survived, or enough of them
    bool eager;                      // copies land at random; else as late as possible
    u32 launch;                      // epoch of global memory
    u32 threads, warps, actors;      // of a block; actors = 2 * threads + MAX_MBARRIERS
    int report_limit;
    bool some_waited;                // a lane came to grid_wait
    bool in_order;                   // one did before its block let the next launch begin
    int patience;                    // accesses until the lane is set aside
    u64 random;
    std::vector<emulate_report> reports;
    std::map<std::pair<int, std::string>, bool> reported; // by kind and line
    std::map<const void *, knowledge> published;          // by address of an atomic
};
extern machine m;

// machine.cpp
u32 draw();
void block_self();                 // until made ready
void yield_self();
[[noreturn]] void give_up();       // leaves the lanes where they are; the launch ends
void make_ready(thread *);
std::string doing(const thread *); // "at __syncthreads, line ..."

// order.cpp
void meet(thread *const *lanes, int count); // joins what they know; a new stamp for each warp

// copy.cpp
bool land_one(block *);            // a copy under way, picked at random
void block_copies_end(block *);    // reports those that nobody waited for
std::string waiting_for(const thread *);

// memory.cpp
// Checks and records an access; does not come back if it is out of bounds.
void check(const void *address, size_t bytes, access how, u32 pc);
// A copy that the running lane starts, recorded as a write by `actor` at `stamp`.
void check_copy(u8 *to, const u8 *from, int bytes, u32 actor, u32 stamp, u32 pc);
void check_aligned(const void *address, size_t bytes, u32 pc);
bool knows(const thread *, u32 actor, u32 stamp); // of the own block
std::string place_of(const void *address);
u32 next_epoch();
void launch_overlaps(bool overlap); // m.launch begins; what may still run
void launch_ended();
bool region_open(region *);        // maps the cells
void region_close(region *);

// host.cpp
// A report by `who` (null: the launch). `pc` is an offset in the kernel's object, 0: none. Ends the launch at the limit.
void report(emulate_kind kind, u32 pc, const thread *who, const char *format, ...) __attribute__((format(printf, 4, 5)));
std::string line_of(u32 pc);
inline u32 pc_of(const void *return_address) { return (u32)((const u8 *)return_address - m.kernel->base); }
bool in_image(const void *address);
region *global_region(const void *address);          // null: in none
std::string nearest_region(const void *address);

// numbers.cpp
void multiply_fragments(thread *const *lanes);

// fibre.cpp
extern "C" void emulate_swap(void **save, void *to);
void *fibre_start(u8 *stack, size_t bytes, void (*run)());
}

#endif
