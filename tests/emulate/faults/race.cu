#include "common.h"
// Races. Grid 4, block 64, 512 bytes of shared memory.
//   1  no block barrier between a write and another warp's read    2  no warp barrier between two lanes
//   3  a buffer written again while another warp still reads it    4  a merge without a fence before the counter
//   5  a merge without a fence after the counter                   6  a plain counter
//   7  a block overwrites what another reads                       8  two blocks write one word
//   9  a warp barrier that leaves a lane out                       10 a plain read of a counter under way
//   11 a shuffle in place of a warp barrier
extern "C" __global__ void __launch_bounds__(64) race(const __grid_constant__ planted p)
{
    u32 *tile = (u32 *)shared_memory();
    int *last = (int *)(shared_memory() + 256);
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, block = blockIdx.x, fault = p.fault;
    tile[tid] = p.in[tid];
    if (fault != 1)
        __syncthreads();
    u32 x = tile[(tid + 32) & 63];
    if (fault != 3)
        __syncthreads();
    tile[tid] = x;
    if (fault != 2) {
        if (fault == 11)
            x += __shfl_sync(~0u, x, 0);
        else if (fault == 9 && lane != 4)
            __syncwarp(~(1u << 4));
        else if (fault != 9)
            __syncwarp();
    }
    x += tile[tid ^ 1];

    // Each block its partial result; the last to arrive adds them up.
    p.out[block * 64 + tid] = x;
    if (fault == 7 && block == 1 && tid == 0)
        p.out[512] = p.out[600] = x;
    if (fault == 7 && block == 2 && tid == 0)
        p.out[512] = x;
    if (fault == 8 && tid == 9)
        p.out[700] = x;
    __syncthreads();
    if (tid == 0) {
        if (fault != 4)
            __threadfence();
        if (fault == 6)
            *last = p.counter[0]++ == 3;
        else
            *last = atomicAdd(p.counter, 1) == 3;
        if (fault == 10)
            x += (u32)p.counter[0];
        if (fault != 5)
            __threadfence();
    }
    __syncthreads();
    if (!*last)
        return;
    for (int b = 0; b < 4; b++)
        x += p.out[b * 64 + tid];
    p.out[256 + tid] = x + (u32)warp;
}
