// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Transport laws over IPC, where ranks are threads and a handle opens an alias of the memory.
#include <ballast/cudart/ipc_peers.hpp>
#include <ballast/cudart/peer_copy.hpp>
#include <ballast/transport/in_process.hpp>

#include "simulated_device.hpp"
#include "support/check_complaints.hpp"
#include "support/gpu.hpp"
#include "support/group_runner.hpp"
#include "support/law_log.hpp"
#include "support/transport_laws.hpp"

#include <doctest/doctest.h>

#include <string>
#include <vector>

using namespace ballast;
using namespace ballast_test;

namespace {

struct ipc_threads_runner {
  static constexpr bool can_lose_ranks = false;
  std::vector<index_t> group_sizes = ballast_test::group_sizes();

  [[nodiscard]] std::vector<index_t> const& sizes() const { return group_sizes; }

  template <class Body>
  [[nodiscard]] std::vector<std::string> run(index_t num_ranks, Body body) const {
    using peers = cudart::ipc_peers<in_process_endpoint>;
    simulated::machine_options machine;
    machine.num_devices = 3;
    simulated::reset(machine);
    in_process_group group{num_ranks};
    std::vector<std::vector<std::string>> complaints(static_cast<std::size_t>(num_ranks));
    group.run([&](in_process_endpoint& control) {
      use_device_of(control.rank());
      law_log log{control.rank()};
      {
        cudart::peer_copy<peers> wires{peers{control}};
        law_endpoint<in_process_endpoint, decltype(wires), gpu_memory> self{control, wires};
        body(self, log);
        static_cast<void>(control.vote(true, patience));  // nobody's memory goes while others read it
      }
      complaints[static_cast<std::size_t>(control.rank())] = log.complaints();
    });
    std::vector<std::string> all;
    for (auto const& some : complaints) { all.insert(all.end(), some.begin(), some.end()); }
    for (auto const& each : simulated::take_violations()) { all.push_back(each.rule + ": " + each.text); }
    return all;
  }
};

}  // namespace

TEST_CASE("peer copies over IPC obey the laws of transports") { check_transport_laws(ipc_threads_runner{}, 10); }
