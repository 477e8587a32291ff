// The attention kernels for callers without C++: Python's ctypes.
#include <cstring>

#include "arguments.h"
#include "pack.h"

using namespace metal_edge;  // NOLINT: the file is nothing but wrappers

extern "C" {

int32_t attention_supported(const Problem* problem, char* text, int32_t size) {
  return supported(*problem, text, size);
}

Plan attention_plan(const Problem* problem) { return plan(*problem); }

// The kernel's one parameter, for launches that are not `launch`. Returns its size; copies if `into`.
uint64_t attention_arguments(const Problem* problem, const Buffers* buffers, void* into) {
  const Arguments given = arguments(*problem, *buffers);
  if (into != nullptr) std::memcpy(into, &given, sizeof given);
  return sizeof given;
}

int32_t attention_launch(const Problem* problem, const Buffers* buffers, void* stream) {
  return launch(*problem, *buffers, stream);
}

// Words of Buffers::tiles; writes them if `into`. 0: the mask has set bits beyond M.
uint64_t attention_tiles(const Problem* problem, const uint32_t* mask, uint32_t* into) {
  const Problem& p = *problem;
  const size_t rows = static_cast<size_t>(p.mask_heads) * static_cast<size_t>(p.queries);
  if (!padding_is_clear(mask, rows, p.keys)) return 0;
  const auto tiles = occupied_tiles(mask, p.mask_heads, p.queries, p.keys, p.fill);
  if (into != nullptr) std::memcpy(into, tiles.data(), tiles.size() * sizeof tiles[0]);
  return tiles.size();
}
}
