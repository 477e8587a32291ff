// A cumulative histogram: blocks count in shared memory and add to one table; the last to arrive turns
// the counts into running totals.
#include "simt.cuh"

namespace {
constexpr int kThreads = 64;
constexpr int kBins = 32;
}  // namespace

// values in 0..31; counts [32] and arrivals [1] start as zeros; totals [32].
SIMT_KERNEL void SIMT_BOUNDS(kThreads)
    histogram(const int32_t* values, int32_t* counts, int32_t* arrivals, int32_t* totals,
              int32_t count) {
  int32_t* bins = reinterpret_cast<int32_t*>(simt::shared_memory());
  int32_t* before_us = bins + kBins;
  if (simt::thread() < kBins) bins[simt::thread()] = 0;
  simt::sync_block();
  const int i = simt::block_x() * kThreads + simt::thread();
  if (i < count) simt::atomic_add(&bins[values[i]], 1);
  simt::sync_block();
  if (simt::thread() < kBins) simt::atomic_add(&counts[simt::thread()], bins[simt::thread()]);
  simt::sync_block();

  if (simt::thread() == 0) {
    simt::memory_fence();  // this block's counts before its arrival
    *before_us = simt::atomic_add(arrivals, 1);
    simt::memory_fence();  // the others' arrivals before their counts
  }
  simt::sync_block();
  if (*before_us != simt::grid_x() - 1 || simt::thread() != 0) return;
  int32_t total = 0;
  for (int bin = 0; bin < kBins; ++bin) {
    total += counts[bin];
    totals[bin] = total;
  }
}

extern "C" int32_t launch_histogram(const int32_t* values, int32_t* counts, int32_t* arrivals,
                                    int32_t* totals, int32_t count) {
  const simt::Grid grid = {(count + kThreads - 1) / kThreads, 1, 1};
  const int32_t shared_bytes = (kBins + 1) * 4;
  return simt::launch(histogram, grid, kThreads, shared_bytes, nullptr, values, counts, arrivals,
                      totals, count);
}
