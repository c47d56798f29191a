// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_DETAIL_INCREMENTAL_REPLICA_MAP_HPP
#define BALLAST_POLICIES_DETAIL_INCREMENTAL_REPLICA_MAP_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/index.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// One layer's live slots under change: who holds what, what each rank carries under an even split, and how many moves
/// lie between the map now and the map at the start.
///
/// Slots of dead ranks are not part of it: their `expert` is `none`.
class replica_map {
public:
  static constexpr index_t none = -1;

  /// Take a layer over.
  ///
  /// @param where            R ranks, P slots.
  /// @param logical_of_slot  [P]
  /// @param loads            [E] load units.
  /// @complexity O(P + E + R); no allocation when the sizes are not larger than before.
  void open(topology const& where, std::span<index_t const> logical_of_slot, std::span<load_t const> loads) {
    auto const slots = logical_of_slot.size();
    slots_per_rank_ = where.slots_per_rank();
    start_.assign(slots, none);
    expert_.assign(slots, none);
    next_.resize(slots);
    before_.resize(slots);
    rank_.resize(slots);
    refund_.assign(slots, 0);
    slot_load_.resize(slots);
    experts_.assign(loads.size(), {});
    num_logical_ = loads.size();
    rank_load_.assign(static_cast<std::size_t>(where.num_ranks()), 0);
    changed_.assign(static_cast<std::size_t>(where.num_ranks()), 0);
    presence_.assign(static_cast<std::size_t>(where.num_ranks()) * loads.size(), 0);
    ranks_per_node_ = where.num_nodes() > 1 ? where.ranks_per_node() : 0;
    held_in_node_.assign(ranks_per_node_ > 0 ? static_cast<std::size_t>(where.num_nodes()) * loads.size() : 0, 0);
    arrivals_.assign(static_cast<std::size_t>(where.num_ranks()), {});
    moves_ = 0;
    for (std::size_t e = 0; e < loads.size(); ++e) { experts_[e].load = loads[e]; }
    for (index_t rank = 0; rank < where.num_ranks(); ++rank) {
      for (index_t slot = first_slot(rank); slot < first_slot(rank + 1); ++slot) {
        at(rank_, slot) = rank;
        if (!where.is_live(rank)) { continue; }
        auto const expert = logical_of_slot[static_cast<std::size_t>(slot)];
        at(start_, slot) = expert;
        join_ring(slot, expert);
        presence_[cell(rank, expert)] |= 1U;
        if (ranks_per_node_ > 0) { held_in_node_[cell(rank / ranks_per_node_, expert)] = 1; }
      }
    }
    for (auto& expert : experts_) { expert.split(); }
    num_spare_ = 0;
    for (auto const& expert : experts_) { num_spare_ += expert.copies > 1 ? expert.copies : 0; }
    replicated_.clear();
    for (std::size_t e = 0; e < loads.size(); ++e) {
      if (experts_[e].copies > 1) { replicated_.push_back(static_cast<index_t>(e)); }
      experts_[e].was_replicated = experts_[e].copies > 1;
    }
    for (std::size_t slot = 0; slot < slots; ++slot) {
      slot_load_[slot] = expert_[slot] != none ? at(experts_, expert_[slot]).per_copy : 0;
      at(rank_load_, rank_[slot]) += slot_load_[slot];
    }
  }

  [[nodiscard]] index_t num_slots() const noexcept { return static_cast<index_t>(expert_.size()); }
  [[nodiscard]] index_t num_ranks() const noexcept { return static_cast<index_t>(rank_load_.size()); }
  [[nodiscard]] index_t num_logical() const noexcept { return static_cast<index_t>(num_logical_); }
  [[nodiscard]] index_t first_slot(index_t rank) const noexcept { return rank * slots_per_rank_; }
  [[nodiscard]] index_t rank_of(index_t slot) const { return at(rank_, slot); }
  [[nodiscard]] index_t expert(index_t slot) const { return at(expert_, slot); }
  /// What the slot held at the start.
  [[nodiscard]] index_t expert_before(index_t slot) const { return at(start_, slot); }
  [[nodiscard]] std::span<index_t const> logical_of_slot() const noexcept { return expert_; }
  /// `[S]` load of each slot of a rank.
  [[nodiscard]] std::span<load_t const> slot_loads(index_t rank) const {
    return std::span{slot_load_}.subspan(static_cast<std::size_t>(first_slot(rank)),
                                         static_cast<std::size_t>(slots_per_rank_));
  }
  [[nodiscard]] load_t slot_load(index_t slot) const { return at(slot_load_, slot); }
  [[nodiscard]] load_t rank_load(index_t rank) const { return at(rank_load_, rank); }

  /// Live copies of an expert.
  [[nodiscard]] index_t copies(index_t expert) const { return at(experts_, expert).copies; }
  [[nodiscard]] load_t load(index_t expert) const { return at(experts_, expert).load; }
  /// Load of each copy, and what it would be with one copy more or less (the latter 0 for a single copy).
  [[nodiscard]] load_t per_copy(index_t expert) const { return at(experts_, expert).per_copy; }
  [[nodiscard]] load_t with_one_more(index_t expert) const { return at(experts_, expert).with_one_more; }
  [[nodiscard]] load_t with_one_less(index_t expert) const { return at(experts_, expert).with_one_less; }

  /// Copies of experts that have another one.
  [[nodiscard]] index_t num_spare() const noexcept { return num_spare_; }
  /// Every expert with more than one copy, and some that had more once.
  [[nodiscard]] std::span<index_t const> replicated() const noexcept { return replicated_; }

  template <class Visit>
  void for_each_copy(index_t expert, Visit visit) const {
    auto const head = at(experts_, expert).head;
    if (head == none) { return; }
    auto slot = head;
    do {
      visit(slot);
      slot = at(next_, slot);
    } while (slot != head);
  }
  /// Whether some rank has more than one copy of an expert.
  [[nodiscard]] bool is_doubled(index_t expert) const { return at(experts_, expert).doubles > 0; }
  /// Copies of an expert on one rank.
  [[nodiscard]] index_t copies_on(index_t rank, index_t expert) const {
    return static_cast<index_t>(presence(rank, expert) >> 1);
  }
  [[nodiscard]] bool holds(index_t rank, index_t expert) const { return presence(rank, expert) > 1; }
  /// Whether the rank held the expert at the start, so that a copy there costs no bytes.
  [[nodiscard]] bool held(index_t rank, index_t expert) const { return (presence(rank, expert) & 1U) != 0; }
  /// Whether any slot of the rank was assigned since the start.
  [[nodiscard]] bool changed(index_t rank) const { return at(changed_, rank) != 0; }

  /// Moves between the start and now: pairs (rank, expert) that are new.
  [[nodiscard]] index_t moves() const noexcept { return moves_; }
  /// The same of one rank: experts that it must receive, and those of them that no rank of its node held.
  struct arrival_count {
    index_t all = 0;
    index_t remote = 0;
  };
  [[nodiscard]] arrival_count arrivals(index_t rank) const { return at(arrivals_, rank); }
  /// Whether no rank of the node held the expert at the start, so that a move there crosses nodes.
  [[nodiscard]] bool is_remote(index_t rank, index_t expert) const {
    return ranks_per_node_ > 0 && held_in_node_[cell(rank / ranks_per_node_, expert)] == 0;
  }
  /// What the arrivals of a slot's rank would be with another expert in the slot.
  [[nodiscard]] arrival_count arrivals_with(index_t slot, index_t expert) const {
    auto const rank = rank_of(slot);
    auto result = arrivals(rank);
    auto const leaving = at(expert_, slot);
    if (refund(slot) != 0) {
      --result.all;
      result.remote -= is_remote(rank, leaving) ? 1 : 0;
    }
    if (expert != leaving && arrival(rank, expert) != 0) {
      ++result.all;
      result.remote += is_remote(rank, expert) ? 1 : 0;
    }
    return result;
  }
  /// 1 if putting the expert on the rank is a move.
  [[nodiscard]] index_t arrival(index_t rank, index_t expert) const { return presence(rank, expert) == 0 ? 1 : 0; }
  /// 1 if taking the slot's expert away undoes a move.
  [[nodiscard]] index_t refund(index_t slot) const { return at(refund_, slot); }

  /// Whether some rank held the expert at the start and does not now, and whether it is that one.
  [[nodiscard]] bool is_gone(index_t expert) const { return at(experts_, expert).gone > 0; }
  [[nodiscard]] bool is_gone_from(index_t rank, index_t expert) const { return presence(rank, expert) == 1; }

  /// Put another expert into a slot. @pre the slot is live
  void assign(index_t slot, index_t expert) {
    auto const rank = rank_of(slot);
    count_arrival(rank, at(expert_, slot), -refund(slot));
    auto const left = at(expert_, slot);
    unlink(slot);
    count_arrival(rank, expert, arrival(rank, expert));
    link(slot, expert);
    note_refunds(rank, left);
    note_refunds(rank, expert);
    at(changed_, rank) = 1;
  }

private:
  struct replicas {
    load_t load = 0;
    load_t per_copy = 0;
    load_t with_one_more = 0;
    load_t with_one_less = 0;
    index_t copies = 0;
    index_t doubles = 0;  ///< of them, on ranks that have one already
    index_t gone = 0;     ///< ranks that held it at the start and do not now
    index_t head = none;
    bool was_replicated = false;

    void split() noexcept {
      per_copy = copies > 0 ? load / copies : 0;
      with_one_more = load / (copies + 1);
      with_one_less = copies > 1 ? load / (copies - 1) : 0;
    }
    /// The same after a copy more or less.
    void split_further() noexcept {
      with_one_less = per_copy;
      per_copy = with_one_more;
      with_one_more = load / (copies + 1);
    }
    void split_less() noexcept {
      with_one_more = per_copy;
      per_copy = with_one_less;
      with_one_less = copies > 1 ? load / (copies - 1) : 0;
    }
  };

  /// Twice the copies of an expert on a rank, plus 1 if the rank held it at the start.
  [[nodiscard]] std::uint16_t presence(index_t rank, index_t expert) const { return presence_[cell(rank, expert)]; }
  [[nodiscard]] std::size_t cell(index_t rank, index_t expert) const {
    return static_cast<std::size_t>(rank) * num_logical_ + static_cast<std::size_t>(expert);
  }
  void count_arrival(index_t rank, index_t expert, index_t change) {
    moves_ += change;
    at(arrivals_, rank).all += change;
    at(arrivals_, rank).remote += is_remote(rank, expert) ? change : 0;
  }
  void set_slot_load(index_t slot, load_t load) {
    at(rank_load_, rank_of(slot)) += load - at(slot_load_, slot);
    at(slot_load_, slot) = load;
  }
  /// Give the copies of an expert what each of them carries by now.
  void spread(index_t expert) {
    for_each_copy(expert, [this, &expert](index_t slot) { set_slot_load(slot, per_copy(expert)); });
  }
  void join_ring(index_t slot, index_t number) {
    auto& expert = at(experts_, number);
    if (expert.head == none) {
      expert.head = at(next_, slot) = at(before_, slot) = slot;
    } else {
      auto const last = at(before_, expert.head);
      at(next_, slot) = expert.head;
      at(before_, slot) = last;
      at(next_, last) = slot;
      at(before_, expert.head) = slot;
    }
    ++expert.copies;
    expert.doubles += holds(rank_of(slot), number) ? 1 : 0;
    at(expert_, slot) = number;
    add_presence(slot, 2);
  }
  void add_presence(index_t slot, int amount) {
    auto& presence = presence_[cell(rank_of(slot), expert(slot))];
    auto& gone = at(experts_, expert(slot)).gone;
    gone -= presence == 1 ? 1 : 0;
    presence = static_cast<std::uint16_t>(presence + amount);
    gone += presence == 1 ? 1 : 0;
  }
  /// Taking an expert away undoes a move where it is a single copy, and its rank held none at the start.
  void note_refunds(index_t rank, index_t expert) {
    auto const refund = static_cast<unsigned char>(presence(rank, expert) == 2 ? 1 : 0);
    for_each_copy(expert, [this, &rank, &refund](index_t slot) {
      if (rank_of(slot) == rank) { at(refund_, slot) = refund; }
    });
  }
  void link(index_t slot, index_t number) {
    join_ring(slot, number);
    auto& expert = at(experts_, number);
    expert.split_further();
    spread(number);
    num_spare_ += expert.copies > 2 ? 1 : expert.copies == 2 ? 2 : 0;
    if (expert.copies > 1 && !expert.was_replicated) {
      expert.was_replicated = true;
      replicated_.push_back(number);
    }
  }
  void unlink(index_t slot) {
    auto const number = at(expert_, slot);
    auto& expert = at(experts_, number);
    set_slot_load(slot, 0);
    add_presence(slot, -2);
    at(expert_, slot) = none;
    expert.doubles -= holds(rank_of(slot), number) ? 1 : 0;
    num_spare_ -= expert.copies > 2 ? 1 : expert.copies == 2 ? 2 : 0;
    --expert.copies;
    expert.split_less();
    if (expert.copies == 0) {
      expert.head = none;
      return;
    }
    at(next_, at(before_, slot)) = at(next_, slot);
    at(before_, at(next_, slot)) = at(before_, slot);
    if (expert.head == slot) { expert.head = at(next_, slot); }
    spread(number);
  }

  std::size_t num_logical_ = 0;
  index_t slots_per_rank_ = 1;
  index_t ranks_per_node_ = 0;  ///< 0 with a single node
  index_t moves_ = 0;
  index_t num_spare_ = 0;
  std::vector<index_t> start_;         ///< [P] the map at the start
  std::vector<index_t> expert_;        ///< [P] the map now
  std::vector<index_t> next_;          ///< [P] ring of the slots that hold the same expert
  std::vector<index_t> before_;        ///< [P]
  std::vector<index_t> rank_;          ///< [P]
  std::vector<unsigned char> refund_;  ///< [P] see `refund`
  std::vector<load_t> slot_load_;      ///< [P] load of each slot's copy
  std::vector<index_t> replicated_;
  std::vector<replicas> experts_;            ///< [E]
  std::vector<load_t> rank_load_;            ///< [R]
  std::vector<unsigned char> changed_;       ///< [R]
  std::vector<std::uint16_t> presence_;      ///< [R, E]
  std::vector<unsigned char> held_in_node_;  ///< [N, E] held by a rank of the node at the start
  std::vector<arrival_count> arrivals_;      ///< [R]
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
