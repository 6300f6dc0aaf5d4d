// Sums of products of bit planes on the binary tensor cores.
//
//   Y[g][m][n] = sum_{i < p} sum_{j < q} a_i b_j popcount(X[i][m][g] AND W[j][n][g])
//
// with a_i = 2^i and b_j = 2^j, the top plane's negative where an operand is two's complement.
// Planes are uint32 [plane][row][k_words], element k in bit k % 32 of word k / 32; group g is words
// [g * group_words, (g + 1) * group_words). Y is int32 and wraps.
//
// Planes of X are extra rows of the matrix product and planes of W extra columns, as in ABQ-LLM
// (arXiv 2408.08554): a block's row r is plane r / BM of row r % BM, likewise for columns. p and q
// are arguments, not template parameters as there, so one instantiation serves all precisions; rows
// beyond p * BM stay zero.
#pragma once

#include "ptx.cuh"

struct GemmArgs {
    const uint32_t* x;  // [x_bits][m][k_words], 16-byte aligned
    const uint32_t* w;  // [w_bits][n][k_words], 16-byte aligned
    int32_t* y;         // [groups][m][n]
    int m, n, k_words, group_words;
    int x_bits, w_bits;
    int x_signed, w_signed;
};

// m8n8k128 as the kernel sees it: sizes, and where a lane's registers lie (ptx.cuh).
struct Mma8 {
    static constexpr int M = 8, N = 8, WORDS = 4, A = 1, B = 1, C = 2;
    static DEVICE void multiply(int (&c)[C], const uint32_t (&a)[A], const uint32_t (&b)[B]) {
        mma_m8n8k128(c, a, b);
    }
};

struct Mma16 {
    static constexpr int M = 16, N = 8, WORDS = 8, A = 4, B = 2, C = 4;
    static DEVICE void multiply(int (&c)[C], const uint32_t (&a)[A], const uint32_t (&b)[B]) {
        mma_m16n8k256(c, a, b);
    }
};

template <int MMA>
struct Instruction;
template <>
struct Instruction<8> {
    using type = Mma8;
};
template <>
struct Instruction<16> {
    using type = Mma16;
};

template <int MMA, int ROWS_, int COLS_, int DEPTH, int ROW_WARPS_, int COL_WARPS_, int STAGES_>
struct Tile {
    using Mma = typename Instruction<MMA>::type;
    static constexpr int ROWS = ROWS_, COLS = COLS_, STAGES = STAGES_;
    static constexpr int ROW_WARPS = ROW_WARPS_, COL_WARPS = COL_WARPS_;
    static constexpr int THREADS = 32 * ROW_WARPS * COL_WARPS;
    static constexpr int WORDS = DEPTH / 32;
    // Words from row to row. An odd multiple of four sends the 8 rows x 4 words that a warp reads
    // at once to 32 different banks, and keeps rows on 16 bytes for the copies.
    static constexpr int PITCH = WORDS % 8 == 4 ? WORDS : WORDS + 4;
    static constexpr int STAGE_WORDS = (ROWS + COLS) * PITCH;
    // Rows of the result tile in shared memory; 8 more, so that the two rows that a half warp
    // writes do not meet in the same banks.
    static constexpr int SUM_PITCH = COLS + 8;
    // MMA tiles of a warp.
    static constexpr int TILES_M = ROWS / ROW_WARPS / Mma::M;
    static constexpr int TILES_N = COLS / COL_WARPS / Mma::N;
    static constexpr size_t COPY_BYTES = sizeof(uint32_t) * STAGES * STAGE_WORDS;
    static constexpr size_t SUM_BYTES = sizeof(int32_t) * ROWS * SUM_PITCH;
    static constexpr size_t BYTES = COPY_BYTES > SUM_BYTES ? COPY_BYTES : SUM_BYTES;

    static_assert(ROWS % (ROW_WARPS * Mma::M) == 0 && COLS % (COL_WARPS * Mma::N) == 0,
                  "warps must share a block's tile evenly");
    static_assert(WORDS % Mma::WORDS == 0, "DEPTH must be a multiple of the instruction's k");
    static_assert(ROWS >= 8 && COLS >= 8, "8 planes must fit in a block");
    static_assert(STAGES >= 2 && BYTES <= 99 * 1024, "more than a block may have on sm_86");
};

// Start the copies of words [word, word + T::WORDS) of a block's rows to one stage. Zeros stand for
// rows outside the operand or the planes, and for words from `end`, the end of the group.
template <int ROWS, class T>
DEVICE void copy_rows(uint32_t* stage, const uint32_t* planes, int bits, int rows_per_plane,
                      int first_row, int rows, int k_words, int word, int end) {
    constexpr int CHUNKS = T::WORDS / 4;
    for (int i = static_cast<int>(threadIdx.x); i < ROWS * CHUNKS; i += T::THREADS) {
        const int r = i / CHUNKS, chunk = i % CHUNKS;
        const int plane = r / rows_per_plane;
        const int row = first_row + r % rows_per_plane;
        const int at = word + 4 * chunk;
        const bool inside = plane < bits && row < rows && at < end;
        const size_t offset =
            inside ? (static_cast<size_t>(plane) * rows + row) * k_words + at : 0;
        copy_async_16(stage + r * T::PITCH + 4 * chunk, planes + offset, inside ? 16 : 0);
    }
}

template <class T>
KERNEL void binary_gemm_kernel(GemmArgs args) {
    using Mma = typename T::Mma;
    uint32_t* const stages = reinterpret_cast<uint32_t*>(shared_memory());
    const int block_m = T::ROWS / args.x_bits, block_n = T::COLS / args.w_bits;
    const int first_m = static_cast<int>(blockIdx.y) * block_m;
    const int first_n = static_cast<int>(blockIdx.x) * block_n;
    const int group = static_cast<int>(blockIdx.z);
    const int begin = group * args.group_words, end = begin + args.group_words;
    const int steps = (args.group_words + T::WORDS - 1) / T::WORDS;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int warp_row = warp / T::COL_WARPS * (T::TILES_M * Mma::M);
    const int warp_col = warp % T::COL_WARPS * (T::TILES_N * Mma::N);

    int sums[T::TILES_M][T::TILES_N][Mma::C] = {};

    auto copy_step = [&](int step) {
        if (step < steps) {
            uint32_t* const stage = stages + step % T::STAGES * T::STAGE_WORDS;
            const int word = begin + step * T::WORDS;
            copy_rows<T::ROWS, T>(stage, args.x, args.x_bits, block_m, first_m, args.m,
                                  args.k_words, word, end);
            copy_rows<T::COLS, T>(stage + T::ROWS * T::PITCH, args.w, args.w_bits, block_n, first_n,
                                  args.n, args.k_words, word, end);
        }
        copy_commit();  // an empty group too, so that groups count steps
    };

    for (int step = 0; step < T::STAGES - 1; ++step) copy_step(step);
    for (int step = 0; step < steps; ++step) {
        copy_wait<T::STAGES - 2>();
        // Others' copies of this step are there, and all have left the stage that is filled next.
        __syncthreads();
        copy_step(step + T::STAGES - 1);
        const uint32_t* const x = stages + step % T::STAGES * T::STAGE_WORDS;
        const uint32_t* const w = x + T::ROWS * T::PITCH;
        UNROLL
        for (int k = 0; k < T::WORDS; k += Mma::WORDS) {
            uint32_t a[T::TILES_M][Mma::A], b[T::TILES_N][Mma::B];
            UNROLL
            for (int i = 0; i < T::TILES_M; ++i) {
                UNROLL
                for (int r = 0; r < Mma::A; ++r) {
                    const int row = warp_row + i * Mma::M + lane / 4 + 8 * (r % 2);
                    a[i][r] = x[row * T::PITCH + k + lane % 4 + 4 * (r / 2)];
                }
            }
            UNROLL
            for (int j = 0; j < T::TILES_N; ++j) {
                UNROLL
                for (int r = 0; r < Mma::B; ++r) {
                    const int col = warp_col + j * Mma::N + lane / 4;
                    b[j][r] = w[col * T::PITCH + k + lane % 4 + 4 * r];
                }
            }
            UNROLL
            for (int i = 0; i < T::TILES_M; ++i) {
                UNROLL
                for (int j = 0; j < T::TILES_N; ++j) Mma::multiply(sums[i][j], a[i], b[j]);
            }
        }
    }

    // The planes' sums meet in shared memory, over the stages: all must be done with those, and no
    // copy may be under way.
    copy_wait<0>();
    __syncthreads();
    int32_t* const table = reinterpret_cast<int32_t*>(stages);
    UNROLL
    for (int i = 0; i < T::TILES_M; ++i) {
        UNROLL
        for (int j = 0; j < T::TILES_N; ++j) {
            UNROLL
            for (int r = 0; r < Mma::C; ++r) {
                const int row = warp_row + i * Mma::M + lane / 4 + 8 * (r / 2);
                const int col = warp_col + j * Mma::N + 2 * (lane % 4) + r % 2;
                table[row * T::SUM_PITCH + col] = sums[i][j][r];
            }
        }
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < block_m * block_n; i += T::THREADS) {
        const int m = i / block_n, n = i % block_n;
        if (first_m + m >= args.m || first_n + n >= args.n) continue;
        uint32_t total = 0;  // unsigned, whose overflow is defined: it wraps
        for (int p = 0; p < args.x_bits; ++p) {
            uint32_t row_sum = 0;
            for (int q = 0; q < args.w_bits; ++q) {
                const uint32_t ones = static_cast<uint32_t>(
                    table[(p * block_m + m) * T::SUM_PITCH + q * block_n + n]);
                const bool negative = args.w_signed && q == args.w_bits - 1;
                row_sum += negative ? 0u - (ones << q) : ones << q;
            }
            const bool negative = args.x_signed && p == args.x_bits - 1;
            total += negative ? 0u - (row_sum << p) : row_sum << p;
        }
        const size_t row = static_cast<size_t>(group) * args.m + first_m + m;
        store(args.y + row * args.n + first_n + n, static_cast<int32_t>(total));
    }
}
