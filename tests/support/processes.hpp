// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_PROCESSES_HPP
#define BALLAST_TESTS_SUPPORT_PROCESSES_HPP

#include <ballast/detail/clock.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/types.hpp>

#include "support/law_log.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ballast_test {

/// One forked process and the pipe on which it reports.
class child_process {
public:
  /// Run `body(report file descriptor)` in a fork of this process.
  template <class Body>
  explicit child_process(Body body) {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) { throw std::runtime_error{"pipe"}; }
    auto const parent = ::getpid();
    std::fflush(nullptr);
    pid_ = ::fork();
    if (pid_ < 0) { throw std::runtime_error{"fork"}; }
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (::getppid() != parent) { ::_exit(3); }
      ::close(ends[0]);
      body(ends[1]);
      ::_exit(0);
    }
    ::close(ends[1]);
    report_ = ends[0];
  }
  child_process(child_process&& other) noexcept
      : pid_{std::exchange(other.pid_, -1)}, report_{std::exchange(other.report_, -1)}, text_{std::move(other.text_)} {}
  child_process& operator=(child_process&&) = delete;
  ~child_process() {
    if (report_ >= 0) { ::close(report_); }
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
  }

  [[nodiscard]] ::pid_t pid() const noexcept { return pid_; }
  void signal(int number) const { ::kill(pid_, number); }
  [[nodiscard]] int report() const noexcept { return report_; }
  [[nodiscard]] std::string const& text() const noexcept { return text_; }

  /// Take in what the child has written. @return false once it has closed its end
  bool read_some() {
    char buffer[4096];
    auto const size = ::read(report_, buffer, sizeof buffer);
    if (size <= 0) { return false; }
    text_.append(buffer, static_cast<std::size_t>(size));
    return true;
  }

  /// Read until the child ends or the deadline passes. @return false when it is still running
  bool finish(ballast::nanoseconds_t deadline) {
    for (;;) {
      auto const left = deadline - ballast::detail::now();
      if (left <= 0) { return false; }
      ::pollfd question{report_, POLLIN, 0};
      if (::poll(&question, 1, static_cast<int>(left / 1'000'000 + 1)) > 0 && !read_some()) { break; }
    }
    ::waitpid(pid_, &exit_status_, 0);
    pid_ = -1;
    return true;
  }
  /// After `finish`: as from `waitpid`.
  [[nodiscard]] int exit_status() const noexcept { return exit_status_; }

private:
  ::pid_t pid_ = -1;
  int report_ = -1;
  int exit_status_ = 0;
  std::string text_;
};

inline void write_line(int file, std::string line) {
  for (auto& c : line) {
    if (c == '\n') { c = ' '; }
  }
  line += '\n';
  for (std::size_t at = 0; at < line.size();) {
    auto const size = ::write(file, line.data() + at, line.size() - at);
    if (size < 0 && errno != EINTR) { return; }
    if (size > 0) { at += static_cast<std::size_t>(size); }
  }
}

[[nodiscard]] inline std::vector<std::string> lines_of(std::string_view text) {
  std::vector<std::string> lines;
  for (std::size_t at = 0; at < text.size();) {
    auto const end = std::min(text.find('\n', at), text.size());
    lines.emplace_back(text.substr(at, end - at));
    at = end + 1;
  }
  return lines;
}

/// Tells the parent that the death that follows is on purpose.
class process_exit {
public:
  explicit process_exit(int report) : report_{report} {}
  [[noreturn]] void die() const {
    write_line(report_, "dies");
    ::raise(SIGKILL);
    ::_exit(1);
  }

private:
  int report_;
};

/// Run `body(rank, process_exit, law_log)` in one process per rank and collect what they complain about. A process that
/// does not end within `limit` is killed and reported.
template <class Body>
[[nodiscard]] std::vector<std::string> run_processes(ballast::index_t num_ranks, Body body,
                                                     ballast::nanoseconds_t limit = 100'000'000'000) {
  std::vector<child_process> children;
  for (ballast::index_t rank = 0; rank < num_ranks; ++rank) {
    children.emplace_back([&](int report) {
      law_log log{rank};
      try {
        body(rank, process_exit{report}, log);
      } catch (std::exception const& error) { log.expect(false, "exception: ", error.what()); }
      for (auto const& complaint : log.complaints()) { write_line(report, complaint); }
      write_line(report, "ends");
    });
  }
  std::vector<std::string> complaints;
  auto const deadline = ballast::detail::now() + limit;
  for (std::size_t rank = 0; rank < children.size(); ++rank) {
    if (!children[rank].finish(deadline)) {
      complaints.push_back(ballast::detail::concat("rank ", rank, " hangs"));
      continue;
    }
    auto lines = lines_of(children[rank].text());
    if (lines.empty() || (lines.back() != "ends" && lines.back() != "dies")) {
      lines.push_back(ballast::detail::concat("rank ", rank, " crashed, wait status ", children[rank].exit_status()));
    } else {
      lines.pop_back();
    }
    complaints.insert(complaints.end(), lines.begin(), lines.end());
  }
  return complaints;
}

}  // namespace ballast_test

#endif
