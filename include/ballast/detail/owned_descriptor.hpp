// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_DETAIL_OWNED_DESCRIPTOR_HPP
#define BALLAST_DETAIL_OWNED_DESCRIPTOR_HPP

#include <ballast/config.hpp>

#include <unistd.h>

#include <utility>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Owns a file descriptor, closed at the end.
class owned_descriptor {
public:
  owned_descriptor() = default;
  /// @param number  negative for none: what a failed call returns.
  explicit owned_descriptor(int number) noexcept : number_{number} {}
  owned_descriptor(owned_descriptor&& other) noexcept : number_{std::exchange(other.number_, -1)} {}
  owned_descriptor& operator=(owned_descriptor&& other) noexcept {
    std::swap(number_, other.number_);
    return *this;
  }
  ~owned_descriptor() {
    if (number_ >= 0) { ::close(number_); }
  }

  [[nodiscard]] bool is_open() const noexcept { return number_ >= 0; }
  [[nodiscard]] int get() const noexcept { return number_; }

private:
  int number_ = -1;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
