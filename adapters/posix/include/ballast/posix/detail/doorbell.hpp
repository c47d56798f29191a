// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POSIX_DETAIL_DOORBELL_HPP
#define BALLAST_POSIX_DETAIL_DOORBELL_HPP

#include <ballast/types.hpp>

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <ctime>
#include <limits>

BALLAST_BEGIN_NAMESPACE
namespace posix::detail {

static_assert(std::atomic<std::uint32_t>::is_always_lock_free && std::atomic<std::uint64_t>::is_always_lock_free,
              "atomics in shared memory must not need a lock");

/// What one process sleeps on and others ring, in shared memory. A ring between `listen` and `sleep` is not missed.
class doorbell {
public:
  [[nodiscard]] std::uint32_t listen() const noexcept { return rings_.load(); }

  void ring() noexcept {
    rings_.fetch_add(1);
    if (sleepers_.load() != 0) {
      call(FUTEX_WAKE, static_cast<std::uint32_t>(std::numeric_limits<int>::max()), nullptr);
    }
  }

  /// Sleep until somebody rings after `heard` was listened to, or for `timeout` nanoseconds.
  void sleep(std::uint32_t heard, nanoseconds_t timeout) noexcept {
    if (timeout <= 0) { return; }
    std::timespec limit{};
    limit.tv_sec = static_cast<std::time_t>(timeout / 1'000'000'000);
    limit.tv_nsec = static_cast<long>(timeout % 1'000'000'000);
    sleepers_.fetch_add(1);
    call(FUTEX_WAIT, heard, &limit);
    sleepers_.fetch_sub(1);
  }

private:
  void call(int operation, std::uint32_t value, std::timespec const* limit) noexcept {
    ::syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&rings_), operation, value, limit, nullptr, 0);
  }

  std::atomic<std::uint32_t> rings_{0};
  std::atomic<std::uint32_t> sleepers_{0};  // stays too high when a sleeper is killed: costs a system call, no more
};

}  // namespace posix::detail
BALLAST_END_NAMESPACE

#endif
