// Matrix products on tensor cores, c = a b^T, one warp per 16 x 8 tile of c. The operands come straight
// from global memory, in the fragments that PTX's mma.m16n8k16 and k32 document.
#include "simt.cuh"

namespace {
constexpr int kRows = 16;
constexpr int kColumns = 8;

struct Place {
  int row, column;  // of the lane's first element of c
  const char* a;    // rows `row` of a and `lane / 4` of b's tile, at the lane's first element
  const char* b;
};

// `width`: bytes per row; a register holds 4 bytes of a row and the next lane the next 4.
SIMT_DEVICE Place place_of(const void* a, const void* b, int width) {
  const int i = simt::lane() / 4;
  const int quarter = simt::lane() % 4;
  const int row = simt::block_y() * kRows + i;
  const int column = simt::block_x() * kColumns;
  return {row, column + 2 * quarter, static_cast<const char*>(a) + row * width + 4 * quarter,
          static_cast<const char*>(b) + (column + i) * width + 4 * quarter};
}

SIMT_DEVICE uint32_t word_at(const char* address) {
  return *reinterpret_cast<const uint32_t*>(address);
}

template <typename T>
SIMT_DEVICE void store(T* c, const Place& at, int columns, const T (&tile)[4]) {
  for (int i = 0; i < 4; ++i) {
    c[(at.row + i / 2 * 8) * columns + at.column + i % 2] = tile[i];
  }
}
}  // namespace

// a [16 m, depth], b [8 n, depth] of halves, c [16 m, 8 n] of floats; depth a multiple of 16.
SIMT_KERNEL void SIMT_BOUNDS(32)
    multiply_halves(const void* a, const void* b, float* c, int32_t columns, int32_t depth) {
  const int width = 2 * depth;
  const Place at = place_of(a, b, width);
  float tile[4] = {};
  for (int offset = 0; offset < width; offset += 32) {
    const char* left = at.a + offset;
    const uint32_t fragment[4] = {word_at(left), word_at(left + 8 * width), word_at(left + 16),
                                  word_at(left + 8 * width + 16)};
    simt::multiply_f16(tile, fragment, word_at(at.b + offset), word_at(at.b + offset + 16));
  }
  store(c, at, columns, tile);
}

// The same of signed bytes into int32; depth a multiple of 16.
SIMT_KERNEL void SIMT_BOUNDS(32)
    multiply_bytes(const void* a, const void* b, int32_t* c, int32_t columns, int32_t depth) {
  const Place at = place_of(a, b, depth);
  int32_t tile[4] = {};
  int offset = 0;
  for (; offset + 32 <= depth; offset += 32) {
    const char* left = at.a + offset;
    const uint32_t fragment[4] = {word_at(left), word_at(left + 8 * depth), word_at(left + 16),
                                  word_at(left + 8 * depth + 16)};
    simt::multiply_s8_k32(tile, fragment, word_at(at.b + offset), word_at(at.b + offset + 16));
  }
  if (offset < depth) {
    const uint32_t fragment[2] = {word_at(at.a + offset), word_at(at.a + offset + 8 * depth)};
    simt::multiply_s8_k16(tile, fragment, word_at(at.b + offset));
  }
  store(c, at, columns, tile);
}

extern "C" int32_t launch_multiply_halves(const void* a, const void* b, float* c, int32_t rows,
                                          int32_t columns, int32_t depth) {
  const simt::Grid grid = {columns / kColumns, rows / kRows, 1};
  return simt::launch(multiply_halves, grid, 32, 0, nullptr, a, b, c, columns, depth);
}

extern "C" int32_t launch_multiply_bytes(const void* a, const void* b, int32_t* c, int32_t rows,
                                         int32_t columns, int32_t depth) {
  const simt::Grid grid = {columns / kColumns, rows / kRows, 1};
  return simt::launch(multiply_bytes, grid, 32, 0, nullptr, a, b, c, columns, depth);
}
