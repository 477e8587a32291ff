// Bad attributes: the creator refuses each with a message that names the value.
#include <cmath>
#include <limits>

#include "walk.h"

namespace walk {
namespace {

struct Refusal {
  fake::Fields fields;
  char const* message;
};

std::string changed_mask(size_t digit, char to) {
  std::string mask = hex_mask(1, kTokens, kTokens, not_itself);
  mask[digit] = to;
  return mask;
}

std::vector<Refusal> of_both() {
  float const nan = std::numeric_limits<float>::quiet_NaN();
  return {
      {node().drop("heads"), "heads is 0"},
      {node().ints("heads", {-1}), "heads is -1"},
      {node().ints("heads", {1, 2}), "heads has 2 numbers"},
      {node().floats("heads", {2}), "heads has plugin field type 1; it must be int32"},
      {node().longs("heads", {1LL << 32}), "heads is 4294967296, beyond 32 bits"},
      {node().floats("scale", {nan}), "scale is nan"},
      {node().ints("scale", {1}), "scale has plugin field type 5; it must be float32"},
      {node().drop("mask_shape"), "mask_shape has 0 numbers"},
      {node().ints("mask_shape", {kTokens, kTokens}), "mask_shape has 2 numbers"},
      {node().ints("mask_shape", {3, kTokens, kTokens}),
       "mask_shape starts with 3; it must be 1 or the number of heads, 2"},
      {node().ints("mask_shape", {1, 4097, kTokens}), "N = 4097"},
      {node().ints("mask_shape", {1, kTokens, 0}), "M = 0"},
      {node().drop("mask"), "mask has 0 hex digits; mask_shape (1, 40, 40) needs 640"},
      {node().ints("mask_shape", {1, kTokens + 1, kTokens}),
       "mask has 640 hex digits; mask_shape (1, 41, 40) needs 656"},
      {node().text("mask", changed_mask(17, 'g')), "at digit 16"},
      {node().text("mask", changed_mask(0, 'F')), "only 0-9 and a-f"},
      {node().text("mask", changed_mask(16 * 3 + 10, '1')), "beyond M = 40 in row 3"},
      {node().ints("mask", {1}), "mask has plugin field type 5; it must be char"},
      {node().text("fill", "Zero"), "fill is 'Zero'"},
      {node().floats("slopes", {1}).ints("columns", {8}),
       "slopes has 1 numbers; one per head is needed, 2"},
      {node().floats("slopes", {1, nan}).ints("columns", {8}), "slopes[1] is nan"},
      {node().floats("slopes", {1, 1}), "columns is 0"},
      {node().ints("columns", {8}), "columns is 8 without slopes"},
      {node()
           .ints("mask_shape", {1, 8, 16})
           .text("mask", std::string(64, '0'))
           .floats("slopes", {1, 1})
           .ints("columns", {4}),
       "N = 8, M = 16"},
      {node().floats("scael", {1}), "'scael' is not known"},
  };
}

std::vector<Refusal> of_attention() {
  return {
      {int8_node().drop("v_scale"), "v_scale is missing; int8 needs all four scales"},
      {int8_node().floats("out_scale", {0}), "out_scale is 0"},
      {int8_node().floats("q_scale", {INFINITY}), "q_scale is inf"},
      {int8_node().floats("k_scale", {-.5F}), "k_scale is -0.5"},
      {node().floats("epsilon", {1e-5F}), "'epsilon' is not known"},
  };
}

std::vector<Refusal> of_block() {
  return {
      {node(), "epsilon is missing"},
      {block_node().floats("epsilon", {0}), "epsilon is 0"},
      {block_node().floats("q_scale", {1}), "'q_scale' is not known"},
  };
}

void check(World const& world, int32_t creator, std::vector<Refusal> const& refusals) {
  for (Refusal const& refusal : refusals) {
    CHECK(world.make(creator, refusal.fields).plugin == nullptr);
    std::string const said = world.logger.take();
    CHECK_SAYS(said, refusal.message);
    CHECK_SAYS(said, "layer 'layer'");
  }
}

}  // namespace

void refusals(World const& world) {
  check(world, 0, of_both());
  check(world, 0, of_attention());
  std::vector<Refusal> both = of_both();
  for (Refusal& refusal : both) refusal.fields.floats("epsilon", {1e-5F});
  check(world, 1, both);
  check(world, 1, of_block());

  // Fields as no parser would make them.
  IPluginCreatorV3One& creator = world.library.creator(0);
  CHECK(creator.createPlugin(nullptr, nullptr, TensorRTPhase::kBUILD) == nullptr);
  CHECK_SAYS(world.logger.take(), "heads is 0");
  PluginField const bare[] = {{"heads", nullptr, PluginFieldType::kINT32, 1}};
  PluginFieldCollection const without_data{1, bare};
  CHECK(creator.createPlugin("layer", &without_data, TensorRTPhase::kBUILD) == nullptr);
  CHECK_SAYS(world.logger.take(), "attribute 'heads' is empty or has no data");
  PluginField const unnamed[] = {{nullptr, bare, PluginFieldType::kINT32, 1}};
  PluginFieldCollection const without_name{1, unnamed};
  CHECK(creator.createPlugin("layer", &without_name, TensorRTPhase::kBUILD) == nullptr);
  CHECK_SAYS(world.logger.take(), "attribute 0 has no name");

  // int64 is taken where it fits: not every maker of a network narrows it as the parser does.
  CHECK(world.attention(node().longs("heads", {2}).longs("mask_shape", {1, kTokens, kTokens})).plugin !=
        nullptr);
}

}  // namespace walk
