// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_IN_PROCESS_RUNNER_HPP
#define BALLAST_TESTS_SUPPORT_IN_PROCESS_RUNNER_HPP

#include <ballast/transport/in_process.hpp>

#include "support/group_runner.hpp"
#include "support/law_log.hpp"

#include <exception>
#include <mutex>
#include <string>
#include <vector>

namespace ballast_test {

/// Ranks are threads of one `in_process_group`.
struct in_process_runner {
  static constexpr bool can_lose_ranks = true;

  [[nodiscard]] std::vector<ballast::index_t> sizes() const { return group_sizes(); }

  template <class Body>
  [[nodiscard]] std::vector<std::string> run(ballast::index_t num_ranks, Body body) const {
    ballast::in_process_group group{num_ranks};
    ballast::in_process_group engine{num_ranks};
    std::vector<std::string> complaints;
    std::mutex mutex;
    group.run([&](ballast::in_process_endpoint& endpoint) {
      law_log log{endpoint.rank()};
      law_endpoint<ballast::in_process_endpoint, ballast::in_process_endpoint> self{
          endpoint, endpoint, [&] { group.kill(endpoint.rank()); }, exchange_over(engine.endpoint(endpoint.rank()))};
      try {
        body(self, log);
      } catch (std::exception const& error) { log.expect(false, "exception: ", error.what()); }
      std::lock_guard const lock{mutex};
      complaints.insert(complaints.end(), log.complaints().begin(), log.complaints().end());
    });
    return complaints;
  }
};

}  // namespace ballast_test

#endif
