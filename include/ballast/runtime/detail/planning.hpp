// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_DETAIL_PLANNING_HPP
#define BALLAST_RUNTIME_DETAIL_PLANNING_HPP

#include <ballast/control/control.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/digest.hpp>
#include <ballast/placement/balancedness.hpp>
#include <ballast/placement/detail/dead_ranks.hpp>
#include <ballast/placement/validate.hpp>
#include <ballast/policies/policy.hpp>
#include <ballast/policies/relabel.hpp>
#include <ballast/runtime/detail/layer_planning.hpp>
#include <ballast/runtime/detail/outcome.hpp>
#include <ballast/runtime/detail/plan_message.hpp>
#include <ballast/runtime/observer.hpp>
#include <ballast/runtime/rebalancer_state.hpp>
#include <ballast/shares/replica_shares.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

// A cycle up to its first byte: reduce the loads, refresh the shares, plan, agree.

template <class Core>
[[nodiscard]] status reduce_loads(Core& core) {
  auto& books = core.books;
  return books.window().reduce(core.recorder, core.ranks.control(), books.where(), core.options.timeout);
}

// ---- shares ----

/// Publish the shares that balance the loads best on the maps in force.
template <class Core>
[[nodiscard]] status refresh_shares(Core& core) {
  auto const start = now();
  auto& shares = core.shares;
  auto solved = shares.solve(core.books);
  auto agreed = core.agree_on("shares", shares.digest_of(solved));
  if (!agreed.ok()) { return core.fail(std::move(agreed)); }
  if (!solved.ok()) { return core.fail(std::move(solved)); }
  if (shares.layers().empty()) { return {}; }
  core.ranks.begin();
  auto vote = core.ranks.decide();
  if (vote.outcome == decision::drop) { return core.fail(std::move(vote.reason)); }
  if (vote.outcome == decision::undecided) {
    shares.note_undecided();
    return core.lose(std::move(vote.reason), shares.layers());
  }
  return core.conclude(shares.commit(shares.layers(), start, core.books, core.mover.times(), core.events));
}

/// The same, after reducing the loads of the window so far.
template <class Core>
[[nodiscard]] status reduce_and_refresh_shares(Core& core) {
  auto& books = core.books;
  if (auto result = core.refuse_expelled(); !result.ok()) { return core.fail(std::move(result)); }
  auto reduced = books.window().reduce_sum(core.recorder, core.ranks.control(), books.where(), core.options.timeout);
  if (!reduced.ok()) { return core.fail(std::move(reduced)); }
  books.measure();
  return detail::refresh_shares(core);
}

// ---- the plan ----

/// `next` as the policy planned it, with ranks and slots named so that the least has to move. Layers without a token
/// stay as they are.
/// @param made  how the policy ended that has planned all at once, if it has
template <class Core>
[[nodiscard]] status complete_plan(Core& core, std::optional<status> const& made = {}) {
  auto& books = core.books;
  auto const& in_force = books.in_force();
  bool const splits_anew = core.options.share_interval > 0;
  bool named = core.planning != nullptr;  // layer by layer
  auto planned = named ? detail::finish_layer_plan(core) : made.value_or(status{});
  // Rank 0's plan is the remedy for ranks that differ, and rank 0 has to have all of it.
  bool const remedied = planned.code() == errc::disagreement && core.options.adopt_first_plan && core.failure.ok();
  if ((!named && !made) || remedied) {
    named = false;
    planned = ask_policy(core.policy, books.window().history(), in_force, books.where(), core.next);
  }
  if (planned.ok() && splits_anew) { core.next.drop_shares(); }
  if (planned.ok()) { planned = validate_plan(in_force, books.where(), core.next); }
  if (planned.ok() && !named) { relabel(in_force, books.where(), core.next, detail::naming(core)); }
  if (planned.ok() && splits_anew) { planned = core.shares.solve_for(core.next, books); }
  if (planned.ok() && plans_from_loads(core.policy)) { keep_idle_layers(books.loads(), in_force, core.next); }
  for (index_t layer = 0; layer < in_force.num_layers() && planned.ok(); ++layer) {
    if (core.waves.leaves_out(layer)) { core.next.copy_layer(in_force, layer); }
  }
  return planned;
}

/// Let the policy plan all of `next` now.
template <class Core>
[[nodiscard]] status plan_next(Core& core) {
  if (auto begun = detail::begin_layer_plan(core, false); !begun.ok()) { return begun; }
  while (core.planning != nullptr && core.planning->calls_left > 0) { detail::plan_next_layers(core); }
  return detail::complete_plan(core);
}

template <class Core>
[[nodiscard]] status agree_on_plan(Core& core, status const& planned) {
  digest plan;
  if (planned.ok()) {
    core.next.describe(plan);
    core.mover.cycle().describe(plan);
  } else {
    plan.add(std::string_view{"no plan"}).add(planned.code().value());
  }
  return core.agree_on("plan", plan.value());
}

/// Take the first live rank's plan over: the remedy for ranks that planned differently.
template <class Core>
[[nodiscard]] status adopt_first_plan(Core& core, status const& planned) {
  auto const& in_force = core.books.in_force();
  auto const first = live_ranks(core.books.where()).front();
  plan_message message{in_force.shape()};
  if (core.rank() == first && planned.ok()) { message.write(core.next); }
  if (auto result = core.ranks.control().broadcast(message.bytes(), first, core.options.timeout); !result.ok()) {
    return result;
  }
  if (!message.has_plan()) {
    return {errc::disagreement, concat("plans differ and rank ", first, " has none to adopt"), first};
  }
  if (core.rank() == first) { return planned; }
  if (auto result = message.read(core.next); !result.ok()) { return result; }
  if (auto result = validate_plan(in_force, core.books.where(), core.next); !result.ok()) { return result; }
  return core.mover.plan();
}

/// From `next` (or the failure to plan it) to chunks that every rank has agreed on.
template <class Core>
[[nodiscard]] status prepare_moves(Core& core, status planned = {}, nanoseconds_t start = now()) {
  if (!core.failure.ok()) { return planned; }  // the ranks did not meet to plan: waiting once is enough
  if (planned.ok()) { planned = core.refuse_expelled(); }
  if (planned.ok()) { planned = core.refuse_other_weights(); }
  if (planned.ok()) {
    split_among_live(core.books.where(), core.next);
    planned = core.mover.plan();
  }
  auto agreed = detail::agree_on_plan(core, planned);
  if (agreed.code() == errc::disagreement && core.options.adopt_first_plan) {
    planned = detail::adopt_first_plan(core, planned);
    agreed = detail::agree_on_plan(core, planned);
  }
  // Ranks whose policies failed alike agree, and the policy's own words say more.
  if (!planned.ok() && (agreed.ok() || agreed.code() == errc::disagreement)) { return core.fail(std::move(planned)); }
  if (!agreed.ok()) { return core.fail(std::move(agreed)); }
  auto const& cycle = core.mover.cycle();
  std::vector<index_t> layers;
  for (auto const& transfer : cycle.transfers()) { layers.push_back(transfer.layer); }
  core.notify({.kind = event_kind::plan,
               .layers = layers,
               .moves = cycle.num_moves(),
               .bytes = cycle.num_bytes(),
               .balancedness = balancedness(core.books.where(), core.next, core.books.loads()),
               .duration = now() - start});
  return {};
}

// ---- the cycle ----

/// Nothing is left to move of what is planned: plan the next layers in the next call, or end the cycle.
template <class Core>
void end_moves(Core& core) {
  if (!core.waves.any_left()) {
    core.end_cycle();
    return;
  }
  core.mover.clear();
  core.state = rebalancer_state::planning;
  if constexpr (layerwise_policy<typename Core::policy_type>) {
    detail::open_next_wave(core, detail::make_layer_planner(core));
  }
}

/// Move the next chunk, or its next part; after the last one come the next layers, or the cycle is over.
template <class Core>
[[nodiscard]] status move_step(Core& core) {
  if (auto ended = core.mover.move_step(); !ended.ok()) { return core.conclude(ended); }
  if (core.mover.at_end()) { detail::end_moves(core); }
  return {};
}

/// Send the next group off, if there is one.
template <class Core>
[[nodiscard]] status send_next(Core& core) {
  if (!core.mover.send_next()) { detail::end_moves(core); }
  return {};
}

/// The plan is made, or cannot be: agree on it; move the only chunk at once, or send the first group off.
/// @param start  when the planning began, calls that were spent otherwise left out
template <class Core>
[[nodiscard]] status take_plan_up(Core& core, status planned, nanoseconds_t start) {
  if (core.is_planning()) { core.state = rebalancer_state::recording; }
  if (auto result = detail::prepare_moves(core, std::move(planned), start); !result.ok()) { return result; }
  auto const steps = core.mover.cycle().num_steps();
  if (steps == 0) {
    if (core.waves.any_left()) { detail::end_moves(core); }
    return {};
  }
  if (core.options.asynchronous) {
    core.state = rebalancer_state::moving;
    return detail::send_next(core);
  }
  if (steps > 1) {
    core.state = rebalancer_state::moving;
    return {};
  }
  return detail::move_step(core);
}

/// Have the plan made on the engine's executor.
template <class Core>
[[nodiscard]] status send_plan_off(Core& core, nanoseconds_t start) {
  using task = plan_task<typename Core::policy_type>;
  auto& books = core.books;
  bool const by_layer = core.planning != nullptr;
  auto const layers = by_layer ? core.planning->parts.layers() : std::span<index_t const>{};
  core.elsewhere = {std::make_shared<task>(core.policy, books.window().history(), books.in_force(), books.where(),
                                           layers, by_layer, detail::options_of_rows(core)),
                    start};
  core.state = rebalancer_state::planning;
  task::send(core.elsewhere.plan, core.options.executor);
  return {};
}

/// Whether the plan is made, on every rank. One that waits too long for its executor ends the plan on all of them.
template <class Core>
[[nodiscard]] status ask_whether_made(Core& core, bool& made) {
  enum : std::uint64_t { working, ready, late };  // `late` and the rank, for words may stand in for a dead rank's
  bool const is_late = now() - core.elsewhere.since > core.options.timeout;
  auto const too_late = late + static_cast<std::uint64_t>(core.rank());
  std::uint64_t const mine[] = {core.elsewhere.plan->is_done() ? ready : is_late ? too_late : working};
  std::vector<std::uint64_t> all(static_cast<std::size_t>(core.books.where().num_ranks()));
  if (auto told = core.ranks.control().all_gather(mine, all, core.options.timeout); !told.ok()) { return told; }
  made = std::all_of(all.begin(), all.end(), [](std::uint64_t word) { return word == ready; });
  auto const found = std::find_if(all.begin(), all.end(), [](std::uint64_t word) { return word >= late; });
  if (found == all.end()) { return {}; }
  auto const rank = static_cast<index_t>(*found - late);
  return {errc::deadline_exceeded, concat("plan: the executor of rank ", rank, " has made no plan in time"), rank};
}

/// Take the plan over from the executors once all have made theirs.
template <class Core>
[[nodiscard]] status take_plan_back(Core& core) {
  bool made = false;
  if (auto result = detail::ask_whether_made(core, made); !result.ok()) { return core.fail(std::move(result)); }
  if (!made) { return {}; }
  auto const [plan, start] = std::exchange(core.elsewhere, {});
  core.next = std::move(plan->next());
  if (core.planning == nullptr) {
    return detail::take_plan_up(core, detail::complete_plan(core, plan->planned()), start);
  }
  auto& parts = *core.planning;
  if (parts.planned.ok()) { parts.planned = plan->planned(); }
  parts.keep(core.next, parts.parts.layers());
  return detail::take_plan_up(core, detail::complete_plan(core), start);
}

/// Plan what one call may plan, and go on once that was all.
template <class Core>
[[nodiscard]] status plan_step(Core& core) {
  if (auto result = core.refuse_expelled(); !result.ok()) { return core.fail(std::move(result)); }
  if (core.elsewhere.plan != nullptr) { return detail::take_plan_back(core); }
  auto const start = now() - core.planning->spent;
  if (core.planning->planner == nullptr) {
    detail::plan_next_layers(core);
  } else {
    detail::plan_next_slice(core);
    if (auto told = detail::ask_whether_planned(core); !told.ok()) { return core.fail(std::move(told)); }
  }
  if (core.planning->calls_left > 0) {
    core.state = rebalancer_state::planning;
    return {};
  }
  return detail::take_plan_up(core, detail::complete_plan(core), start);
}

template <class Core>
[[nodiscard]] status begin_plan(Core& core) {
  auto const start = now();
  auto begun = detail::begin_layer_plan(core, true);
  if (begun.ok() && core.options.executor.run != nullptr) { return detail::send_plan_off(core, start); }
  if (begun.ok() && core.planning != nullptr) {
    core.planning->spent = now() - start;
    return detail::plan_step(core);
  }
  return detail::take_plan_up(core, begun.ok() ? detail::complete_plan(core) : std::move(begun), start);
}

/// Reduce, and plan or begin to.
template <class Core>
[[nodiscard]] status begin_cycle(Core& core) {
  using recorder = typename Core::recorder_type;
  auto const start = now();
  auto& books = core.books;
  auto const& options = core.options;
  if (auto result = core.refuse_expelled(); !result.ok()) { return core.fail(std::move(result)); }
  if (options.checked_slots > 0) {
    if (auto result = books.replicas().compare(core.ranks.control(), options.timeout); !result.ok()) {
      return core.fail(std::move(result));
    }
  }
  if (auto result = detail::reduce_loads(core); !result.ok()) { return core.fail(std::move(result)); }
  if constexpr (recorder::clears_on_dump) { core.recorder.clear(); }
  books.measure();
  core.notify({.kind = event_kind::dump, .balancedness = books.balancedness(), .duration = now() - start});
  core.batches.tell_new(*core.store, [&core](event const& what) { core.notify(what); });
  // Without a token there is nothing to plan on: after a warm-up, or where nobody asks anything.
  if (plans_from_loads(core.policy) && books.window().is_empty()) {
    core.notify({.kind = event_kind::skip, .balancedness = books.balancedness()});
    return {};
  }
  // Re-split first, it is free; move only what a re-split cannot mend.
  if (options.share_interval > 0) {
    if (auto result = detail::refresh_shares(core); !result.ok()) { return result; }
  }
  if (options.utilization_threshold < 1 && books.balancedness() > options.utilization_threshold) {
    core.notify({.kind = event_kind::skip, .balancedness = books.balancedness()});
    return {};
  }
  return detail::begin_plan(core);
}

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
