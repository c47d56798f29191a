// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_PLANNING_GROUP_HPP
#define BALLAST_TESTS_SUPPORT_PLANNING_GROUP_HPP

#include <ballast/load/history.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/policies/policy.hpp>
#include <ballast/policies/relabel.hpp>
#include <ballast/policies/relabel_scope.hpp>
#include <ballast/runtime/rebalancer.hpp>
#include <ballast/schedule/schedules.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/transport/in_process.hpp>
#include <ballast/types.hpp>

#include "cohort.hpp"
#include "hooked.hpp"
#include "random.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

// Four ranks that plan six layers, in parts or not.
namespace ballast_test::planning {

using ballast::index_t;
using ballast::load_t;
using ballast::status;

inline constexpr index_t num_ranks = 4;
inline constexpr index_t num_layers = 6;
inline constexpr index_t num_experts = 24;
inline constexpr ballast::placement_shape shape{num_layers, num_experts, 32};

/// Loads that call for a plan. @param seed  others call for another one
[[nodiscard]] inline std::vector<load_t> some_loads(std::uint64_t seed = 5) {
  generator random{seed};
  std::vector<load_t> loads(std::size_t{num_layers} * std::size_t{num_experts});
  for (auto& load : loads) { load = 100 + load_t{1000} * random.below(8) * random.below(3); }
  return loads;
}

/// Another policy, and what a test wants to know or to spoil.
template <class Policy>
struct watched {
  static constexpr bool follows_loads = true;

  Policy policy{};
  index_t rank = 0;
  std::function<void(index_t, std::span<index_t const>)> on_layers{};
  std::function<void(ballast::placement const& current, ballast::placement const& next)> on_entry{};
  std::function<status(index_t, std::span<index_t const>, ballast::placement&)> spoil{};

  [[nodiscard]] status plan(ballast::load_history_view history, ballast::placement const& current,
                            ballast::topology const& where, ballast::placement& next) const {
    if (auto result = policy.plan(history, current, where, next); !result.ok()) { return result; }
    return spoil ? spoil(rank, {}, next) : status{};
  }
  [[nodiscard]] status plan_layers(ballast::load_history_view history, ballast::placement const& current,
                                   ballast::topology const& where, std::span<index_t const> layers,
                                   ballast::placement& next) const {
    if (on_layers) { on_layers(rank, layers); }
    if (on_entry) { on_entry(current, next); }
    if (auto result = policy.plan_layers(history, current, where, layers, next); !result.ok()) { return result; }
    return spoil ? spoil(rank, layers, next) : status{};
  }
  [[nodiscard]] ballast::relabel_scope interchangeable() const noexcept { return policy.interchangeable(); }
  void describe(ballast::digest& out) const { policy.describe(out); }
};

/// A control plane whose sums are wrong on one rank.
class miscounting_control : public hooked_control<ballast::in_process_endpoint> {
public:
  miscounting_control(ballast::in_process_endpoint& inner, bool wrong)
      : hooked_control{inner, [](char const*) {}}, wrong_{wrong} {}

  [[nodiscard]] status all_reduce(std::span<std::int64_t> values, ballast::nanoseconds_t timeout) {
    auto result = hooked_control::all_reduce(values, timeout);
    if (wrong_) { values.back() += 100'000; }
    return result;
  }

private:
  bool wrong_;
};

/// A rank whose control plane is one.
template <class Policy>
using miscounting_member =
    member<Policy, ballast::layers_per_chunk<>, ballast::host_store, ballast::in_process_endpoint, miscounting_control>;

/// The plan for these loads, counted by all ranks, made in one go and without anything in between.
template <class Policy>
[[nodiscard]] ballast::placement planned_at_once(Policy const& policy, ballast::topology const& where,
                                                 ballast::placement const& before, std::uint64_t seed) {
  auto loads = some_loads(seed);
  for (auto& load : loads) { load *= num_ranks; }
  auto next = before;
  ballast::plan(policy, ballast::matrix_view<load_t const>{loads, num_layers, num_experts}, before, where, next)
      .or_throw();
  ballast::relabel(before, where, next, {.scope = policy.interchangeable()});
  return next;
}

/// Let one rank count `loads` in its next pass, and close it.
template <class Rebalancer>
[[nodiscard]] status pass(Rebalancer& moved, std::vector<load_t> const& loads) {
  ballast::matrix_view<load_t const> const rows{loads, num_layers, num_experts};
  for (index_t layer = 0; layer < num_layers; ++layer) { moved.record_logical(layer, rows.row(layer)).or_throw(); }
  return moved.on_forward_pass_end({.tokens = 1});
}

struct outcome {
  std::vector<ballast::placement> planned{num_ranks};
  std::vector<status> ended{num_ranks};
};

/// One cycle on four ranks, of which one may be dead from the start.
/// @param calls  that the plan takes
template <class Policy>
outcome one_cycle(Policy const& policy, ballast::rebalancer_options options, index_t dead = -1, int calls = 1) {
  ballast::topology where{{num_ranks, 1, 8, 0}};
  auto const initial = ballast::trivial_placement(shape);
  if (dead >= 0) { where.set_live(dead, false); }
  options.interval = 1;
  options.timeout = patience;
  options.work_per_plan_call = 0;  // layers are whole
  outcome result;
  ballast::in_process_group group{num_ranks};
  if (dead >= 0) { group.expel(dead); }
  group.run([&](ballast::in_process_endpoint& wire) {
    if (wire.rank() == dead) { return; }
    auto mine = policy;  // NOLINT(performance-unnecessary-copy-initialization): some learn their rank
    if constexpr (requires { mine.rank; }) { mine.rank = wire.rank(); }
    member<Policy, ballast::layers_per_chunk<>> part{where, initial, mine, ballast::layers_per_chunk<>{num_layers},
                                                     wire,  options};
    part.moved.start().or_throw();
    auto& ended = result.ended[static_cast<std::size_t>(wire.rank())];
    for (int call = 0; call < 1 + calls && ended.ok(); ++call) {
      CHECK(
          std::ranges::equal(part.moved.current().logical_of_slot().elements(), initial.logical_of_slot().elements()));
      // The plan is made on what was counted before it began.
      ended = pass(part.moved, some_loads(call < 2 ? 5 : 77));
    }
    if (ended.ok()) {
      CHECK(part.moved.state() == ballast::rebalancer_state::recording);
      CHECK(part.first_error().empty());
    }
    result.planned[static_cast<std::size_t>(wire.rank())] = part.moved.current();
  });
  return result;
}

}  // namespace ballast_test::planning

#endif
