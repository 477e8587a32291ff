// A two-stage pipeline of asynchronous copies: while one tile is used, the next is under way.
#include "simt.cuh"

namespace {
constexpr int kThreads = 64;
constexpr int kTileFloats = 4 * kThreads;  // a thread copies 16 bytes

SIMT_DEVICE void start(float* stage, const float* in, int tile, int count) {
  const int i = tile * kTileFloats + 4 * simt::thread();
  const bool valid = i < count;
  simt::copy_async_16(stage + 4 * simt::thread(), valid ? in + i : in, valid);
  simt::copy_async_commit();
}
}  // namespace

// out[t] = sum over tiles of the tile's elements t, t + 64, t + 128, t + 192. `count` is a multiple of
// 4; what a tile lacks counts as 0.
SIMT_KERNEL void SIMT_BOUNDS(kThreads)
    pipeline(const float* in, float* out, int32_t count) {
  float* stages = reinterpret_cast<float*>(simt::shared_memory());
  const int tiles = (count + kTileFloats - 1) / kTileFloats;
  float sum = 0.0f;
  start(stages, in, 0, count);
  for (int tile = 0; tile < tiles; ++tile) {
    if (tile + 1 < tiles) {
      start(stages + (tile + 1) % 2 * kTileFloats, in, tile + 1, count);
      simt::copy_async_wait<1>();
    } else {
      simt::copy_async_wait<0>();
    }
    simt::sync_block();  // others' copies have landed too
    const float* stage = stages + tile % 2 * kTileFloats;
    for (int i = 0; i < 4; ++i) sum += stage[simt::thread() + i * kThreads];
    simt::sync_block();  // all have read before the stage is overwritten
  }
  out[simt::thread()] = sum;
}

extern "C" int32_t launch_pipeline(const float* in, float* out, int32_t count) {
  const int32_t shared_bytes = 2 * kTileFloats * 4;
  return simt::launch(pipeline, simt::Grid{}, kThreads, shared_bytes, nullptr, in, out, count);
}
