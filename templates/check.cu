//@ include "lib/params.h"

//@ include "lib/primitives.cuh"

// Start of a step: whether every slot's reserved pages hold its new tokens. If one does not, no kernel of the step does anything.
//   grid (1), block of one warp
extern "C" __global__ void __launch_bounds__(THREADS) $entry(const __grid_constant__ kt_step_params p) {
    grid_wait();
    grid_launch_next();
    int fits = 1;
    for (int i = threadIdx.x; i < p.slot_count; i += THREADS) {
        const kt_slot slot = p.slots[i];
        if (slot.fresh > 0 && slot.tokens + slot.fresh > slot.capacity) fits = 0;
    }
    fits = __all_sync(~0u, fits);
    if (threadIdx.x == 0) {
        p.control->ready = fits;
        if (!fits) p.control->overrun++;
    }
}
