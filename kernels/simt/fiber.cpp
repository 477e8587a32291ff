#include "fiber.hpp"

#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {
namespace {

size_t page() {
  static const size_t bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

// AddressSanitizer follows the stack pointer; it must hear of a switch before and after.
void announce(Fiber& from, const Fiber& to, bool for_good) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(for_good ? nullptr : &from.fake_stack, to.bottom, to.bytes);
#else
  (void)from, (void)to, (void)for_good;
#endif
}

void arrived(Fiber& at, const void** old_bottom, size_t* old_bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(at.fake_stack, old_bottom, old_bytes);
#else
  (void)at, (void)old_bottom, (void)old_bytes;
#endif
}

}  // namespace

Stack::Stack() {
  void* memory = mmap(nullptr, kBytes + page(), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, page(), PROT_NONE);
  bottom_ = static_cast<char*>(memory) + page();
}

Stack::~Stack() { munmap(bottom_ - page(), kBytes + page()); }

void fiber_entered(Fiber& from) {
  Fiber none;
  arrived(none, &from.bottom, &from.bytes);  // also how the first caller's own stack becomes known
}

#ifdef SIMT_UCONTEXT

void prepare(Fiber& fiber, const Stack& stack, void (*entry)()) {
  fiber.bottom = stack.bottom();
  fiber.bytes = Stack::kBytes;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stack.bottom();
  fiber.context.uc_stack.ss_size = Stack::kBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
}

void switch_to(Fiber& from, Fiber& to) {
  announce(from, to, false);
  swapcontext(&from.context, &to.context);
  arrived(from, nullptr, nullptr);
}

void switch_for_good(Fiber& from, Fiber& to) {
  announce(from, to, true);
  setcontext(&to.context);
  abort();
}

#else

// Saves what a callee must preserve, exchanges the stacks, restores. swapcontext would do, but it asks
// the kernel for the signal mask each time, and a tile of attention switches ten thousand times.
extern "C" void simt_exchange_stacks(void** from, void* to);
asm(R"(
.text
.type simt_exchange_stacks, @function
simt_exchange_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_exchange_stacks, .-simt_exchange_stacks
)");

void prepare(Fiber& fiber, const Stack& stack, void (*entry)()) {
  fiber.bottom = stack.bottom();
  fiber.bytes = Stack::kBytes;
  // As if `entry` had been called, by nobody, and had at once switched away: six registers, its
  // address for `ret`, and a null return address, which ends a debugger's walk.
  constexpr int kRegisters = 6;
  void** top = reinterpret_cast<void**>(stack.bottom() + Stack::kBytes) - (kRegisters + 4);
  for (int i = 0; i < kRegisters + 4; ++i) top[i] = nullptr;
  top[kRegisters] = reinterpret_cast<void*>(entry);
  fiber.pointer = top;
}

void switch_to(Fiber& from, Fiber& to) {
  announce(from, to, false);
  simt_exchange_stacks(&from.pointer, to.pointer);
  arrived(from, nullptr, nullptr);
}

void switch_for_good(Fiber& from, Fiber& to) {
  announce(from, to, true);
  simt_exchange_stacks(&from.pointer, to.pointer);
  abort();
}

#endif

}  // namespace simt
