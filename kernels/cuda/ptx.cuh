// What only a GPU has: inline PTX, intrinsics and the launch of a kernel.
//
// Everything else in this folder is plain C++, compiled unchanged by nvcc for a GPU and by a host
// compiler against tests/kernels/cuda/simt.hpp, which defines the same names. Only the lines below
// cannot run without a GPU.
//
// Fragments of lane l of 32 (PTX ISA, "Matrix Fragments for mma.m8n8k128" and "Matrix Fragments for
// mma.m16n8k256"). A word holds 32 elements along k, the first one in bit 0; A is row-major,
// B column-major.
//
//              register   row (A, C) or column (B)   k words, or columns (C)
//   m8n8k128   A 0        l / 4                      l % 4
//              B 0        l / 4                      l % 4
//              C 0, 1     l / 4                      2 * (l % 4) + {0, 1}
//   m16n8k256  A 0        l / 4                      l % 4
//              A 1        l / 4 + 8                  l % 4
//              A 2        l / 4                      l % 4 + 4
//              A 3        l / 4 + 8                  l % 4 + 4
//              B 0, 1     l / 4                      l % 4, l % 4 + 4
//              C 0, 1     l / 4                      2 * (l % 4) + {0, 1}
//              C 2, 3     l / 4 + 8                  2 * (l % 4) + {0, 1}
#pragma once

#include <cstddef>
#include <cstdint>

#ifndef __CUDACC__
#include "simt.hpp"
#else

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define KERNEL __global__
#define DEVICE __device__ __forceinline__
#define UNROLL _Pragma("unroll")

// The block's dynamic shared memory, 16-byte aligned.
DEVICE unsigned char* shared_memory() {
    extern __shared__ __align__(16) unsigned char memory[];
    return memory;
}

// c += popcount(a AND b) over 128 elements: 8 x 8 results of a warp.
DEVICE void mma_m8n8k128(int (&c)[2], const uint32_t (&a)[1], const uint32_t (&b)[1]) {
    asm volatile(
        "mma.sync.aligned.m8n8k128.row.col.s32.b1.b1.s32.and.popc "
        "{%0, %1}, {%2}, {%3}, {%0, %1};\n"
        : "+r"(c[0]), "+r"(c[1])
        : "r"(a[0]), "r"(b[0]));
}

// c += popcount(a AND b) over 256 elements: 16 x 8 results of a warp.
DEVICE void mma_m16n8k256(int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Start copying 16 bytes from global to shared memory; only `bytes` (0 or 16) are read, the rest
// of the destination becomes zero.
DEVICE void copy_async_16(void* shared, const void* global, int bytes) {
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(address), "l"(global),
                 "r"(bytes)
                 : "memory");
}

// Close this thread's group of copies.
DEVICE void copy_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// Wait until at most PENDING of this thread's groups of copies are under way.
template <int PENDING>
DEVICE void copy_wait() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(PENDING) : "memory");
}

struct alignas(16) Words4 {
    uint32_t word[4];
};

// 16 bytes of global memory that no kernel writes, in one load.
DEVICE Words4 load_16(const void* global) {
    const uint4 v = __ldg(static_cast<const uint4*>(global));
    return {{v.x, v.y, v.z, v.w}};
}

// One element of global memory that no kernel writes.
template <class T>
DEVICE T load(const T* global) {
    return __ldg(global);
}

template <class T>
DEVICE void store(T* global, T value) {
    *global = value;
}

// The float32 value of a binary16 pattern; exact.
DEVICE float half_value(uint32_t pattern) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(pattern)));
}

// Start `kernel` with blocks of `threads` threads and `bytes` of shared memory; a cudaError.
template <class... P, class... A>
int launch(void (*kernel)(P...), dim3 grid, int threads, size_t bytes, void* stream, A... args) {
    if (bytes > 48 * 1024) {  // more than that has to be asked for
        const cudaError_t error = cudaFuncSetAttribute(
            kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
        if (error != cudaSuccess) return error;
    }
    kernel<<<grid, threads, bytes, static_cast<cudaStream_t>(stream)>>>(static_cast<P>(args)...);
    return cudaGetLastError();
}

#endif
