// The walk's parts before there is an engine: creators, types, formats, shapes, serialisation.
#include <cstring>

#include "walk.h"

namespace walk {
namespace {

using fake::Made;
using fake::tensor;

std::vector<int64_t> values(DimsExprs const& dims) {
  std::vector<int64_t> sizes;
  for (int32_t i = 0; i < dims.nbDims; ++i)
    sizes.push_back(dims.d[i]->isConstant() ? dims.d[i]->getConstantValue() : -1);
  return sizes;
}

// The output's sizes; empty if they are refused.
std::vector<int64_t> output_of(Made const& made, std::vector<std::vector<int64_t>> const& inputs) {
  fake::Expressions expressions;
  std::vector<DimsExprs> in;
  for (auto const& shape : inputs) in.push_back(expressions.shape(shape));
  DimsExprs out{};
  int32_t const code =
      made.build->getOutputShapes(in.data(), int32_t(in.size()), nullptr, 0, &out, 1, expressions);
  return code == 0 ? values(out) : std::vector<int64_t>{};
}

bool takes_types(Made const& made, std::vector<DataType> const& types,
                 TensorFormat format = TensorFormat::kLINEAR) {
  std::vector<DynamicPluginTensorDesc> tensors(types.size());
  for (size_t i = 0; i < types.size(); ++i)
    tensors[i].desc = tensor(types[i], {-1, kTokens, kWidth}, format);
  for (size_t i = 0; i < types.size(); ++i) {
    if (!made.build->supportsFormatCombination(int32_t(i), tensors.data(), int32_t(types.size()) - 1, 1))
      return false;
  }
  return true;
}

int32_t configure(Made const& made, std::vector<std::vector<int64_t>> const& least,
                  std::vector<std::vector<int64_t>> const& most, DataType type = DataType::kHALF) {
  std::vector<DynamicPluginTensorDesc> tensors(least.size());
  for (size_t i = 0; i < least.size(); ++i) {
    tensors[i].desc = tensor(type, {-1, kTokens, kWidth});
    tensors[i].min = tensor(type, least[i]).dims;
    tensors[i].opt = tensors[i].max = tensor(type, most[i]).dims;
  }
  int32_t const inputs = int32_t(least.size()) - 1;
  return made.build->configurePlugin(tensors.data(), inputs, tensors.data() + inputs, 1);
}

void types(World const& world) {
  auto const kF = DataType::kFLOAT, kH = DataType::kHALF, kI = DataType::kINT8;
  Made const plain = world.attention(), quantised = world.attention(int8_node());
  for (Made const* made : {&plain, &quantised}) {
    for (DataType const type : {kF, kH}) {
      CHECK(takes_types(*made, {type, type}) && takes_types(*made, {type, type, type, type}));
      DataType out = DataType::kBOOL;
      CHECK(made->build->getOutputDataTypes(&out, 1, &type, 1) == 0 && out == type);
    }
  }
  CHECK(takes_types(quantised, {kI, kI, kI}));
  CHECK(world.logger.take().empty());

  CHECK(!takes_types(plain, {kI, kI}));
  CHECK_SAYS(world.logger.take(), "int8 inputs need q_scale");
  CHECK(!takes_types(plain, {kH, kF, kH}));
  CHECK_SAYS(world.logger.take(), "tensor 1: input 1 is float32, the first is float16");
  CHECK(!takes_types(plain, {kH, kF}));  // the output too
  world.logger.take();
  CHECK(!takes_types(plain, {DataType::kBF16, DataType::kBF16}));
  CHECK_SAYS(world.logger.take(), "bfloat16");
  CHECK(!takes_types(plain, {kH, kH}, TensorFormat::kCHW32));
  CHECK(world.logger.take().empty());  // TensorRT asks for every layout: no noise

  DataType out, mixed[] = {kH, kH, kF};
  CHECK(plain.build->getOutputDataTypes(&out, 1, mixed, 3) != 0);
  CHECK_SAYS(world.logger.take(), "MaskedAttention 'layer': input 2 is float32");
  std::vector<DataType> const nine(9, kF);
  CHECK(world.block().build->getOutputDataTypes(&out, 1, nine.data(), 9) != 0);
  CHECK_SAYS(world.logger.take(), "must be float16");
}

void shapes(World const& world) {
  Made const made = world.attention();
  using Shape = std::vector<int64_t>;
  int64_t const n = kTokens, w = kWidth;
  CHECK((output_of(made, {{3, n, 3 * w}}) == Shape{3, n, w}));
  CHECK((output_of(made, {{-1, n, 3 * w}}) == Shape{-1, n, w}));
  CHECK((output_of(made, {{1, n, w}, {-1, n, 2 * w}}) == Shape{-1, n, w}));  // one query for every image
  CHECK((output_of(made, {{5, n, w}, {5, n, w}, {5, n, w}}) == Shape{5, n, w}));
  CHECK(world.logger.take().empty());

  std::vector<std::pair<std::vector<Shape>, char const*>> const wrong = {
      {{{3, n, 3 * w, 1}}, "QKV is 3 x 40 x 192 x 1; it must be ? x ? x ?"},
      {{{3, n, 3 * w + 1}}, "QKV is 193 wide"},
      {{{3, 41, 3 * w}}, "N = 41 queries, but the mask is made for N = 40"},
      {{{3, n, w}, {3, 41, 2 * w}}, "M = 41 keys, but the mask is made for M = 40"},
      {{{3, n, 3 * 33}}, "the width 33 is no multiple of heads, 2"},
      {{{2, n, w}, {3, n, 2 * w}}, "Q is 2 x 40 x 64; it must be 3 x 40 x 64"},
      {{{1, n, w}, {3, n, w}, {3, n, w + 2}}, "V is 3 x 40 x 66; it must be 3 x 40 x 64"},
      {{{3, n, w}, {3, n, 3 * w}}, "KV is 3 x 40 x 192; it must be 3 x 40 x 128"},
      {{{3, n, w}, {3, n, w}, {3, n, w}, {3, n, w}}, "there are 4 inputs"}};
  for (auto const& [inputs, message] : wrong) {
    CHECK(output_of(made, inputs).empty());
    CHECK_SAYS(world.logger.take(), message);
  }
}

void block_shapes(World const& world) {
  Made const made = world.block();
  std::vector<std::vector<int64_t>> inputs;
  for (PluginTensorDesc const& desc : block_inputs(-1, 1, -1)) {
    inputs.emplace_back(desc.dims.d, desc.dims.d + desc.dims.nbDims);
  }
  CHECK((output_of(made, inputs) == std::vector<int64_t>{-1, kTokens, kWidth}));
  CHECK(world.logger.take().empty());
  inputs[5][0] = kWidth;
  CHECK(output_of(made, inputs).empty());
  CHECK_SAYS(world.logger.take(), "w_kv is 64 x 64; it must be 128 x 64");
  inputs.pop_back();
  CHECK(output_of(made, inputs).empty());
  CHECK_SAYS(world.logger.take(), "there are 8 inputs; nine are needed");
}

// A build fails, not a frame, when the far end of a profile is beyond what the kernels take.
void profiles(World const& world) {
  int64_t const n = kTokens, w = kWidth;
  Made const made = world.attention();
  CHECK(configure(made, {{1, n, 3 * w}, {1, n, w}}, {{16, n, 3 * w}, {16, n, w}}) == 0);
  CHECK(configure(made, {{1, n, w}, {1, n, 2 * w}, {1, n, w}}, {{1, n, w}, {9, n, 2 * w}, {9, n, w}}) ==
        0);
  CHECK(world.logger.take().empty());
  CHECK(configure(made, {{1, n, 3 * w}, {1, n, w}}, {{16, n + 1, 3 * w}, {16, n + 1, w}}) != 0);
  CHECK_SAYS(world.logger.take(), "N = 41");
  CHECK(configure(made, {{1, n, 3 * 34}, {1, n, 34}}, {{1, n, 3 * 34}, {1, n, 34}}) != 0);
  CHECK_SAYS(world.logger.take(), "17");  // the head dim that no kernel takes
}

}  // namespace

void creators(World const& world) {
  CHECK(world.library.count == 2);
  char const* const names[] = {"MaskedAttention", "MaskedAttentionBlock"};
  for (int32_t i = 0; i < world.library.count; ++i) {
    InterfaceInfo const info = world.library.creators[i]->getInterfaceInfo();
    CHECK(std::strcmp(info.kind, "PLUGIN CREATOR_V3ONE") == 0);
    IPluginCreatorV3One& creator = world.library.creator(i);
    CHECK(std::strcmp(creator.getPluginName(), names[i]) == 0);
    CHECK(std::strcmp(creator.getPluginVersion(), "1") == 0);
    CHECK(std::strcmp(creator.getPluginNamespace(), "") == 0);
    std::string fields;
    for (int32_t f = 0; f < creator.getFieldNames()->nbFields; ++f) {
      fields += std::string(creator.getFieldNames()->fields[f].name) + " ";
    }
    CHECK(fields == std::string("heads scale mask_shape mask fill slopes columns ") +
                        (i == 0 ? "q_scale k_scale v_scale out_scale " : "epsilon "));
    Made const made = world.make(i, i == 0 ? node() : block_node());
    CHECK(made.core && made.build && made.runtime);
    CHECK(std::strcmp(made.build->getInterfaceInfo().kind, "PLUGIN_V3ONE_BUILD") == 0);
    CHECK(std::strcmp(made.runtime->getInterfaceInfo().kind, "PLUGIN_V3ONE_RUNTIME") == 0);
    CHECK(std::strcmp(made.core->getPluginName(), names[i]) == 0);
    CHECK(made.build->getNbOutputs() == 1);
    Made const clone(made.plugin->clone());
    CHECK(clone.plugin && clone.plugin != made.plugin && clone.build && clone.runtime);
    CHECK(std::strcmp(clone.build->getTimingCacheID(), made.build->getTimingCacheID()) == 0);
  }
}

void build_time(World const& world) {
  types(world);
  shapes(world);
  block_shapes(world);
  profiles(world);
}

namespace {

fake::Fields full_node() {
  return int8_node()
      .floats("scale", {.25F})
      .text("fill", "zero")
      .floats("slopes", {.5F, .0625F})
      .ints("columns", {8});
}

bool same(PluginFieldCollection const& a, PluginFieldCollection const& b) {
  auto const bytes = [](PluginField const& field) {  // all numbers are four bytes wide
    return size_t(field.length) * (field.type == PluginFieldType::kCHAR ? 1 : 4);
  };
  if (a.nbFields != b.nbFields) return false;
  for (int32_t i = 0; i < a.nbFields; ++i) {
    PluginField const &x = a.fields[i], &y = b.fields[i];
    if (std::strcmp(x.name, y.name) != 0 || x.type != y.type || x.length != y.length) return false;
    if (std::memcmp(x.data, y.data, bytes(x)) != 0) return false;
  }
  return true;
}

// Every attribute that the parser gave must be among those that a plan keeps, unchanged.
bool kept(PluginFieldCollection const& given, PluginFieldCollection const& plan) {
  for (int32_t i = 0; i < given.nbFields; ++i) {
    bool found = false;
    for (int32_t j = 0; j < plan.nbFields; ++j) {
      found |= same({1, &given.fields[i]}, {1, &plan.fields[j]});
    }
    if (!found) return false;
  }
  return true;
}

}  // namespace

void serialisation(World const& world) {
  for (int32_t i = 0; i < 2; ++i) {
    for (fake::Fields fields :
         {i == 0 ? node() : block_node(), i == 0 ? full_node() : block_node().floats("scale", {2})}) {
      Made const made = world.make(i, fields);
      PluginFieldCollection const* const plan = made.runtime->getFieldsToSerialize();
      CHECK(plan && kept(*fields.collection(), *plan));
      Made const again(world.library.creator(i).createPlugin("other", plan, TensorRTPhase::kRUNTIME));
      CHECK(again.plugin != nullptr);
      if (again.plugin == nullptr) continue;
      CHECK(same(*plan, *again.runtime->getFieldsToSerialize()));
      CHECK(std::strcmp(made.build->getTimingCacheID(), again.build->getTimingCacheID()) == 0);
      CHECK(again.core && again.runtime);
    }
  }
  // The timing cache must not take one node's time for another's.
  std::string const known = world.attention(full_node()).build->getTimingCacheID();
  std::vector<fake::Fields> const others = {
      full_node().floats("scale", {.5F}),
      full_node().text("fill", "exclude"),
      full_node().floats("slopes", {.5F, .5F}),
      full_node().ints("columns", {10}),
      full_node().floats("k_scale", {.5F}),
      full_node().drop("scale"),
      full_node().text("mask",
                       hex_mask(1, kTokens, kTokens, [](int32_t, int32_t, int32_t) { return true; }))};
  for (fake::Fields const& other : others)
    CHECK(world.attention(other).build->getTimingCacheID() != known);
}

}  // namespace walk
