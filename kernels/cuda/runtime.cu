// The few calls of the CUDA runtime that device.py needs, under plain C names.
#include <cuda_runtime.h>

#include <cstddef>

#include "entry.cuh"

EXPORT int bitwright_malloc(void** pointer, size_t bytes) { return cudaMalloc(pointer, bytes); }

EXPORT int bitwright_free(void* pointer) { return cudaFree(pointer); }

EXPORT int bitwright_to_device(void* device, const void* host, size_t bytes) {
    return cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice);
}

EXPORT int bitwright_to_host(void* host, const void* device, size_t bytes) {
    return cudaMemcpy(host, device, bytes, cudaMemcpyDeviceToHost);
}

EXPORT int bitwright_use_device(int index) { return cudaSetDevice(index); }

EXPORT int bitwright_synchronize() { return cudaDeviceSynchronize(); }

EXPORT int bitwright_event_create(void** event) {
    return cudaEventCreate(reinterpret_cast<cudaEvent_t*>(event));
}

EXPORT int bitwright_event_record(void* event, void* stream) {
    return cudaEventRecord(static_cast<cudaEvent_t>(event), static_cast<cudaStream_t>(stream));
}

// Milliseconds from one recorded event to another, once both are reached.
EXPORT int bitwright_event_elapsed(void* begin, void* end, float* milliseconds) {
    const cudaError_t error = cudaEventSynchronize(static_cast<cudaEvent_t>(end));
    if (error != cudaSuccess) return error;
    return cudaEventElapsedTime(milliseconds, static_cast<cudaEvent_t>(begin),
                                static_cast<cudaEvent_t>(end));
}

EXPORT int bitwright_event_destroy(void* event) {
    return cudaEventDestroy(static_cast<cudaEvent_t>(event));
}

EXPORT const char* bitwright_error_name(int error) {
    return cudaGetErrorName(static_cast<cudaError_t>(error));
}

EXPORT const char* bitwright_error_text(int error) {
    return cudaGetErrorString(static_cast<cudaError_t>(error));
}
