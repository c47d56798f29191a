// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_DETAIL_BALANCED_REGION_PLANNER_HPP
#define BALLAST_POLICIES_DETAIL_BALANCED_REGION_PLANNER_HPP

#include <ballast/contract.hpp>
#include <ballast/placement/rank_cost.hpp>
#include <ballast/policies/detail/balanced/exhaustive.hpp>
#include <ballast/policies/detail/balanced/lower_bounds.hpp>
#include <ballast/policies/detail/balanced/packing.hpp>
#include <ballast/policies/detail/balanced/rematch.hpp>
#include <ballast/policies/detail/balanced/replica_counts.hpp>
#include <ballast/policies/detail/balanced/swap_search.hpp>
#include <ballast/policies/detail/balanced/two_slots.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Chooses counts and packing of one layer's experts on some ranks, every expert on any of them.
///
/// Greedy counts and largest-first packing are the start. Copies are then dealt out again level by level and exchanged
/// until the dearest rank is close to the bound. Where it is not, counts are changed one copy at a time. Ranks of two
/// slots have a solver of their own.
class region_planner {
public:
  struct effort {
    index_t tolerance_ppm = 0;  ///< close enough to the bound, in 1 / 1000000
    std::int64_t work = 0;      ///< pairs, copies and options that may be looked at
  };

  /// @param loads      [E] load units, E > slots.
  /// @param num_ranks  ranks of equally many slots, E <= num_ranks * slots.
  /// @return cost of the dearest rank; the plan is in `packed()`.
  template <rank_cost Cost>
  load_t plan(std::span<load_t const> loads, index_t num_ranks, index_t slots, Cost const& cost, effort limit) {
    loads_ = loads;
    work_ = limit.work;
    counts_.resize(loads.size());
    counter_.run(loads, num_ranks * slots, num_ranks, counts_);
    bound_ = lower_bounds::mean(loads, num_ranks);
    for (std::size_t e = 0; e < loads.size(); ++e) { bound_ = std::max(bound_, loads[e] / counts_[e]); }
    if constexpr (cost_is_load<Cost>) {
      auto const tolerance = bound_ / 1000000 * limit.tolerance_ppm;
      auto const above_bound = [this](load_t excess, load_t times) {
        constexpr auto most = std::numeric_limits<load_t>::max();
        return excess > (most - bound_) / times ? most : bound_ + excess * times;
      };
      good_ = above_bound(tolerance, 1);
      best_ = above_bound(tolerance / 8, 1);
      fair_ = above_bound(tolerance, 5);
      if (slots == 2) { choose_counts_of_two(num_ranks); }
    } else {
      good_ = best_ = fair_ = 0;
    }
    auto result = pack(packing_, num_ranks, slots, cost);
    if constexpr (cost_is_load<Cost>) {
      if (num_ranks * slots <= max_exact_slots && result > bound_) { result = search_all(result, num_ranks, slots); }
    }
    if (slots > 2 && result > std::max(bound_, fair_)) { result = change_counts(result, num_ranks, slots, cost); }
    return result;
  }

  [[nodiscard]] packing const& packed() const noexcept { return packing_; }
  /// No plan has a heaviest rank below this. Meaningful where cost is load.
  [[nodiscard]] load_t bound() const noexcept { return bound_; }

private:
  static constexpr std::size_t max_takers = 4;
  static constexpr std::size_t max_givers = 8;
  static constexpr std::size_t max_restarted = 3;
  static constexpr index_t max_exact_slots = 24;  ///< layers of so few slots are searched through
  static constexpr std::int64_t max_nodes = 100000;
  static constexpr std::int64_t work_per_node = 20;

  void choose_counts_of_two(index_t num_ranks) {
    auto const outcome = two_slots_.run(loads_, num_ranks, counts_, bound_, good_, work_);
    bound_ = std::max(bound_, outcome.bound);
  }

  /// Small enough to try everything.
  load_t search_all(load_t result, index_t num_ranks, index_t slots) {
    auto nodes = std::min(work_ / work_per_node, max_nodes);
    auto const before = nodes;
    if (exhaustive_.run(loads_, num_ranks, slots, result, nodes)) {
      exhaustive_.rebuild(packing_, slots);
      for (std::size_t e = 0; e < counts_.size(); ++e) { counts_[e] = packing_.count(static_cast<index_t>(e)); }
    }
    work_ -= (before - nodes) * work_per_node;
    if (nodes > 0) { bound_ = result; }
    return result;
  }

  template <rank_cost Cost>
  load_t pack(packing& into, index_t num_ranks, index_t slots, Cost const& cost) {
    into.open(loads_, counts_, num_ranks, slots);
    largest_first_.run(into, cost);
    if constexpr (cost_is_load<Cost>) { rematcher_.run(into, good_, work_); }
    swap_search::limits limits{good_, best_, work_};
    auto const result = search_.run(into, cost, limits);
    work_ = limits.work;
    return result;
  }

  /// Other counts: a copy more for an expert of the dearest rank and one less for another; then any number of copies
  /// for one of the heaviest experts and greedy counts for all others; as long as that helps.
  template <rank_cost Cost>
  load_t change_counts(load_t now, index_t num_ranks, index_t slots, Cost const& cost) {
    while (now > fair_ && work_ > 0) {
      auto better = try_transfers(now, num_ranks, slots, cost);
      if (better == now) { better = try_restarts(now, num_ranks, slots, cost); }
      if (better == now) { break; }
      now = better;
    }
    return now;
  }

  template <rank_cost Cost>
  load_t try_restarts(load_t now, index_t num_ranks, index_t slots, Cost const& cost) {
    list_heaviest();
    kept_counts_ = counts_;
    auto const spares = num_ranks * slots - static_cast<index_t>(loads_.size());
    for (auto const expert : heaviest_) {
      auto const most = std::min(num_ranks, spares + 1);
      for (index_t copies = 1; copies <= most && work_ > 0; ++copies) {
        if (loads_[expert] / copies >= now || copies == kept_counts_[expert]) { continue; }
        if (!count_around(expert, copies, num_ranks, slots)) { continue; }
        auto const result = pack(trial_, num_ranks, slots, cost);
        if (result < now - now / 100000) {
          std::swap(packing_, trial_);
          return result;
        }
      }
    }
    counts_ = kept_counts_;
    return now;
  }
  void list_heaviest() {
    heaviest_.resize(loads_.size());
    std::iota(heaviest_.begin(), heaviest_.end(), std::size_t{0});
    auto const count = std::min(heaviest_.size(), max_restarted);
    std::partial_sort(
        heaviest_.begin(), heaviest_.begin() + static_cast<std::ptrdiff_t>(count), heaviest_.end(),
        [this](std::size_t a, std::size_t b) { return loads_[a] != loads_[b] ? loads_[a] > loads_[b] : a < b; });
    heaviest_.resize(count);
  }
  /// Greedy counts with one expert's given. False when the others cannot fill the slots.
  [[nodiscard]] bool count_around(std::size_t expert, index_t copies, index_t num_ranks, index_t slots) {
    auto const others = static_cast<index_t>(loads_.size()) - 1;
    if (static_cast<load_t>(others) * num_ranks < static_cast<load_t>(num_ranks) * slots - copies) { return false; }
    other_loads_.assign(loads_.begin(), loads_.end());
    other_loads_.erase(other_loads_.begin() + static_cast<std::ptrdiff_t>(expert));
    counts_.resize(other_loads_.size());
    counter_.run(other_loads_, num_ranks * slots - copies, num_ranks, counts_);
    counts_.insert(counts_.begin() + static_cast<std::ptrdiff_t>(expert), copies);
    return true;
  }

  template <rank_cost Cost>
  load_t try_transfers(load_t now, index_t num_ranks, index_t slots, Cost const& cost) {
    list_takers(num_ranks, cost);
    list_givers(now);
    for (auto const taker : takers_) {
      for (auto const giver : givers_) {
        if (taker == giver || work_ <= 0) { continue; }
        ++counts_[taker];
        --counts_[giver];
        auto const result = pack(trial_, num_ranks, slots, cost);
        if (result < now - now / 100000) {
          std::swap(packing_, trial_);
          return result;
        }
        --counts_[taker];
        ++counts_[giver];
      }
    }
    return now;
  }
  /// Experts of the dearest rank that may get a copy more, heaviest copy first.
  template <rank_cost Cost>
  void list_takers(index_t num_ranks, Cost const& cost) {
    index_t hot = 0;
    for (index_t rank = 1; rank < num_ranks; ++rank) {
      if (cost(rank, packing_.rank_load(rank)) > cost(hot, packing_.rank_load(hot))) { hot = rank; }
    }
    copies_.assign(packing_.copies_on(hot).begin(), packing_.copies_on(hot).end());
    std::sort(copies_.begin(), copies_.end());
    takers_.clear();
    for (auto const copy : copies_) {
      auto const expert = packing_.expert(copy);
      if (packing_.count(expert) < num_ranks && takers_.size() < max_takers) {
        takers_.push_back(static_cast<std::size_t>(expert));
      }
    }
  }
  /// Experts that can do with a copy less, lightest copies afterwards first.
  void list_givers(load_t now) {
    givers_.clear();
    for (std::size_t e = 0; e < loads_.size(); ++e) {
      if (counts_[e] > 1 && loads_[e] / (counts_[e] - 1) < now) { givers_.push_back(e); }
    }
    auto const after = [this](std::size_t e) { return loads_[e] / (counts_[e] - 1); };
    std::sort(givers_.begin(), givers_.end(),
              [&after](std::size_t a, std::size_t b) { return after(a) != after(b) ? after(a) < after(b) : a < b; });
    givers_.resize(std::min(givers_.size(), max_givers));
  }

  std::span<load_t const> loads_;
  std::int64_t work_ = 0;
  load_t bound_ = 0;
  load_t good_ = 0;
  load_t best_ = 0;  ///< costs worth cheap steps only
  load_t fair_ = 0;  ///< costs above are worth trying other counts
  std::vector<index_t> counts_;
  std::vector<index_t> copies_;
  std::vector<std::size_t> takers_;
  std::vector<std::size_t> givers_;
  std::vector<std::size_t> heaviest_;
  std::vector<load_t> other_loads_;
  std::vector<index_t> kept_counts_;
  packing packing_;
  packing trial_;
  replica_counter counter_;
  largest_first largest_first_;
  rematcher rematcher_;
  swap_search search_;
  two_slot_counter two_slots_;
  exhaustive_search exhaustive_;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
