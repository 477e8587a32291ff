// Attention for up to 128 keys, where a launch is short of blocks, not of work: a block holds 16 queries, and
// its four warps share the keys. A warp sees its whole part of the score rows at once, and waits for
// nobody before the one barrier, after which the four parts are added up.
#pragma once
#include "bias.cuh"
#include "head.cuh"
#include "softmax.cuh"

namespace metal_edge {

// Highest score and sum of the weights of every query, by warp.
struct ShortStatistics {
  float max[kShortWarps][kShortRows];
  float sum[kShortWarps][kShortRows];
};

// The weighted sums of one warp's keys, left in its region and in the statistics.
template <class Math>
SIMT_DEVICE void attend_short(Byte* region, ShortStatistics& statistics, const Arguments& a) {
  constexpr int kTile16 = kShortRows * Math::kPitch;
  const HeadView head = head_view(a, Math::kRowBytes);
  const int block_row = simt::block_x() * kShortRows;
  const int row = block_row + fragment_row();
  const int span = short_span(a.keys);
  const int first = simt::warp() * span;
  const int left = a.keys - first, count = left < span ? left : span;  // below 1: nothing to do
  Byte* const keys = region + kTile16;
  Byte* const values = keys + span * Math::kPitch;

  load_tile<kShortRows, Math::kRowBytes>(
      region, head.q + block_row * a.q_row, a.q_row, a.queries - block_row, simt::lane());
  for (int u = 0; u * 16 < count; ++u) {
    load_tile<16, Math::kRowBytes>(keys + u * kTile16, head.k + (first + u * 16) * a.k_row,
                                              a.k_row, count - u * 16, simt::lane());
  }
  simt::copy_async_commit();
  for (int u = 0; u * 16 < count; ++u) {
    load_tile<16, Math::kRowBytes>(values + u * kTile16,
                                              head.v + (first + u * 16) * a.v_row, a.v_row,
                                              count - u * 16, simt::lane());
  }
  simt::copy_async_commit();
  uint32_t allowed[2][1];
  SIMT_UNROLL
  for (int h = 0; h < 2; ++h) {
    allowed[h][0] = mask_word(head, a.queries, row + 8 * h, first / 32) >> first % 32;
  }

  simt::copy_async_wait<1>();  // the values may still be on their way
  simt::sync_warp();
  typename Math::Queries queries;
  queries.load(region);
  float score[4][4] = {};
  SIMT_UNROLL
  for (int u = 0; u < 2; ++u) {
    if (u * 16 < count) {
      Math::multiply_keys(score[2 * u], score[2 * u + 1], queries, keys + u * kTile16);
    }
  }
  Softmax softmax;
  scale_scores(score, a.score_scale * kLog2e, softmax.sum);
  add_bias(score, a, row, first);
  mask_scores(score, allowed, a.zero_score ? 0.0f : -INFINITY);
  exclude_tail(score, count);
  float rescale[2];  // of nothing: there is one piece
  softmax.weigh(score, rescale);

  simt::copy_async_wait<0>();
  simt::sync_warp();
  float out[Math::kOutTiles][4] = {};
  SIMT_UNROLL
  for (int u = 0; u < 2; ++u) {
    if (u * 16 < count) {
      uint32_t weights[4];
      pack_weights(weights, score, u);
      Math::add_values(out, weights, values + u * kTile16);
    }
  }

  simt::sync_warp();  // all lanes are done with the tiles
  SIMT_UNROLL
  for (int h = 0; h < 2; ++h) {
    const int r = fragment_row() + 8 * h;
    const float sum = row_sum(softmax.sum[h]);
    Math::store_sums(reinterpret_cast<float*>(region + r * Math::kSumPitch), out, h);
    if (fragment_column() == 0) {
      statistics.max[simt::warp()][r] = softmax.max[h];
      statistics.sum[simt::warp()][r] = sum;
    }
  }
}

// Grid: (ceil(N / 16), heads, batch). kShortThreads threads.
template <class Math>
SIMT_DEVICE void short_attention(const Arguments& a) {
  const int region = short_region_bytes(a.keys, Math::kHeadDim, Math::kInt8);
  Byte* const regions = simt::shared_memory();
  ShortStatistics& statistics =
      *reinterpret_cast<ShortStatistics*>(regions + kShortWarps * region);
  attend_short<Math>(regions + simt::warp() * region, statistics, a);
  simt::sync_block();

  struct alignas(16) Four {
    float value[4];
  };
  constexpr int kFours = Math::kHeadDim / 4;
  const HeadView head = head_view(a, Math::kRowBytes);
  const int block_row = simt::block_x() * kShortRows;
  SIMT_UNROLL
  for (int i = simt::thread(); i < kShortRows * kFours; i += kShortThreads) {
    const int row = i / kFours, column = i % kFours * 4;
    if (block_row + row >= a.queries) continue;
    float highest = statistics.max[0][row];
    SIMT_UNROLL
    for (int w = 1; w < kShortWarps; ++w) highest = fmaxf(highest, statistics.max[w][row]);
    float total = 0.0f, result[4] = {};
    SIMT_UNROLL
    for (int w = 0; w < kShortWarps; ++w) {
      const float share = simt::exp2(statistics.max[w][row] - highest);
      const Four part = *reinterpret_cast<const Four*>(regions + w * region +
                                                       row * Math::kSumPitch + column * 4);
      total += share * statistics.sum[w][row];
      SIMT_UNROLL
      for (int c = 0; c < 4; ++c) result[c] += share * part.value[c];
    }
    const float factor = inverse_or_zero(total) * a.output_scale;
    SIMT_UNROLL
    for (int c = 0; c < 4; ++c) result[c] *= factor;
    Math::store_four(head.out + (block_row + row) * a.out_row + column * (Math::kRowBytes / Math::kHeadDim),
                     result);
  }
}

}  // namespace metal_edge
