#include "collectives.hpp"

#include <string.h>

#include "half.hpp"

namespace simt {
namespace {

using Lanes = Exchange* const[kLanes];

// One 8 x 8 matrix after the other: lane l gets two neighbours of row l / 4, or of column l / 4.
void load_matrices(const Lanes& lanes, int matrices, bool transposed) {
  for (int matrix = 0; matrix < matrices; ++matrix) {
    uint16_t elements[8][8];
    for (int row = 0; row < 8; ++row) memcpy(elements[row], lanes[8 * matrix + row]->row, 16);
    for (int lane = 0; lane < kLanes; ++lane) {
      const int i = lane / 4;
      const int j = 2 * (lane % 4);
      const uint32_t low = transposed ? elements[j][i] : elements[i][j];
      const uint32_t high = transposed ? elements[j + 1][i] : elements[i][j + 1];
      lanes[lane]->loaded[matrix] = low | high << 16;
    }
  }
}

// Element `index` of a register that holds halves (2) or signed bytes (4).
float half_at(uint32_t packed, int index) {
  return to_float(Half{static_cast<uint16_t>(packed >> (16 * index))});
}
int32_t byte_at(uint32_t packed, int index) {
  return static_cast<int8_t>(packed >> (8 * index));
}

// A warp's fragments as matrices. `kPacked` elements share a register; a lane's first registers of A
// hold rows l / 4 and l / 4 + 8, the next two the same rows kPacked * 4 columns on; see PTX, "Matrix
// fragments for mma.m16n8k16" and "k32".
template <int kDepth, int kPacked, typename T, T (*kElement)(uint32_t, int)>
void unpack(const Lanes& lanes, T (&a)[16][kDepth], T (&b)[kDepth][8]) {
  constexpr int kSpan = 4 * kPacked;  // columns that the four lanes of a row hold in one register
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int part = 0; part < kDepth / kSpan; ++part) {
      for (int i = 0; i < kPacked; ++i) {
        const int k = part * kSpan + lane % 4 * kPacked + i;
        a[lane / 4][k] = kElement(lanes[lane]->a[2 * part], i);
        a[lane / 4 + 8][k] = kElement(lanes[lane]->a[2 * part + 1], i);
        b[k][lane / 4] = kElement(lanes[lane]->b[part], i);
      }
    }
  }
}

// Products of halves are exact in double, and so are nearly all sums of 17; one rounding to float.
void multiply_halves(const Lanes& lanes) {
  constexpr int kDepth = 16;
  float a[16][kDepth];
  float b[kDepth][8];
  unpack<kDepth, 2, float, half_at>(lanes, a, b);
  double sum[16][8] = {};
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < kDepth; ++k) {
      for (int column = 0; column < 8; ++column) {
        sum[row][column] += static_cast<double>(a[row][k]) * static_cast<double>(b[k][column]);
      }
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    float* c = static_cast<float*>(lanes[lane]->c);
    for (int i = 0; i < 4; ++i) {
      const double term = sum[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
      c[i] = static_cast<float>(static_cast<double>(c[i]) + term);
    }
  }
}

// Exact; wraps around like the instruction without .satfinite.
template <int kDepth>
void multiply_bytes(const Lanes& lanes) {
  int32_t a[16][kDepth];
  int32_t b[kDepth][8];
  unpack<kDepth, 4, int32_t, byte_at>(lanes, a, b);
  for (int lane = 0; lane < kLanes; ++lane) {
    int32_t* c = static_cast<int32_t*>(lanes[lane]->c);
    for (int i = 0; i < 4; ++i) {
      int32_t sum = 0;  // at most 32 * 2^14
      for (int k = 0; k < kDepth; ++k) {
        sum += a[lane / 4 + i / 2 * 8][k] * b[k][lane % 4 * 2 + i % 2];
      }
      c[i] = static_cast<int32_t>(static_cast<uint32_t>(c[i]) + static_cast<uint32_t>(sum));
    }
  }
}

const char* shuffle_words(const Lanes& lanes) {
  uint32_t received[kLanes] = {};
  for (int lane = 0; lane < kLanes; ++lane) {
    if (lanes[lane] == nullptr) continue;
    const Exchange* source = lanes[lanes[lane]->source % kLanes];
    if (source == nullptr) return "a shuffle reads a lane that has exited or does not exist";
    received[lane] = source->word;
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    if (lanes[lane] != nullptr) lanes[lane]->word = received[lane];
  }
  return nullptr;
}

void count_votes(const Lanes& lanes) {
  uint32_t votes = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (lanes[lane] != nullptr && lanes[lane]->word != 0) votes |= 1u << lane;
  }
  for (Exchange* lane : lanes) {
    if (lane != nullptr) lane->word = votes;
  }
}

bool needs_all_lanes(Operation operation) {
  return operation >= Operation::kLoadMatrixX2;
}

}  // namespace

const char* name_of(Operation operation) {
  switch (operation) {
    case Operation::kNone: return "nothing";
    case Operation::kSyncBlock: return "sync_block";
    case Operation::kSyncWarp: return "sync_warp";
    case Operation::kShuffle: return "shuffle";
    case Operation::kBallot: return "ballot";
    case Operation::kLoadMatrixX2: return "load_matrix_x2";
    case Operation::kLoadMatrixX2Transposed: return "load_matrix_x2_transposed";
    case Operation::kLoadMatrixX4: return "load_matrix_x4";
    case Operation::kLoadMatrixX4Transposed: return "load_matrix_x4_transposed";
    case Operation::kMultiplyF16: return "multiply_f16";
    case Operation::kMultiplyS8K32: return "multiply_s8_k32";
    case Operation::kMultiplyS8K16: return "multiply_s8_k16";
  }
  return "?";
}

const char* complete(Operation operation, Exchange* const (&lanes)[kLanes]) {
  if (needs_all_lanes(operation)) {
    for (const Exchange* lane : lanes) {
      if (lane == nullptr) return "needs all 32 lanes, but one has exited or does not exist";
    }
  }
  switch (operation) {
    case Operation::kShuffle: return shuffle_words(lanes);
    case Operation::kBallot: count_votes(lanes); break;
    case Operation::kLoadMatrixX2: load_matrices(lanes, 2, false); break;
    case Operation::kLoadMatrixX2Transposed: load_matrices(lanes, 2, true); break;
    case Operation::kLoadMatrixX4: load_matrices(lanes, 4, false); break;
    case Operation::kLoadMatrixX4Transposed: load_matrices(lanes, 4, true); break;
    case Operation::kMultiplyF16: multiply_halves(lanes); break;
    case Operation::kMultiplyS8K32: multiply_bytes<32>(lanes); break;
    case Operation::kMultiplyS8K16: multiply_bytes<16>(lanes); break;
    case Operation::kNone:
    case Operation::kSyncBlock:
    case Operation::kSyncWarp: break;
  }
  return nullptr;
}

}  // namespace simt
