// Attention for many keys: a block holds 64 queries and walks over the tiles of 64 keys that any of them
// may look at, the next one on its way while the tensor cores work on this one. Flash attention's online
// softmax (Dao et al., 2022, arXiv 2205.14135).
#pragma once
#include "bias.cuh"
#include "head.cuh"
#include "softmax.cuh"

namespace metal_edge {

// Some keys and values for the 16 queries of a warp; `key` is the first one.
template <class Math, int kKeys>
SIMT_DEVICE void attend_keys(float (&out)[Math::kOutTiles][4], Softmax& softmax,
                             const typename Math::Queries& queries, const Byte* keys,
                             const Byte* values, const HeadView& head, const Arguments& a, int row,
                             int key) {
  constexpr int kSteps = kKeys / 16;
  uint32_t allowed[2][kKeys / 32];  // asked for now, needed after the products
  SIMT_UNROLL
  for (int w = 0; w < kKeys / 32; ++w) {
    allowed[0][w] = mask_word(head, a.queries, row, key / 32 + w);
    allowed[1][w] = mask_word(head, a.queries, row + 8, key / 32 + w);
  }
  float score[2 * kSteps][4];
  SIMT_UNROLL
  for (int u = 0; u < kSteps; ++u) {
    Math::multiply_keys(score[2 * u], score[2 * u + 1], queries, keys + u * 16 * Math::kPitch);
  }
  scale_scores(score, a.score_scale * kLog2e, softmax.sum);
  add_bias(score, a, row, key);
  mask_scores(score, allowed, a.zero_score ? 0.0f : -INFINITY);
  exclude_tail(score, a.keys - key);
  float rescale[2];
  softmax.weigh(score, rescale);
  SIMT_UNROLL
  for (int n = 0; n < Math::kOutTiles; ++n) {
    SIMT_UNROLL
    for (int e = 0; e < 4; ++e) out[n][e] *= rescale[e >> 1];
  }
  SIMT_UNROLL
  for (int u = 0; u < kSteps; ++u) {
    uint32_t weights[4];
    pack_weights(weights, score, u);
    Math::add_values(out, weights, values + u * 16 * Math::kPitch);
  }
}

template <class Math>
SIMT_DEVICE void load_keys(Byte* stage, const HeadView& head, const Arguments& a, int tile) {
  const int64_t first = tile * kFlashRows;
  const int count = a.keys - tile * kFlashRows;
  load_tile<kFlashRows, Math::kRowBytes>(stage, head.k + first * a.k_row, a.k_row, count,
                                         simt::thread());
  load_tile<kFlashRows, Math::kRowBytes>(stage + kFlashRows * Math::kPitch, head.v + first * a.v_row,
                                         a.v_row, count, simt::thread());
  simt::copy_async_commit();
}

// Grid: (ceil(N / 64), heads, batch). kFlashThreads threads.
template <class Math>
SIMT_DEVICE void flash_attention(const Arguments& a) {
  constexpr int kTileBytes = kFlashRows * Math::kPitch;
  // Keys whose scores are in registers at once: wide rows leave room for fewer.
  constexpr int kKeys = Math::kHeadDim > 96 ? 32 : 64;
  Byte* const query_tile = simt::shared_memory();
  Byte* const stages = query_tile + kTileBytes;  // keys, values, keys, values
  const HeadView head = head_view(a, Math::kRowBytes);
  const int block_row = simt::block_x() * kFlashRows;
  const int warp_row = simt::warp() * kFragmentRows;
  const int row = block_row + warp_row + fragment_row();

  float out[Math::kOutTiles][4] = {};
  Softmax softmax;
  const int tile_words = (a.keys + 64 * 32 - 1) / (64 * 32);
  const int64_t mask_head = a.mask_heads == 1 ? 0 : simt::block_y();
  TileWalk walk(a.buffers.tiles + (mask_head * simt::grid_x() + simt::block_x()) * tile_words,
                tile_words);
  if (!walk.empty()) {
    int tile = walk.next();
    load_tile<kFlashRows, Math::kRowBytes>(
        query_tile, head.q + block_row * a.q_row, a.q_row, a.queries - block_row, simt::thread());
    load_keys<Math>(stages, head, a, tile);
    simt::copy_async_wait<0>();
    simt::sync_block();
    typename Math::Queries queries;
    queries.load(query_tile + warp_row * Math::kPitch);
    for (int stage = 0;; stage ^= 1) {
      const bool last = walk.empty();
      const int next = last ? tile : walk.next();
      // Into the stage that everybody left before the barrier.
      if (!last) load_keys<Math>(stages + (stage ^ 1) * 2 * kTileBytes, head, a, next);
      const Byte* const keys = stages + stage * 2 * kTileBytes;
      SIMT_UNROLL
      for (int first = 0; first < kFlashRows; first += kKeys) {
        attend_keys<Math, kKeys>(out, softmax, queries, keys + first * Math::kPitch,
                                 keys + kTileBytes + first * Math::kPitch, head, a, row,
                                 tile * kFlashRows + first);
      }
      if (last) break;
      simt::copy_async_wait<0>();
      simt::sync_block();
      tile = next;
    }
  }
  // The warp's own query rows have been read for good: its result goes there, and out in whole chunks.
  Byte* const result = query_tile + warp_row * Math::kPitch;
  simt::sync_warp();
  SIMT_UNROLL
  for (int h = 0; h < 2; ++h) {
    const float factor = inverse_or_zero(row_sum(softmax.sum[h])) * a.output_scale;
    Math::store_row(result + (fragment_row() + 8 * h) * Math::kPitch, out, h, factor);
  }
  simt::sync_warp();
  const int first = block_row + warp_row;
  store_tile<kFragmentRows, Math::kRowBytes>(
      head.out + first * a.out_row, a.out_row, a.queries - first, result, simt::lane());
}

}  // namespace metal_edge
