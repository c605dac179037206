#include "common.h"
// An 8 x 16 by 16 x 8 product and a transpose, against plain loops: out[i] and out[512 + i] must be equal. Grid 1, block 32.
//   1  two fragments of a swapped    2  a transpose left out    3  the columns of b off by one word
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
}
