// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_RELABEL_HPP
#define BALLAST_POLICIES_RELABEL_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/index.hpp>
#include <ballast/matrix_view.hpp>
#include <ballast/placement/detail/dead_ranks.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/policies/detail/relabel/assignment.hpp>
#include <ballast/policies/relabel_scope.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE

/// What `relabel` may exchange, and what bytes cost.
struct relabel_options {
  index_t cross_node_price = 8;  ///< cost of an expert from another node, where one from the same node costs 1; >= 1
  relabel_scope scope = relabel_scope::nodes;
};

namespace detail {

/// Relabels layer after layer with the same scratch memory.
class relabeler {
public:
  relabeler(topology const& where, relabel_options options)
      : where_{where}, options_{options}, live_{live_ranks(where)} {
    auto const num_ranks = static_cast<std::size_t>(where.num_ranks());
    auto const num_nodes = static_cast<std::size_t>(where.num_nodes());
    first_live_.assign(num_nodes + 1, 0);
    for (auto const rank : live_) { ++first_live_[static_cast<std::size_t>(where.node_of_rank(rank)) + 1]; }
    for (std::size_t n = 0; n < num_nodes; ++n) { first_live_[n + 1] += first_live_[n]; }
    source_.resize(num_ranks);
    near_.resize(num_ranks * num_nodes);
    std::iota(source_.begin(), source_.end(), 0);
  }

  void run(placement const& current, placement& target, index_t layer) {
    if (std::equal(current.logical_of_slot(layer).begin(), current.logical_of_slot(layer).end(),
                   target.logical_of_slot(layer).begin())) {
      return;
    }
    if (options_.scope == relabel_scope::none) { return; }
    if (options_.scope > relabel_scope::slots) {
      count_overlaps(current, target, layer);
      match();
      rewrite(current, target, layer);
    } else {
      align_slots(current, target, layer);
    }
  }
  /// Slots alone change names, whatever the scope.
  void align_slots(placement const& current, placement& target, index_t layer) {
    std::iota(source_.begin(), source_.end(), 0);
    rewrite(current, target, layer);
  }

private:
  using cost_t = assignment_solver::cost_t;

  [[nodiscard]] index_t& kept(index_t from, index_t to) noexcept {
    return kept_[static_cast<std::size_t>(from) * source_.size() + static_cast<std::size_t>(to)];
  }
  [[nodiscard]] index_t& near(index_t from, index_t node) noexcept {
    return near_[static_cast<std::size_t>(from) * static_cast<std::size_t>(where_.num_nodes()) +
                 static_cast<std::size_t>(node)];
  }
  [[nodiscard]] std::span<index_t const> live_ranks_of(index_t node) const noexcept {
    auto const first = first_live_[static_cast<std::size_t>(node)];
    return std::span{live_}.subspan(first, first_live_[static_cast<std::size_t>(node) + 1] - first);
  }

  /// For every rank of the target: how many of its experts each rank, and each node, holds now.
  void count_overlaps(placement const& current, placement const& target, index_t layer) {
    kept_.assign(source_.size() * source_.size(), 0);
    std::fill(near_.begin(), near_.end(), 0);
    auto const offsets = current.replica_offsets(layer);
    auto const slots = current.replica_slots(layer);
    for (auto const rank : live_) {
      auto const wanted = row_of(target.logical_of_slot(layer), rank);
      for (auto at = wanted.begin(); at != wanted.end(); ++at) {
        if (std::find(wanted.begin(), at, *at) != at) { continue; }
        auto const expert = static_cast<std::size_t>(*at);
        index_t last_rank = -1;
        index_t last_node = -1;
        // Slots of an expert ascend, so equal ranks and equal nodes follow each other.
        for (auto i = offsets[expert]; i < offsets[expert + 1]; ++i) {
          auto const holder = where_.rank_of_slot(slots[static_cast<std::size_t>(i)]);
          if (holder == last_rank || !where_.is_live(holder)) { continue; }
          last_rank = holder;
          ++kept(rank, holder);
          auto const node = where_.node_of_rank(holder);
          if (node != last_node) { ++near(rank, node); }
          last_node = node;
        }
      }
    }
  }

  /// Bytes saved by giving rank `to` the target's content of `from`, in units of one expert from the same node.
  [[nodiscard]] cost_t saving(index_t from, index_t to) noexcept {
    return kept(from, to) + cost_t{options_.cross_node_price - 1} * near(from, where_.node_of_rank(to));
  }

  void match() {
    if (options_.scope == relabel_scope::all || where_.num_nodes() == 1) {
      match_all_ranks();
    } else if (options_.scope == relabel_scope::nodes) {
      match_nodes();
    } else {
      match_ranks_of_nodes();
    }
  }
  void match_all_ranks() {
    auto const size = static_cast<index_t>(live_.size());
    costs_.clear();
    for (auto const from : live_) {
      for (auto const to : live_) { costs_.push_back(-saving(from, to)); }
    }
    column_.resize(live_.size());
    solver_.solve({costs_, size, size}, column_);
    for (std::size_t i = 0; i < live_.size(); ++i) {
      source_[static_cast<std::size_t>(live_[static_cast<std::size_t>(column_[i])])] = live_[i];
    }
  }

  /// Ranks are matched for every pair of nodes, then nodes by what their ranks save.
  void match_nodes() {
    auto const num_nodes = where_.num_nodes();
    auto const num_pairs = static_cast<std::size_t>(num_nodes) * static_cast<std::size_t>(num_nodes);
    auto const width = static_cast<std::size_t>(where_.ranks_per_node());
    node_costs_.assign(num_pairs, 0);
    pair_columns_.resize(num_pairs * width);
    for (index_t from = 0; from < num_nodes; ++from) {
      for (index_t to = 0; to < num_nodes; ++to) {
        auto const pair = static_cast<std::size_t>(from * num_nodes + to);
        node_costs_[pair] = match_node_pair(from, to, std::span{pair_columns_}.subspan(pair * width, width));
      }
    }
    column_.resize(static_cast<std::size_t>(num_nodes));
    solver_.solve({node_costs_, num_nodes, num_nodes}, column_);
    for (index_t from = 0; from < num_nodes; ++from) {
      auto const to = column_[static_cast<std::size_t>(from)];
      auto const columns =
          std::span{pair_columns_}.subspan(static_cast<std::size_t>(from * num_nodes + to) * width, width);
      auto const sources = live_ranks_of(from);
      auto const sinks = live_ranks_of(to);
      for (std::size_t i = 0; i < sources.size(); ++i) {
        source_[static_cast<std::size_t>(sinks[static_cast<std::size_t>(columns[i])])] = sources[i];
      }
    }
  }

  void match_ranks_of_nodes() {
    for (index_t node = 0; node < where_.num_nodes(); ++node) {
      auto const ranks = live_ranks_of(node);
      column_.resize(ranks.size());
      match_node_pair(node, node, column_);
      for (std::size_t i = 0; i < ranks.size(); ++i) {
        source_[static_cast<std::size_t>(ranks[static_cast<std::size_t>(column_[i])])] = ranks[i];
      }
    }
  }
  cost_t match_node_pair(index_t from, index_t to, std::span<index_t> columns) {
    auto const sources = live_ranks_of(from);
    auto const sinks = live_ranks_of(to);
    // Nodes with different numbers of live ranks cannot take each other's place.
    if (sources.size() != sinks.size()) { return cost_t{1} << 40; }
    costs_.clear();
    for (auto const rank : sources) {
      for (auto const sink : sinks) { costs_.push_back(-saving(rank, sink)); }
    }
    auto const size = static_cast<index_t>(sources.size());
    return solver_.solve({costs_, size, size}, columns.first(sources.size()));
  }

  [[nodiscard]] std::span<index_t const> row_of(std::span<index_t const> map, index_t rank) const noexcept {
    return map.subspan(static_cast<std::size_t>(where_.first_slot(rank)),
                       static_cast<std::size_t>(where_.slots_per_rank()));
  }

  /// Move the ranks' contents, each expert that a rank keeps to the slot it has now.
  void rewrite(placement const& current, placement& target, index_t layer) {
    auto const map = target.edit(layer).logical_of_slot;
    old_map_.assign(map.begin(), map.end());
    if (target.has_shares()) {
      auto const shares = target.edit_shares(layer);
      old_shares_.assign(shares.begin(), shares.end());
    }
    for (auto const rank : live_) {
      align(row_of(current.logical_of_slot(layer), rank), source_[static_cast<std::size_t>(rank)]);
      auto const first = static_cast<std::size_t>(where_.first_slot(rank));
      for (std::size_t i = 0; i < from_slot_.size(); ++i) {
        auto const from = static_cast<std::size_t>(from_slot_[i]);
        map[first + i] = old_map_[from];
        if (target.has_shares()) { target.edit_shares(layer)[first + i] = old_shares_[from]; }
      }
    }
    target.index_replicas(layer);
  }
  /// Choose which slot of the target's rank `from` each slot takes over.
  void align(std::span<index_t const> held, index_t from) {
    auto const first = where_.first_slot(from);
    from_slot_.assign(held.size(), -1);
    pending_.clear();
    for (index_t i = 0; i < where_.slots_per_rank(); ++i) { pending_.push_back(first + i); }
    for (std::size_t slot = 0; slot < held.size(); ++slot) {
      auto const found = std::find_if(pending_.begin(), pending_.end(), [this, &held, &slot](index_t candidate) {
        return old_map_[static_cast<std::size_t>(candidate)] == held[slot];
      });
      if (found == pending_.end()) { continue; }
      from_slot_[slot] = *found;
      pending_.erase(found);
    }
    auto next = pending_.begin();
    for (auto& slot : from_slot_) {
      if (slot < 0) { slot = *next++; }
    }
  }

  topology const& where_;
  relabel_options options_;
  std::vector<index_t> live_;            // live ranks, ascending
  std::vector<std::size_t> first_live_;  // [N + 1] into `live_`
  std::vector<index_t> source_;          // [R] rank of the target whose content each rank gets
  std::vector<index_t> kept_;            // [R, R]
  std::vector<index_t> near_;            // [R, N]
  std::vector<cost_t> costs_;
  std::vector<cost_t> node_costs_;
  std::vector<index_t> column_;
  std::vector<index_t> pair_columns_;
  std::vector<index_t> old_map_;
  std::vector<share_t> old_shares_;
  std::vector<index_t> from_slot_;
  std::vector<index_t> pending_;
  assignment_solver solver_;
};

}  // namespace detail

/// Permute slots, ranks and nodes, as far as the scope allows, layer by layer, so that `target` costs the fewest bytes
/// from `current`. Loads stay as balanced as they were: equal ranks change names only.
///
/// An expert that a rank keeps stays in its slot. Dead ranks keep their content; live ranks take the content of live
/// ranks only. Shares move along with their replicas; replicas are ranked by ascending slot afterwards.
///
/// @param current  [L, P] the placement in force.
/// @param where    R ranks, N nodes, S slots a rank.
/// @param target   in/out: [L, P] of the same shape.
/// @param layers   those to look at; the others stay as they are.
/// @param options  what bytes cost, and what may change names.
/// @pre both placements have the topology's P slots and the same shape; `options.cross_node_price >= 1`
/// @complexity O(P S + R^3) a layer at worst, nearer O(P S + R^2); allocates scratch of O(R^2) once.
/// @throws std::bad_alloc
/// @determinism exact integer assignment; ties go to the lowest rank.
inline void relabel(placement const& current, topology const& where, placement& target, std::span<index_t const> layers,
                    relabel_options options) {
  BALLAST_EXPECTS(current.shape() == target.shape(), "relabel: placements differ in shape");
  BALLAST_EXPECTS(target.num_slots() == where.num_slots(), "relabel: placement and topology differ in slots");
  BALLAST_EXPECTS(options.cross_node_price >= 1, "relabel: cross_node_price must be at least 1");
  detail::relabeler relabeler{where, options};
  for (auto const layer : layers) { relabeler.run(current, target, layer); }
}

/// The same for all layers.
inline void relabel(placement const& current, topology const& where, placement& target, relabel_options options = {}) {
  relabel(current, where, target, detail::numbers_below(target.num_layers()), options);
}

BALLAST_END_NAMESPACE

#endif
