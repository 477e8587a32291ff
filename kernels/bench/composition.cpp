// The composition by hand-written products; composition_cublas.cpp has the other.
#include "composition.h"

namespace metal_edge::bench {

size_t scores_bytes(const Problem& p) {
  return size_t{2} * static_cast<size_t>(p.batch) * static_cast<size_t>(p.heads) *
         static_cast<size_t>(p.queries) * static_cast<size_t>(p.keys);
}

#ifndef METAL_EDGE_CUBLAS
namespace {

class ByHand : public Composition {
 public:
  void enqueue(Device& device, const Problem& problem, const Buffers& buffers,
               void* scores) override {
    device.require(launch_scores(problem, buffers, scores, device.stream()), "the scores' product");
    device.require(launch_softmax(problem, buffers, scores, device.stream()), "the softmax");
    device.require(launch_values(problem, buffers, scores, device.stream()), "the values' product");
  }
  std::string name() const override {
    return "by hand, one thread per element (built without cuBLAS)";
  }
};

}  // namespace

std::unique_ptr<Composition> make_composition(Device&) { return std::make_unique<ByHand>(); }
#endif

}  // namespace metal_edge::bench
