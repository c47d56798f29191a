// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_SHARES_QUOTA_SOURCES_HPP
#define BALLAST_SHARES_QUOTA_SOURCES_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/index.hpp>
#include <ballast/matrix_view.hpp>
#include <ballast/shares/quota_row.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE

/// Works out which of a rank's own tokens go to which replica, so that all ranks together keep to the quotas exactly.
///
/// A rank's tokens stay on it as far as the quota of its replica reaches; then on its node, as far as the quotas that
/// are left there reach, in the order of ranks and replicas; what is left then goes where quotas are left, in the same
/// order. Every rank works out its own part from the counts of all ranks.
///
/// A token's *ordinal* is its place among its rank's tokens of its expert in this batch, in the order (row, k).
///
/// @threads distinct objects are independent.
class quota_sources {
public:
  /// @param row      replicas of the layer.
  /// @param quotas   [replicas] of the batch, by position; those of an expert add up to its tokens.
  /// @param counts   [R, E] tokens of each source rank.
  /// @param rank     whose tokens are assigned, in [0, R).
  /// @complexity O(movable * (R + replicas of the expert))
  /// @throws std::bad_alloc while sizes grow
  /// @determinism integers, in ascending order of ranks and positions.
  void assign(quota_row row, std::span<index_t const> quotas, matrix_view<index_t const> counts, index_t rank) {
    BALLAST_EXPECTS(counts.rows() == row.shape().num_ranks && counts.columns() == row.shape().num_logical,
                    "quota_sources: counts are not [R, E]");
    BALLAST_EXPECTS(quotas.size() == static_cast<std::size_t>(row.sizes().num_replicas), "quota_sources: quotas");
    BALLAST_EXPECTS_BELOW(rank, row.shape().num_ranks, "quota_sources: rank");
    ends_.resize(static_cast<std::size_t>(row.sizes().num_movable));
    room_.resize(ends_.size());
    leaving_.resize(static_cast<std::size_t>(row.shape().num_ranks));
    for (index_t group = 0; group < row.sizes().num_groups; ++group) {
      assign_group({row, quotas, counts, rank}, row.group_first()[group], row.group_first()[group + 1]);
    }
  }

  /// `[movable]` by position: tokens of this rank with a lower ordinal, and not below the end of the replica before,
  /// go to this one.
  [[nodiscard]] std::span<index_t const> ends() const noexcept { return ends_; }

private:
  struct batch {
    quota_row row;
    std::span<index_t const> quotas;
    matrix_view<index_t const> counts;
    index_t rank;
  };
  /// What of [0, end) of one queue meets what of [from, from + length) of another.
  [[nodiscard]] static index_t overlap(index_t begin, index_t end, index_t from, index_t length) {
    return std::max(index_t{0}, std::min(end, from + length) - std::max(begin, from));
  }

  void assign_group(batch const& of, index_t first, index_t end) {
    auto const& row = of.row;
    auto const per_node = row.shape().ranks_per_node();
    keep(of, first, end);

    // This rank's tokens are [begin, end) of what waits on its node, and then of what has left any node.
    index_t far_begin = 0;
    for (index_t node = 0; node < of.rank / per_node; ++node) {
      far_begin += std::max(index_t{0}, waiting_on(node, per_node, per_node) - room_on(node, row, first, end));
    }
    auto const node = of.rank / per_node;
    auto const room = room_on(node, row, first, end);
    auto const near_begin = waiting_on(node, of.rank % per_node, per_node);
    auto const near_end = near_begin + detail::at(leaving_, of.rank);
    far_begin += std::max(index_t{0}, near_begin - room);
    auto const far_end = far_begin + (std::max(index_t{0}, near_end - room) - std::max(index_t{0}, near_begin - room));

    index_t far_before = 0;
    index_t near_before = 0;
    index_t sum = 0;
    for (index_t position = first, last_node = -1; position < end; ++position) {
      auto const here = row.holders()[position].node;
      if (here != last_node) { near_before = 0; }
      last_node = here;
      auto const room_here = detail::at(room_, position);
      if (here == node) { sum += overlap(near_begin, near_end, near_before, room_here); }
      auto const taken = std::clamp(waiting_on(here, per_node, per_node) - near_before, index_t{0}, room_here);
      near_before += room_here;
      sum += detail::at(ends_, position) + overlap(far_begin, far_end, far_before, room_here - taken);
      far_before += room_here - taken;
      detail::at(ends_, position) = sum;
    }
  }

  /// Give replicas the tokens of their own rank: `room_` is what their quotas have left, `leaving_` what ranks have
  /// left, `ends_` how many of ours a replica got.
  void keep(batch const& of, index_t first, index_t end) {
    auto const expert = of.row.holders()[first].expert;
    for (index_t rank = 0; rank < of.row.shape().num_ranks; ++rank) {
      detail::at(leaving_, rank) = of.counts(rank, expert);
    }
    for (index_t position = first; position < end; ++position) {
      auto const rank = of.row.holders()[position].rank;
      auto const quota = of.quotas[static_cast<std::size_t>(position)];
      auto const kept = std::min(detail::at(leaving_, rank), quota);
      detail::at(leaving_, rank) -= kept;
      detail::at(room_, position) = quota - kept;
      detail::at(ends_, position) = rank == of.rank ? kept : 0;
    }
  }
  /// Tokens that leave the first `num_ranks` ranks of a node.
  [[nodiscard]] index_t waiting_on(index_t node, index_t num_ranks, index_t per_node) const {
    auto const begin = leaving_.begin() + static_cast<std::ptrdiff_t>(node) * per_node;
    return std::accumulate(begin, begin + num_ranks, index_t{0});
  }
  [[nodiscard]] index_t room_on(index_t node, quota_row row, index_t first, index_t end) const {
    index_t room = 0;
    for (index_t position = first; position < end; ++position) {
      if (row.holders()[position].node == node) { room += detail::at(room_, position); }
    }
    return room;
  }

  std::vector<index_t> leaving_;  ///< [R] tokens of the expert that their own rank's quota has no room for
  std::vector<index_t> room_;     ///< [movable] of a quota, after its own rank's tokens
  std::vector<index_t> ends_;     ///< [movable]
};

BALLAST_END_NAMESPACE

#endif
