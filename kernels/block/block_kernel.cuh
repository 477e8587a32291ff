// One ZeroLeak block's attention in one kernel. README.md derives the order of the products.
//
// A thread block takes 16 queries of one head. Its share of the output, [16, W] in float32, goes to
// the workspace; whichever of a tile's heads finishes last adds them up, always in the same order.
#pragma once
#include "../simt/simt.cuh"
#include "block_layout.h"
#include "block_parts.cuh"

namespace metal_edge::block {

// What one thread block works on and with.
struct BlockWork {
  int image, head, tile;
  int width, head_dim, keys;
  int first_row, rows;  // of the tile's 16, those that exist
  Half *content, *query, *folded, *rest, *weights, *first, *second;  // see BlockLayout
  float *offsets, *maxima, *sums;
  int32_t* last;
};

SIMT_DEVICE BlockWork work_of(const BlockArguments& a) {
  const BlockProblem& p = a.problem;
  const BlockLayout& at = a.layout;
  unsigned char* shared = simt::shared_memory();
  BlockWork w;
  w.image = simt::block_z();
  w.head = simt::block_y();
  w.tile = simt::block_x();
  w.width = p.heads * p.head_dim;
  w.head_dim = p.head_dim;
  w.keys = p.keys;
  w.first_row = w.tile * kBlockRows;
  w.rows = p.queries - w.first_row < kBlockRows ? p.queries - w.first_row : kBlockRows;
  w.content = reinterpret_cast<Half*>(shared + at.content);
  w.query = reinterpret_cast<Half*>(shared + at.query);
  w.folded = reinterpret_cast<Half*>(shared + at.folded);
  w.rest = reinterpret_cast<Half*>(shared + at.rest);
  w.weights = reinterpret_cast<Half*>(shared + at.weights);
  w.first = reinterpret_cast<Half*>(shared + at.first);
  w.second = reinterpret_cast<Half*>(shared + at.second);
  w.offsets = reinterpret_cast<float*>(shared + at.offsets);
  w.maxima = reinterpret_cast<float*>(shared + at.maxima);
  w.sums = reinterpret_cast<float*>(shared + at.sums);
  w.last = reinterpret_cast<int32_t*>(shared + at.last);
  return w;
}

// Starts the copies of content | query, w_k of the head | w_v of the head: three groups.
SIMT_DEVICE void stage_inputs(const BlockArguments& a, const BlockWork& w) {
  const BlockBuffers& from = a.buffers;
  const int64_t width = w.width;
  const int64_t image_rows = static_cast<int64_t>(w.image) * a.problem.queries;
  const int64_t query_row = (a.problem.query_shared ? 0 : image_rows) + w.first_row;
  const Half* content = static_cast<const Half*>(from.content) + w.image * w.keys * width;
  const Half* query =
      static_cast<const Half*>(from.query) + query_row * width + w.head * w.head_dim;
  const Half* keys = static_cast<const Half*>(from.w_kv) + w.head * w.head_dim * width;
  const Half* values = keys + width * width;
  stage(w.content, a.layout.width_stride, content, w.width, a.layout.padded_keys, w.keys, w.width);
  simt::copy_async_commit();
  stage(w.query, a.layout.head_stride, query, w.width, kBlockRows, w.rows, w.head_dim);
  stage(w.first, a.layout.width_stride, keys, w.width, w.head_dim, w.head_dim, w.width);
  simt::copy_async_commit();
  stage(w.second, a.layout.width_stride, values, w.width, w.head_dim, w.head_dim, w.width);
  simt::copy_async_commit();
}

// The mask bits of the lane's two rows for 16 keys from `first` on, from bit 0. Beyond N: none.
SIMT_DEVICE void load_mask(uint32_t (&allowed)[2], const BlockArguments& a, const BlockWork& w,
                           int first) {
  const int words = (w.keys + 31) / 32;
  const int head = a.problem.mask_heads == 1 ? 0 : w.head;
  const uint32_t* rows = a.buffers.mask + (head * a.problem.queries + w.first_row) * words;
  SIMT_UNROLL
  for (int h = 0; h < 2; ++h) {
    const int row = fragment_row() + 8 * h;
    allowed[h] = row < w.rows ? rows[row * words + first / 32] >> (first % 32) : 0u;
  }
}

// score -= slope * distance of query and key on the tokens' grid.
SIMT_DEVICE void subtract_distances(float (&score)[2][4], float slope, int columns, int first_query,
                                    int first_key) {
  SIMT_UNROLL
  for (int e = 0; e < 8; ++e) {
    const int i = first_query + fragment_row() + e / 2 % 2 * 8;
    const int j = first_key + e / 4 * 8 + fragment_column() + e % 2;
    const int down = i / columns - j / columns, right = i % columns - j % columns;
    score[e / 4][e % 4] -= slope * simt::sqrt(static_cast<float>(down * down + right * right));
  }
}

// folded = query @ w_k, and offsets = query . b_k: what the scores need of the key projection.
SIMT_DEVICE void fold_query(const BlockArguments& a, const BlockWork& w) {
  const int stride = a.layout.width_stride;
  product<Stored::kByDepth>(
      w.query, a.layout.head_stride, w.first, stride, w.head_dim, w.width,
      [&](int row, int column, float x, float y) {
        store_pair(w.folded + row * stride + column, x, y);
      });
  const Half* bias = static_cast<const Half*>(a.buffers.b_kv) + w.head * w.head_dim;
  const int row = simt::thread() / 16, member = simt::thread() % 16;  // sixteen lanes to a query
  float sum = 0.0f;
  for (int i = member; i < w.head_dim; i += 16) {
    sum += simt::to_float(w.query[row * a.layout.head_stride + i]) * simt::to_float(bias[i]);
  }
  for (int apart = 8; apart > 0; apart /= 2) sum += simt::shuffle_xor(sum, apart);
  if (member == 0) w.offsets[row] = sum;
}

// A warp's scores, of 16 queries with its 16 keys from `first` on, in units of log 2; -inf for keys
// that take no part. Adds 0 to `sum`, or NaN where a score is not finite (scale_scores).
SIMT_DEVICE void score_keys(const BlockArguments& a, const BlockWork& w, int first,
                            float (&score)[2][4], float (&sum)[2]) {
  const BlockProblem& p = a.problem;
  const int stride = a.layout.width_stride;
  multiply<Stored::kByColumn>(score, w.folded, stride, w.content + first * stride, stride, w.width);
  SIMT_UNROLL
  for (int e = 0; e < 8; ++e) score[e / 4][e % 4] += w.offsets[fragment_row() + e / 2 % 2 * 8];
  scale_scores(score, p.scale * kLog2e, sum);
  if (p.columns > 0) {
    const float slope = a.buffers.slopes[w.head] * kLog2e;
    subtract_distances(score, slope, p.columns, w.first_row, first);
  }
  uint32_t allowed[2];
  load_mask(allowed, a, w, first);
  const float forbidden = p.fill == Fill::kExclude ? -INFINITY : 0.0f;
  SIMT_UNROLL
  for (int e = 0; e < 8; ++e) {
    const int column = e / 4 * 8 + fragment_column() + e % 2;
    if (!(allowed[e / 2 % 2] >> column & 1)) score[e / 4][e % 4] = forbidden;
  }
  exclude_tail(score, w.keys - first);
}

// weights = exp2(score - the row's maximum), not yet divided by their sums. A warp has 16 keys; the
// maxima and sums of the warps meet in shared memory.
SIMT_DEVICE void weigh(const BlockArguments& a, const BlockWork& w) {
  const int first = 16 * simt::warp();
  float score[2][4] = {};
  float most[2] = {-FLT_MAX, -FLT_MAX};  // finite: what takes no part weighs exp2(-inf) = 0
  float sum[2] = {0.0f, 0.0f};
  const bool has_keys = first < a.layout.padded_keys;  // the same for the whole warp
  if (has_keys) score_keys(a, w, first, score, sum);
  SIMT_UNROLL
  for (int h = 0; h < 2; ++h) {
    const int row = fragment_row() + 8 * h;
    if (has_keys) {
      most[h] = fmaxf(most[h], fmaxf(score[0][2 * h], score[0][2 * h + 1]));
      most[h] = row_max(fmaxf(most[h], fmaxf(score[1][2 * h], score[1][2 * h + 1])));
    }
    if (fragment_column() == 0) w.maxima[simt::warp() * kBlockRows + row] = most[h];
  }
  simt::sync_block();
  SIMT_UNROLL
  for (int h = 0; h < 2; ++h) {
    const int row = fragment_row() + 8 * h;
    for (int i = 0; i < kBlockWarps; ++i) most[h] = fmaxf(most[h], w.maxima[i * kBlockRows + row]);
    if (has_keys) {
      SIMT_UNROLL
      for (int n = 0; n < 2; ++n) {
        const float x = simt::exp2(score[n][2 * h] - most[h]);
        const float y = simt::exp2(score[n][2 * h + 1] - most[h]);
        const int key = first + 8 * n + fragment_column();
        store_pair(w.weights + row * a.layout.weight_stride + key, x, y);
        sum[h] += x + y;
      }
      sum[h] = row_sum(sum[h]);
    }
    if (fragment_column() == 0) w.sums[simt::warp() * kBlockRows + row] = sum[h];
  }
}

// The sum of a row's weights. 0: no key takes part, else the largest weight is 1. NaN came in: NaN.
SIMT_DEVICE float weight_sum(const BlockWork& w, int row) {
  float sum = 0.0f;
  for (int i = 0; i < kBlockWarps; ++i) sum += w.sums[i * kBlockRows + row];
  return sum;
}

// folded + rest = weights @ content / sum, where `rest` is what float16 cuts off. Without it, what
// all content has in common would hide in its rounding what tells keys apart: values that ignore
// the former came out 9 times less exact than by separate kernels.
SIMT_DEVICE void gather(const BlockArguments& a, const BlockWork& w) {
  const int stride = a.layout.width_stride;
  const float upper = inverse_or_zero(weight_sum(w, fragment_row()));
  const float lower = inverse_or_zero(weight_sum(w, fragment_row() + 8));
  product<Stored::kByDepth>(
      w.weights, a.layout.weight_stride, w.content, stride, a.layout.padded_keys, w.width,
      [&](int row, int column, float x, float y) {
        const float share = row < 8 ? upper : lower;
        x *= share;
        y *= share;
        store_pair(w.folded + row * stride + column, x, y);
        store_pair(w.rest + row * stride + column, x - simt::to_float(simt::to_half(x)),
                   y - simt::to_float(simt::to_half(y)));
      });
}

// query = (folded + rest) @ w_v^T + b_v: the head's result. Few columns and great depth: the warps
// share both, and their sums meet where the content was. A row without keys stays 0, bias included.
SIMT_DEVICE void project_values(const BlockArguments& a, const BlockWork& w) {
  const int stride = a.layout.width_stride;
  const int tiles = w.head_dim / 16, slices = kBlockWarps / tiles;
  const int first = simt::warp() % tiles * 16, slice = simt::warp() / tiles;
  const int most = (w.width / 16 + slices - 1) / slices * 16;  // depth of a slice
  const int start = slice * most;
  const int depth = w.width - start < most ? w.width - start : most;  // not above 0: nothing to do
  float large[2][4] = {}, small[2][4] = {};
  const Half* matrix = w.second + first * stride + start;
  multiply<Stored::kByColumn>(large, w.folded + start, stride, matrix, stride, depth);
  multiply<Stored::kByColumn>(small, w.rest + start, stride, matrix, stride, depth);
  SIMT_UNROLL
  for (int e = 0; e < 8; ++e) large[e / 4][e % 4] += small[e / 4][e % 4];

  float* sums = reinterpret_cast<float*>(w.content);  // [slices, 16, head_dim]
  float* mine = sums + slice * kBlockRows * w.head_dim + first;
  each_pair(large, [&](int row, int column, float x, float y) {
    store_pair(mine + row * w.head_dim + column, x, y);
  });
  simt::sync_block();
  const Half* bias = static_cast<const Half*>(a.buffers.b_kv) + w.width + w.head * w.head_dim;
  for (int i = simt::thread(); i < kBlockRows * w.head_dim; i += kBlockThreads) {
    const int row = i / w.head_dim, column = i % w.head_dim;
    float sum = weight_sum(w, row) == 0.0f ? 0.0f : simt::to_float(bias[column]);
    for (int k = 0; k < slices; ++k) sum += sums[k * kBlockRows * w.head_dim + i];
    w.query[row * a.layout.head_stride + column] = simt::to_half(sum);
  }
}

// The float32 share of one head in a tile's output, [16, W].
SIMT_DEVICE float* share_of(const BlockArguments& a, const BlockWork& w, int head) {
  const int64_t tile = static_cast<int64_t>(w.image) * simt::grid_x() + w.tile;
  return static_cast<float*>(a.buffers.workspace) +
         (tile * a.problem.heads + head) * kBlockRows * w.width;
}

// out = residual + the heads' shares + b_out, for the tile's rows.
SIMT_DEVICE void add_up(const BlockArguments& a, const BlockWork& w) {
  const int64_t image_rows = static_cast<int64_t>(w.image) * a.problem.queries;
  const int64_t out_start = (image_rows + w.first_row) * w.width;
  const int64_t residual_start =
      ((a.problem.residual_shared ? 0 : image_rows) + w.first_row) * w.width;
  const Half* residual = static_cast<const Half*>(a.buffers.residual) + residual_start;
  const Half* bias = static_cast<const Half*>(a.buffers.b_out);
  Half* out = static_cast<Half*>(a.buffers.out) + out_start;
  for (int i = 8 * simt::thread(); i < w.rows * w.width; i += 8 * kBlockThreads) {
    float sum[8], more[8];
    load_eight(sum, residual + i);
    load_eight(more, bias + i % w.width);
    for (int k = 0; k < 8; ++k) sum[k] += more[k];
    for (int head = 0; head < a.problem.heads; ++head) {
      load_eight(more, share_of(a, w, head) + i);
      for (int k = 0; k < 8; ++k) sum[k] += more[k];
    }
    store_eight(out + i, sum);
  }
}

// True for one block of the tile, the one by whose arrival all shares are in the workspace. Thread
// 0 speaks for all: the barriers order their memory with its own, the fences its own with other
// blocks'.
SIMT_DEVICE bool arrive(const BlockArguments& a, const BlockWork& w) {
  simt::sync_block();
  if (simt::thread() == 0) {
    int32_t* arrivals = a.buffers.arrivals + w.image * simt::grid_x() + w.tile;
    simt::memory_fence();
    *w.last = simt::atomic_add(arrivals, 1) == a.problem.heads - 1;
    simt::memory_fence();
    // Zero again for the next launch. By an atomic: no plain access is ordered with the others'.
    if (*w.last) simt::atomic_add(arrivals, -a.problem.heads);
  }
  simt::sync_block();
  return *w.last != 0;
}

SIMT_KERNEL void SIMT_BOUNDS(kBlockThreads) masked_attention_block(const BlockArguments a) {
  const BlockWork w = work_of(a);
  stage_inputs(a, w);
  simt::copy_async_wait<2>();
  simt::sync_block();
  normalise(w.content, a.layout.width_stride, w.keys, static_cast<const Half*>(a.buffers.gamma),
            static_cast<const Half*>(a.buffers.beta), w.width, a.problem.epsilon);
  simt::copy_async_wait<1>();
  simt::sync_block();
  fold_query(a, w);
  simt::sync_block();
  const Half* w_out = static_cast<const Half*>(a.buffers.w_out) + w.head * w.head_dim;
  stage(w.first, a.layout.head_stride, w_out, w.width, w.width, w.width, w.head_dim);
  simt::copy_async_commit();
  weigh(a, w);
  simt::sync_block();
  gather(a, w);
  simt::copy_async_wait<1>();
  simt::sync_block();
  project_values(a, w);
  simt::copy_async_wait<0>();
  simt::sync_block();
  float* share = share_of(a, w, w.head);
  product<Stored::kByColumn>(w.query, a.layout.head_stride, w.first, a.layout.head_stride,
                             w.head_dim, w.width, [&](int row, int column, float x, float y) {
                               store_pair(share + row * w.width + column, x, y);
                             });
  if (arrive(a, w)) add_up(a, w);
}

}  // namespace metal_edge::block
