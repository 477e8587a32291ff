// One block of threads, run as fibers by one operating system thread.
#pragma once
#include <stdint.h>

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "collectives.hpp"
#include "fiber.hpp"
#include "race.hpp"

namespace simt {

struct Index3 {
  int x, y, z;
};

// A small generator whose sequence is the same everywhere.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint32_t below(uint32_t bound);

 private:
  uint64_t state_;
};

struct AsyncCopy {
  unsigned char* target;
  const void* source;
  bool valid;
  int group;
};

struct Warp;

struct Lane {
  int thread = 0;
  Warp* warp = nullptr;
  Fiber fiber;
  std::unique_ptr<Stack> stack;
  bool started = false;
  bool finished = false;
  Operation waiting = Operation::kNone;
  Exchange* exchange = nullptr;
  std::vector<AsyncCopy> copies;  // under way, oldest first
  int open_group = 0;
  bool fenced = false;                // a memory_fence came before
  std::vector<void*> atomics;         // touched since the last memory_fence
  race::Clock clock = nullptr;        // of the thread
  race::Clock copy_clock = nullptr;   // of its asynchronous copies, which run beside it
  std::deque<char> group_tokens;      // an address per committed group, for race::release
};

struct Warp {
  int index = 0;
  int alive = 0;
  int arrived = 0;
  int generation = 0;  // of sync_warp
  char tokens[2] = {};  // for race::release, by the generation's parity
  Operation operation = Operation::kNone;
  std::vector<Lane*> lanes;
  std::vector<Lane*> ready;
};

// Thrown through a lane whose block has failed, so that its stack unwinds.
struct Cancelled {};

class Block {
 public:
  struct Setup {
    std::string kernel;
    Index3 grid;
    int threads;
    int shared_bytes;
    void (*body)(const void*);
    const void* context;
    uint32_t seed;
    void* end_token;  // what the launch's caller acquires at its end
  };

  Block(const Setup& setup, Index3 place);
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  // False: failed, and error() says why.
  bool run();
  const std::string& error() const { return error_; }

  // Called by the running lane.
  static Block& current() { return *running_; }
  Lane& lane() { return *lane_; }
  Index3 place() const { return place_; }
  Index3 grid() const { return setup_.grid; }
  unsigned char* shared() { return shared_; }
  void sync_block();
  void sync_warp();
  void exchange(Operation operation, Exchange& mine);
  void copy_async(void* target, const void* source, bool valid);
  void commit_copies();
  void wait_for_copies(int pending);
  void check_shared(const char* what, const void* address, int bytes);

 private:
  static void enter();
  void finish();
  void wait();
  void release_block();
  void release_warp(Warp& warp);
  Lane* next();
  void resume(Lane& next);
  [[noreturn]] void fail(const std::string& why);
  void record(const Lane* at, const std::string& why);
  std::string who_waits() const;
  std::string clock_name(const Lane& lane) const;
  void draw_warps();

  static Block* running_;
  const Setup& setup_;
  Index3 place_;
  Random random_;
  std::vector<Lane> lanes_;
  std::vector<Warp> warps_;
  std::vector<Warp*> order_;  // who goes first
  unsigned char* shared_ = nullptr;
  void* allocation_ = nullptr;
  Fiber caller_;
  Fiber* left_ = nullptr;  // whom the running fiber took over from
  race::Clock caller_clock_ = nullptr;
  Lane* lane_ = nullptr;
  int alive_ = 0;
  int arrived_ = 0;     // at sync_block
  int generation_ = 0;  // of sync_block
  char tokens_[2] = {};
  std::string error_;
};

}  // namespace simt
