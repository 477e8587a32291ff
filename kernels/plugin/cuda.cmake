# The kernels by nvcc, and the CUDA runtime linked statically: TensorRT brings its own.
set(ARCHITECTURES_GIVEN ${CMAKE_CUDA_ARCHITECTURES})
if(NOT ARCHITECTURES_GIVEN)
  set(CMAKE_CUDA_ARCHITECTURES 87) # for CMake's own trial
endif()
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CUDA_HEADERS ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})

if(ARCHITECTURES_GIVEN)
  set(ARCHITECTURES ${ARCHITECTURES_GIVEN})
elseif(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 13)
  set(ARCHITECTURES 87-real 87-virtual) # JetPack 6: Orin; Thor's number is another there
else()
  set(ARCHITECTURES 87-real 110-real 110-virtual)
endif()

target_sources(metal_edge_plugin PRIVATE ${KERNELS} plugin/device_cuda.cpp)
target_include_directories(metal_edge_plugin SYSTEM PRIVATE ${CUDA_HEADERS})
target_compile_options(metal_edge_plugin PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra>)
string(REGEX MATCH "^[0-9]+\\.[0-9]+" CUDA_VERSION ${CMAKE_CUDA_COMPILER_VERSION})
target_compile_definitions(metal_edge_plugin PRIVATE METAL_EDGE_BACKEND="CUDA-${CUDA_VERSION}")
set_target_properties(metal_edge_plugin PROPERTIES CUDA_ARCHITECTURES "${ARCHITECTURES}" LINKER_LANGUAGE CXX)

if(METAL_EDGE_CUDART)
  set_target_properties(metal_edge_plugin PROPERTIES CUDA_RUNTIME_LIBRARY None)
  target_link_libraries(metal_edge_plugin PRIVATE ${METAL_EDGE_CUDART} ${CMAKE_DL_LIBS} rt pthread)
else()
  find_library(CUDART_STATIC cudart_static HINTS ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES} REQUIRED)
  set_target_properties(metal_edge_plugin PROPERTIES CUDA_RUNTIME_LIBRARY Static)
  target_link_libraries(metal_edge_plugin PRIVATE ${CUDART_STATIC} ${CMAKE_DL_LIBS} rt pthread)
endif()
