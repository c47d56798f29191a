// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Small layers, worked out by hand.
#include <ballast/policies/detail/incremental/move_search.hpp>
#include <ballast/policies/detail/incremental/rehome.hpp>
#include <ballast/policies/detail/incremental/replica_map.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <string>
#include <vector>

using namespace ballast;
using detail::replica_map;

namespace {

replica_map open(topology const& where, std::vector<index_t> const& row, std::vector<load_t> const& loads) {
  replica_map map;
  map.open(where, row, loads);
  return map;
}
std::vector<index_t> row_of(replica_map const& map) {
  return {map.logical_of_slot().begin(), map.logical_of_slot().end()};
}
std::vector<index_t> slots_of(replica_map const& map, index_t expert) {
  std::vector<index_t> slots;
  map.for_each_copy(expert, [&](index_t slot) { slots.push_back(slot); });
  std::sort(slots.begin(), slots.end());
  return slots;
}

topology const two_ranks{{2, 1, 3, 0}};

}  // namespace

TEST_CASE("a layer that is taken over: copies, loads, what one copy more or less would carry") {
  auto const map = open(two_ranks, {0, 1, 0, 1, 2, 2}, {12, 6, 8});
  CHECK(map.num_logical() == 3);
  CHECK(map.copies(0) == 2);
  CHECK(map.copies_on(0, 0) == 2);
  CHECK_FALSE(map.holds(1, 0));
  CHECK(map.per_copy(0) == 6);
  CHECK(map.with_one_more(0) == 4);
  CHECK(map.with_one_less(0) == 12);
  CHECK(map.rank_load(0) == 6 + 3 + 6);
  CHECK(map.rank_load(1) == 3 + 4 + 4);
  CHECK(map.slot_load(4) == 4);
  CHECK(slots_of(map, 1) == std::vector<index_t>{1, 3});
  CHECK(map.replicated().size() == 3);
  CHECK(map.num_spare() == 6);
  CHECK(map.is_doubled(0));
  CHECK_FALSE(map.is_doubled(1));
  CHECK(map.moves() == 0);
  CHECK_FALSE(map.changed(0));
}

TEST_CASE("an expert that its rank has lost is gone from it until it is back") {
  auto map = open(two_ranks, {0, 1, 0, 1, 2, 2}, {12, 6, 8});
  CHECK_FALSE(map.is_gone(1));
  map.assign(1, 2);
  CHECK(map.is_gone(1));
  CHECK(map.is_gone_from(0, 1));
  CHECK_FALSE(map.is_gone_from(1, 1));
  CHECK(map.refund(1) == 1);
  map.assign(0, 2);  // beside the first one: taking either away undoes nothing
  CHECK(map.refund(0) == 0);
  CHECK(map.refund(1) == 0);
  CHECK_FALSE(map.is_gone(0));  // slot 2 still holds it
  map.assign(1, 1);
  CHECK_FALSE(map.is_gone(1));
  CHECK(map.refund(0) == 1);
}

TEST_CASE("an expert that is new on a rank is a move, and undone it is none") {
  auto map = open(two_ranks, {0, 1, 0, 1, 2, 2}, {12, 6, 8});
  CHECK(map.arrival(0, 2) == 1);
  map.assign(2, 2);
  CHECK(map.moves() == 1);
  CHECK(map.arrivals(0).all == 1);
  CHECK(map.refund(2) == 1);
  CHECK(map.per_copy(0) == 12);  // one copy is left
  CHECK(map.per_copy(2) == 2);   // 8 / 3
  CHECK(map.with_one_less(2) == 4);
  CHECK(map.with_one_more(0) == 6);
  CHECK(map.with_one_less(0) == 0);
  CHECK(map.num_spare() == 5);
  CHECK_FALSE(map.is_doubled(0));
  CHECK(map.rank_load(0) == 12 + 3 + 2);
  CHECK(map.rank_load(1) == 3 + 2 + 2);
  CHECK(map.changed(0));
  CHECK_FALSE(map.changed(1));
  CHECK(map.expert_before(2) == 0);
  CHECK(map.held(0, 0));
  map.assign(2, 0);
  CHECK(map.moves() == 0);
  CHECK(map.rank_load(0) == 15);
  CHECK(map.rank_load(1) == 11);
  CHECK(slots_of(map, 2) == std::vector<index_t>{4, 5});
}

TEST_CASE("two copies of an expert on a rank that had none are one move") {
  auto map = open(two_ranks, {0, 1, 0, 1, 2, 2}, {12, 6, 8});
  map.assign(3, 0);
  map.assign(4, 0);
  CHECK(map.moves() == 1);
  CHECK(map.copies_on(1, 0) == 2);
  CHECK(map.refund(3) == 0);  // the other copy needs its bytes all the same
  map.assign(3, 1);
  CHECK(map.refund(4) == 1);
  CHECK(map.moves() == 1);
}

TEST_CASE("an expert that gets its second copy is listed as replicated") {
  auto map = open(topology{{2, 1, 2, 0}}, {0, 1, 2, 2}, {4, 4, 4});
  CHECK(std::vector<index_t>(map.replicated().begin(), map.replicated().end()) == std::vector<index_t>{2});
  map.assign(2, 0);
  CHECK(std::vector<index_t>(map.replicated().begin(), map.replicated().end()) == std::vector<index_t>{2, 0});
}

TEST_CASE("arrivals from another node are counted apart") {
  auto map = open(topology{{4, 2, 1, 0}}, {0, 1, 2, 0}, {4, 4, 4});
  CHECK_FALSE(map.is_remote(1, 0));
  CHECK(map.is_remote(1, 2));
  map.assign(1, 2);
  CHECK(map.arrivals(1).all == 1);
  CHECK(map.arrivals(1).remote == 1);
  auto const near = map.arrivals_with(1, 0);
  CHECK(near.all == 1);
  CHECK(near.remote == 0);
  auto const back = map.arrivals_with(1, 1);
  CHECK(back.all == 0);
  CHECK(back.remote == 0);
}

TEST_CASE("slots of dead ranks hold nothing and carry nothing") {
  auto where = two_ranks;
  where.set_live(1, false);
  auto const map = open(where, {0, 1, 0, 1, 2, 2}, {12, 6, 8});
  CHECK(map.expert(3) == replica_map::none);
  CHECK(map.copies(2) == 0);
  CHECK(map.copies(1) == 1);
  CHECK(map.rank_load(1) == 0);
  CHECK(map.rank_load(0) == 6 + 6 + 6);
  CHECK(slots_of(map, 2).empty());
}

TEST_CASE("experts that only a dead rank held get a home, the heaviest first and each where there is most room") {
  topology where{{3, 1, 2, 0}};
  where.set_live(2, false);
  auto const lost = open(where, {0, 1, 0, 1, 2, 3}, {4, 4, 10, 2});
  SUBCASE("without limits") {
    auto map = lost;
    rehome(map, {}, 0).or_throw();
    // Expert 2 goes to the first of four slots that are alike, expert 3 then to the rank that is lighter.
    CHECK(row_of(map) == std::vector<index_t>{2, 1, 0, 3, -1, -1});
    CHECK(map.moves() == 2);
  }
  SUBCASE("nothing is missing") {
    auto map = open(topology{{3, 1, 2, 0}}, {0, 1, 0, 1, 2, 3}, {4, 4, 10, 2});
    rehome(map, {}, 0).or_throw();
    CHECK(map.moves() == 0);
  }
  SUBCASE("a budget that is too small for all is refused before anything is done") {
    auto map = lost;
    auto const result = rehome(map, {.max_moves = 1}, 7);
    CHECK(result.code() == errc::missing_expert);
    CHECK(result.message() ==
          "incremental_placement: layer 7: no live rank holds expert 2; giving 2 experts a home takes as many moves, "
          "the budget is 1");
    CHECK(map.moves() == 0);
  }
  SUBCASE("one arrival a rank") {
    auto map = lost;
    rehome(map, {.max_arrivals = 1}, 0).or_throw();
    CHECK(map.arrivals(0).all == 1);
    CHECK(map.arrivals(1).all == 1);
  }
  SUBCASE("no arrivals") {
    auto map = lost;
    auto const result = rehome(map, {.max_arrivals = 0}, 7);
    CHECK(result.code() == errc::missing_expert);
    CHECK(result.message().find("no live rank holds expert 2, and none may receive it") != std::string::npos);
  }
}
