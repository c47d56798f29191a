// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_PLACEMENT_DETAIL_DEAD_RANKS_HPP
#define BALLAST_PLACEMENT_DETAIL_DEAD_RANKS_HPP

#include <ballast/contract.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// The ranks that are alive, ascending.
[[nodiscard]] inline std::vector<index_t> live_ranks(topology const& where) {
  std::vector<index_t> ranks;
  for (index_t rank = 0; rank < where.num_ranks(); ++rank) {
    if (where.is_live(rank)) { ranks.push_back(rank); }
  }
  return ranks;
}

/// Split one expert's tokens evenly over its live replicas; those on dead ranks take a share of 0.
/// @pre `in_out` has shares, and the expert has a live replica
/// @complexity O(replicas), no allocation.
inline void share_evenly_among_live(topology const& where, placement& in_out, index_t layer, index_t expert) {
  auto const shares = in_out.edit_shares(layer);
  auto const replicas = in_out.replicas_of(layer, expert);
  auto const is_live = [&where](index_t slot) { return where.is_live(where.rank_of_slot(slot)); };
  auto const count = static_cast<share_t>(std::count_if(replicas.begin(), replicas.end(), is_live));
  BALLAST_ASSERT(count > 0, "share_evenly_among_live: an expert is on no live rank");
  share_t extra = share_one % count;
  for (auto const slot : replicas) {
    auto& share = shares[static_cast<std::size_t>(slot)];
    share = is_live(slot) ? share_one / count + (extra > 0 ? 1 : 0) : 0;
    if (is_live(slot) && extra > 0) { --extra; }
  }
}

/// Leave no share on a dead rank. Experts whose live replicas take everything already keep their split.
inline void take_shares_from_dead(topology const& where, placement& in_out, index_t layer) {
  for (index_t expert = 0; expert < in_out.num_logical(); ++expert) {
    std::uint64_t live = 0;
    std::uint64_t dead = 0;
    for (auto const slot : in_out.replicas_of(layer, expert)) {
      auto const share = in_out.shares(layer)[static_cast<std::size_t>(slot)];
      (where.is_live(where.rank_of_slot(slot)) ? live : dead) += share;
    }
    if (live != share_one || dead != 0) { share_evenly_among_live(where, in_out, layer, expert); }
  }
}

/// Leave no share of a layer on a dead rank; the other layers may be anything. Where all ranks live nothing changes.
/// @pre every expert of the layer has a live replica
/// @complexity O(P + E); allocates shares where there are none.
inline void split_among_live(topology const& where, placement& in_out, index_t layer) {
  if (where.num_live_ranks() == where.num_ranks()) { return; }
  if (!in_out.has_shares()) { in_out.make_shares_even(); }
  take_shares_from_dead(where, in_out, layer);
}
/// The same for all layers.
inline void split_among_live(topology const& where, placement& in_out) {
  for (index_t layer = 0; layer < in_out.num_layers(); ++layer) { split_among_live(where, in_out, layer); }
}

/// Slots of dead ranks keep what `current` has there, so that they cost no bytes. @param next  in/out: [L, P] with any
/// inverse
/// @complexity O(P)
inline void keep_dead_slots(placement const& current, topology const& where, placement& next, index_t layer) {
  auto const slots = static_cast<std::size_t>(where.slots_per_rank());
  for (index_t rank = 0; rank < where.num_ranks(); ++rank) {
    if (where.is_live(rank)) { continue; }
    auto const first = static_cast<std::size_t>(where.first_slot(rank));
    auto const held = current.logical_of_slot(layer).subspan(first, slots);
    std::copy(held.begin(), held.end(), next.edit(layer).logical_of_slot.subspan(first, slots).begin());
  }
  next.index_replicas(layer);
}

/// Finish a plan of which only the live ranks' slots are filled in.
///
/// Slots of dead ranks keep what `current` has there, so that they cost no bytes, and take a share of 0; the live
/// replicas of each expert share evenly. Without dead ranks nothing but the inverse is made, and shares stay absent.
///
/// @param current  [L, P] the placement in force.
/// @param where    which ranks are alive.
/// @param next     in/out: [L, P] a map that is right on live ranks; every expert is on one of them.
/// @complexity O(L (P + E)), one allocation when ranks are dead.
inline void finish_plan(placement const& current, topology const& where, placement& next) {
  for (index_t layer = 0; layer < next.num_layers(); ++layer) { keep_dead_slots(current, where, next, layer); }
  if (where.num_live_ranks() == where.num_ranks()) { return; }
  next.make_shares_even();
  for (index_t layer = 0; layer < next.num_layers(); ++layer) {
    for (index_t expert = 0; expert < next.num_logical(); ++expert) {
      share_evenly_among_live(where, next, layer, expert);
    }
  }
}

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
