// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CONTROL_DETAIL_NODE_PLANE_HPP
#define BALLAST_CONTROL_DETAIL_NODE_PLANE_HPP

#include <ballast/control/control.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// The ranks of one node as a group, seen through a control plane of all ranks.
///
/// All ranks of all nodes make the same calls together. What a rank gives reaches its own node; a vote commits only if
/// all ranks of all nodes say yes.
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

  /// @complexity one all-gather over all ranks; R * `values.size()` words
  [[nodiscard]] status all_reduce(std::span<std::int64_t> values, nanoseconds_t timeout) {
    std::vector<std::uint64_t> const mine(values.begin(), values.end());
    std::vector<std::uint64_t> node(mine.size() * static_cast<std::size_t>(count_));
    if (auto result = all_gather(mine, node, timeout); !result.ok()) { return result; }
    std::fill(values.begin(), values.end(), 0);
    for (std::size_t i = 0; i < node.size(); ++i) { values[i % values.size()] += static_cast<std::int64_t>(node[i]); }
    return {};
  }
  /// @complexity one all-gather over all ranks; R * `mine.size()` words
  [[nodiscard]] status all_gather(std::span<std::uint64_t const> mine, std::span<std::uint64_t> node,
                                  nanoseconds_t timeout) {
    std::vector<std::uint64_t> all(mine.size() * static_cast<std::size_t>(all_->num_ranks()));
    if (auto result = all_->all_gather(mine, all, timeout); !result.ok()) { return result; }
    auto const begin = mine.size() * static_cast<std::size_t>(first_);
    std::copy_n(all.begin() + static_cast<std::ptrdiff_t>(begin), node.size(), node.begin());
    return {};
  }
  /// @complexity one all-gather over all ranks of as many bytes
  [[nodiscard]] status broadcast(std::span<std::byte> bytes, index_t root, nanoseconds_t timeout) {
    auto const words = (bytes.size() + sizeof(std::uint64_t) - 1) / sizeof(std::uint64_t);
    std::vector<std::uint64_t> mine(words);
    std::memcpy(mine.data(), bytes.data(), bytes.size());
    std::vector<std::uint64_t> node(words * static_cast<std::size_t>(count_));
    if (auto result = all_gather(mine, node, timeout); !result.ok()) { return result; }
    std::memcpy(bytes.data(), node.data() + words * static_cast<std::size_t>(root), bytes.size());
    return {};
  }
  [[nodiscard]] vote_result vote(bool yes, nanoseconds_t timeout) { return all_->vote(yes, timeout); }
  [[nodiscard]] vote_result recall(nanoseconds_t timeout) { return all_->recall(timeout); }

private:
  Control* all_;
  index_t first_;
  index_t count_;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
