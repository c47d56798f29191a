// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CONTROL_DETAIL_NODE_PLANE_HPP
#define BALLAST_CONTROL_DETAIL_NODE_PLANE_HPP

#include <ballast/control/control.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// The ranks of one node as a group, seen through a control plane of all ranks.
///
/// All ranks of all nodes make the same calls together. What a rank gives reaches its own node; a vote commits only if
/// all ranks of all nodes say yes. Statuses count ranks within the node too: one of another node is `no_rank` there,
/// and in the words only.
///
/// @threads that of the control plane.
template <control_plane Control>
class node_plane {
public:
  /// @param first  the node's first rank. @param count the ranks of a node, the same for all nodes
  node_plane(Control& all, index_t first, index_t count) : all_{&all}, first_{first}, count_{count} {}

  [[nodiscard]] index_t rank() const noexcept { return all_->rank() - first_; }
  [[nodiscard]] index_t num_ranks() const noexcept { return count_; }
  [[nodiscard]] std::uint64_t membership() const { return all_->membership(); }

  [[nodiscard]] bool is_expelled(index_t rank) const
    requires expelling_plane<Control>
  {
    return all_->is_expelled(first_ + rank);
  }

  /// @complexity one all-gather over all ranks; R * (`values.size()` + 1) words
  [[nodiscard]] status all_reduce(std::span<std::int64_t> values, nanoseconds_t timeout) {
    std::vector<std::uint64_t> const mine(values.begin(), values.end());
    gathered node;
    if (auto result = gather(mine, node, timeout); !result.ok()) { return result; }
    std::fill(values.begin(), values.end(), 0);
    for (index_t rank = 0; rank < count_; ++rank) {
      if (!node.is_live(rank)) { continue; }
      auto const theirs = node.of(rank);
      for (std::size_t i = 0; i < values.size(); ++i) { values[i] += static_cast<std::int64_t>(theirs[i]); }
    }
    return {};
  }
  /// Words of the node's lowest live rank stand in for those of an expelled one.
  /// @complexity one all-gather over all ranks; R * (`mine.size()` + 1) words
  [[nodiscard]] status all_gather(std::span<std::uint64_t const> mine, std::span<std::uint64_t> out,
                                  nanoseconds_t timeout) {
    gathered node;
    if (auto result = gather(mine, node, timeout); !result.ok()) { return result; }
    index_t lowest = 0;
    while (lowest < rank() && !node.is_live(lowest)) { ++lowest; }
    for (index_t r = 0; r < count_; ++r) {
      auto const theirs = node.of(node.is_live(r) ? r : lowest);
      std::ranges::copy(theirs, out.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(r) * mine.size()));
    }
    return {};
  }
  /// @return `errc::peer_lost` for a root that was expelled; all ranks have taken part then.
  /// @complexity one all-gather over all ranks of as many bytes and a word
  [[nodiscard]] status broadcast(std::span<std::byte> bytes, index_t root, nanoseconds_t timeout) {
    auto const words = (bytes.size() + sizeof(std::uint64_t) - 1) / sizeof(std::uint64_t);
    std::vector<std::uint64_t> mine(words);
    if (!bytes.empty()) { std::memcpy(mine.data(), bytes.data(), bytes.size()); }
    gathered node;
    if (auto result = gather(mine, node, timeout); !result.ok()) { return result; }
    if (!node.is_live(root)) { return {errc::peer_lost, concat("broadcast: root rank ", root, " was expelled"), root}; }
    if (!bytes.empty()) { std::memcpy(bytes.data(), node.of(root).data(), bytes.size()); }
    return {};
  }
  [[nodiscard]] vote_result vote(bool yes, nanoseconds_t timeout) { return within_node(all_->vote(yes, timeout)); }
  [[nodiscard]] vote_result recall(nanoseconds_t timeout) { return within_node(all_->recall(timeout)); }

private:
  /// The words of each rank of the node. Before them its number among all ranks: another one's where it was expelled.
  struct gathered {
    index_t first = 0;
    std::size_t words = 0;  // of a rank
    std::vector<std::uint64_t> all;

    [[nodiscard]] std::span<std::uint64_t const> frame_of(index_t rank) const noexcept {
      return std::span{all}.subspan(static_cast<std::size_t>(first + rank) * words, words);
    }
    [[nodiscard]] bool is_live(index_t rank) const noexcept {
      return frame_of(rank)[0] == static_cast<std::uint64_t>(first + rank);
    }
    [[nodiscard]] std::span<std::uint64_t const> of(index_t rank) const noexcept { return frame_of(rank).subspan(1); }
  };

  [[nodiscard]] status within_node(status result) const {
    if (result.rank() == status::no_rank) { return result; }
    auto const rank = result.rank() - first_;
    bool const is_here = rank >= 0 && rank < count_;
    return {result.code(), result.message(), is_here ? rank : status::no_rank};
  }
  [[nodiscard]] vote_result within_node(vote_result result) const {
    result.reason = within_node(std::move(result.reason));
    return result;
  }

  [[nodiscard]] status gather(std::span<std::uint64_t const> mine, gathered& out, nanoseconds_t timeout) {
    std::vector<std::uint64_t> tagged{static_cast<std::uint64_t>(all_->rank())};
    tagged.insert(tagged.end(), mine.begin(), mine.end());
    out = {first_, tagged.size(),
           std::vector<std::uint64_t>(tagged.size() * static_cast<std::size_t>(all_->num_ranks()))};
    return within_node(all_->all_gather(tagged, out.all, timeout));
  }

  Control* all_;
  index_t first_;
  index_t count_;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
