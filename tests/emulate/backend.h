// The emulator as a device of libkitty: kernels run as emitted, on the CPU, with their faults reported as KT_DEVICE.
//
// Link a test with -Wl,--wrap=kt__cuda_open and it is what KT_DEVICE_CUDA opens; with --wrap=kt__cpu_open it stands in for the
// CPU. From the environment, at each open:
//   KT_EMULATE_SEED    first seed (0); each launch takes the next
//   KT_EMULATE_BULK    1 (default): as sm_90, bulk copies; 0: as sm_80, cp.async
//   KT_EMULATE_SHARED  bytes of shared memory a block may have (232448, so that every kernel runs on both cards)
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

enum { KT__EMULATE_KERNELS = 16 }; // of a package, at most

// A kernel is compiled when it is first launched, and kept under `cache_dir`/emulate.
kt_status kt__emulate_open(const kt__package *package, const char *cache_dir, kt__backend **backend);
// From the next launch on the card is another: KT_EMULATE_BULK and KT_EMULATE_UNITS.
void kt__emulate_card(kt__backend *backend, int bulk, int most_units);
// Launches of a kernel by a card with bulk copies, or without, since the backend was opened.
int kt__emulate_launches(const kt__backend *backend, int kernel, int bulk);

#ifdef __cplusplus
}
#endif
#endif
