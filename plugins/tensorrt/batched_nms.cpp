// DKBatchedNms. Compiled as CUDA, with its launcher.
#include "../batched_nms.cu"

#include "op.h"

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

}  // namespace

const Op& batched_nms_op() {
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

}  // namespace deploykit
