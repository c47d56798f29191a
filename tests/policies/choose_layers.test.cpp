// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/load/history.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/policies/detail/incremental/choose_layers.hpp>
#include <ballast/topology.hpp>

#include <doctest/doctest.h>

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
    detail::choose_layers(history, current, where, each.budget, next);
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
  detail::choose_layers({tokens, 1, num_layers, 4}, current, where, 2, next);
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
  detail::choose_layers({tokens, 1, num_layers, 3}, current, where, 0, next);
  CHECK(next.logical_of_slot(0)[2] == 2);
  CHECK(next.logical_of_slot(2)[2] == 2);
}
