// Where the benchmark runs: a GPU (device_cuda.cpp), or the emulation (device_host.cpp), which
// cannot be timed and serves to prove everything else.
#pragma once
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "bench.h"

namespace metal_edge::bench {

// The command line is wrong; the message says how.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// There is nothing to run on; the message says what is missing.
struct NoDeviceError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Throws std::runtime_error, with the CUDA error's name, from every function that fails.
class Device {
 public:
  virtual ~Device() = default;
  virtual std::string name() const = 0;
  virtual bool timed() const = 0;
  virtual void* stream() const = 0;
  virtual void* allocate(size_t bytes) = 0;  // at a multiple of 256; freed with the device
  virtual void upload(void* to, const void* from, size_t bytes) = 0;
  virtual void download(void* to, const void* from, size_t bytes) = 0;  // waits for the stream
  // What `launched` returned was an error: throws it, with all that is known. `what`: was launched.
  virtual void require(int32_t launched, const std::string& what) = 0;
  // Times pieces of work that enqueue kernels on the stream, taking turns, so that all of them meet
  // the same clocks.
  virtual std::vector<Timing> time(const std::vector<std::function<void()>>& works,
                                   int32_t repeats) = 0;
};

// Throws NoDeviceError.
std::unique_ptr<Device> open_device();

}  // namespace metal_edge::bench
