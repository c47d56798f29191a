// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/matrix_view.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/policies/policy.hpp>
#include <ballast/types.hpp>

#include "support/random.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <vector>

namespace {

using namespace ballast;

/// Experts in an order that no row of `trivial_placement` has, `[L, P]`.
placement turned(placement_shape shape) {
  std::vector<index_t> map;
  for (index_t layer = 0; layer < shape.num_layers; ++layer) {
    for (index_t slot = 0; slot < shape.num_slots; ++slot) {
      map.push_back((shape.num_slots - 1 - slot) % shape.num_logical);
    }
  }
  placement result;
  result.assign(shape, map).or_throw();
  return result;
}

/// Whether map, inverse and shares of a layer are the same.
bool same_layer(placement const& a, placement const& b, index_t layer) {
  auto const equal = [](auto const& x, auto const& y) { return std::equal(x.begin(), x.end(), y.begin(), y.end()); };
  return equal(a.logical_of_slot(layer), b.logical_of_slot(layer)) &&
         equal(a.replica_slots(layer), b.replica_slots(layer)) && a.has_shares() == b.has_shares() &&
         (!a.has_shares() || equal(a.shares(layer), b.shares(layer)));
}

}  // namespace

TEST_CASE("a layer without tokens in any bucket keeps its row, every other one takes the plan") {
  ballast_test::generator random{21};
  for (int round = 0; round < 200; ++round) {
    auto const layers = random.between(0, 5);
    auto const experts = random.between(2, 6);
    auto const buckets = random.between(0, 3);
    placement_shape const shape{layers, experts, experts + random.between(0, 6)};
    auto const size = static_cast<std::size_t>(layers) * static_cast<std::size_t>(experts);
    std::vector<load_t> tokens(static_cast<std::size_t>(buckets) * size);
    std::vector<bool> busy(static_cast<std::size_t>(layers));
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      tokens[i] = random.below(8) == 0 ? 1 : 0;  // a single token anywhere is enough
      if (tokens[i] != 0) { busy[i % size / static_cast<std::size_t>(experts)] = true; }
    }
    auto const current = trivial_placement(shape);
    auto const plan = turned(shape);
    auto next = plan;
    keep_idle_layers({tokens, buckets, layers, experts}, current, next);
    for (index_t layer = 0; layer < layers; ++layer) {
      CHECK(same_layer(next, busy[static_cast<std::size_t>(layer)] ? plan : current, layer));
    }
  }
}

TEST_CASE("an idle layer keeps its shares too, with or without shares in the plan") {
  placement_shape const shape{2, 2, 3};
  std::vector<load_t> const tokens{0, 0, 3, 4};
  load_history_view const history{matrix_view<load_t const>{tokens, 2, 2}};
  auto current = trivial_placement(shape);
  current.make_shares_even();
  for (index_t layer = 0; layer < 2; ++layer) {
    current.edit_shares(layer)[0] = 10;
    current.edit_shares(layer)[2] = share_one - 10;
  }
  auto next = turned(shape);
  keep_idle_layers(history, current, next);
  REQUIRE(next.has_shares());
  CHECK(same_layer(next, current, 0));
  auto even = turned(shape);
  even.make_shares_even();
  CHECK(same_layer(next, even, 1));

  auto without = trivial_placement(shape);
  auto uneven = turned(shape);
  uneven.make_shares_even();
  uneven.edit_shares(0)[0] = 1;
  keep_idle_layers(history, without, uneven);
  without.make_shares_even();
  CHECK(same_layer(uneven, without, 0));
}

TEST_CASE("shapes that differ break the promise of the caller") {
  std::vector<load_t> const tokens{0, 0};
  load_history_view const history{matrix_view<load_t const>{tokens, 1, 2}};
  auto const current = trivial_placement({1, 2, 3});
  auto other_slots = trivial_placement({1, 2, 4});
  CHECK_BREAKS_CONTRACT(keep_idle_layers(history, current, other_slots));
  auto two_layers = trivial_placement({2, 2, 3});
  auto const two = two_layers;
  CHECK_BREAKS_CONTRACT(keep_idle_layers(history, two, two_layers));
}
