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

// Two threads share a row of a tile, as its even and odd chunks: together they move whole 32-byte
// sectors. Among eight threads, whose accesses to shared memory are one transaction, every second row has
// its turn; with the pitch an odd number of chunks, their chunks then lie in different banks.
SIMT_DEVICE int shared_row(int worker) {
  const int pair = worker / 2;
  return (pair & ~7) | (pair & 3) << 1 | (pair >> 2 & 1);
}

// Starts copying kRows rows; those from `count` on become zeros, and their memory is not touched.
// 2 * kRows threads share the work; `worker` says which one this is.
template <int kRows, int kRowBytes>
SIMT_DEVICE void load_tile(Byte* tile, const Byte* rows, int64_t stride, int count, int worker) {
  constexpr int kPitch = tile_pitch(kRowBytes);
  const int row = shared_row(worker), first = worker % 2 * 16;
  const bool valid = row < count;
  Byte* const target = tile + row * kPitch + first;
  const Byte* const source = rows + (valid ? row * stride + first : 0);
  SIMT_UNROLL
  for (int offset = 0; offset < kRowBytes; offset += 32) {
    if (kRowBytes % 32 == 0 || offset + first < kRowBytes) {
      simt::copy_async_16(target + offset, source + (valid ? offset : 0), valid);
    }
  }
}

// Copies the first `count` of kRows rows of a tile to global memory. 2 * kRows threads share the work.
template <int kRows, int kRowBytes>
SIMT_DEVICE void store_tile(Byte* rows, int64_t stride, int count, const Byte* tile, int worker) {
  constexpr int kPitch = tile_pitch(kRowBytes);
  const int row = shared_row(worker), first = worker % 2 * 16;
  if (row >= count) return;
  const Byte* const source = tile + row * kPitch + first;
  Byte* const target = rows + row * stride + first;
  SIMT_UNROLL
  for (int offset = 0; offset < kRowBytes; offset += 32) {
    if (kRowBytes % 32 == 0 || offset + first < kRowBytes) {
      *reinterpret_cast<Chunk*>(target + offset) = *reinterpret_cast<const Chunk*>(source + offset);
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
