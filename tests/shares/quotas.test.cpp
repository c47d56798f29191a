// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/dispatch/quota_dispatch.hpp>
#include <ballast/matrix_view.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/policies/headroom.hpp>
#include <ballast/shares/quota_rows.hpp>
#include <ballast/shares/quota_sources.hpp>
#include <ballast/shares/quotas.hpp>
#include <ballast/shares/replica_shares.hpp>
#include <ballast/topology.hpp>

#include <doctest/doctest.h>
#include <support/allocation_counter.hpp>
#include <support/random.hpp>
#include <support/trace_files.hpp>

#include <algorithm>
#include <cstddef>
#include <map>
#include <numeric>
#include <set>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

using namespace ballast;
using ballast_test::generator;

namespace {

/// A layer on a group of ranks, some of them dead, and the tokens of a batch by source rank.
struct batch_case {
  topology where;
  placement held;
  std::vector<index_t> counts;  ///< [R, E]

  [[nodiscard]] matrix_view<index_t const> by_source() const {
    return {std::span<index_t const>{counts}, where.num_ranks(), held.num_logical()};
  }
  [[nodiscard]] std::vector<index_t> tokens() const {
    std::vector<index_t> sums(static_cast<std::size_t>(held.num_logical()));
    for (std::size_t i = 0; i < counts.size(); ++i) { sums[i % sums.size()] += counts[i]; }
    return sums;
  }
};

bool all_live(topology const& where, placement const& held) {
  for (index_t expert = 0; expert < held.num_logical(); ++expert) {
    auto const replicas = held.replicas_of(0, expert);
    if (std::none_of(replicas.begin(), replicas.end(),
                     [&](index_t slot) { return where.is_live(where.rank_of_slot(slot)); })) {
      return false;
    }
  }
  return true;
}

batch_case random_case(generator& random) {
  for (;;) {
    auto const nodes = random.between(1, 3);
    auto const ranks = nodes * random.between(1, 4);
    topology where{{ranks, nodes, random.between(1, 5), 0}};
    if (ranks > 1 && random.below(4) == 0) { where.set_live(random.below(ranks), false); }
    auto const experts = random.between(1, where.num_slots());
    batch_case made{where, ballast_test::random_placement({1, experts, where.num_slots()}, random), {}};
    if (!all_live(where, made.held)) { continue; }
    auto const most = random.below(2) == 0 ? 6 : 4000;
    for (index_t i = 0; i < ranks * experts; ++i) {
      made.counts.push_back(random.below(3) == 0 ? 0 : random.below(most) * random.below(most) / 7);
    }
    return made;
  }
}

quota_rows rows_of(topology const& where, placement const& held) {
  quota_rows rows{where, held.num_layers(), held.num_logical()};
  for (index_t layer = 0; layer < held.num_layers(); ++layer) { rows.publish(where, held, layer); }
  return rows;
}

/// The least that the busiest rank can have, from the flow solver of shares; a flow of whole tokens reaches it rounded
/// up.
index_t optimum(topology const& where, placement const& held, std::vector<index_t> const& tokens) {
  share_solver solver;
  solver.open(where, held.logical_of_slot(0), std::vector<load_t>{tokens.begin(), tokens.end()}).or_throw();
  return static_cast<index_t>((solver.solve() + (load_t{1} << 18) - 1) >> 18);
}

std::vector<index_t> loads_of(quota_row row, std::span<index_t const> quotas) {
  std::vector<index_t> loads(static_cast<std::size_t>(row.shape().num_ranks));
  for (index_t position = 0; position < row.sizes().num_replicas; ++position) {
    loads[static_cast<std::size_t>(row.holders()[position].rank)] += quotas[static_cast<std::size_t>(position)];
  }
  return loads;
}

void check_sums(quota_row row, std::span<index_t const> quotas, std::vector<index_t> const& tokens) {
  REQUIRE(quotas.size() == static_cast<std::size_t>(row.sizes().num_replicas));
  std::vector<index_t> sums(tokens.size());
  for (index_t position = 0; position < row.sizes().num_replicas; ++position) {
    CHECK(quotas[static_cast<std::size_t>(position)] >= 0);
    sums[static_cast<std::size_t>(row.holders()[position].expert)] += quotas[static_cast<std::size_t>(position)];
  }
  CHECK(sums == tokens);
}

/// Where each source rank's tokens go, [R][replicas]; from the ends of each rank.
std::vector<std::vector<index_t>> assigned(quota_row row, std::span<index_t const> quotas, batch_case const& of) {
  std::vector<std::vector<index_t>> result;
  quota_sources sources;
  for (index_t rank = 0; rank < of.where.num_ranks(); ++rank) {
    sources.assign(row, quotas, of.by_source(), rank);
    REQUIRE(sources.ends().size() == static_cast<std::size_t>(row.sizes().num_movable));
    std::vector<index_t> taken;
    for (index_t position = 0; position < row.sizes().num_movable; ++position) {
      auto const starts = row.group_first()[row.holders()[position].group] == position;
      auto const at = static_cast<std::size_t>(position);
      taken.push_back(sources.ends()[at] - (starts ? 0 : sources.ends()[at - 1]));
    }
    result.push_back(taken);
  }
  return result;
}

}  // namespace

TEST_CASE("rows list every live replica once, movable ones first, and pairs of different ranks in classes") {
  generator random{11};
  for (int i = 0; i < 2000; ++i) {
    auto const of = random_case(random);
    auto const rows = rows_of(of.where, of.held);
    auto const row = rows.row(0);
    index_t live_slots = 0;
    for (index_t slot = 0; slot < of.where.num_slots(); ++slot) {
      live_slots += of.where.is_live(of.where.rank_of_slot(slot)) ? 1 : 0;
    }
    REQUIRE(row.sizes().num_replicas == live_slots);
    REQUIRE(row.sizes().num_groups <= row.shape().max_groups());
    REQUIRE(row.sizes().num_movable <= row.shape().max_movable());
    REQUIRE(row.sizes().num_pairs <= row.shape().max_pairs());
    std::set<index_t> physical;
    for (index_t position = 0; position < row.sizes().num_replicas; ++position) {
      physical.insert(row.physical()[position]);
      auto const expert = row.holders()[position].expert;
      auto const& entry = row.entries()[expert];
      CHECK((entry.count > 1) == (position < row.sizes().num_movable));
      if (entry.count == 1) { CHECK(entry.first == row.physical()[position]); }
      if (entry.count > 1) {
        CHECK(position >= entry.first);
        CHECK(position < entry.first + entry.count);
        CHECK(row.group_first()[row.holders()[position].group] == entry.first);
      }
    }
    CHECK(physical.size() == static_cast<std::size_t>(live_slots));
    std::set<std::pair<index_t, index_t>> pairs;
    index_t begin = 0;
    for (index_t c = 0; c < row.sizes().num_classes; ++c) {
      auto const end = row.class_end()[c];
      CHECK(end > begin);
      std::set<index_t> ranks;
      for (auto p = begin; p < end; ++p) {
        auto const a = row.pairs()[p].a;
        auto const b = row.pairs()[p].b;
        CHECK(row.holders()[a].expert == row.holders()[b].expert);
        CHECK(row.pairs()[p].rank_a == row.holders()[a].rank);
        CHECK(row.pairs()[p].rank_b == row.holders()[b].rank);
        CHECK(ranks.insert(row.holders()[a].rank).second);
        CHECK(ranks.insert(row.holders()[b].rank).second);
        CHECK(pairs.insert({a, b}).second);
      }
      begin = end;
    }
    CHECK(begin == row.sizes().num_pairs);
  }
}

TEST_CASE("rows have room for whatever a placement does with its spare slots") {
  // All spare slots for one expert, or spread so that pairs are most for each.
  for (index_t const share : {1, 2, 3, 4, 5, 15}) {
    topology const where{{16, 1, 2, 0}};
    std::vector<index_t> map(32);
    for (index_t slot = 0; slot < 32; ++slot) {
      map[static_cast<std::size_t>(slot)] = slot < 16 ? slot : (slot - 16) / share;
    }
    placement held;
    held.assign({1, 16, 32}, map).or_throw();
    auto const rows = rows_of(where, held);
    CHECK(rows.row(0).sizes().num_pairs > 0);
    CHECK(rows.row(0).sizes().num_pairs <= rows.shape().max_pairs());
    CHECK(rows.row(0).sizes().num_groups == (16 + share - 1) / share);
  }
}

TEST_CASE("a row's version tells placements, shares and live ranks apart, and nothing else") {
  topology where{{3, 1, 2, 0}};
  placement held;
  held.assign({1, 4, 6}, std::vector<index_t>{0, 1, 2, 3, 0, 1}).or_throw();
  placement other;
  other.assign({1, 4, 6}, std::vector<index_t>{0, 1, 2, 3, 1, 0}).or_throw();
  auto const version = [&](placement const& of) { return rows_of(where, of).row(0).sizes().version; };
  auto const plain = version(held);
  CHECK(version(held) == plain);
  CHECK(version(other) != plain);
  held.make_shares_even();
  CHECK(version(held) == plain);
  held.edit_shares(0)[0] = share_one / 4;
  held.edit_shares(0)[4] = share_one / 4 * 3;
  CHECK(version(held) != plain);
  where.set_live(2, false);
  CHECK(version(held) != plain);
}

TEST_CASE("a row knows which ranks are live") {
  topology where{{70, 1, 2, 0}};
  for (index_t const dead : {0, 31, 32, 69}) { where.set_live(dead, false); }
  auto const held = trivial_placement({1, 70, where.num_slots()});
  auto const rows = rows_of(where, held);
  for (index_t rank = 0; rank < where.num_ranks(); ++rank) {
    CAPTURE(rank);
    CHECK(rows.row(0).is_live(rank) == where.is_live(rank));
  }
}

TEST_CASE("even shares and none make the same row, also where ranks are dead") {
  generator random{9};
  for (int run = 0; run < 300; ++run) {
    auto const of = random_case(random);
    auto told = of.held;
    told.make_shares_even();
    auto const with = rows_of(of.where, told);
    auto const without = rows_of(of.where, of.held);
    CHECK(with.row(0).sizes().version == without.row(0).sizes().version);
    CHECK(std::ranges::equal(with.bytes(0), without.bytes(0)));
  }
}

TEST_CASE("exact quotas are the optimum of a flow in whole tokens, and the bound proves it") {
  generator random{1};
  quota_solver solver;
  for (int i = 0; i < 4000; ++i) {
    CAPTURE(i);
    auto const of = random_case(random);
    auto const rows = rows_of(of.where, of.held);
    auto const tokens = of.tokens();
    auto const reached = solver.solve(rows.row(0), tokens, quota_options::exact());
    check_sums(rows.row(0), solver.quotas(), tokens);
    auto const loads = loads_of(rows.row(0), solver.quotas());
    CHECK(*std::max_element(loads.begin(), loads.end()) == reached.max);
    CHECK(reached.max == optimum(of.where, of.held, tokens));
    CHECK(reached.bound == reached.max);
    CHECK(reached.total == std::accumulate(tokens.begin(), tokens.end(), 0));
  }
}

TEST_CASE("quotas by default: never above the shares in force, and no bound above the optimum") {
  generator random{2};
  quota_solver solver;
  for (int i = 0; i < 4000; ++i) {
    CAPTURE(i);
    auto const of = random_case(random);
    auto const rows = rows_of(of.where, of.held);
    auto const tokens = of.tokens();
    auto const best = optimum(of.where, of.held, tokens);
    quota_options options;
    options.sweeps = random.below(6);
    options.searches = random.below(6);
    auto const reached = solver.solve(rows.row(0), tokens, options);
    check_sums(rows.row(0), solver.quotas(), tokens);
    CHECK(reached.bound <= best);
    CHECK(reached.max >= best);
    CHECK(reached.sweeps <= options.sweeps);
    CHECK(reached.searches <= options.searches);
    if (reached.sweeps < options.sweeps || reached.searches < options.searches) {
      CHECK(reached.max <= reached.bound + (reached.bound >> options.tolerance_bits));
    }
  }
}

TEST_CASE(
    "whatever quotas start from, all tokens are placed, exact ones are the optimum, and good ones are found again") {
  generator random{31};
  for (int run = 0; run < 2000; ++run) {
    CAPTURE(run);
    auto const of = random_case(random);
    auto const tokens = of.tokens();
    auto const rows = rows_of(of.where, of.held);
    auto const row = rows.row(0);
    auto const movable = static_cast<std::size_t>(row.sizes().num_movable);
    quota_solver solver;
    auto const cold = solver.solve(row, tokens, quota_options::exact());
    std::vector<index_t> parts(movable);
    solver.parts(parts);

    // The same tokens again: a token a replica is lost to rounding, no more.
    auto const again = solver.solve(row, tokens, {.sweeps = 0, .searches = 0}, parts);
    CHECK(again.resident == cold.resident);
    CHECK(again.total == cold.total);
    CHECK(again.max <= cold.max + row.rank_first()[of.where.num_ranks()]);
    check_sums(row, solver.quotas(), tokens);

    // Parts of other tokens.
    auto const other = random_case(random).tokens();
    auto tokens_after = tokens;
    for (std::size_t e = 0; e < tokens.size(); ++e) { tokens_after[e] = e < other.size() ? other[e] : 0; }
    auto const before = parts;
    auto const warm = solver.solve(row, tokens_after, quota_options::exact(), parts);
    check_sums(row, solver.quotas(), tokens_after);
    solver.parts(parts);
    for (std::size_t position = 0; position < movable; ++position) {
      if (tokens_after[static_cast<std::size_t>(row.holders()[position].expert)] == 0) {
        CHECK(parts[position] == before[position]);
      }
    }
    CHECK(warm.max == solver.solve(row, tokens_after, quota_options::exact()).max);
  }
}

TEST_CASE("quotas in tiles: whole ones but for an expert's last, and ranks pay for each begun") {
  generator random{3};
  quota_solver solver;
  for (int i = 0; i < 1000; ++i) {
    CAPTURE(i);
    auto const of = random_case(random);
    auto const rows = rows_of(of.where, of.held);
    auto const row = rows.row(0);
    auto const tokens = of.tokens();
    index_t const tile = random.between(2, 200);
    auto const reached = solver.solve(row, tokens, quota_options::exact(tile));
    check_sums(row, solver.quotas(), tokens);
    std::vector<index_t> tiles(tokens.size());
    for (std::size_t e = 0; e < tokens.size(); ++e) { tiles[e] = (tokens[e] + tile - 1) / tile; }
    std::vector<index_t> paid(static_cast<std::size_t>(of.where.num_ranks()));
    std::vector<int> partial(tokens.size());
    for (index_t position = 0; position < row.sizes().num_replicas; ++position) {
      auto const quota = solver.quotas()[static_cast<std::size_t>(position)];
      paid[static_cast<std::size_t>(row.holders()[position].rank)] += (quota + tile - 1) / tile;
      partial[static_cast<std::size_t>(row.holders()[position].expert)] += quota % tile != 0 ? 1 : 0;
    }
    CHECK(*std::max_element(paid.begin(), paid.end()) == reached.max);
    CHECK(*std::max_element(partial.begin(), partial.end()) <= 1);
    CHECK(reached.max == optimum(of.where, of.held, tiles));
  }
}

TEST_CASE("all ranks together keep to the quotas, and tokens stay as near as quotas reach") {
  generator random{4};
  quota_solver solver;
  for (int i = 0; i < 2000; ++i) {
    CAPTURE(i);
    auto const of = random_case(random);
    auto const rows = rows_of(of.where, of.held);
    auto const row = rows.row(0);
    auto const tokens = of.tokens();
    solver.solve(row, tokens, quota_options::exact());
    auto const taken = assigned(row, solver.quotas(), of);
    for (index_t group = 0; group < row.sizes().num_groups; ++group) {
      auto const first = row.group_first()[group];
      auto const expert = row.holders()[first].expert;
      auto const end = row.group_first()[group + 1];
      // What each pair of rank, or node, could keep at most.
      auto const per_node = of.where.ranks_per_node();
      std::map<index_t, index_t> rank_quota;
      std::map<index_t, index_t> node_quota;
      std::map<index_t, index_t> node_tokens;
      std::map<index_t, index_t> stayed;
      for (index_t position = first; position < end; ++position) {
        auto const at = static_cast<std::size_t>(position);
        index_t sum = 0;
        for (index_t rank = 0; rank < of.where.num_ranks(); ++rank) {
          auto const given = taken[static_cast<std::size_t>(rank)][at];
          CHECK(given >= 0);
          sum += given;
          if (rank / per_node == row.holders()[position].rank / per_node) { stayed[rank / per_node] += given; }
        }
        CHECK(sum == solver.quotas()[at]);
        rank_quota[row.holders()[position].rank] += solver.quotas()[at];
        node_quota[row.holders()[position].rank / per_node] += solver.quotas()[at];
      }
      for (index_t rank = 0; rank < of.where.num_ranks(); ++rank) {
        auto const own = of.by_source()(rank, expert);
        node_tokens[rank / per_node] += own;
        index_t sum = 0;
        index_t kept = 0;
        for (index_t position = first; position < end; ++position) {
          auto const given = taken[static_cast<std::size_t>(rank)][static_cast<std::size_t>(position)];
          sum += given;
          kept += row.holders()[position].rank == rank ? given : 0;
        }
        CHECK(sum == own);
        CHECK(kept == std::min(own, rank_quota[rank]));
      }
      for (auto const& [node, quota] : node_quota) { CHECK(stayed[node] == std::min(quota, node_tokens[node])); }
    }
  }
}

TEST_CASE("ids go to replicas so that quotas are kept to the token, in the order of the ids") {
  generator random{5};
  quota_solver solver;
  quota_sources sources;
  quota_dispatch dispatch;
  for (int i = 0; i < 200; ++i) {
    CAPTURE(i);
    auto of = random_case(random);
    auto const rows = rows_of(of.where, of.held);
    auto const row = rows.row(0);
    auto const experts = of.held.num_logical();
    // Each rank's ids, among them some that are nobody's.
    std::vector<std::vector<std::int64_t>> ids(static_cast<std::size_t>(of.where.num_ranks()));
    std::fill(of.counts.begin(), of.counts.end(), 0);
    for (std::size_t rank = 0; rank < ids.size(); ++rank) {
      for (auto n = random.below(300); n > 0; --n) {
        auto const id = random.below(experts + 3) - 1;
        ids[rank].push_back(id);
        if (id >= 0 && id < experts) {
          ++of.counts[rank * static_cast<std::size_t>(experts) + static_cast<std::size_t>(id)];
        }
      }
    }
    solver.solve(row, of.tokens(), quota_options::exact());
    std::map<index_t, index_t> realised;
    for (std::size_t rank = 0; rank < ids.size(); ++rank) {
      sources.assign(row, solver.quotas(), of.by_source(), static_cast<index_t>(rank));
      auto physical = ids[rank];
      std::vector<std::int32_t> narrow(physical.size());
      dispatch.map<std::int64_t, std::int32_t>(row, sources.ends(), 1, 9000, physical, narrow);
      dispatch.map<std::int64_t>(row, sources.ends(), 1, 9000, physical, physical);
      CHECK(std::equal(narrow.begin(), narrow.end(), physical.begin(), physical.end()));
      std::map<std::int64_t, std::int64_t> last;
      for (std::size_t n = 0; n < physical.size(); ++n) {
        auto const id = ids[rank][n];
        if (id < 0 || id > experts) {
          CHECK(physical[n] == -1);
        } else if (id == experts) {
          CHECK(physical[n] == 9000);
        } else {
          ++realised[static_cast<index_t>(physical[n])];
          CHECK(of.held.logical_of_slot(0)[static_cast<std::size_t>(physical[n])] == id);
          CHECK(physical[n] >= last[id]);  // an expert's tokens fill its replicas one after the other
          last[id] = physical[n];
        }
      }
    }
    for (index_t position = 0; position < row.sizes().num_replicas; ++position) {
      CHECK(realised[row.physical()[position]] == solver.quotas()[static_cast<std::size_t>(position)]);
    }
  }
}

TEST_CASE("recorded batches: the optimum to the token on plans with headroom, nothing moved") {
  std::vector<std::tuple<index_t, index_t>> const groups{{8, 10}, {16, 6}};
  auto const file = ballast_test::find_trace("deepseek-v2-lite/mixed_512tok");
  REQUIRE_FALSE(file.empty());
  auto const trace = ballast_test::read_trace(file);
  quota_solver solver;
  for (auto const& [ranks, slots] : groups) {
    topology const where{{ranks, 1, slots, 0}};
    double max = 0;
    double mean = 0;
    for (index_t task = 0; task < 4; ++task) {
      placement planned;
      auto const start = trivial_placement({trace.layers, trace.experts, where.num_slots()});
      plan(headroom_placement{}, trace.history(16 * task, 8), start, where, planned).or_throw();
      auto const rows = rows_of(where, planned);
      for (index_t step = 16 * task + 8; step < 16 * task + 16; ++step) {
        for (index_t layer = 0; layer < trace.layers; ++layer) {
          auto const loads = trace.step(step).row(layer);
          auto const reached = solver.solve(rows.row(layer), std::vector<index_t>{loads.begin(), loads.end()});
          max += reached.max;
          mean += static_cast<double>(reached.total) / ranks;
        }
      }
    }
    CAPTURE(ranks);
    CHECK(max / mean <= 1.0005);
  }
}

TEST_CASE("a solver allocates while sizes grow only") {
  generator random{6};
  auto const of = random_case(random);
  auto const rows = rows_of(of.where, of.held);
  auto const tokens = of.tokens();
  quota_solver solver;
  quota_sources sources;
  auto const once = [&] {
    solver.solve(rows.row(0), tokens);
    sources.assign(rows.row(0), solver.quotas(), of.by_source(), 0);
  };
  once();
  ballast_test::allocation_count const allocations;
  once();
  CHECK(allocations() == 0);
}

TEST_CASE("options out of range are refused by name") {
  CHECK(quota_options{}.validate().ok());
  CHECK(quota_options::exact().validate().ok());
  CHECK(quota_options{-1, 1, 11, 1}.validate().message().find("sweeps is -1") != std::string::npos);
  CHECK(quota_options{1, -2, 11, 1}.validate().message().find("searches is -2") != std::string::npos);
  CHECK(quota_options{1, 1, 0, 1}.validate().message().find("tolerance_bits is 0") != std::string::npos);
  CHECK(quota_options{1, 1, 32, 1}.validate().message().find("tolerance_bits is 32") != std::string::npos);
  CHECK(quota_options{1, 1, 11, 0}.validate().message().find("tile is 0") != std::string::npos);
}

// NOLINTBEGIN(bugprone-use-after-move,clang-analyzer-cplusplus.Move): what is left is what is tested
TEST_CASE("rows that were moved from, and layers that there cannot be, break the contract") {
  topology const where{{2, 1, 3, 0}};
  auto const held = trivial_placement({1, 4, 6});
  auto rows = rows_of(where, held);
  quota_rows const taken{std::move(rows)};
  CHECK(taken.num_layers() == 1);
  CHECK(rows.num_layers() == 0);
  CHECK_BREAKS_CONTRACT(rows.row(0));
  CHECK_BREAKS_CONTRACT(rows.bytes(0));
  CHECK_BREAKS_CONTRACT(rows.publish(where, held, 0));
#if BALLAST_CONTRACT_LEVEL >= 1
  CHECK_THROWS_WITH(static_cast<void>(rows.row(0)), "quota_rows: layer 0 is not in [0, 0)");
  CHECK_THROWS_WITH((quota_rows{where, -3, 4}), doctest::Contains("quota_rows: number of layers -3"));
  CHECK_THROWS_WITH((quota_rows{where, 0, 4}), doctest::Contains("quota_rows: number of layers 0"));
  CHECK_THROWS_WITH((quota_rows{where, 1, -5}), doctest::Contains("quota_rows: number of experts -5"));
  CHECK_THROWS_WITH((quota_rows{where, 1, 7}), doctest::Contains("quota_rows: number of experts 7"));
#endif
}
// NOLINTEND(bugprone-use-after-move,clang-analyzer-cplusplus.Move)

TEST_CASE("a row without a live rank, and tokens that no batch has, break the contract") {
  topology where{{2, 1, 3, 0}};
  auto const held = trivial_placement({1, 4, 6});
  std::vector<index_t> tokens(4, 5);
  quota_solver solver;
  quota_rows rows{where, 1, 4};
  CHECK_BREAKS_CONTRACT(solver.solve(rows.row(0), tokens));
  rows.publish(where, held, 0);
  CHECK(solver.solve(rows.row(0), tokens).max == 10);
  auto const solve = [&](index_t first, index_t second) {
    tokens[0] = first;
    tokens[1] = second;
    return solver.solve(rows.row(0), tokens);
  };
  auto const most = static_cast<index_t>(max_batch_tokens);
  CHECK_BREAKS_CONTRACT(solve(-1, 5));
  CHECK_BREAKS_CONTRACT(solve(most, most));
  tokens = {0, 0, 0, 0};
  CHECK(solve(most - 1, 1).total == most);
#if BALLAST_CONTRACT_LEVEL >= 1
  CHECK_THROWS_WITH(solve(5, -7), "quotas: tokens of an expert -7 is not in [0, 1073741824]");
  CHECK_THROWS_WITH(solve(most, 1), "quotas: tokens of the batch 1073741825 is not in [0, 1073741824]");
  CHECK_THROWS_WITH(solve(2'000'000'000, 0), doctest::Contains("2000000000"));
#endif
  where.set_live(0, false);
  where.set_live(1, false);
  rows.publish(where, held, 0);
  CHECK_BREAKS_CONTRACT(solve(5, 5));
#if BALLAST_CONTRACT_LEVEL >= 1
  CHECK_THROWS_WITH(solve(5, 5), "quotas: the row is not published, or has no live rank");
#endif
}
