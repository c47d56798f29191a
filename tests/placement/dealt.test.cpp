// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/placement/balancedness.hpp>
#include <ballast/placement/dealt.hpp>

#include <doctest/doctest.h>
#include <support/random.hpp>

#include <algorithm>
#include <set>
#include <span>
#include <system_error>
#include <vector>

using namespace ballast;

namespace {

std::span<index_t const> row_of(placement const& in, topology const& where, index_t rank) {
  return in.logical_of_slot(0).subspan(static_cast<std::size_t>(where.first_slot(rank)),
                                       static_cast<std::size_t>(where.slots_per_rank()));
}

}  // namespace

TEST_CASE("expert e is on rank e mod R, and spare slots go on with the first ones on other ranks") {
  topology const where{{4, 1, 3, 0}};
  auto const dealt = dealt_placement({2, 8, 12}, where);
  std::vector<index_t> const expected{0, 4, 1, 1, 5, 2, 2, 6, 3, 3, 7, 4};
  CHECK(std::equal(expected.begin(), expected.end(), dealt.logical_of_slot(0).begin()));
  for (index_t layer = 0; layer < 2; ++layer) {
    auto const row = dealt.logical_of_slot(layer);
    for (index_t expert = 0; expert < 8; ++expert) {
      auto const mine = row_of(dealt, where, expert % 4);
      CHECK(std::find(mine.begin(), mine.end(), expert) != mine.end());
    }
    CHECK(std::equal(row.begin(), row.end(), dealt.logical_of_slot(0).begin()));
  }
}

TEST_CASE("every expert has a slot, and is twice on a rank only where it must be") {
  ballast_test::generator random{3};
  for (int i = 0; i < 300; ++i) {
    CAPTURE(i);
    auto const nodes = random.between(1, 3);
    auto const ranks = nodes * random.between(1, 5);
    topology const where{{ranks, nodes, random.between(1, 6), 0}};
    auto const experts = random.between(1, where.num_slots());
    auto const dealt = dealt_placement({1, experts, where.num_slots()}, where);
    CHECK(placement::validate(dealt.shape(), dealt.logical_of_slot().elements()).ok());
    for (index_t rank = 0; rank < ranks; ++rank) {
      auto const row = row_of(dealt, where, rank);
      std::set<index_t> const different{row.begin(), row.end()};
      CHECK(static_cast<index_t>(different.size()) == std::min(experts, where.slots_per_rank()));
    }
  }
}

TEST_CASE("groups stay on their node, and dead ranks are dealt nothing") {
  topology where{{6, 2, 3, 0}};
  auto const dealt = dealt_placement({1, 16, 18}, where, 4);
  for (index_t slot = 0; slot < 18; ++slot) {
    CHECK(where.node_of_slot(slot) == dealt.logical_of_slot(0)[static_cast<std::size_t>(slot)] / 8);
  }
  where.set_live(2, false);
  auto const without = dealt_placement({1, 12, 18}, where);
  std::set<index_t> live;
  for (index_t slot = 0; slot < 18; ++slot) {
    if (where.rank_of_slot(slot) != 2) { live.insert(without.logical_of_slot(0)[static_cast<std::size_t>(slot)]); }
  }
  CHECK(live.size() == 12);
  CHECK_THROWS_AS(static_cast<void>(dealt_placement({1, 16, 18}, where)), std::system_error);
  CHECK_THROWS_AS(static_cast<void>(dealt_placement({1, 16, 20}, where)), std::system_error);
  CHECK_THROWS_AS(static_cast<void>(dealt_placement({1, 16, 18}, topology{{6, 2, 3, 0}}, 3)), std::system_error);
}

TEST_CASE("neighbours that are hot together are dealt apart") {
  topology const where{{8, 1, 9, 0}};
  std::vector<load_t> loads(64, 100);
  for (std::size_t e = 16; e < 24; ++e) { loads[e] = 400; }
  matrix_view<load_t const> const view{loads, 1, 64};
  CHECK(balancedness(where, dealt_placement({1, 64, 72}, where), view) >
        1.5 * balancedness(where, trivial_placement({1, 64, 72}), view));
}
