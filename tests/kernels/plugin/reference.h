// Attention under a mask as kernels/README.md defines it: in double, and plainly in a precision, whose
// error is the measure for the kernels'.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

namespace reference {

#ifdef __aarch64__
using Half = __fp16;  // g++ has _Float16 there from version 13 on
#else
using Half = _Float16;
#endif

using Numbers = std::vector<double>;
using Round = double (*)(double);

inline double exact(double value) { return value; }
inline double to_float(double value) { return double(float(value)); }
inline double to_half(double value) { return double(Half(float(value))); }

struct Attention {
  int64_t batch, heads, head_dim, queries, keys;
  bool shared_query;
  std::function<bool(int32_t, int32_t, int32_t)> allowed;
  bool zero_fill = false;
  std::vector<float> slopes = {};
  int64_t columns = 1;
  double scale = 0;

  int64_t width() const { return heads * head_dim; }

  double bias(int64_t head, int64_t i, int64_t j) const {
    if (slopes.empty()) return 0;
    return -double(slopes[size_t(head)]) *
           std::hypot(double(i / columns - j / columns), double(i % columns - j % columns));
  }

  // q [B or 1, N, W], k and v [B, M, W] -> [B, N, W]. `arithmetic` rounds every sum, `weight` the
  // softmax's results, `result` what is stored.
  Numbers run(Numbers const& q, Numbers const& k, Numbers const& v, Round arithmetic, Round weight,
              Round result) const {
    Numbers out(size_t(batch * queries * width()));
    Numbers weights(static_cast<size_t>(keys));
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t h = 0; h < heads; ++h) {
        for (int64_t i = 0; i < queries; ++i) {
          double const* const query =
              &q[size_t(((shared_query ? 0 : b) * queries + i) * width() + h * head_dim)];
          double const sum =
              softmax(weights, query, &k[size_t(b * keys * width() + h * head_dim)], h, i, arithmetic);
          for (int64_t d = 0; d < head_dim; ++d) {
            double total = 0;
            for (int64_t j = 0; j < keys; ++j) {
              total = arithmetic(total + weight(weights[size_t(j)]) *
                                             v[size_t((b * keys + j) * width() + h * head_dim + d)]);
            }
            out[size_t((b * queries + i) * width() + h * head_dim + d)] =
                result(sum > 0 ? total / sum : 0);
          }
        }
      }
    }
    return out;
  }

 private:
  // Weights before they are divided by their sum, which is returned.
  double softmax(Numbers& weights, double const* query, double const* keys_of_head, int64_t head,
                 int64_t i, Round arithmetic) const {
    double most = -INFINITY, sum = 0;
    for (int64_t j = 0; j < keys; ++j) {
      double score = 0;
      for (int64_t d = 0; d < head_dim; ++d)
        score = arithmetic(score + query[d] * keys_of_head[j * width() + d]);
      bool const open = allowed(int32_t(head), int32_t(i), int32_t(j));
      weights[size_t(j)] = open        ? arithmetic(score * scale + bias(head, i, j))
                           : zero_fill ? 0
                                       : -INFINITY;
      most = std::max(most, weights[size_t(j)]);
    }
    for (double& weight : weights) {
      weight = weight == -INFINITY ? 0 : arithmetic(std::exp(weight - most));
      sum = arithmetic(sum + weight);
    }
    return sum;
  }
};

inline double largest_difference(Numbers const& a, Numbers const& b) {
  double most = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    double const difference = std::abs(a[i] - b[i]);
    if (!(difference <= most)) most = difference;  // NaN stays
  }
  return most;
}

}  // namespace reference
