// 4-bit weights x FP16 activations, for 1 .. 8 rows of activations.
//
//   y[m][n] = sum_g scale[n][g] * sum_{k in g} value[n][k] * x[m][k]
//   value[n][k] = table[selector[n][g]][code[n][k]] - zero[n][g]
//
// in float32. S warps share a row of W: its 16-byte chunks (32 codes, all of one group) go round
// the 32 * S lanes, each of which sums its chunks in order; the lanes' sums meet by shuffles and
// the warps' in shared memory. Nothing depends on timing: a result has the same bits every time.
#pragma once

#include "ptx.cuh"

constexpr int GEMV_WARPS = 4;  // of a block
constexpr int GEMV_TABLES = 4;  // at most

struct GemvArgs {
    const uint8_t* codes;      // [n][k / 2], low nibble first; 16-byte aligned
    const float* scales;       // [n][groups]
    const float* tables;       // [tables][16]
    const uint8_t* selectors;  // [n][groups], or null: table 0
    const float* zeros;        // [n][groups], or null: 0
    const uint16_t* x;         // [m][k], binary16; 16-byte aligned
    float* y;                  // [m][n]
    int n, k, group_size, groups, tables_used;
};

template <int M, int S>
KERNEL void weight_only_gemv_kernel(GemvArgs args) {
    float* const tables = reinterpret_cast<float*>(shared_memory());  // [GEMV_TABLES][16]
    float* const parts = tables + 16 * GEMV_TABLES;                   // [GEMV_WARPS][M]
    const int thread = static_cast<int>(threadIdx.x);
    const int lane = thread % 32, warp = thread / 32, share = warp % S;
    const int n = static_cast<int>(blockIdx.x) * (GEMV_WARPS / S) + warp / S;

    if (thread < 16 * args.tables_used) tables[thread] = load(args.tables + thread);
    __syncthreads();

    float sums[M] = {};
    if (n < args.n) {
        const int chunks = args.k / 32;
        for (int chunk = share * 32 + lane; chunk < chunks; chunk += 32 * S) {
            const Words4 codes =
                load_16(args.codes + (static_cast<size_t>(n) * chunks + chunk) * 16);
            const size_t group =
                static_cast<size_t>(n) * args.groups + chunk * 32 / args.group_size;
            const float* const table =
                tables + (args.selectors != nullptr ? 16 * load(args.selectors + group) : 0);
            const float zero = args.zeros != nullptr ? load(args.zeros + group) : 0.0f;
            const float scale = load(args.scales + group);
            float chunk_sums[M] = {};
            UNROLL
            for (int part = 0; part < 4; ++part) {  // eight codes: a word of W, 16 bytes of x
                float values[8];
                UNROLL
                for (int t = 0; t < 8; ++t) {
                    values[t] = table[codes.word[part] >> 4 * t & 15] - zero;
                }
                UNROLL
                for (int m = 0; m < M; ++m) {
                    const size_t at = static_cast<size_t>(m) * args.k + chunk * 32 + part * 8;
                    const Words4 x = load_16(args.x + at);
                    UNROLL
                    for (int t = 0; t < 8; ++t) {
                        const float act = half_value(x.word[t / 2] >> 16 * (t % 2) & 0xFFFF);
                        chunk_sums[m] = fmaf(values[t], act, chunk_sums[m]);
                    }
                }
            }
            UNROLL
            for (int m = 0; m < M; ++m) sums[m] = fmaf(scale, chunk_sums[m], sums[m]);
        }
    }
    UNROLL
    for (int m = 0; m < M; ++m) {
        for (int step = 16; step > 0; step /= 2) {
            sums[m] += __shfl_xor_sync(0xFFFFFFFFu, sums[m], step);
        }
        if (lane == 0) parts[warp * M + m] = sums[m];
    }
    __syncthreads();
    // The first lanes of a row's first warp add what the row's S warps found.
    if (share == 0 && lane < M && n < args.n) {
        float total = parts[warp * M + lane];
        for (int s = 1; s < S; ++s) total += parts[(warp + s) * M + lane];
        store(args.y + static_cast<size_t>(lane) * args.n + n, total);
    }
}
