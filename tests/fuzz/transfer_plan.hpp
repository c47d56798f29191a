// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_FUZZ_TRANSFER_PLAN_HPP
#define BALLAST_TESTS_FUZZ_TRANSFER_PLAN_HPP

#include <ballast/migration/commit_order.hpp>
#include <ballast/migration/transfer_plan.hpp>

#include "fuzz_input.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace ballast_fuzz {

using namespace ballast;

inline void check_rounds(topology const& where, layer_transfer const& transfer, bool relayed) {
  std::vector<std::vector<unsigned char>> busy(
      static_cast<std::size_t>(transfer.num_rounds),
      std::vector<unsigned char>(2 * static_cast<std::size_t>(where.num_ranks())));
  std::vector<index_t> messages(2 * static_cast<std::size_t>(where.num_ranks()));
  for (auto const& move : transfer.moves) {
    require(move.round >= 0 && move.round < transfer.num_rounds, "a round is one of the plan's");
    for (auto const endpoint : {static_cast<std::size_t>(sender_of(where, transfer, move)),
                                static_cast<std::size_t>(where.num_ranks() + where.rank_of_slot(move.target_slot))}) {
      auto& taken = busy[static_cast<std::size_t>(move.round)][endpoint];
      require(taken == 0, "a rank sends one message a round and receives one");
      taken = 1;
      ++messages[endpoint];
    }
    if (move.via >= 0) {
      require(transfer.moves[static_cast<std::size_t>(move.via)].round < move.round, "what is passed on has arrived");
    }
  }
  if (!relayed) {
    require(transfer.num_rounds == *std::max_element(messages.begin(), messages.end()), "there are no spare rounds");
  }
}

// What every slot holds after one rank's commit.
inline void commit(topology const& where, layer_transfer const& transfer, index_t rank,
                   std::vector<index_t> const& before, std::vector<index_t>& slots) {
  detail::commit_orderer orderer;
  commit_order order;
  orderer.order(where, transfer, rank, order);
  std::vector<index_t> staged(static_cast<std::size_t>(order.num_staged), -1);
  std::size_t arrivals = 0;
  for (auto const& move : transfer.moves) {
    if (where.rank_of_slot(move.target_slot) != rank) { continue; }
    auto const held = before[static_cast<std::size_t>(move.source_slot)];
    require(held == move.expert, "a source holds the expert it sends");
    staged[arrivals++] = held;
  }
  require(arrivals == static_cast<std::size_t>(order.num_arrivals), "every arrival has a place");
  auto const at = [&](expert_location const& where_at) -> index_t& {
    return where_at.kind == expert_location::staged
               ? staged[static_cast<std::size_t>(where_at.index)]
               : slots[static_cast<std::size_t>(where.first_slot(rank) + where_at.index)];
  };
  for (auto first = order.copies.begin(); first != order.copies.end();) {
    auto const last =
        std::find_if(first, order.copies.end(), [&](commit_copy const& copy) { return copy.phase != first->phase; });
    // Copies of a phase are independent: all read before any writes, or the other way round, makes no difference.
    for (auto a = first; a != last; ++a) {
      for (auto b = first; b != last; ++b) {
        require(a == b || (!(a->to == b->to) && !(a->to == b->from)), "copies of one phase are independent");
      }
    }
    for (; first != last; ++first) { at(first->to) = at(first->from); }
  }
}

/// For any two placements: carrying the plan out, in the order of the commits, turns one into the other; rounds keep to
/// one message a rank and direction, and are as many as the busiest rank and direction has messages.
inline void transfer_plan(std::uint8_t const* data, std::size_t size) {
  input from{data, size};
  auto const nodes = from.between<index_t>(1, 3);
  topology where{{nodes * from.between<index_t>(1, 3), nodes, from.between<index_t>(1, 5), 0}};
  auto const slots = where.num_slots();
  placement_shape const shape{1, 1 + from.byte() % slots, slots};
  transfer_options const options{from.flag()};
  auto const dead = from.between<index_t>(-1, where.num_ranks() - 1);
  if (dead >= 0 && where.num_ranks() > 1) { where.set_live(dead, false); }
  auto const before = draw_placement(from, shape);
  auto const after = draw_placement(from, shape);

  detail::transfer_scratch scratch;
  layer_transfer transfer;
  if (auto const planned = plan_layer_transfer(where, before, after, 0, scratch, transfer, options); !planned.ok()) {
    require(planned.code() == make_error_code(errc::missing_expert), "only a lost expert stops a plan");
    return;
  }
  check_rounds(where, transfer, options.relay);
  std::vector<index_t> const old_slots(before.logical_of_slot(0).begin(), before.logical_of_slot(0).end());
  auto held = old_slots;
  for (index_t rank = 0; rank < where.num_ranks(); ++rank) {
    if (where.is_live(rank)) { commit(where, transfer, rank, old_slots, held); }
  }
  for (index_t slot = 0; slot < slots; ++slot) {
    auto const expected =
        where.is_live(where.rank_of_slot(slot)) ? after.logical_of_slot(0) : before.logical_of_slot(0);
    require(held[static_cast<std::size_t>(slot)] == expected[static_cast<std::size_t>(slot)],
            "every slot holds what the tables say");
  }
}

}  // namespace ballast_fuzz

#endif
