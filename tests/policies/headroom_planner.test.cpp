// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Layers small enough to be worked out by hand.
#include <ballast/policies/detail/headroom/headroom_planner.hpp>
#include <ballast/topology.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <vector>

using namespace ballast;
using detail::headroom_limits;
using detail::headroom_planner;

namespace {

/// What each rank holds, ascending.
std::vector<std::vector<index_t>> plan(topology const& where, std::vector<load_t> const& loads,
                                       headroom_limits const& limits = {}, bool even = true) {
  headroom_planner planner{where, static_cast<index_t>(loads.size()), limits};
  std::ranges::copy(loads, planner.loads().begin());
  std::vector<index_t> row(static_cast<std::size_t>(where.num_slots()), 0);
  if (even) {
    planner.plan_even_layer(0, row);
  } else {
    planner.plan_layer(0, row).or_throw();
  }
  std::vector<std::vector<index_t>> held;
  auto const slots = static_cast<std::ptrdiff_t>(where.slots_per_rank());
  for (auto first = row.begin(); first != row.end(); first += slots) {
    std::sort(first, first + slots);
    held.emplace_back(first, first + slots);
  }
  return held;
}

using ranks = std::vector<std::vector<index_t>>;
topology const two_by_two{{2, 1, 2, 0}};

}  // namespace

TEST_CASE("where a rank has room for all experts it holds them all, in turn") {
  CHECK(plan(topology{{2, 1, 3, 0}}, {5, 1}) == ranks{{0, 0, 1}, {0, 0, 1}});
  CHECK(plan(topology{{2, 1, 3, 0}}, {5, 1}, {}, false) == ranks{{0, 0, 1}, {0, 0, 1}});
}

TEST_CASE("single experts go largest first to the lightest rank") {
  CHECK(plan(two_by_two, {8, 6, 4, 2}) == ranks{{0, 3}, {1, 2}});
}

TEST_CASE("neighbours in id part, as far as balance allows") {
  CHECK(plan(two_by_two, {8, 8, 8, 8}, {.id_blocks = 2}) == ranks{{0, 2}, {1, 3}});
  // 0 and 1 on one rank would be balanced as well.
  CHECK(plan(two_by_two, {8, 7, 8, 7}, {.id_blocks = 2})[0] != std::vector<index_t>{0, 1});
}

TEST_CASE("spare slots go to the heaviest expert, its copies to different ranks") {
  auto const held = plan(two_by_two, {9, 4, 4});
  CHECK(std::ranges::count(held[0], 0) == 1);
  CHECK(std::ranges::count(held[1], 0) == 1);
  // With as many spare slots as ranks, many experts with two copies are worth more than one with three.
  auto const many = plan(topology{{3, 1, 3, 0}}, {9, 8, 7, 1, 1, 1});
  for (index_t const expert : {0, 1, 2}) {
    index_t copies = 0;
    for (auto const& rank : many) { copies += static_cast<index_t>(std::ranges::count(rank, expert)); }
    CHECK(copies == 2);
  }
}

TEST_CASE("exchanges balance even shares as far as they are asked for") {
  // Largest first: 0 and 3 and 4 (6 + 4 + 2) against 1 and 2 and 5 (5 + 5 + 0): 12 to 10. 0 for 1 makes it 11 to 11.
  topology const where{{2, 1, 3, 0}};
  constexpr load_t million = 1'000'000;
  std::vector<load_t> const loads{6 * million, 5 * million, 5 * million, 4 * million, 2 * million, 0};
  auto const load_of = [&](std::vector<index_t> const& held) {
    load_t sum = 0;
    for (auto const expert : held) { sum += loads[static_cast<std::size_t>(expert)]; }
    return sum;
  };
  auto const exchanged = plan(where, loads, {.id_blocks = 1});
  CHECK(load_of(exchanged[0]) == 11 * million);
  CHECK(load_of(exchanged[1]) == 11 * million);
  auto const as_dealt = plan(where, loads, {.id_blocks = 1, .exchanges = 0});
  CHECK(std::max(load_of(as_dealt[0]), load_of(as_dealt[1])) == 12 * million);
  auto const near_enough = plan(where, loads, {.id_blocks = 1, .even_tolerance_ppm = 100'000});
  CHECK(near_enough == as_dealt);
}

TEST_CASE("dead ranks are left alone") {
  topology where{{3, 1, 2, 0}};
  where.set_live(1, false);
  CHECK(plan(where, {8, 6, 4, 2}) == ranks{{0, 3}, {0, 0}, {1, 2}});
}
