// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_MIGRATION_WAYPOINTS_HPP
#define BALLAST_MIGRATION_WAYPOINTS_HPP

#include <ballast/contract.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE

/// Splits the way from one layer's map to another into steps for which little staging is enough.
///
/// Each waypoint is a valid map: every expert has a live slot. Between two waypoints no rank receives more than a given
/// number of experts. An arrival takes a slot whose expert its rank no longer needs; where that expert has no other
/// slot, it moves on to a rank that needs it in the same step, and so on along a chain, until a chain meets an expert
/// with another slot or closes into a cycle. Such a chain passes each rank at most once and always exists, so one
/// arrival per rank and step is enough for any pair of maps. The last waypoint sorts slots inside ranks and is the
/// target itself.
class waypoint_planner {
public:
  /// Plan the waypoints of one layer.
  ///
  /// @param where         ranks; dead ones keep what they hold and count as holding nothing.
  /// @param from          [P] the map in force; every expert of `to` has a live slot in it.
  /// @param to            [P] the map to reach.
  /// @param num_logical   E
  /// @param max_arrivals  experts that a rank may receive between two waypoints, >= 1.
  /// @param rows          out: [waypoints, P] maps, the last one equal to `to` on live ranks.
  /// @complexity O(moves * (S + R) + waypoints * P); allocates the rows.
  /// @throws std::bad_alloc
  /// @determinism ties go to the lowest rank and slot.
  void split(topology const& where, std::span<index_t const> from, std::span<index_t const> to, index_t num_logical,
             index_t max_arrivals, std::vector<index_t>& rows) {
    BALLAST_EXPECTS(max_arrivals >= 1, "waypoint_planner: a step needs room for an arrival");
    BALLAST_EXPECTS(from.size() == static_cast<std::size_t>(where.num_slots()) && to.size() == from.size(),
                    "waypoint_planner: maps are not [P]");
    where_ = &where;
    rows.clear();
    map_.assign(from.begin(), from.end());
    collect(to, num_logical);
    while (num_pending_ > 0) {
      room_.assign(static_cast<std::size_t>(where.num_ranks()), max_arrivals);
      [[maybe_unused]] auto const before = num_pending_;
      for (index_t rank = 0; rank < where.num_ranks(); ++rank) {
        while (run_chain(rank)) {}
      }
      BALLAST_ASSERT(num_pending_ < before, "waypoint_planner: a step without progress");
      rows.insert(rows.end(), map_.begin(), map_.end());
    }
    for (index_t rank = 0; rank < where.num_ranks(); ++rank) {
      if (!where.is_live(rank)) { continue; }
      auto const first = where.first_slot(rank);
      std::copy_n(to.begin() + first, where.slots_per_rank(), map_.begin() + first);
    }
    rows.insert(rows.end(), map_.begin(), map_.end());
  }

private:
  /// An arrival that takes a slot from the expert in it.
  struct link {
    index_t rank = 0;
    std::size_t pending = 0;  // index into the rank's pending arrivals
    index_t slot = 0;
  };

  [[nodiscard]] index_t& expert_in(index_t slot) { return map_[static_cast<std::size_t>(slot)]; }
  [[nodiscard]] index_t& count_of(index_t expert) { return counts_[static_cast<std::size_t>(expert)]; }
  [[nodiscard]] std::vector<index_t>& pending_of(index_t rank) { return pending_[static_cast<std::size_t>(rank)]; }
  [[nodiscard]] std::vector<index_t>& free_of(index_t rank) { return free_[static_cast<std::size_t>(rank)]; }

  /// What each rank still has to receive, which of its slots may be given up, and how many slots hold each expert.
  void collect(std::span<index_t const> to, index_t num_logical) {
    auto const ranks = static_cast<std::size_t>(where_->num_ranks());
    pending_.assign(ranks, {});
    free_.assign(ranks, {});
    counts_.assign(static_cast<std::size_t>(num_logical), 0);
    num_pending_ = 0;
    for (index_t rank = 0; rank < where_->num_ranks(); ++rank) {
      if (!where_->is_live(rank)) { continue; }
      auto const first = where_->first_slot(rank);
      auto const last = first + where_->slots_per_rank();
      auto const wanted = to.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(last - first));
      for (index_t slot = first; slot < last; ++slot) {
        ++count_of(expert_in(slot));
        if (!keeps(slot, first, last, wanted)) { free_of(rank).push_back(slot); }
      }
      auto const held = std::span{map_}.subspan(static_cast<std::size_t>(first), wanted.size());
      for (std::size_t i = 0; i < wanted.size(); ++i) {
        auto const expert = wanted[i];
        auto const seen = std::find(wanted.begin(), wanted.begin() + static_cast<std::ptrdiff_t>(i), expert);
        if (seen == wanted.begin() + static_cast<std::ptrdiff_t>(i) &&
            std::find(held.begin(), held.end(), expert) == held.end()) {
          pending_of(rank).push_back(expert);
          ++num_pending_;
        }
      }
    }
  }

  /// Whether a slot must stay because it is the one of its rank that keeps an expert the rank wants: the slot where the
  /// expert is to lie, or else the first that holds it.
  [[nodiscard]] bool keeps(index_t slot, index_t first, index_t last, std::span<index_t const> wanted) {
    auto const expert = expert_in(slot);
    auto const in_place = [this, &expert, &wanted, &first](index_t s) {
      return expert_in(s) == expert && wanted[static_cast<std::size_t>(s - first)] == expert;
    };
    if (std::find(wanted.begin(), wanted.end(), expert) == wanted.end()) { return false; }
    index_t keeper = -1;
    for (index_t s = first; s < last && keeper < 0; ++s) {
      if (in_place(s)) { keeper = s; }
    }
    for (index_t s = first; s < last && keeper < 0; ++s) {
      if (expert_in(s) == expert) { keeper = s; }
    }
    return slot == keeper;
  }

  /// Let `rank` receive one expert, with the chain of further arrivals that this needs. @return whether one was found
  [[nodiscard]] bool run_chain(index_t rank) {
    chain_.clear();
    auto at = rank;
    if (pending_of(at).empty() || room_[static_cast<std::size_t>(at)] == 0) { return false; }
    std::size_t pending = 0;
    for (;;) {
      auto const slot = victim(at);
      if (slot < 0) { return false; }
      chain_.push_back({at, pending, slot});
      auto const expert = expert_in(slot);
      if (count_of(expert) > 1) { break; }
      auto const next = needer(expert);
      if (next.rank < 0) { return false; }
      auto const earlier =
          std::find_if(chain_.begin(), chain_.end(), [&next](link const& l) { return l.rank == next.rank; });
      if (earlier != chain_.end()) {
        // The chain closes: what lies before the cycle waits for another step, and its first rank receives this expert.
        earlier->pending = next.pending;
        chain_.erase(chain_.begin(), earlier);
        break;
      }
      at = next.rank;
      pending = next.pending;
    }
    commit_chain();
    return true;
  }

  /// A slot of the rank to give up: one whose expert has another slot before one whose expert has to move on with it.
  [[nodiscard]] index_t victim(index_t rank) {
    index_t fallback = -1;
    for (auto const slot : free_of(rank)) {
      if (count_of(expert_in(slot)) > 1) { return slot; }
      if (fallback < 0 && needer(expert_in(slot)).rank >= 0) { fallback = slot; }
    }
    return fallback;
  }

  /// The first rank with room that waits for an expert.
  [[nodiscard]] link needer(index_t expert) {
    for (index_t rank = 0; rank < where_->num_ranks(); ++rank) {
      if (room_[static_cast<std::size_t>(rank)] == 0) { continue; }
      auto const& waiting = pending_of(rank);
      auto const found = std::find(waiting.begin(), waiting.end(), expert);
      if (found != waiting.end()) { return {rank, static_cast<std::size_t>(found - waiting.begin()), 0}; }
    }
    return {-1, 0, 0};
  }

  void commit_chain() {
    for (auto const& arrival : chain_) {
      auto& waiting = pending_of(arrival.rank);
      auto const expert = waiting[arrival.pending];
      --count_of(expert_in(arrival.slot));
      ++count_of(expert);
      expert_in(arrival.slot) = expert;
      waiting.erase(waiting.begin() + static_cast<std::ptrdiff_t>(arrival.pending));
      std::erase(free_of(arrival.rank), arrival.slot);
      --room_[static_cast<std::size_t>(arrival.rank)];
      --num_pending_;
    }
  }

  topology const* where_ = nullptr;
  std::vector<index_t> map_;                   // [P] the map as far as it has been brought
  std::vector<std::vector<index_t>> pending_;  // [R] experts still to be received
  std::vector<std::vector<index_t>> free_;     // [R] slots that may be given up
  std::vector<index_t> counts_;                // [E] live slots of each expert
  std::vector<index_t> room_;                  // [R] arrivals left in this step
  std::vector<link> chain_;
  std::size_t num_pending_ = 0;
};

BALLAST_END_NAMESPACE

#endif
