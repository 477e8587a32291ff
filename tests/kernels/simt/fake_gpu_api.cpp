// gpu_api.cu on the host's memory, for tests without a GPU: the library around it is the emulation,
// which has the two functions that start with simt_ itself.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

extern "C" {
int32_t gpu_describe(char* text, int32_t size) {
  std::snprintf(text, static_cast<size_t>(size), "no GPU, compute capability 0.0");
  return 0;
}
int32_t gpu_allocate(void** address, uint64_t bytes) {
  *address = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  return *address == nullptr ? 2 : 0;
}
int32_t gpu_free(void* address) {
  std::free(address);
  return 0;
}
int32_t gpu_copy(void* to, const void* from, uint64_t bytes) {
  std::memcpy(to, from, bytes);
  return 0;
}
int32_t gpu_wait() { return 0; }
}
