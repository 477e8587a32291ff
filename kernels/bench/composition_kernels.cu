// The kernels of a composed attention. Compiled by nvcc for the GPU, by g++ for the emulation.
#include <float.h>

#include "../attention/kernels.h"
#include "../attention/layout.h"
#include "composition.h"

namespace metal_edge::bench {
namespace {

constexpr int kThreads = 128;
constexpr float kLog2e = 1.4426950408889634f;

struct Composed {
  Buffers buffers;
  simt::Half* scores;  // [B, heads, N, M]
  Problem problem;
};

SIMT_DEVICE const simt::Half* element(const void* base, int64_t batch, int64_t row,
                                      const Problem& p, int64_t row_stride, int64_t batch_stride,
                                      int head) {
  return static_cast<const simt::Half*>(base) + batch * batch_stride + row * row_stride +
         static_cast<int64_t>(head) * p.head_dim;
}

SIMT_DEVICE int64_t score_row(const Problem& p, int row) {
  const int64_t image = simt::block_z();
  return ((image * p.heads + simt::block_y()) * p.queries + row) * p.keys;
}

}  // namespace

// Grid: (ceil(N M / kThreads), heads, batch).
SIMT_KERNEL void SIMT_BOUNDS(kThreads) composed_scores(const Composed c) {
  const Problem& p = c.problem;
  const int index = simt::block_x() * kThreads + simt::thread();
  if (index >= p.queries * p.keys) return;
  const int row = index / p.keys, key = index % p.keys, head = simt::block_y();
  const simt::Half* q = element(c.buffers.q, simt::block_z(), row, p, p.q_row, p.q_batch, head);
  const simt::Half* k = element(c.buffers.k, simt::block_z(), key, p, p.k_row, p.k_batch, head);
  float sum = 0.0f;
  for (int d = 0; d < p.head_dim; ++d) sum += simt::to_float(q[d]) * simt::to_float(k[d]);
  c.scores[score_row(p, row) + key] = simt::to_half(sum * p.scale);
}

// Grid: (ceil(N / (kThreads / 32)), heads, batch); a warp per row.
SIMT_KERNEL void SIMT_BOUNDS(kThreads) composed_softmax(const Composed c) {
  const Problem& p = c.problem;
  const int row = simt::block_x() * (kThreads / 32) + simt::warp();
  if (row >= p.queries) return;  // the whole warp
  simt::Half* const scores = c.scores + score_row(p, row);
  const int words = (p.keys + 31) / 32, head = simt::block_y();
  const uint32_t* const mask =
      c.buffers.mask +
      (static_cast<int64_t>(p.mask_heads == 1 ? 0 : head) * p.queries + row) * words;
  const float slope = p.columns != 0 ? c.buffers.slopes[head] : 0.0f;
  const auto score = [&](int key) {
    if (!(mask[key / 32] >> key % 32 & 1)) return p.fill == Fill::kZeroScore ? 0.0f : -INFINITY;
    float value = simt::to_float(scores[key]);
    if (p.columns != 0) {
      const float y = static_cast<float>(row / p.columns - key / p.columns);
      const float x = static_cast<float>(row % p.columns - key % p.columns);
      value -= slope * simt::sqrt(y * y + x * x);
    }
    return value;
  };
  float highest = -FLT_MAX, sum = 0.0f;
  for (int key = simt::lane(); key < p.keys; key += 32) highest = fmaxf(highest, score(key));
  for (int apart = 1; apart < 32; apart *= 2)
    highest = fmaxf(highest, simt::shuffle_xor(highest, apart));
  for (int key = simt::lane(); key < p.keys; key += 32)
    sum += simt::exp2((score(key) - highest) * kLog2e);
  for (int apart = 1; apart < 32; apart *= 2) sum += simt::shuffle_xor(sum, apart);
  const float factor = sum == 0.0f ? 0.0f : 1.0f / sum;
  for (int key = simt::lane(); key < p.keys; key += 32) {
    scores[key] = simt::to_half(simt::exp2((score(key) - highest) * kLog2e) * factor);
  }
}

// Grid: (ceil(N head_dim / kThreads), heads, batch).
SIMT_KERNEL void SIMT_BOUNDS(kThreads) composed_values(const Composed c) {
  const Problem& p = c.problem;
  const int index = simt::block_x() * kThreads + simt::thread();
  if (index >= p.queries * p.head_dim) return;
  const int row = index / p.head_dim, d = index % p.head_dim, head = simt::block_y();
  const simt::Half* const weights = c.scores + score_row(p, row);
  const simt::Half* v = element(c.buffers.v, simt::block_z(), 0, p, p.v_row, p.v_batch, head) + d;
  float sum = 0.0f;
  for (int key = 0; key < p.keys; ++key)
    sum += simt::to_float(weights[key]) * simt::to_float(v[key * p.v_row]);
  simt::Half* const out = static_cast<simt::Half*>(c.buffers.out);
  out[simt::block_z() * p.out_batch + row * p.out_row + head * p.head_dim + d] = simt::to_half(sum);
}

SIMT_KERNEL void composed_nothing(int32_t) {}

namespace {

using Kernel = void (*)(Composed);

int32_t launch(Kernel kernel, const Problem& p, const Buffers& buffers, const void* scores,
               int32_t blocks, void* stream) {
  // The products read scores or write them; one struct serves all three.
  auto* const writable = static_cast<simt::Half*>(const_cast<void*>(scores));
  return simt::launch(kernel, simt::Grid{blocks, p.heads, p.batch}, kThreads, 0, stream,
                      Composed{buffers, writable, p});
}

int32_t per_thread(int32_t elements) { return (elements + kThreads - 1) / kThreads; }

}  // namespace

int32_t launch_scores(const Problem& p, const Buffers& buffers, void* scores, void* stream) {
  return launch(composed_scores, p, buffers, scores, per_thread(p.queries * p.keys), stream);
}

int32_t launch_softmax(const Problem& p, const Buffers& buffers, void* scores, void* stream) {
  return launch(composed_softmax, p, buffers, scores, per_thread(p.queries * 32), stream);
}

int32_t launch_values(const Problem& p, const Buffers& buffers, const void* scores, void* stream) {
  return launch(composed_values, p, buffers, scores, per_thread(p.queries * p.head_dim), stream);
}

int32_t launch_plain(const Problem& p, const Buffers& buffers, void* stream) {
  const simt::Grid grid{(p.queries + kPlainRows - 1) / kPlainRows, p.heads, p.batch};
  return simt::launch(masked_attention_f16_plain_d256, grid, kPlainThreads, 0, stream,
                      arguments(p, buffers));
}

int32_t launch_nothing(void* stream) {
  return simt::launch(composed_nothing, simt::Grid{}, 32, 0, stream, 0);
}

}  // namespace metal_edge::bench
