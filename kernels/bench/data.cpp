// Tensors of a case: numbers as they come out of a normalisation, in one array as projections write
// it.
#include <algorithm>
#include <cmath>
#include <random>

#include "../attention/pack.h"
#include "../simt/half.hpp"
#include "bench.h"

namespace metal_edge::bench {
namespace {

constexpr float kStep = 4.0f / 127;  // of int8 tensors: four standard deviations
constexpr uint32_t kSeed = 5;

void write(std::vector<unsigned char>& bytes, size_t index, Type type, float value) {
  if (type == Type::kInt8) {
    const float steps = std::min(127.0f, std::max(-127.0f, std::nearbyint(value / kStep)));
    bytes[index] = static_cast<unsigned char>(static_cast<int8_t>(steps));
  } else if (type == Type::kHalf) {
    const uint16_t bits = simt::to_half(value).bits;
    std::copy_n(reinterpret_cast<const unsigned char*>(&bits), 2, &bytes[index * 2]);
  } else {
    std::copy_n(reinterpret_cast<const unsigned char*>(&value), 4, &bytes[index * 4]);
  }
}

Problem make_problem(const Case& from, Type type, int32_t batch) {
  const int64_t width = int64_t{from.heads} * from.head_dim;
  Problem p = {};
  p.type = type;
  p.fill = from.fill;
  p.batch = batch;
  p.heads = from.heads;
  p.head_dim = from.head_dim;
  p.queries = from.queries;
  p.keys = from.keys;
  p.mask_heads = 1;
  p.columns = from.columns;
  p.scale = 1.0f / std::sqrt(static_cast<float>(from.head_dim));
  p.q_scale = p.k_scale = p.v_scale = kStep;
  p.out_scale = kStep / 4;                          // averages are smaller than what they average
  const bool together = from.queries == from.keys;  // [B, N, 3W], else [B, N, W] and [B, M, 2W]
  p.q_row = together ? 3 * width : width;
  p.k_row = p.v_row = together ? 3 * width : 2 * width;
  p.q_batch = p.queries * p.q_row;
  p.k_batch = p.v_batch = p.keys * p.k_row;
  p.out_row = width;
  p.out_batch = p.queries * width;
  return p;
}

}  // namespace

size_t size_of(Type type) { return type == Type::kFloat ? 4 : type == Type::kHalf ? 2 : 1; }

const char* type_name(Type type) {
  return type == Type::kFloat ? "float32" : type == Type::kHalf ? "float16" : "int8";
}

size_t output_bytes(const Problem& p) {
  return static_cast<size_t>(p.batch) * static_cast<size_t>(p.out_batch) * size_of(p.type);
}

Data make_data(const Case& from, Type type, int32_t batch) {
  Data data;
  data.problem = make_problem(from, type, batch);
  const Problem& p = data.problem;
  const size_t size = size_of(type),
               width = static_cast<size_t>(p.heads) * static_cast<size_t>(p.head_dim);
  const bool together = p.q_row == p.k_row;
  const size_t queries = static_cast<size_t>(p.batch) * static_cast<size_t>(p.q_batch);
  const size_t rest = together ? 0 : static_cast<size_t>(p.batch) * static_cast<size_t>(p.k_batch);
  data.input.resize((queries + rest) * size);
  data.q = 0;
  data.k = (together ? width : queries) * size;
  data.v = data.k + width * size;
  std::mt19937 generator(kSeed);
  std::normal_distribution<float> normal;
  for (size_t i = 0; i < queries + rest; ++i) write(data.input, i, type, normal(generator));

  const size_t words = static_cast<size_t>(mask_words(p.keys)), keys = static_cast<size_t>(p.keys);
  data.mask.assign(static_cast<size_t>(p.queries) * words, 0);
  for (size_t at = 0; at < from.allowed.size(); ++at) {
    const size_t row = at / keys, key = at % keys;
    if (from.allowed[at]) data.mask[row * words + key / 32] |= uint32_t{1} << key % 32;
  }
  data.tiles = occupied_tiles(data.mask.data(), 1, p.queries, p.keys, p.fill);
  if (p.columns != 0) {  // as metal-features: half as steep from head to head, the last two flat
    for (int32_t h = 0; h < p.heads; ++h)
      data.slopes.push_back(h < p.heads - 2 ? std::exp2(1.0f - static_cast<float>(h)) : 0.0f);
  }
  return data;
}

}  // namespace metal_edge::bench
