// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/placement/detail/dead_ranks.hpp>
#include <ballast/placement/group_split.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/shares/replica_shares.hpp>
#include <ballast/topology.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <vector>

using namespace ballast;

namespace {

placement map_of(placement_shape shape, std::vector<index_t> const& rows) {
  placement result;
  result.assign(shape, rows).or_throw();
  return result;
}

}  // namespace

TEST_CASE("live ranks are listed in order") {
  topology where{{4, 1, 1, 0}};
  where.set_live(0, false);
  where.set_live(2, false);
  CHECK(detail::live_ranks(where) == std::vector<index_t>{1, 3});
}

TEST_CASE("an expert's tokens are split over its live replicas, to the last unit") {
  topology where{{4, 1, 1, 0}};
  auto in = map_of({1, 1, 4}, {0, 0, 0, 0});
  in.make_shares_even();
  where.set_live(2, false);
  detail::share_evenly_among_live(where, in, 0, 0);
  auto const third = share_one / 3;
  REQUIRE(share_one % 3 == 1);
  CHECK(std::ranges::equal(in.shares(0), std::vector<share_t>{third + 1, third, 0, third}));
}

TEST_CASE("a plan of live ranks is finished: the dead keep what they have and get no tokens") {
  topology where{{3, 1, 2, 0}};
  auto const current = map_of({2, 3, 6}, {0, 1, 2, 0, 1, 2, 0, 1, 1, 2, 2, 0});
  auto next = map_of({2, 3, 6}, {2, 1, 0, 0, 0, 1, 2, 0, 1, 1, 0, 1});
  where.set_live(1, false);
  detail::finish_plan(current, where, next);
  CHECK(std::ranges::equal(next.logical_of_slot(0), std::vector<index_t>{2, 1, 2, 0, 0, 1}));
  CHECK(std::ranges::equal(next.logical_of_slot(1), std::vector<index_t>{2, 0, 1, 2, 0, 1}));
  REQUIRE(next.has_shares());
  auto const half = share_one / 2;
  CHECK(std::ranges::equal(next.shares(0), std::vector<share_t>{share_one, half, 0, 0, share_one, half}));
  CHECK(next.replicas_of(0, 2).size() == 2);
}

TEST_CASE("a plan of all ranks is indexed, and has no shares of its own") {
  topology const where{{3, 1, 1, 0}};
  auto const current = map_of({1, 3, 3}, {0, 1, 2});
  auto next = current;
  next.edit(0).logical_of_slot[0] = 2;
  next.edit(0).logical_of_slot[2] = 0;
  detail::finish_plan(current, where, next);
  CHECK_FALSE(next.has_shares());
  CHECK(next.replicas_of(0, 2)[0] == 0);
}

TEST_CASE("groups that are split over nodes count the tokens of live replicas, all of them") {
  // Expert 0 is on both nodes, twice on the second.
  topology where{{4, 2, 1, 0}};
  auto const in = map_of({1, 2, 4}, {0, 1, 0, 0});
  std::vector<load_t> const loads{12, 5};
  CHECK(split_of_groups(where, in, 2, 0, loads).tokens_away == 4);
  where.set_live(3, false);
  CHECK(split_of_groups(where, in, 2, 0, loads).tokens_away == 6);
  where.set_live(2, false);
  CHECK(split_of_groups(where, in, 2, 0, loads) == group_split{});
}
