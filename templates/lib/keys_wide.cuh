    // q' in halves, 16 rows a step; rows 2 c + 8 and the next meet codes times 16. What rounding leaves over counts for codes in the
    // middle of theirs, and goes to the zeros' share: so only how far codes are from there meets it.
    __device__ __forceinline__ void build_halves(const Query &query, const u8 *block, const u16 *scales, int lane) {
        constexpr float middle = ((1 << KEY_BITS) - 1) * 0.5f;
        const int c = lane & 3, exponent = max((int)(signed char)block[KT_HEADER_KEY_EXPONENT], -15);
        const float unit = power_of_two(-exponent);
        const u32 first = pack_half(unit, unit), second = pack_half(unit * 0.0625f, unit * 0.0625f); // of rows 2 c, of rows 2 c + 8
        u32 left[HALVES][2];
#pragma unroll
        for (int h = 0; h < HALVES; h++) left[h][0] = left[h][1] = 0;
        // q times scale, rounded; scales at most 1, of rows 2 c + 8 a sixteenth, times the weights of higher planes.
        auto round = [&](int h, int j, u32 q, u32 scale, float codes_middle) {
            const u32 y = half2_multiply(q, scale), over = half2_multiply_add(q, scale, half2_negate(y));
            left[h][j] = half2_multiply_add(over, pack_half(codes_middle, codes_middle), left[h][j]);
            return y;
        };
#pragma unroll
        for (int k = 0; k < D / 32; k++) {
//@ if KEY_META8 == 1 then
            const uint4 m = halves_of_bytes((const u8 *)scales + k * 32 + c * 8, exponents_of(block, true).scale);
//@ else
            const uint4 m = *(const uint4 *)(scales + k * 32 + c * 8);
//@ end
            const u32 s0 = half2_multiply(m.x, first), s1 = half2_multiply(m.y, second);
            const u32 s2 = half2_multiply(m.z, first), s3 = half2_multiply(m.w, second);
            u32 y[HALVES][4];
#pragma unroll
            for (int h = 0; h < HALVES; h++) {
                const uint4 q = query.four(h, k, lane);
                y[h][0] = round(h, 0, q.x, s0, middle), y[h][1] = round(h, 1, q.y, s1, middle);
                y[h][2] = round(h, 0, q.z, s2, middle), y[h][3] = round(h, 1, q.w, s3, middle);
            }
            stored[2 * k * 32 + lane] = make_uint4(y[0][0], y[0][1], y[1][0], y[1][1]);
            stored[(2 * k + 1) * 32 + lane] = make_uint4(y[0][2], y[0][3], y[1][2], y[1][3]);
        }
#pragma unroll
        for (int k = 0; k < BOOST_TILES; k++) {
            u32 y[HALVES][2];
#pragma unroll
            for (int j = 0; j < 2; j++) {
                u32 q[HALVES], scale, weight;
                gather(q, scale, weight, query, block, scales, k, j, lane);
                scale = half2_multiply(half2_multiply(scale, j ? second : first), weight);
#pragma unroll
                for (int h = 0; h < HALVES; h++) y[h][j] = round(h, j, q[h], scale, k < EXTRA_TILES ? 1.5f : 0.5f);
            }
            stored[(KD + k) * 32 + lane] = make_uint4(y[0][0], y[0][1], y[1][0], y[1][1]);
        }
#pragma unroll
        for (int h = 0; h < HALVES; h++) {
            const u32 sum = half2_multiply_add(left[h][1], 0x4c004c00u, left[h][0]); // 16 times
            const float back = power_of_two(exponent);
            float share = (half_to_float((u16)sum) + half_to_float((u16)(sum >> 16))) * back;
            share += __shfl_xor_sync(~0u, share, 1);
            share += __shfl_xor_sync(~0u, share, 2);
            factor0[h] = factor1[h] = back * 16777216.0f; // codes are subnormal halves
            zero0[h] = __shfl_sync(~0u, share, 8 * c), zero1[h] = __shfl_sync(~0u, share, 8 * c + 4); // lanes of columns 2 c and 2 c + 1
        }
    }

