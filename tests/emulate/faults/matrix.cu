#include "common.h"
// Products, of halves (with a transpose) and of bytes, against plain loops: out[i] and out[512 + i] must be equal. Grid 1, block 32.
//   1  two fragments of a swapped    2  a transpose left out    3  the columns of b off by one word    4  as 1, of bytes
extern "C" __global__ void __launch_bounds__(32) matrix(const __grid_constant__ planted p)
{
    u16 *a = (u16 *)shared_memory(), *b = a + 256; // a [16, 16], b [8 columns, 16 rows]
    const int lane = threadIdx.x, g = lane >> 2, t = lane & 3, fault = p.fault;
    for (int i = lane; i < 384; i += 32)
        a[i] = float_to_half((float)((int)(p.in[i] % 37) - 18) * 0.125f);
    __syncwarp();
    auto pair = [](const u16 *x) { return x[0] | (u32)x[1] << 16; };
    const u32 a0 = pair(a + g * 16 + 2 * t), a1 = pair(a + (g + 8) * 16 + 2 * t);
    const u32 a2 = pair(a + g * 16 + 2 * t + 8), a3 = pair(a + (g + 8) * 16 + 2 * t + 8);
    // The rows of b's transpose are loaded as an A-like fragment and turned.
    u32 b0 = 0, b1 = 0;
    for (int e = 0; e < 2; e++) {
        b0 |= (u32)b[(2 * t + e) * 16 + g] << 16 * e;
        b1 |= (u32)b[(2 * t + e) * 16 + g + 8] << 16 * e;
    }
    b0 = transpose8(b0);
    b1 = fault == 2 ? b1 : transpose8(b1);
    if (fault == 3)
        b0 = __shfl_sync(~0u, b0, (lane + 1) & 31);
    float c[4] = {1, 2, 3, 4};
    if (fault == 1)
        mma_half(c, a0, a2, a1, a3, b0, b1);
    else
        mma_half(c, a0, a1, a2, a3, b0, b1);
    for (int i = 0; i < 4; i++) {
        const int row = g + 8 * (i / 2), column = 2 * t + i % 2;
        float sum = (float)(i + 1);
        for (int k = 0; k < 16; k++)
            sum += half_to_float(a[row * 16 + k]) * half_to_float(b[column * 16 + k]);
        p.out[lane * 4 + i] = __float_as_uint(c[i]);
        p.out[512 + lane * 4 + i] = __float_as_uint(sum);
    }
    const u8 *bytes = (const u8 *)p.in, *others = bytes + 512; // [16, 32], [8 columns, 32 rows]
    auto four = [](const u8 *x) { return x[0] | (u32)x[1] << 8 | (u32)x[2] << 16 | (u32)x[3] << 24; };
    const u32 low0 = four(bytes + g * 32 + 4 * t), low1 = four(bytes + (g + 8) * 32 + 4 * t);
    const u32 high0 = four(bytes + g * 32 + 4 * t + 16), high1 = four(bytes + (g + 8) * 32 + 4 * t + 16);
    const u32 other0 = four(others + g * 32 + 4 * t), other1 = four(others + g * 32 + 4 * t + 16);
    int d[4] = {1, -2, 3, -4};
    if (fault == 4)
        mma_bytes(d, low0, high0, low1, high1, other0, other1);
    else
        mma_bytes(d, low0, low1, high0, high1, other0, other1);
    for (int i = 0; i < 4; i++) {
        const int row = g + 8 * (i / 2), column = 2 * t + i % 2;
        int sum = i & 1 ? -i - 1 : i + 1;
        for (int k = 0; k < 32; k++)
            sum += bytes[row * 32 + k] * (signed char)others[column * 32 + k];
        p.out[128 + lane * 4 + i] = (u32)d[i];
        p.out[640 + lane * 4 + i] = (u32)sum;
    }
}
