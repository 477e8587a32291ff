// What an attention kernel is asked to do, in plain C++: no CUDA, no TensorRT.
#pragma once
#include <cstdint>

namespace metal_edge {

enum class Type : int32_t { kFloat = 0, kHalf = 1, kInt8 = 2 };
enum class Fill : int32_t { kExclude = 0, kZeroScore = 1 };

// Everything that is the same for every frame. Strides count elements of `type`. Element (b, i, h, d)
// of a tensor lies at b * batch_stride + i * row_stride + h * head_dim + d; a batch stride of 0
// serves every image with the same rows. The fields are ordered so that no padding is needed:
// tests fill this struct through ctypes.
struct Problem {
  Type type;
  Fill fill;
  int32_t batch, heads, head_dim;
  int32_t queries, keys;   // N, M
  int32_t mask_heads;      // 1, or heads
  int32_t columns;         // of the tokens' grid; 0: no distance bias
  float scale;             // multiplies the scores
  float q_scale, k_scale, v_scale, out_scale;  // int8 only
  int64_t q_batch, q_row, k_batch, k_row, v_batch, v_row, out_batch, out_row;
};

// Device memory (host memory in the emulation).
struct Buffers {
  const void* q;
  const void* k;
  const void* v;
  void* out;
  const uint32_t* mask;   // [mask_heads, N, ceil(M / 32)], see pack.h
  const uint32_t* tiles;  // [mask_heads, ceil(N / 64), ceil(ceil(M / 64) / 32)]: key tiles worth reading
  const float* slopes;    // [heads]; null without distance bias
};

// One launch: which kernel, and its shape.
struct Plan {
  const char* kernel;  // name of the extern "C" __global__ function
  int32_t grid[3];
  int32_t threads;
  int32_t shared_bytes;
};

// Writes into `text` why no kernel takes this problem, naming the value; returns false. True: one does.
bool supported(const Problem& problem, char* text, int32_t size) noexcept;

// The kernel that takes a supported problem.
Plan plan(const Problem& problem) noexcept;

// Launches it on a CUDA stream (ignored by the emulation). 0, or a cudaError_t; checks pointers first.
int32_t launch(const Problem& problem, const Buffers& buffers, void* stream) noexcept;

}  // namespace metal_edge
