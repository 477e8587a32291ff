// Products of a warp on float16 tiles. Int8Math has the same interface; the kernels are templates on it.
#pragma once
#include "tiles.cuh"

namespace metal_edge {

template <int kHeadDim_>
struct HalfMath {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr bool kInt8 = false;
  static constexpr int kRowBytes = kHeadDim * 2;
  static constexpr int kPitch = tile_pitch(kRowBytes);
  static constexpr int kOutTiles = kHeadDim / 8;
  static constexpr int kSumPitch = sum_pitch(kHeadDim, kInt8);

  // 16 queries as left operands.
  struct Queries {
    uint32_t part[kHeadDim / 16][4];

    SIMT_DEVICE void load(const Byte* tile) {
      SIMT_UNROLL
      for (int d = 0; d < kHeadDim / 16; ++d) {
        simt::load_matrix_x4(part[d], left_operand(tile, kPitch) + d * 32);
      }
    }
  };

  // Products of 16 queries with the 16 keys at `keys`.
  static SIMT_DEVICE void multiply_keys(float (&low)[4], float (&high)[4], const Queries& queries,
                                        const Byte* keys) {
    SIMT_UNROLL
    for (int e = 0; e < 4; ++e) low[e] = high[e] = 0.0f;
    SIMT_UNROLL
    for (int d = 0; d < kHeadDim / 16; ++d) {
      uint32_t b[4];
      simt::load_matrix_x4(b, right_operand(keys, kPitch) + d * 32);
      simt::multiply_f16(low, queries.part[d], b[0], b[1]);
      simt::multiply_f16(high, queries.part[d], b[2], b[3]);
    }
  }

  // Adds the 16 values at `values`, weighted.
  static SIMT_DEVICE void add_values(float (&out)[kOutTiles][4], const uint32_t (&weights)[4],
                                     const Byte* values) {
    SIMT_UNROLL
    for (int d = 0; d < kHeadDim / 16; ++d) {
      uint32_t b[4];
      simt::load_matrix_x4_transposed(b, left_operand(values, kPitch) + d * 32);
      simt::multiply_f16(out[2 * d], weights, b[0], b[1]);
      simt::multiply_f16(out[2 * d + 1], weights, b[2], b[3]);
    }
  }

  // The lane's part of its upper (h = 0) or lower row, into that row of a tile.
  static SIMT_DEVICE void store_row(Byte* row, const float (&out)[kOutTiles][4], int h,
                                    float factor) {
    SIMT_UNROLL
    for (int n = 0; n < kOutTiles; ++n) {
      *reinterpret_cast<uint32_t*>(row + (n * 8 + fragment_column()) * 2) =
          simt::pack_halves(out[n][2 * h] * factor, out[n][2 * h + 1] * factor);
    }
  }

  // The same as float32, unscaled.
  static SIMT_DEVICE void store_sums(float* row, const float (&out)[kOutTiles][4], int h) {
    struct alignas(8) Pair {
      float a, b;
    };
    SIMT_UNROLL
    for (int n = 0; n < kOutTiles; ++n) {
      *reinterpret_cast<Pair*>(row + n * 8 + fragment_column()) = {out[n][2 * h],
                                                                   out[n][2 * h + 1]};
    }
  }

  // Four neighbouring elements of the result.
  static SIMT_DEVICE void store_four(Byte* target, const float (&value)[4]) {
    struct alignas(8) Four {
      uint32_t low, high;
    };
    *reinterpret_cast<Four*>(target) = {simt::pack_halves(value[0], value[1]),
                                        simt::pack_halves(value[2], value[3])};
  }
};

}  // namespace metal_edge
