// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_PLACEMENT_GROUP_SPLIT_HPP
#define BALLAST_PLACEMENT_GROUP_SPLIT_HPP

#include <ballast/contract.hpp>
#include <ballast/placement/balancedness.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE

/// How far the expert groups of one layer are spread over nodes.
struct group_split {
  index_t split_groups = 0;  ///< groups with copies on more than one node
  double tokens_away = 0;    ///< tokens of groups that are computed off their home, the node that computes most of them

  bool operator==(group_split const&) const = default;
};

/// Report which groups of one layer are spread over nodes, and how many tokens that sends away from home.
///
/// @param where       ranks and nodes; without shares an expert's live replicas have even ones.
/// @param in          [L, P]
/// @param num_groups  G, consecutive experts; divides E.
/// @param layer       in [0, L).
/// @param loads       [E] tokens, >= 0, at most `max_layer_tokens` together.
/// @pre `in` has the topology's P slots and G divides E
/// @complexity O(P + G N), one allocation of [G, N].
/// @throws std::bad_alloc
/// @determinism integer arithmetic; of equal nodes the lowest is home.
[[nodiscard]] inline group_split split_of_groups(topology const& where, placement const& in, index_t num_groups,
                                                 index_t layer, std::span<load_t const> loads) {
  BALLAST_EXPECTS(in.num_slots() == where.num_slots(), "split_of_groups: placement and topology differ in slots");
  BALLAST_EXPECTS(num_groups >= 1 && in.num_logical() % num_groups == 0,
                  "split_of_groups: groups do not divide experts");
  BALLAST_EXPECTS(loads.size() == static_cast<std::size_t>(in.num_logical()), "split_of_groups: loads are not [E]");
  detail::expect_usable(loads, "split_of_groups: tokens of an expert", "split_of_groups: tokens of a layer");
  auto const num_nodes = static_cast<std::size_t>(where.num_nodes());
  auto const group_size = in.num_logical() / num_groups;
  std::vector<load_t> tokens(static_cast<std::size_t>(num_groups) * num_nodes, load_t{-1});  // -1: no copy there
  auto const is_live = [&where](index_t slot) { return where.is_live(where.rank_of_slot(slot)); };
  for (index_t expert = 0; expert < in.num_logical(); ++expert) {
    auto const replicas = in.replicas_of(layer, expert);
    auto const load = loads[static_cast<std::size_t>(expert)];
    auto const num_live = static_cast<load_t>(std::count_if(replicas.begin(), replicas.end(), is_live));
    for (auto const slot : replicas) {
      if (!is_live(slot)) { continue; }
      auto& cell = tokens[static_cast<std::size_t>(expert / group_size) * num_nodes +
                          static_cast<std::size_t>(where.node_of_slot(slot))];
      cell = std::max(cell, load_t{0}) +
             (in.has_shares() ? detail::shared_load(load, in.shares(layer)[static_cast<std::size_t>(slot)])
                              : load * detail::load_unit / num_live);
    }
  }
  group_split result;
  load_t away = 0;
  for (auto group = tokens.begin(); group != tokens.end(); group += static_cast<std::ptrdiff_t>(num_nodes)) {
    auto const end = group + static_cast<std::ptrdiff_t>(num_nodes);
    result.split_groups += std::count_if(group, end, [](load_t cell) { return cell >= 0; }) > 1 ? 1 : 0;
    auto const home = std::max_element(group, end);
    for (auto cell = group; cell != end; ++cell) { away += cell != home ? std::max(*cell, load_t{0}) : 0; }
  }
  result.tokens_away = static_cast<double>(away) / static_cast<double>(detail::load_unit);
  return result;
}

BALLAST_END_NAMESPACE

#endif
