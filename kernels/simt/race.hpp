// What ThreadSanitizer is told, so that it knows the orderings that CUDA gives and no others.
//
// Every emulated thread is a "fiber" of the sanitizer: a clock of its own, although one operating
// system thread runs them all. Switching orders nothing. host.cpp is compiled without instrumentation
// and calls these functions where CUDA orders memory; in other builds they are empty.
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifdef SIMT_THREAD_SANITIZER
#include <sanitizer/tsan_interface.h>

extern "C" {
void __tsan_read_range(void* address, unsigned long size);
void __tsan_write_range(void* address, unsigned long size);
int __tsan_atomic32_fetch_add(volatile int* address, int value, int order);
}
#endif

namespace simt::race {

#ifdef SIMT_THREAD_SANITIZER
constexpr bool kWatched = true;
using Clock = void*;
inline Clock running() { return __tsan_get_current_fiber(); }
inline Clock create(const char* name) {
  const Clock clock = __tsan_create_fiber(0);  // ordered after its creator
  __tsan_set_fiber_name(clock, name);
  return clock;
}
inline void destroy(Clock clock) { __tsan_destroy_fiber(clock); }
inline void become(Clock clock) {
  __tsan_switch_to_fiber(clock, __tsan_switch_to_fiber_no_sync);
}
inline void release(void* at) { __tsan_release(at); }
inline void acquire(void* at) { __tsan_acquire(at); }
inline void read(const void* at, size_t size) { __tsan_read_range(const_cast<void*>(at), size); }
inline void write(void* at, size_t size) { __tsan_write_range(at, size); }
inline int32_t atomic_add(int32_t* at, int32_t value) {
  return __tsan_atomic32_fetch_add(at, value, __ATOMIC_RELAXED);
}
#else
constexpr bool kWatched = false;
using Clock = void*;
inline Clock running() { return nullptr; }
inline Clock create(const char*) { return nullptr; }
inline void destroy(Clock) {}
inline void become(Clock) {}
inline void release(void*) {}
inline void acquire(void*) {}
inline void read(const void*, size_t) {}
inline void write(void*, size_t) {}
inline int32_t atomic_add(int32_t* at, int32_t value) {
  return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
}
#endif

}  // namespace simt::race
