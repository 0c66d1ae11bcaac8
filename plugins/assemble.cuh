// Windows of instance-sensitive score maps in one kernel: a thread takes one pixel after the other.
#pragma once

#include "kernel.cuh"

// How an op is configured.
struct AssembleParams {
  int batch;   // B
  int count;   // N, windows per image
  int height;  // H, of the maps
  int width;   // W
  int bins;    // k, parts along a side
  int window;  // m, pixels along a side
};

namespace deploykit {
namespace assemble {

constexpr int kThreads = 256;

// maps [B, k * k, H, W], positions [B, N] -> windows [B, N, m, m]. A block per window.
template <typename T>
__device__ inline void put(const AssembleParams& p, const T* maps, const int* positions,
                           T* windows) {
  const int row = blockIdx.x, image = row / p.count, middle = positions[row];
  const int pixels = p.window * p.window;
  const long long cells = static_cast<long long>(p.height) * p.width;
  const T* own = maps + image * cells * p.bins * p.bins;
  T* out = windows + static_cast<long long>(row) * pixels;
  const bool known = middle >= 0 && middle < cells;
  for (int i = threadIdx.x; i < pixels; i += blockDim.x) {
    const int v = i / p.window, u = i % p.window;
    const int y = middle / p.width + v - p.window / 2, x = middle % p.width + u - p.window / 2;
    const bool inside = known && y >= 0 && y < p.height && x >= 0 && x < p.width;
    const int part = v * p.bins / p.window * p.bins + u * p.bins / p.window;
    const float value =
        inside ? load(own, part * cells + static_cast<long long>(y) * p.width + x, 1.0f) : 0.0f;
    store(out, i, value, 1.0f);
  }
}

}  // namespace assemble
}  // namespace deploykit

// One kernel per element type; any number of threads.
extern "C" __global__ void __launch_bounds__(256)
    deploykit_assemble_float(AssembleParams p, const float* maps, const int* positions,
                             float* windows) {
  deploykit::assemble::put(p, maps, positions, windows);
}
extern "C" __global__ void __launch_bounds__(256)
    deploykit_assemble_half(AssembleParams p, const __half* maps, const int* positions,
                            __half* windows) {
  deploykit::assemble::put(p, maps, positions, windows);
}
