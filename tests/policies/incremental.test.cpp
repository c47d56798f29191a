// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/digest.hpp>
#include <ballast/placement/balancedness.hpp>
#include <ballast/placement/moves.hpp>
#include <ballast/policies/balanced.hpp>
#include <ballast/policies/headroom.hpp>
#include <ballast/policies/incremental.hpp>
#include <ballast/shares/replica_shares.hpp>

#include <doctest/doctest.h>
#include <support/long_runs.hpp>
#include <support/random.hpp>
#include <support/trace_files.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <ostream>
#include <set>
#include <span>
#include <string>
#include <vector>

using namespace ballast;

namespace {

/// Sum of twelve even numbers: near enough to a normal one, the same everywhere.
double normal(ballast_test::generator& random) {
  double sum = -6;
  for (int i = 0; i < 12; ++i) { sum += static_cast<double>(random.below(1 << 20)) / (1 << 20); }
  return sum;
}

/// Loads as skewed as a large model's, `[L, E]`.
std::vector<load_t> skewed_loads(index_t layers, index_t experts, std::uint64_t seed) {
  ballast_test::generator random{seed};
  std::vector<load_t> loads(static_cast<std::size_t>(layers) * static_cast<std::size_t>(experts));
  for (auto& load : loads) { load = static_cast<load_t>(std::exp(0.7 * normal(random)) * 10'000); }
  return loads;
}

/// Loads 1 / rank^0.8, shuffled in each layer, `[L, E]`.
std::vector<load_t> zipf_loads(index_t layers, index_t experts, std::uint64_t seed) {
  ballast_test::generator random{seed};
  std::vector<load_t> loads;
  for (index_t layer = 0; layer < layers; ++layer) {
    std::vector<load_t> row;
    for (index_t e = 0; e < experts; ++e) { row.push_back(static_cast<load_t>(1e6 * std::pow(e + 1, -0.8))); }
    ballast_test::shuffle(row, random);
    loads.insert(loads.end(), row.begin(), row.end());
  }
  return loads;
}

/// Every load times 1 + N(0, sigma).
std::vector<load_t> drifted(std::vector<load_t> loads, double sigma, std::uint64_t seed) {
  ballast_test::generator random{seed};
  for (auto& load : loads) {
    load =
        std::max(static_cast<load_t>(std::lround(static_cast<double>(load) * (1 + sigma * normal(random)))), load_t{0});
  }
  return loads;
}

template <class Policy>
placement planned(Policy const& policy, load_history_view history, placement const& current, topology const& where) {
  placement next;
  plan(policy, history, current, where, next).or_throw();
  return next;
}
placement balanced_for(load_history_view history, topology const& where) {
  return planned(balanced_placement{}, history,
                 trivial_placement({history.num_layers(), history.num_logical(), where.num_slots()}), where);
}

double mean_balancedness(topology const& where, placement const& in, matrix_view<load_t const> loads) {
  double sum = 0;
  for (index_t layer = 0; layer < in.num_layers(); ++layer) {
    sum += balance_of(where, in, layer, loads.row(layer)).balancedness();
  }
  return sum / in.num_layers();
}
/// The same with shares solved for these loads.
double re_split(topology const& where, placement in, matrix_view<load_t const> loads) {
  share_solver solver;
  in.drop_shares();
  optimal_shares(where, in, loads, solver).or_throw();
  return mean_balancedness(where, in, loads);
}

index_t most_moves(topology const& where, placement const& from, placement const& to) {
  index_t most = 0;
  for (index_t layer = 0; layer < to.num_layers(); ++layer) {
    most = std::max(most, count_moves(where, from, to, layer));
  }
  return most;
}
double moved_part(topology const& where, placement const& from, placement const& to) {
  return static_cast<double>(count_moves(where, from, to)) /
         static_cast<double>(to.num_layers() * load_t{to.num_slots()});
}

void check_valid(topology const& where, placement const& in) {
  REQUIRE(placement::validate(in.shape(), in.logical_of_slot().elements()).ok());
  for (index_t layer = 0; layer < in.num_layers(); ++layer) {
    for (index_t expert = 0; expert < in.num_logical(); ++expert) {
      auto const replicas = in.replicas_of(layer, expert);
      CHECK(std::any_of(replicas.begin(), replicas.end(),
                        [&](index_t slot) { return where.is_live(where.rank_of_slot(slot)); }));
      if (!in.has_shares()) { continue; }
      std::uint64_t sum = 0;
      for (auto const slot : replicas) {
        auto const share = in.shares(layer)[static_cast<std::size_t>(slot)];
        sum += share;
        if (!where.is_live(where.rank_of_slot(slot))) { CHECK(share == 0); }
      }
      CHECK(sum == share_one);
    }
  }
}

/// A layer at random: sizes, loads with ties and zeros, a placement with doubled copies.
struct random_case {
  topology where;
  std::vector<load_t> loads;
  placement current;

  explicit random_case(ballast_test::generator& random) {
    auto const nodes = random.between(1, 2);
    auto const ranks = nodes * random.between(1, 6);
    auto const slots = random.between(1, 6);
    auto const experts = random.between(1, ranks * slots);
    where = topology{{ranks, nodes, slots, 0}};
    loads = skewed_loads(2, experts, random.next());
    for (auto& load : loads) {
      if (random.below(8) == 0) { load = load_t{1000} * random.below(3); }
    }
    current = ballast_test::random_placement({2, experts, where.num_slots()}, random);
  }
  [[nodiscard]] matrix_view<load_t const> view() const { return {loads, 2, current.num_logical()}; }
};

}  // namespace

TEST_CASE("plans are valid, within the budget, and no layer is worse than it was") {
  ballast_test::generator random{11};
  for (int i = 0; i < 200; ++i) {
    CAPTURE(i);
    random_case const in{random};
    incremental_placement policy;
    policy.max_moves_per_layer = random.between(-1, 8);
    auto const made = planned(policy, in.view(), in.current, in.where);
    check_valid(in.where, made);
    CHECK_FALSE(made.has_shares());
    if (policy.max_moves_per_layer >= 0) {
      CHECK(most_moves(in.where, in.current, made) <= policy.max_moves_per_layer);
    }
    for (index_t layer = 0; layer < 2; ++layer) {
      CHECK(balance_of(in.where, made, layer, in.view().row(layer)).max <=
            balance_of(in.where, in.current, layer, in.view().row(layer)).max);
    }
  }
}

TEST_CASE("plans for optimal shares are valid, within the budget, and no layer is worse than it was") {
  ballast_test::generator random{12};
  for (int i = 0; i < 100; ++i) {
    CAPTURE(i);
    random_case const in{random};
    incremental_placement policy;
    policy.shares = share_mode::optimal;
    policy.max_moves_per_layer = random.between(-1, 6);
    auto const made = planned(policy, in.view(), in.current, in.where);
    REQUIRE(made.has_shares());
    check_valid(in.where, made);
    if (policy.max_moves_per_layer >= 0) {
      CHECK(most_moves(in.where, in.current, made) <= policy.max_moves_per_layer);
    }
    CHECK(re_split(in.where, made, in.view()) >= re_split(in.where, in.current, in.view()) - 1e-9);
    for (index_t layer = 0; layer < 2; ++layer) {
      auto even = made;
      even.drop_shares();
      CHECK(balance_of(in.where, made, layer, in.view().row(layer)).max <=
            balance_of(in.where, even, layer, in.view().row(layer)).max * (1 + 1e-6));
    }
  }
}

namespace {
/// Slots of a layer that hold an expert which an earlier slot of their rank holds too.
index_t doubled_slots(topology const& where, placement const& in, index_t layer) {
  index_t doubled = 0;
  for (index_t rank = 0; rank < where.num_ranks(); ++rank) {
    auto const held = in.logical_of_slot(layer).subspan(static_cast<std::size_t>(where.first_slot(rank)),
                                                        static_cast<std::size_t>(where.slots_per_rank()));
    for (auto slot = held.begin(); slot != held.end(); ++slot) {
      doubled += std::find(held.begin(), slot, *slot) != slot ? 1 : 0;
    }
  }
  return doubled;
}
}  // namespace

TEST_CASE("without a budget no slot is wasted on an expert that its rank holds already") {
  ballast_test::generator random{15};
  for (int i = 0; i < 300; ++i) {
    CAPTURE(i);
    random_case const in{random};
    incremental_placement policy;
    policy.shares = random.below(2) == 0 ? share_mode::even : share_mode::optimal;
    policy.stop_when_not_worth = random.below(2) == 0;
    auto const made = planned(policy, in.view(), in.current, in.where);
    for (index_t layer = 0; layer < 2; ++layer) {
      CHECK(doubled_slots(in.where, made, layer) <= doubled_slots(in.where, in.current, layer));
    }
  }
}

TEST_CASE(
    "with optimal shares a slot is not wasted for a budget either: a copy that takes nothing is as good as gone") {
  ballast_test::generator random{19};
  for (int i = 0; i < 600; ++i) {
    CAPTURE(i);
    random_case const in{random};
    incremental_placement policy;
    policy.shares = share_mode::optimal;
    policy.max_moves_per_layer = random.between(0, 8);
    auto const made = planned(policy, in.view(), in.current, in.where);
    for (index_t layer = 0; layer < 2; ++layer) {
      CHECK(doubled_slots(in.where, made, layer) <= doubled_slots(in.where, in.current, layer));
    }
  }
}

TEST_CASE("an expert that its rank keeps stays in its slot") {
  ballast_test::generator random{16};
  for (int i = 0; i < 200; ++i) {
    CAPTURE(i);
    random_case const in{random};
    incremental_placement policy;
    policy.max_moves_per_layer = random.between(-1, 8);
    policy.shares = random.below(2) == 0 ? share_mode::even : share_mode::optimal;
    auto const made = planned(policy, in.view(), in.current, in.where);
    for (index_t layer = 0; layer < 2; ++layer) {
      auto const row = made.logical_of_slot(layer);
      auto const held = in.current.logical_of_slot(layer);
      for (index_t slot = 0; slot < in.where.num_slots(); ++slot) {
        auto const at = static_cast<std::size_t>(slot);
        if (row[at] == held[at]) { continue; }
        // The rank has no copy left that could be in this slot instead of elsewhere.
        auto const first = static_cast<std::size_t>(in.where.first_slot(in.where.rank_of_slot(slot)));
        auto const size = static_cast<std::size_t>(in.where.slots_per_rank());
        auto const copies = [&](std::span<index_t const> of) {
          return std::count(of.begin() + static_cast<std::ptrdiff_t>(first),
                            of.begin() + static_cast<std::ptrdiff_t>(first + size), held[at]);
        };
        CHECK(copies(row) < copies(held));
      }
    }
  }
}

TEST_CASE("no rank receives more than it may, nor from other nodes") {
  ballast_test::generator random{18};
  for (int i = 0; i < 300; ++i) {
    CAPTURE(i);
    random_case const in{random};
    incremental_placement policy;
    policy.max_arrivals_per_rank = random.between(-1, 3);
    policy.max_remote_arrivals_per_rank = random.between(-1, 2);
    policy.shares = random.below(2) == 0 ? share_mode::even : share_mode::optimal;
    policy.stop_when_not_worth = random.below(2) == 0;
    auto const made = planned(policy, in.view(), in.current, in.where);
    for (index_t layer = 0; layer < 2; ++layer) {
      for (index_t rank = 0; rank < in.where.num_ranks(); ++rank) {
        std::set<index_t> arrived;
        std::set<index_t> remote;
        auto const first = in.where.first_slot(rank);
        for (index_t slot = first; slot < first + in.where.slots_per_rank(); ++slot) {
          auto const expert = made.logical_of_slot(layer)[static_cast<std::size_t>(slot)];
          auto const held = in.current.replicas_of(layer, expert);
          auto const on_rank = [&](index_t at) { return in.where.rank_of_slot(at) == rank; };
          auto const on_node = [&](index_t at) { return in.where.node_of_slot(at) == in.where.node_of_rank(rank); };
          if (std::none_of(held.begin(), held.end(), on_rank)) { arrived.insert(expert); }
          if (std::none_of(held.begin(), held.end(), on_node)) { remote.insert(expert); }
        }
        if (policy.max_arrivals_per_rank >= 0) { CHECK(std::ssize(arrived) <= policy.max_arrivals_per_rank); }
        if (policy.max_remote_arrivals_per_rank >= 0) {
          CHECK(std::ssize(remote) <= policy.max_remote_arrivals_per_rank);
        }
      }
    }
  }
}

TEST_CASE("of too many moves in all, the layers that gain most get theirs") {
  topology const where{{8, 1, 6, 0}};
  auto loads = skewed_loads(5, 40, 71);
  // Layer 3 is a tenth of the others, and so is what it gains.
  for (auto& load : std::span{loads}.subspan(std::size_t{3} * 40, 40)) { load /= 10; }
  auto const start = trivial_placement({5, 40, 48});
  incremental_placement policy{.max_moves_per_layer = 6};
  auto const all = planned(policy, {loads, 1, 5, 40}, start, where);
  auto const moves = count_moves(where, start, all);
  REQUIRE(moves > 12);
  for (std::int64_t const most : {std::int64_t{0}, std::int64_t{7}, moves - 1, moves}) {
    CAPTURE(most);
    policy.max_moves_in_all = most;
    auto const some = planned(policy, {loads, 1, 5, 40}, start, where);
    CHECK(count_moves(where, start, some) <= most);
    for (index_t layer = 0; layer < 5; ++layer) {
      auto const row = some.logical_of_slot(layer);
      auto const is = [&](placement const& other) {
        return std::equal(row.begin(), row.end(), other.logical_of_slot(layer).begin());
      };
      CHECK((is(all) || is(start)));
    }
    CHECK((most == moves) == (some == all));
    if (most == moves - 1) {
      CHECK(std::equal(start.logical_of_slot(3).begin(), start.logical_of_slot(3).end(),
                       some.logical_of_slot(3).begin()));
    }
  }
}

namespace {
/// Plan with every budget of an ascending list; no layer may come out worse than with one before. With optimal shares a
/// thousandth above the mean counts as balance.
void check_budgets(incremental_placement policy, matrix_view<load_t const> loads, placement const& current,
                   topology const& where, std::span<index_t const> budgets) {
  policy.worth.plans_per_layout = 0;
  std::vector<double> best(static_cast<std::size_t>(loads.rows()), std::numeric_limits<double>::infinity());
  for (auto const budget : budgets) {
    CAPTURE(budget);
    policy.max_moves_per_layer = budget;
    placement made;
    plan(policy, loads, current, where, made).or_throw();
    CHECK(most_moves(where, current, made) <= budget);
    for (index_t layer = 0; layer < loads.rows(); ++layer) {
      auto& least = best[static_cast<std::size_t>(layer)];
      auto const reached = balance_of(where, made, layer, loads.row(layer));
      auto const balance = policy.shares == share_mode::optimal ? reached.mean * (1 + 1.0 / 1024) : 0;
      CHECK(reached.max <= std::max(least, balance) * (1 + 1e-6));
      least = std::min(least, reached.max);
    }
  }
}
}  // namespace

TEST_CASE("a bigger budget never gives a worse plan: random layers") {
  ballast_test::generator random{20};
  std::vector<index_t> budgets(13);
  std::iota(budgets.begin(), budgets.end(), 0);
  for (int i = 0; i < ballast_test::cases(BALLAST_TESTS_QUICK ? 50 : 200); ++i) {
    CAPTURE(i);
    random_case const in{random};
    incremental_placement policy{.retries_per_layer = 6 * random.between(0, 5)};
    if (random.below(3) == 0) { policy.max_arrivals_per_rank = random.between(0, 3); }
    if (random.below(3) == 0) { policy.max_remote_arrivals_per_rank = random.between(0, 2); }
    if (random.below(4) == 0) { policy.work_per_layer = random.between(1, 2000); }
    // They take longer.
    if (random.below(4) == 0) {
      policy.shares = share_mode::optimal;
      if (policy.work_per_layer <= 2000) { policy.work_per_layer *= 100; }
    }
    check_budgets(policy, in.view(), in.current, in.where, budgets);
  }
}

TEST_CASE("a bigger budget never gives a worse plan: layers as large as a model's") {
  topology const where{{16, 2, 9, 0}};
  auto const before = skewed_loads(3, 128, 81);
  auto const after = drifted(before, 0.4, 82);
  std::vector<index_t> budgets(37);
  std::iota(budgets.begin(), budgets.end(), 0);
  check_budgets({}, {after, 3, 128}, balanced_for({before, 1, 3, 128}, where), where, budgets);
  check_budgets({}, {after, 3, 128}, trivial_placement({3, 128, 144}), where, budgets);
  incremental_placement const optimal{.shares = share_mode::optimal};
  matrix_view<load_t const> const first{std::span{after}.first(128), 1, 128};
  check_budgets(optimal, first, trivial_placement({1, 128, 144}), where, std::vector<index_t>{1, 2, 5, 9, 12, 15, 20});
}

TEST_CASE("a bigger budget never gives a worse plan: recorded loads") {
  std::vector<index_t> const budgets{0, 1, 2, 3, 5, 7, 8, 9, 12, 14, 16, 19, 24, 27, 32, 44};
  int traces = 0;
  for (auto const& file : ballast_test::all_traces()) {
    auto const recorded = ballast_test::read_trace(file);
    CAPTURE(recorded.name);
    topology const where = recorded.experts == 8 ? topology{{4, 1, 3, 0}} : topology{{recorded.experts / 8, 1, 9, 0}};
    // A few layers of the last step, from the start layout and from the plan for the first.
    auto const width = static_cast<std::size_t>(recorded.experts);
    auto const layers = std::min(recorded.layers, index_t{BALLAST_TESTS_QUICK ? 1 : 2});
    auto const first_layers = [&](index_t step) {
      return matrix_view<load_t const>{recorded.step(step).elements().first(static_cast<std::size_t>(layers) * width),
                                       layers, recorded.experts};
    };
    auto const loads = first_layers(recorded.steps - 1);
    auto const start = trivial_placement({layers, recorded.experts, where.num_slots()});
    check_budgets({}, loads, start, where, budgets);
    incremental_placement const optimal{.shares = share_mode::optimal};
    auto const all = std::span{budgets};
    if (ballast_test::is_long_run()) { check_budgets(optimal, loads, start, where, all); }
    if (recorded.steps > 1) {
      placement planned_before;
      plan(balanced_placement{}, first_layers(0), start, where, planned_before).or_throw();
      check_budgets({}, loads, planned_before, where, budgets);
      check_budgets(optimal, loads, planned_before, where, ballast_test::is_long_run() ? all : all.first(6));
    }
    ++traces;
  }
  CHECK(traces >= 8);
}

TEST_CASE("more moves in all never give a worse plan, and layers that have none are split anew") {
  ballast_test::generator random{22};
  for (int i = 0; i < ballast_test::cases(BALLAST_TESTS_QUICK ? 5 : 20); ++i) {
    CAPTURE(i);
    index_t const layers = 6;
    topology const where{{random.between(2, 6), 1, random.between(2, 6), 0}};
    auto const experts = random.between(where.num_slots() / 2, where.num_slots());
    auto const tokens = skewed_loads(layers, experts, random.next());
    matrix_view<load_t const> const loads{tokens, layers, experts};
    auto const current = ballast_test::random_placement({layers, experts, where.num_slots()}, random);
    incremental_placement policy{.max_moves_per_layer = random.between(-1, 6), .retries_per_layer = 6};
    policy.shares = random.below(2) == 0 ? share_mode::even : share_mode::optimal;
    auto const all = count_moves(where, current, planned(policy, loads, current, where));
    auto least = std::numeric_limits<double>::infinity();
    for (std::int64_t most = 0; most <= all; ++most) {
      CAPTURE(most);
      policy.max_moves_in_all = most;
      auto const made = planned(policy, loads, current, where);
      CHECK(count_moves(where, current, made) <= most);
      double sum = 0;
      for (index_t layer = 0; layer < layers; ++layer) { sum += balance_of(where, made, layer, loads.row(layer)).max; }
      CHECK(sum <= least * (1 + 1e-6));
      least = std::min(least, sum);
      if (policy.shares == share_mode::optimal) {
        CHECK(re_split(where, made, loads) <= mean_balancedness(where, made, loads) * (1 + 1e-6));
      }
    }
  }
}

TEST_CASE("optimal shares are at least as good as the same policy's even plan, split anew") {
  ballast_test::generator random{17};
  for (int i = 0; i < 400; ++i) {
    CAPTURE(i);
    random_case const in{random};
    incremental_placement policy;
    policy.max_moves_per_layer = random.between(-1, 8);
    auto const even = planned(policy, in.view(), in.current, in.where);
    policy.shares = share_mode::optimal;
    auto const optimal = planned(policy, in.view(), in.current, in.where);
    share_solver solver;
    for (index_t layer = 0; layer < 2; ++layer) {
      auto const reached = [&](placement split) {
        split.drop_shares();
        optimal_shares(in.where, split, in.view(), solver).or_throw();
        return balance_of(in.where, split, layer, in.view().row(layer));
      };
      // A thousandth above the mean counts as balance.
      auto const balance = reached(optimal);
      CHECK(balance.max <= std::max(reached(even).max, balance.mean * (1 + 1.0 / 1024)) * (1 + 1e-6));
    }
  }
}

namespace {
/// Blocks of sixteen neighbours, of which some are hotter than the others, as routing by groups makes them.
std::vector<load_t> block_loads(index_t layers, index_t experts, std::uint64_t seed, std::uint64_t heat_seed) {
  auto loads = skewed_loads(layers, experts, seed);
  ballast_test::generator random{heat_seed};
  for (std::size_t block = 0; block < loads.size() / 16; ++block) {
    auto const percent = load_t{100} + load_t{50} * random.below(4);
    for (auto& load : std::span{loads}.subspan(block * 16, 16)) { load = load * percent / 100; }
  }
  return loads;
}
}  // namespace

TEST_CASE("a layout from scratch for ranks of few slots comes near balance too") {
  topology const where{{128, 8, 4, 0}};
  auto const loads = block_loads(2, 256, 66, 67);
  auto const start = trivial_placement({2, 256, 512});
  auto const made = planned(incremental_placement{}, {loads, 1, 2, 256}, start, where);
  REQUIRE(count_moves(where, start, made, 1) > 256);
  for (index_t layer = 0; layer < 2; ++layer) {
    CAPTURE(layer);
    CHECK(balance_of(where, made, layer, matrix_view<load_t const>{loads, 2, 256}.row(layer)).balancedness() > 0.965);
  }
}

TEST_CASE("a layout that no few moves mend is started afresh, once, and stands up to other loads") {
  topology const where{{16, 1, 9, 0}};
  auto const now = block_loads(6, 128, 61, 62);
  auto const later = block_loads(6, 128, 61, 63);
  auto const start = trivial_placement({6, 128, 144});
  auto const fresh = planned(incremental_placement{}, {now, 1, 6, 128}, start, where);
  auto const mended = planned(incremental_placement{.worth = {.plans_per_layout = 0}}, {now, 1, 6, 128}, start, where);
  CHECK(count_moves(where, start, fresh) > 2 * count_moves(where, start, mended));
  CHECK(balancedness(where, fresh, {now, 6, 128}) >= 0.985);
  CHECK(balancedness(where, fresh, {later, 6, 128}) > balancedness(where, mended, {later, 6, 128}) + 0.02);
  CHECK(re_split(where, fresh, {later, 6, 128}) > re_split(where, mended, {later, 6, 128}) + 0.02);
  // The same loads again move nothing, and what drift does is mended by few moves.
  CHECK(planned(incremental_placement{}, {now, 1, 6, 128}, fresh, where) == fresh);
  auto const followed = planned(incremental_placement{}, {later, 1, 6, 128}, fresh, where);
  CHECK(count_moves(where, fresh, followed) < count_moves(where, start, fresh) / 3);
  // A move that costs too much is not made for a layout either, and a budget binds.
  auto const dear = incremental_placement{.worth = {.passes_until_next_plan = 5}};
  CHECK(count_moves(where, start, planned(dear, {now, 1, 6, 128}, start, where)) < count_moves(where, start, mended));
  CHECK(most_moves(where, start,
                   planned(incremental_placement{.max_moves_per_layer = 20}, {now, 1, 6, 128}, start, where)) <= 20);
}

TEST_CASE("a second copy of an expert on its rank is there only where the layer would be worse without") {
  topology const where{{16, 1, 9, 0}};
  auto const before = skewed_loads(6, 128, 51);
  auto const after = drifted(before, 0.3, 52);
  matrix_view<load_t const> const loads{after, 6, 128};
  auto const current = balanced_for({before, 1, 6, 128}, where);
  for (index_t const moves : {4, 12, -1}) {
    auto const made = planned(incremental_placement{.max_moves_per_layer = moves}, {after, 1, 6, 128}, current, where);
    for (index_t layer = 0; layer < 6; ++layer) {
      auto const max = balance_of(where, made, layer, loads.row(layer)).max;
      for (index_t slot = 0; slot < where.num_slots(); ++slot) {
        auto const at = static_cast<std::size_t>(slot);
        auto const count_here = [&](index_t expert) {
          auto const replicas = made.replicas_of(layer, expert);
          return std::count_if(replicas.begin(), replicas.end(),
                               [&](index_t other) { return where.rank_of_slot(other) == where.rank_of_slot(slot); });
        };
        auto const held = current.logical_of_slot(layer)[at];
        if (count_here(made.logical_of_slot(layer)[at]) < 2 || count_here(held) > 0) { continue; }
        CAPTURE(slot);
        auto trial = made;
        trial.edit(layer).logical_of_slot[at] = held;
        std::vector<index_t> const map{trial.logical_of_slot().elements().begin(),
                                       trial.logical_of_slot().elements().end()};
        trial.assign(made.shape(), map).or_throw();
        CHECK(balance_of(where, trial, layer, loads.row(layer)).max > max);
      }
    }
  }
}

TEST_CASE("no moves, no change: a budget of 0 only makes copies that are local") {
  topology const where{{8, 1, 6, 0}};
  auto const loads = skewed_loads(3, 40, 5);
  auto const current = trivial_placement({3, 40, 48});
  auto const made = planned(incremental_placement{.max_moves_per_layer = 0}, {loads, 1, 3, 40}, current, where);
  CHECK(count_moves(where, current, made) == 0);
}

TEST_CASE("planning again on the same loads moves nothing") {
  for (auto const mode : {share_mode::even, share_mode::optimal}) {
    for (std::uint64_t seed = 0; seed < 6; ++seed) {
      CAPTURE(seed);
      topology const where{{16, 1, 9, 0}};
      auto const before = skewed_loads(4, 128, seed);
      auto const after = drifted(before, 0.15, seed + 100);
      incremental_placement policy;
      policy.shares = mode;
      auto const current = balanced_for({before, 1, 4, 128}, where);
      CHECK(planned(policy, {before, 1, 4, 128}, current, where).logical_of_slot().elements()[0] ==
            current.logical_of_slot().elements()[0]);
      CHECK(count_moves(where, current, planned(policy, {before, 1, 4, 128}, current, where)) == 0);
      auto const once = planned(policy, {after, 1, 4, 128}, current, where);
      CHECK(count_moves(where, current, once) > 0);
      CHECK(count_moves(where, once, planned(policy, {after, 1, 4, 128}, once, where)) == 0);
    }
  }
}

TEST_CASE("layers in balance stay as they are") {
  topology const where{{4, 1, 4, 0}};
  std::vector<load_t> loads(32, 100);
  auto const hot = std::size_t{16 + 3};
  loads[hot] = 1000;
  auto const current = trivial_placement({2, 16, 16});
  auto const made = planned(incremental_placement{}, {loads, 1, 2, 16}, current, where);
  CHECK(std::equal(made.logical_of_slot(0).begin(), made.logical_of_slot(0).end(), current.logical_of_slot(0).begin()));
  std::fill(loads.begin(), loads.end(), 0);
  CHECK(planned(incremental_placement{}, {loads, 1, 2, 16}, current, where) == current);
}

TEST_CASE("the price of a move decides how far a plan goes, unless it is switched off") {
  topology const where{{16, 1, 9, 0}};
  auto const before = skewed_loads(6, 128, 1);
  auto const after = drifted(before, 0.2, 2);
  auto const current = balanced_for({before, 1, 6, 128}, where);
  auto const moves = [&](incremental_placement const& policy) {
    return count_moves(where, current, planned(policy, {after, 1, 6, 128}, current, where));
  };
  incremental_placement policy;
  auto const usual = moves(policy);
  policy.worth.passes_until_next_plan = 100;
  CHECK(moves(policy) < usual);
  policy.worth.passes_until_next_plan = 1;
  CHECK(moves(policy) == 0);
  policy.stop_when_not_worth = false;
  CHECK(moves(policy) > usual);
}

TEST_CASE("options out of range are refused, and every option is in the digest") {
  topology const where{{2, 1, 2, 0}};
  std::vector<load_t> const loads{1, 2};
  auto const current = trivial_placement({1, 2, 4});
  auto const code = [&](incremental_placement const& policy) {
    placement next;
    return plan(policy, {loads, 1, 1, 2}, current, where, next).code();
  };
  auto const value = [](incremental_placement const& policy) {
    digest out;
    policy.describe(out);
    return out.value();
  };
  CHECK(code({.max_moves_per_layer = -2}) == errc::invalid_option);
  CHECK(code({.retries_per_layer = -2}) == errc::invalid_option);
  CHECK(code({.worth = {.link_bytes_per_second = 0}}) == errc::invalid_option);
  std::vector<std::uint64_t> values{value({}),
                                    value({.max_moves_per_layer = 1}),
                                    value({.max_arrivals_per_rank = 1}),
                                    value({.max_remote_arrivals_per_rank = 1}),
                                    value({.max_moves_in_all = 1}),
                                    value({.worth = {.bytes_per_expert = 1}}),
                                    value({.worth = {.link_bytes_per_second = 1'000'000}}),
                                    value({.worth = {.layer_nanoseconds = 1}}),
                                    value({.worth = {.passes_until_next_plan = 1}}),
                                    value({.worth = {.plans_per_layout = 1}}),
                                    value({.stop_when_not_worth = false}),
                                    value({.shares = share_mode::optimal}),
                                    value({.retries_per_layer = 1}),
                                    value({.work_per_layer = 1})};
  std::sort(values.begin(), values.end());
  CHECK(std::adjacent_find(values.begin(), values.end()) == values.end());
}

TEST_CASE("experts of a dead rank get a new home, dead ranks are not used, and what cannot be done is refused") {
  ballast_test::generator random{13};
  for (int i = 0; i < 60; ++i) {
    CAPTURE(i);
    auto const ranks = random.between(3, 8);
    auto const slots = random.between(2, 6);
    auto const experts = random.between(1, (ranks - 1) * slots);
    topology where{{ranks, 1, slots, 0}};
    auto const loads = skewed_loads(2, experts, random.next());
    auto const current = ballast_test::random_placement({2, experts, where.num_slots()}, random);
    auto const dead = random.below(ranks);
    where.set_live(dead, false);
    for (auto const mode : {share_mode::even, share_mode::optimal}) {
      incremental_placement policy;
      policy.shares = mode;
      auto const made = planned(policy, {loads, 1, 2, experts}, current, where);
      check_valid(where, made);
      CHECK(made.has_shares());
    }
    for (auto const more : {0, 1, 6}) {
      CAPTURE(more);
      incremental_placement const policy{.max_moves_per_layer = slots + more};
      check_valid(where, planned(policy, {loads, 1, 2, experts}, current, where));
    }
    index_t homeless = 0;
    for (index_t expert = 0; expert < experts; ++expert) {
      auto const replicas = current.replicas_of(0, expert);
      homeless +=
          std::all_of(replicas.begin(), replicas.end(), [&](index_t slot) { return where.rank_of_slot(slot) == dead; });
    }
    if (homeless == 0) { continue; }
    placement next;
    auto const refused = plan(
        incremental_placement{.max_moves_per_layer = homeless - 1},
        {std::span{loads}.first(static_cast<std::size_t>(experts)), 1, 1, experts},
        [&] {
          placement first;
          first.assign({1, experts, where.num_slots()}, current.logical_of_slot(0)).or_throw();
          return first;
        }(),
        where, next);
    CHECK(refused.code() == errc::missing_expert);
    CHECK(refused.message().find("no live rank holds expert") != std::string::npos);
  }
}

namespace {
/// The first half of the ranks takes three times as long for a token.
struct slow_half {
  index_t num_slow = 0;
  [[nodiscard]] load_t operator()(index_t rank, load_t load) const noexcept {
    return (rank < num_slow ? 3 : 1) * (load / 4);
  }
  void describe(digest& out) const noexcept { out.add(num_slow); }
};
}  // namespace

TEST_CASE("a rank cost is what is balanced") {
  topology const where{{8, 1, 6, 0}};
  auto const loads = skewed_loads(1, 40, 3);
  auto const current = balanced_for({loads, 1, 1, 40}, where);
  slow_half const cost{4};
  auto const made = planned(basic_incremental_placement<slow_half>{.max_moves_per_layer = 30, .cost = cost},
                            {loads, 1, 1, 40}, current, where);
  auto const worst = [&](placement const& in) {
    std::vector<load_t> per_rank(8);
    rank_loads(where, in, 0, loads, per_rank);
    load_t max = 0;
    for (index_t rank = 0; rank < 8; ++rank) {
      max = std::max(max, cost(rank, per_rank[static_cast<std::size_t>(rank)]));
    }
    return static_cast<double>(max);
  };
  CHECK(worst(made) < 0.7 * worst(current));
  placement next;
  auto const refused = plan(basic_incremental_placement<slow_half>{.shares = share_mode::optimal, .cost = cost},
                            {loads, 1, 1, 40}, current, where, next);
  CHECK(refused.code() == errc::invalid_option);
}

TEST_CASE("of moves that are about as good, those inside a node are preferred") {
  auto const before = skewed_loads(8, 128, 21);
  auto const after = drifted(before, 0.3, 22);
  topology const flat{{16, 1, 10, 0}};
  topology const nodes{{16, 4, 10, 0}};
  auto const current = balanced_for({before, 1, 8, 128}, flat);
  auto const remote = [&](placement const& made) {
    index_t count = 0;
    for (index_t layer = 0; layer < 8; ++layer) {
      for (index_t slot = 0; slot < nodes.num_slots(); ++slot) {
        auto const held = current.replicas_of(layer, made.logical_of_slot(layer)[static_cast<std::size_t>(slot)]);
        count += std::none_of(held.begin(), held.end(),
                              [&](index_t other) { return nodes.node_of_slot(other) == nodes.node_of_slot(slot); });
      }
    }
    return count;
  };
  incremental_placement const policy{.max_moves_per_layer = 24};
  auto const far = remote(planned(policy, {after, 1, 8, 128}, current, flat));
  auto const near = remote(planned(policy, {after, 1, 8, 128}, current, nodes));
  CHECK(near < far);
}

// ---- against every plan there is ----

namespace {
/// Smallest largest rank load that at most `max_moves` moves reach, by trying every map of the slots, or every one
/// without a new second copy on a rank.
double best_within(topology const& where, std::span<load_t const> loads, placement const& current, index_t max_moves,
                   bool with_doubles) {
  auto const doubled = doubled_slots(where, current, 0);
  auto const experts = current.num_logical();
  std::vector<index_t> map(static_cast<std::size_t>(where.num_slots()));
  double best = balance_of(where, current, 0, loads).max;
  placement trial;
  for (;;) {
    if (trial.assign(current.shape(), map).ok() && count_moves(where, current, trial, 0) <= max_moves &&
        (with_doubles || doubled_slots(where, trial, 0) <= doubled)) {
      best = std::min(best, balance_of(where, trial, 0, loads).max);
    }
    std::size_t digit = 0;
    while (digit < map.size() && ++map[digit] == experts) { map[digit++] = 0; }
    if (digit == map.size()) { return best; }
  }
}
}  // namespace

TEST_CASE("small layers come close to the best that so many moves allow") {
  ballast_test::generator random{14};
  topology const where{{3, 1, 2, 0}};
  int exact = 0;
  int cases = 0;
  double worst = 1;
  for (int i = 0; i < 24; ++i) {
    CAPTURE(i);
    auto const experts = random.between(3, 5);
    auto const loads = skewed_loads(1, experts, random.next());
    auto const current = ballast_test::random_placement({1, experts, 6}, random);
    for (index_t moves = 1; moves <= 3; ++moves) {
      auto const made =
          planned(incremental_placement{.max_moves_per_layer = moves}, {loads, 1, 1, experts}, current, where);
      auto const best = best_within(where, loads, current, moves, false);
      auto const reached = balance_of(where, made, 0, loads).max;
      CHECK(reached >= best_within(where, loads, current, moves, true) * (1 - 1e-9));
      worst = std::max(worst, reached / best);
      exact += reached <= best * 1.001;
      ++cases;
    }
  }
  MESSAGE(exact << " of " << cases << " plans are the best there are, the worst is " << worst << " times the best");
  CHECK(exact * 20 >= cases * 13);
  CHECK(worst < 1.4);
}

// ---- the same plan everywhere ----

TEST_CASE("plans are the same on every compiler and machine") {
  topology const where{{16, 2, 9, 0}};
  auto const before = skewed_loads(6, 128, 31);
  auto const after = drifted(before, 0.2, 32);
  auto const current = balanced_for({before, 1, 6, 128}, where);
  auto const pinned = [&](incremental_placement const& policy) {
    digest out;
    planned(policy, {after, 1, 6, 128}, current, where).describe(out);
    return out.value();
  };
  CHECK(pinned({}) == 1995494462550054826u);
  CHECK(pinned({.max_moves_per_layer = 12}) == 17771935164533692426u);
  CHECK(pinned({.max_moves_per_layer = 4, .shares = share_mode::optimal}) == 3788327520994389116u);
}

// ---- what it is for ----

TEST_CASE("a drift of a tenth is planned away with few moves") {
  struct shape {
    index_t layers, experts, slots, ranks;
    double moved;
  };
  for (auto const& [layers, experts, slots, ranks, moved] :
       {shape{20, 128, 144, 16, 0.076}, shape{12, 384, 416, 32, 0.06}}) {
    CAPTURE(experts);
    topology const where{{ranks, 1, slots / ranks, 0}};
    auto const before = zipf_loads(layers, experts, 41);
    auto const after = drifted(before, 0.1, 42);
    auto const current = balanced_for({before, 1, layers, experts}, where);
    auto const made = planned(incremental_placement{}, {after, 1, layers, experts}, current, where);
    auto const reached = balancedness(where, made, {after, layers, experts});
    MESSAGE(experts << " experts: " << balancedness(where, current, {after, layers, experts}) << " -> " << reached
                    << ", moved " << moved_part(where, current, made));
    CHECK(reached >= 0.989);
    CHECK(moved_part(where, current, made) <= moved);
  }
}

TEST_CASE("a few moves keep up with traffic that changes: DeepSeek-V2-Lite, four steps at a time") {
  auto const file = ballast_test::find_trace("deepseek-v2-lite/mixed_512tok");
  REQUIRE_FALSE(file.empty());
  auto const recorded = ballast_test::read_trace(file);
  topology const where{{8, 1, 9, 0}};
  auto current = trivial_placement({recorded.layers, recorded.experts, where.num_slots()});
  double worst = 1;
  for (index_t first = 0; first + 4 <= recorded.steps; first += 4) {
    CAPTURE(first);
    auto const window = recorded.history(first, 4);
    std::vector<load_t> sum(static_cast<std::size_t>(recorded.layers) * static_cast<std::size_t>(recorded.experts));
    for (index_t layer = 0; layer < recorded.layers; ++layer) {
      auto const width = static_cast<std::size_t>(recorded.experts);
      sum_buckets(window, layer, std::span{sum}.subspan(static_cast<std::size_t>(layer) * width, width));
    }
    matrix_view<load_t const> const loads{sum, recorded.layers, recorded.experts};
    placement next;
    plan(incremental_placement{.max_moves_per_layer = 12}, window, current, where, next).or_throw();
    for (index_t layer = 0; layer < recorded.layers; ++layer) { CHECK(count_moves(where, current, next, layer) <= 12); }
    CHECK(balancedness(where, next, loads) >= balancedness(where, current, loads));
    worst = std::min(worst, balancedness(where, next, loads));
    current = next;
  }
  MESSAGE("worst window: " << worst);
  CHECK(worst >= 0.95);
}
