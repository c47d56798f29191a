// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_DETAIL_DESCRIPTOR_EXCHANGE_HPP
#define BALLAST_CUDART_DETAIL_DESCRIPTOR_EXCHANGE_HPP

#include <ballast/cudart/detail/gather_words.hpp>
#include <ballast/cudart/detail/shared_boards.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>
#include <ballast/transport/control.hpp>
#include <ballast/types.hpp>

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
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

/// Owns a file descriptor.
class owned_descriptor {
public:
  owned_descriptor() = default;
  explicit owned_descriptor(int number) noexcept : number_{number} {}
  owned_descriptor(owned_descriptor&& other) noexcept : number_{std::exchange(other.number_, -1)} {}
  owned_descriptor& operator=(owned_descriptor&& other) noexcept {
    std::swap(number_, other.number_);
    return *this;
  }
  ~owned_descriptor() {
    if (number_ >= 0) { ::close(number_); }
  }
  [[nodiscard]] int get() const noexcept { return number_; }

private:
  int number_ = -1;
};

/// Passes file descriptors to the other processes of a host, through sockets without a place in the file system.
class descriptor_mail {
public:
  /// Listen under a name that no other group uses.
  [[nodiscard]] status open(std::uint64_t group, index_t rank, int backlog) {
    socket_ = owned_descriptor{::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)};
    if (socket_.get() < 0) { return system_failure("socket"); }
    auto const [address, size] = address_of(group, rank);
    if (::bind(socket_.get(), reinterpret_cast<::sockaddr const*>(&address), size) != 0) {
      return system_failure("bind");
    }
    if (::listen(socket_.get(), backlog) != 0) { return system_failure("listen"); }
    return {};
  }

  /// Give a peer that listens copies of descriptors. @lifetime the connection stays until the mail closes.
  [[nodiscard]] status send(std::uint64_t group, index_t from, index_t to,
                            std::span<owned_descriptor const> descriptors) {
    owned_descriptor connection{::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)};
    if (connection.get() < 0) { return system_failure("socket"); }
    auto const [address, size] = address_of(group, to);
    if (::connect(connection.get(), reinterpret_cast<::sockaddr const*>(&address), size) != 0) {
      return system_failure("connect");
    }
    for (std::size_t first = 0; first < descriptors.size(); first += most_per_message) {
      auto const part = descriptors.subspan(first, std::min(most_per_message, descriptors.size() - first));
      if (auto result = send_part(connection.get(), from, part); !result.ok()) { return result; }
    }
    connections_.push_back(std::move(connection));
    return {};
  }

  /// Take what one peer sent. @param counts [R] descriptors that each peer owes us @param out in/out: [R]
  [[nodiscard]] status receive(std::span<std::size_t const> counts, std::vector<std::vector<owned_descriptor>>& out,
                               nanoseconds_t deadline) {
    if (auto result = wait_for(socket_.get(), deadline); !result.ok()) { return result; }
    owned_descriptor const connection{::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC)};
    if (connection.get() < 0) { return system_failure("accept4"); }
    std::size_t taken = 0;
    std::size_t owed = 1;
    while (taken < owed) {
      if (auto result = wait_for(connection.get(), deadline); !result.ok()) { return result; }
      auto const before = taken;
      if (auto result = receive_part(connection.get(), counts, out, taken, owed); !result.ok()) { return result; }
      if (taken == before) { return {errc::peer_lost, "ipc_peers: a peer closed its descriptor channel"}; }
    }
    return {};
  }

private:
  static constexpr std::size_t most_per_message = 200;  // the kernel takes 253
  struct alignas(::cmsghdr) control_buffer {
    std::array<char, CMSG_SPACE(most_per_message * sizeof(int))> bytes{};
  };

  [[nodiscard]] static std::pair<::sockaddr_un, ::socklen_t> address_of(std::uint64_t group, index_t rank) {
    ::sockaddr_un address{};
    address.sun_family = AF_UNIX;
    auto const name = ballast::detail::concat("ballast-", ballast::detail::hex(group), "-", rank);
    std::memcpy(address.sun_path + 1, name.data(), name.size());  // a leading zero: the abstract name space
    return {address, static_cast<::socklen_t>(offsetof(::sockaddr_un, sun_path) + 1 + name.size())};
  }

  [[nodiscard]] static status send_part(int connection, index_t from, std::span<owned_descriptor const> descriptors) {
    ::iovec payload{&from, sizeof from};
    control_buffer control;
    ::msghdr message{};
    message.msg_iov = &payload;
    message.msg_iovlen = 1;
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
    return ::sendmsg(connection, &message, MSG_NOSIGNAL) < 0 ? system_failure("sendmsg") : status{};
  }

  [[nodiscard]] static status receive_part(int connection, std::span<std::size_t const> counts,
                                           std::vector<std::vector<owned_descriptor>>& out, std::size_t& taken,
                                           std::size_t& owed) {
    index_t from = -1;
    ::iovec payload{&from, sizeof from};
    control_buffer control;
    ::msghdr message{};
    message.msg_iov = &payload;
    message.msg_iovlen = 1;
    message.msg_control = control.bytes.data();
    message.msg_controllen = control.bytes.size();
    if (::recvmsg(connection, &message, MSG_CMSG_CLOEXEC) < 0) { return system_failure("recvmsg"); }
    auto const* const header = CMSG_FIRSTHDR(&message);
    if (header == nullptr || from < 0 || static_cast<std::size_t>(from) >= out.size()) { return {}; }
    owed = counts[static_cast<std::size_t>(from)];
    auto const count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i, ++taken) {
      int number = -1;
      std::memcpy(&number, CMSG_DATA(header) + i * sizeof(int), sizeof number);
      out[static_cast<std::size_t>(from)].emplace_back(number);
    }
    return {};
  }

  [[nodiscard]] static status wait_for(int descriptor, nanoseconds_t deadline) {
    for (;;) {
      auto const left = ballast::detail::time_until(deadline);
      if (left == 0) { return {errc::deadline_exceeded, "ipc_peers: a peer sent no descriptors in time"}; }
      ::pollfd wanted{descriptor, POLLIN, 0};
      constexpr nanoseconds_t longest = 3'600'000;  // milliseconds, so that they fit
      auto const ready = ::poll(&wanted, 1, static_cast<int>(std::min(left / 1'000'000 + 1, longest)));
      if (ready > 0) { return {}; }
      if (ready < 0 && errno != EINTR) { return system_failure("poll"); }
    }
  }

  owned_descriptor socket_;
  std::vector<owned_descriptor> connections_;
};

/// Give every rank copies of this rank's descriptors, and take theirs.
///
/// @param mine    descriptors of this rank.
/// @param counts  [R] how many each rank has; when nobody has any, nothing happens.
/// @param absent  [R] ranks that take no part.
/// @param namer   the rank that names the group, the same on all.
/// @param out     out: [R] theirs, in their order.
template <control_plane Control>
[[nodiscard]] status exchange_descriptors(Control& control, std::span<owned_descriptor const> mine,
                                          std::span<std::size_t const> counts, std::vector<bool> const& absent,
                                          index_t namer, std::vector<std::vector<owned_descriptor>>& out,
                                          nanoseconds_t timeout) {
  if (std::all_of(counts.begin(), counts.end(), [](std::size_t count) { return count == 0; })) { return {}; }
  std::uint64_t group =
      static_cast<std::uint64_t>(::getpid()) << 40 ^ static_cast<std::uint64_t>(ballast::detail::now());
  if (auto result = control.broadcast(std::as_writable_bytes(std::span{&group, 1}), namer, timeout); !result.ok()) {
    return result;
  }
  descriptor_mail mail;
  auto const rank = control.rank();
  if (auto result = meet(control, mail.open(group, rank, control.num_ranks()), timeout); !result.ok()) {
    return result;
  }
  status result;
  for (index_t peer = 0; peer < control.num_ranks() && result.ok() && !mine.empty(); ++peer) {
    if (peer != rank && !absent[static_cast<std::size_t>(peer)]) { result = mail.send(group, rank, peer, mine); }
  }
  auto const deadline = ballast::detail::deadline_after(timeout);
  for (std::size_t peer = 0; peer < counts.size() && result.ok(); ++peer) {
    if (static_cast<index_t>(peer) != rank && counts[peer] > 0) { result = mail.receive(counts, out, deadline); }
  }
  return meet(control, std::move(result), timeout);
}

}  // namespace cudart::detail
BALLAST_END_NAMESPACE

#endif
