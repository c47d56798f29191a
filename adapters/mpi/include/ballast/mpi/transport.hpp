// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_MPI_TRANSPORT_HPP
#define BALLAST_MPI_TRANSPORT_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/mpi/detail/mailbox.hpp>
#include <ballast/status.hpp>
#include <ballast/transport/segments.hpp>
#include <ballast/transport/transport.hpp>
#include <ballast/types.hpp>

#include <mpi.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace mpi {

struct transport_options {
  std::size_t piece_bytes = std::size_t{1} << 20;  ///< of one MPI message
  std::size_t pieces_in_flight = 4;                ///< that a rank has given to MPI at once
};

/// Host bytes between the ranks of an MPI communicator, by point-to-point messages that never block.
///
/// A receiver asks for each message it expects; the sender then sends it piece by piece, and the receiver confirms. So
/// no bytes travel that nobody waits for, and what comes late is recognised and dropped. MPI cannot take back what it
/// has begun; it therefore only sees memory of this object, and bytes are copied once more at either end. After a
/// failed `wait` the given memory is not touched again, whatever MPI still does.
///
/// Memory: at most `piece_bytes * pieces_in_flight` to send, and as much per sending peer to receive.
///
/// @lifetime the communicator is duplicated and may be freed. Destroy before `MPI_Finalize`.
/// @threads one thread at a time; MPI must be initialised for the threads in use.
class transport {
public:
  /// Called by all ranks of `borrowed` together.
  explicit transport(MPI_Comm borrowed, transport_options const& options = {}) : mailbox_{borrowed}, options_{options} {
    BALLAST_EXPECTS(options.piece_bytes > 0 && options.pieces_in_flight > 0, "mpi::transport: nothing could be sent");
    BALLAST_EXPECTS(options.piece_bytes <= largest_piece, "mpi::transport: pieces must be at most 1 GiB");
  }

  [[nodiscard]] index_t rank() const noexcept { return mailbox_.rank(); }
  [[nodiscard]] index_t num_ranks() const noexcept { return mailbox_.num_ranks(); }

  /// Open a batch; see `data_transport`.
  [[nodiscard]] status start(std::span<outgoing_message const> sends, std::span<incoming_message const> receives) {
    BALLAST_EXPECTS(!open_, "mpi::transport: the batch before was not waited for");
    if (!mailbox_.failure().ok()) { return mailbox_.failure(); }
    failure_ = {};
    sends_.clear();
    receives_.clear();
    for (auto const& send : sends) { sends_.push_back({&send, ballast::detail::total_size(send.segments)}); }
    for (auto const& receive : receives) {
      auto const bytes = ballast::detail::total_size(receive.segments);
      receives_.push_back({&receive, bytes});
      say(receive.peer, letter_kind::request, receive.tag, bytes);
    }
    open_ = true;
    return {};
  }

  /// Make progress; see `data_transport`.
  [[nodiscard]] transfer_state poll() {
    mailbox_.collect([&](letter what) { take(what); });
    push();
    return where();
  }

  /// Make progress until the batch ends; see `data_transport`.
  [[nodiscard]] status wait(nanoseconds_t timeout) {
    if (!open_) { return {}; }
    auto const now = ballast::detail::now();
    auto const deadline = timeout > std::numeric_limits<nanoseconds_t>::max() - now
                              ? std::numeric_limits<nanoseconds_t>::max()
                              : now + timeout;
    auto const settled = [&] {
      push();
      return where() != transfer_state::pending;
    };
    if (!mailbox_.collect_until([&](letter what) { take(what); }, settled, deadline)) { fail(late()); }
    close();
    return std::exchange(failure_, {});
  }

private:
  using letter = detail::letter;
  static constexpr std::size_t largest_piece = std::size_t{1} << 30;
  static constexpr std::size_t requests_kept = 65536;

  struct letter_kind {
    static constexpr std::uint64_t request = 1;  ///< the receiver expects this message
    static constexpr std::uint64_t cancel = 2;   ///< it does not any more
    static constexpr std::uint64_t data = 3;
    static constexpr std::uint64_t taken = 4;    ///< the receiver has all bytes
    static constexpr std::uint64_t refused = 5;  ///< to the sender: unexpected data; to the receiver: sizes differ
  };
  struct send_progress {
    outgoing_message const* message = nullptr;
    std::size_t bytes = 0;
    std::size_t sent = 0;
    bool requested = false;
    bool emptied = false;  // everything is on its way
    bool taken = false;
  };
  struct receive_progress {
    incoming_message const* message = nullptr;
    std::size_t bytes = 0;
    std::size_t received = 0;
    bool taken = false;
  };
  struct request {
    index_t peer = 0;
    std::uint64_t tag = 0;
    std::size_t bytes = 0;
  };

  [[nodiscard]] transfer_state where() const {
    if (!open_) { return transfer_state::idle; }
    if (!failure_.ok() || !mailbox_.failure().ok()) { return transfer_state::failed; }
    auto const taken = [](auto const& progress) { return progress.taken; };
    return std::ranges::all_of(sends_, taken) && std::ranges::all_of(receives_, taken) ? transfer_state::done
                                                                                       : transfer_state::pending;
  }
  void fail(status why) {
    if (failure_.ok()) { failure_ = std::move(why); }
  }
  void say(index_t peer, std::uint64_t kind, std::uint64_t tag, std::size_t size) {
    mailbox_.send(detail::write_letter(peer, {kind, tag, size, 0}));
  }

  template <class List>
  [[nodiscard]] static auto find(List& list, index_t peer, std::uint64_t tag) {
    auto const found = std::ranges::find_if(list, [&](auto const& progress) {
      return progress.message->peer == peer && progress.message->tag == tag && !progress.taken;
    });
    return found == list.end() ? nullptr : &*found;
  }

  void take(letter const& what) {
    auto const head = what.head();
    switch (head.kind) {
      case letter_kind::request: requests_.push_back({what.peer, head.id, head.size}); break;
      case letter_kind::cancel:
        std::erase_if(requests_, [&](request const& old) { return old.peer == what.peer && old.tag == head.id; });
        break;
      case letter_kind::data: take_data(what, head); break;
      case letter_kind::taken:
        if (auto* const send = find(sends_, what.peer, head.id); send != nullptr) { send->taken = true; }
        break;
      default: take_refusal(what.peer, head);
    }
    if (requests_.size() > requests_kept) { requests_.erase(requests_.begin()); }
  }

  void take_data(letter const& what, letter::header const& head) {
    auto* const receive = find(receives_, what.peer, head.id);
    if (receive == nullptr || !failure_.ok()) { return say(what.peer, letter_kind::refused, head.id, 0); }
    auto const payload = what.payload();
    if (head.size != receive->bytes || head.at != receive->received ||
        payload.size() > receive->bytes - receive->received) {
      return fail(
          {errc::corrupted, ballast::detail::concat("mpi: rank ", what.peer, " sent bytes [", head.at, ", ",
                                                    head.at + payload.size(), ") of ", head.size, ", rank ", rank(),
                                                    " expects byte ", receive->received, " of ", receive->bytes)});
    }
    scatter(payload, receive->message->segments, receive->received);
    receive->received += payload.size();
    if (receive->received == receive->bytes) {
      receive->taken = true;
      say(what.peer, letter_kind::taken, head.id, 0);
    }
  }

  void take_refusal(index_t peer, letter::header const& head) {
    if (auto const* const receive = find(receives_, peer, head.id); receive != nullptr) {
      fail({errc::transport_failed, ballast::detail::concat("mpi: rank ", peer, " has ", head.size, " bytes, rank ",
                                                            rank(), " expects ", receive->bytes)});
    } else if (find(sends_, peer, head.id) != nullptr) {
      fail(
          {errc::transport_failed, ballast::detail::concat("mpi: rank ", peer, " refused a message of rank ", rank())});
    }
  }

  // Send what was asked for, as far as MPI takes it.
  void push() {
    if (!open_ || !failure_.ok()) { return; }
    for (auto& send : sends_) {
      if (send.emptied || (!send.requested && !match(send))) { continue; }
      while (!send.emptied && mailbox_.num_unsent() < options_.pieces_in_flight) { push_piece(send); }
    }
  }
  [[nodiscard]] bool match(send_progress& send) {
    auto const& message = *send.message;
    auto const asked = std::ranges::find_if(
        requests_, [&](request const& r) { return r.peer == message.peer && r.tag == message.tag; });
    if (asked == requests_.end()) { return false; }
    auto const expected = asked->bytes;
    requests_.erase(asked);
    if (expected != send.bytes) {
      say(message.peer, letter_kind::refused, message.tag, send.bytes);
      fail({errc::transport_failed, ballast::detail::concat("mpi: rank ", message.peer, " expects ", expected,
                                                            " bytes, rank ", rank(), " has ", send.bytes)});
      return false;
    }
    send.requested = true;
    return true;
  }
  void push_piece(send_progress& send) {
    auto const& message = *send.message;
    auto const bytes = std::min(options_.piece_bytes, send.bytes - send.sent);
    auto piece = detail::write_letter(message.peer, {letter_kind::data, message.tag, send.bytes, send.sent}, bytes);
    gather(message.segments, send.sent, piece.payload());
    mailbox_.send(std::move(piece));
    send.sent += bytes;
    send.emptied = send.sent == send.bytes;
  }

  // Visit the runs of `segments` that hold `size` bytes after the first `skip`.
  template <class Use>
  static void for_each_run(std::span<segment const> segments, std::size_t skip, std::size_t size, Use use) {
    std::size_t at = 0;
    for (auto const& part : segments) {
      if (size == at) { return; }
      auto const skipped = std::min(skip, part.size);
      skip -= skipped;
      auto const run = std::min(part.size - skipped, size - at);
      if (run > 0) { use(part.data + skipped, at, run); }
      at += run;
    }
  }
  static void gather(std::span<segment const> from, std::size_t skip, std::span<std::byte> to) {
    for_each_run(from, skip, to.size(), [&](std::byte const* data, std::size_t at, std::size_t run) {
      std::memcpy(to.data() + at, data, run);
    });
  }
  static void scatter(std::span<std::byte const> from, std::span<segment const> to, std::size_t skip) {
    for_each_run(to, skip, from.size(),
                 [&](std::byte* data, std::size_t at, std::size_t run) { std::memcpy(data, from.data() + at, run); });
  }

  [[nodiscard]] status late() const {
    if (!mailbox_.failure().ok()) { return mailbox_.failure(); }
    for (auto const& receive : receives_) {
      if (receive.taken) { continue; }
      return {errc::deadline_exceeded,
              ballast::detail::concat("mpi: rank ", rank(), " waited in vain for a message of ", "rank ",
                                      receive.message->peer)};
    }
    for (auto const& send : sends_) {
      if (send.taken) { continue; }
      return {errc::deadline_exceeded, ballast::detail::concat("mpi: rank ", send.message->peer,
                                                               " did not take a message of rank ", rank(), " in time")};
    }
    return {errc::deadline_exceeded, "mpi: the batch did not finish in time"};
  }

  // End the batch. Letters about it that still come are recognised by their tags, which are never used again.
  void close() {
    if (!mailbox_.failure().ok()) { fail(mailbox_.failure()); }
    for (auto const& receive : receives_) {
      if (!receive.taken) { say(receive.message->peer, letter_kind::cancel, receive.message->tag, 0); }
    }
    sends_.clear();
    receives_.clear();
    open_ = false;
  }

  detail::mailbox mailbox_;
  transport_options options_;
  bool open_ = false;
  status failure_;
  std::vector<send_progress> sends_;
  std::vector<receive_progress> receives_;
  std::vector<request> requests_;  // for messages that this rank has not begun to send
};

static_assert(message_transport<transport>);

}  // namespace mpi
BALLAST_END_NAMESPACE

#endif
