// Rotations in attend: of the query, which meets rotated keys, and of the output, where values are rotated.

//@ if KEY_ROTATION == 1 or VALUE_ROTATION == 1 then
constexpr float HADAMARD_SHARE = D == 64 ? 0.125f : D == 128 ? 0.08838834764831845f : 0.0625f; // 1 / sqrt(D)

// Sums and differences of the registers whose numbers differ in one bit, for every bit, then of the lanes, for the bits of `lanes`.
template <int count> __device__ __forceinline__ void hadamard(float (&x)[count], int lane, int lanes) {
#pragma unroll
    for (int h = 1; h < count; h *= 2)
#pragma unroll
        for (int n = 0; n < count; n++)
            if (!(n & h)) {
                const float a = x[n], b = x[n + h];
                x[n] = a + b, x[n + h] = a - b;
            }
#pragma unroll
    for (int h = 1; h < 32; h *= 2)
        if (lanes & h)
#pragma unroll
            for (int n = 0; n < count; n++) {
                const float other = __shfl_xor_sync(~0u, x[n], h);
                x[n] = lane & h ? other - x[n] : x[n] + other;
            }
}
//@ end
//@ if KEY_ROTATION == 2 or VALUE_ROTATION == 2 then
// Channels channel_of(tile, g) and channel_of(tile, g + 8) of a matrix [D, D] in fp16 times the columns of b, which are channels.
__device__ __forceinline__ void multiply_tile(float (&sum)[4], const u16 *matrix, int tile, const u32 (&b)[2 * KD], int lane) {
    const int g = lane >> 2, c = lane & 3;
    const u16 *x = matrix + channel_of(tile, g) * D + c * 8, *y = matrix + channel_of(tile, g + 8) * D + c * 8;
#pragma unroll
    for (int k = 0; k < D / 32; k++) {
        const uint4 v = *(const uint4 *)(x + k * 32), w = *(const uint4 *)(y + k * 32);
        mma_half(sum, v.x, w.x, v.y, w.y, b[4 * k], b[4 * k + 1]);
        mma_half(sum, v.z, w.z, v.w, w.w, b[4 * k + 2], b[4 * k + 3]);
    }
}
//@ end
//@ if KEY_ROTATION > 0 then

// Query::half, rotated.
__device__ __forceinline__ void rotate_query(u32 (&half)[2 * KD], const u8 *matrix, int lane) {
//@ if KEY_ROTATION == 1 then
    float x[4 * KD]; // of a channel's bits 0, 1, 2, 5 .. are a register's number, bits 3 and 4 the lane's c
#pragma unroll
    for (int n = 0; n < 2 * KD; n++) x[2 * n] = half_to_float((u16)half[n]), x[2 * n + 1] = half_to_float((u16)(half[n] >> 16));
    hadamard(x, lane, 3);
#pragma unroll
    for (int n = 0; n < 2 * KD; n++) half[n] = pack_half(x[2 * n] * HADAMARD_SHARE, x[2 * n + 1] * HADAMARD_SHARE);
//@ else
    u32 rotated[2 * KD];
#pragma unroll
    for (int i = 0; i < KD; i++) {
        float sum[4] = {0, 0, 0, 0};
        multiply_tile(sum, (const u16 *)matrix, i, half, lane);
        rotated[2 * i] = transpose8(pack_half(sum[0], sum[1])), rotated[2 * i + 1] = transpose8(pack_half(sum[2], sum[3]));
    }
#pragma unroll
    for (int n = 0; n < 2 * KD; n++) half[n] = rotated[n];
//@ end
}
//@ end
