// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_DETAIL_DESCRIPTOR_EXCHANGE_HPP
#define BALLAST_CUDART_DETAIL_DESCRIPTOR_EXCHANGE_HPP

#include <ballast/control/control.hpp>
#include <ballast/cudart/detail/gather_words.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/detail/owned_descriptor.hpp>
#include <ballast/detail/system_failure.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace cudart::detail {

using ballast::detail::owned_descriptor;
using ballast::detail::system_failure;

/// What all ranks know of an exchange before it begins.
struct descriptor_plan {
  std::vector<std::size_t> counts;  ///< [R] descriptors that each rank gives to every other
  std::vector<bool> absent;         ///< [R] ranks that take no part
  index_t namer = 0;                ///< the rank that names the sockets

  [[nodiscard]] bool gives(index_t rank) const noexcept {
    auto const at = static_cast<std::size_t>(rank);
    return !absent[at] && counts[at] > 0;
  }
};

/// One rank's sockets: a connection to each peer where it gives descriptors, and one from each peer that does. They
/// have no place in the file system. Who closes one tells the other that it goes on no more.
class descriptor_channels {
public:
  static constexpr std::size_t most_per_message = 64;

  descriptor_channels(descriptor_plan const& plan, std::uint64_t group, index_t rank)
      : plan_{&plan}, group_{group}, rank_{rank}, to_(plan.counts.size()), from_(plan.counts.size()) {}

  [[nodiscard]] status listen() {
    if (auto result = make_socket(socket_); !result.ok()) { return result; }
    auto const [address, size] = address_of(rank_);
    if (::bind(socket_.get(), reinterpret_cast<::sockaddr const*>(&address), size) != 0) {
      return system_failure("bind", rank_);
    }
    return ::listen(socket_.get(), static_cast<int>(to_.size())) == 0 ? status{} : system_failure("listen", rank_);
  }

  /// @pre every peer listens
  [[nodiscard]] status connect(nanoseconds_t deadline) {
    std::size_t owed = 0;
    for (index_t peer = 0; peer < num_ranks(); ++peer) {
      if (!is_peer(peer)) { continue; }
      if (plan_->gives(peer)) { ++owed; }
      if (!plan_->gives(rank_)) { continue; }
      if (auto result = connect_to(peer, deadline); !result.ok()) { return result; }
    }
    for (; owed > 0; --owed) {
      if (auto result = accept_one(deadline); !result.ok()) { return result; }
    }
    return {};
  }

  /// Give a peer copies of descriptors, and wait until it has them. @pre at most `most_per_message`
  [[nodiscard]] status give(index_t peer, std::span<owned_descriptor const> portion, nanoseconds_t deadline) {
    auto const connection = to_[static_cast<std::size_t>(peer)].get();
    if (auto result = send(peer, connection, portion, deadline); !result.ok()) { return result; }
    signal receipt;
    return receive(peer, connection, receipt.message, deadline);
  }

  /// Take the next portion that a peer gives, and tell it so. @param out out: in the order in which it gave them
  [[nodiscard]] status take(index_t peer, std::vector<owned_descriptor>& out, nanoseconds_t deadline) {
    auto const connection = from_[static_cast<std::size_t>(peer)].get();
    signal with_descriptors;
    control_buffer control;
    auto& message = with_descriptors.message;
    message.msg_control = control.bytes.data();
    message.msg_controllen = control.bytes.size();
    if (auto result = receive(peer, connection, message, deadline); !result.ok()) { return result; }
    out.clear();
    for (auto* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
      if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) { continue; }
      auto const count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (std::size_t i = 0; i < count; ++i) {
        int number = -1;
        std::memcpy(&number, CMSG_DATA(header) + i * sizeof(int), sizeof number);
        out.emplace_back(number);
      }
    }
    if ((message.msg_flags & MSG_CTRUNC) != 0) {
      errno = EMFILE;
      return system_failure("ipc_peers: not all descriptors of a message could be taken", rank_);
    }
    if (out.empty()) {
      return {errc::transport_failed, ballast::detail::concat("ipc_peers: no descriptors in a message of rank ", peer),
              peer};
    }
    return send(peer, connection, {}, deadline);
  }

  /// Go on no more.
  void close() noexcept {
    socket_ = {};
    to_.clear();
    from_.clear();
  }

private:
  /// A message of one byte, which may carry descriptors.
  struct signal {
    signal() noexcept {
      message.msg_iov = &payload;
      message.msg_iovlen = 1;
    }
    signal(signal const&) = delete;
    signal& operator=(signal const&) = delete;

    std::byte sign{};
    ::iovec payload{&sign, sizeof sign};
    ::msghdr message{};
  };
  struct alignas(::cmsghdr) control_buffer {
    std::array<char, CMSG_SPACE(most_per_message * sizeof(int))> bytes{};
  };

  [[nodiscard]] index_t num_ranks() const noexcept { return static_cast<index_t>(to_.size()); }
  [[nodiscard]] bool is_peer(index_t other) const noexcept {
    return other != rank_ && !plan_->absent[static_cast<std::size_t>(other)];
  }
  [[nodiscard]] std::pair<::sockaddr_un, ::socklen_t> address_of(index_t rank) const {
    ::sockaddr_un address{};
    address.sun_family = AF_UNIX;
    auto const name = ballast::detail::concat("ballast-", ballast::detail::hex(group_), "-", rank);
    std::memcpy(address.sun_path + 1, name.data(), name.size());  // a leading zero: the abstract name space
    return {address, static_cast<::socklen_t>(offsetof(::sockaddr_un, sun_path) + 1 + name.size())};
  }
  [[nodiscard]] status make_socket(owned_descriptor& out) const {
    out = owned_descriptor{::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
    return out.is_open() ? status{} : system_failure("socket", rank_);
  }

  /// Repeat a call of the system that would block, or that a limit may let through later, until the deadline.
  /// @return what it returned; where it failed, why is in `errno`
  template <class Call>
  [[nodiscard]] static ::ssize_t patiently(nanoseconds_t deadline, Call call) {
    ::ssize_t result = -1;
    auto const is_over = [&result, &call] {
      result = call();
      return result >= 0 || (errno != EAGAIN && errno != EINTR && errno != ETOOMANYREFS);
    };
    static_cast<void>(ballast::detail::poll_until(deadline, is_over));
    return result;
  }
  /// Why a call that concerns a peer failed.
  [[nodiscard]] status failure(char const* call, index_t peer) const {
    if (errno == EAGAIN || errno == EINTR) {
      return {errc::deadline_exceeded,
              ballast::detail::concat("ipc_peers: rank ", peer, " passed no descriptors on in time"), peer};
    }
    if (errno == EPIPE || errno == ECONNRESET || errno == ECONNREFUSED) { return closed(peer); }
    return system_failure(call, rank_);
  }
  [[nodiscard]] static status closed(index_t peer) {
    return {errc::peer_lost, ballast::detail::concat("ipc_peers: rank ", peer, " closed its descriptor channel"), peer};
  }

  [[nodiscard]] status connect_to(index_t peer, nanoseconds_t deadline) {
    auto& connection = to_[static_cast<std::size_t>(peer)];
    if (auto result = make_socket(connection); !result.ok()) { return result; }
    auto const [address, size] = address_of(peer);
    auto const* const target = reinterpret_cast<::sockaddr const*>(&address);
    auto const length = size;
    auto const call = [&connection, &target, &length] { return ::connect(connection.get(), target, length); };
    if (patiently(deadline, call) < 0) { return failure("connect", peer); }
    auto const introduce = [this, &connection] { return ::send(connection.get(), &rank_, sizeof rank_, MSG_NOSIGNAL); };
    return patiently(deadline, introduce) < 0 ? failure("send", peer) : status{};
  }

  /// Let a peer in. Processes of other users are shown out: the name of a socket is no secret.
  [[nodiscard]] status accept_one(nanoseconds_t deadline) {
    for (;;) {
      auto const call = [this] { return ::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK); };
      owned_descriptor connection{static_cast<int>(patiently(deadline, call))};
      if (!connection.is_open()) { return failure("accept4", first_missing()); }
      ::ucred who{};
      ::socklen_t size = sizeof who;
      if (::getsockopt(connection.get(), SOL_SOCKET, SO_PEERCRED, &who, &size) != 0 || who.uid != ::geteuid()) {
        continue;
      }
      index_t peer = -1;
      auto const hear = [&connection, &peer] { return ::recv(connection.get(), &peer, sizeof peer, 0); };
      auto const heard = patiently(deadline, hear);
      if (heard < 0) { return failure("recv", first_missing()); }
      if (heard != sizeof peer || peer < 0 || peer >= num_ranks()) { continue; }
      from_[static_cast<std::size_t>(peer)] = std::move(connection);
      return {};
    }
  }
  [[nodiscard]] index_t first_missing() const noexcept {
    auto const is_missing = [this](index_t peer) {
      return is_peer(peer) && plan_->gives(peer) && !from_[static_cast<std::size_t>(peer)].is_open();
    };
    index_t peer = 0;
    while (peer + 1 < num_ranks() && !is_missing(peer)) { ++peer; }
    return peer;
  }

  [[nodiscard]] status send(index_t peer, int connection, std::span<owned_descriptor const> descriptors,
                            nanoseconds_t deadline) const {
    signal with_descriptors;
    control_buffer control;
    auto& message = with_descriptors.message;
    if (!descriptors.empty()) {
      message.msg_control = control.bytes.data();
      message.msg_controllen = CMSG_SPACE(descriptors.size() * sizeof(int));
      auto* const header = CMSG_FIRSTHDR(&message);
      header->cmsg_level = SOL_SOCKET;
      header->cmsg_type = SCM_RIGHTS;
      header->cmsg_len = CMSG_LEN(descriptors.size() * sizeof(int));
      for (std::size_t i = 0; i < descriptors.size(); ++i) {
        auto const number = descriptors[i].get();
        std::memcpy(CMSG_DATA(header) + i * sizeof(int), &number, sizeof number);
      }
    }
    auto const call = [&connection, &message] { return ::sendmsg(connection, &message, MSG_NOSIGNAL); };
    return patiently(deadline, call) < 0 ? failure("sendmsg", peer) : status{};
  }

  [[nodiscard]] status receive(index_t peer, int connection, ::msghdr& message, nanoseconds_t deadline) const {
    auto const call = [&connection, &message] { return ::recvmsg(connection, &message, MSG_CMSG_CLOEXEC); };
    auto const size = patiently(deadline, call);
    if (size < 0) { return failure("recvmsg", peer); }
    return size == 0 ? closed(peer) : status{};
  }

  descriptor_plan const* plan_;
  std::uint64_t group_;
  index_t rank_;
  owned_descriptor socket_;
  std::vector<owned_descriptor> to_;    // [R]
  std::vector<owned_descriptor> from_;  // [R]
};

/// A number that no other exchange of this host has.
[[nodiscard]] inline std::uint64_t fresh_group_number() noexcept {
  static std::atomic<std::uint64_t> count{0};
  auto const time = static_cast<std::uint64_t>(ballast::detail::now());
  return static_cast<std::uint64_t>(::getpid()) << 40 ^ time ^ count.fetch_add(1, std::memory_order_relaxed) << 32;
}

/// Descriptors that are open and on their way at once: few beside what a process, and all processes of a user, may
/// have.
[[nodiscard]] inline std::size_t portion_of_descriptors() noexcept {
  return std::clamp<std::size_t>(ballast::detail::descriptor_limit() / 4, 1, descriptor_channels::most_per_message);
}

/// This rank's turn: portion after portion, to one peer after the other.
template <class Export>
[[nodiscard]] status give_descriptors(descriptor_channels& channels, descriptor_plan const& plan, index_t rank,
                                      Export& export_piece, nanoseconds_t deadline) {
  auto const count = plan.counts[static_cast<std::size_t>(rank)];
  auto const most = portion_of_descriptors();
  for (std::size_t first = 0; first < count; first += most) {
    std::vector<owned_descriptor> portion;
    for (auto i = first; i < std::min(first + most, count); ++i) {
      if (auto result = export_piece(i, portion.emplace_back()); !result.ok()) { return result; }
    }
    for (std::size_t peer = 0; peer < plan.counts.size(); ++peer) {
      if (static_cast<index_t>(peer) == rank || plan.absent[peer]) { continue; }
      if (auto result = channels.give(static_cast<index_t>(peer), portion, deadline); !result.ok()) { return result; }
    }
  }
  return {};
}

/// A peer's turn. What has come is used and closed while the peer gives it to the next rank.
template <class Import>
[[nodiscard]] status take_descriptors(descriptor_channels& channels, descriptor_plan const& plan, index_t peer,
                                      Import& import_piece, nanoseconds_t deadline) {
  auto const count = plan.counts[static_cast<std::size_t>(peer)];
  for (std::size_t taken = 0; taken < count;) {
    std::vector<owned_descriptor> portion;
    if (auto result = channels.take(peer, portion, deadline); !result.ok()) { return result; }
    if (portion.size() > count - taken) { portion.resize(count - taken); }
    for (auto& descriptor : portion) {
      if (auto result = import_piece(peer, taken++, descriptor.get()); !result.ok()) { return result; }
      owned_descriptor const used{std::move(descriptor)};
    }
  }
  return {};
}

/// Give every rank copies of this rank's descriptors, and take theirs, all ranks together. One rank after the other
/// gives, and of all ranks' descriptors at most `portion_of_descriptors()` are open at the giver, and as many on their
/// way or open at each taker. When nobody has any, nothing happens.
///
/// @param plan          the same on all ranks.
/// @param export_piece  `status(std::size_t i, owned_descriptor& out)` makes this rank's i-th descriptor.
/// @param import_piece  `status(index_t peer, std::size_t i, int descriptor)` uses a peer's i-th, which is closed
///                      behind it.
/// @param deadline      of everything together.
/// @return on every rank a failure where one has failed: its own there; see `meet`.
template <control_plane Control, class Export, class Import>
[[nodiscard]] status exchange_descriptors(Control& control, descriptor_plan const& plan, Export export_piece,
                                          Import import_piece, nanoseconds_t deadline) {
  if (std::all_of(plan.counts.begin(), plan.counts.end(), [](std::size_t count) { return count == 0; })) { return {}; }
  auto group = fresh_group_number();
  if (auto result = control.broadcast(std::as_writable_bytes(std::span{&group, 1}), plan.namer,
                                      ballast::detail::time_until(deadline));
      !result.ok()) {
    return result;
  }
  descriptor_channels channels{plan, group, control.rank()};
  if (auto result = meet(control, channels.listen(), deadline); !result.ok()) { return result; }
  auto result = channels.connect(deadline);
  for (index_t giver = 0; giver < control.num_ranks() && result.ok(); ++giver) {
    if (!plan.gives(giver)) { continue; }
    result = giver == control.rank() ? give_descriptors(channels, plan, giver, export_piece, deadline)
                                     : take_descriptors(channels, plan, giver, import_piece, deadline);
  }
  // A rank that is well keeps its channels until all are done.
  if (!result.ok()) { channels.close(); }
  return meet(control, std::move(result), deadline);
}

}  // namespace cudart::detail
BALLAST_END_NAMESPACE

#endif
