// Attention without tensor cores, in float32 or float16: a warp per query, which visits the keys whose
// mask bits are set, four at a time, and reads no other. For float32, for head dims over 128, and for
// masks with a few keys per row.
#pragma once
#include "bias.cuh"
#include "head.cuh"
#include "softmax.cuh"

namespace metal_edge {

constexpr int kPlainStep = 32;  // elements of a row that eight lanes read at once, four each

struct alignas(16) FourFloats {
  float value[4];
};
struct alignas(8) FourHalves {
  simt::Half value[4];
};

SIMT_DEVICE void load_four(float (&value)[4], const float* source) {
  const FourFloats four = *reinterpret_cast<const FourFloats*>(source);
  SIMT_UNROLL
  for (int c = 0; c < 4; ++c) value[c] = four.value[c];
}
SIMT_DEVICE void load_four(float (&value)[4], const simt::Half* source) {
  const FourHalves four = *reinterpret_cast<const FourHalves*>(source);
  SIMT_UNROLL
  for (int c = 0; c < 4; ++c) value[c] = simt::to_float(four.value[c]);
}
SIMT_DEVICE void store_four(float* target, const float (&value)[4]) {
  *reinterpret_cast<FourFloats*>(target) = {{value[0], value[1], value[2], value[3]}};
}
SIMT_DEVICE void store_four(simt::Half* target, const float (&value)[4]) {
  *reinterpret_cast<FourHalves*>(target) = {{simt::to_half(value[0]), simt::to_half(value[1]),
                                             simt::to_half(value[2]), simt::to_half(value[3])}};
}

// The weight as it meets the values: float16 tensors round it, as the other kernels do.
SIMT_DEVICE float as_weight(float weight, const float*) { return weight; }
SIMT_DEVICE float as_weight(float weight, const simt::Half*) {
  return simt::to_float(simt::to_half(weight));
}

// Eight lanes' share of a row of up to kSteps * 32 elements; what lies beyond `head_dim` is 0.
template <typename T, int kSteps>
struct PlainRow {
  float value[kSteps][4] = {};

  SIMT_DEVICE static int column(int step) { return step * kPlainStep + (simt::lane() & 7) * 4; }
  SIMT_DEVICE void load(const Byte* row, int head_dim) {
    SIMT_UNROLL
    for (int s = 0; s < kSteps; ++s) {
      if (column(s) < head_dim) load_four(value[s], reinterpret_cast<const T*>(row) + column(s));
    }
  }
};

// What eight lanes have seen of a query's keys: their online softmax.
template <typename T, int kSteps>
struct PlainState {
  float max = -FLT_MAX;
  // Of the weights, which may be thousands of equal ones: rounding would add up, always in the same
  // direction. `lost` is what rounding took so far (Kahan's summation).
  float sum = 0.0f, lost = 0.0f;
  PlainRow<T, kSteps> out;

  // Takes a key's value in with its score, in natural units.
  SIMT_DEVICE void add(float score, const PlainRow<T, kSteps>& value) {
    const float highest = fmaxf(max, score);
    const float rescale = simt::exp2((max - highest) * kLog2e);
    const float weight = simt::exp2((score - highest) * kLog2e);
    const float rounded = as_weight(weight, static_cast<const T*>(nullptr));
    max = highest;
    const float before = sum * rescale, addend = weight - lost * rescale;
    sum = before + addend;
    lost = (sum - before) - addend;
    SIMT_UNROLL
    for (int s = 0; s < kSteps; ++s) {
      SIMT_UNROLL
      for (int c = 0; c < 4; ++c) {
        out.value[s][c] = out.value[s][c] * rescale + rounded * value.value[s][c];
      }
    }
  }

  // Adds up the states of lanes that are `distance` apart.
  SIMT_DEVICE void merge(int distance) {
    const float highest = fmaxf(max, simt::shuffle_xor(max, distance));
    const float share = simt::exp2((max - highest) * kLog2e);
    max = highest;
    sum = (sum - lost) * share;
    lost = 0.0f;
    sum += simt::shuffle_xor(sum, distance);
    SIMT_UNROLL
    for (int s = 0; s < kSteps; ++s) {
      SIMT_UNROLL
      for (int c = 0; c < 4; ++c) {
        out.value[s][c] *= share;
        out.value[s][c] += simt::shuffle_xor(out.value[s][c], distance);
      }
    }
  }
};

// The query's score of a key, from eight lanes' shares.
template <typename T, int kSteps>
SIMT_DEVICE float plain_score(const PlainRow<T, kSteps>& query, const PlainRow<T, kSteps>& key) {
  float sum = 0.0f;
  SIMT_UNROLL
  for (int s = 0; s < kSteps; ++s) {
    SIMT_UNROLL
    for (int c = 0; c < 4; ++c) sum += query.value[s][c] * key.value[s][c];
  }
  sum += simt::shuffle_xor(sum, 4);
  sum += simt::shuffle_xor(sum, 2);
  return sum + simt::shuffle_xor(sum, 1);
}

// The 32 keys of one mask word. `present`: the keys to visit; `allowed`: those whose score counts.
template <typename T, int kSteps>
SIMT_DEVICE void attend_word(PlainState<T, kSteps>& state, const PlainRow<T, kSteps>& query,
                             const HeadView& head, const Arguments& a, int row, int word,
                             uint32_t present, uint32_t allowed) {
  const int group = simt::lane() >> 3;  // of eight lanes, which take one key
  while (present != 0) {
    uint32_t mine = present;
    for (int g = 0; g < 3; ++g) {  // drop the keys of the groups before, and of all from `present`
      if (g < group) mine &= mine - 1;
      present &= present - 1;
    }
    present &= present - 1;
    const bool any = mine != 0;
    const int bit = any ? lowest_bit(mine) : 0;
    const int key = word * 32 + bit;
    PlainRow<T, kSteps> k, v;
    if (any) {
      k.load(head.k + key * a.k_row, a.head_dim);
      v.load(head.v + key * a.v_row, a.head_dim);
    }
    float score = plain_score(query, k) * a.score_scale;
    if (a.columns != 0) {
      const Grid grid(a, 1.0f);
      score += grid.bias(grid.place(row), grid.place(key));
    }
    state.sum = fmaf(any ? score : 0.0f, 0.0f, state.sum);  // NaN unless it is finite
    if (!(allowed >> bit & 1)) score = 0.0f;
    if (any) state.add(score, v);
  }
}

// Grid: (ceil(N / 4), heads, batch). kPlainThreads threads, no shared memory. head_dim <= kSteps * 32.
template <typename T, int kSteps>
SIMT_DEVICE void plain_attention(const Arguments& a) {
  const int row = simt::block_x() * kPlainRows + simt::warp();
  if (row >= a.queries) return;  // the whole warp
  const HeadView head = head_view(a, a.head_dim * static_cast<int>(sizeof(T)));
  PlainRow<T, kSteps> query;
  query.load(head.q + row * a.q_row, a.head_dim);
  PlainState<T, kSteps> state;
  for (int word = 0; word < head.words; ++word) {
    const uint32_t allowed = mask_word(head, a.queries, row, word);
    const int left = a.keys - word * 32;
    const uint32_t existing = left >= 32 ? 0xffffffffu : (1u << left) - 1;
    attend_word(state, query, head, a, row, word, a.zero_score ? existing : allowed, allowed);
  }
  state.merge(8);
  state.merge(16);
  const float factor = inverse_or_zero(state.sum);
  SIMT_UNROLL
  for (int s = 0; s < kSteps; ++s) {
    const int column = PlainRow<T, kSteps>::column(s);
    float result[4];
    SIMT_UNROLL
    for (int c = 0; c < 4; ++c) result[c] = state.out.value[s][c] * factor;
    if (s % 4 == simt::lane() >> 3 && column < a.head_dim) {
      store_four(reinterpret_cast<T*>(head.out + row * a.out_row) + column, result);
    }
  }
}

}  // namespace metal_edge
