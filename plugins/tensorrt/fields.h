// The attributes of an op as TensorRT plugin fields: described by a table, checked, kept, written.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace deploykit {

// Limits of a number.
constexpr double kFinite = 3.4028234663852886e38;
constexpr double kAboveZero = 1.1754943508222875e-38;

enum class Kind { kInt, kFloat, kFloats, kText };

// One attribute. Numbers are from `least` to `most`, a list has one to five of them.
struct Field {
  const char* name;
  Kind kind;
  double least = 0.0, most = 1.0;
  std::vector<std::string> choices = {};  // of a text
  bool optional = false;                  // absent: 0
};

// What a creator refuses: the message names the attribute.
struct Refused : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The attributes of one node.
class Values {
 public:
  // Throws Refused where one is absent, of another type, out of range, or not the op's.
  Values(const std::vector<Field>& fields, const nvinfer1::PluginFieldCollection& given);

  int integer(const char* name) const { return integers_.at(name); }
  float number(const char* name) const { return numbers_.at(name).at(0); }
  const std::vector<float>& numbers(const char* name) const { return numbers_.at(name); }
  const std::string& text(const char* name) const { return texts_.at(name); }

  // Every attribute as a field; it points into this object.
  std::vector<nvinfer1::PluginField> fields() const;

 private:
  void take(const Field& field, const nvinfer1::PluginField& given);

  std::map<std::string, int32_t> integers_;
  std::map<std::string, std::vector<float>> numbers_;
  std::map<std::string, std::string> texts_;
};

// The type that a field of this kind has in TensorRT.
nvinfer1::PluginFieldType field_type(Kind kind);

}  // namespace deploykit
