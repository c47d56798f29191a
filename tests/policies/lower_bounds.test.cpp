// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/policies/balanced.hpp>
#include <ballast/policies/detail/balanced/exhaustive.hpp>
#include <ballast/policies/detail/balanced/lower_bounds.hpp>

#include "../support/random.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

using namespace ballast;
using detail::lower_bounds;

namespace {
using loads = std::vector<load_t>;
}  // namespace

TEST_CASE("some rank has at least the mean, rounded up") {
  CHECK(lower_bounds::mean(loads{5, 4}, 2) == 5);
  CHECK(lower_bounds::mean(loads{6, 4}, 2) == 5);
  CHECK(lower_bounds::mean(loads{0, 0}, 2) == 0);
}

TEST_CASE("the heaviest copy is as light as the spares can make it") {
  lower_bounds bounds;
  CHECK(bounds.copy(loads{12, 4}, 0, 0) == 12);
  CHECK(bounds.copy(loads{12, 4}, 1, 0) == 6);
  CHECK(bounds.copy(loads{12, 4}, 2, 0) == 4);
  CHECK(bounds.copy(loads{12, 4}, 3, 0) == 4);  // 12 / 4 and 4, or 12 / 3 and 4 / 2
  CHECK(bounds.copy(loads{12, 4}, 4, 0) == 3);  // 12 / 4 and 4 / 2
  // One copy may be heavier: then the others count.
  CHECK(bounds.copy(loads{12, 4}, 0, 1) == 4);
  CHECK(bounds.copy(loads{12, 4}, 1, 1) == 2);
  CHECK(bounds.copy(loads{}, 0, 0) == 0);
}

TEST_CASE("the best of three bounds") {
  lower_bounds bounds;
  CHECK(bounds.best(loads{6, 5, 4}, 2, 2) == 8);       // the mean of 15 over 2
  CHECK(bounds.best(loads{20, 1, 1, 1}, 2, 2) == 20);  // the heaviest copy
  CHECK(bounds.best(loads{6, 6, 6, 0}, 2, 2) == 12);   // two of three that are equally heavy are on one rank
}

TEST_CASE("no packing is below the bounds") {
  ballast_test::generator random{7};
  lower_bounds bounds;
  detail::exhaustive_search search;
  for (int trial = 0; trial < 300; ++trial) {
    auto const ranks = 2 + random.below(2);
    auto const slots = 1 + random.below(3);
    loads of(static_cast<std::size_t>(1 + random.below(ranks * slots)));
    if (static_cast<index_t>(of.size()) * ranks < ranks * slots) { continue; }  // no expert twice on a rank
    for (auto& load : of) { load = random.below(trial % 2 == 0 ? 10 : 1000); }
    load_t best = std::numeric_limits<load_t>::max() / 4;
    std::int64_t nodes = 10'000'000;
    REQUIRE(search.run(of, ranks, slots, best, nodes));
    REQUIRE(nodes > 0);
    // Copies are rounded down, each by less than a unit.
    CHECK(bounds.best(of, ranks, slots) <= best + slots);
  }
}

TEST_CASE("no bound for loads that are negative, or more than a layer may have") {
  topology const where{{2, 1, 2, 0}};
  CHECK(lower_bound(where, loads{max_layer_tokens - 1, 1}).mean == static_cast<double>(max_layer_tokens / 2));
  CHECK_BREAKS_CONTRACT(lower_bound(where, loads{5, -1}));
  CHECK_BREAKS_CONTRACT(lower_bound(where, loads{max_layer_tokens, 1}));
  CHECK_BREAKS_CONTRACT(lower_bound(where, loads{std::numeric_limits<load_t>::max(), 1}));
  auto dead = where;
  dead.set_live(0, false);
  dead.set_live(1, false);
  CHECK_BREAKS_CONTRACT(lower_bound(dead, loads{}));
}
