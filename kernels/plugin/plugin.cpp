#include "plugin.h"

namespace metal_edge::plugin {

using namespace nvinfer1;

Plugin::Plugin(std::shared_ptr<Node const> node) noexcept
    : node_(std::move(node)), report_(node_->label.c_str()) {}

int32_t Plugin::refuse(Text const& why) const noexcept {
  report_.error(ErrorCode::kINVALID_ARGUMENT, why);
  return -1;
}

IPluginCapability* Plugin::getCapabilityInterface(PluginCapabilityType type) noexcept {
  switch (type) {
    case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
    case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
    case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

IPluginV3* Plugin::clone() noexcept {
  return guarded(report_, static_cast<IPluginV3*>(nullptr), [this] { return fresh().release(); });
}

// The types are known when the layer is added to a network: the earliest place to name a wrong one.
int32_t Plugin::getOutputDataTypes(DataType* out, int32_t outputs, DataType const* in,
                                   int32_t inputs) const noexcept {
  Text why;
  if (outputs != 1 || inputs < 1 || inputs > kMaxInputs) {
    why.set("there are %d inputs and %d outputs", inputs, outputs);
    return refuse(why);
  }
  if (!check_types(node_->attributes, node_->block, in, inputs, why)) return refuse(why);
  out[0] = in[0];
  return 0;
}

int32_t Plugin::getOutputShapes(DimsExprs const* in, int32_t inputs, DimsExprs const*,
                                int32_t shape_inputs, DimsExprs* out, int32_t outputs,
                                IExprBuilder& builder) noexcept {
  Text why;
  if (outputs != 1 || shape_inputs != 0 || inputs < 1 || inputs > kMaxInputs) {
    why.set("there are %d inputs, %d shape inputs and %d outputs", inputs, shape_inputs, outputs);
    return refuse(why);
  }
  Dims dims[kMaxInputs];
  for (int32_t i = 0; i < inputs; ++i) {
    dims[i].nbDims = in[i].nbDims;
    for (int32_t d = 0; d < in[i].nbDims; ++d) {
      dims[i].d[d] = in[i].d[d]->isConstant() ? in[i].d[d]->getConstantValue() : -1;
    }
  }
  Sizes known;
  if (!sizes(dims, inputs, known, why)) return refuse(why);

  // Keys or content bring the batch: a query may have a batch of 1.
  IDimensionExpr const* width = in[0].d[2];
  if (inputs == 1)
    width = builder.operation(DimensionOperation::kFLOOR_DIV, *width, *builder.constant(3));
  out[0].nbDims = 3;
  out[0].d[0] = in[inputs == 1 ? 0 : 1].d[0];
  out[0].d[1] = in[0].d[1];
  out[0].d[2] = width;
  return 0;
}

// Called for many combinations that nobody asked for: a layout is refused without a word, a type with.
bool Plugin::supportsFormatCombination(int32_t position, DynamicPluginTensorDesc const* tensors,
                                       int32_t inputs, int32_t outputs) noexcept {
  if (position < 0 || position >= inputs + outputs || inputs < 1 || inputs > kMaxInputs || outputs != 1)
    return false;
  if (tensors[position].desc.format != TensorFormat::kLINEAR) return false;
  DataType const types[] = {tensors[0].desc.type, tensors[position].desc.type};
  Text why;
  if (check_types(node_->attributes, node_->block, types, 2, why)) return true;
  Text at;
  at.set("tensor %d: %.400s", position, why.data);
  report_.warning(at);
  return false;
}

// Both ends of an optimisation profile, so that a build fails rather than a frame.
int32_t Plugin::configurePlugin(DynamicPluginTensorDesc const* in, int32_t inputs,
                                DynamicPluginTensorDesc const* out, int32_t outputs) noexcept {
  Text why;
  if (outputs != 1 || inputs < 1 || inputs > kMaxInputs) {
    why.set("there are %d inputs and %d outputs", inputs, outputs);
    return refuse(why);
  }
  for (Dims DynamicPluginTensorDesc::* end :
       {&DynamicPluginTensorDesc::min, &DynamicPluginTensorDesc::max}) {
    PluginTensorDesc at_end[kMaxInputs + 1];
    for (int32_t i = 0; i <= inputs; ++i) {
      DynamicPluginTensorDesc const& tensor = i < inputs ? in[i] : out[0];
      at_end[i] = tensor.desc;
      at_end[i].dims = tensor.*end;
    }
    if (!takes(at_end, inputs, at_end[inputs], why)) return refuse(why);
  }
  return 0;
}

int32_t Plugin::onShapeChange(PluginTensorDesc const* in, int32_t inputs, PluginTensorDesc const* out,
                              int32_t outputs) noexcept {
  Text why;
  inputs_ = 0;  // until all is well: enqueue refuses
  if (outputs != 1 || inputs < 1 || inputs > kMaxInputs) {
    why.set("there are %d inputs and %d outputs", inputs, outputs);
    return refuse(why);
  }
  if (!takes(in, inputs, out[0], why)) return refuse(why);
  // The builder may time a plugin that it attached to no context.
  bool const ready =
      guarded(report_, false, [&] { return on_device(why) && prepare(in, inputs, out[0], why); });
  if (!ready) {
    report_.error(ErrorCode::kFAILED_INITIALIZATION, why);
    return -1;
  }
  inputs_ = inputs;
  return 0;
}

bool Plugin::on_device(Text& why) {
  if (constants_ != nullptr) return true;
  auto made = std::make_unique<DeviceConstants>();
  if (!made->copy(*node_, why)) return false;
  constants_ = std::move(made);
  return true;
}

IPluginV3* Plugin::attachToContext(IPluginResourceContext* context) noexcept {
  return guarded(report_, static_cast<IPluginV3*>(nullptr), [&]() -> IPluginV3* {
    std::unique_ptr<Plugin> attached = fresh();
    if (context != nullptr) attached->report_.set_recorder(context->getErrorRecorder());
    Text why;
    if (attached->on_device(why)) return attached.release();
    attached->report_.error(ErrorCode::kFAILED_INITIALIZATION, why);
    return nullptr;
  });
}

}  // namespace metal_edge::plugin
