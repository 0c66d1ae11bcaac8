// Launches the kernels of batched_nms.cuh.
#include "batched_nms.cuh"

#include <cstdio>
#include <cstdlib>

namespace deploykit {
namespace nms {

constexpr int kMostCandidates = 1 << 17;  // 16 KiB of shared memory in the scan

struct Geometry {
  dim3 grid;
  unsigned block;
  unsigned shared;  // bytes of dynamic shared memory
};

inline unsigned blocks(int items, int per_block) {
  return static_cast<unsigned>((items + per_block - 1) / per_block);
}
inline Geometry select_geometry(const BatchedNmsParams& p) {
  return {dim3(p.batch), 1024, 0};
}
inline Geometry sort_geometry(const BatchedNmsParams& p) {
  const unsigned pairs = tile(p) / 2 > 32 ? tile(p) / 2 : 32;
  return {dim3(tiles(p), p.batch), pairs < 1024 ? pairs : 1024,
          static_cast<unsigned>(tile(p) * sizeof(Bits))};
}
inline Geometry gather_geometry(const BatchedNmsParams& p) {
  return {dim3(blocks(capacity(p), 256), p.batch), 256, 0};
}
inline Geometry overlap_geometry(const BatchedNmsParams& p) {
  return {dim3(blocks(words(p), kColumnWords), words(p), p.batch), kWord * kColumnWords, 0};
}
inline Geometry scan_geometry(const BatchedNmsParams& p) {
  return {dim3(p.batch), 512, static_cast<unsigned>(words(p) * sizeof(Bits))};
}

// What the kernels compare a float32 IoU with, so that it says what the threshold in decimals
// says in float64: 0.6 as float32 is above 0.6. The decimal is the shortest that gives the float.
inline float limit(float threshold) {
  char text[32];
  for (int digits = 1; digits <= 9; ++digits) {
    std::snprintf(text, sizeof text, "%.*g", digits, static_cast<double>(threshold));
    if (std::strtof(text, nullptr) == threshold) break;
  }
  const double meant = std::strtod(text, nullptr);
  return static_cast<double>(threshold) <= meant ? threshold : nextafterf(threshold, -1.0f);
}

inline bool valid(const BatchedNmsParams& p) {
  return p.batch >= 0 && p.batch <= 65535 && p.boxes >= 0 && p.candidates >= 1 &&
         p.candidates <= kMostCandidates && p.max_detections >= 1 && p.iou_threshold >= 0.0f &&
         p.iou_threshold <= 1.0f && p.score_threshold == p.score_threshold;
}

}  // namespace nms
}  // namespace deploykit

// Returns the bytes of workspace that a call needs.
extern "C" size_t deploykit_batched_nms_workspace(const BatchedNmsParams* params) {
  return deploykit::nms::workspace_bytes(*params);
}

// Returns 0, or a cudaError_t: cudaErrorInvalidValue for parameters out of range.
extern "C" int deploykit_batched_nms(const BatchedNmsParams* params, const float* boxes,
                                     const float* scores, const int* classes, float* out_boxes,
                                     float* out_scores, int* out_classes, int* out_indices,
                                     int* out_count, void* workspace, cudaStream_t stream) {
  using namespace deploykit::nms;
  constexpr int kInvalidValue = 1;
  BatchedNmsParams p = *params;
  if (!valid(p)) return kInvalidValue;
  if (p.batch == 0) return 0;
  p.iou_threshold = limit(p.iou_threshold);
  const BatchedNmsBuffers io{boxes,       scores,      classes,   out_boxes, out_scores,
                             out_classes, out_indices, out_count, workspace};
  Geometry g = select_geometry(p);
  DEPLOYKIT_LAUNCH(deploykit_nms_select, g.grid, g.block, g.shared, stream, p, io);
  if (capacity(p) > 0) {
    g = sort_geometry(p);
    DEPLOYKIT_LAUNCH(deploykit_nms_sort, g.grid, g.block, g.shared, stream, p, io);
    g = gather_geometry(p);
    DEPLOYKIT_LAUNCH(deploykit_nms_gather, g.grid, g.block, g.shared, stream, p, io);
    g = overlap_geometry(p);
    DEPLOYKIT_LAUNCH(deploykit_nms_overlap, g.grid, g.block, g.shared, stream, p, io);
  }
  g = scan_geometry(p);
  DEPLOYKIT_LAUNCH(deploykit_nms_scan, g.grid, g.block, g.shared, stream, p, io);
  return static_cast<int>(cudaGetLastError());
}

#if defined(DEPLOYKIT_TENSORRT)
// How a plugin library describes the op to TensorRT.
#include "tensorrt/op.h"

namespace deploykit {
namespace {

constexpr double kMost = 3840;  // of candidates and of results

BatchedNmsParams params(const Values& values, const nvinfer1::Dims& boxes) {
  BatchedNmsParams p{};
  p.batch = static_cast<int>(boxes.d[0]);
  p.boxes = static_cast<int>(boxes.d[1]);
  p.candidates = values.integer("candidates");
  p.max_detections = values.integer("max_detections");
  p.iou_threshold = values.number("iou_threshold");
  p.score_threshold = values.number("score_threshold");
  p.class_agnostic = values.integer("class_agnostic");
  p.offset_grouping = values.text("grouping") == "offset";
  return p;
}

size_t workspace(const Values& values, const nvinfer1::Dims* sizes) {
  const BatchedNmsParams p = params(values, sizes[0]);
  return deploykit_batched_nms_workspace(&p);
}

int run(const Call& call) {
  const BatchedNmsParams p = params(call.values, call.in[0].dims);
  return deploykit_batched_nms(
      &p, static_cast<const float*>(call.inputs[0]), static_cast<const float*>(call.inputs[1]),
      static_cast<const int*>(call.inputs[2]), static_cast<float*>(call.outputs[0]),
      static_cast<float*>(call.outputs[1]), static_cast<int*>(call.outputs[2]),
      static_cast<int*>(call.outputs[3]), static_cast<int*>(call.outputs[4]), call.workspace,
      call.stream);
}

const Op& described() {
  static const Size batch = dim(0, 0), rows = attribute("max_detections");
  static const Op op{
      "DKBatchedNms",
      {{"iou_threshold", Kind::kFloat, 0.0, 1.0},
       {"score_threshold", Kind::kFloat, -kFinite, kFinite},
       {"candidates", Kind::kInt, 1, kMost},
       {"max_detections", Kind::kInt, 1, kMost},
       {"class_agnostic", Kind::kInt, 0, 1},
       {"grouping", Kind::kText, 0, 0, {"mask", "offset"}}},
      {{Type::kFloat32, 3}, {Type::kFloat32, 2}, {Type::kInt32, 2}},
      3,
      {{Type::kFloat32, {batch, rows, number(4)}},
       {Type::kFloat32, {batch, rows}},
       {Type::kInt32, {batch, rows}},
       {Type::kInt32, {batch, rows}},
       {Type::kInt32, {batch}}},
      {{dim(0, 2), number(4)}, {dim(1, 1), dim(0, 1)}, {dim(2, 1), dim(0, 1)}},
      nullptr,
      workspace,
      run};
  return op;
}

const Registered registered(described());

}  // namespace
}  // namespace deploykit
#endif
