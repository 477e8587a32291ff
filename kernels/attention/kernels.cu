// The attention kernels: one instance per head dim.
#include "kernels.h"

#include "flash.cuh"
#include "half_math.cuh"
#include "int8_math.cuh"
#include "plain.cuh"
#include "short.cuh"

using namespace metal_edge;  // NOLINT: the file is nothing but instances

#define METAL_EDGE_DEFINE(head_dim)                                                             \
  SIMT_KERNEL void SIMT_BOUNDS(kFlashThreads, flash_blocks(head_dim))                           \
      masked_attention_f16_flash_d##head_dim(const Arguments arguments) {                       \
    flash_attention<HalfMath<head_dim>>(arguments);                                             \
  }                                                                                             \
  SIMT_KERNEL void SIMT_BOUNDS(kShortThreads)                                                   \
      masked_attention_f16_short_d##head_dim(const Arguments arguments) {                       \
    short_attention<HalfMath<head_dim>>(arguments);                                             \
  }                                                                                             \
  SIMT_KERNEL void SIMT_BOUNDS(kFlashThreads, flash_blocks(head_dim))                           \
      masked_attention_s8_flash_d##head_dim(const Arguments arguments) {                        \
    flash_attention<Int8Math<head_dim>>(arguments);                                             \
  }                                                                                             \
  SIMT_KERNEL void SIMT_BOUNDS(kShortThreads)                                                   \
      masked_attention_s8_short_d##head_dim(const Arguments arguments) {                        \
    short_attention<Int8Math<head_dim>>(arguments);                                             \
  }
METAL_EDGE_HEAD_DIMS(METAL_EDGE_DEFINE)

SIMT_KERNEL void SIMT_BOUNDS(kPlainThreads)
    masked_attention_f32_plain_d32(const Arguments arguments) {
  plain_attention<float, 1>(arguments);
}
SIMT_KERNEL void SIMT_BOUNDS(kPlainThreads)
    masked_attention_f32_plain_d64(const Arguments arguments) {
  plain_attention<float, 2>(arguments);
}
SIMT_KERNEL void SIMT_BOUNDS(kPlainThreads)
    masked_attention_f32_plain_d128(const Arguments arguments) {
  plain_attention<float, 4>(arguments);
}
SIMT_KERNEL void SIMT_BOUNDS(kPlainThreads)
    masked_attention_f32_plain_d256(const Arguments arguments) {
  plain_attention<float, 8>(arguments);
}
SIMT_KERNEL void SIMT_BOUNDS(kPlainThreads)
    masked_attention_f16_plain_d256(const Arguments arguments) {
  plain_attention<simt::Half, 8>(arguments);
}
