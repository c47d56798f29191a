// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_MIGRATION_ROUNDS_HPP
#define BALLAST_MIGRATION_ROUNDS_HPP

#include <ballast/contract.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE

/// Ranks at the two ends of a message.
struct message_ends {
  index_t sender = 0;
  index_t receiver = 0;
};

/// Cuts messages into rounds in which every rank sends at most one and receives at most one.
///
/// Senders and receivers are the two sides of a bipartite multigraph whose edges are the messages, so as many rounds as
/// the busiest (rank, direction) has messages always suffice (König). Messages are coloured one by one; where the first
/// free rounds of the two ends differ, the path that alternates between those rounds is flipped.
class round_coloring {
public:
  /// Give every message a round; `round_of` tells it.
  ///
  /// @param num_ranks  R.
  /// @param messages   [M] ends, each in [0, R).
  /// @return the number of rounds: the largest number of messages that one rank sends, or that one receives.
  /// @complexity O(M (rounds + R)), no allocation once storage has grown.
  /// @throws std::bad_alloc
  /// @determinism depends on the order of the messages alone.
  index_t assign(index_t num_ranks, std::span<message_ends const> messages) {
    num_ranks_ = num_ranks;
    num_rounds_ = busiest(num_ranks, messages);
    auto const cells = static_cast<std::size_t>(2 * num_ranks) * static_cast<std::size_t>(num_rounds_);
    message_at_.assign(cells, none);
    rounds_.assign(messages.size(), 0);
    for (std::size_t m = 0; m < messages.size(); ++m) { place(messages, static_cast<index_t>(m)); }
    return num_rounds_;
  }

  /// Round of message `m` of the last `assign`, in [0, rounds).
  [[nodiscard]] index_t round_of(std::size_t m) const {
    BALLAST_EXPECTS(m < rounds_.size(), "round_coloring: message out of range");
    return rounds_[m];
  }

private:
  static constexpr index_t none = -1;

  [[nodiscard]] index_t busiest(index_t num_ranks, std::span<message_ends const> messages) {
    degree_.assign(static_cast<std::size_t>(2 * num_ranks), 0);
    index_t most = 0;
    for (auto const& ends : messages) {
      BALLAST_EXPECTS(ends.sender >= 0 && ends.sender < num_ranks && ends.receiver >= 0 && ends.receiver < num_ranks,
                      "round_coloring: rank out of range");
      most = std::max({most, ++degree_[static_cast<std::size_t>(ends.sender)],
                       ++degree_[static_cast<std::size_t>(num_ranks + ends.receiver)]});
    }
    return most;
  }

  // An endpoint is a sender (its rank) or a receiver (R + its rank).
  [[nodiscard]] index_t& message_at(index_t endpoint, index_t round) {
    return message_at_[static_cast<std::size_t>(endpoint) * static_cast<std::size_t>(num_rounds_) +
                       static_cast<std::size_t>(round)];
  }
  [[nodiscard]] index_t first_free(index_t endpoint) {
    index_t round = 0;
    while (message_at(endpoint, round) != none) { ++round; }
    return round;
  }

  void place(std::span<message_ends const> messages, index_t m) {
    auto const& ends = messages[static_cast<std::size_t>(m)];
    auto const receiver = num_ranks_ + ends.receiver;
    auto const round = first_free(ends.sender);
    auto const other = first_free(receiver);
    if (message_at(receiver, round) != none) { flip(messages, receiver, round, other); }
    rounds_[static_cast<std::size_t>(m)] = round;
    message_at(ends.sender, round) = m;
    message_at(receiver, round) = m;
  }

  // Free `round` at `endpoint`, where `other` is free: swap the two rounds along the path of their messages. The path
  // cannot end at the sender being served, because it would have to reach it by `round`, which is free there.
  void flip(std::span<message_ends const> messages, index_t endpoint, index_t round, index_t other) {
    path_.clear();
    for (auto at = endpoint, by = round, next = other; message_at(at, by) != none; std::swap(by, next)) {
      auto const m = message_at(at, by);
      path_.push_back(m);
      auto const& ends = messages[static_cast<std::size_t>(m)];
      at = at < num_ranks_ ? num_ranks_ + ends.receiver : ends.sender;
    }
    for (auto const m : path_) { set(messages, m, none); }
    for (auto const m : path_) {
      auto& color = rounds_[static_cast<std::size_t>(m)];
      color = color == round ? other : round;
    }
    for (auto const m : path_) { set(messages, m, m); }
  }

  void set(std::span<message_ends const> messages, index_t m, index_t value) {
    auto const& ends = messages[static_cast<std::size_t>(m)];
    auto const round = rounds_[static_cast<std::size_t>(m)];
    message_at(ends.sender, round) = value;
    message_at(num_ranks_ + ends.receiver, round) = value;
  }

  index_t num_ranks_ = 0;
  index_t num_rounds_ = 0;
  std::vector<index_t> degree_;      // [2R]
  std::vector<index_t> message_at_;  // [2R, rounds] message of an endpoint in a round, or none
  std::vector<index_t> rounds_;      // [M]
  std::vector<index_t> path_;
};

BALLAST_END_NAMESPACE

#endif
