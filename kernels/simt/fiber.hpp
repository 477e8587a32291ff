// Stacks that one operating system thread switches between.
#pragma once
#include <stddef.h>

#if !defined(__x86_64__) || defined(SIMT_PORTABLE_FIBERS)
#define SIMT_UCONTEXT
#include <ucontext.h>
#endif

namespace simt {

// Memory for one fiber, with an unreadable page below it: an overflow stops the program there.
class Stack {
 public:
  Stack();
  ~Stack();
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;
  char* bottom() const { return bottom_; }
  static constexpr size_t kBytes = 128 * 1024;

 private:
  char* bottom_;
};

// A suspended computation. A default-made one stands for the caller of the first switch_to.
struct Fiber {
  void* pointer = nullptr;  // its stack pointer while suspended
#ifdef SIMT_UCONTEXT
  ucontext_t context = {};
#endif
  const void* bottom = nullptr;  // for AddressSanitizer, which wants to know each stack
  size_t bytes = 0;
  void* fake_stack = nullptr;
};

// Makes `fiber` run `entry` on `stack` once switched to. `entry` must call fiber_entered() first and
// must not return: it leaves by switch_for_good.
void prepare(Fiber& fiber, const Stack& stack, void (*entry)());
void fiber_entered(Fiber& from);
void switch_to(Fiber& from, Fiber& to);
[[noreturn]] void switch_for_good(Fiber& from, Fiber& to);

}  // namespace simt
