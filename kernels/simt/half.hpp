// IEEE binary16 on a host without the type: conversions that are exact, or round to nearest even.
#pragma once
#include <stdint.h>
#include <string.h>

namespace simt {

struct Half {
  uint16_t bits;
};

inline float float_of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t bits_of_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Exact; NaN stays NaN.
inline float to_float(Half value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t exponent = (value.bits >> 10) & 0x1fu;
  const uint32_t fraction = value.bits & 0x3ffu;
  if (exponent == 0) {  // zero and subnormals: fraction * 2^-24
    return float_of_bits(sign | bits_of_float(static_cast<float>(fraction) * 0x1p-24f));
  }
  const uint32_t wide = exponent == 0x1f ? 0xffu : exponent + 127 - 15;
  return float_of_bits(sign | (wide << 23) | (fraction << 13));
}

// To nearest, ties to even; beyond 65504 + 16 to infinity; NaN to 0x7fff, as the GPU does it.
inline Half to_half(float value) {
  const uint32_t bits = bits_of_float(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {0x7fff};
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};
  uint32_t rounded;
  if (magnitude < 0x38800000u) {
    // Below 2^-14 the result is a multiple of 2^-24, the spacing of floats in [0.5, 1): adding 0.5
    // lets the processor round, and the low bits of the sum are the subnormal.
    rounded = bits_of_float(float_of_bits(magnitude) + 0.5f) - bits_of_float(0.5f);
  } else {
    const uint32_t odd = (magnitude >> 13) & 1u;
    rounded = ((magnitude + 0xfffu + odd) >> 13) - ((127u - 15u) << 10);
  }
  return {static_cast<uint16_t>(sign | rounded)};
}

}  // namespace simt
