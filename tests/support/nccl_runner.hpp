// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_NCCL_RUNNER_HPP
#define BALLAST_TESTS_SUPPORT_NCCL_RUNNER_HPP

#include <ballast/detail/text.hpp>
#include <ballast/nccl/communicator.hpp>
#include <ballast/nccl/transport.hpp>
#include <ballast/posix/process_group.hpp>

#include "support/gpu.hpp"
#include "support/group_runner.hpp"
#include "support/law_log.hpp"
#include "support/posix_runner.hpp"
#include "support/processes.hpp"

#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

namespace ballast_test {

/// Let several ranks share a device: NCCL refuses two ranks on one device of one host, so each says it is another host.
inline void pretend_own_host(ballast::index_t rank) {
  ::setenv("NCCL_HOSTID", ballast::detail::concat("ballast-host-", rank).c_str(), 1);
  ::setenv("NCCL_SOCKET_IFNAME", "lo", 1);
}

/// Ranks are forked processes, each on a device of its own, or on shared ones and then talking through loopback
/// sockets.
struct nccl_runner {
  static constexpr bool can_lose_ranks = true;
  ballast::nccl::transport_options options = {nullptr, true};
  std::vector<ballast::index_t> group_sizes = rank_counts({1, 2, 4, 8});

  [[nodiscard]] std::vector<ballast::index_t> const& sizes() const { return group_sizes; }

  template <class Body>
  [[nodiscard]] std::vector<std::string> run(ballast::index_t num_ranks, Body body) const {
    auto const name = fresh_group_name();
    return run_processes(num_ranks, [&](ballast::index_t rank, process_exit exit, law_log& log) {
      if (num_ranks > num_devices()) { pretend_own_host(rank); }
      use_device_of(rank);
      ballast::posix::process_group group;
      if (!log.expect_ok(group.join(name, rank, num_ranks, patience), "join")) { return; }
      ballast::nccl::communicator wires;
      if (!log.expect_ok(ballast::nccl::communicator::create(group, wires), "create a communicator")) { return; }
      ballast::nccl::transport transport{std::move(wires), options};
      law_endpoint<ballast::posix::process_group, ballast::nccl::transport, gpu_memory> self{
          group, transport, [exit] { exit.die(); }, {}};
      body(self, log);
    });
  }
};

}  // namespace ballast_test

#endif
