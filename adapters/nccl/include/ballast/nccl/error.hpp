// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_NCCL_ERROR_HPP
#define BALLAST_NCCL_ERROR_HPP

#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>

#include <nccl.h>

#include <string>
#include <system_error>

BALLAST_BEGIN_NAMESPACE
namespace nccl {

namespace detail {
struct error_category final : std::error_category {
  [[nodiscard]] char const* name() const noexcept override { return "nccl"; }
  [[nodiscard]] std::string message(int value) const override {
    return ncclGetErrorString(static_cast<ncclResult_t>(value));
  }
};
}  // namespace detail

/// The category whose values are `ncclResult_t`.
[[nodiscard]] inline std::error_category const& category() noexcept {
  static detail::error_category const instance;
  return instance;
}

/// An NCCL result as a code of `category()`.
[[nodiscard]] inline std::error_code make_error_code(ncclResult_t value) noexcept {
  return {static_cast<int>(value), category()};
}

/// Turn an NCCL result into a status. `ncclInProgress` is how a non-blocking communicator says yes.
///
/// @param result  what the call returned.
/// @param call    the call's name, for the message.
/// @complexity O(1), no allocation on success.
/// @throws std::bad_alloc on failure
[[nodiscard]] inline status to_status(ncclResult_t result, char const* call) {
  if (result == ncclSuccess || result == ncclInProgress) { return {}; }
  return {make_error_code(result), ballast::detail::concat(call, ": ", ncclGetErrorString(result))};
}

}  // namespace nccl
BALLAST_END_NAMESPACE

#endif
