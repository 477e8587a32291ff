// Where a block's share of the tensors lies, and its mask bits.
#pragma once
#include "arguments.h"
#include "tiles.cuh"

namespace metal_edge {

// One head of one image: block_y and block_z of every kernel's grid.
struct HeadView {
  const Byte* q;
  const Byte* k;
  const Byte* v;
  Byte* out;
  const uint32_t* mask;  // [N, words]
  int words;             // of 32 keys in a mask row
};

// `row_bytes`: of one head.
SIMT_DEVICE HeadView head_view(const Arguments& a, int row_bytes) {
  const int64_t head = simt::block_y(), image = simt::block_z();
  const int64_t mask_head = a.mask_heads == 1 ? 0 : head;
  HeadView view;
  view.q = static_cast<const Byte*>(a.buffers.q) + image * a.q_batch + head * row_bytes;
  view.k = static_cast<const Byte*>(a.buffers.k) + image * a.k_batch + head * row_bytes;
  view.v = static_cast<const Byte*>(a.buffers.v) + image * a.v_batch + head * row_bytes;
  view.out = static_cast<Byte*>(a.buffers.out) + image * a.out_batch + head * row_bytes;
  view.words = (a.keys + 31) / 32;
  view.mask = a.buffers.mask + mask_head * a.queries * view.words;
  return view;
}

// Mask word `word` of query `row`; 0 beyond the mask.
SIMT_DEVICE uint32_t mask_word(const HeadView& view, int queries, int row, int word) {
  return row < queries && word < view.words ? view.mask[row * view.words + word] : 0;
}

// Which bit is the lowest that is set; `bits` is not 0. A power of two is its own exponent as a float.
SIMT_DEVICE int lowest_bit(uint32_t bits) {
  const float power = static_cast<float>(bits & (~bits + 1));
  uint32_t representation;
  memcpy(&representation, &power, sizeof power);
  return static_cast<int>(representation >> 23) - 127;
}

// The key tiles that a tile of queries reads, in ascending order.
class TileWalk {
 public:
  // `tiles`: occupancy words of this head, [ceil(N / 64), words]; words is 1 or 2.
  SIMT_DEVICE TileWalk(const uint32_t* tiles, int words) {
    low_ = tiles[0];
    high_ = words > 1 ? tiles[1] : 0;
  }
  SIMT_DEVICE bool empty() const { return (low_ | high_) == 0; }
  // The next tile's number; the walk is not empty.
  SIMT_DEVICE int next() {
    if (low_ != 0) {
      const int tile = lowest_bit(low_);
      low_ &= low_ - 1;
      return tile;
    }
    const int tile = lowest_bit(high_);
    high_ &= high_ - 1;
    return tile + 32;
  }

 private:
  uint32_t low_, high_;
};

}  // namespace metal_edge
