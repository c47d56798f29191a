// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_SHARES_QUOTA_ROW_HPP
#define BALLAST_SHARES_QUOTA_ROW_HPP

#include <ballast/config.hpp>
#include <ballast/types.hpp>

#include <cstddef>

BALLAST_BEGIN_NAMESPACE

/// Sizes of the rows in which solvers of quotas find a layer's replicas; fixed for a model on a group of ranks.
struct quota_shape {
  index_t num_ranks = 1;    ///< R
  index_t num_nodes = 1;    ///< ranks of a node follow each other
  index_t num_logical = 0;  ///< E
  index_t num_slots = 0;    ///< P >= E

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

/// What a solver of quotas reads of one layer's placement: one row of words, the same on the host and in device memory.
///
/// *Movable* replicas are those of experts that have several on live ranks; an expert's follow each other, in ascending
/// order of their slots, and experts follow in ascending order. A replica's *position* is its place in the list of all
/// replicas on live ranks, movable ones first. Two movable replicas of an expert on different ranks are a *pair*: they
/// may hand tokens to each other. Pairs are dealt into *classes* in which no rank appears twice, so that a class is one
/// step of many threads.
///
/// @tparam Word  `index_t` to write, `index_t const` to read.
template <class Word>
class basic_quota_row {
public:
  basic_quota_row() = default;
  BALLAST_HOST_DEVICE constexpr basic_quota_row(quota_shape const& shape, Word* words) noexcept
      : shape_{shape}, words_{words} {}
  [[nodiscard]] BALLAST_HOST_DEVICE constexpr operator basic_quota_row<Word const>()
      const noexcept {  // NOLINT(google-explicit-constructor): as pointers
    return {shape_, words_};
  }

  /// Words of a row.
  [[nodiscard]] BALLAST_HOST_DEVICE static constexpr std::size_t size_of(quota_shape const& shape) noexcept {
    return basic_quota_row{shape, nullptr}.end_of_row();
  }
  [[nodiscard]] BALLAST_HOST_DEVICE constexpr quota_shape const& shape() const noexcept { return shape_; }

  // ---- how much there is ----
  [[nodiscard]] BALLAST_HOST_DEVICE constexpr Word& num_live_ranks() const noexcept { return words_[0]; }
  [[nodiscard]] BALLAST_HOST_DEVICE constexpr Word& num_groups() const noexcept { return words_[1]; }
  [[nodiscard]] BALLAST_HOST_DEVICE constexpr Word& num_movable() const noexcept { return words_[2]; }
  [[nodiscard]] BALLAST_HOST_DEVICE constexpr Word& num_replicas() const noexcept { return words_[3]; }
  [[nodiscard]] BALLAST_HOST_DEVICE constexpr Word& num_pairs() const noexcept { return words_[4]; }
  [[nodiscard]] BALLAST_HOST_DEVICE constexpr Word& num_classes() const noexcept { return words_[5]; }
  /// Another one with each publication; see `quota_rows`.
  [[nodiscard]] BALLAST_HOST_DEVICE constexpr Word& version() const noexcept { return words_[6]; }

  // ---- [E] of each expert: position of its first replica, and how many there are; 0 where no live rank holds one ----
  [[nodiscard]] BALLAST_HOST_DEVICE constexpr Word* first() const noexcept { return words_ + header_words; }
  [[nodiscard]] BALLAST_HOST_DEVICE constexpr Word* count() const noexcept { return first() + shape_.num_logical; }

  // ---- [P] of each replica ----
  /// The id that all-to-all libraries count, reserved slots among them.
  [[nodiscard]] BALLAST_HOST_DEVICE constexpr Word* physical() const noexcept { return count() + shape_.num_logical; }
  [[nodiscard]] BALLAST_HOST_DEVICE constexpr Word* rank() const noexcept { return physical() + shape_.num_slots; }
  [[nodiscard]] BALLAST_HOST_DEVICE constexpr Word* expert() const noexcept { return rank() + shape_.num_slots; }
  /// Of its expert's tokens while no quotas are in force, in units of 1 / `share_one`.
  [[nodiscard]] BALLAST_HOST_DEVICE constexpr Word* share() const noexcept { return expert() + shape_.num_slots; }

  // ---- groups: experts with several replicas ----
  /// [groups] position of the first replica; the next group's is the end.
  [[nodiscard]] BALLAST_HOST_DEVICE constexpr Word* group_first() const noexcept { return share() + shape_.num_slots; }
  /// [movable] group of each movable replica.
  [[nodiscard]] BALLAST_HOST_DEVICE constexpr Word* group_of() const noexcept {
    return group_first() + shape_.max_groups();
  }

  // ---- pairs, class by class ----
  [[nodiscard]] BALLAST_HOST_DEVICE constexpr Word* pair_a() const noexcept {
    return group_of() + shape_.max_movable();
  }
  [[nodiscard]] BALLAST_HOST_DEVICE constexpr Word* pair_b() const noexcept { return pair_a() + shape_.max_pairs(); }
  /// [classes] end of each class among the pairs.
  [[nodiscard]] BALLAST_HOST_DEVICE constexpr Word* class_end() const noexcept { return pair_b() + shape_.max_pairs(); }

private:
  static constexpr std::size_t header_words = 8;

  [[nodiscard]] BALLAST_HOST_DEVICE constexpr std::size_t end_of_row() const noexcept {
    auto const per_expert = static_cast<std::size_t>(shape_.num_logical);
    auto const per_slot = static_cast<std::size_t>(shape_.num_slots);
    auto const words = header_words + 2 * per_expert + 4 * per_slot + static_cast<std::size_t>(shape_.max_groups()) +
                       static_cast<std::size_t>(shape_.max_movable()) +
                       3 * static_cast<std::size_t>(shape_.max_pairs());
    return (words + 3) / 4 * 4;  // rows of 16 bytes
  }

  quota_shape shape_;
  Word* words_ = nullptr;
};
using quota_row = basic_quota_row<index_t const>;
using quota_row_writer = basic_quota_row<index_t>;

BALLAST_END_NAMESPACE

#endif
