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

#if defined(DEPLOYKIT_TENSORRT)
// How a plugin library describes the op to TensorRT.
#include "tensorrt/element.h"

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

const Op& described() {
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

const Registered registered(described());

}  // namespace
}  // namespace deploykit
#endif
