// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Plans are the same bits on every compiler, flag set and machine, because ranks of one group may differ in all of
// them. This program is built again with other flags and for another processor: see CMakeLists.txt beside it.
#include <ballast/digest.hpp>
#include <ballast/placement/balancedness.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/policies/balanced.hpp>
#include <ballast/policies/deepseek.hpp>
#include <ballast/policies/headroom.hpp>
#include <ballast/policies/incremental.hpp>
#include <ballast/policies/policy.hpp>
#include <ballast/shares/quota_rows.hpp>
#include <ballast/shares/quota_sources.hpp>
#include <ballast/shares/quotas.hpp>

#include <doctest/doctest.h>
#include <support/golden_files.hpp>
#include <support/random.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace {

using namespace ballast;

void check_against(ballast_test::golden_case const& golden, placement const& in) {
  for (index_t layer = 0; layer < golden.num_layers; ++layer) {
    CAPTURE(layer);
    auto const l = static_cast<std::size_t>(layer);
    REQUIRE(std::ranges::equal(in.logical_of_slot(layer), golden.logical_of_slot.at(l)));
    for (index_t expert = 0; expert < golden.num_logical; ++expert) {
      CAPTURE(expert);
      auto const& replicas = golden.replicas.at(l).at(static_cast<std::size_t>(expert));
      REQUIRE(std::ranges::equal(in.replicas_of(layer, expert), replicas));
      REQUIRE(in.replica_count(layer, expert) == static_cast<index_t>(replicas.size()));
    }
  }
}

/// Loads of many shapes: even, skewed, tied, mostly zero, a long tail, one hot expert.
std::vector<load_t> make_loads(index_t num_layers, index_t num_logical, ballast_test::generator& random) {
  std::vector<load_t> loads;
  for (index_t layer = 0; layer < num_layers; ++layer) {
    auto const kind = layer % 6;
    for (index_t expert = 0; expert < num_logical; ++expert) {
      load_t load = random.below(1000);
      if (kind == 1) { load = load_t{1} << random.below(18); }
      if (kind == 2) { load = load_t{100} * random.below(4); }
      if (kind == 3) { load = random.below(3) == 0 ? 1 + random.below(50) : 0; }
      if (kind == 4) { load = 1000000 / (1 + random.below(200)); }
      if (kind == 5 && expert == num_logical / 3) { load *= 50; }
      loads.push_back(load);
    }
  }
  return loads;
}

struct problem {
  topology where;
  index_t num_logical;
  std::vector<load_t> before;
  std::vector<load_t> after;

  problem(topology_shape sizes, index_t experts, std::uint64_t seed) : where{sizes}, num_logical{experts} {
    ballast_test::generator random{seed};
    before = make_loads(num_layers, num_logical, random);
    after = before;
    for (auto& load : after) { load += load * random.below(41) / 100 - load / 5; }
  }

  [[nodiscard]] placement trivial() const { return trivial_placement({num_layers, num_logical, where.num_slots()}); }
  [[nodiscard]] placement plan(placement_policy auto const& policy, std::vector<load_t> const& loads,
                               placement const& current) const {
    placement next;
    ballast::plan(policy, matrix_view<load_t const>{loads, num_layers, num_logical}, current, where, next).or_throw();
    return next;
  }

  static constexpr index_t num_layers = 6;
};

std::string digest_of(placement const& in) {
  digest out;
  in.describe(out);
  return detail::hex(out.value());
}

}  // namespace

TEST_CASE("all golden files are reproduced: map, replica order and counts") {
  auto const cases = ballast_test::read_golden_cases();
  REQUIRE(cases.size() == 35);
  for (auto const& golden : cases) {
    CAPTURE(golden.name);
    placement next;
    plan(deepseek_placement{.num_groups = golden.num_groups}, golden.view(),
         trivial_placement({golden.num_layers, golden.num_logical, golden.where.num_slots()}), golden.where, next)
        .or_throw();
    check_against(golden, next);
  }
}

TEST_CASE("integer arithmetic, which stands in where floats may be bent, reproduces the golden files too") {
  for (auto const& golden : ballast_test::read_golden_cases()) {
    CAPTURE(golden.name);
    bool const grouped = golden.num_groups % golden.where.num_nodes() == 0;
    placement next;
    next.resize({golden.num_layers, golden.num_logical, golden.where.num_slots()});
    detail::deepseek_planner<detail::integer_float32> planner{{
        .experts = static_cast<std::size_t>(golden.num_logical),
        .slots = static_cast<std::size_t>(golden.where.num_slots()),
        .groups = grouped ? static_cast<std::size_t>(golden.num_groups) : 1,
        .nodes = grouped ? static_cast<std::size_t>(golden.where.num_nodes()) : 1,
        .ranks = static_cast<std::size_t>(golden.where.num_ranks()),
    }};
    planner.plan(golden.view(), next);
    check_against(golden, next);
  }
}

TEST_CASE("balanced plans are the same everywhere") {
  struct pinned {
    topology_shape sizes;
    index_t experts;
    index_t groups;
    group_locality locality;
    std::string digest;
  };
  for (auto const& c : {
           pinned{{32, 4, 9, 0}, 256, 1, group_locality::free, "9492275e3cf5b73c"},
           pinned{{32, 4, 9, 0}, 256, 8, group_locality::whole, "bbdbbdbfa25828da"},
           pinned{{32, 4, 9, 0}, 256, 8, group_locality::relaxed, "1331fc1e1f7808c7"},
           pinned{{72, 9, 4, 0}, 256, 1, group_locality::free, "54595093430456af"},
           pinned{{144, 18, 2, 0}, 256, 1, group_locality::free, "14797e79dffd6306"},
           pinned{{16, 2, 9, 0}, 128, 1, group_locality::free, "5071c04ac43f1dc6"},
           pinned{{4, 1, 4, 0}, 10, 1, group_locality::free, "a446c2ee2ace59e8"},
       }) {
    CAPTURE(c.sizes.num_ranks);
    CAPTURE(c.groups);
    problem const in{c.sizes, c.experts, 4};
    balanced_placement const policy{.num_groups = c.groups, .locality = c.locality};
    CHECK(digest_of(in.plan(policy, in.before, in.trivial())) == c.digest);
  }
}

TEST_CASE("plans with room for re-splitting, and their shares, are the same everywhere") {
  problem const in{{16, 2, 9, 0}, 128, 5};
  CHECK(digest_of(in.plan(headroom_placement{}, in.before, in.trivial())) == "e70c6ec2d6e8d20b");
  auto both = in.before;
  problem const other{{16, 2, 9, 0}, 128, 6};
  both.insert(both.end(), other.before.begin(), other.before.end());
  placement next;
  plan(headroom_placement{}, {both, 2, problem::num_layers, 128}, in.trivial(), in.where, next).or_throw();
  CHECK(digest_of(next) == "507615c4b6b773b4");
}

TEST_CASE("incremental plans are the same everywhere") {
  problem const in{{16, 2, 9, 0}, 128, 6};
  auto const current = in.plan(balanced_placement{}, in.before, in.trivial());
  CHECK(digest_of(in.plan(incremental_placement{}, in.after, current)) == "a17a25de4a65eff1");
  CHECK(digest_of(in.plan(incremental_placement{.max_moves_per_layer = 12}, in.after, current)) == "bfb182fbb274cdc5");
  CHECK(digest_of(in.plan(incremental_placement{.max_moves_per_layer = 4, .shares = share_mode::optimal}, in.after,
                          current)) == "914112f69cfa9c4f");
}

TEST_CASE("quotas, and of whose tokens they are made, are the same everywhere, ties too") {
  ballast_test::generator random{8};
  quota_solver solver;
  quota_sources sources;
  digest seen;
  for (index_t const most : {3, 40, 5000}) {
    topology const where{{12, 3, 4, 0}};
    auto const held = ballast_test::random_placement({20, 30, where.num_slots()}, random);
    quota_rows rows{where, held.num_layers(), held.num_logical()};
    for (index_t layer = 0; layer < held.num_layers(); ++layer) {
      rows.publish(where, held, layer);
      std::vector<index_t> counts(std::size_t{12} * 30);
      std::vector<index_t> tokens(30);
      for (std::size_t i = 0; i < counts.size(); ++i) {
        counts[i] = random.below(most) * random.below(most) / most;
        tokens[i % tokens.size()] += counts[i];
      }
      quota_options const options{.sweeps = random.below(3), .searches = 40, .tile = 1 + random.below(2) * 15};
      auto const reached = solver.solve(rows.row(layer), tokens, options);
      sources.assign(rows.row(layer), solver.quotas(), {std::span<index_t const>{counts}, 12, 30}, random.below(12));
      seen.add(rows.row(layer).sizes().version).add(solver.quotas()).add(sources.ends());
      seen.add(reached.max).add(reached.bound).add(reached.sweeps).add(reached.searches);
    }
  }
  CHECK(detail::hex(seen.value()) == "315b42df1fb4fcbb");
}
