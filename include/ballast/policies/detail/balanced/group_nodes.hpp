// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_DETAIL_BALANCED_GROUP_NODES_HPP
#define BALLAST_POLICIES_DETAIL_BALANCED_GROUP_NODES_HPP

#include <ballast/contract.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Gives whole expert groups to nodes so that the node with the most load a rank has as little as possible.
///
/// Depth-first over groups in descending order of load, lightest node first, cut off where a node is already as loaded
/// as the best complete answer. Exact when the work suffices (8 groups on 4 nodes: 105 answers), the best met so far
/// otherwise; the first answer is largest-first packing.
class group_assigner {
public:
  /// @param group_loads  [G] load units.
  /// @param ranks        [N] live ranks of each node; a node without takes no group.
  /// @param places       [N] most groups that fit each node's slots.
  /// @param node_of      out: [G] node of each group.
  /// @param work         most nodes of the search tree.
  /// @return whether every group found a place.
  /// @complexity G^2 N a node of the search tree; no allocation when the sizes are not larger than before.
  bool run(std::span<load_t const> group_loads, std::span<index_t const> ranks, std::span<index_t const> places,
           std::span<index_t> node_of, std::int64_t work = 20000) {
    auto const num_groups = group_loads.size();
    group_loads_ = group_loads;
    ranks_ = ranks;
    node_of_ = node_of;
    work_ = work;
    room_.assign(places.begin(), places.end());
    load_.assign(places.size(), 0);
    chosen_.assign(num_groups, -1);
    order_.resize(num_groups);
    std::iota(order_.begin(), order_.end(), index_t{0});
    std::sort(order_.begin(), order_.end(), [&group_loads](index_t a, index_t b) {
      auto const x = group_loads[static_cast<std::size_t>(a)];
      auto const y = group_loads[static_cast<std::size_t>(b)];
      return x != y ? x > y : a < b;
    });
    best_ = std::numeric_limits<load_t>::max();
    // Every node with ranks must get at least one group, or its ranks would idle.
    empty_ = 0;
    std::size_t all_places = 0;
    for (std::size_t n = 0; n < places.size(); ++n) {
      if (ranks[n] == 0) { continue; }
      if (places[n] == 0) { return false; }
      ++empty_;
      all_places += static_cast<std::size_t>(places[n]);
    }
    // Without an answer nothing would end the search before its end.
    if (empty_ > num_groups || all_places < num_groups) { return false; }
    nodes_.resize(num_groups * places.size());
    descend(0, 0);
    return best_ != std::numeric_limits<load_t>::max();
  }

  /// Least load a rank of the node with most, when the search is complete.
  [[nodiscard]] load_t heaviest() const noexcept { return best_; }
  /// Whether no better answer exists.
  [[nodiscard]] bool is_exact() const noexcept { return work_ >= 0; }

private:
  /// Load a rank of a node once it takes `extra` more.
  [[nodiscard]] load_t density(std::size_t node, load_t extra) const noexcept {
    return (load_[node] + extra) / ranks_[node];
  }

  void descend(std::size_t depth, load_t worst) {
    if (depth == order_.size()) {
      if (worst < best_) {
        best_ = worst;
        std::copy(chosen_.begin(), chosen_.end(), node_of_.begin());
      }
      return;
    }
    auto const group = static_cast<std::size_t>(order_[depth]);
    auto const num_nodes = room_.size();
    auto const candidates = std::span{nodes_}.subspan(depth * num_nodes, num_nodes);
    std::iota(candidates.begin(), candidates.end(), index_t{0});
    auto const with = [this, &group](index_t node) {
      return ranks_[static_cast<std::size_t>(node)] > 0 ? density(static_cast<std::size_t>(node), group_loads_[group])
                                                        : std::numeric_limits<load_t>::max();
    };
    std::sort(candidates.begin(), candidates.end(),
              [&with](index_t a, index_t b) { return with(a) != with(b) ? with(a) < with(b) : a < b; });
    for (auto const candidate : candidates) {
      auto const node = static_cast<std::size_t>(candidate);
      if (room_[node] == 0 || ranks_[node] == 0) { continue; }
      bool const first = chosen_count(node) == 0;
      if (!first && order_.size() - depth <= empty_) { continue; }
      auto const next = std::max(worst, with(candidate));
      if (next >= best_) { break; }
      // Two nodes in the same state lead to the same answers.
      if (is_twin_of_earlier(candidates, candidate)) { continue; }
      if (--work_ < 0 && best_ != std::numeric_limits<load_t>::max()) { return; }
      place(group, node, +1);
      empty_ -= static_cast<std::size_t>(first);
      descend(depth + 1, next);
      empty_ += static_cast<std::size_t>(first);
      place(group, node, -1);
    }
  }

  void place(std::size_t group, std::size_t node, int sign) noexcept {
    load_[node] += sign * group_loads_[group];
    room_[node] -= sign;
    chosen_[group] = sign > 0 ? static_cast<index_t>(node) : -1;
  }
  [[nodiscard]] index_t chosen_count(std::size_t node) const noexcept {
    return static_cast<index_t>(std::count(chosen_.begin(), chosen_.end(), static_cast<index_t>(node)));
  }
  [[nodiscard]] bool is_twin_of_earlier(std::span<index_t const> candidates, index_t candidate) const noexcept {
    auto const node = static_cast<std::size_t>(candidate);
    for (auto const other : candidates) {
      if (other == candidate) { return false; }
      auto const o = static_cast<std::size_t>(other);
      if (load_[o] == load_[node] && room_[o] == room_[node] && ranks_[o] == ranks_[node] &&
          chosen_count(o) == chosen_count(node)) {
        return true;
      }
    }
    return false;
  }

  std::span<load_t const> group_loads_;
  std::span<index_t const> ranks_;
  std::span<index_t> node_of_;
  std::int64_t work_ = 0;
  load_t best_ = 0;
  std::size_t empty_ = 0;
  std::vector<index_t> room_;
  std::vector<load_t> load_;
  std::vector<index_t> chosen_;
  std::vector<index_t> order_;
  std::vector<index_t> nodes_;
};

/// Groups that a node may take: its share of them, as in the published reference, or with dead ranks what it has the
/// slots for.
[[nodiscard]] inline index_t places_of_node(topology const& where, index_t slots, index_t group_size,
                                            index_t num_groups) noexcept {
  bool const all_live = where.num_live_ranks() == where.num_ranks();
  return all_live ? num_groups / where.num_nodes() : slots / group_size;
}

/// Least load a rank that the heaviest node must have when every group stays on one node; 0 where groups cannot, or
/// where the work does not suffice for a proof.
[[nodiscard]] inline load_t bound_of_groups(topology const& where, std::span<load_t const> loads, index_t num_groups,
                                            std::int64_t work) {
  auto const num_experts = static_cast<index_t>(loads.size());
  BALLAST_EXPECTS(num_experts > 0, "bound_of_groups: no experts");
  if (num_groups % where.num_nodes() != 0 || num_experts % num_groups != 0) { return 0; }
  auto const group_size = num_experts / num_groups;
  std::vector<load_t> group_loads(static_cast<std::size_t>(num_groups), 0);
  for (index_t e = 0; e < num_experts; ++e) {
    group_loads[static_cast<std::size_t>(e / group_size)] += loads[static_cast<std::size_t>(e)];
  }
  std::vector<index_t> ranks(static_cast<std::size_t>(where.num_nodes()), 0);
  for (index_t rank = 0; rank < where.num_ranks(); ++rank) {
    ranks[static_cast<std::size_t>(where.node_of_rank(rank))] += where.is_live(rank) ? 1 : 0;
  }
  std::vector<index_t> places;
  places.reserve(ranks.size());
  for (auto const live : ranks) {
    places.push_back(places_of_node(where, live * where.slots_per_rank(), group_size, num_groups));
  }
  std::vector<index_t> node_of(group_loads.size());
  group_assigner assigner;
  bool const fits = assigner.run(group_loads, ranks, places, node_of, work);
  return fits && assigner.is_exact() ? assigner.heaviest() : 0;
}

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
