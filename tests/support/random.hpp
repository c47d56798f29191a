// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_RANDOM_HPP
#define BALLAST_TESTS_SUPPORT_RANDOM_HPP

#include <ballast/placement/placement.hpp>
#include <ballast/types.hpp>

#include "splitmix.hpp"

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace ballast_test {

/// What tests draw at random.
class generator : public splitmix {
public:
  using splitmix::splitmix;
  /// In [0, bound).
  ballast::index_t below(ballast::index_t bound) {
    return static_cast<ballast::index_t>(next() % static_cast<std::uint64_t>(bound));
  }
  /// In [first, last].
  ballast::index_t between(ballast::index_t first, ballast::index_t last) { return first + below(last - first + 1); }
};

template <class T>
void shuffle(std::vector<T>& items, generator& random) {
  for (auto i = items.size(); i > 1; --i) {
    std::swap(items[i - 1], items[static_cast<std::size_t>(random.below(static_cast<ballast::index_t>(i)))]);
  }
}

/// Any valid placement: each expert once, the other slots at random, shuffled.
inline ballast::placement random_placement(ballast::placement_shape shape, generator& random) {
  std::vector<ballast::index_t> map;
  for (ballast::index_t layer = 0; layer < shape.num_layers; ++layer) {
    std::vector<ballast::index_t> row;
    row.reserve(static_cast<std::size_t>(shape.num_slots));
    for (ballast::index_t p = 0; p < shape.num_slots; ++p) {
      row.push_back(p < shape.num_logical ? p : random.below(shape.num_logical));
    }
    shuffle(row, random);
    map.insert(map.end(), row.begin(), row.end());
  }
  ballast::placement result;
  result.assign(shape, map).or_throw();
  return result;
}

/// A valid placement that differs from `from` in a few slots: the everyday case.
inline ballast::placement nudged_placement(ballast::placement const& from, generator& random) {
  auto const shape = from.shape();
  std::vector<ballast::index_t> map{from.logical_of_slot().elements().begin(), from.logical_of_slot().elements().end()};
  for (ballast::index_t layer = 0; layer < shape.num_layers; ++layer) {
    auto const slot = [&] { return static_cast<std::size_t>(layer * shape.num_slots + random.below(shape.num_slots)); };
    for (auto swaps = random.below(4); swaps > 0; --swaps) { std::swap(map[slot()], map[slot()]); }
    auto const spare = slot();
    auto trial = map;
    trial[spare] = random.below(shape.num_logical);
    if (ballast::placement::validate(shape, trial).ok()) { map = trial; }
  }
  ballast::placement result;
  result.assign(shape, map).or_throw();
  return result;
}

}  // namespace ballast_test

#endif
