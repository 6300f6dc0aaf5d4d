// The tile shapes for which the bit-plane GEMM is instantiated.
//
// TILE(MMA, ROWS, COLS, DEPTH, ROW_WARPS, COL_WARPS, STAGES): a block multiplies ROWS bit-plane
// rows of the activations by COLS bit-plane rows of the weights, DEPTH bits of k at a time, with
// ROW_WARPS x COL_WARPS warps and a pipeline of STAGES copies. MMA is the rows of the instruction:
// 8 for m8n8k128, 16 for m16n8k256. With p-bit activations and q-bit weights a block gives
// BM = ROWS / p rows and BN = COLS / q columns of the result, rounded down.
//
// 128-bit depths serve weights in groups of 128. All need at most 99 KiB of shared memory, what a
// block may have on sm_86 and sm_89. search.py reads this table: one tile a line.
#define BITWRIGHT_TILES(TILE)        \
    TILE(8, 8, 32, 128, 1, 4, 4)     \
    TILE(8, 8, 64, 128, 1, 4, 4)     \
    TILE(8, 8, 128, 128, 1, 4, 4)    \
    TILE(8, 8, 32, 256, 1, 4, 4)     \
    TILE(8, 8, 64, 256, 1, 4, 4)     \
    TILE(8, 8, 32, 512, 1, 4, 4)     \
    TILE(8, 8, 64, 512, 1, 4, 4)     \
    TILE(8, 8, 96, 512, 1, 4, 4)     \
    TILE(8, 8, 128, 512, 1, 8, 3)    \
    TILE(8, 32, 64, 128, 2, 2, 4)    \
    TILE(16, 16, 32, 512, 1, 4, 4)   \
    TILE(16, 16, 64, 256, 1, 4, 4)   \
    TILE(16, 16, 64, 512, 1, 4, 4)   \
    TILE(16, 16, 128, 512, 1, 4, 3)  \
    TILE(16, 32, 64, 256, 2, 2, 4)   \
    TILE(16, 32, 64, 512, 2, 2, 3)   \
    TILE(16, 32, 96, 256, 1, 2, 5)   \
    TILE(16, 32, 128, 256, 2, 4, 4)  \
    TILE(16, 64, 64, 256, 2, 2, 4)   \
    TILE(16, 64, 128, 256, 2, 4, 3)  \
    TILE(16, 128, 128, 256, 4, 2, 3)
