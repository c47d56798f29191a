// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/placement/placement.hpp>

#include <doctest/doctest.h>
#include <support/long_runs.hpp>
#include <support/random.hpp>
#include <support/throwing_contracts.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <ostream>  // doctest prints error codes
#include <string>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

using namespace ballast;

namespace {

using map = std::vector<index_t>;

placement from(placement_shape shape, map const& slots) {
  placement result;
  result.assign(shape, slots).or_throw();
  return result;
}

std::uint64_t digest_of(placement const& in) {
  digest result;
  in.describe(result);
  return result.value();
}

/// Message of a refusal, which must leave the placement as it was.
std::string refusal(placement_shape shape, map const& slots, errc code) {
  auto const before = trivial_placement({1, 2, 3});
  auto in = before;
  auto const result = in.assign(shape, slots);
  CHECK(result.code() == code);
  CHECK(in == before);
  CHECK(placement::validate(shape, slots).message() == result.message());
  return result.message();
}

}  // namespace

TEST_CASE("maps that are no placement are refused by name and value") {
  CHECK(refusal({1, 3, 4}, {0, 1, 2}, errc::invalid_placement) ==
        "placement: map has 3 entries, must have 1 layers x 4 slots");
  CHECK(refusal({2, 2, 3}, {0, 1, 0, 0, 1, 2}, errc::invalid_placement) ==
        "placement: layer 1, slot 2 holds expert 2, must be in [0, 2)");
  CHECK(refusal({1, 2, 3}, {0, -1, 1}, errc::invalid_placement) ==
        "placement: layer 0, slot 1 holds expert -1, must be in [0, 2)");
  CHECK(refusal({2, 3, 4}, {0, 1, 2, 0, 0, 2, 0, 2}, errc::missing_expert) ==
        "placement: layer 1 has no slot for expert 1");
  CHECK(refusal({1, 5, 4}, {0, 1, 2, 3}, errc::not_enough_slots) == "placement: 4 slots cannot hold 5 experts");
  CHECK(refusal({1, 0, 4}, {0, 0, 0, 0}, errc::invalid_placement) ==
        "placement: 1 layers, 0 experts, 4 slots: sizes must be positive");
  CHECK(refusal({-1, 2, 4}, {}, errc::invalid_placement) ==
        "placement: -1 layers, 2 experts, 4 slots: sizes must be positive");
  CHECK_THROWS_AS(std::ignore = trivial_placement({1, 5, 4}), std::system_error);
}

TEST_CASE("the trivial placement deals experts round the slots") {
  auto const in = trivial_placement({2, 3, 7});
  for (index_t layer = 0; layer < 2; ++layer) {
    CHECK(std::ranges::equal(in.logical_of_slot(layer), map{0, 1, 2, 0, 1, 2, 0}));
    CHECK(std::ranges::equal(in.replica_offsets(layer), map{0, 3, 5, 7}));
    CHECK(std::ranges::equal(in.replica_slots(layer), map{0, 3, 6, 1, 4, 2, 5}));
  }
  CHECK(in.replica_count(1, 0) == 3);
  CHECK(std::ranges::equal(in.replicas_of(1, 2), map{2, 5}));
  CHECK_FALSE(in.has_shares());
}

TEST_CASE("the inverse of any map lists its slots in ascending order") {
  ballast_test::generator random{6};
  for (int trial = 0, count = ballast_test::cases(200); trial < count; ++trial) {
    auto const experts = random.between(1, 20);
    placement_shape const shape{random.between(1, 4), experts, random.between(experts, 50)};
    auto const in = ballast_test::random_placement(shape, random);
    for (index_t layer = 0; layer < shape.num_layers; ++layer) {
      map seen;
      for (index_t expert = 0; expert < experts; ++expert) {
        auto const slots = in.replicas_of(layer, expert);
        REQUIRE(in.replica_count(layer, expert) == static_cast<index_t>(slots.size()));
        REQUIRE_FALSE(slots.empty());
        REQUIRE(std::ranges::is_sorted(slots));
        for (auto const slot : slots) {
          REQUIRE(in.logical_of_slot(layer)[static_cast<std::size_t>(slot)] == expert);
          seen.push_back(slot);
        }
      }
      std::ranges::sort(seen);
      REQUIRE(std::ranges::adjacent_find(seen) == seen.end());
      REQUIRE(seen.size() == static_cast<std::size_t>(shape.num_slots));
    }
  }
}

TEST_CASE("a placement of no layers, and one of one expert on one slot") {
  CHECK(placement{}.empty());
  CHECK(placement{}.num_layers() == 0);
  auto const no_layers = trivial_placement({0, 3, 4});
  CHECK_FALSE(no_layers.empty());
  CHECK(no_layers.logical_of_slot().elements().empty());
  CHECK(trivial_placement({1, 1, 1}).replica_count(0, 0) == 1);
}

TEST_CASE("even shares of an expert sum to one, the remainder on its first replicas") {
  auto in = trivial_placement({2, 2, 5});
  in.make_shares_even();
  REQUIRE(in.has_shares());
  for (index_t layer = 0; layer < 2; ++layer) {
    auto const shares = in.shares(layer);
    CHECK(shares[0] == share_one / 3 + 1);  // 2^30 mod 3 is 1
    CHECK(shares[2] == share_one / 3);
    CHECK(shares[4] == share_one / 3);
    CHECK(shares[0] + shares[2] + shares[4] == share_one);
    CHECK(shares[1] == share_one / 2);
    CHECK(shares[3] == share_one / 2);
  }
  CHECK(in.has_even_shares(1));
  in.edit_shares(1)[2] += 1;
  in.edit_shares(1)[4] -= 1;
  CHECK(in.has_even_shares(0));
  CHECK_FALSE(in.has_even_shares(1));
  in.drop_shares();
  CHECK_FALSE(in.has_shares());
  CHECK(in.has_even_shares(1));
}

TEST_CASE("a layer is taken over with its replica order and its shares") {
  auto source = from({2, 2, 4}, {0, 0, 1, 1, 1, 0, 0, 1});
  auto const slots = source.edit(1).replica_slots;
  std::swap(slots[0], slots[1]);  // expert 0: slot 2 ranks before slot 1
  auto target = trivial_placement({2, 2, 4});

  target.copy_layer(source, 1);
  CHECK_FALSE(target.has_shares());
  CHECK(std::ranges::equal(target.logical_of_slot(0), map{0, 1, 0, 1}));
  CHECK(std::ranges::equal(target.logical_of_slot(1), map{1, 0, 0, 1}));
  CHECK(std::ranges::equal(target.replicas_of(1, 0), map{2, 1}));

  source.make_shares_even();
  source.edit_shares(0)[0] = share_one;
  source.edit_shares(0)[1] = 0;
  target.copy_layer(source, 0);
  REQUIRE(target.has_shares());
  CHECK(target.shares(0)[0] == share_one);
  CHECK(target.shares(0)[1] == 0);
  CHECK(target.shares(1)[0] == share_one / 2);

  target.copy_layer(trivial_placement({2, 2, 4}), 0);
  CHECK(target.shares(0)[0] == share_one / 2);
}

TEST_CASE("resizing keeps nothing of the old shape but its storage") {
  auto in = trivial_placement({4, 4, 8});
  in.make_shares_even();
  in.resize({1, 2, 3});
  CHECK_FALSE(in.has_shares());
  CHECK(in.logical_of_slot().rows() == 1);
  std::ranges::copy(map{1, 0, 1}, in.edit(0).logical_of_slot.begin());
  in.index_replicas(0);
  CHECK(in == from({1, 2, 3}, {1, 0, 1}));
}

TEST_CASE("the digest tells map, replica order and shares apart") {
  auto const base = from({1, 2, 4}, {0, 0, 1, 1});
  CHECK(digest_of(base) == digest_of(from({1, 2, 4}, {0, 0, 1, 1})));
  CHECK(digest_of(base) != digest_of(from({1, 2, 4}, {0, 1, 0, 1})));
  CHECK(digest_of(base) != digest_of(from({1, 1, 4}, {0, 0, 0, 0})));

  auto reordered = base;
  std::swap(reordered.edit(0).replica_slots[0], reordered.edit(0).replica_slots[1]);
  CHECK(digest_of(reordered) != digest_of(base));
  CHECK_FALSE(reordered == base);

  auto shared = base;
  shared.make_shares_even();
  CHECK(digest_of(shared) != digest_of(base));
  auto uneven = shared;
  uneven.edit_shares(0)[0] += 1;
  uneven.edit_shares(0)[1] -= 1;
  CHECK(digest_of(uneven) != digest_of(shared));
}

TEST_CASE("what is out of range breaks the contract") {
  auto in = trivial_placement({2, 2, 4});
  CHECK_BREAKS_CONTRACT(in.logical_of_slot(2));
  CHECK_BREAKS_CONTRACT(in.replica_slots(-1));
  CHECK_BREAKS_CONTRACT(in.replicas_of(0, 2));
  CHECK_BREAKS_CONTRACT(in.shares(0));
  CHECK_BREAKS_CONTRACT(in.edit_shares(0));
  CHECK_BREAKS_CONTRACT(in.resize({1, 5, 4}));
  CHECK_BREAKS_CONTRACT(in.copy_layer(trivial_placement({2, 2, 5}), 0));
}
