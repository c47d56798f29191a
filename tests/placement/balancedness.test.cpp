// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/placement/balancedness.hpp>
#include <ballast/placement/group_split.hpp>

#include <doctest/doctest.h>
#include <support/long_runs.hpp>
#include <support/random.hpp>
#include <support/throwing_contracts.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

using namespace ballast;

namespace {

using loads_t = std::vector<load_t>;

placement from(placement_shape shape, std::vector<index_t> const& slots) {
  placement result;
  result.assign(shape, slots).or_throw();
  return result;
}

/// In load units.
loads_t loads_of_ranks(topology const& where, placement const& in, index_t layer, loads_t const& loads) {
  loads_t out(static_cast<std::size_t>(where.num_ranks()), -1);
  rank_loads(where, in, layer, loads, out);
  return out;
}

}  // namespace

TEST_CASE("an expert's tokens are split evenly over its slots") {
  topology const where{{.num_ranks = 3, .slots_per_rank = 2}};
  auto const in = from({1, 4, 6}, {0, 1, 0, 2, 0, 3});
  auto const unit = detail::load_unit;
  CHECK(loads_of_ranks(where, in, 0, {9, 1, 2, 4}) == loads_t{4 * unit, 5 * unit, 7 * unit});
  auto const balance = balance_of(where, in, 0, loads_t{9, 1, 2, 4});
  CHECK(balance.mean == doctest::Approx(16.0 / 3));
  CHECK(balance.max == 7);
  CHECK(balance.balancedness() == doctest::Approx(16.0 / 21));
}

TEST_CASE("two replicas on one rank are two parts there") {
  topology const where{{.num_ranks = 2, .slots_per_rank = 2}};
  auto const in = from({1, 2, 4}, {0, 0, 0, 1});
  auto const unit = detail::load_unit;
  CHECK(loads_of_ranks(where, in, 0, {30, 5}) == loads_t{20 * unit, 15 * unit});
}

TEST_CASE("shares decide where there are any") {
  topology const where{{.num_ranks = 2, .slots_per_rank = 2}};
  auto in = from({1, 2, 4}, {0, 1, 0, 1});
  in.make_shares_even();
  CHECK(balance_of(where, in, 0, loads_t{8, 4}).balancedness() == 1.0);
  in.edit_shares(0)[0] = share_one / 4 * 3;
  in.edit_shares(0)[2] = share_one / 4;
  auto const unit = detail::load_unit;
  CHECK(loads_of_ranks(where, in, 0, {8, 4}) == loads_t{8 * unit, 4 * unit});
  in.edit_shares(0)[0] = 0;
  in.edit_shares(0)[2] = share_one;
  CHECK(loads_of_ranks(where, in, 0, {8, 4}) == loads_t{2 * unit, 10 * unit});
}

TEST_CASE("a shared load is the product rounded to the unit, up to the largest load") {
  ballast_test::generator random{7};
  for (int trial = 0, count = ballast_test::cases(20'000); trial < count; ++trial) {
    auto const tokens = static_cast<load_t>(random.next() >> (20 + random.below(44)));
    auto const share = static_cast<share_t>(random.next() % (std::uint64_t{share_one} + 1));
    auto const exact =
        std::ldexp(static_cast<long double>(tokens) * static_cast<long double>(share), detail::load_unit_bits - 30);
    REQUIRE(std::abs(static_cast<long double>(detail::shared_load(tokens, share)) - exact) <= 0.5L);
  }
  CHECK(detail::shared_load(max_layer_tokens, share_one) == max_layer_tokens * detail::load_unit);
  CHECK(detail::shared_load(max_layer_tokens, 0) == 0);
}

TEST_CASE("no load is balanced, and so is one rank") {
  topology const two{{.num_ranks = 2}};
  auto const in = trivial_placement({1, 2, 2});
  CHECK(balance_of(two, in, 0, loads_t{0, 0}).balancedness() == 1.0);
  CHECK(layer_balance{}.balancedness() == 1.0);
  topology const one{{.num_ranks = 1, .slots_per_rank = 3}};
  CHECK(balance_of(one, trivial_placement({1, 3, 3}), 0, loads_t{5, 0, 90}).balancedness() == 1.0);
}

TEST_CASE("over layers, means and maxima are added before they are divided") {
  topology const where{{.num_ranks = 2}};
  auto const in = trivial_placement({3, 2, 2});
  loads_t const loads{10, 0, 50, 50, 0, 0};
  CHECK(balancedness(where, in, matrix_view<load_t const>{loads, 3, 2}) == doctest::Approx(55.0 / 60.0));
  CHECK(balancedness(where, trivial_placement({0, 2, 2}), matrix_view<load_t const>{{}, 0, 2}) == 1.0);
}

TEST_CASE("dead ranks do not count towards the mean") {
  topology where{{.num_ranks = 3}};
  where.set_live(2, false);
  auto in = from({1, 2, 3}, {0, 1, 1});
  // Without shares live replicas have all of an expert's tokens.
  CHECK(loads_of_ranks(where, in, 0, {6, 4}) == loads_t{6 * detail::load_unit, 4 * detail::load_unit, 0});
  in.make_shares_even();
  in.edit_shares(0)[1] = share_one;
  in.edit_shares(0)[2] = 0;
  auto const balance = balance_of(where, in, 0, loads_t{6, 4});
  CHECK(balance.mean == 5);
  CHECK(balance.max == 6);
}

TEST_CASE("rank loads hold every token but for the rounding, and balancedness is in (0, 1]") {
  ballast_test::generator random{8};
  for (int trial = 0, count = ballast_test::cases(200); trial < count; ++trial) {
    auto const ranks = random.between(1, 8);
    topology const where{{.num_ranks = ranks, .slots_per_rank = random.between(1, 6)}};
    auto const experts = random.between(1, where.num_slots());
    auto const in = ballast_test::random_placement({1, experts, where.num_slots()}, random);
    loads_t loads(static_cast<std::size_t>(experts));
    for (auto& tokens : loads) { tokens = random.below(1'000'000); }
    auto const per_rank = loads_of_ranks(where, in, 0, loads);
    auto const total = std::accumulate(loads.begin(), loads.end(), load_t{0}) * detail::load_unit;
    auto const kept = std::accumulate(per_rank.begin(), per_rank.end(), load_t{0});
    REQUIRE(kept <= total);
    REQUIRE(total - kept < where.num_slots());
    auto const value = balance_of(where, in, 0, loads).balancedness();
    REQUIRE(value > 0);
    REQUIRE(value <= 1);
  }
}

TEST_CASE("sizes that do not match break the contract") {
  topology const where{{.num_ranks = 2}};
  auto const in = trivial_placement({1, 2, 2});
  CHECK_BREAKS_CONTRACT(balance_of(where, in, 0, loads_t{1, 2, 3}));
  CHECK_BREAKS_CONTRACT(balance_of(topology{}, in, 0, loads_t{1, 2}));
  loads_t out(3);
  CHECK_BREAKS_CONTRACT(rank_loads(where, in, 0, loads_t{1, 2}, out));
}

TEST_CASE("loads that are negative, or more than a layer may have, break the contract") {
  topology const where{{.num_ranks = 2}};
  auto const in = trivial_placement({1, 2, 2});
  loads_t out(2);
  CHECK(balance_of(where, in, 0, loads_t{max_layer_tokens - 1, 1}).mean == static_cast<double>(max_layer_tokens / 2));
  for (auto const& wrong :
       {loads_t{5, -1}, loads_t{max_layer_tokens, 1}, loads_t{std::numeric_limits<load_t>::max(), 1},
        loads_t{std::numeric_limits<load_t>::min(), 1}}) {
    CHECK_BREAKS_CONTRACT(rank_loads(where, in, 0, wrong, out));
    CHECK_BREAKS_CONTRACT(balance_of(where, in, 0, wrong));
    CHECK_BREAKS_CONTRACT(balancedness(where, in, matrix_view<load_t const>{std::span{wrong}, 1, 2}));
    CHECK_BREAKS_CONTRACT(split_of_groups(where, in, 1, 0, wrong));
  }
#if BALLAST_CONTRACT_LEVEL >= 1
  CHECK_THROWS_WITH(rank_loads(where, in, 0, loads_t{5, -1}, out),
                    "rank_loads: tokens of an expert -1 is not in [0, 17592186044416]");
  CHECK_THROWS_WITH(rank_loads(where, in, 0, loads_t{max_layer_tokens, 1}, out),
                    "rank_loads: tokens of a layer 17592186044417 is not in [0, 17592186044416]");
  CHECK_THROWS_WITH(static_cast<void>(split_of_groups(where, in, 1, 0, loads_t{5, -1})),
                    "split_of_groups: tokens of an expert -1 is not in [0, 17592186044416]");
#endif
}
