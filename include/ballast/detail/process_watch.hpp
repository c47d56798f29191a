// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_DETAIL_PROCESS_WATCH_HPP
#define BALLAST_DETAIL_PROCESS_WATCH_HPP

#include <ballast/config.hpp>
#include <ballast/detail/owned_descriptor.hpp>

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// A process, told apart from a later one that was given the same number.
struct process_identity {
  std::int64_t pid = 0;
  std::uint64_t start_time = 0;  ///< clock ticks after boot

  bool operator==(process_identity const&) const = default;
};

/// What /proc tells of a process; all zero when it does not run: absent, or dead and not yet waited for.
struct process_facts {
  std::int64_t parent = 0;
  std::uint64_t start_time = 0;
  bool unknown = false;  ///< this process could not look, for want of descriptors or memory
};
[[nodiscard]] inline process_facts facts_of(std::int64_t pid) {
  char path[40];
  std::snprintf(path, sizeof path, "/proc/%lld/stat", static_cast<long long>(pid));
  owned_descriptor const file{::open(path, O_RDONLY | O_CLOEXEC)};
  if (!file.is_open()) { return {0, 0, errno == EMFILE || errno == ENFILE || errno == ENOMEM}; }
  char text[1024];
  auto const size = ::read(file.get(), text, sizeof text - 1);
  if (size <= 0) { return {}; }
  text[size] = '\0';
  // The command's name, field 2, may hold spaces and parentheses; state and parent follow its last parenthesis.
  char const* at = std::strrchr(text, ')');
  if (at == nullptr || std::strlen(at) < 4) { return {}; }
  if (char const state = at[2]; state == 'Z' || state == 'X') { return {}; }
  process_facts facts;
  facts.parent = std::strtoll(at + 3, nullptr, 10);
  for (int field = 2; field < 22 && at != nullptr; ++field) { at = std::strchr(at + 1, ' '); }
  if (at != nullptr) { facts.start_time = std::strtoull(at + 1, nullptr, 10); }
  return facts;
}

[[nodiscard]] inline std::uint64_t start_time_of(std::int64_t pid) { return facts_of(pid).start_time; }
[[nodiscard]] inline process_identity identity_of(std::int64_t pid) { return {pid, start_time_of(pid)}; }
[[nodiscard]] inline process_identity this_process() { return identity_of(::getpid()); }
[[nodiscard]] inline process_identity parent_of_this_process() { return identity_of(::getppid()); }

/// Which numbering of processes this one lives in; numbers of another mean nothing here.
[[nodiscard]] inline std::uint64_t pid_namespace() {
  struct ::stat facts{};
  return ::stat("/proc/self/ns/pid", &facts) == 0 ? static_cast<std::uint64_t>(facts.st_ino) : 0;
}

/// Tells whether one process is still alive. A number that the kernel hands out again does not fool it.
class process_watch {
public:
  process_watch() = default;
  /// @param use_pidfd  false: read /proc instead, as on kernels before 5.3.
  explicit process_watch(process_identity who, bool use_pidfd = true) : who_{who} {
#if defined(SYS_pidfd_open)
    if (use_pidfd) {
      file_ = owned_descriptor{static_cast<int>(::syscall(SYS_pidfd_open, static_cast<pid_t>(who.pid), 0U))};
    }
#else
    static_cast<void>(use_pidfd);
#endif
    // The descriptor is for whoever has the number now; that it is the right one has to be checked after opening it.
    dead_ = is_gone();
  }

  [[nodiscard]] process_identity const& who() const noexcept { return who_; }

  /// Whether `dead` has found it dead before.
  [[nodiscard]] bool known_dead() const noexcept { return dead_; }
  /// @complexity one system call while the process lives, none after its death.
  [[nodiscard]] bool dead() {
    if (dead_) { return true; }
    if (file_.is_open()) {
      ::pollfd question{file_.get(), POLLIN, 0};
      dead_ = ::poll(&question, 1, 0) > 0;
    } else {
      dead_ = is_gone();
    }
    return dead_;
  }

private:
  [[nodiscard]] bool is_gone() const {
    auto const facts = facts_of(who_.pid);
    return !facts.unknown && facts.start_time != who_.start_time;
  }

  process_identity who_;
  owned_descriptor file_;
  bool dead_ = true;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
