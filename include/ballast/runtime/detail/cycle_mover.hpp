// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_DETAIL_CYCLE_MOVER_HPP
#define BALLAST_RUNTIME_DETAIL_CYCLE_MOVER_HPP

#include <ballast/contract.hpp>
#include <ballast/control/control.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/digest.hpp>
#include <ballast/migration/transfer_plan.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/runtime/detail/agreement.hpp>
#include <ballast/runtime/detail/cycle_plan.hpp>
#include <ballast/runtime/detail/device_times.hpp>
#include <ballast/runtime/detail/layer_mover.hpp>
#include <ballast/runtime/detail/ledger.hpp>
#include <ballast/runtime/detail/outcome.hpp>
#include <ballast/runtime/detail/teller.hpp>
#include <ballast/runtime/observer.hpp>
#include <ballast/runtime/rebalancer_options.hpp>
#include <ballast/runtime/store.hpp>
#include <ballast/schedule/chunk_schedule.hpp>
#include <ballast/status.hpp>
#include <ballast/transport/transport.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Moves what a cycle changes, group by group: opens a group, receives it, has the ranks decide, commits it and tells
/// the observer. Synchronous mode waits for each group of a chunk inside one call; asynchronous mode sends one group
/// off and comes back for it.
///
/// A group is as many layers of a chunk as fit staging together, the way to one waypoint of a layer that does not fit,
/// or a layer that is too large for one step and arrives over several.
template <chunk_schedule Schedule, data_transport Transport, expert_store Store, control_plane Control>
class cycle_mover {
public:
  /// The arguments outlive it. @param target  where the cycle leads
  cycle_mover(ledger<Store>& books, placement const& target, Schedule const& schedule, Transport& transport,
              Store& store, agreement<Control>& ranks, teller& events, rebalancer_options const& options)
      : books_{&books},
        target_{&target},
        ranks_{&ranks},
        events_{&events},
        options_{&options},
        cycle_{books.where(), schedule, store},
        layers_{
            books.where(), transport.rank(), transport, store, {options.max_message_bytes, options.rounds_per_batch}},
        times_{store} {}

  void set_first_region(std::uint32_t first) noexcept { layers_.set_first_region(first); }

  // ---- the cycle ----

  [[nodiscard]] cycle_plan<Schedule, Store> const& cycle() const noexcept { return cycle_; }
  [[nodiscard]] device_times<Store>& times() noexcept { return times_; }

  /// Transfers, chunks and staging from what is in force to the target.
  [[nodiscard]] status plan() {
    clear();
    return cycle_.assign(books_->in_force(), *target_, books_->loads(), {options_->relay});
  }
  /// Drop what has not been committed.
  void clear() noexcept {
    abandon();
    times_.drop();
    cycle_.clear();
    at_ = {};
    received_ = {};
    is_told_ = false;
    ends_after_group_ = false;
  }
  void abandon() noexcept { layers_.abandon(); }
  /// Nothing is left of the cycle, but perhaps for a group that has been received.
  [[nodiscard]] bool at_end() const noexcept { return !at_.in_chunk && !has_chunks_left(); }

  // ---- synchronous ----

  /// Move the next chunk, or the next part of a layer that arrives over several steps.
  [[nodiscard]] outcome move_step() {
    if (!at_.in_chunk) { open_chunk(); }
    if (at_.spread != nullptr) { return move_part(); }
    while (choose_group()) {
      begin_group();
      if (auto ended = finish_group(await_arrival()); !ended.ok()) { return ended; }
    }
    return {};
  }
  /// Vote and commit. Every rank makes the same control calls, whatever went wrong on it.
  [[nodiscard]] outcome finish_group(status received) {
    if (options_->verify) { received = verify(std::move(received)); }
    auto vote = ranks_->decide(received);
    switch (vote.outcome) {
      case decision::commit: return commit_group();
      case decision::drop:
        return {outcome::ending::failed, received.ok() ? std::move(vote.reason) : std::move(received)};
      case decision::undecided: break;
    }
    // Nobody commits against this rank's no.
    if (!received.ok()) { return {outcome::ending::failed, std::move(received)}; }
    return {outcome::ending::undecided, std::move(vote.reason)};
  }

  // ---- asynchronous: one group on its way at a time ----

  /// Send the next group off. @return false when there is none left
  [[nodiscard]] bool send_next() {
    for (;;) {
      if (at_.in_chunk && choose_group()) {
        begin_group();
        return true;
      }
      if (!has_chunks_left()) { return false; }
      open_chunk();
    }
  }
  void poll() { layers_.poll(); }
  [[nodiscard]] bool arrived() const noexcept { return layers_.arrived(); }
  /// Why this rank cannot receive the group; success as long as it can.
  [[nodiscard]] status const& failure() const noexcept { return received_.ok() ? layers_.failure() : received_; }
  /// Whether the group has had its time, be it that its bytes do not come or that nobody brings the words in.
  [[nodiscard]] bool is_late() const noexcept { return ranks_->is_late(layers_.began_at()); }
  /// The words have said that the group is here: the others may commit it. What they make of it is open until then.
  void note_told() noexcept { is_told_ = true; }
  void note_answered() noexcept { is_told_ = false; }
  [[nodiscard]] bool is_told() const noexcept { return is_told_; }
  /// The cycle ends with this group, whichever way.
  void end_after_group() noexcept { ends_after_group_ = true; }
  [[nodiscard]] bool ends_after_group() const noexcept { return ends_after_group_; }
  /// Every rank has the group: put it in force, after a look at its checksums where that is asked for.
  [[nodiscard]] outcome commit_arrived() {
    ranks_->begin();
    is_told_ = false;
    return options_->verify ? finish_group({}) : commit_group();
  }

  // ---- both ----

  /// Put the group in force, and tell the observer at once.
  [[nodiscard]] outcome commit_group() {
    is_told_ = false;
    times_.add_receive(layers_.receive_time());
    event what{.kind = event_kind::commit, .step = books_->step()};
    status result;
    ids_.clear();
    books_->open_commit();
    for (std::size_t i = 0; i < group_.size(); ++i) {
      auto const& transfer = *group_[i];
      result = layers_.commit(i, *at_.tables, books_->epoch(transfer.layer) + 1);
      if (!result.ok()) { break; }
      times_.add_commit();
      books_->take_row(*at_.tables, transfer.layer);
      ids_.push_back(transfer.layer);
      what.moves += static_cast<std::int64_t>(transfer.moves.size());
      what.bytes += cycle_.bytes_of(transfer);
    }
    if (!ids_.empty()) {
      std::sort(ids_.begin(), ids_.end());
      what.layers = ids_;
      what.balancedness = books_->balancedness();
      what.duration = now() - ranks_->began_at();
      events_->tell(what);
      times_.close(what);
    }
    if (!result.ok()) { return {outcome::ending::torn, std::move(result)}; }
    books_->count_commit();
    return {};
  }
  /// Layers of the group, ascending; valid until the next call.
  [[nodiscard]] std::span<index_t const> layers_of_group() {
    ids_.clear();
    for (auto const* const transfer : group_) { ids_.push_back(transfer->layer); }
    std::sort(ids_.begin(), ids_.end());
    return ids_;
  }

private:
  /// Where the cycle stands: the open chunk, and what of it moves.
  struct progress {
    index_t next_chunk = 0;
    bool in_chunk = false;
    std::size_t at = 0;   // position in `cycle_` after the group
    std::size_t end = 0;  // of the chunk
    layer_split const* split = nullptr;
    std::size_t row = 0;                     // of the split's next waypoint
    layer_transfer const* spread = nullptr;  // the chunk's layer that arrives over several steps
    index_t round = 0;                       // its next one
    placement const* tables = nullptr;       // what the group's commit publishes
  };

  // ---- what moves next ----

  void open_chunk() {
    auto const chunk = cycle_.chunk(at_.next_chunk++);
    at_.in_chunk = true;
    at_.at = chunk.begin;
    at_.end = chunk.end;
    at_.spread = options_->asynchronous ? nullptr : cycle_.spread_layer(chunk);
    at_.round = 0;
  }
  [[nodiscard]] bool has_chunks_left() const noexcept { return at_.next_chunk < cycle_.num_chunks(); }

  /// Choose the next layers of the chunk that move together: the next waypoint of a split layer, else as many as fit
  /// staging. @return false at the chunk's end
  [[nodiscard]] bool choose_group() {
    for (;;) {
      if (at_.split != nullptr) {
        if (choose_waypoint()) { return true; }
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
      at_.tables = target_;
      if (at_.split == nullptr) { return true; }
    }
  }
  /// Make the way to the next waypoint of the split layer the group to move, with an epoch and a publication of its
  /// own. @return false after the last one
  [[nodiscard]] bool choose_waypoint() {
    auto const& split = *at_.split;
    auto const& in_force = books_->in_force();
    auto const slots = static_cast<std::size_t>(in_force.num_slots());
    while (at_.row < split.rows.size()) {
      auto const at = std::exchange(at_.row, at_.row + slots);
      bool const last = at_.row == split.rows.size();
      if (!last) {
        waypoint_.resize(in_force.shape());
        auto const row = waypoint_.edit(split.layer).logical_of_slot;
        std::copy_n(split.rows.begin() + static_cast<std::ptrdiff_t>(at), slots, row.begin());
        waypoint_.index_replicas(split.layer);
        split_among_live(books_->where(), waypoint_, split.layer);
      }
      at_.tables = last ? target_ : &waypoint_;
      [[maybe_unused]] auto const planned = plan_layer_transfer(books_->where(), in_force, *at_.tables, split.layer,
                                                                scratch_, to_waypoint_, {options_->relay});
      BALLAST_ASSERT(planned.ok(), "rebalancer: a waypoint lost an expert");
      if (!to_waypoint_.tables_change) { continue; }
      group_.assign(1, &to_waypoint_);
      return true;
    }
    return false;
  }

  // ---- receiving it ----

  void begin_group() {
    open_group();
    begin_receive(0, layers_.num_rounds());
  }
  /// A failure of this rank alone is told to the others by its vote or its word; it takes part in everything else.
  void open_group() {
    is_told_ = false;
    ranks_->begin();
    received_ = layers_.open(group_, ranks_->next_tag());
    ranks_->use_tags(layers_.num_messages());
  }
  void begin_receive(index_t first, index_t last) {
    ranks_->begin(layers_.num_batches(first, last));
    if (received_.ok()) { layers_.begin_receive(first, last, options_->timeout); }
  }
  [[nodiscard]] status await_arrival() {
    if (!received_.ok()) { return received_; }
    auto arrived = layers_.wait();
    ranks_->begin_no_sooner(layers_.began_at());
    return arrived;
  }
  /// Receive one step's share of a large layer; the last step commits it. Staging and the live weights keep what they
  /// hold between the steps, because nothing else is committed meanwhile. After each step the ranks vote on whether to
  /// go on, so that none of them waits for one that cannot.
  [[nodiscard]] outcome move_part() {
    auto const& transfer = *at_.spread;
    auto const first = at_.round;
    if (first == 0) {
      group_.assign(1, &transfer);
      at_.tables = target_;
      open_group();
    }
    auto const pieces = layers_.num_rounds() / std::max<index_t>(transfer.num_rounds, 1);
    at_.round = cycle_.round_after_step(transfer, first);
    begin_receive(first * pieces, at_.round * pieces);
    auto arrived = await_arrival();
    if (at_.round == transfer.num_rounds) {
      at_.in_chunk = false;
      return finish_group(std::move(arrived));
    }
    auto vote = ranks_->decide(arrived);
    if (vote.outcome == decision::commit) { return {}; }
    return {outcome::ending::failed, arrived.ok() ? std::move(vote.reason) : std::move(arrived)};
  }
  [[nodiscard]] status verify(status received) {
    std::vector<std::int64_t> sums(layers_.num_messages(), 0);
    if (received.ok()) { received = layers_.checksum_sends(sums); }
    auto reduced = ranks_->control().all_reduce(sums, ranks_->time_left(2));
    if (!received.ok()) { return received; }
    if (!reduced.ok()) { return reduced; }
    return layers_.check_arrivals(sums);
  }

  ledger<Store>* books_;
  placement const* target_;
  agreement<Control>* ranks_;
  teller* events_;
  rebalancer_options const* options_;
  cycle_plan<Schedule, Store> cycle_;
  layer_mover<Transport, Store> layers_;
  device_times<Store> times_;

  progress at_;
  std::vector<layer_transfer const*> group_;
  status received_;  // why this rank could not begin to receive the group
  bool is_told_ = false;
  bool ends_after_group_ = false;
  std::vector<index_t> ids_;  // that an event is about
  placement waypoint_;        // valid in the layer that is being split only
  layer_transfer to_waypoint_;
  transfer_scratch scratch_;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
