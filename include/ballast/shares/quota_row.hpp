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
  std::uint16_t unused;
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

/// What a solver of quotas reads of one layer's placement: one row of bytes, the same on the host and in device memory,
/// aligned to 16.
///
/// *Movable* replicas are those of experts that have several on live ranks, the *groups*; a group's follow each other,
/// in ascending order of their slots, and groups follow in ascending order of their experts. A replica's *position* is
/// its place in the list of all replicas on live ranks, movable ones first. Pairs are dealt into *classes* in which no
/// rank appears twice, so that a class is one step of many threads.
///
/// @tparam Byte  `std::byte` to write, `std::byte const` to read.
template <class Byte>
class basic_quota_row {
public:
  basic_quota_row() = default;
  BALLAST_HOST_DEVICE constexpr basic_quota_row(quota_shape const& shape, Byte* bytes) noexcept
      : shape_{shape}, bytes_{bytes} {}
  template <class Other>
    requires(std::same_as<Other const, Byte> && !std::same_as<Other, Byte>)
  // NOLINTNEXTLINE(google-explicit-constructor): as pointers
  BALLAST_HOST_DEVICE constexpr basic_quota_row(basic_quota_row<Other> const& other) noexcept
      : shape_{other.shape()}, bytes_{other.bytes()} {}

  /// Bytes of a row, a multiple of 16, and of its part without entries, which comes first.
  [[nodiscard]] BALLAST_HOST_DEVICE static constexpr std::size_t size_of(quota_shape const& shape) noexcept {
    return size_without_entries(shape) + sizeof(quota_entry) * static_cast<std::size_t>(shape.num_logical);
  }
  [[nodiscard]] BALLAST_HOST_DEVICE static constexpr std::size_t size_without_entries(
      quota_shape const& shape) noexcept {
    return basic_quota_row{shape, nullptr}.offset_of(behind_all);
  }
  [[nodiscard]] BALLAST_HOST_DEVICE constexpr quota_shape const& shape() const noexcept { return shape_; }
  [[nodiscard]] BALLAST_HOST_DEVICE constexpr Byte* bytes() const noexcept { return bytes_; }

  [[nodiscard]] BALLAST_HOST_DEVICE auto& sizes() const noexcept { return *at<quota_row_sizes>(0); }
  /// [pairs] class by class.
  [[nodiscard]] BALLAST_HOST_DEVICE auto* pairs() const noexcept { return at<quota_pair>(offset_of(in_pairs)); }
  /// [replicas] by position.
  [[nodiscard]] BALLAST_HOST_DEVICE auto* holders() const noexcept { return at<quota_holder>(offset_of(in_holders)); }
  /// [replicas] the ids that all-to-all libraries count, reserved slots among them.
  [[nodiscard]] BALLAST_HOST_DEVICE auto* physical() const noexcept { return at<index_t>(offset_of(in_physical)); }
  /// [movable] of the expert's tokens while no quotas are in force, in units of 1 / `share_one`.
  [[nodiscard]] BALLAST_HOST_DEVICE auto* share() const noexcept { return at<index_t>(offset_of(in_share)); }
  /// [groups + 1] position of a group's first replica; the next one's is the end.
  [[nodiscard]] BALLAST_HOST_DEVICE auto* group_first() const noexcept {
    return at<index_t>(offset_of(in_group_first));
  }
  /// [R + 1] where a rank's movable replicas start in `by_rank`.
  [[nodiscard]] BALLAST_HOST_DEVICE auto* rank_first() const noexcept { return at<index_t>(offset_of(in_rank_first)); }
  /// [movable] positions, rank by rank.
  [[nodiscard]] BALLAST_HOST_DEVICE auto* by_rank() const noexcept { return at<index_t>(offset_of(in_by_rank)); }
  /// [classes] end of each class among the pairs.
  [[nodiscard]] BALLAST_HOST_DEVICE auto* class_end() const noexcept { return at<index_t>(offset_of(in_class_end)); }
  /// [E]
  [[nodiscard]] BALLAST_HOST_DEVICE auto* entries() const noexcept { return at<quota_entry>(offset_of(behind_all)); }

private:
  enum section : std::uint32_t {
    in_pairs,
    in_holders,
    in_physical,
    in_share,
    in_group_first,
    in_rank_first,
    in_by_rank,
    in_class_end,
    behind_all,
  };
  [[nodiscard]] BALLAST_HOST_DEVICE constexpr std::size_t bytes_of(std::uint32_t which) const noexcept {
    auto const bytes = [](std::size_t size, index_t count) { return size * static_cast<std::size_t>(count); };
    switch (which) {
      case in_pairs: return bytes(sizeof(quota_pair), shape_.max_pairs());
      case in_holders: return bytes(sizeof(quota_holder), shape_.num_slots);
      case in_physical: return bytes(sizeof(index_t), shape_.num_slots);
      case in_group_first: return bytes(sizeof(index_t), shape_.max_groups() + 1);
      case in_rank_first: return bytes(sizeof(index_t), shape_.num_ranks + 1);
      case in_share:
      case in_by_rank: return bytes(sizeof(index_t), shape_.max_movable());
      default: return bytes(sizeof(index_t), shape_.max_pairs());
    }
  }
  [[nodiscard]] BALLAST_HOST_DEVICE constexpr std::size_t offset_of(std::uint32_t which) const noexcept {
    std::size_t offset = sizeof(quota_row_sizes);
    for (std::uint32_t before = 0; before < which; ++before) { offset += (bytes_of(before) + 15) / 16 * 16; }
    return offset;
  }
  template <class T>
  [[nodiscard]] BALLAST_HOST_DEVICE auto* at(std::size_t offset) const noexcept {
    using element = std::conditional_t<std::is_const_v<Byte>, T const, T>;
    return reinterpret_cast<element*>(bytes_ + offset);
  }

  quota_shape shape_;
  Byte* bytes_ = nullptr;
};
using quota_row = basic_quota_row<std::byte const>;
using quota_row_writer = basic_quota_row<std::byte>;

BALLAST_END_NAMESPACE

#endif
