// Launches the kernels of assemble.cuh.
#include "assemble.cuh"

namespace deploykit {
namespace assemble {

inline bool valid(const AssembleParams& p, int element) {
  return p.batch >= 0 && p.count >= 0 && p.height >= 1 && p.width >= 1 && p.bins >= 1 &&
         p.bins <= 16 && p.window >= 1 && p.window <= 64 &&
         (element == kFloat || element == kHalf);
}

}  // namespace assemble
}  // namespace deploykit

// Returns 0, or a cudaError_t: cudaErrorInvalidValue for parameters out of range.
// element: of maps and windows, kFloat or kHalf of kernel.cuh.
extern "C" int deploykit_assemble(const AssembleParams* params, const void* maps,
                                  const int* positions, void* windows, int element,
                                  cudaStream_t stream) {
  using namespace deploykit::assemble;
  constexpr int kInvalidValue = 1;
  const AssembleParams p = *params;
  if (!valid(p, element)) return kInvalidValue;
  if (p.batch == 0 || p.count == 0) return 0;
  const dim3 grid(static_cast<unsigned>(p.batch) * p.count);
  if (element == deploykit::kFloat)
    DEPLOYKIT_LAUNCH(deploykit_assemble_float, grid, kThreads, 0, stream, p,
                     static_cast<const float*>(maps), positions, static_cast<float*>(windows));
  else
    DEPLOYKIT_LAUNCH(deploykit_assemble_half, grid, kThreads, 0, stream, p,
                     static_cast<const __half*>(maps), positions, static_cast<__half*>(windows));
  return static_cast<int>(cudaGetLastError());
}

#if defined(DEPLOYKIT_TENSORRT)
// How a plugin library describes the op to TensorRT.
#include "tensorrt/element.h"

namespace deploykit {
namespace {

int run(const Call& call) {
  AssembleParams p{};
  p.batch = call.size(0, 0);
  p.count = call.size(1, 1);
  p.height = call.size(0, 2);
  p.width = call.size(0, 3);
  p.bins = call.values.integer("bins");
  p.window = call.values.integer("window");
  return deploykit_assemble(&p, call.inputs[0], static_cast<const int*>(call.inputs[1]),
                            call.outputs[0], element(call.in[0].type), call.stream);
}

const Op& described() {
  static const Op op{"DKAssemble",
                     {{"bins", Kind::kInt, 1, 16}, {"window", Kind::kInt, 1, 64}},
                     {{Type::kFeatures, 4}, {Type::kInt32, 2}},
                     2,
                     {{Type::kFeatures, {dim(0, 0), dim(1, 1), attribute("window"), attribute("window")}}},
                     {{dim(1, 0), dim(0, 0)}},
                     nullptr,
                     nullptr,
                     run};
  return op;
}

const Registered registered(described());

}  // namespace
}  // namespace deploykit
#endif
