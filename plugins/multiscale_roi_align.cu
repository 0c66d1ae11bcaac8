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

#if defined(DEPLOYKIT_TENSORRT)
// How a plugin library describes the op to TensorRT.
#include "tensorrt/element.h"

namespace deploykit {
namespace {

MultiscaleRoiAlignParams params(const Call& call) {
  const Values& values = call.values;
  const auto& scales = values.numbers("spatial_scales");
  MultiscaleRoiAlignParams p{};
  p.batch = call.size(0, 0);
  p.rows = call.size(0, 1);
  p.channels = call.size(2, 1);
  p.levels = static_cast<int>(scales.size());
  for (int level = 0; level < p.levels; ++level) {
    p.heights[level] = call.size(2 + level, 2);
    p.widths[level] = call.size(2 + level, 3);
    p.spatial_scales[level] = scales[level];
  }
  p.output_height = values.integer("output_height");
  p.output_width = values.integer("output_width");
  p.sampling_ratio = values.integer("sampling_ratio");
  p.aligned = values.integer("aligned");
  p.maximum = values.text("mode") == "max";
  p.canonical_size = values.number("canonical_size");
  p.canonical_level = values.integer("canonical_level");
  p.first_level = values.integer("first_level");
  p.level_epsilon = values.number("level_epsilon");
  p.epsilon_inside = values.integer("epsilon_inside");
  p.inclusive = values.integer("inclusive");
  p.input_scale = values.number("input_scale");
  p.output_scale = values.number("output_scale");
  return p;
}

std::string check(const Values& values, int inputs) {
  const auto scales = values.numbers("spatial_scales").size();
  if (static_cast<int>(scales) != inputs - 2)
    return std::to_string(scales) + " spatial_scales for " + std::to_string(inputs - 2) +
           " levels";
  if (values.text("mode") == "max" && values.integer("sampling_ratio") == 0)
    return "mode max needs a sampling_ratio of 1 or more";
  return "";
}

int run(const Call& call) {
  const MultiscaleRoiAlignParams p = params(call);
  return deploykit_multiscale_roi_align(
      &p, static_cast<const float*>(call.inputs[0]), static_cast<const int*>(call.inputs[1]),
      call.inputs + 2, call.outputs[0], element(call.in[2].type), call.stream);
}

const Op& described() {
  static const Op op{"DKMultiscaleRoiAlign",
                     {{"output_height", Kind::kInt, 1, 64},
                      {"output_width", Kind::kInt, 1, 64},
                      {"sampling_ratio", Kind::kInt, 0, 16},
                      {"aligned", Kind::kInt, 0, 1},
                      {"mode", Kind::kText, 0, 0, {"avg", "max"}},
                      {"spatial_scales", Kind::kFloats, kAboveZero, kFinite},
                      {"canonical_size", Kind::kFloat, kAboveZero, kFinite},
                      {"canonical_level", Kind::kInt, 0, 10},
                      {"first_level", Kind::kInt, 0, 10},
                      {"level_epsilon", Kind::kFloat, 0, 0.01},
                      {"epsilon_inside", Kind::kInt, 0, 1},
                      {"inclusive", Kind::kInt, 0, 1},
                      {"input_scale", Kind::kFloat, 0, kFinite, {}, true},
                      {"output_scale", Kind::kFloat, 0, kFinite, {}, true}},
                     {{Type::kFloat32, 3}, {Type::kInt32, 1}, {Type::kFeatures, 4}},
                     2 + kMostLevels,
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
