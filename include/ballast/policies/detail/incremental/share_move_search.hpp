// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_DETAIL_INCREMENTAL_SHARE_MOVE_SEARCH_HPP
#define BALLAST_POLICIES_DETAIL_INCREMENTAL_SHARE_MOVE_SEARCH_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/index.hpp>
#include <ballast/policies/detail/incremental/move_search.hpp>
#include <ballast/policies/detail/incremental/replica_map.hpp>
#include <ballast/policies/detail/incremental/work_slice.hpp>
#include <ballast/shares/replica_shares.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// The numbers of the search for shares. As those of `move_search`, they are what did best on recorded loads.
struct share_search_numbers : move_search_numbers {
  static constexpr load_t margin_of_excess[] = {1, 10};  ///< a lower target than for even shares
  static constexpr std::size_t most_experts = 12;        ///< that a step looks at before all others
  static constexpr std::size_t most_tries = 8;           ///< changes a step solves the shares for that help,
  static constexpr std::size_t most_failures = 8;        ///< and that do not
  static constexpr load_t least_promise = 2;             ///< a third of the best promise; less is not looked at
  static constexpr std::int64_t part_of_slice = 8;       ///< work on shares takes an eighth of its candidates' time
  static constexpr int undone = 2;                       ///< changes that a retry takes back
  static constexpr index_t retries[] = {1, 2};           ///< of those for even shares
};

/// Lowers the largest rank load that the best shares of a layer can reach, by as few moves as it can.
///
/// The search wants all ranks at or below a target above the mean. What the best split leaves above it sits on ranks
/// that share no expert with a rank below it: only a copy of one of their experts elsewhere, or an exchange for a
/// lighter one, takes anything away. How much is read off the split at hand, nearly always exactly, so that a step
/// solves the shares for the most promising changes only, each time from that split.
class share_move_search {
public:
  explicit share_move_search(topology const& where) : where_{where}, has_nodes_{where.num_nodes() > 1} {
    auto const ranks = static_cast<std::size_t>(where.num_ranks());
    room_.resize(ranks);
    reach_.resize(ranks);
    piece_.resize(ranks);
    lightest_.resize(ranks);
  }

  /// Begin to change the map for the better, which `advance` does; it stays as it is if nothing is worth it. With
  /// `most_kept` it is the beginning of the search that has `max_moves`, so what it reaches never gets worse with more.
  /// @param map     outlives the search, as the solver does; neither changes while it is not over.
  /// @param solver  open on the same map and loads; its split is unspecified afterwards.
  void begin(replica_map& map, share_solver& solver, move_limits const& limits) {
    task_ = task::none;
    max_at_start_ = open(map, solver, limits);
    if (max_at_start_ <= limits.good_enough) { return; }
    open_descent();
    task_ = task::descent;
  }
  /// Begin to take some changes back and search again, as often as the limits say; the map never gets worse.
  /// @param map, solver  as above
  void retry(replica_map& map, share_solver& solver, move_limits const& limits) {
    kept_ = milestone{0, open(map, solver, limits), 0};
    moves_at_start_ = 0;
    kept_.worth = kept_.max + limits.price_of(map.moves());
    random_ = 0;
    retries_left_ = limits.retries * numbers::retries[0] / numbers::retries[1];
    is_descending_ = false;
    task_ = task::retries;
  }
  /// Go on with what was begun; where it stops changes nothing of what comes out.
  /// @return whether it is over; else the slice is used up.
  [[nodiscard]] bool advance(work_slice& slice) {
    bool const is_over = task_ == task::none || (task_ == task::retries ? go_on_retrying(slice) : descend(slice));
    if (!is_over) { return false; }
    if (task_ == task::descent && max_at_start_ - best_.max < limits_.least_gain) { rewind(0); }
    task_ = task::none;
    return true;
  }

  /// What the last search left of its `move_limits::work`; below 0 by what its last step took.
  [[nodiscard]] std::int64_t work_left() const noexcept { return work_; }
  /// What solving once takes of a slice.
  [[nodiscard]] static constexpr std::int64_t slice_of_solving(std::int64_t num_slots) noexcept {
    return work_of_solving(num_slots) / numbers::part_of_slice;
  }

private:
  using numbers = share_search_numbers;
  enum class task : unsigned char { none, descent, retries };
  static constexpr index_t none = replica_map::none;
  /// What solving costs, in candidates: so much for each slot, and more in large layers, whose paths are longer.
  [[nodiscard]] static constexpr std::int64_t work_of_solving(std::int64_t num_slots) noexcept {
    constexpr std::int64_t of_slot = 8;
    constexpr std::int64_t large = 512;
    return of_slot * num_slots * (large + num_slots) / large;
  }
  [[nodiscard]] std::int64_t work_of_solving() const { return work_of_solving(map_->num_slots()); }

  struct entry {
    index_t slot;
    index_t expert;  ///< that the slot held before
  };
  struct milestone {
    load_t worth;  ///< least possible load of the busiest rank, and the price of the moves
    load_t max;
    std::size_t length;
  };
  /// A slot of a rank that can get rid of nothing, and its expert.
  struct stuck_slot {
    load_t load;   ///< of the expert
    load_t worth;  ///< that leaving could have
    index_t slot;
    index_t expert;
    index_t piece;
  };
  /// A slot of a rank below the target whose expert has another copy.
  struct spare_slot {
    load_t room;  ///< that a copy there finds
    load_t cost;  ///< of what is there now
    index_t slot;
  };
  struct single_slot {
    load_t load;
    index_t slot;
    index_t expert;
  };
  struct change {
    load_t gain = 0;   ///< excess that it removes
    load_t worth = 0;  ///< the same for each move
    index_t moves = 1;
    index_t slot = none;
    index_t expert = none;
    index_t other_slot = none;
    index_t other_expert = none;
    index_t to = none;  ///< rank that takes the load
  };

  [[nodiscard]] load_t open(replica_map& map, share_solver& solver, move_limits const& limits) {
    map_ = &map;
    solver_ = &solver;
    limits_ = limits;
    work_ = limits.work;
    journal_.clear();
    settled_.assign(static_cast<std::size_t>(map.num_slots()), none);
    era_ = 0;
    auto const start = solver.solve();
    load_t total = 0;
    for (auto const load : solver.rank_loads()) { total += load; }
    mean_ = total / where_.num_live_ranks();
    tolerance_ = (mean_ >> numbers::tolerance_shift) + 1;
    moves_at_start_ = map.moves();
    best_ = {start, start, 0};
    return start;
  }
  [[nodiscard]] load_t rank_load(index_t rank) const { return solver_->rank_loads()[static_cast<std::size_t>(rank)]; }
  [[nodiscard]] load_t flow(index_t slot) const { return solver_->slot_loads()[static_cast<std::size_t>(slot)]; }
  [[nodiscard]] bool is_outside(index_t rank) const { return where_.is_live(rank) && !solver_->is_bottleneck(rank); }

  /// @param target  to aim at; 0: whatever the moves that are left allow.
  void open_descent(load_t target = 0) {
    descent_target_ = target;
    is_thorough_ = target == 0;
    least_margin_ = 0;
    misses_ = 0;
    ++era_;
    steps_left_ = numbers::steps_at_least + numbers::steps_for_each * std::min(limits_.max_moves, map_->num_slots());
  }
  /// Make changes while there are any, and keep the best beginning of them.
  /// @return whether that is over; else the slice is used up.
  [[nodiscard]] bool descend(work_slice& slice) {
    auto const target = descent_target_;
    while (!slice.is_used_up()) {
      auto const work = work_;
      bool goes_on = aim(target) && work_ > 0 && steps_left_-- > 0;
      goes_on = goes_on && (step() || (target <= 0 && map_->moves() < limits_.max_moves && aim_higher()));
      slice.spend((work - work_) / numbers::part_of_slice + 1);
      if (!goes_on) {
        rewind(best_.length);
        return true;
      }
    }
    return false;
  }
  /// @return whether all retries are made; else the slice is used up.
  [[nodiscard]] bool go_on_retrying(work_slice& slice) {
    for (;;) {
      if (!is_descending_) {
        if (retries_left_ <= 0 || kept_.max <= limits_.good_enough || work_ <= 0) { return true; }
        if (slice.is_used_up()) { return false; }
        --retries_left_;
        journal_.clear();
        undo_some();
        best_ = {kept_.worth, kept_.max, 0};
        open_descent(kept_.max - (kept_.max - mean_) / numbers::retry_depth);
        is_descending_ = true;
      }
      if (!descend(slice)) { return false; }
      is_descending_ = false;
      if (best_.length > 0) { kept_ = best_; }
    }
  }
  void rewind(std::size_t length) {
    while (journal_.size() > length) {
      map_->assign(journal_.back().slot, journal_.back().expert);
      solver_->replace(journal_.back().slot, journal_.back().expert);
      journal_.pop_back();
    }
  }

  /// Set the target of the next step; false if the busiest rank is light enough, or can no longer pay off.
  [[nodiscard]] bool aim(load_t target) {
    if (map_->moves() > limits_.most_kept) { return false; }
    work_ -= work_of_solving();
    max_ = solver_->solve();
    auto const price = limits_.price_of(map_->moves() - moves_at_start_);
    if (max_ + price < best_.worth - tolerance_) { best_ = {max_ + price, max_, journal_.size()}; }
    if (max_ <= std::max({limits_.goal, mean_, target})) { return false; }
    if (std::max(target, mean_) + price >= best_.worth) { return false; }
    target_ = std::max(limits_.goal, target > 0 ? target : adaptive_target());
    return true;
  }
  [[nodiscard]] load_t adaptive_target() {
    auto left = load_t{limits_.max_moves - map_->moves()};
    if (limits_.price > 0) { left = std::min(left, (max_ - mean_) / limits_.price); }
    left = std::max(left, load_t{1});
    auto const [part, whole] = numbers::margin_of_excess;
    work_ -= work_of_solving();
    auto margin = std::max(solver_->settle(mean_ + 1) / whole / left * part, least_margin_);
    while (max_ <= mean_ + margin) { margin -= margin / numbers::margin_step + 1; }
    return mean_ + margin;
  }
  /// Where nothing helps, a target nearer to the busiest rank leaves the others more room. False if it is near.
  [[nodiscard]] bool aim_higher() {
    auto const above = max_ - target_;
    if (above <= tolerance_ * numbers::near_tolerances || ++misses_ > numbers::most_misses) { return false; }
    least_margin_ = target_ + above / 2 - mean_;
    return true;
  }

  // ---- a step ----

  [[nodiscard]] bool step() {
    excess_ = settle();
    if (excess_ == 0) { return false; }
    find_pieces();
    find_room();
    find_places();
    list_candidates(false);
    auto best = best_candidate();
    if (best.slot == none && is_thorough_) {
      list_candidates(true);
      best = best_candidate();
    }
    if (best.slot == none) { return false; }
    auto const moves = map_->moves();
    make(best);
    if (map_->moves() > moves) { ++era_; }
    at(settled_, best.slot) = era_;
    if (best.other_slot != none) { at(settled_, best.other_slot) = era_; }
    misses_ = 0;
    return true;
  }
  [[nodiscard]] load_t settle() {
    work_ -= work_of_solving();
    return solver_->settle(target_);
  }
  /// List the best changes of the heaviest experts first, and of all others where these have none.
  /// @param replicated  exchanges of experts that have several copies already, which promise more than they keep
  void list_candidates(bool replicated) {
    candidates_.clear();
    most_promised_ = 0;
    for (std::size_t begin = 0; begin < stuck_.size() && candidates_.empty(); begin += numbers::most_experts) {
      if (begin > 0 && !is_thorough_) { break; }
      auto const first = stuck_.begin() + static_cast<std::ptrdiff_t>(begin);
      auto const end =
          stuck_.begin() + static_cast<std::ptrdiff_t>(std::min(begin + numbers::most_experts, stuck_.size()));
      std::partial_sort(first, end, stuck_.end(), comes_first);
      std::for_each(first, end, [this, &replicated](stuck_slot const& one) { look_at(one, replicated); });
    }
    std::sort(candidates_.begin(), candidates_.end(), is_better);
  }
  /// Solve the shares for the most promising candidates. Few gain less than was promised, so the first is mostly it.
  [[nodiscard]] change best_candidate() {
    change best;
    std::size_t tries = 0;
    std::size_t failures = 0;
    for (auto tried : candidates_) {
      if (tried.worth <= best.worth || tries == numbers::most_tries || failures == numbers::most_failures) { break; }
      auto const length = journal_.size();
      make(tried);
      tried.gain = excess_ - settle();
      tried.worth = tried.gain / tried.moves;
      rewind(length);
      auto& count = tried.gain > tolerance_ ? tries : failures;
      ++count;
      if (tried.gain > tolerance_ && tried.worth > best.worth) { best = tried; }
    }
    return best;
  }
  [[nodiscard]] static bool comes_first(stuck_slot const& a, stuck_slot const& b) {
    if (a.worth != b.worth) { return a.worth > b.worth; }
    return a.load != b.load ? a.load > b.load : a.slot < b.slot;
  }
  [[nodiscard]] static bool is_better(change const& a, change const& b) {
    if (a.worth != b.worth) { return a.worth > b.worth; }
    return a.slot != b.slot ? a.slot < b.slot : a.other_slot < b.other_slot;
  }
  void make(change const& one) {
    assign(one.slot, one.expert);
    if (one.other_slot != none) { assign(one.other_slot, one.other_expert); }
  }
  void assign(index_t slot, index_t expert) {
    journal_.push_back({slot, map_->expert(slot)});
    map_->assign(slot, expert);
    solver_->replace(slot, expert);
  }

  // ---- where load sits, and where it could go ----

  /// Ranks that hold each other's experts share what they have too much: a piece.
  void find_pieces() {
    std::fill(piece_.begin(), piece_.end(), none);
    piece_excess_.clear();
    stuck_.clear();
    for (index_t rank = 0; rank < map_->num_ranks(); ++rank) {
      if (rank_load(rank) <= target_ || at(piece_, rank) != none) { continue; }
      auto const piece = static_cast<index_t>(piece_excess_.size());
      piece_excess_.push_back(0);
      queue_.assign(1, rank);
      at(piece_, rank) = piece;
      // NOLINTNEXTLINE(modernize-loop-convert): it grows while it is walked
      for (std::size_t i = 0; i < queue_.size(); ++i) { visit(queue_[i], piece); }
    }
    for (auto& one : stuck_) { one.worth = std::min(one.load, at(piece_excess_, one.piece)); }
  }
  void visit(index_t rank, index_t piece) {
    at(piece_excess_, piece) += std::max(rank_load(rank) - target_, load_t{0});
    for (index_t slot = map_->first_slot(rank); slot < map_->first_slot(rank + 1); ++slot) {
      // With load, the expert has no copy outside: the load would be there.
      if (flow(slot) == 0) { continue; }
      auto const expert = map_->expert(slot);
      stuck_.push_back({map_->load(expert), 0, slot, expert, piece});
      map_->for_each_copy(expert, [this, &piece](index_t copy) {
        auto const other = map_->rank_of(copy);
        if (at(piece_, other) != none || !solver_->is_bottleneck(other)) { return; }
        at(piece_, other) = piece;
        queue_.push_back(other);
      });
    }
  }
  /// What ranks outside can take, by themselves and by passing load on to those that they share experts with.
  void find_room() {
    for (index_t rank = 0; rank < map_->num_ranks(); ++rank) {
      at(room_, rank) = is_outside(rank) ? std::max(target_ - rank_load(rank), load_t{0}) : 0;
    }
    for (index_t rank = 0; rank < map_->num_ranks(); ++rank) {
      at(reach_, rank) = at(room_, rank);
      if (!is_outside(rank)) { continue; }
      for (index_t slot = map_->first_slot(rank); slot < map_->first_slot(rank + 1); ++slot) {
        if (flow(slot) > 0) { at(reach_, rank) += room_beside(slot); }
      }
    }
  }
  /// Room for the slot's flow on the other ranks that hold its expert: no more than that, as all of it may not be a
  /// number.
  [[nodiscard]] load_t room_beside(index_t slot) const {
    load_t room = 0;
    map_->for_each_copy(map_->expert(slot), [this, &room, &slot](index_t copy) {
      room += copy != slot ? std::min(at(room_, map_->rank_of(copy)), flow(slot) - room) : load_t{0};
    });
    return room;
  }
  /// List the slots outside, rank by rank: those that can be spared, and those of single experts.
  void find_places() {
    spare_.clear();
    singles_.clear();
    first_single_.clear();
    bool const has_moves = moves_left() > 0;
    for (index_t rank = 0; rank < map_->num_ranks(); ++rank) {
      first_single_.push_back(singles_.size());
      if (at(reach_, rank) == 0) { continue; }
      auto& lightest = at(lightest_, rank) = std::numeric_limits<load_t>::max();
      for (index_t slot = map_->first_slot(rank); slot < map_->first_slot(rank + 1); ++slot) {
        auto const expert = map_->expert(slot);
        if (map_->copies(expert) == 1) {
          singles_.push_back({map_->load(expert), slot, expert});
          lightest = std::min(lightest, map_->load(expert));
        } else if (has_moves || map_->refund(slot) == 1 || map_->changed(rank)) {
          auto const cost = flow(slot) > 0 ? flow(slot) - room_beside(slot) : load_t{0};
          auto const room = at(reach_, rank) + flow(slot);
          if (room > cost) { spare_.push_back({room, cost, slot}); }
        }
      }
    }
    first_single_.push_back(singles_.size());
  }

  // ---- candidates ----

  /// Propose the best changes of one slot, each to another rank.
  void look_at(stuck_slot const& one, bool replicated) {
    shortlist_.fill({});
    raise_bar();
    if (!replicated) {
      for (auto const& spare : spare_) { look_at_copy(one, spare); }
    }
    if (replicated == (map_->copies(one.expert) > 1)) { look_at_exchanges(one, replicated); }
    most_promised_ = std::max(most_promised_, shortlist_.front().worth);
    for (auto const& candidate : shortlist_) {
      if (candidate.slot != none) { candidates_.push_back(candidate); }
    }
  }
  /// A change that promises no more than the bar is none of the best three of its expert, or worth little beside the
  /// best of all.
  void raise_bar() {
    bar_ = std::max({shortlist_.back().worth, most_promised_ / numbers::least_promise, tolerance_ / 2});
  }
  void look_at_copy(stuck_slot const& one, spare_slot const& spare) {
    auto const gain = std::min(one.worth, spare.room) - spare.cost;
    if (gain <= bar_) { return; }
    auto const to = map_->rank_of(spare.slot);
    propose(
        {gain, 0, map_->arrival(to, one.expert) - map_->refund(spare.slot), spare.slot, one.expert, none, none, to});
  }
  /// No rank outside holds the expert, and no rank inside holds what only one outside does.
  void look_at_exchanges(stuck_slot const& one, bool replicated) {
    auto const home = map_->rank_of(one.slot);
    auto const left = moves_left();
    for (index_t rank = 0; rank < map_->num_ranks(); ++rank) {
      auto const begin = at(first_single_, rank);
      auto const end = at(first_single_, rank + 1);
      if (begin == end) { continue; }
      auto const moves_at_least = map_->changed(home) || map_->changed(rank) ? 1 : 2;
      auto const most = std::min(one.worth, at(reach_, rank));
      if (most <= least_gain(moves_at_least)) { continue; }
      work_ -= static_cast<std::int64_t>(end - begin);
      if (one.load - at(lightest_, rank) <= least_gain(moves_at_least)) { continue; }
      if (left < 2 && fewest_moves(one, rank) > left) { continue; }
      for (auto i = begin; i < end; ++i) {
        auto const& [load, slot, expert] = singles_[i];
        // What the ranks have too little room for stays above the target, unless other copies take it.
        auto const difference = one.load - load;
        auto gain = std::min(difference, most);
        if (!replicated) { gain -= std::max(difference - at(reach_, rank), load_t{0}); }
        if (gain <= least_gain(moves_at_least)) { continue; }
        auto const moves =
            map_->arrival(rank, one.expert) + map_->arrival(home, expert) - map_->refund(one.slot) - map_->refund(slot);
        propose({gain, 0, moves, one.slot, expert, slot, one.expert, rank});
      }
    }
  }
  /// What so many moves may gain without being worth more than the bar.
  [[nodiscard]] load_t least_gain(index_t moves) const { return bar_ * moves + moves - 1; }
  [[nodiscard]] index_t moves_left() const { return limits_.max_moves - map_->moves(); }
  /// No exchange of the slot with one of that rank takes less.
  [[nodiscard]] index_t fewest_moves(stuck_slot const& one, index_t rank) const {
    index_t const arrival_here = map_->changed(map_->rank_of(one.slot)) ? 0 : 1;
    index_t const refund_there = map_->arrivals(rank).all > 0 ? 1 : 0;
    return map_->arrival(rank, one.expert) - map_->refund(one.slot) + arrival_here - refund_there;
  }
  /// Keep a change if it is among the best three of its expert, and the best to its rank.
  void propose(change proposal) {
    if (proposal.gain <= tolerance_ || map_->moves() + proposal.moves > limits_.max_moves) { return; }
    if (proposal.moves <= 0 && may_circle() && (is_settled(proposal.slot) || is_settled(proposal.other_slot))) {
      return;
    }
    proposal.moves = std::max(proposal.moves, index_t{1});
    proposal.worth = proposal.gain / proposal.moves;
    if (has_nodes_) {
      auto const discount = proposal.worth / numbers::remote_discount;
      proposal.worth -= is_remote(proposal.slot, proposal.expert) ? discount : load_t{0};
      proposal.worth -= is_remote(proposal.other_slot, proposal.other_expert) ? discount : load_t{0};
    }
    if (proposal.worth <= bar_ || !limits_.allow(*map_, proposal.slot, proposal.expert)) { return; }
    if (proposal.other_slot != none && !limits_.allow(*map_, proposal.other_slot, proposal.other_expert)) { return; }
    auto place = std::find_if(shortlist_.begin(), shortlist_.end(),
                              [&proposal](change const& other) { return other.to == proposal.to; });
    if (place == shortlist_.end()) { --place; }
    if (proposal.worth <= place->worth) { return; }
    *place = proposal;
    for (; place != shortlist_.begin() && place[-1].worth < place->worth; --place) { std::swap(place[-1], *place); }
    raise_bar();
  }
  /// Where no moves are left, a change without moves leaves alone what was changed since the last one with moves, so
  /// that no circle has no end.
  [[nodiscard]] bool may_circle() const { return moves_left() < 2; }
  [[nodiscard]] bool is_settled(index_t slot) const { return slot != none && at(settled_, slot) == era_; }
  /// Whether no rank of the slot's node held the expert at the start.
  [[nodiscard]] bool is_remote(index_t slot, index_t expert) const {
    auto const rank = slot != none ? map_->rank_of(slot) : none;
    return rank != none && map_->arrival(rank, expert) != 0 && map_->is_remote(rank, expert);
  }

  // ---- retries ----

  /// Give some changed slots back what they held at the start.
  void undo_some() {
    changed_.clear();
    for (index_t slot = 0; slot < map_->num_slots(); ++slot) {
      if (map_->expert(slot) != map_->expert_before(slot)) { changed_.push_back(slot); }
    }
    for (int count = numbers::undone; count > 0 && !changed_.empty(); --count) {
      random_ = random_ * 6364136223846793005u + 1442695040888963407u;
      undo(changed_[static_cast<std::size_t>((random_ >> 33) % changed_.size())]);
    }
  }
  /// The slot's only expert goes back to a slot that it came from, if what is there can be spared.
  void undo(index_t slot) {
    auto const expert = map_->expert(slot);
    auto const before = map_->expert_before(slot);
    if (expert == before || map_->holds(map_->rank_of(slot), before)) { return; }
    if (map_->copies(expert) == 1) {
      auto const home = std::find_if(changed_.begin(), changed_.end(), [this, &expert, &slot, &before](index_t other) {
        return map_->expert_before(other) == expert && other != slot && !map_->holds(map_->rank_of(other), expert) &&
               (map_->copies(map_->expert(other)) > 1 || map_->expert(other) == before);
      });
      if (home == changed_.end()) { return; }
      assign(*home, expert);
    }
    assign(slot, before);
  }

  topology const& where_;
  bool has_nodes_;  ///< more than one
  replica_map* map_ = nullptr;
  share_solver* solver_ = nullptr;
  move_limits limits_;
  task task_ = task::none;      ///< at hand
  bool is_descending_ = false;  ///< for the retry at hand
  load_t max_at_start_ = 0;     ///< least possible load of the busiest rank when the search began
  load_t descent_target_ = 0;   ///< see `open_descent`
  index_t steps_left_ = 0;      ///< of the descent at hand
  index_t retries_left_ = 0;
  std::int64_t work_ = 0;
  load_t mean_ = 0;
  load_t tolerance_ = 0;  ///< gains that count as none
  load_t max_ = 0;        ///< least possible load of the busiest rank
  load_t target_ = 0;
  load_t least_margin_ = 0;   ///< of the target above the mean; lower ones have been tried
  load_t most_promised_ = 0;  ///< worth of the best candidate so far
  load_t excess_ = 0;         ///< above the target, of all ranks
  index_t moves_at_start_ = 0;
  bool is_thorough_ = true;  ///< a step without a change looks at what promises less; not in retries
  index_t misses_ = 0;       ///< targets in a row at which nothing helped
  milestone best_{};
  milestone kept_{};  ///< the best one before the retry at hand
  std::uint64_t random_ = 0;
  std::vector<load_t> room_;          ///< [R] below the target
  std::vector<load_t> reach_;         ///< [R] the same with that of ranks beside
  std::vector<index_t> piece_;        ///< [R]
  std::vector<load_t> piece_excess_;  ///< [pieces]
  std::vector<index_t> queue_;
  std::vector<stuck_slot> stuck_;
  std::vector<spare_slot> spare_;
  std::vector<single_slot> singles_;       ///< outside, rank by rank
  std::vector<std::size_t> first_single_;  ///< [R + 1]
  std::vector<load_t> lightest_;           ///< [R] of them
  std::array<change, 3> shortlist_{};      ///< the best of one slot, best first
  load_t bar_ = 0;                         ///< see `raise_bar`
  std::vector<change> candidates_;
  std::vector<index_t> changed_;
  std::vector<entry> journal_;
  index_t era_ = 0;               ///< changes with moves so far
  std::vector<index_t> settled_;  ///< [P] era in which the slot was last changed
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
