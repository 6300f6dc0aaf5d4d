// The baselines of the benchmark: cuBLAS' INT8 and FP16 products. A library of its own, so that the
// kernels need no cuBLAS.
#include <cublas_v2.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "entry.cuh"

namespace {

// cublasStatus_t as a number that no cudaError has; 0 is success in both.
int told(cublasStatus_t status) {
    return status == CUBLAS_STATUS_SUCCESS ? 0 : 100000 + static_cast<int>(status);
}

}  // namespace

EXPORT int bitwright_cublas_create(void** handle) {
    return told(cublasCreate(reinterpret_cast<cublasHandle_t*>(handle)));
}

EXPORT int bitwright_cublas_destroy(void* handle) {
    return told(cublasDestroy(static_cast<cublasHandle_t>(handle)));
}

EXPORT int bitwright_cublas_version(void* handle, int* version) {
    return told(cublasGetVersion(static_cast<cublasHandle_t>(handle), version));
}

// `runs` products y[m][n] = x[m][k] w[n][k]^T, all row-major; launch r reads copy r % w_copies of
// w. To cuBLAS, which is column-major, y is n x m and w is k x n, to be transposed. int8_t gives
// int32_t, half gives half with float32 sums.
EXPORT int bitwright_cublas_runs(void* handle, int runs, int w_copies, int int8, const void* x,
                                 const void* w, void* y, int m, int n, int k) {
    const size_t copy = static_cast<size_t>(n) * k * (int8 ? 1 : 2);
    const int32_t one_int = 1, zero_int = 0;
    const float one = 1.0f, zero = 0.0f;
    const cudaDataType_t in = int8 ? CUDA_R_8I : CUDA_R_16F, out = int8 ? CUDA_R_32I : CUDA_R_16F;
    for (int r = 0; r < runs; ++r) {
        const cublasStatus_t status = cublasGemmEx(
            static_cast<cublasHandle_t>(handle), CUBLAS_OP_T, CUBLAS_OP_N, n, m, k,
            int8 ? static_cast<const void*>(&one_int) : &one,
            static_cast<const char*>(w) + r % w_copies * copy, in, k, x, in, k,
            int8 ? static_cast<const void*>(&zero_int) : &zero, y, out, n,
            int8 ? CUBLAS_COMPUTE_32I : CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
        if (status != CUBLAS_STATUS_SUCCESS) return told(status);
    }
    return 0;
}
