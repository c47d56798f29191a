// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_DETAIL_DEEPSEEK_TOURNAMENT_HPP
#define BALLAST_POLICIES_DETAIL_DEEPSEEK_TOURNAMENT_HPP

#include <ballast/config.hpp>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// A complete binary tree over 64-bit keys that knows the least of them. It owns nothing.
///
/// Node 1 is the root, the children of node i are 2i and 2i + 1, and the last half of the nodes are the leaves.
class tournament {
public:
  /// A key that never wins against a real one.
  static constexpr std::uint64_t none = ~std::uint64_t{0};

  /// Nodes that a tournament over `num_keys` keys needs.
  [[nodiscard]] static constexpr std::size_t num_nodes(std::size_t num_keys) noexcept {
    return 2 * std::bit_ceil(num_keys);
  }

  /// @pre `nodes.size()` is `num_nodes` of the number of keys
  explicit constexpr tournament(std::span<std::uint64_t> nodes) noexcept
      : nodes_{nodes.data()}, num_leaves_{nodes.size() / 2} {}

  /// Writable keys, one a leaf; call `build` afterwards.
  [[nodiscard]] constexpr std::span<std::uint64_t> leaves() const noexcept {
    return {nodes_ + num_leaves_, num_leaves_};
  }
  constexpr void build() const noexcept {
    for (std::size_t i = num_leaves_ - 1; i > 0; --i) { nodes_[i] = std::min(nodes_[2 * i], nodes_[2 * i + 1]); }
  }

  [[nodiscard]] constexpr std::uint64_t least() const noexcept { return nodes_[1]; }
  [[nodiscard]] constexpr std::uint64_t operator[](std::size_t leaf) const noexcept {
    return nodes_[num_leaves_ + leaf];
  }
  /// Give a leaf another key. The way up is free of branches: its length does not depend on the keys.
  constexpr void replace(std::size_t leaf, std::uint64_t key) const noexcept {
    std::size_t node = num_leaves_ + leaf;
    nodes_[node] = key;
    for (; node > 1; node /= 2) {
      key = std::min(key, nodes_[node ^ 1]);
      nodes_[node / 2] = key;
    }
  }

private:
  std::uint64_t* nodes_;
  std::size_t num_leaves_;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
