// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_SHARES_QUOTA_ROW_HPP
#define BALLAST_SHARES_QUOTA_ROW_HPP

#include <ballast/config.hpp>
#include <ballast/types.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <type_traits>

BALLAST_BEGIN_NAMESPACE

/// Sizes of the rows in which solvers of quotas find a layer's replicas; fixed for a model on a group of ranks.
struct quota_shape {
  index_t num_ranks = 1;    ///< R
  index_t num_nodes = 1;    ///< ranks of a node follow each other
  index_t num_logical = 0;  ///< E
  index_t num_slots = 0;    ///< P >= E, below `most_slots`

  /// Positions, ranks and experts are kept in half words.
  static constexpr index_t most_slots = 1 << 16;

  bool operator==(quota_shape const&) const = default;

  [[nodiscard]] BALLAST_HOST_DEVICE constexpr index_t ranks_per_node() const noexcept { return num_ranks / num_nodes; }
  [[nodiscard]] BALLAST_HOST_DEVICE constexpr index_t num_spare() const noexcept { return num_slots - num_logical; }
  /// Experts that can have several replicas at once.
  [[nodiscard]] BALLAST_HOST_DEVICE constexpr index_t max_groups() const noexcept {
    return num_spare() < num_logical ? num_spare() : num_logical;
  }
  /// Replicas that such experts can have together.
  [[nodiscard]] BALLAST_HOST_DEVICE constexpr index_t max_movable() const noexcept {
    return num_spare() + max_groups();
  }
  /// c (c - 1) / 2 pairs for an expert with c < 5 replicas, 2 c for one with more: never more than 5/2 (c - 1).
  [[nodiscard]] BALLAST_HOST_DEVICE constexpr index_t max_pairs() const noexcept { return (5 * num_spare() + 1) / 2; }
};

/// Two replicas of an expert on different ranks, which may hand tokens to each other.
struct alignas(8) quota_pair {
  std::uint16_t a;  ///< position
  std::uint16_t b;  ///< position
  std::uint16_t rank_a;
  std::uint16_t rank_b;
};

/// Where a replica is, and of what.
struct alignas(8) quota_holder {
  std::uint16_t rank;
  std::uint16_t group;  ///< of a movable replica
  std::uint16_t expert;
  std::uint16_t node;
};

/// Where a logical expert's tokens go, for a lookup with one load.
struct alignas(16) quota_entry {
  /// Of one replica: its physical id. Of several: the position of the first one. Of two, where the entry is filled in
  /// for a batch: the physical id of the first one.
  index_t first;
  index_t second;  ///< of two, for a batch: the physical id of the other one
  index_t end;     ///< of two, for a batch: ordinals before this one go to the first
  index_t count;   ///< of live replicas; 0: the expert's ids map to -1
};

/// How much there is in a row.
struct alignas(16) quota_row_sizes {
  index_t num_live_ranks;
  index_t num_groups;
  index_t num_movable;
  index_t num_replicas;
  index_t num_pairs;
  index_t num_classes;
  /// Digest of all the rest: ranks whose digests are equal have the same placement and shares in force.
  index_t version;
  index_t unused;
};

/// Where in a row each array begins, in bytes; worked out once, so that kernels need not.
struct quota_layout {
  quota_layout() = default;
  constexpr explicit quota_layout(quota_shape const& of) noexcept : shape{of} {
    auto const add = [this](std::uint32_t& begin, std::size_t bytes, index_t count) {
      begin = size;
      size += static_cast<std::uint32_t>((bytes * static_cast<std::size_t>(count) + 15) / 16 * 16);
    };
    size = sizeof(quota_row_sizes);
    add(pairs, sizeof(quota_pair), of.max_pairs());
    add(holders, sizeof(quota_holder), of.num_slots);
    add(physical, sizeof(index_t), of.num_slots);
    add(share, sizeof(index_t), of.max_movable());
    add(group_first, sizeof(index_t), of.max_groups() + 1);
    add(rank_first, sizeof(index_t), of.num_ranks + 1);
    add(by_rank, sizeof(index_t), of.max_movable());
    add(class_end, sizeof(index_t), of.max_pairs());
    add(live, sizeof(std::uint32_t), (of.num_ranks + 31) / 32);
    add(entries, sizeof(quota_entry), of.num_logical);
  }

  quota_shape shape;
  std::uint32_t pairs = 0;
  std::uint32_t holders = 0;
  std::uint32_t physical = 0;
  std::uint32_t share = 0;
  std::uint32_t group_first = 0;
  std::uint32_t rank_first = 0;
  std::uint32_t by_rank = 0;
  std::uint32_t class_end = 0;
  std::uint32_t live = 0;
  std::uint32_t entries = 0;  ///< the last one: a solver needs none of them
  std::uint32_t size = 0;     ///< of a row, a multiple of 16
};

/// What a solver of quotas reads of one layer's placement: one row of bytes, the same on the host and in device memory,
/// aligned to 16.
///
/// *Movable* replicas are those of experts that have several on live ranks, the *groups*; a group's follow each other,
/// in ascending order of their slots, and groups follow in ascending order of their experts. A replica's *position* is
/// its place in the list of all replicas on live ranks, movable ones first. Pairs are dealt into *classes* in which no
/// rank appears twice, so that a class is one step of many threads.
///
/// @tparam Byte    `std::byte` to write, `std::byte const` to read.
/// @lifetime the layout must outlive it.
template <class Byte>
class basic_quota_row {
public:
  basic_quota_row() = default;
  BALLAST_HOST_DEVICE constexpr basic_quota_row(quota_layout const& layout, Byte* bytes) noexcept
      : layout_{&layout}, bytes_{bytes} {}
  template <class Other>
    requires(std::same_as<Other const, Byte> && !std::same_as<Other, Byte>)
  // NOLINTNEXTLINE(google-explicit-constructor): as pointers
  BALLAST_HOST_DEVICE constexpr basic_quota_row(basic_quota_row<Other> const& other) noexcept
      : layout_{&other.layout()}, bytes_{other.bytes()} {}

  [[nodiscard]] BALLAST_HOST_DEVICE constexpr quota_layout const& layout() const noexcept { return *layout_; }
  [[nodiscard]] BALLAST_HOST_DEVICE constexpr quota_shape const& shape() const noexcept { return layout_->shape; }
  [[nodiscard]] BALLAST_HOST_DEVICE constexpr Byte* bytes() const noexcept { return bytes_; }

  [[nodiscard]] BALLAST_HOST_DEVICE auto& sizes() const noexcept { return *at<quota_row_sizes>(0); }
  /// [pairs] class by class.
  [[nodiscard]] BALLAST_HOST_DEVICE auto* pairs() const noexcept { return at<quota_pair>(layout_->pairs); }
  /// [replicas] by position.
  [[nodiscard]] BALLAST_HOST_DEVICE auto* holders() const noexcept { return at<quota_holder>(layout_->holders); }
  /// [replicas] the ids that all-to-all libraries count, reserved slots among them.
  [[nodiscard]] BALLAST_HOST_DEVICE auto* physical() const noexcept { return at<index_t>(layout_->physical); }
  /// [movable] of the expert's tokens while no quotas are in force, in units of 1 / `share_one`.
  [[nodiscard]] BALLAST_HOST_DEVICE auto* share() const noexcept { return at<index_t>(layout_->share); }
  /// [groups + 1] position of a group's first replica; the next one's is the end.
  [[nodiscard]] BALLAST_HOST_DEVICE auto* group_first() const noexcept { return at<index_t>(layout_->group_first); }
  /// [R + 1] where a rank's movable replicas start in `by_rank`.
  [[nodiscard]] BALLAST_HOST_DEVICE auto* rank_first() const noexcept { return at<index_t>(layout_->rank_first); }
  /// [movable] positions, rank by rank.
  [[nodiscard]] BALLAST_HOST_DEVICE auto* by_rank() const noexcept { return at<index_t>(layout_->by_rank); }
  /// [classes] end of each class among the pairs.
  [[nodiscard]] BALLAST_HOST_DEVICE auto* class_end() const noexcept { return at<index_t>(layout_->class_end); }
  /// [(R + 31) / 32] one bit for each rank, rank 0 the lowest.
  [[nodiscard]] BALLAST_HOST_DEVICE auto* live() const noexcept { return at<std::uint32_t>(layout_->live); }
  [[nodiscard]] BALLAST_HOST_DEVICE bool is_live(index_t rank) const noexcept {
    return (live()[rank / 32] >> (rank % 32) & 1u) != 0;
  }
  /// [E]
  [[nodiscard]] BALLAST_HOST_DEVICE auto* entries() const noexcept { return at<quota_entry>(layout_->entries); }

private:
  template <class T>
  [[nodiscard]] BALLAST_HOST_DEVICE auto* at(std::uint32_t offset) const noexcept {
    using element = std::conditional_t<std::is_const_v<Byte>, T const, T>;
    return reinterpret_cast<element*>(bytes_ + offset);
  }

  quota_layout const* layout_ = nullptr;
  Byte* bytes_ = nullptr;
};
using quota_row = basic_quota_row<std::byte const>;
using quota_row_writer = basic_quota_row<std::byte>;

BALLAST_END_NAMESPACE

#endif
