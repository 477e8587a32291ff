#include "attributes.h"

#include <cmath>

#include "../attention/pack.h"

namespace metal_edge::plugin {
namespace {

constexpr int32_t kDigitsPerWord = 8;
constexpr int32_t kMaxTokens = 4096;  // kernels/README.md, limits

bool check_mask(Attributes const& a, Text& why) noexcept {
  if (a.mask_shape.size() != 3) {
    return why.set("mask_shape has %zu numbers; it must have three (masks, queries, keys)",
                   a.mask_shape.size());
  }
  if (a.mask_heads() != 1 && a.mask_heads() != a.heads) {
    return why.set("mask_shape starts with %d; it must be 1 or the number of heads, %d", a.mask_heads(),
                   a.heads);
  }
  if (a.queries() < 1 || a.queries() > kMaxTokens || a.keys() < 1 || a.keys() > kMaxTokens) {
    return why.set("mask_shape has N = %d, M = %d; both must be 1 to %d", a.queries(), a.keys(),
                   kMaxTokens);
  }
  size_t const words = size_t(a.mask_heads()) * size_t(a.queries()) * size_t(mask_words(a.keys()));
  if (a.mask.size() != words * kDigitsPerWord) {
    return why.set("mask has %zu hex digits; mask_shape (%d, %d, %d) needs %zu", a.mask.size(),
                   a.mask_heads(), a.queries(), a.keys(), words * kDigitsPerWord);
  }
  return true;
}

bool check_bias(Attributes const& a, Text& why) noexcept {
  if (a.slopes.empty()) {
    return a.columns == 0 || why.set("columns is %d without slopes; give both or neither", a.columns);
  }
  if (a.slopes.size() != size_t(a.heads)) {
    return why.set("slopes has %zu numbers; one per head is needed, %d", a.slopes.size(), a.heads);
  }
  for (size_t head = 0; head < a.slopes.size(); ++head) {
    if (!std::isfinite(a.slopes[head]))
      return why.set("slopes[%zu] is %g", head, double(a.slopes[head]));
  }
  if (a.columns < 1)
    return why.set("columns is %d; slopes need the grid's columns, 1 or more", a.columns);
  if (a.queries() != a.keys()) {
    return why.set("slopes need as many queries as keys; mask_shape has N = %d, M = %d", a.queries(),
                   a.keys());
  }
  return true;
}

bool check_scales(Attributes const& a, Text& why) noexcept {
  struct {
    char const* name;
    std::optional<float> const& value;
  } const scales[] = {{"q_scale", a.q_scale},
                      {"k_scale", a.k_scale},
                      {"v_scale", a.v_scale},
                      {"out_scale", a.out_scale}};
  char const* missing = nullptr;
  bool any = false;
  for (auto const& scale : scales) {
    any |= scale.value.has_value();
    if (!scale.value) {
      missing = scale.name;
    } else if (!std::isfinite(*scale.value) || *scale.value <= 0) {
      return why.set("%s is %g; it must be a positive number", scale.name, double(*scale.value));
    }
  }
  return !any || missing == nullptr || why.set("%s is missing; int8 needs all four scales", missing);
}

// 0 to 15, or -1.
int32_t digit(char c) noexcept {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

// Eight digits: four bytes, the lowest first, each with its high half first.
bool read_word(char const* digits, uint32_t& word) noexcept {
  word = 0;
  for (int32_t byte = 0; byte < 4; ++byte) {
    int32_t const high = digit(digits[2 * byte]), low = digit(digits[2 * byte + 1]);
    if (high < 0 || low < 0) return false;
    word |= uint32_t(high << 4 | low) << (8 * byte);
  }
  return true;
}

uint64_t hash(std::vector<uint32_t> const& words) noexcept {
  uint64_t value = 0xcbf29ce484222325u;  // FNV-1a
  for (uint32_t const word : words) value = (value ^ word) * 0x100000001b3u;
  return value;
}

}  // namespace

std::optional<Int8Scales> Attributes::int8_scales() const noexcept {
  if (!q_scale || !k_scale || !v_scale || !out_scale) return std::nullopt;
  return Int8Scales{*q_scale, *k_scale, *v_scale, *out_scale};
}

bool check(Attributes const& a, bool block, Text& why) noexcept {
  if (a.heads < 1) return why.set("heads is %d; it must be 1 or more", a.heads);
  if (a.scale && !std::isfinite(*a.scale)) return why.set("scale is %g", double(*a.scale));
  if (a.fill != "exclude" && a.fill != "zero") {
    return why.set("fill is '%.64s'; it must be 'exclude' or 'zero'", a.fill.c_str());
  }
  if (block && !a.epsilon) return why.set("epsilon is missing; LayerNorm needs it");
  if (a.epsilon && !(std::isfinite(*a.epsilon) && *a.epsilon > 0)) {
    return why.set("epsilon is %g; it must be a positive number", double(*a.epsilon));
  }
  return check_mask(a, why) && check_bias(a, why) && check_scales(a, why);
}

bool decode_mask(Attributes const& a, std::vector<uint32_t>& words, Text& why) {
  words.resize(a.mask.size() / kDigitsPerWord);
  size_t const row_words = size_t(mask_words(a.keys()));
  for (size_t i = 0; i < words.size(); ++i) {
    char const* const digits = &a.mask[i * kDigitsPerWord];
    if (!read_word(digits, words[i])) {
      return why.set("mask has '%.8s' at digit %zu; only 0-9 and a-f are hex digits", digits,
                     i * kDigitsPerWord);
    }
    if ((words[i] & ~existing_keys(a.keys(), int32_t(i % row_words))) != 0) {
      return why.set("mask allows a key beyond M = %d in row %zu; padding bits must be 0", a.keys(),
                     i / row_words);
    }
  }
  return true;
}

std::string identity(Attributes const& a, std::vector<uint32_t> const& words) {
  char part[160];
  std::snprintf(part, sizeof(part), "heads=%d mask=%dx%dx%d:%016llx fill=%s", a.heads, a.mask_heads(),
                a.queries(), a.keys(), static_cast<unsigned long long>(hash(words)), a.fill.c_str());
  std::string text = part;
  auto const add = [&](char const* name, std::optional<float> const& value) {
    if (!value) return;
    std::snprintf(part, sizeof(part), " %s=%a", name, double(*value));  // hexadecimal: exact
    text += part;
  };
  add("scale", a.scale);
  for (float const slope : a.slopes) add("slope", slope);
  if (!a.slopes.empty()) text += " columns=" + std::to_string(a.columns);
  add("q_scale", a.q_scale);
  add("k_scale", a.k_scale);
  add("v_scale", a.v_scale);
  add("out_scale", a.out_scale);
  add("epsilon", a.epsilon);
  return text;
}

}  // namespace metal_edge::plugin
