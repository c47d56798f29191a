// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_LAYOUT_PLAN_MEMORY_HPP
#define BALLAST_CUDART_LAYOUT_PLAN_MEMORY_HPP

#include <ballast/config.hpp>
#include <ballast/shares/quota_row.hpp>
#include <ballast/types.hpp>

#include <cstddef>
#include <cstdint>

BALLAST_BEGIN_NAMESPACE
namespace cudart {

/// A pair of replicas as sweeps want it: where its flows and its ranks' loads are, as addresses of shared memory.
struct alignas(16) sweep_pair {
  std::uint32_t flow_a;
  std::uint32_t flow_b;
  std::uint32_t load_a;
  std::uint32_t load_b;
};

/// Where the arrays of the block that plans begin in its shared memory, in bytes: a copy of the layer's row without
/// entries first, behind it what is worked out. Worked out once, so that the kernel need not.
struct plan_layout {
  plan_layout() = default;
  /// @param warm_start  there is to be room for parts to start from.
  constexpr plan_layout(quota_shape const& shape, bool warm_start) noexcept : row{shape}, size{row.entries} {
    auto const add = [this](std::uint32_t& begin, std::size_t bytes, index_t count) {
      begin = size;
      size += static_cast<std::uint32_t>((bytes * static_cast<std::size_t>(count) + 15) / 16 * 16);
    };
    add(nobody, sizeof(sweep_pair), 32);
    add(sweep_pairs, sizeof(sweep_pair), shape.max_pairs());
    add(group_ranks, sizeof(std::uint64_t), shape.max_groups());
    add(own, sizeof(index_t), shape.num_logical + 1);
    add(tokens, sizeof(index_t), shape.num_logical + 1);
    add(load, sizeof(index_t), shape.num_ranks);
    add(level, sizeof(index_t), shape.num_ranks);
    add(reached, sizeof(index_t), shape.num_ranks);
    add(flow, sizeof(index_t), shape.max_movable());
    add(start, sizeof(index_t), warm_start ? shape.max_movable() : 0);
    add(counts, sizeof(index_t), shape.max_groups() * shape.num_ranks);
  }
  /// Bytes without `counts`.
  [[nodiscard]] constexpr std::uint32_t size_without_counts() const noexcept { return counts; }

  quota_layout row;
  std::uint32_t nobody = 0;       ///< [32] zeros, for lanes without a pair
  std::uint32_t sweep_pairs = 0;  ///< [pairs]
  std::uint32_t group_ranks = 0;  ///< [groups] the group's ranks, one bit each, for up to 64 ranks
  std::uint32_t own = 0;          ///< [E] this rank's tokens, and a zero
  std::uint32_t tokens = 0;       ///< [E] all ranks' tokens
  std::uint32_t load = 0;         ///< [R] tiles
  std::uint32_t level = 0;        ///< [R] hops from the nearest rank that a search started from
  std::uint32_t reached = 0;      ///< [R] by the step of a search that is under way, for more than 64 ranks; before
                                  ///< that, tiles by the shares in force
  std::uint32_t flow = 0;         ///< [movable] tiles, later tokens
  std::uint32_t start = 0;        ///< [movable] parts to start from, where an earlier batch has left some
  std::uint32_t counts = 0;       ///< [groups, R] tokens of each source rank, where there is room
  std::uint32_t size = 0;
};

/// The shared memory of that block.
class plan_memory {
public:
  BALLAST_HOST_DEVICE constexpr plan_memory(plan_layout const& layout, std::byte* memory) noexcept
      : layout_{layout}, memory_{memory} {}

  [[nodiscard]] BALLAST_HOST_DEVICE quota_row_writer row() const noexcept { return {layout_.row, memory_}; }
  [[nodiscard]] BALLAST_HOST_DEVICE index_t* nobody() const noexcept { return at<index_t>(layout_.nobody); }
  [[nodiscard]] BALLAST_HOST_DEVICE sweep_pair* sweep_pairs() const noexcept {
    return at<sweep_pair>(layout_.sweep_pairs);
  }
  [[nodiscard]] BALLAST_HOST_DEVICE std::uint64_t* group_ranks() const noexcept {
    return at<std::uint64_t>(layout_.group_ranks);
  }
  [[nodiscard]] BALLAST_HOST_DEVICE index_t* own() const noexcept { return at<index_t>(layout_.own); }
  [[nodiscard]] BALLAST_HOST_DEVICE index_t* tokens() const noexcept { return at<index_t>(layout_.tokens); }
  [[nodiscard]] BALLAST_HOST_DEVICE index_t* load() const noexcept { return at<index_t>(layout_.load); }
  [[nodiscard]] BALLAST_HOST_DEVICE index_t* level() const noexcept { return at<index_t>(layout_.level); }
  [[nodiscard]] BALLAST_HOST_DEVICE index_t* reached() const noexcept { return at<index_t>(layout_.reached); }
  [[nodiscard]] BALLAST_HOST_DEVICE index_t* flow() const noexcept { return at<index_t>(layout_.flow); }
  [[nodiscard]] BALLAST_HOST_DEVICE index_t* start() const noexcept { return at<index_t>(layout_.start); }
  [[nodiscard]] BALLAST_HOST_DEVICE index_t* counts() const noexcept { return at<index_t>(layout_.counts); }

private:
  template <class T>
  [[nodiscard]] BALLAST_HOST_DEVICE T* at(std::uint32_t offset) const noexcept {
    return reinterpret_cast<T*>(memory_ + offset);
  }
  plan_layout const& layout_;
  std::byte* memory_;
};

}  // namespace cudart
BALLAST_END_NAMESPACE

#endif
