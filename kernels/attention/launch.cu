// Starts the attention kernels. Compiled by nvcc for the GPU, by g++ for the emulation.
#include <cstring>
#include <initializer_list>

#include "kernels.h"
#include "layout.h"

namespace metal_edge {
namespace {

constexpr int32_t kInvalidValue = 1;         // cudaErrorInvalidValue
constexpr int32_t kMisalignedAddress = 716;  // cudaErrorMisalignedAddress

struct Kernel {
  const char* name;
  void (*function)(Arguments);
};
#define METAL_EDGE_KERNEL(name) {#name, name},
#define METAL_EDGE_KERNELS(d)                        \
  METAL_EDGE_KERNEL(masked_attention_f16_flash_d##d) \
  METAL_EDGE_KERNEL(masked_attention_f16_short_d##d) \
  METAL_EDGE_KERNEL(masked_attention_s8_flash_d##d)  \
  METAL_EDGE_KERNEL(masked_attention_s8_short_d##d)
constexpr Kernel kKernels[] = {
    METAL_EDGE_HEAD_DIMS(METAL_EDGE_KERNELS)              //
    METAL_EDGE_KERNEL(masked_attention_f32_plain_d32)     //
    METAL_EDGE_KERNEL(masked_attention_f32_plain_d64)     //
    METAL_EDGE_KERNEL(masked_attention_f32_plain_d128)    //
    METAL_EDGE_KERNEL(masked_attention_f32_plain_d256)    //
    METAL_EDGE_KERNEL(masked_attention_f16_plain_d256)};
#undef METAL_EDGE_KERNELS
#undef METAL_EDGE_KERNEL

int32_t check(const Problem& problem, const Buffers& buffers) {
  const auto misaligned = [](const void* pointer, uintptr_t bytes) {
    return reinterpret_cast<uintptr_t>(pointer) % bytes != 0;
  };
  for (const void* pointer : {buffers.q, buffers.k, buffers.v, static_cast<const void*>(buffers.out)}) {
    if (pointer == nullptr) return kInvalidValue;
    if (misaligned(pointer, 16)) return kMisalignedAddress;
  }
  if (buffers.mask == nullptr || buffers.tiles == nullptr) return kInvalidValue;
  if ((problem.columns != 0) != (buffers.slopes != nullptr)) return kInvalidValue;
  if (misaligned(buffers.mask, 4) || misaligned(buffers.tiles, 4) || misaligned(buffers.slopes, 4)) {
    return kMisalignedAddress;
  }
  return 0;
}

}  // namespace

int32_t launch(const Problem& problem, const Buffers& buffers, void* stream) noexcept {
  if (!supported(problem, nullptr, 0)) return kInvalidValue;
  if (const int32_t error = check(problem, buffers)) return error;
  const Plan shape = plan(problem);
  const simt::Grid grid{shape.grid[0], shape.grid[1], shape.grid[2]};
  for (const Kernel& kernel : kKernels) {
    if (std::strcmp(kernel.name, shape.kernel) == 0) {
      return simt::launch(kernel.function, grid, shape.threads, shape.shared_bytes, stream,
                          arguments(problem, buffers));
    }
  }
  return kInvalidValue;
}

}  // namespace metal_edge
