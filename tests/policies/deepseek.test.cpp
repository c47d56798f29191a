// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// That it plans bit for bit what the published reference does is tested in tests/conformance.
#include <ballast/placement/balancedness.hpp>
#include <ballast/policies/deepseek.hpp>

#include <doctest/doctest.h>
#include <support/long_runs.hpp>
#include <support/random.hpp>

#include <algorithm>
#include <cstddef>
#include <ostream>  // doctest prints error codes
#include <string>
#include <vector>

namespace {

using namespace ballast;

status plan_loads(deepseek_placement const& policy, topology const& where, std::vector<load_t> const& loads,
                  index_t num_layers, placement& next) {
  auto const num_logical = static_cast<index_t>(loads.size()) / num_layers;
  return plan(policy, matrix_view<load_t const>{loads, num_layers, num_logical},
              trivial_placement({num_layers, num_logical, where.num_slots()}), where, next);
}

}  // namespace

TEST_CASE("the history's buckets are added up") {
  topology const where{{2, 1, 3, 0}};
  std::vector<load_t> const buckets{1, 2, 3, 4, 10, 0, 0, 1};
  std::vector<load_t> const sum{11, 2, 3, 5};
  auto const start = trivial_placement({1, 4, 6});
  placement from_history;
  plan(deepseek_placement{}, load_history_view{buckets, 2, 1, 4}, start, where, from_history).or_throw();
  placement from_sum;
  plan_loads({}, where, sum, 1, from_sum).or_throw();
  CHECK(from_history == from_sum);
}

TEST_CASE("any loads give a placement: zero, equal, one hot, one expert, large counts") {
  ballast_test::generator random{9};
  for (int trial = 0, count = ballast_test::cases(300); trial < count; ++trial) {
    CAPTURE(trial);
    auto const ranks = random.between(1, 12);
    topology const where{{ranks, 1, random.between(1, 6), 0}};
    auto const experts = random.between(1, where.num_slots());
    std::vector<load_t> loads(static_cast<std::size_t>(experts));
    for (auto& tokens : loads) {
      auto const kind = trial % 4;
      tokens = kind == 0 ? 0 : kind == 1 ? 7 : kind == 2 ? random.below(1000) : load_t{random.below(1 << 20)} << 16;
    }
    if (trial % 5 == 0) { loads[0] = max_layer_tokens / 2; }
    placement next;
    plan_loads({}, where, loads, 1, next).or_throw();
    REQUIRE(placement::validate(next.shape(), next.logical_of_slot().elements()).ok());
    std::vector<index_t> seen;
    for (index_t expert = 0; expert < experts; ++expert) {
      for (auto const slot : next.replicas_of(0, expert)) {
        REQUIRE(next.logical_of_slot(0)[static_cast<std::size_t>(slot)] == expert);
        seen.push_back(slot);
      }
    }
    std::sort(seen.begin(), seen.end());
    REQUIRE(seen.size() == static_cast<std::size_t>(where.num_slots()));
    REQUIRE(std::ranges::adjacent_find(seen) == seen.end());
  }
}

TEST_CASE("whole groups stay on a node when nodes divide groups, and the plan is global when they do not") {
  topology const where{{4, 2, 3, 0}};
  std::vector<load_t> const loads{90, 132, 40, 61, 104, 165, 39, 4};
  placement hierarchical;
  plan_loads({.num_groups = 4}, where, loads, 1, hierarchical).or_throw();
  for (index_t group = 0; group < 4; ++group) {
    std::vector<index_t> nodes;
    for (index_t expert = 2 * group; expert < 2 * group + 2; ++expert) {
      for (auto const slot : hierarchical.replicas_of(0, expert)) { nodes.push_back(where.node_of_slot(slot)); }
    }
    CHECK(std::ranges::count(nodes, nodes[0]) == static_cast<std::ptrdiff_t>(nodes.size()));
  }
  placement with_three;
  placement global;
  plan_loads({.num_groups = 3}, where, loads, 1, with_three).or_throw();  // 2 does not divide 3, so 8 mod 3 is no error
  plan_loads({.num_groups = 1}, where, loads, 1, global).or_throw();
  CHECK(with_three == global);
}

TEST_CASE("what cannot be planned is refused with the values") {
  topology const where{{4, 2, 3, 0}};
  std::vector<load_t> const loads{1, 2, 3, 4, 5, 6, 7, 8, 9};
  auto const refusal = [&](deepseek_placement const& policy, std::vector<load_t> const& tokens, errc code) {
    placement next;
    auto const result = plan_loads(policy, where, tokens, 1, next);
    CHECK(result.code() == code);
    return result.message();
  };
  CHECK(refusal({.num_groups = 4}, loads, errc::invalid_option) ==
        "deepseek: 9 experts cannot be divided into 4 groups");
  CHECK(refusal({.num_groups = 0}, loads, errc::invalid_option) ==
        "deepseek: number of groups is 0, must be at least 1");
  CHECK(refusal({.num_groups = -4}, loads, errc::invalid_option) ==
        "deepseek: number of groups is -4, must be at least 1");
  CHECK(refusal({}, {1, 2, 3, -5}, errc::invalid_load) ==
        "load of layer 0, expert 3, bucket 0 is -5, must not be negative");
  CHECK(refusal({}, {1, 2, max_layer_tokens}, errc::invalid_load) ==
        "load of layer 0 exceeds 17592186044416 tokens at expert 2, bucket 0");

  placement next;
  auto const refused =
      plan(deepseek_placement{}, matrix_view<load_t const>{loads, 1, 9}, trivial_placement({1, 9, 15}), where, next);
  CHECK(refused.code() == errc::invalid_topology);
  CHECK(refused.message() == "plan: the placement has 15 slots, the topology 4 ranks x 3 slots");
  auto const shape =
      plan(deepseek_placement{}, matrix_view<load_t const>{loads, 3, 3}, trivial_placement({1, 9, 12}), where, next);
  CHECK(shape.code() == errc::invalid_load);
  CHECK(shape.message() == "plan: loads are for 3 layers x 3 experts, the current placement for 1 x 9");
}

TEST_CASE("with dead ranks, the plan is the one for the live ranks alone") {
  topology where{{.num_ranks = 6, .num_nodes = 2, .slots_per_rank = 3}};
  where.set_live(1, false);
  where.set_live(5, false);
  std::vector<load_t> const loads{9, 80, 7, 6, 5, 4, 3, 2, 1, 1, 0, 0, 0, 0, 0, 0};
  index_t const num_layers = 2;
  auto const current = trivial_placement({num_layers, 8, 18});
  placement next;
  matrix_view<load_t const> const view{loads, num_layers, 8};
  plan(deepseek_placement{.num_groups = 2}, view, current, where, next).or_throw();

  topology const live{{.num_ranks = 4, .slots_per_rank = 3}};
  placement expected;
  plan_loads({}, live, loads, num_layers, expected).or_throw();
  index_t const live_ranks[] = {0, 2, 3, 4};
  for (index_t layer = 0; layer < num_layers; ++layer) {
    for (index_t i = 0; i < 12; ++i) {
      auto const slot = static_cast<std::size_t>(where.first_slot(live_ranks[i / 3]) + i % 3);
      CHECK(next.logical_of_slot(layer)[slot] == expected.logical_of_slot(layer)[static_cast<std::size_t>(i)]);
    }
    for (std::size_t const slot : {3u, 4u, 5u, 15u, 16u, 17u}) {
      CHECK(next.logical_of_slot(layer)[slot] == current.logical_of_slot(layer)[slot]);
      CHECK(next.shares(layer)[slot] == 0);
    }
  }
  CHECK(placement::validate(next.shape(), next.logical_of_slot().elements()).ok());
}

TEST_CASE("experts that the live ranks cannot hold are refused") {
  topology where{{.num_ranks = 3, .slots_per_rank = 3}};
  where.set_live(0, false);
  placement next;
  auto const result = plan_loads({}, where, {1, 2, 3, 4, 5, 6, 7}, 1, next);
  CHECK(result.code() == errc::not_enough_slots);
  CHECK(result.message() == "plan: 2 live ranks x 3 slots cannot hold 7 experts");
}

TEST_CASE("a plan does not depend on the storage it is given, the layers beside it or the placement in force") {
  ballast_test::generator random{10};
  topology const where{{.num_ranks = 8, .num_nodes = 2, .slots_per_rank = 5}};
  index_t const num_layers = 7;  // more than one batch of layers, and a part of one
  std::vector<load_t> loads(static_cast<std::size_t>(num_layers) * 32);
  for (auto& tokens : loads) { tokens = random.below(100); }
  matrix_view<load_t const> const view{loads, num_layers, 32};
  for (index_t const groups : {1, 4}) {
    deepseek_placement const policy{.num_groups = groups};
    placement together;
    plan_loads(policy, where, loads, num_layers, together).or_throw();
    auto reused = trivial_placement({3, 2, 90});
    reused.make_shares_even();
    auto const other = ballast_test::random_placement({num_layers, 32, 40}, random);
    plan(policy, view, other, where, reused).or_throw();
    CHECK(reused == together);
    for (index_t layer = 0; layer < num_layers; ++layer) {
      placement alone;
      auto const row = view.row(layer);
      plan_loads(policy, where, {row.begin(), row.end()}, 1, alone).or_throw();
      CHECK(std::ranges::equal(alone.logical_of_slot(0), together.logical_of_slot(layer)));
      CHECK(std::ranges::equal(alone.replica_slots(0), together.replica_slots(layer)));
    }
  }
}

TEST_CASE("the digest tells the options apart") {
  digest one;
  digest four;
  deepseek_placement{.num_groups = 1}.describe(one);
  deepseek_placement{.num_groups = 4}.describe(four);
  CHECK(one.value() != four.value());
}
