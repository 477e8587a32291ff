// NVIDIA's occupancy calculator on the CPU: reads "major minor threads_per_sm shared_per_sm registers threads
// shared" lines, prints resident blocks per SM.
#include <cstdio>

#include <cuda_occupancy.h>

int main() {
  int major, minor, per_sm, shared_per_sm, registers, threads, shared;
  while (std::scanf("%d %d %d %d %d %d %d", &major, &minor, &per_sm, &shared_per_sm, &registers,
                    &threads, &shared) == 7) {
    cudaOccDeviceProp device;
    device.computeMajor = major;
    device.computeMinor = minor;
    device.maxThreadsPerBlock = 1024;
    device.maxThreadsPerMultiprocessor = per_sm;
    device.regsPerBlock = 65536;
    device.regsPerMultiprocessor = 65536;
    device.warpSize = 32;
    device.sharedMemPerBlock = 48 * 1024;
    device.sharedMemPerMultiprocessor = static_cast<size_t>(shared_per_sm);
    device.numSms = 8;
    device.sharedMemPerBlockOptin = static_cast<size_t>(shared_per_sm - 1024);
    device.reservedSharedMemPerBlock = 1024;
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = 1024;
    kernel.numRegs = registers;
    kernel.sharedSizeBytes = 0;
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    kernel.maxDynamicSharedSizeBytes = static_cast<size_t>(shared);
    kernel.numBlockBarriers = 1;
    cudaOccDeviceState state;
    cudaOccResult result;
    const int status = cudaOccMaxActiveBlocksPerMultiprocessor(
        &result, &device, &kernel, &state, threads, static_cast<size_t>(shared));
    if (status != 0) return 1;
    std::printf("%d\n", result.activeBlocksPerMultiprocessor);
  }
}
