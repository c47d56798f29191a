// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_LOCAL_COPY_RUNNER_HPP
#define BALLAST_TESTS_SUPPORT_LOCAL_COPY_RUNNER_HPP

#include <ballast/cudart/copy_batch.hpp>
#include <ballast/cudart/peer_copy.hpp>
#include <ballast/cudart/peer_directory.hpp>
#include <ballast/transport/in_process.hpp>

#include "support/gpu.hpp"
#include "support/group_runner.hpp"
#include "support/law_log.hpp"

#include <cstddef>
#include <string>
#include <vector>

namespace ballast_test {

/// Run `body(control, wires, log)` on every rank, each a thread of this process with a device.
template <class Copies = ballast::cudart::copy_batch, class Body>
[[nodiscard]] std::vector<std::string> run_ranks(ballast::index_t num_ranks,
                                                 ballast::cudart::peer_copy_options const& options, Body body) {
  ballast::in_process_group group{num_ranks};
  ballast::cudart::local_peers peers{num_ranks};
  std::vector<std::vector<std::string>> complaints(static_cast<std::size_t>(num_ranks));
  group.run([&](ballast::in_process_endpoint& control) {
    use_device_of(control.rank());
    law_log log{control.rank()};
    ballast::cudart::peer_copy<ballast::cudart::local_peers::member, Copies> wires{peers.join(control.rank()), options};
    body(control, wires, log);
    complaints[static_cast<std::size_t>(control.rank())] = log.complaints();
  });
  std::vector<std::string> all;
  for (auto const& some : complaints) { all.insert(all.end(), some.begin(), some.end()); }
  return all;
}

/// Ranks are threads of this process.
template <class Copies = ballast::cudart::copy_batch>
struct local_copy_runner {
  static constexpr bool can_lose_ranks = false;
  ballast::cudart::peer_copy_options options = {};
  std::vector<ballast::index_t> group_sizes = rank_counts({1, 2, 4, 8});

  [[nodiscard]] std::vector<ballast::index_t> const& sizes() const { return group_sizes; }

  template <class Body>
  [[nodiscard]] std::vector<std::string> run(ballast::index_t num_ranks, Body body) const {
    return run_ranks<Copies>(num_ranks, options,
                             [&]<class Wires>(ballast::in_process_endpoint& control, Wires& wires, law_log& log) {
                               law_endpoint<ballast::in_process_endpoint, Wires, gpu_memory> self{control, wires};
                               body(self, log);
                             });
  }
};

}  // namespace ballast_test

#endif
