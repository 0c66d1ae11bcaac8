// DKMultiscaleRoiAlign. Compiled as CUDA, with its launcher.
#include "../multiscale_roi_align.cu"

#include "element.h"

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

}  // namespace

const Op& multiscale_roi_align_op() {
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

}  // namespace deploykit
