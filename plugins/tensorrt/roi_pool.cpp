// DKRoiPool. Compiled as CUDA, with its launcher.
#include "../roi_pool.cu"

#include "element.h"

namespace deploykit {
namespace {

int run(const Call& call) {
  const Values& values = call.values;
  RoiPoolParams p{};
  p.batch = call.size(0, 0);
  p.rows = call.size(0, 1);
  p.channels = call.size(2, 1);
  p.height = call.size(2, 2);
  p.width = call.size(2, 3);
  p.output_height = values.integer("output_height");
  p.output_width = values.integer("output_width");
  p.spatial_scale = values.number("spatial_scale");
  return deploykit_roi_pool(&p, static_cast<const float*>(call.inputs[0]),
                            static_cast<const int*>(call.inputs[1]), call.inputs[2],
                            call.outputs[0], element(call.in[2].type), call.stream);
}

}  // namespace

const Op& roi_pool_op() {
  static const Op op{"DKRoiPool",
                     {{"output_height", Kind::kInt, 1, 64},
                      {"output_width", Kind::kInt, 1, 64},
                      {"spatial_scale", Kind::kFloat, kAboveZero, kFinite}},
                     {{Type::kFloat32, 3}, {Type::kInt32, 1}, {Type::kFeatures, 4}},
                     3,
                     {pooled()},
                     boxes_and_features(),
                     nullptr,
                     nullptr,
                     run};
  return op;
}

}  // namespace deploykit
