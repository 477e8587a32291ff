#include <cstdlib>
#include <cstring>

#include "device.h"

namespace metal_edge::plugin {
namespace {

constexpr size_t kAlignment = 256;  // as cudaMalloc

}  // namespace

Text device_error(int32_t code) noexcept {
  Text text;
  text.set("CUDA error %d (emulation)", code);
  return text;
}

bool DeviceMemory::allocate(size_t bytes, Text& why) noexcept {
  if (!release(why)) return false;
  data_ = std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
  if (data_ == nullptr) return why.set("no memory for %zu bytes", bytes);
  size_ = bytes;
  return true;
}

bool DeviceMemory::release(Text&) noexcept {
  std::free(data_);
  data_ = nullptr;
  size_ = 0;
  return true;
}

bool DeviceMemory::copy_of(void const* host, size_t bytes, Text& why) noexcept {
  if (!allocate(bytes, why)) return false;
  std::memcpy(data_, host, bytes);
  return true;
}

bool DeviceMemory::zeros(size_t bytes, Text& why) noexcept {
  if (!allocate(bytes, why)) return false;
  std::memset(data_, 0, bytes);
  return true;
}

DeviceMemory::~DeviceMemory() {
  Text why;
  release(why);
}

}  // namespace metal_edge::plugin
