// One kernel source for two compilers: nvcc makes device code of it, g++ a library that runs on the CPU.
// Kernels include this file only and call nothing but namespace simt; README.md lists what there is.
#pragma once

#ifdef __CUDACC__
#include "device.cuh"
#else
#include "host.hpp"
#endif
