// The composition by cuBLAS. Its matrices are column-major: a row-major [N, M] is its [M, N].
#include <cublas_v2.h>

#include "composition.h"

namespace metal_edge::bench {
namespace {

void check(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS) {
    throw std::runtime_error(std::string(what) + ": " + cublasGetStatusString(status));
  }
}

class ByCublas : public Composition {
 public:
  explicit ByCublas(Device& device) {
    check(cublasCreate(&handle_), "cublasCreate");
    check(cublasSetStream(handle_, static_cast<cudaStream_t>(device.stream())), "cublasSetStream");
    // An own workspace: without it a captured graph would allocate one.
    check(cublasSetWorkspace(handle_, device.allocate(kWorkspace), kWorkspace),
          "cublasSetWorkspace");
  }
  ~ByCublas() override { cublasDestroy(handle_); }
  ByCublas(const ByCublas&) = delete;
  ByCublas& operator=(const ByCublas&) = delete;

  void enqueue(Device& device, const Problem& p, const Buffers& b, void* scores) override {
    const int64_t image = int64_t{p.heads} * p.queries * p.keys;
    for (int32_t i = 0; i < p.batch; ++i) {
      multiply(CUBLAS_OP_T, p.keys, p.queries, p.head_dim, p.scale, at(b.k, i * p.k_batch), p.k_row,
               p.head_dim, at(b.q, i * p.q_batch), p.q_row, p.head_dim, at(scores, i * image),
               p.keys, int64_t{p.queries} * p.keys, p.heads);
    }
    device.require(launch_softmax(p, b, scores, device.stream()), "the softmax");
    for (int32_t i = 0; i < p.batch; ++i) {
      multiply(CUBLAS_OP_N, p.head_dim, p.queries, p.keys, 1.0f, at(b.v, i * p.v_batch), p.v_row,
               p.head_dim, at(scores, i * image), p.keys, int64_t{p.queries} * p.keys,
               at(b.out, i * p.out_batch), p.out_row, p.head_dim, p.heads);
    }
  }

  std::string name() const override {
    int version = 0;
    check(cublasGetVersion(handle_, &version), "cublasGetVersion");
    return "cuBLAS " + std::to_string(version);
  }

 private:
  static constexpr size_t kWorkspace = size_t{8} << 20;

  static void* at(const void* base, int64_t elements) {
    return static_cast<uint16_t*>(const_cast<void*>(base)) + elements;
  }

  // c = alpha op(a) b for every head; c is [rows, columns], all of them float16.
  void multiply(cublasOperation_t op, int rows, int columns, int depth, float alpha, const void* a,
                int64_t a_lead, int64_t a_head, const void* b, int64_t b_lead, int64_t b_head,
                void* c, int64_t c_lead, int64_t c_head, int heads) {
    const float zero = 0.0f;
    check(cublasGemmStridedBatchedEx(handle_, op, CUBLAS_OP_N, rows, columns, depth, &alpha, a,
                                     CUDA_R_16F, static_cast<int>(a_lead), a_head, b, CUDA_R_16F,
                                     static_cast<int>(b_lead), b_head, &zero, c, CUDA_R_16F,
                                     static_cast<int>(c_lead), c_head, heads, CUBLAS_COMPUTE_32F,
                                     CUBLAS_GEMM_DEFAULT),
          "cublasGemmStridedBatchedEx");
  }

  cublasHandle_t handle_ = nullptr;
};

}  // namespace

std::unique_ptr<Composition> make_composition(Device& device) {
  return std::make_unique<ByCublas>(device);
}

}  // namespace metal_edge::bench
