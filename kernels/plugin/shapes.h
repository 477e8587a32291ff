// From the tensors that TensorRT shows to the problem that the launchers take.
#pragma once
#include <NvInferRuntime.h>

#include "../attention/problem.h"
#include "../block/block_problem.h"
#include "attributes.h"

namespace metal_edge::plugin {

constexpr int32_t kMaxInputs = 9;

// What the inputs' sizes come to; -1: not known before the engine is built.
struct Sizes {
  int64_t batch, queries, keys, width;
  bool query_shared, residual_shared;  // batch 1: serves every image

  int64_t head_dim(Attributes const& attributes) const noexcept { return width / attributes.heads; }
};

// All functions below write into `why` what is wrong, with its value, and return false.

// One data type for all inputs, which the operator takes under these attributes.
bool check_types(Attributes const& attributes, bool block, nvinfer1::DataType const* types,
                 int32_t count, Text& why) noexcept;

// Inputs of MaskedAttention: QKV; Q and KV; or Q, K and V. Sizes of -1 agree with any.
bool attention_sizes(Attributes const& attributes, nvinfer1::Dims const* inputs, int32_t count,
                     Sizes& sizes, Text& why) noexcept;

// The nine inputs of MaskedAttentionBlock; likewise.
bool block_sizes(Attributes const& attributes, nvinfer1::Dims const* inputs, int32_t count, Sizes& sizes,
                 Text& why) noexcept;

// The complete check, of types, sizes, output and what the kernels support, and its result.
bool attention_problem(Attributes const& attributes, nvinfer1::PluginTensorDesc const* inputs,
                       int32_t count, nvinfer1::PluginTensorDesc const& output, Problem& problem,
                       Text& why) noexcept;
bool block_problem(Attributes const& attributes, nvinfer1::PluginTensorDesc const* inputs, int32_t count,
                   nvinfer1::PluginTensorDesc const& output, BlockProblem& problem, Text& why) noexcept;

// Bytes of one element of a type that an operator takes.
size_t element_bytes(nvinfer1::DataType type) noexcept;

}  // namespace metal_edge::plugin
