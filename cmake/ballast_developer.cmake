# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# What only those who work on ballast itself want from a configure run.

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()
if(NOT DEFINED CMAKE_CXX_COMPILER_LAUNCHER)
  find_program(BALLAST_CCACHE ccache)
  if(BALLAST_CCACHE)
    set(CMAKE_CXX_COMPILER_LAUNCHER ${BALLAST_CCACHE})
  endif()
endif()
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_CXX_EXTENSIONS OFF)
