// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/placement/balancedness.hpp>
#include <ballast/placement/moves.hpp>
#include <ballast/policies/balanced.hpp>
#include <ballast/policies/headroom.hpp>
#include <ballast/shares/replica_shares.hpp>

#include <doctest/doctest.h>
#include <support/peer_policies.hpp>
#include <support/random.hpp>
#include <support/trace_files.hpp>

#include <algorithm>
#include <cstddef>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

using namespace ballast;
using ballast_test::sglang_vec_policy;
using ballast_test::swift_policy;
using ballast_test::tensorrt_llm_policy;
using ballast_test::xllm_policy;

namespace {

using loads_view = matrix_view<load_t const>;

template <class Policy>
placement planned(Policy const& policy, loads_view loads, placement const& current, topology const& where) {
  placement next;
  plan(policy, loads, current, where, next).or_throw();
  return next;
}
double re_split(topology const& where, placement in, loads_view loads) {
  share_solver solver;
  in.drop_shares();
  optimal_shares(where, in, loads, solver).or_throw();
  return balancedness(where, in, loads);
}
double even(topology const& where, placement in, loads_view loads) {
  in.drop_shares();
  return balancedness(where, in, loads);
}

ballast_test::trace recorded(std::string const& name) {
  auto const file = ballast_test::find_trace(name);
  REQUIRE_FALSE(file.empty());
  return ballast_test::read_trace(file);
}

/// Call `visit` with each peer.
template <class Visit>
void for_each_peer(Visit const& visit) {
  visit(tensorrt_llm_policy{});
  visit(sglang_vec_policy{});
  visit(xllm_policy{});
  visit(swift_policy{});
}

}  // namespace

// ---- the oracles themselves ----

TEST_CASE("TensorRT-LLM's own cases: replicas, and where they go") {
  struct replication {
    index_t slots;
    std::vector<load_t> loads;
    std::vector<index_t> copies;
  };
  for (auto const& [slots, loads, copies] : {replication{4, {1, 2, 3, 4}, {1, 1, 1, 1}},
                                             {6, {0, 0, 0, 0}, {2, 2, 1, 1}},
                                             {8, {1, 4, 2, 1}, {1, 4, 2, 1}},
                                             {9, {10, 5, 2, 15, 8}, {2, 1, 1, 3, 2}},
                                             {6, {0, 10, 0}, {1, 4, 1}},
                                             {4, {0, 10, 0}, {1, 2, 1}}}) {
    CHECK(tensorrt_llm_policy::replicate(loads, slots) == copies);
  }
  auto const plan_for = [](std::vector<load_t> const& loads, topology_shape const& shape) {
    topology const where{shape};
    auto const experts = static_cast<index_t>(loads.size());
    auto const made =
        planned(tensorrt_llm_policy{}, {loads, 1, experts}, trivial_placement({1, experts, where.num_slots()}), where);
    auto const row = made.logical_of_slot(0);
    return std::vector<index_t>{row.begin(), row.end()};
  };
  CHECK(plan_for({10, 5, 2, 15, 8}, {3, 1, 3, 0}) == std::vector<index_t>{0, 3, 4, 0, 3, 4, 1, 3, 2});
  CHECK(plan_for({1, 100, 10}, {2, 1, 2, 0}) == std::vector<index_t>{1, 2, 1, 0});
  CHECK(plan_for({1, 4, 2, 1}, {2, 1, 4, 0}) == std::vector<index_t>{0, 1, 1, 2, 1, 1, 2, 3});
}

TEST_CASE("the oracles are as good on recordings as the originals were found to be") {
  // Planned for the first step, judged on the second; moves a layer to the plan for the second.
  struct finding {
    double even, split, moves;
  };
  auto const check = [](auto const& peer, std::string const& trace, topology_shape const& shape, finding const& found) {
    CAPTURE(std::string{peer.name});
    auto const of = recorded(trace);
    topology const where{shape};
    auto const first = planned(peer, of.step(0), trivial_placement({of.layers, of.experts, where.num_slots()}), where);
    auto const second = planned(peer, of.step(1), first, where);
    CHECK(even(where, first, of.step(1)) == doctest::Approx(found.even).epsilon(1e-4));
    CHECK(re_split(where, first, of.step(1)) == doctest::Approx(found.split).epsilon(1e-4));
    CHECK(static_cast<double>(count_moves(where, first, second)) / of.layers ==
          doctest::Approx(found.moves).epsilon(0.01));
  };
  check(tensorrt_llm_policy{}, "olmoe-1b-7b/domains", {8, 1, 9, 0}, {0.7016, 0.7106, 63.3});
  check(sglang_vec_policy{}, "olmoe-1b-7b/domains", {8, 1, 9, 0}, {0.7728, 0.7879, 60.0});
  check(tensorrt_llm_policy{}, "mixtral-8x7b/domains", {4, 1, 3, 0}, {0.9222, 0.9629, 8.3});
  check(sglang_vec_policy{}, "mixtral-8x7b/domains", {4, 1, 3, 0}, {0.9135, 0.9310, 7.3});
  check(xllm_policy{}, "mixtral-8x7b/domains", {4, 1, 3, 0}, {0.9034, 0.9768, 5.7});
}

TEST_CASE("swift sends at most one expert from any rank to any other, and makes no layer worse") {
  ballast_test::generator random{31};
  int changed = 0;
  for (int i = 0; i < 200; ++i) {
    CAPTURE(i);
    topology const where{{random.between(2, 8), 1, random.between(2, 6), 0}};
    auto const experts = random.between(where.slots_per_rank(), where.num_slots() - 1);
    std::vector<load_t> loads;
    for (index_t e = 0; e < experts; ++e) { loads.push_back(load_t{1} + random.below(1000) * random.below(1000)); }
    auto const current = trivial_placement({1, experts, where.num_slots()});
    auto const made = planned(swift_policy{}, {loads, 1, experts}, current, where);
    CHECK(balance_of(where, made, 0, loads).max <= balance_of(where, current, 0, loads).max);
    // No rank receives more experts than there are others to send one each.
    for (index_t rank = 0; rank < where.num_ranks(); ++rank) {
      std::set<index_t> arrived;
      for (auto slot = where.first_slot(rank); slot < where.first_slot(rank + 1); ++slot) {
        auto const expert = made.logical_of_slot(0)[static_cast<std::size_t>(slot)];
        auto const held = current.replicas_of(0, expert);
        bool const was_here =
            std::any_of(held.begin(), held.end(), [&](index_t other) { return where.rank_of_slot(other) == rank; });
        if (!was_here) { arrived.insert(expert); }
      }
      CHECK(std::ssize(arrived) < where.num_ranks());
    }
    changed += made == current ? 0 : 1;
  }
  CHECK(changed > 150);
}

// ---- ballast beside them ----

TEST_CASE("no peer balances a recorded layer better than balanced_placement") {
  int compared = 0;
  for (auto const* name : {"deepseek-v2-lite/mixed_512tok", "deepseek-v2-lite/law_512tok", "olmoe-1b-7b/domains",
                           "olmoe-1b-7b/tulu_base_sft_dpo", "mixtral-8x7b/domains"}) {
    CAPTURE(name);
    auto const of = recorded(name);
    for (auto const& shape : of.experts == 8 ? std::vector<topology_shape>{{4, 1, 3, 0}, {8, 1, 2, 0}}
                                             : std::vector<topology_shape>{{8, 1, 9, 0}, {16, 2, 5, 0}}) {
      topology const where{shape};
      auto const start = trivial_placement({of.layers, of.experts, where.num_slots()});
      for (index_t step = 0; step < of.steps; step += std::max(of.steps / 4, index_t{1})) {
        auto const loads = of.step(step);
        auto const ours = planned(balanced_placement{}, loads, start, where);
        for_each_peer([&](auto const& peer) {
          CAPTURE(std::string{peer.name});
          auto const theirs = planned(peer, loads, start, where);
          for (index_t layer = 0; layer < of.layers; ++layer) {
            CHECK(balance_of(where, ours, layer, loads.row(layer)).max <=
                  balance_of(where, theirs, layer, loads.row(layer)).max * (1 + 1e-6));
            ++compared;
          }
        });
      }
    }
  }
  CHECK(compared > 1000);
}

namespace {
struct window_score {
  double even = 0;
  double split = 0;
};
/// Means over all ordered pairs of steps.
template <class Policy>
window_score next_window(Policy const& policy, ballast_test::trace const& of, topology const& where) {
  auto const start = trivial_placement({of.layers, of.experts, where.num_slots()});
  window_score sum;
  for (index_t first = 0; first < of.steps; ++first) {
    auto const made = planned(policy, of.step(first), start, where);
    for (index_t second = 0; second < of.steps; ++second) {
      if (second == first) { continue; }
      sum.even += even(where, made, of.step(second));
      sum.split += re_split(where, made, of.step(second));
    }
  }
  auto const pairs = static_cast<double>(of.steps * (of.steps - 1));
  return {sum.even / pairs, sum.split / pairs};
}
}  // namespace

TEST_CASE("split anew, a layout with headroom is ahead of every peer on recordings that it was not made for") {
  struct setup {
    char const* trace;
    topology_shape shape;
  };
  std::vector<setup> const setups{
      {"olmoe-1b-7b/domains", {8, 1, 9, 0}},           {"olmoe-1b-7b/domains", {16, 2, 5, 0}},
      {"olmoe-1b-7b/tulu_base_sft_dpo", {8, 1, 9, 0}}, {"olmoe-1b-7b/tulu_base_sft_dpo", {16, 2, 5, 0}},
      {"mixtral-8x7b/domains", {4, 1, 3, 0}},          {"mixtral-8x7b/domains", {8, 1, 2, 0}}};
  double ours_even = 0;
  std::vector<double> theirs_even(4, 0);
  for (auto const& [trace, shape] : setups) {
    CAPTURE(std::string{trace});
    auto const of = recorded(trace);
    topology const where{shape};
    auto const ours = next_window(headroom_placement{}, of, where);
    ours_even += ours.even;
    std::size_t i = 0;
    for_each_peer([&](auto const& peer) {
      CAPTURE(std::string{peer.name});
      auto const theirs = next_window(peer, of, where);
      MESSAGE(peer.name << " " << theirs.even << ", split anew " << theirs.split << "; headroom " << ours.even << ", "
                        << ours.split);
      CHECK(ours.split >= theirs.split);
      theirs_even[i++] += theirs.even;
    });
  }
  // With even shares one or another is ahead in some setups; in their mean none by as much as half a point.
  for (auto const even : theirs_even) { CHECK(ours_even >= even - 0.005 * static_cast<double>(setups.size())); }
}
