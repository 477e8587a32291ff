#include <cuda_runtime_api.h>

#include "device.h"
#include "report.h"

namespace metal_edge::plugin {
namespace {

bool succeeded(cudaError_t code, char const* what, size_t bytes, Text& why) noexcept {
  if (code == cudaSuccess) return true;
  cudaGetLastError();  // or a later launch would be blamed for it
  return why.set("%s of %zu bytes: %s", what, bytes, device_error(code).data);
}

// A copy from pageable memory, and a memset, may return before the device has finished; streams
// that do not wait for the default stream would then read too early.
bool finished(size_t bytes, Text& why) noexcept {
  return succeeded(cudaStreamSynchronize(nullptr), "cudaStreamSynchronize after a transfer", bytes, why);
}

}  // namespace

Text device_error(int32_t code) noexcept {
  Text text;
  text.set("%s (CUDA error %d)", cudaGetErrorString(cudaError_t(code)), code);
  return text;
}

bool DeviceMemory::allocate(size_t bytes, Text& why) noexcept {
  if (!release(why)) return false;
  if (!succeeded(cudaMalloc(&data_, bytes), "cudaMalloc", bytes, why)) {
    data_ = nullptr;
    return false;
  }
  size_ = bytes;
  return true;
}

bool DeviceMemory::release(Text& why) noexcept {
  void* const data = data_;
  size_t const bytes = size_;
  data_ = nullptr;
  size_ = 0;
  return data == nullptr || succeeded(cudaFree(data), "cudaFree", bytes, why);
}

bool DeviceMemory::copy_of(void const* host, size_t bytes, Text& why) noexcept {
  return allocate(bytes, why) &&
         succeeded(cudaMemcpy(data_, host, bytes, cudaMemcpyHostToDevice), "cudaMemcpy", bytes, why) &&
         finished(bytes, why);
}

bool DeviceMemory::zeros(size_t bytes, Text& why) noexcept {
  return allocate(bytes, why) && succeeded(cudaMemset(data_, 0, bytes), "cudaMemset", bytes, why) &&
         finished(bytes, why);
}

DeviceMemory::~DeviceMemory() {
  Text why;
  if (!release(why)) log(nvinfer1::ILogger::Severity::kWARNING, why.data);
}

}  // namespace metal_edge::plugin
