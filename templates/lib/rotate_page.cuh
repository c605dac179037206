// Rotations of a page before it is sealed, in fp32 with one rounding per operation and in a fixed order (runtime/cpu/rotate.c), so that the
// bytes are the same everywhere. What is rotated is rounded to the element type, and limited to what that can hold.
__device__ __forceinline__ u16 limited_element(float x) {
    constexpr float most = DTYPE == 0 ? 65504.0f : 3.3895313892515355e38f;
    return float_to_element(fminf(fmaxf(x, -most), most)); // a NaN becomes -most
}

//@ if KEY_ROTATION == 1 or VALUE_ROTATION == 1 then
// Hadamard: sums and differences of the channels whose numbers differ in the lowest bit, then in the next, and so on; at the end divided
// by sqrt(D). A warp takes a token, a lane neighbouring channels.
__device__ __forceinline__ void hadamard_page(Work *work) {
    static_assert((D & (D - 1)) == 0, "a power of two");
    constexpr int EACH = D / 32;
    constexpr float share = D == 64 ? 0.125f : D == 128 ? 0.08838834764831845f : 0.0625f;
    const int lane = threadIdx.x % 32;
    for (int token = threadIdx.x / 32; token < PAGE; token += THREADS / 32) {
        u32 *pairs = (u32 *)(work->element + token * ROW) + lane * (EACH / 2);
        float x[EACH];
#pragma unroll
        for (int j = 0; j < EACH; j += 2)
            x[j] = element_to_float((u16)pairs[j / 2]), x[j + 1] = element_to_float((u16)(pairs[j / 2] >> 16));
#pragma unroll
        for (int h = 1; h < EACH; h *= 2)
#pragma unroll
            for (int j = 0; j < EACH; j++)
                if (!(j & h)) {
                    const float a = x[j], b = x[j + h];
                    x[j] = __fadd_rn(a, b), x[j + h] = __fsub_rn(a, b);
                }
#pragma unroll
        for (int h = 1; h < 32; h *= 2)
#pragma unroll
            for (int j = 0; j < EACH; j++) {
                const float other = __shfl_xor_sync(~0u, x[j], h);
                x[j] = lane & h ? __fsub_rn(other, x[j]) : __fadd_rn(x[j], other);
            }
#pragma unroll
        for (int j = 0; j < EACH; j += 2)
            pairs[j / 2] = limited_element(__fmul_rn(x[j], share)) | (u32)limited_element(__fmul_rn(x[j + 1], share)) << 16;
    }
}

//@ end
//@ if KEY_ROTATION == 2 or VALUE_ROTATION == 2 then
// A matrix R, fp16: channel j of a token becomes the sum of R[j, i] x[i] from i = 0 on. `transposed` has [i, j]. A warp takes some tokens at
// once, a lane every 32nd channel.
__device__ __forceinline__ void multiply_page(Work *work, const u16 *transposed) {
    constexpr int EACH = D / 32, TOKENS = D > 96 ? 4 : 8;
    static_assert(PAGE % TOKENS == 0, "whole runs");
    const int lane = threadIdx.x % 32;
    for (int first = threadIdx.x / 32 * TOKENS; first < PAGE; first += THREADS / 32 * TOKENS) {
        u16 *rows = work->element + first * ROW;
        float sum[TOKENS][EACH];
#pragma unroll
        for (int t = 0; t < TOKENS; t++)
#pragma unroll
            for (int m = 0; m < EACH; m++) sum[t][m] = 0;
#pragma unroll 2
        for (int i = 0; i < D; i++) {
            float r[EACH];
#pragma unroll
            for (int m = 0; m < EACH; m++) r[m] = half_to_float(transposed[i * D + m * 32 + lane]);
#pragma unroll
            for (int t = 0; t < TOKENS; t++) {
                const float x = element_to_float(rows[t * ROW + i]);
#pragma unroll
                for (int m = 0; m < EACH; m++) sum[t][m] = __fadd_rn(sum[t][m], __fmul_rn(r[m], x));
            }
        }
        __syncwarp(); // every lane has read the rows
#pragma unroll
        for (int t = 0; t < TOKENS; t++)
#pragma unroll
            for (int m = 0; m < EACH; m++) rows[t * ROW + m * 32 + lane] = limited_element(sum[t][m]);
        __syncwarp();
    }
}

//@ end
template <int kind> __device__ __forceinline__ void rotate_part(Work *work, int page, const u8 *matrix) {
    if constexpr (kind == 0) return;
    clean_exact(work, page);
//@ if KEY_ROTATION == 1 or VALUE_ROTATION == 1 then
    if constexpr (kind == 1) hadamard_page(work);
//@ end
//@ if KEY_ROTATION == 2 or VALUE_ROTATION == 2 then
    if constexpr (kind == 2) multiply_page(work, (const u16 *)matrix + D * D);
//@ end
    __syncthreads();
}

// The page of keys or values in `work`, which is finite afterwards.
__device__ __forceinline__ void rotate_unit(Work *work, const kt_view &view, bool keys, int page) {
    const u8 *table = view.calibration + blockIdx.y * TABLE_BYTES;
    if (keys) rotate_part<KEY_ROTATION>(work, page, table + TABLE_KEY_ROTATION);
    else rotate_part<VALUE_ROTATION>(work, page, table + TABLE_VALUE_ROTATION);
}
