// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_DETAIL_LAYER_MOVER_HPP
#define BALLAST_RUNTIME_DETAIL_LAYER_MOVER_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/migration/commit_order.hpp>
#include <ballast/migration/transfer_plan.hpp>
#include <ballast/runtime/detail/expert_size.hpp>
#include <ballast/runtime/optional_parts.hpp>
#include <ballast/runtime/store.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/transport/transport.hpp>
#include <ballast/transport/turns.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Experts that each rank must hold in staging to move a layer as a whole: its arrivals, and one more when it copies
/// locally and may have to break a cycle. @param out out: [R]
inline void staged_experts(topology const& where, layer_transfer const& transfer, std::span<index_t> out) {
  BALLAST_EXPECTS(out.size() == static_cast<std::size_t>(where.num_ranks()), "staged_experts: output is not [R]");
  std::fill(out.begin(), out.end(), 0);
  for (auto const& copy : transfer.copies) { out[static_cast<std::size_t>(where.rank_of_slot(copy.target_slot))] = 1; }
  for (auto const& move : transfer.moves) { ++out[static_cast<std::size_t>(where.rank_of_slot(move.target_slot))]; }
}

/// How a group's messages are cut; the same on every rank.
struct transfer_limits {
  std::int64_t message_bytes = 0;  ///< no message is longer; a longer one travels in pieces. 0: no limit
  index_t rounds_per_batch = 0;    ///< rounds that the transport is given at once. 0: all
};

/// Moves a group of layers that fit staging together: one rank's side of receiving, checking and committing them.
///
/// Call in this order: `open`; `begin_receive` and then `poll` or `wait` until the rounds have arrived, in one or
/// several portions; then (after the ranks have voted) `commit` for each layer or nothing at all. It takes turns with
/// others that use the same transport: a portion begins when theirs are over.
template <data_transport Transport, expert_store Store>
class layer_mover final : private transfer_turns::user {
public:
  layer_mover(topology const& where, index_t rank, Transport& transport, Store& store, transfer_limits limits)
      : where_{&where}, rank_{rank}, transport_{&transport}, store_{&store}, limits_{limits} {}
  layer_mover(layer_mover const&) = delete;
  layer_mover& operator=(layer_mover const&) = delete;
  ~layer_mover() { abandon(); }

  /// The store's regions have these numbers from `first` on.
  void set_first_region(std::uint32_t first) noexcept { first_region_ = first; }

  /// Make staging ready for a group and work out this rank's messages.
  ///
  /// @param group     transfers, one per layer; they outlive the commit.
  /// @param tag_base  tags from here on are free; every rank gives the same.
  /// @return why this rank cannot take part; then `receive` must not be called.
  [[nodiscard]] status open(std::span<layer_transfer const* const> group, std::uint64_t tag_base) {
    BALLAST_EXPECTS(state_ != portion::queued && state_ != portion::moving,
                    "layer_mover: the group before still moves");
    state_ = portion::none;
    sends_.clear();
    receives_.clear();
    receive_time_ = std::min<nanoseconds_t>(batch_time(), 0);  // measured or not
    lay_out(group);
    if (auto result = store_->reserve_staging(staged_bytes_); !result.ok()) { return result; }
    if (auto result = connect(*store_, *transport_); !result.ok()) { return result; }
    if (auto result = store_->prepare(); !result.ok()) { return result; }
    address(tag_base);
    return {};
  }

  /// Rounds of the group, the same on every rank.
  [[nodiscard]] index_t num_rounds() const noexcept { return num_rounds_; }
  /// Messages of the group over all ranks: as many tags are used from `tag_base` on.
  [[nodiscard]] std::size_t num_messages() const noexcept { return num_messages_; }

  /// Batches that rounds [first, last) are given to the transport in, the same on every rank.
  [[nodiscard]] index_t num_batches(index_t first, index_t last) const {
    index_t count = 0;
    for (; first < last; first = end_of_batch(first, last)) { ++count; }
    return count;
  }

  /// Have this rank's arrivals of rounds [first, last) brought into staging and its own experts handed to their takers,
  /// as soon as it is this mover's turn.
  ///
  /// @param timeout  nanoseconds, of each batch.
  void begin_receive(index_t first, index_t last, nanoseconds_t timeout) {
    BALLAST_EXPECTS(state_ != portion::queued && state_ != portion::moving,
                    "layer_mover: the rounds before still move");
    failure_ = {};
    timeout_ = timeout;
    looked_at_ = now();
    may_wait_on_ = true;
    next_round_ = first;
    last_round_ = std::max(first, last);
    if (first >= last && !staging_is_written()) {
      began_at_ = now();
      state_ = portion::arrived;
      return;
    }
    state_ = portion::queued;
    turns().enter(*this);
    poll();
  }
  /// Make progress on what `begin_receive` began, without waiting.
  ///
  /// A batch whose time passed while this rank was held up elsewhere, and could not look, gets its time anew, once:
  /// its bytes, and the ranks that it would blame, are mostly late for the same reason.
  void poll() {
    auto const looked_before = std::exchange(looked_at_, now());
    if (state_ == portion::queued && turns().is_first(*this) && !staging_is_written()) { begin_portion(); }
    while (state_ == portion::moving) {
      switch (transport_->poll()) {
        case transfer_state::pending:
          if (now() <= deadline_ || waits_on(looked_before)) { return; }
          return end_late();
        case transfer_state::idle:
          return end_portion({errc::transport_failed, concat("rank ", rank_, ": somebody else ended the batch")});
        case transfer_state::done:
        case transfer_state::failed: end_batch(transport_->wait(0));
      }
    }
  }
  /// Make progress until everything has arrived or something has failed. Each batch has the timeout of `begin_receive`,
  /// and so has each of those of others that come first. @return the failure; the live weights are untouched in any
  /// case
  [[nodiscard]] status wait() {
    await_turn();
    while (state_ == portion::moving) { end_batch(transport_->wait(time_until(deadline_))); }
    return failure_;
  }
  /// Give up what `begin_receive` began.
  void abandon() noexcept {
    if (state_ == portion::moving) { static_cast<void>(transport_->wait(0)); }
    if (state_ == portion::moving || state_ == portion::queued) { turns().leave(*this); }
    state_ = portion::none;
    failure_ = {};
  }
  /// Everything that `begin_receive` asked for is in staging.
  [[nodiscard]] bool arrived() const noexcept { return state_ == portion::arrived; }
  /// Why it will not arrive.
  [[nodiscard]] status const& failure() const noexcept { return failure_; }
  /// When the last portion's first batch began on this rank, or began anew.
  [[nodiscard]] nanoseconds_t began_at() const noexcept { return began_at_; }
  /// What this rank's batches since `open` took on the device, added up; `not_measured` where the transport does not
  /// measure.
  [[nodiscard]] nanoseconds_t receive_time() const noexcept { return receive_time_; }

  /// Digests of what this rank sends, at the group's index of each message. @param out in/out: [num_messages()]
  [[nodiscard]] status checksum_sends(std::span<std::int64_t> out) {
    for (auto const& message : sends_) {
      std::uint64_t sum = 0;
      if (auto result = store_->checksum(message.segments, sum); !result.ok()) { return result; }
      out[static_cast<std::size_t>(message.tag - tag_base_)] = static_cast<std::int64_t>(sum);
    }
    return {};
  }
  /// Compare what arrived with the senders' digests. @param expected [num_messages()]
  [[nodiscard]] status check_arrivals(std::span<std::int64_t const> expected) {
    for (auto const& message : receives_) {
      auto const index = static_cast<std::size_t>(message.tag - tag_base_);
      std::uint64_t found = 0;
      if (auto result = store_->checksum(message.segments, found); !result.ok()) { return result; }
      if (found != static_cast<std::uint64_t>(expected[index])) {
        return {errc::corrupted,
                concat("rank ", rank_, " received other bytes than rank ", message.peer, " sent: checksum ", hex(found),
                       " against ", hex(static_cast<std::uint64_t>(expected[index]))),
                message.peer};
      }
    }
    return {};
  }

  /// Write one layer of the group into its slots and publish its tables.
  [[nodiscard]] status commit(std::size_t index, placement const& tables, epoch_t epoch) {
    auto const& item = layers_[index];
    auto const tensors = store_->tensors(item.transfer->layer);
    copies_.clear();
    for (auto const& copy : item.order.copies) {
      std::size_t tensor_offset = 0;
      for (auto const& tensor : tensors) {
        auto* const to = locate(item, tensor, tensor_offset, copy.to);
        copies_.push_back({to, locate(item, tensor, tensor_offset, copy.from), tensor.bytes, copy.phase});
        tensor_offset += aligned_for_staging(tensor.bytes);
      }
    }
    return store_->commit(item.transfer->layer, copies_, tables, epoch);
  }

private:
  struct layer_item {
    layer_transfer const* transfer = nullptr;
    commit_order order;
    std::size_t staged_at = 0;    // offset of the layer's first place in staging
    std::size_t place_bytes = 0;  // from one place to the next
    index_t pieces = 1;           // messages per move
    index_t first_round = 0;      // rounds of the group's layers follow one another
  };

  [[nodiscard]] nanoseconds_t batch_time() const noexcept {
    if constexpr (receive_timer<Transport>) {
      return transport_->receive_time();
    } else {
      return not_measured;
    }
  }

  // ---- batches ----

  enum class portion { none, queued, moving, arrived, failed };

  void advance() override { poll(); }

  /// A transport that is not to be shared gives every mover its turn at once.
  [[nodiscard]] transfer_turns& turns() noexcept {
    if constexpr (shared_transport<Transport>) {
      return transport_->turns();
    } else {
      return own_turns_;
    }
  }

  [[nodiscard]] index_t end_of_batch(index_t first, index_t last) const {
    auto end = limits_.rounds_per_batch > 0 ? std::min(first + limits_.rounds_per_batch, last) : last;
    // What is passed on has to be here first.
    auto const relay =
        std::find_if(relay_rounds_.begin(), relay_rounds_.end(), [&first](index_t round) { return round > first; });
    return relay != relay_rounds_.end() ? std::min(end, *relay) : end;
  }

  /// Whether bytes of a batch that was given up may still arrive in staging, also where this portion receives none: its
  /// commit may use staging all the same.
  [[nodiscard]] bool staging_is_written() { return may_write_to(*transport_, {store_->staging(), staged_bytes_}); }
  void begin_portion() {
    if (next_round_ < last_round_) { return start_batch(); }
    began_at_ = now();
    end_portion({});
  }
  void start_batch() {
    auto const first = std::exchange(next_round_, end_of_batch(next_round_, last_round_));
    if (state_ == portion::queued) { began_at_ = now(); }
    state_ = portion::moving;
    deadline_ = deadline_after(timeout_);
    auto started = transport_->start(in_rounds(sends_, first, next_round_), in_rounds(receives_, first, next_round_));
    if (!started.ok()) { end_portion(std::move(started)); }
  }
  void end_batch(status result) {
    if (result.ok() && receive_time_ >= 0) { receive_time_ += batch_time(); }
    if (result.ok() && next_round_ < last_round_) { return start_batch(); }
    end_portion(std::move(result));
  }
  /// @param looked_before  when this rank has looked last, before now
  [[nodiscard]] bool waits_on(nanoseconds_t looked_before) {
    bool const was_away = looked_before <= deadline_ && looked_at_ - looked_before > timeout_ / 8;
    if (!was_away || !std::exchange(may_wait_on_, false)) { return false; }
    began_at_ = looked_at_;
    deadline_ = deadline_after(timeout_);
    return true;
  }
  void end_late() {
    auto result = transport_->wait(0);  // says what was missing
    // The last bytes may have come just now.
    result.ok() ? end_batch(std::move(result)) : end_portion(std::move(result));
  }
  void end_portion(status result) {
    state_ = result.ok() ? portion::arrived : portion::failed;
    failure_ = std::move(result);
    turns().leave(*this);
  }

  // Others move their batches first; each of those has a deadline. Should one of them forget, this one does not.
  void await_turn() {
    auto const deadline = deadline_after(timeout_);
    for (auto nap = shortest_nap; state_ == portion::queued; nap = std::min(2 * nap, longest_nap)) {
      turns().advance_first();
      poll();
      if (state_ != portion::queued) { return; }
      if (now() > deadline) {
        return end_portion(
            turns().is_first(*this)
                ? status{errc::deadline_exceeded,
                         concat("rank ", rank_, ": bytes of a batch that was given up may still arrive in staging"),
                         rank_}
                : status{errc::busy, concat("rank ", rank_, ": the transport is still in use by another rebalancer")});
      }
      sleep_for(nap);
    }
  }
  static constexpr nanoseconds_t shortest_nap = 5'000;
  static constexpr nanoseconds_t longest_nap = 200'000;

  void lay_out(std::span<layer_transfer const* const> group) {
    layers_.resize(group.size());
    staged_bytes_ = 0;
    num_messages_ = 0;
    num_rounds_ = 0;
    relay_rounds_.clear();
    for (std::size_t i = 0; i < group.size(); ++i) {
      auto& item = layers_[i];
      item.transfer = group[i];
      orderer_.order(*where_, *item.transfer, rank_, item.order);
      item.staged_at = staged_bytes_;
      auto const size = size_of_expert(store_->tensors(item.transfer->layer));
      item.place_bytes = size.staged;
      item.pieces = pieces_of(size.payload);
      staged_bytes_ += item.place_bytes * static_cast<std::size_t>(item.order.num_staged);
      item.first_round = num_rounds_;
      if (item.transfer->first_relay_round < item.transfer->num_rounds) {
        relay_rounds_.push_back(num_rounds_ + item.transfer->first_relay_round * item.pieces);
      }
      num_rounds_ += item.transfer->num_rounds * item.pieces;
      num_messages_ += item.transfer->moves.size() * static_cast<std::size_t>(item.pieces);
    }
  }

  [[nodiscard]] std::byte* locate(layer_item const& item, expert_tensor const& tensor, std::size_t tensor_offset,
                                  expert_location at) {
    auto const index = static_cast<std::size_t>(at.index);
    return at.kind == expert_location::slot
               ? tensor.base + index * tensor.stride
               : store_->staging() + item.staged_at + index * item.place_bytes + tensor_offset;
  }

  [[nodiscard]] index_t pieces_of(std::size_t payload) const noexcept {
    if (limits_.message_bytes <= 0 || payload == 0) { return 1; }
    auto const limit = static_cast<std::size_t>(limits_.message_bytes);
    return static_cast<index_t>((payload + limit - 1) / limit);
  }

  // Both lists are sorted by round.
  template <class Message>
  [[nodiscard]] static std::span<Message const> in_rounds(std::vector<Message> const& messages, index_t first,
                                                          index_t last) {
    auto const before = [](Message const& message, index_t round) { return message.round < round; };
    auto const begin = std::lower_bound(messages.begin(), messages.end(), first, before);
    return {begin, std::lower_bound(begin, messages.end(), last, before)};
  }

  void address(std::uint64_t tag_base) {
    tag_base_ = tag_base;
    reserve_segments();
    auto tag = tag_base;
    for (auto const& item : layers_) {
      index_t arrival = 0;
      for (auto const& move : item.transfer->moves) {
        auto const source = sender_of(*where_, *item.transfer, move);
        auto const target = where_->rank_of_slot(move.target_slot);
        for (index_t piece = 0; piece < item.pieces; ++piece, ++tag) {
          if (source == rank_) { add_send(item, move, target, piece, tag); }
          if (target == rank_) { add_receive(item, move, source, arrival, piece, tag); }
        }
        arrival += target == rank_ ? 1 : 0;
      }
    }
    auto const by_round = [](auto const& a, auto const& b) {
      return a.round != b.round ? a.round < b.round : a.tag < b.tag;
    };
    std::sort(sends_.begin(), sends_.end(), by_round);
    std::sort(receives_.begin(), receives_.end(), by_round);
  }

  // Messages refer to segments by address, so room for all of them comes first. A piece has at most as many segments as
  // there are tensors.
  void reserve_segments() {
    segments_.clear();
    remotes_.clear();
    std::size_t room = 0;
    for (auto const& item : layers_) {
      auto const segments = store_->tensors(item.transfer->layer).size() * static_cast<std::size_t>(item.pieces);
      for (auto const& move : item.transfer->moves) {
        room += sender_of(*where_, *item.transfer, move) == rank_ ? segments : 0;
        room += where_->rank_of_slot(move.target_slot) == rank_ ? segments : 0;
      }
    }
    segments_.reserve(room);
    remotes_.reserve(room);
  }

  /// Call `use(tensor, offset of the tensor in a staging place, first byte, bytes)` for the parts of one piece.
  template <class Use>
  void for_each_part(layer_item const& item, index_t piece, Use use) const {
    auto const tensors = store_->tensors(item.transfer->layer);
    auto const payload = size_of_expert(tensors).payload;
    auto const limit = item.pieces == 1 ? payload : static_cast<std::size_t>(limits_.message_bytes);
    auto const begin = static_cast<std::size_t>(piece) * limit;
    auto const end = std::min(begin + limit, payload);
    std::size_t at = 0;
    std::size_t offset = 0;
    for (auto const& tensor : tensors) {
      auto const first = std::max(begin, at);
      auto const last = std::min(end, at + tensor.bytes);
      if (first < last) { use(tensor, offset, first - at, last - first); }
      at += tensor.bytes;
      offset += aligned_for_staging(tensor.bytes);
    }
  }

  void add_send(layer_item const& item, expert_move const& move, index_t target, index_t piece, std::uint64_t tag) {
    auto const begin = segments_.size();
    auto const from = move.via < 0
                          ? expert_location{expert_location::slot, move.source_slot - where_->first_slot(rank_)}
                          : expert_location{expert_location::staged, place_of(item, move.via)};
    for_each_part(
        item, piece,
        [this, &item, &from](expert_tensor const& tensor, std::size_t offset, std::size_t first, std::size_t bytes) {
          segments_.push_back({locate(item, tensor, offset, from) + first, bytes});
        });
    sends_.push_back({target, round_of(item, move, piece), tag, std::span{segments_}.subspan(begin)});
  }

  /// Staging place of an arrival of this rank.
  [[nodiscard]] index_t place_of(layer_item const& item, index_t index) const {
    auto const& moves = item.transfer->moves;
    return static_cast<index_t>(std::count_if(moves.begin(), moves.begin() + index, [this](expert_move const& move) {
      return where_->rank_of_slot(move.target_slot) == rank_;
    }));
  }

  void add_receive(layer_item const& item, expert_move const& move, index_t source, index_t place, index_t piece,
                   std::uint64_t tag) {
    auto const begin = segments_.size();
    auto const begin_remote = remotes_.size();
    auto const slot = static_cast<std::size_t>(move.source_slot - where_->first_slot(source));
    for_each_part(
        item, piece,
        [this, &item, &place, &move, &slot](expert_tensor const& tensor, std::size_t offset, std::size_t first,
                                            std::size_t bytes) {
          segments_.push_back({locate(item, tensor, offset, {expert_location::staged, place}) + first, bytes});
          // Staging is not registered memory: what is passed on reaches two-sided transports only.
          if (move.via < 0) {
            remotes_.push_back({first_region_ + tensor.region, slot * tensor.stride + first, bytes});
          }
        });
    receives_.push_back({source, round_of(item, move, piece), tag, std::span{segments_}.subspan(begin),
                         std::span{remotes_}.subspan(begin_remote)});
  }

  [[nodiscard]] static index_t round_of(layer_item const& item, expert_move const& move, index_t piece) noexcept {
    return item.first_round + move.round * item.pieces + piece;
  }

  topology const* where_;
  index_t rank_;
  Transport* transport_;
  Store* store_;
  transfer_limits limits_;
  transfer_turns own_turns_;

  commit_orderer orderer_;
  std::vector<layer_item> layers_;
  std::size_t staged_bytes_ = 0;
  std::size_t num_messages_ = 0;
  index_t num_rounds_ = 0;
  std::vector<index_t> relay_rounds_;  // first relayed round of each layer that has any
  std::uint32_t first_region_ = 0;

  // What `begin_receive` was asked for.
  portion state_ = portion::none;
  status failure_;
  nanoseconds_t timeout_ = 0;
  nanoseconds_t deadline_ = 0;  // of the running batch
  nanoseconds_t began_at_ = 0;
  nanoseconds_t looked_at_ = 0;
  bool may_wait_on_ = false;  // a batch whose time has passed while nobody looked
  index_t next_round_ = 0;    // first round after the running batch
  index_t last_round_ = 0;

  nanoseconds_t receive_time_ = not_measured;
  std::uint64_t tag_base_ = 0;
  std::vector<segment> segments_;
  std::vector<remote_segment> remotes_;
  std::vector<outgoing_message> sends_;
  std::vector<incoming_message> receives_;
  std::vector<byte_copy> copies_;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
