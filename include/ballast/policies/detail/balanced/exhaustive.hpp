// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_DETAIL_BALANCED_EXHAUSTIVE_HPP
#define BALLAST_POLICIES_DETAIL_BALANCED_EXHAUSTIVE_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/wide_int.hpp>
#include <ballast/policies/detail/balanced/packing.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Finds the best counts and packing of a small layer by branch and bound.
///
/// Experts are taken heaviest first; each is given to every set of ranks with a free slot. Of ranks that carry the same
/// load and have the same room, only the first are tried. Branches end where the free slots cannot take what is left
/// without reaching the best answer.
class exhaustive_search {
public:
  /// @param loads  [E] load units.
  /// @param best   in/out: heaviest rank to beat; the optimum after a complete search.
  /// @param nodes  in/out: nodes of the tree that may still be visited; 0 or less when the search is incomplete.
  /// @return whether something better was found; then `rebuild` gives it.
  bool run(std::span<load_t const> loads, index_t num_ranks, index_t slots, load_t& best, std::int64_t& nodes) {
    loads_ = loads;
    num_ranks_ = num_ranks;
    best_ = best;
    nodes_ = nodes;
    found_ = false;
    order_.resize(loads.size());
    std::iota(order_.begin(), order_.end(), std::size_t{0});
    std::sort(order_.begin(), order_.end(),
              [&loads](std::size_t a, std::size_t b) { return loads[a] != loads[b] ? loads[a] > loads[b] : a < b; });
    left_.assign(loads.size() + 1, 0);
    for (auto i = loads.size(); i > 0; --i) { left_[i - 1] = left_[i] + loads[order_[i - 1]]; }
    load_.assign(static_cast<std::size_t>(num_ranks), 0);
    room_.assign(static_cast<std::size_t>(num_ranks), slots);
    chosen_.assign(loads.size() * static_cast<std::size_t>(num_ranks), 0);
    free_ = num_ranks * slots;
    place_expert(0);
    best = best_;
    nodes = nodes_;
    return found_;
  }

  /// Put the best answer into a packing.
  void rebuild(packing& out, index_t slots) {
    counts_.assign(loads_.size(), 0);
    for (std::size_t e = 0; e < loads_.size(); ++e) {
      for (index_t rank = 0; rank < num_ranks_; ++rank) { counts_[e] += holds(answer_, e, rank); }
    }
    out.open(loads_, counts_, num_ranks_, slots);
    for (index_t copy = 0; copy < out.num_copies();) {
      auto const expert = static_cast<std::size_t>(out.expert(copy));
      for (index_t rank = 0; rank < num_ranks_; ++rank) {
        if (holds(answer_, expert, rank) != 0) { out.place(copy++, rank); }
      }
    }
  }

private:
  [[nodiscard]] unsigned char holds(std::vector<unsigned char> const& table, std::size_t expert,
                                    index_t rank) const noexcept {
    return table[expert * static_cast<std::size_t>(num_ranks_) + static_cast<std::size_t>(rank)];
  }

  void place_expert(std::size_t depth) {
    if (--nodes_ <= 0) { return; }
    if (left_[depth] == 0) {
      fill_up(depth);
      return;
    }
    auto const others = static_cast<index_t>(order_.size() - depth) - 1;
    auto const most = std::min(num_ranks_, free_ - others);
    auto const least = depth + 1 == order_.size() ? free_ : 1;
    for (index_t count = least; count <= most && nodes_ > 0; ++count) {
      auto const load = loads_[order_[depth]] / count;
      if (load >= best_) { continue; }
      place_copies(depth, count, load, 0);
    }
  }
  /// The experts from `depth` on have no load: where they can fill all slots that are left, any way to do it is as
  /// good.
  void fill_up(std::size_t depth) {
    auto const idle = static_cast<index_t>(order_.size() - depth);
    // One expert after the other, over and over: a rank gets each once if it has room for no more than there are.
    if (free_ < idle || *std::max_element(room_.begin(), room_.end()) > idle) { return; }
    best_ = *std::max_element(load_.begin(), load_.end());
    answer_ = chosen_;
    found_ = true;
    auto next = depth;
    for (std::size_t rank = 0; rank < room_.size(); ++rank) {
      for (index_t i = 0; i < room_[rank]; ++i) {
        answer_[order_[next] * static_cast<std::size_t>(num_ranks_) + rank] = 1;
        next = next + 1 < order_.size() ? next + 1 : depth;
      }
    }
  }
  /// Give the rest of an expert's copies to ranks from `first` on.
  void place_copies(std::size_t depth, index_t copies, load_t load, index_t first) {
    if (copies == 0) {
      if (can_take(left_[depth + 1])) { place_expert(depth + 1); }
      return;
    }
    for (auto rank = first; rank + copies <= num_ranks_ && nodes_ > 0; ++rank) {
      auto const r = static_cast<std::size_t>(rank);
      if (room_[r] == 0 || load_[r] + load >= best_ || has_skipped_twin(depth, rank, first)) { continue; }
      load_[r] += load;
      --room_[r];
      --free_;
      auto& mark = chosen_[order_[depth] * static_cast<std::size_t>(num_ranks_) + r];
      mark = 1;
      place_copies(depth, copies - 1, load, rank + 1);
      mark = 0;
      ++free_;
      ++room_[r];
      load_[r] -= load;
    }
  }
  /// Whether an earlier rank in the same state was passed over for this copy.
  [[nodiscard]] bool has_skipped_twin(std::size_t depth, index_t rank, index_t first) const noexcept {
    auto const r = static_cast<std::size_t>(rank);
    for (auto other = first; other < rank; ++other) {
      auto const o = static_cast<std::size_t>(other);
      if (load_[o] == load_[r] && room_[o] == room_[r] && holds(chosen_, order_[depth], other) == 0) { return true; }
    }
    return false;
  }
  [[nodiscard]] bool can_take(load_t left) const noexcept {
    // Replica loads are rounded down, by less than a unit a copy.
    wide_int room = free_;
    for (std::size_t r = 0; r < load_.size(); ++r) {
      if (room_[r] > 0) { room += best_ - 1 - load_[r]; }
    }
    return left <= room;
  }

  std::span<load_t const> loads_;
  index_t num_ranks_ = 0;
  index_t free_ = 0;
  load_t best_ = 0;
  std::int64_t nodes_ = 0;
  bool found_ = false;
  std::vector<std::size_t> order_;
  std::vector<load_t> left_;  // [E + 1] load from an expert on
  std::vector<load_t> load_;
  std::vector<index_t> room_;
  std::vector<unsigned char> chosen_;  // [E, R]
  std::vector<unsigned char> answer_;
  std::vector<index_t> counts_;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
