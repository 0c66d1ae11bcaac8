// RoIAlign over a feature pyramid in one kernel: a block takes one box and some channels, finds the
// box's level, and lays out where its samples lie, once for all the channels.
//
// Nothing here is particular to a block size. What decides between cells (levels, places, limits)
// is rounded operation by operation, as on a CPU.
#pragma once

#include "kernel.cuh"

namespace deploykit {
constexpr int kMostLevels = 5;
}

// How an op is configured.
struct MultiscaleRoiAlignParams {
  int batch;     // B
  int rows;      // R, boxes per image
  int channels;  // C
  int levels;    // 1 to 5
  int heights[deploykit::kMostLevels];
  int widths[deploykit::kMostLevels];
  float spatial_scales[deploykit::kMostLevels];
  int output_height;   // PH
  int output_width;    // PW
  int sampling_ratio;  // 0: as many as there are cells
  int aligned;         // 0 or 1
  int maximum;         // 1: the largest sample of a bin, 0: their mean
  float canonical_size;
  int canonical_level;
  int first_level;
  float level_epsilon;
  int epsilon_inside;  // 1: added to the ratio of sizes, 0: to its logarithm
  int inclusive;       // 1: both ends of a box are inside, which makes its sides 1 longer for the level
  float input_scale;   // of INT8 features: value = stored * scale
  float output_scale;
};

// Where an op reads and writes. T: float, half or INT8.
struct MultiscaleRoiAlignBuffers {
  const float* boxes;                              // [B, R, 4]
  const int* count;                                // [B]
  const void* features[deploykit::kMostLevels];    // T[B, C, H_l, W_l]
  void* pooled;                                    // T[B * R, C, PH, PW]
};

namespace deploykit {
namespace roi_align {

constexpr int kThreads = 256;
constexpr int kChannels = 32;    // that one block takes
constexpr int kAdaptive = 4;     // samples per bin there is shared memory for, where adaptive
constexpr int kFew = 16;         // samples per bin up to which all are visited
constexpr float kEndless = 1 << 30;

// One place along one axis: two cells and their weights; no weight outside the map.
struct Sample {
  int low, high;
  float near, far;
};

// One side of a box on its level, in cells.
struct Axis {
  float start, side;
  int bins, samples;  // samples per bin
  int size;           // of the map
};

struct Span {
  int first, last;
};

// Samples that shared memory holds, across and down.
__host__ __device__ inline int kept(const MultiscaleRoiAlignParams& p, int bins) {
  return bins * (p.sampling_ratio > 0 ? p.sampling_ratio : kAdaptive);
}
__host__ __device__ inline unsigned shared_bytes(const MultiscaleRoiAlignParams& p) {
  return static_cast<unsigned>((kept(p, p.output_width) + kept(p, p.output_height)) *
                               sizeof(Sample));
}

// The level of a box, 0 the finest: how many levels' smallest sizes it reaches.
__device__ inline int level_of(const MultiscaleRoiAlignParams& p, const float* box) {
  const float more = static_cast<float>(p.inclusive);
  const float area = __fmul_rn(__fadd_rn(__fsub_rn(box[2], box[0]), more),
                               __fadd_rn(__fsub_rn(box[3], box[1]), more));
  const float ratio = __fdiv_rn(sqrtf(area), p.canonical_size);
  int level = 0;
  for (int l = 1; l < p.levels; ++l) {
    const double power = l + p.first_level - p.canonical_level;
    const double least = p.epsilon_inside ? exp2(power) - p.level_epsilon
                                          : exp2(power - static_cast<double>(p.level_epsilon));
    level += ratio >= static_cast<float>(least);  // never for NaN
  }
  return level;
}

__device__ inline Axis axis_of(const MultiscaleRoiAlignParams& p, int level, float low, float high,
                               int bins, int size) {
  const float scale = p.spatial_scales[level], shift = p.aligned ? 0.5f : 0.0f;
  const float start = __fsub_rn(__fmul_rn(low, scale), shift);
  float side = __fsub_rn(__fsub_rn(__fmul_rn(high, scale), shift), start);
  if (!p.aligned) side = fmaxf(side, 1.0f);
  const float cells = fminf(fmaxf(ceilf(__fdiv_rn(side, static_cast<float>(bins))), 0.0f), kEndless);
  const int samples = p.sampling_ratio > 0 ? p.sampling_ratio : static_cast<int>(cells);
  return {start, side, bins, samples, size};
}

__device__ inline Sample sample_at(const Axis& a, int bin, int i) {
  const float width = __fdiv_rn(a.side, static_cast<float>(a.bins));
  const float inside = __fdiv_rn(__fmul_rn(static_cast<float>(i) + 0.5f, width),
                                 static_cast<float>(a.samples));
  const float begin = __fadd_rn(a.start, __fmul_rn(static_cast<float>(bin), width));
  const float place = fmaxf(__fadd_rn(begin, inside), -2.0f);  // NaN becomes -2
  if (place < -1.0f || place > static_cast<float>(a.size)) return {0, 0, 0.0f, 0.0f};
  const float clipped = fmaxf(place, 0.0f);
  const int low = static_cast<int>(clipped);
  if (low >= a.size - 1) return {a.size - 1, a.size - 1, 1.0f, 0.0f};
  const float far = clipped - static_cast<float>(low);
  return {low, low + 1, 1.0f - far, far};
}

// The samples of a bin that may lie on the map: of many, most may be far outside.
__device__ inline Span reach(const Axis& a, int bin) {
  if (a.samples <= kFew) return {0, a.samples};
  const float width = a.side / static_cast<float>(a.bins);
  const float per_cell = static_cast<float>(a.samples) / width;
  const float begin = a.start + static_cast<float>(bin) * width;
  const float first = fminf(fmaxf((-1.0f - begin) * per_cell - 2.0f, 0.0f), kEndless);
  const int from = static_cast<int>(first);
  const float many = 2.0f * static_cast<float>(a.size) + 16.0f;  // two samples a cell at most
  return {from, static_cast<int>(fminf(static_cast<float>(a.samples), first + many))};
}

// The samples of one axis, from shared memory where they fit.
struct Samples {
  Axis axis;
  const Sample* table;  // null: there are too many

  __device__ Sample at(int bin, int i) const {
    return table != nullptr ? table[bin * axis.samples + i] : sample_at(axis, bin, i);
  }
};

// Fills the table of one axis; the threads share the work.
__device__ inline Samples laid_out(const MultiscaleRoiAlignParams& p, const Axis& axis,
                                   Sample* table) {
  if (axis.samples > kept(p, axis.bins) / axis.bins) return {axis, nullptr};
  for (int i = threadIdx.x; i < axis.bins * axis.samples; i += blockDim.x)
    table[i] = sample_at(axis, i / axis.samples, i % axis.samples);
  return {axis, table};
}

// One bin of one channel.
template <typename T>
__device__ inline float pooled_bin(const MultiscaleRoiAlignParams& p, const T* map,
                                   const Samples& across, const Samples& down, int bin_x,
                                   int bin_y) {
  const int width = across.axis.size;
  const Span columns = reach(across.axis, bin_x), rows = reach(down.axis, bin_y);
  float sum = 0.0f, most = -INFINITY;
  for (int iy = rows.first; iy < rows.last; ++iy) {
    const Sample y = down.at(bin_y, iy);
    const T* upper = map + static_cast<long long>(y.low) * width;
    const T* lower = map + static_cast<long long>(y.high) * width;
    for (int ix = columns.first; ix < columns.last; ++ix) {
      const Sample x = across.at(bin_x, ix);
      const float value =
          y.near * (x.near * load(upper, x.low, 1.0f) + x.far * load(upper, x.high, 1.0f)) +
          y.far * (x.near * load(lower, x.low, 1.0f) + x.far * load(lower, x.high, 1.0f));
      sum += value;
      most = fmaxf(most, value);
    }
  }
  if (p.maximum) return most;
  const float all = static_cast<float>(across.axis.samples) * static_cast<float>(down.axis.samples);
  return sum / fmaxf(all, 1.0f);
}

template <typename T>
__device__ inline void pool(const MultiscaleRoiAlignParams& p,
                            const MultiscaleRoiAlignBuffers& io) {
  DEPLOYKIT_DYNAMIC_SHARED(memory);
  const int row = blockIdx.x, image = row / p.rows;
  const int bins = p.output_height * p.output_width, first = blockIdx.y * kChannels;
  const int channels = min(kChannels, p.channels - first);
  const float* box = io.boxes + 4LL * row;
  T* pooled = static_cast<T*>(io.pooled) + (static_cast<long long>(row) * p.channels + first) * bins;
  const float size = fabsf(box[0]) + fabsf(box[1]) + fabsf(box[2]) + fabsf(box[3]);
  if (row % p.rows >= io.count[image] || !(size < INFINITY)) {
    for (int i = threadIdx.x; i < channels * bins; i += blockDim.x) store(pooled, i, 0.0f, 1.0f);
    return;
  }
  const int level = level_of(p, box), height = p.heights[level], width = p.widths[level];
  Sample* table = reinterpret_cast<Sample*>(memory);
  const Samples across =
      laid_out(p, axis_of(p, level, box[0], box[2], p.output_width, width), table);
  const Samples down = laid_out(p, axis_of(p, level, box[1], box[3], p.output_height, height),
                                table + kept(p, p.output_width));
  __syncthreads();
  const long long cells = static_cast<long long>(height) * width;
  const T* maps = static_cast<const T*>(io.features[level]) +
                  (static_cast<long long>(image) * p.channels + first) * cells;
  const float rescale = p.input_scale / p.output_scale;  // both 1 where T carries no scale
  for (int i = threadIdx.x; i < channels * bins; i += blockDim.x) {
    const int channel = i / bins, bin = i % bins;
    const float value = pooled_bin(p, maps + channel * cells, across, down, bin % p.output_width,
                                   bin / p.output_width);
    store(pooled, i, value, rescale);
  }
}

}  // namespace roi_align
}  // namespace deploykit

// One kernel per element type. A block per box and `kChannels` channels; any number of threads.
extern "C" __global__ void __launch_bounds__(256)
    deploykit_multiscale_roi_align_float(const __grid_constant__ MultiscaleRoiAlignParams p,
                                         const __grid_constant__ MultiscaleRoiAlignBuffers io) {
  deploykit::roi_align::pool<float>(p, io);
}
extern "C" __global__ void __launch_bounds__(256)
    deploykit_multiscale_roi_align_half(const __grid_constant__ MultiscaleRoiAlignParams p,
                                        const __grid_constant__ MultiscaleRoiAlignBuffers io) {
  deploykit::roi_align::pool<__half>(p, io);
}
extern "C" __global__ void __launch_bounds__(256)
    deploykit_multiscale_roi_align_int8(const __grid_constant__ MultiscaleRoiAlignParams p,
                                        const __grid_constant__ MultiscaleRoiAlignBuffers io) {
  deploykit::roi_align::pool<signed char>(p, io);
}
