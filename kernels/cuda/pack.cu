// Codes to bit planes on the GPU: what a layer does with its activations before the GEMM.
#include "entry.cuh"
#include "ptx.cuh"

// planes[i][row][word], uint32, from codes [rows][k], one a byte, in the low bits. A warp makes one
// word of all planes: lane l brings element 32 * word + l. Elements from k are zero.
KERNEL void pack_planes_kernel(const uint8_t* codes, uint32_t* planes, int rows, int k, int k_words,
                               int bits) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const long long warps_in_block = blockDim.x / 32;
    const long long at = blockIdx.x * warps_in_block + threadIdx.x / 32;
    if (at >= static_cast<long long>(rows) * k_words) return;  // whole warps leave together
    const long long row = at / k_words;
    const int word = static_cast<int>(at % k_words), element = 32 * word + lane;
    const unsigned code = element < k ? load(codes + row * k + element) : 0;
    uint32_t mine = 0;
    for (int i = 0; i < bits; ++i) {
        const uint32_t plane = __ballot_sync(0xFFFFFFFFu, code >> i & 1);
        if (lane == i) mine = plane;
    }
    if (lane < bits) {
        store(planes + (lane * static_cast<long long>(rows) + row) * k_words + word, mine);
    }
}

// Bit planes of codes; k_words * 32 >= k.
EXPORT int bitwright_pack_planes(const uint8_t* codes, uint32_t* planes, int rows, int k,
                                 int k_words, int bits, void* stream) {
    if (rows <= 0 || k <= 0 || k > 32LL * k_words || bits < 1 || bits > 8) return INVALID_VALUE;
    constexpr int THREADS = 256;
    const long long warps = static_cast<long long>(rows) * k_words;
    const long long blocks = (warps + THREADS / 32 - 1) / (THREADS / 32);
    if (blocks > 0x7FFFFFFFLL) return INVALID_VALUE;
    const dim3 grid(static_cast<unsigned>(blocks));
    return launch(pack_planes_kernel, grid, THREADS, 0, stream, codes, planes, rows, k, k_words,
                  bits);
}

EXPORT int bitwright_pack_planes_runs(int runs, const uint8_t* codes, uint32_t* planes, int rows,
                                      int k, int k_words, int bits, void* stream) {
    for (int r = 0; r < runs; ++r) {
        const int error = bitwright_pack_planes(codes, planes, rows, k, k_words, bits, stream);
        if (error != 0) return error;
    }
    return 0;
}
