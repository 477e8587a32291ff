// What the benchmark's parts share, in plain C++.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "../attention/problem.h"

namespace metal_edge::bench {

// One attention as a model of this project has it.
struct Case {
  std::string name;
  int32_t heads, head_dim, queries, keys;
  int32_t columns;  // of the tokens' grid, with a distance bias; 0 without
  Fill fill;
  std::vector<bool> allowed;  // [N, M], for all heads
};

// All cases; `names` picks some. Throws UsageError: an unknown name.
std::vector<Case> cases(const std::vector<std::string>& names);

// A problem and its tensors as they lie in memory: query, key and value in one array, as
// projections write them.
struct Data {
  Problem problem;
  std::vector<unsigned char> input;   // [B, N, 3W], or [B, N, W] followed by [B, M, 2W]
  size_t q, k, v;                     // bytes from the beginning of `input`
  std::vector<uint32_t> mask, tiles;  // as Buffers describes them
  std::vector<float> slopes;
};

// Normally distributed numbers of a fixed seed.
Data make_data(const Case& from, Type type, int32_t batch);

size_t size_of(Type type);
size_t output_bytes(const Problem& problem);
const char* type_name(Type type);

// Bounds of the error that a kernel may have, from float64 and plain implementations on the CPU.
struct Expected {
  std::vector<double> out;  // float64, [B, N, W]; int8: in steps of the output
  double plain_error;       // largest error of a plain implementation of the same precision
  double composed_error;    // the same, with scores stored in float16
};
Expected expect(const Data& data);

// Largest distance of a result [B, N, W] from float64; NaN where one is not a number.
double worst_error(const Problem& problem, const unsigned char* out, const Expected& expected);

// Microseconds; NaN where nothing can be timed.
struct Timing {
  double cold;  // median of single launches after L2 was flushed
  double warm;  // of launches right after one another
};

struct Result {
  Case from;
  Type type;
  std::string kernel;
  double error, bound;
  Timing kernel_time, plain_time, composition_time;
};

struct Report {
  std::string device, composition;
  bool timed;
  int32_t batch;
  Timing nothing;  // an empty kernel, timed in the same way
  std::vector<Result> results;
};

std::string as_text(const Report& report);
std::string as_json(const Report& report);

}  // namespace metal_edge::bench
