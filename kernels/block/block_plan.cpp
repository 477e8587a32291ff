// Which fused blocks can be run, and with how much memory. Plain C++.
#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>

#include "block_layout.h"

namespace metal_edge {
namespace {

constexpr int32_t kMaxQueries = 4096;
constexpr int32_t kMaxBatch = 65535;  // grid.z
constexpr int32_t kBytes = 2;         // float16

int32_t round_up(int32_t value, int32_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

int32_t tiles(const BlockProblem& p) { return (p.queries + kBlockRows - 1) / kBlockRows; }

int32_t width(const BlockProblem& p) { return p.heads * p.head_dim; }

// Writes the reason down; false, so that a check is one statement.
[[gnu::format(printf, 3, 4)]] bool refuse(char* text, int32_t size, const char* format, ...) {
  va_list values;
  va_start(values, format);
  if (text && size > 0) std::vsnprintf(text, static_cast<size_t>(size), format, values);
  va_end(values);
  return false;
}

bool sizes_supported(const BlockProblem& p, char* text, int32_t size) {
  if (p.head_dim != 16 && p.head_dim != 32 && p.head_dim != 64)
    return refuse(text, size, "head_dim is %d; the fused block takes 16, 32 or 64", p.head_dim);
  if (p.heads < 1 || p.heads > kBlockMaxWidth / p.head_dim)
    return refuse(text, size, "%d heads of %d are wider than %d, or none; use MaskedAttention",
                  p.heads, p.head_dim, kBlockMaxWidth);
  if (p.queries < 1 || p.queries > kMaxQueries)
    return refuse(text, size, "N is %d; it must be 1 to %d", p.queries, kMaxQueries);
  if (p.keys < 1 || p.keys > kBlockMaxKeys)
    return refuse(text, size, "M is %d; the fused block takes 1 to %d: use MaskedAttention",
                  p.keys, kBlockMaxKeys);
  if (p.batch < 1 || p.batch > kMaxBatch)
    return refuse(text, size, "the batch is %d; it must be 1 to %d", p.batch, kMaxBatch);
  return true;
}

}  // namespace

bool supported(const BlockProblem& p, char* text, int32_t size) noexcept {
  if (!sizes_supported(p, text, size)) return false;
  if (p.fill != Fill::kExclude && p.fill != Fill::kZeroScore)
    return refuse(text, size, "fill is %d; 0 is exclude, 1 is zero", static_cast<int>(p.fill));
  if (p.mask_heads != 1 && p.mask_heads != p.heads)
    return refuse(text, size, "the mask is for %d heads; it must be for 1 or all %d", p.mask_heads,
                  p.heads);
  if (p.columns < 0 || (p.columns > 0 && p.queries != p.keys))
    return refuse(text, size, "a distance bias (columns %d) needs N = M, not %d and %d", p.columns,
                  p.queries, p.keys);
  if (!std::isfinite(p.scale))
    return refuse(text, size, "scale is %g; it must be finite", static_cast<double>(p.scale));
  if (!(std::isfinite(p.epsilon) && p.epsilon > 0.0f))
    return refuse(text, size, "epsilon is %g; it must be positive: a constant row has no variance",
                  static_cast<double>(p.epsilon));
  return true;
}

BlockLayout layout(const BlockProblem& p) noexcept {
  constexpr int32_t kGap = 8;
  BlockLayout at = {};
  at.padded_keys = round_up(p.keys, 16);
  at.width_stride = width(p) + kGap;
  at.head_stride = p.head_dim + kGap;
  at.weight_stride = at.padded_keys + kGap;
  int32_t end = 0;
  const auto reserve = [&end](int32_t bytes) {
    const int32_t start = end;
    end = round_up(end + bytes, 16);
    return start;
  };
  const int32_t by_width = p.head_dim * at.width_stride * kBytes;  // [head_dim, W]: of w_kv
  const int32_t by_head = width(p) * at.head_stride * kBytes;      // [W, head_dim]: of w_out
  const int32_t value_sums = kBlockWarps * kBlockRows * 16 * 4;  // in the content's place, later
  at.content = reserve(std::max(at.padded_keys * at.width_stride * kBytes, value_sums));
  at.query = reserve(kBlockRows * at.head_stride * kBytes);
  at.folded = reserve(kBlockRows * at.width_stride * kBytes);
  at.rest = reserve(kBlockRows * at.width_stride * kBytes);
  at.weights = reserve(kBlockRows * at.weight_stride * kBytes);
  at.first = reserve(std::max(by_width, by_head));
  at.second = reserve(by_width);
  at.offsets = reserve(kBlockRows * 4);
  at.maxima = reserve(kBlockWarps * kBlockRows * 4);
  at.sums = reserve(kBlockWarps * kBlockRows * 4);
  at.last = reserve(4);
  at.bytes = end;
  return at;
}

Plan plan(const BlockProblem& p) noexcept {
  return {"masked_attention_block", {tiles(p), p.heads, p.batch}, kBlockThreads, layout(p).bytes};
}

size_t workspace_bytes(const BlockProblem& p) noexcept {  // float [B, tiles, heads, 16, W]
  return static_cast<size_t>(arrival_count(p)) * static_cast<size_t>(p.heads) * kBlockRows *
         static_cast<size_t>(width(p)) * sizeof(float);
}

int32_t arrival_count(const BlockProblem& p) noexcept { return p.batch * tiles(p); }

}  // namespace metal_edge
