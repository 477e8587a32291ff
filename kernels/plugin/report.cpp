#include "report.h"

#include <atomic>
#include <cstdio>

namespace metal_edge::plugin {
namespace {

using nvinfer1::ILogger;

std::atomic<nvinfer1::ILoggerFinder*> finder{nullptr};

// TensorRT's `findLogger` is not declared noexcept.
ILogger* logger() noexcept {
  nvinfer1::ILoggerFinder* const known = finder.load();
  if (known == nullptr) return nullptr;
  try {
    return known->findLogger();
  } catch (...) {
    return nullptr;
  }
}

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* given) noexcept { finder.store(given); }

void log(ILogger::Severity severity, char const* message) noexcept {
  if (ILogger* const found = logger()) {
    found->log(severity, message);
  } else if (severity <= ILogger::Severity::kWARNING) {
    std::fprintf(stderr, "metal_edge plugin: %s\n", message);
  }
}

void Reporter::error(nvinfer1::ErrorCode code, Text const& why) const noexcept {
  Text full;
  full.set("%s: %s", name_, why.data);
  log(ILogger::Severity::kERROR, full.data);
  if (recorder_ != nullptr) recorder_->reportError(code, full.data);
}

void Reporter::warning(Text const& why) const noexcept {
  Text full;
  full.set("%s: %s", name_, why.data);
  log(ILogger::Severity::kWARNING, full.data);
}

}  // namespace metal_edge::plugin
