// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_DETAIL_RESET_BY_MOVE_HPP
#define BALLAST_DETAIL_RESET_BY_MOVE_HPP

#include <ballast/config.hpp>

#include <utility>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// A value that a move sets back to `T{}`. For the sizes of arrays: vectors are empty when they were moved from, and a
/// class whose sizes are kept in this one then says so, with the moves that it has by default.
template <class T>
class reset_by_move {
public:
  constexpr reset_by_move() = default;
  // NOLINTNEXTLINE(google-explicit-constructor): as the value itself
  constexpr reset_by_move(T value) noexcept : value_{value} {}
  constexpr reset_by_move(reset_by_move const&) = default;
  constexpr reset_by_move& operator=(reset_by_move const&) = default;
  constexpr reset_by_move(reset_by_move&& other) noexcept : value_{std::exchange(other.value_, T{})} {}
  constexpr reset_by_move& operator=(reset_by_move&& other) noexcept {
    value_ = std::exchange(other.value_, T{});
    return *this;
  }
  ~reset_by_move() = default;

  // NOLINTNEXTLINE(google-explicit-constructor): as the value itself
  [[nodiscard]] constexpr operator T const&() const noexcept { return value_; }
  [[nodiscard]] constexpr T const& operator*() const noexcept { return value_; }
  [[nodiscard]] constexpr T const* operator->() const noexcept { return &value_; }

private:
  T value_{};
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
