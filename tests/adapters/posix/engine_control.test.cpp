// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/control/engine_control.hpp>
#include <ballast/posix/process_group.hpp>

#include "support/control_laws.hpp"
#include "support/posix_runner.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace {

using ballast::posix::process_group;

/// An engine's channel that knows an all-gather, and nothing of votes that all ranks see alike.
struct gather_on {
  process_group* group;
  ballast::status operator()(std::span<std::uint64_t const> mine, std::span<std::uint64_t> all,
                             ballast::nanoseconds_t timeout) {
    return group->all_gather(mine, all, timeout);
  }
};
struct membership_of {
  process_group const* group;
  std::uint64_t operator()() const { return group->membership(); }
};
using control = ballast::engine_control<gather_on, membership_of>;
static_assert(ballast::regrouping_plane<control>);

struct engine_endpoint : ballast_test::law_endpoint<control, ballast::posix::peer_copy> {
  static constexpr bool is_over_a_channel = true;
};

struct engine_runner {
  static constexpr bool can_lose_ranks = true;
  [[nodiscard]] std::vector<ballast::index_t> sizes() const { return {2, 5}; }

  template <class Body>
  [[nodiscard]] std::vector<std::string> run(ballast::index_t num_ranks, Body body) const {
    return ballast_test::posix_runner{}.run(num_ranks, [&](auto& inner, ballast_test::law_log& log) {
      control plane{inner.rank(), inner.num_ranks(), gather_on{&inner.control}, {}, membership_of{&inner.control}};
      engine_endpoint self{{plane, inner.transport, inner.die}};
      body(self, log);
    });
  }
};

}  // namespace

// Here an all-gather can succeed on one process and fail on another, so votes are undecided and have to be recalled.
TEST_CASE("a control plane derived from the all-gather of processes obeys the laws") {
  ballast_test::check_control_laws(engine_runner{});
}
