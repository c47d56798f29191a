// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_REBALANCER_HPP
#define BALLAST_RUNTIME_REBALANCER_HPP

#include <ballast/contract.hpp>
#include <ballast/control/control.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/digest.hpp>
#include <ballast/load/map_history.hpp>
#include <ballast/load/recorder.hpp>
#include <ballast/migration/transfer_plan.hpp>
#include <ballast/parts.hpp>
#include <ballast/placement/balancedness.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/placement/validate.hpp>
#include <ballast/policies/policy.hpp>
#include <ballast/runtime/detail/cycle_plan.hpp>
#include <ballast/runtime/detail/device_times.hpp>
#include <ballast/runtime/detail/fit.hpp>
#include <ballast/runtime/detail/layer_mover.hpp>
#include <ballast/runtime/detail/load_window.hpp>
#include <ballast/runtime/detail/plan_message.hpp>
#include <ballast/runtime/detail/replica_check.hpp>
#include <ballast/runtime/detail/set_up.hpp>
#include <ballast/runtime/detail/transport_share.hpp>
#include <ballast/runtime/detail/words.hpp>
#include <ballast/runtime/host_store.hpp>
#include <ballast/runtime/observer.hpp>
#include <ballast/runtime/optional_parts.hpp>
#include <ballast/runtime/rebalancer_options.hpp>
#include <ballast/runtime/store.hpp>
#include <ballast/schedule/chunk_schedule.hpp>
#include <ballast/shares/replica_shares.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/transport/transport.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <iterator>
#include <limits>
#include <new>
#include <numeric>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE

/// What a rebalancer does with the next call.
enum class rebalancer_state {
  recording,    ///< counts passes until the interval is over, then reduces the loads and plans
  moving,       ///< moves and commits one chunk a call
  failed,       ///< the last cycle ended early; every layer is at its last agreed epoch and serving may go on. A
                ///< `resume` on every rank is due
  cohort_lost,  ///< this rank cannot know what the others committed: it must not serve before `settle`. Where its store
                ///< failed in a commit, `undecided_layers()` is empty and nothing settles it: a layer may be torn
};

/// What a rebalance would bring.
struct prediction {
  double balancedness_now = 1;
  double balancedness_then = 1;
  std::int64_t moves = 0;
  std::int64_t bytes = 0;
  index_t layers = 0;  ///< layers that would change
  index_t steps = 0;   ///< calls that the schedule would spread them over
};

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
/// Constructing may throw; nothing else does.
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
template <load_recorder Recorder, placement_policy Policy, chunk_schedule Schedule, data_transport Transport,
          expert_store Store = host_store, control_plane Control = Transport>
class rebalancer {
public:
  /// @param where    ranks, nodes, slots.
  /// @param initial  [L, P] the placement that the weights were loaded with, the same on every rank. L may be 0: such a
  ///                 rebalancer does nothing, and costs nothing.
  /// @throws std::system_error (`errc::invalid_option`, `errc::invalid_topology`, `errc::invalid_load`,
  ///         `errc::invalid_placement`) naming the value that does not fit
  rebalancer(topology where, placement initial, Recorder recorder, Policy policy, Schedule schedule,
             Transport& transport, Store& store, Control& control, rebalancer_options options = {},
             observer* watcher = nullptr)
      : where_{std::move(where)},
        current_{std::move(initial)},
        recorder_{std::move(recorder)},
        policy_{std::move(policy)},
        schedule_{std::move(schedule)},
        transport_{&transport},
        store_{&store},
        control_{&control},
        options_{options},
        observer_{watcher} {
    validate().or_throw();
    epochs_.assign(static_cast<std::size_t>(current_.num_layers()), 0);
    next_ = current_;
  }
  rebalancer(rebalancer const&) = delete;
  rebalancer& operator=(rebalancer const&) = delete;
  /// Takes back what an asynchronous move still has under way; peers see that move fail.
  ~rebalancer() {
    mover_.abandon();
    share_.give_back();
    if (started_) { detail::disconnect(*store_, *transport_); }
  }

  // ---- life cycle, called by all ranks together ----

  /// Check that all ranks are configured alike, and let one-sided transports learn each other's memory.
  ///
  /// Call once, on every rank, before the first pass; after a failure again, on every rank.
  ///
  /// @param timeout  nanoseconds to wait for the others, which may still load weights; by default that of the options.
  /// @return `errc::disagreement` naming the rank, the option and both values; `errc::invalid_weights`,
  ///         `errc::invalid_topology` or `errc::out_of_memory` for a store that does not fit; `errc::corrupted` when
  ///         replicas of an expert hold different bytes.
  [[nodiscard]] status start(nanoseconds_t timeout) {
    return from_outside("start", [&] { return set_out(timeout); });
  }
  /// As above, with the timeout of the options.
  [[nodiscard]] status start() { return start(options_.timeout); }

  /// Bring the group back after a failure: the ranks number their calls, votes, groups and tags anew, in agreement, and
  /// start to count passes. A cycle that runs is dropped, as by `disable`. A collective: call it on every live rank
  /// before the same step, whatever its state; one call on all of them is enough.
  ///
  /// @return why the ranks could not meet; then all call it again. `errc::disagreement` when they hold other
  ///         placements. In the state `cohort_lost` the failure again: that state ends with `settle` only.
  [[nodiscard]] status resume() {
    return from_outside("resume", [&] { return regroup(); });
  }

  /// Layers whose commit this rank does not know the outcome of, in the state `cohort_lost`; ascending. Empty if there
  /// is nothing that `settle` could mend.
  [[nodiscard]] std::span<index_t const> undecided_layers() const noexcept { return undecided_; }
  /// End `cohort_lost` with what the engine has learnt from the others: `commit` when a live rank is at a later epoch
  /// of the undecided layers, `drop` when none is. Concerns this rank alone; a `resume` on every rank is due
  /// afterwards.
  ///
  /// @return success when the state is `failed` now; `errc::invalid_option` when there is nothing to settle.
  [[nodiscard]] status settle(decision outcome) {
    return from_outside("settle", [&] { return settle_as(outcome); });
  }

  /// Stop planning. In mid-cycle the chunks that are still to come are dropped: layers already moved stay moved, the
  /// others stay where they are, each consistent. Call on every rank before the same step.
  ///
  /// In asynchronous mode, between `outgoing` and `incoming`, a group that has arrived is kept until the words tell
  /// whether all have committed it.
  void disable() {
    if (inside_event_) {
      deferred_ = deferred_switch::disable;
      return;
    }
    enabled_ = false;
    if (state_ == rebalancer_state::moving) { stop_moving(); }
  }
  /// Plan again; the count of passes restarts. Call on every rank before the same step.
  void enable() noexcept {
    if (inside_event_) {
      deferred_ = deferred_switch::enable;
      return;
    }
    enabled_ = true;
    waited_ = 0;
    share_waited_ = 0;
  }
  [[nodiscard]] bool enabled() const noexcept { return enabled_; }

  // ---- recording, per layer of the running pass ----

  /// Count router choices, logical ids; see `pass_counter::record_top_k`. What the recorder refuses is told by the next
  /// `on_forward_pass_end`.
  template <class Ids>
  void record_top_k(index_t layer, Ids const& logical_ids) {
    if constexpr (std::is_void_v<decltype(recorder_.record_top_k(layer, logical_ids))>) {
      recorder_.record_top_k(layer, logical_ids);
    } else if (auto result = recorder_.record_top_k(layer, logical_ids); !result.ok() && recording_.ok()) {
      recording_ = std::move(result);
    }
  }
  /// Count tokens per logical expert, `[E]`.
  template <class Counts>
  [[nodiscard]] status record_logical(index_t layer, Counts const& counts) {
    return recorder_.record_logical(layer, counts);
  }
  /// Count tokens per physical expert, `[R (S + F)]`, under the map in force.
  template <class Counts>
  [[nodiscard]] status record_physical(index_t layer, Counts const& counts) {
    return record_physical(layer, counts, step_ + 1);
  }
  /// The same for counts that come late: under the map that was in force in pass `pass`, the one that call `pass` of
  /// `on_forward_pass_end` has closed or will close. They are added to the pass in progress.
  ///
  /// @param pass  in [1, step() + 1].
  /// @return `errc::invalid_load` for a pass out of range, or one too long ago: the layer's last four maps are kept.
  template <class Counts>
  [[nodiscard]] status record_physical(index_t layer, Counts const& counts, std::uint64_t pass) {
    return under_map(layer, pass, [&](std::span<index_t const> map) {
      return recorder_.record_physical(layer, counts, map, where_);
    });
  }
  /// Count tokens that arrived at this rank's slots, `[S]` or `[S + F]`, under the map in force.
  template <class Counts>
  [[nodiscard]] status record_local(index_t layer, Counts const& counts) {
    return record_local(layer, counts, step_ + 1);
  }
  /// The same for counts that come late; see `record_physical`.
  template <class Counts>
  [[nodiscard]] status record_local(index_t layer, Counts const& counts, std::uint64_t pass) {
    return under_map(layer, pass, [&](std::span<index_t const> map) {
      return recorder_.record_local(layer, counts, rank(), map, where_);
    });
  }
  /// Count tokens that arrived at this rank's slots, from running sums over them, under the map in force.
  template <class Sums>
  [[nodiscard]] status record_local_prefix_sums(index_t layer, Sums const& sums) {
    return record_local_prefix_sums(layer, sums, step_ + 1);
  }
  /// The same for sums that come late; see `record_physical`.
  template <class Sums>
  [[nodiscard]] status record_local_prefix_sums(index_t layer, Sums const& sums, std::uint64_t pass) {
    return under_map(layer, pass, [&](std::span<index_t const> map) {
      return recorder_.record_local_prefix_sums(layer, sums, rank(), map, where_);
    });
  }

  // ---- the step ----

  /// Close a forward pass: count it, and plan or move when it is time to.
  ///
  /// Call once per global step on every rank, idle and dummy passes included (`counted = false`), never while
  /// capturing. With calls numbered from 1, loads are reduced and planned on call N + 1. One chunk moves on the same
  /// call; C > 1 chunks on the C calls that follow. The next plan comes N calls after the last chunk's call. Where
  /// store or transport measure, the first call that finds the device done with a chunk tells the observer its times.
  ///
  /// A rank that is dead or has given up makes this call fail on the others, also while recording, as soon as the
  /// control plane knows of it.
  ///
  /// @return success, or why the cycle failed; the same failure again on every call until `resume`.
  /// @complexity while recording O(L E) and no allocation.
  [[nodiscard]] status on_forward_pass_end(pass_info const& pass = {}) {
    return from_outside("on_forward_pass_end", [&] { return end_pass(pass); });
  }

  // ---- the words of the engine's exchange ----

  /// The word that this rank tells the others with the engine's next exchange, once per step. Asynchronous moves need
  /// it; in synchronous mode it lets every rank learn, in the same step, that a `resume` is due.
  [[nodiscard]] std::uint64_t outgoing() noexcept {
    told_ = {true, word()};
    // From here on the others may commit what has arrived here.
    awaits_words_ = awaits_words_ || told_.word.stands() == detail::standing::ready;
    return told_.word.bits();
  }

  /// Take the words of all ranks in, before the next pass is launched: layers that every rank has received are
  /// committed, and the next bytes set off. A rank that missed an exchange learns from the next one what the others
  /// have committed meanwhile.
  ///
  /// @param words  [R] what each rank's `outgoing` gave for this exchange, the same on every rank.
  /// @return success, or why the cycle failed. `errc::invalid_option` for words that are not of this exchange; nothing
  ///         has changed then, as if the exchange had been missed.
  [[nodiscard]] status incoming(std::span<std::uint64_t const> words) {
    return from_outside("incoming", [&] {
      bool const moved = state_ == rebalancer_state::moving;
      auto result = take_words(words);
      if (moved) { prepare_if_due(); }
      return result;
    });
  }

  /// Put another placement in force at once: an offline plan, an operator's choice. Call on every rank between two
  /// steps.
  ///
  /// @param target  [L, P], the same on every rank.
  /// @param layers  ascending layer ids; the others stay as they are.
  /// @return `errc::busy` while a cycle runs, `errc::invalid_placement` for a target of another shape or one that is no
  ///         placement, otherwise as a cycle. After a failure every layer is at its last agreed epoch.
  [[nodiscard]] status apply(placement const& target, std::span<index_t const> layers) {
    return from_outside("apply", [&] { return move_to(target, layers); });
  }
  /// As above, for all layers.
  [[nodiscard]] status apply(placement const& target) {
    std::vector<index_t> layers(static_cast<std::size_t>(current_.num_layers()));
    std::iota(layers.begin(), layers.end(), 0);
    return apply(target, layers);
  }

  /// Work out what a rebalance on the loads so far would bring, and do nothing. Call on every rank between two steps.
  ///
  /// @param out  out: gain, moves and bytes.
  /// @return `errc::busy` while a cycle runs, otherwise the failure of reduction or policy. When the ranks could not
  ///         reduce the loads the state is `failed`.
  [[nodiscard]] status predict(prediction& out) {
    return from_outside("predict", [&] { return look_ahead(out); });
  }

  /// Compare the bytes of all replicas of every expert, on demand. Call on every rank between two steps.
  ///
  /// @return `errc::busy` while a cycle runs, `errc::corrupted` naming layer, expert, slots and ranks, the same on
  ///         every rank; the state stays as it is then.
  /// @complexity reads every slot that has a replica, and one all-gather of L * S words.
  [[nodiscard]] status check_replicas() {
    return from_outside("check_replicas", [&] {
      if (auto result = refuse_unless_recording("check_replicas"); !result.ok()) { return result; }
      replicas_.sum_all(false);
      auto result = replicas_.compare(*control_, options_.timeout);
      return result.ok() || result.code() == errc::corrupted ? result : fail(std::move(result));
    });
  }

  /// Go on with another set of live ranks and the placement that belongs to it, after the engine has brought the lost
  /// experts back (see `survivors`). Call it on every live rank, after `resume`.
  ///
  /// @param where     of the same shape; the ranks that are dead are marked in it.
  /// @param in_force  [L, P] what the slots hold now, the same on every rank. Layers that differ from `current` are
  ///                  published and counted as one commit; no bytes move.
  /// @return `errc::busy` in mid-cycle, `errc::invalid_topology`, `errc::invalid_placement`, `errc::missing_expert`,
  ///         `errc::disagreement`.
  [[nodiscard]] status set_topology(topology const& where, placement const& in_force) {
    return from_outside("set_topology", [&] { return change_topology(where, in_force); });
  }

  // ---- what is so ----

  [[nodiscard]] index_t rank() const noexcept { return transport_->rank(); }
  /// The recorder: what it has dropped or could not count, its gate, its window.
  [[nodiscard]] Recorder& recorder() noexcept { return recorder_; }
  [[nodiscard]] Recorder const& recorder() const noexcept { return recorder_; }
  [[nodiscard]] rebalancer_state state() const noexcept { return state_; }
  /// Why the state is `failed` or `cohort_lost`; success otherwise.
  [[nodiscard]] status const& failure() const noexcept { return failure_; }
  /// Calls of `on_forward_pass_end` so far; after a `resume`, the most of any rank.
  [[nodiscard]] std::uint64_t step() const noexcept { return step_; }
  /// The placement in force; in mid-cycle, layers already moved are new and the others old.
  [[nodiscard]] placement const& current() const noexcept { return current_; }
  /// Commits of one layer so far.
  [[nodiscard]] epoch_t epoch(index_t layer) const {
    BALLAST_EXPECTS(layer >= 0 && layer < current_.num_layers(), "rebalancer: layer out of range");
    return epochs_[static_cast<std::size_t>(layer)];
  }
  [[nodiscard]] topology const& where() const noexcept { return where_; }
  [[nodiscard]] rebalancer_options const& options() const noexcept { return options_; }
  /// Exceptions that left the observer.
  [[nodiscard]] std::uint64_t observer_exceptions() const noexcept { return observer_exceptions_; }

private:
  [[nodiscard]] detail::step_word word() const noexcept {
    bool const moves = state_ == rebalancer_state::moving;
    if (state_ == rebalancer_state::recording || (moves && !options_.asynchronous)) {
      return detail::step_word::recording(committed_, waited_);
    }
    if (!moves || !received_.ok() || !mover_.failure().ok()) { return detail::step_word::failed(committed_); }
    return detail::step_word::moving(committed_, mover_.arrived());
  }

  /// Where the running cycle stands: the open chunk, and what of it moves.
  struct progress {
    index_t next_chunk = 0;
    bool in_chunk = false;
    std::size_t at = 0;   // position in `cycle_` after the group
    std::size_t end = 0;  // of the chunk
    detail::layer_split const* split = nullptr;
    std::size_t row = 0;                     // of the split's next waypoint
    layer_transfer const* spread = nullptr;  // the chunk's layer that arrives over several steps
    index_t round = 0;                       // its next one
    placement const* tables = nullptr;       // what the group's commit publishes
    index_t batches = 1;                     // that its rounds take
  };
  struct told_word {
    bool open = false;  // no words have come in since
    detail::step_word word;
  };
  enum class deferred_switch { none, enable, disable };

  // ---- calls from outside ----

  // Every public call that does something: never from inside the observer, and never out by an exception.
  template <class Call>
  [[nodiscard]] status from_outside(char const* name, Call call) {
    if (inside_event_) { return {errc::busy, detail::concat(name, ": called from inside the observer")}; }
#if defined(__cpp_exceptions)
    status result;
    try {
      result = call();
    } catch (std::bad_alloc const&) {
      result = fail({errc::out_of_memory, detail::concat("rebalancer: no memory in ", name)});
    } catch (std::exception const& error) {
      result = fail({errc::internal, detail::concat("rebalancer: ", name, ": ", error.what())});
    }
#else
    auto result = call();
#endif
    switch (std::exchange(deferred_, deferred_switch::none)) {
      case deferred_switch::none: break;
      case deferred_switch::enable: enable(); break;
      case deferred_switch::disable: disable(); break;
    }
    return result;
  }
  template <class Record>
  [[nodiscard]] status under_map(index_t layer, std::uint64_t pass, Record record) const {
    auto const in_range = layer >= 0 && layer < current_.num_layers();
    std::span<index_t const> map;
    if (auto result = maps_.row_for(layer, static_cast<std::int64_t>(pass), static_cast<std::int64_t>(step_ + 1),
                                    in_range ? current_.logical_of_slot(layer) : map, map);
        !result.ok()) {
      return result;
    }
    return record(map);
  }
  /// Put a layer's new row in force.
  void take_row(placement const& from, index_t layer) {
    auto const old_row = current_.logical_of_slot(layer);
    if (!std::ranges::equal(old_row, from.logical_of_slot(layer))) {
      maps_.note_commit(layer, static_cast<std::int64_t>(step_), old_row);
    }
    current_.copy_layer(from, layer);
    ++epochs_[static_cast<std::size_t>(layer)];
    replicas_.forget(layer);
    balance_.measure(where_, current_, loads(), layer);
  }
  [[nodiscard]] status refuse_unless_started(char const* name) const {
    if (started_) { return {}; }
    return {errc::invalid_option, detail::concat(name, ": start() was not called, or failed")};
  }
  [[nodiscard]] status refuse_unless_recording(char const* name) const {
    if (auto result = refuse_unless_started(name); !result.ok()) { return result; }
    if (state_ == rebalancer_state::moving) {
      return {errc::busy, detail::concat(name, ": a rebalancing cycle is running")};
    }
    return failure_;
  }

  // ---- set-up ----

  [[nodiscard]] status validate() const {
    if (auto result = options_.validate(); !result.ok()) { return result; }
    if (options_.relay && peer_copier<Transport>) {
      return {errc::invalid_option, "rebalancer: relay needs a two-sided transport, which this one is not"};
    }
    if (auto result = schedule_.validate(); !result.ok()) { return result; }
    if (current_.num_slots() != where_.num_slots()) {
      return {errc::invalid_topology, detail::concat("rebalancer: the placement has ", current_.num_slots(),
                                                     " slots, the topology ", where_.num_slots())};
    }
    if (auto result = validate_policy(policy_); !result.ok()) { return result; }
    if (auto result = detail::check_ranks(where_, *transport_, *store_, *control_); !result.ok()) { return result; }
    if (recorder_.num_layers() != current_.num_layers() || recorder_.num_logical() != current_.num_logical()) {
      return {errc::invalid_load, detail::concat("rebalancer: the recorder counts ", recorder_.num_layers(),
                                                 " layers x ", recorder_.num_logical(), " experts, the placement has ",
                                                 current_.num_layers(), " x ", current_.num_logical())};
    }
    return {};
  }

  /// Everything that must be configured alike.
  [[nodiscard]] detail::set_up configuration() const {
    detail::set_up words;
    words.add(where_);
    words.add("layers", detail::option_bits(current_.num_layers()));
    words.add("experts", detail::option_bits(current_.num_logical()));
    words.add_part("options", options_);
    words.add_part("recorder", recorder_);
    words.add_part("policy", policy_);
    words.add_part("schedule", schedule_);
    words.add_options("transport", *transport_);
    words.add("staging limit", detail::option_bits(store_->staging_limit()));
    return words;
  }

  [[nodiscard]] status set_out(nanoseconds_t timeout) {
    if (timeout <= 0) {
      return {errc::invalid_option, detail::concat("start: timeout is ", timeout, " ns, must be positive")};
    }
    if (started_) { return {errc::busy, "start: the rebalancer has started already"}; }
    auto result = regroup_plane(timeout);
    // The others hear of a store that does not fit, if they are there.
    auto own = detail::check_mode(options_, *transport_);
    if (own.ok()) { own = detail::check_store(*store_, where_, current_); }
    if (result.ok()) { result = detail::all_ready(*control_, own, "start", timeout); }
    if (!own.ok()) { return own; }
    if (result.ok()) { result = compare_set_up(timeout); }
    if (result.ok()) { result = share_.take(*control_, timeout); }
    next_tag_ = share_.first_tag();
    mover_.set_first_region(share_.first_region());
    if (result.ok()) { result = detail::all_ready(*control_, connect_store(), "connect its store", timeout); }
    // Some transports do this together, and should not wait for a rank that cannot.
    if (result.ok()) {
      auto warm = detail::warm_up(*transport_, *store_, recorder_);
      result = detail::all_ready(*control_, warm, "warm up", timeout);
    }
    if (result.ok() && options_.check_replicas) {
      replicas_.sum_all(true);
      result = replicas_.compare(*control_, timeout);
    }
    if (result.ok()) { result = detail::all_ready(*control_, publish_tables(), "publish its tables", timeout); }
    started_ = result.ok();
    if (!started_) { share_.give_back(); }
    return result;
  }
  [[nodiscard]] status connect_store() {
    detail::set_timeout(options_.timeout, *store_, recorder_);
    return detail::connect(*store_, *transport_);
  }
  [[nodiscard]] status publish_tables() {
    status result;
    if constexpr (requires { store_->publish(index_t{}, current_, epoch_t{}); }) {
      for (index_t layer = 0; layer < current_.num_layers() && result.ok(); ++layer) {
        result = store_->publish(layer, current_, 0);
      }
    }
    return result;
  }

  [[nodiscard]] status compare_set_up(nanoseconds_t timeout) {
    auto words = configuration();
    digest layout;
    store_->describe(layout);
    words.add("weights layout", layout.value(), true);
    digest initial;
    current_.describe(initial);
    words.add("initial placement", initial.value(), true);
    return words.agree(*control_, timeout);
  }

  // ---- a step ----

  [[nodiscard]] status end_pass(pass_info const& pass) {
    auto result = count_and_act(pass);
    prepare_if_due();
    return result;
  }
  /// Where the next call reads the window, its counts set off for the host now.
  void prepare_if_due() {
    if (asks_history_next()) { detail::prepare_history(recorder_); }
  }
  [[nodiscard]] bool asks_history_next() const noexcept {
    if (!enabled_ || current_.num_layers() == 0) { return false; }
    bool const plans = state_ == rebalancer_state::recording && waited_ == options_.interval;
    return plans || (options_.share_interval > 0 && share_waited_ + 1 >= options_.share_interval);
  }
  [[nodiscard]] status count_and_act(pass_info const& pass) {
    if (auto result = refuse_unless_started("on_forward_pass_end"); !result.ok()) { return result; }
    ++step_;
    recorder_.end_pass(options_.gate.admits(pass));
    times_.tell_known([this](event const& what) { tell(what); });
    if (state_ == rebalancer_state::failed || state_ == rebalancer_state::cohort_lost) { return failure_; }
    if (auto result = std::exchange(recording_, {}); !result.ok()) { return fail(std::move(result)); }
    if (current_.num_layers() == 0) { return {}; }
    // What has been told as ready may be committed elsewhere: the words have to be heard first.
    if constexpr (regrouping_plane<Control>) {
      if (auto trouble = awaits_words_ ? status{} : control_->trouble(); !trouble.ok()) {
        return fail(std::move(trouble));
      }
    }
    if (options_.asynchronous && state_ == rebalancer_state::moving) {
      mover_.poll();
      if (auto result = watch_deadline(); !result.ok()) { return result; }
    }
    if (!enabled_) { return {}; }
    bool const plans_now = state_ == rebalancer_state::recording && waited_ == options_.interval;
    if (share_refresh_due() && !plans_now) {
      if (auto result = refresh_shares(); !result.ok()) { return result; }
    }
    if (state_ == rebalancer_state::moving) { return options_.asynchronous ? status{} : move_one_step(); }
    if (options_.checked_slots > 0) { replicas_.sum_some(options_.checked_slots); }
    if (!plans_now) {
      ++waited_;
      return {};
    }
    // The call that ends a cycle is also the first of the next wait.
    waited_ = 1;
    return begin_cycle();
  }

  // ---- a cycle: reduce, plan, agree ----

  [[nodiscard]] status begin_cycle() {
    auto const start = detail::now();
    if (options_.checked_slots > 0) {
      if (auto result = replicas_.compare(*control_, options_.timeout); !result.ok()) {
        return fail(std::move(result));
      }
    }
    if (auto result = reduce_loads(); !result.ok()) { return fail(std::move(result)); }
    if constexpr (Recorder::clears_on_dump) { recorder_.clear(); }
    measure_balance();
    notify({.kind = event_kind::dump, .balancedness = balance_in_force(), .duration = detail::now() - start});
    // Without a token there is nothing to plan on: after a warm-up, or where nobody asks anything.
    if (follows_loads<Policy> && window_.is_empty()) {
      notify({.kind = event_kind::skip, .balancedness = balance_in_force()});
      return {};
    }
    // Re-split first, it is free; move only what a re-split cannot mend.
    if (options_.share_interval > 0) {
      if (auto result = resplit(); !result.ok()) { return result; }
    }
    if (options_.utilization_threshold < 1 && balance_in_force() > options_.utilization_threshold) {
      notify({.kind = event_kind::skip, .balancedness = balance_in_force()});
      return {};
    }
    auto const plan_start = detail::now();
    if (auto result = prepare_moves(plan_next(), plan_start); !result.ok()) { return result; }
    if (cycle_.num_steps() == 0) { return {}; }
    if (options_.asynchronous) {
      state_ = rebalancer_state::moving;
      return launch_next();
    }
    if (cycle_.num_steps() > 1) {
      state_ = rebalancer_state::moving;
      return {};
    }
    return move_one_step();
  }

  [[nodiscard]] status reduce_loads() { return window_.reduce(recorder_, *control_, options_.timeout); }

  /// Let the policy fill `next_` in. Layers without a token stay as they are.
  [[nodiscard]] status plan_next() {
    bool const splits_anew = options_.share_interval > 0;
    auto planned = detail::ask_policy(policy_, window_.history(), current_, where_, next_);
    if (planned.ok() && splits_anew) { next_.drop_shares(); }
    if (planned.ok()) { planned = validate_plan(current_, where_, next_); }
    if (planned.ok() && splits_anew) { planned = optimal_shares(where_, next_, loads(), share_solver_); }
    if (planned.ok() && follows_loads<Policy>) { keep_idle_layers(loads(), current_, next_); }
    return planned;
  }

  /// From `next_` (or the failure to plan it) to chunks that every rank has agreed on.
  [[nodiscard]] status prepare_moves(status planned = {}, nanoseconds_t plan_start = detail::now()) {
    if (planned.ok()) { planned = plan_moves(); }
    auto agreed = agree_on_plan(planned);
    if (agreed.code() == errc::disagreement && options_.adopt_first_plan) {
      planned = adopt_first_plan(planned);
      agreed = agree_on_plan(planned);
    }
    // Ranks whose policies failed alike agree, and the policy's own words say more.
    if (!planned.ok() && (agreed.ok() || agreed.code() == errc::disagreement)) { return fail(std::move(planned)); }
    if (!agreed.ok()) { return fail(std::move(agreed)); }
    notify({.kind = event_kind::plan,
            .layers = changed_layer_ids(),
            .moves = cycle_.num_moves(),
            .bytes = cycle_.num_bytes(),
            .balancedness = balancedness(where_, next_, loads()),
            .duration = detail::now() - plan_start});
    return {};
  }

  /// Transfers, chunks and staging for `next_`.
  [[nodiscard]] status plan_moves() {
    forget_cycle();
    return cycle_.assign(current_, next_, loads(), {options_.relay});
  }

  [[nodiscard]] status agree_on_plan(status const& planned) {
    digest plan;
    if (planned.ok()) {
      next_.describe(plan);
      cycle_.describe(plan);
    } else {
      plan.add(std::string_view{"no plan"}).add(planned.code().value());
    }
    return agree_on("plan", plan.value());
  }
  /// Compare where the ranks stand, and one thing more; agree on the next free tag.
  [[nodiscard]] status agree_on(std::string_view what, std::uint64_t value) {
    agreed_word const words[] = {{"step", step_},
                                 {"configuration", configuration().value(), true},
                                 {"epochs", epoch_digest(), true},
                                 {"membership", control_->membership()},
                                 {"groups committed", committed_},
                                 {what, value, true}};
    std::vector<std::uint64_t> mine;
    for (auto const& word : words) { mine.push_back(word.value); }
    // A rank that gave a group up before it set off has used fewer tags than the others.
    mine.push_back(next_tag_);
    std::vector<std::uint64_t> all(mine.size() * static_cast<std::size_t>(where_.num_ranks()));
    if (auto result = control_->all_gather(mine, all, options_.timeout); !result.ok()) { return result; }
    for (auto at = mine.size() - 1; at < all.size(); at += mine.size()) { next_tag_ = std::max(next_tag_, all[at]); }
    return detail::compare_words(words, all, mine.size());
  }

  [[nodiscard]] std::uint64_t epoch_digest() const noexcept {
    digest epochs;
    for (auto const epoch : epochs_) { epochs.add(epoch); }
    return epochs.value();
  }

  /// Take rank 0's plan over: the remedy for ranks that planned differently.
  [[nodiscard]] status adopt_first_plan(status const& planned) {
    detail::plan_message message{current_.shape()};
    if (rank() == 0 && planned.ok()) { message.write(next_); }
    if (auto result = control_->broadcast(message.bytes(), 0, options_.timeout); !result.ok()) { return result; }
    if (!message.has_plan()) { return {errc::disagreement, "plans differ and rank 0 has none to adopt", 0}; }
    if (rank() == 0) { return planned; }
    if (auto result = message.read(next_); !result.ok()) { return result; }
    if (auto result = validate_plan(current_, where_, next_); !result.ok()) { return result; }
    return plan_moves();
  }

  // ---- shares: the same map, another split ----

  [[nodiscard]] bool share_refresh_due() noexcept {
    if (options_.share_interval == 0 || ++share_waited_ < options_.share_interval) { return false; }
    share_waited_ = 0;
    return true;
  }

  /// Reduce the loads of the window so far and split every expert's tokens anew. Layers that are still to move take
  /// part too: their transfers depend on maps, not on shares.
  [[nodiscard]] status refresh_shares() {
    if (auto result = window_.reduce_sum(recorder_, *control_, options_.timeout); !result.ok()) {
      return fail(std::move(result));
    }
    measure_balance();
    return resplit();
  }

  /// Publish the shares that balance the loads best on the maps in force: a commit of tables without bytes.
  [[nodiscard]] status resplit() {
    auto const start = detail::now();
    resplit_ = current_;
    auto solved = optimal_shares(where_, resplit_, loads(), share_solver_);
    if (solved.ok()) { keep_idle_layers(loads(), current_, resplit_); }
    layers_.clear();
    digest shares;
    for (index_t layer = 0; layer < current_.num_layers() && solved.ok(); ++layer) {
      shares.add(resplit_.shares(layer));
      if (!current_.has_shares() || !std::ranges::equal(current_.shares(layer), resplit_.shares(layer))) {
        layers_.push_back(layer);
      }
    }
    shares.add(solved.code().value());
    auto agreed = agree_on("shares", shares.value());
    if (!agreed.ok()) { return fail(std::move(agreed)); }
    if (!solved.ok()) { return fail(std::move(solved)); }
    if (layers_.empty()) { return {}; }
    group_start_ = detail::now();
    at_.batches = 1;
    auto vote = decide(true);
    if (vote.outcome == decision::drop) { return fail(std::move(vote.reason)); }
    if (vote.outcome == decision::undecided) {
      resplits_ = true;
      return lose(std::move(vote.reason), layers_);
    }
    return commit_shares(start);
  }
  [[nodiscard]] status commit_shares(nanoseconds_t start) {
    for (auto const layer : layers_) {
      if (auto result = store_->commit(layer, {}, resplit_, epoch(layer) + 1); !result.ok()) {
        return lose(std::move(result));
      }
      take_row(resplit_, layer);
    }
    ++committed_;
    event const what{.kind = event_kind::shares,
                     .step = step_,
                     .layers = layers_,
                     .balancedness = balance_in_force(),
                     .duration = detail::now() - start};
    tell(what);
    times_.add_chunk(what, layers_.size());
    return {};
  }

  // ---- a cycle: what moves next ----

  void open_chunk() {
    auto const chunk = cycle_.chunk(at_.next_chunk++);
    at_.in_chunk = true;
    at_.at = chunk.begin;
    at_.end = chunk.end;
    at_.spread = options_.asynchronous ? nullptr : cycle_.spread_layer(chunk);
    at_.round = 0;
  }
  [[nodiscard]] bool has_chunks_left() const noexcept { return at_.next_chunk < cycle_.num_chunks(); }

  /// Choose the next layers of the chunk that move together: the next waypoint of a split layer, else as many as fit
  /// staging. @return false at the chunk's end
  [[nodiscard]] bool choose_group() {
    for (;;) {
      if (at_.split != nullptr) {
        if (take_waypoint()) { return true; }
        at_.split = nullptr;
      }
      if (at_.at == at_.end) {
        at_.in_chunk = false;
        return false;
      }
      at_.at = cycle_.next_group(at_.at, at_.end, group_);
      if (group_.empty()) { continue; }
      at_.split = cycle_.split_of(group_.front()->layer);
      at_.row = 0;
      at_.tables = &next_;
      if (at_.split == nullptr) { return true; }
    }
  }
  /// Make the way to the next waypoint of the split layer the group to move, with an epoch and a publication of its
  /// own.
  /// @return false after the last one
  [[nodiscard]] bool take_waypoint() {
    auto const& split = *at_.split;
    auto const slots = static_cast<std::size_t>(current_.num_slots());
    while (at_.row < split.rows.size()) {
      auto const at = std::exchange(at_.row, at_.row + slots);
      bool const last = at_.row == split.rows.size();
      if (!last) {
        waypoint_.resize(current_.shape());
        auto const row = waypoint_.edit(split.layer).logical_of_slot;
        std::copy_n(split.rows.begin() + static_cast<std::ptrdiff_t>(at), slots, row.begin());
        waypoint_.index_replicas(split.layer);
      }
      at_.tables = last ? &next_ : &waypoint_;
      [[maybe_unused]] auto const planned =
          plan_layer_transfer(where_, current_, *at_.tables, split.layer, scratch_, leg_, {options_.relay});
      BALLAST_ASSERT(planned.ok(), "rebalancer: a waypoint lost an expert");
      if (!leg_.tables_change) { continue; }
      group_.assign(1, &leg_);
      return true;
    }
    return false;
  }

  // ---- a cycle: receive, vote, commit ----

  /// Move the next chunk, or the next part of a layer that arrives over several steps.
  [[nodiscard]] status move_one_step() {
    if (!at_.in_chunk) { open_chunk(); }
    if (at_.spread != nullptr) {
      if (auto result = move_part(); !result.ok()) { return result; }
    } else {
      while (choose_group()) {
        begin_group();
        if (auto result = finish_group(await_arrival()); !result.ok()) { return result; }
      }
    }
    if (!at_.in_chunk && !has_chunks_left()) { end_cycle(); }
    return {};
  }

  /// Receive one step's share of a large layer; the last step commits it. Staging and the live weights keep what they
  /// hold between the steps, because nothing else is committed meanwhile. After each step the ranks vote on whether to
  /// go on, so that none of them waits for one that cannot.
  [[nodiscard]] status move_part() {
    auto const& transfer = *at_.spread;
    auto const first = at_.round;
    if (first == 0) {
      group_.assign(1, &transfer);
      at_.tables = &next_;
      open_group();
    }
    auto const pieces = mover_.num_rounds() / std::max<index_t>(transfer.num_rounds, 1);
    at_.round = cycle_.round_after_step(transfer, first);
    begin_receive(first * pieces, at_.round * pieces);
    auto arrived = await_arrival();
    if (at_.round == transfer.num_rounds) {
      at_.in_chunk = false;
      return finish_group(std::move(arrived));
    }
    auto vote = decide(arrived.ok());
    if (vote.outcome == decision::commit) { return {}; }
    return fail(arrived.ok() ? std::move(vote.reason) : std::move(arrived));
  }

  void begin_group() {
    open_group();
    begin_receive(0, mover_.num_rounds());
  }
  /// A failure of this rank alone is told to the others by its vote or its word; it takes part in everything else.
  void open_group() {
    awaits_words_ = false;
    group_start_ = detail::now();
    received_ = mover_.open(group_, next_tag_);
    next_tag_ += mover_.num_messages();
  }
  void begin_receive(index_t first, index_t last) {
    group_start_ = detail::now();
    at_.batches = std::max<index_t>(mover_.num_batches(first, last), 1);
    if (received_.ok()) { mover_.begin_receive(first, last, options_.timeout); }
  }
  [[nodiscard]] status await_arrival() {
    if (!received_.ok()) { return received_; }
    auto arrived = mover_.wait();
    group_start_ = std::max(group_start_, mover_.began_at());
    return arrived;
  }

  /// Vote and commit. Every rank makes the same control calls, whatever went wrong on it.
  [[nodiscard]] status finish_group(status received) {
    if (options_.verify) { received = verify(std::move(received)); }
    auto vote = decide(received.ok());
    switch (vote.outcome) {
      case decision::commit: return commit_group();
      case decision::drop: return fail(received.ok() ? std::move(vote.reason) : std::move(received));
      case decision::undecided: break;
    }
    if (!received.ok()) { return fail(std::move(received)); }  // nobody commits against this rank's no
    return lose(std::move(vote.reason), layers_of_group());
  }

  /// Vote, and ask the live ranks when this rank missed the outcome.
  [[nodiscard]] vote_result decide(bool ready) {
    auto vote = control_->vote(ready, time_left(4));
    if (vote.outcome != decision::undecided) { return vote; }
    auto told = control_->recall(time_left(7));
    if (told.outcome != decision::undecided) { return told; }
    // What held the vote up says more than why nobody answers.
    return {decision::undecided,
            {vote.reason.code(), detail::concat(vote.reason.message(), "; then ", told.reason.message()),
             vote.reason.rank()}};
  }
  /// Time until so many eighths of the timeout have passed after the group's batches have had theirs: each takes up to
  /// one timeout. What follows waits a little longer than that, so that a rank which was ready at once still hears the
  /// no of one that received in vain. The last wait ends after seven: the eighth is for waking up, so that every rank
  /// has its answer within one timeout more than its batches have.
  [[nodiscard]] nanoseconds_t time_left(nanoseconds_t eighths) const noexcept {
    constexpr auto longest = std::numeric_limits<nanoseconds_t>::max() / 4;
    auto const timeout = std::min(options_.timeout, longest);
    auto const batches = std::min<nanoseconds_t>(at_.batches, longest / timeout);
    auto const budget = timeout * batches + timeout / 8 * eighths;
    return std::max<nanoseconds_t>(budget - (detail::now() - group_start_), 0);
  }

  [[nodiscard]] status verify(status received) {
    std::vector<std::int64_t> sums(mover_.num_messages(), 0);
    if (received.ok()) { received = mover_.checksum_sends(sums); }
    auto reduced = control_->all_reduce(sums, time_left(2));
    if (!received.ok()) { return received; }
    if (!reduced.ok()) { return reduced; }
    return mover_.check_arrivals(sums);
  }

  [[nodiscard]] std::span<index_t const> layers_of_group() {
    layers_.clear();
    for (auto const* const transfer : group_) { layers_.push_back(transfer->layer); }
    std::sort(layers_.begin(), layers_.end());
    return layers_;
  }

  /// Put the group in force, and tell the observer at once.
  [[nodiscard]] status commit_group() {
    awaits_words_ = false;
    times_.add_receive(mover_.receive_time());
    auto const start = group_start_;
    event what{.kind = event_kind::commit, .step = step_};
    status result;
    layers_.clear();
    for (std::size_t i = 0; i < group_.size() && result.ok(); ++i) {
      auto const layer = group_[i]->layer;
      result = mover_.commit(i, *at_.tables, epoch(layer) + 1);
      if (!result.ok()) { break; }
      times_.add_commit();
      take_row(*at_.tables, layer);
      layers_.push_back(layer);
      what.moves += static_cast<std::int64_t>(group_[i]->moves.size());
      what.bytes += cycle_.bytes_of(*group_[i]);
    }
    if (!layers_.empty()) {
      std::sort(layers_.begin(), layers_.end());
      what.layers = layers_;
      what.balancedness = balance_in_force();
      what.duration = detail::now() - start;
      tell(what);
      times_.close(what);
    }
    if (!result.ok()) { return lose(std::move(result)); }
    ++committed_;
    return {};
  }

  // ---- asynchronous moves: one group on its way at a time ----

  /// Send the next group off, or end the cycle.
  [[nodiscard]] status launch_next() {
    for (;;) {
      if (at_.in_chunk && choose_group()) {
        begin_group();
        return {};
      }
      if (!has_chunks_left()) {
        end_cycle();
        return {};
      }
      open_chunk();
    }
  }

  [[nodiscard]] status take_words(std::span<std::uint64_t const> words) {
    if (auto result = refuse_unless_started("incoming"); !result.ok()) { return result; }
    if (auto result = check_words(words); !result.ok()) { return result; }
    auto const told = std::exchange(told_, {}).word;
    detail::exchanged_words const all{words, where_, rank()};
    if (state_ == rebalancer_state::cohort_lost) { return settle_by(all); }
    if (state_ == rebalancer_state::failed) { return failure_; }
    if (options_.asynchronous && state_ == rebalancer_state::moving) { return take_words_moving(all, told); }
    return fail_with(all);
  }
  /// They are of this exchange: as many as there are ranks, and this rank's own among them.
  [[nodiscard]] status check_words(std::span<std::uint64_t const> words) const {
    if (words.size() != static_cast<std::size_t>(where_.num_ranks())) {
      return {errc::invalid_option, detail::concat("incoming: ", words.size(), " words, must be one for each of ",
                                                   where_.num_ranks(), " ranks")};
    }
    if (!told_.open) { return {errc::invalid_option, "incoming: outgoing() was not called since the last words"}; }
    auto const own = words[static_cast<std::size_t>(rank())];
    if (own != told_.word.bits()) {
      return {errc::invalid_option,
              detail::concat("incoming: the word of rank ", rank(), " is ", own, ", it told ", told_.word.bits(),
                             ": these are not the words of this exchange"),
              rank()};
    }
    return {};
  }
  [[nodiscard]] status fail_with(detail::exchanged_words const& words) {
    auto const other = words.failed_rank();
    if (other < 0) { return {}; }
    return fail({errc::transport_failed, detail::concat("rank ", other, " gave its moves up"), other});
  }

  [[nodiscard]] status take_words_moving(detail::exchanged_words const& words, detail::step_word told) {
    // A rank that is ahead has heard from everybody, this one too, that the group is here.
    if (auto const ahead = words.rank_ahead(committed_); ahead >= 0) { return catch_up(words, ahead); }
    if (words.all_ready(committed_)) {
      group_start_ = detail::now();
      at_.batches = 1;
      awaits_words_ = false;
      return land(options_.verify ? finish_group({}) : commit_group());
    }
    // Nobody commits on these words.
    if (told.stands() == detail::standing::ready) { awaits_words_ = false; }
    if (!received_.ok()) { return fail(received_); }
    if (!mover_.failure().ok()) { return fail(mover_.failure()); }
    if (auto result = fail_with(words); !result.ok()) { return result; }
    if (auto const idle = words.idle_rank(committed_); idle >= 0 && !ends_after_group_) {
      return fail({errc::disagreement, detail::concat("rank ", idle, " does not move, rank ", rank(), " does"), idle});
    }
    if (ends_after_group_) { stop_moving(); }
    return {};
  }
  [[nodiscard]] status catch_up(detail::exchanged_words const& words, index_t ahead) {
    auto const its_word = words.of(ahead);
    if (!mover_.arrived() || its_word.committed() != committed_ + 1) {
      return lose({errc::undecided,
                   detail::concat("rank ", ahead, " has committed ", its_word.committed(), " groups, rank ", rank(),
                                  " only ", committed_),
                   ahead});
    }
    if (auto result = land(commit_group()); !result.ok()) { return result; }
    // The others may have ended the cycle earlier: plan again when they do.
    if (state_ == rebalancer_state::recording && its_word.stands() == detail::standing::recording) {
      waited_ = its_word.waited();
    }
    return fail_with(words);
  }
  [[nodiscard]] status land(status committed) {
    if (!committed.ok()) { return committed; }
    if (!ends_after_group_) { return launch_next(); }
    end_cycle();
    return {};
  }

  /// A group must not be on its way for ever, whether its bytes do not come or nobody brings the words in.
  [[nodiscard]] status watch_deadline() {
    constexpr auto longest = std::numeric_limits<nanoseconds_t>::max() / 4;
    auto const timeout = std::min(options_.timeout, longest);
    auto const periods = std::min<nanoseconds_t>(at_.batches + nanoseconds_t{1}, longest / timeout);
    auto const start = std::max(group_start_, mover_.began_at());
    if (detail::now() - start <= timeout * periods) { return {}; }
    if (!received_.ok()) { return fail(received_); }
    if (!mover_.failure().ok()) { return fail(mover_.failure()); }
    return fail({errc::deadline_exceeded,
                 detail::concat("group ", committed_ + 1, " is ", mover_.arrived() ? "here" : "on its way",
                                " and was not decided in time: incoming() has brought no words that decide it")});
  }

  /// Drop what has not been committed, unless the others may be committing it: then the next words tell.
  void stop_moving() {
    if (awaits_words_) {
      ends_after_group_ = true;
      return;
    }
    mover_.abandon();
    end_cycle();
  }

  // ---- ends ----

  void end_cycle() noexcept {
    state_ = rebalancer_state::recording;
    forget_cycle();
  }

  void forget_cycle() noexcept {
    mover_.abandon();
    times_.drop();
    cycle_.clear();
    at_ = {};
    received_ = {};
    awaits_words_ = false;
    ends_after_group_ = false;
  }

  [[nodiscard]] status fail(status why) {
    // The others may have committed what this rank gives up.
    if (awaits_words_) { return lose(std::move(why), layers_of_group()); }
    forget_cycle();
    return stop(rebalancer_state::failed, std::move(why));
  }
  /// @param undecided  layers that the others may have committed. What this rank has received of them is kept for
  ///                   `settle`.
  [[nodiscard]] status lose(status why, std::span<index_t const> undecided = {}) {
    undecided_.assign(undecided.begin(), undecided.end());
    if (undecided_.empty()) { forget_cycle(); }
    awaits_words_ = false;
    return stop(rebalancer_state::cohort_lost, std::move(why));
  }
  [[nodiscard]] status stop(rebalancer_state state, status why) {
    state_ = state;
    failure_ = std::move(why);
    if constexpr (regrouping_plane<Control>) {
      if (started_) { control_->give_up(failure_); }
    }
    notify({.kind = event_kind::failed, .balancedness = balance_in_force(), .failure = &failure_});
    return failure_;
  }

  // ---- the way back ----

  [[nodiscard]] status settle_as(decision outcome) {
    if (state_ != rebalancer_state::cohort_lost || undecided_.empty()) {
      return {errc::invalid_option, "settle: no layer is undecided"};
    }
    if (outcome == decision::undecided) { return {errc::invalid_option, "settle: the outcome must be commit or drop"}; }
    auto const why = failure_;
    if (outcome == decision::commit) {
      layers_ = undecided_;
      auto const committed = resplits_ ? commit_shares(detail::now()) : commit_group();
      if (!committed.ok()) { return committed; }
    }
    undecided_.clear();
    resplits_ = false;
    forget_cycle();
    state_ = rebalancer_state::failed;
    failure_ = {why.code() == errc::cohort_lost || why.code() == errc::undecided
                    ? make_error_code(errc::deadline_exceeded)
                    : why.code(),
                detail::concat(why.message(), "; settled: ", outcome == decision::commit ? "committed" : "dropped"),
                why.rank()};
    return {};
  }
  /// Words may tell a lost rank what the others have done.
  [[nodiscard]] status settle_by(detail::exchanged_words const& words) {
    if (undecided_.empty() || resplits_) { return failure_; }
    if (words.rank_ahead(committed_) >= 0 || words.all_ready(committed_)) {
      if (auto result = settle_as(decision::commit); !result.ok()) { return result; }
    } else if (words.everybody_stands(options_.asynchronous)) {
      if (auto result = settle_as(decision::drop); !result.ok()) { return result; }
    }
    return failure_;
  }

  [[nodiscard]] status regroup_plane([[maybe_unused]] nanoseconds_t timeout) {
    if constexpr (regrouping_plane<Control>) {
      return control_->regroup(timeout);
    } else {
      return {};
    }
  }
  /// Meet the others, whatever each has done; agree on every number.
  [[nodiscard]] status regroup() {
    if (auto result = refuse_unless_started("resume"); !result.ok()) { return result; }
    if (state_ == rebalancer_state::cohort_lost) { return failure_; }
    bool const undecided = awaits_words_;
    if (!undecided) { forget_cycle(); }
    if (auto result = regroup_plane(options_.timeout); !result.ok()) { return fail(std::move(result)); }
    std::uint64_t const mine[] = {committed_, step_, next_tag_, detail::needs_repair<Control>(*transport_) ? 1u : 0u};
    constexpr std::size_t words = std::size(mine);
    std::vector<std::uint64_t> all(words * static_cast<std::size_t>(where_.num_ranks()));
    if (auto result = control_->all_gather(mine, all, options_.timeout); !result.ok()) {
      return fail(std::move(result));
    }
    std::uint64_t most[words] = {};
    for (std::size_t i = 0; i < all.size(); ++i) { most[i % words] = std::max(most[i % words], all[i]); }
    // All live ranks are here, and none of them moves: now it is known whether one of them has committed.
    if (undecided && most[0] == committed_ + 1) {
      if (auto result = commit_group(); !result.ok()) { return result; }
    }
    forget_cycle();
    committed_ = most[0];
    if (step_ != most[1]) { maps_.clear(static_cast<std::int64_t>(most[1])); }
    step_ = most[1];
    next_tag_ = most[2];
    if (most[3] != 0) {
      auto result = detail::repair(*transport_, *control_, options_.timeout);
      if (!result.ok()) { return fail(std::move(result)); }
    }
    digest in_force;
    current_.describe(in_force);
    if (auto result = agree_on("placement in force", in_force.value()); !result.ok()) {
      return fail(std::move(result));
    }
    state_ = rebalancer_state::recording;
    failure_ = {};
    told_ = {};
    waited_ = 0;
    share_waited_ = 0;
    return {};
  }

  // ---- other ways to a placement ----

  [[nodiscard]] status move_to(placement const& target, std::span<index_t const> layers) {
    if (auto result = refuse_unless_recording("apply"); !result.ok()) { return result; }
    if (auto result = detail::check_target(target, layers, current_); !result.ok()) { return result; }
    next_ = current_;
    for (auto const layer : layers) { next_.copy_layer(target, layer); }
    if (current_.num_layers() == 0) { return {}; }
    if (auto result = prepare_moves(); !result.ok()) { return result; }
    while (at_.in_chunk || has_chunks_left()) {
      if (auto result = move_one_step(); !result.ok()) { return result; }
    }
    end_cycle();
    return {};
  }

  [[nodiscard]] status look_ahead(prediction& out) {
    if (auto result = refuse_unless_recording("predict"); !result.ok()) { return result; }
    out = {};
    if (current_.num_layers() == 0) { return {}; }
    if (auto result = reduce_loads(); !result.ok()) { return fail(std::move(result)); }
    if (auto result = plan_next(); !result.ok()) { return result; }
    if (auto result = plan_moves(); !result.ok()) { return result; }
    out = {balancedness(where_, current_, loads()),
           balancedness(where_, next_, loads()),
           cycle_.num_moves(),
           cycle_.num_bytes(),
           static_cast<index_t>(cycle_.transfers().size()),
           cycle_.num_steps()};
    forget_cycle();
    return {};
  }

  [[nodiscard]] status change_topology(topology const& where, placement const& in_force) {
    if (auto result = refuse_unless_recording("set_topology"); !result.ok()) { return result; }
    auto result = detail::check_topology(where, in_force, where_, current_.shape(), rank());
    digest both;
    where.describe(both);
    in_force.describe(both);
    both.add(result.code().value());
    if (auto agreed = agree_on("new topology", both.value()); !agreed.ok()) { return fail(std::move(agreed)); }
    if (!result.ok()) { return result; }
    group_start_ = detail::now();
    at_.batches = 1;
    auto taken = give_store(where);
    auto vote = decide(taken.ok());
    if (vote.outcome == decision::drop || !taken.ok()) {
      static_cast<void>(give_store(where_));
      return fail(taken.ok() ? std::move(vote.reason) : std::move(taken));
    }
    // Nobody can settle this: without an answer the ranks may live in different topologies.
    if (vote.outcome == decision::undecided) { return lose(std::move(vote.reason)); }
    where_ = where;
    next_ = in_force;
    layers_.clear();
    for (index_t layer = 0; layer < current_.num_layers(); ++layer) {
      // All layers are published: their tables depend on who is alive.
      result = store_->commit(layer, {}, next_, epoch(layer) + 1);
      if (!result.ok()) { return lose(std::move(result)); }
      take_row(next_, layer);
      layers_.push_back(layer);
    }
    if (!next_.has_shares()) { current_.drop_shares(); }
    ++committed_;
    measure_balance();
    event const what{.kind = event_kind::commit, .step = step_, .layers = layers_, .balancedness = balance_in_force()};
    tell(what);
    times_.add_chunk(what, layers_.size());
    return {};
  }
  /// Where the store's tables depend on who is alive.
  [[nodiscard]] status give_store([[maybe_unused]] topology const& where) {
    if constexpr (requires {
                    { store_->set_topology(where) } -> std::same_as<status>;
                  }) {
      return store_->set_topology(where);
    } else if constexpr (requires { store_->set_topology(where); }) {
      store_->set_topology(where);
    }
    return {};
  }

  // ---- small things ----

  void measure_balance() { balance_.measure(where_, current_, loads()); }
  [[nodiscard]] double balance_in_force() const noexcept { return balance_.balancedness(); }

  void notify(event what) {
    what.step = step_;
    tell(what);
  }
  void tell(event const& what) {
    if (observer_ == nullptr) { return; }
    inside_event_ = true;
#if defined(__cpp_exceptions)
    try {
      observer_->on_event(what);
    } catch (...) { ++observer_exceptions_; }
#else
    observer_->on_event(what);
#endif
    inside_event_ = false;
  }

  [[nodiscard]] std::span<index_t const> changed_layer_ids() {
    layers_.clear();
    for (auto const& transfer : cycle_.transfers()) { layers_.push_back(transfer.layer); }
    return layers_;
  }
  [[nodiscard]] matrix_view<load_t const> loads() const { return window_.loads(); }

  topology where_;
  placement current_;
  placement next_;
  Recorder recorder_;
  Policy policy_;
  Schedule schedule_;
  Transport* transport_;
  Store* store_;
  Control* control_;
  rebalancer_options options_;
  observer* observer_;
  detail::layer_mover<Transport, Store> mover_{
      where_, transport_->rank(), *transport_, *store_, {options_.max_message_bytes, options_.rounds_per_batch}};
  detail::transport_share<Transport, Store> share_{*transport_, *store_};
  detail::device_times<Store> times_{*store_};

  detail::replica_check<Store> replicas_{where_, current_, *store_, transport_->rank()};

  rebalancer_state state_ = rebalancer_state::recording;
  status failure_;
  status recording_;  // what the recorder refused of this pass
  bool started_ = false;
  bool enabled_ = true;
  bool inside_event_ = false;
  deferred_switch deferred_ = deferred_switch::none;
  index_t waited_ = 0;        // calls since the last plan
  index_t share_waited_ = 0;  // calls since the last refresh of shares
  std::uint64_t step_ = 0;
  std::uint64_t observer_exceptions_ = 0;
  std::vector<epoch_t> epochs_;  // [L]
  map_history maps_{current_.num_layers(), current_.num_slots()};

  detail::load_window window_{current_.num_layers(), current_.num_logical()};
  detail::balance_sheet balance_{current_.num_layers()};

  // The running cycle.
  detail::cycle_plan<Schedule, Store> cycle_{where_, schedule_, *store_};
  progress at_;
  std::vector<layer_transfer const*> group_;
  status received_;                // why this rank could not begin to receive the group
  nanoseconds_t group_start_ = 0;  // when this rank began the group, or to vote where there is nothing to receive
  std::uint64_t next_tag_ = 0;     // of this session; the same on every rank
  std::uint64_t committed_ = 0;    // groups and share changes so far, the same on every rank
  told_word told_;
  bool awaits_words_ = false;      // `outgoing` has said that the group is here, and what the others make of it is open
  bool ends_after_group_ = false;  // the words are the last thing that this cycle waits for
  std::vector<index_t> undecided_;  // layers that may be committed elsewhere
  std::vector<index_t> layers_;     // that an event is about
  share_solver share_solver_;
  bool resplits_ = false;  // the commit that runs, or is undecided, changes shares alone
  placement resplit_;
  placement waypoint_;  // valid in the layer that is being split only
  layer_transfer leg_;
  detail::transfer_scratch scratch_;
};

BALLAST_END_NAMESPACE

#endif
