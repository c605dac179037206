// The emulator as a device of libkitty: kernels run as emitted, on the CPU, with their faults reported as KT_DEVICE.
//
// Link a test with -Wl,--wrap=kt__cuda_open and it is what KT_DEVICE_CUDA opens; with --wrap=kt__cpu_open it stands in for the
// CPU. From the environment, at each open:
//   KT_EMULATE_SEED    first seed (0); each launch takes the next
//   KT_EMULATE_BULK    1 (default): as sm_90, bulk copies; 0: as sm_80, cp.async
//   KT_EMULATE_SHARED  bytes of shared memory a block may have (232448; 101376 without bulk copies)
//   KT_EMULATE_SMS     multiprocessors (4)
//   KT_EMULATE_ATTEND  largest step (new tokens of a sequence) whose attend is emulated; the CPU backend does larger ones
//   KT_EMULATE_UNITS   most blocks that share a slot's append, which is made for any number of them
//   KT_EMULATE_FAST    1: without checks of loads and stores
#ifndef KITTY_EMULATE_BACKEND_H
#define KITTY_EMULATE_BACKEND_H

#ifdef __cplusplus
extern "C" {
#endif
#include "internal.h"

// Compiled kernels are kept under `cache_dir`/emulate.
kt_status kt__emulate_open(const kt__package *package, const char *cache_dir, kt__backend **backend);
// Launches since the backend was opened.
int kt__emulate_launches(const kt__backend *backend);

#ifdef __cplusplus
}
#endif
#endif
