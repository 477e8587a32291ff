// The plugin of MaskedAttention.
#pragma once
#include "plugin.h"

namespace metal_edge::plugin {

class AttentionPlugin final : public Plugin {
 public:
  static constexpr char const* kName = "MaskedAttention";
  static constexpr bool kBlock = false;

  using Plugin::Plugin;

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
};

}  // namespace metal_edge::plugin
