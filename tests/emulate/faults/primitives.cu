#include "common.h"
// Each primitive against what it must give, computed from its definition: out[i] and out[512 + i] must be equal. Block 64.
extern "C" __global__ void __launch_bounds__(64) primitives(const __grid_constant__ planted p)
{
    const int tid = threadIdx.x, lane = tid & 31;
    const u32 *in = p.in + (tid & 32);
    const u32 mine = in[lane];
    int at = 0;
    auto same = [&](u32 got, u32 wanted) {
        p.out[at * 64 + tid] = got;
        p.out[512 + at * 64 + tid] = wanted;
        at++;
    };
    u32 sum = 0, wanted = 0;
    // Shuffles, whole and in segments of 8.
    same(__shfl_sync(~0u, mine, 31 - lane) + __shfl_xor_sync(~0u, mine, 5), in[31 - lane] + in[lane ^ 5]);
    same(__shfl_down_sync(~0u, mine, 3) + __shfl_up_sync(~0u, mine, 2), in[lane < 29 ? lane + 3 : lane] + in[lane < 2 ? lane : lane - 2]);
    same(__shfl_sync(~0u, mine, 11, 8) + __shfl_down_sync(~0u, mine, 3, 8), in[(lane & 24) + 3] + in[(lane & 7) < 5 ? lane + 3 : lane]);
    same((u32)__shfl_sync(~0u, (u64)mine << 32, 4) + (u32)(__shfl_sync(~0u, (u64)mine << 32, 4) >> 32), in[4]);
    // Votes.
    for (int i = 0; i < 32; i++)
        wanted |= (u32)(in[i] % 3 == 0) << i;
    same(__ballot_sync(~0u, mine % 3 == 0), wanted);
    same((u32)(__any_sync(~0u, lane == 40) * 4 + __any_sync(~0u, lane == 7) * 2 + __all_sync(~0u, lane < 32)), 3);
    // Atomics: every lane once.
    u32 *slots = (u32 *)shared_memory();
    if (tid < 4)
        slots[tid] = tid == 3 ? 0xffffffffu : 0;
    __syncthreads();
    atomicAdd(slots, mine);
    atomicMax((int *)slots + 1, (int)(mine & 0xffff));
    atomicOr(slots + 2, 1u << lane);
    atomicMin(slots + 3, mine);
    __syncthreads();
    u32 largest = 0, least = ~0u;
    for (int i = 0; i < 64; i++)
        sum += p.in[i], largest = max(largest, p.in[i] & 0xffff), least = min(least, p.in[i]);
    same(slots[0] ^ slots[1] ^ slots[2] ^ slots[3], sum ^ largest ^ 0xffffffffu ^ least);
    // Numbers.
    u32 bits = __float_as_uint(exp2_fast(-3.0f)) ^ __float_as_uint(exp2_fast(-130.0f)) ^ pack_half(65519.0f, 1e-7f) ^
               pack_bfloat(1.00390625f, -3.0f) ^ half2_multiply(pack_half(3.0f, 6e-8f), pack_half(2.0f, 0.75f)) ^
               (u32)(__ffs(8) + __popc(0xf0f0u) * 16 + __clz(1) * 256) ^ __byte_perm(0x33221100u, 0x77665544u, 0x7531);
    same(bits, 0x3e000000u ^ 0x00027bffu ^ 0xc0403f80u ^ 0x00014600u ^ (4u + 8 * 16 + 31 * 256) ^ 0x77553311u);
}
