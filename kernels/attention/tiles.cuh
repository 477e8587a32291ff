// Tiles of rows in shared memory: their layout, and the way between global memory and them.
#pragma once
#include "../simt/simt.cuh"
#include "layout.h"

namespace metal_edge {

using Byte = unsigned char;

constexpr int kWarpSize = 32;
constexpr int kFragmentRows = 16;  // rows of a tensor core's result: a warp's unit of work

// A lane holds elements (row, column), (row, column + 1), (row + 8, column), (row + 8, column + 1) of
// the 16 x 8 result of a tensor-core product.
SIMT_DEVICE int fragment_row() { return simt::lane() >> 2; }
SIMT_DEVICE int fragment_column() { return (simt::lane() & 3) * 2; }

// Over the four lanes that hold a row of such a result.
SIMT_DEVICE float row_max(float value) {
  value = fmaxf(value, simt::shuffle_xor(value, 1));
  return fmaxf(value, simt::shuffle_xor(value, 2));
}
SIMT_DEVICE float row_sum(float value) {
  value += simt::shuffle_xor(value, 1);
  return value + simt::shuffle_xor(value, 2);
}

// What one load or store instruction of a thread moves.
struct alignas(16) Chunk {
  uint32_t word[4];
};

// Starts copying kRows rows; those from `count` on become zeros, and their memory is not touched.
// kThreads threads share the work; `worker` says which one this is.
template <int kRows, int kRowBytes, int kThreads>
SIMT_DEVICE void load_tile(Byte* tile, const Byte* rows, int64_t stride, int count, int worker) {
  constexpr int kChunks = kRowBytes / 16, kPitch = tile_pitch(kRowBytes);
  SIMT_UNROLL
  for (int i = worker; i < kRows * kChunks; i += kThreads) {
    const int row = i / kChunks, chunk = i % kChunks;
    const bool valid = row < count;
    simt::copy_async_16(tile + row * kPitch + chunk * 16,
                        rows + (valid ? row * stride + chunk * 16 : 0), valid);
  }
}

// Copies the first `count` of kRows rows of a tile to global memory.
template <int kRows, int kRowBytes, int kThreads>
SIMT_DEVICE void store_tile(Byte* rows, int64_t stride, int count, const Byte* tile, int worker) {
  constexpr int kChunks = kRowBytes / 16, kPitch = tile_pitch(kRowBytes);
  SIMT_UNROLL
  for (int i = worker; i < kRows * kChunks; i += kThreads) {
    const int row = i / kChunks, chunk = i % kChunks;
    if (row < count) {
      *reinterpret_cast<Chunk*>(rows + row * stride + chunk * 16) =
          *reinterpret_cast<const Chunk*>(tile + row * kPitch + chunk * 16);
    }
  }
}

// The lane's address for load_matrix_x4 of a 16 x 32-byte piece of a tile, such that the results are
// the fragment of a left operand: rows 0 to 7 and 8 to 15 of the left half, then of the right.
SIMT_DEVICE const Byte* left_operand(const Byte* tile, int pitch) {
  return tile + (simt::lane() & 15) * pitch + (simt::lane() >> 4) * 16;
}

// The same for the right operand, whose columns are the tile's rows: results 0 and 1 belong to rows 0 to 7,
// 2 and 3 to rows 8 to 15.
SIMT_DEVICE const Byte* right_operand(const Byte* tile, int pitch) {
  const int lane = simt::lane();
  return tile + ((lane & 7) + (lane >> 4) * 8) * pitch + ((lane >> 3) & 1) * 16;
}

}  // namespace metal_edge
