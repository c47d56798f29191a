// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_DETAIL_INCREMENTAL_LAYOUT_STRESS_HPP
#define BALLAST_POLICIES_DETAIL_INCREMENTAL_LAYOUT_STRESS_HPP

#include <ballast/detail/index.hpp>
#include <ballast/policies/detail/incremental/replica_map.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstdint>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// How a layer would stand up to other loads. Experts that are neighbours in id get hot together (routing by groups
/// does it, docs/incremental.md shows it), so a layout that keeps neighbours on one rank is balanced today and not
/// tomorrow. The measure: the busiest rank over the mean, in the mean over blocks of neighbours, when a block gets half
/// as hot again.
class layout_stress {
public:
  static constexpr load_t unit = 4096;  ///< the busiest rank carries the mean

  /// @complexity O(P + R B); allocates `[R, B]` once.
  [[nodiscard]] load_t operator()(topology const& where, replica_map const& map) {
    auto const blocks = std::min(most_blocks, map.num_logical());
    // Halves, so that nothing overflows: a layer's tokens may fill a `load_t`.
    block_load_.assign(static_cast<std::size_t>(where.num_ranks()) * static_cast<std::size_t>(blocks), 0);
    block_total_.assign(static_cast<std::size_t>(blocks), 0);
    load_t total = 0;
    for (index_t slot = 0; slot < map.num_slots(); ++slot) {
      auto const expert = map.expert(slot);
      if (expert == replica_map::none) { continue; }
      auto const block = static_cast<index_t>(std::int64_t{expert} * blocks / map.num_logical());
      auto const half = map.slot_load(slot) / 2;
      at(block_load_, map.rank_of(slot) * blocks + block) += half;
      at(block_total_, block) += half;
      total += half;
    }
    load_t sum = 0;
    for (index_t block = 0; block < blocks; ++block) {
      load_t highest = 0;
      for (index_t rank = 0; rank < where.num_ranks(); ++rank) {
        highest = std::max(highest, map.rank_load(rank) / 2 + at(block_load_, rank * blocks + block) / 2);
      }
      auto const mean = (total + at(block_total_, block) / 2) / where.num_live_ranks();
      sum += highest / (mean / unit + 1);
    }
    return sum / blocks;
  }

private:
  static constexpr index_t most_blocks = 8;

  std::vector<load_t> block_load_;   ///< [R, B]
  std::vector<load_t> block_total_;  ///< [B]
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
