// How fast the card reads: two kernels that bring `count` units of memory in and keep nothing.
//
// bandwidth_read   16-byte loads, 8 in flight per thread; a unit is 16 bytes
// bandwidth_bulk   cp.async.bulk into shared memory, as attend reads its pages (sm_90 on): each of a block's 4 warps has 2
//                  chunks in flight and takes every (warps of the grid)-th; a unit is a chunk of 10,368 bytes
//
// `kept` is written where a sum of bits has one value of 2^32, so that no load can be left out.

constexpr int IN_FLIGHT = 8;
constexpr int CHUNK = 10368;
constexpr int WARPS = 4, STAGES = 2;

extern "C" __global__ void __launch_bounds__(256) bandwidth_read(const uint4 *data, unsigned long long count, unsigned *kept) {
    const unsigned long long stride = (unsigned long long)gridDim.x * blockDim.x;
    unsigned long long at = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;
    unsigned bits = 0;
    for (; at + (IN_FLIGHT - 1) * stride < count; at += IN_FLIGHT * stride) {
        uint4 loaded[IN_FLIGHT];
#pragma unroll
        for (int i = 0; i < IN_FLIGHT; i++)
            loaded[i] = data[at + i * stride];
#pragma unroll
        for (int i = 0; i < IN_FLIGHT; i++)
            bits ^= loaded[i].x ^ loaded[i].y ^ loaded[i].z ^ loaded[i].w;
    }
    for (; at < count; at += stride) {
        const uint4 loaded = data[at];
        bits ^= loaded.x ^ loaded.y ^ loaded.z ^ loaded.w;
    }
    if (bits == 0x9e3779b9u)
        *kept = bits;
}

#if __CUDA_ARCH__ >= 900
static __device__ __forceinline__ unsigned shared_address(const void *pointer) { return (unsigned)__cvta_generic_to_shared(pointer); }

static __device__ __forceinline__ void fetch(unsigned char *to, const unsigned char *from, unsigned long long *bar) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(CHUNK) : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(to)),
                 "l"(from), "r"(CHUNK), "r"(shared_address(bar)) : "memory");
}

static __device__ __forceinline__ void wait(unsigned long long *bar, int parity) {
    asm volatile("{\n.reg .pred p;\nWAIT_%=:\nmbarrier.try_wait.parity.shared.b64 p, [%0], %1;\n@!p bra WAIT_%=;\n}"
                 ::"r"(shared_address(bar)), "r"(parity) : "memory");
}

extern "C" __global__ void __launch_bounds__(WARPS * 32) bandwidth_bulk(const unsigned char *data, unsigned long long count,
                                                                        unsigned *kept) {
    extern __shared__ __align__(128) unsigned char chunks[]; // [WARPS][STAGES][CHUNK]
    __shared__ unsigned long long bars[WARPS][STAGES];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const unsigned long long stride = (unsigned long long)gridDim.x * WARPS, first = (unsigned long long)blockIdx.x * WARPS + warp;
    unsigned char *mine = chunks + warp * STAGES * CHUNK;
    unsigned bits = 0;
    if (lane == 0) {
        for (int stage = 0; stage < STAGES; stage++)
            asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(shared_address(&bars[warp][stage])) : "memory");
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        for (int stage = 0; stage < STAGES; stage++)
            if (first + stage * stride < count)
                fetch(mine + stage * CHUNK, data + (first + stage * stride) * CHUNK, &bars[warp][stage]);
    }
    __syncwarp();
    int stage = 0, parity = 0;
    for (unsigned long long at = first; at < count; at += stride) {
        wait(&bars[warp][stage], parity);
        bits ^= *(const unsigned *)(mine + stage * CHUNK + lane * 16);
        __syncwarp();
        if (lane == 0 && at + STAGES * stride < count)
            fetch(mine + stage * CHUNK, data + (at + STAGES * stride) * CHUNK, &bars[warp][stage]);
        if (++stage == STAGES)
            stage = 0, parity ^= 1;
    }
    if (bits == 0x9e3779b9u)
        *kept = bits;
}
#endif
