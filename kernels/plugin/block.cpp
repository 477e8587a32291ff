#include "block.h"

namespace metal_edge::plugin {

using namespace nvinfer1;

std::unique_ptr<Plugin> BlockPlugin::fresh() const {
  return std::make_unique<BlockPlugin>(shared_node());
}

bool BlockPlugin::sizes(Dims const* in, int32_t inputs, Sizes& sizes, Text& why) const noexcept {
  return block_sizes(node().attributes, in, inputs, sizes, why);
}

bool BlockPlugin::takes(PluginTensorDesc const* in, int32_t inputs, PluginTensorDesc const& out,
                        Text& why) const noexcept {
  BlockProblem problem;
  return block_problem(node().attributes, in, inputs, out, problem, why);
}

// For the largest shapes of the profile, which configurePlugin has accepted.
size_t BlockPlugin::getWorkspaceSize(DynamicPluginTensorDesc const* in, int32_t inputs,
                                     DynamicPluginTensorDesc const* out, int32_t) const noexcept {
  if (inputs < 1 || inputs > kMaxInputs) return 0;
  PluginTensorDesc largest[kMaxInputs + 1];
  for (int32_t i = 0; i <= inputs; ++i) {
    largest[i] = i < inputs ? in[i].desc : out[0].desc;
    largest[i].dims = i < inputs ? in[i].max : out[0].max;
  }
  BlockProblem problem;
  Text why;
  if (block_problem(node().attributes, largest, inputs, largest[inputs], problem, why))
    return workspace_bytes(problem);
  refuse(why);
  return 0;  // enqueue refuses too: it checks the same
}

bool BlockPlugin::prepare(PluginTensorDesc const* in, int32_t inputs, PluginTensorDesc const& out,
                          Text& why) noexcept {
  BlockProblem problem;
  if (!block_problem(node().attributes, in, inputs, out, problem, why)) return false;
  size_t const bytes = size_t(arrival_count(problem)) * sizeof(int32_t);
  return bytes <= arrivals_.size() || arrivals_.zeros(bytes, why);
}

int32_t BlockPlugin::enqueue(PluginTensorDesc const* in, PluginTensorDesc const* out,
                             void const* const* inputs, void* const* outputs, void* workspace,
                             cudaStream_t stream) noexcept {
  Text why;
  if (constants() == nullptr || this->inputs() == 0) {
    why.set("enqueue before onShapeChange has accepted the shapes");
    return refuse(why);
  }
  BlockProblem problem;
  if (!block_problem(node().attributes, in, this->inputs(), out[0], problem, why)) return refuse(why);
  if (size_t(arrival_count(problem)) * sizeof(int32_t) > arrivals_.size()) {
    why.set("enqueue with a batch of %d, which onShapeChange has not seen", problem.batch);
    return refuse(why);
  }
  BlockBuffers buffers{};
  void const** const sources[] = {&buffers.query, &buffers.content, &buffers.residual,
                                  &buffers.gamma, &buffers.beta,    &buffers.w_kv,
                                  &buffers.b_kv,  &buffers.w_out,   &buffers.b_out};
  for (int32_t i = 0; i < kMaxInputs; ++i) *sources[i] = inputs[i];
  buffers.out = outputs[0];
  buffers.mask = constants()->mask();
  buffers.slopes = constants()->slopes();
  buffers.workspace = workspace;
  buffers.arrivals = static_cast<int32_t*>(arrivals_.get());
  int32_t const code = launch(problem, buffers, stream);
  if (code != 0) {
    why.set("launch of %s: %s", plan(problem).kernel, device_error(code).data);
    report().error(ErrorCode::kFAILED_EXECUTION, why);
  }
  return code;
}

}  // namespace metal_edge::plugin
