// What a plugin library exports: its creators, and where it writes its errors.
#include <atomic>
#include <deque>
#include <string>
#include <vector>

#include "plugin.h"

namespace deploykit {
namespace {

std::atomic<nvinfer1::ILoggerFinder*>& finder() {
  static std::atomic<nvinfer1::ILoggerFinder*> found{nullptr};
  return found;
}

}  // namespace

std::vector<const Op*>& registered_ops() {
  static std::vector<const Op*> all;
  return all;
}

void say(const Op& op, const char* message) noexcept {
  auto* const where = finder().load();
  auto* const logger = where == nullptr ? nullptr : where->findLogger();
  if (logger == nullptr) return;
  try {
    const std::string text = std::string(op.name) + ": " + message;
    logger->log(nvinfer1::ILogger::Severity::kERROR, text.c_str());
  } catch (const std::exception&) {
    logger->log(nvinfer1::ILogger::Severity::kERROR, message);
  }
}

}  // namespace deploykit

#define DEPLOYKIT_EXPORT extern "C" __attribute__((visibility("default")))

DEPLOYKIT_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  deploykit::finder().store(finder);
}

DEPLOYKIT_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  static std::deque<deploykit::Creator> creators;  // what points to one stays valid
  static std::vector<nvinfer1::IPluginCreatorInterface*> all;
  if (all.empty()) {
    for (const deploykit::Op* op : deploykit::registered_ops()) {
      creators.emplace_back(*op);
      all.push_back(&creators.back());
    }
  }
  count = static_cast<int32_t>(all.size());
  return all.data();
}
