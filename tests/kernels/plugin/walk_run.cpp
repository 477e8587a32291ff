// The walk's parts at run time: shapes, contexts, errors of the device; and, where the library
// emulates the kernels, numbers.
#include "walk.h"

namespace walk {
namespace {

using fake::Made;
using fake::tensor;

int32_t change(Made const& made, std::vector<PluginTensorDesc> const& in, PluginTensorDesc const& out) {
  return made.runtime->onShapeChange(in.data(), int32_t(in.size()), &out, 1);
}

// What TensorRT must never ask for, and asks for if an engine or its caller is wrong.
void wrong_shapes(World const& world) {
  int64_t const n = kTokens, w = kWidth;
  auto const kH = DataType::kHALF;
  struct {
    std::vector<PluginTensorDesc> in;
    PluginTensorDesc out;
    char const* message;
  } const wrong[] = {
      {{tensor(kH, {2, n, 3 * w})},
       tensor(kH, {2, n, w + 2}),
       "the output is 2 x 40 x 66; it must be 2 x 40 x 64"},
      {{tensor(kH, {2, n, 3 * w})},
       tensor(DataType::kFLOAT, {2, n, w}),
       "the output is float32; the inputs are float16"},
      {{tensor(kH, {2, n + 1, 3 * w})},
       tensor(kH, {2, n + 1, w}),
       "N = 41 queries, but the mask is made for N = 40"},
      {{tensor(kH, {0, n, 3 * w})}, tensor(kH, {0, n, w}), "a size of 0"},
      {{tensor(kH, {2, n, w}), tensor(kH, {3, n, 2 * w})}, tensor(kH, {3, n, w}), "Q is 2 x 40 x 64"},
      {{tensor(kH, {2, n, 3 * 34})}, tensor(kH, {2, n, 34}), "17"},
      {{tensor(kH, {2, n, 3 * 2 * 272})}, tensor(kH, {2, n, 2 * 272}), "272"},
      {{tensor(DataType::kINT8, {2, n, 3 * w})},
       tensor(DataType::kINT8, {2, n, w}),
       "int8 inputs need q_scale"},
      {{tensor(DataType::kINT32, {2, n, 3 * w})},
       tensor(DataType::kINT32, {2, n, w}),
       "the first input is int32"},
      {{}, tensor(kH, {2, n, w}), "there are 0 inputs"},
  };
  Made const made = world.attention();
  for (auto const& [in, out, message] : wrong) {
    CHECK(change(made, in, out) != 0);
    CHECK_SAYS(world.logger.take(), message);
  }
  std::vector<PluginTensorDesc> in = block_inputs(2, 1, 2);
  in[4].dims.d[0] = 65;
  CHECK(change(world.block(), in, tensor(kH, {2, n, w})) != 0);
  CHECK_SAYS(world.logger.take(), "beta is 65; it must be 64");
}

// Pointers for an enqueue that must be refused: if it is not, the launcher still refuses them.
void const* const kNothing[9] = {};
void* const kNowhere[1] = {};

int32_t enqueue(Made const& made, PluginTensorDesc const& in, PluginTensorDesc const& out) {
  return made.runtime->enqueue(&in, &out, kNothing, kNowhere, nullptr, nullptr);
}

void before_any_shape(World const& world) {
  auto const desc = tensor(DataType::kHALF, {1, kTokens, 3 * kWidth}),
             out = tensor(DataType::kHALF, {1, kTokens, kWidth});
  Made const made = world.attention();
  CHECK(enqueue(made, desc, out) != 0);
  CHECK_SAYS(world.logger.take(), "enqueue before onShapeChange");
  CHECK(enqueue(world.block(), desc, out) != 0);
  CHECK_SAYS(world.logger.take(), "enqueue before onShapeChange");
}

// Without a device, a context cannot be made; with one (or in emulation), it can. Errors of a context
// go to its own recorder too.
void contexts(World const& world) {
  auto const in = tensor(DataType::kHALF, {1, kTokens, 3 * kWidth}),
             out = tensor(DataType::kHALF, {1, kTokens, kWidth});
  Made const made = world.attention();
  fake::Context context;
  Made const attached(made.runtime->attachToContext(&context));
  if (attached.plugin == nullptr) {
    CHECK(!world.computes);
    std::string const said = world.logger.take();
    CHECK_SAYS(said, "MaskedAttention 'layer': cudaMalloc of 320 bytes: ");
    CHECK_SAYS(said, "CUDA error");
    CHECK(context.recorder.errors.size() == 1);
    CHECK(context.recorder.getErrorCode(0) == ErrorCode::kFAILED_INITIALIZATION);
    CHECK_SAYS(context.recorder.getErrorDesc(0), "cudaMalloc");
    // The builder's way, without a context.
    CHECK(change(made, {in}, out) != 0);
    CHECK_SAYS(world.logger.take(), "cudaMalloc");
    CHECK(enqueue(made, in, out) != 0);
    CHECK_SAYS(world.logger.take(), "enqueue before onShapeChange");
    std::printf("no device: contexts and launches are refused\n");
    return;
  }
  CHECK(change(attached, {in}, out) == 0);
  CHECK(context.recorder.errors.empty());
  CHECK(change(attached, {in, in, in, in}, out) != 0);
  CHECK_SAYS(world.logger.take(), "there are 4 inputs");
  CHECK(context.recorder.errors.size() == 1 &&
        context.recorder.getErrorCode(0) == ErrorCode::kINVALID_ARGUMENT);
  // A refused shape does not leave the one before in force.
  CHECK(enqueue(attached, in, out) != 0);
  CHECK_SAYS(world.logger.take(), "enqueue before onShapeChange");

  // What the launcher refuses, it refuses with an error, which is told with the kernel's name.
  CHECK(change(attached, {in}, out) == 0);
  size_t const before = context.recorder.errors.size();
  CHECK(enqueue(attached, in, out) != 0);
  CHECK_SAYS(world.logger.take(), "MaskedAttention 'layer': launch of ");
  CHECK(context.recorder.errors.size() == before + 1);
  CHECK(context.recorder.getErrorCode(int32_t(before)) == ErrorCode::kFAILED_EXECUTION);
  CHECK_SAYS(context.recorder.getErrorDesc(int32_t(before)), "CUDA error");
}

void workspace(World const& world) {
  std::vector<PluginTensorDesc> const inputs = block_inputs(4, 1, 4);
  std::vector<DynamicPluginTensorDesc> tensors;
  for (PluginTensorDesc const& desc : inputs) tensors.push_back({desc, desc.dims, desc.dims, desc.dims});
  auto const out = tensor(DataType::kHALF, {4, kTokens, kWidth});
  DynamicPluginTensorDesc const dynamic_out{out, out.dims, out.dims, out.dims};
  Made const made = world.block();
  CHECK(made.build->configurePlugin(tensors.data(), 9, &dynamic_out, 1) == 0);
  size_t const four = made.build->getWorkspaceSize(tensors.data(), 9, &dynamic_out, 1);
  tensors[1].max.d[0] = tensors[2].max.d[0] = 8;
  DynamicPluginTensorDesc larger = dynamic_out;
  larger.max.d[0] = 8;
  CHECK(made.build->getWorkspaceSize(tensors.data(), 9, &larger, 1) >= four);
}

}  // namespace

void run_time(World const& world) {
  wrong_shapes(world);
  before_any_shape(world);
  contexts(world);
  workspace(world);
}

}  // namespace walk
