// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/placement/balancedness.hpp>
#include <ballast/policies/headroom.hpp>
#include <ballast/policies/regime.hpp>

#include <doctest/doctest.h>
#include <support/trace_files.hpp>

#include <ostream>

using namespace ballast;

static_assert(placement_policy<regime_placement<headroom_placement>>);

TEST_CASE("planning on the current regime beats planning on all that was seen, after a switch and before") {
  auto const file = ballast_test::find_trace("deepseek-v2-lite/mixed_512tok");
  REQUIRE(!file.empty());
  auto const trace = ballast_test::read_trace(file);
  topology const where{{8, 1, 9, 0}};
  auto const current = trivial_placement({trace.layers, trace.experts, where.num_slots()});
  auto const score_next = [&](auto const& policy) {
    double sum = 0;
    placement next;
    for (index_t step = 8; step < trace.steps; ++step) {
      plan(policy, trace.history(step - 8, 8), current, where, next).or_throw();
      sum += balancedness(where, next, trace.step(step));
    }
    return sum / (trace.steps - 8);
  };
  CHECK(score_next(regime_placement<headroom_placement>{}) > score_next(headroom_placement{}) + 0.01);
}

TEST_CASE("a regime policy describes itself and what it wraps, and refuses a threshold that any bucket exceeds") {
  digest plain;
  digest wrapped;
  headroom_placement{}.describe(plain);
  regime_placement<headroom_placement>{}.describe(wrapped);
  CHECK(plain.value() != wrapped.value());
  std::vector<load_t> const loads{1, 2};
  placement next;
  auto const result = plan(regime_placement<headroom_placement>{{}, 100}, {loads, 1, 1, 2},
                           trivial_placement({1, 2, 2}), topology{{2, 1, 1, 0}}, next);
  CHECK(result.message() == "regime: change_percent is 100, must be above 100");
}
