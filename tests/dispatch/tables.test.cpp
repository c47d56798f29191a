// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/dispatch/tables.hpp>

#include <doctest/doctest.h>
#include <support/allocation_counter.hpp>
#include <support/random.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <ostream>
#include <set>
#include <string>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

using namespace ballast;
using ballast_test::generator;

namespace {

placement_shape shape_for(topology const& where, index_t layers, index_t experts) {
  return {layers, experts, where.num_slots()};
}

/// Shares that are anything but even.
void make_shares_uneven(placement& in, generator& random) {
  in.make_shares_even();
  for (index_t layer = 0; layer < in.num_layers(); ++layer) {
    auto const shares = in.edit_shares(layer);
    for (index_t expert = 0; expert < in.num_logical(); ++expert) {
      share_t rest = share_one;
      auto const replicas = in.replicas_of(layer, expert);
      for (auto const slot : replicas) {
        auto const share = slot == replicas.back()
                               ? rest
                               : static_cast<share_t>(random.next() % (static_cast<std::uint64_t>(rest) + 1));
        shares[static_cast<std::size_t>(slot)] = random.below(5) == 0 && slot != replicas.back() ? 0 : share;
        rest -= shares[static_cast<std::size_t>(slot)];
      }
    }
  }
}

bool is_replica(topology const& where, placement const& in, index_t layer, index_t expert, index_t physical) {
  auto const replicas = in.replicas_of(layer, expert);
  return std::any_of(replicas.begin(), replicas.end(), [&](index_t slot) {
    return where.physical_id(slot) == physical && where.is_live(where.rank_of_slot(slot));
  });
}

dispatch_tables published(topology const& where, placement const& in, index_t rank, dispatch_mode mode) {
  dispatch_tables tables{where, in.shape(), rank_id{rank}, mode};
  tables.publish(where, in);
  return tables;
}

/// Rank of a physical id, reserved slots counted.
index_t rank_of_physical(topology const& where, index_t physical) {
  return physical / (where.slots_per_rank() + where.reserved_slots());
}

/// Where every rank sends expert `expert`, [R] physical ids.
std::vector<index_t> targets(topology const& where, placement const& in, index_t layer, index_t expert) {
  std::vector<index_t> result;
  for (index_t rank = 0; rank < where.num_ranks(); ++rank) {
    result.push_back(dispatch_one(published(where, in, rank, dispatch_mode::nearest).view(), layer, 0, 0, expert));
  }
  return result;
}

std::vector<dispatch_mode> const all_modes{dispatch_mode::nearest, dispatch_mode::even, dispatch_mode::round_robin,
                                           dispatch_mode::by_share};

/// Exact probability of each physical id, counted over the 65536 * c equal parts of the draw.
std::vector<double> probabilities(topology const& where, dispatch_view const& view, index_t layer, index_t expert) {
  std::vector<double> result(static_cast<std::size_t>(where.num_physical_ids()));
  auto const range = view.ranges[static_cast<std::ptrdiff_t>(layer) * view.num_logical + expert];
  for (index_t i = 0; i < range.count; ++i) {
    auto const entry = view.entries[static_cast<std::ptrdiff_t>(layer) * view.num_slots + range.first + i];
    auto const kept = threshold_of(entry) / 65536.0;
    result[static_cast<std::size_t>(physical_of(entry))] += kept / range.count;
    result[static_cast<std::size_t>(alias_of(entry))] += (1 - kept) / range.count;
  }
  return result;
}

}  // namespace

TEST_CASE("an entry keeps its three parts") {
  auto const entry = make_dispatch_entry(max_dispatch_ids - 1, 12345, 65535);
  CHECK(physical_of(entry) == max_dispatch_ids - 1);
  CHECK(alias_of(entry) == 12345);
  CHECK(threshold_of(entry) == 65535);
}

TEST_CASE("every mode maps valid ids to live replicas and invalid ids to -1") {
  generator random{1};
  for (int i = 0; i < 60; ++i) {
    CAPTURE(i);
    auto const nodes = random.between(1, 3);
    topology where{{nodes * random.between(1, 4), nodes, random.between(1, 5), random.below(3)}};
    auto const experts = random.between(1, where.num_slots());
    auto in = ballast_test::random_placement(shape_for(where, 2, experts), random);
    if (i % 2 == 0) { make_shares_uneven(in, random); }
    if (i % 3 == 0) { where.set_live(random.below(where.num_ranks()), false); }
    for (auto const mode : all_modes) {
      auto const rank = random.below(where.num_ranks());
      auto const tables = published(where, in, rank, mode);
      for (index_t expert = 0; expert < experts; ++expert) {
        auto const replicas = in.replicas_of(1, expert);
        auto const alive = std::any_of(replicas.begin(), replicas.end(),
                                       [&](index_t slot) { return where.is_live(where.rank_of_slot(slot)); });
        for (std::uint32_t row = 0; row < 20; ++row) {
          auto const physical = dispatch_one(tables.view(), 1, row, row % 3, expert);
          if (alive) {
            CHECK(is_replica(where, in, 1, expert, physical));
          } else {
            CHECK(physical == -1);
          }
        }
      }
      for (index_t f = 0; f < where.reserved_slots(); ++f) {
        auto const own = rank * (where.slots_per_rank() + where.reserved_slots()) + where.slots_per_rank() + f;
        CHECK(dispatch_one(tables.view(), 0, 3, 0, experts + f) == own);
      }
      CHECK(dispatch_one(tables.view(), 0, 0, 0, -1) == -1);
      CHECK(dispatch_one(tables.view(), 0, 0, 0, -7) == -1);
      CHECK(dispatch_one(tables.view(), 0, 0, 0, experts + where.reserved_slots()) == -1);
      CHECK(dispatch_one(tables.view(), 0, 0, 0, std::int64_t{1} << 40) == -1);
    }
  }
}

TEST_CASE("ids keep their type, shape and place") {
  topology const where{{2, 1, 2, 1}};
  placement in;
  REQUIRE(in.assign({1, 3, 4}, std::vector<index_t>{0, 1, 2, 0}).ok());
  auto const tables = published(where, in, 1, dispatch_mode::nearest);
  std::vector<std::int64_t> ids{0, 1, 2, 3, -1, 9};
  dispatch_ids<std::int64_t>(tables.view(), 0, 2, ids, ids);
  CHECK(ids == std::vector<std::int64_t>{4, 1, 3, 5, -1, -1});
  std::vector<std::int32_t> none;
  dispatch_ids<std::int32_t>(tables.view(), 0, 2, none, none);
}

TEST_CASE("physical ids are of another type where it is named") {
  topology const where{{2, 1, 2, 1}};
  placement in;
  REQUIRE(in.assign({1, 3, 4}, std::vector<index_t>{0, 1, 2, 0}).ok());
  auto const tables = published(where, in, 1, dispatch_mode::nearest);
  std::vector<std::int32_t> const narrow{0, 1, 2, 3, -1, 9};
  std::vector<std::int64_t> wide(narrow.size());
  dispatch_ids<std::int32_t, std::int64_t>(tables.view(), 0, 2, narrow, wide);
  CHECK(wide == std::vector<std::int64_t>{4, 1, 3, 5, -1, -1});
  std::vector<std::int64_t> const from{0, 1, 2, 3, -1, std::int64_t{1} << 32};
  std::vector<std::uint32_t> to(from.size());
  dispatch_ids<std::int64_t, std::uint32_t>(tables.view(), 0, 2, from, to);
  CHECK(to == std::vector<std::uint32_t>{4, 1, 3, 5, 0xffffffffu, 0xffffffffu});
}

TEST_CASE("nearest takes this rank's replica, else one of this node, else any") {
  generator random{2};
  for (int i = 0; i < 100; ++i) {
    CAPTURE(i);
    auto const nodes = random.between(1, 4);
    topology const where{{nodes * random.between(1, 4), nodes, random.between(1, 4), 0}};
    auto const experts = random.between(1, where.num_slots());
    auto const in = ballast_test::random_placement(shape_for(where, 1, experts), random);
    for (index_t expert = 0; expert < experts; ++expert) {
      std::set<index_t> ranks;
      std::set<index_t> on_nodes;
      for (auto const slot : in.replicas_of(0, expert)) {
        ranks.insert(where.rank_of_slot(slot));
        on_nodes.insert(where.node_of_slot(slot));
      }
      auto const to = targets(where, in, 0, expert);
      for (index_t rank = 0; rank < where.num_ranks(); ++rank) {
        auto const target = rank_of_physical(where, to[static_cast<std::size_t>(rank)]);
        if (ranks.contains(rank)) { CHECK(target == rank); }
        if (on_nodes.contains(where.node_of_rank(rank))) {
          CHECK(where.node_of_rank(target) == where.node_of_rank(rank));
        }
      }
    }
  }
}

TEST_CASE("nearest lets ranks take turns: users of two replicas differ by at most one") {
  generator random{3};
  for (int i = 0; i < 200; ++i) {
    CAPTURE(i);
    auto const nodes = random.between(1, 4);
    topology where{{nodes * random.between(1, 6), nodes, random.between(1, 4), 0}};
    auto const experts = random.between(1, where.num_slots());
    auto const in = ballast_test::random_placement(shape_for(where, 1, experts), random);
    if (i % 4 == 0) { where.set_live(random.below(where.num_ranks()), false); }
    for (index_t expert = 0; expert < experts; ++expert) {
      std::vector<index_t> live;
      for (auto const slot : in.replicas_of(0, expert)) {
        if (where.is_live(where.rank_of_slot(slot))) { live.push_back(slot); }
      }
      if (live.empty()) { continue; }
      auto const to = targets(where, in, 0, expert);
      // Users that have no replica of their own: of a node with replicas, and of all nodes without.
      for (index_t node = -1; node < where.num_nodes(); ++node) {
        std::vector<index_t> candidates;
        for (auto const slot : live) {
          if (node < 0 || where.node_of_slot(slot) == node) { candidates.push_back(slot); }
        }
        if (candidates.empty()) { continue; }
        std::vector<index_t> users(candidates.size(), 0);
        for (index_t rank = 0; rank < where.num_ranks(); ++rank) {
          if (!where.is_live(rank)) { continue; }
          auto const holds = [&](index_t slot) { return where.rank_of_slot(slot) == rank; };
          auto const near = [&](index_t slot) { return where.node_of_slot(slot) == where.node_of_rank(rank); };
          auto const counted = node < 0
                                   ? std::none_of(live.begin(), live.end(), near)
                                   : where.node_of_rank(rank) == node && std::none_of(live.begin(), live.end(), holds);
          for (std::size_t c = 0; c < candidates.size() && counted; ++c) {
            users[c] += to[static_cast<std::size_t>(rank)] == where.physical_id(candidates[c]) ? 1 : 0;
          }
        }
        auto const [least, most] = std::minmax_element(users.begin(), users.end());
        CHECK(*most - *least <= 1);
      }
    }
  }
}

TEST_CASE("nearest does not send a whole node to its first replica (SGLang issue 13423)") {
  // Two replicas on a node of eight ranks. Taking the first of the node gives one of them seven users.
  topology const where{{8, 1, 2, 0}};
  std::vector<index_t> map{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 0};
  placement in;
  REQUIRE(in.assign({1, 15, 16}, map).ok());
  auto const to = targets(where, in, 0, 0);
  CHECK(std::count(to.begin(), to.end(), 0) == 4);
  CHECK(std::count(to.begin(), to.end(), 15) == 4);
  // Over many experts the odd user does not always fall to the same replica.
  topology const odd{{3, 1, 64, 0}};
  std::vector<index_t> both;
  for (index_t p = 0; p < 192; ++p) { both.push_back(p < 128 ? p % 64 : p - 64); }
  placement doubled;
  REQUIRE(doubled.assign({1, 128, 192}, both).ok());
  auto const tables = published(odd, doubled, 2, dispatch_mode::nearest);
  index_t first = 0;
  for (index_t expert = 0; expert < 64; ++expert) {
    first += dispatch_one(tables.view(), 0, 0, 0, expert) < 64 ? 1 : 0;
  }
  CHECK(first > 16);
  CHECK(first < 48);
}

TEST_CASE("by_share gives every replica its share to 1 / 65536") {
  generator random{4};
  for (int i = 0; i < 200; ++i) {
    CAPTURE(i);
    topology const where{{random.between(1, 12), 1, random.between(1, 6), 0}};
    auto in = ballast_test::random_placement(shape_for(where, 1, random.between(1, where.num_slots())), random);
    make_shares_uneven(in, random);
    auto const tables = published(where, in, 0, dispatch_mode::by_share);
    for (index_t expert = 0; expert < in.num_logical(); ++expert) {
      auto const given = probabilities(where, tables.view(), 0, expert);
      for (auto const slot : in.replicas_of(0, expert)) {
        auto const share = in.shares(0)[static_cast<std::size_t>(slot)] / static_cast<double>(share_one);
        CHECK(std::abs(given[static_cast<std::size_t>(where.physical_id(slot))] - share) <= 1.0 / 65536);
      }
    }
  }
}

TEST_CASE("tokens are drawn as the tables say, also in small batches over many ranks") {
  topology const where{{8, 1, 4, 0}};
  generator random{5};
  auto in = ballast_test::random_placement(shape_for(where, 1, 6), random);
  make_shares_uneven(in, random);
  for (auto const mode : {dispatch_mode::even, dispatch_mode::by_share}) {
    for (index_t expert = 0; expert < 6; ++expert) {
      constexpr std::uint32_t rows = 64;
      constexpr index_t batches = 256;  // as many ranks' first rows
      std::vector<double> seen(32);
      std::vector<double> wanted;
      for (index_t rank = 0; rank < 8; ++rank) {
        auto const tables = published(where, in, rank, mode);
        auto view = tables.view();
        if (rank == 0) { wanted = probabilities(where, view, 0, expert); }
        for (index_t batch = 0; batch < batches / 8; ++batch) {
          view.salt += 1;
          for (std::uint32_t row = 0; row < rows; ++row) {
            seen[static_cast<std::size_t>(dispatch_one(view, 0, row, 2, expert))] += 1.0 / (rows * batches);
          }
        }
      }
      // Five standard deviations of rows * batches independent draws.
      for (std::size_t p = 0; p < seen.size(); ++p) {
        CHECK(std::abs(seen[p] - wanted[p]) <= 5 * std::sqrt(0.25 / (rows * batches)));
      }
    }
  }
}

TEST_CASE("the first row of many ranks does not meet on one replica, unless ranks must agree") {
  topology const where{{64, 1, 1, 0}};
  placement in;
  REQUIRE(in.assign({1, 1, 64}, std::vector<index_t>(64, 0)).ok());
  std::set<index_t> seen;
  for (index_t rank = 0; rank < 64; ++rank) {
    seen.insert(dispatch_one(published(where, in, rank, dispatch_mode::even).view(), 0, 0, 0, 0));
  }
  CHECK(seen.size() > 24);
}

TEST_CASE("round_robin takes the replicas in turn") {
  topology const where{{4, 1, 2, 0}};
  placement in;
  REQUIRE(in.assign({1, 5, 8}, std::vector<index_t>{0, 1, 0, 2, 0, 3, 0, 4}).ok());
  auto const tables = published(where, in, 1, dispatch_mode::round_robin);
  std::vector<index_t> seen;
  for (std::uint32_t row = 0; row < 8; ++row) { seen.push_back(dispatch_one(tables.view(), 0, row, 0, 0)); }
  for (std::size_t i = 0; i < 4; ++i) {
    CHECK(seen[i] == seen[i + 4]);
    CHECK(std::count(seen.begin(), seen.end(), seen[i]) == 2);
  }
}

TEST_CASE("invariant tables are the same wherever they are made and refuse what cannot be") {
  topology const where{{4, 2, 3, 0}};
  generator random{6};
  auto const in = ballast_test::random_placement(shape_for(where, 2, 7), random);
  invariant_dispatch_tables tables{where, in.shape(), dispatch_mode::by_share};
  tables.publish(where, in);
  CHECK(tables.view().salt == 0);
  CHECK(is_replica(where, in, 1, 3, dispatch_one(tables.view(), 1, 17, 2, 3)));
  auto const nearest = invariant_dispatch_tables::validate(where, in.shape(), dispatch_mode::nearest);
  CHECK(nearest.message() == "dispatch: the nearest replica differs from rank to rank");
  auto const reserved = invariant_dispatch_tables::validate(topology{{4, 2, 3, 1}}, in.shape(), dispatch_mode::even);
  CHECK(reserved.message() == "dispatch: 1 reserved slots are each rank's own, ranks would disagree");
}

TEST_CASE("tables that cannot be are refused by name") {
  topology const where{{2, 1, 4, 0}};
  CHECK(dispatch_tables::validate(where, {1, 4, 8}, rank_id{2}).message() == "dispatch: rank 2 of a group of 2");
  CHECK(dispatch_tables::validate(where, {1, 4, 9}, rank_id{0}).message() ==
        "dispatch: a placement of 9 slots on a topology of 8");
  topology const huge{{1, 1, 1, max_dispatch_ids}};
  CHECK(dispatch_tables::validate(huge, {1, 1, 1}, rank_id{0}).message() ==
        "dispatch: 16777217 physical ids, tables hold at most 16777216");
}

TEST_CASE("publishing changes one layer in place and allocates nothing") {
  topology const where{{8, 2, 9, 1}};
  generator random{7};
  auto in = ballast_test::random_placement(shape_for(where, 3, 40), random);
  make_shares_uneven(in, random);
  for (auto const mode : all_modes) {
    dispatch_tables tables{where, in.shape(), rank_id{3}, mode};
    CHECK(dispatch_one(tables.view(), 1, 0, 0, 5) == -1);
    tables.publish(where, in);
    auto const view = tables.view();
    std::vector<dispatch_entry> const before{tables.entries().begin(), tables.entries().end()};
    auto const other = ballast_test::random_placement(in.shape(), random);
    ballast_test::allocation_count const allocations;
    tables.publish(where, other, 1);
    auto const made = allocations();
    CHECK(made == 0);
    CHECK(tables.view().entries == view.entries);
    CHECK(tables.view().ranges == view.ranges);
    auto const same = [&](std::ptrdiff_t layer) {
      return std::equal(before.begin() + layer * 72, before.begin() + (layer + 1) * 72,
                        tables.entries().begin() + layer * 72);
    };
    CHECK(same(0));
    CHECK(!same(1));
    CHECK(same(2));
    tables.publish(where, in, 1);
    CHECK(std::equal(before.begin(), before.end(), tables.entries().begin()));
  }
}

TEST_CASE("lookups run at compile time, the same as at run time") {
  static constexpr replica_range ranges[]{{0, 2}};
  static constexpr dispatch_entry entries[]{make_dispatch_entry(3, 7, 1000), make_dispatch_entry(7, 7, 0)};
  constexpr dispatch_view view{ranges, entries, 1, 1, 2, 0, 0, 42, dispatch_rule::hashed};
  static_assert(dispatch_one(view, 0, 0, 0, -1) == -1);
  constexpr index_t physical = dispatch_one(view, 0, 5, 1, 0);
  dispatch_view const copy = view;
  CHECK(dispatch_one(copy, 0, 5, 1, 0) == physical);
}

TEST_CASE("a mode that there is not is refused by value") {
  topology const where{{2, 1, 4, 0}};
  auto const unknown = static_cast<dispatch_mode>(9);  // NOLINT(clang-analyzer-optin.core.EnumCastOutOfRange)
  auto const text = "dispatch: mode is 9, must be 0 (nearest), 1 (even), 2 (round_robin) or 3 (by_share)";
  CHECK(dispatch_tables::validate(where, {1, 4, 8}, rank_id{0}, unknown).message() == text);
  CHECK(invariant_dispatch_tables::validate(where, {1, 4, 8}, unknown).message() == text);
  CHECK_THROWS_AS((dispatch_tables{where, {1, 4, 8}, rank_id{0}, unknown}), std::system_error);
  CHECK_THROWS_AS((invariant_dispatch_tables{where, {1, 4, 8}, unknown}), std::system_error);
  for (auto const mode : all_modes) { CHECK(dispatch_tables::validate(where, {1, 4, 8}, rank_id{0}, mode).ok()); }
}

// NOLINTBEGIN(bugprone-use-after-move,clang-analyzer-cplusplus.Move): what is left is what is tested
TEST_CASE("what was moved from has no layers") {
  topology const where{{2, 1, 4, 1}};
  auto const in = trivial_placement({2, 4, 8});
  dispatch_tables tables{where, in.shape(), rank_id{1}, dispatch_mode::even};
  tables.publish(where, in);
  dispatch_tables const taken{std::move(tables)};
  CHECK(dispatch_one(taken.view(), 1, 0, 0, 2) >= 0);
  auto const view = tables.view();
  CHECK(view.num_layers == 0);
  CHECK(view.num_logical == 0);
  CHECK(view.num_slots == 0);
  CHECK(view.num_reserved == 0);
  CHECK(tables.shape() == placement_shape{});
  CHECK(tables.ranges().empty());
  std::vector<std::int32_t> ids{1};
  CHECK_BREAKS_CONTRACT(dispatch_ids<std::int32_t>(view, 0, 1, ids, ids));
  CHECK_BREAKS_CONTRACT(tables.publish(where, in, 0));
  CHECK_BREAKS_CONTRACT(tables.publish(where, in));
  static_assert(std::is_nothrow_move_constructible_v<dispatch_tables> &&
                std::is_nothrow_move_assignable_v<dispatch_tables>);
}
// NOLINTEND(bugprone-use-after-move,clang-analyzer-cplusplus.Move)
