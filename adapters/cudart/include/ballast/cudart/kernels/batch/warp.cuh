// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_KERNELS_BATCH_WARP_CUH
#define BALLAST_CUDART_KERNELS_BATCH_WARP_CUH

#ifndef __CUDACC__
  #error "ballast/cudart/kernels/batch/warp.cuh holds device code: include it from a .cu file"
#endif

#include <ballast/config.hpp>
#include <ballast/types.hpp>

#include <cstdint>

BALLAST_BEGIN_NAMESPACE
namespace cudart::detail {

/// Of all lanes, and known to all lanes.
[[nodiscard]] __device__ __forceinline__ index_t warp_max(index_t value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return __reduce_max_sync(0xffffffffu, value);
#else
  for (int offset = 16; offset > 0; offset /= 2) { value = max(value, __shfl_xor_sync(0xffffffffu, value, offset)); }
  return value;
#endif
}
[[nodiscard]] __device__ __forceinline__ index_t warp_min(index_t value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return __reduce_min_sync(0xffffffffu, value);
#else
  for (int offset = 16; offset > 0; offset /= 2) { value = min(value, __shfl_xor_sync(0xffffffffu, value, offset)); }
  return value;
#endif
}
[[nodiscard]] __device__ __forceinline__ index_t warp_sum(index_t value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return __reduce_add_sync(0xffffffffu, value);
#else
  for (int offset = 16; offset > 0; offset /= 2) { value += __shfl_xor_sync(0xffffffffu, value, offset); }
  return value;
#endif
}

[[nodiscard]] __device__ __forceinline__ std::uint64_t warp_or(std::uint64_t value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  auto const low = __reduce_or_sync(0xffffffffu, static_cast<std::uint32_t>(value));
  auto const high = __reduce_or_sync(0xffffffffu, static_cast<std::uint32_t>(value >> 32));
  return static_cast<std::uint64_t>(high) << 32 | low;
#else
  for (int offset = 16; offset > 0; offset /= 2) { value |= __shfl_xor_sync(0xffffffffu, value, offset); }
  return value;
#endif
}

}  // namespace cudart::detail
BALLAST_END_NAMESPACE

#endif
