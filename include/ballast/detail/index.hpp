// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_DETAIL_INDEX_HPP
#define BALLAST_DETAIL_INDEX_HPP

#include <ballast/config.hpp>
#include <ballast/types.hpp>

#include <cstddef>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// The element with one of our signed numbers. @pre 0 <= i < size
template <class T>
[[nodiscard]] T& at(std::vector<T>& values, index_t i) noexcept {
  return values[static_cast<std::size_t>(i)];
}
template <class T>
[[nodiscard]] T const& at(std::vector<T> const& values, index_t i) noexcept {
  return values[static_cast<std::size_t>(i)];
}
template <class T>
[[nodiscard]] T& at(std::span<T> values, index_t i) noexcept {
  return values[static_cast<std::size_t>(i)];
}

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
