// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_DETAIL_BALANCED_LOWER_BOUNDS_HPP
#define BALLAST_POLICIES_DETAIL_BALANCED_LOWER_BOUNDS_HPP

#include <ballast/contract.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Bounds on the heaviest rank that hold for every choice of counts and every packing, at equal shares.
class lower_bounds {
public:
  /// Some rank has at least the mean. @complexity O(E)
  [[nodiscard]] static load_t mean(std::span<load_t const> loads, index_t num_ranks) noexcept {
    load_t total = 0;
    for (auto const load : loads) { total += load; }
    return total / num_ranks + (total % num_ranks != 0 ? 1 : 0);
  }

  /// Least possible load of the heaviest copy but `above`, over all ways to hand out `spares` copies beyond each
  /// expert's first. No counts leave fewer than `above` + 1 copies that are at least this heavy.
  ///
  /// An expert heavier than x either keeps copies above x, one at least, or is split into pieces of at most x, which
  /// takes a known number of spares. Those that take fewest go first.
  /// @complexity O(E log(loads)), no allocation when E is not larger than before.
  [[nodiscard]] load_t copy(std::span<load_t const> loads, index_t spares, index_t above) {
    load_t too_small = -1;
    load_t enough = 0;
    for (auto const load : loads) { enough = std::max(enough, load); }
    while (enough - too_small > 1) {
      auto const middle = too_small + (enough - too_small) / 2;
      (least_above(loads, spares, middle) <= above ? enough : too_small) = middle;
    }
    return enough;
  }

  /// The best of mean, copies and cardinality: among the j R + 1 heaviest copies, some rank holds j + 1 of them.
  /// @complexity O(S E log(loads))
  [[nodiscard]] load_t best(std::span<load_t const> loads, index_t num_ranks, index_t slots) {
    auto const num_experts = static_cast<index_t>(loads.size());
    auto const spares = num_ranks * slots - num_experts;
    load_t bound = mean(loads, num_ranks);
    for (index_t j = 0; j < slots && j * num_ranks < num_experts; ++j) {
      bound = std::max(bound, (j + 1) * copy(loads, spares, j * num_ranks));
    }
    return bound;
  }

private:
  /// Fewest copies heavier than x over all counts.
  [[nodiscard]] index_t least_above(std::span<load_t const> loads, index_t spares, load_t x) {
    splits_.clear();
    for (auto const load : loads) {
      if (load > x) { splits_.push_back(load / (x + 1)); }  // one less than the pieces of at most x, floors included
    }
    auto left = static_cast<index_t>(splits_.size());
    // Mostly all can be split, or not even the cheapest: sorting is the exception.
    load_t all = 0;
    for (auto const split : splits_) { all += split; }
    if (all <= spares) { return 0; }
    std::sort(splits_.begin(), splits_.end());
    for (auto const split : splits_) {
      if (split > spares) { break; }
      spares -= static_cast<index_t>(split);
      --left;
    }
    return left;
  }

  std::vector<load_t> splits_;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
