#include "common.h"
// Asynchronous copies, two stages a warp. Grid 2, block 64, 1152 bytes of shared memory.
//   1  no wait for a copy                           2  the second round waits for the first round's parity
//   3  one group too many left under way            4  a stage refilled while lanes still read it
//   5  a block that ends with a copy under way      6  more bytes announced than copied
//   7  mbarriers that no fence made visible         8  mbarriers used before their initialisation is known
//   9  two arrivals where one is expected           10 a plain write over an mbarrier
//   11 a group that is never committed              12 the source of a copy overwritten
//   13 only one lane waits, and no barrier after    14 an mbarrier waited for on a card without bulk copies
extern "C" __global__ void __launch_bounds__(64) copies(const __grid_constant__ planted p)
{
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, fault = p.fault;
    u64 *bars = (u64 *)shared_memory() + warp * 2;
    u32 *stages = (u32 *)(shared_memory() + 128) + warp * 128; // [2, 64]
    u32 sum = 0;
    if (lane < 2) {
        barrier_init(bars + lane, 1);
        if (fault != 7)
            barrier_init_fence();
    }
    if (fault != 8)
        __syncwarp();
    const u32 *source = p.in + warp * 512;
    if (fault == 12 && blockIdx.x == 0) {
        source = p.out + 128 + warp * 256;
        for (int i = lane; i < 256; i += 32)
            p.out[128 + warp * 256 + i] = p.in[i];
        __syncwarp();
    }
    auto start = [&](int round) {
        const int stage = round & 1;
        const u32 *from = source + round * 64;
        if (KITTY_BULK) {
            if (lane != 0)
                return;
            barrier_expect(bars + stage, fault == 6 && round == 2 ? 272 : 256);
            if (fault == 9 && round == 1)
                barrier_expect(bars + stage, 0);
            bulk_copy(stages + stage * 64, from, 256, bars + stage);
            return;
        }
        if (lane < 16)
            async_copy16(stages + stage * 64 + lane * 4, from + lane * 4);
        if (!(fault == 11 && round == 3))
            async_commit();
    };
    start(0);
    start(1);
    for (int round = 0; round < 4; round++) {
        const int stage = round & 1;
        if (KITTY_BULK) {
            if (fault == 12 && blockIdx.x == 0 && round == 0 && lane == 0)
                ((u32 *)source)[64] = 1;
            if (!(fault == 1 && round == 1) && !(fault == 13 && lane != 0))
                barrier_wait(bars + stage, fault == 2 ? 0 : round >> 1);
        } else {
            if (round == 3 && fault != 3)
                async_wait<0>();
            else
                async_wait<1>();
            __syncwarp();
            if (fault == 14)
                barrier_wait(bars + stage, 0);
        }
        sum += stages[stage * 64 + (lane ^ 3)] + stages[stage * 64 + 32 + lane];
        if (fault != 4)
            __syncwarp();
        if (round < 2 || (fault == 5 && round == 3))
            start(round < 2 ? round + 2 : 0);
    }
    if (fault == 10 && lane == 1)
        bars[0] = 0;
    p.out[blockIdx.x * 64 + tid] = sum;
}
