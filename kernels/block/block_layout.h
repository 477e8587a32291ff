// Sizes that the fused block's planner and kernel share, in plain C++.
#pragma once
#include "block_problem.h"

namespace metal_edge {

constexpr int32_t kBlockRows = 16;  // queries of a thread block: the rows of one tensor-core tile
constexpr int32_t kBlockWarps = 8;  // each takes 16 columns of a product at a time
constexpr int32_t kBlockThreads = 32 * kBlockWarps;
constexpr int32_t kBlockMaxKeys = 16 * kBlockWarps;  // each warp has the scores of 16 keys
constexpr int32_t kBlockMaxWidth = 256;  // eight lanes normalise a row, 32 columns each

// Where things lie in a thread block's shared memory: byte offsets; strides count elements. A row is
// followed by 8 unused elements, which makes its stride an odd multiple of 16 bytes: the eight rows
// that ldmatrix reads at once then lie in different banks.
struct BlockLayout {
  int32_t padded_keys;    // M, rounded up to 16
  int32_t width_stride, head_stride, weight_stride;  // of rows of W, head_dim, padded_keys elements
  int32_t content;        // [padded_keys, W], normalised in place; at last sums of values
  int32_t query;          // [16, head_dim]: the head's query, at last its result
  int32_t folded;         // [16, W]: query @ w_k, then weights @ content
  int32_t rest;           // [16, W]: what rounding took off the latter
  int32_t weights;        // [16, padded_keys]: of the softmax, not yet divided by their sum
  int32_t first, second;  // matrices of the head: w_k, then w_out; w_v
  int32_t offsets;        // float [16]: query . b_k
  int32_t maxima, sums;   // float [8 warps, 16]
  int32_t last;           // int32: did this block arrive last?
  int32_t bytes;
};

struct BlockArguments {
  BlockProblem problem;
  BlockBuffers buffers;
  BlockLayout layout;
};

BlockLayout layout(const BlockProblem& problem) noexcept;

}  // namespace metal_edge
