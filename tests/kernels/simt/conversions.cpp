// The emulation's conversions of halves, for tests.
#include "host.hpp"

extern "C" int32_t halves_to_floats(const uint16_t* halves, float* floats, int32_t count) {
  for (int i = 0; i < count; ++i) floats[i] = simt::to_float(simt::Half{halves[i]});
  return 0;
}

extern "C" int32_t floats_to_halves(const float* floats, uint16_t* halves, int32_t count) {
  for (int i = 0; i < count; ++i) halves[i] = simt::to_half(floats[i]).bits;
  return 0;
}

extern "C" int32_t pack_all(const float* pairs, uint32_t* packed, int32_t count) {
  for (int i = 0; i < count; ++i) packed[i] = simt::pack_halves(pairs[2 * i], pairs[2 * i + 1]);
  return 0;
}

extern "C" int32_t subtract_all(const uint32_t* a, const uint32_t* b, uint32_t* out, int32_t n) {
  for (int i = 0; i < n; ++i) out[i] = simt::subtract_halves(a[i], b[i]);
  return 0;
}
