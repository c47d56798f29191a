// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_DETAIL_DRIVER_FUNCTION_HPP
#define BALLAST_CUDART_DETAIL_DRIVER_FUNCTION_HPP

#include <ballast/config.hpp>

#include <cuda.h>
#include <cuda_runtime_api.h>

BALLAST_BEGIN_NAMESPACE
namespace cudart::detail {

/// Find a function of the driver by way of the runtime, so that nothing links the driver.
///
/// @param out  out: as the driver of CUDA 12.0 has it; unchanged on failure.
/// @return `cudaErrorNotSupported` where the driver does not have it; else why the runtime cannot look. The thread's
/// last
///         error is as it was.
template <class Function>
[[nodiscard]] cudaError_t find_driver_function(char const* name, Function& out) noexcept {
  void* address = nullptr;
  cudaDriverEntryPointQueryResult found{};
  constexpr unsigned version = 12000;
  auto const result = cudaGetDriverEntryPointByVersion(name, &address, version, cudaEnableDefault, &found);
  if (result != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    return result;
  }
  if (found != cudaDriverEntryPointSuccess) { return cudaErrorNotSupported; }
  out = reinterpret_cast<Function>(address);
  return cudaSuccess;
}

}  // namespace cudart::detail
BALLAST_END_NAMESPACE

#endif
