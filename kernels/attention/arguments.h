// What every attention kernel gets, by value.
#pragma once
#include "problem.h"

namespace metal_edge {

struct Arguments {
  Buffers buffers;
  // In bytes, unlike Problem's.
  int64_t q_batch, q_row, k_batch, k_row, v_batch, v_row, out_batch, out_row;
  int32_t queries, keys, head_dim, mask_heads, columns;
  int32_t zero_score;   // 1: Fill::kZeroScore
  float score_scale;    // of the products; int8: also their step
  float output_scale;   // of the sums; 1, or int8: output steps per value step
};

// A supported problem's arguments.
Arguments arguments(const Problem& problem, const Buffers& buffers) noexcept;

}  // namespace metal_edge
