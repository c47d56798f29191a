// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/detail/index.hpp>
#include <ballast/dispatch/redundancy_mapping.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/topology.hpp>

#include <doctest/doctest.h>
#include <support/random.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

using namespace ballast;

namespace {

std::vector<std::int32_t> const untouched(4, 77);

}  // namespace

TEST_CASE("spare slots name experts by their homes") {
  // Two ranks of two home slots and two spare ones; experts 2 and 3 live on rank 0.
  topology const where{{2, 1, 4, 0}};
  placement held = trivial_placement({2, 4, 8});
  held.assign({2, 4, 8}, std::vector<index_t>{0, 1, 2, 3, 0, 1, 2, 3, 3, 2, 0, 3, 1, 0, 2, 2}).or_throw();
  auto out = untouched;
  redundancy_mapping(where, held, 1, 2, out).or_throw();
  // Expert 0 at home in slot 1 of rank 1; rank 0 has expert 3 already; the second copy of 2 on rank 1 is of no use.
  CHECK(out == std::vector<std::int32_t>{3, -1, 1, -1});
}

TEST_CASE("random homes and spare slots: whoever reads the mapping finds the expert of each slot again") {
  ballast_test::generator random{5};
  for (int run = 0; run < 500; ++run) {
    auto const ranks = random.between(1, 6);
    auto const homes = random.between(1, 4);
    auto const spare = random.between(0, 4);
    topology const where{{ranks, 1, homes + spare, 0}};
    auto const experts = ranks * homes;
    std::vector<index_t> order = detail::numbers_below(experts);
    for (index_t i = experts - 1; i > 0; --i) {
      std::swap(order[static_cast<std::size_t>(i)], order[static_cast<std::size_t>(random.below(i + 1))]);
    }
    std::vector<index_t> row;
    for (index_t rank = 0; rank < ranks; ++rank) {
      for (index_t slot = 0; slot < homes; ++slot) {
        row.push_back(order[static_cast<std::size_t>(rank * homes + slot)]);
      }
      for (index_t slot = 0; slot < spare; ++slot) { row.push_back(random.below(experts)); }
    }
    placement held = trivial_placement({1, experts, where.num_slots()});
    held.assign({1, experts, where.num_slots()}, row).or_throw();
    std::vector<std::int32_t> out(static_cast<std::size_t>(ranks * spare));
    redundancy_mapping(where, held, 0, homes, out).or_throw();
    for (index_t rank = 0; rank < ranks; ++rank) {
      std::vector<index_t> on_rank(row.begin() + rank * (homes + spare), row.begin() + (rank + 1) * (homes + spare));
      for (index_t slot = 0; slot < spare; ++slot) {
        auto const expert = on_rank[static_cast<std::size_t>(homes + slot)];
        auto const before = std::find(on_rank.begin(), on_rank.end(), expert) - on_rank.begin();
        auto const told = out[static_cast<std::size_t>(rank * spare + slot)];
        CHECK((told == -1) == (before < homes + slot));
        if (told >= 0) { CHECK(order[static_cast<std::size_t>(told)] == expert); }
      }
    }
  }
}

TEST_CASE("placements without homes are refused, naming the expert") {
  topology const where{{2, 1, 4, 0}};
  auto out = untouched;
  auto const refusal = [&](placement const& held, index_t homes) {
    return redundancy_mapping(where, held, 0, homes, std::span{out}.first(static_cast<std::size_t>(8 - 2 * homes)))
        .message();
  };
  placement held = trivial_placement({1, 4, 8});
  CHECK(refusal(held, 2).find("expert 0 has two home slots, on ranks 0 and 1") != std::string::npos);
  CHECK(refusal(held, 3).find("4 experts in 8 slots") != std::string::npos);
  CHECK(refusal(trivial_placement({1, 4, 12}), 2).find("in 12 slots") != std::string::npos);
  CHECK(out == untouched);
}
