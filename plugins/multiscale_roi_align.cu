// Launches the kernels of multiscale_roi_align.cuh.
#include "multiscale_roi_align.cuh"

namespace deploykit {
namespace roi_align {

inline bool valid(const MultiscaleRoiAlignParams& p, int element) {
  if (p.batch < 0 || p.rows < 0 || p.channels < 0 || p.levels < 1 || p.levels > kMostLevels ||
      p.output_height < 1 || p.output_height > 64 || p.output_width < 1 || p.output_width > 64 ||
      p.sampling_ratio < 0 || p.sampling_ratio > 16 || (p.maximum && p.sampling_ratio == 0) ||
      !(p.canonical_size > 0.0f) || element < kFloat || element > kInt8)
    return false;
  for (int level = 0; level < p.levels; ++level)
    if (p.heights[level] < 1 || p.widths[level] < 1 || !(p.spatial_scales[level] > 0.0f))
      return false;
  return element != kInt8 || (p.input_scale > 0.0f && p.output_scale > 0.0f);
}

}  // namespace roi_align
}  // namespace deploykit

// Returns 0, or a cudaError_t: cudaErrorInvalidValue for parameters out of range.
// features: one pointer per level. element: of features and pooled, see `Element` in kernel.cuh.
extern "C" int deploykit_multiscale_roi_align(const MultiscaleRoiAlignParams* params,
                                              const float* boxes, const int* count,
                                              const void* const* features, void* pooled,
                                              int element, cudaStream_t stream) {
  using namespace deploykit::roi_align;
  constexpr int kInvalidValue = 1;
  MultiscaleRoiAlignParams p = *params;
  if (!valid(p, element)) return kInvalidValue;
  if (p.batch == 0 || p.rows == 0 || p.channels == 0) return 0;
  if (element != deploykit::kInt8) p.input_scale = p.output_scale = 1.0f;
  MultiscaleRoiAlignBuffers io{boxes, count, {}, pooled};
  for (int level = 0; level < p.levels; ++level) io.features[level] = features[level];
  const dim3 grid(p.batch * p.rows, (p.channels + kChannels - 1) / kChannels);
  const unsigned shared = shared_bytes(p);
  if (element == deploykit::kFloat)
    DEPLOYKIT_LAUNCH(deploykit_multiscale_roi_align_float, grid, kThreads, shared, stream, p, io);
  else if (element == deploykit::kHalf)
    DEPLOYKIT_LAUNCH(deploykit_multiscale_roi_align_half, grid, kThreads, shared, stream, p, io);
  else
    DEPLOYKIT_LAUNCH(deploykit_multiscale_roi_align_int8, grid, kThreads, shared, stream, p, io);
  return static_cast<int>(cudaGetLastError());
}
