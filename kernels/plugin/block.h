// The plugin of MaskedAttentionBlock.
#pragma once
#include "plugin.h"

namespace metal_edge::plugin {

class BlockPlugin final : public Plugin {
 public:
  static constexpr char const* kName = "MaskedAttentionBlock";
  static constexpr bool kBlock = true;

  using Plugin::Plugin;

  size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* in, int32_t inputs,
                          nvinfer1::DynamicPluginTensorDesc const* out,
                          int32_t outputs) const noexcept override;
  int32_t enqueue(nvinfer1::PluginTensorDesc const* in, nvinfer1::PluginTensorDesc const* out,
                  void const* const* inputs, void* const* outputs, void* workspace,
                  cudaStream_t stream) noexcept override;

 protected:
  std::unique_ptr<Plugin> fresh() const override;
  bool sizes(nvinfer1::Dims const* in, int32_t inputs, Sizes& sizes, Text& why) const noexcept override;
  bool takes(nvinfer1::PluginTensorDesc const* in, int32_t inputs, nvinfer1::PluginTensorDesc const& out,
             Text& why) const noexcept override;
  bool prepare(nvinfer1::PluginTensorDesc const* in, int32_t inputs,
               nvinfer1::PluginTensorDesc const& out, Text& why) noexcept override;

 private:
  // Counts blocks that have arrived. A launch leaves it zero, which TensorRT's workspace would not
  // keep; so it is ours, one per context, because contexts may run at the same time.
  DeviceMemory arrivals_;
};

}  // namespace metal_edge::plugin
