// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_DETAIL_INCREMENTAL_CHOOSE_LAYERS_HPP
#define BALLAST_POLICIES_DETAIL_INCREMENTAL_CHOOSE_LAYERS_HPP

#include <ballast/load/history.hpp>
#include <ballast/placement/balancedness.hpp>
#include <ballast/placement/moves.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Let the layers of a plan that gain most for their moves have them, and the others stay as they are, so that there
/// are not more than `max_moves`. Layers in which a live rank must get what no live rank holds come first, whatever it
/// takes.
///
/// @param next  in/out: [L, P] the plan.
/// @complexity O(H L E + L P + L log L)
inline void choose_layers(load_history_view history, placement const& current, topology const& where,
                          std::int64_t max_moves, placement& next) {
  struct candidate {
    index_t layer;
    std::int64_t moves;
    load_t worth;  ///< by how much the busiest rank gets lighter, for each move
  };
  std::vector<candidate> candidates;
  std::vector<load_t> loads(static_cast<std::size_t>(history.num_logical()));
  std::vector<load_t> on_rank(static_cast<std::size_t>(where.num_ranks()));
  auto const busiest = [&where, &loads, &on_rank](placement const& in, index_t layer) {
    rank_loads(where, in, layer, loads, on_rank);
    return *std::max_element(on_rank.begin(), on_rank.end());
  };
  auto const is_cut_off = [&current, &where](index_t layer, index_t expert) {
    auto const replicas = current.replicas_of(layer, expert);
    return std::none_of(replicas.begin(), replicas.end(),
                        [&where](index_t slot) { return where.is_live(where.rank_of_slot(slot)); });
  };
  for (index_t layer = 0; layer < next.num_layers(); ++layer) {
    auto const moves = std::int64_t{count_moves(where, current, next, layer)};
    if (moves == 0) { continue; }
    sum_buckets(history, layer, loads);
    bool must_move = false;
    for (index_t expert = 0; expert < current.num_logical() && where.num_live_ranks() < where.num_ranks(); ++expert) {
      must_move = must_move || is_cut_off(layer, expert);
    }
    candidates.push_back(
        {layer, moves,
         must_move ? std::numeric_limits<load_t>::max() : (busiest(current, layer) - busiest(next, layer)) / moves});
  }
  std::sort(candidates.begin(), candidates.end(), [](candidate const& a, candidate const& b) {
    return a.worth != b.worth ? a.worth > b.worth : a.layer < b.layer;
  });
  auto left = max_moves;
  for (auto const& one : candidates) {
    if (one.moves <= left || one.worth == std::numeric_limits<load_t>::max()) {
      left -= one.moves;
    } else {
      next.copy_layer(current, one.layer);
    }
  }
}

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
