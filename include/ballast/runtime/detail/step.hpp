// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_DETAIL_STEP_HPP
#define BALLAST_RUNTIME_DETAIL_STEP_HPP

#include <ballast/detail/text.hpp>
#include <ballast/load/gate.hpp>
#include <ballast/runtime/detail/planning.hpp>
#include <ballast/runtime/observer.hpp>
#include <ballast/runtime/optional_parts.hpp>
#include <ballast/runtime/rebalancer_state.hpp>
#include <ballast/status.hpp>

#include <utility>

BALLAST_BEGIN_NAMESPACE
namespace detail {

template <class Core>
[[nodiscard]] bool asks_history_next(Core const& core) noexcept {
  if (!core.enabled || core.is_planning() || core.waves.any_left() || core.books.num_layers() == 0) { return false; }
  bool const plans = core.is_recording() && core.waited == core.options.interval;
  return plans || (core.options.share_interval > 0 && core.share_waited + 1 >= core.options.share_interval);
}
/// Where the next call reads the window, its counts set off for the host now.
template <class Core>
void prepare_if_due(Core& core) {
  if (detail::asks_history_next(core)) { prepare_history(core.recorder); }
}

/// What falls due while it has to wait is due in the first call after that. While a plan is being made its loads stay,
/// and the shares on the maps in force with them. In asynchronous mode nothing is committed beside a group, whose words
/// count the commits, nor until all ranks have told that they move no more: one that missed words is still at it.
template <class Core>
[[nodiscard]] bool share_refresh_due(Core& core) noexcept {
  if (core.options.share_interval == 0 || ++core.share_waited < core.options.share_interval) { return false; }
  if (core.is_planning() || core.waves.any_left()) { return false; }
  if (core.options.asynchronous && (core.is_moving() || core.some_moved)) { return false; }
  core.share_waited = 0;
  return true;
}

/// A group must not be on its way for ever.
template <class Core>
[[nodiscard]] status watch_deadline(Core& core) {
  auto const& mover = core.mover;
  if (!mover.is_late()) { return {}; }
  if (!mover.failure().ok()) { return core.fail(mover.failure()); }
  return core.fail({errc::deadline_exceeded,
                    concat("group ", core.books.committed() + 1, " is ", mover.arrived() ? "here" : "on its way",
                           " and was not decided in time: incoming() has brought no words that decide it")});
}

/// Count the pass; stop where something is known to be wrong.
template <class Core>
[[nodiscard]] status close_pass(Core& core, pass_info const& pass) {
  core.books.begin_step();
  core.recorder.end_pass(core.options.gate.admits(pass));
  core.mover.times().tell_known([&core](event const& what) { core.events.tell(what); });
  if (!core.is_recording() && !core.is_planning() && !core.is_moving()) { return core.failure; }
  if (auto result = std::exchange(core.recording, {}); !result.ok()) { return core.fail(std::move(result)); }
  if (core.books.num_layers() == 0) { return {}; }
  // What has been told as ready may be committed elsewhere: the words have to be heard first.
  if (auto trouble = core.mover.is_told() ? status{} : core.ranks.trouble(); !trouble.ok()) {
    return core.fail(std::move(trouble));
  }
  if (core.options.asynchronous && core.is_moving()) {
    core.mover.poll();
    return detail::watch_deadline(core);
  }
  return {};
}

/// In asynchronous mode words decide what a chunk waits for.
template <class Core>
[[nodiscard]] status move_if_due(Core& core) {
  return core.is_moving() && !core.options.asynchronous ? detail::move_step(core) : status{};
}

/// `rebalancer::on_forward_pass_end`, but for what it sets off for the next call.
template <class Core>
[[nodiscard]] status count_and_act(Core& core, pass_info const& pass) {
  if (auto result = core.refuse_unless_started("on_forward_pass_end"); !result.ok()) { return result; }
  if (auto result = detail::close_pass(core, pass); !result.ok()) { return result; }
  if (core.books.num_layers() == 0) { return {}; }
  if (!core.enabled) { return detail::move_if_due(core); }
  bool const plans_now = core.is_recording() && core.waited == core.options.interval;
  if (detail::share_refresh_due(core) && !plans_now) {
    if (auto result = detail::reduce_and_refresh_shares(core); !result.ok()) { return result; }
  }
  if (core.is_planning()) { return detail::plan_step(core); }
  if (core.is_moving()) { return detail::move_if_due(core); }
  if (core.options.checked_slots > 0) { core.books.replicas().sum_some(core.options.checked_slots); }
  if (!plans_now) {
    ++core.waited;
    return {};
  }
  // The call that ends a cycle is also the first of the next wait.
  core.waited = 1;
  return detail::begin_cycle(core);
}

/// `rebalancer::progress`.
template <class Core>
[[nodiscard]] status progress(Core& core) {
  if (core.options.asynchronous && core.is_moving()) { core.mover.poll(); }
  return {};
}

template <class Core>
[[nodiscard]] status end_pass(Core& core, pass_info const& pass) {
  auto result = detail::count_and_act(core, pass);
  detail::prepare_if_due(core);
  return result;
}

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
