// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_DISPATCH_DETAIL_TABLE_BUILDER_HPP
#define BALLAST_DISPATCH_DETAIL_TABLE_BUILDER_HPP

#include <ballast/config.hpp>
#include <ballast/detail/index.hpp>
#include <ballast/dispatch/table_view.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE

/// How a rank's tokens are spread over the replicas of an expert.
enum class dispatch_mode : std::uint32_t {
  nearest,      ///< one replica per rank: on this rank, else on this node, else anywhere; each in fair rotation
  even,         ///< every replica alike, by a hash of the token
  round_robin,  ///< every replica in turn, by the token's row
  by_share,     ///< in proportion to the placement's shares (even ones if it has none), by a hash of the token
};

namespace detail {

/// Builds the entries of one layer; working memory is kept.
class dispatch_builder {
public:
  dispatch_builder() = default;
  explicit dispatch_builder(topology const& where)
      : live_before_(static_cast<std::size_t>(where.num_ranks()) + 1),
        weights_(static_cast<std::size_t>(where.num_slots())) {
    small_.reserve(weights_.size());
    large_.reserve(weights_.size());
    replicas_.reserve(weights_.size());
  }

  /// Build the table that `rank` uses for one layer. Replicas on dead ranks are left out.
  ///
  /// @param ranges   out: [E]
  /// @param entries  out: [P]
  /// @complexity O(E + P + R), and O(c log c) for an expert with c replicas; no allocation.
  void build(topology const& where, placement const& from, index_t layer, dispatch_mode mode, index_t rank,
             std::span<replica_range> ranges, std::span<dispatch_entry> entries) {
    for (index_t r = 0; r < where.num_ranks(); ++r) {
      at(live_before_, r + 1) = at(live_before_, r) + (where.is_live(r) ? 1 : 0);
    }
    index_t first = 0;
    for (index_t expert = 0; expert < from.num_logical(); ++expert) {
      list_live_replicas(where, from, layer, expert);
      auto const count = static_cast<index_t>(replicas_.size());
      auto const out = entries.subspan(static_cast<std::size_t>(first), replicas_.size());
      auto& range = ranges[static_cast<std::size_t>(expert)];
      range = {first, count};
      if (count == 0) { continue; }
      if (mode == dispatch_mode::nearest && count > 1) {
        out[0] = sole(where.physical_id(nearest_replica(where, layer, expert, rank)));
        range.count = 1;
      } else if (mode == dispatch_mode::by_share && from.has_shares() && count > 1) {
        range.count = split_by_share(where, from.shares(layer), out);
      } else {
        for (std::size_t i = 0; i < out.size(); ++i) { out[i] = sole(where.physical_id(replicas_[i])); }
      }
      first += range.count;
    }
    std::fill(entries.begin() + first, entries.end(), dispatch_entry{0});
  }

private:
  [[nodiscard]] static dispatch_entry sole(index_t physical) { return make_dispatch_entry(physical, physical, 0); }

  void list_live_replicas(topology const& where, placement const& from, index_t layer, index_t expert) {
    replicas_.clear();
    for (auto const slot : from.replicas_of(layer, expert)) {
      if (where.is_live(where.rank_of_slot(slot))) { replicas_.push_back(slot); }
    }
  }

  // ---- nearest ----

  /// Of the replicas on this rank the first; else of those on this node, or of all if there are none, the one whose
  /// turn it is: ranks without a nearer replica take turns, starting at another replica for each expert and layer.
  [[nodiscard]] index_t nearest_replica(topology const& where, index_t layer, index_t expert, index_t rank) {
    std::sort(replicas_.begin(), replicas_.end());
    auto const own = std::find_if(replicas_.begin(), replicas_.end(),
                                  [&where, &rank](index_t slot) { return where.rank_of_slot(slot) == rank; });
    if (own != replicas_.end()) { return *own; }
    auto const node = where.node_of_rank(rank);
    auto const on_node = [&where, &node](index_t slot) { return where.node_of_slot(slot) == node; };
    auto const first = std::find_if(replicas_.begin(), replicas_.end(), on_node);
    auto const last = std::find_if_not(first, replicas_.end(), on_node);
    auto const near = first != last ? std::span<index_t const>{first, last} : std::span<index_t const>{replicas_};
    auto const turn = first != last ? turn_on_node(where, near, rank) : turn_between_nodes(where, rank);
    auto const start = scramble(dispatch_seed(0, layer, expert)) >> 1;
    return near[(start + static_cast<std::uint32_t>(turn)) % near.size()];
  }
  /// Live ranks of the node before this one that hold no replica.
  [[nodiscard]] index_t turn_on_node(topology const& where, std::span<index_t const> near, index_t rank) {
    auto turn = live_between(where.node_of_rank(rank) * where.ranks_per_node(), rank);
    for (index_t i = 0, before = -1; i < static_cast<index_t>(near.size()); ++i) {
      auto const holder = where.rank_of_slot(near[static_cast<std::size_t>(i)]);
      if (holder < rank && holder != before) { --turn; }
      before = holder;
    }
    return turn;
  }
  /// Live ranks before this one on nodes without a replica.
  [[nodiscard]] index_t turn_between_nodes(topology const& where, index_t rank) {
    auto turn = live_between(0, rank);
    auto const per_node = where.ranks_per_node();
    index_t before = -1;
    for (auto const slot : replicas_) {
      auto const node = where.node_of_slot(slot);
      if (node != before && node < where.node_of_rank(rank)) {
        turn -= live_between(node * per_node, (node + 1) * per_node);
      }
      before = node;
    }
    return turn;
  }
  [[nodiscard]] index_t live_between(index_t first, index_t last) {
    return at(live_before_, last) - at(live_before_, first);
  }

  // ---- by share ----

  /// Alias sampling: each of the c columns holds 1 / c of the draws, its own replica's part first, the rest another's.
  /// A boundary is rounded to 1 / 65536 of its column, and a replica has a part in at most c columns: its share is off
  /// by at most 1 / 131072.
  /// @return number of entries, replicas without a share left out
  [[nodiscard]] index_t split_by_share(topology const& where, std::span<share_t const> shares,
                                       std::span<dispatch_entry> out) {
    auto const share_of = [&shares](index_t slot) { return shares[static_cast<std::size_t>(slot)]; };
    std::uint64_t sum = 0;
    for (auto const slot : replicas_) { sum += share_of(slot); }
    if (sum > 0) {
      replicas_.erase(
          std::remove_if(replicas_.begin(), replicas_.end(), [&share_of](index_t slot) { return share_of(slot) == 0; }),
          replicas_.end());
    }
    auto const count = static_cast<std::uint64_t>(replicas_.size());
    auto const column = sum > 0 ? sum : 1;  // in shares scaled by c, so that every weight is an integer
    small_.clear();
    large_.clear();
    for (std::size_t i = 0; i < count; ++i) {
      weights_[i] = sum > 0 ? share_of(replicas_[i]) * count : 1;
      out[i] = sole(where.physical_id(replicas_[i]));
      (weights_[i] < column ? small_ : large_).push_back(static_cast<index_t>(i));
    }
    while (!small_.empty() && !large_.empty()) {
      auto const less = small_.back();
      auto const more = large_.back();
      small_.pop_back();
      auto const threshold = (at(weights_, less) * 65536 + column / 2) / column;
      if (threshold < 65536) {
        out[static_cast<std::size_t>(less)] =
            make_dispatch_entry(where.physical_id(at(replicas_, less)), where.physical_id(at(replicas_, more)),
                                static_cast<std::uint32_t>(threshold));
      }
      at(weights_, more) -= column - at(weights_, less);
      if (at(weights_, more) < column) {
        large_.pop_back();
        small_.push_back(more);
      }
    }
    return static_cast<index_t>(count);
  }

  std::vector<index_t> live_before_;    // [R + 1] live ranks below
  std::vector<std::uint64_t> weights_;  // [c] what is left of a replica's share, in 1 / c of a column's units
  std::vector<index_t> small_;          // columns that need a partner
  std::vector<index_t> large_;          // replicas that have something to give
  std::vector<index_t> replicas_;       // live slots of the expert at hand
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
