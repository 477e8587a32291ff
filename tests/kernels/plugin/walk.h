// The walk's own small test framework, and the node it walks with.
#pragma once
#include <functional>
#include <utility>

#include "fakes.h"

namespace walk {

using namespace nvinfer1;

inline int failures = 0;

inline void fail(char const* file, int line, std::string const& what) {
  std::printf("FAIL %s:%d %s\n", file, line, what.c_str());
  ++failures;
}

#define CHECK(condition)                                          \
  do {                                                            \
    if (!(condition)) walk::fail(__FILE__, __LINE__, #condition); \
  } while (0)

// A refusal must tell what is wrong, with the value.
inline void check_says(char const* file, int line, std::string const& message, std::string const& part) {
  if (message.find(part) == std::string::npos)
    fail(file, line, "no '" + part + "' in the message: " + message);
}
#define CHECK_SAYS(message, part) walk::check_says(__FILE__, __LINE__, message, part)

using Allowed = std::function<bool(int32_t head, int32_t query, int32_t key)>;

inline std::string hex_mask(int32_t heads, int32_t queries, int32_t keys, Allowed const& allowed) {
  std::string hex;
  for (int32_t row = 0; row < heads * queries; ++row) {
    std::vector<uint8_t> bytes(size_t((keys + 31) / 32 * 4));
    for (int32_t key = 0; key < keys; ++key) {
      if (allowed(row / queries, row % queries, key)) bytes[size_t(key / 8)] |= uint8_t(1 << key % 8);
    }
    for (uint8_t const byte : bytes) {
      hex += "0123456789abcdef"[byte >> 4];
      hex += "0123456789abcdef"[byte & 15];
    }
  }
  return hex;
}

inline bool not_itself(int32_t, int32_t query, int32_t key) { return query != key; }

// MaskedAttention with two heads of 32 and a diagonal mask over N = M = 40.
constexpr int32_t kHeads = 2, kTokens = 40;
constexpr int64_t kWidth = 64;

inline fake::Fields node() {
  fake::Fields fields;
  fields.ints("heads", {kHeads}).ints("mask_shape", {1, kTokens, kTokens});
  return fields.text("mask", hex_mask(1, kTokens, kTokens, not_itself));
}

inline fake::Fields int8_node() {
  return node()
      .floats("q_scale", {.02F})
      .floats("k_scale", {.02F})
      .floats("v_scale", {.02F})
      .floats("out_scale", {.02F});
}

inline fake::Fields block_node() { return node().floats("epsilon", {1e-5F}); }

// Shapes of the block's inputs for the node above.
inline std::vector<PluginTensorDesc> block_inputs(int64_t batch, int64_t query_batch,
                                                  int64_t residual_batch) {
  std::vector<std::vector<int64_t>> const shapes = {{query_batch, kTokens, kWidth},
                                                    {batch, kTokens, kWidth},
                                                    {residual_batch, kTokens, kWidth},
                                                    {kWidth},
                                                    {kWidth},
                                                    {2 * kWidth, kWidth},
                                                    {2 * kWidth},
                                                    {kWidth, kWidth},
                                                    {kWidth}};
  std::vector<PluginTensorDesc> tensors;
  for (auto const& shape : shapes) tensors.push_back(fake::tensor(DataType::kHALF, shape));
  return tensors;
}

// What the walk has in hand.
struct World {
  fake::Library& library;
  fake::Logger& logger;
  bool computes;  // on the CPU, in emulation, or on a GPU

  fake::Made make(int32_t creator, fake::Fields fields,
                  TensorRTPhase phase = TensorRTPhase::kBUILD) const {
    return fake::Made(library.creator(creator).createPlugin("layer", fields.collection(), phase));
  }
  fake::Made attention(fake::Fields fields = node()) const { return make(0, std::move(fields)); }
  fake::Made block(fake::Fields fields = block_node()) const { return make(1, std::move(fields)); }
};

// The parts of the walk.
void creators(World const&);
void build_time(World const&);
void serialisation(World const&);
void refusals(World const&);
void run_time(World const&);
void numbers(World const&);  // of a library that computes

}  // namespace walk
