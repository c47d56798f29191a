// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_DETAIL_BALANCED_SWAP_SEARCH_HPP
#define BALLAST_POLICIES_DETAIL_BALANCED_SWAP_SEARCH_HPP

#include <ballast/contract.hpp>
#include <ballast/placement/rank_cost.hpp>
#include <ballast/policies/detail/balanced/packing.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Largest load up to `most` that keeps a rank at or below a cost; -1 when even no load is dearer.
template <rank_cost Cost>
[[nodiscard]] load_t load_within(Cost const& cost, index_t rank, load_t limit, load_t most) noexcept {
  if constexpr (cost_is_load<Cost>) {
    return std::min(limit, most);
  } else {
    load_t below = -1;
    load_t above = most + 1;
    while (above - below > 1) {
      auto const middle = below + (above - below) / 2;
      (cost(rank, middle) <= limit ? below : above) = middle;
    }
    return below;
  }
}

/// Exchanges copies of the dearest rank for lighter ones elsewhere, again and again.
///
/// Each exchange lowers the dearest rank and lifts no other up to it, so the dearest cost never rises. One copy for
/// one is sought first among the cheapest ranks, which have most room, then among the copies whose load differs by
/// just what the dearest rank has too much, found by bisection. Two copies for two are the last resort.
///
/// @threads distinct searches are independent; no allocation once R has been seen.
class swap_search {
public:
  /// Where to stop.
  struct limits {
    load_t good = 0;        ///< costs down to here are worth exchanging two copies for two
    load_t best = 0;        ///< costs down to here are worth exchanging single copies; at most `good`
    std::int64_t work = 0;  ///< pairs that may be looked at
  };

  /// Exchange until the dearest rank is within the limits, no exchange helps, or the work is used up.
  /// @return cost of the dearest rank.
  template <rank_cost Cost>
  load_t run(packing& in, Cost const& cost, limits& limit) {
    sort_ranks(in, cost);
    for (;;) {
      auto const hot = order_.back();
      if (hot.cost <= limit.best || limit.work <= 0) { return hot.cost; }
      auto const found = find(in, cost, hot, limit);
      if (found.count == 0) { return hot.cost; }
      auto const partner = in.rank(found.theirs[0]);
      priced_rank const old_partner{cost(partner, in.rank_load(partner)), partner};
      for (std::size_t i = 0; i < found.count; ++i) { in.swap(found.mine[i], found.theirs[i]); }
      resort(old_partner, cost(partner, in.rank_load(partner)));
      resort(hot, cost(hot.rank, in.rank_load(hot.rank)));
    }
  }

private:
  struct priced_rank {
    load_t cost = 0;
    index_t rank = 0;
  };
  /// An exchange between the dearest rank and another.
  struct exchange {
    load_t cost = 0;        ///< the dearer of the two ranks afterwards
    std::size_t count = 0;  ///< copies that change place each way; 0: none found
    std::array<index_t, 2> mine{};
    std::array<index_t, 2> theirs{};
  };
  static constexpr std::size_t num_cheap_partners = 8;
  static constexpr index_t few_slots = 5;  ///< up to here two for two is cheap to try and single copies differ by much

  [[nodiscard]] static bool cheaper(priced_rank const& a, priced_rank const& b) noexcept {
    return a.cost != b.cost ? a.cost < b.cost : a.rank < b.rank;
  }
  template <rank_cost Cost>
  void sort_ranks(packing const& in, Cost const& cost) {
    order_.clear();
    for (index_t rank = 0; rank < in.num_ranks(); ++rank) { order_.push_back({cost(rank, in.rank_load(rank)), rank}); }
    std::sort(order_.begin(), order_.end(), cheaper);
  }
  /// Put a rank back in order after its cost has changed.
  void resort(priced_rank old, load_t cost) noexcept {
    priced_rank const now{cost, old.rank};
    auto const from = std::lower_bound(order_.begin(), order_.end(), old, cheaper);
    if (cheaper(now, old)) {
      auto const to = std::lower_bound(order_.begin(), from, now, cheaper);
      std::copy_backward(to, from, from + 1);
      *to = now;
    } else {
      auto const to = std::lower_bound(from + 1, order_.end(), now, cheaper);
      std::copy(from + 1, to, from);
      *(to - 1) = now;
    }
  }

  template <rank_cost Cost>
  [[nodiscard]] exchange find(packing const& in, Cost const& cost, priced_rank hot, limits& limit) const {
    // Looking for the best exchange costs more than a next one that removes what is left.
    auto const goal = limit.best + (hot.cost - limit.best) / 4;
    exchange best{hot.cost};
    find_single_among_cheapest(in, cost, hot, goal, limit.work, best);
    if (best.cost <= goal) { return best; }
    if (in.slots_per_rank() <= few_slots) {
      find_double(in, cost, hot, goal, num_cheap_partners, limit.work, best);
      if (best.cost <= goal) { return best; }
    }
    find_single_by_load(in, cost, hot, limit.best, goal, limit.work, best);
    if (best.count == 0 && hot.cost > limit.good) {
      find_double(in, cost, hot, std::max(goal, limit.good), order_.size(), limit.work, best);
    }
    return best;
  }

  template <rank_cost Cost>
  void find_single_among_cheapest(packing const& in, Cost const& cost, priced_rank hot, load_t goal, std::int64_t& work,
                                  exchange& best) const {
    for (std::size_t i = 0; i < std::min(num_cheap_partners, order_.size() - 1); ++i) {
      if (order_[i].cost >= best.cost || best.cost <= goal || work <= 0) { return; }
      auto const theirs = in.copies_on(order_[i].rank);
      work -= static_cast<std::int64_t>(theirs.size() * theirs.size());
      for (auto const mine : in.copies_on(hot.rank)) {
        for (auto const other : theirs) { consider(in, cost, hot.rank, mine, other, best); }
      }
    }
  }

  template <rank_cost Cost>
  void find_single_by_load(packing const& in, Cost const& cost, priced_rank hot, load_t target, load_t goal,
                           std::int64_t& work, exchange& best) const {
    auto const hot_load = in.rank_load(hot.rank);
    auto const excess = std::max<load_t>(hot_load - load_within(cost, hot.rank, target, hot_load), 1);
    auto const least = order_.front().cost;
    for (auto const mine : in.copies_on(hot.rank)) {
      auto const middle = in.first_at_most(in.load(mine) - excess, mine + 1);
      // Lighter and lighter: the hot rank is cured, the partner takes more and more.
      for (index_t theirs = middle; theirs < in.num_copies(); ++theirs) {
        auto const difference = in.load(mine) - in.load(theirs);
        if (cost_is_load<Cost> && least + difference >= best.cost) { break; }
        consider(in, cost, hot.rank, mine, theirs, best);
        if (--work <= 0 || best.cost <= goal) { return; }
      }
      // Heavier and heavier: the hot rank loses less than it should.
      for (index_t theirs = middle - 1; theirs > mine; --theirs) {
        auto const difference = in.load(mine) - in.load(theirs);
        if (difference == 0 || cost(hot.rank, hot_load - difference) >= best.cost) { break; }
        consider(in, cost, hot.rank, mine, theirs, best);
        if (--work <= 0) { return; }
      }
    }
  }

  template <rank_cost Cost>
  void consider(packing const& in, Cost const& cost, index_t hot, index_t mine, index_t theirs,
                exchange& best) const noexcept {
    auto const partner = in.rank(theirs);
    auto const difference = in.load(mine) - in.load(theirs);
    if (difference <= 0 || partner == hot) { return; }
    auto const after =
        std::max(cost(hot, in.rank_load(hot) - difference), cost(partner, in.rank_load(partner) + difference));
    if (after >= best.cost || in.would_double(mine, partner) || in.would_double(theirs, hot)) { return; }
    best = {after, 1, {mine, -1}, {theirs, -1}};
  }

  template <rank_cost Cost>
  void find_double(packing const& in, Cost const& cost, priced_rank hot, load_t goal, std::size_t num_partners,
                   std::int64_t& work, exchange& best) const {
    auto const mine = in.copies_on(hot.rank);
    auto const pairs = static_cast<std::int64_t>(mine.size() * (mine.size() - 1) / 2);
    for (std::size_t i = 0; i < std::min(num_partners, order_.size() - 1); ++i) {
      auto const partner = order_[i];
      if (partner.cost >= best.cost || best.cost <= goal || work <= 0) { return; }
      work -= pairs * pairs;
      for (std::size_t a = 1; a < mine.size(); ++a) {
        for (std::size_t b = 0; b < a; ++b) {
          consider_double(in, cost, hot.rank, {mine[a], mine[b]}, partner.rank, in.copies_on(partner.rank), best);
        }
      }
    }
  }

  template <rank_cost Cost>
  void consider_double(packing const& in, Cost const& cost, index_t hot, std::array<index_t, 2> mine, index_t partner,
                       std::span<index_t const> theirs, exchange& best) const noexcept {
    auto const given = in.load(mine[0]) + in.load(mine[1]);
    for (std::size_t c = 1; c < theirs.size(); ++c) {
      auto const rest = given - in.load(theirs[c]);
      for (std::size_t d = 0; d < c; ++d) {
        auto const difference = rest - in.load(theirs[d]);
        if (difference <= 0) { continue; }
        auto const after =
            std::max(cost(hot, in.rank_load(hot) - difference), cost(partner, in.rank_load(partner) + difference));
        if (after >= best.cost || in.would_double(mine[0], partner) || in.would_double(mine[1], partner) ||
            in.would_double(theirs[c], hot) || in.would_double(theirs[d], hot)) {
          continue;
        }
        best = {after, 2, mine, {theirs[c], theirs[d]}};
      }
    }
  }

  std::vector<priced_rank> order_;  // [R] cheapest first
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
