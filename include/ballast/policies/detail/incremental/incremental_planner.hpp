// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_DETAIL_INCREMENTAL_INCREMENTAL_PLANNER_HPP
#define BALLAST_POLICIES_DETAIL_INCREMENTAL_INCREMENTAL_PLANNER_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/index.hpp>
#include <ballast/load/history.hpp>
#include <ballast/placement/balancedness.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/placement/rank_cost.hpp>
#include <ballast/policies/detail/headroom/headroom_planner.hpp>
#include <ballast/policies/detail/incremental/layout_stress.hpp>
#include <ballast/policies/detail/incremental/move_search.hpp>
#include <ballast/policies/detail/incremental/rehome.hpp>
#include <ballast/policies/detail/incremental/replica_map.hpp>
#include <ballast/policies/detail/incremental/share_move_search.hpp>
#include <ballast/policies/detail/incremental/work_slice.hpp>
#include <ballast/policies/relabel.hpp>
#include <ballast/policies/relabel_scope.hpp>
#include <ballast/shares/replica_shares.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <span>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// What a policy allows the planner of its layers.
struct incremental_limits {
  move_limits of_search;              ///< but for what depends on the loads
  index_t budget = -1;                ///< moves a layer; -1: none
  load_t price = 0;                   ///< of a move, in 1 / 2^20 of the mean; 0: moves cost nothing
  load_t arrival_price = 0;           ///< of what a layout brings to the busiest rank, in the same units
  std::int64_t plans_per_layout = 0;  ///< that a layout from scratch serves; 0: there is none
};

/// Plans layer after layer with the same scratch memory, each in one go or in slices.
///
/// What is left to do stands in an agenda, the next step last: a step does what takes no time worth counting, goes on
/// with a search, or puts further steps on the agenda. So it may stop between any two, and within a search, and what
/// comes out is the same. What steps hand on to each other are members.
template <rank_cost Cost>
class incremental_planner {  // NOLINT(clang-analyzer-optin.performance.Padding): members stand by what they are for
public:
  incremental_planner(topology const& where, index_t num_logical, Cost const& cost, incremental_limits const& limits)
      : where_{where},
        limits_{limits},
        search_{where, cost},
        share_search_{where},
        fresh_{where, num_logical, {}},
        relabeler_{where, {.scope = where.num_nodes() > 1 ? relabel_scope::nodes : relabel_scope::all}},
        loads_(static_cast<std::size_t>(num_logical)),
        tokens_(loads_.size()) {}

  /// Begin with a layer, which `advance` plans.
  ///
  /// @param current  [L, P] the placement in force; as it is until the plan is finished.
  /// @param mode     what moves are chosen for. For optimal shares the plan is never worse than the one for even
  ///                 shares, split anew, and has the shares.
  /// @param next     in/out: [L, P]; the layer's row of `current` comes in, its plan goes out. Other rows may change in
  ///                 between.
  [[nodiscard]] status begin(load_history_view history, placement const& current, index_t layer, share_mode mode,
                             placement& next) {
    agenda_.clear();
    is_open_ = is_split_along_ = false;
    current_ = &current;
    next_ = &next;
    layer_ = layer;
    mode_ = mode;
    if (auto result = open(history); !result.ok()) { return result; }
    if (mode == share_mode::even) {
      put({&incremental_planner::change});
    } else {
      split_work_ = limits_.of_search.work;
      put({has_budget() ? &incremental_planner::split_within_budget : &incremental_planner::split_as_pays});
      split_rounds_ = max_rounds;
    }
    is_open_ = true;
    return {};
  }
  /// Go on with the layer until it is finished or the slice is used up.
  [[nodiscard]] status advance(work_slice& slice) {
    slice_ = slice;
    auto result = follow_agenda();
    slice = slice_;
    return result;
  }
  /// Whether the layer's plan is made, or was given up.
  [[nodiscard]] bool is_finished() const noexcept { return !is_open_; }

private:
  static constexpr index_t none = replica_map::none;
  static constexpr int max_rounds = 8;
  /// A busiest rank so little above the mean, as a power of two, is as good as balance.
  static constexpr int balanced_shift = 10;
  /// Second copies on a rank waste slots that later loads want. They must lower the busiest rank by so much, a part of
  /// the mean, and only a budget that binds is a reason for them.
  static constexpr load_t worth_of_doubles = 8;
  /// A layout from scratch is for layers that no few moves mend: it must stand up to other loads by so much better, an
  /// eighth of the mean. What drift does to a good layout stays below.
  static constexpr load_t least_relief = layout_stress::unit / 8;
  static constexpr load_t part_off_balance = 32;
  static constexpr index_t retries_of_rungs = 6;     ///< a sixth of those for a layer
  static constexpr std::int64_t split_searches = 8;  ///< that may take the work of a layer together
  static constexpr index_t slots_of_large_layers = 400;
  static constexpr index_t slots_of_huge_layers = 1600;
  /// What looking at a layer as a whole takes, and a layout from scratch, in candidates for each slot, see
  /// `work_slice`; the layout as many more as there are ranks.
  static constexpr std::int64_t work_of_slot = 4;
  static constexpr std::int64_t work_of_layout = 32;

  using todo = void (incremental_planner::*)();
  [[nodiscard]] status follow_agenda() {
    while (!agenda_.empty()) {
      if (slice_.is_used_up()) { return {}; }
      auto const next = agenda_.back();
      agenda_.pop_back();
      (this->*next)();
    }
    is_open_ = false;
    return finish();
  }
  /// Put steps on the agenda, the next one first.
  void put(std::initializer_list<todo> steps) {
    for (auto one = steps.end(); one != steps.begin();) { agenda_.push_back(*--one); }
  }
  /// Go on with the search for even shares, and with the one for optimal shares.
  void go_on_searching() {
    if (!search_.advance(slice_)) { put({&incremental_planner::go_on_searching}); }
  }
  void go_on_searching_shares() {
    if (!share_search_.advance(slice_)) { put({&incremental_planner::go_on_searching_shares}); }
  }

  // ---- a layer as it is ----

  [[nodiscard]] status open(load_history_view history) {
    sum_buckets(history, layer_, tokens_);
    for (std::size_t e = 0; e < tokens_.size(); ++e) { loads_[e] = tokens_[e] * load_unit; }
    auto const row = current_->logical_of_slot(layer_);
    start_row_.assign(row.begin(), row.end());
    map_.open(where_, start_row_, loads_);
    auto result = rehome(map_, limits_at(0), layer_);
    start_ = search_.level_of(map_);
    return result;
  }
  [[nodiscard]] bool has_budget() const noexcept { return limits_.budget >= 0; }
  [[nodiscard]] index_t budget() const noexcept {
    return has_budget() ? limits_.budget : std::numeric_limits<index_t>::max();
  }
  [[nodiscard]] move_limits limits_at(load_t mean) const {
    auto result = limits_.of_search;
    result.max_moves = budget();
    result.goal = mean + (mean >> 13);
    result.least_gain = mean >> 11;
    result.good_enough = mean + (mean >> 11);
    result.price = has_budget() ? 0 : (mean >> 20) * limits_.price;
    return result;
  }

  /// A layout from scratch (`is_fresh_`), or a few moves. Which one shows after the first descent; what the search does
  /// beyond it makes the layer better on these loads, not on others.
  void change() {
    slice_.spend(work_of_slot * map_.num_slots());
    even_limits_ = limits_at(start_.mean);
    is_fresh_ = false;
    if (has_budget()) { rehomed_ = map_; }
    search_.begin(map_, even_limits_);
    put({&incremental_planner::go_on_searching, &incremental_planner::choose_the_way});
  }
  void choose_the_way() {
    bool const has_changed = search_.has_changed();
    is_fresh_ = is_layout_worth_a_look() && take_fresh_layout();
    if (is_fresh_) {
      balance_layout();
    } else if (has_budget()) {
      climb();
    } else {
      if (has_changed) { search_.retry(); }
      put({&incremental_planner::go_on_searching, &incremental_planner::go_on});
    }
  }
  /// Search the map at hand, and go on where that changed it.
  void run(move_limits const& limits) {
    search_.begin(map_, limits);
    put({&incremental_planner::go_on_searching, &incremental_planner::retry_what_changed});
  }
  void retry_what_changed() {
    if (!search_.has_changed()) { return; }
    search_.retry();
    put({&incremental_planner::go_on_searching});
  }

  // ---- a few moves ----

  /// The first moves are the cheapest, so without a budget a plan may be the start of another. Go on until it is not:
  /// then the same loads move nothing when they come again.
  void go_on() {
    if (even_limits_.retries == 0 || even_limits_.limits_arrivals()) { return; }
    rounds_ = max_rounds;
    put({&incremental_planner::go_another_round});
  }
  void go_another_round() {
    if (--rounds_ == 0 || map_.moves() == 0) { return; }
    start_again();
    put({&incremental_planner::go_another_round});
    run(even_limits_);
  }
  /// What has been planned becomes what a plan starts from.
  void start_again() {
    row_.assign(map_.logical_of_slot().begin(), map_.logical_of_slot().end());
    keep_dead_slots(row_);
    map_.open(where_, row_, loads_);
    slice_.spend(work_of_slot * map_.num_slots());
  }

  // ---- a few moves, within a budget ----

  /// A bigger budget never gives a worse plan: what is tried is the same whatever the budget at hand, as far as it
  /// reaches. It is tried rung by rung, each a budget: the plan of a rung is the better of one made for it and one that
  /// goes on from the rung below, improved by retries. Above the last rung that fits, a search for the next one goes on
  /// until the budget is used up. A plan with second copies that some rung was worth stays until others are as good.
  void climb() {
    ladder_ = even_limits_;
    ladder_.retries /= retries_of_rungs;
    map_ = rehomed_;
    other_ = rehomed_;
    doubled_max_ = start_.max;
    rung_ = 0;
    put({&incremental_planner::climb_rung, &incremental_planner::take_doubled});
  }
  void climb_rung() {
    ladder_.max_moves = rung_;
    if (rung_ <= limits_.budget) {
      put({&incremental_planner::go_on_from_here, &incremental_planner::begin_again,
           &incremental_planner::improve_better, &incremental_planner::keep_rung, &incremental_planner::try_doubles,
           &incremental_planner::leave_rung});
    } else {
      ladder_.most_kept = limits_.budget;
      put({&incremental_planner::go_on_from_here});
    }
  }
  void leave_rung() {
    constexpr index_t least_idle = 8;
    bool const is_idle = map_.moves() < std::min(rung_ / 2, rung_ - least_idle);
    if (is_idle || ladder_.work <= 0 || search_.level_of(map_).max <= ladder_.good_enough) { return; }
    rung_ = rung_above(rung_);
    put({&incremental_planner::climb_rung});
  }
  void take_doubled() {
    if (doubled_max_ < search_.level_of(map_).max) { std::swap(map_, doubled_); }
  }
  /// Large layers and ranks take long to search, so they have fewer rungs.
  [[nodiscard]] index_t rung_above(index_t rung) const {
    constexpr index_t step = 4;
    if (rung < 2) { return rung + 1; }
    if (rung < 2 * step) { return rung + 2; }
    bool const is_small =
        map_.num_slots() <= slots_of_large_layers && map_.first_slot(1) <= move_search_numbers::few_slots;
    return rung + std::max(step, rung / (is_small ? 8 : 2) / step * step);
  }
  /// From the layer as it was, into `other_`.
  void begin_again() {
    for (index_t slot = 0; slot < other_.num_slots(); ++slot) {
      if (other_.expert(slot) != rehomed_.expert(slot)) { other_.assign(slot, rehomed_.expert(slot)); }
    }
    search_.begin(other_, ladder_);
    put({&incremental_planner::go_on_searching, &incremental_planner::count_work});
  }
  void count_work() { ladder_.work = search_.work_left(); }
  void go_on_from_here() {
    auto here = ladder_;
    here.least_gain = 1;
    here.keeps_trail = is_split_along_;
    if (is_split_along_) { walked_ = map_; }
    search_.begin(map_, here);
    put({&incremental_planner::go_on_searching, &incremental_planner::count_work,
         &incremental_planner::split_along_trail});
  }
  /// The better one of both ways, and retries from there.
  void improve_better() {
    if (search_.level_of(other_).max < search_.level_of(map_).max) { std::swap(map_, other_); }
    if (ladder_.retries > 0 && search_.level_of(map_).max > ladder_.good_enough) {
      put({&incremental_planner::go_on_from_here, &incremental_planner::retry_on_ladder});
    }
  }
  void retry_on_ladder() {
    search_.retry();
    put({&incremental_planner::go_on_searching, &incremental_planner::count_work});
  }
  void keep_rung() {
    if (is_split_along_) { keep_if_better(map_); }
  }
  void try_doubles() {
    auto const max = search_.level_of(map_).max;
    if (map_.moves() < ladder_.max_moves || max - start_.mean < start_.mean / worth_of_doubles) { return; }
    ladder_.may_double = true;
    put({&incremental_planner::begin_again, &incremental_planner::retry_doubles, &incremental_planner::keep_doubles});
  }
  void retry_doubles() {
    if (ladder_.retries > 0 && search_.level_of(other_).max < start_.max) { retry_on_ladder(); }
  }
  void keep_doubles() {
    ladder_.may_double = false;
    auto const reached = search_.level_of(other_).max;
    if (search_.level_of(map_).max - reached > start_.mean / worth_of_doubles && reached < doubled_max_) {
      doubled_ = other_;
      doubled_max_ = reached;
      if (is_split_along_) { keep_if_better(doubled_); }
    }
  }

  // ---- moves for the best split ----

  /// A bigger budget never gives a worse plan here either: what is tried is the same whatever the budget at hand, as
  /// far as it reaches. A thousandth of the mean above it counts as balance; where one way leads there, the others are
  /// not tried. The first is the search for the last rung that fits, enough where the budget is ample; then come all
  /// rungs; then the plan for even shares, and all that its ladder passes by, split anew.
  void split_within_budget() {
    if (budget() == 0 || !begin_split()) { return; }
    put({&incremental_planner::try_ample, &incremental_planner::climb_for_split, &incremental_planner::split_along,
         &incremental_planner::take_best});
  }
  void take_best() { std::swap(map_, best_); }
  void try_ample() {
    ample_rung_ = 1;
    auto const most = std::min(budget(), map_.num_slots());
    while (split_rung_above(ample_rung_) <= most) { ample_rung_ = split_rung_above(ample_rung_); }
    rung_ = ample_rung_;
    put({&incremental_planner::split_afresh, &incremental_planner::keep_ample});
  }
  void keep_ample() {
    if (is_done()) { return; }
    ample_ = best_;
    ample_max_ = best_max_;
    best_ = before_;
    best_max_ = split(before_);
  }
  /// The plan of a rung is the best of those made for it from the layer as it was, and one that goes on from the rung
  /// below, improved by retries. More moves than slots are of no use.
  void climb_for_split() {
    if (is_done()) { return; }
    rung_ = 1;
    put({&incremental_planner::climb_split_rung});
  }
  void climb_split_rung() {
    auto limits = limits_of_rung(rung_);
    bool const is_last = rung_ > std::min(budget(), map_.num_slots());
    if (is_last) {
      limits.most_kept = budget();
    } else {
      put({&incremental_planner::try_split_rung, &incremental_planner::retry_split_rung,
           &incremental_planner::leave_split_rung});
    }
    limits.least_gain = 1;
    map_ = best_;
    try_for_split(limits);
  }
  void try_split_rung() {
    if (is_done()) { return; }
    if (rung_ == ample_rung_) {
      take_ample();
    } else {
      split_afresh();
    }
  }
  void retry_split_rung() {
    if (!is_done()) { retry_for_split(limits_of_rung(rung_)); }
  }
  void leave_split_rung() {
    if (is_done()) { return; }
    best_max_ = split(best_);
    if (is_done()) { return; }
    rung_ = split_rung_above(rung_);
    put({&incremental_planner::climb_split_rung});
  }
  void split_along() {
    if (is_done()) { return; }
    map_ = before_;
    is_split_along_ = true;
    put({&incremental_planner::change, &incremental_planner::end_along});
  }
  void end_along() {
    is_split_along_ = false;
    if (is_fresh_) { try_for_split(limits_of_rung(budget())); }
  }
  /// A quarter of a power of two apart from 64 on, and in large layers from 8 on; a search that ends between rungs
  /// gains little.
  [[nodiscard]] index_t split_rung_above(index_t rung) const {
    constexpr index_t many = 64;
    auto const slots = map_.num_slots();
    bool const is_large = slots > slots_of_large_layers;
    if (slots > slots_of_huge_layers || (is_large ? rung < 8 : rung < many)) { return rung_above(rung); }
    return rung + std::max(static_cast<index_t>(std::bit_floor(static_cast<std::uint32_t>(rung)) / 4), index_t{4});
  }
  /// Each search has a part of all work, so that what it finds does not depend on those before.
  [[nodiscard]] move_limits limits_of_rung(index_t rung) {
    split_work_ = limits_.of_search.work / split_searches;
    auto limits = limits_of_split();
    limits.max_moves = rung;
    limits.retries /= retries_of_rungs;
    return limits;
  }
  /// From the layer as it was: moves for the best split, and the same after moves for even shares by which experts may
  /// leave a rank for good, a second copy of another one in their place.
  void split_afresh() {
    map_ = before_;
    put({&incremental_planner::split_with_doubles});
    try_for_split(limits_of_rung(rung_));
  }
  void split_with_doubles() {
    if (is_done()) { return; }
    map_ = before_;
    auto limits = limits_of_rung(rung_);
    limits.may_double = true;
    limits.retries = 0;
    limits.good_enough = limits_at(start_.mean).good_enough;
    put({&incremental_planner::split_doubled});
    run(limits);
  }
  void split_doubled() { try_for_split(limits_of_rung(rung_)); }
  void take_ample() {
    if (ample_max_ >= best_max_) { return; }
    best_ = ample_;
    best_max_ = ample_max_;
  }
  /// Keep a plan if its best split is the best so far.
  void keep_if_better(replica_map const& map) {
    open_solver(map);
    if (solver_.settle(best_max_ - 1) == 0) { keep(map); }
  }
  void keep(replica_map const& map) {
    best_ = map;
    give_doubles_back(best_);
    best_max_ = split(best_);
  }
  /// The same for all plans that the search for even shares might have ended with on its way from `walked_`.
  void split_along_trail() {
    if (!is_split_along_) { return; }
    open_solver(walked_);
    walked_steps_ = 0;
    walked_bests_ = 0;
    put({&incremental_planner::walk_on_along_trail});
  }
  void walk_on_along_trail() {
    auto const bests = search_.bests_on_trail();
    while (walked_bests_ < bests.size()) {
      auto const length = bests[walked_bests_++];
      for (; walked_steps_ < length; ++walked_steps_) {
        auto const& [slot, expert] = search_.trail()[walked_steps_];
        walked_.assign(slot, expert);
        solver_.replace(slot, expert);
      }
      slice_.spend(share_move_search::slice_of_solving(map_.num_slots()));
      if (solver_.settle(best_max_ - 1) == 0) {
        keep(walked_);
        open_solver(walked_);
      }
      if (!slice_.is_used_up()) { continue; }
      put({&incremental_planner::walk_on_along_trail});
      return;
    }
  }
  /// Moves for the best split from the layer as it is, unless a layout from scratch is taken, or the plan for even
  /// shares is better all the same. What comes of it may be the start of another, see `go_on`.
  void split_as_pays() {
    if (!begin_split()) { return; }
    put({&incremental_planner::change, &incremental_planner::split_what_pays, &incremental_planner::split_before,
         &incremental_planner::retry_split, &incremental_planner::split_again});
  }
  void split_what_pays() { try_for_split(limits_of_split(), is_fresh_); }
  void split_before() {
    if (is_fresh_) { return; }
    map_ = before_;
    try_for_split(limits_of_split());
  }
  void retry_split() {
    if (!is_fresh_ && !is_done()) { retry_for_split(limits_of_split()); }
  }
  void split_again() {
    take_best();
    bool const may_go_on = map_.moves() > 0 && !is_fresh_ && !is_done() && !limits_.of_search.limits_arrivals();
    if (!may_go_on) { return; }
    start_again();
    if (--split_rounds_ > 0) { put({&incremental_planner::split_as_pays}); }
  }
  /// @return whether there is anything to gain.
  [[nodiscard]] bool begin_split() {
    start_ = search_.level_of(map_);
    before_ = map_;
    best_ = map_;
    best_max_ = split(map_);
    return !is_done();
  }
  [[nodiscard]] load_t done() const noexcept { return start_.mean + (start_.mean >> balanced_shift); }
  [[nodiscard]] bool is_done() const noexcept { return best_max_ <= done(); }

  /// Load of the busiest rank under the best shares.
  [[nodiscard]] load_t split(replica_map const& map) {
    open_solver(map);
    slice_.spend(share_move_search::slice_of_solving(map.num_slots()));
    return solver_.solve();
  }
  void open_solver(replica_map const& map) {
    row_.assign(map.logical_of_slot().begin(), map.logical_of_slot().end());
    keep_dead_slots(row_);
    auto const opened = solver_.open(where_, row_, tokens_);
    BALLAST_ASSERT(opened.ok(), "incremental_planner: a map that lost an expert");
  }
  /// Search on from the map at hand, and keep it if it is the best so far.
  void try_for_split(move_limits const& limits, bool search_on = true) {
    give_doubles_back(map_);
    auto const reached = split(map_);
    if (reached <= done() || !search_on) {
      take_split(reached);
      return;
    }
    share_search_.begin(map_, solver_, limits);
    put({&incremental_planner::go_on_searching_shares, &incremental_planner::take_searched_split});
  }
  void take_searched_split() {
    split_work_ = share_search_.work_left();
    take_split(split(map_));
  }
  void take_split(load_t reached) {
    if (reached >= best_max_) { return; }
    best_max_ = reached;
    std::swap(map_, best_);
  }
  void retry_for_split(move_limits const& limits) {
    open_solver(best_);
    share_search_.retry(best_, solver_, limits);
    put({&incremental_planner::go_on_searching_shares});
  }
  [[nodiscard]] move_limits limits_of_split() const {
    auto limits = limits_at(start_.mean);
    limits.good_enough = done();
    limits.work = split_work_;
    return limits;
  }
  /// Where shares are solved, a slot that holds a second copy had better keep what its rank held: a share may be 0, so
  /// a copy that stays takes nothing from one that left, and it costs no move.
  static void give_doubles_back(replica_map& map) {
    for (index_t slot = 0; slot < map.num_slots(); ++slot) {
      auto const expert = map.expert(slot);
      if (expert == none || map.copies_on(map.rank_of(slot), expert) < 2) { continue; }
      if (auto const gone = heaviest_gone(map, map.rank_of(slot)); gone != none) { map.assign(slot, gone); }
    }
  }
  /// The heaviest expert that a rank held at the start and holds no more.
  [[nodiscard]] static index_t heaviest_gone(replica_map const& map, index_t rank) {
    auto heaviest = none;
    for (index_t slot = map.first_slot(rank); slot < map.first_slot(rank + 1); ++slot) {
      auto const expert = map.expert_before(slot);
      if (map.holds(rank, expert)) { continue; }
      if (heaviest == none || map.load(expert) > map.load(heaviest)) { heaviest = expert; }
    }
    return heaviest;
  }

  // ---- a layout from scratch ----

  /// Making one takes as long as ranks times slots, so large layers have to be far from balance to get one. Huge ones
  /// get none: the exchanges that a layout is granted do not bring it near balance there.
  [[nodiscard]] bool is_layout_worth_a_look() const noexcept {
    if (limits_.plans_per_layout == 0 || !cost_is_load<Cost> || map_.num_slots() > slots_of_huge_layers) {
      return false;
    }
    return map_.num_slots() <= slots_of_large_layers || start_.max > start_.mean + start_.mean / 2;
  }
  [[nodiscard]] bool take_fresh_layout() {
    slice_.spend(work_of_slot * map_.num_slots());
    auto const stress = stress_(where_, map_);
    if (stress < least_stress() + least_relief) { return false; }
    slice_.spend((work_of_layout + map_.num_ranks()) * map_.num_slots());
    auto const row = next_->edit(layer_).logical_of_slot;
    std::copy(tokens_.begin(), tokens_.end(), fresh_.loads().begin());
    fresh_.plan_even_layer(layer_, row);
    next_->index_replicas(layer_);
    relabeler_.run(*current_, *next_, layer_);
    other_.open(where_, start_row_, loads_);
    for (index_t slot = 0; slot < other_.num_slots(); ++slot) {
      if (other_.expert(slot) != none) { other_.assign(slot, row[static_cast<std::size_t>(slot)]); }
    }
    if (!is_within_limits(other_) || search_.level_of(other_).max > start_.max) { return false; }
    if (!is_worth(stress - stress_(where_, other_), other_)) { return false; }
    std::swap(map_, other_);
    return true;
  }
  /// What any layout from scratch is under at least: neighbours in id can be spread the less the fewer slots a rank
  /// has. A bound from experience, with room (docs/incremental.md), that saves making most of those that are not taken.
  [[nodiscard]] load_t least_stress() const noexcept {
    constexpr load_t many = 9;
    auto const slots = load_t{map_.first_slot(1)};
    return layout_stress::unit + layout_stress::unit / 4 / std::max(slots, slots * slots / many);
  }
  /// Where ranks have few slots, a layout may be far from balance. What it moved anyway may go elsewhere for nothing.
  void balance_layout() {
    auto limits = even_limits_;
    limits.goal = limits.good_enough = start_.mean + start_.mean / part_off_balance;
    limits.retries = 0;
    run(limits);
  }
  [[nodiscard]] bool is_within_limits(replica_map const& map) const {
    auto const& limits = limits_.of_search;
    bool within = map.moves() <= budget();
    for (index_t rank = 0; rank < map.num_ranks(); ++rank) {
      auto const arrived = map.arrivals(rank);
      within = within && arrived.all <= limits.max_arrivals && arrived.remote <= limits.max_remote;
    }
    return within;
  }
  /// Whether what a layout saves over the plans that it serves takes longer than receiving it.
  [[nodiscard]] bool is_worth(load_t relief, replica_map const& layout) const {
    index_t most = 0;
    for (index_t rank = 0; rank < layout.num_ranks(); ++rank) { most = std::max(most, layout.arrivals(rank).all); }
    auto const saved = relief * limits_.plans_per_layout;
    return relief >= least_relief &&
           saved > most * std::min(limits_.arrival_price, load_t{1} << 36) / ((load_t{1} << 20) / layout_stress::unit);
  }

  // ---- the row ----

  void keep_dead_slots(std::vector<index_t>& row) const {
    for (std::size_t slot = 0; slot < row.size(); ++slot) {
      if (row[slot] == none) { row[slot] = start_row_[slot]; }
    }
  }
  /// The map, each expert that a rank keeps in the slot it has, and its best shares.
  [[nodiscard]] status finish() {
    row_.assign(map_.logical_of_slot().begin(), map_.logical_of_slot().end());
    keep_dead_slots(row_);
    std::copy(row_.begin(), row_.end(), next_->edit(layer_).logical_of_slot.begin());
    next_->index_replicas(layer_);
    relabeler_.align_slots(*current_, *next_, layer_);
    slice_.spend(work_of_slot * map_.num_slots());
    if (mode_ == share_mode::even) { return {}; }
    slice_.spend(share_move_search::slice_of_solving(map_.num_slots()));
    return split_planned_layer(where_, *next_, layer_, tokens_, solver_);
  }

  topology const& where_;
  incremental_limits limits_;
  move_search<Cost> search_;
  share_move_search share_search_;
  headroom_planner fresh_;
  relabeler relabeler_;
  layout_stress stress_;
  share_solver solver_;
  placement const* current_ = nullptr;
  placement* next_ = nullptr;
  index_t layer_ = 0;
  share_mode mode_ = share_mode::even;
  bool is_open_ = false;                       ///< the layer is being planned
  std::vector<todo> agenda_;                   ///< what is left to do for it, the next step last
  work_slice slice_{0};                        ///< at hand
  typename move_search<Cost>::level start_{};  ///< of the layer, experts of dead ranks at home
  bool is_fresh_ = false;                      ///< it gets a layout from scratch
  move_limits even_limits_;                    ///< of moves for even shares
  int rounds_ = 0;                             ///< left of those in which a plan is the start of another
  move_limits ladder_;                         ///< the same, within a budget, on the rung at hand
  index_t rung_ = 0;                           ///< the budget that is tried
  replica_map map_;                            ///< the plan so far
  replica_map rehomed_;                        ///< the layer as it was, experts of dead ranks at home
  replica_map other_;                          ///< one to compare it with
  replica_map doubled_;                        ///< the best plan so far with second copies on a rank
  load_t doubled_max_ = 0;                     ///< its busiest rank, or that of the layer as it was
  replica_map before_;                         ///< as `rehomed_`, while the plan is for optimal shares
  replica_map best_;                           ///< the best plan for optimal shares so far
  bool is_split_along_ = false;                ///< plans for even shares on the way are candidates for it
  replica_map walked_;                         ///< one of them
  std::size_t walked_steps_ = 0;               ///< along the trail that leads to it
  std::size_t walked_bests_ = 0;               ///< passed by on it
  replica_map ample_;                          ///< the plan for optimal shares of the highest rung that is made afresh
  load_t ample_max_ = 0;                       ///< its busiest rank
  index_t ample_rung_ = 0;
  load_t best_max_ = 0;             ///< its busiest rank
  std::int64_t split_work_ = 0;     ///< left for the searches for it
  int split_rounds_ = 0;            ///< left of those in which it is the start of another
  std::vector<load_t> loads_;       ///< [E] load units
  std::vector<load_t> tokens_;      ///< [E]
  std::vector<index_t> start_row_;  ///< [P] of the placement in force
  std::vector<index_t> row_;        ///< [P]
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
