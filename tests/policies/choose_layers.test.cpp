// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/load/history.hpp>
#include <ballast/placement/balancedness.hpp>
#include <ballast/placement/detail/dead_ranks.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/placement/validate.hpp>
#include <ballast/policies/detail/incremental/choose_layers.hpp>
#include <ballast/shares/replica_shares.hpp>
#include <ballast/topology.hpp>

#include <doctest/doctest.h>
#include <support/random.hpp>

#include <algorithm>
#include <cstdint>
#include <vector>

using namespace ballast;

namespace {

constexpr index_t num_layers = 3;

placement map_of(index_t num_logical, std::vector<index_t> const& rows) {
  placement result;
  auto const slots = static_cast<index_t>(rows.size()) / num_layers;
  result.assign({num_layers, num_logical, slots}, rows).or_throw();
  return result;
}

struct change_sums {
  std::int64_t moves = 0;
  load_t gain = 0;
};
change_sums sums_of(std::vector<detail::layer_change> const& changes, std::vector<unsigned char> const& made) {
  change_sums result;
  for (std::size_t i = 0; i < changes.size(); ++i) {
    result.moves += made[i] != 0 ? changes[i].moves : 0;
    result.gain += made[i] != 0 ? changes[i].gain : 0;
  }
  return result;
}

}  // namespace

TEST_CASE("the layers that gain most for each move have the budget") {
  topology const where{{2, 1, 3, 0}};
  auto const current = map_of(6, {0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5});
  // Layer 0: one exchange, the busiest rank goes from 8 to 4: 2 for each move. Layer 1: two exchanges, 20 to 10: 2.5.
  // Layer 2: one exchange, 12 to 6: 3.
  auto const plan = map_of(6, {3, 1, 2, 0, 4, 5, 3, 4, 2, 0, 1, 5, 3, 1, 2, 0, 4, 5});
  // Two buckets, which count together: layer 2 has less than layer 0 in the last one.
  std::vector<load_t> const tokens{0, 0, 0, 0, 0, 0, 5, 5, 10, 0, 0, 0, 6, 6, 0, 0, 0, 0,  //
                                   4, 4, 0, 0, 0, 0, 0, 0, 0,  0, 0, 0, 0, 0, 0, 0, 0, 0};
  load_history_view const history{tokens, 2, num_layers, 6};
  struct {
    std::int64_t budget;
    std::vector<index_t> chosen;
  } const cases[] = {
      {8, {0, 1, 2}}, {7, {1, 2}}, {6, {1, 2}}, {5, {0, 2}}, {4, {0, 2}}, {3, {2}}, {2, {2}}, {1, {}}, {0, {}},
  };
  for (auto const& each : cases) {
    CAPTURE(each.budget);
    auto next = plan;
    detail::choose_layers(history, current, where, each.budget, share_mode::even, next);
    std::vector<index_t> chosen;
    for (index_t layer = 0; layer < num_layers; ++layer) {
      bool const stays = std::ranges::equal(next.logical_of_slot(layer), current.logical_of_slot(layer));
      bool const moves = std::ranges::equal(next.logical_of_slot(layer), plan.logical_of_slot(layer));
      CHECK(stays != moves);
      if (moves) { chosen.push_back(layer); }
    }
    CHECK(chosen == each.chosen);
  }
}

TEST_CASE("of layers that gain alike the first ones have the budget, and layers without moves need none") {
  topology const where{{2, 1, 2, 0}};
  auto const current = map_of(4, {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3});
  auto next = map_of(4, {0, 2, 1, 3, 1, 0, 3, 2, 0, 2, 1, 3});  // layer 1 only calls its slots otherwise
  std::vector<load_t> const tokens{2, 2, 0, 0, 2, 2, 0, 0, 2, 2, 0, 0};
  detail::choose_layers({tokens, 1, num_layers, 4}, current, where, 2, share_mode::even, next);
  CHECK(next.logical_of_slot(0)[1] == 2);
  CHECK(next.logical_of_slot(1)[0] == 1);
  CHECK(next.logical_of_slot(2)[1] == 1);
}

TEST_CASE("a layer with an expert that no live rank holds moves whatever it takes") {
  topology where{{2, 1, 3, 0}};
  where.set_live(1, false);
  auto const current = map_of(3, {0, 1, 1, 2, 2, 2, 0, 1, 2, 2, 2, 2, 0, 1, 1, 2, 2, 2});
  auto next = map_of(3, {0, 1, 2, 2, 2, 2, 0, 1, 2, 2, 2, 2, 0, 1, 2, 2, 2, 2});
  std::vector<load_t> const tokens{1, 1, 1, 1, 1, 1, 1, 1, 1};
  detail::choose_layers({tokens, 1, num_layers, 3}, current, where, 0, share_mode::even, next);
  CHECK(next.logical_of_slot(0)[2] == 2);
  CHECK(next.logical_of_slot(2)[2] == 2);
}

TEST_CASE("what such a layer takes, the others do not have") {
  topology where{{3, 1, 2, 0}};
  where.set_live(2, false);
  auto const current = map_of(4, {0, 1, 2, 2, 3, 3, 0, 1, 2, 3, 3, 3, 0, 1, 2, 3, 3, 3});
  // Layer 0: expert 3 gets a home, one move. Layer 1: an exchange that halves the busiest rank, two moves.
  auto const plan = map_of(4, {0, 1, 2, 3, 3, 3, 0, 2, 1, 3, 3, 3, 0, 1, 2, 3, 3, 3});
  std::vector<load_t> const tokens{1, 1, 1, 1, 2, 2, 0, 0, 1, 1, 1, 1};
  for (std::int64_t const budget : {0, 1, 2, 3}) {
    CAPTURE(budget);
    auto next = plan;
    detail::choose_layers({tokens, 1, num_layers, 4}, current, where, budget, share_mode::even, next);
    CHECK(next.logical_of_slot(0)[3] == 3);
    CHECK(next.logical_of_slot(1)[1] == (budget == 3 ? 2 : 1));
  }
}

TEST_CASE("no other choice of changes gains more for so many moves") {
  ballast_test::generator random{31};
  for (int i = 0; i < 400; ++i) {
    CAPTURE(i);
    std::vector<detail::layer_change> changes(static_cast<std::size_t>(random.between(0, 9)));
    std::int64_t total = 0;
    for (auto& one : changes) {
      one = {0, random.between(1, 12), load_t{9} * 1024 * random.below(40)};
      total += one.moves;
    }
    load_t least = 0;
    for (std::int64_t most = 0; most <= total; ++most) {
      CAPTURE(most);
      auto const [moves, gain] = sums_of(changes, detail::best_changes(changes, most));
      CHECK(moves <= most);
      load_t best = 0;
      for (unsigned choice = 0; choice < 1U << changes.size(); ++choice) {
        std::vector<unsigned char> made(changes.size());
        for (std::size_t k = 0; k < made.size(); ++k) { made[k] = choice >> k & 1U; }
        auto const other = sums_of(changes, made);
        if (other.moves <= most) { best = std::max(best, other.gain); }
      }
      // Gains count in whole multiples of how many changes there are.
      CHECK(gain >= best - static_cast<load_t>(changes.size() * changes.size()));
      CHECK(gain >= least);
      least = gain;
    }
  }
}

TEST_CASE("very many moves are counted in bundles, and still more moves never gain less") {
  ballast_test::generator random{32};
  std::vector<detail::layer_change> changes(60);
  std::int64_t total = 0;
  for (auto& one : changes) {
    one = {0, random.between(1, 5000), load_t{1'000'000} * random.below(1000)};
    total += one.moves;
  }
  load_t least = 0;
  for (std::int64_t most = 0; most < total + total / 50; most += total / 50) {
    CAPTURE(most);
    auto const [moves, gain] = sums_of(changes, detail::best_changes(changes, most));
    CHECK(moves <= most);
    CHECK(gain >= least);
    least = gain;
  }
  CHECK(least > 0);
}

TEST_CASE("with optimal shares a layer that stays is split anew") {
  topology const where{{2, 1, 2, 0}};
  auto current = map_of(3, {0, 1, 0, 2, 0, 1, 0, 2, 0, 1, 0, 2});
  auto next = map_of(3, {0, 1, 1, 2, 0, 1, 1, 2, 0, 1, 1, 2});
  std::vector<load_t> const tokens{8, 6, 2, 8, 6, 2, 8, 6, 2};
  share_solver solver;
  load_history_view const history{tokens, 1, num_layers, 3};
  optimal_shares(where, next, history, solver).or_throw();
  auto plan = next;
  detail::choose_layers(history, current, where, 0, share_mode::optimal, plan);
  optimal_shares(where, current, history, solver).or_throw();
  for (index_t layer = 0; layer < num_layers; ++layer) {
    CHECK(std::ranges::equal(plan.logical_of_slot(layer), current.logical_of_slot(layer)));
    CHECK(balance_of(where, plan, layer, history.layer(0, layer)).max == 8);
  }
}

TEST_CASE("layers that stay have even shares, as plans have, and the dead none of them") {
  // Layers 0 to 2 are alike; a budget that suffices changes nothing of the plan, though the shares in force are better.
  topology where{{3, 1, 2, 0}};
  auto current = map_of(3, {0, 1, 2, 1, 0, 2, 0, 1, 2, 1, 0, 2, 0, 1, 2, 1, 0, 2});
  auto const plan = map_of(3, {0, 1, 0, 1, 2, 2, 0, 1, 2, 1, 0, 2, 0, 1, 2, 1, 0, 2});
  std::vector<load_t> const tokens{900, 100, 100, 900, 100, 100, 900, 100, 100};
  load_history_view const history{tokens, 1, num_layers, 3};
  current.make_shares_even();
  for (index_t layer = 0; layer < num_layers; ++layer) {
    current.edit_shares(layer)[0] = share_one / 4;
    current.edit_shares(layer)[4] = share_one - share_one / 4;
  }
  auto next = plan;
  detail::choose_layers(history, current, where, 1000, share_mode::even, next);
  CHECK(next == plan);
  where.set_live(2, false);
  for (std::int64_t const budget : {0, 1000}) {
    CAPTURE(budget);
    next = current;
    next.drop_shares();
    next.edit(0).logical_of_slot[1] = 0;
    next.edit(0).logical_of_slot[2] = 1;
    next.edit(0).logical_of_slot[3] = 2;
    next.index_replicas(0);
    detail::finish_plan(current, where, next);
    detail::choose_layers(history, current, where, budget, share_mode::even, next);
    for (index_t layer = 0; layer < num_layers; ++layer) {
      CHECK(next.shares(layer)[4] == 0);
      CHECK(next.shares(layer)[5] == 0);
    }
    CHECK(validate_live(where, next).ok());
  }
}
