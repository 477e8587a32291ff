#include "attention.h"

namespace metal_edge::plugin {

using nvinfer1::PluginTensorDesc;

std::unique_ptr<Plugin> AttentionPlugin::fresh() const {
  return std::make_unique<AttentionPlugin>(shared_node());
}

bool AttentionPlugin::sizes(nvinfer1::Dims const* in, int32_t inputs, Sizes& sizes,
                            Text& why) const noexcept {
  return attention_sizes(node().attributes, in, inputs, sizes, why);
}

bool AttentionPlugin::takes(PluginTensorDesc const* in, int32_t inputs, PluginTensorDesc const& out,
                            Text& why) const noexcept {
  Problem problem;
  return attention_problem(node().attributes, in, inputs, out, problem, why);
}

bool AttentionPlugin::prepare(PluginTensorDesc const*, int32_t, PluginTensorDesc const&,
                              Text&) noexcept {
  return true;
}

// The shapes are checked once more, which costs nothing beside a launch: whatever TensorRT shows
// here is what the kernel will believe.
int32_t AttentionPlugin::enqueue(PluginTensorDesc const* in, PluginTensorDesc const* out,
                                 void const* const* inputs, void* const* outputs, void*,
                                 cudaStream_t stream) noexcept {
  Text why;
  if (constants() == nullptr || this->inputs() == 0) {
    why.set("enqueue before onShapeChange has accepted the shapes");
    return refuse(why);
  }
  Problem problem;
  if (!attention_problem(node().attributes, in, this->inputs(), out[0], problem, why))
    return refuse(why);

  // Side by side in one tensor: a row holds query, key, value, or key, value.
  int64_t const width = problem.out_row;
  size_t const part = size_t(width) * element_bytes(in[0].type);
  auto const* const first = static_cast<unsigned char const*>(inputs[0]);
  void const *k, *v;
  switch (this->inputs()) {
    case 1: k = first + part, v = first + 2 * part; break;
    case 2: k = inputs[1], v = static_cast<unsigned char const*>(inputs[1]) + part; break;
    default: k = inputs[1], v = inputs[2]; break;
  }
  Buffers const buffers{
      first, k, v, outputs[0], constants()->mask(), constants()->tiles(), constants()->slopes()};
  int32_t const code = launch(problem, buffers, stream);
  if (code != 0) {
    why.set("launch of %s: %s", plan(problem).kernel, device_error(code).data);
    report().error(nvinfer1::ErrorCode::kFAILED_EXECUTION, why);
  }
  return code;
}

}  // namespace metal_edge::plugin
