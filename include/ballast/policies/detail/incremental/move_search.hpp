// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_DETAIL_INCREMENTAL_MOVE_SEARCH_HPP
#define BALLAST_POLICIES_DETAIL_INCREMENTAL_MOVE_SEARCH_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/index.hpp>
#include <ballast/placement/detail/dead_ranks.hpp>
#include <ballast/placement/rank_cost.hpp>
#include <ballast/policies/detail/incremental/replica_map.hpp>
#include <ballast/policies/detail/incremental/work_slice.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <span>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// The numbers of the search. None follows from anything: they are what did best, balance for moves, on recorded loads
/// under drift; `ballast-quality` shows what they bring, docs/incremental.md what else was tried.
struct move_search_numbers {
  // What moves cost, of the price: a part for each, and a part that grows with how many there are for each rank.
  static constexpr load_t price_of_each[] = {2, 5};
  static constexpr load_t price_of_crowd[] = {7, 16};

  static constexpr int tolerance_shift = 14;     ///< gains below 2^-14 of the mean count as none
  static constexpr load_t near_tolerances = 4;   ///< a target this near to the costliest rank is not raised
  static constexpr index_t most_misses = 3;      ///< targets in a row at which nothing helps
  static constexpr index_t steps_at_least = 64;  ///< of a descent, and so many more for each move or slot:
  static constexpr index_t steps_for_each = 4;

  // The margin of the target above the mean: so much of all excess, spread over the moves that are left; while that is
  // above the costliest rank, a fifth less.
  static constexpr load_t margin_of_excess[] = {3, 20};
  static constexpr load_t margin_step = 5;

  // What a step takes beyond its candidates, in candidates; see `work_slice`.
  static constexpr std::int64_t work_of_step = 64;
  static constexpr std::int64_t work_of_slots_of_rank = 4;  ///< for each slot of a rank
  static constexpr std::int64_t slots_a_candidate = 8;      ///< of the layer

  // A retry aims a quarter of the way down to the mean, and takes the costliest rank's changes and two more back.
  static constexpr load_t retry_depth = 4;
  static constexpr int undone_elsewhere = 2;
  // Retries for an excess of 16 / 1024 of the mean; in proportion above and below, within bounds.
  static constexpr load_t excess_unit = 1024;
  static constexpr load_t excess_of_retries[] = {12, 16, 32};

  static constexpr load_t remote_discount = 32;      ///< 1 / 32 of its worth less for a move between nodes
  static constexpr std::size_t few_ranks = 64;       ///< up to which a step tries the exchanges with all ranks
  static constexpr index_t few_slots = 16;           ///< of a rank, up to which it does not pay to sort them
  static constexpr std::size_t max_partners = 16;    ///< ranks whose exchanges a step tries, where there are more
  static constexpr std::size_t most_spare = 128;     ///< slots that a step considers, where there are
  static constexpr std::size_t spare_list_long = 4;  ///< times as many; else all of them
  static constexpr load_t part_of_spare = 64;        ///< of the mean: so far the worth of the slots may fall at first
  static constexpr std::size_t ranks_a_block = 16;   ///< whose costs are summed up together
  static constexpr std::size_t ranks_a_spare_step = 64;  ///< a list of spare slots serves 1 step more for so many ranks
};

/// How far a search may go in one layer.
struct move_limits {
  index_t max_moves = std::numeric_limits<index_t>::max();     ///< pairs (rank, expert) that may be new
  index_t most_kept = std::numeric_limits<index_t>::max();     ///< of them, after which a descent ends; see `begin`
  index_t max_arrivals = std::numeric_limits<index_t>::max();  ///< of them, on one rank
  index_t max_remote = std::numeric_limits<index_t>::max();    ///< of those on one rank, from other nodes
  load_t price = 0;          ///< of a move, in the unit of the largest rank cost that it lowers; see `price_of`
  index_t ranks = 1;         ///< that receive moves
  load_t good_enough = 0;    ///< a layer at or below this largest rank cost stays as it is
  load_t goal = 0;           ///< rank cost at which to stop
  load_t least_gain = 0;     ///< a plan that lowers the largest rank cost by less is no plan, nor one whose
                             ///< gain beyond its moves is below half a price
  index_t retries = 0;       ///< times to undo a few changes and search again, see `retries_at`
  std::int64_t work = 0;     ///< candidates to look at
  bool may_double = false;   ///< further copies of an expert on a rank that has one, as a way to empty a slot
  bool keeps_trail = false;  ///< `begin` records its changes, see `move_search::trail`

  [[nodiscard]] bool limits_arrivals() const noexcept {
    constexpr auto none = std::numeric_limits<index_t>::max();
    return max_arrivals != none || max_remote != none;
  }
  /// Whether a slot may get an expert as far as its rank's arrivals go.
  [[nodiscard]] bool allow(replica_map const& map, index_t slot, index_t expert) const {
    if (!limits_arrivals()) { return true; }
    auto const would_be = map.arrivals_with(slot, expert);
    return would_be.all <= max_arrivals && would_be.remote <= max_remote;
  }
  /// What some moves cost. The first ones take away what sticks out and are two fifths of the price each; from two
  /// moves for three ranks on they cost more than the price.
  [[nodiscard]] load_t price_of(index_t moves) const noexcept {
    constexpr auto each = move_search_numbers::price_of_each;
    constexpr auto crowd = move_search_numbers::price_of_crowd;
    return price * each[0] / each[1] * moves + price / ranks * moves * moves * crowd[0] / crowd[1];
  }
};

/// Lowers the largest rank cost of a layer by as few moves as it can.
///
/// The search wants all ranks at or below a target above the mean. Each step relieves the costliest rank by the change
/// that removes the most excess over the target for its moves, of
/// - a copy of one of its experts in a slot whose expert has another copy,
/// - one of its experts leaving for such a slot, a second copy of another one filling its place,
/// - an exchange with a lighter expert of another rank.
/// Changes without a move (one undone, a copy beside one that is there) come first. A copy beside another wastes the
/// slot; it is a way to shift load without bytes for who wants that, see `move_limits::may_double`. The target follows
/// from the excess and the moves that are left. What stays in the end is the beginning of all changes that was worth
/// most.
template <rank_cost Cost>
class move_search {
public:
  move_search(topology const& where, Cost const& cost)
      : cost_{cost}, has_nodes_{where.num_nodes() > 1}, live_ranks_{live_ranks(where)} {
    auto const ranks = static_cast<std::size_t>(where.num_ranks());
    rank_cost_.resize(ranks);
    added_.assign(ranks, 0);
    may_be_local_.resize(ranks);
    block_of_.resize(ranks);
    for (std::size_t i = 0; i < live_ranks_.size(); ++i) { at(block_of_, live_ranks_[i]) = i / numbers::ranks_a_block; }
    blocks_.resize((live_ranks_.size() + numbers::ranks_a_block - 1) / numbers::ranks_a_block);
  }

  /// Mean and largest rank cost of a map.
  struct level {
    load_t mean = 0;
    load_t max = 0;
  };
  [[nodiscard]] level level_of(replica_map const& map) const {
    load_t sum = 0;
    load_t max = 0;
    for (auto const rank : live_ranks_) {
      auto const cost = cost_(rank, map.rank_load(rank));
      // The sum of costs may not fit where the costs do.
      sum += cost / static_cast<load_t>(live_ranks_.size());
      max = std::max(max, cost);
    }
    return {sum, max};
  }

  /// Begin to change the map for the better, by a descent that `advance` makes; the map stays as it is if nothing is
  /// worth it. With `most_kept` it is the beginning of the descent that has `max_moves`, so what it reaches never gets
  /// worse with more.
  /// @param map  outlives the search, and does not change while it is not over.
  void begin(replica_map& map, move_limits const& limits) {
    task_ = task::none;
    has_changed_ = false;
    map_ = &map;
    limits_ = limits;
    work_ = limits.work;
    has_listed_spare_ = false;
    settled_.assign(static_cast<std::size_t>(map.num_slots()), none);
    era_ = 0;
    journal_.clear();
    trail_.clear();
    bests_.clear();
    auto const start = level_of(map);
    if (start.max <= limits.good_enough) { return; }
    mean_ = start.mean;
    tolerance_ = (mean_ >> numbers::tolerance_shift) + 1;
    moves_at_start_ = map.moves();
    best_ = {start.max, start.max, 0};
    max_at_start_ = start.max;
    std::fill(rank_cost_.begin(), rank_cost_.end(), mean_);
    sum_ = 0;
    stale_ = live_ranks_;
    number_slots();
    touched_.resize(static_cast<std::size_t>(map.num_slots()) * 2 + 2);
    open_descent();
    task_ = task::first_descent;
  }
  /// Begin to undo a few changes and search again, as often as the limits say; `advance` does it.
  /// @pre `begin` came last and is over, its map is as it left it, and was not good enough before
  void retry() {
    kept_ = best_;
    random_ = 0;
    retries_made_ = 0;
    is_descending_ = false;
    task_ = task::retries;
  }
  /// Go on with what was begun; where it stops changes nothing of what comes out.
  /// @return whether it is over; else the slice is used up.
  [[nodiscard]] bool advance(work_slice& slice) {
    bool const is_over = task_ == task::none || (task_ == task::retries ? go_on_retrying(slice) : descend(slice));
    if (!is_over) { return false; }
    if (task_ == task::first_descent) { keep_if_it_pays(); }
    if (task_ == task::retries) { drop_needless_doubles(); }
    task_ = task::none;
    return true;
  }
  /// Whether the descent of the last `begin` changed its map, and `retry` has something to do.
  [[nodiscard]] bool has_changed() const noexcept { return has_changed_; }

  /// A slot and the expert that it gets.
  struct assignment {
    index_t slot;
    index_t expert;
  };
  /// What the last descent of `begin` changed, also what it took back in the end, if its limits asked for that.
  [[nodiscard]] std::span<assignment const> trail() const noexcept { return trail_; }
  /// Lengths of the beginnings of the trail that were its best plan once: of all plans that it makes with less
  /// `most_kept` as well.
  [[nodiscard]] std::span<std::size_t const> bests_on_trail() const noexcept { return bests_; }

  /// What the last search left of its `move_limits::work`; below 0 by what its last step took.
  [[nodiscard]] std::int64_t work_left() const noexcept { return work_; }

private:
  using numbers = move_search_numbers;
  enum class task : unsigned char { none, first_descent, retries };
  static constexpr index_t none = replica_map::none;
  static constexpr unsigned char no = 0, yes = 1, maybe = 2;
  static constexpr unsigned char is_unsorted = 0, is_outdated = 1, is_sorted = 2;

  struct entry {
    index_t slot;
    index_t expert;  ///< that the slot held before
  };
  /// A beginning of the journal.
  struct milestone {
    load_t worth;  ///< largest rank cost, and the price of the moves
    load_t max;
    std::size_t length;
  };
  /// A slot whose expert has another copy.
  struct spare_slot {
    load_t gain;  ///< excess of the rank less what the expert's other copies gain
    load_t room;  ///< load of the rank without it
    index_t slot;
    index_t rank;
    index_t refund;  ///< 1 if emptying it undoes a move
  };
  using loaded_slot = std::pair<load_t, std::size_t>;
  struct wanted_copy {
    load_t relief;  ///< excess that the copy, put nowhere, would remove
    load_t load;    ///< of the copy
    index_t expert;
  };
  struct change {
    load_t worth = 0;  ///< excess removed, for each move
    index_t slot = none;
    index_t expert = none;        ///< that the slot gets
    index_t other_slot = none;    ///< of an exchange or a departure
    index_t other_expert = none;  ///< that it gets
  };

  /// Cost of a rank above the target: what it is, and what it would be with another load.
  [[nodiscard]] load_t excess(index_t rank) const { return std::max(at(rank_cost_, rank) - target_, load_t{0}); }
  [[nodiscard]] load_t excess_of(index_t rank, load_t load) const {
    return std::max(cost_(rank, load) - target_, load_t{0});
  }

  void number_slots() {
    orders_.assign(static_cast<std::size_t>(map_->num_ranks()), is_unsorted);
    cheap_rows_.resize(static_cast<std::size_t>(map_->first_slot(1)));
    homes_.assign(static_cast<std::size_t>(map_->num_slots()), 0);
    has_homes_.assign(static_cast<std::size_t>(map_->num_ranks()), 0);
    step_ = 0;
    if (by_load_.size() == static_cast<std::size_t>(map_->num_slots())) { return; }
    by_load_.resize(static_cast<std::size_t>(map_->num_slots()));
    auto const slots = static_cast<std::size_t>(map_->first_slot(1));
    for (std::size_t slot = 0; slot < by_load_.size(); ++slot) { by_load_[slot].second = slot % slots; }
  }

  /// @param target  to aim at; 0: whatever the moves that are left allow.
  void open_descent(load_t target = 0) {
    descent_target_ = target;
    least_margin_ = 0;
    misses_ = 0;
    spare_age_ = 0;
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
      goes_on = goes_on && (step() || !(target > 0 || map_->moves() >= limits_.max_moves || !aim_higher()));
      slice.spend(work - work_ + work_of_step());
      if (!goes_on) {
        rewind(best_.length);
        return true;
      }
    }
    return false;
  }
  /// What a step takes beyond its candidates.
  [[nodiscard]] std::int64_t work_of_step() const noexcept {
    return numbers::work_of_step + numbers::work_of_slots_of_rank * map_->first_slot(1) +
           map_->num_slots() / numbers::slots_a_candidate;
  }
  void keep_if_it_pays() {
    limits_.keeps_trail = false;
    has_changed_ = max_at_start_ - best_.max >= limits_.least_gain &&
                   max_at_start_ - best_.worth >= limits_.price / 2 && best_.length > 0;
    if (!has_changed_) { rewind(0); }
  }
  /// @return whether all retries are made; else the slice is used up.
  [[nodiscard]] bool go_on_retrying(work_slice& slice) {
    for (;; ++retries_made_) {
      if (!is_descending_) {
        if (retries_made_ >= retries_at(kept_.max) || kept_.max <= limits_.goal || work_ <= 0) { return true; }
        if (slice.is_used_up()) { return false; }
        journal_.clear();
        undo_some();
        slice.spend(work_of_step());
        if (!limits_.may_double && has_doubled()) {
          rewind(0);
          continue;
        }
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
      replace(journal_.back().slot, journal_.back().expert);
      journal_.pop_back();
    }
  }
  /// A further copy on a rank that has one stays only where the layer would be worse with what the slot held before.
  void drop_needless_doubles() {
    auto const max = level_of(*map_).max;
    for (bool again = true; again;) {
      again = false;
      for (index_t slot = 0; slot < map_->num_slots(); ++slot) {
        auto const expert = map_->expert(slot);
        auto const before = map_->expert_before(slot);
        if (expert == before || map_->copies_on(map_->rank_of(slot), expert) < 2) { continue; }
        if (map_->holds(map_->rank_of(slot), before)) { continue; }
        map_->assign(slot, before);
        bool const is_worse = level_of(*map_).max > max;
        if (is_worse) { map_->assign(slot, expert); }
        again = again || !is_worse;
      }
    }
  }
  /// A retry brings the excess of the busiest rank down by about the same part, so it is worth more where there is
  /// more: `retries` of them at 1 / 64 of the mean, three quarters as many below, up to twice as many above.
  [[nodiscard]] load_t retries_at(load_t max) const {
    constexpr auto bounds = numbers::excess_of_retries;
    auto const above = (max - mean_) / (mean_ / numbers::excess_unit + 1);
    return load_t{limits_.retries} * std::clamp(above, bounds[0], bounds[2]) / bounds[1];
  }
  /// Give the changed slots of the busiest rank and two others back what they held at the start, and with them those
  /// without which an expert would vanish.
  void undo_some() {
    auto const hot = busiest_rank();
    changed_.clear();
    std::size_t chosen = 0;
    for (index_t slot = 0; slot < map_->num_slots(); ++slot) {
      if (map_->expert(slot) == map_->expert_before(slot)) { continue; }
      changed_.push_back(slot);
      if (map_->rank_of(slot) == hot) { std::swap(changed_[chosen++], changed_.back()); }
    }
    for (auto others = numbers::undone_elsewhere; others > 0 && chosen < changed_.size(); --others, ++chosen) {
      std::swap(changed_[chosen], changed_[chosen + next_random(changed_.size() - chosen)]);
    }
    for (std::size_t i = 0; i < chosen; ++i) {
      auto const expert = map_->expert(changed_[i]);
      auto const is_held = [this, &expert](index_t slot) { return map_->expert(slot) == expert; };
      auto const was_held = [this, &expert](index_t slot) { return map_->expert_before(slot) == expert; };
      auto const end = changed_.begin() + static_cast<std::ptrdiff_t>(chosen);
      if (std::count_if(changed_.begin(), end, is_held) < map_->copies(expert)) { continue; }
      if (std::any_of(changed_.begin(), end, was_held)) { continue; }
      auto const home = std::find_if(end, changed_.end(), was_held);
      if (home == changed_.end()) { return; }
      std::iter_swap(end, home);
      ++chosen;
    }
    for (std::size_t i = 0; i < chosen; ++i) { assign(changed_[i], map_->expert_before(changed_[i])); }
    changed_.resize(chosen);
  }
  /// Whether a slot that was given back what it held now holds what its rank has elsewhere by now.
  [[nodiscard]] bool has_doubled() const {
    return std::any_of(changed_.begin(), changed_.end(),
                       [this](index_t slot) { return map_->copies_on(map_->rank_of(slot), map_->expert(slot)) > 1; });
  }
  [[nodiscard]] index_t busiest_rank() const {
    auto const cost = [this](index_t rank) { return cost_(rank, map_->rank_load(rank)); };
    return *std::max_element(live_ranks_.begin(), live_ranks_.end(),
                             [&cost](index_t a, index_t b) { return cost(a) < cost(b); });
  }
  [[nodiscard]] std::size_t next_random(std::size_t bound) {
    random_ = random_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<std::size_t>((random_ >> 33) % bound);
  }

  /// Set the target of the next step and find the costliest rank; false if that is cheap enough.
  [[nodiscard]] bool aim(load_t target) {
    if (map_->moves() > limits_.most_kept) { return false; }
    refresh_costs();
    auto const max = at(rank_cost_, hot_);
    note_milestone(max);
    if (max <= std::max({limits_.goal, mean_, target}) || !can_pay_off(target)) { return false; }
    target_ = std::max(limits_.goal, target > 0 ? target : adaptive_target(max));
    return true;
  }
  /// Bring the costs of the ranks up to date, and find the costliest and the cheapest one.
  void refresh_costs() {
    for (auto const rank : stale_) {
      auto const cost = cost_(rank, map_->rank_load(rank));
      sum_ += part_above_mean(cost) - part_above_mean(at(rank_cost_, rank));
      at(rank_cost_, rank) = cost;
      blocks_[at(block_of_, rank)].is_stale = true;
    }
    stale_.clear();
    auto hottest = blocks_.begin();
    auto coldest = blocks_.begin();
    for (auto block = blocks_.begin(); block != blocks_.end(); ++block) {
      if (block->is_stale) { refresh(*block); }
      if (block->max > hottest->max) { hottest = block; }
      if (block->min < coldest->min) { coldest = block; }
    }
    hot_ = *std::ranges::find(ranks_of(*hottest), hottest->max, [this](index_t rank) { return at(rank_cost_, rank); });
    cold_ = *std::ranges::find(ranks_of(*coldest), coldest->min, [this](index_t rank) { return at(rank_cost_, rank); });
  }
  /// Neighbours among the live ranks, and their costs.
  struct rank_block {
    load_t min = 0;
    load_t max = 0;
    bool is_stale = true;
  };
  [[nodiscard]] std::span<index_t const> ranks_of(rank_block const& of) const {
    auto const first = static_cast<std::size_t>(&of - blocks_.data()) * numbers::ranks_a_block;
    return std::span{live_ranks_}.subspan(first, std::min(numbers::ranks_a_block, live_ranks_.size() - first));
  }
  void refresh(rank_block& of) {
    auto const ranks = ranks_of(of);
    of = {at(rank_cost_, ranks.front()), at(rank_cost_, ranks.front()), false};
    for (auto const rank : ranks) {
      of.max = std::max(of.max, at(rank_cost_, rank));
      of.min = std::min(of.min, at(rank_cost_, rank));
    }
  }
  [[nodiscard]] load_t part_above_mean(load_t cost) const {
    return std::max(cost - mean_, load_t{0}) / numbers::margin_of_excess[1];
  }
  [[nodiscard]] load_t adaptive_target(load_t max) const {
    auto left = load_t{limits_.max_moves - map_->moves()};
    if (limits_.price > 0) { left = std::min(left, (max - mean_) / limits_.price); }
    left = std::max(left, load_t{1});
    auto margin = std::max(sum_ / left * numbers::margin_of_excess[0], least_margin_);
    while (max <= mean_ + margin) { margin -= margin / numbers::margin_step + 1; }
    return mean_ + margin;
  }
  /// Whether reaching the target, or perfect balance, is worth the moves made up to now.
  [[nodiscard]] bool can_pay_off(load_t target) const {
    return std::max(target, mean_) + limits_.price_of(map_->moves() - moves_at_start_) < best_.worth;
  }
  /// Where nothing helps, a target nearer to the costliest rank leaves the others more room. False if it is near.
  [[nodiscard]] bool aim_higher() {
    auto const above = at(rank_cost_, hot_) - target_;
    if (above <= tolerance_ * numbers::near_tolerances || ++misses_ > numbers::most_misses) { return false; }
    least_margin_ = target_ + above / 2 - mean_;
    return true;
  }

  [[nodiscard]] bool step() {
    free_ = paid_ = {};
    bool const has_moves = map_->moves() < limits_.max_moves;
    free_.worth = tolerance_;
    // Without moves left, only changes that cost none can be made.
    paid_.worth = has_moves ? tolerance_ : std::numeric_limits<load_t>::max() / 2;
    find_filler();
    look_at_emptying();
    if (free_.slot == none) { look_at_the_rest(); }
    auto const& chosen = free_.slot != none ? free_ : paid_;
    if (chosen.slot == none) { return false; }
    if (free_.slot == none) { ++era_; }
    misses_ = 0;
    assign(chosen.slot, chosen.expert);
    if (chosen.other_slot != none) { assign(chosen.other_slot, chosen.other_expert); }
    return true;
  }

  void look_at_the_rest() {
    if (spare_age_-- == 0) { find_spare(); }
    find_cheap_of_hot();
    // A good candidate first, so that most of the others need no second look.
    static_cast<void>(look_at_exchanges(cold_));
    find_relief();
    auto const most = std::max(most_relief_, excess(hot_));
    for (auto const& spare : spare_) {
      bool const may_be_free = spare.refund == 1 || may_be_local(spare.rank);
      if (spare.gain + most <= (may_be_free ? free_ : paid_).worth) { continue; }
      look_at_copies(spare, may_be_free);
      look_at_departures(spare);
    }
    if (free_.slot != none) { return; }
    auto partners = live_ranks_.size() <= numbers::few_ranks ? numbers::few_ranks : numbers::max_partners;
    for (auto const& block : blocks_) {
      if (excess(hot_) <= paid_.worth) { return; }
      if (target_ - block.min <= paid_.worth) { continue; }
      for (auto const rank : ranks_of(block)) {
        bool const has_room = target_ - at(rank_cost_, rank) > paid_.worth;
        if (has_room && rank != cold_ && look_at_exchanges(rank) && --partners == 0) { return; }
      }
    }
  }
  /// Keep a change if it is the best so far.
  void propose(load_t gain, index_t moves, change proposal) {
    if (map_->moves() + moves > limits_.max_moves) { return; }
    if (moves <= 0 && (is_settled(proposal.slot) || is_settled(proposal.other_slot))) { return; }
    auto& best = moves <= 0 ? free_ : paid_;
    proposal.worth = moves > 1 ? gain / moves : gain;
    if (proposal.worth <= best.worth) { return; }
    if (has_nodes_) {
      // Of candidates that are about as good, prefer the one whose bytes stay inside a node.
      proposal.worth -= is_remote(proposal.slot, proposal.expert) ? proposal.worth / numbers::remote_discount : 0;
      proposal.worth -=
          is_remote(proposal.other_slot, proposal.other_expert) ? proposal.worth / numbers::remote_discount : 0;
      if (proposal.worth <= best.worth) { return; }
    }
    if (!limits_.allow(*map_, proposal.slot, proposal.expert)) { return; }
    if (proposal.other_slot != none && !limits_.allow(*map_, proposal.other_slot, proposal.other_expert)) { return; }
    best = proposal;
  }
  /// Whether a change with such a gain may be the best so far, if it takes few moves.
  [[nodiscard]] bool is_of_use(load_t gain) const { return gain > std::min(free_.worth, paid_.worth); }
  /// Whether no rank of the slot's node held the expert at the start.
  [[nodiscard]] bool is_remote(index_t slot, index_t expert) const {
    auto const rank = slot != none ? map_->rank_of(slot) : none;
    return rank != none && map_->arrival(rank, expert) != 0 && map_->is_remote(rank, expert);
  }
  /// A change without moves leaves alone what was changed since the last one with moves, so that no circle has no end.
  [[nodiscard]] bool is_settled(index_t slot) const { return slot != none && at(settled_, slot) == era_; }

  /// List the slots whose expert has another copy; of very many those where most load fits at least cost.
  void find_spare() {
    spare_age_ = static_cast<index_t>(live_ranks_.size() / numbers::ranks_a_spare_step);
    auto const count = static_cast<std::size_t>(map_->num_spare());
    if (all_spare_.size() < count) { all_spare_.resize(count); }
    if (count <= numbers::spare_list_long * numbers::most_spare) {
      list_spare([](index_t) { return true; });
      return;
    }
    // What the last one of the list was worth the last time, the last one is worth about now.
    auto const least = least_spare_ - spare_margin_;
    if (has_listed_spare_) {
      list_spare([this, &least](index_t expert) { return may_be_spare(expert, least); });
    }
    if (!has_listed_spare_ || !keep_best_spare(least)) {
      list_spare([](index_t) { return true; });
      static_cast<void>(keep_best_spare(std::numeric_limits<load_t>::min()));
    }
    auto const fell_by = least + spare_margin_ - least_spare_;
    spare_margin_ = has_listed_spare_ ? std::max(2 * fell_by, spare_margin_ / 2) : mean_ / numbers::part_of_spare;
    has_listed_spare_ = true;
  }
  template <class MayBe>
  void list_spare(MayBe may_be) {
    std::size_t count = 0;
    for (auto const expert : map_->replicated()) {
      if (map_->copies(expert) < 2 || !may_be(expert)) { continue; }
      auto const less = map_->per_copy(expert);
      auto const more = map_->with_one_less(expert) - less;
      bool const is_doubled = map_->is_doubled(expert);
      auto* const first = all_spare_.data() + count;
      auto* last = first;
      load_t rises = 0;
      map_->for_each_copy(expert, [this, &more, &less, &expert, &is_doubled, &rises, &last](index_t slot) {
        auto const rank = map_->rank_of(slot);
        auto const load = map_->rank_load(rank);
        auto const here = excess(rank);
        auto const rise = excess_of(rank, load + more) - here;
        rises += rise;
        auto const others_here = is_doubled ? load_t{map_->copies_on(rank, expert)} - 1 : 0;
        *last++ = {here + rise * (1 + others_here), load - less + others_here * more, slot, rank, map_->refund(slot)};
      });
      for (auto* one = first; one != last; ++one) { one->gain -= rises; }
      count += static_cast<std::size_t>(last - first);
    }
    spare_ = std::span{all_spare_}.first(count);
  }
  /// Whether some slot of an expert may have so much room above what emptying it costs.
  [[nodiscard]] bool may_be_spare(index_t expert, load_t least) const {
    if (!cost_is_load<Cost>) { return true; }
    auto const less = map_->per_copy(expert);
    if (less - std::min(at(rank_cost_, cold_), target_) < least) { return false; }
    auto const more = map_->with_one_less(expert) - less;
    load_t rises = 0;
    auto best = std::numeric_limits<load_t>::min();
    map_->for_each_copy(expert, [this, &more, &rises, &best, target = target_](index_t slot) {
      auto const cost = at(rank_cost_, map_->rank_of(slot));
      auto const would_be_above = std::max(cost + more - target, load_t{0});
      rises += would_be_above - std::max(cost - target, load_t{0});
      best = std::max(best, would_be_above - cost);
    });
    return best - rises + less >= least;
  }
  /// Of a long list, the slots where most load fits at least cost are enough.
  /// @return whether there are so many with so much.
  [[nodiscard]] bool keep_best_spare(load_t least) {
    if (spare_.size() < numbers::most_spare) { return false; }
    auto const last = spare_.begin() + static_cast<std::ptrdiff_t>(numbers::most_spare - 1);
    auto const is_better = [](spare_slot const& a, spare_slot const& b) {
      auto const difference = (a.gain - a.room) - (b.gain - b.room);
      return difference != 0 ? difference > 0 : a.slot < b.slot;
    };
    std::nth_element(spare_.begin(), last, spare_.end(), is_better);
    if (last->gain - last->room < least) { return false; }
    spare_ = spare_.first(numbers::most_spare);
    least_spare_ = last->gain - last->room;
    std::sort(spare_.begin(), spare_.end(), is_better);
    return true;
  }
  /// Find an expert of the costliest rank that is nowhere else: a second copy of it there is a way to empty a slot.
  void find_filler() {
    filler_ = none;
    if (!limits_.may_double) { return; }
    for (index_t slot = map_->first_slot(hot_); slot < map_->first_slot(hot_ + 1) && filler_ == none; ++slot) {
      if (map_->copies(map_->expert(slot)) == 1) { filler_ = map_->expert(slot); }
    }
  }

  /// A slot of the costliest rank is emptied, or gets back what it held at the start.
  void look_at_emptying() {
    for (index_t slot = map_->first_slot(hot_); slot < map_->first_slot(hot_ + 1); ++slot) {
      if (map_->copies(map_->expert(slot)) < 2) { continue; }
      if (filler_ != none) { look_at_copy(slot, filler_); }
      auto const before = map_->expert_before(slot);
      if (!map_->holds(hot_, before)) { look_at_copy(slot, before); }
    }
  }
  /// A further copy of an expert of the costliest rank takes the slot.
  void look_at_copies(spare_slot const& spare, bool may_be_free) {
    // What was just changed is not changed by what takes no move; the list may be older than that.
    bool const is_fixed = is_settled(spare.slot);
    auto const refund = map_->refund(spare.slot);
    for (auto const& [relief, load, expert] : relief_) {
      if (relief + spare.gain <= (may_be_free ? free_ : paid_).worth) {
        if (map_->first_slot(1) > numbers::few_slots) { return; }
        continue;
      }
      if (is_fixed && map_->arrival(spare.rank, expert) <= refund) { continue; }
      bool const is_free = spare.refund == 1 || (may_be_free && map_->arrival(spare.rank, expert) == 0);
      if (is_free || relief + spare.gain - excess_of(spare.rank, spare.room + load) > paid_.worth) {
        look_at_copy(spare.slot, expert);
      }
    }
  }
  /// Whether a copy of an expert of the costliest rank may cost no bytes on a rank: beside another one, or where it
  /// was.
  [[nodiscard]] bool may_be_local(index_t rank) {
    auto& answer = at(may_be_local_, rank);
    if (answer == maybe) { answer = limits_.may_double || misses_one_of_hot(rank) ? yes : no; }
    return answer == yes;
  }
  [[nodiscard]] bool misses_one_of_hot(index_t rank) const {
    if (!map_->changed(rank)) { return false; }
    for (index_t slot = map_->first_slot(rank); slot < map_->first_slot(rank + 1); ++slot) {
      auto const before = map_->expert_before(slot);
      if (map_->expert(slot) != before && map_->holds(hot_, before) && !map_->holds(rank, before)) { return true; }
    }
    return false;
  }
  /// List what further copies of the costliest rank's experts would relieve.
  void find_relief() {
    relief_.clear();
    most_relief_ = 0;
    std::fill(may_be_local_.begin(), may_be_local_.end(), no);
    for (index_t slot = map_->first_slot(hot_); slot < map_->first_slot(hot_ + 1); ++slot) {
      auto const expert = map_->expert(slot);
      auto const relief = relief_of(expert);
      most_relief_ = std::max(most_relief_, relief);
      if (relief <= tolerance_) { continue; }
      relief_.push_back({relief, map_->with_one_more(expert), expert});
      map_->for_each_copy(expert, [this](index_t copy) { at(may_be_local_, map_->rank_of(copy)) = maybe; });
    }
    if (map_->first_slot(1) > numbers::few_slots) {
      std::sort(relief_.begin(), relief_.end(), [](wanted_copy const& a, wanted_copy const& b) {
        return a.relief != b.relief ? a.relief > b.relief : a.expert < b.expert;
      });
    }
  }
  [[nodiscard]] load_t relief_of(index_t expert) const {
    auto const less = map_->per_copy(expert) - map_->with_one_more(expert);
    load_t relief = 0;
    map_->for_each_copy(expert, [this, &relief, &less](index_t slot) {
      auto const rank = map_->rank_of(slot);
      if (excess(rank) > 0) { relief += excess(rank) - excess_of(rank, map_->rank_load(rank) - less); }
    });
    return relief;
  }
  void look_at_copy(index_t into, index_t expert) {
    if (map_->expert(into) == expert || map_->copies(map_->expert(into)) < 2) { return; }
    auto const rank = map_->rank_of(into);
    if (!limits_.may_double && map_->holds(rank, expert)) { return; }
    auto const less = map_->with_one_more(expert) - map_->per_copy(expert);
    num_touched_ = 0;
    map_->for_each_copy(expert, [this, &less](index_t slot) { add(map_->rank_of(slot), less); });
    add(rank, map_->with_one_more(expert));
    add_removal(into);
    auto const gain = gain_of_added();
    if (!is_of_use(gain)) { return; }
    propose(gain, map_->arrival(rank, expert) - map_->refund(into), {0, into, expert, none, none});
  }

  /// An expert of the costliest rank leaves for the slot, a second copy of another one takes its place.
  void look_at_departures(spare_slot const& spare) {
    auto const excess_here = excess(hot_);
    auto const& best = spare.refund == 1 ? free_ : paid_;
    if (map_->refund(spare.slot) == 1 && is_settled(spare.slot)) { return; }
    if (filler_ == none || spare.rank == hot_ || spare.gain + excess_here <= best.worth) { return; }
    if (cost_is_load<Cost> && spare.gain + target_ - spare.room <= best.worth) { return; }
    for (index_t slot = map_->first_slot(hot_); slot < map_->first_slot(hot_ + 1); ++slot) {
      auto const load = map_->slot_load(slot);
      auto const relief = excess_here - excess_of(hot_, map_->rank_load(hot_) - load);
      if (relief + spare.gain - excess_of(spare.rank, spare.room + load) > best.worth) {
        look_at_departure(slot, spare);
      }
    }
  }
  void look_at_departure(index_t slot, spare_slot const& spare) {
    auto const expert = map_->expert(slot);
    if (expert == filler_ || map_->holds(spare.rank, expert) || map_->copies(map_->expert(spare.slot)) < 2) { return; }
    num_touched_ = 0;
    add(spare.rank, map_->slot_load(slot));
    add(hot_, -map_->slot_load(slot));
    add_removal(spare.slot);
    auto const gain = gain_of_added();
    if (!is_of_use(gain)) { return; }
    propose(gain, map_->arrival(spare.rank, expert) - map_->refund(spare.slot) - map_->refund(slot),
            {0, spare.slot, expert, slot, filler_});
  }

  /// An expert of the costliest rank and a lighter one of a rank below the target change places.
  /// @return whether the rank was worth a look.
  bool look_at_exchanges(index_t rank) {
    auto const room = target_ - at(rank_cost_, rank);
    auto const most = std::min(excess(hot_), room);
    if (most <= paid_.worth) { return false; }
    bool const may_be_full = most / 2 > paid_.worth;
    bool const may_be_cheap = map_->changed(hot_) || map_->changed(rank);
    if (!may_be_cheap && !may_be_full) { return false; }
    bool const some_cheap = may_be_cheap && find_cheap(rank);
    if (!some_cheap && !may_be_full) { return true; }
    exchanges const all{rank, excess(hot_), room, some_cheap, may_be_full};
    if (map_->first_slot(1) > numbers::few_slots) {
      look_at_sorted_exchanges(all);
    } else {
      look_at_all_exchanges(all);
    }
    return true;
  }
  /// Loads from `begin` on, below `begin + width`.
  struct load_range {
    load_t begin;
    std::uint64_t width;

    [[nodiscard]] bool has(load_t load) const noexcept { return static_cast<std::uint64_t>(load - begin) < width; }
    [[nodiscard]] bool meets(load_t least, load_t most) const noexcept {
      return most >= begin && (least < begin ? width > 0 : has(least));
    }
  };
  /// The exchanges of the costliest rank with another one.
  struct exchanges {
    index_t rank;
    load_t reach;      ///< excess of the costliest rank and room of the other one
    load_t most;       ///< the lesser of the two
    bool some_cheap;   ///< some take less than two moves
    bool may_be_full;  ///< one of two moves may be of use

    exchanges(index_t with, load_t excess, load_t room, bool has_cheap, bool has_full) noexcept
        : rank{with},
          reach{excess + room},
          most{std::min(excess, room)},
          some_cheap{has_cheap},
          may_be_full{has_full} {}

    /// What one removes is at most the difference of the loads, and at most what stays below `reach`;
    [[nodiscard]] load_t most_by_difference(load_t difference) const noexcept {
      return cost_is_load<Cost> ? std::min(difference, reach - difference) : difference;
    }
    /// So those that are worth more with a slot of such a load are with slots of these.
    [[nodiscard]] load_range partners(load_t load, load_t worth) const noexcept {
      auto const begin = cost_is_load<Cost> ? load - reach + worth + 1 : load_t{0};
      return {begin, static_cast<std::uint64_t>(std::max(load - worth - begin, load_t{0}))};
    }
    /// And it is no more than `most`; where the cost is the load no less either.
    [[nodiscard]] load_t most_gain(load_t difference) const noexcept {
      return std::min(most_by_difference(difference), most);
    }
  };
  /// Of few slots, the pairs that may take less than two moves, and all others of slots where those may be of use.
  void look_at_all_exchanges(exchanges const& of) {
    auto const mine = map_->slot_loads(hot_);
    auto const theirs = map_->slot_loads(of.rank);
    auto const [lightest, heaviest] = std::ranges::minmax(theirs);
    for (std::size_t i = 0; i < mine.size(); ++i) {
      auto const of_use = of.partners(mine[i], paid_.worth);
      auto const full = of.partners(mine[i], 2 * paid_.worth + 1);
      if (is_cheap(of, i)) {
        look_at_partners(of, i, theirs, of_use);
      } else if (of.may_be_full && full.meets(lightest, heaviest)) {
        look_at_partners(of, i, theirs, of.some_cheap ? of_use : full);
      } else if (of.some_cheap) {
        for (auto const k : cheap_slots_) {
          if (of_use.has(theirs[k])) { look_at_one_of_few(of, i, k, mine[i] - theirs[k]); }
        }
      }
    }
  }
  void look_at_partners(exchanges const& of, std::size_t i, std::span<load_t const> theirs, load_range const& range) {
    for (std::size_t k = 0; k < theirs.size(); ++k) {
      if (range.has(theirs[k])) { look_at_one_of_few(of, i, k, map_->slot_loads(hot_)[i] - theirs[k]); }
    }
  }
  /// Slots of another rank, the lightest first; they are walked through once for all slots of the costliest rank, in
  /// the same order.
  struct window {
    std::span<loaded_slot const> slots;

    /// Whether the exchange of a load for one of them may be worth more.
    [[nodiscard]] bool has(exchanges const& of, load_t load, load_t worth) noexcept {
      if (cost_is_load<Cost>) { skip_below(load - of.reach + worth + 1); }
      return !slots.empty() && slots.front().first < load - worth;
    }
    void skip_below(load_t load) noexcept {
      while (!slots.empty() && slots.front().first < load) { slots = slots.subspan(1); }
    }
  };
  /// `[S]` loads and numbers of a rank's slots, the lightest first.
  [[nodiscard]] std::span<loaded_slot const> slots_by_load(index_t rank) {
    auto const loads = map_->slot_loads(rank);
    auto const slots = std::span{by_load_}.subspan(static_cast<std::size_t>(map_->first_slot(rank)), loads.size());
    auto& order = at(orders_, rank);
    if (order == is_sorted) { return slots; }
    for (auto& [load, slot] : slots) { load = loads[slot]; }
    if (order == is_outdated) {
      sort_again(slots);
    } else {
      std::sort(slots.begin(), slots.end());
    }
    order = is_sorted;
    return slots;
  }
  /// Sort what is nearly sorted.
  static void sort_again(std::span<loaded_slot> slots) {
    for (std::size_t i = 1; i < slots.size(); ++i) {
      auto const one = slots[i];
      auto k = i;
      for (; k > 0 && one < slots[k - 1]; --k) { slots[k] = slots[k - 1]; }
      slots[k] = one;
    }
  }
  /// Of many slots, those whose loads differ by too little or too much for any use are not even looked at. The pair
  /// that promises most comes first, so that few others are worth a look.
  void look_at_sorted_exchanges(exchanges const& of) {
    auto const theirs = slots_by_load(of.rank);
    cheap_by_load_.clear();
    if (of.some_cheap) {
      auto const first = map_->slot_loads(of.rank);
      for (auto const k : cheap_slots_) { cheap_by_load_.push_back({first[k], k}); }
      std::sort(cheap_by_load_.begin(), cheap_by_load_.end());
    }
    auto const best = most_promising(of, theirs);
    if (best.worth > 0) {
      look_at_pair(of, best.i, best.k, map_->slot_loads(hot_)[best.i] - map_->slot_loads(of.rank)[best.k]);
    }
    find_rows(of, theirs);
    auto const mine = map_->slot_loads(hot_);
    for (std::size_t i = 0; i < mine.size(); ++i) {
      if (!rows_[i]) { continue; }
      look_at_those_above(of, theirs, i, mine[i], is_cheap(of, i) ? 1 : 2, paid_);
      look_at_those_above(of, cheap_by_load_, i, mine[i], 1, is_cheap(of, i) ? free_ : paid_);
    }
  }
  [[nodiscard]] bool is_cheap(exchanges const& of, std::size_t i) const { return of.some_cheap && cheap_rows_[i] != 0; }
  /// Find the slots of the costliest rank for which some exchange may be worth more.
  void find_rows(exchanges const& of, std::span<loaded_slot const> theirs) {
    rows_.resize(theirs.size());
    window full[] = {{theirs}, {theirs}};  // for one move, and for two
    window cheap[] = {{cheap_by_load_}, {cheap_by_load_}};
    for (auto const& [load, i] : slots_by_load(hot_)) {
      bool const one = is_cheap(of, i);
      auto const worth = paid_.worth * (one ? 1 : 2);
      auto const worth_of_cheap = one ? free_.worth : paid_.worth;
      rows_[i] = (of.most > worth && full[one].has(of, load, worth)) ||
                 (of.most > worth_of_cheap && cheap[one].has(of, load, worth_of_cheap));
    }
  }
  /// Look at the exchanges of a slot that may be better than the best so far, taking so many moves each.
  void look_at_those_above(exchanges const& of, std::span<loaded_slot const> slots, std::size_t i, load_t load,
                           load_t moves, change const& best) {
    if (of.most <= best.worth * moves) { return; }
    auto k = cost_is_load<Cost>
                 ? std::lower_bound(slots.begin(), slots.end(), loaded_slot{load - of.reach + best.worth * moves, 0})
                 : slots.begin();
    for (; k != slots.end() && k->first < load - best.worth * moves; ++k) {
      if (of.most_gain(load - k->first) > best.worth * moves) { look_at_pair(of, i, k->second, load - k->first); }
    }
  }
  /// What an exchange may be worth.
  struct promise {
    load_t worth = 0;
    std::size_t i = 0;  ///< of the costliest rank
    std::size_t k = 0;  ///< of the other one
  };
  /// The exchange that promises most, of the first slot where several do.
  [[nodiscard]] promise most_promising(exchanges const& of, std::span<loaded_slot const> theirs) {
    nearest full{theirs};
    nearest cheap{cheap_by_load_};
    promise best;
    for (auto const& [load, i] : slots_by_load(hot_)) {
      promise row{0, i, 0};
      full.improve(row, of, load, is_cheap(of, i) ? 1 : 2);
      cheap.improve(row, of, load, 1);
      if (row.worth > best.worth || (row.worth == best.worth && row.i < best.i)) { best = row; }
    }
    return best;
  }
  /// Slots of another rank, the lightest first, walked through as a `window`.
  struct nearest {
    std::span<loaded_slot const> slots;
    std::size_t next = 0;

    /// Look at the two between which the exchange of a load promises most.
    void improve(promise& row, exchanges const& of, load_t load, load_t moves) noexcept {
      while (next < slots.size() && slots[next].first < load - of.reach / 2) { ++next; }
      auto const first = next > 0 ? next - 1 : 0;
      for (auto k = first; k < std::min(first + 2, slots.size()); ++k) {
        auto const worth = of.most_gain(load - slots[k].first) / moves;
        if (worth > row.worth) { row = {worth, row.i, slots[k].second}; }
      }
    }
  };
  /// Look at the costliest rank for what makes an exchange with it cheap: experts that have arrived on it, or have left
  /// the other rank, and those that it has lost.
  void find_cheap_of_hot() {
    gone_rows_.clear();
    ++step_;
    auto const first = map_->first_slot(hot_);
    for (index_t i = 0; i < map_->first_slot(1); ++i) {
      at(cheap_rows_, i) = static_cast<unsigned char>(map_->refund(first + i));
      if (map_->is_gone(map_->expert(first + i))) { gone_rows_.push_back(i); }
      auto const before = map_->expert_before(first + i);
      if (!map_->is_gone_from(hot_, before)) { continue; }
      map_->for_each_copy(before,
                          [this](index_t copy) { at(homes_, copy) = at(has_homes_, map_->rank_of(copy)) = step_; });
    }
    num_cheap_rows_ = std::count(cheap_rows_.begin(), cheap_rows_.end(), 1);
  }
  /// Which slots of the costliest rank and of another one can take part in an exchange of less than two moves.
  /// @return whether any can.
  [[nodiscard]] bool find_cheap(index_t rank) {
    bool any = num_cheap_rows_ > 0;
    for (auto const i : gone_rows_) {
      auto const slot = map_->first_slot(hot_) + i;
      bool const comes_home = map_->is_gone_from(rank, map_->expert(slot));
      at(cheap_rows_, i) = comes_home || map_->refund(slot) == 1 ? 1 : 0;
      any = any || comes_home;
    }
    cheap_slots_.clear();
    if (map_->arrivals(rank).all == 0 && at(has_homes_, rank) != step_) { return any; }
    auto const first = map_->first_slot(rank);
    for (index_t k = 0; k < map_->first_slot(1); ++k) {
      if (map_->refund(first + k) == 1 || at(homes_, first + k) == step_) {
        cheap_slots_.push_back(static_cast<std::size_t>(k));
      }
    }
    return any || !cheap_slots_.empty();
  }
  /// Of few slots: look at an exchange unless one that is as good is known.
  /// @param i, k        slots of the costliest rank and of the other one
  /// @param difference  of their loads
  void look_at_one_of_few(exchanges const& of, std::size_t i, std::size_t k, load_t difference) {
    if (of.most_by_difference(difference) > paid_.worth) { look_at_pair(of, i, k, difference); }
  }
  void look_at_pair(exchanges const& of, std::size_t i, std::size_t k, load_t difference) {
    auto const slot = map_->first_slot(hot_) + static_cast<index_t>(i);
    auto const other = map_->first_slot(of.rank) + static_cast<index_t>(k);
    auto const given = map_->expert(slot);
    auto const taken = map_->expert(other);
    if (map_->holds(of.rank, given) || map_->holds(hot_, taken)) { return; }
    auto const most = of.most_gain(difference);
    auto const moves =
        map_->arrival(of.rank, given) + map_->arrival(hot_, taken) - map_->refund(slot) - map_->refund(other);
    if (moves > 1 && most / 2 <= paid_.worth) { return; }
    --work_;
    auto const gain = cost_is_load<Cost> ? most : gain_of_exchange(of.rank, difference);
    if (is_of_use(gain)) { propose(gain, moves, {0, slot, taken, other, given}); }
  }
  [[nodiscard]] load_t gain_of_exchange(index_t rank, load_t difference) const {
    return excess(hot_) - excess_of(hot_, map_->rank_load(hot_) - difference) -
           excess_of(rank, map_->rank_load(rank) + difference);
  }

  // ---- the exact gain of a candidate ----

  void add(index_t rank, load_t load) {
    // A rank may be listed twice; it then counts once, because `added_` is cleared when it is read.
    touched_[num_touched_++] = rank;
    at(added_, rank) += load;
  }
  /// The expert of a slot leaves it; its other copies take its load.
  void add_removal(index_t slot) {
    auto const expert = map_->expert(slot);
    auto const more = map_->with_one_less(expert) - map_->per_copy(expert);
    map_->for_each_copy(expert, [this, &slot, &expert, &more](index_t copy) {
      add(map_->rank_of(copy), copy == slot ? -map_->per_copy(expert) : more);
    });
  }
  [[nodiscard]] load_t gain_of_added() {
    --work_;
    load_t gain = 0;
    for (std::size_t i = 0; i < num_touched_; ++i) {
      auto const rank = touched_[i];
      gain += excess(rank) - excess_of(rank, map_->rank_load(rank) + at(added_, rank));
      at(added_, rank) = 0;
    }
    return gain;
  }

  // ---- the journal ----

  void assign(index_t slot, index_t expert) {
    at(settled_, slot) = era_;
    journal_.push_back({slot, map_->expert(slot)});
    if (limits_.keeps_trail) { trail_.push_back({slot, expert}); }
    replace(slot, expert);
  }
  void replace(index_t slot, index_t expert) {
    auto const note = [this](index_t copy) {
      auto const rank = map_->rank_of(copy);
      stale_.push_back(rank);
      at(orders_, rank) = std::min(at(orders_, rank), is_outdated);
    };
    map_->for_each_copy(map_->expert(slot), note);
    map_->assign(slot, expert);
    map_->for_each_copy(expert, note);
  }
  void note_milestone(load_t max) {
    auto const worth = max + limits_.price_of(map_->moves() - moves_at_start_);
    if (worth >= best_.worth - tolerance_) { return; }
    best_ = {worth, max, journal_.size()};
    if (limits_.keeps_trail) { bests_.push_back(journal_.size()); }
  }

  Cost const& cost_;
  bool has_nodes_;  ///< more than one
  replica_map* map_ = nullptr;
  move_limits limits_;
  task task_ = task::none;      ///< at hand
  bool is_descending_ = false;  ///< for the retry at hand
  bool has_changed_ = false;
  load_t max_at_start_ = 0;    ///< largest rank cost when the search began
  load_t descent_target_ = 0;  ///< see `open_descent`
  index_t steps_left_ = 0;     ///< of the descent at hand
  load_t retries_made_ = 0;
  std::int64_t work_ = 0;
  load_t mean_ = 0;
  load_t target_ = 0;
  load_t least_margin_ = 0;  ///< of the target above the mean; lower ones have been tried
  load_t tolerance_ = 0;     ///< gains that count as none
  load_t sum_ = 0;           ///< all cost above the mean, over the denominator of `margin_of_excess`
  index_t moves_at_start_ = 0;
  index_t misses_ = 0;  ///< targets in a row at which nothing helped
  index_t era_ = 0;     ///< changes with moves so far
  index_t hot_ = 0;     ///< the costliest rank
  index_t cold_ = 0;    ///< the cheapest rank
  index_t filler_ = none;
  load_t most_relief_ = 0;
  change free_;  ///< best change without moves
  change paid_;  ///< best change with moves
  milestone best_{};
  milestone kept_{};  ///< the best one before the retry at hand
  std::vector<index_t> live_ranks_;
  std::vector<load_t> rank_cost_;      ///< [R]
  std::vector<rank_block> blocks_;     ///< of live ranks
  std::vector<std::size_t> block_of_;  ///< [R] index into it
  std::vector<index_t> stale_;         ///< ranks whose cost has to be looked up again
  std::vector<load_t> added_;          ///< [R] load that a candidate adds
  std::vector<index_t> touched_;       ///< ranks that a candidate changes, the first `num_touched_`
  std::size_t num_touched_ = 0;
  std::vector<unsigned char> may_be_local_;  ///< [R] holds an expert of which a further copy helps
  std::vector<wanted_copy> relief_;
  index_t spare_age_ = 0;  ///< steps for which the list below may still serve; a long one is a guide for many
  std::span<spare_slot> spare_;
  std::vector<spare_slot> all_spare_;  ///< whose beginning that list is
  bool has_listed_spare_ = false;      ///< a long one, since the search began
  load_t spare_margin_ = 0;            ///< by which the next one may be worth less
  load_t least_spare_ = 0;             ///< room above cost of the last one when a long list was made last
  std::vector<loaded_slot> by_load_;   ///< [R, S] slots of each rank, the lightest first
  std::vector<unsigned char> orders_;  ///< [R] whether they are sorted
  std::vector<loaded_slot>
      cheap_by_load_;                      ///< those of a rank that can take part in an exchange of less than two moves
  std::vector<unsigned char> rows_;        ///< [S] of the costliest rank, worth a look for the exchanges at hand
  std::vector<unsigned char> cheap_rows_;  ///< [S] of the costliest rank, see `find_cheap`
  std::vector<std::size_t> cheap_slots_;   ///< of the other rank
  std::vector<index_t> gone_rows_;         ///< of the costliest rank, whose experts have left some rank
  std::vector<index_t> homes_;             ///< [P] step in which its expert is one that the costliest rank has lost
  std::vector<index_t> has_homes_;         ///< [R] step in which a slot of it is such a one
  index_t step_ = 0;
  std::ptrdiff_t num_cheap_rows_ = 0;
  std::vector<entry> journal_;
  std::vector<assignment> trail_;
  std::vector<std::size_t> bests_;
  std::vector<index_t> changed_;  ///< slots that hold another expert than at the start
  std::uint64_t random_ = 0;
  std::vector<index_t> settled_;  ///< [P] era in which the slot was last changed
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
