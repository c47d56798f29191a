// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/load/window_recorder.hpp>
#include <ballast/placement/balancedness.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/runtime/detail/load_window.hpp>
#include <ballast/topology.hpp>
#include <ballast/transport/in_process.hpp>

#include "support/two_ranks.hpp"

#include <doctest/doctest.h>

#include <vector>

using namespace ballast;
using ballast_test::on_two_ranks;

namespace {

constexpr nanoseconds_t patience = 30'000'000'000;
topology const where{{2, 1, 2, 0}};

/// Two passes of two layers x three experts, one a bucket. Rank r counts 10^r tokens where rank 0 counts one.
[[nodiscard]] window_recorder counted(index_t rank) {
  window_recorder recorder{2, 3, {.passes = 2, .buckets = 2}};
  load_t const unit = rank == 0 ? 1 : 10;
  recorder.record_logical(0, std::vector<load_t>{unit, 2 * unit, 0}).or_throw();
  recorder.record_logical(1, std::vector<load_t>{0, 0, 3 * unit}).or_throw();
  recorder.end_pass(true);
  recorder.record_logical(0, std::vector<load_t>{4 * unit, 0, 0}).or_throw();
  recorder.end_pass(true);
  return recorder;
}

[[nodiscard]] std::vector<load_t> flat(matrix_view<load_t const> loads) {
  std::vector<load_t> all;
  for (index_t layer = 0; layer < 2; ++layer) {
    auto const row = loads.row(layer);
    all.insert(all.end(), row.begin(), row.end());
  }
  return all;
}

}  // namespace

TEST_CASE("a window is empty before anything was reduced, and after nothing was counted") {
  on_two_ranks([](in_process_endpoint& me) {
    detail::load_window window{2, 3};
    CHECK(window.is_empty());
    CHECK(flat(window.loads()) == std::vector<load_t>(6, 0));
    window_recorder recorder{2, 3, {.passes = 2, .buckets = 2}};
    recorder.end_pass(true);
    window.reduce(recorder, me, where, patience).or_throw();
    CHECK(window.is_empty());
  });
}

TEST_CASE("the loads of all ranks are summed, bucket by bucket and over the buckets") {
  on_two_ranks([](in_process_endpoint& me) {
    detail::load_window window{2, 3};
    auto recorder = counted(me.rank());
    window.reduce(recorder, me, where, patience).or_throw();
    CHECK_FALSE(window.is_empty());
    CHECK(flat(window.loads()) == std::vector<load_t>{55, 22, 0, 0, 0, 33});
    REQUIRE(window.history().num_buckets() == 2);
    load_t sum = 0;
    for (auto const tokens : window.history().bucket(0).row(0)) { sum += tokens; }
    CHECK(sum == 33);
  });
}

TEST_CASE("the sum alone is the same sum") {
  on_two_ranks([](in_process_endpoint& me) {
    detail::load_window window{2, 3};
    auto recorder = counted(me.rank());
    window.reduce_sum(recorder, me, where, patience).or_throw();
    CHECK(flat(window.loads()) == std::vector<load_t>{55, 22, 0, 0, 0, 33});
  });
}

TEST_CASE("what all ranks have counted can be planned on, however much it is") {
  on_two_ranks([](in_process_endpoint& me) {
    detail::load_window window{2, 3};
    for (bool const sum_alone : {false, true}) {
      CAPTURE(sum_alone);
      window_recorder recorder{2, 3, {.passes = 1, .buckets = 1}};
      recorder.record_logical(0, std::vector<load_t>{max_layer_tokens / 4 * 3, 0, 0}).or_throw();
      recorder.end_pass(true);
      auto const result =
          sum_alone ? window.reduce_sum(recorder, me, where, patience) : window.reduce(recorder, me, where, patience);
      CHECK(result.ok());
      auto const row = window.loads().row(0);
      CHECK(row[0] > max_layer_tokens / 2);
      CHECK(row[0] <= max_layer_tokens);
    }
  });
}

TEST_CASE("a rank that does not come fails the reduction, and says who") {
  on_two_ranks([](in_process_endpoint& me) {
    if (me.rank() == 1) { return; }
    detail::load_window window{2, 3};
    auto recorder = counted(me.rank());
    auto const result = window.reduce(recorder, me, where, 50'000'000);
    CHECK_FALSE(result.ok());
    CHECK(result.rank() == 1);
  });
}

TEST_CASE("the balance in force is that of the whole, however it was measured") {
  auto const in_force = trivial_placement({2, 3, 4});
  std::vector<load_t> const tokens{55, 22, 0, 0, 0, 33};
  matrix_view<load_t const> const loads{tokens, 2, 3};
  detail::balance_sheet balance{2};
  CHECK(balance.balancedness() == 1.0);
  balance.measure(where, in_force, loads);
  CHECK(balance.balancedness() == balancedness(where, in_force, loads));
  CHECK(balance.balancedness() < 1.0);

  detail::balance_sheet by_layer{2};
  by_layer.measure(where, in_force, loads, 1);
  by_layer.measure(where, in_force, loads, 0);
  CHECK(by_layer.balancedness() == balance.balancedness());
}
