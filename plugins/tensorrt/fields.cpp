#include "fields.h"

#include <algorithm>
#include <cstring>
#include <sstream>

namespace deploykit {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

constexpr int kMostNumbers = 5;
constexpr int kMostLetters = 64;

// What TensorRT adds to the attributes of an ONNX node, and what names the op itself.
const char* const kNotOurs[] = {"plugin_namespace", "plugin_version"};

[[noreturn]] void refuse(const Field& field, const std::string& found) {
  std::ostringstream message;
  message << field.name << " is " << found << "; expected ";
  if (field.kind == Kind::kText) {
    for (size_t i = 0; i < field.choices.size(); ++i)
      message << (i ? " or " : "") << field.choices[i];
  } else {
    message << (field.kind == Kind::kInt ? "an integer" : "a number") << " from " << field.least
            << " to " << field.most;
    if (field.kind == Kind::kFloats) message << ", 1 to " << kMostNumbers << " of them";
  }
  throw Refused(message.str());
}

template <typename T>
std::string shown(T value) {
  std::ostringstream text;
  text << value;
  return text.str();
}

// A double passes exactly where a NaN does not.
void check(const Field& field, double value) {
  if (!(value >= field.least && value <= field.most)) refuse(field, shown(value));
}

int64_t integer_at(const PluginField& given, const Field& field) {
  if (given.type == PluginFieldType::kINT32) return *static_cast<const int32_t*>(given.data);
  if (given.type == PluginFieldType::kINT64) return *static_cast<const int64_t*>(given.data);
  refuse(field, "of another type");
}

std::vector<float> numbers_at(const PluginField& given, const Field& field) {
  if (given.type != PluginFieldType::kFLOAT32) refuse(field, "of another type");
  const auto* data = static_cast<const float*>(given.data);
  return {data, data + given.length};
}

// Text may or may not end in a zero that counts.
std::string text_at(const PluginField& given, const Field& field) {
  if (given.type != PluginFieldType::kCHAR) refuse(field, "of another type");
  const auto* data = static_cast<const char*>(given.data);
  const size_t most = static_cast<size_t>(std::min(given.length, kMostLetters));
  return {data, strnlen(data, most)};
}

}  // namespace

PluginFieldType field_type(Kind kind) {
  switch (kind) {
    case Kind::kInt: return PluginFieldType::kINT32;
    case Kind::kText: return PluginFieldType::kCHAR;
    default: return PluginFieldType::kFLOAT32;
  }
}

Values::Values(const std::vector<Field>& fields, const nvinfer1::PluginFieldCollection& given) {
  std::map<std::string, const PluginField*> found;
  for (int32_t i = 0; i < given.nbFields; ++i)
    if (given.fields[i].name != nullptr) found[given.fields[i].name] = &given.fields[i];
  for (const char* name : kNotOurs) found.erase(name);
  for (const Field& field : fields) {
    const auto at = found.find(field.name);
    if (at != found.end()) {
      take(field, *at->second);
      found.erase(at);
    } else if (field.optional) {
      numbers_[field.name] = {0.0f};
    } else {
      throw Refused(std::string("the attribute ") + field.name + " is missing");
    }
  }
  if (!found.empty()) throw Refused("there is no attribute " + found.begin()->first);
}

void Values::take(const Field& field, const PluginField& given) {
  const bool list = field.kind == Kind::kFloats, text = field.kind == Kind::kText;
  const int32_t most = list ? kMostNumbers : text ? kMostLetters : 1;
  if (given.data == nullptr || given.length < 1 || given.length > most)
    refuse(field, shown(given.length) + " values");
  if (field.kind == Kind::kInt) {
    const int64_t value = integer_at(given, field);
    check(field, static_cast<double>(value));
    integers_[field.name] = static_cast<int32_t>(value);
  } else if (text) {
    const std::string value = text_at(given, field);
    const auto& known = field.choices;
    if (std::find(known.begin(), known.end(), value) == known.end()) refuse(field, value);
    texts_[field.name] = value;
  } else {
    numbers_[field.name] = numbers_at(given, field);
    for (const float value : numbers_[field.name]) check(field, value);
  }
}

std::vector<PluginField> Values::fields() const {
  std::vector<PluginField> all;
  for (const auto& [name, value] : integers_)
    all.emplace_back(name.c_str(), &value, PluginFieldType::kINT32, 1);
  for (const auto& [name, value] : numbers_)
    all.emplace_back(name.c_str(), value.data(), PluginFieldType::kFLOAT32,
                     static_cast<int32_t>(value.size()));
  for (const auto& [name, value] : texts_)
    all.emplace_back(name.c_str(), value.data(), PluginFieldType::kCHAR,
                     static_cast<int32_t>(value.size()));
  return all;
}

}  // namespace deploykit
