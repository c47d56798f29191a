// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/placement/survivors.hpp>
#include <ballast/policies/balanced.hpp>

#include <doctest/doctest.h>
#include <support/random.hpp>

#include <algorithm>
#include <cstddef>
#include <ostream>  // doctest prints error codes
#include <set>
#include <string>
#include <vector>

using namespace ballast;

namespace {

placement from(placement_shape shape, std::vector<index_t> const& map) {
  placement result;
  result.assign(shape, map).or_throw();
  return result;
}

/// Live ranks that hold an expert, straight from the map.
std::set<index_t> holders(topology const& where, placement const& in, index_t layer, index_t expert) {
  std::set<index_t> result;
  for (index_t slot = 0; slot < in.num_slots(); ++slot) {
    auto const rank = slot / where.slots_per_rank();
    if (in.logical_of_slot(layer)[static_cast<std::size_t>(slot)] == expert && where.is_live(rank)) {
      result.insert(rank);
    }
  }
  return result;
}

/// No share on dead ranks, and all of each expert on live ones.
void check_shares(topology const& where, placement const& in) {
  REQUIRE(validate_placement(in, in.shape()).ok());
  for (index_t layer = 0; layer < in.num_layers(); ++layer) {
    for (index_t slot = 0; slot < in.num_slots(); ++slot) {
      if (where.is_live(where.rank_of_slot(slot))) { continue; }
      REQUIRE(in.shares(layer)[static_cast<std::size_t>(slot)] == 0);
    }
  }
}

/// The recipe, written down slot by slot: for each lost expert the first live slot of the most replicated expert.
std::vector<slot_reload> by_the_recipe(topology const& where, placement const& in) {
  std::vector<slot_reload> result;
  for (index_t layer = 0; layer < in.num_layers(); ++layer) {
    std::vector<index_t> map(in.logical_of_slot(layer).begin(), in.logical_of_slot(layer).end());
    auto const live_slots_of = [&](index_t expert) {
      std::vector<index_t> slots;
      for (index_t slot = 0; slot < in.num_slots(); ++slot) {
        if (map[static_cast<std::size_t>(slot)] == expert && where.is_live(where.rank_of_slot(slot))) {
          slots.push_back(slot);
        }
      }
      return slots;
    };
    for (index_t expert = 0; expert < in.num_logical(); ++expert) {
      if (!live_slots_of(expert).empty()) { continue; }
      std::vector<index_t> best;
      for (index_t other = 0; other < in.num_logical(); ++other) {
        auto const slots = live_slots_of(other);
        if (slots.size() > best.size() || (slots.size() == best.size() && !slots.empty() && slots[0] < best[0])) {
          best = slots;
        }
      }
      map[static_cast<std::size_t>(best.at(0))] = expert;
      result.push_back({layer, best[0], expert});
    }
  }
  return result;
}

}  // namespace

TEST_CASE("survivors of any deaths hold every expert after the reloads, or are told which they cannot hold") {
  ballast_test::generator random{23};
  int rescued = 0;
  int hopeless = 0;
  for (int trial = 0; trial < 3000; ++trial) {
    CAPTURE(trial);
    auto const ranks = random.between(1, 6);
    topology where{{ranks, 1, random.between(1, 5), 0}};
    auto in = ballast_test::random_placement(
        {random.between(1, 3), random.between(1, where.num_slots()), where.num_slots()}, random);
    bool const shared = random.below(2) == 0;
    if (shared) { in.make_shares_even(); }
    for (index_t rank = 0; rank < ranks; ++rank) { where.set_live(rank, ranks == 1 || random.below(3) > 0); }

    auto const lost = lost_experts(where, in);
    auto next_lost = lost.begin();
    for (index_t layer = 0; layer < in.num_layers(); ++layer) {
      for (index_t expert = 0; expert < in.num_logical(); ++expert) {
        if (!holders(where, in, layer, expert).empty()) { continue; }
        REQUIRE(next_lost != lost.end());
        REQUIRE(*next_lost++ == layer_expert{layer, expert});
      }
    }
    REQUIRE(next_lost == lost.end());

    auto out = trivial_placement({1, 1, 1});
    std::vector<slot_reload> reloads{{7, 7, 7}};
    auto const result = replace_lost_experts(where, in, out, reloads);
    if (!result.ok()) {
      ++hopeless;
      REQUIRE(result.code() == errc::missing_expert);
      REQUIRE(where.num_live_ranks() * where.slots_per_rank() < in.num_logical());
      REQUIRE(out == trivial_placement({1, 1, 1}));
      REQUIRE(reloads == std::vector<slot_reload>{{7, 7, 7}});
      continue;
    }
    REQUIRE(where.num_live_ranks() * where.slots_per_rank() >= in.num_logical());
    REQUIRE(reloads == by_the_recipe(where, in));
    REQUIRE(reloads.size() == lost.size());
    if (where.num_live_ranks() == ranks) {
      REQUIRE(out == in);
      continue;
    }
    ++rescued;
    REQUIRE(lost_experts(where, out).empty());
    REQUIRE(validate_live(where, out).ok());
    check_shares(where, out);
    // Only the reloaded slots differ.
    auto expected = in;
    for (auto const& [layer, slot, expert] : reloads) {
      REQUIRE(where.is_live(where.rank_of_slot(slot)));
      expected.edit(layer).logical_of_slot[static_cast<std::size_t>(slot)] = expert;
    }
    REQUIRE(std::ranges::equal(out.logical_of_slot().elements(), expected.logical_of_slot().elements()));
  }
  CHECK(rescued > 300);
  CHECK(hopeless > 300);
}

TEST_CASE("what would be lost with which rank") {
  ballast_test::generator random{29};
  int listed = 0;
  for (int trial = 0; trial < 500; ++trial) {
    CAPTURE(trial);
    topology where{{random.between(1, 5), 1, random.between(1, 4), 0}};
    auto const in = ballast_test::random_placement(
        {random.between(1, 2), random.between(1, where.num_slots()), where.num_slots()}, random);
    where.set_live(random.below(where.num_ranks()), random.below(2) == 0);
    std::vector<sole_holder> expected;
    for (index_t layer = 0; layer < in.num_layers(); ++layer) {
      for (index_t expert = 0; expert < in.num_logical(); ++expert) {
        auto const on = holders(where, in, layer, expert);
        if (on.size() == 1) { expected.push_back({layer, expert, *on.begin()}); }
      }
    }
    REQUIRE(sole_holders(where, in) == expected);
    listed += static_cast<int>(expected.size());
  }
  CHECK(listed > 500);
}

TEST_CASE("the most replicated expert gives its first slot, and nobody its last") {
  topology where{{4, 1, 3, 0}};
  auto const in = from({1, 6, 12}, {0, 1, 2, 0, 1, 2, 0, 3, 2, 4, 5, 5});  // rank 3 holds 4 and 5 alone
  where.set_live(3, false);
  CHECK(lost_experts(where, in) == std::vector<layer_expert>{{0, 4}, {0, 5}});
  placement out;
  std::vector<slot_reload> reloads;
  REQUIRE(replace_lost_experts(where, in, out, reloads).ok());
  // Experts 0 and 2 have three live replicas each: first 0 gives slot 0, then 2 its slot 2.
  CHECK(reloads == std::vector<slot_reload>{{0, 0, 4}, {0, 2, 5}});
  CHECK(std::ranges::equal(out.logical_of_slot(0), std::vector<index_t>{4, 1, 5, 0, 1, 2, 0, 3, 2, 4, 5, 5}));
  CHECK(out.shares(0)[0] == share_one);
  CHECK(out.shares(0)[9] == 0);
  CHECK(out.shares(0)[3] == share_one / 2);

  topology tight{{3, 1, 2, 0}};
  tight.set_live(0, false);
  auto const full = from({2, 4, 6}, {0, 1, 0, 1, 2, 3, 0, 1, 1, 2, 1, 3});
  auto const one_too_many = from({2, 5, 6}, {0, 1, 1, 2, 3, 4, 0, 1, 1, 2, 3, 4});
  REQUIRE(replace_lost_experts(tight, full, out, reloads).ok());
  CHECK(reloads == std::vector<slot_reload>{{1, 2, 0}});
  auto const result = replace_lost_experts(tight, one_too_many, out, reloads);
  CHECK(result.code() == errc::missing_expert);
  CHECK(result.message() ==
        "survivors: layer 0: no live rank holds expert 0, and each of the 4 live slots holds the last of its expert");
  CHECK(reloads.size() == 1);
}

TEST_CASE("layers that lose nothing keep their replica order, and their split where it is whole") {
  topology where{{3, 1, 2, 0}};
  auto in = from({2, 2, 6}, {0, 1, 0, 1, 0, 1, 0, 0, 1, 1, 0, 1});
  std::ranges::reverse(in.edit(0).replica_slots.first(3));
  in.make_shares_even();
  auto const split = in.edit_shares(0);
  split[0] = share_one / 4;
  split[2] = share_one / 4 * 3;
  split[4] = 0;
  where.set_live(2, false);  // slots 4 and 5
  placement out;
  std::vector<slot_reload> reloads;
  REQUIRE(replace_lost_experts(where, in, out, reloads).ok());
  CHECK(reloads.empty());
  CHECK(std::ranges::equal(out.replica_slots(0), in.replica_slots(0)));
  CHECK(out.shares(0)[0] == share_one / 4);
  CHECK(out.shares(0)[2] == share_one / 4 * 3);
  CHECK(out.shares(0)[1] == share_one / 2);
  CHECK(out.shares(0)[5] == 0);
  CHECK(replace_lost_experts(where, in, in, reloads).ok());  // in place
  CHECK(in == out);
}

TEST_CASE("a slot that took all tokens of its expert may be given away") {
  topology where{{3, 1, 1, 0}};
  auto in = from({1, 2, 3}, {0, 0, 1});
  in.make_shares_even();
  in.edit_shares(0)[0] = share_one;
  in.edit_shares(0)[1] = 0;
  where.set_live(2, false);
  std::vector<slot_reload> reloads;
  REQUIRE(replace_lost_experts(where, in, in, reloads).ok());
  CHECK(std::ranges::equal(in.logical_of_slot(0), std::vector<index_t>{1, 0, 1}));
  CHECK(std::ranges::equal(in.shares(0), std::vector<share_t>{share_one, share_one, 0}));
}

TEST_CASE("survivors refuse a placement that is none, or of another topology") {
  placement out;
  std::vector<slot_reload> reloads;
  auto in = trivial_placement({1, 4, 6});
  CHECK(replace_lost_experts(topology{{2, 1, 4, 0}}, in, out, reloads).code() == errc::invalid_topology);
  in.edit(0).logical_of_slot[0] = 5;
  CHECK(replace_lost_experts(topology{{2, 1, 3, 0}}, in, out, reloads).code() == errc::invalid_placement);
  CHECK(out.empty());
}

TEST_CASE("plans go on from what survivors hold") {
  ballast_test::generator random{37};
  topology where{{4, 1, 4, 0}};
  std::vector<load_t> loads(std::size_t{2} * 8);
  for (auto& load : loads) { load = random.below(100); }
  auto const in = ballast_test::random_placement({2, 8, 16}, random);
  where.set_live(1, false);
  placement out;
  placement next;
  std::vector<slot_reload> reloads;
  REQUIRE(replace_lost_experts(where, in, out, reloads).ok());
  CHECK(plan(balanced_placement{}, {loads, 1, 2, 8}, out, where, next).ok());
}
