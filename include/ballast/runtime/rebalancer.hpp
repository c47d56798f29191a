// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_REBALANCER_HPP
#define BALLAST_RUNTIME_REBALANCER_HPP

#include <ballast/contract.hpp>
#include <ballast/control/control.hpp>
#include <ballast/detail/index.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/load/recorder.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/policies/policy.hpp>
#include <ballast/runtime/detail/core.hpp>
#include <ballast/runtime/detail/guard.hpp>
#include <ballast/runtime/detail/operator_calls.hpp>
#include <ballast/runtime/detail/optional_members.hpp>
#include <ballast/runtime/detail/recovery.hpp>
#include <ballast/runtime/detail/start_up.hpp>
#include <ballast/runtime/detail/step.hpp>
#include <ballast/runtime/detail/word_exchange.hpp>
#include <ballast/runtime/host_store.hpp>
#include <ballast/runtime/rebalancer_options.hpp>
#include <ballast/runtime/rebalancer_state.hpp>
#include <ballast/runtime/rebalancing.hpp>
#include <ballast/runtime/store.hpp>
#include <ballast/schedule/chunk_schedule.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/transport/transport.hpp>
#include <ballast/types.hpp>

#include <concepts>
#include <cstdint>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>

BALLAST_BEGIN_NAMESPACE

/// Keeps the ranks of an expert-parallel group evenly loaded while they serve.
///
/// A plain state machine, driven by one call of `on_forward_pass_end` per global step on every rank. It counts passes,
/// reduces the loads over the ranks, lets the policy plan, and moves the changed layers chunk by chunk. Before the
/// first byte moves the ranks compare what they are about to do; before layers are committed they agree that all of
/// them have received them. A failure before that leaves these layers as they were.
///
/// Several rebalancers (of a target and a draft model, or of one model's layers in two halves) may share transport and
/// control plane. Every rank then calls them in the same order. They take turns on the transport, and when one of them
/// fails on some rank, all of them fail on every rank that hears of it: resume them all, in the same order.
///
/// Constructing may throw; nothing else does. Movable, between any two calls. What was moved from can be destroyed and
/// assigned to; calls that the ranks make together refuse it, nothing else may be called.
///
/// @tparam Recorder   a `load_recorder`
/// @tparam Policy     a `placement_policy`
/// @tparam Schedule   a `chunk_schedule`
/// @tparam Transport  a `data_transport`
/// @tparam Store      an `expert_store`
/// @tparam Control    a `control_plane`; by default the transport is one too
///
/// @threads  all members are called from one thread, the same for all that share transport or control plane. Nothing
///           runs behind the engine's back. From inside the observer only the members that tell something may be
///           called, `enable` and `disable` (which wait until the running call ends); the others answer `errc::busy`.
/// @lifetime transport, control plane, store and observer belong to the engine and outlive the rebalancer. A store
///           belongs to one rebalancer at a time.
template <class Recorder, class Policy, class Schedule, class Transport, class Store, class Control>
class rebalancer {
  static_assert(load_recorder<Recorder>, "rebalancer: Recorder must be a load_recorder");
  static_assert(placement_policy<Policy>, "rebalancer: Policy must be a placement_policy");
  static_assert(chunk_schedule<Schedule>, "rebalancer: Schedule must be a chunk_schedule");
  static_assert(data_transport<Transport>, "rebalancer: Transport must be a data_transport");
  static_assert(expert_store<Store>, "rebalancer: Store must be an expert_store");
  static_assert(control_plane<Control>, "rebalancer: Control must be a control_plane");
  static_assert(detail::optional_members_fit<Recorder, Policy, Schedule, Transport, Store, Control>);

public:
  /// @param where    ranks, nodes, slots.
  /// @param initial  [L, P] the placement that the weights were loaded with, the same on every rank. L may be 0: such a
  ///                 rebalancer does nothing, and costs nothing.
  /// @throws std::system_error (`errc::invalid_option`, `errc::invalid_topology`, `errc::invalid_load`,
  ///         `errc::invalid_placement`) naming the value that does not fit
  rebalancer(topology where, placement initial, rebalancing<Recorder, Policy, Schedule> parts, Store& store,
             Transport& transport, Control& control)
      : core_{
            std::make_unique<core>(std::move(where), std::move(initial), std::move(parts), store, transport, control)} {
    detail::check_parts(*core_).or_throw();
  }
  /// The same where one object is transport and control plane.
  rebalancer(topology where, placement initial, rebalancing<Recorder, Policy, Schedule> parts, Store& store,
             Transport& both)
    requires std::same_as<Transport, Control>
      : rebalancer{std::move(where), std::move(initial), std::move(parts), store, both, both} {}

  // ---- life cycle, called by all ranks together ----

  /// Check that all ranks are configured alike, and let one-sided transports learn each other's memory. Call once, on
  /// every rank, before the first pass; after a failure again, on every rank.
  ///
  /// @param timeout  nanoseconds to wait for the others, which may still load weights; by default that of the options.
  /// @return `errc::disagreement` naming the rank, the option and both values; `errc::invalid_weights`,
  ///         `errc::invalid_topology` or `errc::out_of_memory` for a store that does not fit; `errc::corrupted` when
  ///         replicas of an expert hold different bytes.
  [[nodiscard]] status start(nanoseconds_t timeout) {
    return call("start", [this, &timeout] { return detail::start(*core_, timeout); });
  }
  /// As above, with the timeout of the options.
  [[nodiscard]] status start() {
    return call("start", [this] { return detail::start(*core_, core_->options.timeout); });
  }

  /// Bring the group back after a failure: the ranks number their calls, votes, groups and tags anew, in agreement, and
  /// start to count passes. A cycle that runs is dropped, as by `disable`. A collective: call it on every live rank
  /// before the same step, whatever its state; one call on all of them is enough.
  ///
  /// @return why the ranks could not meet; then all call it again. `errc::disagreement` when they hold other
  ///         placements. In the state `cohort_lost` the failure again: that state ends with `settle` only.
  [[nodiscard]] status resume() {
    return call("resume", [this] { return detail::resume(*core_); });
  }

  /// Layers of whose commit this rank does not know the outcome (`cohort_lost`), ascending: what `settle` can mend.
  [[nodiscard]] std::span<index_t const> undecided_layers() const noexcept { return own().undecided; }
  /// End `cohort_lost` with what the engine has learnt from the others: `commit` when a live rank is at a later epoch
  /// of the undecided layers, `drop` when none is. Concerns this rank alone; then a `resume` on every rank is due.
  ///
  /// @return success when the state is `failed` now; `errc::invalid_option` when there is nothing to settle.
  [[nodiscard]] status settle(decision outcome) {
    return call("settle", [this, &outcome] { return detail::settle(*core_, outcome); });
  }

  /// Stop planning. In mid-cycle the chunks that are still to come are dropped: layers already moved stay moved, the
  /// others stay where they are, each consistent. Call on every rank before the same step. In asynchronous mode,
  /// between `outgoing` and `incoming`, a group that has arrived is kept until the words tell whether all have
  /// committed it.
  void disable() { detail::disable(own()); }
  /// Plan again; the count of passes restarts. Call on every rank before the same step.
  void enable() noexcept { detail::enable(own()); }
  [[nodiscard]] bool enabled() const noexcept { return own().enabled; }

  // ---- recording, per layer of the running pass ----

  /// Count router choices, logical ids; see `pass_counter::record_top_k`. `on_forward_pass_end` tells what is refused.
  template <class Ids>
  void record_top_k(index_t layer, Ids const& logical_ids) {
    if constexpr (std::is_void_v<decltype(recorder().record_top_k(layer, logical_ids))>) {
      recorder().record_top_k(layer, logical_ids);
    } else if (auto result = recorder().record_top_k(layer, logical_ids); !result.ok() && own().recording.ok()) {
      own().recording = std::move(result);
    }
  }
  /// Count tokens per logical expert, `[E]`.
  template <class Counts>
  [[nodiscard]] status record_logical(index_t layer, Counts const& counts) {
    return recorder().record_logical(layer, counts);
  }
  /// Count tokens per physical expert, `[R (S + F)]`, under the map in force.
  template <class Counts>
  [[nodiscard]] status record_physical(index_t layer, Counts const& counts) {
    return record_physical(layer, counts, step() + 1);
  }
  /// The same for counts that come late: under the map that was in force in pass `pass`, which call `pass` of
  /// `on_forward_pass_end` closes. They are added to the pass in progress.
  ///
  /// @param pass  in [1, step() + 1].
  /// @return `errc::invalid_load` for a pass out of range, or one too long ago: the layer's last four maps are kept.
  template <class Counts>
  [[nodiscard]] status record_physical(index_t layer, Counts const& counts, std::uint64_t pass) {
    return under_map(layer, pass, [this, &layer, &counts](std::span<index_t const> map) {
      return own().recorder.record_physical(layer, counts, map, where());
    });
  }
  /// Count tokens that arrived at this rank's slots, `[S]` or `[S + F]`, under the map in force.
  template <class Counts>
  [[nodiscard]] status record_local(index_t layer, Counts const& counts) {
    return record_local(layer, counts, step() + 1);
  }
  /// The same for counts that come late; see `record_physical`.
  template <class Counts>
  [[nodiscard]] status record_local(index_t layer, Counts const& counts, std::uint64_t pass) {
    return under_map(layer, pass, [this, &layer, &counts](std::span<index_t const> map) {
      return own().recorder.record_local(layer, counts, rank(), map, where());
    });
  }
  /// Count tokens that arrived at this rank's slots, from running sums over them, under the map in force.
  template <class Sums>
  [[nodiscard]] status record_local_prefix_sums(index_t layer, Sums const& sums) {
    return record_local_prefix_sums(layer, sums, step() + 1);
  }
  /// The same for sums that come late; see `record_physical`.
  template <class Sums>
  [[nodiscard]] status record_local_prefix_sums(index_t layer, Sums const& sums, std::uint64_t pass) {
    return under_map(layer, pass, [this, &layer, &sums](std::span<index_t const> map) {
      return own().recorder.record_local_prefix_sums(layer, sums, rank(), map, where());
    });
  }

  // ---- the step ----

  /// Close a forward pass: count it, and plan or move when it is time to.
  ///
  /// Call once per global step on every rank, idle and dummy passes included (`counted = false`), never while
  /// capturing. With calls numbered from 1, loads are reduced and planned on call N + 1, where `layers_per_plan_call`
  /// or `work_per_plan_call` does not spread the plan over more. One chunk moves on the (last) same call; C > 1 chunks
  /// on the C calls that follow. The next plan comes N calls later. The first call that finds the device done with a
  /// chunk tells its times.
  ///
  /// A rank that is dead or has given up makes this call fail on the others as soon as the control plane knows of it.
  ///
  /// @return success, or why the cycle failed; the same failure again on every call until `resume`.
  /// @complexity while recording O(L E) and no allocation.
  [[nodiscard]] status on_forward_pass_end(pass_info const& pass = {}) {
    return call("on_forward_pass_end", [this, &pass] { return detail::end_pass(*core_, pass); });
  }

  /// Look after bytes that travel in asynchronous mode, without waiting: any rank may, between the calls that all make.
  /// Those of host transports move in calls only. What goes wrong is told by `on_forward_pass_end`.
  [[nodiscard]] status progress() {
    return call("progress", [this] { return detail::progress(*core_); });
  }

  // ---- the words of the engine's exchange ----

  /// The word that this rank tells the others with the engine's next exchange, once per step. Asynchronous moves need
  /// it; in synchronous mode it lets every rank learn, in the same step, that a `resume` is due.
  [[nodiscard]] std::uint64_t outgoing() noexcept { return detail::tell_word(own()); }

  /// Take the words of all ranks in, before the next pass is launched: layers that every rank has received are
  /// committed, and the next bytes set off. After a missed exchange the next one tells what the others have committed.
  ///
  /// @param words  [R] what each rank's `outgoing` gave for this exchange, the same on every rank.
  /// @return success, or why the cycle failed. `errc::invalid_option` for words that are not of this exchange; nothing
  ///         has changed then, as if the exchange had been missed.
  [[nodiscard]] status incoming(std::span<std::uint64_t const> words) {
    return call("incoming", [this, &words] { return detail::hear_words(*core_, words); });
  }

  /// Put another placement in force at once, such as an offline plan. Call on every rank between two steps.
  ///
  /// @param target  [L, P], the same on every rank. Dead ranks keep what they hold, and no share.
  /// @param layers  ascending layer ids; the others stay as they are.
  /// @return `errc::busy` while a cycle runs, `errc::invalid_placement` for a target that is none of this shape,
  ///         `errc::missing_expert` for one with an expert on no live rank, otherwise as a cycle.
  [[nodiscard]] status apply(placement const& target, std::span<index_t const> layers) {
    return call("apply", [this, &target, &layers] { return detail::apply(*core_, target, layers); });
  }
  /// As above, for all layers.
  [[nodiscard]] status apply(placement const& target) {
    return apply(target, detail::numbers_below(current().num_layers()));
  }
  /// The same over the steps that follow, also while disabled: for engines that plan by themselves. In asynchronous
  /// mode bytes set off now, else each `on_forward_pass_end` moves a chunk. `disable` drops what is not committed.
  [[nodiscard]] status begin_apply(placement const& target, std::span<index_t const> layers) {
    return call("begin_apply", [this, &target, &layers] { return detail::begin_apply(*core_, target, layers); });
  }

  /// Work out what a rebalance on the loads so far would bring, and do nothing. Call on every rank between two steps.
  /// @param out  out: gain, moves and bytes.
  /// @return `errc::busy` while a cycle runs, `errc::invalid_topology` while a `set_topology` is due, otherwise the
  ///         failure of reduction or policy. When the ranks could not reduce the loads the state is `failed`.
  [[nodiscard]] status predict(prediction& out) {
    return call("predict", [this, &out] { return detail::predict(*core_, out); });
  }

  /// Compare the bytes of all replicas of every expert, on demand. Call on every rank between two steps.
  /// @return `errc::busy` while a cycle runs, `errc::corrupted` naming layer, expert, slots and ranks, the same on
  ///         every rank, the state stays as it is then; `errc::invalid_topology` before a `set_topology` that is due.
  /// @complexity reads every slot that has a replica, and one all-gather of L * S words.
  [[nodiscard]] status check_replicas() {
    return call("check_replicas", [this] { return detail::check_all_replicas(*core_); });
  }

  /// Go on with another set of live ranks and the placement that belongs to it. Call it on every live rank, after
  /// `resume`; lost experts (see `replace_lost_experts`) are loaded behind it.
  /// @param where     of the same shape; the ranks that are dead are marked in it.
  /// @param in_force  [L, P] what the slots hold in the next pass, the same on every rank; shares on dead ranks go to
  ///                  the others. All layers are published and counted as one commit; no bytes move.
  /// @return `errc::busy` in mid-cycle, `errc::invalid_topology`, `errc::invalid_placement`, `errc::missing_expert`,
  ///         `errc::disagreement`.
  [[nodiscard]] status set_topology(topology const& where, placement const& in_force) {
    return call("set_topology", [this, &where, &in_force] { return detail::set_topology(*core_, where, in_force); });
  }

  // ---- what is so ----

  [[nodiscard]] index_t rank() const noexcept { return own().rank(); }
  /// The recorder: what it has dropped or could not count, its gate, its window.
  [[nodiscard]] Recorder& recorder() noexcept { return own().recorder; }
  [[nodiscard]] Recorder const& recorder() const noexcept { return own().recorder; }
  [[nodiscard]] rebalancer_state state() const noexcept { return own().state; }
  /// Why the state is `failed` or `cohort_lost`; success otherwise.
  [[nodiscard]] status const& failure() const noexcept { return own().failure; }
  /// Calls of `on_forward_pass_end` so far; after a `resume`, the most of any rank.
  [[nodiscard]] std::uint64_t step() const noexcept { return own().books.step(); }
  /// The placement in force; in mid-cycle, layers already moved are new and the others old.
  [[nodiscard]] placement const& current() const noexcept { return own().books.in_force(); }
  /// Commits of one layer so far.
  [[nodiscard]] epoch_t epoch(index_t layer) const { return own().books.epoch(layer); }
  [[nodiscard]] topology const& where() const noexcept { return own().books.where(); }
  [[nodiscard]] rebalancer_options const& options() const noexcept { return own().options; }
  /// Exceptions that left the observer.
  [[nodiscard]] std::uint64_t observer_exceptions() const noexcept { return own().events.exceptions(); }

private:
  using core = detail::rebalancer_core<Recorder, Policy, Schedule, Transport, Store, Control>;

  [[nodiscard]] core& own() const {
    BALLAST_EXPECTS(core_ != nullptr, "rebalancer: it was moved from");
    return *core_;
  }
  template <class Call>
  [[nodiscard]] status call(char const* name, Call what) {
    if (core_ == nullptr) { return {errc::invalid_option, detail::concat(name, ": the rebalancer was moved from")}; }
    return detail::from_outside(*core_, name, std::move(what));
  }
  template <class Record>
  [[nodiscard]] status under_map(index_t layer, std::uint64_t pass, Record record) const {
    std::span<index_t const> map;
    if (auto result = own().books.map_of(layer, pass, map); !result.ok()) { return result; }
    return record(map);
  }

  std::unique_ptr<core> core_;
};

/// A rebalancer of these parts, its type deduced; see `rebalancer`.
template <class Recorder, class Policy, class Schedule, class Store, class Transport, class Control>
[[nodiscard]] auto make_rebalancer(topology where, placement initial, rebalancing<Recorder, Policy, Schedule> parts,
                                   Store& store, Transport& transport, Control& control) {
  return rebalancer<Recorder, Policy, Schedule, Transport, Store, Control>{
      std::move(where), std::move(initial), std::move(parts), store, transport, control};
}
/// The same where one object is transport and control plane, or holds both as `wires()` and `control()`.
template <class Recorder, class Policy, class Schedule, class Store, class Cohort>
[[nodiscard]] auto make_rebalancer(topology where, placement initial, rebalancing<Recorder, Policy, Schedule> parts,
                                   Store& store, Cohort& ranks) {
  if constexpr (requires { ranks.wires(), ranks.control(); }) {
    return ballast::make_rebalancer(std::move(where), std::move(initial), std::move(parts), store, ranks.wires(),
                                    ranks.control());
  } else {
    static_assert(!(
                      requires { &Cohort::wires; } || requires { &Cohort::control; }),
                  "make_rebalancer: Cohort has a member wires or control, but not both: Transport& wires(), Control& "
                  "control()");
    return ballast::make_rebalancer(std::move(where), std::move(initial), std::move(parts), store, ranks, ranks);
  }
}

BALLAST_END_NAMESPACE

#endif
