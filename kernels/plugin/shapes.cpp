#include "shapes.h"

#include <cmath>
#include <initializer_list>
#include <limits>

namespace metal_edge::plugin {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::PluginTensorDesc;

constexpr int64_t kUnknown = -1;

char const* name_of(DataType type) noexcept {
  switch (type) {
    case DataType::kFLOAT: return "float32";
    case DataType::kHALF: return "float16";
    case DataType::kINT8: return "int8";
    case DataType::kINT32: return "int32";
    case DataType::kBOOL: return "bool";
    case DataType::kBF16: return "bfloat16";
    case DataType::kINT64: return "int64";
    default: return "another";
  }
}

// "2 x 64 x 96", with ? for what is not known.
Text shown(int64_t const* sizes, int32_t count) noexcept {
  Text text;
  int32_t used = 0;
  for (int32_t i = 0; i < count && used < 400; ++i) {
    char const* const between = i == 0 ? "" : " x ";
    char* const at = text.data + used;
    size_t const room = sizeof(text.data) - size_t(used);
    used += sizes[i] == kUnknown
                ? std::snprintf(at, room, "%s?", between)
                : std::snprintf(at, room, "%s%lld", between, static_cast<long long>(sizes[i]));
  }
  return text;
}

bool expect(char const* tensor, Dims const& found, std::initializer_list<int64_t> wanted,
            Text& why) noexcept {
  bool same = found.nbDims == int32_t(wanted.size());
  for (int32_t i = 0; same && i < found.nbDims; ++i) {
    int64_t const size = wanted.begin()[i];
    same = found.d[i] == size || found.d[i] == kUnknown || size == kUnknown;
  }
  if (same) return true;
  return why.set("%s is %s; it must be %s", tensor, shown(found.d, found.nbDims).data,
                 shown(wanted.begin(), int32_t(wanted.size())).data);
}

bool expect_rank3(char const* tensor, Dims const& found, Text& why) noexcept {
  return found.nbDims == 3 || expect(tensor, found, {kUnknown, kUnknown, kUnknown}, why);
}

int64_t times(int64_t factor, int64_t size) noexcept {
  return size == kUnknown ? kUnknown : factor * size;
}

// The first tensor's batch is that of the others, or 1.
bool is_shared(Dims const& tensor, int64_t batch) noexcept { return tensor.d[0] == 1 && batch != 1; }
int64_t batch_of(Dims const& tensor, int64_t batch) noexcept { return tensor.d[0] == 1 ? 1 : batch; }

// Sizes against the attributes.
bool fits(Attributes const& a, Sizes const& sizes, Text& why) noexcept {
  auto const differs = [](int64_t size, int32_t wanted) { return size != kUnknown && size != wanted; };
  if (differs(sizes.queries, a.queries())) {
    return why.set("there are N = %lld queries, but the mask is made for N = %d",
                   static_cast<long long>(sizes.queries), a.queries());
  }
  if (differs(sizes.keys, a.keys())) {
    return why.set("there are M = %lld keys, but the mask is made for M = %d",
                   static_cast<long long>(sizes.keys), a.keys());
  }
  if (sizes.width != kUnknown && sizes.width % a.heads != 0) {
    return why.set("the width %lld is no multiple of heads, %d", static_cast<long long>(sizes.width),
                   a.heads);
  }
  return true;
}

// Before anything is narrowed to 32 bits.
bool known_and_small(Sizes const& sizes, Text& why) noexcept {
  for (int64_t const size : {sizes.batch, sizes.queries, sizes.keys, sizes.width}) {
    if (size < 1 || size > std::numeric_limits<int32_t>::max() / 4) {
      return why.set("a size of %lld in batch %lld, N %lld, M %lld, width %lld; each must be 1 or more",
                     static_cast<long long>(size), static_cast<long long>(sizes.batch),
                     static_cast<long long>(sizes.queries), static_cast<long long>(sizes.keys),
                     static_cast<long long>(sizes.width));
    }
  }
  return true;
}

float scale_of(Attributes const& a, int64_t head_dim) noexcept {
  return a.scale ? *a.scale : 1.0F / std::sqrt(float(head_dim));
}

// Types and dimensions of all inputs in arrays of their own, and what does not depend on the operator.
struct Tensors {
  DataType types[kMaxInputs];
  Dims dims[kMaxInputs];

  bool read(Attributes const& a, bool block, PluginTensorDesc const* inputs, int32_t count,
            Text& why) noexcept {
    if (count < 1 || count > kMaxInputs) return why.set("there are %d inputs", count);
    for (int32_t i = 0; i < count; ++i) {
      types[i] = inputs[i].type;
      dims[i] = inputs[i].dims;
    }
    return check_types(a, block, types, count, why);
  }
};

bool check_output(Sizes const& sizes, DataType type, PluginTensorDesc const& output,
                  Text& why) noexcept {
  if (output.type != type) {
    return why.set("the output is %s; the inputs are %s", name_of(output.type), name_of(type));
  }
  return expect("the output", output.dims, {sizes.batch, sizes.queries, sizes.width}, why);
}

}  // namespace

size_t element_bytes(DataType type) noexcept {
  return type == DataType::kFLOAT ? 4 : type == DataType::kHALF ? 2 : 1;
}

bool check_types(Attributes const& a, bool block, DataType const* types, int32_t count,
                 Text& why) noexcept {
  DataType const type = types[0];
  if (block && type != DataType::kHALF)
    return why.set("the first input is %s; it must be float16", name_of(type));
  if (type != DataType::kFLOAT && type != DataType::kHALF && type != DataType::kINT8) {
    return why.set("the first input is %s; it must be float32, float16 or int8", name_of(type));
  }
  if (type == DataType::kINT8 && !a.int8_scales()) {
    return why.set("int8 inputs need q_scale, k_scale, v_scale and out_scale, which are missing");
  }
  for (int32_t i = 1; i < count; ++i) {
    if (types[i] != type) {
      return why.set("input %d is %s, the first is %s; all must have one type", i, name_of(types[i]),
                     name_of(type));
    }
  }
  return true;
}

bool attention_sizes(Attributes const& a, Dims const* in, int32_t count, Sizes& sizes,
                     Text& why) noexcept {
  if (count < 1 || count > 3)
    return why.set("there are %d inputs; one (QKV), two (Q, KV) or three (Q, K, V) are needed", count);
  for (int32_t i = 0; i < count; ++i) {
    if (!expect_rank3(i == 0       ? (count == 1 ? "QKV" : "Q")
                      : i == 2     ? "V"
                      : count == 2 ? "KV"
                                   : "K",
                      in[i], why))
      return false;
  }
  Dims const& keys = in[count == 1 ? 0 : 1];
  sizes = {keys.d[0], in[0].d[1], keys.d[1], in[0].d[2], is_shared(in[0], keys.d[0]), false};
  if (count == 1 && sizes.width != kUnknown) {
    if (sizes.width % 3 != 0)
      return why.set("QKV is %lld wide; it must be three times the width of an output",
                     static_cast<long long>(sizes.width));
    sizes.width /= 3;
  }
  if (count == 2 && !expect("KV", in[1], {sizes.batch, sizes.keys, times(2, sizes.width)}, why))
    return false;
  if (count == 3 && !expect("K", in[1], {sizes.batch, sizes.keys, sizes.width}, why)) return false;
  if (count == 3 && !expect("V", in[2], {sizes.batch, sizes.keys, sizes.width}, why)) return false;
  if (count > 1 && !expect("Q", in[0], {batch_of(in[0], sizes.batch), sizes.queries, sizes.width}, why))
    return false;
  return fits(a, sizes, why);
}

bool block_sizes(Attributes const& a, Dims const* in, int32_t count, Sizes& sizes, Text& why) noexcept {
  if (count != 9) return why.set("there are %d inputs; nine are needed", count);
  if (!expect_rank3("query", in[0], why) || !expect_rank3("content", in[1], why) ||
      !expect_rank3("residual", in[2], why)) {
    return false;
  }
  int64_t const batch = in[1].d[0], queries = in[0].d[1], keys = in[1].d[1], width = in[0].d[2];
  sizes = {batch, queries, keys, width, is_shared(in[0], batch), is_shared(in[2], batch)};
  return expect("query", in[0], {batch_of(in[0], batch), queries, width}, why) &&
         expect("content", in[1], {batch, keys, width}, why) &&
         expect("residual", in[2], {batch_of(in[2], batch), queries, width}, why) &&
         expect("gamma", in[3], {width}, why) && expect("beta", in[4], {width}, why) &&
         expect("w_kv", in[5], {times(2, width), width}, why) &&
         expect("b_kv", in[6], {times(2, width)}, why) && expect("w_out", in[7], {width, width}, why) &&
         expect("b_out", in[8], {width}, why) && fits(a, sizes, why);
}

bool attention_problem(Attributes const& a, PluginTensorDesc const* inputs, int32_t count,
                       PluginTensorDesc const& output, Problem& problem, Text& why) noexcept {
  Tensors tensors;
  Sizes sizes;
  if (!tensors.read(a, false, inputs, count, why) ||
      !attention_sizes(a, tensors.dims, count, sizes, why) || !known_and_small(sizes, why) ||
      !check_output(sizes, tensors.types[0], output, why)) {
    return false;
  }
  int64_t const width = sizes.width, n = sizes.queries, m = sizes.keys;
  int64_t const q_row = count == 1 ? 3 * width : width;
  int64_t const k_row = count == 1 ? 3 * width : count == 2 ? 2 * width : width;
  Int8Scales const scales = a.int8_scales().value_or(Int8Scales{1, 1, 1, 1});
  DataType const type = tensors.types[0];
  problem = Problem{type == DataType::kFLOAT  ? Type::kFloat
                    : type == DataType::kHALF ? Type::kHalf
                                              : Type::kInt8,
                    a.zero_fill() ? Fill::kZeroScore : Fill::kExclude,
                    int32_t(sizes.batch),
                    a.heads,
                    int32_t(sizes.head_dim(a)),
                    int32_t(n),
                    int32_t(m),
                    a.mask_heads(),
                    a.columns,
                    scale_of(a, sizes.head_dim(a)),
                    scales.q,
                    scales.k,
                    scales.v,
                    scales.out,
                    sizes.query_shared ? 0 : n * q_row,
                    q_row,
                    m * k_row,
                    k_row,
                    m * k_row,
                    k_row,
                    n * width,
                    width};
  return supported(problem, why.data, Text::kSize);
}

bool block_problem(Attributes const& a, PluginTensorDesc const* inputs, int32_t count,
                   PluginTensorDesc const& output, BlockProblem& problem, Text& why) noexcept {
  Tensors tensors;
  Sizes sizes;
  if (!tensors.read(a, true, inputs, count, why) || !block_sizes(a, tensors.dims, count, sizes, why) ||
      !known_and_small(sizes, why) || !check_output(sizes, tensors.types[0], output, why)) {
    return false;
  }
  problem = BlockProblem{};
  problem.fill = a.zero_fill() ? Fill::kZeroScore : Fill::kExclude;
  problem.batch = int32_t(sizes.batch);
  problem.heads = a.heads;
  problem.head_dim = int32_t(sizes.head_dim(a));
  problem.queries = int32_t(sizes.queries);
  problem.keys = int32_t(sizes.keys);
  problem.mask_heads = a.mask_heads();
  problem.columns = a.columns;
  problem.scale = scale_of(a, sizes.head_dim(a));
  problem.epsilon = *a.epsilon;  // `check` saw to it
  problem.query_shared = sizes.query_shared ? 1 : 0;
  problem.residual_shared = sizes.residual_shared ? 1 : 0;
  return supported(problem, why.data, Text::kSize);
}

}  // namespace metal_edge::plugin
