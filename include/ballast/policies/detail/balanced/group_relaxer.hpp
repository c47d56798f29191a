// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_DETAIL_BALANCED_GROUP_RELAXER_HPP
#define BALLAST_POLICIES_DETAIL_BALANCED_GROUP_RELAXER_HPP

#include <ballast/contract.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Moves experts of overloaded nodes to nodes with room where that is worth the traffic.
///
/// A token computed away from its group's home costs `price` percent of computing a token, spread over all ranks.
/// Lowering the heaviest nodes' load a rank by one token then gains one and costs price * (share of ranks on such
/// nodes): nodes are levelled down, heaviest first, as long as that is less. What has to leave a node leaves it in few
/// experts of few groups.
class group_relaxer {
public:
  /// @param loads    [E] load units.
  /// @param ranks    [N] live ranks of each node.
  /// @param slots    [N] live slots of each node.
  /// @param fewest   experts that every node keeps.
  /// @param price    percent, >= 0.
  /// @param handy    experts heavier than this many 1 / 4 of the level leave last: they take other slots along.
  /// @param node_of  in/out: [E] node of each expert, whole groups together on entry.
  void run(std::span<load_t const> loads, index_t group_size, std::span<index_t const> ranks,
           std::span<index_t const> slots, index_t fewest, index_t price, index_t handy, std::span<index_t> node_of) {
    loads_ = loads;
    node_of_ = node_of;
    load_.assign(ranks.size(), 0);
    room_.assign(slots.begin(), slots.end());
    spare_.assign(ranks.size(), -fewest);
    for (std::size_t e = 0; e < loads.size(); ++e) {
      load_[static_cast<std::size_t>(node_of[e])] += loads[e];
      --room_[static_cast<std::size_t>(node_of[e])];
      ++spare_[static_cast<std::size_t>(node_of[e])];
    }
    auto const level = find_level(ranks, price);
    for (std::size_t node = 0; node < ranks.size(); ++node) {
      if (ranks[node] > 0) { lower(static_cast<index_t>(node), level, times(level / 4, handy), ranks, group_size); }
    }
  }

private:
  /// A product that stays at the largest load where it would exceed it. @pre both are >= 0
  [[nodiscard]] static load_t times(load_t load, index_t factor) noexcept {
    constexpr auto most = std::numeric_limits<load_t>::max();
    return factor > 0 && load > most / factor ? most : load * factor;
  }

  /// Load a rank to which it pays to level nodes down.
  [[nodiscard]] load_t find_level(std::span<index_t const> ranks, index_t price) {
    order_.resize(ranks.size());
    std::iota(order_.begin(), order_.end(), std::size_t{0});
    auto const density = [this, &ranks](std::size_t n) { return ranks[n] > 0 ? load_[n] / ranks[n] : load_t{-1}; };
    std::sort(order_.begin(), order_.end(), [&density](std::size_t a, std::size_t b) {
      return density(a) != density(b) ? density(a) > density(b) : a < b;
    });
    load_t total = 0;
    load_t all_ranks = 0;
    for (std::size_t n = 0; n < ranks.size(); ++n) {
      total += load_[n];
      all_ranks += ranks[n];
    }
    auto const mean = total / all_ranks;
    load_t lowered = 0;  // ranks on the nodes above the level
    for (auto const node : order_) {
      if (density(node) <= mean) { break; }
      lowered += ranks[node];
      if (lowered * price >= all_ranks * 100) { return density(node); }
    }
    return mean;
  }

  /// Send experts away until a node is at the level.
  void lower(index_t node, load_t level, load_t handy, std::span<index_t const> ranks, index_t group_size) {
    auto const n = static_cast<std::size_t>(node);
    list_experts(node, group_size, handy);
    for (auto const expert : experts_) {
      auto const excess = load_[n] - times(level, ranks[n]);
      if (excess <= 0 || spare_[n] <= 0) { return; }
      if (loads_[expert] == 0 || loads_[expert] > excess) { continue; }
      auto const target = roomiest(level, ranks, n);
      if (target == ranks.size() || load_[target] + loads_[expert] > times(level, ranks[target])) { continue; }
      move(expert, n, target);
    }
  }
  /// Experts of a node, the groups with most load first, heaviest experts first; those that are too heavy for one copy
  /// last, since they would take other slots along.
  void list_experts(index_t node, index_t group_size, load_t handy) {
    auto const size = static_cast<std::size_t>(group_size);
    group_loads_.assign(loads_.size() / size, 0);
    experts_.clear();
    for (std::size_t e = 0; e < loads_.size(); ++e) {
      if (node_of_[e] != node) { continue; }
      experts_.push_back(e);
      group_loads_[e / size] += loads_[e];
    }
    std::sort(experts_.begin(), experts_.end(), [this, &size, &handy](std::size_t a, std::size_t b) {
      auto const x = group_loads_[a / size];
      auto const y = group_loads_[b / size];
      if (x != y) { return x > y; }
      if (a / size != b / size) { return a / size < b / size; }
      if ((loads_[a] > handy) != (loads_[b] > handy)) { return loads_[b] > handy; }
      return loads_[a] != loads_[b] ? loads_[a] > loads_[b] : a < b;
    });
  }
  /// Node with free slots that is furthest below the level.
  [[nodiscard]] std::size_t roomiest(load_t level, std::span<index_t const> ranks, std::size_t except) const noexcept {
    auto best = ranks.size();
    load_t most = 0;
    for (std::size_t n = 0; n < ranks.size(); ++n) {
      if (n == except || ranks[n] == 0 || room_[n] <= 0) { continue; }
      auto const room = times(level, ranks[n]) - load_[n];
      if (room > most) {
        most = room;
        best = n;
      }
    }
    return best;
  }
  void move(std::size_t expert, std::size_t from, std::size_t to) noexcept {
    node_of_[expert] = static_cast<index_t>(to);
    load_[from] -= loads_[expert];
    load_[to] += loads_[expert];
    ++room_[from];
    --room_[to];
    --spare_[from];
    ++spare_[to];
  }

  std::span<load_t const> loads_;
  std::span<index_t> node_of_;
  std::vector<load_t> load_;
  std::vector<index_t> room_;   // [N] experts that a node could take
  std::vector<index_t> spare_;  // [N] experts that a node could lose
  std::vector<std::size_t> order_;
  std::vector<std::size_t> experts_;
  std::vector<load_t> group_loads_;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
