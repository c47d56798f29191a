// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/policies/detail/deepseek/descending_order.hpp>

#include "../support/random.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

using namespace ballast;
using detail::descending_order;

namespace {

void check_order(std::vector<std::int32_t> keys, descending_order& sort) {
  std::vector<index_t> expected(keys.size());
  std::iota(expected.begin(), expected.end(), 0);
  std::sort(expected.begin(), expected.end(), [&keys](index_t a, index_t b) {
    auto const key_a = keys[static_cast<std::size_t>(a)];
    auto const key_b = keys[static_cast<std::size_t>(b)];
    return key_a != key_b ? key_a > key_b : a < b;
  });
  std::vector<index_t> order(keys.size());
  keys.resize(descending_order::padded(keys.size()), std::numeric_limits<std::int32_t>::max());  // must not matter
  sort(keys.data(), order);
  REQUIRE(order == expected);
}

}  // namespace

TEST_CASE("keys descend and equal keys keep their order, for few keys and for many") {
  ballast_test::generator random{5};
  for (std::size_t const size : {1u, 2u, 7u, 8u, 9u, 72u, 191u, 192u, 193u, 288u, 1000u}) {
    CAPTURE(size);
    descending_order sort{size};
    for (int kind = 0; kind < 6; ++kind) {
      CAPTURE(kind);
      std::vector<std::int32_t> keys(size);
      for (auto& key : keys) {
        auto const any = static_cast<std::int32_t>(random.next() >> 33);
        key = kind == 0 ? 0 : kind == 1 ? any : kind == 2 ? any % 5 : kind == 3 ? any & 0x7f00ff00 : any % 1000;
      }
      if (kind == 4) { std::sort(keys.begin(), keys.end()); }
      if (kind == 5) { std::fill(keys.begin(), keys.end(), std::numeric_limits<std::int32_t>::max()); }
      check_order(keys, sort);
    }
  }
}

TEST_CASE("a sorter made for many keys sorts fewer") {
  descending_order sort{500};
  check_order({3, 1, 3, 2}, sort);
  check_order(std::vector<std::int32_t>(300, 4), sort);
  check_order({}, sort);
}
