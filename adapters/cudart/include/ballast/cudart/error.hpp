// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_ERROR_HPP
#define BALLAST_CUDART_ERROR_HPP

#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>

#include <cuda_runtime_api.h>

#include <string>
#include <system_error>

BALLAST_BEGIN_NAMESPACE
namespace cudart {

namespace detail {
struct error_category final : std::error_category {
  [[nodiscard]] char const* name() const noexcept override { return "cudart"; }
  [[nodiscard]] std::string message(int value) const override {
    return cudaGetErrorString(static_cast<cudaError_t>(value));
  }
};
}  // namespace detail

/// The category whose values are `cudaError_t`.
[[nodiscard]] inline std::error_category const& category() noexcept {
  static detail::error_category const instance;
  return instance;
}

/// A CUDA result as a code of `category()`.
[[nodiscard]] inline std::error_code make_error_code(cudaError_t value) noexcept {
  return {static_cast<int>(value), category()};
}

/// Turn a CUDA result into a status and take it off the thread's last error, so that nobody meets it again.
///
/// @param result  what the call returned.
/// @param call    the call's name, for the message.
/// @complexity O(1), no allocation on success.
/// @throws std::bad_alloc on failure
[[nodiscard]] inline status to_status(cudaError_t result, char const* call) {
  if (result == cudaSuccess) { return {}; }
  static_cast<void>(cudaGetLastError());
  return {make_error_code(result), ballast::detail::concat(call, ": ", cudaGetErrorString(result))};
}

}  // namespace cudart
BALLAST_END_NAMESPACE

#endif
