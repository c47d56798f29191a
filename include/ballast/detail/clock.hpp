// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_DETAIL_CLOCK_HPP
#define BALLAST_DETAIL_CLOCK_HPP

#include <ballast/types.hpp>

#include <sched.h>

#include <cstdint>
#include <ctime>
#include <limits>

#if defined(BALLAST_SIMULATED_TIME)
// Tests that simulate a machine bring a clock of their own, for the whole program.
extern "C" {
std::int64_t ballast_simulated_now() noexcept;
void ballast_simulated_sleep(std::int64_t nanoseconds) noexcept;
}
#endif

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Monotonic host time. `<chrono>` costs a third of a second to include.
[[nodiscard]] inline nanoseconds_t now() noexcept {
#if defined(BALLAST_SIMULATED_TIME)
  return ballast_simulated_now();
#else
  std::timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<nanoseconds_t>(time.tv_sec) * 1'000'000'000 + time.tv_nsec;
#endif
}

/// The time `timeout` nanoseconds from now. The largest timeout is never over; none is negative.
[[nodiscard]] inline nanoseconds_t deadline_after(nanoseconds_t timeout) noexcept {
  auto const start = now();
  if (timeout <= 0) { return start; }
  constexpr auto never = std::numeric_limits<nanoseconds_t>::max();
  return timeout > never - start ? never : start + timeout;
}
/// Let other threads run for so many nanoseconds, or less where a signal comes.
inline void sleep_for(nanoseconds_t duration) noexcept {
#if defined(BALLAST_SIMULATED_TIME)
  ballast_simulated_sleep(duration);
#else
  std::timespec time{};
  time.tv_sec = static_cast<std::time_t>(duration / 1'000'000'000);
  time.tv_nsec = static_cast<long>(duration % 1'000'000'000);
  ::nanosleep(&time, nullptr);
#endif
}
/// Let another thread run, for an instant.
inline void yield() noexcept {
#if defined(BALLAST_SIMULATED_TIME)
  ballast_simulated_sleep(0);
#else
  static_cast<void>(::sched_yield());
#endif
}

/// Give the processor away while something takes its time: for an instant at first, because a move takes milliseconds
/// and a nap's end comes a tenth of one late; for a while when it takes long.
inline void pause(nanoseconds_t waited) noexcept {
  constexpr nanoseconds_t patience = 20'000'000;
  if (waited < patience) {
    yield();
  } else {
    sleep_for(50'000);
  }
}
/// Ask until it is so, or the deadline has passed; at least once. @return what was answered last
template <class IsSo>
[[nodiscard]] bool poll_until(nanoseconds_t deadline, IsSo is_so) {
  for (auto const begin = now(); !is_so();) {
    auto const time = now();
    if (time >= deadline) { return false; }
    pause(time - begin);
  }
  return true;
}

/// What is left until a deadline, at least 0.
[[nodiscard]] inline nanoseconds_t time_until(nanoseconds_t deadline) noexcept {
  auto const time = now();
  return deadline > time ? deadline - time : 0;
}

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
