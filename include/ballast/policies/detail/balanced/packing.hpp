// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_DETAIL_BALANCED_PACKING_HPP
#define BALLAST_POLICIES_DETAIL_BALANCED_PACKING_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/index.hpp>
#include <ballast/placement/rank_cost.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <limits>
#include <span>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Copies of one layer's experts on ranks of equally many slots, for searches that exchange copies.
///
/// Copies are numbered by descending load (ties: by expert), so that a search finds "a copy that is lighter by x" by
/// bisection; swaps change a copy's rank, never its number. Ranks are numbered 0 to R - 1 here; whoever owns the
/// packing knows which GPUs they are.
class packing {
public:
  /// Take counts over and number the copies; they are on no rank yet.
  ///
  /// @param loads      [E] load units of each expert.
  /// @param counts     [E] copies of each, >= 1, summing to num_ranks * slots.
  /// @complexity O(E log E + P); no allocation when the sizes are not larger than before.
  void open(std::span<load_t const> loads, std::span<index_t const> counts, index_t num_ranks, index_t slots) {
    num_ranks_ = num_ranks;
    slots_ = slots;
    counts_.assign(counts.begin(), counts.end());
    order_.resize(loads.size());
    for (std::size_t e = 0; e < loads.size(); ++e) { order_[e] = {loads[e] / counts[e], static_cast<index_t>(e)}; }
    std::sort(order_.begin(), order_.end(), [](sort_key const& a, sort_key const& b) {
      return a.load != b.load ? a.load > b.load : a.expert < b.expert;
    });
    auto const num_copies = static_cast<std::size_t>(num_ranks) * static_cast<std::size_t>(slots);
    load_.clear();
    expert_.clear();
    load_.reserve(num_copies);
    expert_.reserve(num_copies);
    for (auto const& key : order_) {
      auto const copies = static_cast<std::size_t>(counts[static_cast<std::size_t>(key.expert)]);
      load_.insert(load_.end(), copies, key.load);
      expert_.insert(expert_.end(), copies, key.expert);
    }
    BALLAST_ASSERT(load_.size() == num_copies, "packing: counts do not fill the ranks");
    rank_.assign(num_copies, -1);
    position_.resize(num_copies);
    held_.resize(num_copies);
    size_.assign(static_cast<std::size_t>(num_ranks), 0);
    rank_load_.assign(static_cast<std::size_t>(num_ranks), 0);
  }

  [[nodiscard]] index_t num_ranks() const noexcept { return num_ranks_; }
  [[nodiscard]] index_t slots_per_rank() const noexcept { return slots_; }
  [[nodiscard]] index_t num_copies() const noexcept { return static_cast<index_t>(load_.size()); }
  /// Loads of the copies, descending.
  [[nodiscard]] std::span<load_t const> loads() const noexcept { return load_; }
  [[nodiscard]] load_t load(index_t copy) const noexcept { return at(load_, copy); }
  [[nodiscard]] index_t expert(index_t copy) const noexcept { return at(expert_, copy); }
  [[nodiscard]] index_t rank(index_t copy) const noexcept { return at(rank_, copy); }
  [[nodiscard]] index_t count(index_t expert) const noexcept { return at(counts_, expert); }
  [[nodiscard]] load_t rank_load(index_t rank) const noexcept { return at(rank_load_, rank); }
  [[nodiscard]] std::span<load_t const> rank_loads() const noexcept { return rank_load_; }
  [[nodiscard]] bool is_full(index_t rank) const noexcept { return at(size_, rank) == slots_; }
  /// Copies on a rank, in no particular order.
  [[nodiscard]] std::span<index_t const> copies_on(index_t rank) const noexcept {
    return {held_.data() + offset(rank), static_cast<std::size_t>(at(size_, rank))};
  }
  /// Whether a rank holds a copy of an expert. @complexity O(S)
  [[nodiscard]] bool holds(index_t rank, index_t expert) const noexcept {
    auto const copies = copies_on(rank);
    return std::any_of(copies.begin(), copies.end(),
                       [this, &expert](index_t copy) { return at(expert_, copy) == expert; });
  }
  /// Copies of an expert on a rank. @complexity O(S)
  [[nodiscard]] index_t copies_of_on(index_t expert, index_t rank) const noexcept {
    auto const copies = copies_on(rank);
    return static_cast<index_t>(std::count_if(copies.begin(), copies.end(),
                                              [this, &expert](index_t copy) { return at(expert_, copy) == expert; }));
  }
  /// Whether moving this copy to `rank` would put a second copy of its expert there. Cheap for single experts.
  [[nodiscard]] bool would_double(index_t copy, index_t rank) const noexcept {
    auto const expert = at(expert_, copy);
    return at(counts_, expert) > 1 && holds(rank, expert);
  }

  /// Put a copy that is on no rank yet onto a rank. @pre the rank is not full
  void place(index_t copy, index_t rank) noexcept {
    auto& size = at(size_, rank);
    at(held_, rank * slots_ + size) = copy;
    at(position_, copy) = rank * slots_ + size;
    at(rank_, copy) = rank;
    at(rank_load_, rank) += at(load_, copy);
    ++size;
  }
  /// Exchange two copies on different ranks.
  void swap(index_t a, index_t b) noexcept {
    auto const difference = at(load_, a) - at(load_, b);
    at(rank_load_, at(rank_, a)) -= difference;
    at(rank_load_, at(rank_, b)) += difference;
    std::swap(at(rank_, a), at(rank_, b));
    std::swap(at(position_, a), at(position_, b));
    at(held_, at(position_, a)) = a;
    at(held_, at(position_, b)) = b;
  }
  /// Copy in a rank's i-th place. Places keep their number when copies are exchanged.
  [[nodiscard]] index_t copy_at(index_t rank, index_t place) const noexcept { return at(held_, rank * slots_ + place); }
  /// Place of a copy on its rank, in [0, S).
  [[nodiscard]] index_t place_of(index_t copy) const noexcept { return at(position_, copy) - at(rank_, copy) * slots_; }
  /// Put a copy into a place whose copy is being moved elsewhere. Whoever deals a set of places out again puts each of
  /// their copies back once.
  void put_at(index_t rank, index_t place, index_t copy) noexcept {
    auto& held = at(held_, rank * slots_ + place);
    at(rank_load_, rank) += at(load_, copy) - at(load_, held);
    held = copy;
    at(position_, copy) = rank * slots_ + place;
    at(rank_, copy) = rank;
  }
  /// First copy from `from` on that is no heavier than `load`; P when none is.
  [[nodiscard]] index_t first_at_most(load_t load, index_t from) const noexcept {
    auto const begin = load_.begin() + from;
    auto const found = std::partition_point(begin, load_.end(), [load](load_t x) { return x > load; });
    return static_cast<index_t>(found - load_.begin());
  }

private:
  struct sort_key {
    load_t load = 0;
    index_t expert = 0;
  };
  [[nodiscard]] std::size_t offset(index_t rank) const noexcept {
    return static_cast<std::size_t>(rank) * static_cast<std::size_t>(slots_);
  }

  index_t num_ranks_ = 0;
  index_t slots_ = 0;
  std::vector<sort_key> order_;    // [E] scratch
  std::vector<index_t> counts_;    // [E]
  std::vector<load_t> load_;       // [P] of each copy, descending
  std::vector<index_t> expert_;    // [P] of each copy
  std::vector<index_t> rank_;      // [P] of each copy
  std::vector<index_t> position_;  // [P] of each copy in `held_`
  std::vector<index_t> held_;      // [R * S] copies by rank
  std::vector<index_t> size_;      // [R]
  std::vector<load_t> rank_load_;  // [R]
};

/// Exchange a copy that shares its rank with another of its expert for the copy nearest in load that may lie in its
/// place, on a rank without its expert.
///
/// There is one: a rank without the expert has S copies, and this rank holds at most S - 2 experts besides it, so
/// some copy there is of an expert that this rank lacks or that is doubled there as well.
inline void separate_doubled(packing& in, index_t doubled) noexcept {
  auto const rank = in.rank(doubled);
  auto const expert = in.expert(doubled);
  if (in.copies_of_on(expert, rank) < 2) { return; }
  index_t best = -1;
  load_t best_distance = std::numeric_limits<load_t>::max();
  for (index_t other = 0; other < in.num_copies(); ++other) {
    auto const there = in.rank(other);
    if (there == rank || in.holds(there, expert)) { continue; }
    bool const helps = in.copies_of_on(in.expert(other), rank) == 0 || in.copies_of_on(in.expert(other), there) > 1;
    auto const distance = std::max(in.load(other) - in.load(doubled), in.load(doubled) - in.load(other));
    if (helps && distance < best_distance) {
      best = other;
      best_distance = distance;
    }
  }
  if (best < 0) { return; }
  in.swap(doubled, best);
  separate_doubled(in, best);
}

/// Packs largest first: every copy, heaviest first, goes to the rank that is cheapest with it, has room and holds no
/// copy of its expert; ties to the lowest rank. Copies that find no such rank are exchanged to one afterwards, so no
/// rank holds two copies of an expert that has at most R.
class largest_first {
public:
  /// @pre the packing is open and empty; counts are at most R
  /// @complexity O(P log R) where cost is load, O(P R) otherwise; no allocation when R is not larger than before.
  template <rank_cost Cost>
  void run(packing& into, Cost const& cost) {
    if constexpr (cost_is_load<Cost>) {
      fill_by_load(into);
    } else {
      fill_by_cost(into, cost);
    }
    for (auto const copy : doubled_) { separate_doubled(into, copy); }
  }

private:
  struct open_rank {
    load_t load = 0;
    index_t rank = 0;
  };
  [[nodiscard]] static bool fuller(open_rank const& a, open_rank const& b) noexcept {
    return a.load != b.load ? a.load > b.load : a.rank > b.rank;
  }

  /// The copies of one expert follow each other, so they take that many different ranks off the heap at once.
  void fill_by_load(packing& into) {
    doubled_.clear();
    heap_.clear();
    for (index_t rank = 0; rank < into.num_ranks(); ++rank) { heap_.push_back({0, rank}); }
    for (index_t copy = 0; copy < into.num_copies();) {
      auto const last = copy + into.count(into.expert(copy));
      taken_.clear();
      for (; copy < last && !heap_.empty(); ++copy) {
        std::pop_heap(heap_.begin(), heap_.end(), fuller);
        taken_.push_back(heap_.back().rank);
        heap_.pop_back();
        into.place(copy, taken_.back());
      }
      for (auto const rank : taken_) { reopen(into, rank); }
      for (; copy < last; ++copy) {
        std::pop_heap(heap_.begin(), heap_.end(), fuller);
        auto const rank = heap_.back().rank;
        heap_.pop_back();
        into.place(copy, rank);
        doubled_.push_back(copy);
        reopen(into, rank);
      }
    }
  }
  void reopen(packing const& into, index_t rank) {
    if (into.is_full(rank)) { return; }
    heap_.push_back({into.rank_load(rank), rank});
    std::push_heap(heap_.begin(), heap_.end(), fuller);
  }

  template <rank_cost Cost>
  void fill_by_cost(packing& into, Cost const& cost) {
    doubled_.clear();
    for (index_t copy = 0; copy < into.num_copies(); ++copy) {
      index_t best = -1;
      index_t fallback = -1;
      load_t best_cost = std::numeric_limits<load_t>::max();
      for (index_t rank = 0; rank < into.num_ranks(); ++rank) {
        if (into.is_full(rank)) { continue; }
        if (fallback < 0) { fallback = rank; }
        auto const with = cost(rank, into.rank_load(rank) + into.load(copy));
        if (with < best_cost && !into.would_double(copy, rank)) {
          best = rank;
          best_cost = with;
        }
      }
      if (best < 0) { doubled_.push_back(copy); }
      into.place(copy, best >= 0 ? best : fallback);
    }
  }

  std::vector<open_rank> heap_;
  std::vector<index_t> taken_;
  std::vector<index_t> doubled_;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
