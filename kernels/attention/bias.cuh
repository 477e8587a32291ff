// The distance bias: -slope * Euclidean distance of two tokens on a grid, computed where it is needed.
#pragma once
#include "head.cuh"

namespace metal_edge {

struct Place {
  float y, x;
};

// Where the grid's tokens lie, and the slope of this block's head.
struct Grid {
  float slope;  // times -unit
  float columns, inverse;

  // `unit` converts to the scores' unit. Buffers::slopes is not null.
  SIMT_DEVICE Grid(const Arguments& a, float unit)
      : slope(-unit * a.buffers.slopes[simt::block_y()]),
        columns(static_cast<float>(a.columns)),
        inverse(1.0f / columns) {}

  // Exact: with half a token added the quotient lies 1 / (2 columns) off any whole number, and the
  // error of the product is less than that while tokens <= 4096.
  SIMT_DEVICE Place place(int token) const {
    const float position = static_cast<float>(token);
    const float y = floorf((position + 0.5f) * inverse);
    return {y, position - y * columns};
  }

  SIMT_DEVICE float bias(Place a, Place b) const {
    const float y = a.y - b.y, x = a.x - b.x;
    return slope * simt::sqrt(y * y + x * x);
  }
};

// Adds the bias to a fragment whose upper row is query `row` and whose first key is `key`, if there is
// a bias; scores are in units of log 2.
template <int kTiles>
SIMT_DEVICE void add_bias(float (&score)[kTiles][4], const Arguments& a, int row, int key) {
  if (a.columns == 0) return;
  const Grid grid(a, 1.4426950408889634f);
  const Place query[2] = {grid.place(row), grid.place(row + 8)};
  SIMT_UNROLL
  for (int n = 0; n < kTiles; ++n) {
    SIMT_UNROLL
    for (int e = 0; e < 2; ++e) {
      const Place place = grid.place(key + n * 8 + fragment_column() + e);
      score[n][e] += grid.bias(query[0], place);
      score[n][e + 2] += grid.bias(query[1], place);
    }
  }
}

}  // namespace metal_edge
