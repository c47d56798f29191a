// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_TRANSFERS_HPP
#define BALLAST_TESTS_SUPPORT_TRANSFERS_HPP

#include <ballast/detail/text.hpp>
#include <ballast/migration/commit_order.hpp>
#include <ballast/migration/transfer_plan.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/topology.hpp>

#include <algorithm>
#include <cstddef>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

// Judges of a transfer plan, written from the definitions and not from the planner.
namespace ballast_test {

/// What is wrong with a layer's transfer; empty when nothing is.
inline std::string first_flaw(ballast::topology const& where, ballast::placement const& from,
                              ballast::placement const& to, ballast::layer_transfer const& transfer) {
  using ballast::detail::concat;
  auto const old_map = from.logical_of_slot(transfer.layer);
  auto const new_map = to.logical_of_slot(transfer.layer);
  auto const held = [&](auto map, ballast::index_t slot) { return map[static_cast<std::size_t>(slot)]; };
  std::set<std::pair<ballast::index_t, ballast::index_t>> on_rank;  // (rank, expert) in the old placement
  for (ballast::index_t slot = 0; slot < where.num_slots(); ++slot) {
    on_rank.insert({where.rank_of_slot(slot), held(old_map, slot)});
  }

  std::map<ballast::index_t, int> filled;
  std::set<std::pair<ballast::index_t, ballast::index_t>> received;
  std::map<ballast::index_t, int> sends;
  std::map<ballast::index_t, int> receives;
  std::set<std::pair<ballast::index_t, ballast::index_t>> sending_in;
  std::set<std::pair<ballast::index_t, ballast::index_t>> receiving_in;
  for (auto const& move : transfer.moves) {
    auto const source = sender_of(where, transfer, move);
    auto const target = where.rank_of_slot(move.target_slot);
    if (source == target) { return concat("expert ", move.expert, " moves inside rank ", source); }
    if (held(old_map, move.source_slot) != move.expert) {
      return concat("slot ", move.source_slot, " does not hold what it sends");
    }
    if (held(new_map, move.target_slot) != move.expert) {
      return concat("slot ", move.target_slot, " receives a wrong expert");
    }
    if (on_rank.contains({target, move.expert})) {
      return concat("rank ", target, " receives expert ", move.expert, ", which it has");
    }
    if (!received.insert({target, move.expert}).second) {
      return concat("rank ", target, " receives expert ", move.expert, " twice");
    }
    if (!sending_in.insert({source, move.round}).second) {
      return concat("rank ", source, " sends twice in round ", move.round);
    }
    if (!receiving_in.insert({target, move.round}).second) {
      return concat("rank ", target, " receives twice in round ", move.round);
    }
    if (move.via >= 0) {
      auto const& first = transfer.moves[static_cast<std::size_t>(move.via)];
      if (first.expert != move.expert || first.via >= 0) {
        return concat("slot ", move.target_slot, " is passed a wrong expert");
      }
      if (where.node_of_slot(first.target_slot) != where.node_of_rank(target)) {
        return "an expert is passed on across nodes";
      }
      if (first.round >= move.round) { return concat("slot ", move.target_slot, " is passed what is not there yet"); }
    }
    auto const near = [&](ballast::index_t slot) { return where.node_of_slot(slot) == where.node_of_rank(target); };
    auto const holders = from.replicas_of(transfer.layer, move.expert);
    if (!near(move.source_slot) && std::any_of(holders.begin(), holders.end(), near)) {
      return concat("expert ", move.expert, " crosses nodes though the node of rank ", target, " has it");
    }
    ++filled[move.target_slot];
    ++sends[source];
    ++receives[target];
  }
  for (auto const& copy : transfer.copies) {
    if (where.rank_of_slot(copy.source_slot) != where.rank_of_slot(copy.target_slot)) {
      return "a local copy crosses ranks";
    }
    if (held(old_map, copy.source_slot) != held(new_map, copy.target_slot)) {
      return concat("slot ", copy.target_slot, " copies a wrong expert");
    }
    ++filled[copy.target_slot];
  }
  for (auto const& repeat : transfer.repeats) {
    if (where.rank_of_slot(repeat.source_slot) != where.rank_of_slot(repeat.target_slot)) {
      return "a repeat crosses ranks";
    }
    if (held(new_map, repeat.source_slot) != held(new_map, repeat.target_slot)) {
      return concat("slot ", repeat.target_slot, " repeats a wrong expert");
    }
    ++filled[repeat.target_slot];
  }
  for (ballast::index_t slot = 0; slot < where.num_slots(); ++slot) {
    auto const expected = held(old_map, slot) == held(new_map, slot) ? 0 : 1;
    if (filled[slot] != expected) {
      return concat("slot ", slot, " is filled ", filled[slot], " times, must be ", expected);
    }
  }
  int busiest = 0;
  for (auto const& [rank, count] : sends) { busiest = std::max(busiest, count); }
  for (auto const& [rank, count] : receives) { busiest = std::max(busiest, count); }
  bool const relays = transfer.first_relay_round < transfer.num_rounds;
  if (!relays && transfer.num_rounds != busiest) {
    return concat(transfer.num_rounds, " rounds, the busiest endpoint has ", busiest, " messages");
  }
  return {};
}

/// Run every rank's commit order on ids instead of bytes; what is wrong with the slots afterwards, empty when nothing
/// is.
inline std::string replay_commit(ballast::topology const& where, ballast::placement const& from,
                                 ballast::placement const& to, ballast::layer_transfer const& transfer) {
  using ballast::detail::concat;
  ballast::detail::commit_orderer orderer;
  ballast::commit_order order;
  for (ballast::index_t rank = 0; rank < where.num_ranks(); ++rank) {
    orderer.order(where, transfer, rank, order);
    auto const first = static_cast<std::size_t>(where.first_slot(rank));
    auto const old_map =
        from.logical_of_slot(transfer.layer).subspan(first, static_cast<std::size_t>(where.slots_per_rank()));
    std::vector<ballast::index_t> slots{old_map.begin(), old_map.end()};
    std::vector<ballast::index_t> staged(static_cast<std::size_t>(order.num_staged), -1);
    std::size_t arrivals = 0;
    for (auto const& move : transfer.moves) {
      if (where.rank_of_slot(move.target_slot) == rank) { staged.at(arrivals++) = move.expert; }
    }
    if (order.num_staged > order.num_arrivals + 1) {
      return concat("rank ", rank, " stages more than one spare expert");
    }

    // Copies of one phase may run in any order, so all of a phase's sources are read before any of its targets is
    // written.
    auto const at = [&](ballast::expert_location where_to) -> ballast::index_t& {
      auto& place = where_to.kind == ballast::expert_location::slot ? slots : staged;
      return place.at(static_cast<std::size_t>(where_to.index));
    };
    for (std::size_t i = 0; i < order.copies.size();) {
      auto end = i;
      while (end < order.copies.size() && order.copies[end].phase == order.copies[i].phase) { ++end; }
      for (auto a = i; a < end; ++a) {
        for (auto b = i; b < end; ++b) {
          if (order.copies[a].to == order.copies[b].from) {
            return concat("rank ", rank, " reads and writes a place in one phase");
          }
          if (a != b && order.copies[a].to == order.copies[b].to) {
            return concat("rank ", rank, " writes a place twice in one phase");
          }
        }
      }
      for (; i < end; ++i) { at(order.copies[i].to) = at(order.copies[i].from); }
    }
    auto const wanted = to.logical_of_slot(transfer.layer).subspan(first, slots.size());
    if (!std::equal(slots.begin(), slots.end(), wanted.begin())) {
      return concat("rank ", rank, " ends up with wrong experts");
    }
  }
  return {};
}

}  // namespace ballast_test

#endif
