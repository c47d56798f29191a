// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_DETAIL_EXPERT_SIZE_HPP
#define BALLAST_RUNTIME_DETAIL_EXPERT_SIZE_HPP

#include <ballast/runtime/store.hpp>

#include <cstddef>
#include <span>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Tensors start at multiples of this in staging, as copy engines and vector loads like it.
inline constexpr std::size_t staging_alignment = 256;
[[nodiscard]] constexpr std::size_t aligned_for_staging(std::size_t bytes) noexcept {
  return (bytes + staging_alignment - 1) / staging_alignment * staging_alignment;
}

/// Bytes of one expert of a layer as they travel, and as they lie in staging.
struct expert_size {
  std::size_t payload = 0;
  std::size_t staged = 0;
};
[[nodiscard]] inline expert_size size_of_expert(std::span<expert_tensor const> tensors) noexcept {
  expert_size size;
  for (auto const& tensor : tensors) {
    size.payload += tensor.bytes;
    size.staged += aligned_for_staging(tensor.bytes);
  }
  return size;
}

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
