// Softmax over scores that come in pieces, in float32, on fragments of tensor-core products.
//
// A piece is float[kTiles][4]: 16 rows by kTiles * 8 keys, four values per lane and 8 keys (tiles.cuh). Two
// rules hold throughout. Whether a key takes part is decided by its mask bit alone: an excluded key's
// score becomes -inf, whose weight is an exact 0 below any finite maximum. And nothing that is not
// finite is lost on the way: it makes the sum NaN, and with it the row.
#pragma once
#include <float.h>

#include "tiles.cuh"

namespace metal_edge {

constexpr float kLog2e = 1.4426950408889634f;

// Multiplies products by the scale. Adds 0 to the rows' sums, or NaN where a score is infinite or NaN:
// without this a score of -inf, from an infinite key, would get weight 0 and go unseen.
template <int kTiles>
SIMT_DEVICE void scale_scores(float (&score)[kTiles][4], float scale, float (&sum)[2]) {
  SIMT_UNROLL
  for (int n = 0; n < kTiles; ++n) {
    SIMT_UNROLL
    for (int e = 0; e < 4; ++e) {
      score[n][e] *= scale;
      sum[e >> 1] = fmaf(score[n][e], 0.0f, sum[e >> 1]);
    }
  }
}

// Forbidden keys get the score `forbidden`: -inf to exclude them. allowed[0] holds the mask bits of the lane's
// upper row, allowed[1] those of the lower, 32 keys a word.
template <int kTiles>
SIMT_DEVICE void mask_scores(float (&score)[kTiles][4], const uint32_t (&allowed)[2][kTiles / 4],
                             float forbidden) {
  SIMT_UNROLL
  for (int n = 0; n < kTiles; ++n) {
    SIMT_UNROLL
    for (int e = 0; e < 4; ++e) {
      const uint32_t bits = allowed[e >> 1][n / 4] >> fragment_column();
      if (!(bits >> (n % 4 * 8 + (e & 1)) & 1)) score[n][e] = forbidden;
    }
  }
}

// Excludes the keys from `count` on: those that do not exist.
template <int kTiles>
SIMT_DEVICE void exclude_tail(float (&score)[kTiles][4], int count) {
  if (count >= kTiles * 8) return;
  SIMT_UNROLL
  for (int n = 0; n < kTiles; ++n) {
    SIMT_UNROLL
    for (int e = 0; e < 4; ++e) {
      if (n * 8 + fragment_column() + (e & 1) >= count) score[n][e] = -INFINITY;
    }
  }
}

// The state of the lane's two rows: the highest score so far, and the sum of the weights relative to
// it. The maximum is the same in the four lanes of a row, the sum counts the lane's own columns.
struct Softmax {
  float max[2] = {-FLT_MAX, -FLT_MAX};  // finite, so that -inf - max is -inf and not NaN
  float sum[2] = {0.0f, 0.0f};

  // Turns scores, in units of log 2, into weights. What was summed with earlier weights has to be
  // multiplied by `rescale`.
  template <int kTiles>
  SIMT_DEVICE void weigh(float (&score)[kTiles][4], float (&rescale)[2]) {
    SIMT_UNROLL
    for (int h = 0; h < 2; ++h) {
      float highest = max[h];  // fmaxf passes over NaN, which the exponential below then meets
      SIMT_UNROLL
      for (int n = 0; n < kTiles; ++n) {
        highest = fmaxf(highest, fmaxf(score[n][2 * h], score[n][2 * h + 1]));
      }
      highest = row_max(highest);
      rescale[h] = simt::exp2(max[h] - highest);
      max[h] = highest;
      sum[h] *= rescale[h];
      SIMT_UNROLL
      for (int n = 0; n < kTiles; ++n) {
        SIMT_UNROLL
        for (int e = 2 * h; e < 2 * h + 2; ++e) {
          score[n][e] = simt::exp2(score[n][e] - highest);
          sum[h] += score[n][e];
        }
      }
    }
  }
};

// What to multiply weighted sums by. The highest of the keys that take part weighs 1, so a sum of 0
// means that none does; a NaN stays one.
SIMT_DEVICE float inverse_or_zero(float sum) { return sum == 0.0f ? 0.0f : 1.0f / sum; }

// The weights of 16 keys, tiles 2 u and 2 u + 1, as a left operand in float16.
template <int kTiles>
SIMT_DEVICE void pack_weights(uint32_t (&packed)[4], const float (&weight)[kTiles][4], int u) {
  packed[0] = simt::pack_halves(weight[2 * u][0], weight[2 * u][1]);
  packed[1] = simt::pack_halves(weight[2 * u][2], weight[2 * u][3]);
  packed[2] = simt::pack_halves(weight[2 * u + 1][0], weight[2 * u + 1][1]);
  packed[3] = simt::pack_halves(weight[2 * u + 1][2], weight[2 * u + 1][3]);
}

}  // namespace metal_edge
