// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_DETAIL_BALANCED_REMATCH_HPP
#define BALLAST_POLICIES_DETAIL_BALANCED_REMATCH_HPP

#include <ballast/policies/detail/balanced/packing.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Deals the copies in every rank's i-th place out again, for one i after another: the heaviest to the rank that is
/// lightest without it. No other way to deal these R copies has a lighter heaviest rank, so the maximum never rises.
/// A pass weighs R! neighbours for the price of a sort, which is what brings many ranks of few slots close together.
class rematcher {
public:
  /// @param target  stop once no rank is above it.
  /// @param work    in/out: copies that may still be dealt.
  /// @complexity O(R log R) a pass; no allocation when P is not larger than before.
  void run(packing& in, load_t target, std::int64_t& work) {
    auto const places = in.slots_per_rank();
    sort_places(in);
    doubled_.clear();
    load_t heaviest = max_load(in);
    // The last place is as largest-first packing left it: already dealt best.
    for (index_t idle = 1, place = places - 1; idle < places && heaviest > target && work > 0;) {
      place = (place + 1) % places;
      deal(in, place);
      work -= in.num_ranks();
      auto const now = max_load(in);
      idle = now < heaviest - heaviest / improvement ? 1 : idle + 1;
      heaviest = std::min(heaviest, now);
    }
    for (auto const copy : doubled_) { separate_doubled(in, copy); }
  }

private:
  static constexpr load_t improvement = 100000;  ///< a pass that lowers the maximum by less counts as idle
  struct open_rank {
    load_t load = 0;
    index_t rank = 0;
  };

  [[nodiscard]] static load_t max_load(packing const& in) noexcept {
    auto const loads = in.rank_loads();
    return *std::max_element(loads.begin(), loads.end());
  }
  /// Which copies lie in a place never changes, so they are sorted once.
  void sort_places(packing const& in) {
    copies_.resize(static_cast<std::size_t>(in.num_copies()));
    next_.assign(static_cast<std::size_t>(in.slots_per_rank()), 0);
    for (index_t copy = 0; copy < in.num_copies(); ++copy) {
      auto const place = in.place_of(copy);
      auto& next = next_[static_cast<std::size_t>(place)];
      copies_[static_cast<std::size_t>(place * in.num_ranks() + next)] = copy;
      ++next;
    }
  }

  void deal(packing& in, index_t place) {
    ranks_.clear();
    for (index_t rank = 0; rank < in.num_ranks(); ++rank) {
      ranks_.push_back({in.rank_load(rank) - in.load(in.copy_at(rank, place)), rank});
    }
    std::sort(ranks_.begin(), ranks_.end(), [](open_rank const& a, open_rank const& b) {
      return a.load != b.load ? a.load < b.load : a.rank < b.rank;
    });
    auto const first = copies_.begin() + static_cast<std::ptrdiff_t>(place) * in.num_ranks();
    dealt_.assign(first, first + in.num_ranks());
    for (std::size_t i = 0; i < ranks_.size(); ++i) {
      auto const rank = ranks_[i].rank;
      auto const fits = [&in, &rank, &place](index_t copy) { return !doubles(in, copy, rank, place); };
      auto const from = dealt_.begin() + static_cast<std::ptrdiff_t>(i);
      auto const found = std::find_if(from, dealt_.end(), fits);
      if (found != dealt_.end()) {
        std::rotate(from, found, found + 1);
      } else {
        doubled_.push_back(*from);
      }
      in.put_at(rank, place, *from);
    }
  }
  /// Whether a rank holds the copy's expert in another place.
  [[nodiscard]] static bool doubles(packing const& in, index_t copy, index_t rank, index_t place) noexcept {
    auto const expert = in.expert(copy);
    if (in.count(expert) == 1) { return false; }
    for (index_t other = 0; other < in.slots_per_rank(); ++other) {
      if (other != place && in.expert(in.copy_at(rank, other)) == expert) { return true; }
    }
    return false;
  }

  std::vector<index_t> copies_;   // [S, R] copies by place, heaviest first
  std::vector<index_t> next_;     // [S] scratch
  std::vector<open_rank> ranks_;  // [R] scratch
  std::vector<index_t> dealt_;    // [R] scratch
  std::vector<index_t> doubled_;  // copies that found no rank without their expert
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
