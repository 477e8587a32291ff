# The kernels by g++, on the emulation of kernels/simt. Such a library is for tests: TensorRT would
# hand it pointers to device memory.
set(CUDA_HEADERS ${CMAKE_CURRENT_SOURCE_DIR}/plugin/no_cuda)
set(WALK_OPTIONS --emulated)
set(WALK_MEMORY host)
set_source_files_properties(${KERNELS} PROPERTIES LANGUAGE CXX)
target_sources(metal_edge_plugin PRIVATE ${KERNELS} plugin/device_host.cpp
  simt/block.cpp simt/collectives.cpp simt/fiber.cpp simt/host.cpp)
target_include_directories(metal_edge_plugin SYSTEM PRIVATE ${CUDA_HEADERS})
# As tools/kernels/build.py compiles them: CUDA's pragmas, and bytes viewed as other types.
target_compile_options(metal_edge_plugin PRIVATE -xc++ -Wno-unknown-pragmas -fno-strict-aliasing -ffp-contract=off)
target_compile_definitions(metal_edge_plugin PRIVATE METAL_EDGE_BACKEND="emulation")

set(SANITIZERS -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g)
if(METAL_EDGE_SANITIZE)
  target_compile_options(metal_edge_plugin PRIVATE ${SANITIZERS})
  target_link_options(metal_edge_plugin PRIVATE ${SANITIZERS})
endif()
