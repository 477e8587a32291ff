// Which problems are supported, and which kernel takes them. Plain C++.
#include <cmath>
#include <cstdio>

#include "arguments.h"
#include "head_dims.h"
#include "layout.h"

namespace metal_edge {
namespace {

constexpr int32_t kMostTokens = 4096;
constexpr int32_t kMostBlocks = 65535;  // grid.y and grid.z
constexpr int32_t kMostHeadDim = 256;
constexpr int64_t kAlignment = 16;  // bytes, of pointers and strides

// The kernels' names, as kernels.h declares them.
struct Compiled {
  int32_t head_dim;
  const char* f16_flash;
  const char* f16_short;
  const char* s8_flash;
  const char* s8_short;
};
#define METAL_EDGE_NAMES(d)                                                  \
  {d, "masked_attention_f16_flash_d" #d, "masked_attention_f16_short_d" #d, \
   "masked_attention_s8_flash_d" #d, "masked_attention_s8_short_d" #d},
constexpr Compiled kCompiled[] = {METAL_EDGE_HEAD_DIMS(METAL_EDGE_NAMES)};
#undef METAL_EDGE_NAMES

const Compiled* compiled(int32_t head_dim) {
  for (const Compiled& each : kCompiled) {
    if (each.head_dim == head_dim) return &each;
  }
  return nullptr;
}

const char* plain_kernel(const Problem& p) {
  if (p.type == Type::kHalf) return "masked_attention_f16_plain_d256";
  if (p.head_dim <= 32) return "masked_attention_f32_plain_d32";
  if (p.head_dim <= 64) return "masked_attention_f32_plain_d64";
  if (p.head_dim <= 128) return "masked_attention_f32_plain_d128";
  return "masked_attention_f32_plain_d256";
}

int32_t size_of(Type type) { return type == Type::kFloat ? 4 : type == Type::kHalf ? 2 : 1; }

// Where a refusal is explained; the first one counts.
class Reason {
 public:
  Reason(char* text, int32_t size) : text_(text), size_(size) {}

  // Notes what is wrong if `holds` is false.
  void require(bool holds, const char* format, const char* name, double value, double bound = 0) {
    if (holds || !good_) return;
    good_ = false;
    if (text_ != nullptr && size_ > 0) {
      std::snprintf(text_, static_cast<size_t>(size_), format, name, value, bound);
    }
  }
  bool good() const { return good_; }

 private:
  char* text_;
  int32_t size_;
  bool good_ = true;
};

void check_sizes(const Problem& p, Reason& reason) {
  const auto between = [&](const char* name, int32_t value, int32_t least, int32_t most) {
    reason.require(value >= least, "%s is %.0f, below %.0f", name, value, least);
    reason.require(value <= most, "%s is %.0f, above %.0f", name, value, most);
  };
  between("type", static_cast<int32_t>(p.type), 0, 2);
  between("fill", static_cast<int32_t>(p.fill), 0, 1);
  between("batch", p.batch, 1, kMostBlocks);
  between("heads", p.heads, 1, kMostBlocks);
  between("N", p.queries, 1, kMostTokens);
  between("M", p.keys, 1, kMostTokens);
  between("head_dim", p.head_dim, 16, p.type == Type::kInt8 ? 128 : kMostHeadDim);
  reason.require(p.head_dim % 16 == 0, "%s is %.0f, not a multiple of %.0f", "head_dim", p.head_dim, 16);
  if (p.type != Type::kFloat && p.head_dim <= 128) {
    reason.require(compiled(p.head_dim) != nullptr, "%s %.0f is not compiled into this library",
                   "head_dim", p.head_dim);
  }
  reason.require(p.mask_heads == 1 || p.mask_heads == p.heads,
                 "%s is %.0f, neither 1 nor the number of heads, %.0f", "the mask's G", p.mask_heads,
                 p.heads);
  between("columns", p.columns, 0, kMostTokens);
  reason.require(p.columns == 0 || p.queries == p.keys,
                 "%s needs as many keys as queries: N is %.0f, M is %.0f", "the distance bias",
                 p.queries, p.keys);
}

void check_scales(const Problem& p, Reason& reason) {
  reason.require(std::isfinite(p.scale), "%s is %g, not finite", "scale", static_cast<double>(p.scale));
  if (p.type != Type::kInt8) return;
  const auto positive = [&](const char* name, float value) {
    reason.require(std::isfinite(value) && value > 0, "%s is %g, not a positive number", name,
                   static_cast<double>(value));
  };
  positive("q_scale", p.q_scale);
  positive("k_scale", p.k_scale);
  positive("v_scale", p.v_scale);
  positive("out_scale", p.out_scale);
  const Arguments a = arguments(p, {});
  reason.require(std::isfinite(a.score_scale), "%s is %g, not finite", "scale * q_scale * k_scale",
                 static_cast<double>(a.score_scale));
  reason.require(std::isfinite(a.output_scale), "%s is %g, not finite", "v_scale / out_scale",
                 static_cast<double>(a.output_scale));
}

void check_strides(const Problem& p, Reason& reason) {
  const int64_t width = int64_t{p.heads} * p.head_dim;
  const int64_t unit = kAlignment / size_of(p.type);
  const auto strides = [&](const char* row_name, int64_t row, const char* batch_name, int64_t batch) {
    const double most = 1e15;  // far from any overflow in bytes
    const auto wide = [](int64_t value) { return static_cast<double>(value); };
    reason.require(row >= width, "%s is %.0f, below the row's width %.0f", row_name, wide(row), wide(width));
    reason.require(batch >= 0, "%s is %.0f, below %.0f", batch_name, wide(batch), 0);
    reason.require(wide(row) <= most, "%s is %.0f, above %.0f", row_name, wide(row), most);
    reason.require(wide(batch) <= most, "%s is %.0f, above %.0f", batch_name, wide(batch), most);
    const char* const uneven = "%s is %.0f elements, not a multiple of %.0f bytes";
    reason.require(row % unit == 0, uneven, row_name, wide(row), kAlignment);
    reason.require(batch % unit == 0, uneven, batch_name, wide(batch), kAlignment);
  };
  if (!reason.good()) return;  // the sizes may be wild
  strides("q_row", p.q_row, "q_batch", p.q_batch);
  strides("k_row", p.k_row, "k_batch", p.k_batch);
  strides("v_row", p.v_row, "v_batch", p.v_batch);
  strides("out_row", p.out_row, "out_batch", p.out_batch);
  if (!reason.good() || p.batch == 1) return;
  const int64_t image = (p.queries - 1) * p.out_row + width;
  reason.require(p.out_batch >= image, "%s is %.0f: images of %.0f elements would overlap", "out_batch",
                 static_cast<double>(p.out_batch), static_cast<double>(image));
}

Plan make_plan(const char* kernel, const Problem& p, int32_t rows, int32_t threads,
               int32_t shared_bytes) {
  return {kernel, {(p.queries + rows - 1) / rows, p.heads, p.batch}, threads, shared_bytes};
}

}  // namespace

bool supported(const Problem& problem, char* text, int32_t size) noexcept {
  Reason reason(text, size);
  check_sizes(problem, reason);
  check_scales(problem, reason);
  check_strides(problem, reason);
  return reason.good();
}

Plan plan(const Problem& p) noexcept {
  if (p.type == Type::kFloat || p.head_dim > 128) {
    return make_plan(plain_kernel(p), p, kPlainRows, kPlainThreads, 0);
  }
  const bool int8 = p.type == Type::kInt8;
  const Compiled& names = *compiled(p.head_dim);
  if (p.keys <= kShortKeys) {
    return make_plan(int8 ? names.s8_short : names.f16_short, p, kShortRows, kShortThreads,
                     short_shared_bytes(p.keys, p.head_dim, int8));
  }
  return make_plan(int8 ? names.s8_flash : names.f16_flash, p, kFlashRows, kFlashThreads,
                   flash_shared_bytes(p.head_dim * size_of(p.type)));
}

Arguments arguments(const Problem& p, const Buffers& buffers) noexcept {
  const int64_t size = size_of(p.type);
  Arguments a = {};
  a.buffers = buffers;
  a.q_batch = p.q_batch * size;
  a.q_row = p.q_row * size;
  a.k_batch = p.k_batch * size;
  a.k_row = p.k_row * size;
  a.v_batch = p.v_batch * size;
  a.v_row = p.v_row * size;
  a.out_batch = p.out_batch * size;
  a.out_row = p.out_row * size;
  a.queries = p.queries;
  a.keys = p.keys;
  a.head_dim = p.head_dim;
  a.mask_heads = p.mask_heads;
  a.columns = p.columns;
  a.zero_score = p.fill == Fill::kZeroScore;
  const bool int8 = p.type == Type::kInt8;
  a.score_scale = int8 ? static_cast<float>(double{p.scale} * p.q_scale * p.k_scale) : p.scale;
  a.output_scale = int8 ? static_cast<float>(double{p.v_scale} / p.out_scale) : 1.0f;
  return a;
}

}  // namespace metal_edge
