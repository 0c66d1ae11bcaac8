// What a plugin library exports: its creators, and where it writes its errors.
#include <array>
#include <atomic>
#include <string>

#include "plugin.h"

namespace deploykit {
namespace {

std::atomic<nvinfer1::ILoggerFinder*>& finder() {
  static std::atomic<nvinfer1::ILoggerFinder*> found{nullptr};
  return found;
}

}  // namespace

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
  static deploykit::Creator creators[] = {deploykit::Creator(deploykit::batched_nms_op()),
                                          deploykit::Creator(deploykit::multiscale_roi_align_op()),
                                          deploykit::Creator(deploykit::roi_pool_op())};
  static std::array<nvinfer1::IPluginCreatorInterface*, 3> all = {&creators[0], &creators[1],
                                                                  &creators[2]};
  count = static_cast<int32_t>(all.size());
  return all.data();
}
