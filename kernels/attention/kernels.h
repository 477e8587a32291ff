// The attention kernels by name: masked_attention_TYPE_FAMILY_dHEADDIM. A plain kernel takes head dims
// up to the one it names.
#pragma once
#include "../simt/simt.cuh"
#include "arguments.h"
#include "head_dims.h"

#define METAL_EDGE_DECLARE(head_dim)                                                          \
  SIMT_KERNEL void masked_attention_f16_flash_d##head_dim(metal_edge::Arguments arguments); \
  SIMT_KERNEL void masked_attention_f16_short_d##head_dim(metal_edge::Arguments arguments); \
  SIMT_KERNEL void masked_attention_s8_flash_d##head_dim(metal_edge::Arguments arguments);  \
  SIMT_KERNEL void masked_attention_s8_short_d##head_dim(metal_edge::Arguments arguments);
METAL_EDGE_HEAD_DIMS(METAL_EDGE_DECLARE)
#undef METAL_EDGE_DECLARE

SIMT_KERNEL void masked_attention_f32_plain_d32(metal_edge::Arguments arguments);
SIMT_KERNEL void masked_attention_f32_plain_d64(metal_edge::Arguments arguments);
SIMT_KERNEL void masked_attention_f32_plain_d128(metal_edge::Arguments arguments);
SIMT_KERNEL void masked_attention_f32_plain_d256(metal_edge::Arguments arguments);
SIMT_KERNEL void masked_attention_f16_plain_d256(metal_edge::Arguments arguments);
