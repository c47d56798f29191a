// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_DETAIL_LAYER_PLANNING_HPP
#define BALLAST_RUNTIME_DETAIL_LAYER_PLANNING_HPP

#include <ballast/detail/clock.hpp>
#include <ballast/digest.hpp>
#include <ballast/placement/detail/dead_ranks.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/policies/policy.hpp>
#include <ballast/policies/relabel.hpp>
#include <ballast/runtime/detail/plan_parts.hpp>
#include <ballast/runtime/detail/plan_task.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <span>
#include <utility>

BALLAST_BEGIN_NAMESPACE
namespace detail {

// A plan that is made layer by layer: by all ranks together or by each alone, in one call or over several.

/// Such a plan while it is being made.
struct layer_plan {
  plan_parts parts;
  bool shared = true;       ///< each rank plans some of the layers
  index_t calls_left = 1;   ///< that plan layers
  std::size_t done = 0;     ///< layers of this rank that are planned
  status planned{};         ///< why this rank cannot
  nanoseconds_t spent = 0;  ///< by this rank, in calls that are over

  /// What this rank has planned of some of its layers, or that it cannot.
  void keep(placement const& next, std::span<index_t const> layers) {
    if (planned.ok()) {
      parts.write(next, layers);
    } else {
      parts.give_up();
    }
  }
};

/// What is left of a plan whose layers move before the next ones are planned.
struct plan_waves {
  bool shared = true;
  index_t planners = 1;
  index_t first = 0;  ///< number among its own of each rank's first layer in the plan at hand
  index_t next = 0;   ///< of its first one in the plan after that
  index_t end = 0;    ///< 0: plans are whole

  [[nodiscard]] bool any_left() const noexcept { return next < end; }
  /// Whether a layer is not in the plan at hand.
  [[nodiscard]] bool leaves_out(index_t layer) const noexcept {
    return end > 0 && (layer / planners < first || layer / planners >= next);
  }
};

/// What may change names in a plan, as far as policy and options allow; what becomes of its rows.
template <class Core>
[[nodiscard]] relabel_options naming(Core const& core) {
  return {.scope = std::min(interchangeable(core.policy), core.options.relabel)};
}
template <class Core>
[[nodiscard]] row_options options_of_rows(Core const& core) {
  return {.naming = detail::naming(core), .splits_anew = core.options.share_interval > 0};
}

/// Ranks that plan together have to plan on the same: what comes of it is the same rows on all of them, whatever it is.
template <class Core>
[[nodiscard]] status agree_on_question(Core& core) {
  digest inputs;
  core.books.in_force().describe(inputs);
  inputs.add(core.books.window().history().tokens());
  return core.agree_on("loads and placement", inputs.value());
}

/// Calls that a plan takes of which no rank plans more than so many layers; the same on every rank.
template <class Core>
[[nodiscard]] index_t calls_for(Core const& core, index_t layers) noexcept {
  auto const each = core.options.layers_per_plan_call;
  return each == 0 ? 1 : std::max<index_t>((layers + each - 1) / each, 1);
}

/// Begin to plan these layers of all ranks, by all or alone.
template <class Core>
void open_layer_plan(Core& core, bool shared, part_range range) {
  auto& books = core.books;
  auto const shape = books.in_force().shape();
  core.planning = std::make_unique<layer_plan>(
      layer_plan{.parts = shared ? plan_parts{books.where(), shape, core.rank(), core.options.checked_layers, range}
                                 : plan_parts::alone(shape, range),
                 .shared = shared});
  core.planning->planned = validate_question(core.policy, books.window().history(), books.in_force(), books.where());
  core.next = books.in_force();
  core.next.drop_shares();
}
/// Begin with the layers that move before the next ones are planned; one call plans them.
template <class Core>
void open_next_wave(Core& core) {
  auto& waves = core.waves;
  waves.first = waves.next;
  waves.next = std::min(waves.end, waves.first + core.options.layers_per_plan_call);
  detail::open_layer_plan(core, waves.shared, {waves.first, waves.next - waves.first});
}

/// Begin to plan layer by layer, where that is the way here. Otherwise the policy plans all at once, later.
///
/// @param moves  what is planned will move, and may do so while more is planned.
/// @return why the ranks cannot plan together
template <class Core>
[[nodiscard]] status begin_layer_plan([[maybe_unused]] Core& core, [[maybe_unused]] bool moves) {
  core.planning.reset();
  core.waves = {};
  if constexpr (layerwise_policy<typename Core::policy_type>) {
    auto& books = core.books;
    if (!plans_by_layer(core.policy)) { return {}; }
    bool shared = core.options.plan_in_parts && books.where().num_live_ranks() > 1;
    if (shared) {
      auto agreed = detail::agree_on_question(core);
      // Rank 0's plan is the remedy for ranks that differ, and rank 0 has to have all of it.
      bool const remedied = agreed.code() == errc::disagreement && core.options.adopt_first_plan;
      if (!agreed.ok() && !remedied) {
        return agreed.code() == errc::disagreement ? agreed : core.fail(std::move(agreed));
      }
      shared = agreed.ok();
    }
    auto const shape = books.in_force().shape();
    if (!shared && detail::calls_for(core, shape.num_layers) == 1) { return {}; }
    if (moves && core.options.moves_while_planning) {
      auto const planners = shared ? books.where().num_live_ranks() : 1;
      core.waves = {.shared = shared, .planners = planners, .end = plan_parts::most_layers(shape.num_layers, planners)};
      detail::open_next_wave(core);
      return {};
    }
    detail::open_layer_plan(core, shared, {});
    core.planning->calls_left = detail::calls_for(core, core.planning->parts.most_layers());
  }
  return {};
}

/// Plan the layers of one call. A rank that cannot goes on as the others do, who hear of it in the end.
template <class Core>
void plan_next_layers([[maybe_unused]] Core& core) {
  if constexpr (layerwise_policy<typename Core::policy_type>) {
    auto const start = now();
    auto& plan = *core.planning;
    auto const left = plan.parts.layers().subspan(plan.done);
    auto const each = static_cast<std::size_t>(core.options.layers_per_plan_call);
    auto const layers = left.first(plan.calls_left == 1 ? left.size() : std::min(left.size(), each));
    if (plan.planned.ok()) {
      auto& books = core.books;
      plan.planned = plan_rows(core.policy, books.window().history(), books.in_force(), books.where(), layers,
                               detail::options_of_rows(core), core.next);
    }
    plan.keep(core.next, layers);
    // The next layers are planned into rows of the placement in force again, without shares.
    if (--plan.calls_left > 0) {
      for (auto const layer : layers) { core.next.copy_layer(core.books.in_force(), layer); }
      core.next.drop_shares();
    }
    plan.done += layers.size();
    plan.spent += now() - start;
  }
}

/// Put the rows of all ranks together, in `next`.
template <class Core>
[[nodiscard]] status finish_layer_plan([[maybe_unused]] Core& core) {
  if constexpr (layerwise_policy<typename Core::policy_type>) {
    auto& books = core.books;
    auto& plan = *core.planning;
    auto planned = std::move(plan.planned);
    if (plan.shared) {
      auto told = core.ranks.control().all_gather(plan.parts.mine(), plan.parts.all(), core.options.timeout);
      if (!told.ok()) { return core.fail(std::move(told)); }
    } else {
      plan.parts.keep();
    }
    if (planned.ok()) { planned = plan.parts.check(); }
    if (planned.ok()) { planned = plan.parts.read(core.next); }
    core.planning.reset();
    if (!planned.ok()) { return planned; }
    if (!core.next.has_shares()) { finish_plan(books.in_force(), books.where(), core.next); }
    choose_layers_of(core.policy, books.window().history(), books.in_force(), books.where(), core.next);
  }
  return {};
}

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
