// The portability layer on the GPU: every function is one CUDA intrinsic or one PTX instruction.
// host.hpp declares the same interface and says what each function does.
#pragma once
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>

#define SIMT_DEVICE __device__ __forceinline__
#define SIMT_KERNEL extern "C" __global__
#define SIMT_BOUNDS(...) __launch_bounds__(__VA_ARGS__)  // threads, and blocks that should fit
#define SIMT_UNROLL _Pragma("unroll")

namespace simt {

using Half = __half;

// Where a thread is.
SIMT_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
SIMT_DEVICE int lane() { return thread() & 31; }
SIMT_DEVICE int warp() { return thread() >> 5; }
SIMT_DEVICE int block_x() { return static_cast<int>(blockIdx.x); }
SIMT_DEVICE int block_y() { return static_cast<int>(blockIdx.y); }
SIMT_DEVICE int block_z() { return static_cast<int>(blockIdx.z); }
SIMT_DEVICE int grid_x() { return static_cast<int>(gridDim.x); }
SIMT_DEVICE int grid_y() { return static_cast<int>(gridDim.y); }
SIMT_DEVICE int grid_z() { return static_cast<int>(gridDim.z); }

// Barriers and exchange within a warp.
constexpr uint32_t kWholeWarp = 0xffffffffu;
SIMT_DEVICE void sync_block() { __syncthreads(); }
SIMT_DEVICE void sync_warp() { __syncwarp(); }
template <typename T>
SIMT_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(kWholeWarp, value, mask);
}
template <typename T>
SIMT_DEVICE T shuffle(T value, int source) {
  return __shfl_sync(kWholeWarp, value, source);
}
SIMT_DEVICE uint32_t ballot(bool vote) { return __ballot_sync(kWholeWarp, vote); }

// Arithmetic.
SIMT_DEVICE float to_float(Half value) { return __half2float(value); }
SIMT_DEVICE Half to_half(float value) { return __float2half_rn(value); }
SIMT_DEVICE uint32_t pack_halves(float low, float high) {
  uint32_t packed;  // the instruction takes the upper half first
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
SIMT_DEVICE uint32_t subtract_halves(uint32_t a, uint32_t b) {
  uint32_t difference;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(difference) : "r"(a), "r"(b));
  return difference;
}
SIMT_DEVICE float exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
SIMT_DEVICE float sqrt(float x) {
  float y;
  asm("sqrt.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
SIMT_DEVICE float round_even(float x) { return rintf(x); }

// Shared memory.
SIMT_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char simt_shared[];
  return simt_shared;
}
SIMT_DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
SIMT_DEVICE void load_matrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
SIMT_DEVICE void load_matrix_x4_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
SIMT_DEVICE void load_matrix_x2(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}
SIMT_DEVICE void load_matrix_x2_transposed(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}
SIMT_DEVICE void copy_async_16(void* shared, const void* global, bool valid) {
  const int bytes = valid ? 16 : 0;  // the rest of the 16 is filled with zeros
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(shared_address(shared)), "l"(__cvta_generic_to_global(global)), "r"(bytes)
               : "memory");
}
SIMT_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
SIMT_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Tensor cores.
SIMT_DEVICE void multiply_f16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
SIMT_DEVICE void multiply_s8_k32(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                 uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
SIMT_DEVICE void multiply_s8_k16(int32_t (&c)[4], const uint32_t (&a)[2], uint32_t b0) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 "
      "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(b0));
}

// Between blocks.
SIMT_DEVICE int32_t atomic_add(int32_t* address, int32_t value) {
  return atomicAdd(address, value);
}
SIMT_DEVICE void memory_fence() { __threadfence(); }

struct Grid {
  int32_t x = 1, y = 1, z = 1;
};

// An error that stays behind would be blamed on whoever asks CUDA next.
inline int32_t reported(cudaError_t error) {
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

template <typename... Parameters, typename... Arguments>
int32_t launch(void (*kernel)(Parameters...), Grid grid, int32_t threads, int32_t shared_bytes,
               void* stream, Arguments... arguments) {
  constexpr int32_t kWithoutAsking = 48 * 1024;  // more needs the attribute
  if (shared_bytes > kWithoutAsking) {
    const cudaError_t error = cudaFuncSetAttribute(
        reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
        shared_bytes);
    if (error != cudaSuccess) return reported(error);
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
                        static_cast<unsigned>(grid.z));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  return reported(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

}  // namespace simt
