// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_DETAIL_INCREMENTAL_REHOME_HPP
#define BALLAST_POLICIES_DETAIL_INCREMENTAL_REHOME_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/policies/detail/incremental/move_search.hpp>
#include <ballast/policies/detail/incremental/replica_map.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Give every expert that no live rank holds a slot of an expert that has another live copy, the heaviest expert first
/// and each where the rank comes out lightest.
///
/// @param map     in/out: one layer, with at least as many live slots as experts.
/// @param limits  on moves and arrivals.
/// @param layer   for the message.
/// @return `errc::missing_expert` naming the first expert without a home if the limits do not suffice.
/// @complexity O(E) if nothing is missing, O(P) for each expert that is.
/// @throws std::bad_alloc
[[nodiscard]] inline status rehome(replica_map& map, move_limits const& limits, index_t layer) {
  std::vector<index_t> missing;
  for (index_t expert = 0; expert < map.num_logical(); ++expert) {
    if (map.copies(expert) == 0) { missing.push_back(expert); }
  }
  if (static_cast<index_t>(missing.size()) > limits.max_moves) {
    return {errc::missing_expert,
            concat("incremental_placement: layer ", layer, ": no live rank holds expert ", missing.front(), "; giving ",
                   missing.size(), " experts a home takes as many moves, the budget is ", limits.max_moves)};
  }
  std::sort(missing.begin(), missing.end(),
            [&map](index_t a, index_t b) { return map.load(a) != map.load(b) ? map.load(a) > map.load(b) : a < b; });
  for (auto const expert : missing) {
    auto best = replica_map::none;
    load_t best_room = 0;
    for (index_t slot = 0; slot < map.num_slots(); ++slot) {
      if (map.expert(slot) == replica_map::none || map.copies(map.expert(slot)) < 2) { continue; }
      if (!limits.allow(map, slot, expert)) { continue; }
      auto const room = map.rank_load(map.rank_of(slot)) - map.slot_load(slot);
      if (best == replica_map::none || room < best_room) {
        best = slot;
        best_room = room;
      }
    }
    if (best == replica_map::none) {
      return {errc::missing_expert, concat("incremental_placement: layer ", layer, ": no live rank holds expert ",
                                           expert, ", and none may receive it within the limits on arrivals")};
    }
    map.assign(best, expert);
  }
  return {};
}

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
