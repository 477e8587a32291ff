// A CUDA GPU, and how kernels are timed on it.
#include <cuda_runtime.h>

#include <algorithm>

#include "device.h"

namespace metal_edge::bench {
namespace {

constexpr size_t kLeastFlush = size_t{32} << 20;  // bytes; long enough for the CPU to stay ahead
constexpr int kInARow = 20;                       // launches in the graph that is timed warm
constexpr int kWarmUps = 20;

void check(cudaError_t error, const std::string& what) {
  if (error != cudaSuccess) {
    throw std::runtime_error(what + ": " + cudaGetErrorName(error) + ", " +
                             cudaGetErrorString(error));
  }
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 ? values[half] : (values[half - 1] + values[half]) / 2;
}

// Work, captured `times` over. A graph costs one launch from the CPU, as in an engine's execution.
class Graph {
 public:
  Graph(cudaStream_t stream, const std::function<void()>& work, int times) {
    cudaGraph_t graph = nullptr;
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
          "cudaStreamBeginCapture");
    try {
      for (int i = 0; i < times; ++i) work();
    } catch (...) {
      cudaStreamEndCapture(stream, &graph);  // the first error is the one to tell
      throw;
    }
    check(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
    const cudaError_t error = cudaGraphInstantiateWithFlags(&executable_, graph, 0);
    cudaGraphDestroy(graph);
    check(error, "cudaGraphInstantiate");
  }
  ~Graph() { cudaGraphExecDestroy(executable_); }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  void launch(cudaStream_t stream) const {
    check(cudaGraphLaunch(executable_, stream), "cudaGraphLaunch");
  }

 private:
  cudaGraphExec_t executable_ = nullptr;
};

class Gpu : public Device {
 public:
  Gpu() {
    check(cudaGetDeviceProperties(&properties_, 0), "cudaGetDeviceProperties");
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
    check(cudaEventCreate(&begin_), "cudaEventCreate");
    check(cudaEventCreate(&end_), "cudaEventCreate");
    flush_bytes_ = std::max(kLeastFlush, size_t{4} * static_cast<size_t>(properties_.l2CacheSize));
    flush_ = allocate(flush_bytes_);
  }
  ~Gpu() override {
    for (void* memory : owned_) cudaFree(memory);
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
    cudaStreamDestroy(stream_);
  }
  Gpu(const Gpu&) = delete;
  Gpu& operator=(const Gpu&) = delete;

  std::string name() const override {
    int runtime = 0;
    check(cudaRuntimeGetVersion(&runtime), "cudaRuntimeGetVersion");
    return std::string(properties_.name) + ", compute capability " +
           std::to_string(properties_.major) + "." + std::to_string(properties_.minor) + ", " +
           std::to_string(properties_.multiProcessorCount) + " SMs, CUDA " +
           std::to_string(runtime / 1000) + "." + std::to_string(runtime % 1000 / 10);
  }
  bool timed() const override { return true; }
  void* stream() const override { return stream_; }

  void* allocate(size_t bytes) override {
    void* memory = nullptr;
    check(cudaMalloc(&memory, bytes), "cudaMalloc of " + std::to_string(bytes) + " bytes");
    owned_.push_back(memory);
    return memory;
  }
  void upload(void* to, const void* from, size_t bytes) override {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_), "copy to the device");
    check(cudaStreamSynchronize(stream_), "copy to the device");
  }
  void download(void* to, const void* from, size_t bytes) override {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_),
          "copy from the device");
    check(cudaStreamSynchronize(stream_), "copy from the device, or a kernel before it");
  }
  void require(int32_t launched, const std::string& what) override {
    check(static_cast<cudaError_t>(launched), what);
  }

  std::vector<Timing> time(const std::vector<std::function<void()>>& works,
                           int32_t repeats) override {
    for (const auto& work : works) work();  // loads kernels, which a capture may not
    check(cudaStreamSynchronize(stream_), "a kernel to be timed");
    std::vector<std::unique_ptr<Graph>> once, in_a_row;
    for (const auto& work : works) {
      once.push_back(std::make_unique<Graph>(stream_, work, 1));
      in_a_row.push_back(std::make_unique<Graph>(stream_, work, kInARow));
    }
    std::vector<std::vector<double>> cold(works.size()), warm(works.size());
    for (int32_t turn = -kWarmUps; turn < repeats;
         ++turn) {  // below 0: clocks rise, nothing counts
      for (size_t i = 0; i < works.size(); ++i) {
        const double one = measure(*once[i], true), many = measure(*in_a_row[i], false) / kInARow;
        if (turn < 0) continue;
        cold[i].push_back(one);
        warm[i].push_back(many);
      }
    }
    std::vector<Timing> found;
    for (size_t i = 0; i < works.size(); ++i) found.push_back({median(cold[i]), median(warm[i])});
    return found;
  }

 private:
  // Microseconds of a graph. Everything is queued while the GPU overwrites what L2 held, so the
  // CPU's own time for a launch is not in it.
  double measure(const Graph& graph, bool flushed) {
    check(cudaMemsetAsync(flush_, 0, flush_bytes_, stream_), "flushing L2");
    if (!flushed) graph.launch(stream_);
    check(cudaEventRecord(begin_, stream_), "cudaEventRecord");
    graph.launch(stream_);
    check(cudaEventRecord(end_, stream_), "cudaEventRecord");
    check(cudaEventSynchronize(end_), "a timed kernel");
    float milliseconds = 0.0f;
    check(cudaEventElapsedTime(&milliseconds, begin_, end_), "cudaEventElapsedTime");
    return 1000.0 * static_cast<double>(milliseconds);
  }

  cudaDeviceProp properties_ = {};
  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  std::vector<void*> owned_;
  size_t flush_bytes_ = 0;
  void* flush_ = nullptr;
};

}  // namespace

std::unique_ptr<Device> open_device() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess)
    throw NoDeviceError(std::string("no CUDA device, or no driver for it: ") +
                        cudaGetErrorString(error));
  if (count == 0) throw NoDeviceError("no CUDA device: the driver lists none");
  return std::make_unique<Gpu>();
}

}  // namespace metal_edge::bench
