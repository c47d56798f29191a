// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/shares/replica_shares.hpp>

#include <doctest/doctest.h>
#include <support/allocation_counter.hpp>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <numeric>
#include <ostream>
#include <string>
#include <vector>

using namespace ballast;

namespace {

/// A generator of our own, so that failures reproduce everywhere.
struct random_source {
  std::uint64_t state;

  std::uint64_t next() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return state >> 33;
  }
  index_t below(index_t end) { return static_cast<index_t>(next() % static_cast<std::uint64_t>(end)); }
};

struct layer_case {
  topology where;
  std::vector<index_t> map;
  std::vector<load_t> loads;
};

/// Any map in which every expert has a slot on a live rank.
layer_case random_case(random_source& random, index_t max_ranks) {
  auto const ranks = 1 + random.below(max_ranks);
  auto const slots = 1 + random.below(5);
  layer_case made{topology{{ranks, 1, slots, 0}}, {}, {}};
  auto const dead = ranks > 1 && random.below(4) == 0 ? random.below(ranks) : -1;
  if (dead >= 0) { made.where.set_live(dead, false); }
  auto const usable = made.where.num_live_ranks() * slots;
  auto const experts = 1 + random.below(usable);
  for (index_t e = 0; e < experts; ++e) {
    auto const size = load_t{1} << random.below(30);
    made.loads.push_back(random.below(6) == 0 ? 0 : static_cast<load_t>(random.next()) % size);
  }
  std::vector<index_t> owners;
  for (index_t i = 0; i < usable; ++i) { owners.push_back(i < experts ? i : random.below(experts)); }
  for (auto i = owners.size(); i > 1; --i) {
    std::swap(owners[i - 1], owners[static_cast<std::size_t>(random.below(static_cast<index_t>(i)))]);
  }
  for (index_t slot = 0, i = 0; slot < made.where.num_slots(); ++slot) {
    auto const live = made.where.is_live(made.where.rank_of_slot(slot));
    made.map.push_back(live ? owners[static_cast<std::size_t>(i++)] : random.below(experts));
  }
  return made;
}

/// Hall's condition by brute force: over all sets of live ranks, the load that cannot leave the set / its size,
/// in load units, rounded up.
load_t optimum_by_enumeration(layer_case const& in) {
  auto const ranks = in.where.num_ranks();
  std::vector<unsigned> homes(in.loads.size());
  unsigned live = 0;
  for (index_t slot = 0; slot < in.where.num_slots(); ++slot) {
    auto const rank = in.where.rank_of_slot(slot);
    if (!in.where.is_live(rank)) { continue; }
    homes[static_cast<std::size_t>(in.map[static_cast<std::size_t>(slot)])] |= 1u << rank;
    live |= 1u << rank;
  }
  load_t best = 0;
  for (unsigned set = 1; set < (1u << ranks); ++set) {
    if ((set & ~live) != 0) { continue; }
    load_t load = 0;
    load_t size = 0;
    for (index_t rank = 0; rank < ranks; ++rank) { size += (set >> rank) & 1u; }
    for (std::size_t e = 0; e < homes.size(); ++e) { load += (homes[e] & ~set) == 0 ? in.loads[e] : 0; }
    best = std::max(best, (load * detail::load_unit + size - 1) / size);
  }
  return best;
}

/// Likewise the most that a set has more than `target` for each of its ranks: no split leaves less above it.
load_t excess_by_enumeration(layer_case const& in, load_t target) {
  load_t most = 0;
  for (unsigned set = 1; set < (1u << in.where.num_ranks()); ++set) {
    load_t above = 0;
    for (index_t rank = 0; rank < in.where.num_ranks(); ++rank) { above -= (set >> rank & 1u) != 0 ? target : 0; }
    for (index_t expert = 0; expert < static_cast<index_t>(in.loads.size()); ++expert) {
      bool stays = true;
      for (index_t slot = 0; slot < in.where.num_slots(); ++slot) {
        auto const rank = in.where.rank_of_slot(slot);
        stays = stays && (in.map[static_cast<std::size_t>(slot)] != expert || !in.where.is_live(rank) ||
                          (set >> rank & 1u) != 0);
      }
      above += stays ? in.loads[static_cast<std::size_t>(expert)] * detail::load_unit : 0;
    }
    most = std::max(most, above);
  }
  return most;
}

load_t max_rank_load(topology const& where, placement const& in, std::vector<load_t> const& loads) {
  std::vector<load_t> per_rank(static_cast<std::size_t>(where.num_ranks()));
  rank_loads(where, in, 0, loads, per_rank);
  return *std::max_element(per_rank.begin(), per_rank.end());
}

placement placed(layer_case const& in) {
  placement result;
  REQUIRE(result.assign({1, static_cast<index_t>(in.loads.size()), in.where.num_slots()}, in.map).ok());
  return result;
}

/// Even shares over live ranks, what an engine has that never solves.
placement with_even_live_shares(layer_case const& in) {
  auto result = placed(in);
  result.make_shares_even();
  auto const shares = result.edit_shares(0);
  for (index_t expert = 0; expert < result.num_logical(); ++expert) {
    std::vector<index_t> live;
    for (auto const slot : result.replicas_of(0, expert)) {
      shares[static_cast<std::size_t>(slot)] = 0;
      if (in.where.is_live(in.where.rank_of_slot(slot))) { live.push_back(slot); }
    }
    auto const count = static_cast<share_t>(live.size());
    for (share_t i = 0; i < count; ++i) {
      shares[static_cast<std::size_t>(live[i])] = share_one / count + (i < share_one % count ? 1 : 0);
    }
  }
  return result;
}

void check_shares(layer_case const& in, placement const& solved) {
  auto const shares = solved.shares(0);
  for (index_t expert = 0; expert < solved.num_logical(); ++expert) {
    std::uint64_t sum = 0;
    for (auto const slot : solved.replicas_of(0, expert)) {
      auto const share = shares[static_cast<std::size_t>(slot)];
      sum += share;
      if (!in.where.is_live(in.where.rank_of_slot(slot))) { CHECK(share == 0); }
    }
    CHECK(sum == share_one);
  }
}

}  // namespace

TEST_CASE("the exact solver meets Hall's bound, the fast one comes within 1e-3") {
  random_source random{1};
  share_solver solver;
  for (int i = 0; i < 4000; ++i) {
    CAPTURE(i);
    auto const in = random_case(random, 7);
    auto const best = optimum_by_enumeration(in);
    REQUIRE(solver.open(in.where, in.map, in.loads).ok());
    CHECK(solver.solve() == best);
    CHECK(solver.bound() == best);
    CHECK(std::accumulate(solver.rank_loads().begin(), solver.rank_loads().end(), load_t{0}) ==
          std::accumulate(in.loads.begin(), in.loads.end(), load_t{0}) * detail::load_unit);
    REQUIRE(solver.open(in.where, in.map, in.loads).ok());
    auto const fast = solver.solve(share_precision::fast);
    CHECK(fast >= best);
    CHECK(fast - best <= best / 1000);
    CHECK(solver.bound() <= best);
  }
}

TEST_CASE("the bottleneck's experts cannot leave it and its mean load is the optimum") {
  random_source random{2};
  share_solver solver;
  for (int i = 0; i < 2000; ++i) {
    CAPTURE(i);
    auto const in = random_case(random, 9);
    REQUIRE(solver.open(in.where, in.map, in.loads).ok());
    auto const best = solver.solve();
    load_t inside = 0;
    load_t ranks = 0;
    for (index_t rank = 0; rank < in.where.num_ranks(); ++rank) {
      if (!solver.is_bottleneck(rank)) { continue; }
      REQUIRE(in.where.is_live(rank));
      ++ranks;
      inside += solver.rank_loads()[static_cast<std::size_t>(rank)];
    }
    REQUIRE(ranks > 0);
    CHECK((inside + ranks - 1) / ranks == best);
    for (index_t slot = 0; slot < in.where.num_slots(); ++slot) {
      if (solver.slot_loads()[static_cast<std::size_t>(slot)] == 0) { continue; }
      if (!solver.is_bottleneck(in.where.rank_of_slot(slot))) { continue; }
      for (index_t other = 0; other < in.where.num_slots(); ++other) {
        if (in.map[static_cast<std::size_t>(other)] != in.map[static_cast<std::size_t>(slot)]) { continue; }
        auto const rank = in.where.rank_of_slot(other);
        CHECK((!in.where.is_live(rank) || solver.is_bottleneck(rank)));
      }
    }
  }
}

TEST_CASE(
    "settled at a target, no more stays above it than any split must leave, and none of that can leave its ranks") {
  random_source random{9};
  share_solver solver;
  for (int i = 0; i < 2000; ++i) {
    CAPTURE(i);
    auto const in = random_case(random, 7);
    REQUIRE(solver.open(in.where, in.map, in.loads).ok());
    auto const best = optimum_by_enumeration(in);
    auto const target = best * (1 + random.below(12)) / 10;
    auto const above = solver.settle(target);
    CHECK(above == excess_by_enumeration(in, target));
    CHECK((above == 0) == (target >= best));
    load_t left = 0;
    for (auto const load : solver.rank_loads()) { left += std::max(load - target, load_t{0}); }
    CHECK(left == above);
    if (above == 0) { continue; }
    // A least cut: what the bottleneck carries above the target is all there is, and its ranks are full.
    load_t inside = 0;
    for (index_t rank = 0; rank < in.where.num_ranks(); ++rank) {
      auto const load = solver.rank_loads()[static_cast<std::size_t>(rank)];
      if (solver.is_bottleneck(rank)) { inside += load - target; }
      CHECK((solver.is_bottleneck(rank) ? load >= target : load <= target));
    }
    CHECK(inside == above);
  }
}

TEST_CASE("written shares are whole, avoid dead ranks and are never worse than even ones") {
  random_source random{3};
  share_solver solver;
  for (int i = 0; i < 4000; ++i) {
    CAPTURE(i);
    auto const in = random_case(random, 12);
    auto const even = max_rank_load(in.where, with_even_live_shares(in), in.loads);
    auto solved = placed(in);
    for (auto const precision : {share_precision::exact, share_precision::fast}) {
      REQUIRE(optimal_shares(in.where, solved, 0, in.loads, solver, precision).ok());
      check_shares(in, solved);
      CHECK(max_rank_load(in.where, solved, in.loads) <= even);
    }
  }
}

TEST_CASE("a changed slot is solved as if the layer had been opened with it") {
  random_source random{4};
  share_solver changed;
  share_solver fresh;
  for (int i = 0; i < 300; ++i) {
    auto in = random_case(random, 8);
    REQUIRE(changed.open(in.where, in.map, in.loads).ok());
    static_cast<void>(changed.solve());
    for (int step = 0; step < 20; ++step) {
      CAPTURE(i);
      CAPTURE(step);
      auto const slot = random.below(in.where.num_slots());
      auto const other = random.below(in.where.num_slots());
      if (!in.where.is_live(in.where.rank_of_slot(slot)) || !in.where.is_live(in.where.rank_of_slot(other))) {
        continue;
      }
      // A swap passes through a state in which an expert may have no home.
      auto& a = in.map[static_cast<std::size_t>(slot)];
      auto& b = in.map[static_cast<std::size_t>(other)];
      std::swap(a, b);
      changed.replace(slot, a);
      changed.replace(other, b);
      REQUIRE(fresh.open(in.where, in.map, in.loads).ok());
      CHECK(changed.solve() == fresh.solve());
      CHECK(std::equal(in.map.begin(), in.map.end(), changed.logical_of_slot().begin()));
    }
  }
}

TEST_CASE("shares in force are kept where they are good already") {
  random_source random{5};
  share_solver solver;
  for (int i = 0; i < 500; ++i) {
    CAPTURE(i);
    auto const in = random_case(random, 8);
    auto solved = placed(in);
    REQUIRE(optimal_shares(in.where, solved, 0, in.loads, solver).ok());
    auto again = solved;
    REQUIRE(optimal_shares(in.where, again, 0, in.loads, solver, share_precision::fast).ok());
    auto const before = max_rank_load(in.where, solved, in.loads);
    CHECK(max_rank_load(in.where, again, in.loads) <= before + before / 1000 + 1);
  }
}

TEST_CASE("a solver that has seen the sizes allocates nothing") {
  random_source random{6};
  auto const in = random_case(random, 12);
  auto solved = placed(in);
  share_solver solver;
  REQUIRE(optimal_shares(in.where, solved, 0, in.loads, solver).ok());
  auto copy = solver;
  ballast_test::allocation_count const allocations;
  auto const again = optimal_shares(in.where, solved, 0, in.loads, solver);
  copy = solver;
  auto const made = allocations();
  CHECK(again.ok());
  CHECK(made == 0);
}

TEST_CASE("two copies on one rank act as one") {
  topology const where{{2, 1, 2, 0}};
  std::vector<index_t> const map{0, 0, 0, 1};
  std::vector<load_t> const loads{30, 10};
  share_solver solver;
  REQUIRE(solver.open(where, map, loads).ok());
  CHECK(solver.solve() == 20 * detail::load_unit);
}

TEST_CASE("an expert whose ranks are all dead is named") {
  topology where{{2, 1, 1, 0}};
  where.set_live(1, false);
  placement solved;
  REQUIRE(solved.assign({1, 2, 2}, std::vector<index_t>{0, 1}).ok());
  auto const before = solved;
  share_solver solver;
  auto const result = optimal_shares(where, solved, 0, std::vector<load_t>{1, 1}, solver);
  CHECK(result.code() == errc::missing_expert);
  CHECK(result.message() == "shares: no live rank holds expert 1");
  CHECK(solved == before);
}

TEST_CASE("the largest loads do not overflow") {
  topology const where{{2, 1, 2, 0}};
  std::vector<index_t> const map{0, 1, 0, 1};
  std::vector<load_t> const loads{max_layer_tokens - 1, 1};
  share_solver solver;
  REQUIRE(solver.open(where, map, loads).ok());
  CHECK(solver.solve() == max_layer_tokens / 2 * detail::load_unit);
  placement solved;
  REQUIRE(solved.assign({1, 2, 4}, map).ok());
  REQUIRE(optimal_shares(where, solved, 0, loads, solver).ok());
}

TEST_CASE("shares of what does not fit together are refused by value, with nothing changed") {
  topology const where{{2, 1, 3, 0}};
  auto const before = trivial_placement({2, 4, 6});
  auto in = before;
  share_solver solver;
  auto const refusal = [&](auto const&... arguments) {
    auto result = optimal_shares(arguments..., solver);
    CHECK(in == before);
    return result;
  };
  std::vector<load_t> const good{1, 2, 3, 4};
  CHECK(refusal(topology{{2, 1, 4, 0}}, std::ref(in), 0, good).message() ==
        "shares: a map of 6 slots and 0 shares, the topology has 8 slots");
  CHECK(refusal(where, std::ref(in), 2, good).message() == "shares: layer 2, the placement has 2 layers");
  CHECK(refusal(where, std::ref(in), -1, good).code() == errc::invalid_placement);
  CHECK(refusal(where, std::ref(in), 0, std::vector<load_t>{1, 2, 3}).message() ==
        "shares: loads of 3 experts, the placement has 4");
  CHECK(refusal(where, std::ref(in), 0, std::vector<load_t>{1, 2, -3, 4}).message().find("expert 2 is -3") !=
        std::string::npos);
  CHECK(refusal(where, std::ref(in), 0, std::vector<load_t>{1, max_layer_tokens, 0, 0}).code() == errc::invalid_load);
  CHECK(refusal(where, std::ref(in), load_history_view{good, 1, 1, 4}).message() ==
        "shares: loads are for 1 layers x 4 experts, the placement for 2 x 4");
  CHECK(refusal(where, std::ref(in), load_history_view{good, 1, 2, 2}).code() == errc::invalid_load);
  std::vector<index_t> const wild{0, 1, 2, 3, 4, 0};
  CHECK(solver.open(where, wild, good).message() == "shares: slot 4 holds expert 4, must be in [0, 4)");
  CHECK_FALSE(solver.open(where, std::vector<index_t>{0, 1, 2, 3, -1, 0}, good).ok());
  CHECK_FALSE(solver.open(where, before.logical_of_slot(0), good, std::vector<share_t>{1, 2}).ok());
}
