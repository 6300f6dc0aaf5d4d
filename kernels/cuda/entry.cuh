// What the C entry points share. All return a cudaError (0: success) and take device pointers.
#pragma once

#define EXPORT extern "C" __attribute__((visibility("default")))

constexpr int INVALID_VALUE = 1;  // cudaErrorInvalidValue
