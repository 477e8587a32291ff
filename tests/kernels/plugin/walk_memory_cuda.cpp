#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>

#include "walk_memory.h"

namespace walk {
namespace {

void check(cudaError_t error, char const* what) {
  if (error == cudaSuccess) return;
  std::printf("FAIL %s: %s\n", what, cudaGetErrorString(error));
  std::abort();
}

}  // namespace

bool gpu_here() {
  int count = 0;
  bool const found = cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
  cudaGetLastError();
  return found;
}

Memory::Memory(void const* bytes, size_t size) : size_(size) {
  check(cudaMalloc(&data_, size), "cudaMalloc");
  check(cudaMemcpy(data_, bytes, size, cudaMemcpyHostToDevice), "cudaMemcpy to the GPU");
}

Memory::~Memory() {
  if (data_ != nullptr) check(cudaFree(data_), "cudaFree");
}

void Memory::read(void* into) const {
  check(cudaDeviceSynchronize(), "a kernel");
  check(cudaMemcpy(into, data_, size_, cudaMemcpyDeviceToHost), "cudaMemcpy from the GPU");
}

}  // namespace walk
