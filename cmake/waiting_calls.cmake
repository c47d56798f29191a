# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# cmake -P waiting_calls.cmake: find calls of CUDA and NCCL in the GPU adapters that may wait for a device or for other
# ranks without a deadline, and refuse those that adapters/waiting_calls.txt gives no reason for.
cmake_minimum_required(VERSION 3.25)
if(NOT DEFINED BALLAST_ROOT)
  cmake_path(GET CMAKE_CURRENT_LIST_DIR PARENT_PATH BALLAST_ROOT)
endif()
cmake_path(ABSOLUTE_PATH BALLAST_ROOT)

set(calls
    # wait for the device, or for a stream
    cudaStreamSynchronize cudaDeviceSynchronize cudaEventSynchronize cudaMemcpy cudaMemset cudaMemcpy2D cudaMemcpyPeer
    cudaMemcpyToSymbol cudaMemcpyFromSymbol cuStreamSynchronize cuCtxSynchronize cuEventSynchronize
    # may do so
    cudaMalloc cudaFree cudaMallocHost cudaHostAlloc cudaFreeHost cudaHostRegister cudaHostUnregister cudaMallocAsync
    cudaFreeAsync cudaGraphInstantiate cudaDeviceEnablePeerAccess cudaIpcCloseMemHandle cuMemUnmap
    # wait for the other ranks, or for kernels
    ncclCommInitRank ncclCommInitRankConfig ncclCommInitAll ncclCommSplit ncclCommFinalize ncclCommDestroy ncclCommAbort
    ncclCommRevoke ncclCommShrink)

# "path call: reason"
set(allowed "")
file(STRINGS ${BALLAST_ROOT}/adapters/waiting_calls.txt lines REGEX "^[^#]")
foreach(line IN LISTS lines)
  if(NOT line MATCHES "^([^ ]+) ([A-Za-z0-9]+): .+")
    message(FATAL_ERROR "adapters/waiting_calls.txt: not 'path call: reason': ${line}")
  endif()
  list(APPEND allowed "${CMAKE_MATCH_1} ${CMAKE_MATCH_2}")
endforeach()

set(complaints "")
set(found "")
foreach(adapter IN ITEMS cudart nccl)
  set(adapter_dir ${BALLAST_ROOT}/adapters/${adapter}/include/ballast)
  file(GLOB_RECURSE headers RELATIVE ${adapter_dir} ${adapter_dir}/*.hpp ${adapter_dir}/*.cuh)
  foreach(header IN LISTS headers)
    file(READ ${adapter_dir}/${header} text)
    string(REGEX REPLACE "//[^\n]*" "" text "${text}")
    string(REGEX REPLACE "\"[^\"\n]*\"" "" text "${text}")
    foreach(call IN LISTS calls)
      if(NOT text MATCHES "[^A-Za-z0-9_]${call}[^A-Za-z0-9_]")
        continue()
      endif()
      list(APPEND found "${header} ${call}")
      if(NOT "${header} ${call}" IN_LIST allowed)
        string(APPEND complaints "  ${header}: ${call} may wait without a deadline\n")
      endif()
    endforeach()
  endforeach()
endforeach()
foreach(entry IN LISTS allowed)
  if(NOT entry IN_LIST found)
    string(APPEND complaints "  adapters/waiting_calls.txt: '${entry}' is not there any more\n")
  endif()
endforeach()

if(complaints)
  message(FATAL_ERROR "Calls that may wait:\n${complaints}")
endif()
list(LENGTH found count)
message("${count} calls that may wait, each with its reason.")
