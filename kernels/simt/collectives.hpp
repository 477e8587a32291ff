// What a whole warp does at once, as plain functions of all its lanes' operands.
#pragma once
#include <stdint.h>

namespace simt {

enum class Operation {
  kNone,
  kSyncBlock,
  kSyncWarp,
  kShuffle,
  kBallot,
  kLoadMatrixX2,
  kLoadMatrixX2Transposed,
  kLoadMatrixX4,
  kLoadMatrixX4Transposed,
  kMultiplyF16,
  kMultiplyS8K32,
  kMultiplyS8K16,
};

const char* name_of(Operation operation);

// The operands of one lane, and where its results go.
struct Exchange {
  uint32_t word = 0;          // shuffled, or the vote; then the result
  int source = 0;             // shuffle: the lane to read
  const void* row = nullptr;  // load_matrix: the row this lane names
  uint32_t* loaded = nullptr;
  const uint32_t* a = nullptr;
  uint32_t b[2] = {};
  void* c = nullptr;  // float[4] or int32_t[4], updated
};

constexpr int kLanes = 32;

// Runs a warp's operation for all lanes; a lane that has exited, or never was, is null. Returns what is
// wrong with that, or null.
const char* complete(Operation operation, Exchange* const (&lanes)[kLanes]);

}  // namespace simt
