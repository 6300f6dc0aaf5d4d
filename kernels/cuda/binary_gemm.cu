// The bit-plane GEMM's C entry points.
#include "binary_gemm.cuh"
#include "entry.cuh"
#include "tiles.cuh"

namespace {

template <class T>
int run_tile(const GemmArgs& args, void* stream) {
    const int block_m = T::ROWS / args.x_bits, block_n = T::COLS / args.w_bits;
    const dim3 grid((args.n + block_n - 1) / block_n, (args.m + block_m - 1) / block_m,
                    args.k_words / args.group_words);
    if (grid.y > 65535 || grid.z > 65535) return INVALID_VALUE;  // CUDA's limits
    return launch(binary_gemm_kernel<T>, grid, T::THREADS, T::BYTES, stream, args);
}

using Run = int (*)(const GemmArgs&, void*);

#define BITWRIGHT_RUN(...) run_tile<Tile<__VA_ARGS__>>,
constexpr Run RUNS[] = {BITWRIGHT_TILES(BITWRIGHT_RUN)};
#undef BITWRIGHT_RUN

#define BITWRIGHT_SHAPE(...) {__VA_ARGS__},
constexpr int SHAPES[][7] = {BITWRIGHT_TILES(BITWRIGHT_SHAPE)};
#undef BITWRIGHT_SHAPE

constexpr int TILES = sizeof(RUNS) / sizeof(RUNS[0]);

bool valid(int tile, const GemmArgs& a) {
    return tile >= 0 && tile < TILES && a.m > 0 && a.n > 0 && a.group_words > 0 &&
           a.group_words % 4 == 0 && a.k_words > 0 && a.k_words % a.group_words == 0 &&
           a.x_bits >= 1 && a.x_bits <= 8 && a.w_bits >= 1 && a.w_bits <= 8;
}

}  // namespace

// Number of instantiated tiles.
EXPORT int bitwright_tiles() { return TILES; }

// The seven numbers of a tile in the table's order; cudaErrorInvalidValue if there is no such tile.
EXPORT int bitwright_tile(int tile, int* numbers) {
    if (tile < 0 || tile >= TILES) return INVALID_VALUE;
    for (int i = 0; i < 7; ++i) numbers[i] = SHAPES[tile][i];
    return 0;
}

// Group sums of bit planes (binary_gemm.cuh) with one tile. x, w and y are device memory.
EXPORT int bitwright_binary_gemm(int tile, const uint32_t* x, const uint32_t* w, int32_t* y, int m,
                                 int n, int k_words, int group_words, int x_bits, int w_bits,
                                 int x_signed, int w_signed, void* stream) {
    const GemmArgs args{x, w, y, m, n, k_words, group_words, x_bits, w_bits, x_signed, w_signed};
    return valid(tile, args) ? RUNS[tile](args, stream) : INVALID_VALUE;
}

// `runs` launches in a row; launch r reads copy r % w_copies of W, one after the other in memory.
// With more copies than the L2 cache holds, every launch reads its weights from DRAM.
EXPORT int bitwright_binary_gemm_runs(int runs, int w_copies, int tile, const uint32_t* x,
                                      const uint32_t* w, int32_t* y, int m, int n, int k_words,
                                      int group_words, int x_bits, int w_bits, int x_signed,
                                      int w_signed, void* stream) {
    const size_t copy = static_cast<size_t>(w_bits) * n * k_words;
    for (int r = 0; r < runs; ++r) {
        const int error = bitwright_binary_gemm(tile, x, w + r % w_copies * copy, y, m, n, k_words,
                                                group_words, x_bits, w_bits, x_signed, w_signed,
                                                stream);
        if (error != 0) return error;
    }
    return 0;
}
