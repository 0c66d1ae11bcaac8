// Crops of a feature pyramid in one kernel: a block takes one box and some channels, finds the box's
// level, and lays out where its samples lie, once for all the channels.
//
// Nothing here is particular to a block size. What decides between cells (levels, places, limits)
// is rounded operation by operation, as on a CPU.
#pragma once

#include "kernel.cuh"

namespace deploykit {
namespace crop {
constexpr int kLevels = 5;  // at most
}
}  // namespace deploykit

// How an op is configured.
struct MultiscaleCropParams {
  int batch;     // B
  int rows;      // R, boxes per image
  int channels;  // C
  int levels;    // 1 to 5
  int heights[deploykit::crop::kLevels];
  int widths[deploykit::crop::kLevels];
  int output_height;  // PH
  int output_width;   // PW
  float image_area;   // of which the boxes' areas are shares
  float canonical_size;
  int canonical_level;
  int first_level;
};

// Where an op reads and writes. T: float or half.
struct MultiscaleCropBuffers {
  const float* boxes;                            // [B, R, 4], from 0 to 1 over every map
  const int* count;                              // [B]
  const void* features[deploykit::crop::kLevels];  // T[B, C, H_l, W_l]
  void* pooled;                                  // T[B * R, C, PH, PW]
};

namespace deploykit {
namespace crop {

constexpr int kMostBins = 64;  // along one axis
constexpr int kThreads = 256;
constexpr int kChannels = 32;  // that one block takes
constexpr float kNear = 1e-3f;  // cells beyond the border up to which a place still is on the map

// One place along one axis: two cells, and how far it is from the first; -1 outside of the map.
struct Sample {
  int low, high;
  float part;
};

// The level of a box, 0 the finest: how many levels' smallest shares of the image it reaches.
__device__ inline int level_of(const MultiscaleCropParams& p, const float* box) {
  const float area = __fmul_rn(__fsub_rn(box[2], box[0]), __fsub_rn(box[3], box[1]));
  int level = 0;
  for (int l = 1; l < p.levels; ++l) {
    const int power = l + p.first_level - p.canonical_level;
    const double side = p.canonical_size;
    const float least = static_cast<float>(exp2(2.0 * power - 1.0) * (side * side) / p.image_area);
    level += power % 2 == 0 ? area >= least : area > least;
  }
  return level;
}

__device__ inline Sample sample_at(float low, float high, int bin, int bins, int cells) {
  const float last = static_cast<float>(cells - 1);
  float place;
  if (bins > 1) {
    const float step = __fdiv_rn(__fmul_rn(__fsub_rn(high, low), last), static_cast<float>(bins - 1));
    place = __fadd_rn(__fmul_rn(low, last), __fmul_rn(static_cast<float>(bin), step));
  } else {
    place = __fmul_rn(__fmul_rn(__fadd_rn(low, high), 0.5f), last);
  }
  if (!(place >= -kNear && __fsub_rn(place, last) <= kNear)) return {-1, -1, 0.0f};
  place = fminf(fmaxf(place, 0.0f), last);
  const float before = floorf(place);
  return {static_cast<int>(before), static_cast<int>(ceilf(place)), __fsub_rn(place, before)};
}

template <typename T>
__device__ inline float value_at(const T* map, int width, const Sample& y, const Sample& x) {
  if (y.low < 0 || x.low < 0) return 0.0f;
  const T* top = map + static_cast<long long>(y.low) * width;
  const T* bottom = map + static_cast<long long>(y.high) * width;
  const float left = load(top, x.low, 1.0f), under = load(bottom, x.low, 1.0f);
  const float upper = left + (load(top, x.high, 1.0f) - left) * x.part;
  const float lower = under + (load(bottom, x.high, 1.0f) - under) * x.part;
  return upper + (lower - upper) * y.part;
}

template <typename T>
__device__ inline void pool(const MultiscaleCropParams& p, const MultiscaleCropBuffers& io) {
  __shared__ Sample across[kMostBins], down[kMostBins];
  const int row = blockIdx.x, image = row / p.rows;
  const int bins = p.output_height * p.output_width, first = blockIdx.y * kChannels;
  const int channels = min(kChannels, p.channels - first);
  const float* box = io.boxes + 4LL * row;
  T* out = static_cast<T*>(io.pooled) + (static_cast<long long>(row) * p.channels + first) * bins;
  const bool finite = fabsf(box[0]) < INFINITY && fabsf(box[1]) < INFINITY &&
                      fabsf(box[2]) < INFINITY && fabsf(box[3]) < INFINITY;
  if (row % p.rows >= io.count[image] || !finite) {
    for (int i = threadIdx.x; i < channels * bins; i += blockDim.x) store(out, i, 0.0f, 1.0f);
    return;  // all threads of the block
  }
  const int level = level_of(p, box), height = p.heights[level], width = p.widths[level];
  for (int i = threadIdx.x; i < p.output_width; i += blockDim.x)
    across[i] = sample_at(box[0], box[2], i, p.output_width, width);
  for (int i = threadIdx.x; i < p.output_height; i += blockDim.x)
    down[i] = sample_at(box[1], box[3], i, p.output_height, height);
  __syncthreads();
  const long long cells = static_cast<long long>(height) * width;
  const T* maps = static_cast<const T*>(io.features[level]) +
                  (static_cast<long long>(image) * p.channels + first) * cells;
  for (int i = threadIdx.x; i < channels * bins; i += blockDim.x) {
    const int bin = i % bins;
    const float value = value_at(maps + i / bins * cells, width, down[bin / p.output_width],
                                 across[bin % p.output_width]);
    store(out, i, value, 1.0f);
  }
}

}  // namespace crop
}  // namespace deploykit

// One kernel per element type. A block per box and `kChannels` channels; any number of threads.
extern "C" __global__ void __launch_bounds__(256)
    deploykit_multiscale_crop_float(const __grid_constant__ MultiscaleCropParams p,
                                    const __grid_constant__ MultiscaleCropBuffers io) {
  deploykit::crop::pool<float>(p, io);
}
extern "C" __global__ void __launch_bounds__(256)
    deploykit_multiscale_crop_half(const __grid_constant__ MultiscaleCropParams p,
                                   const __grid_constant__ MultiscaleCropBuffers io) {
  deploykit::crop::pool<__half>(p, io);
}
