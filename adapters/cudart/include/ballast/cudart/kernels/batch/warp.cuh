// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_KERNELS_BATCH_WARP_CUH
#define BALLAST_CUDART_KERNELS_BATCH_WARP_CUH

#ifndef __CUDACC__
  #error "ballast/cudart/kernels/batch/warp.cuh holds device code: include it from a .cu file"
#endif

#include <ballast/config.hpp>
#include <ballast/types.hpp>

#include <cstdint>

// One instruction combines the values of a warp from compute capability 8 on.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  #define BALLAST_DETAIL_WARP_REDUCE(operation, value, combine) operation(0xffffffffu, value)
#else
  #define BALLAST_DETAIL_WARP_REDUCE(operation, value, combine) fold_warp(value, combine)
#endif

BALLAST_BEGIN_NAMESPACE
namespace cudart::detail {

/// Combine the values of all lanes, for all lanes.
template <class T, class Combine>
[[nodiscard]] __device__ __forceinline__ T fold_warp(T value, Combine combine) {
  for (int offset = 16; offset > 0; offset /= 2) {
    value = combine(value, __shfl_xor_sync(0xffffffffu, value, offset));
  }
  return value;
}
[[nodiscard]] __device__ __forceinline__ index_t warp_max(index_t value) {
  return BALLAST_DETAIL_WARP_REDUCE(__reduce_max_sync, value, [](index_t a, index_t b) { return max(a, b); });
}
[[nodiscard]] __device__ __forceinline__ index_t warp_min(index_t value) {
  return BALLAST_DETAIL_WARP_REDUCE(__reduce_min_sync, value, [](index_t a, index_t b) { return min(a, b); });
}
[[nodiscard]] __device__ __forceinline__ index_t warp_sum(index_t value) {
  return BALLAST_DETAIL_WARP_REDUCE(__reduce_add_sync, value, [](index_t a, index_t b) { return a + b; });
}
[[nodiscard]] __device__ __forceinline__ std::uint64_t warp_or(std::uint64_t value) {
  auto const half = [](std::uint32_t bits) {
    return BALLAST_DETAIL_WARP_REDUCE(__reduce_or_sync, bits, [](std::uint32_t a, std::uint32_t b) { return a | b; });
  };
  return static_cast<std::uint64_t>(half(static_cast<std::uint32_t>(value >> 32))) << 32 |
         half(static_cast<std::uint32_t>(value));
}

}  // namespace cudart::detail
BALLAST_END_NAMESPACE

#undef BALLAST_DETAIL_WARP_REDUCE

#endif
