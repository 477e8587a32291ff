// The attributes of MaskedAttention and MaskedAttentionBlock (kernels/README.md), in plain C++.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "text.h"

namespace metal_edge::plugin {

// Real value = scale * integer.
struct Int8Scales {
  float q, k, v, out;
};

struct Attributes {
  int32_t heads = 0;
  std::optional<float> scale;       // absent: 1/sqrt(head_dim)
  std::vector<int32_t> mask_shape;  // G, N, M
  std::string mask;                 // hex, as in the ONNX file
  std::string fill = "exclude";
  std::vector<float> slopes;  // empty, or one per head
  int32_t columns = 0;        // 0: absent
  std::optional<float> q_scale, k_scale, v_scale, out_scale;
  std::optional<float> epsilon;  // of the block's LayerNorm, which must have it

  int32_t mask_heads() const noexcept { return mask_shape[0]; }
  int32_t queries() const noexcept { return mask_shape[1]; }
  int32_t keys() const noexcept { return mask_shape[2]; }
  bool zero_fill() const noexcept { return fill == "zero"; }

  // All four scales, or none at all: `check` lets nothing between pass.
  std::optional<Int8Scales> int8_scales() const noexcept;
};

// Whether the attributes of MaskedAttention, or of the block, agree with each other. Writes into `why`
// which does not, with its value.
bool check(Attributes const& attributes, bool block, Text& why) noexcept;

// The mask's words, [G, N, ceil(M / 32)]. Attributes must have passed `check`, which does not read
// the digits: false, and `why`, for what is no lower-case hex, or a set bit beyond M.
bool decode_mask(Attributes const& attributes, std::vector<uint32_t>& words, Text& why);

// What identifies the attributes to TensorRT's timing cache, on one line; the mask by its hash.
std::string identity(Attributes const& attributes, std::vector<uint32_t> const& words);

}  // namespace metal_edge::plugin
