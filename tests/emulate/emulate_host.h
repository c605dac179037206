// Running emitted kernels on the CPU, with their faults found: the driver's side. Plain C; one thread at a time.
#ifndef KITTY_EMULATE_HOST_H
#define KITTY_EMULATE_HOST_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// What a report is about. Each names kernel, block, thread, address or offset, and source line.
typedef enum {
    EMULATE_UNINITIALISED, // a read of shared or global memory that nothing wrote
    EMULATE_BOUNDS,        // an access outside every registered buffer, or past the shared memory launched
    EMULATE_BARRIER,       // a block barrier that some threads miss, or meet elsewhere
    EMULATE_MASK,          // a warp operation whose mask is not the lanes that arrive
    EMULATE_RACE,          // two accesses of a byte, one a write, that nothing orders
    EMULATE_ALIGNMENT,     // a vector access or copy at an address that is not a multiple of its size
    EMULATE_WAIT,          // memory of a copy under way used before its wait; a copy nobody waits for
    EMULATE_COPY,          // a copy or mbarrier the hardware would refuse or never complete
    EMULATE_ASSUMPTION,    // a false __builtin_assume
    EMULATE_ENDLESS,       // a kernel that does not end
    EMULATE_LAUNCH,        // a launch the hardware would refuse
    EMULATE_KINDS
} emulate_kind;

enum { EMULATE_TEXT = 640, EMULATE_REPORTS = 16 };
typedef struct {
    emulate_kind kind;
    char text[EMULATE_TEXT];
} emulate_report;

const char *emulate_kind_name(emulate_kind kind); // "uninitialised", ...

// ---- memory of the device ----
// 256-byte aligned, exactly `bytes` long; null when out of memory. Not initialised: filled with rubbish, and reads of
// bytes that no kernel wrote are reported. `name` is copied, for reports.
void *emulate_alloc(size_t bytes, int initialised, const char *name);
void emulate_free(void *address); // null is fine
// The same for memory of the caller's; the contents stay.
void emulate_register(void *address, size_t bytes, int initialised, const char *name);
void emulate_unregister(void *address);
// The host wrote (1) these bytes of a buffer, or made their contents void (0).
void emulate_initialised(void *address, size_t bytes, int initialised);
// From now on a buffer is called that.
void emulate_name(void *start, const char *name);
// The buffer that holds `address`; 0 where none does.
int emulate_buffer(const void *address, void **start, size_t *bytes);

// ---- kernels ----
typedef struct emulate_kernel emulate_kernel;

typedef struct {
    const char *source; // path of the emitted .cu
    const char *entry;  // its extern "C" name
    const char *output; // path of the shared object; kept if it is newer than source and emulator
    int checks;         // 1: every load and store is checked; 0: fast, without
} emulate_build;
// Compiles with the host compiler (CXX, else g++). 0, or a negative value with the compiler's first lines in `error`.
int emulate_compile(const emulate_build *build, char *error, size_t error_bytes);
emulate_kernel *emulate_load(const char *object, const char *entry, char *error, size_t error_bytes);
void emulate_unload(emulate_kernel *kernel);

typedef struct {
    unsigned grid[3], block[3];
    size_t shared;       // bytes of dynamic shared memory, exact
    const void *params;  // the kernel's one parameter
    size_t params_bytes; // checked against the kernel's own size
    uint64_t seed;       // order of blocks, warps, lanes and copies
    int report_limit;    // reports kept, at most EMULATE_REPORTS; 0: all of those
    int bulk;            // 1: bulk copies (sm_90); 0: cp.async (sm_80), and what asks for bulk copies does nothing
    int overlap;         // 1: launched while the launch before it still runs; grid_wait waits for that one
} emulate_launch_args;
// Runs the grid. Returns how many reports there are; they stay valid until the next launch.
int emulate_launch(const emulate_kernel *kernel, const emulate_launch_args *args, const emulate_report **reports);
// The host, or a copy between launches, has waited for all of them: the next one overlaps with none.
void emulate_settle(void);
// The next launch overlaps with one of the driver's, called `name`, that writes (1) or reads (0) these bytes.
void emulate_outside(const void *address, size_t bytes, int writes, const char *name);

#ifdef __cplusplus
}
#endif
#endif
