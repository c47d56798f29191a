// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_DETAIL_BALANCED_REPLICA_COUNTS_HPP
#define BALLAST_POLICIES_DETAIL_BALANCED_REPLICA_COUNTS_HPP

#include <ballast/contract.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Hands out replicas one by one, each to the expert with the most load a copy that has fewer than `max_copies`. The
/// largest load a copy comes out as small as any counts can make it. Ties go to the fewest copies, then the lowest id,
/// so experts without load share what is left evenly.
class replica_counter {
public:
  /// Choose how many copies each expert gets.
  ///
  /// @param loads       [E] load units, >= 0.
  /// @param num_slots   copies to hand out, E <= num_slots <= E * max_copies.
  /// @param max_copies  most copies of one expert.
  /// @param counts      out: [E] copies, 1 <= c <= max_copies, summing to num_slots.
  /// @complexity O(E + (num_slots - E) log E); no allocation when E is not larger than before.
  void run(std::span<load_t const> loads, index_t num_slots, index_t max_copies, std::span<index_t> counts) {
    auto const num_experts = static_cast<index_t>(loads.size());
    BALLAST_ASSERT(num_slots >= num_experts, "replica_counter: fewer slots than experts");
    BALLAST_ASSERT(static_cast<load_t>(num_experts) * max_copies >= num_slots, "replica_counter: too many slots");
    std::fill(counts.begin(), counts.end(), 1);
    index_t spare = num_slots - num_experts;
    if (spare == 0) { return; }
    heap_.resize(loads.size());
    for (std::size_t e = 0; e < loads.size(); ++e) { heap_[e] = {loads[e], 1, static_cast<index_t>(e)}; }
    if (max_copies == 1) { return; }
    std::make_heap(heap_.begin(), heap_.end(), less_urgent);
    for (; spare > 0; --spare) {
      auto& top = heap_.front();
      auto const expert = static_cast<std::size_t>(top.expert);
      top.copies = ++counts[expert];
      // An expert that may get no more copies sinks below those without load.
      top.load = top.copies < max_copies ? loads[expert] / top.copies : load_t{-1};
      sift_down();
    }
  }

private:
  struct entry {
    load_t load = 0;  ///< load a copy
    index_t copies = 0;
    index_t expert = 0;
  };
  [[nodiscard]] static bool less_urgent(entry const& a, entry const& b) noexcept {
    if (a.load != b.load) { return a.load < b.load; }
    if (a.copies != b.copies) { return a.copies > b.copies; }
    return a.expert > b.expert;
  }
  void sift_down() noexcept {
    auto const size = heap_.size();
    auto const moving = heap_.front();
    std::size_t hole = 0;
    for (std::size_t child = 1; child < size; child = 2 * hole + 1) {
      if (child + 1 < size && less_urgent(heap_[child], heap_[child + 1])) { ++child; }
      if (!less_urgent(moving, heap_[child])) { break; }
      heap_[hole] = heap_[child];
      hole = child;
    }
    heap_[hole] = moving;
  }

  std::vector<entry> heap_;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
