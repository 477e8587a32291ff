#include "block.hpp"

#include <stdlib.h>
#include <string.h>

#include <new>

namespace simt {
namespace {

// Shared memory starts as NaN, whether read as float, half or double.
constexpr int kPoison = 0xff;
constexpr int kGuard = 0xa5;
// Bytes beyond shared memory that must not change. AddressSanitizer needs the exact size instead.
#if defined(__SANITIZE_ADDRESS__)
constexpr int kGuardBytes = 0;
#else
constexpr int kGuardBytes = 1024;
#endif
constexpr size_t kSharedAlignment = 128;

std::string text(const Index3& index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " +
         std::to_string(index.z) + ")";
}

// Stacks are kept from block to block. Not under ThreadSanitizer: the next user of a stack would seem to
// race with the last.
std::vector<std::unique_ptr<Stack>>& spare_stacks() {
  static std::vector<std::unique_ptr<Stack>> stacks;
  return stacks;
}

std::unique_ptr<Stack> take_stack() {
  auto& spare = spare_stacks();
  if (spare.empty()) return std::make_unique<Stack>();
  std::unique_ptr<Stack> stack = std::move(spare.back());
  spare.pop_back();
  return stack;
}

}  // namespace

uint32_t Random::below(uint32_t bound) {
  state_ += 0x9e3779b97f4a7c15u;  // splitmix64
  uint64_t z = state_;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return static_cast<uint32_t>((z ^ (z >> 31)) >> 32) % bound;
}

Block* Block::running_ = nullptr;

Block::Block(const Setup& setup, Index3 place)
    : setup_(setup),
      place_(place),
      random_(setup.seed + (uint64_t{1} << 32) * static_cast<uint64_t>(place.x + 4099 * place.y +
                                                                      16777259 * place.z)),
      lanes_(static_cast<size_t>(setup.threads)),
      warps_(static_cast<size_t>((setup.threads + kLanes - 1) / kLanes)),
      alive_(setup.threads) {
  const size_t bytes = static_cast<size_t>(setup.shared_bytes) + kGuardBytes;
  if (posix_memalign(&allocation_, kSharedAlignment, bytes) != 0) throw std::bad_alloc();
  shared_ = static_cast<unsigned char*>(allocation_);
  memset(shared_, kPoison, static_cast<size_t>(setup.shared_bytes));
  memset(shared_ + setup.shared_bytes, kGuard, kGuardBytes);
  for (size_t i = 0; i < warps_.size(); ++i) {
    warps_[i].index = static_cast<int>(i);
    warps_[i].lanes.reserve(kLanes);
    warps_[i].ready.reserve(kLanes);  // so that no lane ever moves it, which would look like a race
    order_.push_back(&warps_[i]);
  }
  draw_warps();
  for (int i = setup.threads - 1; i >= 0; --i) {  // descending: next() takes from the back
    Lane& lane = lanes_[static_cast<size_t>(i)];
    lane.thread = i;
    lane.warp = &warps_[static_cast<size_t>(i / kLanes)];
    lane.warp->alive += 1;
    lane.warp->lanes.push_back(&lane);
    lane.warp->ready.push_back(&lane);
  }
}

Block::~Block() {
  for (Lane& lane : lanes_) {
    if (lane.stack != nullptr && !race::kWatched) spare_stacks().push_back(std::move(lane.stack));
    if (lane.clock != nullptr) race::destroy(lane.clock);
    if (lane.copy_clock != nullptr) race::destroy(lane.copy_clock);
  }
  free(allocation_);
}

// With a seed, warps come in an order drawn anew after each barrier, and the first that can run does:
// some run as far ahead of the others as barriers let them, which is when a missing one shows.
void Block::draw_warps() {
  if (setup_.seed == 0) return;
  for (size_t i = order_.size(); i > 1; --i) {
    std::swap(order_[i - 1], order_[random_.below(static_cast<uint32_t>(i))]);
  }
}

std::string Block::clock_name(const Lane& lane) const {
  return "block " + text(place_) + " thread " + std::to_string(lane.thread);
}

bool Block::run() {
  running_ = this;
  caller_clock_ = race::running();
  for (Lane& lane : lanes_) {
    lane.stack = take_stack();
    prepare(lane.fiber, *lane.stack, &Block::enter);
    if (race::kWatched) lane.clock = race::create(clock_name(lane).c_str());
  }
  Lane* first = next();
  lane_ = first;
  left_ = &caller_;
  first->started = true;
  race::become(first->clock);
  switch_to(caller_, first->fiber);
  running_ = nullptr;
  for (int i = 0; i < kGuardBytes && error_.empty(); ++i) {
    if (shared_[setup_.shared_bytes + i] == kGuard) continue;
    record(nullptr, "wrote beyond the " + std::to_string(setup_.shared_bytes) +
                        " bytes of shared memory, at offset " +
                        std::to_string(setup_.shared_bytes + i));
  }
  return error_.empty();
}

void Block::enter() {
  Block& block = current();
  fiber_entered(*block.left_);
  try {
    block.setup_.body(block.setup_.context);
  } catch (const Cancelled&) {
  }
  block.finish();
}

// The running lane is done. Barriers do not wait for lanes that have exited.
void Block::finish() {
  Lane& me = *lane_;
  me.finished = true;
  race::release(setup_.end_token);
  alive_ -= 1;
  me.warp->alive -= 1;
  try {
    if (error_.empty() && me.warp->arrived > 0 && me.warp->arrived == me.warp->alive) {
      release_warp(*me.warp);
    }
  } catch (const Cancelled&) {
  }
  if (arrived_ > 0 && arrived_ == alive_) release_block();
  Lane* other = next();
  if (other == nullptr && alive_ > 0) {
    record(nullptr, "deadlock: " + who_waits());
    other = next();
  }
  left_ = &me.fiber;
  if (other == nullptr) {
    race::become(caller_clock_);
    switch_for_good(me.fiber, caller_);
  }
  lane_ = other;
  other->started = true;
  race::become(other->clock);
  switch_for_good(me.fiber, other->fiber);
}

// The next lane to run: of the first warp in order that has one. After a failure, any that must unwind.
Lane* Block::next() {
  if (!error_.empty()) {
    for (Lane& lane : lanes_) {
      if (!lane.started && !lane.finished) {
        lane.finished = true;
        alive_ -= 1;
      }
      if (!lane.finished) return &lane;
    }
    return nullptr;
  }
  for (Warp* warp : order_) {
    std::vector<Lane*>& ready = warp->ready;
    if (ready.empty()) continue;
    if (setup_.seed != 0) {
      std::swap(ready.back(), ready[random_.below(static_cast<uint32_t>(ready.size()))]);
    }
    Lane* lane = ready.back();
    ready.pop_back();
    return lane;
  }
  return nullptr;
}

// Suspends the running lane until what it waits for has happened.
void Block::wait() {
  Lane& me = *lane_;
  Lane* other = next();
  if (other == nullptr) fail("deadlock: " + who_waits());
  if (other != &me) {
    left_ = &me.fiber;
    lane_ = other;
    other->started = true;
    race::become(other->clock);
    switch_to(me.fiber, other->fiber);
  }
  if (!error_.empty()) throw Cancelled();
}

void Block::release_block() {
  arrived_ = 0;
  generation_ += 1;
  draw_warps();
  for (auto lane = lanes_.rbegin(); lane != lanes_.rend(); ++lane) {
    if (lane->waiting != Operation::kSyncBlock) continue;
    lane->waiting = Operation::kNone;
    lane->warp->ready.push_back(&*lane);
  }
}

void Block::sync_block() {
  Lane& me = *lane_;
  char* token = &tokens_[generation_ % 2];
  race::release(token);
  me.waiting = Operation::kSyncBlock;
  if (++arrived_ == alive_) release_block();
  wait();
  race::acquire(token);
}

void Block::release_warp(Warp& warp) {
  Exchange* exchanges[kLanes] = {};
  for (Lane* lane : warp.lanes) {
    if (lane->exchange != nullptr) exchanges[lane->thread % kLanes] = lane->exchange;
  }
  const char* problem = complete(warp.operation, exchanges);
  if (problem != nullptr) fail(std::string(name_of(warp.operation)) + ": " + problem);
  warp.operation = Operation::kNone;
  warp.arrived = 0;
  warp.generation += 1;
  for (Lane* lane : warp.lanes) {
    if (lane->exchange == nullptr) continue;
    lane->exchange = nullptr;
    lane->waiting = Operation::kNone;
    warp.ready.push_back(lane);
  }
}

void Block::exchange(Operation operation, Exchange& mine) {
  Lane& me = *lane_;
  Warp& warp = *me.warp;
  if (warp.arrived > 0 && warp.operation != operation) {
    fail(std::string("divergent warp: this lane is at ") + name_of(operation) +
         ", others of its warp wait at " + name_of(warp.operation));
  }
  warp.operation = operation;
  me.waiting = operation;
  me.exchange = &mine;
  if (++warp.arrived == warp.alive) release_warp(warp);
  wait();
}

void Block::sync_warp() {
  Warp& warp = *lane_->warp;
  char* token = &warp.tokens[warp.generation % 2];
  race::release(token);
  Exchange nothing;
  exchange(Operation::kSyncWarp, nothing);
  race::acquire(token);
}

void Block::check_shared(const char* what, const void* address, int bytes) {
  const auto offset = reinterpret_cast<intptr_t>(address) - reinterpret_cast<intptr_t>(shared_);
  const std::string where = std::string(what) + " at shared memory offset " + std::to_string(offset);
  if (offset < 0 || offset + bytes > setup_.shared_bytes) {
    fail(where + ", outside the " + std::to_string(setup_.shared_bytes) + " bytes there are");
  }
  if (offset % bytes != 0) fail(where + ", not a multiple of " + std::to_string(bytes));
}

void Block::copy_async(void* target, const void* source, bool valid) {
  check_shared("copy_async_16", target, 16);
  if (reinterpret_cast<uintptr_t>(source) % 16 != 0) {
    char address[32];
    snprintf(address, sizeof address, "%p", source);
    fail(std::string("copy_async_16 from address ") + address + ", not a multiple of 16");
  }
  Lane& me = *lane_;
  if (race::kWatched) {
    // The copy is ordered after what its thread did so far, and from now on runs beside it.
    if (me.copy_clock == nullptr) {
      me.copy_clock = race::create((clock_name(me) + ", its async copies").c_str());
    }
    char issue = 0;
    race::release(&issue);
    race::become(me.copy_clock);
    race::acquire(&issue);
    if (valid) race::read(source, 16);
    race::write(target, 16);
    race::become(me.clock);
  }
  memset(target, kPoison, 16);
  me.copies.push_back({static_cast<unsigned char*>(target), source, valid, me.open_group});
}

void Block::commit_copies() {
  Lane& me = *lane_;
  me.open_group += 1;
  if (race::kWatched) {
    me.group_tokens.push_back(0);
    if (me.copy_clock == nullptr) return;  // a group without copies
    race::become(me.copy_clock);
    race::release(&me.group_tokens.back());
    race::become(me.clock);
  }
}

// The copies land here, as late as they may.
void Block::wait_for_copies(int pending) {
  Lane& me = *lane_;
  const int landed = me.open_group - pending;  // the number of groups that must be complete
  size_t done = 0;
  for (; done < me.copies.size() && me.copies[done].group < landed; ++done) {
    const AsyncCopy& copy = me.copies[done];
    if (copy.valid) {
      memcpy(copy.target, copy.source, 16);
    } else {
      memset(copy.target, 0, 16);
    }
  }
  me.copies.erase(me.copies.begin(), me.copies.begin() + static_cast<ptrdiff_t>(done));
  if (race::kWatched && landed > 0) {
    race::acquire(&me.group_tokens[static_cast<size_t>(landed - 1)]);
  }
}

void Block::record(const Lane* at, const std::string& why) {
  if (!error_.empty()) return;  // the first is the cause
  error_ = "kernel " + setup_.kernel + ", block " + text(place_);
  if (at != nullptr) {
    error_ += ", thread " + std::to_string(at->thread) + " (warp " +
              std::to_string(at->thread / kLanes) + ", lane " +
              std::to_string(at->thread % kLanes) + ")";
  }
  error_ += ": " + why;
}

void Block::fail(const std::string& why) {
  record(lane_, why);
  throw Cancelled();
}

// "warp 0: lanes 0-30 at sync_warp, lane 31 at sync_block; ..."
std::string Block::who_waits() const {
  std::string all;
  for (size_t i = 0; i < lanes_.size(); ++i) {
    const Lane& lane = lanes_[i];
    if (lane.finished) continue;
    size_t last = i;
    while (last + 1 < lanes_.size() && lanes_[last + 1].warp == lane.warp &&
           !lanes_[last + 1].finished && lanes_[last + 1].waiting == lane.waiting) {
      ++last;
    }
    if (!all.empty()) all += ", ";
    all += "threads " + std::to_string(i) + " to " + std::to_string(last) + " wait at " +
           name_of(lane.waiting);
    i = last;
  }
  return all;
}

}  // namespace simt
