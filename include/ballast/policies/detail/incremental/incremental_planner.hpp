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

/// Plans layer after layer with the same scratch memory.
template <rank_cost Cost>
class incremental_planner {
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

  /// Plan a layer for even shares.
  ///
  /// @param current  [L, P] the placement in force.
  /// @param next     in/out: [L, P]; the layer's row of `current` comes in, its plan goes out.
  [[nodiscard]] status plan_even(load_history_view history, placement const& current, index_t layer, placement& next) {
    if (auto result = open(history, current, layer); !result.ok()) { return result; }
    static_cast<void>(change(current, layer, next));
    write(current, next, layer);
    return {};
  }

  /// Plan a layer for the shares that suit it best: never worse than the plan for even shares, split anew.
  [[nodiscard]] status plan_optimal(load_history_view history, placement const& current, index_t layer,
                                    placement& next) {
    if (auto result = open(history, current, layer); !result.ok()) { return result; }
    split_work_ = limits_.of_search.work;
    if (has_budget()) {
      split_within_budget(current, layer, next);
    } else {
      for (auto rounds = max_rounds; rounds > 0 && split_as_pays(current, layer, next); --rounds) { start_again(); }
    }
    write(current, next, layer);
    return split_planned_layer(where_, next, layer, tokens_, solver_);
  }

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

  // ---- a layer as it is ----

  [[nodiscard]] status open(load_history_view history, placement const& current, index_t layer) {
    sum_buckets(history, layer, tokens_);
    for (std::size_t e = 0; e < tokens_.size(); ++e) { loads_[e] = tokens_[e] * load_unit; }
    auto const row = current.logical_of_slot(layer);
    start_row_.assign(row.begin(), row.end());
    map_.open(where_, start_row_, loads_);
    auto result = rehome(map_, limits_at(0), layer);
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

  /// A layout from scratch, or a few moves; true for the former. Which one shows after the first descent; what the
  /// search does beyond it makes the layer better on these loads, not on others.
  bool change(placement const& current, index_t layer, placement& next) {
    auto const limits = limits_at(start_.mean);
    if (has_budget()) { rehomed_ = map_; }
    bool const has_changed = search_.begin(map_, limits);
    if (is_layout_worth_a_look() && take_fresh_layout(current, layer, next)) {
      balance_layout(limits);
      return true;
    }
    if (has_budget()) {
      climb(limits);
    } else {
      if (has_changed) { search_.retry(); }
      go_on(limits);
    }
    return false;
  }

  // ---- a few moves ----

  /// The first moves are the cheapest, so without a budget a plan may be the start of another. Go on until it is not:
  /// then the same loads move nothing when they come again.
  void go_on(move_limits const& limits) {
    if (limits.retries == 0 || limits.limits_arrivals()) { return; }
    for (auto rounds = max_rounds; rounds > 1 && map_.moves() > 0; --rounds) {
      start_again();
      search_.run(map_, limits);
    }
  }
  /// What has been planned becomes what a plan starts from.
  void start_again() {
    row_.assign(map_.logical_of_slot().begin(), map_.logical_of_slot().end());
    keep_dead_slots(row_);
    map_.open(where_, row_, loads_);
  }

  // ---- a few moves, within a budget ----

  /// A bigger budget never gives a worse plan: what is tried is the same whatever the budget at hand, as far as it
  /// reaches. It is tried rung by rung, each a budget: the plan of a rung is the better of one made for it and one that
  /// goes on from the rung below, improved by retries. Above the last rung that fits, a search for the next one goes on
  /// until the budget is used up. A plan with second copies that some rung was worth stays until others are as good.
  void climb(move_limits limits) {
    limits.retries /= retries_of_rungs;
    map_ = rehomed_;
    other_ = rehomed_;
    doubled_max_ = start_.max;
    climb_rungs(limits);
    if (doubled_max_ < search_.level_of(map_).max) { std::swap(map_, doubled_); }
  }
  void climb_rungs(move_limits& limits) {
    constexpr index_t least_idle = 8;
    index_t rung = 0;
    for (; rung <= limits_.budget; rung = rung_above(rung)) {
      try_rung(rung, limits);
      bool const is_idle = map_.moves() < std::min(rung / 2, rung - least_idle);
      if (is_idle || limits.work <= 0 || search_.level_of(map_).max <= limits.good_enough) { return; }
    }
    limits.max_moves = rung;
    limits.most_kept = limits_.budget;
    go_on_from_here(limits);
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
  void try_rung(index_t rung, move_limits& limits) {
    limits.max_moves = rung;
    go_on_from_here(limits);
    begin_again(limits);
    if (search_.level_of(other_).max < search_.level_of(map_).max) { std::swap(map_, other_); }
    if (limits.retries > 0 && search_.level_of(map_).max > limits.good_enough) {
      go_on_from_here(limits);
      search_.retry();
      limits.work = search_.work_left();
    }
    if (is_split_along_) { keep_if_better(map_); }
    try_doubles(limits);
  }
  /// From the layer as it was, into `other_`.
  void begin_again(move_limits& limits) {
    for (index_t slot = 0; slot < other_.num_slots(); ++slot) {
      if (other_.expert(slot) != rehomed_.expert(slot)) { other_.assign(slot, rehomed_.expert(slot)); }
    }
    static_cast<void>(search_.begin(other_, limits));
    limits.work = search_.work_left();
  }
  void go_on_from_here(move_limits& limits) {
    auto here = limits;
    here.least_gain = 1;
    here.keeps_trail = is_split_along_;
    if (is_split_along_) { walked_ = map_; }
    static_cast<void>(search_.begin(map_, here));
    limits.work = search_.work_left();
    if (is_split_along_) { split_along_trail(); }
  }
  void try_doubles(move_limits& limits) {
    auto const max = search_.level_of(map_).max;
    auto const worth = start_.mean / worth_of_doubles;
    if (map_.moves() < limits.max_moves || max - start_.mean < worth) { return; }
    limits.may_double = true;
    begin_again(limits);
    if (limits.retries > 0 && search_.level_of(other_).max < start_.max) {
      search_.retry();
      limits.work = search_.work_left();
    }
    limits.may_double = false;
    auto const reached = search_.level_of(other_).max;
    if (max - reached > worth && reached < doubled_max_) {
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
  void split_within_budget(placement const& current, index_t layer, placement& next) {
    if (budget() == 0 || !begin_split()) { return; }
    try_ample();
    if (!is_done()) { climb_for_split(); }
    if (!is_done()) {
      map_ = before_;
      is_split_along_ = true;
      if (change(current, layer, next)) { try_for_split(limits_of_rung(budget())); }
      is_split_along_ = false;
    }
    std::swap(map_, best_);
  }
  void try_ample() {
    ample_rung_ = 1;
    auto const most = std::min(budget(), map_.num_slots());
    while (split_rung_above(ample_rung_) <= most) { ample_rung_ = split_rung_above(ample_rung_); }
    split_afresh(ample_rung_);
    if (is_done()) { return; }
    ample_ = best_;
    ample_max_ = best_max_;
    best_ = before_;
    best_max_ = split(before_);
  }
  /// The plan of a rung is the best of those made for it from the layer as it was, and one that goes on from the rung
  /// below, improved by retries. More moves than slots are of no use.
  void climb_for_split() {
    index_t rung = 1;
    for (; rung <= std::min(budget(), map_.num_slots()); rung = split_rung_above(rung)) {
      go_on_for_split(limits_of_rung(rung));
      if (is_done()) { return; }
      if (rung == ample_rung_) {
        take_ample();
      } else {
        split_afresh(rung);
      }
      if (is_done()) { return; }
      retry_for_split(limits_of_rung(rung));
      best_max_ = split(best_);
      if (is_done()) { return; }
    }
    auto limits = limits_of_rung(rung);
    limits.most_kept = budget();
    go_on_for_split(limits);
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
  void go_on_for_split(move_limits limits) {
    limits.least_gain = 1;
    map_ = best_;
    try_for_split(limits);
  }
  /// From the layer as it was: moves for the best split, and the same after moves for even shares by which experts may
  /// leave a rank for good, a second copy of another one in their place.
  void split_afresh(index_t rung) {
    map_ = before_;
    auto limits = limits_of_rung(rung);
    try_for_split(limits);
    if (is_done()) { return; }
    map_ = before_;
    limits.may_double = true;
    limits.retries = 0;
    limits.good_enough = limits_at(start_.mean).good_enough;
    search_.run(map_, limits);
    try_for_split(limits_of_rung(rung));
  }
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
    open_solver(walked_);
    std::size_t made = 0;
    for (auto const length : search_.bests_on_trail()) {
      for (; made < length; ++made) {
        auto const& [slot, expert] = search_.trail()[made];
        walked_.assign(slot, expert);
        solver_.replace(slot, expert);
      }
      if (solver_.settle(best_max_ - 1) > 0) { continue; }
      keep(walked_);
      open_solver(walked_);
    }
  }
  /// Moves for the best split from the layer as it is, unless a layout from scratch is taken, or the plan for even
  /// shares is better all the same.
  /// @return whether the plan may be the start of another, see `go_on`.
  [[nodiscard]] bool split_as_pays(placement const& current, index_t layer, placement& next) {
    if (!begin_split()) { return false; }
    bool const is_fresh = change(current, layer, next);
    try_for_split(limits_of_split(), is_fresh);
    if (!is_fresh) {
      map_ = before_;
      try_for_split(limits_of_split());
      if (!is_done()) { retry_for_split(limits_of_split()); }
    }
    std::swap(map_, best_);
    return map_.moves() > 0 && !is_fresh && !is_done() && !limits_.of_search.limits_arrivals();
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
    auto reached = split(map_);
    if (reached > done() && search_on) {
      share_search_.run(map_, solver_, limits);
      split_work_ = share_search_.work_left();
      reached = split(map_);
    }
    if (reached < best_max_) {
      best_max_ = reached;
      std::swap(map_, best_);
    }
  }
  void retry_for_split(move_limits const& limits) {
    open_solver(best_);
    share_search_.retry(best_, solver_, limits);
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
  [[nodiscard]] bool take_fresh_layout(placement const& current, index_t layer, placement& next) {
    auto const stress = stress_(where_, map_);
    if (stress < layout_stress::unit + least_relief) { return false; }
    auto const row = next.edit(layer).logical_of_slot;
    std::copy(tokens_.begin(), tokens_.end(), fresh_.loads().begin());
    fresh_.plan_even_layer(layer, row);
    next.index_replicas(layer);
    relabeler_.run(current, next, layer);
    other_.open(where_, start_row_, loads_);
    for (index_t slot = 0; slot < other_.num_slots(); ++slot) {
      if (other_.expert(slot) != none) { other_.assign(slot, row[static_cast<std::size_t>(slot)]); }
    }
    if (!is_within_limits(other_) || search_.level_of(other_).max > start_.max) { return false; }
    if (!is_worth(stress - stress_(where_, other_), other_)) { return false; }
    std::swap(map_, other_);
    return true;
  }
  /// Where ranks have few slots, a layout may be far from balance. What it moved anyway may go elsewhere for nothing.
  void balance_layout(move_limits limits) {
    limits.goal = limits.good_enough = start_.mean + start_.mean / part_off_balance;
    limits.retries = 0;
    search_.run(map_, limits);
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
  /// The map, each expert that a rank keeps in the slot it has.
  void write(placement const& current, placement& next, index_t layer) {
    row_.assign(map_.logical_of_slot().begin(), map_.logical_of_slot().end());
    keep_dead_slots(row_);
    std::copy(row_.begin(), row_.end(), next.edit(layer).logical_of_slot.begin());
    next.index_replicas(layer);
    relabeler_.align_slots(current, next, layer);
  }

  topology const& where_;
  incremental_limits limits_;
  move_search<Cost> search_;
  share_move_search share_search_;
  headroom_planner fresh_;
  relabeler relabeler_;
  layout_stress stress_;
  share_solver solver_;
  typename move_search<Cost>::level start_{};  ///< of the layer, experts of dead ranks at home
  replica_map map_;                            ///< the plan so far
  replica_map rehomed_;                        ///< the layer as it was, experts of dead ranks at home
  replica_map other_;                          ///< one to compare it with
  replica_map doubled_;                        ///< the best plan so far with second copies on a rank
  load_t doubled_max_ = 0;                     ///< its busiest rank, or that of the layer as it was
  replica_map before_;                         ///< as `rehomed_`, while the plan is for optimal shares
  replica_map best_;                           ///< the best plan for optimal shares so far
  bool is_split_along_ = false;                ///< plans for even shares on the way are candidates for it
  replica_map walked_;                         ///< one of them
  replica_map ample_;                          ///< the plan for optimal shares of the highest rung that is made afresh
  load_t ample_max_ = 0;                       ///< its busiest rank
  index_t ample_rung_ = 0;
  load_t best_max_ = 0;             ///< its busiest rank
  std::int64_t split_work_ = 0;     ///< left for the searches for it
  std::vector<load_t> loads_;       ///< [E] load units
  std::vector<load_t> tokens_;      ///< [E]
  std::vector<index_t> start_row_;  ///< [P] of the placement in force
  std::vector<index_t> row_;        ///< [P]
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
