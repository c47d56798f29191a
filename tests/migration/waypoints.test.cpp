// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/migration/transfer_plan.hpp>
#include <ballast/migration/waypoints.hpp>

#include "../support/long_runs.hpp"
#include "../support/random.hpp"
#include "../support/transfers.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <ostream>  // doctest prints error codes
#include <span>
#include <vector>

namespace {

using namespace ballast;
using namespace ballast_test;

struct walked {
  std::size_t steps = 0;
  std::size_t moves = 0;
};

// Walk the waypoints and judge every step.
walked walk(topology const& where, placement const& from, placement const& to, index_t max_arrivals) {
  waypoint_planner planner;
  std::vector<index_t> rows;
  planner.split(where, from.logical_of_slot(0), to.logical_of_slot(0), from.num_logical(), max_arrivals, rows);
  auto const slots = static_cast<std::size_t>(where.num_slots());
  REQUIRE(rows.size() % slots == 0);
  walked result;
  auto at = from;
  for (std::size_t row = 0; row < rows.size(); row += slots) {
    placement next;
    next.assign(from.shape(), std::span{rows}.subspan(row, slots)).or_throw();
    layer_transfer transfer;
    detail::transfer_scratch scratch;
    plan_layer_transfer(where, at, next, 0, scratch, transfer).or_throw();
    REQUIRE(first_flaw(where, at, next, transfer) == "");
    REQUIRE(replay_commit(where, at, next, transfer) == "");
    std::vector<index_t> arrivals(static_cast<std::size_t>(where.num_ranks()));
    for (auto const& move : transfer.moves) {
      ++arrivals[static_cast<std::size_t>(where.rank_of_slot(move.target_slot))];
    }
    REQUIRE(*std::ranges::max_element(arrivals) <= max_arrivals);
    // Arrivals and local copies never share a step, so a spare place is never needed beside an arrival.
    REQUIRE((transfer.moves.empty() || transfer.copies.empty()));
    result.moves += transfer.moves.size();
    ++result.steps;
    at = next;
  }
  REQUIRE(std::ranges::equal(at.logical_of_slot(0), to.logical_of_slot(0)));
  return result;
}

std::size_t direct_moves(topology const& where, placement const& from, placement const& to) {
  layer_transfer transfer;
  detail::transfer_scratch scratch;
  plan_layer_transfer(where, from, to, 0, scratch, transfer).or_throw();
  return transfer.moves.size();
}

}  // namespace

TEST_CASE("two ranks swap everything with room for one expert") {
  topology const where{{2, 1, 3, 0}};
  placement from;
  placement to;
  from.assign({1, 6, 6}, std::vector<index_t>{0, 1, 2, 3, 4, 5}).or_throw();
  to.assign({1, 6, 6}, std::vector<index_t>{3, 4, 5, 0, 1, 2}).or_throw();
  auto const one = walk(where, from, to, 1);
  CHECK(one.moves == 6);
  CHECK(one.steps == 4);  // three swaps and the sorting inside ranks
  CHECK(walk(where, from, to, 3).steps == 2);
}

TEST_CASE("a cycle through a rank twice is walked with room for one expert") {
  topology const where{{2, 1, 2, 0}};
  placement from;
  placement to;
  from.assign({1, 4, 4}, std::vector<index_t>{0, 1, 2, 3}).or_throw();
  to.assign({1, 4, 4}, std::vector<index_t>{2, 3, 1, 0}).or_throw();
  CHECK(walk(where, from, to, 1).moves == 4);
}

TEST_CASE("random pairs arrive, step by valid step, with no more moves than the direct way") {
  generator random{11};
  topology_shape const shapes[] = {{2, 1, 3, 0},  {4, 2, 4, 0},  {8, 2, 9, 0},
                                   {12, 3, 2, 0}, {32, 4, 9, 0}, {7, 1, 1, 0}};
  for (int trial = 0, count = ballast_test::cases(400); trial < count; ++trial) {
    CAPTURE(trial);
    topology const where{shapes[random.below(6)]};
    // No spare slot in every third trial: the hardest case.
    auto const experts = trial % 3 == 0 ? where.num_slots() : random.between(1, where.num_slots());
    placement_shape const sizes{1, experts, where.num_slots()};
    auto const from = random_placement(sizes, random);
    auto const to = random_placement(sizes, random);
    CHECK(walk(where, from, to, random.between(1, 3)).moves == direct_moves(where, from, to));
  }
}
