// The device language on the host: what an emitted kernel needs to compile, unchanged, as C++17 and run on the CPU.
// Included before the kernel (-include emulate.h -DKITTY_EMULATE). Every function here only records what a lane asks for;
// the machine (machine.cpp) runs the lanes as fibres and answers when all lanes concerned have arrived.
//
// KITTY_BULK is the launch's: bulk copies with mbarriers (sm_90), or groups of 16-byte copies (sm_80). One object has both paths.
#ifndef KITTY_EMULATE_H
#define KITTY_EMULATE_H

// What <math.h> and <string.h> would declare, in a hundredth of the time.
#define EMULATE_MATH(name) double name(double) noexcept; float name##f(float) noexcept
#define EMULATE_MATH2(name) double name(double, double) noexcept; float name##f(float, float) noexcept
extern "C" {
EMULATE_MATH(exp); EMULATE_MATH(exp2); EMULATE_MATH(log); EMULATE_MATH(log2); EMULATE_MATH(sqrt); EMULATE_MATH(fabs);
EMULATE_MATH(rint); EMULATE_MATH(floor); EMULATE_MATH(ceil); EMULATE_MATH(trunc); EMULATE_MATH2(fmin); EMULATE_MATH2(fmax);
EMULATE_MATH2(pow);
double fma(double, double, double) noexcept;
float fmaf(float, float, float) noexcept;
void *memcpy(void *, const void *, unsigned long) noexcept;
void *memset(void *, int, unsigned long) noexcept;
}
#undef EMULATE_MATH
#undef EMULATE_MATH2

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define __global__
#define __device__
#define __host__
#define __constant__ const
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_assume(condition) ((condition) ? (void)0 : emulate_assumption(#condition))

// ---- vectors: aligned as on the device, so that a misaligned one is seen ----
#define EMULATE_VECTORS(T, name)                                                                             \
    struct __align__(2 * sizeof(T)) name##2 { T x, y; };                                                     \
    struct name##3 { T x, y, z; };                                                                           \
    struct __align__(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) name##4 { T x, y, z, w; };                     \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                               \
    inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                                       \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATE_VECTORS(int, int)
EMULATE_VECTORS(unsigned, uint)
EMULATE_VECTORS(float, float)
EMULATE_VECTORS(unsigned short, ushort)
EMULATE_VECTORS(unsigned char, uchar)
EMULATE_VECTORS(double, double)
EMULATE_VECTORS(unsigned long long, ulonglong)
#undef EMULATE_VECTORS
struct dim3 { unsigned x = 1, y = 1, z = 1; };

// ---- the machine's side (machine.cpp, copy.cpp, numbers.cpp) ----
extern "C" {
uint3 emulate_thread_index(void);
uint3 emulate_block_index(void);
uint3 emulate_block_size(void);
uint3 emulate_grid_size(void);
__attribute__((const)) int emulate_bulk(void);
#define KITTY_BULK emulate_bulk()
void emulate_assumption(const char *text);
enum { EMULATE_SHUFFLE, EMULATE_SHUFFLE_XOR, EMULATE_SHUFFLE_DOWN, EMULATE_SHUFFLE_UP };
u64 emulate_shuffle(int how, u32 mask, u64 bits, int argument, int width);
enum { EMULATE_BALLOT, EMULATE_ANY, EMULATE_ALL };
u32 emulate_vote(int how, u32 mask, int predicate);
enum { EMULATE_HALF, EMULATE_BFLOAT, EMULATE_BYTES };
void emulate_mma(int elements, void *c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1);
enum { EMULATE_ADD, EMULATE_MAX, EMULATE_MIN, EMULATE_OR, EMULATE_AND, EMULATE_EXCHANGE, EMULATE_SWAP };
enum { EMULATE_INT, EMULATE_UNSIGNED, EMULATE_FLOAT };
u64 emulate_atomic(void *address, int how, int type, int bytes, u64 operand, u64 expected);
void emulate_async_wait(int pending);

void __syncthreads(void);
void __syncwarp_mask(u32 mask);
void __threadfence(void);

// templates/lib/primitives.cuh
u8 *shared_memory(void);
u32 shared_address(const void *p);
float half_to_float(u16 h);
u16 float_to_half(float f);
u16 float_to_bfloat(float f);
float exp2_fast(float x);
u32 half2_multiply(u32 a, u32 b);
u32 half2_multiply_add(u32 a, u32 b, u32 c);
u32 transpose8(u32 x);
void barrier_init(u64 *bar, int arrivals);
void barrier_init_fence(void);
void barrier_expect(u64 *bar, int bytes);
void barrier_wait(u64 *bar, int parity);
void bulk_copy(void *dst, const void *src, int bytes, u64 *bar);
void grid_wait(void); // where launches do not overlap it returns at once
void grid_launch_next(void);
void async_copy16(void *dst, const void *src);
void async_commit(void);
}

__forceinline__ u32 half2_negate(u32 a) { return a ^ 0x80008000u; }
__forceinline__ u32 pack_half(float low, float high) { return float_to_half(low) | (u32)float_to_half(high) << 16; }
__forceinline__ u32 pack_bfloat(float low, float high) { return float_to_bfloat(low) | (u32)float_to_bfloat(high) << 16; }
__forceinline__ void mma_half(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1)
{
    emulate_mma(EMULATE_HALF, c, a0, a1, a2, a3, b0, b1);
}
__forceinline__ void mma_bfloat(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1)
{
    emulate_mma(EMULATE_BFLOAT, c, a0, a1, a2, a3, b0, b1);
}
__forceinline__ void mma_bytes(int (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1)
{
    emulate_mma(EMULATE_BYTES, c, a0, a1, a2, a3, b0, b1);
}
template <int pending> __forceinline__ void async_wait() { emulate_async_wait(pending); }

// ---- indices ----
#define threadIdx (emulate_thread_index())
#define blockIdx (emulate_block_index())
#define blockDim (emulate_block_size())
#define gridDim (emulate_grid_size())
constexpr int warpSize = 32;

// ---- warp operations ----
__forceinline__ void __syncwarp(u32 mask = 0xffffffffu) { __syncwarp_mask(mask); }
template <class T> __forceinline__ T emulate_shuffled(int how, u32 mask, T value, int argument, int width)
{
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    u64 bits = 0;
    __builtin_memcpy(&bits, &value, sizeof(T));
    bits = emulate_shuffle(how, mask, bits, argument, width);
    __builtin_memcpy(&value, &bits, sizeof(T));
    return value;
}
template <class T> __forceinline__ T __shfl_sync(u32 mask, T value, int lane, int width = 32)
{
    return emulate_shuffled(EMULATE_SHUFFLE, mask, value, lane, width);
}
template <class T> __forceinline__ T __shfl_xor_sync(u32 mask, T value, int bits, int width = 32)
{
    return emulate_shuffled(EMULATE_SHUFFLE_XOR, mask, value, bits, width);
}
template <class T> __forceinline__ T __shfl_down_sync(u32 mask, T value, int by, int width = 32)
{
    return emulate_shuffled(EMULATE_SHUFFLE_DOWN, mask, value, by, width);
}
template <class T> __forceinline__ T __shfl_up_sync(u32 mask, T value, int by, int width = 32)
{
    return emulate_shuffled(EMULATE_SHUFFLE_UP, mask, value, by, width);
}
__forceinline__ u32 __reduce_add_sync(u32 mask, u32 value)
{
    for (int lanes = 16; lanes; lanes /= 2) // only whole warps reduce
        value += __shfl_xor_sync(mask, value, lanes);
    return value;
}
__forceinline__ u32 __reduce_min_sync(u32 mask, u32 value)
{
    for (int lanes = 16; lanes; lanes /= 2) {
        const u32 other = __shfl_xor_sync(mask, value, lanes);
        value = other < value ? other : value;
    }
    return value;
}
__forceinline__ u32 __reduce_max_sync(u32 mask, u32 value) { return ~__reduce_min_sync(mask, ~value); }
__forceinline__ u32 __ballot_sync(u32 mask, int predicate) { return emulate_vote(EMULATE_BALLOT, mask, predicate); }
__forceinline__ int __any_sync(u32 mask, int predicate) { return (int)emulate_vote(EMULATE_ANY, mask, predicate); }
__forceinline__ int __all_sync(u32 mask, int predicate) { return (int)emulate_vote(EMULATE_ALL, mask, predicate); }

// ---- atomics: relaxed, device scope; order comes from __threadfence ----
#define EMULATE_ATOMIC(name, T, how, type)                                                                   \
    __forceinline__ T name(T *address, T operand)                                                            \
    {                                                                                                        \
        u64 bits = 0;                                                                                        \
        __builtin_memcpy(&bits, &operand, sizeof(T));                                                        \
        bits = emulate_atomic(address, how, type, sizeof(T), bits, 0);                                       \
        __builtin_memcpy(&operand, &bits, sizeof(T));                                                        \
        return operand;                                                                                      \
    }
#define EMULATE_ATOMICS(name, how)                                                                           \
    EMULATE_ATOMIC(name, int, how, EMULATE_INT)                                                              \
    EMULATE_ATOMIC(name, u32, how, EMULATE_UNSIGNED)                                                         \
    EMULATE_ATOMIC(name, u64, how, EMULATE_UNSIGNED)
EMULATE_ATOMICS(atomicAdd, EMULATE_ADD)
EMULATE_ATOMICS(atomicMax, EMULATE_MAX)
EMULATE_ATOMICS(atomicMin, EMULATE_MIN)
EMULATE_ATOMICS(atomicOr, EMULATE_OR)
EMULATE_ATOMICS(atomicAnd, EMULATE_AND)
EMULATE_ATOMICS(atomicExch, EMULATE_EXCHANGE)
EMULATE_ATOMIC(atomicAdd, float, EMULATE_ADD, EMULATE_FLOAT)
#undef EMULATE_ATOMICS
#undef EMULATE_ATOMIC
template <class T> __forceinline__ T atomicCAS(T *address, T expected, T desired)
{
    return (T)emulate_atomic(address, EMULATE_SWAP, EMULATE_UNSIGNED, sizeof(T), (u64)desired, (u64)expected);
}

// ---- arithmetic ----
template <class To, class From> __forceinline__ To emulate_bits(From from)
{
    static_assert(sizeof(To) == sizeof(From), "");
    To to;
    __builtin_memcpy(&to, &from, sizeof(To));
    return to;
}
// Magnitudes of halves order like their bits; a NaN wins, as the canonical one.
__forceinline__ u32 emulate_peak(u32 a, u32 b, u32 infinity)
{
    u32 result = 0;
    for (int shift = 0; shift < 32; shift += 16) {
        const u32 x = a >> shift & 0x7fff, y = b >> shift & 0x7fff;
        result |= (x > infinity || y > infinity ? 0x7fff : x > y ? x : y) << shift;
    }
    return result;
}
__forceinline__ u32 half2_peak(u32 a, u32 b) { return emulate_peak(a, b, 0x7c00); }
__forceinline__ u32 bfloat2_peak(u32 a, u32 b) { return emulate_peak(a, b, 0x7f80); }
// Of two elements; halves are compared as the integers that their bits order like; a NaN wins, as the canonical one.
__forceinline__ int emulate_order(u32 bits) { return bits & 0x8000 ? -(int)(bits & 0x7fff) : (int)bits; }
__forceinline__ u32 emulate_choose(u32 a, u32 b, bool larger, u32 infinity)
{
    u32 result = 0;
    for (int shift = 0; shift < 32; shift += 16) {
        const u32 x = a >> shift & 0xffff, y = b >> shift & 0xffff;
        const bool nan = (x & 0x7fff) > infinity || (y & 0x7fff) > infinity;
        result |= (nan ? 0x7fff : (emulate_order(x) < emulate_order(y)) == larger ? y : x) << shift;
    }
    return result;
}
__forceinline__ u32 emulate_reaches(u32 a, u32 b, u32 infinity)
{
    u32 result = 0;
    for (int shift = 0; shift < 32; shift += 16) {
        const u32 x = a >> shift & 0xffff, y = b >> shift & 0xffff;
        const bool nan = (x & 0x7fff) > infinity || (y & 0x7fff) > infinity;
        result |= (!nan && emulate_order(x) >= emulate_order(y) ? 0xffffu : 0) << shift;
    }
    return result;
}
__forceinline__ u32 half2_min(u32 a, u32 b) { return emulate_choose(a, b, false, 0x7c00); }
__forceinline__ u32 half2_max(u32 a, u32 b) { return emulate_choose(a, b, true, 0x7c00); }
__forceinline__ u32 bfloat2_min(u32 a, u32 b) { return emulate_choose(a, b, false, 0x7f80); }
__forceinline__ u32 bfloat2_max(u32 a, u32 b) { return emulate_choose(a, b, true, 0x7f80); }
__forceinline__ u32 half2_reaches(u32 a, u32 b) { return emulate_reaches(a, b, 0x7c00); }
__forceinline__ u32 bfloat2_reaches(u32 a, u32 b) { return emulate_reaches(a, b, 0x7f80); }
__forceinline__ int load_through(const int *p) { return *p; }
__forceinline__ uint4 load_through(const uint4 *p) { return *p; }
__forceinline__ void prefetch_line(const void *) {}

__forceinline__ float __int_as_float(int x) { return emulate_bits<float>(x); }
__forceinline__ float __uint_as_float(u32 x) { return emulate_bits<float>(x); }
__forceinline__ int __float_as_int(float x) { return emulate_bits<int>(x); }
__forceinline__ u32 __float_as_uint(float x) { return emulate_bits<u32>(x); }
__forceinline__ float __fadd_rn(float a, float b) { return a + b; }
__forceinline__ float __fsub_rn(float a, float b) { return a - b; }
__forceinline__ float __fmul_rn(float a, float b) { return a * b; }
__forceinline__ float __fdiv_rn(float a, float b) { return a / b; }
__forceinline__ float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
__forceinline__ float __saturatef(float a) { return a > 0 ? a < 1 ? a : 1 : 0; }
__forceinline__ float __fsqrt_rn(float a) { return sqrtf(a); }
__forceinline__ float __frcp_rn(float a) { return 1.0f / a; }
__forceinline__ float __fdividef(float a, float b) { return a / b; }
__forceinline__ float __expf(float a) { return expf(a); }
__forceinline__ float __logf(float a) { return logf(a); }
__forceinline__ float __log2f(float a) { return log2f(a); }
__forceinline__ float rsqrtf(float a) { return 1.0f / sqrtf(a); }
__forceinline__ int __float2int_rn(float a) { return (int)rintf(a); }
__forceinline__ int __float2int_rd(float a) { return (int)floorf(a); }
__forceinline__ int __float2int_rz(float a) { return (int)a; }
__forceinline__ u32 __float2uint_rn(float a) { return (u32)rintf(a); }
__forceinline__ float __int2float_rn(int a) { return (float)a; }
__forceinline__ float __uint2float_rn(u32 a) { return (float)a; }
__forceinline__ int count_in(int *p)
{
    __threadfence();
    const int before = atomicAdd(p, 1);
    __threadfence();
    return before;
}
__forceinline__ int __ffs(u32 x) { return __builtin_ffs((int)x); }
__forceinline__ int __ffsll(u64 x) { return __builtin_ffsll((long long)x); }
__forceinline__ int __popc(u32 x) { return __builtin_popcount(x); }
__forceinline__ int __popcll(u64 x) { return __builtin_popcountll(x); }
__forceinline__ int __clz(u32 x) { return x ? __builtin_clz(x) : 32; }
__forceinline__ int __clzll(u64 x) { return x ? __builtin_clzll(x) : 64; }
__forceinline__ u32 __umulhi(u32 a, u32 b) { return (u32)((u64)a * b >> 32); }
__forceinline__ u32 __funnelshift_r(u32 low, u32 high, u32 by) { return (u32)(((u64)high << 32 | low) >> (by & 31)); }
__forceinline__ u32 __byte_perm(u32 x, u32 y, u32 selector)
{
    u32 result = 0;
    for (int i = 0; i < 4; i++)
        result |= (u32)(((u64)y << 32 | x) >> (selector >> 4 * i & 7) * 8 & 255) << 8 * i;
    return result;
}
#define EMULATE_MIN_MAX(T)                                                                                   \
    constexpr __forceinline__ T min(T a, T b) { return b < a ? b : a; }                                      \
    constexpr __forceinline__ T max(T a, T b) { return a < b ? b : a; }
EMULATE_MIN_MAX(int)
EMULATE_MIN_MAX(u32)
EMULATE_MIN_MAX(long)
EMULATE_MIN_MAX(unsigned long)
EMULATE_MIN_MAX(long long)
EMULATE_MIN_MAX(u64)
#undef EMULATE_MIN_MAX
__forceinline__ float min(float a, float b) { return fminf(a, b); }
__forceinline__ float max(float a, float b) { return fmaxf(a, b); }
__forceinline__ double min(double a, double b) { return fmin(a, b); }
__forceinline__ double max(double a, double b) { return fmax(a, b); }
template <class T> __forceinline__ T __ldg(const T *p) { return *p; }
template <class T> __forceinline__ T __ldcg(const T *p) { return *p; }
template <class T> __forceinline__ T __ldcs(const T *p) { return *p; }
template <class T> __forceinline__ void __stcg(T *p, T value) { *p = value; }

#endif
