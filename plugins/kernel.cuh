// What the kernels of plugins/ share: element types and the launch, for nvcc, NVRTC and, with
// host/cuda_on_host.h before it, the host compiler.
#pragma once

#if defined(DEPLOYKIT_HOST)
using cudaStream_t = void*;
using cudaError_t = int;
inline cudaError_t cudaGetLastError() { return 0; }
#define DEPLOYKIT_LAUNCH(kernel, grid, block, shared, stream, ...) \
  ((void)(stream), host::launch(grid, block, shared, [&] { kernel(__VA_ARGS__); }))
#define DEPLOYKIT_DYNAMIC_SHARED(name) unsigned char* name = host::dynamic_shared.data()
#else
#include <cuda_fp16.h>
#define DEPLOYKIT_LAUNCH(kernel, grid, block, shared, stream, ...) \
  kernel<<<grid, block, shared, stream>>>(__VA_ARGS__)
#define DEPLOYKIT_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

namespace deploykit {

// Element types of features, as the launchers take them.
enum Element { kFloat = 0, kHalf = 1, kInt8 = 2 };

// Reads and writes an element as float; INT8 carries its scale (value = stored * scale).
__device__ __forceinline__ float load(const float* data, long long i, float) { return data[i]; }
__device__ __forceinline__ float load(const __half* data, long long i, float) {
  return __half2float(data[i]);
}
__device__ __forceinline__ float load(const signed char* data, long long i, float scale) {
  return static_cast<float>(data[i]) * scale;
}
__device__ __forceinline__ void store(float* data, long long i, float value, float) {
  data[i] = value;
}
__device__ __forceinline__ void store(__half* data, long long i, float value, float) {
  data[i] = __float2half_rn(value);
}
// Round half to even and clamp, as ONNX QuantizeLinear does.
__device__ __forceinline__ void store(signed char* data, long long i, float value, float inverse) {
  const int rounded = __float2int_rn(fminf(fmaxf(value * inverse, -128.0f), 127.0f));
  data[i] = static_cast<signed char>(rounded);
}

}  // namespace deploykit
