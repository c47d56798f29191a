// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_DETAIL_INDEX_HPP
#define BALLAST_DETAIL_INDEX_HPP

#include <ballast/config.hpp>
#include <ballast/types.hpp>

#include <cstddef>
#include <numeric>
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

/// 0, 1, ... end - 1: all layers of a model, where a function wants a list of some.
[[nodiscard]] inline std::vector<index_t> numbers_below(index_t end) {
  std::vector<index_t> numbers(static_cast<std::size_t>(end));
  std::iota(numbers.begin(), numbers.end(), 0);
  return numbers;
}

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
