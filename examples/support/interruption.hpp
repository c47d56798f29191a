// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_SUPPORT_INTERRUPTION_HPP
#define BALLAST_EXAMPLES_SUPPORT_INTERRUPTION_HPP

#include <ballast/types.hpp>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <mutex>

namespace ballast_tools {

namespace detail {
inline std::atomic<int> caught_signal{0};
static_assert(std::atomic<int>::is_always_lock_free, "a signal handler may write it");

extern "C" inline void ballast_tools_on_signal(int signal) { caught_signal.store(signal); }
}  // namespace detail

/// From now on the first SIGINT or SIGTERM is only noted; the second ends the program.
inline void note_signals() {
  struct sigaction action{};
  action.sa_handler = detail::ballast_tools_on_signal;
  action.sa_flags = static_cast<int>(SA_RESETHAND) | SA_RESTART;
  for (auto const signal : {SIGINT, SIGTERM}) { ::sigaction(signal, &action, nullptr); }
}

/// The signal that was noted, or 0.
[[nodiscard]] inline int noted_signal() { return detail::caught_signal.load(); }

/// Stops threads that walk through the same steps, each at its own pace, before the same step: the first that none of
/// them has begun. So none waits for one that has stopped.
///
/// @threads all calls may come from any thread.
class step_gate {
public:
  /// Ask before each step, in order. @return false: this step and all later ones must not be begun
  [[nodiscard]] bool may_begin(ballast::index_t step) {
    std::lock_guard const lock{mutex_};
    if (closed_ && step >= num_begun_) { return false; }
    num_begun_ = std::max(num_begun_, step + 1);
    return true;
  }
  /// Let no thread begin a step that none has begun yet.
  void close() {
    std::lock_guard const lock{mutex_};
    closed_ = true;
  }
  /// Steps that some thread has begun.
  [[nodiscard]] ballast::index_t num_begun() {
    std::lock_guard const lock{mutex_};
    return num_begun_;
  }

private:
  std::mutex mutex_;
  bool closed_ = false;
  ballast::index_t num_begun_ = 0;
};

}  // namespace ballast_tools

#endif
