// What the fused block is asked to do, in plain C++: no CUDA, no TensorRT. See README.md.
#pragma once
#include <cstddef>
#include <cstdint>

#include "../attention/problem.h"

namespace metal_edge {

// out = residual + MaskedAttention(query, k, v) @ w_out^T + b_out,
//   k, v = LayerNorm(content) @ w_kv^T + b_kv.
// Everything is float16 and contiguous; W = heads * head_dim. The fields are ordered so that no
// padding is needed: tests fill this struct through ctypes.
struct BlockProblem {
  Fill fill;
  int32_t batch, heads, head_dim;
  int32_t queries, keys;  // N, M
  int32_t mask_heads;     // 1, or heads
  int32_t columns;        // of the tokens' grid; 0: no distance bias
  float scale;            // multiplies the scores
  float epsilon;          // of the LayerNorm
  int32_t query_shared;  // 1: one query [1, N, W] serves every image; 0: [B, N, W]
  int32_t residual_shared;  // likewise
};

// Device memory (host memory in the emulation); everything aligned to 16 bytes.
struct BlockBuffers {
  const void* query;     // [B or 1, N, W], projected
  const void* content;   // [B, M, W]
  const void* residual;  // [B or 1, N, W]
  const void* gamma;     // [W]
  const void* beta;      // [W]
  const void* w_kv;      // [2W, W], keys first
  const void* b_kv;      // [2W]
  const void* w_out;     // [W, W]
  const void* b_out;     // [W]
  void* out;             // [B, N, W]; must not overlap any input
  const uint32_t* mask;  // [mask_heads, N, ceil(M / 32)], as in problem.h
  const float* slopes;   // [heads]; null without distance bias
  void* workspace;       // workspace_bytes(problem), contents undefined before and after
  // arrival_count(problem) integers. Zero before the first launch; a launch leaves them zero. Two
  // launches that may overlap in time need two of these, and two workspaces. Memory that keeps
  // nothing between launches (TensorRT's workspace) has to be cleared before each.
  int32_t* arrivals;
};

// True: a kernel takes this problem. False: writes into `text` why none does, naming the value.
bool supported(const BlockProblem& problem, char* text, int32_t size) noexcept;

// The kernel that takes a supported problem.
Plan plan(const BlockProblem& problem) noexcept;

size_t workspace_bytes(const BlockProblem& problem) noexcept;
int32_t arrival_count(const BlockProblem& problem) noexcept;

// Launches it on a CUDA stream (ignored by the emulation). 0, or a cudaError_t; checks pointers
// first.
int32_t launch(const BlockProblem& problem, const BlockBuffers& buffers, void* stream) noexcept;

}  // namespace metal_edge
