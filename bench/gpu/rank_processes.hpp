// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_BENCH_GPU_RANK_PROCESSES_HPP
#define BALLAST_BENCH_GPU_RANK_PROCESSES_HPP

#include <ballast/detail/clock.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/posix/process_group.hpp>
#include <ballast/types.hpp>

#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

extern char** environ;

namespace ballast_bench {

/// What rank 0 reports: a number of samples for each name.
using samples = std::map<std::string, std::vector<double>>;
/// Runs on every rank, in a process of its own; what rank 0 returns is the result.
using rank_job = std::function<samples(ballast::posix::process_group&, std::string const& argument)>;

inline std::map<std::string, rank_job>& rank_jobs() {
  static std::map<std::string, rank_job> jobs;
  return jobs;
}
inline int register_rank_job(std::string const& name, rank_job job) {
  rank_jobs()[name] = std::move(job);
  return 0;
}

/// Call first thing in main: a process that was started as a rank runs its job and ends here.
inline void become_rank_if_asked(int argc, char** argv) {
  if (argc != 7 || std::string{argv[1]} != "--as-rank") { return; }
  auto const rank = std::atoi(argv[2]);
  auto const num_ranks = std::atoi(argv[3]);
  ballast::posix::process_group group;
  group.join(argv[4], rank, num_ranks, 60'000'000'000).or_throw();
  auto const result = rank_jobs().at(argv[5])(group, argv[6]);
  if (rank == 0) {
    for (auto const& [name, values] : result) {
      std::printf("%s", name.c_str());
      for (auto const value : values) { std::printf(" %.6g", value); }
      std::printf("\n");
    }
  }
  std::exit(0);
}

/// Run a job on `num_ranks` processes of this program and return what rank 0 reports.
[[nodiscard]] inline samples run_ranks(std::string const& job, ballast::index_t num_ranks,
                                       std::string const& argument) {
  static int count = 0;
  auto const group = ballast::detail::concat("bench-", ::getpid(), "-", ++count);
  int ends[2];
  if (::pipe(ends) != 0) { throw std::runtime_error{"pipe"}; }
  std::vector<::pid_t> processes;
  for (ballast::index_t rank = 0; rank < num_ranks; ++rank) {
    std::vector<std::string> words{
        "ballast-bench-gpu", "--as-rank", std::to_string(rank), std::to_string(num_ranks), group, job, argument};
    std::vector<char*> pointers;
    for (auto& word : words) { pointers.push_back(word.data()); }
    pointers.push_back(nullptr);
    ::posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    if (rank == 0) { ::posix_spawn_file_actions_adddup2(&actions, ends[1], 1); }
    ::posix_spawn_file_actions_addclose(&actions, ends[0]);
    ::pid_t process = 0;
    if (::posix_spawn(&process, "/proc/self/exe", &actions, nullptr, pointers.data(), environ) != 0) {
      throw std::runtime_error{"posix_spawn"};
    }
    ::posix_spawn_file_actions_destroy(&actions);
    processes.push_back(process);
  }
  ::close(ends[1]);
  std::string text;
  char buffer[4096];
  for (;;) {
    auto const size = ::read(ends[0], buffer, sizeof buffer);
    if (size <= 0) { break; }
    text.append(buffer, static_cast<std::size_t>(size));
  }
  ::close(ends[0]);
  bool failed = false;
  for (auto const process : processes) {
    int exit_status = 0;
    ::waitpid(process, &exit_status, 0);
    failed = failed || exit_status != 0;
  }
  if (failed) { throw std::runtime_error{"a rank failed in " + job}; }
  samples result;
  std::istringstream lines{text};
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words{line};
    std::string name;
    words >> name;
    for (double value = 0; words >> value;) { result[name].push_back(value); }
  }
  return result;
}

/// Do some work on every rank of a group. @return microseconds from the first rank's start to the last one's end
template <class Control, class Work>
[[nodiscard]] double together(Control& control, Work work) {
  constexpr ballast::nanoseconds_t timeout = 20'000'000'000;
  std::vector<std::uint64_t> times(2 * static_cast<std::size_t>(control.num_ranks()));
  std::uint64_t mine[2] = {0, 0};
  control.all_gather(mine, times, timeout).or_throw();
  mine[0] = static_cast<std::uint64_t>(ballast::detail::now());
  work();
  mine[1] = static_cast<std::uint64_t>(ballast::detail::now());
  control.all_gather(mine, times, timeout).or_throw();
  auto first = times[0];
  auto last = times[1];
  for (std::size_t i = 0; i < times.size(); i += 2) {
    first = std::min(first, times[i]);
    last = std::max(last, times[i + 1]);
  }
  return static_cast<double>(last - first) * 1e-3;
}

}  // namespace ballast_bench

#endif
