// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POSIX_DETAIL_REGION_SETS_HPP
#define BALLAST_POSIX_DETAIL_REGION_SETS_HPP

#include <ballast/posix/detail/peer_map.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace posix::detail {

/// A region that some rank has exposed: its address there, and here if it is mapped.
struct peer_region {
  std::uint64_t address = 0;
  std::uint64_t size = 0;
  peer_map map;
};

/// The sets of regions that the ranks have exposed, found by the numbers of their regions. Numbers are never used
/// again.
class region_sets {
public:
  /// First number that no set has had.
  [[nodiscard]] std::uint32_t next() const noexcept { return next_; }

  /// Add a set of `count` regions. @param regions  `[R, count]`  @pre `first >= next()`
  void add(std::uint32_t first, std::uint32_t count, std::vector<peer_region>&& regions) {
    next_ = first + count;
    if (count > 0) { sets_.push_back({first, count, false, std::move(regions)}); }
  }
  /// Forget the set that begins with that number at the next `sweep`: an open batch may still read from it.
  void retire(std::uint32_t first) noexcept {
    for (auto& set : sets_) { set.retired = set.retired || set.first == first; }
  }
  void sweep() noexcept {
    sets_.erase(std::remove_if(sets_.begin(), sets_.end(), [](region_set const& set) { return set.retired; }),
                sets_.end());
  }

  /// Region of that number as `rank` has exposed it, or null. @complexity O(log(sets))
  [[nodiscard]] peer_region const* find(index_t rank, std::uint32_t region) const noexcept {
    auto const* const set = set_of(region);
    return set == nullptr ? nullptr
                          : &set->regions[static_cast<std::size_t>(rank) * set->count + (region - set->first)];
  }
  /// Whether that number is in a set that nobody has asked to forget.
  [[nodiscard]] bool is_current(std::uint32_t region) const noexcept {
    auto const* const set = set_of(region);
    return set != nullptr && !set->retired;
  }

private:
  struct region_set {
    std::uint32_t first = 0;
    std::uint32_t count = 0;
    bool retired = false;
    std::vector<peer_region> regions;  // [R, count]
  };

  [[nodiscard]] region_set const* set_of(std::uint32_t region) const noexcept {
    auto const after = std::upper_bound(sets_.begin(), sets_.end(), region,
                                        [](std::uint32_t number, region_set const& set) { return number < set.first; });
    return after == sets_.begin() || region - (after - 1)->first >= (after - 1)->count ? nullptr : &*(after - 1);
  }

  std::vector<region_set> sets_;  // by their numbers
  std::uint32_t next_ = 0;
};

}  // namespace posix::detail
BALLAST_END_NAMESPACE

#endif
