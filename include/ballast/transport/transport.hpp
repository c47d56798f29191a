// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TRANSPORT_TRANSPORT_HPP
#define BALLAST_TRANSPORT_TRANSPORT_HPP

#include <ballast/status.hpp>
#include <ballast/transport/turns.hpp>
#include <ballast/types.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

BALLAST_BEGIN_NAMESPACE

/// A run of bytes on this rank, in whatever memory the transport moves (host or device).
struct segment {
  std::byte* data = nullptr;
  std::size_t size = 0;

  bool operator==(segment const&) const = default;
};

/// A run of bytes in a region that a peer registered: what a one-sided transport reads.
struct remote_segment {
  std::uint32_t region = 0;  ///< number of the region, from the `first` that it was exposed with on
  std::uint64_t offset = 0;  ///< bytes from the region's start
  std::size_t size = 0;

  bool operator==(remote_segment const&) const = default;
};

/// One message of a batch, seen from the rank that gives the bytes.
struct outgoing_message {
  index_t peer = 0;       ///< rank that receives
  index_t round = 0;      ///< a rank sends and receives at most one message a round; rounds ascend within a batch
  std::uint64_t tag = 0;  ///< the same at both ends, never used again in the life of the transport
  std::span<segment const> segments;  ///< read in order, as if they were one run
};

/// One message of a batch, seen from the rank that takes the bytes.
struct incoming_message {
  index_t peer = 0;                        ///< rank that sends
  index_t round = 0;                       ///< as the sender's
  std::uint64_t tag = 0;                   ///< as the sender's
  std::span<segment const> segments;       ///< written in order; total size as the sender's
  std::span<remote_segment const> source;  ///< where the peer's segments lie, for one-sided transports
};

/// Where a batch stands.
enum class transfer_state {
  idle,     ///< no batch is open
  pending,  ///< bytes are on their way
  done,     ///< every message of this rank has been sent and received
  failed,   ///< `wait` tells why
};

/// Moves the bytes of one batch at a time between the ranks of a group.
///
/// @par Semantics
/// `start(sends, receives)` opens a batch and returns without waiting for peers; messages and segments must stay alive
/// until the batch ends. `poll()` makes progress and tells where the batch stands. `wait(timeout)` makes progress until
/// the batch is done, failed, or `timeout` nanoseconds have passed; it ends the batch, and after a failure nothing of
/// it touches the given memory any more, unless the transport is a `late_writer`. A tag that arrives twice, or with
/// another size, is a failure or is dropped, never delivered to another message. Ranks may start a batch at different
/// times. `start` while a batch is open is refused with `errc::busy`.
template <class T>
concept data_transport = requires(T& t, T const& c, std::span<outgoing_message const> sends,
                                  std::span<incoming_message const> receives, nanoseconds_t timeout) {
  { c.rank() } noexcept -> std::same_as<index_t>;
  { c.num_ranks() } noexcept -> std::same_as<index_t>;
  { t.start(sends, receives) } -> std::same_as<status>;
  { t.poll() } -> std::same_as<transfer_state>;
  { t.wait(timeout) } -> std::same_as<status>;
};

/// A transport that several users may share. All of ballast's are.
///
/// @par Semantics
/// `turns()` is one object for the transport's life. Users take turns there, so that their batches do not meet, and
/// take tags from there that nobody has used before. A transport without it serves one user at a time.
template <class T>
concept shared_transport = data_transport<T> && requires(T& t) {
  { t.turns() } noexcept -> std::same_as<transfer_turns&>;
};

/// A two-sided data transport: sender and receiver both take part (NCCL, MPI, in-process).
template <class T>
concept message_transport = data_transport<T> && !requires(T& t, std::span<segment const> regions,
                                                           std::uint32_t first) { t.expose(regions, first); };

/// A one-sided data transport: each rank reads its peers' registered memory (cudaMemcpyPeer over IPC,
/// process_vm_readv).
///
/// @par Semantics
/// `expose(regions, first)` makes this rank's memory readable, in the same order on every rank, before the first batch
/// that reads it: region i has number `first + i`. It may exchange handles with the peers and so is called by all ranks
/// together, with the same `first`. A transport may be given several sets of regions, one after the other: those of a
/// second model leave those of the first as they are. `first` is at least `next_region()` on every rank, else
/// `errc::invalid_option`; numbers are not used again. `retract(first)` forgets the set that was exposed with that
/// `first`, on this rank alone; no batch may need it any more.
template <class T>
concept peer_copier =
    data_transport<T> && requires(T& t, T const& c, std::span<segment const> regions, std::uint32_t first) {
      { t.expose(regions, first) } -> std::same_as<status>;
      { t.retract(first) } noexcept -> std::same_as<void>;
      { c.next_region() } noexcept -> std::same_as<std::uint32_t>;
    };

/// A data transport that can tell what the device took to receive.
///
/// @par Semantics
/// `receive_time()` belongs to the batch that `wait` last ended well: nanoseconds from the start of its first copy on
/// this rank's device to the end of the last. 0 before the first such batch, and for one that gives this rank's device
/// nothing to do; always `not_measured` where measuring is switched off.
template <class T>
concept receive_timer = data_transport<T> && requires(T const& c) {
  { c.receive_time() } noexcept -> std::same_as<nanoseconds_t>;
};

/// A transport whose bytes may move only while a rank is inside `wait`. Without the member they move in `poll` too.
///
/// @par Semantics
/// `moves_in_poll()` never changes. Where it is false, asynchronous mode is refused: it only polls.
template <class T>
concept waiting_transport = requires(T const& t) {
  { t.moves_in_poll() } noexcept -> std::same_as<bool>;
};

/// A transport that cannot always take back what it has begun.
///
/// @par Semantics
/// `may_write(receives)` says whether bytes of a batch that was given up may still arrive where these are received.
template <class T>
concept late_writer = requires(T& t, std::span<incoming_message const> receives) {
  { t.may_write(receives) } -> std::same_as<bool>;
};

/// A transport that a failed batch leaves unable to open another until the ranks meet.
///
/// @par Semantics
/// `needs_repair()` says that it does. `repair(control, timeout)` is a collective of all live ranks, called by `resume`
/// on all of them when any needs it, and makes the transport usable again on all or fails on all.
template <class T, class Control>
concept repairable_transport = requires(T& t, T const& c, Control& control, nanoseconds_t timeout) {
  { c.needs_repair() } noexcept -> std::same_as<bool>;
  { t.repair(control, timeout) } -> std::same_as<status>;
};

namespace detail {

template <class Transport>
[[nodiscard]] bool moves_in_poll(Transport const& transport) noexcept {
  if constexpr (waiting_transport<Transport>) {
    return transport.moves_in_poll();
  } else {
    return true;
  }
}

template <class Transport>
[[nodiscard]] bool may_write([[maybe_unused]] Transport& transport,
                             [[maybe_unused]] std::span<incoming_message const> receives) {
  if constexpr (late_writer<Transport>) {
    return !receives.empty() && transport.may_write(receives);
  } else {
    return false;
  }
}
/// Whether bytes of a batch that was given up may still arrive anywhere in some memory of this rank.
template <class Transport>
[[nodiscard]] bool may_write_to(Transport& transport, segment where) {
  incoming_message const receive{transport.rank(), 0, 0, {&where, 1}, {}};
  return where.size > 0 && may_write(transport, {&receive, 1});
}

template <class Control, class Transport>
[[nodiscard]] bool needs_repair(Transport const& transport) noexcept {
  if constexpr (repairable_transport<Transport, Control>) {
    return transport.needs_repair();
  } else {
    return false;
  }
}
template <class Transport, class Control>
[[nodiscard]] status repair(Transport& transport, Control& control, nanoseconds_t timeout) {
  if constexpr (repairable_transport<Transport, Control>) {
    return transport.repair(control, timeout);
  } else {
    return {};
  }
}

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
