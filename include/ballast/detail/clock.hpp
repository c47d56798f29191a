// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_DETAIL_CLOCK_HPP
#define BALLAST_DETAIL_CLOCK_HPP

#include <ballast/types.hpp>

#include <ctime>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Monotonic host time. `<chrono>` costs a third of a second to include.
[[nodiscard]] inline nanoseconds_t now() noexcept {
  std::timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<nanoseconds_t>(time.tv_sec) * 1'000'000'000 + time.tv_nsec;
}

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
