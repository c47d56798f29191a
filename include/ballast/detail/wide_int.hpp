// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_DETAIL_WIDE_INT_HPP
#define BALLAST_DETAIL_WIDE_INT_HPP

#include <ballast/config.hpp>

#include <cstdint>

BALLAST_BEGIN_NAMESPACE
namespace detail {

__extension__ using wide_int = __int128;

/// A product that does not overflow.
[[nodiscard]] constexpr wide_int wide_product(std::int64_t a, std::int64_t b) noexcept {
  return static_cast<wide_int>(a) * b;
}

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
