// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/placement/moves.hpp>
#include <ballast/policies/detail/relabel/assignment.hpp>
#include <ballast/policies/relabel.hpp>

#include "support/long_runs.hpp"
#include "support/random.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <set>
#include <vector>

using namespace ballast;

namespace {

using ballast_test::generator;

/// Experts on each live rank of one layer, sorted: what relabelling may permute but not change.
using contents = std::vector<std::vector<index_t>>;
contents contents_of(topology const& where, placement const& in, index_t layer) {
  contents result;
  for (index_t rank = 0; rank < where.num_ranks(); ++rank) {
    auto const map = in.logical_of_slot(layer).subspan(static_cast<std::size_t>(where.first_slot(rank)),
                                                       static_cast<std::size_t>(where.slots_per_rank()));
    result.emplace_back(map.begin(), map.end());
    std::sort(result.back().begin(), result.back().end());
  }
  return result;
}

bool holds(std::vector<index_t> const& rank, index_t expert) {
  return std::binary_search(rank.begin(), rank.end(), expert);
}

/// What it costs to make rank r hold `wanted[source[r]]`, counted pair by pair.
std::int64_t price(topology const& where, contents const& held, contents const& wanted,
                   std::vector<index_t> const& source, std::int64_t cross_node_price) {
  std::int64_t total = 0;
  for (index_t rank = 0; rank < where.num_ranks(); ++rank) {
    if (!where.is_live(rank)) { continue; }
    auto const& experts = wanted[static_cast<std::size_t>(source[static_cast<std::size_t>(rank)])];
    for (auto const expert : std::set<index_t>{experts.begin(), experts.end()}) {
      if (holds(held[static_cast<std::size_t>(rank)], expert)) { continue; }
      bool near = false;
      for (index_t other = 0; other < where.num_ranks(); ++other) {
        near = near || (where.is_live(other) && where.node_of_rank(other) == where.node_of_rank(rank) &&
                        holds(held[static_cast<std::size_t>(other)], expert));
      }
      total += near ? 1 : cross_node_price;
    }
  }
  return total;
}

/// Whether ranks may take the content of `source` within a scope, as far as the live ones show it.
bool is_permitted(topology const& where, std::vector<index_t> const& source, relabel_scope scope) {
  auto const from = [&](index_t rank) { return source[static_cast<std::size_t>(rank)]; };
  for (index_t rank = 0; rank < where.num_ranks(); ++rank) {
    if (!where.is_live(rank)) {
      if (from(rank) != rank) { return false; }
      continue;
    }
    if (!where.is_live(from(rank))) { return false; }
    auto const node = where.node_of_rank(rank);
    if (scope <= relabel_scope::slots && from(rank) != rank) { return false; }
    if (scope == relabel_scope::ranks && node != where.node_of_rank(from(rank))) { return false; }
    if (scope != relabel_scope::nodes) { continue; }
    for (index_t other = 0; other < where.num_ranks(); ++other) {
      if (!where.is_live(other)) { continue; }
      bool const share_node = node == where.node_of_rank(other);
      if (share_node != (where.node_of_rank(from(rank)) == where.node_of_rank(from(other)))) { return false; }
    }
  }
  return true;
}

/// The cheapest of all permitted permutations, by trying them all.
std::int64_t cheapest(topology const& where, contents const& held, contents const& wanted, relabel_options options) {
  std::vector<index_t> source(static_cast<std::size_t>(where.num_ranks()));
  std::iota(source.begin(), source.end(), 0);
  auto best = std::numeric_limits<std::int64_t>::max();
  do {
    if (!is_permitted(where, source, options.scope)) { continue; }
    best = std::min(best, price(where, held, wanted, source, options.cross_node_price));
  } while (std::next_permutation(source.begin(), source.end()));
  return best;
}

std::int64_t price_now(topology const& where, placement const& from, placement const& to, index_t layer,
                       std::int64_t cross_node_price) {
  std::vector<index_t> same(static_cast<std::size_t>(where.num_ranks()));
  std::iota(same.begin(), same.end(), 0);
  return price(where, contents_of(where, from, layer), contents_of(where, to, layer), same, cross_node_price);
}

}  // namespace

TEST_CASE("assignments are the cheapest of all permutations") {
  generator random{7};
  detail::assignment_solver solver;
  for (int repeat = 0, count = ballast_test::cases(400); repeat < count; ++repeat) {
    auto const size = random.between(1, 6);
    auto const range = random.between(1, 12);  // few values: many ties
    std::vector<std::int64_t> costs(static_cast<std::size_t>(size) * static_cast<std::size_t>(size));
    for (auto& cost : costs) { cost = random.below(range) - range / 2; }
    matrix_view<std::int64_t const> const matrix{costs, size, size};
    std::vector<index_t> order(static_cast<std::size_t>(size));
    std::iota(order.begin(), order.end(), 0);
    auto best = std::numeric_limits<std::int64_t>::max();
    do {
      std::int64_t total = 0;
      for (index_t row = 0; row < size; ++row) { total += matrix(row, order[static_cast<std::size_t>(row)]); }
      best = std::min(best, total);
    } while (std::next_permutation(order.begin(), order.end()));

    std::vector<index_t> column(static_cast<std::size_t>(size));
    CHECK(solver.solve(matrix, column) == best);
    std::int64_t total = 0;
    for (index_t row = 0; row < size; ++row) { total += matrix(row, column[static_cast<std::size_t>(row)]); }
    CHECK(total == best);
    std::sort(column.begin(), column.end());
    std::iota(order.begin(), order.end(), 0);
    CHECK(column == order);
  }
}

TEST_CASE("relabel is as cheap as the cheapest permitted permutation, and changes nothing else") {
  generator random{3};
  for (int repeat = 0, count = ballast_test::cases(400); repeat < count; ++repeat) {
    index_t const nodes = random.between(1, 3);
    topology where{{nodes * random.between(1, 6 / nodes), nodes, random.between(1, 3), 0}};
    placement_shape const shape{1, random.between(1, where.num_slots()), where.num_slots()};
    auto const current = ballast_test::random_placement(shape, random);
    auto const wanted = ballast_test::random_placement(shape, random);
    if (where.num_ranks() > 1 && random.below(4) == 0) { where.set_live(random.below(where.num_ranks()), false); }
    relabel_options const options{random.between(1, 9), static_cast<relabel_scope>(random.below(5))};
    CAPTURE(repeat);
    CAPTURE(to_string(options.scope));

    auto const held = contents_of(where, current, 0);
    auto const before = contents_of(where, wanted, 0);
    auto target = wanted;
    relabel(current, where, target, options);
    CHECK(placement::validate(shape, target.logical_of_slot().elements()).ok());
    CHECK(price_now(where, current, target, 0, options.cross_node_price) == cheapest(where, held, before, options));

    auto after = contents_of(where, target, 0);
    for (index_t rank = 0; rank < where.num_ranks(); ++rank) {
      if (!where.is_live(rank)) {
        CHECK(after[static_cast<std::size_t>(rank)] == before[static_cast<std::size_t>(rank)]);
      }
    }
    if (options.scope == relabel_scope::none) { CHECK(target == wanted); }
    if (options.scope <= relabel_scope::slots) { CHECK(after == before); }
    auto sorted = before;
    std::sort(sorted.begin(), sorted.end());
    std::sort(after.begin(), after.end());
    CHECK(after == sorted);
  }
}

TEST_CASE("experts that stay on a rank stay in their slot") {
  generator random{5};
  for (int repeat = 0, count = ballast_test::cases(100); repeat < count; ++repeat) {
    topology const where{{random.between(1, 6), 1, random.between(1, 5), 0}};
    placement_shape const shape{2, random.between(1, where.num_slots()), where.num_slots()};
    auto const current = ballast_test::random_placement(shape, random);
    auto target = ballast_test::nudged_placement(current, random);
    relabel(current, where, target, {.scope = static_cast<relabel_scope>(random.between(1, 4))});
    for (index_t layer = 0; layer < shape.num_layers; ++layer) {
      for (index_t rank = 0; rank < where.num_ranks(); ++rank) {
        // As many slots keep their expert as the two ranks have copies in common.
        std::multiset<index_t> common;
        index_t kept = 0;
        for (index_t i = 0; i < where.slots_per_rank(); ++i) {
          auto const slot = static_cast<std::size_t>(where.first_slot(rank) + i);
          common.insert(current.logical_of_slot(layer)[slot]);
          kept += current.logical_of_slot(layer)[slot] == target.logical_of_slot(layer)[slot] ? 1 : 0;
        }
        index_t shared = 0;
        for (index_t i = 0; i < where.slots_per_rank(); ++i) {
          auto const found =
              common.find(target.logical_of_slot(layer)[static_cast<std::size_t>(where.first_slot(rank) + i)]);
          if (found == common.end()) { continue; }
          common.erase(found);
          ++shared;
        }
        CHECK(kept == shared);
      }
    }
  }
}

TEST_CASE("a target that only has other names costs nothing") {
  generator random{11};
  topology const where{{8, 2, 3, 0}};
  placement_shape const shape{3, 20, 24};
  auto const current = ballast_test::random_placement(shape, random);
  auto target = current;
  for (index_t layer = 0; layer < shape.num_layers; ++layer) {
    auto const map = target.edit(layer).logical_of_slot;
    std::swap_ranges(map.begin(), map.begin() + 12, map.begin() + 12);    // the nodes
    std::swap_ranges(map.begin() + 3, map.begin() + 6, map.begin() + 9);  // two ranks of a node
    std::swap(map[0], map[2]);                                            // two slots of a rank
    target.index_replicas(layer);
  }
  CHECK(count_moves(where, current, target) > 0);
  relabel(current, where, target);
  CHECK(target == current);
}

TEST_CASE("shares move along with their replicas") {
  topology const where{{2, 1, 2, 0}};
  placement_shape const shape{1, 3, 4};
  placement current;
  placement target;
  current.assign(shape, std::vector<index_t>{0, 1, 2, 0}).or_throw();
  target.assign(shape, std::vector<index_t>{0, 2, 1, 0}).or_throw();
  target.make_shares_even();
  auto const shares = target.edit_shares(0);
  shares[0] = share_one / 4;
  shares[3] = share_one - share_one / 4;
  relabel(current, where, target);
  REQUIRE(target.logical_of_slot(0)[0] == 0);
  CHECK(target.logical_of_slot(0)[1] == 1);
  CHECK(target.shares(0)[0] == share_one - share_one / 4);
  CHECK(target.shares(0)[3] == share_one / 4);
}

TEST_CASE("relabel names what it cannot work with") {
  topology const where{{2, 1, 2, 0}};
  auto const current = trivial_placement({1, 2, 4});
  auto other = trivial_placement({1, 3, 4});
  CHECK_BREAKS_CONTRACT(relabel(current, where, other));
  auto target = current;
  CHECK_BREAKS_CONTRACT(relabel(current, where, target, {.cross_node_price = 0}));
  CHECK_BREAKS_CONTRACT(relabel(current, topology{{3, 1, 2, 0}}, target));
}
