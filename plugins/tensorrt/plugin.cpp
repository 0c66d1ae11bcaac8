#include "plugin.h"

#include <algorithm>
#include <new>
#include <string>

namespace deploykit {

using nvinfer1::DataType;
using nvinfer1::DimensionOperation;
using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginTensorDesc;

namespace {

constexpr int kMostInputs = 16;

const nvinfer1::IDimensionExpr* expression(const Size& size, const Values& values,
                                           const DimsExprs* given,
                                           nvinfer1::IExprBuilder& builder) {
  if (size.attribute != nullptr) return builder.constant(values.integer(size.attribute));
  if (size.input < 0) return builder.constant(size.number);
  const auto* first = given[size.input].d[size.axis];
  if (size.by_input < 0) return first;
  return builder.operation(DimensionOperation::kPROD, *first,
                           *given[size.by_input].d[size.by_axis]);
}

// What a size of the inputs is where it is known, else -1.
int64_t known(const Size& size, const DimsExprs* given) {
  if (size.input < 0) return size.number;
  const auto* found = given[size.input].d[size.axis];
  return found->isConstant() ? found->getConstantValue() : -1;
}

}  // namespace

// --- the plugin ------------------------------------------------------------------------------

int32_t Plugin::features() const {
  const auto found = std::find_if(op_.inputs.begin(), op_.inputs.end(), [](const Input& input) {
    return input.type == Type::kFeatures;
  });
  return static_cast<int32_t>(found - op_.inputs.begin());
}

const Input& Plugin::input(int32_t place) const {
  return op_.inputs[std::min<size_t>(place, op_.inputs.size() - 1)];
}

bool Plugin::allows(DataType type) const {
  if (type == DataType::kFLOAT || type == DataType::kHALF) return true;
  const bool scaled = std::any_of(op_.fields.begin(), op_.fields.end(), [](const Field& field) {
    return std::string(field.name) == "input_scale";
  });
  return type == DataType::kINT8 && scaled && values_.number("input_scale") > 0.0f &&
         values_.number("output_scale") > 0.0f;
}

void Plugin::check(const DimsExprs* given, int32_t inputs) const {
  const auto least = static_cast<int32_t>(op_.inputs.size());
  if (inputs < least || inputs > op_.most_inputs)
    throw Refused(std::to_string(inputs) + " inputs; expected " + std::to_string(least) + " to " +
                  std::to_string(op_.most_inputs));
  for (int32_t i = 0; i < inputs; ++i)
    if (given[i].nbDims != input(i).rank)
      throw Refused("input " + std::to_string(i) + " has " + std::to_string(given[i].nbDims) +
                    " dimensions; expected " + std::to_string(input(i).rank));
  for (const Equal& pair : op_.equal) {
    const int64_t left = known(pair.left, given), right = known(pair.right, given);
    if (left >= 0 && right >= 0 && left != right)
      throw Refused("dimension " + std::to_string(pair.left.axis) + " of input " +
                    std::to_string(pair.left.input) + " is " + std::to_string(left) +
                    "; expected " + std::to_string(right));
  }
  const std::string wrong = op_.check == nullptr ? "" : op_.check(values_, inputs);
  if (!wrong.empty()) throw Refused(wrong);
}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(
    nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* Plugin::clone() noexcept {
  try {
    return new Plugin(op_, values_);
  } catch (const std::exception& error) {
    say(op_, error.what());
    return nullptr;
  }
}

int32_t Plugin::getOutputDataTypes(DataType* types, int32_t outputs, const DataType* given,
                                   int32_t inputs) const noexcept {
  for (int32_t i = 0; i < outputs; ++i) {
    const Type type = op_.outputs[i].type;
    types[i] = type == Type::kFloat32  ? DataType::kFLOAT
               : type == Type::kInt32 ? DataType::kINT32
                                      : given[std::min(features(), inputs - 1)];
  }
  return 0;
}

int32_t Plugin::getOutputShapes(const DimsExprs* given, int32_t inputs, const DimsExprs*, int32_t,
                                DimsExprs* shapes, int32_t outputs,
                                nvinfer1::IExprBuilder& builder) noexcept {
  try {
    check(given, inputs);
    for (int32_t i = 0; i < outputs; ++i) {
      const auto& sizes = op_.outputs[i].sizes;
      shapes[i].nbDims = static_cast<int32_t>(sizes.size());
      for (size_t axis = 0; axis < sizes.size(); ++axis)
        shapes[i].d[axis] = expression(sizes[axis], values_, given, builder);
    }
    return 0;
  } catch (const std::exception& error) {
    say(op_, error.what());
    return 1;
  }
}

bool Plugin::supportsFormatCombination(int32_t place, const DynamicPluginTensorDesc* all,
                                       int32_t inputs, int32_t) noexcept {
  const PluginTensorDesc& asked = all[place].desc;
  if (asked.format != nvinfer1::TensorFormat::kLINEAR) return false;
  const Type type = place < inputs ? input(place).type : op_.outputs[place - inputs].type;
  if (type == Type::kFloat32) return asked.type == DataType::kFLOAT;
  if (type == Type::kInt32) return asked.type == DataType::kINT32;
  const int32_t first = features();
  return place <= first ? allows(asked.type) : asked.type == all[first].desc.type;
}

size_t Plugin::getWorkspaceSize(const DynamicPluginTensorDesc* given, int32_t inputs,
                                const DynamicPluginTensorDesc*, int32_t) const noexcept {
  nvinfer1::Dims sizes[kMostInputs];
  for (int32_t i = 0; i < std::min(inputs, kMostInputs); ++i) sizes[i] = given[i].max;
  return op_.workspace == nullptr ? 0 : op_.workspace(values_, sizes);
}

int32_t Plugin::enqueue(const PluginTensorDesc* in, const PluginTensorDesc*,
                        const void* const* inputs, void* const* outputs, void* workspace,
                        cudaStream_t stream) noexcept {
  try {
    const int status = op_.run({values_, in, inputs, outputs, workspace, stream});
    if (status != 0) say(op_, ("CUDA error " + std::to_string(status)).c_str());
    return status;
  } catch (const std::exception& error) {
    say(op_, error.what());
    return 1;
  }
}

const PluginFieldCollection* Plugin::getFieldsToSerialize() noexcept {
  try {
    written_ = values_.fields();
  } catch (const std::exception& error) {
    say(op_, error.what());
    return nullptr;
  }
  collection_ = {static_cast<int32_t>(written_.size()), written_.data()};
  return &collection_;
}

// --- its creator -----------------------------------------------------------------------------

Creator::Creator(const Op& op) : op_(op) {
  for (const Field& field : op.fields)
    fields_.emplace_back(field.name, nullptr, field_type(field.kind), 1);
  names_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
}

nvinfer1::IPluginV3* Creator::createPlugin(const char* name, const PluginFieldCollection* given,
                                           nvinfer1::TensorRTPhase) noexcept {
  try {
    if (given == nullptr) throw Refused("no attributes");
    return new Plugin(op_, Values(op_.fields, *given));
  } catch (const std::exception& error) {
    try {
      say(op_, ((name == nullptr ? "" : name) + std::string(": ") + error.what()).c_str());
    } catch (const std::bad_alloc&) {
      say(op_, "out of memory");
    }
    return nullptr;
  }
}

}  // namespace deploykit
