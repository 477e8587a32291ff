// TensorRT's plugin fields <-> attributes.
#pragma once
#include <NvInferRuntime.h>

#include <vector>

#include "attributes.h"

namespace metal_edge::plugin {

// Reads the fields that the ONNX parser made of a node's attributes, or that a plan kept. False, and
// `why`, for an unknown name, a wrong type or length. What the values mean together: `check`.
bool read_fields(nvinfer1::PluginFieldCollection const* fields, bool block, Attributes& attributes,
                 Text& why);

// The attributes that are set, to be kept in a plan. The fields point into `attributes`.
std::vector<nvinfer1::PluginField> fields_of(Attributes const& attributes);

// Names and types of all attributes: the parser passes on those, and no others.
nvinfer1::PluginFieldCollection const& field_names(bool block) noexcept;

}  // namespace metal_edge::plugin
