// Greedy non-maximum suppression with fixed shapes, in five kernels: select the best candidates,
// sort them in tiles, gather them in order, mark overlapping pairs as bits, scan for what is kept.
//
// Nothing here is particular to a block size. The arithmetic is that of torchvision.ops.nms on a
// CPU: every operation rounded once, none contracted.
#pragma once

#include "kernel.cuh"

// How an op is configured. iou_threshold: for the kernels, what `limit` in batched_nms.cu returns.
struct BatchedNmsParams {
  int batch;           // B
  int boxes;           // N, per image
  int candidates;      // the best so many enter
  int max_detections;  // M
  float iou_threshold;
  float score_threshold;
  int class_agnostic;   // 0 or 1
  int offset_grouping;  // 1: classes are moved apart by coordinates, 0: compared
};

// Where an op reads and writes.
struct BatchedNmsBuffers {
  const float* boxes;   // [B, N, 4]
  const float* scores;  // [B, N]
  const int* classes;   // [B, N]
  float* out_boxes;     // [B, M, 4]
  float* out_scores;    // [B, M]
  int* out_classes;     // [B, M]
  int* out_indices;     // [B, M]
  int* out_count;       // [B]
  void* workspace;      // 16-byte aligned
};

namespace deploykit {
namespace nms {

typedef unsigned long long Bits;

constexpr int kWord = 64;           // rows or columns that one mask word stands for
constexpr int kTile = 4096;         // keys that one block sorts, 32 KiB of shared memory
constexpr int kColumnWords = 4;     // mask words per row that one block computes
constexpr int kBins = 2048;         // of the histogram that selects: 11 bits of a key at a time
constexpr int kBinsPerSum = 32;

struct alignas(16) Box {
  float x1, y1, x2, y2;
};
__device__ inline Box box_at(const float* boxes, size_t i) {
  return {boxes[4 * i], boxes[4 * i + 1], boxes[4 * i + 2], boxes[4 * i + 3]};
}

// --- sizes ------------------------------------------------------------------------------------

__host__ __device__ inline int capacity(const BatchedNmsParams& p) {  // K
  return p.candidates < p.boxes ? p.candidates : p.boxes;
}
__host__ __device__ inline int words(const BatchedNmsParams& p) {
  return (capacity(p) + kWord - 1) / kWord;
}
// Keys per sorted tile: a power of two.
__host__ __device__ inline int tile(const BatchedNmsParams& p) {
  int size = 1;
  while (size < capacity(p) && size < kTile) size *= 2;
  return size;
}
__host__ __device__ inline int tiles(const BatchedNmsParams& p) {
  return (capacity(p) + tile(p) - 1) / tile(p);
}
__host__ __device__ inline int stride(const BatchedNmsParams& p) { return tiles(p) * tile(p); }

// The workspace, from the widest type to the narrowest.
struct Workspace {
  Box* boxes;        // [B, K]: as they are compared, best first
  Bits* keys;        // [B, stride]
  Bits* mask;        // [B, K, words]: bit j of a row's word w: it overlaps row w * 64 + j
  int* groups;       // [B, K]
  int* indices;      // [B, K]: into N
  int* count;        // [B]: how many enter
  float* step;       // [B]: by how much a class is moved
};
__host__ __device__ inline size_t workspace_bytes(const BatchedNmsParams& p) {
  const size_t batch = p.batch, k = capacity(p);
  return batch * (k * (sizeof(Box) + 2 * sizeof(int)) + stride(p) * sizeof(Bits) +
                  k * words(p) * sizeof(Bits) + sizeof(int) + sizeof(float));
}
__device__ inline Workspace divide(const BatchedNmsParams& p, void* memory) {
  const size_t batch = p.batch, k = capacity(p);
  Workspace w;
  w.boxes = static_cast<Box*>(memory);
  w.keys = reinterpret_cast<Bits*>(w.boxes + batch * k);
  w.mask = w.keys + batch * stride(p);
  w.groups = reinterpret_cast<int*>(w.mask + batch * k * words(p));
  w.indices = w.groups + batch * k;
  w.count = w.indices + batch * k;
  w.step = reinterpret_cast<float*>(w.count + batch);
  return w;
}

// --- keys: a larger one is a better candidate; no two are equal; 0 is none ---------------------

// Unsigned order of the floats; -0 and 0 are one.
__device__ inline unsigned ordered(float value) {
  const unsigned bits = __float_as_uint(__fadd_rn(value, 0.0f));
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ inline float unordered(unsigned bits) {
  return __uint_as_float(bits >> 31 ? bits & 0x7FFFFFFFu : ~bits);
}
__device__ inline Bits key(float score, float threshold, int i) {
  if (!(score > threshold)) return 0;  // NaN, too
  return static_cast<Bits>(ordered(score)) << 32 | (0xFFFFFFFFu - static_cast<unsigned>(i));
}
__device__ inline int index_of(Bits key) {
  return static_cast<int>(0xFFFFFFFFu - static_cast<unsigned>(key));
}

// --- select: one block per image ----------------------------------------------------------------

// Calls visit(i, key) for every key of an image; several loads are on their way at once.
template <typename Visit>
__device__ inline void each_key(const BatchedNmsParams& p, const float* scores, Visit visit) {
  constexpr int kAtOnce = 8;
  const int step = blockDim.x;
  for (int start = threadIdx.x; start < p.boxes; start += kAtOnce * step) {
    float loaded[kAtOnce];
    for (int u = 0; u < kAtOnce; ++u) {
      const int i = start + u * step;
      loaded[u] = i < p.boxes ? scores[i] : p.score_threshold;
    }
    for (int u = 0; u < kAtOnce; ++u) {
      const Bits k = key(loaded[u], p.score_threshold, start + u * step);
      if (k != 0) visit(start + u * step, k);
    }
  }
}

// Counts, by the 11 bits from `shift` on, the keys that are equal to `prefix` from bit `above` on.
__device__ inline void histogram(const BatchedNmsParams& p, const float* scores, Bits prefix,
                                 int above, int shift, int* bins) {
  for (int b = threadIdx.x; b < kBins; b += blockDim.x) bins[b] = 0;
  __syncthreads();
  each_key(p, scores, [=](int, Bits k) {
    if (above == 64 || k >> above == prefix >> above)
      atomicAdd(&bins[static_cast<int>(k >> shift) & (kBins - 1)], 1);
  });
  __syncthreads();
}

// The bin in which the `wanted`-th largest key lies; `wanted` becomes its place in that bin.
__device__ inline int crossing(const int* bins, const int* sums, int* wanted) {
  int group = kBins / kBinsPerSum - 1;
  while (group > 0 && sums[group] < *wanted) *wanted -= sums[group--];
  int bin = group * kBinsPerSum + kBinsPerSum - 1;
  while (bin > group * kBinsPerSum && bins[bin] < *wanted) *wanted -= bins[bin--];
  return bin;
}

// The smallest of the `wanted` largest keys, or a value below it and above all others; 1 where
// there are fewer. By 11 bits at a time, until all that is left in a bin is wanted.
__device__ inline Bits least_wanted(const BatchedNmsParams& p, const float* scores, int wanted) {
  __shared__ int bins[kBins], sums[kBins / kBinsPerSum], left, done;
  __shared__ Bits prefix;
  if (threadIdx.x == 0) {
    prefix = 0;
    left = wanted;
  }
  for (int above = 64, shift = 53;; above = shift, shift = max(shift - 11, 0)) {
    __syncthreads();
    histogram(p, scores, prefix, above, shift, bins);
    for (int s = threadIdx.x; s < kBins / kBinsPerSum; s += blockDim.x) {
      int sum = 0;
      for (int b = 0; b < kBinsPerSum; ++b) sum += bins[s * kBinsPerSum + b];
      sums[s] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int place = left;
      const int bin = crossing(bins, sums, &place);
      prefix |= static_cast<Bits>(bin) << shift;
      left = place;
      done = place >= bins[bin] || shift == 0;
    }
    __syncthreads();
    if (done) break;
  }
  return prefix > 1 ? prefix : 1;
}

// Writes the keys of the best K in any order, their number, and the classes' distance.
extern "C" __global__ void __launch_bounds__(1024)
    deploykit_nms_select(BatchedNmsParams p, BatchedNmsBuffers io) {
  __shared__ int taken;
  __shared__ unsigned top, unknown;
  const Workspace w = divide(p, io.workspace);
  const size_t image = blockIdx.x;
  const float* scores = io.scores + image * p.boxes;
  const float* boxes = io.boxes + 4 * image * p.boxes;
  Bits* keys = w.keys + image * stride(p);
  if (threadIdx.x == 0) {
    taken = 0;
    top = 0;
    unknown = 0;
  }
  const Bits least = p.boxes > p.candidates ? least_wanted(p, scores, p.candidates) : 1;
  __syncthreads();
  each_key(p, scores, [&](int i, Bits k) {
    if (k < least) return;
    keys[atomicAdd(&taken, 1)] = k;
    for (int s = 0; s < (p.offset_grouping ? 4 : 0); ++s) {
      const float side = boxes[4 * static_cast<size_t>(i) + s];
      if (side != side) atomicOr(&unknown, 1u);
      else atomicMax(&top, ordered(side));
    }
  });
  __syncthreads();
  for (int i = taken + threadIdx.x; i < stride(p); i += blockDim.x) keys[i] = 0;
  if (threadIdx.x == 0) {
    w.count[image] = taken;
    w.step[image] = __fadd_rn(unknown ? __uint_as_float(0x7FC00000u) : unordered(top), 1.0f);
  }
}

// --- sort: one block per tile -------------------------------------------------------------------

// Bitonic, largest first; of a tile only as much as holds keys.
extern "C" __global__ void __launch_bounds__(1024)
    deploykit_nms_sort(BatchedNmsParams p, BatchedNmsBuffers io) {
  DEPLOYKIT_DYNAMIC_SHARED(memory);
  Bits* shared = reinterpret_cast<Bits*>(memory);
  const Workspace w = divide(p, io.workspace);
  const size_t image = blockIdx.y;
  Bits* keys = w.keys + image * stride(p) + static_cast<size_t>(blockIdx.x) * tile(p);
  const int live = w.count[image] - static_cast<int>(blockIdx.x) * tile(p);
  int size = 1;
  while (size < live && size < tile(p)) size *= 2;
  if (live < 2) return;  // all threads of the block
  for (int i = threadIdx.x; i < size; i += blockDim.x) shared[i] = keys[i];
  __syncthreads();
  for (int run = 2; run <= size; run *= 2)
    for (int gap = run / 2; gap > 0; gap /= 2) {
      for (int pair = threadIdx.x; pair < size / 2; pair += blockDim.x) {
        const int i = 2 * pair - (pair & (gap - 1)), j = i + gap;
        const bool descending = (i & run) == 0;
        const Bits a = shared[i], b = shared[j];
        if ((a < b) == descending) {
          shared[i] = b;
          shared[j] = a;
        }
      }
      __syncthreads();
    }
  for (int i = threadIdx.x; i < size; i += blockDim.x) keys[i] = shared[i];
}

// --- gather -------------------------------------------------------------------------------------

// How many of a descending tile's keys are larger than `key`.
__device__ inline int larger(const Bits* tile, int size, Bits key) {
  int low = 0;
  while (size > 0) {
    const int half = size / 2;
    if (tile[low + half] > key) {
      low += half + 1;
      size -= half + 1;
    } else {
      size = half;
    }
  }
  return low;
}

// The place of key `i` among the sorted keys of all tiles.
__device__ inline int place(const BatchedNmsParams& p, const Bits* keys, int count, int i) {
  const int size = tile(p);
  int found = i % size;
  for (int start = 0; start < count; start += size)
    if (start != i - i % size) found += larger(keys + start, min(size, count - start), keys[i]);
  return found;
}

__device__ inline Box moved(const Box& box, float offset) {
  return {__fadd_rn(box.x1, offset), __fadd_rn(box.y1, offset), __fadd_rn(box.x2, offset),
          __fadd_rn(box.y2, offset)};
}

// Writes each candidate at its place.
extern "C" __global__ void deploykit_nms_gather(BatchedNmsParams p, BatchedNmsBuffers io) {
  const Workspace w = divide(p, io.workspace);
  const size_t image = blockIdx.y;
  const Bits* keys = w.keys + image * stride(p);
  const int count = w.count[image], step = gridDim.x * blockDim.x;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
    const int index = index_of(keys[i]);
    const size_t from = image * p.boxes + index, to = image * capacity(p) + place(p, keys, count, i);
    const int label = io.classes[from];
    const bool apart = p.offset_grouping && !p.class_agnostic;
    const Box box = box_at(io.boxes, from);
    w.boxes[to] = apart ? moved(box, __fmul_rn(static_cast<float>(label), w.step[image])) : box;
    w.groups[to] = p.offset_grouping || p.class_agnostic ? 0 : label;
    w.indices[to] = index;
  }
}

// --- overlap: one block per 64 rows and 4 words of columns --------------------------------------

__device__ inline float area(const Box& box) {
  return __fmul_rn(__fsub_rn(box.x2, box.x1), __fsub_rn(box.y2, box.y1));
}

// Whether IoU > threshold as float32 division says. Empty, inverted and NaN boxes: never.
__device__ inline bool overlaps(const Box& a, const Box& b, float areas, float threshold) {
  const float width = __fsub_rn(fminf(a.x2, b.x2), fmaxf(a.x1, b.x1));
  const float height = __fsub_rn(fminf(a.y2, b.y2), fmaxf(a.y1, b.y1));
  if (!(width > 0.0f && height > 0.0f)) return false;
  const float inter = __fmul_rn(width, height);
  const float whole = __fsub_rn(areas, inter);
  const float needed = __fmul_rn(threshold, whole);
  if (needed > 1e-30f) {  // else it may have lost digits
    if (inter > __fmul_rn(needed, 1.0f + 1e-5f)) return true;
    if (inter < __fmul_rn(needed, 1.0f - 1e-5f)) return false;
  }
  return __fdiv_rn(inter, whole) > threshold;
}

// Writes the mask's words from the diagonal on.
extern "C" __global__ void __launch_bounds__(kWord* kColumnWords)
    deploykit_nms_overlap(BatchedNmsParams p, BatchedNmsBuffers io) {
  __shared__ Box boxes[kWord * kColumnWords];
  __shared__ float areas[kWord * kColumnWords];
  __shared__ int groups[kWord * kColumnWords];
  const Workspace w = divide(p, io.workspace);
  const size_t image = blockIdx.z;
  const int count = w.count[image];
  const int first_row = blockIdx.y * kWord, first_word = blockIdx.x * kColumnWords;
  const int first_column = first_word * kWord;
  if (first_row >= count || first_column >= count) return;  // all threads of the block
  if (first_column + kWord * kColumnWords <= first_row) return;
  const Box* sorted = w.boxes + image * capacity(p);
  const int* labels = w.groups + image * capacity(p);
  for (int c = threadIdx.x; c < min(kWord * kColumnWords, count - first_column); c += blockDim.x) {
    boxes[c] = sorted[first_column + c];
    areas[c] = area(boxes[c]);
    groups[c] = labels[first_column + c];
  }
  __syncthreads();
  for (int item = threadIdx.x; item < kWord * kColumnWords; item += blockDim.x) {
    const int row = first_row + item % kWord, word = first_word + item / kWord;
    if (row >= count || word * kWord >= count || word < first_row / kWord) continue;
    const Box own = sorted[row];
    const float own_area = area(own);
    const int own_group = labels[row];
    const int start = word * kWord, end = min(start + kWord, count);
    Bits bits = 0;
    for (int column = max(start, row + 1); column < end; ++column) {
      const int c = column - first_column;
      if (groups[c] == own_group &&
          overlaps(own, boxes[c], __fadd_rn(own_area, areas[c]), p.iou_threshold))
        bits |= Bits(1) << (column - start);
    }
    w.mask[(image * capacity(p) + row) * words(p) + word] = bits;
  }
}

// --- scan: one block per image ------------------------------------------------------------------

// What the scan of one image holds in shared memory besides the words that are gone.
struct Scan {
  Bits diagonal[kWord];  // the word on the diagonal of each row at hand
  int rows[kWord];       // those kept of them
  int fresh;             // how many
  int kept;              // in all
};

__device__ inline void load_diagonal(const Bits* mask, int words, int word, int count, Scan* s) {
  for (int r = threadIdx.x; r < min(kWord, count - word * kWord); r += blockDim.x)
    s->diagonal[r] = mask[static_cast<size_t>(word * kWord + r) * words + word];
}

// Keeps rows of one word in order. One thread.
__device__ inline void keep(Bits gone, int word, int count, int most, int* kept_rows, Scan* s) {
  const int rows = min(kWord, count - word * kWord);
  Bits alive = ~gone & (rows == kWord ? ~Bits(0) : (Bits(1) << rows) - 1);
  s->fresh = 0;
  while (alive != 0 && s->kept < most) {
    const int r = __ffsll(static_cast<long long>(alive)) - 1;
    alive &= ~(s->diagonal[r] | Bits(1) << r);
    s->rows[s->fresh++] = word * kWord + r;
    kept_rows[s->kept++] = word * kWord + r;
  }
}

__device__ inline void write_row(const BatchedNmsParams& p, const BatchedNmsBuffers& io,
                                 size_t image, int m, int index) {
  const size_t to = image * p.max_detections + m, from = image * p.boxes + max(index, 0);
  const bool none = index < 0;
  for (int s = 0; s < 4; ++s) io.out_boxes[4 * to + s] = none ? 0.0f : io.boxes[4 * from + s];
  io.out_scores[to] = none ? 0.0f : io.scores[from];
  io.out_classes[to] = none ? -1 : io.classes[from];
  io.out_indices[to] = index;
}

// Goes through the mask until M are kept, and writes every output.
extern "C" __global__ void __launch_bounds__(1024)
    deploykit_nms_scan(BatchedNmsParams p, BatchedNmsBuffers io) {
  __shared__ Scan s;
  DEPLOYKIT_DYNAMIC_SHARED(memory);
  Bits* gone = reinterpret_cast<Bits*>(memory);
  const Workspace w = divide(p, io.workspace);
  const size_t image = blockIdx.x;
  const int count = w.count[image], all = words(p), used = (count + kWord - 1) / kWord;
  const Bits* mask = w.mask + image * capacity(p) * all;
  int* kept_rows = io.out_indices + image * p.max_detections;
  for (int i = threadIdx.x; i < used; i += blockDim.x) gone[i] = 0;
  if (threadIdx.x == 0) s.kept = 0;
  load_diagonal(mask, all, 0, count, &s);
  for (int word = 0; word < used; ++word) {
    __syncthreads();
    if (threadIdx.x == 0) keep(gone[word], word, count, p.max_detections, kept_rows, &s);
    __syncthreads();
    if (s.kept == p.max_detections) break;  // all threads of the block
    const int later = used - word - 1;
    if (later > 0) load_diagonal(mask, all, word + 1, count, &s);
    for (int item = threadIdx.x; item < later * s.fresh; item += blockDim.x) {
      const int column = word + 1 + item % later;
      const Bits bits = mask[static_cast<size_t>(s.rows[item / later]) * all + column];
      if (bits != 0) atomicOr(&gone[column], bits);
    }
  }
  __syncthreads();
  const int* indices = w.indices + image * capacity(p);
  for (int m = threadIdx.x; m < p.max_detections; m += blockDim.x)
    write_row(p, io, image, m, m < s.kept ? indices[kept_rows[m]] : -1);
  if (threadIdx.x == 0) io.out_count[image] = s.kept;
}

}  // namespace nms
}  // namespace deploykit
