#include "../attention/pack.h"
#include "fields.h"
#include "plugin.h"

namespace metal_edge::plugin {

std::shared_ptr<Node const> make_node(char const* operator_name, bool block, char const* layer,
                                      nvinfer1::PluginFieldCollection const* fields, Text& why) {
  auto node = std::make_shared<Node>();
  node->operator_name = operator_name;
  node->block = block;
  node->label = std::string(operator_name) + " '" + (layer == nullptr ? "" : layer) + "'";
  Attributes& attributes = node->attributes;
  if (!read_fields(fields, block, attributes, why) || !check(attributes, block, why) ||
      !decode_mask(attributes, node->mask, why)) {
    return nullptr;
  }
  node->tiles =
      occupied_tiles(node->mask.data(), attributes.mask_heads(), attributes.queries(), attributes.keys(),
                     attributes.zero_fill() ? Fill::kZeroScore : Fill::kExclude);
  node->identity = std::string(operator_name) + "/" + kVersion + " " + identity(attributes, node->mask);
  node->fields = fields_of(attributes);
  node->collection = {int32_t(node->fields.size()), node->fields.data()};
  return node;
}

bool DeviceConstants::copy(Node const& node, Text& why) noexcept {
  auto const upload = [&why](auto const& values, DeviceMemory& memory) {
    return values.empty() || memory.copy_of(values.data(), values.size() * sizeof(values[0]), why);
  };
  return upload(node.mask, mask_) && upload(node.tiles, tiles_) &&
         upload(node.attributes.slopes, slopes_);
}

}  // namespace metal_edge::plugin
