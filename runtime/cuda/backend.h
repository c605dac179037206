// The CUDA backend over a given driver: kt__cuda_open takes the machine's, tests bring their own.
#ifndef KT_CUDA_BACKEND_H
#define KT_CUDA_BACKEND_H

#include "driver.h"

kt_status kt__cuda_open_on(const kt__driver *driver, const kt__package *package, const kt__environment *environment, int ordinal,
                           bool *usable, kt__backend **backend);

// The architecture that kernels are compiled for on a card: sm_80, 86, 89 for 8.x (one runs on every later 8.x), else the
// card's own with all its features ("sm_90a"). False: below 8.0.
bool kt__cuda_arch(int major, int minor, char arch[16]);

#endif
