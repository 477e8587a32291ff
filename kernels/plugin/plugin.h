// What both operators' plugins have in common: an IPluginV3 with its three capabilities.
#pragma once
#include <NvInferRuntime.h>

#include <memory>
#include <string>
#include <vector>

#include "attributes.h"
#include "device.h"
#include "report.h"
#include "shapes.h"

namespace metal_edge::plugin {

constexpr char const* kVersion = "1";
// Every parser looks there for a node without the attribute plugin_namespace, whatever its domain.
constexpr char const* kNamespace = "";

// One node of a network: made by the creator, never changed afterwards, shared by all clones.
struct Node {
  char const* operator_name;
  bool block;
  std::string label;  // "MaskedAttention 'name of the layer'", for messages
  Attributes attributes;
  std::vector<uint32_t> mask;   // words
  std::vector<uint32_t> tiles;  // key tiles worth reading, per 64 queries
  std::string identity;         // for the timing cache
  std::vector<nvinfer1::PluginField> fields;
  nvinfer1::PluginFieldCollection collection;
};

// Reads, checks and decodes. Null, and `why`, for what no kernel would take.
std::shared_ptr<Node const> make_node(char const* operator_name, bool block, char const* layer,
                                      nvinfer1::PluginFieldCollection const* fields, Text& why);

// Copies of a node's mask, tiles and slopes on the device.
class DeviceConstants {
 public:
  bool copy(Node const& node, Text& why) noexcept;
  uint32_t const* mask() const noexcept { return static_cast<uint32_t const*>(mask_.get()); }
  uint32_t const* tiles() const noexcept { return static_cast<uint32_t const*>(tiles_.get()); }
  float const* slopes() const noexcept { return static_cast<float const*>(slopes_.get()); }

 private:
  DeviceMemory mask_, tiles_, slopes_;
};

// Each clone that is attached to a context owns its device memory: contexts share nothing, and what
// a context owned goes with it. Nothing is allocated in enqueue.
class Plugin : public nvinfer1::IPluginV3,
               public nvinfer1::IPluginV3OneCore,
               public nvinfer1::IPluginV3OneBuild,
               public nvinfer1::IPluginV3OneRuntime {
 public:
  explicit Plugin(std::shared_ptr<Node const> node) noexcept;

  nvinfer1::IPluginCapability* getCapabilityInterface(
      nvinfer1::PluginCapabilityType type) noexcept final;
  nvinfer1::IPluginV3* clone() noexcept final;

  nvinfer1::AsciiChar const* getPluginName() const noexcept final { return node_->operator_name; }
  nvinfer1::AsciiChar const* getPluginVersion() const noexcept final { return kVersion; }
  nvinfer1::AsciiChar const* getPluginNamespace() const noexcept final { return kNamespace; }

  int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t inputs,
                          nvinfer1::DynamicPluginTensorDesc const* out, int32_t outputs) noexcept final;
  int32_t getOutputDataTypes(nvinfer1::DataType* out, int32_t outputs, nvinfer1::DataType const* in,
                             int32_t inputs) const noexcept final;
  int32_t getOutputShapes(nvinfer1::DimsExprs const* in, int32_t inputs,
                          nvinfer1::DimsExprs const* shape_in, int32_t shape_inputs,
                          nvinfer1::DimsExprs* out, int32_t outputs,
                          nvinfer1::IExprBuilder& builder) noexcept final;
  bool supportsFormatCombination(int32_t position, nvinfer1::DynamicPluginTensorDesc const* tensors,
                                 int32_t inputs, int32_t outputs) noexcept final;
  int32_t getNbOutputs() const noexcept final { return 1; }
  char const* getTimingCacheID() noexcept final { return node_->identity.c_str(); }
  char const* getMetadataString() noexcept final { return node_->identity.c_str(); }

  int32_t onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t inputs,
                        nvinfer1::PluginTensorDesc const* out, int32_t outputs) noexcept final;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept final;
  nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept final {
    return &node_->collection;
  }

 protected:
  // What the operators differ in. Functions that return bool write into `why` and return false.
  virtual std::unique_ptr<Plugin> fresh() const = 0;  // the same node, attached to nothing
  virtual bool sizes(nvinfer1::Dims const* in, int32_t inputs, Sizes& sizes,
                     Text& why) const noexcept = 0;
  virtual bool takes(nvinfer1::PluginTensorDesc const* in, int32_t inputs,
                     nvinfer1::PluginTensorDesc const& out, Text& why) const noexcept = 0;
  // Device memory that depends on the shapes; called before the first enqueue with them.
  virtual bool prepare(nvinfer1::PluginTensorDesc const* in, int32_t inputs,
                       nvinfer1::PluginTensorDesc const& out, Text& why) noexcept = 0;

  Node const& node() const noexcept { return *node_; }
  std::shared_ptr<Node const> const& shared_node() const noexcept { return node_; }
  Reporter const& report() const noexcept { return report_; }
  DeviceConstants const* constants() const noexcept { return constants_.get(); }  // null: not attached
  int32_t inputs() const noexcept { return inputs_; }  // as of onShapeChange; 0 before

  // Logs and records; returns -1, which is an error to TensorRT.
  int32_t refuse(Text const& why) const noexcept;

 private:
  bool on_device(Text& why);

  std::shared_ptr<Node const> node_;
  Reporter report_;
  std::unique_ptr<DeviceConstants> constants_;
  int32_t inputs_ = 0;
};

}  // namespace metal_edge::plugin
