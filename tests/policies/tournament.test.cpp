// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/policies/detail/deepseek/tournament.hpp>

#include "../support/random.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

using ballast::detail::tournament;

TEST_CASE("the least key is known after any replacement") {
  ballast_test::generator random{4};
  for (std::size_t const num_keys : {1u, 2u, 3u, 7u, 8u, 9u, 64u, 100u}) {
    CAPTURE(num_keys);
    std::vector<std::uint64_t> nodes(tournament::num_nodes(num_keys));
    tournament const tree{nodes};
    std::vector<std::uint64_t> keys(num_keys);
    for (auto& key : keys) { key = random.next(); }
    std::fill(tree.leaves().begin(), tree.leaves().end(), tournament::none);
    std::copy(keys.begin(), keys.end(), tree.leaves().begin());
    tree.build();
    for (int trial = 0; trial < 300; ++trial) {
      REQUIRE(tree.least() == *std::min_element(keys.begin(), keys.end()));
      auto const leaf = static_cast<std::size_t>(random.below(static_cast<ballast::index_t>(num_keys)));
      keys[leaf] = trial % 7 == 0 ? tournament::none : random.next() >> random.below(40);
      tree.replace(leaf, keys[leaf]);
      REQUIRE(tree[leaf] == keys[leaf]);
    }
  }
}
