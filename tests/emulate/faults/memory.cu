#include "common.h"
// Reads of what nothing wrote, accesses out of bounds, misaligned vectors. Grid 2, block 64, 1024 bytes of shared memory.
//   1  the tile's last row is not filled            2  a split's partial result is read that no block wrote
//   3  a copy brings bytes that nothing wrote       4  one byte past the shared memory
//   5  one element past a buffer                    6  a copy that ends 16 bytes past its source
//   7  one byte before a buffer                     8  a vector of 16 bytes at a multiple of 4
//   9  a vector of 8 bytes at a multiple of 4       10 a bulk copy from a multiple of 8
//   11 a write past a buffer through memcpy         12 a value that is assumed but not so
//   13 the local memory of another lane
extern "C" __global__ void __launch_bounds__(64) memory(const __grid_constant__ planted p)
{
    u8 *shared = shared_memory();
    u32 *tile = (u32 *)(shared + 64); // [4, 32]
    u64 *bar = (u64 *)shared;
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, block = blockIdx.x, fault = p.fault;

    for (int row = warp; row < (fault == 1 ? 3 : 4); row += 2)
        tile[row * 32 + lane] = p.in[row * 32 + lane];
    if (tid == 0) {
        barrier_init(bar, 1);
        barrier_init_fence();
    }
    __syncthreads();
    u32 sum = tile[lane] + tile[96 + lane];

    // Partial results: each block 64 words; block 0's second half only with fault 2 missing.
    if (!(fault == 2 && block == 0 && tid >= 32))
        p.out[block * 64 + tid] = sum;
    sum += p.out[block * 64 + 63 - tid / 32 - (fault == 2 ? 0 : 63 - tid / 32 - tid)];

    if (KITTY_BULK && block == 0 && tid == 0) {
        const u8 *from = (const u8 *)p.in;
        if (fault == 3)
            from = (const u8 *)(p.out + 512);
        if (fault == 6)
            from = (const u8 *)(p.in + 1024 - 12);
        if (fault == 10)
            from += 8;
        barrier_expect(bar, 64);
        bulk_copy(shared + 576, from, 64, bar);
    }
    if (KITTY_BULK && block == 0) {
        barrier_wait(bar, 0);
        sum += *(const u32 *)(shared + 576 + (lane & 15) * 4);
    }

    for (int i = tid; i < 64; i += 64)
        shared[960 + i + (fault == 4 && i == 63)] = (u8)sum;
    sum += p.in[960 + tid + (fault == 5 && tid == 63)];
    if (tid == 3)
        sum += ((const u8 *)p.in)[fault == 7 ? -1 : 0];
    const uint4 four = *(const uint4 *)(p.in + 4 * lane + (fault == 8 && tid == 40));
    const uint2 *two = (const uint2 *)(tile + 2 * (lane & 15) + (fault == 9));
    sum += four.x + four.w + two->x + two->y;
    if (tid == 5 && block == 1)
        memcpy(p.out + (fault == 11 ? 1021 : 1020), p.in, 16);
    __builtin_assume(fault != 12 || tid < 63);

    u32 mine[2] = {sum, sum};
    u64 address = (u64)&mine[lane & 1];
    address = fault == 13 ? __shfl_xor_sync(~0u, address, 1) : address;
    *(u32 *)address += 1;
    p.out[128 + block * 64 + tid] = mine[0] + mine[1];
}
