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

# ballast_add_cuda_tests(ADAPTER target...): a test program for each *.test.cu of the current folder, linked to targets.
function(ballast_add_cuda_tests adapter)
  file(GLOB sources CONFIGURE_DEPENDS *.test.cu)
  foreach(source IN LISTS sources)
    cmake_path(GET source STEM name)
    string(REGEX REPLACE "\\.test$" "" name ${name})
    if(BALLAST_TESTS_EXCLUDE AND "adapters.${adapter}.${name}" MATCHES "${BALLAST_TESTS_EXCLUDE}")
      continue()
    endif()
    set(target test.adapters.${adapter}.${name})
    add_executable(${target} ${source} $<TARGET_OBJECTS:ballast_tests_main>)
    target_link_libraries(${target} PRIVATE ${ARGN} ballast::ballast doctest::doctest Threads::Threads)
    target_compile_definitions(${target} PRIVATE BALLAST_CONTRACT_LEVEL=${BALLAST_TESTS_CONTRACT_LEVEL})
    target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR}/tests)
    target_compile_options(
      ${target} PRIVATE "SHELL:-include ${PROJECT_SOURCE_DIR}/tests/support/throwing_contracts.hpp")
    ballast_cuda_options(${target})
    ballast_register_test(NAME adapters.${adapter}.${name} COMMAND ${target} --no-intro --no-version LABELS ${adapter} gpu)
  endforeach()
endfunction()
