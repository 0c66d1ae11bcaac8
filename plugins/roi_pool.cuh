// RoIPool in one kernel: a block takes one box and some channels; the cells of each bin are worked
// out once for all the channels.
//
// Nothing here is particular to a block size. What decides between cells is rounded operation by
// operation, as on a CPU.
#pragma once

#include "kernel.cuh"

// How an op is configured.
struct RoiPoolParams {
  int batch;     // B
  int rows;      // R, boxes per image
  int channels;  // C
  int height;    // H, of the features
  int width;     // W
  int output_height;  // PH
  int output_width;   // PW
  float spatial_scale;
};

namespace deploykit {
namespace roi_pool {

constexpr int kMostBins = 64;              // along one axis
constexpr int kThreads = 256;
constexpr int kChannels = 32;              // that one block takes
constexpr float kEndless = 1 << 29;        // cells; the distance of two such still is an int
constexpr float kLowest = -3.402823466e38f;  // what a bin of nothing but NaN gives

// Cells along one axis, from `first` up to but not including `last`.
struct Span {
  int first, last;
};

// The cell of a coordinate: half a cell is rounded away from zero.
__device__ inline int cell(float coordinate, float scale) {
  const float limit = __fdiv_rn(kEndless, scale);
  const float near = fminf(fmaxf(coordinate, -limit), limit);
  return static_cast<int>(roundf(__fmul_rn(near, scale)));
}

// The cells of one bin of a side that reaches from cell `low` to cell `high`.
__device__ inline Span span_of(int low, int high, int bin, int bins, int size) {
  const int length = max(high - low + 1, 1);
  const float step = __fdiv_rn(static_cast<float>(length), static_cast<float>(bins));
  const int first = static_cast<int>(floorf(__fmul_rn(static_cast<float>(bin), step)));
  const int last = static_cast<int>(ceilf(__fmul_rn(static_cast<float>(bin + 1), step)));
  return {min(max(low + first, 0), size), min(max(low + last, 0), size)};
}

// The largest value of one bin of one channel; 0 where the bin has no cell.
template <typename T>
__device__ inline float largest(const T* map, int width, const Span& across, const Span& down) {
  if (across.first >= across.last || down.first >= down.last) return 0.0f;
  float most = kLowest;
  for (int y = down.first; y < down.last; ++y) {
    const T* row = map + static_cast<long long>(y) * width;
    for (int x = across.first; x < across.last; ++x) most = fmaxf(most, load(row, x, 1.0f));
  }
  return most;
}

template <typename T>
__device__ inline void pool(const RoiPoolParams& p, const float* boxes, const int* count,
                            const T* features, T* pooled) {
  __shared__ Span across[kMostBins], down[kMostBins];
  const int row = blockIdx.x, image = row / p.rows;
  const int bins = p.output_height * p.output_width, first = blockIdx.y * kChannels;
  const int channels = min(kChannels, p.channels - first);
  const float* box = boxes + 4LL * row;
  T* out = pooled + (static_cast<long long>(row) * p.channels + first) * bins;
  const bool finite = fabsf(box[0]) < INFINITY && fabsf(box[1]) < INFINITY &&
                      fabsf(box[2]) < INFINITY && fabsf(box[3]) < INFINITY;
  if (row % p.rows >= count[image] || !finite) {
    for (int i = threadIdx.x; i < channels * bins; i += blockDim.x) store(out, i, 0.0f, 1.0f);
    return;  // all threads of the block
  }
  const float scale = p.spatial_scale;
  const int x1 = cell(box[0], scale), x2 = cell(box[2], scale);
  const int y1 = cell(box[1], scale), y2 = cell(box[3], scale);
  for (int i = threadIdx.x; i < p.output_width; i += blockDim.x)
    across[i] = span_of(x1, x2, i, p.output_width, p.width);
  for (int i = threadIdx.x; i < p.output_height; i += blockDim.x)
    down[i] = span_of(y1, y2, i, p.output_height, p.height);
  __syncthreads();
  const long long cells = static_cast<long long>(p.height) * p.width;
  const T* maps = features + (static_cast<long long>(image) * p.channels + first) * cells;
  for (int i = threadIdx.x; i < channels * bins; i += blockDim.x) {
    const int bin = i % bins;
    const float value = largest(maps + i / bins * cells, p.width, across[bin % p.output_width],
                                down[bin / p.output_width]);
    store(out, i, value, 1.0f);
  }
}

}  // namespace roi_pool
}  // namespace deploykit

// One kernel per element type: boxes [B, R, 4], count [B], features [B, C, H, W] -> pooled
// [B * R, C, PH, PW]. A block per box and `kChannels` channels; any number of threads.
extern "C" __global__ void __launch_bounds__(256)
    deploykit_roi_pool_float(RoiPoolParams p, const float* boxes, const int* count,
                             const float* features, float* pooled) {
  deploykit::roi_pool::pool(p, boxes, count, features, pooled);
}
extern "C" __global__ void __launch_bounds__(256)
    deploykit_roi_pool_half(RoiPoolParams p, const float* boxes, const int* count,
                            const __half* features, __half* pooled) {
  deploykit::roi_pool::pool(p, boxes, count, features, pooled);
}
