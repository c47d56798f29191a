// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Layers that are planned in slices: the plan is the same wherever they end.
#include <ballast/policies/any_policy.hpp>
#include <ballast/policies/balanced.hpp>
#include <ballast/policies/headroom.hpp>
#include <ballast/policies/incremental.hpp>
#include <ballast/policies/regime.hpp>

#include <doctest/doctest.h>
#include <support/long_runs.hpp>
#include <support/random.hpp>
#include <support/trace_files.hpp>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <ostream>
#include <vector>

using namespace ballast;

static_assert(divisible_policy<incremental_placement>);
static_assert(divisible_policy<any_policy>);
static_assert(divisible_policy<regime_placement<incremental_placement>>);
static_assert(!divisible_policy<headroom_placement>);
static_assert(!divisible_policy<regime_placement<balanced_placement>>);

namespace {

constexpr auto endless = std::numeric_limits<std::int64_t>::max();

/// What a plan that is made in slices comes to, each with as much work as `next_slice` says.
struct sliced_plan {
  placement next;
  status ended;
  std::int64_t slices = 0;
  std::int64_t work = 0;
};
template <class Policy>
sliced_plan plan_in_slices(Policy const& policy, load_history_view history, placement const& current,
                           topology const& where, std::function<std::int64_t()> const& next_slice) {
  sliced_plan result;
  result.next = current;
  auto const planner = policy.make_layer_planner(where, history.num_logical());
  REQUIRE(planner != nullptr);
  CHECK(planner->is_finished());
  auto scratch = current;
  for (index_t layer = 0; layer < history.num_layers() && result.ended.ok(); ++layer) {
    scratch.copy_layer(current, layer);
    scratch.drop_shares();
    result.ended = planner->begin(history, current, layer, scratch);
    while (result.ended.ok() && !planner->is_finished()) {
      auto const given = next_slice();
      auto left = given;
      result.ended = planner->advance(left);
      REQUIRE(left < given);
      result.work += given - left;
      ++result.slices;
    }
    if (scratch.has_shares() && !result.next.has_shares()) { result.next.make_shares_even(); }
    result.next.copy_layer(scratch, layer);
  }
  return result;
}

/// The plan of one go, and that of slices of any size, are the same.
template <class Policy>
void check_slices(Policy const& policy, load_history_view history, placement const& current, topology const& where,
                  ballast_test::generator& random) {
  auto whole = current;
  whole.drop_shares();
  auto const ended = policy.plan_layers(history, current, where, detail::numbers_below(history.num_layers()), whole);
  auto const check = [&](std::function<std::int64_t()> const& next_slice) {
    auto sliced = plan_in_slices(policy, history, current, where, next_slice);
    CHECK(sliced.ended.code() == ended.code());
    CHECK(sliced.ended.message() == ended.message());
    if (ended.ok() && sliced.ended.ok()) { CHECK(sliced.next == whole); }
    return sliced;
  };
  auto const whole_layers = check([] { return endless; });
  if (ended.ok()) { CHECK(whole_layers.slices == history.num_layers()); }
  auto const steps = check([] { return 1; });
  // Where a slice ends takes nothing.
  CHECK(steps.work == whole_layers.work);
  check([&random] { return random.between(1, 1 << random.between(1, 14)); });
}

/// Options of all ways that a search may go.
incremental_placement random_policy(ballast_test::generator& random) {
  incremental_placement policy{.max_moves_per_layer = random.between(-1, 24),
                               .retries_per_layer = 6 * random.between(0, 5)};
  if (random.below(3) == 0) { policy.max_moves_per_layer = -1; }
  if (random.below(4) == 0) { policy.max_arrivals_per_rank = random.between(0, 3); }
  if (random.below(4) == 0) { policy.work_per_layer = random.between(1, 20'000); }
  if (random.below(2) == 0) { policy.shares = share_mode::optimal; }
  if (random.below(4) == 0) { policy.stop_when_not_worth = false; }
  return policy;
}

}  // namespace

TEST_CASE("wherever slices end, the plan is that of one go: random layers") {
  ballast_test::generator random{41};
  for (int i = 0; i < ballast_test::cases(BALLAST_TESTS_QUICK ? 100 : 400); ++i) {
    CAPTURE(i);
    auto const nodes = random.between(1, 2);
    topology where{{nodes * random.between(1, 6), nodes, random.between(1, 8), 0}};
    auto const experts = random.between(1, where.num_slots());
    auto const current = ballast_test::random_placement({2, experts, where.num_slots()}, random);
    std::vector<load_t> loads(2 * static_cast<std::size_t>(experts));
    for (auto& load : loads) { load = load_t{1} << random.below(20) | load_t{random.between(0, 100)}; }
    // Where too few slots are left to hold all experts, the planner says so as `plan_layers` does.
    if (where.num_ranks() > 1 && random.below(4) == 0) { where.set_live(random.below(where.num_ranks()), false); }
    check_slices(random_policy(random), {loads, 1, 2, experts}, current, where, random);
  }
}

TEST_CASE("wherever slices end, the plan is that of one go: recorded loads") {
  ballast_test::generator random{42};
  int traces = 0;
  for (auto const& file : ballast_test::all_traces()) {
    auto const recorded = ballast_test::read_trace(file);
    CAPTURE(recorded.name);
    topology const where = recorded.experts == 8 ? topology{{4, 1, 3, 0}} : topology{{recorded.experts / 8, 1, 9, 0}};
    auto const layers = std::min(recorded.layers, index_t{BALLAST_TESTS_QUICK ? 1 : 2});
    auto const first_layers = [&](index_t step) {
      auto const tokens = recorded.step(step).elements();
      return load_history_view{
          tokens.first(static_cast<std::size_t>(layers) * static_cast<std::size_t>(recorded.experts)), 1, layers,
          recorded.experts};
    };
    auto const loads = first_layers(recorded.steps - 1);
    auto const start = trivial_placement({layers, recorded.experts, where.num_slots()});
    placement before;
    plan(balanced_placement{}, first_layers(0), start, where, before).or_throw();
    for (auto const& current : {start, before}) {
      for (auto const shares : {share_mode::even, share_mode::optimal}) {
        for (index_t const budget : {-1, 12}) {
          check_slices(incremental_placement{.max_moves_per_layer = budget, .shares = shares}, loads, current, where,
                       random);
        }
      }
    }
    ++traces;
  }
  CHECK(traces >= 8);
}

TEST_CASE("wherever slices end, the plan is that of one go: layers as large as a model's") {
  ballast_test::generator random{43};
  std::vector<load_t> loads(256);
  for (auto& load : loads) { load = load_t{1000} + load_t{random.between(0, 3000)} * random.below(4); }
  for (auto const& where : {topology{{4, 1, 72, 0}}, topology{{32, 4, 9, 0}}}) {
    auto const start = trivial_placement({1, 256, 288});
    check_slices(incremental_placement{}, {loads, 1, 1, 256}, start, where, random);
    check_slices(incremental_placement{.max_moves_per_layer = 20}, {loads, 1, 1, 256}, start, where, random);
    check_slices(incremental_placement{.max_moves_per_layer = 8, .shares = share_mode::optimal}, {loads, 1, 1, 256},
                 start, where, random);
  }
}

TEST_CASE("a slice takes little more than its work") {
  topology const where{{4, 1, 72, 0}};
  ballast_test::generator random{44};
  std::vector<load_t> loads(256);
  for (auto& load : loads) { load = load_t{1} << random.below(16); }
  auto const start = trivial_placement({1, 256, 288});
  auto const planner = incremental_placement{}.make_layer_planner(where, 256);
  auto next = start;
  planner->begin({loads, 1, 1, 256}, start, 0, next).or_throw();
  int slices = 0;
  for (; !planner->is_finished(); ++slices) {
    std::int64_t left = 10'000;
    planner->advance(left).or_throw();
    CHECK(left > -10'000);
    if (!planner->is_finished()) { CHECK(left <= 0); }
  }
  CHECK(slices > 3);
}

TEST_CASE("a layer may be given up for another one") {
  topology const where{{8, 1, 9, 0}};
  ballast_test::generator random{45};
  std::vector<load_t> loads(std::size_t{2} * 64);
  for (auto& load : loads) { load = load_t{1} << random.below(16); }
  load_history_view const history{loads, 1, 2, 64};
  auto const start = trivial_placement({2, 64, 72});
  for (index_t const budget : {-1, 12}) {
    for (auto const shares : {share_mode::even, share_mode::optimal}) {
      incremental_placement const policy{.max_moves_per_layer = budget, .shares = shares};
      auto whole = start;
      policy.plan_layers(history, start, where, std::vector<index_t>{1}, whole).or_throw();
      for (int const slices : {0, 1, 5, 30, 60}) {
        auto next = start;
        auto const planner = policy.make_layer_planner(where, 64);
        planner->begin(history, start, 0, next).or_throw();
        for (int i = 0; i < slices && !planner->is_finished(); ++i) {
          std::int64_t left = 100;
          planner->advance(left).or_throw();
        }
        next = start;
        planner->begin(history, start, 1, next).or_throw();
        std::int64_t left = endless;
        planner->advance(left).or_throw();
        CHECK(planner->is_finished());
        CHECK(next == whole);
      }
    }
  }
}

TEST_CASE("what looks at all loads does so when a plan begins, and anew for the next one") {
  topology const where{{4, 1, 3, 0}};
  constexpr index_t buckets = 6;
  auto const start = trivial_placement({2, 8, 12});
  ballast_test::generator random{47};
  /// Traffic that is another from a bucket on.
  auto const loads_with_change = [&](index_t change) {
    std::vector<load_t> loads;
    for (index_t bucket = 0; bucket < buckets; ++bucket) {
      for (index_t cell = 0; cell < 2 * 8; ++cell) {
        bool const is_hot = bucket < change ? cell % 8 < 2 : cell % 8 > 5;
        loads.push_back((is_hot ? 5000 : 100) + static_cast<load_t>(random.below(20)));
      }
    }
    return loads;
  };
  regime_placement<incremental_placement> const policy{};
  auto const planner = policy.make_layer_planner(where, 8);
  std::vector<load_t> held(static_cast<std::size_t>(buckets) * 2 *
                           8);  // as a window does, one plan's after the other's
  for (index_t const change : {4, 0, 3}) {
    CAPTURE(change);
    auto const loads = loads_with_change(change);
    std::copy(loads.begin(), loads.end(), held.begin());
    load_history_view const history{held, buckets, 2, 8};
    REQUIRE(since_last_change(history).num_buckets() == buckets - change);
    auto whole = start;
    whole.drop_shares();
    policy.plan_layers(history, start, where, detail::numbers_below(2), whole).or_throw();
    planner->begin_plan(history);
    for (index_t layer = 0; layer < 2; ++layer) {
      auto next = start;
      planner->begin(history, start, layer, next).or_throw();
      auto left = endless;
      planner->advance(left).or_throw();
      CHECK(std::ranges::equal(next.logical_of_slot(layer), whole.logical_of_slot(layer)));
    }
  }
}

TEST_CASE("policies that hold another one divide its layers, or say that they cannot") {
  topology const where{{4, 1, 3, 0}};
  ballast_test::generator random{46};
  std::vector<load_t> loads(std::size_t{3} * 2 * 8);
  for (auto& load : loads) { load = load_t{1} << random.below(12); }
  load_history_view const history{loads, 3, 2, 8};
  auto const start = trivial_placement({2, 8, 12});
  incremental_placement const inside{.max_moves_per_layer = 4};
  check_slices(any_policy{inside}, history, start, where, random);
  check_slices(regime_placement<incremental_placement>{inside}, history, start, where, random);
  check_slices(any_policy{regime_placement<incremental_placement>{inside}}, history, start, where, random);
  CHECK(any_policy{}.make_layer_planner(where, 8) == nullptr);
  CHECK(any_policy{headroom_placement{}}.make_layer_planner(where, 8) == nullptr);
  CHECK(regime_placement<headroom_placement>{}.make_layer_planner(where, 8) == nullptr);
  CHECK(detail::layer_planner_of(headroom_placement{}, where, 8) == nullptr);
  CHECK(detail::layer_planner_of(inside, where, 8) != nullptr);
}
