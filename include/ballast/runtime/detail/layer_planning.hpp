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
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

// A plan that is made layer by layer: by all ranks together or by each alone, in one call or over several.

/// Such a plan while it is being made.
struct layer_plan {
  plan_parts parts;
  bool shared = true;       ///< each rank plans some of the layers
  index_t calls_left = 1;   ///< that plan layers; 1 where nobody knows, as `planner` stops within layers
  std::size_t done = 0;     ///< layers of this rank that are planned
  status planned{};         ///< why this rank cannot
  nanoseconds_t spent = 0;  ///< by this rank, in calls that are over
  std::unique_ptr<layer_planner>
      planner{};  ///< has the layer that is half planned; null: layers are planned as a whole

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

/// What plans layers in slices, where a call's work is limited and the policy can stop: that of the plan before, where
/// there is one, because new memory costs as much as many searches.
template <class Core>
[[nodiscard]] std::unique_ptr<layer_planner> make_layer_planner(Core& core) {
  if (core.options.work_per_plan_call == 0 || core.options.executor.run != nullptr) { return nullptr; }
  if (core.idle_planner != nullptr) { return std::move(core.idle_planner); }
  return layer_planner_of(core.policy, core.books.where(), core.books.in_force().num_logical());
}

/// Begin to plan these layers of all ranks, by all or alone.
template <class Core>
void open_layer_plan(Core& core, bool shared, part_range range, std::unique_ptr<layer_planner> planner) {
  auto& books = core.books;
  auto const shape = books.in_force().shape();
  core.planning = std::make_unique<layer_plan>(
      layer_plan{.parts = shared ? plan_parts{books.where(), shape, core.rank(), core.options.checked_layers, range}
                                 : plan_parts::alone(shape, range),
                 .shared = shared,
                 .planner = std::move(planner)});
  core.planning->planned = validate_question(core.policy, books.window().history(), books.in_force(), books.where());
  if (core.planning->planned.ok() && core.planning->planner != nullptr) {
    core.planning->planned = guarded([&core, &books] {
      core.planning->planner->begin_plan(books.window().history());
      return status{};
    });
  }
  core.next = books.in_force();
  core.next.drop_shares();
}
/// Begin with the layers that move before the next ones are planned; one call plans them, where its work is not
/// limited.
template <class Core>
void open_next_wave(Core& core, std::unique_ptr<layer_planner> planner) {
  auto& waves = core.waves;
  waves.first = waves.next;
  waves.next = std::min(waves.end, waves.first + core.options.layers_per_plan_call);
  detail::open_layer_plan(core, waves.shared, {waves.first, waves.next - waves.first}, std::move(planner));
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
    auto planner = moves ? detail::make_layer_planner(core) : nullptr;
    if (!shared && planner == nullptr && detail::calls_for(core, shape.num_layers) == 1) { return {}; }
    if (moves && core.options.moves_while_planning) {
      auto const planners = shared ? books.where().num_live_ranks() : 1;
      core.waves = {.shared = shared, .planners = planners, .end = plan_parts::most_layers(shape.num_layers, planners)};
      detail::open_next_wave(core, std::move(planner));
      return {};
    }
    detail::open_layer_plan(core, shared, {}, std::move(planner));
    if (core.planning->planner == nullptr) {
      core.planning->calls_left = detail::calls_for(core, core.planning->parts.most_layers());
    }
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

/// Plan as much as one call may, also a part of a layer.
template <class Core>
void plan_next_slice(Core& core) {
  auto const start = now();
  auto& books = core.books;
  auto& plan = *core.planning;
  auto const layers = plan.parts.layers();
  auto const each = static_cast<std::size_t>(core.options.layers_per_plan_call);
  auto const end = each == 0 ? layers.size() : std::min(layers.size(), plan.done + each);
  auto work = core.options.work_per_plan_call;
  while (plan.planned.ok() && plan.done < end && work > 0) {
    auto const layer = layers[plan.done];
    plan.planned = plan_part_of_row(*plan.planner, books.window().history(), books.in_force(), books.where(), layer,
                                    detail::options_of_rows(core), work, core.next);
    if (!plan.planned.ok() || !plan.planner->is_finished()) { break; }
    plan.keep(core.next, {&layer, 1});
    core.next.copy_layer(books.in_force(), layer);
    core.next.drop_shares();
    ++plan.done;
  }
  plan.keep(core.next, {});
  plan.spent += now() - start;
}

/// Hear whether every rank has planned its layers, or cannot.
template <class Core>
[[nodiscard]] status ask_whether_planned(Core& core) {
  enum : std::uint64_t { working, ready };
  auto& plan = *core.planning;
  bool const is_done = !plan.planned.ok() || plan.done == plan.parts.layers().size();
  std::uint64_t const mine[] = {is_done ? ready : working};
  std::vector<std::uint64_t> all(static_cast<std::size_t>(core.books.where().num_ranks()));
  if (auto told = core.ranks.control().all_gather(mine, all, core.options.timeout); !told.ok()) { return told; }
  bool const are_done = std::all_of(all.begin(), all.end(), [](std::uint64_t word) { return word == ready; });
  plan.calls_left = are_done ? 0 : 1;
  return {};
}

/// Put the rows of all ranks together, in `next`.
template <class Core>
[[nodiscard]] status finish_layer_plan([[maybe_unused]] Core& core) {
  if constexpr (layerwise_policy<typename Core::policy_type>) {
    auto& books = core.books;
    auto& plan = *core.planning;
    auto planned = std::move(plan.planned);
    // One that did not come to the end of a layer would go on with it.
    if (planned.ok()) { core.idle_planner = std::move(plan.planner); }
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
