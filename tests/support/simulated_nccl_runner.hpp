// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_SIMULATED_NCCL_RUNNER_HPP
#define BALLAST_TESTS_SUPPORT_SIMULATED_NCCL_RUNNER_HPP

#include <ballast/nccl/communicator.hpp>
#include <ballast/nccl/transport.hpp>
#include <ballast/transport/in_process.hpp>

#include "support/gpu.hpp"
#include "support/group_runner.hpp"
#include "support/law_log.hpp"
#include "support/simulated_device/simulated_device.hpp"

#include <exception>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace ballast_test {

/// Ranks are threads, each with a simulated device of its own and the real clock.
struct simulated_nccl_runner {
  static constexpr bool can_lose_ranks = false;
  ballast::nccl::transport_options options = {nullptr, true};
  std::uint64_t seed = 1;

  [[nodiscard]] std::vector<ballast::index_t> sizes() const { return group_sizes(); }

  template <class Body>
  [[nodiscard]] std::vector<std::string> run(ballast::index_t num_ranks, Body body) const {
    simulated::reset({.num_devices = static_cast<int>(num_ranks), .seed = seed});
    ballast::nccl::detail::spare_packs::forget();
    ballast::in_process_group group{num_ranks};
    ballast::in_process_group engine{num_ranks};
    std::vector<std::string> complaints;
    std::mutex mutex;
    group.run([&](ballast::in_process_endpoint& control) {
      law_log log{control.rank()};
      try {
        use_device_of(control.rank());
        ballast::nccl::communicator wires;
        ballast::nccl::communicator::create(control, wires).or_throw();
        ballast::nccl::transport transport{std::move(wires), options};
        law_endpoint<ballast::in_process_endpoint, ballast::nccl::transport, gpu_memory> self{
            control, transport, [] {}, exchange_over(engine.endpoint(control.rank()))};
        body(self, log);
      } catch (std::exception const& error) { log.expect(false, "exception: ", error.what()); }
      std::lock_guard const lock{mutex};
      complaints.insert(complaints.end(), log.complaints().begin(), log.complaints().end());
    });
    for (auto const& each : simulated::take_violations()) { complaints.push_back(each.rule + ": " + each.text); }
    return complaints;
  }
};

}  // namespace ballast_test

#endif
