// Attention on the CPU: in float64, and plainly in the precision of the kernels, which says how far
// from float64 a kernel may lie (at most twice as far, the rule of flash-attention's tests).
#include <algorithm>
#include <cmath>
#include <cstring>

#include "../simt/half.hpp"
#include "bench.h"

namespace metal_edge::bench {
namespace {

struct Reader {
  const unsigned char* base;
  Type type;

  float operator[](int64_t index) const {
    if (type == Type::kInt8) return static_cast<float>(static_cast<int8_t>(base[index]));
    if (type == Type::kHalf) {
      simt::Half half;
      std::memcpy(&half, base + index * 2, 2);
      return simt::to_float(half);
    }
    float value;
    std::memcpy(&value, base + index * 4, 4);
    return value;
  }
};

float half_rounded(float value) { return simt::to_float(simt::to_half(value)); }

enum class Rounding { kNone, kWeights, kScoresAndWeights };

// One query of one head. `Real` is the type of scores, softmax and sums.
template <typename Real>
class Row {
 public:
  Row(const Data& data, Rounding rounding) : data_(data), p_(data.problem), rounding_(rounding) {}

  void attend(int32_t image, int32_t head, int32_t row, std::vector<Real>& out) {
    weigh(image, head, row);
    const Reader v{data_.input.data() + data_.v, p_.type};
    for (int32_t d = 0; d < p_.head_dim; ++d) {
      Real sum = 0;
      const int64_t first = image * p_.v_batch + int64_t{head} * p_.head_dim + d;
      for (int32_t j = 0; j < p_.keys; ++j) {
        const Real weight = weights_[static_cast<size_t>(j)];
        if (weight != 0) sum += weight * static_cast<Real>(v[first + j * p_.v_row]);
      }
      out[static_cast<size_t>(d)] = sum;
    }
  }

 private:
  // Weights of all keys; 0 where excluded.
  void weigh(int32_t image, int32_t head, int32_t row) {
    const Reader q{data_.input.data() + data_.q, p_.type}, k{data_.input.data() + data_.k, p_.type};
    const int64_t q_first = image * p_.q_batch + row * p_.q_row + int64_t{head} * p_.head_dim;
    const Real step =
        p_.type == Type::kInt8 ? static_cast<Real>(p_.q_scale) * static_cast<Real>(p_.k_scale) : 1;
    weights_.assign(static_cast<size_t>(p_.keys), -INFINITY);
    Real highest = -INFINITY;
    for (int32_t j = 0; j < p_.keys; ++j) {
      const bool allowed = mask_bit(row, j);
      if (!allowed && p_.fill == Fill::kExclude) continue;
      Real score = 0;
      if (allowed) {
        const int64_t k_first = image * p_.k_batch + j * p_.k_row + int64_t{head} * p_.head_dim;
        for (int32_t d = 0; d < p_.head_dim; ++d) {
          score += static_cast<Real>(q[q_first + d]) * static_cast<Real>(k[k_first + d]);
        }
        score *= step * static_cast<Real>(p_.scale);
        if (rounding_ == Rounding::kScoresAndWeights)
          score = half_rounded(static_cast<float>(score));
        score -= bias(head, row, j);
      }
      weights_[static_cast<size_t>(j)] = score;
      highest = std::max(highest, score);
    }
    Real sum = 0;
    for (Real& weight : weights_) {
      weight = std::isinf(highest) ? 0 : std::exp(weight - highest);
      sum += weight;
    }
    for (Real& weight : weights_) {
      if (sum != 0) weight /= sum;
      if (rounding_ != Rounding::kNone) weight = half_rounded(static_cast<float>(weight));
    }
  }

  bool mask_bit(int32_t row, int32_t key) const {
    const size_t words = (static_cast<size_t>(p_.keys) + 31) / 32;
    return data_.mask[static_cast<size_t>(row) * words + static_cast<size_t>(key) / 32] >>
               key % 32 &
           1;
  }

  Real bias(int32_t head, int32_t a, int32_t b) const {
    if (p_.columns == 0) return 0;
    const Real y = static_cast<Real>(a / p_.columns - b / p_.columns);
    const Real x = static_cast<Real>(a % p_.columns - b % p_.columns);
    return static_cast<Real>(data_.slopes[static_cast<size_t>(head)]) * std::sqrt(y * y + x * x);
  }

  const Data& data_;
  const Problem& p_;
  Rounding rounding_;
  std::vector<Real> weights_;
};

// What the output's type makes of a result, in units of its elements.
double rounded(const Problem& p, double value) {
  if (p.type == Type::kFloat) return static_cast<float>(value);
  if (p.type == Type::kHalf) return half_rounded(static_cast<float>(value));
  return std::min(127.0, std::max(-128.0, std::nearbyint(value)));
}

template <typename Real, typename Use>
void attend_all(const Data& data, Rounding rounding, Use use) {
  const Problem& p = data.problem;
  Row<Real> engine(data, rounding);
  std::vector<Real> out(static_cast<size_t>(p.head_dim));
  const double steps = p.type == Type::kInt8 ? double{p.v_scale} / double{p.out_scale} : 1.0;
  for (int32_t image = 0; image < p.batch; ++image) {
    for (int32_t row = 0; row < p.queries; ++row) {
      for (int32_t head = 0; head < p.heads; ++head) {
        engine.attend(image, head, row, out);
        const int64_t first = image * p.out_batch + row * p.out_row + int64_t{head} * p.head_dim;
        for (int32_t d = 0; d < p.head_dim; ++d) {
          use(static_cast<size_t>(first + d),
              static_cast<double>(out[static_cast<size_t>(d)]) * steps);
        }
      }
    }
  }
}

}  // namespace

Expected expect(const Data& data) {
  const Problem& p = data.problem;
  Expected expected = {};
  expected.out.resize(output_bytes(p) / size_of(p.type));
  attend_all<double>(data, Rounding::kNone, [&](size_t at, double value) {
    // An int8 result beyond the range is clamped, in the definition too.
    expected.out[at] = p.type == Type::kInt8 ? std::min(127.0, std::max(-128.0, value)) : value;
  });
  const auto error_of = [&](Rounding rounding) {
    double worst = 0.0;
    attend_all<float>(data, rounding, [&](size_t at, double value) {
      worst = std::max(worst, std::fabs(rounded(p, value) - expected.out[at]));
    });
    return worst;
  };
  expected.plain_error = error_of(p.type == Type::kFloat ? Rounding::kNone : Rounding::kWeights);
  expected.composed_error = p.type == Type::kHalf ? error_of(Rounding::kScoresAndWeights) : 0.0;
  return expected;
}

double worst_error(const Problem& p, const unsigned char* out, const Expected& expected) {
  const Reader result{out, p.type};
  double worst = 0.0;
  for (size_t at = 0; at < expected.out.size(); ++at) {
    const double error = std::fabs(double{result[static_cast<int64_t>(at)]} - expected.out[at]);
    if (std::isnan(error)) return error;
    worst = std::max(worst, error);
  }
  return worst;
}

}  // namespace metal_edge::bench
