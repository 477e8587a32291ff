// What TensorRT finds when it loads the library: the creators, and a place for its logger.
#include <NvInferRuntime.h>

#include "attention.h"
#include "block.h"
#include "fields.h"

#define METAL_EDGE_EXPORT extern "C" __attribute__((visibility("default")))

namespace metal_edge::plugin {
namespace {

using namespace nvinfer1;

template <typename Made>
class Creator final : public IPluginCreatorV3One {
 public:
  // Null, and a message to the logger, for attributes that no kernel would take.
  IPluginV3* createPlugin(AsciiChar const* layer, PluginFieldCollection const* fields,
                          TensorRTPhase) noexcept override {
    Reporter const report(Made::kName);
    return guarded(report, static_cast<IPluginV3*>(nullptr), [&]() -> IPluginV3* {
      Text why;
      if (auto node = make_node(Made::kName, Made::kBlock, layer, fields, why))
        return new Made(std::move(node));
      Text named;
      named.set("layer '%.64s': %.400s", layer == nullptr ? "" : layer, why.data);
      report.error(ErrorCode::kINVALID_ARGUMENT, named);
      return nullptr;
    });
  }

  PluginFieldCollection const* getFieldNames() noexcept override { return &field_names(Made::kBlock); }
  AsciiChar const* getPluginName() const noexcept override { return Made::kName; }
  AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
  AsciiChar const* getPluginNamespace() const noexcept override { return kNamespace; }
};

}  // namespace
}  // namespace metal_edge::plugin

METAL_EDGE_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  using namespace metal_edge::plugin;
  static Creator<AttentionPlugin> attention;
  static Creator<BlockPlugin> block;
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&attention, &block};
  count = 2;
  return creators;
}

METAL_EDGE_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  metal_edge::plugin::set_logger_finder(finder);
}

// "1 TensorRT-10.3 CUDA-12.6": the operators' version, and what the library was built with.
METAL_EDGE_EXPORT char const* metal_edge_plugin_version() {
  static metal_edge::plugin::Text const text = [] {
    metal_edge::plugin::Text made;
    made.set("%s TensorRT-%d.%d %s", metal_edge::plugin::kVersion, NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR,
             METAL_EDGE_BACKEND);
    return made;
  }();
  return text.data;
}
