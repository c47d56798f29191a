// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_DETAIL_INCREMENTAL_SHARE_MOVE_SEARCH_HPP
#define BALLAST_POLICIES_DETAIL_INCREMENTAL_SHARE_MOVE_SEARCH_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/index.hpp>
#include <ballast/policies/detail/incremental/move_search.hpp>
#include <ballast/policies/detail/incremental/replica_map.hpp>
#include <ballast/shares/replica_shares.hpp>
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

/// Lowers the largest rank load that the best shares of a layer can reach, by as few moves as it can.
///
/// The best shares leave a bottleneck: ranks whose experts are nowhere else, at the mean load of all of them. Only a
/// copy of one of these experts outside, or an exchange for a lighter one, lowers the optimum. Each step solves the
/// shares again for a number of promising candidates and takes the one that lowers the optimum most for its moves.
class share_move_search {
public:
  explicit share_move_search(topology const& where) : where_{where} {}

  /// Change the map for the better; it stays as it is if nothing is worth it.
  /// @param solver  open on the same map and loads; its split is unspecified afterwards.
  void run(replica_map& map, share_solver& solver, move_limits const& limits) {
    map_ = &map;
    solver_ = &solver;
    limits_ = limits;
    work_ = limits.work;
    journal_.clear();
    auto const start = solver.solve();
    mean_ = mean_load();
    tolerance_ = (mean_ >> 14) + 1;
    auto const moves_at_start = map.moves();
    auto best_worth = start;
    auto best_max = start;
    std::size_t best_length = 0;
    optimum_ = start;
    if (start <= limits.good_enough) { return; }
    while (optimum_ > limits.goal && work_ > 0 && map.moves() < limits.max_moves && step()) {
      auto const worth = optimum_ + limits.price_of(map.moves() - moves_at_start);
      if (worth < best_worth - tolerance_) {
        best_worth = worth;
        best_max = optimum_;
        best_length = journal_.size();
      }
    }
    if (start - best_max < limits.least_gain) { best_length = 0; }
    while (journal_.size() > best_length) {
      map.assign(journal_.back().slot, journal_.back().expert);
      journal_.pop_back();
    }
  }

private:
  static constexpr index_t none = replica_map::none;
  /// How many experts and slots a step combines; where nothing helps, it looks at more.
  static constexpr std::size_t few = 6;
  static constexpr std::size_t many = 24;
  /// What solving costs, for each slot, in candidates of the search for even shares.
  static constexpr std::int64_t work_of_solving = 8;

  struct entry {
    index_t slot;
    index_t expert;  ///< that the slot held before
  };
  struct ranked {
    load_t key;
    index_t id;
  };
  struct change {
    load_t worth = 0;   ///< by how much the optimum falls, for each move
    load_t excess = 0;  ///< above the mean that is left on the ranks
    index_t slot = none;
    index_t expert = none;
    index_t other_slot = none;
    index_t other_expert = none;
  };

  [[nodiscard]] load_t mean_load() const {
    load_t total = 0;
    for (auto const load : solver_->rank_loads()) { total += load; }
    return total / where_.num_live_ranks();
  }
  [[nodiscard]] load_t rank_load(index_t rank) const { return solver_->rank_loads()[static_cast<std::size_t>(rank)]; }
  [[nodiscard]] bool is_outside(index_t rank) const { return where_.is_live(rank) && !solver_->is_bottleneck(rank); }

  [[nodiscard]] bool step() {
    best_ = {};
    excess_ = excess();
    look_around(few);
    if (best_.slot == none) {
      static_cast<void>(solver_->solve());
      look_around(many);
    }
    if (best_.slot == none) { return false; }
    make(best_.slot, best_.expert);
    if (best_.other_slot != none) { make(best_.other_slot, best_.other_expert); }
    optimum_ = solver_->solve();
    return true;
  }
  void look_around(std::size_t count) {
    list_candidates(count);
    for (auto const& expert : experts_) {
      for (auto const& slot : slots_) { look_at_copy(expert.id, slot.id); }
    }
    if (map_->moves() + 2 > limits_.max_moves) { return; }
    for (auto const& expert : experts_) {
      for (auto const& slot : partners_) { look_at_exchange(expert.id, slot.id); }
    }
  }

  /// The heaviest experts that only the bottleneck holds; the slots outside it that can best be spared; and those of
  /// the lightest ranks outside it.
  void list_candidates(std::size_t count) {
    experts_.clear();
    for (index_t expert = 0; expert < map_->num_logical(); ++expert) {
      bool inside = map_->load(expert) > 0;
      map_->for_each_copy(expert, [&](index_t slot) { inside = inside && !is_outside(map_->rank_of(slot)); });
      if (inside) { experts_.push_back({-map_->load(expert), expert}); }
    }
    keep_first(experts_, count);
    slots_.clear();
    partners_.clear();
    for (index_t slot = 0; slot < map_->num_slots(); ++slot) {
      auto const rank = map_->rank_of(slot);
      if (map_->expert(slot) == none || !is_outside(rank)) { continue; }
      auto const taken = solver_->slot_loads()[static_cast<std::size_t>(slot)];
      if (map_->copies(map_->expert(slot)) > 1) { slots_.push_back({rank_load(rank) + taken, slot}); }
      partners_.push_back({rank_load(rank) + taken, slot});
    }
    keep_first(slots_, 2 * count);
    keep_first(partners_, count);
  }
  static void keep_first(std::vector<ranked>& from, std::size_t count) {
    auto const middle = from.begin() + static_cast<std::ptrdiff_t>(std::min(count, from.size()));
    std::partial_sort(from.begin(), middle, from.end(),
                      [](ranked const& a, ranked const& b) { return a.key != b.key ? a.key < b.key : a.id < b.id; });
    from.erase(middle, from.end());
  }

  void look_at_copy(index_t expert, index_t slot) {
    auto const rank = map_->rank_of(slot);
    if (map_->holds(rank, expert)) { return; }
    auto const moves = map_->arrival(rank, expert) - map_->refund(slot);
    if (map_->moves() + moves > limits_.max_moves || !limits_.allow(*map_, slot, expert)) { return; }
    auto const old = map_->expert(slot);
    solver_->replace(slot, expert);
    look_at(moves, {0, 0, slot, expert, none, none});
    solver_->replace(slot, old);
  }
  /// The heaviest expert's place in the bottleneck goes to what the slot outside holds.
  void look_at_exchange(index_t expert, index_t other) {
    auto const rank = map_->rank_of(other);
    auto const taken = map_->expert(other);
    if (map_->copies(expert) > 1 || map_->load(taken) >= map_->load(expert) || map_->holds(rank, expert)) { return; }
    index_t slot = none;
    map_->for_each_copy(expert, [&](index_t copy) { slot = copy; });
    if (map_->holds(map_->rank_of(slot), taken)) { return; }
    auto const moves = map_->arrival(rank, expert) + map_->arrival(map_->rank_of(slot), taken) - map_->refund(slot) -
                       map_->refund(other);
    if (map_->moves() + moves > limits_.max_moves) { return; }
    if (!limits_.allow(*map_, slot, taken) || !limits_.allow(*map_, other, expert)) { return; }
    solver_->replace(slot, taken);
    solver_->replace(other, expert);
    look_at(moves, {0, 0, slot, taken, other, expert});
    solver_->replace(slot, expert);
    solver_->replace(other, taken);
  }
  void look_at(index_t moves, change proposal) {
    work_ -= work_of_solving * map_->num_slots();
    proposal.worth = (optimum_ - solver_->solve()) / std::max(moves, index_t{1});
    proposal.excess = excess();
    // With several bottlenecks of one height, the optimum falls only when the last of them is gone.
    if (proposal.worth < 0 || (proposal.worth <= tolerance_ && proposal.excess >= excess_ - tolerance_)) { return; }
    if (best_.slot == none || proposal.worth > best_.worth ||
        (proposal.worth == best_.worth && proposal.excess < best_.excess)) {
      best_ = proposal;
    }
  }
  [[nodiscard]] load_t excess() const {
    load_t sum = 0;
    for (auto const load : solver_->rank_loads()) { sum += std::max(load - mean_, load_t{0}); }
    return sum;
  }
  void make(index_t slot, index_t expert) {
    journal_.push_back({slot, map_->expert(slot)});
    map_->assign(slot, expert);
    solver_->replace(slot, expert);
  }

  topology const& where_;
  replica_map* map_ = nullptr;
  share_solver* solver_ = nullptr;
  move_limits limits_;
  std::int64_t work_ = 0;
  load_t mean_ = 0;
  load_t tolerance_ = 0;
  load_t optimum_ = 0;
  load_t excess_ = 0;  ///< above the mean, of all ranks
  change best_;
  std::vector<ranked> experts_;
  std::vector<ranked> slots_;
  std::vector<ranked> partners_;
  std::vector<entry> journal_;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
