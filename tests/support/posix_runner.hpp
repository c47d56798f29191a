// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_POSIX_RUNNER_HPP
#define BALLAST_TESTS_SUPPORT_POSIX_RUNNER_HPP

#include <ballast/detail/text.hpp>
#include <ballast/posix/peer_copy.hpp>
#include <ballast/posix/process_group.hpp>
#include <ballast/posix/shared_buffer.hpp>

#include "support/group_runner.hpp"
#include "support/law_log.hpp"
#include "support/processes.hpp"

#include <unistd.h>

#include <cstddef>
#include <deque>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace ballast_test {

/// A name that no other group of this host uses.
[[nodiscard]] inline std::string fresh_group_name() {
  static int count = 0;
  return ballast::detail::concat("test-", ::getpid(), "-", ++count);
}

/// Files in shared memory that belong to a group of that name, or to any whose name begins so.
[[nodiscard]] inline std::vector<std::string> files_of_group(std::string const& name) {
  std::vector<std::string> found;
  auto const start = "ballast." + name;
  for (auto const& entry : std::filesystem::directory_iterator{"/dev/shm"}) {
    auto file = entry.path().filename().string();
    if (file.starts_with(start)) { found.push_back(std::move(file)); }
  }
  return found;
}

/// Memory that peers can map.
class shared_memory : public host_memory {
public:
  [[nodiscard]] std::byte* allocate(std::size_t bytes) {
    buffers_.emplace_back().allocate(bytes + 1).or_throw();
    return buffers_.back().data();
  }

private:
  std::deque<ballast::posix::shared_buffer> buffers_;
};

/// Every other block can be mapped, the others not.
class mixed_memory : public shared_memory {
public:
  [[nodiscard]] std::byte* allocate(std::size_t bytes) {
    return ++count_ % 2 == 1 ? shared_memory::allocate(bytes) : host_memory::allocate(bytes);
  }

private:
  int count_ = 0;
};

/// Ranks are forked processes that meet in a `posix::process_group`.
template <class Memory>
struct basic_posix_runner {
  static constexpr bool can_lose_ranks = true;
  ballast::posix::peer_copy_options options = {};
  std::vector<ballast::index_t> group_sizes = ballast_test::group_sizes();

  [[nodiscard]] std::vector<ballast::index_t> const& sizes() const { return group_sizes; }

  template <class Body>
  [[nodiscard]] std::vector<std::string> run(ballast::index_t num_ranks, Body body) const {
    auto const name = fresh_group_name();
    auto complaints = run_processes(num_ranks, [&](ballast::index_t rank, process_exit exit, law_log& log) {
      ballast::posix::process_group end;  // nobody leaves while others still look at the group
      ballast::posix::process_group group;
      if (!log.expect_ok(end.join(name + ".end", rank, num_ranks, patience), "join")) { return; }
      if (!log.expect_ok(group.join(name, rank, num_ranks, patience), "join")) { return; }
      ballast::posix::peer_copy transport{group, options};
      law_endpoint<ballast::posix::process_group, ballast::posix::peer_copy, Memory> self{
          group, transport, [exit] { exit.die(); }, exchange_over(end)};
      body(self, log);
      static_cast<void>(end.all_reduce({}, patience));
    });
    for (auto const& file : files_of_group(name + ".")) { complaints.push_back(file + " is left in shared memory"); }
    return complaints;
  }
};
using posix_runner = basic_posix_runner<host_memory>;

}  // namespace ballast_test

#endif
