// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_DETAIL_PAUSE_HPP
#define BALLAST_CUDART_DETAIL_PAUSE_HPP

#include <ballast/detail/clock.hpp>
#include <ballast/types.hpp>

BALLAST_BEGIN_NAMESPACE
namespace cudart::detail {

/// Give the processor away while waiting for a device: for an instant at first, because a move takes milliseconds and
/// a nap's end comes a tenth of one late; for a while when it takes long.
inline void pause(nanoseconds_t waited) noexcept {
  constexpr nanoseconds_t patience = 20'000'000;
  if (waited < patience) {
    ballast::detail::yield();
  } else {
    ballast::detail::sleep_for(50'000);
  }
}

}  // namespace cudart::detail
BALLAST_END_NAMESPACE

#endif
