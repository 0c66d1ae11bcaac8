// Launches the kernels of multiscale_crop.cuh.
#include "multiscale_crop.cuh"

namespace deploykit {
namespace crop {

inline bool valid(const MultiscaleCropParams& p, int element) {
  if (p.batch < 0 || p.rows < 0 || p.channels < 0 || p.levels < 1 || p.levels > kLevels ||
      p.output_height < 1 || p.output_height > kMostBins || p.output_width < 1 ||
      p.output_width > kMostBins || !(p.image_area > 0.0f) || !(p.canonical_size > 0.0f) ||
      (element != kFloat && element != kHalf))
    return false;
  for (int level = 0; level < p.levels; ++level)
    if (p.heights[level] < 1 || p.widths[level] < 1) return false;
  return true;
}

}  // namespace crop
}  // namespace deploykit

// Returns 0, or a cudaError_t: cudaErrorInvalidValue for parameters out of range.
// features: one pointer per level. element: of features and pooled, kFloat or kHalf of kernel.cuh.
extern "C" int deploykit_multiscale_crop(const MultiscaleCropParams* params, const float* boxes,
                                         const int* count, const void* const* features,
                                         void* pooled, int element, cudaStream_t stream) {
  using namespace deploykit::crop;
  constexpr int kInvalidValue = 1;
  const MultiscaleCropParams p = *params;
  if (!valid(p, element)) return kInvalidValue;
  if (p.batch == 0 || p.rows == 0 || p.channels == 0) return 0;
  MultiscaleCropBuffers io{boxes, count, {}, pooled};
  for (int level = 0; level < p.levels; ++level) io.features[level] = features[level];
  const dim3 grid(static_cast<unsigned>(p.batch) * p.rows, (p.channels + kChannels - 1) / kChannels);
  if (element == deploykit::kFloat)
    DEPLOYKIT_LAUNCH(deploykit_multiscale_crop_float, grid, kThreads, 0, stream, p, io);
  else
    DEPLOYKIT_LAUNCH(deploykit_multiscale_crop_half, grid, kThreads, 0, stream, p, io);
  return static_cast<int>(cudaGetLastError());
}

#if defined(DEPLOYKIT_TENSORRT)
// How a plugin library describes the op to TensorRT.
#include "tensorrt/element.h"

namespace deploykit {
namespace {

std::string check(const Values& values, int inputs) {
  const int levels = values.integer("levels");
  if (levels == inputs - 2) return "";
  return "levels is " + std::to_string(levels) + " for " + std::to_string(inputs - 2) + " maps";
}

int run(const Call& call) {
  const Values& values = call.values;
  MultiscaleCropParams p{};
  p.batch = call.size(0, 0);
  p.rows = call.size(0, 1);
  p.channels = call.size(2, 1);
  p.levels = values.integer("levels");
  for (int level = 0; level < p.levels; ++level) {
    p.heights[level] = call.size(2 + level, 2);
    p.widths[level] = call.size(2 + level, 3);
  }
  p.output_height = values.integer("output_height");
  p.output_width = values.integer("output_width");
  p.image_area = values.number("image_area");
  p.canonical_size = values.number("canonical_size");
  p.canonical_level = values.integer("canonical_level");
  p.first_level = values.integer("first_level");
  return deploykit_multiscale_crop(&p, static_cast<const float*>(call.inputs[0]),
                                   static_cast<const int*>(call.inputs[1]), call.inputs + 2,
                                   call.outputs[0], element(call.in[2].type), call.stream);
}

const Op& described() {
  static const Op op{"DKMultiscaleCrop",
                     {{"output_height", Kind::kInt, 1, 64},
                      {"output_width", Kind::kInt, 1, 64},
                      {"levels", Kind::kInt, 1, crop::kLevels},
                      {"image_area", Kind::kFloat, kAboveZero, kFinite},
                      {"canonical_size", Kind::kFloat, kAboveZero, kFinite},
                      {"canonical_level", Kind::kInt, 0, 10},
                      {"first_level", Kind::kInt, 0, 10}},
                     {{Type::kFloat32, 3}, {Type::kInt32, 1}, {Type::kFeatures, 4}},
                     2 + crop::kLevels,
                     {pooled()},
                     boxes_and_features(),
                     check,
                     nullptr,
                     run};
  return op;
}

const Registered registered(described());

}  // namespace
}  // namespace deploykit
#endif
