# Cross-building for a Jetson on an x86-64 machine, with CUDA's cross packages (targets/aarch64-linux
# in the toolkit): -DCMAKE_TOOLCHAIN_FILE=kernels/plugin/aarch64-linux-gnu.cmake
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CUDA_HOST_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -L /usr/aarch64-linux-gnu) # Debian's qemu-user
