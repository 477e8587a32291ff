// A GPU for callers without C++: Python's ctypes, where tests run the kernels on the real thing.
// The two functions that start with simt_ are those of the emulation (host.cpp).
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <string>

namespace {

std::string last_error;

// Remembered with the call's name, and taken from CUDA, so that nobody else is blamed for it.
int32_t told(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return 0;
  cudaGetLastError();
  last_error = std::string(what) + ": " + cudaGetErrorName(error) + ", " + cudaGetErrorString(error);
  return error;
}

}  // namespace

extern "C" {

// Name and compute capability of device 0 as text. Every function gives 0 or a cudaError_t.
int32_t gpu_describe(char* text, int32_t size) {
  cudaDeviceProp properties = {};
  if (const int32_t error = told(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties"))
    return error;
  std::snprintf(text, static_cast<size_t>(size), "%s, compute capability %d.%d", properties.name,
                properties.major, properties.minor);
  return 0;
}

int32_t gpu_allocate(void** address, uint64_t bytes) {
  return told(cudaMalloc(address, bytes), "cudaMalloc");
}

int32_t gpu_free(void* address) { return told(cudaFree(address), "cudaFree"); }

// In either direction; waits for what was launched before.
int32_t gpu_copy(void* to, const void* from, uint64_t bytes) {
  return told(cudaMemcpy(to, from, bytes, cudaMemcpyDefault), "cudaMemcpy");
}

// Waits for the kernels; their errors come to light here.
int32_t gpu_wait() { return told(cudaDeviceSynchronize(), "cudaDeviceSynchronize"); }

void simt_set_schedule(uint32_t) {}  // a GPU has its own order

const char* simt_last_error() { return last_error.c_str(); }
}
