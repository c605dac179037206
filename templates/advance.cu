//@ include "lib/params.h"

//@ include "lib/primitives.cuh"

// End of a step: its tokens become part of their sequences.
//   grid (1), block THREADS
extern "C" __global__ void __launch_bounds__(THREADS) $entry(const __grid_constant__ kt_step_params p) {
    grid_wait();
    grid_launch_next();
    if (!p.control->ready) return;
    for (int i = threadIdx.x; i < p.slot_count; i += THREADS) {
        p.slots[i].tokens += p.slots[i].fresh;
        p.slots[i].slab = p.slots[i].slab_next;
    }
}
