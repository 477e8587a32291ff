#include <cstdlib>
#include <cstring>

#include "walk_memory.h"

namespace walk {

bool gpu_here() { return false; }

Memory::Memory(void const* bytes, size_t size)
    : data_(std::aligned_alloc(256, (size + 255) / 256 * 256)), size_(size) {
  if (data_ == nullptr) std::abort();
  std::memcpy(data_, bytes, size);
}

Memory::~Memory() { std::free(data_); }

void Memory::read(void* into) const { std::memcpy(into, data_, size_); }

}  // namespace walk
