// Products of a warp on int8 tiles; the interface is HalfMath's. Queries meet keys on the INT8 tensor cores,
// exactly. Values become float16, exactly, in registers, and meet their weights there.
#pragma once
#include "tiles.cuh"

namespace metal_edge {

// Bytes 0 and 2 of a word, as int8, to two halves. 0x6400 + u is the half 1024 + u, and flipping the
// sign bit makes u = value + 128.
SIMT_DEVICE uint32_t even_bytes_to_halves(uint32_t bytes) {
  constexpr uint32_t k1152 = 0x64806480u;
  return simt::subtract_halves(((bytes & 0x00ff00ffu) ^ 0x00800080u) | 0x64006400u, k1152);
}

template <int kHeadDim_>
struct Int8Math {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr bool kInt8 = true;
  static constexpr int kRowBytes = kHeadDim;
  static constexpr int kPitch = tile_pitch(kRowBytes);
  static constexpr int kOutTiles = kHeadDim / 8;
  static constexpr int kSteps = kHeadDim / 32;             // of 32 elements; 16 may be left
  static constexpr bool kTail = kHeadDim % 32 != 0;
  static constexpr int kSumPitch = sum_pitch(kHeadDim, kInt8);

  struct Queries {
    uint32_t part[kSteps + 1][4];  // the last one: of the 16 that are left

    SIMT_DEVICE void load(const Byte* tile) {
      SIMT_UNROLL
      for (int d = 0; d < kSteps; ++d) {
        simt::load_matrix_x4(part[d], left_operand(tile, kPitch) + d * 32);
      }
      if (kTail) {
        uint32_t rest[2];
        simt::load_matrix_x2(rest, tile + (simt::lane() & 15) * kPitch + kSteps * 32);
        part[kSteps][0] = rest[0];
        part[kSteps][1] = rest[1];
      }
    }
  };

  static SIMT_DEVICE void multiply_keys(float (&low)[4], float (&high)[4], const Queries& queries,
                                        const Byte* keys) {
    int32_t sum[2][4] = {};
    SIMT_UNROLL
    for (int d = 0; d < kSteps; ++d) {
      uint32_t b[4];
      simt::load_matrix_x4(b, right_operand(keys, kPitch) + d * 32);
      simt::multiply_s8_k32(sum[0], queries.part[d], b[0], b[1]);
      simt::multiply_s8_k32(sum[1], queries.part[d], b[2], b[3]);
    }
    if (kTail) {
      const uint32_t rest[2] = {queries.part[kSteps][0], queries.part[kSteps][1]};
      uint32_t b[2];
      simt::load_matrix_x2(b, keys + (simt::lane() & 15) * kPitch + kSteps * 32);
      simt::multiply_s8_k16(sum[0], rest, b[0]);
      simt::multiply_s8_k16(sum[1], rest, b[1]);
    }
    SIMT_UNROLL
    for (int e = 0; e < 4; ++e) {  // exact: below 2^24
      low[e] = static_cast<float>(sum[0][e]);
      high[e] = static_cast<float>(sum[1][e]);
    }
  }

  // load_matrix moves pairs of bytes, so a lane gets elements 2 c and 2 c + 1 of two keys in a word, which
  // would have to be elements c: the even elements of 16 make one tile of `out`, the odd ones the next.
  static SIMT_DEVICE void add_values(float (&out)[kOutTiles][4], const uint32_t (&weights)[4],
                                     const Byte* values) {
    SIMT_UNROLL
    for (int d = 0; d < kHeadDim / 16; ++d) {
      uint32_t b[2];
      simt::load_matrix_x2_transposed(b, values + (simt::lane() & 15) * kPitch + d * 16);
      simt::multiply_f16(out[2 * d], weights, even_bytes_to_halves(b[0]),
                         even_bytes_to_halves(b[1]));
      simt::multiply_f16(out[2 * d + 1], weights, even_bytes_to_halves(b[0] >> 8),
                         even_bytes_to_halves(b[1] >> 8));
    }
  }

  // So a lane holds four neighbouring elements in each 16: fragment_column() counts pairs.
  static SIMT_DEVICE void store_row(Byte* row, const float (&out)[kOutTiles][4], int h,
                                    float factor) {
    SIMT_UNROLL
    for (int d = 0; d < kHeadDim / 16; ++d) {
      const float four[4] = {
          out[2 * d][2 * h] * factor, out[2 * d + 1][2 * h] * factor,
          out[2 * d][2 * h + 1] * factor, out[2 * d + 1][2 * h + 1] * factor};
      store_four(row + d * 16 + fragment_column() * 2, four);
    }
  }

  static SIMT_DEVICE void store_sums(float* row, const float (&out)[kOutTiles][4], int h) {
    struct alignas(16) Four {
      float value[4];
    };
    SIMT_UNROLL
    for (int d = 0; d < kHeadDim / 16; ++d) {
      *reinterpret_cast<Four*>(row + d * 16 + fragment_column() * 2) = {
          {out[2 * d][2 * h], out[2 * d + 1][2 * h], out[2 * d][2 * h + 1],
           out[2 * d + 1][2 * h + 1]}};
    }
  }

  // Rounded half to even, clamped.
  static SIMT_DEVICE void store_four(Byte* target, const float (&value)[4]) {
    uint32_t packed = 0;
    SIMT_UNROLL
    for (int c = 0; c < 4; ++c) {
      const float clamped = fminf(fmaxf(simt::round_even(value[c]), -128.0f), 127.0f);
      packed |= (static_cast<uint32_t>(static_cast<int32_t>(clamped)) & 0xffu) << (8 * c);
    }
    *reinterpret_cast<uint32_t*>(target) = packed;
  }
};

}  // namespace metal_edge
