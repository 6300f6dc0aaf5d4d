// The kernels' entry points on the emulated machine, and its controls.
#include "binary_gemm.cu"
#include "pack.cu"
#include "weight_only_gemv.cu"

// Seed of the schedule (not 0), and whether copies are made as late as allowed.
EXPORT void simt_set(uint32_t seed, int late_copies) {
    simt::machine.seed = seed;
    simt::machine.late_copies = late_copies != 0;
    simt::machine.regions.clear();
}

// An array that the next launches may copy and load from.
EXPORT void simt_region(const void* begin, size_t bytes) {
    simt::machine.regions.push_back({static_cast<const unsigned char*>(begin), bytes});
}

// What went wrong in the last launch; empty if nothing did.
EXPORT const char* simt_error() { return simt::machine.error; }

// Warp-wide mma instructions since the library was loaded.
EXPORT long long simt_mma_count() { return simt::machine.mma_count / 32; }

// One instruction on given registers, [lane][register]; c is added to.
static void probe_8(const uint32_t* a, const uint32_t* b, int32_t* c) {
    const unsigned lane = threadIdx.x;
    int sums[2] = {c[2 * lane], c[2 * lane + 1]};
    mma_m8n8k128(sums, {a[lane]}, {b[lane]});
    for (int r = 0; r < 2; ++r) c[2 * lane + r] = sums[r];
}

static void probe_16(const uint32_t* a, const uint32_t* b, int32_t* c) {
    const unsigned lane = threadIdx.x;
    uint32_t a_mine[4], b_mine[2];
    int sums[4];
    for (int r = 0; r < 4; ++r) a_mine[r] = a[4 * lane + r];
    for (int r = 0; r < 2; ++r) b_mine[r] = b[2 * lane + r];
    for (int r = 0; r < 4; ++r) sums[r] = c[4 * lane + r];
    mma_m16n8k256(sums, a_mine, b_mine);
    for (int r = 0; r < 4; ++r) c[4 * lane + r] = sums[r];
}

EXPORT int simt_mma(int mma, const uint32_t* a, const uint32_t* b, int32_t* c) {
    return launch(mma == 8 ? probe_8 : probe_16, dim3(1), 32, 0, nullptr, a, b, c);
}
