# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# cmake -DMODULES=dir -DNCCL_INCLUDE_DIR=dir -P old_nccl.cmake: fails with what is wrong with the NCCL in that folder.
cmake_minimum_required(VERSION 3.25)
set(CMAKE_MODULE_PATH ${MODULES})
set(CMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit TRUE)
set(NCCL_LIBRARY ${NCCL_INCLUDE_DIR}/nccl.h)
find_package(NCCL REQUIRED)
