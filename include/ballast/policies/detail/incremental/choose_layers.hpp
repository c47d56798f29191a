// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_DETAIL_INCREMENTAL_CHOOSE_LAYERS_HPP
#define BALLAST_POLICIES_DETAIL_INCREMENTAL_CHOOSE_LAYERS_HPP

#include <ballast/contract.hpp>
#include <ballast/load/history.hpp>
#include <ballast/placement/balancedness.hpp>
#include <ballast/placement/detail/dead_ranks.hpp>
#include <ballast/placement/moves.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/shares/replica_shares.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// A layer of a plan that has moves.
struct layer_change {
  index_t layer;
  std::int64_t moves;
  load_t gain;  ///< by how much its busiest rank gets lighter
};

/// Which changes gain most together with at most so many moves; of choices that gain alike the one with the changes
/// that come first.
///
/// More moves never gain less: it is the best choice there is, not one change after the other. Where there are very
/// many moves they are counted in bundles, whose size does not depend on the limit.
///
/// @return `[changes]` 1 for those to make.
/// @complexity O(changes * moves), at most some 2^21 steps.
[[nodiscard]] inline std::vector<unsigned char> best_changes(std::span<layer_change const> changes,
                                                             std::int64_t max_moves) {
  constexpr std::int64_t most_steps = std::int64_t{1} << 21;
  auto const count = static_cast<std::int64_t>(changes.size());
  std::int64_t total = 0;
  for (auto const& one : changes) { total += one.moves; }
  if (total <= max_moves) { return std::vector<unsigned char>(changes.size(), 1); }
  auto const bundle = total * count / most_steps + 1;
  auto const room = static_cast<std::size_t>(std::max(max_moves, std::int64_t{0}) / bundle);
  auto const size = [&changes, &bundle](std::size_t i) {
    return static_cast<std::size_t>((changes[i].moves + bundle - 1) / bundle);
  };
  // gain[r]: of the best choice among the changes from `i` on that needs at most r bundles.
  std::vector<load_t> gain(room + 1, 0);
  std::vector<unsigned char> is_made(changes.size() * (room + 1), 0);
  for (auto i = changes.size(); i-- > 0;) {
    for (auto r = room + 1; r-- > size(i);) {
      // Over the count, so that no sum is too large.
      auto const with = gain[r - size(i)] + changes[i].gain / count;
      if (with < gain[r]) { continue; }
      gain[r] = with;
      is_made[i * (room + 1) + r] = 1;
    }
  }
  std::vector<unsigned char> result(changes.size(), 0);
  auto left = room;
  for (std::size_t i = 0; i < changes.size(); ++i) {
    result[i] = is_made[i * (room + 1) + left];
    if (result[i] != 0) { left -= size(i); }
  }
  return result;
}

/// Let those layers of a plan have their changes that lower the sum of all busiest ranks most with at most `max_moves`,
/// and the others stay as they are, so that more moves never give a worse plan. Layers in which a live rank must get
/// what no live rank holds come first, whatever it takes.
///
/// @param shares  `optimal`: layers that stay have their shares solved anew, which takes no moves.
/// @param next    in/out: [L, P] the plan.
/// @complexity O(H L E + L P) and that of `best_changes`; with optimal shares that of solving them for each layer.
inline void choose_layers(load_history_view history, placement const& current, topology const& where,
                          std::int64_t max_moves, share_mode shares, placement& next) {
  std::vector<layer_change> changes;
  std::vector<load_t> loads(static_cast<std::size_t>(history.num_logical()));
  std::vector<load_t> on_rank(static_cast<std::size_t>(where.num_ranks()));
  share_solver solver;
  placement kept = current;
  kept.drop_shares();  // those in force do not count: plans have even ones, or their own
  auto const busiest = [&where, &loads, &on_rank](placement const& in, index_t layer) {
    rank_loads(where, in, layer, loads, on_rank);
    return *std::max_element(on_rank.begin(), on_rank.end());
  };
  auto const is_cut_off = [&current, &where](index_t layer, index_t expert) {
    auto const replicas = current.replicas_of(layer, expert);
    return std::none_of(replicas.begin(), replicas.end(),
                        [&where](index_t slot) { return where.is_live(where.rank_of_slot(slot)); });
  };
  auto const must_move = [&where, &current, &is_cut_off](index_t layer) {
    if (where.num_live_ranks() == where.num_ranks()) { return false; }
    for (index_t expert = 0; expert < current.num_logical(); ++expert) {
      if (is_cut_off(layer, expert)) { return true; }
    }
    return false;
  };
  auto left = max_moves;
  for (index_t layer = 0; layer < next.num_layers(); ++layer) {
    auto const moves = std::int64_t{count_moves(where, current, next, layer)};
    if (moves == 0) { continue; }
    if (must_move(layer)) {
      left -= moves;
      continue;
    }
    sum_buckets(history, layer, loads);
    if (shares == share_mode::even) {
      split_among_live(where, kept, layer);
    } else {
      auto const split = split_planned_layer(where, kept, layer, loads, solver);
      BALLAST_ASSERT(split.ok(), "choose_layers: a layer whose experts all have a home");
    }
    auto const gain = busiest(kept, layer) - busiest(next, layer);
    if (gain >= 0) {
      changes.push_back({layer, moves, gain});
    } else {
      next.copy_layer(kept, layer);
    }
  }
  std::sort(changes.begin(), changes.end(), [](layer_change const& a, layer_change const& b) {
    auto const worth_a = a.gain / a.moves;
    auto const worth_b = b.gain / b.moves;
    return worth_a != worth_b ? worth_a > worth_b : a.layer < b.layer;
  });
  auto const is_made = best_changes(changes, left);
  for (std::size_t i = 0; i < changes.size(); ++i) {
    if (is_made[i] == 0) { next.copy_layer(kept, changes[i].layer); }
  }
}

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
