// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_REBALANCER_HPP
#define BALLAST_RUNTIME_REBALANCER_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/digest.hpp>
#include <ballast/load/recorder.hpp>
#include <ballast/migration/transfer_plan.hpp>
#include <ballast/placement/balancedness.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/placement/policy.hpp>
#include <ballast/placement/replica_shares.hpp>
#include <ballast/runtime/cycle_plan.hpp>
#include <ballast/runtime/device_times.hpp>
#include <ballast/runtime/host_store.hpp>
#include <ballast/runtime/layer_mover.hpp>
#include <ballast/runtime/observer.hpp>
#include <ballast/runtime/plan_message.hpp>
#include <ballast/runtime/rebalancer_options.hpp>
#include <ballast/runtime/store.hpp>
#include <ballast/schedule/chunk_schedule.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/transport/control.hpp>
#include <ballast/transport/transport.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE

/// What a rebalancer does with the next call.
enum class rebalancer_state {
  recording,    ///< counts passes until the interval is over, then reduces the loads and plans
  moving,       ///< moves and commits one chunk a call
  failed,       ///< the last cycle ended early; every layer is at its last agreed epoch and serving may go on
  cohort_lost,  ///< this rank cannot know what the others committed: it must not serve
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
/// first byte moves the ranks compare what they are about to do; before a chunk is committed they agree that all of
/// them have received it. A failure before that leaves the chunk's layers as they were.
///
/// @tparam Recorder   a `load_recorder`
/// @tparam Policy     a `placement_policy`
/// @tparam Schedule   a `chunk_schedule`
/// @tparam Transport  a `data_transport`
/// @tparam Store      an `expert_store`
/// @tparam Control    a `control_plane`; by default the transport is one too
///
/// @threads  all members are called from one thread. Nothing runs behind the engine's back.
/// @lifetime transport, control plane, store and observer belong to the engine and outlive the rebalancer.
template <load_recorder Recorder, placement_policy Policy, chunk_schedule Schedule, data_transport Transport,
          expert_store Store = host_store, control_plane Control = Transport>
class rebalancer {
public:
  /// @param where    ranks, nodes, slots.
  /// @param initial  [L, P] the placement that the weights were loaded with, the same on every rank.
  /// @throws std::system_error (`errc::invalid_option`, `errc::invalid_topology`, `errc::invalid_load`) naming the
  /// value
  ///         that does not fit
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
    loads_.assign(num_cells(), 0);
    balances_.assign(static_cast<std::size_t>(current_.num_layers()), {});
  }
  rebalancer(rebalancer const&) = delete;
  rebalancer& operator=(rebalancer const&) = delete;
  /// Takes back what an asynchronous move still has under way; peers see that move fail.
  ~rebalancer() { ground_flight(); }

  // ---- life cycle, called by all ranks together ----

  /// Check that all ranks are configured alike, and let one-sided transports learn each other's memory.
  ///
  /// Call once, on every rank, before the first pass.
  /// @return `errc::disagreement` naming the rank and what differs.
  [[nodiscard]] status start() {
    for (index_t layer = 0; layer < current_.num_layers(); ++layer) {
      if (store_->tensors(layer).empty()) {
        return {errc::invalid_weights, detail::concat("rebalancer: layer ", layer, " has no registered tensors")};
      }
    }
    digest layout;
    store_->describe(layout);
    digest initial;
    current_.describe(initial);
    agreed_word const words[] = {
        {"configuration", configuration()}, {"weights layout", layout.value()}, {"initial placement", initial.value()}};
    if (auto result = agree(*control_, words, options_.timeout); !result.ok()) { return result; }
    if constexpr (peer_copier<Transport>) {
      if (auto result = transport_->expose(store_->regions()); !result.ok()) { return result; }
    }
    started_ = true;
    return {};
  }

  /// Leave `failed` and start counting anew; a cycle that runs is dropped, as by `disable`. Call on every rank before
  /// the same step.
  ///
  /// @return the failure again when the state is `cohort_lost`, which only readmission by the engine can end.
  [[nodiscard]] status resume() {
    if (state_ == rebalancer_state::cohort_lost) { return failure_; }
    ground_flight();
    state_ = rebalancer_state::recording;
    failure_ = {};
    forget_cycle();
    waited_ = 0;
    share_waited_ = 0;
    return {};
  }

  /// Stop planning. In mid-cycle the chunks that are still to come are dropped: layers already moved stay moved, the
  /// others stay where they are, each consistent. Call on every rank before the same step.
  void disable() {
    enabled_ = false;
    if (state_ == rebalancer_state::moving) {
      ground_flight();
      forget_cycle();
      state_ = rebalancer_state::recording;
    }
  }
  /// Plan again; the count of passes restarts. Call on every rank before the same step.
  void enable() noexcept {
    enabled_ = true;
    waited_ = 0;
    share_waited_ = 0;
  }
  [[nodiscard]] bool enabled() const noexcept { return enabled_; }

  // ---- recording, per layer of the running pass ----

  /// Count router choices, logical ids; see `pass_counter::record_top_k`.
  template <class Ids>
  void record_top_k(index_t layer, Ids const& logical_ids) {
    recorder_.record_top_k(layer, logical_ids);
  }
  /// Count tokens per logical expert, `[E]`.
  template <class Counts>
  [[nodiscard]] status record_logical(index_t layer, Counts const& counts) {
    return recorder_.record_logical(layer, counts);
  }
  /// Count tokens per physical expert, `[R (S + F)]`, under the map in force.
  template <class Counts>
  [[nodiscard]] status record_physical(index_t layer, Counts const& counts) {
    return recorder_.record_physical(layer, counts, current_.logical_of_slot(layer), where_);
  }
  /// Count tokens that arrived at this rank's slots, `[S]` or `[S + F]`, under the map in force.
  template <class Counts>
  [[nodiscard]] status record_local(index_t layer, Counts const& counts) {
    return recorder_.record_local(layer, counts, rank(), current_.logical_of_slot(layer), where_);
  }

  // ---- the step ----

  /// Close a forward pass: count it, and plan or move when it is time to.
  ///
  /// Call once per global step on every rank, idle and dummy passes included (`counted = false`), never while
  /// capturing. With calls numbered from 1, loads are reduced and planned on call N + 1. One chunk moves on the same
  /// call; C > 1 chunks on the C calls that follow. The next plan comes N calls after the last chunk's call. Where
  /// store or transport measure, the first call that finds the device done with a chunk tells the observer its times.
  ///
  /// @return success, or why the cycle failed; the same failure again on every call until `resume`.
  /// @complexity while recording O(L E) and no allocation.
  [[nodiscard]] status on_forward_pass_end(pass_info const& pass = {}) {
    BALLAST_EXPECTS(started_, "rebalancer: start() was not called, or failed");
    ++step_;
    recorder_.end_pass(options_.gate.admits(pass));
    times_.tell_known([this](event const& what) { tell(what); });
    if (state_ == rebalancer_state::failed || state_ == rebalancer_state::cohort_lost) { return failure_; }
    if (!enabled_) { return {}; }
    bool const plans_now = state_ == rebalancer_state::recording && waited_ == options_.interval;
    if (share_refresh_due() && !plans_now) {
      if (auto result = refresh_shares(); !result.ok()) { return result; }
    }
    if (state_ == rebalancer_state::moving) {
      if (!options_.asynchronous) { return move_one_step(); }
      poll_flight();
      return {};
    }
    if (!plans_now) {
      ++waited_;
      return {};
    }
    // The call that ends a cycle is also the first of the next wait.
    waited_ = 1;
    return begin_cycle();
  }

  // ---- asynchronous mode: no rank waits for another inside a forward pass ----

  /// The word that this rank tells the others with the engine's next exchange, once per step.
  [[nodiscard]] std::uint64_t outgoing() const noexcept {
    if (state_ == rebalancer_state::recording) { return 0; }
    if (state_ != rebalancer_state::moving || !flight_.failure.ok()) { return word_failed; }
    return flight_.number << 2 | (flight_.arrived ? word_ready : word_pending);
  }

  /// Take the words of all ranks in, before the next pass is launched: layers that every rank has received are
  /// committed, and the next bytes set off.
  ///
  /// @param words  [R] what each rank's `outgoing` gave for this exchange, the same on every rank.
  /// @return success, or why the cycle failed.
  [[nodiscard]] status incoming(std::span<std::uint64_t const> words) {
    BALLAST_EXPECTS(words.size() == static_cast<std::size_t>(where_.num_ranks()), "incoming: not one word per rank");
    if (!options_.asynchronous || state_ != rebalancer_state::moving) { return {}; }
    bool all_ready = true;
    for (std::size_t r = 0; r < words.size(); ++r) {
      if (words[r] == word_failed) {
        return fail(!flight_.failure.ok()
                        ? flight_.failure
                        : status{errc::transport_failed, detail::concat("rank ", r, " gave its moves up")});
      }
      if (words[r] >> 2 != flight_.number) {
        return fail({errc::disagreement, detail::concat("rank ", r, " is at group ", words[r] >> 2,
                                                        " of its moves, rank ", rank(), " at group ", flight_.number)});
      }
      all_ready = all_ready && (words[r] & 3) == word_ready;
    }
    return all_ready ? land_flight() : status{};
  }

  /// Put another placement in force at once: an offline plan, an operator's choice. Call on every rank between two
  /// steps.
  ///
  /// @param target  [L, P], the same on every rank.
  /// @param layers  ascending layer ids; the others stay as they are.
  /// @return `errc::busy` while a cycle runs, `errc::invalid_placement` for a target of another shape, otherwise as a
  ///         cycle. After a failure every layer is at its last agreed epoch.
  [[nodiscard]] status apply(placement const& target, std::span<index_t const> layers) {
    BALLAST_EXPECTS(started_, "rebalancer: start() was not called, or failed");
    if (state_ != rebalancer_state::recording) {
      return state_ == rebalancer_state::moving ? status{errc::busy, "apply: a rebalancing cycle is running"}
                                                : failure_;
    }
    if (auto result = validate_target(target, layers); !result.ok()) { return result; }
    next_ = current_;
    for (auto const layer : layers) { next_.copy_layer(target, layer); }
    if (auto result = prepare_moves(); !result.ok()) { return result; }
    while (next_chunk_ < cycle_.num_chunks()) {
      if (auto result = move_one_step(); !result.ok()) { return result; }
    }
    end_cycle();
    return {};
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
  /// @return `errc::busy` while a cycle runs, otherwise the failure of reduction or policy.
  [[nodiscard]] status predict(prediction& out) {
    if (state_ == rebalancer_state::moving) { return {errc::busy, "predict: a rebalancing cycle is running"}; }
    if (auto result = reduce_loads(); !result.ok()) { return result; }
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

  // ---- what is so ----

  [[nodiscard]] index_t rank() const noexcept { return transport_->rank(); }
  [[nodiscard]] rebalancer_state state() const noexcept { return state_; }
  /// Why the state is `failed` or `cohort_lost`; success otherwise.
  [[nodiscard]] status const& failure() const noexcept { return failure_; }
  /// Calls of `on_forward_pass_end` so far.
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
  // What an asynchronous rank tells the others: the number of its group in flight and how it stands.
  static constexpr std::uint64_t word_pending = 1;
  static constexpr std::uint64_t word_ready = 2;
  static constexpr std::uint64_t word_failed = 3;

  /// The group that is on its way, and the chunk it belongs to.
  struct flight {
    std::uint64_t number = 0;  // groups sent off so far, the same on every rank
    bool open = false;
    bool arrived = false;
    status failure;
    nanoseconds_t deadline = 0;
    placement const* tables = nullptr;  // what the commit publishes
    detail::layer_split const* split = nullptr;
    std::size_t row = 0;  // of the split's next waypoint
    std::size_t at = 0;   // position in `cycle_` after the group
    std::size_t end = 0;  // of the chunk
    std::vector<index_t> layers;
    std::int64_t moves = 0;
    std::int64_t bytes = 0;
    nanoseconds_t start = 0;
  };

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
    if (transport_->num_ranks() != where_.num_ranks() || control_->num_ranks() != where_.num_ranks()) {
      return {errc::invalid_topology,
              detail::concat("rebalancer: the topology has ", where_.num_ranks(), " ranks, the transport ",
                             transport_->num_ranks(), ", the control plane ", control_->num_ranks())};
    }
    if (recorder_.num_layers() != current_.num_layers() || recorder_.num_logical() != current_.num_logical()) {
      return {errc::invalid_load, detail::concat("rebalancer: the recorder counts ", recorder_.num_layers(),
                                                 " layers x ", recorder_.num_logical(), " experts, the placement has ",
                                                 current_.num_layers(), " x ", current_.num_logical())};
    }
    return {};
  }

  /// Digest of everything that must be configured alike.
  [[nodiscard]] std::uint64_t configuration() const {
    digest words;
    where_.describe(words);
    words.add(std::string_view{"recorder"});
    recorder_.describe(words);
    words.add(std::string_view{"policy"});
    policy_.describe(words);
    words.add(std::string_view{"schedule"});
    schedule_.describe(words);
    words.add(store_->staging_limit());
    options_.describe(words);
    return words.value();
  }

  [[nodiscard]] status validate_target(placement const& target, std::span<index_t const> layers) const {
    if (target.shape() != current_.shape()) {
      return {errc::invalid_placement,
              detail::concat("apply: the target has ", target.num_layers(), " layers x ", target.num_slots(),
                             " slots of ", target.num_logical(), " experts, in force are ", current_.num_layers(),
                             " x ", current_.num_slots(), " of ", current_.num_logical())};
    }
    for (std::size_t i = 0; i < layers.size(); ++i) {
      if (layers[i] < 0 || layers[i] >= current_.num_layers() || (i > 0 && layers[i] <= layers[i - 1])) {
        return {errc::invalid_option, detail::concat("apply: layer ", layers[i], " at position ", i,
                                                     " is not ascending in [0, ", current_.num_layers(), ")")};
      }
    }
    return {};
  }

  // ---- a cycle: reduce, plan, agree ----

  [[nodiscard]] status begin_cycle() {
    auto const start = detail::now();
    if (auto result = reduce_loads(); !result.ok()) { return fail(std::move(result)); }
    if constexpr (Recorder::clears_on_dump) { recorder_.clear(); }
    measure_balance();
    notify({.kind = event_kind::dump, .balancedness = balance_in_force(), .duration = detail::now() - start});
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

  /// Sum the recorded loads over the ranks: `history_` [H, L, E] and, over the buckets, `loads_` [L, E].
  [[nodiscard]] status reduce_loads() {
    read_history();
    if (auto result = control_->all_reduce(history_, options_.timeout); !result.ok()) { return result; }
    sum_history();
    return {};
  }
  void read_history() {
    // A recorder that keeps every pass has more buckets each time.
    history_.resize(static_cast<std::size_t>(recorder_.num_buckets()) * num_cells());
    recorder_.history(history_);
  }
  void sum_history() {
    for (index_t layer = 0; layer < current_.num_layers(); ++layer) {
      sum_buckets(history(), layer,
                  std::span{loads_}.subspan(static_cast<std::size_t>(layer) * num_logical(), num_logical()));
    }
  }

  /// Let the policy fill `next_` in.
  [[nodiscard]] status plan_next() {
    auto planned = plan(policy_, history(), current_, where_, next_);
    return planned.ok() && options_.share_interval > 0 ? optimal_shares(where_, next_, loads(), share_solver_)
                                                       : planned;
  }

  /// From `next_` (or the failure to plan it) to chunks that every rank has agreed on.
  [[nodiscard]] status prepare_moves(status planned = {}, nanoseconds_t plan_start = detail::now()) {
    if (planned.ok()) { planned = plan_moves(); }
    auto agreed = agree_on_plan(planned);
    if (agreed.code() == errc::disagreement && options_.adopt_first_plan) {
      planned = adopt_first_plan(planned);
      agreed = agree_on_plan(planned);
    }
    if (!agreed.ok()) { return fail(std::move(agreed)); }
    if (!planned.ok()) { return fail(std::move(planned)); }
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
    agreed_word const words[] = {{"step", step_},
                                 {"configuration", configuration()},
                                 {"epochs", epoch_digest()},
                                 {"membership", control_->membership()},
                                 {"plan", plan.value()}};
    return agree(*control_, words, options_.timeout);
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
    if (!message.has_plan()) { return {errc::disagreement, "plans differ and rank 0 has none to adopt"}; }
    if (rank() == 0) { return planned; }
    if (auto result = message.read(next_); !result.ok()) { return result; }
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
    read_history();
    sum_history();
    if (auto result = control_->all_reduce(loads_, options_.timeout); !result.ok()) { return fail(std::move(result)); }
    measure_balance();
    return resplit();
  }

  /// Publish the shares that balance `loads_` best on the maps in force: a commit of tables without bytes.
  [[nodiscard]] status resplit() {
    auto const start = detail::now();
    resplit_ = current_;
    auto const solved = optimal_shares(where_, resplit_, loads(), share_solver_);
    committed_.clear();
    digest shares;
    for (index_t layer = 0; layer < current_.num_layers() && solved.ok(); ++layer) {
      shares.add(resplit_.shares(layer));
      if (!current_.has_shares() || !std::ranges::equal(current_.shares(layer), resplit_.shares(layer))) {
        committed_.push_back(layer);
      }
    }
    shares.add(solved.code().value());
    agreed_word const words[] = {{"step", step_},
                                 {"epochs", epoch_digest()},
                                 {"membership", control_->membership()},
                                 {"shares", shares.value()}};
    auto agreed = agree(*control_, words, options_.timeout);
    if (!agreed.ok()) { return fail(std::move(agreed)); }
    if (!solved.ok()) { return fail(solved); }
    if (committed_.empty()) { return {}; }
    group_start_ = detail::now();
    auto const vote = decide(true);
    if (vote.outcome == decision::drop) { return fail(vote.reason); }
    if (vote.outcome == decision::undecided) { return lose(vote.reason); }
    for (auto const layer : committed_) {
      auto& epoch = epochs_[static_cast<std::size_t>(layer)];
      if (auto result = store_->commit(layer, {}, resplit_, epoch + 1); !result.ok()) {
        return lose(std::move(result));
      }
      current_.copy_layer(resplit_, layer);
      ++epoch;
      measure_balance(layer);
    }
    event const what{.kind = event_kind::shares,
                     .step = step_,
                     .layers = committed_,
                     .balancedness = balance_in_force(),
                     .duration = detail::now() - start};
    tell(what);
    times_.add_chunk(what, committed_.size());
    return {};
  }

  // ---- a cycle: move and commit ----

  /// Move the next chunk, or the next part of a layer that arrives over several steps.
  [[nodiscard]] status move_one_step() {
    auto const chunk = cycle_.chunk(next_chunk_);
    auto const* const spread = cycle_.spread_layer(chunk);
    if (auto result = spread != nullptr ? move_part(*spread) : move_chunk(chunk.begin, chunk.end); !result.ok()) {
      return result;
    }
    if (next_chunk_ == cycle_.num_chunks()) { end_cycle(); }
    return {};
  }

  /// Move a chunk, in groups of layers that fit staging together.
  [[nodiscard]] status move_chunk(std::size_t begin, std::size_t end) {
    auto const start = detail::now();
    ++next_chunk_;
    committed_.clear();
    std::int64_t moves = 0;
    std::int64_t bytes = 0;
    for (auto at = begin; at < end;) {
      at = cycle_.next_group(at, end, group_);
      if (group_.empty()) { continue; }
      for (auto const* const transfer : group_) {
        committed_.push_back(transfer->layer);
        moves += static_cast<std::int64_t>(transfer->moves.size());
        bytes += cycle_.bytes_of(*transfer);
      }
      auto const* const split = cycle_.split_of(group_.front()->layer);
      if (auto result = split == nullptr ? move_group(next_) : move_split(*split); !result.ok()) { return result; }
    }
    std::sort(committed_.begin(), committed_.end());
    notify_commit(moves, bytes, start);
    return {};
  }

  /// Receive one step's share of a large layer; the last step commits it. Staging and the live weights keep what they
  /// hold between the steps, because nothing else is committed meanwhile.
  [[nodiscard]] status move_part(layer_transfer const& transfer) {
    auto const start = detail::now();
    if (next_round_ == 0) {
      group_.assign(1, &transfer);
      part_received_ = open_group();
    }
    auto const pieces = mover().num_rounds() / transfer.num_rounds;
    auto const last = cycle_.round_after_step(transfer, next_round_);
    group_start_ = detail::now();
    if (part_received_.ok()) {
      part_received_ = mover().receive(next_round_ * pieces, last * pieces, options_.timeout);
    }
    next_round_ = last;
    if (next_round_ < transfer.num_rounds) { return {}; }
    next_round_ = 0;
    ++next_chunk_;
    auto const moves = static_cast<std::int64_t>(transfer.moves.size());
    auto const bytes = cycle_.bytes_of(transfer);
    committed_.assign(1, transfer.layer);
    if (auto result = finish_group(next_, std::exchange(part_received_, {})); !result.ok()) { return result; }
    notify_commit(moves, bytes, start);
    return {};
  }

  void notify_commit(std::int64_t moves, std::int64_t bytes, nanoseconds_t start) {
    event const what{.kind = event_kind::commit,
                     .step = step_,
                     .layers = committed_,
                     .moves = moves,
                     .bytes = bytes,
                     .balancedness = balance_in_force(),
                     .duration = detail::now() - start};
    tell(what);
    times_.close(what);
  }

  /// Move one layer along its waypoints, each with an epoch and a publication of its own.
  [[nodiscard]] status move_split(detail::layer_split const& split) {
    flight_.split = &split;
    flight_.row = 0;
    while (take_waypoint()) {
      if (auto result = move_group(*flight_.tables); !result.ok()) { return result; }
    }
    flight_.split = nullptr;
    return {};
  }

  /// Make the way to the next waypoint of `flight_.split` the group to move. @return false after the last one
  [[nodiscard]] bool take_waypoint() {
    auto const& split = *flight_.split;
    auto const slots = static_cast<std::size_t>(current_.num_slots());
    while (flight_.row < split.rows.size()) {
      auto const at = std::exchange(flight_.row, flight_.row + slots);
      bool const last = flight_.row == split.rows.size();
      if (!last) {
        waypoint_.resize(current_.shape());
        auto const row = waypoint_.edit(split.layer).logical_of_slot;
        std::copy_n(split.rows.begin() + static_cast<std::ptrdiff_t>(at), slots, row.begin());
        waypoint_.index_replicas(split.layer);
      }
      flight_.tables = last ? &next_ : &waypoint_;
      [[maybe_unused]] auto const planned =
          plan_layer_transfer(where_, current_, *flight_.tables, split.layer, scratch_, leg_, {options_.relay});
      BALLAST_ASSERT(planned.ok(), "rebalancer: a waypoint lost an expert");
      if (!leg_.tables_change) { continue; }
      group_.assign(1, &leg_);
      return true;
    }
    return false;
  }

  /// Receive, vote, commit.
  [[nodiscard]] status move_group(placement const& tables) {
    group_start_ = detail::now();
    auto received = open_group();
    if (received.ok()) { received = mover().receive(0, mover().num_rounds(), options_.timeout); }
    return finish_group(tables, std::move(received));
  }
  [[nodiscard]] status open_group() {
    auto opened = mover().open(group_, step_ << 24 | group_tag_);
    group_tag_ += mover().num_messages();
    return opened;
  }

  /// Vote and commit. Every rank makes the same control calls, whatever went wrong on it.
  [[nodiscard]] status finish_group(placement const& tables, status received) {
    if (options_.verify) { received = verify(std::move(received)); }
    auto vote = decide(received.ok());
    switch (vote.outcome) {
      case decision::commit: return commit_group(tables);
      case decision::drop: return fail(received.ok() ? std::move(vote.reason) : std::move(received));
      case decision::undecided: break;
    }
    return lose(std::move(vote.reason));
  }

  /// Vote, and ask the live ranks when this rank missed the outcome.
  [[nodiscard]] vote_result decide(bool ready) {
    auto vote = control_->vote(ready, time_left(12));
    return vote.outcome == decision::undecided ? control_->recall(time_left(15)) : vote;
  }
  /// Time until so many eighths of the timeout have passed since the group's start. Receiving takes up to eight of
  /// them. What follows waits a little longer than that, so that a rank which was ready at once still hears the no of
  /// one that received in vain. The last wait ends after fifteen: the sixteenth is for waking up, so that every rank
  /// has its answer within twice the timeout.
  [[nodiscard]] nanoseconds_t time_left(nanoseconds_t eighths) const noexcept {
    constexpr auto longest = std::numeric_limits<nanoseconds_t>::max() / 2;
    auto const spent = detail::now() - group_start_;
    return std::max<nanoseconds_t>(std::min(options_.timeout, longest) / 8 * eighths - spent, 0);
  }

  [[nodiscard]] status verify(status received) {
    std::vector<std::int64_t> sums(mover().num_messages(), 0);
    mover().checksum_sends(sums);
    auto reduced = control_->all_reduce(sums, time_left(10));
    if (!received.ok()) { return received; }
    if (!reduced.ok()) { return reduced; }
    return mover().check_arrivals(sums);
  }

  [[nodiscard]] status commit_group(placement const& tables) {
    times_.add_receive(mover().receive_time());
    for (std::size_t i = 0; i < group_.size(); ++i) {
      auto const layer = group_[i]->layer;
      auto& epoch = epochs_[static_cast<std::size_t>(layer)];
      if (auto result = mover().commit(i, tables, epoch + 1); !result.ok()) { return lose(std::move(result)); }
      times_.add_commit();
      current_.copy_layer(tables, layer);
      ++epoch;
      measure_balance(layer);
    }
    return {};
  }

  // ---- asynchronous moves: one group in flight at a time ----

  /// Send the next group off: the next waypoint of a split layer, else the next layers of the chunk, else the next
  /// chunk.
  [[nodiscard]] status launch_next() {
    for (;;) {
      if (flight_.split != nullptr) {
        if (take_waypoint()) { return take_off(); }
        flight_.split = nullptr;
      }
      if (flight_.at == flight_.end) {
        if (next_chunk_ > 0) { notify_flight(); }
        if (next_chunk_ == cycle_.num_chunks()) {
          end_cycle();
          return {};
        }
        open_chunk();
      }
      flight_.at = cycle_.next_group(flight_.at, flight_.end, group_);
      if (group_.empty()) { continue; }
      for (auto const* const transfer : group_) {
        flight_.layers.push_back(transfer->layer);
        flight_.moves += static_cast<std::int64_t>(transfer->moves.size());
        flight_.bytes += cycle_.bytes_of(*transfer);
      }
      flight_.split = cycle_.split_of(group_.front()->layer);
      flight_.row = 0;
      flight_.tables = &next_;
      if (flight_.split == nullptr) { return take_off(); }
    }
  }
  void open_chunk() {
    auto const chunk = cycle_.chunk(next_chunk_);
    flight_.at = chunk.begin;
    flight_.end = chunk.end;
    ++next_chunk_;
    flight_.layers.clear();
    flight_.moves = 0;
    flight_.bytes = 0;
    flight_.start = detail::now();
  }
  void notify_flight() {
    std::sort(flight_.layers.begin(), flight_.layers.end());
    committed_ = flight_.layers;
    notify_commit(flight_.moves, flight_.bytes, flight_.start);
  }

  /// A failure of this rank alone is told to the others by its next word, so it is no failure of the call.
  [[nodiscard]] status take_off() {
    ++flight_.number;
    flight_.arrived = false;
    flight_.deadline = detail::now() + options_.timeout;
    flight_.failure = open_group();
    flight_.open = flight_.failure.ok();
    if (flight_.open) { flight_.failure = mover().begin_receive(0, mover().num_rounds()); }
    poll_flight();
    return {};
  }
  void poll_flight() {
    if (!flight_.open || flight_.arrived || !flight_.failure.ok()) { return; }
    flight_.failure = mover().poll_receive(flight_.arrived, detail::now() > flight_.deadline);
  }
  [[nodiscard]] status land_flight() {
    flight_.open = false;
    group_start_ = detail::now();
    auto result = options_.verify ? finish_group(*flight_.tables, {}) : commit_group(*flight_.tables);
    return result.ok() ? launch_next() : result;
  }
  void ground_flight() {
    if (flight_.open && !flight_.arrived && flight_.failure.ok()) { mover().abandon_receive(); }
    flight_.open = false;
  }

  void end_cycle() noexcept {
    state_ = rebalancer_state::recording;
    forget_cycle();
  }

  void forget_cycle() noexcept {
    times_.drop();
    cycle_.clear();
    flight_.split = nullptr;
    flight_.at = flight_.end = 0;
    flight_.arrived = false;
    flight_.failure = {};
    next_chunk_ = 0;
    next_round_ = 0;
    group_tag_ = 0;
  }

  [[nodiscard]] status fail(status why) { return stop(rebalancer_state::failed, std::move(why)); }
  [[nodiscard]] status lose(status why) { return stop(rebalancer_state::cohort_lost, std::move(why)); }
  [[nodiscard]] status stop(rebalancer_state state, status why) {
    ground_flight();
    state_ = state;
    failure_ = std::move(why);
    forget_cycle();
    notify({.kind = event_kind::failed, .balancedness = balance_in_force(), .failure = &failure_});
    return failure_;
  }

  // ---- small things ----

  /// Balance of each layer in force under the last dump's loads, kept up to date commit by commit.
  void measure_balance() {
    for (index_t layer = 0; layer < current_.num_layers(); ++layer) { measure_balance(layer); }
  }
  void measure_balance(index_t layer) {
    balances_[static_cast<std::size_t>(layer)] = balance_of(where_, current_, layer, loads().row(layer));
  }
  [[nodiscard]] double balance_in_force() const noexcept {
    layer_balance sum;
    for (auto const& balance : balances_) {
      sum.mean += balance.mean;
      sum.max += balance.max;
    }
    return sum.balancedness();
  }

  void notify(event what) {
    what.step = step_;
    tell(what);
  }
  void tell(event const& what) {
    if (observer_ == nullptr) { return; }
#if defined(__cpp_exceptions)
    try {
      observer_->on_event(what);
    } catch (...) { ++observer_exceptions_; }
#else
    observer_->on_event(what);
#endif
  }

  [[nodiscard]] std::span<index_t const> changed_layer_ids() {
    committed_.clear();
    for (auto const& transfer : cycle_.transfers()) { committed_.push_back(transfer.layer); }
    return committed_;
  }
  [[nodiscard]] detail::layer_mover<Transport, Store>& mover() noexcept { return mover_; }
  [[nodiscard]] std::size_t num_logical() const noexcept { return static_cast<std::size_t>(current_.num_logical()); }
  [[nodiscard]] std::size_t num_cells() const noexcept {
    return static_cast<std::size_t>(current_.num_layers()) * num_logical();
  }
  [[nodiscard]] load_history_view history() const {
    return {history_, static_cast<index_t>(history_.size() / num_cells()), current_.num_layers(),
            current_.num_logical()};
  }
  [[nodiscard]] matrix_view<load_t const> loads() const {
    return {loads_, current_.num_layers(), current_.num_logical()};
  }
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
  detail::device_times<Store> times_{*store_};

  rebalancer_state state_ = rebalancer_state::recording;
  status failure_;
  bool started_ = false;
  bool enabled_ = true;
  index_t waited_ = 0;        // calls since the last plan
  index_t share_waited_ = 0;  // calls since the last refresh of shares
  std::uint64_t step_ = 0;
  std::uint64_t observer_exceptions_ = 0;
  std::vector<epoch_t> epochs_;  // [L]

  std::vector<load_t> history_;          // [H, L, E] of the last dump
  std::vector<load_t> loads_;            // [L, E], its sum over the buckets
  std::vector<layer_balance> balances_;  // [L]

  // The running cycle.
  detail::cycle_plan<Schedule, Store> cycle_{where_, schedule_, *store_};
  index_t next_chunk_ = 0;
  index_t next_round_ = 0;  // of the layer that is arriving over several steps
  flight flight_;
  status part_received_;           // what its steps so far came to on this rank
  nanoseconds_t group_start_ = 0;  // when this rank began to receive, or to vote where there is nothing to receive
  std::uint64_t group_tag_ = 0;
  std::vector<layer_transfer const*> group_;
  std::vector<index_t> committed_;
  share_solver share_solver_;
  placement resplit_;
  placement waypoint_;  // valid in the layer that is being split only
  layer_transfer leg_;
  detail::transfer_scratch scratch_;
};

BALLAST_END_NAMESPACE

#endif
