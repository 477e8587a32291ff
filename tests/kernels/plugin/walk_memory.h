// Memory as the library's kernels see it: the host's, or a GPU's.
#pragma once
#include <cstddef>

namespace walk {

// Built with CUDA, and there is a GPU: enqueue is expected to compute.
bool gpu_here();

// A copy of `bytes`, at a multiple of 256; aborts where there is no memory.
class Memory {
 public:
  Memory(void const* bytes, size_t size);
  Memory(Memory&& other) noexcept : data_(other.data_), size_(other.size_) { other.data_ = nullptr; }
  ~Memory();
  void* data() const { return data_; }
  void read(void* into) const;  // waits for the kernels

 private:
  void* data_ = nullptr;
  size_t size_;
};

}  // namespace walk
