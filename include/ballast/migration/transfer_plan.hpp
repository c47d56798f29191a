// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_MIGRATION_TRANSFER_PLAN_HPP
#define BALLAST_MIGRATION_TRANSFER_PLAN_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/reset_by_move.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/digest.hpp>
#include <ballast/migration/rounds.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE

/// One expert that has to come from another rank. Slots are slot indices in [0, P); their ranks differ.
struct expert_move {
  index_t expert = 0;
  index_t source_slot = 0;  ///< holds the expert in the old placement
  index_t target_slot = 0;  ///< first slot of its rank that holds the expert in the new placement but not in the old
  index_t round = 0;        ///< no rank sends two moves of a layer in one round, nor receives two
  index_t via = -1;  ///< a relayed move: index of the move whose arrival is passed on; its rank sends, from staging

  bool operator==(expert_move const&) const = default;
};

/// One slot filled from another slot of its rank.
struct slot_copy {
  index_t source_slot = 0;
  index_t target_slot = 0;

  bool operator==(slot_copy const&) const = default;
};

/// What turns one layer of a placement into another. Slots that appear in none of the lists keep what they hold.
struct layer_transfer {
  index_t layer = 0;
  index_t num_rounds = 0;
  index_t first_relay_round = 0;   ///< relayed moves have rounds from here on; `num_rounds` without any
  std::vector<expert_move> moves;  ///< by ascending target slot; one per (rank, logical expert) not on that rank before
  std::vector<slot_copy> copies;   ///< from what a slot of the rank held before
  std::vector<slot_copy> repeats;  ///< further slots of an expert that arrives: `source_slot` is a move's target
  bool tables_change = false;      ///< the map or the shares differ

  [[nodiscard]] bool moves_no_bytes() const noexcept { return moves.empty() && copies.empty() && repeats.empty(); }
};

/// Rank that sends a move: the source slot's, or for a relayed move the rank at which its predecessor arrives.
[[nodiscard]] inline index_t sender_of(topology const& where, layer_transfer const& transfer, expert_move const& move) {
  return where.rank_of_slot(move.via < 0 ? move.source_slot
                                         : transfer.moves[static_cast<std::size_t>(move.via)].target_slot);
}

/// How transfers are planned; the same on every rank.
struct transfer_options {
  /// Bring an expert that several ranks of a node need from another node there once, and pass it on inside. Saves bytes
  /// on the slow links, costs rounds; for two-sided transports.
  bool relay = false;
};

namespace detail {

/// Working memory of `plan_layer_transfer`, kept between layers.
struct transfer_scratch {
  std::vector<index_t> sends_of_rank;  // [R]
  std::vector<message_ends> ends;      // [moves]
  round_coloring coloring;
  std::vector<index_t> found_by;  // [R] move through which the search reached a rank, or -1
  std::vector<index_t> reached;   // ranks in the order in which the search reached them
};

/// Lowest slot of `slots` (a rank's slots, old contents) that holds `expert`, preferring one whose contents stay.
[[nodiscard]] inline index_t local_source(std::span<index_t const> from, std::span<index_t const> to, index_t first,
                                          index_t count, index_t expert) {
  index_t found = -1;
  for (index_t slot = first; slot < first + count; ++slot) {
    if (from[static_cast<std::size_t>(slot)] != expert) { continue; }
    if (to[static_cast<std::size_t>(slot)] == expert) { return slot; }
    if (found < 0) { found = slot; }
  }
  return found;
}

/// Whether a slot may send to a rank: its own rank is alive, and it is on the rank's node when any live holder is.
[[nodiscard]] inline bool may_send(topology const& where, index_t slot, index_t rank, bool near_only) {
  auto const source = where.rank_of_slot(slot);
  return where.is_live(source) && (!near_only || where.node_of_rank(source) == where.node_of_rank(rank));
}
[[nodiscard]] inline bool has_near_holder(topology const& where, std::span<index_t const> holders, index_t rank) {
  return std::any_of(holders.begin(), holders.end(),
                     [&where, &rank](index_t slot) { return may_send(where, slot, rank, true); });
}

/// The holder that sends to `rank`: same node before other nodes, then the one with the fewest sends so far, then the
/// lowest. -1 when no live rank holds the expert.
[[nodiscard]] inline index_t choose_source(topology const& where, std::span<index_t const> holders, index_t rank,
                                           std::span<index_t const> sends_of_rank) {
  bool const near_only = has_near_holder(where, holders, rank);
  auto const sends = [&sends_of_rank, &where](index_t slot) {
    return sends_of_rank[static_cast<std::size_t>(where.rank_of_slot(slot))];
  };
  index_t best = -1;
  for (auto const slot : holders) {
    if (may_send(where, slot, rank, near_only) && (best < 0 || sends(slot) < sends(best))) { best = slot; }
  }
  return best;
}

/// Takes sends from the busiest sender while that saves a round.
///
/// A sender hands a move to another holder of the same nearness, which may hand one of its own on, and so on until a
/// rank is met that has two sends fewer. Where no such chain exists the busiest sender's count is the least possible.
class sender_balancer {
public:
  sender_balancer(topology const& where, placement const& from, index_t layer, std::vector<expert_move>& moves,
                  transfer_scratch& scratch)
      : where_{where}, from_{from}, layer_{layer}, moves_{moves}, scratch_{scratch} {}

  /// @param enough  sends a rank may have: the busiest receiver needs as many rounds anyway
  /// @complexity O(chains * moves * holders)
  void run(index_t enough) {
    for (;;) {
      auto const& sends = scratch_.sends_of_rank;
      auto const busiest = static_cast<index_t>(std::max_element(sends.begin(), sends.end()) - sends.begin());
      if (sends[static_cast<std::size_t>(busiest)] <= std::max(enough, 1) || !relieve(busiest)) { return; }
    }
  }

private:
  [[nodiscard]] index_t& sends_of(index_t rank) { return scratch_.sends_of_rank[static_cast<std::size_t>(rank)]; }

  // Breadth-first from the busiest rank over "hands a move to".
  [[nodiscard]] bool relieve(index_t busiest) {
    scratch_.found_by.assign(scratch_.sends_of_rank.size(), -1);
    scratch_.reached.assign(1, busiest);
    for (std::size_t next = 0; next < scratch_.reached.size(); ++next) {  // NOLINT(modernize-loop-convert): it grows
      auto const giver = scratch_.reached[next];
      for (std::size_t m = 0; m < moves_.size(); ++m) {
        if (where_.rank_of_slot(moves_[m].source_slot) != giver) { continue; }
        auto const taker = reach_from(static_cast<index_t>(m), busiest);
        if (taker >= 0) {
          hand_over(taker, busiest);
          return true;
        }
      }
    }
    return false;
  }

  // Mark the holders that could take move `m`; return one that ends the chain, or -1.
  [[nodiscard]] index_t reach_from(index_t m, index_t busiest) {
    auto const& move = moves_[static_cast<std::size_t>(m)];
    auto const target = where_.rank_of_slot(move.target_slot);
    auto const holders = from_.replicas_of(layer_, move.expert);
    bool const near_only = has_near_holder(where_, holders, target);
    for (auto const slot : holders) {
      auto const rank = where_.rank_of_slot(slot);
      auto& found_by = scratch_.found_by[static_cast<std::size_t>(rank)];
      if (rank == busiest || found_by >= 0 || !may_send(where_, slot, target, near_only)) { continue; }
      found_by = m;
      if (sends_of(rank) + 2 <= sends_of(busiest)) { return rank; }
      scratch_.reached.push_back(rank);
    }
    return -1;
  }

  void hand_over(index_t taker, index_t busiest) {
    ++sends_of(taker);
    --sends_of(busiest);
    for (auto rank = taker; rank != busiest;) {
      auto& move = moves_[static_cast<std::size_t>(scratch_.found_by[static_cast<std::size_t>(rank)])];
      auto const giver = where_.rank_of_slot(move.source_slot);
      auto const holders = from_.replicas_of(layer_, move.expert);
      move.source_slot = *std::find_if(holders.begin(), holders.end(),
                                       [this, &rank](index_t slot) { return where_.rank_of_slot(slot) == rank; });
      rank = giver;
    }
  }

  topology const& where_;
  placement const& from_;
  index_t layer_;
  std::vector<expert_move>& moves_;
  transfer_scratch& scratch_;
};

}  // namespace detail

namespace detail {

/// Let the first rank of a node that receives an expert from another node pass it on to the others.
inline void relay_inside_nodes(topology const& where, layer_transfer& transfer) {
  auto& moves = transfer.moves;
  auto const node_of = [&where](expert_move const& move) { return where.node_of_slot(move.target_slot); };
  for (std::size_t i = 0; i < moves.size(); ++i) {
    if (where.node_of_slot(moves[i].source_slot) == node_of(moves[i])) { continue; }
    auto const first = std::find_if(moves.begin(), moves.begin() + static_cast<std::ptrdiff_t>(i),
                                    [&moves, &i, &node_of](expert_move const& m) {
                                      return m.expert == moves[i].expert && node_of(m) == node_of(moves[i]);
                                    });
    if (first != moves.begin() + static_cast<std::ptrdiff_t>(i)) {
      moves[i].via = static_cast<index_t>(first - moves.begin());
    }
  }
}

/// Colour the direct moves, then the relayed ones, whose rounds follow.
inline void assign_rounds(topology const& where, transfer_scratch& scratch, layer_transfer& transfer) {
  transfer.num_rounds = 0;
  for (bool const relayed : {false, true}) {
    transfer.first_relay_round = transfer.num_rounds;
    auto const in_stage = [&relayed](expert_move const& move) { return (move.via >= 0) == relayed; };
    scratch.ends.clear();
    for (auto const& move : transfer.moves) {
      if (in_stage(move)) {
        scratch.ends.push_back({sender_of(where, transfer, move), where.rank_of_slot(move.target_slot)});
      }
    }
    auto const rounds = scratch.coloring.assign(where.num_ranks(), scratch.ends);
    std::size_t next = 0;
    for (auto& move : transfer.moves) {
      if (in_stage(move)) { move.round = transfer.num_rounds + scratch.coloring.round_of(next++); }
    }
    transfer.num_rounds += rounds;
  }
}

}  // namespace detail

/// Work out how one layer gets from one placement to another.
///
/// Every slot of a live rank either keeps its expert, copies it from a slot of its rank, or belongs to the one receive
/// that its rank makes for that expert. Slots of dead ranks are left alone.
///
/// @param where    ranks, nodes, live mask; R * S = P.
/// @param from     [L, P] the placement in force.
/// @param to       [L, P] the placement to reach, same shape.
/// @param layer    in [0, L).
/// @param scratch  in/out: working memory, reused.
/// @param out      out: the layer's transfer; storage reused.
/// @param options  relay or not.
/// @return `errc::missing_expert` when no live rank holds an expert that has to move.
/// @complexity O(R S^2 + moves * (holders + R)) where greedy sources are good enough; no allocation once the
///             scratch has grown.
/// @throws std::bad_alloc
/// @determinism ties go to the lowest slot.
/// @source SGLang `update_expert_weights_single_layer`: same cases, but senders are spread by load, a local copy
///         prefers a slot that stays, and moves come in rounds.
[[nodiscard]] inline status plan_layer_transfer(topology const& where, placement const& from, placement const& to,
                                                index_t layer, detail::transfer_scratch& scratch, layer_transfer& out,
                                                transfer_options options = {}) {
  BALLAST_EXPECTS(from.shape() == to.shape(), "plan_layer_transfer: placements differ in shape");
  BALLAST_EXPECTS(from.num_slots() == where.num_slots(), "plan_layer_transfer: placement and topology differ in slots");
  auto const old_map = from.logical_of_slot(layer);
  auto const new_map = to.logical_of_slot(layer);
  out.layer = layer;
  out.num_rounds = 0;
  out.moves.clear();
  out.copies.clear();
  out.repeats.clear();
  out.tables_change =
      !std::equal(old_map.begin(), old_map.end(), new_map.begin()) || detail::shares_differ(from, to, layer);
  scratch.sends_of_rank.assign(static_cast<std::size_t>(where.num_ranks()), 0);

  index_t busiest_receiver = 0;
  for (index_t rank = 0; rank < where.num_ranks(); ++rank) {
    if (!where.is_live(rank)) { continue; }
    auto const first = where.first_slot(rank);
    auto const first_move = out.moves.size();
    for (index_t slot = first; slot < first + where.slots_per_rank(); ++slot) {
      auto const expert = new_map[static_cast<std::size_t>(slot)];
      if (old_map[static_cast<std::size_t>(slot)] == expert) { continue; }
      if (auto const local = detail::local_source(old_map, new_map, first, where.slots_per_rank(), expert);
          local >= 0) {
        out.copies.push_back({local, slot});
        continue;
      }
      auto const arriving = std::find_if(out.moves.begin() + static_cast<std::ptrdiff_t>(first_move), out.moves.end(),
                                         [&expert](expert_move const& move) { return move.expert == expert; });
      if (arriving != out.moves.end()) {
        out.repeats.push_back({arriving->target_slot, slot});
        continue;
      }
      auto const source = detail::choose_source(where, from.replicas_of(layer, expert), rank, scratch.sends_of_rank);
      if (source < 0) {
        return {errc::missing_expert, detail::concat("transfer plan: layer ", layer, ": no live rank holds expert ",
                                                     expert, " that slot ", slot, " should get")};
      }
      ++scratch.sends_of_rank[static_cast<std::size_t>(where.rank_of_slot(source))];
      out.moves.push_back({expert, source, slot});
    }
    busiest_receiver = std::max(busiest_receiver, static_cast<index_t>(out.moves.size() - first_move));
  }
  detail::sender_balancer{where, from, layer, out.moves, scratch}.run(busiest_receiver);

  if (options.relay) { detail::relay_inside_nodes(where, out); }
  detail::assign_rounds(where, scratch, out);
  return {};
}

/// Cut rounds so that none has more than a number of moves over all ranks; the order of the moves stays.
///
/// @param max_moves  >= 1.
/// @complexity O(moves * rounds), one allocation.
/// @throws std::bad_alloc
inline void limit_rounds(layer_transfer& transfer, index_t max_moves) {
  BALLAST_EXPECTS(max_moves >= 1, "limit_rounds: a round needs room for a move");
  std::vector<index_t> limited(transfer.moves.size());
  index_t first_relay_round = 0;
  index_t next = 0;
  for (index_t round = 0; round < transfer.num_rounds; ++round) {
    if (round == transfer.first_relay_round) { first_relay_round = next; }
    index_t in_round = 0;
    for (std::size_t i = 0; i < transfer.moves.size(); ++i) {
      if (transfer.moves[i].round == round) { limited[i] = next + in_round++ / max_moves; }
    }
    next += (in_round + max_moves - 1) / max_moves;
  }
  for (std::size_t i = 0; i < transfer.moves.size(); ++i) { transfer.moves[i].round = limited[i]; }
  transfer.first_relay_round = transfer.first_relay_round < transfer.num_rounds ? first_relay_round : next;
  transfer.num_rounds = next;
}

/// The moves and local copies that turn one placement into another.
///
/// Layers are in ascending order and only those that differ are listed. The same on every rank: each finds its own
/// sends and receives in it, so the lists match pairwise by construction. What was moved from is empty.
class transfer_plan {
public:
  /// Work the plan out for the given layers.
  ///
  /// @param layers  ascending layer ids.
  /// @return as `plan_layer_transfer`; after a failure the plan is empty.
  /// @complexity sum over the layers of `plan_layer_transfer`.
  /// @throws std::bad_alloc
  [[nodiscard]] status assign(topology const& where, placement const& from, placement const& to,
                              std::span<index_t const> layers, transfer_options options = {}) {
    clear();
    std::size_t found = 0;
    for (auto const layer : layers) {
      if (found == layers_.size()) { layers_.emplace_back(); }
      auto& transfer = layers_[found];
      if (auto result = plan_layer_transfer(where, from, to, layer, scratch_, transfer, options); !result.ok()) {
        return result;
      }
      if (transfer.tables_change) { ++found; }
    }
    num_layers_ = found;
    return {};
  }
  void clear() noexcept { num_layers_ = std::size_t{0}; }
  /// Cut the rounds of one listed layer; see the free function. @param index into `layers()`
  void limit_rounds(std::size_t index, index_t max_moves) {
    BALLAST_EXPECTS(index < num_layers_, "transfer_plan: no such layer");
    ballast::limit_rounds(layers_[index], max_moves);
  }

  /// The layers that change, ascending.
  [[nodiscard]] std::span<layer_transfer const> layers() const noexcept { return {layers_.data(), num_layers_}; }
  /// The transfer of one layer, or null when that layer does not change. @complexity O(log L)
  [[nodiscard]] layer_transfer const* find(index_t layer) const noexcept {
    auto const all = layers();
    auto const at = std::lower_bound(all.begin(), all.end(), layer,
                                     [](layer_transfer const& transfer, index_t id) { return transfer.layer < id; });
    return at != all.end() && at->layer == layer ? &*at : nullptr;
  }
  [[nodiscard]] std::int64_t num_moves() const noexcept {
    std::int64_t total = 0;
    for (auto const& transfer : layers()) { total += static_cast<std::int64_t>(transfer.moves.size()); }
    return total;
  }

  /// Mix every move and copy into what the ranks compare.
  void describe(digest& out) const {
    out.add(*num_layers_);
    for (auto const& transfer : layers()) {
      out.add(transfer.layer).add(transfer.num_rounds).add(transfer.moves.size());
      for (auto const& move : transfer.moves) {
        out.add(move.expert).add(move.source_slot).add(move.target_slot).add(move.round).add(move.via);
      }
      for (auto const* const copies : {&transfer.copies, &transfer.repeats}) {
        out.add(copies->size());
        for (auto const& copy : *copies) { out.add(copy.source_slot).add(copy.target_slot); }
      }
    }
  }

private:
  std::vector<layer_transfer> layers_;  // beyond num_layers_: spare storage
  detail::reset_by_move<std::size_t> num_layers_;
  detail::transfer_scratch scratch_;
};

BALLAST_END_NAMESPACE

#endif
