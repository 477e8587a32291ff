// The portability layer on the CPU: the interface that kernels see. host.cpp runs a block's threads as
// fibers, in an order drawn from a seed; it reports what a GPU would silently get wrong.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "half.hpp"

#define SIMT_DEVICE inline
#define SIMT_KERNEL extern "C"
#define SIMT_BOUNDS(...)
#define SIMT_UNROLL

namespace simt {

// Where a thread is. Blocks are one-dimensional.
int thread();
inline int lane() { return thread() & 31; }
inline int warp() { return thread() >> 5; }
int block_x();
int block_y();
int block_z();
int grid_x();
int grid_y();
int grid_z();

// Barrier of the block: what its threads wrote before is seen by all of them after.
void sync_block();

// The same for a warp. The other exchanges below order no memory.
void sync_warp();

uint32_t shuffle_word_xor(uint32_t value, int mask);
uint32_t shuffle_word(uint32_t value, int source);

// The value of lane `lane() ^ mask`. T is float, int32_t or uint32_t.
template <typename T>
T shuffle_xor(T value, int mask) {
  static_assert(sizeof(T) == 4, "a shuffle moves 32 bits");
  uint32_t word;
  memcpy(&word, &value, 4);
  word = shuffle_word_xor(word, mask);
  memcpy(&value, &word, 4);
  return value;
}

// The value of lane `source % 32`.
template <typename T>
T shuffle(T value, int source) {
  static_assert(sizeof(T) == 4, "a shuffle moves 32 bits");
  uint32_t word;
  memcpy(&word, &value, 4);
  word = shuffle_word(word, source);
  memcpy(&value, &word, 4);
  return value;
}

// Bit i: what lane i voted.
uint32_t ballot(bool vote);

// Two halves, rounded to nearest even; `low` in the lower 16 bits.
inline uint32_t pack_halves(float low, float high) {
  return to_half(low).bits | static_cast<uint32_t>(to_half(high).bits) << 16;
}

// a - b on two pairs of halves, rounded to nearest even.
inline uint32_t subtract_halves(uint32_t a, uint32_t b) {
  const auto half = [](uint32_t pair, int shift) {
    return to_float(Half{static_cast<uint16_t>(pair >> shift)});
  };
  return pack_halves(half(a, 0) - half(b, 0), half(a, 16) - half(b, 16));
}

// 2^x. The GPU's is off by up to 2 units in the last place and flushes subnormals, as is done here.
inline float exp2(float x) {
  const float y = exp2f(x);
  return y < 0x1p-126f ? 0.0f : y;
}

// The GPU's is off by up to 1 unit in the last place.
inline float sqrt(float x) { return sqrtf(x); }

// To the nearest whole number, halves to even.
inline float round_even(float x) { return nearbyintf(x); }

// The block's dynamic shared memory, 128-byte aligned. It starts as NaN, in any type of float.
unsigned char* shared_memory();

// 8 x 8 matrices of 16-bit elements from shared memory. Lanes 8 m to 8 m + 7 name the rows of matrix
// m, 16 aligned bytes each; a lane gets elements 2 (lane % 4) and + 1 of row lane / 4 of each
// matrix, or of its transpose.
void load_matrix_x4(uint32_t (&r)[4], const void* row);
void load_matrix_x4_transposed(uint32_t (&r)[4], const void* row);
void load_matrix_x2(uint32_t (&r)[2], const void* row);
void load_matrix_x2_transposed(uint32_t (&r)[2], const void* row);

// 16 aligned bytes from global to shared memory, or 16 zero bytes where not `valid`. They arrive by
// the wait and no earlier; until then the target holds NaN.
void copy_async_16(void* shared, const void* global, bool valid);
void copy_async_commit();
void copy_async_wait_for(int pending);

// Waits until at most kPending of this thread's committed groups are under way.
template <int kPending>
void copy_async_wait() {
  copy_async_wait_for(kPending);
}

// c += a b on a warp's 16 x K by K x 8 fragments, laid out as PTX's mma.m16n8kK says.
void multiply_f16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);         // K = 16
void multiply_s8_k32(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);    // K = 32
void multiply_s8_k16(int32_t (&c)[4], const uint32_t (&a)[2], uint32_t b0);                 // K = 16

// Returns the value before. Orders nothing without fences.
int32_t atomic_add(int32_t* address, int32_t value);
void memory_fence();

struct Grid {
  int32_t x = 1, y = 1, z = 1;
};

// The order of blocks, warps and lanes in launches from now on; 0: ascending.
void set_schedule(uint32_t seed);

// Why the last launch failed; empty if it did not.
const char* last_error();

using Body = void (*)(const void* context);
int32_t run(const void* kernel, Grid grid, int32_t threads, int32_t shared_bytes, Body body,
            const void* context);

// Runs the kernel to its end. 0, or a cudaError_t's number, with last_error() to explain it.
template <typename... Parameters, typename... Arguments>
int32_t launch(void (*kernel)(Parameters...), Grid grid, int32_t threads, int32_t shared_bytes,
               void* /*stream*/, Arguments... arguments) {
  const auto call = [&] { kernel(static_cast<Parameters>(arguments)...); };
  using Call = decltype(call);
  return run(
      reinterpret_cast<const void*>(kernel), grid, threads, shared_bytes,
      [](const void* context) { (*static_cast<Call*>(context))(); }, &call);
}

}  // namespace simt
