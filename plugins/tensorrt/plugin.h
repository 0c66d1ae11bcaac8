// An op as a TensorRT plugin (IPluginV3) and its creator.
//
// No CUDA call is made before `enqueue`: engines are built ahead of time on machines without a
// GPU.
#pragma once

#include <NvInferRuntime.h>

#include <vector>

#include "op.h"

namespace deploykit {

constexpr const char* kNamespace = "deploykit";
constexpr const char* kVersion = "1";

// Writes an error to the log of whoever loaded the library.
void say(const Op& op, const char* message) noexcept;

class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
 public:
  Plugin(const Op& op, Values values) : op_(op), values_(std::move(values)) {}

  // IPluginV3
  nvinfer1::IPluginCapability* getCapabilityInterface(
      nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  // IPluginV3OneCore
  const char* getPluginName() const noexcept override { return op_.name; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

  // IPluginV3OneBuild
  int32_t getNbOutputs() const noexcept override {
    return static_cast<int32_t>(op_.outputs.size());
  }
  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc*, int32_t,
                          const nvinfer1::DynamicPluginTensorDesc*, int32_t) noexcept override {
    return 0;
  }
  int32_t getOutputDataTypes(nvinfer1::DataType* types, int32_t outputs,
                             const nvinfer1::DataType* given,
                             int32_t inputs) const noexcept override;
  int32_t getOutputShapes(const nvinfer1::DimsExprs* given, int32_t inputs,
                          const nvinfer1::DimsExprs*, int32_t, nvinfer1::DimsExprs* shapes,
                          int32_t outputs, nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t place, const nvinfer1::DynamicPluginTensorDesc* all,
                                 int32_t inputs, int32_t outputs) noexcept override;
  size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* given, int32_t inputs,
                          const nvinfer1::DynamicPluginTensorDesc*,
                          int32_t) const noexcept override;

  // IPluginV3OneRuntime
  int32_t onShapeChange(const nvinfer1::PluginTensorDesc*, int32_t,
                        const nvinfer1::PluginTensorDesc*, int32_t) noexcept override {
    return 0;
  }
  int32_t enqueue(const nvinfer1::PluginTensorDesc* in, const nvinfer1::PluginTensorDesc*,
                  const void* const* inputs, void* const* outputs, void* workspace,
                  cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override {
    return clone();
  }
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

 private:
  // The place of the first input that has the op's own type; behind the last where none has.
  int32_t features() const;
  // The description of an input; the last stands for all from it on.
  const Input& input(int32_t place) const;
  // Throws Refused.
  void check(const nvinfer1::DimsExprs* given, int32_t inputs) const;
  // Whether a tensor of the op's features may have this type.
  bool allows(nvinfer1::DataType type) const;

  const Op& op_;
  const Values values_;
  std::vector<nvinfer1::PluginField> written_;
  nvinfer1::PluginFieldCollection collection_{};
};

class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit Creator(const Op& op);
  nvinfer1::IPluginV3* createPlugin(const char*, const nvinfer1::PluginFieldCollection* given,
                                    nvinfer1::TensorRTPhase) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &names_; }
  const char* getPluginName() const noexcept override { return op_.name; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

 private:
  const Op& op_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection names_{};
};

}  // namespace deploykit
