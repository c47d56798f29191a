// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_DISPATCH_REDUNDANCY_MAPPING_HPP
#define BALLAST_DISPATCH_REDUNDANCY_MAPPING_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/index.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE

/// A layer's spare slots in the form in which DeepEP's redundant experts are told what to hold.
///
/// There each rank has M home slots, in which every expert lies exactly once, and spare slots behind them. An expert is
/// known by its home: `rank M + slot`.
///
/// @param where       R ranks of S slots, reserved ones not counted.
/// @param from        [L, P]
/// @param layer       in [0, L).
/// @param home_slots  M <= S, the same on every rank.
/// @param out         out: [R, S - M] the home of the expert in each spare slot; -1 where it has a slot on that rank
///                    already, so that nothing would be gained. Unchanged on failure.
/// @return `errc::invalid_placement` where E is not R M, or naming an expert that has two home slots: another has none
/// @pre `layer` in [0, L), `out.size()` = R (S - M)
/// @complexity O(P S)
/// @throws std::bad_alloc
[[nodiscard]] inline status redundancy_mapping(topology const& where, placement const& from, index_t layer,
                                               index_t home_slots, std::span<std::int32_t> out) {
  auto const slots = where.slots_per_rank();
  auto const spare = slots - home_slots;
  BALLAST_EXPECTS_BELOW(layer, from.num_layers(), "redundancy_mapping: layer");
  BALLAST_EXPECTS(out.size() == static_cast<std::size_t>(where.num_ranks()) * static_cast<std::size_t>(spare),
                  "redundancy_mapping: out is not [R, S - M]");
  auto const refuse = [](auto const&... parts) {
    return status{errc::invalid_placement, detail::concat("redundancy_mapping: ", parts...)};
  };
  if (from.num_slots() != where.num_slots() || from.num_logical() != where.num_ranks() * home_slots) {
    return refuse(from.num_logical(), " experts in ", from.num_slots(), " slots; ", where.num_ranks(), " ranks of ",
                  home_slots, " home slots and ", spare, " spare ones take ", where.num_ranks() * home_slots, " in ",
                  where.num_slots());
  }
  auto const held = from.logical_of_slot(layer);
  auto const expert_in = [&held, &where](index_t rank, index_t slot) {
    return held[static_cast<std::size_t>(where.first_slot(rank) + slot)];
  };
  std::vector<index_t> home(static_cast<std::size_t>(from.num_logical()), -1);
  for (index_t rank = 0; rank < where.num_ranks(); ++rank) {
    for (index_t slot = 0; slot < home_slots; ++slot) {
      auto& found = detail::at(home, expert_in(rank, slot));
      if (found >= 0) {
        return refuse("expert ", expert_in(rank, slot), " has two home slots, on ranks ", found / home_slots, " and ",
                      rank, ", in layer ", layer);
      }
      found = rank * home_slots + slot;
    }
  }
  for (index_t rank = 0; rank < where.num_ranks(); ++rank) {
    for (index_t slot = home_slots; slot < slots; ++slot) {
      auto const expert = expert_in(rank, slot);
      bool known = false;
      for (index_t before = 0; before < slot; ++before) { known = known || expert_in(rank, before) == expert; }
      out[static_cast<std::size_t>(rank * spare + slot - home_slots)] = known ? -1 : detail::at(home, expert);
    }
  }
  return {};
}

BALLAST_END_NAMESPACE

#endif
