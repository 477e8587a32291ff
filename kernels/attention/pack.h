// What the kernels read beside a mask's bits, made once on the host. Plain C++.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "layout.h"
#include "problem.h"

namespace metal_edge {

// Words of a mask row: key j is bit j % 32 of word j / 32.
constexpr int32_t mask_words(int32_t keys) { return (keys + 31) / 32; }

// Words of a row of tile occupancy: tile t of 64 keys is bit t % 32 of word t / 32.
constexpr int32_t tile_words(int32_t keys) { return (keys + kFlashRows * 32 - 1) / (kFlashRows * 32); }

constexpr int32_t query_tiles(int32_t queries) { return (queries + kFlashRows - 1) / kFlashRows; }

// The bits of word `word` that stand for keys; the others are padding.
constexpr uint32_t existing_keys(int32_t keys, int32_t word) {
  return keys - word * 32 >= 32 ? 0xffffffffu : (uint32_t{1} << (keys - word * 32)) - 1;
}

// Whether no bit beyond `keys` is set in a mask of `rows` rows in all. The kernels rely on it.
inline bool padding_is_clear(const uint32_t* mask, size_t rows, int32_t keys) {
  const int32_t words = mask_words(keys);
  for (size_t row = 0; row < rows; ++row) {
    const uint32_t last = mask[(row + 1) * static_cast<size_t>(words) - 1];
    if ((last & ~existing_keys(keys, words - 1)) != 0) return false;
  }
  return true;
}

// Buffers::tiles, [mask_heads, query_tiles, tile_words]: the tiles of 64 keys that any of 64 queries may
// look at. With Fill::kZeroScore every key takes part, and every tile is worth reading.
inline std::vector<uint32_t> occupied_tiles(const uint32_t* mask, int32_t mask_heads,
                                            int32_t queries, int32_t keys, Fill fill) {
  const size_t words = static_cast<size_t>(mask_words(keys)), wide = static_cast<size_t>(tile_words(keys));
  const size_t rows = static_cast<size_t>(queries), row_tiles = static_cast<size_t>(query_tiles(queries));
  std::vector<uint32_t> tiles(static_cast<size_t>(mask_heads) * row_tiles * wide);
  for (size_t head = 0; head < static_cast<size_t>(mask_heads); ++head) {
    for (size_t row = 0; row < rows; ++row) {
      uint32_t* const occupied = &tiles[(head * row_tiles + row / kFlashRows) * wide];
      for (size_t word = 0; word < words; ++word) {
        const bool wanted = fill == Fill::kZeroScore || mask[(head * rows + row) * words + word] != 0;
        const size_t tile = word / 2;
        if (wanted) occupied[tile / 32] |= uint32_t{1} << tile % 32;
      }
    }
  }
  return tiles;
}

}  // namespace metal_edge
