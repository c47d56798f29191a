// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// A control plane on an engine's all-gather, whose calls may succeed on one process and fail on another.
#include <ballast/control/engine_control.hpp>

#include "support/healing_laws.hpp"
#include "support/posix_runner.hpp"
#include "support/sharing_laws.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace {

struct gather_on {
  ballast::posix::process_group* group;
  ballast::status operator()(std::span<std::uint64_t const> mine, std::span<std::uint64_t> all,
                             ballast::nanoseconds_t timeout) {
    return group->all_gather(mine, all, timeout);
  }
};
using control = ballast::engine_control<gather_on>;

struct engine_runner {
  template <class Body>
  [[nodiscard]] std::vector<std::string> run(ballast::index_t num_ranks, Body body) const {
    auto const name = ballast_test::fresh_group_name();
    return ballast_test::posix_runner{}.run(num_ranks, [&](auto& inner, ballast_test::law_log& log) {
      ballast::posix::process_group channel;
      if (!log.expect_ok(channel.join(name + ".channel", inner.rank(), num_ranks, ballast_test::patience), "join")) {
        return;
      }
      control plane{inner.rank(), num_ranks, gather_on{&channel}};
      ballast_test::law_endpoint<control, ballast::posix::peer_copy> self{plane, inner.transport, inner.die,
                                                                          inner.tell_all};
      body(self, log);
    });
  }
};

}  // namespace

TEST_CASE("an engine's control plane heals after every mishap, in both modes") {
  ballast_test::check_healing(engine_runner{});
}

TEST_CASE("two models share an engine's control plane, in both modes") { ballast_test::check_sharing(engine_runner{}); }
