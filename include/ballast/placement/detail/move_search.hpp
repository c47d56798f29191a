// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_PLACEMENT_DETAIL_MOVE_SEARCH_HPP
#define BALLAST_PLACEMENT_DETAIL_MOVE_SEARCH_HPP

#include <ballast/contract.hpp>
#include <ballast/placement/detail/replica_map.hpp>
#include <ballast/placement/rank_cost.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// How far a search may go in one layer.
struct move_limits {
  index_t max_moves = std::numeric_limits<index_t>::max();  ///< pairs (rank, expert) that may be new
  load_t price = 0;       ///< what a move costs, in the unit of the largest rank cost that it lowers
  load_t goal = 0;        ///< rank cost that is good enough
  load_t least_gain = 0;  ///< a plan that lowers the largest rank cost by less is no plan
  std::int64_t work = 0;  ///< candidates to look at
};

/// Lowers the largest rank cost of a layer by as few moves as it can.
///
/// The search wants all ranks at or below a target above the mean, and takes at each step the change that removes the
/// most excess over the target for its moves: another copy of an expert in the slot of one that can spare it, or an
/// exchange of two experts. Changes without a move (a copy beside one that is there, one undone) come first. The target
/// follows from the excess that is left and the moves that are left. What remains of the steps in the end is the
/// beginning that was worth most.
template <rank_cost Cost>
class move_search {
public:
  explicit move_search(topology const& where, Cost const& cost) : where_{where}, cost_{cost} {
    for (index_t rank = 0; rank < where.num_ranks(); ++rank) {
      if (where.is_live(rank)) { live_ranks_.push_back(rank); }
    }
    auto const ranks = static_cast<std::size_t>(where.num_ranks());
    rank_cost_.resize(ranks);
    excess_.resize(ranks);
    added_.assign(ranks, 0);
  }

  /// Mean and largest rank cost of a map.
  struct level {
    load_t mean = 0;
    load_t max = 0;
  };
  [[nodiscard]] level level_of(replica_map const& map) {
    load_t sum = 0;
    load_t max = 0;
    for (auto const rank : live_ranks_) {
      auto const cost = cost_(rank, map.rank_load(rank));
      at(rank_cost_, rank) = cost;
      // The sum of costs may not fit where the costs do.
      sum += cost / static_cast<load_t>(live_ranks_.size());
      max = std::max(max, cost);
    }
    return {sum, max};
  }

  /// Change the map for the better; it stays as it is if nothing is worth it.
  void run(replica_map& map, move_limits const& limits) {
    map_ = &map;
    limits_ = limits;
    work_ = limits.work;
    relief_.assign(static_cast<std::size_t>(map.num_logical()), 0);
    journal_.clear();
    auto const start = level_of(map);
    auto const moves_at_start = map.moves();
    mean_ = start.mean;
    tolerance_ = (mean_ >> 14) + 1;
    load_t best_worth = start.max;
    std::size_t best_length = 0;
    load_t best_max = start.max;
    while (work_ > 0) {
      auto const now = level_of(map);
      auto const worth = now.max + limits.price * (map.moves() - moves_at_start);
      if (worth < best_worth - tolerance_) {
        best_worth = worth;
        best_max = now.max;
        best_length = journal_.size();
      }
      if (now.max <= limits.goal || !aim(now.max) || !step()) { break; }
    }
    if (start.max - best_max < limits.least_gain) { best_length = 0; }
    while (journal_.size() > best_length) {
      map.assign(journal_.back().slot, journal_.back().expert);
      journal_.pop_back();
    }
  }

private:
  static constexpr index_t none = replica_map::none;

  struct entry {
    index_t slot;
    index_t expert;  ///< that the slot held before
  };
  /// A slot whose expert has another copy.
  struct spare_slot {
    index_t slot;
    index_t rank;
    index_t refund;  ///< 1 if emptying it undoes a move
    load_t room;     ///< load of the rank without it
    load_t gain;     ///< excess of the rank less what the expert's other copies gain
  };
  struct choice {
    load_t gain = 0;  ///< excess removed, for each move
    index_t slot = none;
    index_t expert = none;
    index_t other_slot = none;  ///< of an exchange
  };

  template <class T>
  [[nodiscard]] static T& at(std::vector<T>& values, index_t i) {
    return values[static_cast<std::size_t>(i)];
  }
  template <class T>
  [[nodiscard]] static T const& at(std::vector<T> const& values, index_t i) {
    return values[static_cast<std::size_t>(i)];
  }
  [[nodiscard]] load_t excess_of(index_t rank, load_t load) const {
    return std::max(cost_(rank, load) - target_, load_t{0});
  }

  /// Set the target for the next step; false if there is nothing to do.
  [[nodiscard]] bool aim(load_t max) {
    if (max <= mean_) { return false; }
    load_t sum = 0;
    for (auto const rank : live_ranks_) { sum += std::max(at(rank_cost_, rank) - mean_, load_t{0}) / 20; }
    auto const left = std::max(limits_.max_moves - map_->moves(), index_t{1});
    auto margin = sum / left * 3;
    while (max <= mean_ + margin) { margin -= margin / 5 + 1; }
    target_ = std::max(mean_ + margin, limits_.goal);
    for (auto const rank : live_ranks_) { at(excess_, rank) = std::max(at(rank_cost_, rank) - target_, load_t{0}); }
    return true;
  }

  [[nodiscard]] bool step() {
    best_ = {};
    best_.gain = tolerance_;
    find_wanted();
    find_spare();
    free_only_ = true;
    look_at_copies();
    look_at_exchanges();
    if (best_.slot == none) {
      free_only_ = false;
      look_at_copies();
      look_at_exchanges();
    }
    forget_wanted();
    if (best_.slot == none) { return false; }
    auto const given = map_->expert(best_.slot);
    assign(best_.slot, best_.expert);
    if (best_.other_slot != none) { assign(best_.other_slot, given); }
    return true;
  }
  void assign(index_t slot, index_t expert) {
    journal_.push_back({slot, map_->expert(slot)});
    map_->assign(slot, expert);
  }

  /// List the experts of which another copy would relieve a rank above the target.
  void find_wanted() {
    wanted_.clear();
    for (auto const rank : live_ranks_) {
      if (at(excess_, rank) == 0) { continue; }
      for (index_t slot = map_->first_slot(rank); slot < map_->first_slot(rank + 1); ++slot) {
        auto const expert = map_->expert(slot);
        auto const less = map_->per_copy(expert) - map_->with_one_more(expert);
        if (less == 0) { continue; }
        if (at(relief_, expert) == 0) { wanted_.push_back(expert); }
        at(relief_, expert) += at(excess_, rank) - excess_of(rank, map_->rank_load(rank) - less);
      }
    }
  }
  void forget_wanted() {
    for (auto const expert : wanted_) { at(relief_, expert) = 0; }
  }

  /// List the slots whose expert has another copy.
  void find_spare() {
    spare_.clear();
    best_spare_ = std::numeric_limits<load_t>::min();
    for (auto const rank : live_ranks_) {
      for (index_t slot = map_->first_slot(rank); slot < map_->first_slot(rank + 1); ++slot) {
        auto const expert = map_->expert(slot);
        if (map_->copies(expert) < 2) { continue; }
        auto const more = map_->with_one_less(expert) - map_->per_copy(expert);
        load_t gain = at(excess_, rank);
        map_->for_each_copy(expert, [&](index_t other) {
          auto const to = map_->rank_of(other);
          if (other != slot) { gain -= excess_of(to, map_->rank_load(to) + more) - at(excess_, to); }
        });
        best_spare_ = std::max(best_spare_, gain);
        spare_.push_back({slot, rank, map_->refund(slot), map_->rank_load(rank) - map_->per_copy(expert), gain});
      }
    }
  }

  void look_at_copies() {
    for (auto const& spare : spare_) {
      if (free_only_) {
        look_at_local_copies(spare);
        if (spare.refund == 0) { continue; }
      } else if (spare.refund == 1 || map_->moves() >= limits_.max_moves) {
        continue;
      }
      for (auto const expert : wanted_) {
        auto const bound = at(relief_, expert) + spare.gain;
        if (bound <= best_.gain) { continue; }
        if (bound - excess_of(spare.rank, spare.room + map_->with_one_more(expert)) <= best_.gain) { continue; }
        if (!map_->holds(spare.rank, expert)) { look_at(spare, expert); }
      }
    }
  }
  /// Copies that cost no bytes: of experts that the rank holds, or held at the start.
  void look_at_local_copies(spare_slot const& spare) {
    for (index_t slot = map_->first_slot(spare.rank); slot < map_->first_slot(spare.rank + 1); ++slot) {
      auto const expert = map_->expert(slot);
      if (at(relief_, expert) + spare.gain > best_.gain) { look_at(spare, expert); }
      if (!map_->changed(spare.rank)) { continue; }
      auto const before = map_->expert_before(slot);
      if (before != expert && at(relief_, before) + spare.gain > best_.gain && !map_->holds(spare.rank, before)) {
        look_at(spare, before);
      }
    }
  }
  void look_at(spare_slot const& spare, index_t expert) {
    auto const gain = gain_of_copy(spare.slot, expert);
    if (gain > best_.gain) { best_ = {gain, spare.slot, expert, none}; }
  }
  /// Excess that disappears when a copy of `expert` takes the slot.
  [[nodiscard]] load_t gain_of_copy(index_t slot, index_t expert) {
    auto const old = map_->expert(slot);
    if (old == expert) { return 0; }
    --work_;
    auto const less = map_->with_one_more(expert) - map_->per_copy(expert);
    auto const more = map_->with_one_less(old) - map_->per_copy(old);
    touched_.clear();
    map_->for_each_copy(expert, [&](index_t s) { add(map_->rank_of(s), less); });
    map_->for_each_copy(old, [&](index_t s) { add(map_->rank_of(s), s == slot ? -map_->per_copy(old) : more); });
    add(map_->rank_of(slot), map_->with_one_more(expert));
    load_t gain = 0;
    for (auto const rank : touched_) {
      gain += at(excess_, rank) - excess_of(rank, map_->rank_load(rank) + at(added_, rank));
      at(added_, rank) = 0;
    }
    return gain;
  }
  void add(index_t rank, load_t load) {
    // A rank may be listed twice; it then counts once, because `added_` is cleared when it is read.
    touched_.push_back(rank);
    at(added_, rank) += load;
  }

  void look_at_exchanges() {
    for (auto const hot : live_ranks_) {
      auto const excess = at(excess_, hot);
      if (excess == 0) { continue; }
      for (auto const cold : live_ranks_) {
        auto const room = target_ - at(rank_cost_, cold);
        bool const may_be_free = map_->changed(hot) || map_->changed(cold);
        if (room <= 0 || (free_only_ && !may_be_free)) { continue; }
        auto const most = std::min(excess, room);
        if ((may_be_free ? most : most / 2) <= best_.gain) { continue; }
        look_at_exchanges(hot, cold);
      }
    }
  }
  void look_at_exchanges(index_t hot, index_t cold) {
    for (index_t slot = map_->first_slot(hot); slot < map_->first_slot(hot + 1); ++slot) {
      auto const expert = map_->expert(slot);
      for (index_t other = map_->first_slot(cold); other < map_->first_slot(cold + 1); ++other) {
        auto const difference = map_->per_copy(expert) - map_->per_copy(map_->expert(other));
        if (difference <= best_.gain) { continue; }
        look_at_exchange(slot, other, difference);
      }
    }
  }
  void look_at_exchange(index_t slot, index_t other, load_t difference) {
    --work_;
    auto const hot = map_->rank_of(slot);
    auto const cold = map_->rank_of(other);
    auto gain = at(excess_, hot) - excess_of(hot, map_->rank_load(hot) - difference) -
                excess_of(cold, map_->rank_load(cold) + difference);
    if (gain <= best_.gain) { return; }
    auto const given = map_->expert(slot);
    auto const taken = map_->expert(other);
    if (map_->holds(cold, given) || map_->holds(hot, taken)) { return; }
    auto const moves =
        map_->arrival(cold, given) + map_->arrival(hot, taken) - map_->refund(slot) - map_->refund(other);
    if (free_only_ ? moves > 0 : moves <= 0 || map_->moves() + moves > limits_.max_moves) { return; }
    if (moves > 1) { gain /= moves; }
    if (gain > best_.gain) { best_ = {gain, slot, taken, other}; }
  }

  topology const& where_;
  Cost const& cost_;
  replica_map* map_ = nullptr;
  move_limits limits_;
  std::int64_t work_ = 0;
  load_t mean_ = 0;
  load_t target_ = 0;
  load_t tolerance_ = 0;
  load_t best_spare_ = 0;
  bool free_only_ = false;
  choice best_;
  std::vector<index_t> live_ranks_;
  std::vector<load_t> rank_cost_;  ///< [R]
  std::vector<load_t> excess_;     ///< [R] cost above the target
  std::vector<load_t> added_;      ///< [R] scratch of one candidate
  std::vector<index_t> touched_;   ///< ranks that one candidate changes
  std::vector<load_t> relief_;     ///< [E] excess that another copy, put nowhere, would remove
  std::vector<index_t> wanted_;    ///< experts with relief
  std::vector<spare_slot> spare_;
  std::vector<entry> journal_;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
