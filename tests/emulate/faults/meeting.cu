#include "common.h"
// Barriers and warp operations. Grid 2, block 96, 512 bytes of shared memory.
//   1  a warp leaves before the barrier             2  two halves of a warp at two barriers
//   3  one lane skips the barrier                   4  a shuffle over all lanes in half of the warp
//   5  lanes outside the mask they give             6  a lane leaves before the warp's vote
//   7  a shuffle from a lane outside the mask       8  one lane shuffles where the others vote
//   9  an mma that a lane does not reach            10 a lane spins for a value that nobody writes
extern "C" __global__ void __launch_bounds__(96) meeting(const __grid_constant__ planted p)
{
    u32 *tile = (u32 *)shared_memory();
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, fault = p.fault;
    tile[tid] = p.in[tid];
    if (fault == 1 && warp == 2)
        return;
    if (fault == 2 && lane < 16) {
        tile[tid] += 1;
        __syncthreads();
    } else if (!(fault == 3 && tid == 37)) {
        __syncthreads();
    }
    u32 x = tile[95 - tid];
    __syncthreads();

    if (lane < 16) {
        x += __shfl_xor_sync(fault == 4 ? 0xffffffffu : 0xffffu, x, 1);
        if (fault == 7)
            x += __shfl_sync(0xffffu, x, 20);
    }
    __syncwarp(fault == 5 ? 0xffffu : 0xffffffffu);
    if (fault == 6 && tid == 64)
        return;
    if (fault == 8 && lane == 9)
        x += __shfl_sync(~0u, x, 0);
    else
        x += (u32)__any_sync(~0u, x == 7);
    float c[4] = {0, 0, 0, 0};
    if (!(fault == 9 && tid == 31))
        mma_half(c, x, x, x, x, x, x);
    if (fault == 10 && tid == 0)
        while (*(volatile u32 *)tile != 12345) {
        }
    p.out[blockIdx.x * 96 + tid] = x + (c[0] > 0);
}
