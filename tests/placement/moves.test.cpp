// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/placement/moves.hpp>

#include "support/long_runs.hpp"
#include "support/random.hpp"

#include <doctest/doctest.h>

#include <set>
#include <utility>
#include <vector>

using namespace ballast;

namespace {

placement of(placement_shape shape, std::vector<index_t> const& map) {
  placement result;
  result.assign(shape, map).or_throw();
  return result;
}

/// Pairs (rank, expert) of one layer.
std::set<std::pair<index_t, index_t>> held(topology const& where, placement const& in, index_t layer) {
  std::set<std::pair<index_t, index_t>> result;
  for (index_t slot = 0; slot < in.num_slots(); ++slot) {
    result.emplace(where.rank_of_slot(slot), in.logical_of_slot(layer)[static_cast<std::size_t>(slot)]);
  }
  return result;
}

}  // namespace

TEST_CASE("a move is an expert that the rank did not hold before") {
  topology const where{{2, 1, 3, 0}};
  placement_shape const shape{1, 4, 6};
  auto const from = of(shape, {0, 1, 2, 3, 0, 1});
  CHECK(count_moves(where, from, from, 0) == 0);
  CHECK(count_moves(where, from, of(shape, {2, 0, 1, 1, 3, 0}), 0) == 0);  // permuted inside the ranks
  CHECK(count_moves(where, from, of(shape, {0, 0, 2, 3, 1, 1}), 0) == 0);  // further copies are local
  CHECK(count_moves(where, from, of(shape, {3, 3, 2, 1, 0, 0}), 0) == 1);  // two copies, one receive
  CHECK(count_moves(where, from, of(shape, {3, 0, 1, 2, 2, 1}), 0) == 2);
}

TEST_CASE("moves are the pairs of the target that the current placement lacks") {
  ballast_test::generator random{1};
  for (int repeat = 0, count = ballast_test::cases(200); repeat < count; ++repeat) {
    topology const where{{random.between(1, 5), 1, random.between(1, 4), 0}};
    placement_shape const shape{2, random.between(1, where.num_slots()), where.num_slots()};
    auto const from = ballast_test::random_placement(shape, random);
    auto const to = ballast_test::random_placement(shape, random);
    std::int64_t sum = 0;
    for (index_t layer = 0; layer < 2; ++layer) {
      auto const before = held(where, from, layer);
      index_t expected = 0;
      for (auto const& pair : held(where, to, layer)) { expected += before.contains(pair) ? 0 : 1; }
      CHECK(count_moves(where, from, to, layer) == expected);
      sum += expected;
    }
    CHECK(count_moves(where, from, to) == sum);
  }
}

TEST_CASE("moves need placements of one size") {
  topology const where{{2, 1, 2, 0}};
  auto const small = trivial_placement({1, 2, 4});
  CHECK_BREAKS_CONTRACT(count_moves(where, small, trivial_placement({1, 2, 6}), 0));
  CHECK_BREAKS_CONTRACT(count_moves(where, small, trivial_placement({1, 3, 4}), 0));
}
