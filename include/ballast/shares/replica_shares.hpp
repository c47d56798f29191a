// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_SHARES_REPLICA_SHARES_HPP
#define BALLAST_SHARES_REPLICA_SHARES_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/index.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/load/history.hpp>
#include <ballast/matrix_view.hpp>
#include <ballast/placement/balancedness.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE

/// How an expert's tokens will be split over its replicas.
enum class share_mode : index_t {
  even = 0,     ///< every replica takes the same part
  optimal = 1,  ///< so that the busiest rank has as little as possible, see `share_solver`
};

/// How close to the optimum a share solver stops.
enum class share_precision {
  exact,  ///< the optimum, rounded up to a whole load unit (1 / 2^18 token)
  fast,   ///< at most 1 / 1024 above the optimum
};

/// Splits the tokens of one layer's experts over their replicas so that the busiest rank has as little as possible.
///
/// The optimum over all splits is the largest of w(A) / |ranks that hold a member of A| over sets A of experts. The
/// solver finds it as a maximum flow: tokens move from ranks above a target to ranks below it, along replicas; where
/// they get stuck, the ranks they can reach are a *bottleneck*, whose mean load is the next target. Targets only rise
/// and the flow stays valid, so a layer costs a handful of breadth-first searches. Spanning trees bring most of the
/// load where it belongs before the first search.
///
/// Copies of one expert on one rank act as one. Replicas on dead ranks take nothing. After `open` the map can be
/// changed slot by slot (`replace`) and solved again, starting from the flow at hand; copying a solver copies its
/// state, and neither allocates once the sizes have been seen.
///
/// @threads distinct solvers are independent.
class share_solver {
public:
  /// Take a layer over, every expert split evenly.
  ///
  /// @param where            R ranks, P slots.
  /// @param logical_of_slot  [P] logical expert ids in [0, E).
  /// @param loads            [E] tokens, >= 0, at most `max_layer_tokens` together.
  /// @param start            [P] shares to start from, or empty for even ones. Fewer tokens change their rank when the
  ///                         shares in force are given; the optimum is the same.
  /// @return `errc::missing_expert` naming the first expert that no live rank holds; `errc::invalid_placement` or
  ///         `errc::invalid_load` naming what does not fit the topology, or is out of range.
  /// @complexity O(P + E + R); no allocation when the sizes are not larger than before.
  /// @throws std::bad_alloc
  [[nodiscard]] status open(topology const& where, std::span<index_t const> logical_of_slot,
                            std::span<load_t const> loads, std::span<share_t const> start = {}) {
    if (auto result = check(where, logical_of_slot, loads, start); !result.ok()) { return result; }
    reset(where, logical_of_slot, loads);
    for (index_t expert = 0; expert < num_logical(); ++expert) {
      if (detail::at(head_, expert) == none) {
        return {errc::missing_expert, detail::concat("shares: no live rank holds expert ", expert)};
      }
      if (start.empty()) {
        split_evenly(expert);
      } else {
        split_as(expert, start);
      }
    }
    return {};
  }

  /// Move tokens until the busiest rank is as light as the replicas allow.
  ///
  /// @return load of the busiest rank, in units of 1 / 2^18 token.
  /// @pre `open` succeeded, and every expert that `replace` took away has a slot again
  /// @complexity O(targets * searches * P); measured in `docs/shares.md`. No allocation.
  /// @throws nothing
  /// @determinism integer arithmetic, ranks and slots in ascending order.
  load_t solve(share_precision precision = share_precision::exact) {
    auto const accepted = [precision](load_t load) {
      return precision == share_precision::exact ? load : load + (load >> 10);
    };
    in_bottleneck_ = live_;
    bound_ = divide_up(total_, num_live_);
    list_replicated();
    raise_bound_to_small_sets();
    level_out(accepted(bound_));
    while (!drain(bound_, accepted(bound_))) {
      bound_ = std::max(bound_, mean_of_reached());
      in_bottleneck_ = reached_;
    }
    return max_load();
  }

  /// Move tokens from ranks above a target to ranks below it, as far as the replicas allow.
  ///
  /// @param target  load of a rank, in units of 1 / 2^18 token
  /// @return what ranks carry above the target all the same, in these units, added up: no split leaves less. Where that
  ///         is more than 0, `bottleneck_ranks()` are the ranks that it can reach; what puts load there has no replica
  ///         elsewhere, and none of them is below the target.
  /// @pre as for `solve`
  /// @complexity O(searches * P), no allocation.
  /// @throws nothing
  /// @determinism as `solve`
  load_t settle(load_t target) {
    list_replicated();
    if (drain(target, target)) { return 0; }
    in_bottleneck_ = reached_;
    load_t above = 0;
    for (auto const load : rank_load_) { above += std::max(load - target, load_t{0}); }
    return above;
  }

  /// Put another expert into a slot and keep the rest of the split; call `solve` afterwards.
  ///
  /// @pre `slot` in [0, P) on a live rank, `expert` in [0, E); the expert that leaves has another live replica, or it
  ///      stays missing (its tokens are counted nowhere) until a later `replace` brings it back
  /// @complexity O(S + replicas), no allocation.
  void replace(index_t slot, index_t expert) {
    BALLAST_EXPECTS(slot >= 0 && slot < num_slots() && detail::at(next_, slot) != none,
                    "share_solver: not a live slot");
    BALLAST_EXPECTS_BELOW(expert, num_logical(), "share_solver: expert");
    remove(slot);
    insert(slot, expert);
  }

  /// Lower bound on the busiest rank that the last `solve` proved, in units of 1 / 2^18 token, rounded up to one.
  [[nodiscard]] load_t bound() const noexcept { return bound_; }
  /// Load of the busiest rank now.
  [[nodiscard]] load_t max_load() const noexcept {
    return rank_load_.empty() ? 0 : *std::max_element(rank_load_.begin(), rank_load_.end());
  }
  /// `[R]` load of each rank, in units of 1 / 2^18 token.
  [[nodiscard]] std::span<load_t const> rank_loads() const noexcept { return rank_load_; }
  /// `[P]` load that each slot takes, in units of 1 / 2^18 token.
  [[nodiscard]] std::span<load_t const> slot_loads() const noexcept { return flow_; }
  /// `[P]` the map being solved.
  [[nodiscard]] std::span<index_t const> logical_of_slot() const noexcept { return logical_of_slot_; }
  /// `[R]` 1 for the ranks of the bottleneck: the experts that put load there have no replica elsewhere, and their mean
  /// load is the optimum. All live ranks if the optimum is the mean load. Only an expert moved or copied from these
  /// ranks to others lowers the optimum.
  [[nodiscard]] std::span<unsigned char const> bottleneck_ranks() const noexcept { return in_bottleneck_; }
  /// True if a rank belongs to the bottleneck. @pre in range
  [[nodiscard]] bool is_bottleneck(index_t rank) const { return detail::at(in_bottleneck_, rank) != 0; }

  /// Write the split as shares that sum to `share_one` for every expert, zero on dead ranks. Experts without load are
  /// split evenly, and so is everything if rounding would make the split worse than that.
  ///
  /// @param out  out: [P]
  /// @pre `solve` was called since `open` and the last `replace`
  /// @complexity O(P), no allocation.
  /// @throws nothing
  void write_shares(std::span<share_t> out) {
    BALLAST_EXPECTS(out.size() == next_.size(), "share_solver: output is not [P]");
    write_split(out);
    if (max_load() + largest_rounding() < even_max_load()) { return; }
    auto const split = max_load_under(out);
    write_even(out);
    if (max_load_under(out) > split) { write_split(out); }
  }

private:
  using flag = unsigned char;
  static constexpr index_t none = -1;

  [[nodiscard]] static load_t divide_up(load_t a, load_t b) { return (a + b - 1) / b; }
  [[nodiscard]] index_t num_logical() const noexcept { return static_cast<index_t>(head_.size()); }
  [[nodiscard]] index_t num_slots() const noexcept { return static_cast<index_t>(next_.size()); }
  [[nodiscard]] index_t num_ranks() const noexcept { return static_cast<index_t>(rank_load_.size()); }
  [[nodiscard]] load_t units(index_t expert) const { return detail::at(tokens_, expert) * detail::load_unit; }

  // ---- the graph: the live slots of an expert are a ring ----

  [[nodiscard]] static status check(topology const& where, std::span<index_t const> logical_of_slot,
                                    std::span<load_t const> loads, std::span<share_t const> start) {
    auto const slots = static_cast<std::size_t>(where.num_slots());
    if (logical_of_slot.size() != slots || (!start.empty() && start.size() != slots)) {
      return {errc::invalid_placement, detail::concat("shares: a map of ", logical_of_slot.size(), " slots and ",
                                                      start.size(), " shares, the topology has ", slots, " slots")};
    }
    for (std::size_t slot = 0; slot < slots; ++slot) {
      auto const expert = logical_of_slot[slot];
      if (expert < 0 || static_cast<std::size_t>(expert) >= loads.size()) {
        return {errc::invalid_placement, detail::concat("shares: slot ", slot, " holds expert ", expert,
                                                        ", must be in [0, ", loads.size(), ")")};
      }
    }
    load_t total = 0;
    for (std::size_t expert = 0; expert < loads.size(); ++expert) {
      if (loads[expert] < 0 || loads[expert] > max_layer_tokens - total) {
        return {errc::invalid_load,
                detail::concat("shares: load of expert ", expert, " is ", loads[expert],
                               ", must not be negative, nor that of all experts above ", max_layer_tokens)};
      }
      total += loads[expert];
    }
    return {};
  }
  void reset(topology const& where, std::span<index_t const> logical_of_slot, std::span<load_t const> loads) {
    auto const slots = logical_of_slot.size();
    auto const ranks = static_cast<std::size_t>(where.num_ranks());
    slots_per_rank_ = where.slots_per_rank();
    num_live_ = std::max(where.num_live_ranks(), index_t{1});
    logical_of_slot_.assign(logical_of_slot.begin(), logical_of_slot.end());
    tokens_.assign(loads.begin(), loads.end());
    rank_of_slot_.resize(slots);
    next_.assign(slots, none);
    flow_.assign(slots, 0);
    head_.assign(loads.size(), none);
    rank_load_.assign(ranks, 0);
    scratch_.resize(ranks);
    in_bottleneck_.assign(ranks, 0);
    reached_.assign(ranks, 0);
    level_.assign(ranks, 0);
    queue_.resize(ranks);
    arc_slot_.resize(ranks);
    arc_to_.resize(ranks);
    path_.resize(ranks);
    movable_.resize(slots);
    replicated_.reserve(loads.size());
    num_movable_.resize(ranks);
    total_ = 0;
    for (auto const tokens : loads) { total_ += tokens * detail::load_unit; }
    live_.assign(ranks, 0);
    for (index_t rank = 0; rank < where.num_ranks(); ++rank) {
      detail::at(live_, rank) = where.is_live(rank) ? 1 : 0;
      for (index_t slot = rank * slots_per_rank_; slot < (rank + 1) * slots_per_rank_; ++slot) {
        detail::at(rank_of_slot_, slot) = rank;
        if (detail::at(live_, rank) != 0) { link(slot); }
      }
    }
    // Rings start at their lowest slot, as `placement::make_shares_even` does.
    for (auto& head : head_) { head = head == none ? none : detail::at(next_, head); }
  }
  /// Append to the ring of the slot's expert; `head_` is then its last slot.
  void link(index_t slot) {
    auto& last = detail::at(head_, detail::at(logical_of_slot_, slot));
    if (last == none) {
      detail::at(next_, slot) = slot;
    } else {
      detail::at(next_, slot) = detail::at(next_, last);
      detail::at(next_, last) = slot;
    }
    last = slot;
  }
  void remove(index_t slot) {
    auto const expert = detail::at(logical_of_slot_, slot);
    auto const load = detail::at(flow_, slot);
    detail::at(rank_load_, detail::at(rank_of_slot_, slot)) -= load;
    detail::at(flow_, slot) = 0;
    auto const successor = detail::at(next_, slot);
    if (successor == slot) {
      detail::at(head_, expert) = none;
      return;
    }
    auto before = successor;
    while (detail::at(next_, before) != slot) { before = detail::at(next_, before); }
    detail::at(next_, before) = successor;
    detail::at(head_, expert) = before;
    add_flow(successor, load);
  }
  void insert(index_t slot, index_t expert) {
    detail::at(logical_of_slot_, slot) = expert;
    auto const was_missing = detail::at(head_, expert) == none;
    link(slot);
    if (was_missing) { add_flow(slot, units(expert)); }
  }
  [[nodiscard]] load_t load_at(index_t slot) const { return detail::at(rank_load_, detail::at(rank_of_slot_, slot)); }
  void add_flow(index_t slot, load_t load) {
    detail::at(flow_, slot) += load;
    detail::at(rank_load_, detail::at(rank_of_slot_, slot)) += load;
  }

  // ---- where to start ----

  template <class Visit>
  void for_each_replica(index_t head, Visit visit_slot) const {
    auto slot = head;
    do {
      visit_slot(slot);
      slot = detail::at(next_, slot);
    } while (slot != head);
  }
  [[nodiscard]] index_t count_replicas(index_t head) const {
    index_t count = 0;
    for_each_replica(head, [&count](index_t) { ++count; });
    return count;
  }
  void split_evenly(index_t expert) {
    auto const head = detail::at(head_, expert);
    if (detail::at(next_, head) == head) { return add_flow(head, units(expert)); }
    auto const count = load_t{count_replicas(head)};
    auto rest = units(expert) % count;
    for_each_replica(head, [this, &expert, &count, &rest](index_t slot) {
      add_flow(slot, units(expert) / count + (rest > 0 ? 1 : 0));
      rest -= rest > 0 ? 1 : 0;
    });
  }
  void split_as(index_t expert, std::span<share_t const> shares) {
    auto const head = detail::at(head_, expert);
    auto rest = units(expert);
    if (detail::at(next_, head) == head) { return add_flow(head, rest); }
    for_each_replica(head, [this, &expert, &shares, &rest](index_t slot) {
      auto const wanted = detail::shared_load(detail::at(tokens_, expert), shares[static_cast<std::size_t>(slot)]);
      auto const load = std::min(rest, wanted);
      add_flow(slot, load);
      rest -= load;
    });
    add_flow(head, rest);
  }

  // ---- moving tokens ----

  /// List the experts with several replicas, and rank by rank the slots whose load may go elsewhere.
  void list_replicated() {
    replicated_.clear();
    for (index_t rank = 0; rank < num_ranks(); ++rank) {
      auto const first = rank * slots_per_rank_;
      auto end = first;
      for (index_t slot = first; slot < first + slots_per_rank_; ++slot) {
        auto const next = detail::at(next_, slot);
        if (next == none || next == slot) { continue; }
        auto const expert = detail::at(logical_of_slot_, slot);
        if (detail::at(head_, expert) == slot) { replicated_.push_back(slot); }
        if (detail::at(tokens_, expert) > 0) { detail::at(movable_, end++) = slot; }
      }
      detail::at(num_movable_, rank) = end - first;
    }
  }
  /// Look at what cannot leave a rank, and a pair of ranks with a common expert: often the bottleneck already, and
  /// always a good first target.
  void raise_bound_to_small_sets() {
    std::copy(rank_load_.begin(), rank_load_.end(), scratch_.begin());
    for (index_t rank = 0; rank < num_ranks(); ++rank) {
      auto const first = rank * slots_per_rank_;
      for (index_t m = first; m < first + detail::at(num_movable_, rank); ++m) {
        detail::at(scratch_, rank) -= detail::at(flow_, detail::at(movable_, m));
      }
    }
    for (index_t rank = 0; rank < num_ranks(); ++rank) { raise_bound(detail::at(scratch_, rank), rank, rank); }
    for (auto const head : replicated_) {
      auto const other = detail::at(next_, head);
      auto const a = detail::at(rank_of_slot_, head);
      auto const b = detail::at(rank_of_slot_, other);
      if (detail::at(next_, other) != head || a == b) { continue; }
      raise_bound(
          divide_up(detail::at(scratch_, a) + detail::at(scratch_, b) + units(detail::at(logical_of_slot_, head)), 2),
          a, b);
    }
  }
  void raise_bound(load_t load, index_t a, index_t b) {
    if (load <= bound_) { return; }
    bound_ = load;
    std::fill(in_bottleneck_.begin(), in_bottleneck_.end(), flag{0});
    detail::at(in_bottleneck_, a) = 1;
    detail::at(in_bottleneck_, b) = 1;
  }
  /// Come close to `target` cheaply, which leaves little for the searches to do.
  void level_out(load_t target) {
    constexpr int sweeps = 2;
    for (int i = 0; i < sweeps && max_load() > target; ++i) { level_out_neighbours(); }
    if (max_load() > target) { level_out_along_trees(divide_up(total_, num_live_)); }
  }
  void level_out_neighbours() {
    for (index_t rank = 0; rank < num_ranks(); ++rank) {
      auto const first = rank * slots_per_rank_;
      for (index_t m = first; m < first + detail::at(num_movable_, rank); ++m) {
        auto const slot = detail::at(movable_, m);
        auto const other = detail::at(next_, slot);
        auto const half = (load_at(slot) - load_at(other)) / 2;
        move(slot, other, std::clamp(half, -detail::at(flow_, other), detail::at(flow_, slot)));
      }
    }
  }
  /// Move load along spanning trees of the replicas, from the leaves to the roots: each rank passes on what it has
  /// above `target`, or asks its parent for what it lacks. Where no replica runs short this already is the optimum.
  void level_out_along_trees(load_t target) {
    std::fill(reached_.begin(), reached_.end(), flag{0});
    index_t end = 0;
    for (index_t root = 0, i = 0; root < num_ranks(); ++root) {
      if (detail::at(reached_, root) == 0) { visit(root, 0, end); }
      for (; i < end; ++i) { visit_children(detail::at(queue_, i), end); }
    }
    for (index_t i = end - 1; i >= 0; --i) {
      auto const rank = detail::at(queue_, i);
      auto const own = detail::at(arc_to_, rank);
      if (own == none) { continue; }
      auto const of_parent = detail::at(arc_slot_, rank);
      move(own, of_parent,
           std::clamp(detail::at(rank_load_, rank) - target, -detail::at(flow_, of_parent), detail::at(flow_, own)));
    }
  }
  /// Here `arc_to_` is a rank's slot towards its parent, and `arc_slot_` the parent's slot of the same expert.
  void visit_children(index_t rank, index_t& end) {
    auto const first = rank * slots_per_rank_;
    for (index_t m = first; m < first + detail::at(num_movable_, rank); ++m) {
      auto const slot = detail::at(movable_, m);
      for (auto to = detail::at(next_, slot); to != slot; to = detail::at(next_, to)) {
        auto const child = detail::at(rank_of_slot_, to);
        if (detail::at(reached_, child) != 0) { continue; }
        visit(child, 0, end);
        detail::at(arc_slot_, child) = slot;
        detail::at(arc_to_, child) = to;
      }
    }
  }
  void move(index_t from, index_t to, load_t load) {
    add_flow(from, -load);
    add_flow(to, load);
  }

  /// Move load to `target` until every rank has at most `accepted`; false if that is impossible, with `reached_` set to
  /// a bottleneck.
  [[nodiscard]] bool drain(load_t target, load_t accepted) {
    while (max_load() > accepted) {
      if (!find_levels(target)) { return false; }
      for (index_t i = 0; i < num_sources_; ++i) { drain_rank(detail::at(queue_, i), target); }
    }
    return true;
  }
  /// Breadth-first search from the ranks above `target`; true if it meets a rank below it.
  [[nodiscard]] bool find_levels(load_t target) {
    std::fill(reached_.begin(), reached_.end(), flag{0});
    index_t end = 0;
    for (index_t rank = 0; rank < num_ranks(); ++rank) {
      if (detail::at(rank_load_, rank) > target) { visit(rank, 0, end); }
    }
    num_sources_ = end;
    index_t depth = num_ranks();  // of the nearest rank with room; nothing behind it matters
    for (index_t i = 0; i < end && detail::at(level_, detail::at(queue_, i)) < depth; ++i) {
      auto const rank = detail::at(queue_, i);
      auto const first = rank * slots_per_rank_;
      for (index_t m = first; m < first + detail::at(num_movable_, rank); ++m) {
        auto const slot = detail::at(movable_, m);
        if (detail::at(flow_, slot) == 0) { continue; }
        for (auto to = detail::at(next_, slot); to != slot; to = detail::at(next_, to)) {
          auto const other = detail::at(rank_of_slot_, to);
          if (detail::at(reached_, other) != 0) { continue; }
          visit(other, detail::at(level_, rank) + 1, end);
          if (detail::at(rank_load_, other) < target) { depth = detail::at(level_, other); }
        }
      }
    }
    return depth < num_ranks();
  }
  void visit(index_t rank, index_t level, index_t& end) {
    detail::at(reached_, rank) = 1;
    detail::at(level_, rank) = level;
    detail::at(queue_, end++) = rank;
    detail::at(arc_slot_, rank) = rank * slots_per_rank_;
    detail::at(arc_to_, rank) = none;
  }
  /// Depth-first search along rising levels, pushing load off `source` until it is at `target` or cut off.
  void drain_rank(index_t source, load_t target) {
    index_t depth = 0;
    auto rank = source;
    while (detail::at(rank_load_, source) > target) {
      if (rank != source && detail::at(rank_load_, rank) < target) {
        depth = push(depth, detail::at(rank_load_, source) - target, target - detail::at(rank_load_, rank));
        rank = depth == 0 ? source : detail::at(rank_of_slot_, detail::at(path_, depth - 1).to);
        continue;
      }
      if (advance(rank)) {
        path_[static_cast<std::size_t>(depth)] = {arc(rank), detail::at(arc_to_, rank)};
        rank = detail::at(rank_of_slot_, detail::at(path_, depth++).to);
      } else if (depth > 0) {
        detail::at(level_, rank) = none;  // a dead end for this phase
        --depth;
        rank = detail::at(rank_of_slot_, detail::at(path_, depth).from);
      } else {
        return;
      }
    }
  }
  struct hop {
    index_t from;  ///< slot that gives
    index_t to;    ///< slot of the same expert that takes
  };
  [[nodiscard]] index_t arc(index_t rank) const { return detail::at(movable_, detail::at(arc_slot_, rank)); }
  /// Find the next usable hop of a rank, from where the last search stood; false if there is none left.
  [[nodiscard]] bool advance(index_t rank) {
    auto const end = rank * slots_per_rank_ + detail::at(num_movable_, rank);
    for (auto& m = detail::at(arc_slot_, rank); m < end; ++m) {
      auto const slot = detail::at(movable_, m);
      auto& to = detail::at(arc_to_, rank);
      if (detail::at(flow_, slot) > 0) {
        if (to == none) { to = detail::at(next_, slot); }
        for (; to != slot; to = detail::at(next_, to)) {
          if (leads_down(rank, detail::at(rank_of_slot_, to))) { return true; }
        }
      }
      to = none;
    }
    return false;
  }
  [[nodiscard]] bool leads_down(index_t rank, index_t other) const {
    return detail::at(reached_, other) != 0 && detail::at(level_, other) == detail::at(level_, rank) + 1;
  }
  /// Push along the path; returns the depth up to which it can still be used.
  index_t push(index_t depth, load_t excess, load_t room) {
    auto load = std::min(excess, room);
    for (index_t i = 0; i < depth; ++i) { load = std::min(load, detail::at(flow_, detail::at(path_, i).from)); }
    auto usable = depth;
    for (index_t i = depth - 1; i >= 0; --i) {
      auto const [from, to] = detail::at(path_, i);
      move(from, to, load);
      if (detail::at(flow_, from) == 0) { usable = i; }
    }
    // The end of the path is full now unless a hop was emptied: start over from the rank before it.
    return std::min(usable, depth - 1);
  }
  /// Mean load of the ranks that the last search reached, rounded up.
  [[nodiscard]] load_t mean_of_reached() const {
    load_t sum = 0;
    load_t count = 0;
    for (index_t rank = 0; rank < num_ranks(); ++rank) {
      if (detail::at(reached_, rank) == 0) { continue; }
      sum += detail::at(rank_load_, rank);
      ++count;
    }
    return divide_up(sum, count);
  }

  // ---- shares ----

  void write_even(std::span<share_t> out) const {
    write_singles(out);
    for (auto const head : replicated_) { write_even(head, out); }
  }
  /// Load flows to share; what rounding leaves over goes to the lightest rank.
  void write_split(std::span<share_t> out) const {
    write_singles(out);
    for (auto const head : replicated_) {
      if (detail::at(tokens_, detail::at(logical_of_slot_, head)) == 0) {
        write_even(head, out);
        continue;
      }
      auto rest = share_one;
      auto lightest = head;
      for_each_replica(head, [this, &out, &rest, &lightest](index_t slot) {
        auto const share = share_of(slot);
        out[static_cast<std::size_t>(slot)] = share;
        rest -= share;
        if (load_at(slot) < load_at(lightest)) { lightest = slot; }
      });
      out[static_cast<std::size_t>(lightest)] += rest;
    }
  }
  void write_singles(std::span<share_t> out) const {
    for (std::size_t slot = 0; slot < out.size(); ++slot) {
      out[slot] = next_[slot] == static_cast<index_t>(slot) ? share_one : 0;
    }
  }
  void write_even(index_t head, std::span<share_t> out) const {
    auto const count = static_cast<share_t>(count_replicas(head));
    auto rest = share_one % count;
    for_each_replica(head, [&out, &count, &rest](index_t slot) {
      out[static_cast<std::size_t>(slot)] = share_one / count + (rest > 0 ? 1 : 0);
      rest -= rest > 0 ? 1 : 0;
    });
  }
  /// More than the load of any rank can change when its shares are rounded: c / 2^30 of each expert, and one unit.
  [[nodiscard]] load_t largest_rounding() const {
    return (total_ >> 30) * (num_ranks() + 1) * slots_per_rank_ + slots_per_rank_ + 1;
  }
  [[nodiscard]] load_t even_max_load() {
    std::copy(rank_load_.begin(), rank_load_.end(), scratch_.begin());
    for (auto const head : replicated_) {
      auto const part = units(detail::at(logical_of_slot_, head)) / count_replicas(head);
      for_each_replica(head, [this, &part](index_t slot) {
        detail::at(scratch_, detail::at(rank_of_slot_, slot)) += part - detail::at(flow_, slot);
      });
    }
    return *std::max_element(scratch_.begin(), scratch_.end());
  }
  /// Load of the busiest rank as `rank_loads` computes it.
  [[nodiscard]] load_t max_load_under(std::span<share_t const> shares) {
    std::fill(scratch_.begin(), scratch_.end(), load_t{0});
    for (std::size_t slot = 0; slot < shares.size(); ++slot) {
      scratch_[static_cast<std::size_t>(rank_of_slot_[slot])] +=
          detail::shared_load(detail::at(tokens_, logical_of_slot_[slot]), shares[slot]);
    }
    return *std::max_element(scratch_.begin(), scratch_.end());
  }
  /// flow / (tokens * 2^18) in units of 2^-30, rounded down.
  [[nodiscard]] share_t share_of(index_t slot) const {
    constexpr int shift = 30 - detail::load_unit_bits;
    auto const tokens = detail::at(tokens_, detail::at(logical_of_slot_, slot));
    auto const whole = detail::at(flow_, slot) / tokens;
    auto const part = detail::at(flow_, slot) % tokens;
    return static_cast<share_t>((whole << shift) + (part << shift) / tokens);
  }

  index_t slots_per_rank_ = 1;
  index_t num_live_ = 1;
  load_t total_ = 0;
  load_t bound_ = 0;
  index_t num_sources_ = 0;
  std::vector<index_t> logical_of_slot_;  ///< [P]
  std::vector<index_t> rank_of_slot_;     ///< [P]
  std::vector<index_t> next_;             ///< [P] next live slot of the same expert; -1 on dead ranks
  std::vector<load_t> flow_;              ///< [P] load of each slot
  std::vector<load_t> tokens_;            ///< [E]
  std::vector<index_t> head_;             ///< [E] a live slot of the expert, -1 if there is none
  std::vector<load_t> rank_load_;         ///< [R]
  std::vector<load_t> scratch_;           ///< [R] rank loads under rounded shares
  std::vector<flag> live_;                ///< [R]
  std::vector<flag> in_bottleneck_;       ///< [R]
  std::vector<index_t> replicated_;       ///< heads of the experts with several replicas
  std::vector<index_t> movable_;          ///< [P] rank by rank, slots whose load has another place to go
  std::vector<index_t> num_movable_;      ///< [R]
  std::vector<flag> reached_;             ///< [R] by the last search
  std::vector<index_t> level_;            ///< [R] hops from the nearest source
  std::vector<index_t> queue_;            ///< [R] ranks in the order reached, sources first
  std::vector<index_t> arc_slot_;         ///< [R] position in `movable_`
  std::vector<index_t> arc_to_;           ///< [R] slot in the ring of that position's slot
  std::vector<hop> path_;                 ///< [R]
};

/// Re-split one layer of a placement for new loads; the map stays as it is.
///
/// @param where      R ranks, P slots.
/// @param in_out     in/out: [L, P]; gets shares (even ones in other layers) if it has none. Starts from its shares.
/// @param layer      in [0, L)
/// @param loads      [E] tokens, >= 0.
/// @param solver     working memory, reused between calls.
/// @return `errc::missing_expert` if an expert has no live replica; `errc::invalid_placement` or `errc::invalid_load`
///         for inputs that do not fit each other. `in_out` is then unchanged.
/// @post the busiest rank has no more load than under even shares.
/// @complexity that of `share_solver::solve`; allocates only while sizes grow.
/// @throws std::bad_alloc
/// @determinism integer arithmetic alone.
[[nodiscard]] inline status optimal_shares(topology const& where, placement& in_out, index_t layer,
                                           std::span<load_t const> loads, share_solver& solver,
                                           share_precision precision = share_precision::exact) {
  if (layer < 0 || layer >= in_out.num_layers()) {
    return {errc::invalid_placement,
            detail::concat("shares: layer ", layer, ", the placement has ", in_out.num_layers(), " layers")};
  }
  if (loads.size() != static_cast<std::size_t>(in_out.num_logical())) {
    return {errc::invalid_load,
            detail::concat("shares: loads of ", loads.size(), " experts, the placement has ", in_out.num_logical())};
  }
  auto const start = in_out.has_shares() ? in_out.shares(layer) : std::span<share_t const>{};
  if (auto result = solver.open(where, in_out.logical_of_slot(layer), loads, start); !result.ok()) { return result; }
  static_cast<void>(solver.solve(precision));
  if (!in_out.has_shares()) { in_out.make_shares_even(); }
  solver.write_shares(in_out.edit_shares(layer));
  return {};
}

namespace detail {

/// Split one layer of a plan from even shares, whatever shares it has: the same split whichever layers came before.
[[nodiscard]] inline status split_planned_layer(topology const& where, placement& in_out, index_t layer,
                                                std::span<load_t const> loads, share_solver& solver) {
  if (auto result = solver.open(where, in_out.logical_of_slot(layer), loads); !result.ok()) { return result; }
  static_cast<void>(solver.solve());
  if (!in_out.has_shares()) { in_out.make_shares_even(); }
  solver.write_shares(in_out.edit_shares(layer));
  return {};
}

}  // namespace detail

/// Re-split every layer of a placement for new loads; the map stays as it is.
///
/// @param where      R ranks, P slots.
/// @param in_out     in/out: [L, P]; gets shares if it has none. Starts from its shares.
/// @param history    [H, L, E] tokens, >= 0; buckets are added up.
/// @param solver     working memory, reused between calls.
/// @return as above; layers before the first such one are then re-split.
/// @complexity that of `share_solver::solve` for each layer; with one bucket it allocates only while sizes grow.
/// @throws std::bad_alloc
/// @determinism integer arithmetic alone.
[[nodiscard]] inline status optimal_shares(topology const& where, placement& in_out, load_history_view history,
                                           share_solver& solver, share_precision precision = share_precision::exact) {
  if (history.num_layers() != in_out.num_layers() || history.num_logical() != in_out.num_logical()) {
    return {errc::invalid_load,
            detail::concat("shares: loads are for ", history.num_layers(), " layers x ", history.num_logical(),
                           " experts, the placement for ", in_out.num_layers(), " x ", in_out.num_logical())};
  }
  bool const must_add = history.num_buckets() != 1;
  std::vector<load_t> sums(must_add ? static_cast<std::size_t>(history.num_logical()) : 0);
  for (index_t layer = 0; layer < in_out.num_layers(); ++layer) {
    if (must_add) { sum_buckets(history, layer, sums); }
    auto const loads = must_add ? std::span<load_t const>{sums} : history.layer(0, layer);
    if (auto result = optimal_shares(where, in_out, layer, loads, solver, precision); !result.ok()) { return result; }
  }
  return {};
}

BALLAST_END_NAMESPACE

#endif
