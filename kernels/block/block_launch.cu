// Starts the fused block. Compiled by nvcc for the GPU, by g++ for the emulation.
#include "block_kernel.cuh"

namespace metal_edge {
namespace {

constexpr int32_t kInvalidValue = 1;         // cudaErrorInvalidValue
constexpr int32_t kMisalignedAddress = 716;  // cudaErrorMisalignedAddress

int32_t check(const BlockProblem& problem, const BlockBuffers& b) {
  const void* const needed[] = {b.query, b.content, b.residual, b.gamma, b.beta,
                                b.w_kv,  b.b_kv,    b.w_out,    b.b_out, b.out,
                                b.mask,  b.workspace, b.arrivals};
  for (const void* pointer : needed) {
    if (!pointer) return kInvalidValue;
    if (reinterpret_cast<uintptr_t>(pointer) % 16) return kMisalignedAddress;
  }
  return problem.columns > 0 && !b.slopes ? kInvalidValue : 0;
}

}  // namespace

int32_t launch(const BlockProblem& problem, const BlockBuffers& buffers, void* stream) noexcept {
  if (!supported(problem, nullptr, 0)) return kInvalidValue;
  if (const int32_t error = check(problem, buffers)) return error;
  const Plan shape = plan(problem);
  const simt::Grid grid{shape.grid[0], shape.grid[1], shape.grid[2]};
  return simt::launch(block::masked_attention_block, grid, shape.threads, shape.shared_bytes, stream,
                      BlockArguments{problem, buffers, layout(problem)});
}

}  // namespace metal_edge
