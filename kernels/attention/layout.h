// Sizes that the kernels and the planner agree on, in plain C++.
#pragma once

#ifdef __CUDACC__
#define METAL_EDGE_BOTH_SIDES __host__ __device__
#else
#define METAL_EDGE_BOTH_SIDES
#endif

namespace metal_edge {

constexpr int kFlashRows = 64;  // queries of a block, keys of a tile: also the unit of occupancy words
constexpr int kFlashThreads = 128;

constexpr int kShortRows = 16;  // queries of a block
constexpr int kShortWarps = 4;
constexpr int kShortThreads = kShortWarps * 32;
constexpr int kShortKeys = kShortWarps * 32;  // at most

constexpr int kPlainRows = 4;  // queries, and warps, of a block
constexpr int kPlainThreads = kPlainRows * 32;

// Bytes from one row of a shared tile to the next: an odd number of 16-byte chunks, so that the eight rows
// which load_matrix reads at once lie in different banks.
METAL_EDGE_BOTH_SIDES constexpr int tile_pitch(int row_bytes) { return (row_bytes / 16 | 1) * 16; }

// Bytes from one row of float32 sums in shared memory to the next. The lanes that store at once, 8 or 16
// bytes each, hold 4 rows (float16 kernels) or 2 (int8 kernels): pitches of 32 or 96, and of 64, modulo
// the banks' 128 bytes keep them apart.
METAL_EDGE_BOTH_SIDES constexpr int sum_pitch(int head_dim, bool int8) {
  return int8 ? head_dim * 4 | 64 : head_dim * 4 + 32;
}

// Blocks whose registers should fit a multiprocessor (65536) together: as many as go without spills.
constexpr int flash_blocks(int head_dim) { return head_dim <= 32 ? 4 : head_dim <= 80 ? 3 : 2; }

// Queries; keys and values, twice.
METAL_EDGE_BOTH_SIDES constexpr int flash_shared_bytes(int row_bytes) {
  return 5 * kFlashRows * tile_pitch(row_bytes);
}

// Keys of one warp.
METAL_EDGE_BOTH_SIDES constexpr int short_span(int keys) {
  return keys > kShortKeys / 2 ? 32 : 16;
}

// Of one warp: queries, keys and values, later the sums in their place.
METAL_EDGE_BOTH_SIDES constexpr int short_region_bytes(int keys, int head_dim, bool int8) {
  const int tiles =
      (kShortRows + 2 * short_span(keys)) * tile_pitch(int8 ? head_dim : head_dim * 2);
  const int sums = kShortRows * sum_pitch(head_dim, int8);
  return tiles > sums ? tiles : sums;
}

// The regions, and the maximum and sum of every row by warp.
METAL_EDGE_BOTH_SIDES constexpr int short_shared_bytes(int keys, int head_dim, bool int8) {
  return kShortWarps * (short_region_bytes(keys, head_dim, int8) + 2 * kShortRows * 4);
}

}  // namespace metal_edge
