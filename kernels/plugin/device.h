// The device's memory: CUDA's (device_cuda.cpp), or the host's in a build without CUDA
// (device_host.cpp), where the kernels run in emulation.
#pragma once
#include <cstddef>
#include <cstdint>

#include "text.h"

namespace metal_edge::plugin {

// An error of CUDA in words, with its number.
Text device_error(int32_t code) noexcept;

// One block of device memory, owned. Functions that may fail write into `why` and return false.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  ~DeviceMemory();
  DeviceMemory(DeviceMemory const&) = delete;
  DeviceMemory& operator=(DeviceMemory const&) = delete;

  // A copy of host memory, complete when this returns, whatever stream uses it later.
  bool copy_of(void const* host, size_t bytes, Text& why) noexcept;
  // Zeros; likewise.
  bool zeros(size_t bytes, Text& why) noexcept;

  void* get() const noexcept { return data_; }
  size_t size() const noexcept { return size_; }

 private:
  bool allocate(size_t bytes, Text& why) noexcept;
  bool release(Text& why) noexcept;

  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace metal_edge::plugin
