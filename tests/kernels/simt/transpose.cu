// A matrix of halves transposed, 16 x 16 a warp, by the matrix loads: x4 and x2, plain and transposed.
#include "simt.cuh"

namespace {
constexpr int kTile = 16;
constexpr int kPitch = 24;  // halves; rows of 48 bytes start in different banks
constexpr int kTileBytes = kTile * kPitch * 2;

// Two neighbouring elements of a row, from a fragment to a row-major matrix.
SIMT_DEVICE void store_pair(uint32_t* out, int row, int pair, int pairs_per_row, uint32_t value) {
  out[row * pairs_per_row + pair] = value;
}
}  // namespace

// `in` [rows, columns] of halves, both multiples of 16; `out` [columns, rows]; one warp per block.
// `copy` [rows, columns] gets what the plain loads give.
SIMT_KERNEL void SIMT_BOUNDS(32)
    transpose(const uint16_t* in, uint32_t* out, uint32_t* copy, int32_t rows, int32_t columns) {
  uint16_t* tile = reinterpret_cast<uint16_t*>(simt::shared_memory());
  const int lane = simt::lane();
  const int top = simt::block_y() * kTile;
  const int left = simt::block_x() * kTile;
  for (int i = lane; i < kTile * kTile; i += 32) {
    tile[i / kTile * kPitch + i % kTile] = in[(top + i / kTile) * columns + left + i % kTile];
  }
  simt::sync_warp();

  // Matrix m of an x4 load: rows 8 (m % 2) on, columns 8 (m / 2) on.
  const uint16_t* corner = tile + lane % 16 * kPitch + lane / 16 * 8;
  uint32_t turned[4];
  simt::load_matrix_x4_transposed(turned, corner);
  uint32_t plain_left[2];   // the left half only; lanes from 16 on name no row
  uint32_t plain_right[2];  // the right half, turned and turned back by the next loads
  simt::load_matrix_x2(plain_left, tile + lane % 16 * kPitch);
  uint32_t both[4];
  simt::load_matrix_x4(both, corner);
  plain_right[0] = both[2];
  plain_right[1] = both[3];

  const int i = lane / 4;
  const int pair = lane % 4;
  for (int m = 0; m < 4; ++m) {  // block (m % 2, m / 2) goes to (m / 2, m % 2)
    store_pair(out, left + m / 2 * 8 + i, (top + m % 2 * 8) / 2 + pair, rows / 2, turned[m]);
  }
  for (int m = 0; m < 2; ++m) {
    store_pair(copy, top + m * 8 + i, left / 2 + pair, columns / 2, plain_left[m]);
    store_pair(copy, top + m * 8 + i, left / 2 + 4 + pair, columns / 2, plain_right[m]);
  }
}

extern "C" int32_t launch_transpose(const uint16_t* in, uint32_t* out, uint32_t* copy,
                                    int32_t rows, int32_t columns) {
  const simt::Grid grid = {columns / kTile, rows / kTile, 1};
  return simt::launch(transpose, grid, 32, kTileBytes, nullptr, in, out, copy, rows, columns);
}
