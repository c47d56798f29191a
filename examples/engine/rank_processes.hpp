// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_RANK_PROCESSES_HPP
#define BALLAST_EXAMPLES_ENGINE_RANK_PROCESSES_HPP

#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <utility>
#include <vector>

namespace engine {

/// The processes of ranks 1 and up, children of that of rank 0.
class rank_processes {
public:
  /// @param stopped  rank that stops answering and never ends, or -1
  /// @param be       what a rank does
  /// @throws std::system_error if there is no process for a rank
  rank_processes(ballast::index_t num_ranks, ballast::index_t stopped, std::function<void(ballast::index_t)> const& be)
      : stopped_{stopped} {
    std::fflush(nullptr);
    for (ballast::index_t rank = 1; rank < num_ranks; ++rank) {
      auto const child = ::fork();
      if (child == 0) { run(rank, be); }
      if (child < 0) { ballast::status{ballast::errc::internal, "no process for a rank"}.or_throw(); }
      processes_.push_back(child);
    }
  }
  rank_processes(rank_processes const&) = delete;
  rank_processes& operator=(rank_processes const&) = delete;
  ~rank_processes() {
    for (auto const process : processes_) { end(process); }
  }

  /// @throws std::system_error naming a rank that failed
  void join() {
    if (stopped_ > 0) { end(std::exchange(processes_[static_cast<std::size_t>(stopped_) - 1], 0)); }
    for (std::size_t i = 0; i < processes_.size(); ++i) {
      auto const process = std::exchange(processes_[i], 0);
      if (process == 0) { continue; }
      int state = 0;
      ::waitpid(process, &state, 0);
      if (state != 0) {
        ballast::status{ballast::errc::peer_lost, ballast::detail::concat("rank ", i + 1, " failed")}.or_throw();
      }
    }
  }

private:
  [[noreturn]] static void run(ballast::index_t rank, std::function<void(ballast::index_t)> const& be) {
    int code = 0;
    try {
      be(rank);
    } catch (std::exception const& error) {
      std::fprintf(stderr, "engine: rank %d: %s\n", rank, error.what());
      code = 1;
    }
    std::_Exit(code);
  }
  static void end(::pid_t process) {
    if (process == 0) { return; }
    ::kill(process, SIGKILL);
    ::waitpid(process, nullptr, 0);
  }

  ballast::index_t stopped_;
  std::vector<::pid_t> processes_;  ///< 0 once it has ended
};

}  // namespace engine

#endif
