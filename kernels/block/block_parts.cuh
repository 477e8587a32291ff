// What the fused block is made of: staging, LayerNorm, tensor-core products, scores.
#pragma once
#include <math.h>
#include <string.h>

#include "../attention/softmax.cuh"
#include "../attention/tiles.cuh"
#include "block_layout.h"

namespace metal_edge::block {

using simt::Half;

// Eight elements at a time: 16 aligned bytes, or 32 of float.
SIMT_DEVICE void load_eight(float (&x)[8], const Half* from) {
  const Chunk chunk = *reinterpret_cast<const Chunk*>(from);
  Half half[8];
  memcpy(half, &chunk, sizeof half);
  SIMT_UNROLL
  for (int i = 0; i < 8; ++i) x[i] = simt::to_float(half[i]);
}

SIMT_DEVICE void load_eight(float (&x)[8], const float* from) {
  const Chunk chunk[2] = {reinterpret_cast<const Chunk*>(from)[0],
                          reinterpret_cast<const Chunk*>(from)[1]};
  memcpy(x, chunk, sizeof x);
}

SIMT_DEVICE void store_eight(Half* to, const float (&x)[8]) {
  Chunk chunk;
  SIMT_UNROLL
  for (int i = 0; i < 4; ++i) chunk.word[i] = simt::pack_halves(x[2 * i], x[2 * i + 1]);
  *reinterpret_cast<Chunk*>(to) = chunk;
}

SIMT_DEVICE void store_pair(Half* to, float x, float y) {
  *reinterpret_cast<uint32_t*>(to) = simt::pack_halves(x, y);
}

SIMT_DEVICE void store_pair(float* to, float x, float y) {
  to[0] = x;
  to[1] = y;
}

// Starts copying a matrix [rows, columns] into shared memory; rows from `valid` on become zeros.
SIMT_DEVICE void stage(Half* shared, int shared_stride, const Half* global, int global_stride,
                       int rows, int valid, int columns) {
  const int pieces = columns / 8;
  for (int i = simt::thread(); i < rows * pieces; i += kBlockThreads) {
    const int row = i / pieces, column = i % pieces * 8;
    const int64_t source = row < valid ? row : 0;  // an address that exists
    simt::copy_async_16(shared + row * shared_stride + column,
                        global + source * global_stride + column, row < valid);
  }
}

// Over the eight lanes that share a row.
SIMT_DEVICE float eight_sum(float x) {
  for (int apart = 4; apart > 0; apart /= 2) x += simt::shuffle_xor(x, apart);
  return x;
}

// LayerNorm of `count` rows in place, eight lanes to a row. Mean and variance are float32, of the
// differences from the mean (float16 sums overflow, and E[x^2] - E[x]^2 cancels at large means); the
// sum is divided by the width, not multiplied by its inverse, so a constant row has variance 0.
SIMT_DEVICE void normalise(Half* rows, int stride, int count, const Half* gamma, const Half* beta,
                           int width, float epsilon) {
  constexpr int kPieces = kBlockMaxWidth / 64;
  const int member = simt::thread() % 8;
  for (int first = 0; first < count; first += kBlockThreads / 8) {
    const int row = first + simt::thread() / 8;
    Half* x = rows + row * stride;
    float value[kPieces][8];
    float sum = 0.0f;
    SIMT_UNROLL
    for (int piece = 0; piece < kPieces; ++piece) {
      const int column = 64 * piece + 8 * member;
      if (row < count && column < width) {
        load_eight(value[piece], x + column);
        for (int i = 0; i < 8; ++i) sum += value[piece][i];
      }
    }
    const float mean = eight_sum(sum) / static_cast<float>(width);
    float squares = 0.0f;
    SIMT_UNROLL
    for (int piece = 0; piece < kPieces; ++piece) {
      const int column = 64 * piece + 8 * member;
      if (row < count && column < width) {
        for (int i = 0; i < 8; ++i) {
          value[piece][i] -= mean;
          squares += value[piece][i] * value[piece][i];
        }
      }
    }
    const float variance = eight_sum(squares) / static_cast<float>(width);
    const float inverse = 1.0f / simt::sqrt(variance + epsilon);
    SIMT_UNROLL
    for (int piece = 0; piece < kPieces; ++piece) {
      const int column = 64 * piece + 8 * member;
      if (row < count && column < width) {
        float slope[8], shift[8];
        load_eight(slope, gamma + column);
        load_eight(shift, beta + column);
        for (int i = 0; i < 8; ++i) {
          value[piece][i] = value[piece][i] * inverse * slope[i] + shift[i];
        }
        store_eight(x + column, value[piece]);
      }
    }
  }
}

// How the right factor of a product lies in shared memory.
enum class Stored {
  kByColumn,  // [columns, depth]: a row holds all that one column of the result needs
  kByDepth,   // [depth, columns]
};

// c += a @ b for one warp: a is [16, depth], c [16, 16], as two fragments side by side.
template <Stored kStored>
SIMT_DEVICE void multiply(float (&c)[2][4], const Half* a, int a_stride, const Half* b,
                          int b_stride, int depth) {
  constexpr bool kByDepth = kStored == Stored::kByDepth;
  const Byte* left = left_operand(reinterpret_cast<const Byte*>(a), 2 * a_stride);
  // Transposed while they are loaded, the 16 x 16 values at b are laid out as a left operand.
  const Byte* right = kByDepth ? left_operand(reinterpret_cast<const Byte*>(b), 2 * b_stride)
                               : right_operand(reinterpret_cast<const Byte*>(b), 2 * b_stride);
  const int right_step = kByDepth ? 16 * 2 * b_stride : 16 * 2;
  for (int k = 0; k < depth; k += 16) {
    uint32_t x[4], y[4];
    simt::load_matrix_x4(x, left);
    if constexpr (kByDepth) {
      simt::load_matrix_x4_transposed(y, right);
    } else {
      simt::load_matrix_x4(y, right);
    }
    simt::multiply_f16(c[0], x, y[0], y[1]);
    simt::multiply_f16(c[1], x, y[2], y[3]);
    left += 16 * 2;
    right += right_step;
  }
}

// Hands a warp's result on: `store` gets (row, column, that element, its right neighbour).
template <typename Store>
SIMT_DEVICE void each_pair(const float (&c)[2][4], Store store) {
  SIMT_UNROLL
  for (int n = 0; n < 2; ++n) {
    store(fragment_row(), 8 * n + fragment_column(), c[n][0], c[n][1]);
    store(fragment_row() + 8, 8 * n + fragment_column(), c[n][2], c[n][3]);
  }
}

// a @ b for the block: its warps share the columns, a multiple of 16.
template <Stored kStored, typename Store>
SIMT_DEVICE void product(const Half* a, int a_stride, const Half* b, int b_stride, int depth,
                         int columns, Store store) {
  const int b_column = kStored == Stored::kByDepth ? 1 : b_stride;
  for (int first = 16 * simt::warp(); first < columns; first += 16 * kBlockWarps) {
    float c[2][4] = {};
    multiply<kStored>(c, a, a_stride, b + first * b_column, b_stride, depth);
    each_pair(c, [&](int row, int column, float x, float y) { store(row, first + column, x, y); });
  }
}

}  // namespace metal_edge::block
