// What one op tells the wrapper about itself; `plugin.h` makes a TensorRT plugin of it.
#pragma once

#include <NvInferRuntime.h>

#include <string>
#include <vector>

#include "fields.h"

namespace deploykit {

// kFeatures: float32, float16, or int8 where both scales are given; one type for all of an op.
enum class Type { kFloat32, kInt32, kFeatures };

// A size of an output: a dimension of an input, a product of two of them, an attribute, or a
// number.
struct Size {
  int input = -1, axis = 0;
  int by_input = -1, by_axis = 0;
  const char* attribute = nullptr;
  int number = 0;
};
inline Size dim(int input, int axis) { return {input, axis}; }
inline Size product(Size a, Size b) { return {a.input, a.axis, b.input, b.axis}; }
inline Size attribute(const char* name) { return {-1, 0, -1, 0, name}; }
inline Size number(int value) { return {-1, 0, -1, 0, nullptr, value}; }

struct Input {
  Type type;
  int rank;
};
struct Output {
  Type type;
  std::vector<Size> sizes;
};

// Two sizes of inputs that are equal.
struct Equal {
  Size left, right;
};

// One run. The sizes are in the descriptions.
struct Call {
  const Values& values;
  const nvinfer1::PluginTensorDesc* in;
  const void* const* inputs;
  void* const* outputs;
  void* workspace;
  cudaStream_t stream;

  int size(int input, int axis) const { return static_cast<int>(in[input].dims.d[axis]); }
};

struct Op {
  const char* name;
  std::vector<Field> fields;
  std::vector<Input> inputs;
  int most_inputs;  // more than inputs.size(): the last stands for several
  std::vector<Output> outputs;
  std::vector<Equal> equal;
  // What is wrong between attributes and the number of inputs, or ""; null: nothing can be.
  std::string (*check)(const Values& values, int inputs);
  // Bytes for inputs of these sizes; null: none.
  size_t (*workspace)(const Values& values, const nvinfer1::Dims* sizes);
  // 0, or a cudaError_t.
  int (*run)(const Call& call);
};

// The ops of this library. Each is in the file that has its name, and enters itself there:
// `const Registered registered(described());`.
std::vector<const Op*>& registered_ops();
struct Registered {
  explicit Registered(const Op& op) { registered_ops().push_back(&op); }
};

}  // namespace deploykit
