// Hardware primitives: the only inline PTX in an emitted kernel. Everything above this file is plain CUDA.
// KITTY_EMULATE replaces this section by host C++ with the same names and the PTX semantics (tests/emulate/).
#ifndef KITTY_EMULATE
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define KITTY_BULK 1 // cp.async.bulk + mbarrier; cp.async groups otherwise. Kernels ask by plain ifs: the emulator has both.
#else
#define KITTY_BULK 0
#endif

// Start of the block's dynamic shared memory, 128-byte aligned. The only shared memory a kernel uses.
__device__ __forceinline__ u8 *shared_memory() {
    extern __shared__ __align__(128) u8 kitty_shared[];
    return kitty_shared;
}

__device__ __forceinline__ u32 shared_address(const void *p) { return (u32)__cvta_generic_to_shared(p); }

// Kernels of a stream overlap at their edges (sm_90 on): each is launched while the one before it still runs, and touches no memory of
// others before grid_wait, which waits until that one has ended. grid_launch_next lets the next one be launched.
__device__ __forceinline__ void grid_wait() {
#if KITTY_BULK
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void grid_launch_next() {
#if KITTY_BULK
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// ---- conversions: round to nearest even; no flush to zero ----
__device__ __forceinline__ float half_to_float(u16 h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}
__device__ __forceinline__ u16 float_to_half(float f) {
    u16 h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}
__device__ __forceinline__ u16 float_to_bfloat(float f) {
    u16 h;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}
// low half of the word: `low`; high half: `high`
__device__ __forceinline__ u32 pack_half(float low, float high) {
    u32 w;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(w) : "f"(high), "f"(low));
    return w;
}
__device__ __forceinline__ u32 pack_bfloat(float low, float high) {
    u32 w;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(w) : "f"(high), "f"(low));
    return w;
}
// 2^x to 2 ulp; 2^-inf = 0
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
// a * b on two halves, each rounded once
__device__ __forceinline__ u32 half2_multiply(u32 a, u32 b) {
    u32 y;
    asm("mul.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
    return y;
}
// Both halves' signs turned.
__device__ __forceinline__ u32 half2_negate(u32 a) {
    u32 y;
    asm("neg.f16x2 %0, %1;" : "=r"(y) : "r"(a));
    return y;
}

// a * b + c on two halves, rounded once
__device__ __forceinline__ u32 half2_multiply_add(u32 a, u32 b, u32 c) {
    u32 y;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(c));
    return y;
}
// The smaller and the larger of two numbers each; of zeros any; NaN where one is.
__device__ __forceinline__ u32 half2_min(u32 a, u32 b) {
    u32 y;
    asm("min.NaN.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
    return y;
}
__device__ __forceinline__ u32 half2_max(u32 a, u32 b) {
    u32 y;
    asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
    return y;
}
__device__ __forceinline__ u32 bfloat2_min(u32 a, u32 b) {
    u32 y;
    asm("min.NaN.bf16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
    return y;
}
__device__ __forceinline__ u32 bfloat2_max(u32 a, u32 b) {
    u32 y;
    asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
    return y;
}
// max(|a|, |b|) on two halves, NaN where one is
__device__ __forceinline__ u32 half2_peak(u32 a, u32 b) {
    u32 y;
    asm("{\n.reg .b32 x, z;\nabs.f16x2 x, %1;\nabs.f16x2 z, %2;\nmax.NaN.f16x2 %0, x, z;\n}" : "=r"(y) : "r"(a), "r"(b));
    return y;
}
__device__ __forceinline__ u32 bfloat2_peak(u32 a, u32 b) {
    u32 y;
    asm("{\n.reg .b32 x, z;\nabs.bf16x2 x, %1;\nabs.bf16x2 z, %2;\nmax.NaN.bf16x2 %0, x, z;\n}" : "=r"(y) : "r"(a), "r"(b));
    return y;
}
// All ones in each half where a >= b, else 0.
__device__ __forceinline__ u32 half2_reaches(u32 a, u32 b) {
    u32 y;
    asm("set.ge.u32.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
    return y;
}
__device__ __forceinline__ u32 bfloat2_reaches(u32 a, u32 b) {
    u32 y;
#if KITTY_BULK
    asm("set.ge.u32.bf16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
#else
    y = (__uint_as_float(a << 16) >= __uint_as_float(b << 16) ? 0xffffu : 0) |
        (__uint_as_float(a & 0xffff0000u) >= __uint_as_float(b & 0xffff0000u) ? 0xffff0000u : 0);
#endif
    return y;
}
// Brings the 128 bytes at p into the L2 cache.
__device__ __forceinline__ void prefetch_line(const void *p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }
// Adds 1 and returns what was there; orders memory like a lock: what the block wrote is visible to whoever counts later.
__device__ __forceinline__ int count_in(int *p) {
    int before;
    asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], 1;" : "=r"(before) : "l"(p) : "memory");
    return before;
}
// From the L2 cache.
__device__ __forceinline__ int load_through(const int *p) {
    int x;
    asm volatile("ld.global.cg.s32 %0, [%1];" : "=r"(x) : "l"(p) : "memory");
    return x;
}
__device__ __forceinline__ uint4 load_through(const uint4 *p) {
    uint4 w;
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w) : "l"(p) : "memory");
    return w;
}

// ---- matrix: c[16 x 8] += a[16 x 16] * b[16 x 8], fp32 accumulators, all 32 lanes ----
// lane = 4 g + t. a0: row g, columns 2t, 2t+1; a1: row g+8; a2: row g, columns 2t+8, 2t+9; a3: row g+8, those.
// b0: rows 2t, 2t+1 of column g; b1: rows 2t+8, 2t+9. c0, c1: row g, columns 2t, 2t+1; c2, c3: row g+8.
__device__ __forceinline__ void mma_half(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma_bfloat(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// c[16 x 8] += a[16 x 32] * b[32 x 8], a in unsigned and b in signed bytes, exact. a0: row g, columns 4t .. 4t+3; a1: row g+8; a2: row g,
// columns 4t+16 ..; a3: row g+8, those. b0: rows 4t .. 4t+3 of column g; b1: rows 4t+16 ... c as above.
__device__ __forceinline__ void mma_bytes(int (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// Transpose of an 8 x 8 matrix of 16-bit elements; lane 4 r + t holds row r, columns 2t, 2t+1 before and after.
__device__ __forceinline__ u32 transpose8(u32 x) {
    u32 y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}

// ---- bulk copies (sm_90 on): one lane starts a copy, every reader waits for the phase ----
__device__ __forceinline__ void barrier_init(u64 *bar, int arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(arrivals) : "memory");
}
// makes initialised barriers visible to the copy engine
__device__ __forceinline__ void barrier_init_fence() {
#if KITTY_BULK
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
__device__ __forceinline__ void barrier_expect(u64 *bar, int bytes) {
#if KITTY_BULK
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(bytes) : "memory");
#endif
}
__device__ __forceinline__ void barrier_wait(u64 *bar, int parity) {
#if KITTY_BULK
    asm volatile("{\n.reg .pred p;\nWAIT_%=:\nmbarrier.try_wait.parity.shared.b64 p, [%0], %1;\n@!p bra WAIT_%=;\n}"
                 ::"r"(shared_address(bar)), "r"(parity) : "memory");
#endif
}
// dst, src and bytes are multiples of 16
__device__ __forceinline__ void bulk_copy(void *dst, const void *src, int bytes, u64 *bar) {
#if KITTY_BULK
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 ::"r"(shared_address(dst)), "l"(src), "r"(bytes), "r"(shared_address(bar)) : "memory");
#endif
}

// ---- asynchronous copies of 16 bytes (sm_80 on): each lane's own, waited for by group, then a warp or block barrier ----
__device__ __forceinline__ void async_copy16(void *dst, const void *src) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(dst)), "l"(src) : "memory");
}
__device__ __forceinline__ void async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// until at most `pending` of this lane's groups are under way
template <int pending> __device__ __forceinline__ void async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}
#endif // KITTY_EMULATE
