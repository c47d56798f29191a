# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# CUDA as a language, for our own tests and benchmarks of kernels. The library's targets do not need it.

if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 90)
endif()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  message(STATUS "nvcc not found: tests and benchmarks of kernels are left out")
  return()
endif()
enable_language(CUDA)

# CMake 3.25 does not know nvcc's flag for C++20.
if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.0 AND NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
endif()

# ballast_cuda_options(TARGET): the language level and the warnings of a program with .cu files.
function(ballast_cuda_options target)
  set_target_properties(${target} PROPERTIES CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON CUDA_EXTENSIONS OFF)
  set(warnings -Wall,-Wextra,-Wconversion,-Wshadow)
  if(BALLAST_WARNINGS_AS_ERRORS)
    string(APPEND warnings ",-Werror")
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings>)
  endif()
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=${warnings}>)
endfunction()
