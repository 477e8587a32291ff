// sum[i] = a[i] + b[i]: the smallest kernel there is.
#include "simt.cuh"

namespace {
constexpr int kThreads = 64;
}

SIMT_KERNEL void SIMT_BOUNDS(kThreads)
    vector_add(const float* a, const float* b, float* sum, int32_t count) {
  const int i = simt::block_x() * kThreads + simt::thread();
  if (i < count) sum[i] = a[i] + b[i];
}

extern "C" int32_t launch_vector_add(const float* a, const float* b, float* sum, int32_t count) {
  const simt::Grid grid = {(count + kThreads - 1) / kThreads, 1, 1};
  return simt::launch(vector_add, grid, kThreads, 0, nullptr, a, b, sum, count);
}
