// One sum per row: each warp by shuffles, the warps' sums through shared memory.
#include "simt.cuh"

namespace {
constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;

SIMT_DEVICE float sum_of_warp(float value) {
  for (int distance = 16; distance > 0; distance /= 2) {
    value += simt::shuffle_xor(value, distance);
  }
  return value;
}
}  // namespace

// rows [grid, columns] -> sums [grid]; positives [grid]: how many columns below 128 are positive.
SIMT_KERNEL void SIMT_BOUNDS(kThreads)
    block_sum(const float* rows, float* sums, int32_t* positives, int32_t columns) {
  float* partial = reinterpret_cast<float*>(simt::shared_memory());
  uint32_t* votes = reinterpret_cast<uint32_t*>(partial + kWarps);
  const float* row = rows + simt::block_x() * columns;

  float value = 0.0f;
  for (int i = simt::thread(); i < columns; i += kThreads) value += row[i];
  const bool positive = simt::thread() < columns && row[simt::thread()] > 0.0f;
  const uint32_t vote = simt::ballot(positive);
  value = sum_of_warp(value);
  if (simt::lane() == 0) {
    partial[simt::warp()] = value;
    votes[simt::warp()] = vote;
  }
  simt::sync_block();
  if (simt::warp() != 0) return;  // a barrier below would not wait for those

  const float total = sum_of_warp(simt::lane() < kWarps ? partial[simt::lane()] : 0.0f);
  if (simt::lane() != 0) return;
  int32_t count = 0;
  for (int i = 0; i < kWarps; ++i) {
    for (uint32_t rest = votes[i]; rest != 0; rest &= rest - 1) count += 1;
  }
  sums[simt::block_x()] = total;
  positives[simt::block_x()] = count;
}

extern "C" int32_t launch_block_sum(const float* rows, float* sums, int32_t* positives,
                                    int32_t count, int32_t columns) {
  const simt::Grid grid = {count, 1, 1};
  const int32_t shared_bytes = kWarps * 8;
  return simt::launch(block_sum, grid, kThreads, shared_bytes, nullptr, rows, sums, positives,
                      columns);
}
