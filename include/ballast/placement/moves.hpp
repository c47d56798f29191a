// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_PLACEMENT_MOVES_HPP
#define BALLAST_PLACEMENT_MOVES_HPP

#include <ballast/contract.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

BALLAST_BEGIN_NAMESPACE

/// Count the experts that ranks must receive to turn one layer of `from` into that of `to`: pairs (rank, logical
/// expert) of `to` that are not in `from`. Further copies beside one already on the rank, and permutations inside a
/// rank, are no moves.
///
/// @param where  R ranks of S slots.
/// @param from   [L, P] the placement in force.
/// @param to     [L, P] the target.
/// @param layer  in [0, L).
/// @pre both placements have the topology's P slots and the same E
/// @complexity O(P S), no allocation.
/// @throws nothing
[[nodiscard]] inline index_t count_moves(topology const& where, placement const& from, placement const& to,
                                         index_t layer) {
  BALLAST_EXPECTS(from.num_slots() == where.num_slots() && to.num_slots() == where.num_slots(),
                  "count_moves: placements and topology differ in slots");
  BALLAST_EXPECTS(from.num_logical() == to.num_logical(), "count_moves: placements differ in experts");
  auto const slots = static_cast<std::size_t>(where.slots_per_rank());
  index_t moves = 0;
  for (index_t rank = 0; rank < where.num_ranks(); ++rank) {
    auto const first = static_cast<std::size_t>(where.first_slot(rank));
    auto const held = from.logical_of_slot(layer).subspan(first, slots);
    auto const wanted = to.logical_of_slot(layer).subspan(first, slots);
    for (auto at = wanted.begin(); at != wanted.end(); ++at) {
      bool const here = std::find(held.begin(), held.end(), *at) != held.end();
      bool const seen = std::find(wanted.begin(), at, *at) != at;
      moves += static_cast<index_t>(!here && !seen);
    }
  }
  return moves;
}

/// As above, over all layers.
/// @complexity O(L P S), no allocation.
[[nodiscard]] inline std::int64_t count_moves(topology const& where, placement const& from, placement const& to) {
  std::int64_t moves = 0;
  for (index_t layer = 0; layer < to.num_layers(); ++layer) { moves += count_moves(where, from, to, layer); }
  return moves;
}

BALLAST_END_NAMESPACE

#endif
