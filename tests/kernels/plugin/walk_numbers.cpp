// An emulated library computes, and any other on a GPU: what arrives at the kernels is what TensorRT gave, for every form of
// the inputs. The kernels' own precision is tested elsewhere, over many more shapes.
#include <cstring>
#include <random>

#include "reference.h"
#include "walk.h"
#include "walk_memory.h"

namespace walk {
namespace {

using fake::Made;
using fake::tensor;
using reference::Attention;
using reference::Numbers;

// Memory aligned as TensorRT's, holding `numbers` in a type.
class Stored {
 public:
  Stored(DataType type, Numbers const& numbers)
      : type_(type), count_(numbers.size()), memory_(bytes_of(type, numbers).data(), 4 * count_) {}
  void* data() const { return memory_.data(); }
  Numbers numbers() const {
    std::vector<char> bytes(4 * count_);
    memory_.read(bytes.data());
    Numbers all(count_);
    for (size_t i = 0; i < count_; ++i) all[i] = read(bytes.data(), i);
    return all;
  }

 private:
  // Four bytes for each, whatever the type.
  static std::vector<char> bytes_of(DataType type, Numbers const& numbers) {
    std::vector<char> bytes(4 * numbers.size());
    for (size_t i = 0; i < numbers.size(); ++i) write(type, bytes.data(), i, numbers[i]);
    return bytes;
  }
  static void write(DataType type, char* data, size_t i, double value) {
    if (type == DataType::kFLOAT) reinterpret_cast<float*>(data)[i] = float(value);
    if (type == DataType::kHALF)
      reinterpret_cast<reference::Half*>(data)[i] = reference::Half(float(value));
    if (type == DataType::kINT8) reinterpret_cast<int8_t*>(data)[i] = int8_t(value);
  }
  double read(char const* data, size_t i) const {
    if (type_ == DataType::kFLOAT) return double(reinterpret_cast<float const*>(data)[i]);
    if (type_ == DataType::kHALF) return double(reinterpret_cast<reference::Half const*>(data)[i]);
    return double(reinterpret_cast<int8_t const*>(data)[i]);
  }
  DataType type_;
  size_t count_;
  Memory memory_;
};

Numbers drawn(int64_t count, DataType type, uint32_t seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<double> normal;
  Numbers numbers(static_cast<size_t>(count));
  for (double& number : numbers) {
    number = normal(engine);
    if (type == DataType::kINT8) number = std::clamp(std::nearbyint(number * 40), -127., 127.);
    if (type == DataType::kHALF) number = reference::to_half(number);
    if (type == DataType::kFLOAT) number = reference::to_float(number);
  }
  return numbers;
}

// [rows, a], [rows, b] ... -> [rows, a + b ...]
Numbers side_by_side(int64_t rows, std::vector<Numbers const*> const& parts) {
  Numbers all;
  for (int64_t row = 0; row < rows; ++row) {
    for (Numbers const* part : parts) {
      int64_t const width = int64_t(part->size()) / rows;
      all.insert(all.end(), part->begin() + row * width, part->begin() + (row + 1) * width);
    }
  }
  return all;
}

// Attaches, sets the shapes, runs.
Numbers run(World const& world, Made const& made, std::vector<PluginTensorDesc> const& in,
            std::vector<Numbers> const& values, PluginTensorDesc const& out, int64_t out_count,
            int32_t times = 1) {
  fake::Context context;
  Made const attached(made.runtime->attachToContext(&context));
  CHECK(attached.plugin && attached.runtime->onShapeChange(in.data(), int32_t(in.size()), &out, 1) == 0);
  std::vector<DynamicPluginTensorDesc> dynamic;
  for (PluginTensorDesc const& desc : in) dynamic.push_back({desc, desc.dims, desc.dims, desc.dims});
  DynamicPluginTensorDesc const dynamic_out{out, out.dims, out.dims, out.dims};
  size_t const bytes = made.build->getWorkspaceSize(dynamic.data(), int32_t(in.size()), &dynamic_out, 1);
  Stored const workspace(DataType::kINT8, Numbers(bytes + 1, 77));  // TensorRT promises nothing about it
  std::vector<Stored> stored;
  std::vector<void const*> pointers;
  for (size_t i = 0; i < in.size(); ++i)
    pointers.push_back(stored.emplace_back(in[i].type, values[i]).data());
  Stored const result(out.type, Numbers(size_t(out_count), 99));
  void* const results[] = {result.data()};
  for (int32_t i = 0; i < times; ++i) {
    CHECK(attached.runtime->enqueue(in.data(), &out, pointers.data(), results, workspace.data(),
                                    nullptr) == 0);
  }
  CHECK(world.logger.take().empty());
  return result.numbers();
}

fake::Fields fields_of(Attention const& a, int32_t mask_heads, float scale) {
  fake::Fields fields;
  fields.ints("heads", {int32_t(a.heads)}).floats("scale", {scale});
  fields.ints("mask_shape", {mask_heads, int32_t(a.queries), int32_t(a.keys)});
  fields.text("mask", hex_mask(mask_heads, int32_t(a.queries), int32_t(a.keys), a.allowed));
  if (a.zero_fill) fields.text("fill", "zero");
  if (!a.slopes.empty()) fields.floats("slopes", a.slopes).ints("columns", {int32_t(a.columns)});
  return fields;
}

// One case in one type, through a number of inputs, against the definition.
void attention(World const& world, Attention a, DataType type, int32_t inputs, int32_t mask_heads) {
  bool const int8 = type == DataType::kINT8;
  double const unit = int8 ? 1. / 64 : 1;
  float const scale = .5F / std::sqrt(float(a.head_dim));
  int64_t const w = a.width(), q_batch = a.shared_query ? 1 : a.batch;
  Numbers const q = drawn(q_batch * a.queries * w, type, 1), k = drawn(a.batch * a.keys * w, type, 2),
                v = drawn(a.batch * a.keys * w, type, 3);
  std::vector<PluginTensorDesc> in;
  std::vector<Numbers> values;
  if (inputs == 1) {
    in = {tensor(type, {a.batch, a.queries, 3 * w})};
    values = {side_by_side(a.batch * a.queries, {&q, &k, &v})};
  } else {
    in = {tensor(type, {q_batch, a.queries, w}),
          tensor(type, {a.batch, a.keys, inputs == 2 ? 2 * w : w})};
    values = {q, inputs == 2 ? side_by_side(a.batch * a.keys, {&k, &v}) : k};
    if (inputs == 3) in.push_back(in[1]), values.push_back(v);
  }
  fake::Fields fields = fields_of(a, mask_heads, scale);
  if (int8) {
    for (char const* name : {"q_scale", "k_scale", "v_scale", "out_scale"})
      fields.floats(name, {float(unit)});
  }
  Numbers const found = run(world, world.attention(std::move(fields)), in, values,
                            tensor(type, {a.batch, a.queries, w}), a.batch * a.queries * w);

  a.scale = double(scale) * unit * unit;  // the values' unit is the result's
  Numbers const wanted = a.run(q, k, v, reference::exact, reference::exact, reference::exact);
  double const error = reference::largest_difference(found, wanted);
  double allowed = 1.0;  // int8: half a step of rounding, and weights in float16
  if (type == DataType::kFLOAT) {
    allowed = 2 * reference::largest_difference(wanted, a.run(q, k, v, reference::to_float,
                                                              reference::to_float, reference::to_float));
  } else if (type == DataType::kHALF) {
    allowed = 2 * reference::largest_difference(wanted, a.run(q, k, v, reference::to_float,
                                                              reference::to_half, reference::to_half));
  }
  if (!(error <= allowed)) {
    fail(__FILE__, __LINE__,
         "type " + std::to_string(int32_t(type)) + ", " + std::to_string(inputs) + " inputs: error " +
             std::to_string(error) + " is beyond " + std::to_string(allowed));
  }
}

void block(World const& world) {
  Attention a{3, kHeads, kWidth / kHeads, kTokens, kTokens, true, not_itself};
  a.scale = 1 / std::sqrt(double(a.head_dim));
  int64_t const w = kWidth, rows = a.batch * kTokens;
  auto const kH = DataType::kHALF;
  std::vector<PluginTensorDesc> const in = block_inputs(a.batch, 1, a.batch);
  std::vector<Numbers> x;
  for (uint32_t i = 0; i < 9; ++i) {
    int64_t count = 1;
    for (int32_t d = 0; d < in[i].dims.nbDims; ++d) count *= in[i].dims.d[d];
    x.push_back(drawn(count, kH, 10 + i));
    if (i == 5 || i == 7) {
      for (double& weight : x.back()) weight = reference::to_half(weight / 8);
    }
  }
  // [rows, W] @ [outputs, W]^T + bias
  auto const linear = [&](Numbers const& from, Numbers const& weight, double const* bias, int64_t first,
                          reference::Round round) {
    Numbers out(size_t(rows * w));
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t o = 0; o < w; ++o) {
        double sum = bias[first + o];
        for (int64_t i = 0; i < w; ++i)
          sum += from[size_t(r * w + i)] * weight[size_t((first + o) * w + i)];
        out[size_t(r * w + o)] = round(sum);
      }
    }
    return out;
  };
  auto const run_block = [&](reference::Round round) {
    Numbers normal(size_t(rows * w));
    for (int64_t r = 0; r < rows; ++r) {
      double mean = 0, variance = 0;
      for (int64_t i = 0; i < w; ++i) mean += x[1][size_t(r * w + i)] / double(w);
      for (int64_t i = 0; i < w; ++i)
        variance += std::pow(x[1][size_t(r * w + i)] - mean, 2) / double(w);
      for (int64_t i = 0; i < w; ++i) {
        double const unit = (x[1][size_t(r * w + i)] - mean) / std::sqrt(variance + double(1e-5F));
        normal[size_t(r * w + i)] = round(unit * x[3][size_t(i)] + x[4][size_t(i)]);
      }
    }
    Numbers const k = linear(normal, x[5], x[6].data(), 0, round),
                  v = linear(normal, x[5], x[6].data(), w, round);
    Numbers out = linear(a.run(x[0], k, v, reference::exact, round, round), x[7], x[8].data(), 0,
                         reference::exact);
    for (size_t i = 0; i < out.size(); ++i) out[i] = round(out[i] + x[2][i]);
    return out;
  };
  Numbers const wanted = run_block(reference::exact);
  double const allowed = 2 * reference::largest_difference(wanted, run_block(reference::to_half));
  // Twice in one context: a launch must leave its counters as it found them.
  Numbers const found = run(world, world.block(), in, x, tensor(kH, {a.batch, kTokens, w}), rows * w, 2);
  double const error = reference::largest_difference(found, wanted);
  if (!(error <= allowed)) {
    fail(__FILE__, __LINE__,
         "block: error " + std::to_string(error) + " is beyond " + std::to_string(allowed));
  }
}

}  // namespace

void numbers(World const& world) {
  auto const near = [](int32_t head, int32_t i, int32_t j) { return std::abs(i - j) > 2 + head; };
  auto const all_but_row_5 = [](int32_t, int32_t i, int32_t j) { return i != 5 && (i + j) % 3 != 0; };
  Attention const plain{2, 2, 32, 72, 72, false, near};
  Attention const shared{3, 2, 32, 40, 72, true, all_but_row_5};
  for (DataType const type : {DataType::kFLOAT, DataType::kHALF, DataType::kINT8}) {
    attention(world, plain, type, 1, 2);
    for (int32_t const inputs : {2, 3}) attention(world, shared, type, inputs, 1);
  }
  Attention biased = plain;
  biased.slopes = {.5F, .125F};
  biased.columns = 9;
  attention(world, biased, DataType::kHALF, 1, 2);
  Attention zero = plain;
  zero.zero_fill = true;
  attention(world, zero, DataType::kHALF, 1, 2);
  block(world);
}

}  // namespace walk
