# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# Find NCCL, which ships without a CMake package. Defines NCCL::nccl, NCCL_FOUND and NCCL_VERSION (read from nccl.h).
# NCCL_ROOT, or the folder of the CUDA toolkit, tells where to look first. Versions before 2.18, which cannot split a
# communicator, count as not found.
find_package(CUDAToolkit QUIET)
find_path(NCCL_INCLUDE_DIR nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
find_library(NCCL_LIBRARY nccl HINTS ${CUDAToolkit_LIBRARY_DIR})
mark_as_advanced(NCCL_INCLUDE_DIR NCCL_LIBRARY)

if(NCCL_INCLUDE_DIR)
  file(STRINGS ${NCCL_INCLUDE_DIR}/nccl.h NCCL_VERSION REGEX "^#define NCCL_(MAJOR|MINOR|PATCH) +[0-9]+")
  list(TRANSFORM NCCL_VERSION REPLACE "^[^0-9]*([0-9]+).*$" "\\1")
  list(JOIN NCCL_VERSION "." NCCL_VERSION)
endif()

set(NCCL_IS_RECENT TRUE)
set(NCCL_FAILURE)
if(NCCL_VERSION AND NCCL_VERSION VERSION_LESS 2.18)
  set(NCCL_IS_RECENT FALSE)
  set(NCCL_FAILURE
      "NCCL 2.18 or newer is needed, for ncclCommSplit: ${NCCL_INCLUDE_DIR} has ${NCCL_VERSION}. NCCL_ROOT tells where to look.")
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(
  NCCL REQUIRED_VARS NCCL_LIBRARY NCCL_INCLUDE_DIR NCCL_IS_RECENT VERSION_VAR NCCL_VERSION
  REASON_FAILURE_MESSAGE "${NCCL_FAILURE}")

if(NCCL_FOUND AND NOT TARGET NCCL::nccl)
  add_library(NCCL::nccl UNKNOWN IMPORTED)
  set_target_properties(NCCL::nccl PROPERTIES IMPORTED_LOCATION ${NCCL_LIBRARY}
                                              INTERFACE_INCLUDE_DIRECTORIES ${NCCL_INCLUDE_DIR})
endif()
