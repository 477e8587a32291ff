// The emulation of ../simt in place of a GPU.
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "../simt/simt.cuh"
#include "device.h"

namespace metal_edge::bench {
namespace {

class Host : public Device {
 public:
  std::string name() const override { return "emulation on the CPU"; }
  bool timed() const override { return false; }
  void* stream() const override { return nullptr; }

  void* allocate(size_t bytes) override {
    void* const memory =
        std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
    if (memory == nullptr)
      throw std::runtime_error("no memory for " + std::to_string(bytes) + " bytes");
    owned_.emplace_back(memory, std::free);
    return memory;
  }
  void upload(void* to, const void* from, size_t bytes) override { std::memcpy(to, from, bytes); }
  void download(void* to, const void* from, size_t bytes) override { std::memcpy(to, from, bytes); }

  void require(int32_t launched, const std::string& what) override {
    if (launched != 0) {
      throw std::runtime_error(what + ": error " + std::to_string(launched) + ": " +
                               simt::last_error());
    }
  }

  std::vector<Timing> time(const std::vector<std::function<void()>>& works, int32_t) override {
    return std::vector<Timing>(works.size(), Timing{NAN, NAN});
  }

 private:
  static constexpr size_t kAlignment = 256;
  std::vector<std::unique_ptr<void, void (*)(void*)>> owned_;
};

}  // namespace

std::unique_ptr<Device> open_device() { return std::make_unique<Host>(); }

}  // namespace metal_edge::bench
