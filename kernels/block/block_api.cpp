// The fused block for callers without C++: Python's ctypes.
#include <cstring>

#include "block_layout.h"

using namespace metal_edge;

extern "C" {

int32_t block_supported(const BlockProblem* problem, char* text, int32_t size) {
  return supported(*problem, text, size);
}

Plan block_plan(const BlockProblem* problem) { return plan(*problem); }

uint64_t block_workspace_bytes(const BlockProblem* problem) { return workspace_bytes(*problem); }

int32_t block_arrival_count(const BlockProblem* problem) { return arrival_count(*problem); }

int32_t block_launch(const BlockProblem* problem, const BlockBuffers* buffers, void* stream) {
  return launch(*problem, *buffers, stream);
}

// The kernel's one parameter, for launches that are not `launch`. Returns its size; copies if `into`.
uint64_t block_arguments(const BlockProblem* problem, const BlockBuffers* buffers, void* into) {
  const BlockArguments arguments{*problem, *buffers, layout(*problem)};
  if (into) std::memcpy(into, &arguments, sizeof arguments);
  return sizeof arguments;
}
}
