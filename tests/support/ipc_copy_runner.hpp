// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_IPC_COPY_RUNNER_HPP
#define BALLAST_TESTS_SUPPORT_IPC_COPY_RUNNER_HPP

#include <ballast/cudart/copy_batch.hpp>
#include <ballast/cudart/ipc_peers.hpp>
#include <ballast/cudart/peer_copy.hpp>
#include <ballast/posix/process_group.hpp>

#include "support/gpu.hpp"
#include "support/group_runner.hpp"
#include "support/law_log.hpp"
#include "support/posix_runner.hpp"
#include "support/processes.hpp"

#include <string>
#include <vector>

namespace ballast_test {

/// Ranks are forked processes that share memory and events by CUDA IPC.
template <class Memory = gpu_memory, class Copies = ballast::cudart::copy_batch>
struct ipc_copy_runner {
  static constexpr bool can_lose_ranks = true;
  std::vector<ballast::index_t> group_sizes = rank_counts({1, 2, 4, 8});

  [[nodiscard]] std::vector<ballast::index_t> const& sizes() const { return group_sizes; }

  template <class Body>
  [[nodiscard]] std::vector<std::string> run(ballast::index_t num_ranks, Body body) const {
    using group_type = ballast::posix::process_group;
    using peers = ballast::cudart::ipc_peers<group_type>;
    using transport = ballast::cudart::peer_copy<peers, Copies>;
    auto const name = fresh_group_name();
    return run_processes(num_ranks, [&](ballast::index_t rank, process_exit exit, law_log& log) {
      use_device_of(rank);
      group_type group;
      if (!log.expect_ok(group.join(name, rank, num_ranks, patience), "join")) { return; }
      transport wires{peers{group}};
      law_endpoint<group_type, transport, Memory> self{group, wires, [exit] { exit.die(); }, {}};
      body(self, log);
    });
  }
};

}  // namespace ballast_test

#endif
