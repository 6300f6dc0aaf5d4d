// The weight-only GEMV's C entry points.
#include "entry.cuh"
#include "weight_only_gemv.cuh"

namespace {

template <int M, int S>
int run_gemv(const GemvArgs& args, void* stream) {
    constexpr int ROWS = GEMV_WARPS / S;
    const dim3 grid((args.n + ROWS - 1) / ROWS);
    const size_t bytes = sizeof(float) * (16 * GEMV_TABLES + GEMV_WARPS * M);
    return launch(weight_only_gemv_kernel<M, S>, grid, 32 * GEMV_WARPS, bytes, stream, args);
}

template <int M>
int run_gemv(int warps_per_row, const GemvArgs& args, void* stream) {
    switch (warps_per_row) {
        case 1: return run_gemv<M, 1>(args, stream);
        case 2: return run_gemv<M, 2>(args, stream);
        case 4: return run_gemv<M, 4>(args, stream);
        default: return INVALID_VALUE;
    }
}

}  // namespace

// y = W x (weight_only_gemv.cuh). k and group_size are multiples of 32, the last group may be
// shorter; `selectors` and `zeros` may be null; warps_per_row is 1, 2 or 4.
EXPORT int bitwright_weight_only_gemv(const uint8_t* codes, const float* scales,
                                      const float* tables, const uint8_t* selectors,
                                      const float* zeros, const uint16_t* x, float* y, int m, int n,
                                      int k, int group_size, int table_count, int warps_per_row,
                                      void* stream) {
    if (n <= 0 || k <= 0 || k % 32 != 0 || group_size <= 0 || group_size % 32 != 0 ||
        table_count < 1 || table_count > GEMV_TABLES) {
        return INVALID_VALUE;
    }
    const int groups = (k - 1) / group_size + 1;
    const GemvArgs args{codes, scales, tables, selectors, zeros, x,          y,
                        n,     k,      group_size, groups, table_count};
    switch (m) {
        case 1: return run_gemv<1>(warps_per_row, args, stream);
        case 2: return run_gemv<2>(warps_per_row, args, stream);
        case 3: return run_gemv<3>(warps_per_row, args, stream);
        case 4: return run_gemv<4>(warps_per_row, args, stream);
        case 5: return run_gemv<5>(warps_per_row, args, stream);
        case 6: return run_gemv<6>(warps_per_row, args, stream);
        case 7: return run_gemv<7>(warps_per_row, args, stream);
        case 8: return run_gemv<8>(warps_per_row, args, stream);
        default: return INVALID_VALUE;
    }
}

EXPORT int bitwright_weight_only_gemv_runs(int runs, const uint8_t* codes, const float* scales,
                                           const float* tables, const uint8_t* selectors,
                                           const float* zeros, const uint16_t* x, float* y, int m,
                                           int n, int k, int group_size, int table_count,
                                           int warps_per_row, void* stream) {
    for (int r = 0; r < runs; ++r) {
        const int error =
            bitwright_weight_only_gemv(codes, scales, tables, selectors, zeros, x, y, m, n, k,
                                       group_size, table_count, warps_per_row, stream);
        if (error != 0) return error;
    }
    return 0;
}
