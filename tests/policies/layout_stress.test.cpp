// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/policies/detail/incremental/layout_stress.hpp>
#include <ballast/policies/detail/incremental/replica_map.hpp>
#include <ballast/topology.hpp>

#include <doctest/doctest.h>

#include <vector>

using namespace ballast;
using detail::layout_stress;
using detail::replica_map;

namespace {

constexpr load_t heavy = layout_stress::unit * 1000;  // so that the mean's rounding is below 1 / 1000

load_t stress(topology const& where, std::vector<index_t> const& row, std::vector<load_t> const& loads) {
  replica_map map;
  map.open(where, row, loads);
  return layout_stress{}(where, map);
}

}  // namespace

TEST_CASE("neighbours on one rank are hit together, dealt out they are not") {
  topology const where{{2, 1, 8, 0}};
  std::vector<load_t> const loads(16, heavy);
  // 16 experts are 8 blocks of 2. A hot block adds 2 x 1/2 to one rank of 8: 9 over a mean of 8.5.
  auto const together = stress(where, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, loads);
  CHECK(together == layout_stress::unit * 9000 / 8502);
  // Dealt out it adds as much to each: 8.5 over 8.5.
  auto const apart = stress(where, {0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15}, loads);
  CHECK(apart == layout_stress::unit * 8500 / 8502);
}

TEST_CASE("a layout that is out of balance anyway is worse than a balanced one") {
  topology const where{{2, 1, 2, 0}};
  std::vector<load_t> const loads{3 * heavy, 3 * heavy, heavy, heavy};
  auto const balanced = stress(where, {0, 2, 1, 3}, loads);
  auto const uneven = stress(where, {0, 1, 2, 3}, loads);
  CHECK(balanced < uneven);
  // Four blocks of one. Balanced: 4 + 1.5 over 4 + 0.75 twice, 4 + 0.5 over 4 + 0.25 twice, in halves.
  CHECK(balanced == (2 * (layout_stress::unit * 2750 / 2376) + 2 * (layout_stress::unit * 2250 / 2126)) / 4);
}

TEST_CASE("copies share what their block gets, and dead ranks have no part in it") {
  topology where{{3, 1, 1, 0}};
  where.set_live(2, false);
  // Two live ranks with a copy of the only expert each: 0.5 + 0.25 over a mean of 0.75.
  CHECK(stress(where, {0, 0, 0}, {heavy}) == layout_stress::unit * 375 / 376);
}

TEST_CASE("a layer without load is not divided by") { CHECK(stress(topology{{2, 1, 1, 0}}, {0, 1}, {0, 0}) == 0); }
