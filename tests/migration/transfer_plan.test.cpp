// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/migration/commit_order.hpp>
#include <ballast/migration/transfer_plan.hpp>

#include "../support/long_runs.hpp"
#include "../support/random.hpp"
#include "../support/transfers.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <ostream>  // doctest prints error codes
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace ballast;
using namespace ballast_test;

placement make(index_t num_logical, std::vector<index_t> const& map) {
  placement result;
  result.assign({1, num_logical, static_cast<index_t>(map.size())}, map).or_throw();
  return result;
}

layer_transfer transfer_of(topology const& where, placement const& from, placement const& to) {
  detail::transfer_scratch scratch;
  layer_transfer out;
  plan_layer_transfer(where, from, to, 0, scratch, out).or_throw();
  return out;
}

}  // namespace

TEST_CASE("equal placements need nothing") {
  topology const where{{2, 1, 2, 0}};
  auto const same = make(4, {0, 1, 2, 3});
  auto const transfer = transfer_of(where, same, same);
  CHECK(transfer.moves_no_bytes());
  CHECK(!transfer.tables_change);
  CHECK(transfer.num_rounds == 0);
  transfer_plan plan;
  plan.assign(where, same, same, std::vector<index_t>{0}).or_throw();
  CHECK(plan.layers().empty());
}

TEST_CASE("a permutation inside a rank is copied locally") {
  topology const where{{2, 1, 3, 0}};
  auto const transfer = transfer_of(where, make(6, {0, 1, 2, 3, 4, 5}), make(6, {1, 2, 0, 3, 4, 5}));
  CHECK(transfer.moves.empty());
  CHECK(transfer.copies == std::vector<slot_copy>{{1, 0}, {2, 1}, {0, 2}});
}

TEST_CASE("several new copies on one rank are one receive and local repeats") {
  topology const where{{2, 1, 3, 0}};
  auto const transfer = transfer_of(where, make(3, {0, 1, 2, 0, 0, 1}), make(3, {0, 1, 2, 2, 0, 2}));
  CHECK(transfer.moves == std::vector<expert_move>{{2, 2, 3, 0}});
  CHECK(transfer.repeats == std::vector<slot_copy>{{3, 5}});
  CHECK(transfer.num_rounds == 1);
}

TEST_CASE("a local copy prefers a slot that keeps its expert") {
  topology const where{{1, 1, 3, 0}};
  auto const transfer = transfer_of(where, make(2, {0, 0, 1}), make(2, {1, 0, 0}));
  CHECK(transfer.copies == std::vector<slot_copy>{{2, 0}, {1, 2}});
}

TEST_CASE("a source on the same node comes before one on another") {
  topology const where{{4, 2, 1, 0}};
  // Expert 0 is on ranks 0 and 3; rank 2 shares a node with rank 3.
  auto const transfer = transfer_of(where, make(3, {0, 1, 2, 0}), make(3, {0, 1, 0, 2}));
  REQUIRE(transfer.moves.size() == 2);
  CHECK(transfer.moves[0].source_slot == 3);
  CHECK(transfer.moves[1].source_slot == 2);
}

TEST_CASE("senders are spread over the holders") {
  // Experts 0 and 1 both lie on ranks 0 and 1; ranks 2 and 3 want both.
  topology const where{{4, 1, 2, 0}};
  auto const transfer = transfer_of(where, make(4, {0, 1, 0, 1, 2, 3, 2, 3}), make(4, {2, 3, 0, 1, 0, 1, 0, 1}));
  std::vector<index_t> sends(4);
  for (auto const& move : transfer.moves) { ++sends[static_cast<std::size_t>(where.rank_of_slot(move.source_slot))]; }
  CHECK(*std::ranges::max_element(sends) == 2);
  CHECK(transfer.num_rounds == 2);
}

namespace {

// The least rounds that any choice of sources allows, by trying all of them.
index_t fewest_rounds(topology const& where, placement const& from, std::vector<expert_move> moves,
                      std::size_t next = 0) {
  if (next == moves.size()) {
    std::vector<message_ends> ends;
    ends.reserve(moves.size());
    for (auto const& move : moves) {
      ends.push_back({where.rank_of_slot(move.source_slot), where.rank_of_slot(move.target_slot)});
    }
    return round_coloring{}.assign(where.num_ranks(), ends);
  }
  auto best = static_cast<index_t>(moves.size()) + 1;
  for (auto const slot : from.replicas_of(0, moves[next].expert)) {
    moves[next].source_slot = slot;
    best = std::min(best, fewest_rounds(where, from, moves, next + 1));
  }
  return best;
}

}  // namespace

TEST_CASE("no choice of sources needs fewer rounds") {
  generator random{77};
  topology const where{{5, 1, 2, 0}};
  for (int trial = 0, count = ballast_test::cases(300); trial < count; ++trial) {
    CAPTURE(trial);
    placement_shape const sizes{1, random.between(3, 6), where.num_slots()};
    auto const from = random_placement(sizes, random);
    auto const transfer = transfer_of(where, from, random_placement(sizes, random));
    CHECK(transfer.num_rounds == fewest_rounds(where, from, transfer.moves));
  }
}

TEST_CASE("dead ranks neither send nor receive, and an expert that only they hold is named") {
  topology where{{3, 1, 2, 0}};
  where.set_live(0, false);
  auto const from = make(3, {0, 1, 1, 2, 2, 0});
  auto const transfer = transfer_of(where, from, make(3, {2, 2, 0, 2, 2, 1}));
  CHECK(transfer.moves == std::vector<expert_move>{{0, 5, 2, 0}, {1, 2, 5, 0}});
  detail::transfer_scratch scratch;
  layer_transfer out;
  where.set_live(2, false);
  auto const refused = plan_layer_transfer(where, from, make(3, {2, 2, 0, 2, 2, 1}), 0, scratch, out);
  CHECK(refused.code() == errc::missing_expert);
  CHECK(refused.message().find("expert 0") != std::string::npos);
}

TEST_CASE("with relay an expert crosses into a node once and is passed on inside") {
  topology const where{{4, 2, 2, 0}};
  auto const from = make(4, {0, 1, 2, 3, 2, 3, 2, 3});
  auto const to = make(4, {0, 1, 2, 3, 0, 1, 1, 0});
  detail::transfer_scratch scratch;
  layer_transfer transfer;
  plan_layer_transfer(where, from, to, 0, scratch, transfer, {.relay = true}).or_throw();
  CHECK(first_flaw(where, from, to, transfer) == "");
  index_t crossings = 0;
  for (auto const& move : transfer.moves) { crossings += sender_of(where, transfer, move) < 2 ? 1 : 0; }
  CHECK(transfer.moves.size() == 4);
  CHECK(crossings == 2);
  CHECK(transfer.first_relay_round == 2);
  CHECK(transfer.num_rounds == 4);
  limit_rounds(transfer, 1);
  CHECK(first_flaw(where, from, to, transfer) == "");
  CHECK(transfer.first_relay_round == 2);
}

TEST_CASE("a change of shares alone changes tables, not bytes") {
  topology const where{{2, 1, 1, 0}};
  auto const even = make(1, {0, 0});
  auto uneven = even;
  uneven.make_shares_even();
  uneven.edit_shares(0)[0] += 5;
  uneven.edit_shares(0)[1] -= 5;
  auto const transfer = transfer_of(where, even, uneven);
  CHECK(transfer.tables_change);
  CHECK(transfer.moves_no_bytes());
  CHECK(transfer_of(where, uneven, even).tables_change);
  CHECK_FALSE(transfer_of(where, uneven, uneven).tables_change);
  auto told = even;
  told.make_shares_even();  // as they are without
  CHECK_FALSE(transfer_of(where, even, told).tables_change);
  CHECK_FALSE(transfer_of(where, told, even).tables_change);
  CHECK(transfer_of(where, told, uneven).tables_change);
}

TEST_CASE("random pairs: every slot is accounted for, rounds are minimal, commits lose nothing") {
  generator random{42};
  topology_shape const shapes[] = {{1, 1, 6, 0}, {2, 1, 3, 0},  {4, 2, 4, 0},
                                   {8, 2, 9, 0}, {12, 3, 2, 0}, {32, 4, 9, 0}};
  for (int trial = 0, count = ballast_test::cases(600); trial < count; ++trial) {
    CAPTURE(trial);
    topology const where{shapes[random.below(6)]};
    placement_shape const sizes{1, random.between(1, where.num_slots()), where.num_slots()};
    auto const from = random_placement(sizes, random);
    auto const to = trial % 3 == 0 ? nudged_placement(from, random) : random_placement(sizes, random);
    auto const transfer = transfer_of(where, from, to);
    REQUIRE(first_flaw(where, from, to, transfer) == "");
    REQUIRE(replay_commit(where, from, to, transfer) == "");
  }
}

// NOLINTBEGIN(bugprone-use-after-move,clang-analyzer-cplusplus.Move): what is left is what is tested
TEST_CASE("a plan that was moved from is empty, and so is one that failed") {
  topology const where{{2, 1, 2, 0}};
  auto const from = make(4, {0, 1, 2, 3});
  auto const to = make(4, {2, 1, 0, 3});
  transfer_plan plan;
  plan.assign(where, from, to, std::vector<index_t>{0}).or_throw();
  transfer_plan taken{std::move(plan)};
  CHECK(taken.layers().size() == 1);
  CHECK(taken.num_moves() == 2);
  CHECK(plan.layers().empty());
  CHECK(plan.find(0) == nullptr);
  CHECK(plan.num_moves() == 0);
  CHECK_BREAKS_CONTRACT(plan.limit_rounds(0, 1));
  plan = std::move(taken);
  CHECK(plan.num_moves() == 2);
  CHECK(taken.layers().empty());
  auto dead = where;
  dead.set_live(0, false);
  CHECK_FALSE(plan.assign(dead, from, to, std::vector<index_t>{0}).ok());
  CHECK(plan.layers().empty());
}
// NOLINTEND(bugprone-use-after-move,clang-analyzer-cplusplus.Move)
