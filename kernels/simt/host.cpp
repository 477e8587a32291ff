// The functions of host.hpp: launches, and what a running lane calls.
#include "host.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <mutex>
#include <string>
#include <vector>

#include "block.hpp"

namespace simt {
namespace {

// Numbers of cudaError_t.
constexpr int32_t kInvalidConfiguration = 9;
constexpr int32_t kLaunchFailure = 719;

// What sm_87 allows a block.
constexpr int32_t kMostThreads = 1024;
constexpr int32_t kMostShared = 163 * 1024;
constexpr int32_t kMostBlocksYZ = 65535;

// ThreadSanitizer takes 8128 threads; one of ours, with its asynchronous copies, counts as two.
constexpr int64_t kMostWatched = 3000;

std::mutex one_at_a_time;
std::string failure;
uint32_t schedule = 0;

std::string name_of_kernel(const void* kernel) {
  Dl_info info;
  if (dladdr(kernel, &info) != 0 && info.dli_sname != nullptr) return info.dli_sname;
  return "(unknown)";
}

std::string problem_with(Grid grid, int32_t threads, int32_t shared_bytes) {
  const auto outside = [](const char* what, int32_t value, int32_t most) {
    return std::string(what) + " is " + std::to_string(value) + ", outside 1 to " +
           std::to_string(most);
  };
  if (threads < 1 || threads > kMostThreads) return outside("threads", threads, kMostThreads);
  if (grid.x < 1) return outside("grid.x", grid.x, INT32_MAX);
  if (grid.y < 1 || grid.y > kMostBlocksYZ) return outside("grid.y", grid.y, kMostBlocksYZ);
  if (grid.z < 1 || grid.z > kMostBlocksYZ) return outside("grid.z", grid.z, kMostBlocksYZ);
  if (shared_bytes < 0 || shared_bytes > kMostShared) {
    return "shared_bytes is " + std::to_string(shared_bytes) + ", outside 0 to " +
           std::to_string(kMostShared);
  }
  return "";
}

// Blocks may run in any order.
std::vector<int64_t> block_order(int64_t blocks, uint32_t seed) {
  std::vector<int64_t> order(static_cast<size_t>(blocks));
  for (int64_t i = 0; i < blocks; ++i) order[static_cast<size_t>(i)] = i;
  if (seed == 0) return order;
  Random random(seed);
  for (size_t i = order.size(); i > 1; --i) {
    std::swap(order[i - 1], order[random.below(static_cast<uint32_t>(i))]);
  }
  return order;
}

uint32_t shuffled(uint32_t value, int source) {
  Exchange mine;
  mine.word = value;
  mine.source = source;
  Block::current().exchange(Operation::kShuffle, mine);
  return mine.word;
}

void load_matrix(Operation operation, int matrices, uint32_t* loaded, const void* row) {
  Block& block = Block::current();
  if (lane() < 8 * matrices) {  // the other lanes' addresses are ignored
    block.check_shared(name_of(operation), row, 16);
    race::read(row, 16);
  }
  Exchange mine;
  mine.row = row;
  mine.loaded = loaded;
  block.exchange(operation, mine);
}

void multiply(Operation operation, void* c, const uint32_t* a, uint32_t b0, uint32_t b1) {
  Exchange mine;
  mine.c = c;
  mine.a = a;
  mine.b[0] = b0;
  mine.b[1] = b1;
  Block::current().exchange(operation, mine);
}

}  // namespace

int thread() { return Block::current().lane().thread; }
int block_x() { return Block::current().place().x; }
int block_y() { return Block::current().place().y; }
int block_z() { return Block::current().place().z; }
int grid_x() { return Block::current().grid().x; }
int grid_y() { return Block::current().grid().y; }
int grid_z() { return Block::current().grid().z; }

void sync_block() { Block::current().sync_block(); }
void sync_warp() { Block::current().sync_warp(); }

uint32_t shuffle_word_xor(uint32_t value, int mask) { return shuffled(value, lane() ^ mask); }
uint32_t shuffle_word(uint32_t value, int source) { return shuffled(value, source & 31); }

uint32_t ballot(bool vote) {
  Exchange mine;
  mine.word = vote;
  Block::current().exchange(Operation::kBallot, mine);
  return mine.word;
}

unsigned char* shared_memory() { return Block::current().shared(); }

void load_matrix_x4(uint32_t (&r)[4], const void* row) {
  load_matrix(Operation::kLoadMatrixX4, 4, r, row);
}
void load_matrix_x4_transposed(uint32_t (&r)[4], const void* row) {
  load_matrix(Operation::kLoadMatrixX4Transposed, 4, r, row);
}
void load_matrix_x2(uint32_t (&r)[2], const void* row) {
  load_matrix(Operation::kLoadMatrixX2, 2, r, row);
}
void load_matrix_x2_transposed(uint32_t (&r)[2], const void* row) {
  load_matrix(Operation::kLoadMatrixX2Transposed, 2, r, row);
}

void copy_async_16(void* shared, const void* global, bool valid) {
  Block::current().copy_async(shared, global, valid);
}
void copy_async_commit() { Block::current().commit_copies(); }
void copy_async_wait_for(int pending) { Block::current().wait_for_copies(pending); }

void multiply_f16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply(Operation::kMultiplyF16, c, a, b0, b1);
}
void multiply_s8_k32(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply(Operation::kMultiplyS8K32, c, a, b0, b1);
}
void multiply_s8_k16(int32_t (&c)[4], const uint32_t (&a)[2], uint32_t b0) {
  multiply(Operation::kMultiplyS8K16, c, a, b0, 0);
}

// The sanitizer's view: an atomic orders what came before it if a fence lay between, and a later fence
// orders what comes after.
int32_t atomic_add(int32_t* address, int32_t value) {
  Lane& me = Block::current().lane();
  if (race::kWatched) {
    if (me.fenced) race::release(address);
    me.atomics.push_back(address);
  }
  return race::atomic_add(address, value);
}

void memory_fence() {
  Lane& me = Block::current().lane();
  for (void* address : me.atomics) race::acquire(address);
  me.atomics.clear();
  me.fenced = true;
}

void set_schedule(uint32_t seed) { schedule = seed; }
const char* last_error() { return failure.c_str(); }

int32_t run(const void* kernel, Grid grid, int32_t threads, int32_t shared_bytes, Body body,
            const void* context) {
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  const std::string name = name_of_kernel(kernel);
  failure = problem_with(grid, threads, shared_bytes);
  if (!failure.empty()) {
    failure = "kernel " + name + ": " + failure;
    return kInvalidConfiguration;
  }
  char end_token = 0;
  const Block::Setup setup = {name, {grid.x, grid.y, grid.z}, threads, shared_bytes, body,
                              context, schedule, &end_token};
  std::vector<std::unique_ptr<Block>> kept;  // ThreadSanitizer knows a block until it is freed
  for (const int64_t i : block_order(int64_t{grid.x} * grid.y * grid.z, schedule)) {
    const int64_t row = i / grid.x;
    const Index3 place = {static_cast<int>(i % grid.x), static_cast<int>(row % grid.y),
                          static_cast<int>(row / grid.y)};
    kept.push_back(std::make_unique<Block>(setup, place));
    if (!kept.back()->run()) {
      failure = kept.back()->error();
      break;
    }
    if (race::kWatched && threads * static_cast<int64_t>(kept.size()) < kMostWatched) continue;
    race::acquire(&end_token);  // freeing is no race; races with blocks before are missed from here on
    kept.clear();
  }
  race::acquire(&end_token);
  return failure.empty() ? 0 : kLaunchFailure;
}

}  // namespace simt

// For callers that load the library, such as Python's ctypes.
extern "C" {
void simt_set_schedule(uint32_t seed) { simt::set_schedule(seed); }
const char* simt_last_error() { return simt::last_error(); }
}
