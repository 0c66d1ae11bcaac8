// Launches the kernels of roi_pool.cuh.
#include "roi_pool.cuh"

namespace deploykit {
namespace roi_pool {

inline bool valid(const RoiPoolParams& p, int element) {
  return p.batch >= 0 && p.rows >= 0 && p.channels >= 0 && p.height >= 1 && p.width >= 1 &&
         p.output_height >= 1 && p.output_height <= kMostBins && p.output_width >= 1 &&
         p.output_width <= kMostBins && p.spatial_scale > 0.0f && p.spatial_scale < INFINITY &&
         (element == kFloat || element == kHalf);
}

inline dim3 grid(const RoiPoolParams& p) {
  return dim3(static_cast<unsigned>(p.batch) * p.rows, (p.channels + kChannels - 1) / kChannels);
}

}  // namespace roi_pool
}  // namespace deploykit

// Returns 0, or a cudaError_t: cudaErrorInvalidValue for parameters out of range.
// element: of features and pooled, kFloat or kHalf of kernel.cuh.
extern "C" int deploykit_roi_pool(const RoiPoolParams* params, const float* boxes,
                                  const int* count, const void* features, void* pooled,
                                  int element, cudaStream_t stream) {
  using namespace deploykit::roi_pool;
  constexpr int kInvalidValue = 1;
  const RoiPoolParams p = *params;
  if (!valid(p, element)) return kInvalidValue;
  if (p.batch == 0 || p.rows == 0 || p.channels == 0) return 0;
  if (element == deploykit::kFloat)
    DEPLOYKIT_LAUNCH(deploykit_roi_pool_float, grid(p), kThreads, 0, stream, p, boxes, count,
                     static_cast<const float*>(features), static_cast<float*>(pooled));
  else
    DEPLOYKIT_LAUNCH(deploykit_roi_pool_half, grid(p), kThreads, 0, stream, p, boxes, count,
                     static_cast<const __half*>(features), static_cast<__half*>(pooled));
  return static_cast<int>(cudaGetLastError());
}
