// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_MPI_TRANSPORT_HPP
#define BALLAST_MPI_TRANSPORT_HPP

#include <ballast/detail/clock.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/mpi/detail/mailbox.hpp>
#include <ballast/mpi/detail/records.hpp>
#include <ballast/status.hpp>
#include <ballast/transport/detail/segments.hpp>
#include <ballast/transport/transport.hpp>
#include <ballast/transport/turns.hpp>
#include <ballast/types.hpp>

#include <mpi.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace mpi {

/// Options of `transport`. Each rank may have its own.
struct transport_options {
  std::size_t piece_bytes = std::size_t{1} << 20;  ///< of one MPI message, at most 1 GiB; 80 more say what it is
  std::size_t pieces_in_flight = 4;                ///< that a rank has given to MPI at once
  nanoseconds_t setup_timeout = 10'000'000'000;    ///< for the ranks to make a communicator together
};

/// Host bytes between the ranks of an MPI communicator, by point-to-point messages that never block.
///
/// A receiver asks for each message it expects; the sender then sends it piece by piece, several small messages in one,
/// and the receiver confirms. So no bytes travel that nobody waits for. Both sides number what they expect and send
/// over the transport's whole life, and answer by these numbers: what comes late is recognised and dropped. MPI cannot
/// take back what it has begun; it therefore only sees memory of this object, and bytes are copied once more at either
/// end. After a failed `wait` the given memory is not touched again, whatever MPI still does.
///
/// Memory: at most `piece_bytes * pieces_in_flight` to send, and as much per sending peer to receive, in each batch.
/// What peers have not taken of a failed batch remains until they do.
///
/// @lifetime the communicator is duplicated and may be freed. Destroy before `MPI_Finalize`. Its end waits for that of
///           the others, a fifth of a second at most; what MPI still holds by then is left to it.
/// @threads one thread at a time; MPI must be initialised for the threads in use.
class transport {
public:
  /// Called by all ranks of `borrowed` together: each control plane and each transport has a communicator of its own,
  /// which the ranks make in the same order. After twice `options.setup_timeout` at the latest it is there, or
  /// `failure()` says why not, and every batch is refused so, as it is with impossible options. All ranks may then try
  /// again; for anything else that ranks do together `borrowed` is lost, since some may have begun what others have
  /// not.
  ///
  /// @param borrowed  an intracommunicator.
  /// @throws std::bad_alloc
  explicit transport(MPI_Comm borrowed, transport_options const& options = {})
      : mailbox_{borrowed, options.setup_timeout},
        options_{options},
        outbox_{mailbox_.num_ranks()},
        requests_(static_cast<std::size_t>(mailbox_.num_ranks())),
        to_send_(requests_.size()),
        in_transit_(requests_.size()) {
    if (options.piece_bytes == 0 || options.piece_bytes > largest_piece) {
      mailbox_.fail({errc::invalid_option, ballast::detail::concat("mpi::transport: pieces of ", options.piece_bytes,
                                                                   " bytes; 1 to ", largest_piece, " will do")});
    }
    if (options.pieces_in_flight == 0) {
      mailbox_.fail({errc::invalid_option, "mpi::transport: 0 pieces in flight; nothing could be sent"});
    }
  }

  [[nodiscard]] index_t rank() const noexcept { return mailbox_.rank(); }
  [[nodiscard]] index_t num_ranks() const noexcept { return mailbox_.num_ranks(); }
  /// Why nothing works: it could not be set up (`errc::deadline_exceeded` when not all ranks came,
  /// `errc::invalid_option` for impossible options or what is no intracommunicator, `errc::transport_failed`), or the
  /// first error that MPI reported (`errc::transport_failed`). It stays so for the life of this object.
  [[nodiscard]] status const& failure() const noexcept { return mailbox_.failure(); }
  [[nodiscard]] transfer_turns& turns() noexcept { return turns_; }

  /// Open a batch, and ask the senders for what is to be received; see `data_transport`. Waits for nobody.
  ///
  /// @return `errc::busy` while a batch is open; `errc::transport_failed` for a peer that is this rank or none, and for
  ///         two messages to receive of one peer and tag; `failure()`.
  /// @complexity O(n log n) for n messages, and copies of what peers have asked for already. A batch of none sends
  ///             nothing.
  /// @throws std::bad_alloc
  [[nodiscard]] status start(std::span<outgoing_message const> sends, std::span<incoming_message const> receives) {
    if (!failure().ok()) { return failure(); }
    if (open_) { return {errc::busy, "mpi: a batch is already open"}; }
    if (auto result = check(sends, receives); !result.ok()) { return result; }
    failure_ = {};
    open_ = true;
    for (auto const& receive : receives) { expect(receive); }
    for (auto const& send : sends) { sends_.push_back({&send, ballast::detail::total_size(send.segments)}); }
    index_sends();
    for (auto& send : sends_) { match_kept(send); }
    push();
    outbox_.flush(mailbox_);
    return {};
  }

  /// Make progress; see `data_transport`. Takes in all that has come, and gives MPI pieces to send while it has fewer
  /// than `transport_options::pieces_in_flight`. Waits for nobody.
  [[nodiscard]] transfer_state poll() {
    if (where() == transfer_state::pending) {
      mailbox_.collect([this](letter const& what) { take(what); });
      static_cast<void>(advance());
    }
    return where();
  }

  /// Make progress until the batch ends; see `data_transport`. While nothing comes it naps, a third of a millisecond at
  /// most.
  ///
  /// @param timeout  nanoseconds.
  /// @return `errc::deadline_exceeded` naming a rank whose message, or whose receipt, is missing; `errc::peer_lost`
  ///         naming one whose transport is no more; `errc::transport_failed` for one that has given the batch up, or
  ///         has or expects another size; `errc::corrupted` for pieces that do not follow each other; `failure()`, also
  ///         where no batch is open.
  [[nodiscard]] status wait(nanoseconds_t timeout) {
    if (!open_) { return failure(); }
    auto const settled = [this] { return advance() != transfer_state::pending; };
    auto const deadline = ballast::detail::deadline_after(timeout);
    bool const over = where() != transfer_state::pending;
    if (!over && !mailbox_.collect_until([this](letter const& what) { take(what); }, settled, deadline)) {
      fail(late());
    }
    close();
    return std::exchange(failure_, {});
  }

private:
  using letter = detail::letter;
  using record = detail::record;
  static constexpr std::size_t largest_piece = std::size_t{1} << 30;

  struct send_progress {
    outgoing_message const* message = nullptr;
    std::size_t bytes = 0;
    std::size_t sent = 0;
    ballast::detail::segment_cursor from = {};
    std::uint64_t theirs = 0;  // the receiver's number, once it has asked
    bool requested = false;
    bool taken = false;
  };
  struct receive_progress {
    incoming_message const* message = nullptr;
    std::size_t bytes = 0;
    std::size_t received = 0;
    ballast::detail::segment_cursor to = {};
    bool taken = false;
  };
  // What a peer expects of this rank, which has not begun to send it.
  struct request {
    std::uint64_t number = 0;
    std::size_t bytes = 0;
  };
  struct index_entry {
    index_t peer = 0;
    std::uint64_t tag = 0;
    std::size_t send = 0;

    auto operator<=>(index_entry const&) const = default;
  };

  [[nodiscard]] transfer_state where() const {
    if (!open_) { return transfer_state::idle; }
    if (!failure_.ok() || !failure().ok()) { return transfer_state::failed; }
    bool const done = num_sent_ == sends_.size() && num_received_ == receives_.size();
    return done ? transfer_state::done : transfer_state::pending;
  }
  void fail(status why) {
    if (failure_.ok()) { failure_ = std::move(why); }
  }
  [[nodiscard]] transfer_state advance() {
    push();
    outbox_.flush(mailbox_);
    if (mailbox_.num_gone() > 0) { fail_without_gone(); }
    return where();
  }
  // Nothing more comes from a transport that is no more.
  void fail_without_gone() {
    auto const look_at = [this](auto const& messages) {
      for (auto const& progress : messages) {
        auto const peer = progress.message->peer;
        if (progress.taken || !mailbox_.has_gone(peer)) { continue; }
        return fail(
            {errc::peer_lost, ballast::detail::concat("mpi: the transport of rank ", peer, " is no more"), peer});
      }
    };
    look_at(receives_);
    look_at(sends_);
  }
  void say(index_t peer, record const& what) { outbox_.add(mailbox_, peer, what); }

  // ---- start ----

  [[nodiscard]] status check(std::span<outgoing_message const> sends,
                             std::span<incoming_message const> receives) const {
    for (auto const& send : sends) {
      if (auto result = check_peer(send.peer); !result.ok()) { return result; }
    }
    std::vector<index_entry> expected;
    for (auto const& receive : receives) {
      if (auto result = check_peer(receive.peer); !result.ok()) { return result; }
      expected.push_back({receive.peer, receive.tag, 0});
    }
    std::ranges::sort(expected);
    auto const twice = std::ranges::adjacent_find(expected);
    if (twice == expected.end()) { return {}; }
    return {errc::transport_failed, ballast::detail::concat("mpi: rank ", rank(), " expects two messages with tag ",
                                                            twice->tag, " of rank ", twice->peer)};
  }
  [[nodiscard]] status check_peer(index_t peer) const {
    if (peer >= 0 && peer < num_ranks() && peer != rank()) { return {}; }
    return {errc::transport_failed,
            ballast::detail::concat("mpi: rank ", rank(), " cannot exchange messages with rank ", peer)};
  }
  void expect(incoming_message const& receive) {
    auto const bytes = ballast::detail::total_size(receive.segments);
    auto const number = first_receive_ + receives_.size();
    receives_.push_back({&receive, bytes});
    say(receive.peer, {record::kind::request, receive.tag, number, bytes});
  }
  // The sends by peer and tag. Of two with one tag nobody ever asks for the second.
  void index_sends() {
    for (std::size_t i = 0; i < sends_.size(); ++i) {
      send_index_.push_back({sends_[i].message->peer, sends_[i].message->tag, i});
    }
    std::ranges::sort(send_index_);
  }
  [[nodiscard]] send_progress* find_send(index_t peer, std::uint64_t tag) {
    auto const found = std::ranges::lower_bound(send_index_, index_entry{peer, tag, 0});
    bool const is_there = found != send_index_.end() && found->peer == peer && found->tag == tag;
    return is_there ? &sends_[found->send] : nullptr;
  }
  // The peer has asked before this rank came.
  void match_kept(send_progress& send) {
    auto& kept = requests_[static_cast<std::size_t>(send.message->peer)];
    auto const found = kept.find(send.message->tag);
    if (found == kept.end()) { return; }
    auto const asked = found->second;
    kept.erase(found);
    match(send, asked);
  }
  void match(send_progress& send, request const& asked) {
    auto const peer = send.message->peer;
    if (asked.bytes != send.bytes) {
      say(peer, {record::kind::mismatch, 0, asked.number, send.bytes});
      return fail({errc::transport_failed,
                   ballast::detail::concat("mpi: rank ", peer, " expects ", asked.bytes, " bytes, rank ", rank(),
                                           " has ", send.bytes),
                   peer});
    }
    send.requested = true;
    send.theirs = asked.number;
    auto& queue = to_send_[static_cast<std::size_t>(peer)];
    if (queue.empty()) { senders_.push_back(peer); }
    queue.push_back(static_cast<std::size_t>(&send - sends_.data()));
  }

  // ---- what arrives ----

  void take(letter const& from) {
    bool const well_formed = for_each_record(
        from, [this, &from](record const& what, std::span<std::byte const> bytes) { take(from.peer, what, bytes); });
    if (!well_formed) {
      fail({errc::corrupted, ballast::detail::concat("mpi: rank ", from.peer, " sent half a record"), from.peer});
    }
  }
  void take(index_t peer, record const& what, std::span<std::byte const> bytes) {
    switch (what.what) {
      case record::kind::request: take_request(peer, what); break;
      case record::kind::cancel: take_cancel(peer, what.number); break;
      case record::kind::data: take_data(peer, what, bytes); break;
      case record::kind::taken: take_receipt(peer, what.number); break;
      case record::kind::refused:
        if (is_open_send(peer, what.number)) { fail(gave_up(peer, "refused a message of")); }
        break;
      case record::kind::mismatch:
        if (auto const* const receive = find_receive(peer, what.number); receive != nullptr) {
          fail({errc::transport_failed,
                ballast::detail::concat("mpi: rank ", peer, " has ", what.size, " bytes, rank ", rank(), " expects ",
                                        receive->bytes),
                peer});
        }
        break;
      case record::kind::withdrawn:
        if (find_receive(peer, what.number) != nullptr) { fail(gave_up(peer, "has given up a message to")); }
        break;
    }
  }
  [[nodiscard]] status gave_up(index_t peer, char const* what) const {
    return {errc::transport_failed, ballast::detail::concat("mpi: rank ", peer, " ", what, " rank ", rank()), peer};
  }

  void take_request(index_t peer, record const& what) {
    auto* const send = open_ ? find_send(peer, what.tag) : nullptr;
    if (send != nullptr && !send->requested) { return match(*send, {what.number, what.size}); }
    requests_[static_cast<std::size_t>(peer)].insert_or_assign(what.tag, request{what.number, what.size});
  }
  void take_cancel(index_t peer, std::uint64_t end) {
    std::erase_if(requests_[static_cast<std::size_t>(peer)],
                  [&end](auto const& kept) { return kept.second.number < end; });
    for (auto const& send : sends_) {
      if (send.message->peer == peer && send.requested && !send.taken && send.theirs < end) {
        return fail(gave_up(peer, "has given up a message of"));
      }
    }
  }

  // A message of this batch that has not arrived, by the number that the peer was told.
  [[nodiscard]] receive_progress* find_receive(index_t peer, std::uint64_t number) {
    auto const i = number - first_receive_;
    bool const is_open = i < receives_.size() && receives_[i].message->peer == peer && !receives_[i].taken;
    return is_open ? &receives_[i] : nullptr;
  }
  void take_data(index_t peer, record const& what, std::span<std::byte const> bytes) {
    auto* const receive = find_receive(peer, what.number);
    if (receive == nullptr || !failure_.ok()) { return say(peer, {record::kind::refused, 0, what.tag}); }
    if (what.size != receive->bytes || what.at != receive->received ||
        bytes.size() > receive->bytes - receive->received) {
      return fail({errc::corrupted,
                   ballast::detail::concat("mpi: rank ", peer, " sent bytes [", what.at, ", ", what.at + bytes.size(),
                                           ") of ", what.size, ", rank ", rank(), " expects byte ", receive->received,
                                           " of ", receive->bytes),
                   peer});
    }
    receive->received += bytes.size();
    receive->to.advance(receive->message->segments, bytes.size(),
                        [&bytes](segment const& to, std::size_t place, std::size_t run) {
                          std::memcpy(to.data + place, bytes.data(), run);
                          bytes = bytes.subspan(run);
                        });
    if (receive->received < receive->bytes) { return; }
    receive->taken = true;
    ++num_received_;
    confirm(peer, what.tag);
  }
  // One receipt a letter is enough: messages arrive in the order of sending.
  void confirm(index_t peer, std::uint64_t number) {
    if (confirmed_.empty() || confirmed_.back().first != peer) { confirmed_.emplace_back(peer, number); }
    confirmed_.back().second = number;
  }
  void send_receipts() {
    for (auto const& [peer, number] : confirmed_) { say(peer, {record::kind::taken, 0, number}); }
    confirmed_.clear();
  }

  [[nodiscard]] bool is_open_send(index_t peer, std::uint64_t number) const {
    auto const i = number - first_send_;
    return i < sends_.size() && sends_[i].message->peer == peer && !sends_[i].taken;
  }
  void take_receipt(index_t peer, std::uint64_t number) {
    if (!is_open_send(peer, number)) { return; }
    auto& sent = in_transit_[static_cast<std::size_t>(peer)];
    bool found = false;
    while (!found && !sent.empty()) {
      found = sent.front() == number - first_send_;
      sends_[sent.front()].taken = true;
      ++num_sent_;
      sent.pop_front();
    }
  }

  // ---- what goes out ----

  // Send what was asked for, as far as MPI takes it, to one peer after the other.
  void push() {
    send_receipts();
    if (!open_ || !failure_.ok()) { return; }
    while (!senders_.empty() && mailbox_.num_unsent() < options_.pieces_in_flight) {
      auto const peer = senders_.front();
      senders_.pop_front();
      mailbox_.send_counted(next_piece(peer));
      if (!to_send_[static_cast<std::size_t>(peer)].empty()) { senders_.push_back(peer); }
    }
  }
  // As much of the next message as fits, and of those after it, as many as fit whole.
  [[nodiscard]] letter next_piece(index_t peer) {
    auto& queue = to_send_[static_cast<std::size_t>(peer)];
    auto piece = detail::write_letter(peer, {});
    auto const begin = piece.bytes.size();
    do {
      auto& send = sends_[queue.front()];
      auto const run = std::min(options_.piece_bytes, send.bytes - send.sent);
      auto const used = piece.bytes.size() - begin;
      if (used > 0 && used + sizeof(record) + run > options_.piece_bytes) { break; }
      append(piece, send, run);
      if (send.sent < send.bytes) { break; }
      in_transit_[static_cast<std::size_t>(peer)].push_back(queue.front());
      queue.pop_front();
    } while (!queue.empty());
    return piece;
  }
  void append(letter& piece, send_progress& send, std::size_t run) {
    auto const number = first_send_ + static_cast<std::size_t>(&send - sends_.data());
    detail::append(piece, {record::kind::data, number, send.theirs, send.bytes, send.sent, run});
    auto const begin = piece.bytes.size();
    piece.bytes.resize(begin + run);
    auto* to = piece.bytes.data() + begin;
    send.from.advance(send.message->segments, run, [&to](segment const& from, std::size_t at, std::size_t size) {
      std::memcpy(to, from.data + at, size);
      to += size;
    });
    send.sent += run;
  }

  // ---- the end ----

  [[nodiscard]] status late() const {
    if (!failure().ok()) { return failure(); }
    for (auto const& receive : receives_) {
      if (receive.taken) { continue; }
      auto const peer = receive.message->peer;
      return {errc::deadline_exceeded,
              ballast::detail::concat("mpi: rank ", rank(), " waited in vain for a message of rank ", peer), peer};
    }
    for (auto const& send : sends_) {
      if (send.taken) { continue; }
      auto const peer = send.message->peer;
      return {errc::deadline_exceeded,
              ballast::detail::concat("mpi: rank ", peer, " did not take a message of rank ", rank(), " in time"),
              peer};
    }
    return {errc::deadline_exceeded, "mpi: the batch did not finish in time"};
  }

  // End the batch, and tell those who still count on it. Records about it that come later are known by their numbers.
  void close() {
    if (!failure().ok()) { fail(failure()); }
    if (!failure_.ok()) { tell_peers(); }
    for (auto const& send : sends_) {
      to_send_[static_cast<std::size_t>(send.message->peer)].clear();
      in_transit_[static_cast<std::size_t>(send.message->peer)].clear();
    }
    senders_.clear();
    confirmed_.clear();
    first_send_ += sends_.size();
    first_receive_ += receives_.size();
    sends_.clear();
    send_index_.clear();
    receives_.clear();
    num_sent_ = 0;
    num_received_ = 0;
    mailbox_.restart_count();
    outbox_.flush(mailbox_);
    open_ = false;
  }
  void tell_peers() {
    send_receipts();
    std::vector<unsigned char> told(requests_.size());
    auto const end = first_receive_ + receives_.size();
    for (auto const& receive : receives_) {
      auto& is_told = told[static_cast<std::size_t>(receive.message->peer)];
      if (!receive.taken && is_told == 0) { say(receive.message->peer, {record::kind::cancel, 0, end}); }
      is_told = is_told != 0 || !receive.taken ? 1 : 0;
    }
    // What has left this rank arrives.
    for (auto const& send : sends_) {
      auto& unsent = to_send_[static_cast<std::size_t>(send.message->peer)];
      if (unsent.empty()) { continue; }
      say(send.message->peer, {record::kind::withdrawn, 0, sends_[unsent.front()].theirs});
      unsent.clear();
    }
  }

  detail::mailbox mailbox_;
  transport_options options_;
  detail::outbox outbox_;
  transfer_turns turns_;
  bool open_ = false;
  status failure_;

  // Messages have numbers over all batches: those of this one begin here.
  std::uint64_t first_send_ = 0;
  std::uint64_t first_receive_ = 0;
  std::vector<send_progress> sends_;
  std::vector<index_entry> send_index_;  // sorted
  std::vector<receive_progress> receives_;
  std::size_t num_sent_ = 0;
  std::size_t num_received_ = 0;

  std::vector<std::unordered_map<std::uint64_t, request>> requests_;  // [R], by tag
  std::vector<std::deque<std::size_t>> to_send_;                      // [R] sends that were asked for
  std::deque<index_t> senders_;                                       // peers with such
  std::vector<std::deque<std::size_t>> in_transit_;                   // [R] sends that wait for a receipt
  std::vector<std::pair<index_t, std::uint64_t>> confirmed_;          // receipts to send
};

static_assert(message_transport<transport>);

}  // namespace mpi
BALLAST_END_NAMESPACE

#endif
