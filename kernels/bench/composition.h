// Attention as a framework composes it: scores by one product, a masked softmax, values by another.
// Scores and weights are float16 in global memory. What a fused kernel has to beat.
#pragma once
#include <memory>
#include <string>

#include "device.h"

namespace metal_edge::bench {

class Composition {
 public:
  virtual ~Composition() = default;
  // Enqueues it; float16 problems only. `scores`: scores_bytes(problem) of device memory.
  virtual void enqueue(Device& device, const Problem& problem, const Buffers& buffers,
                       void* scores) = 0;
  virtual std::string name() const = 0;
};

size_t scores_bytes(const Problem& problem);

// By cuBLAS where it was found when this was built, else by kernels of one thread per element.
std::unique_ptr<Composition> make_composition(Device& device);

// The kernels behind it; 0 or a cudaError_t. The products by hand:
int32_t launch_scores(const Problem& problem, const Buffers& buffers, void* scores, void* stream);
int32_t launch_values(const Problem& problem, const Buffers& buffers, const void* scores,
                      void* stream);
// Scores [B, heads, N, M], already scaled, become weights in place.
int32_t launch_softmax(const Problem& problem, const Buffers& buffers, void* scores, void* stream);
// The plain attention kernel, whatever the planner would choose. float16.
int32_t launch_plain(const Problem& problem, const Buffers& buffers, void* stream);
int32_t launch_nothing(void* stream);

}  // namespace metal_edge::bench
