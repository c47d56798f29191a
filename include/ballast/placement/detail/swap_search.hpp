// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_PLACEMENT_DETAIL_SWAP_SEARCH_HPP
#define BALLAST_PLACEMENT_DETAIL_SWAP_SEARCH_HPP

#include <ballast/contract.hpp>
#include <ballast/placement/detail/packing.hpp>
#include <ballast/placement/rank_cost.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Largest load that keeps a rank at or below a cost; -1 when even no load is dearer.
template <rank_cost Cost>
[[nodiscard]] load_t load_within(Cost const& cost, index_t rank, load_t limit) noexcept {
  if constexpr (cost_is_load<Cost>) {
    return limit;
  } else {
    load_t below = -1;
    load_t above = load_t{1} << 62;
    while (above - below > 1) {
      auto const middle = below + (above - below) / 2;
      (cost(rank, middle) <= limit ? below : above) = middle;
    }
    return below;
  }
}

/// The dearest rank of a packing.
template <rank_cost Cost>
struct dearest_rank {
  index_t rank = 0;
  load_t cost = 0;
};
template <rank_cost Cost>
[[nodiscard]] dearest_rank<Cost> find_dearest(packing const& in, Cost const& cost) noexcept {
  dearest_rank<Cost> result{0, cost(0, in.rank_load(0))};
  for (index_t rank = 1; rank < in.num_ranks(); ++rank) {
    auto const here = cost(rank, in.rank_load(rank));
    if (here > result.cost) { result = {rank, here}; }
  }
  return result;
}

/// Exchanges one copy of the dearest rank for a lighter one elsewhere, again and again.
///
/// Each exchange lowers the dearest rank and lifts no other up to it. Candidates are met in order of how close the
/// difference in load comes to what the dearest rank has too much, found by bisection in the sorted copies, so an
/// exchange looks at a few dozen pairs and not at all of them.
template <rank_cost Cost>
class swap_search {
public:
  /// @param work  in/out: pairs that may still be looked at.
  swap_search(packing& in, Cost const& cost, std::int64_t& work) noexcept : in_{in}, cost_{cost}, work_{work} {}

  /// Exchange until no rank is above `target`, no exchange helps, or the work is used up.
  /// @return cost of the dearest rank.
  load_t descend(load_t target) noexcept {
    for (;;) {
      auto const hot = find_dearest(in_, cost_);
      if (hot.cost <= target || work_ <= 0) { return hot.cost; }
      auto const found = best_swap(hot.rank, hot.cost, target);
      if (found.mine < 0) { return hot.cost; }
      in_.swap(found.mine, found.theirs);
    }
  }

private:
  struct candidate {
    load_t cost = 0;  ///< dearer of the two ranks afterwards
    index_t mine = -1;
    index_t theirs = -1;
  };

  /// The exchange that leaves the dearer of the two ranks cheapest; any that brings both to `target` will do.
  [[nodiscard]] candidate best_swap(index_t hot, load_t hot_cost, load_t target) noexcept {
    candidate best{hot_cost, -1, -1};
    auto const excess = std::max<load_t>(in_.rank_load(hot) - load_within(cost_, hot, target), 1);
    auto const lightest = lightest_load();
    for (auto const mine : in_.copies_on(hot)) {
      auto const middle = in_.first_at_most(in_.load(mine) - excess, mine + 1);
      // Downwards: the hot rank is cured, the partner takes more and more.
      for (index_t theirs = middle; theirs < in_.num_copies(); ++theirs) {
        auto const difference = in_.load(mine) - in_.load(theirs);
        if (cost_is_load<Cost> && lightest + difference >= best.cost) { break; }
        if (--work_ <= 0) { return best; }
        consider(mine, theirs, hot, best);
        if (best.cost <= target) { return best; }
      }
      // Upwards: the hot rank loses less than it should.
      for (index_t theirs = middle - 1; theirs > mine; --theirs) {
        auto const difference = in_.load(mine) - in_.load(theirs);
        if (difference == 0 || cost_(hot, in_.rank_load(hot) - difference) >= best.cost) { break; }
        if (--work_ <= 0) { return best; }
        consider(mine, theirs, hot, best);
      }
    }
    return best;
  }

  void consider(index_t mine, index_t theirs, index_t hot, candidate& best) const noexcept {
    auto const partner = in_.rank(theirs);
    if (partner == hot) { return; }
    auto const difference = in_.load(mine) - in_.load(theirs);
    auto const after =
        std::max(cost_(hot, in_.rank_load(hot) - difference), cost_(partner, in_.rank_load(partner) + difference));
    if (after >= best.cost || in_.would_double(mine, partner) || in_.would_double(theirs, hot)) { return; }
    best = {after, mine, theirs};
  }

  [[nodiscard]] load_t lightest_load() const noexcept {
    auto const loads = in_.rank_loads();
    return *std::min_element(loads.begin(), loads.end());
  }

  packing& in_;
  Cost const& cost_;
  std::int64_t& work_;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
