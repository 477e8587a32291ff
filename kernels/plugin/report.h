// Where messages go: TensorRT's logger, and the error recorder of the execution context if it has one.
#pragma once
#include <NvInferRuntime.h>

#include <exception>

#include "text.h"

namespace metal_edge::plugin {

// TensorRT gives the finder when it loads the library; null, as before that: standard error instead.
void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;

void log(nvinfer1::ILogger::Severity severity, char const* message) noexcept;

// Errors of one operator: "MaskedAttention: heads is 0, ..." to the logger and to the recorder.
class Reporter {
 public:
  explicit Reporter(char const* operator_name) noexcept : name_(operator_name) {}
  void set_recorder(nvinfer1::IErrorRecorder* recorder) noexcept { recorder_ = recorder; }
  void error(nvinfer1::ErrorCode code, Text const& why) const noexcept;
  void warning(Text const& why) const noexcept;

 private:
  char const* name_;
  nvinfer1::IErrorRecorder* recorder_ = nullptr;
};

// Runs what may throw (allocation); no exception may reach TensorRT.
template <typename Function, typename Result>
Result guarded(Reporter const& report, Result failed, Function function) noexcept {
  Text why;
  try {
    return function();
  } catch (std::exception const& error) {
    why.set("%s", error.what());
  } catch (...) {
    why.set("an unknown exception");
  }
  report.error(nvinfer1::ErrorCode::kFAILED_ALLOCATION, why);
  return failed;
}

}  // namespace metal_edge::plugin
