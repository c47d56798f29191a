// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_PLACEMENT_BALANCED_HPP
#define BALLAST_PLACEMENT_BALANCED_HPP

#include <ballast/contract.hpp>
#include <ballast/digest.hpp>
#include <ballast/load/history.hpp>
#include <ballast/placement/balancedness.hpp>
#include <ballast/placement/dead_ranks.hpp>
#include <ballast/placement/detail/group_nodes.hpp>
#include <ballast/placement/detail/region_planner.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/placement/policy.hpp>
#include <ballast/placement/rank_cost.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <string_view>
#include <vector>

BALLAST_BEGIN_NAMESPACE

/// Whether the copies of an expert group have to stay on one node.
enum class group_locality : index_t {
  whole = 0,  ///< every copy of a group's experts on one node, where the nodes divide the groups; free otherwise
  free = 1,   ///< anywhere
};

namespace detail {

/// Plans layer after layer with the same scratch memory.
template <rank_cost Cost>
class balanced_planner {
public:
  balanced_planner(topology const& where, index_t num_logical, Cost const& cost, region_planner::effort effort)
      : where_{where}, cost_{cost}, effort_{effort}, loads_(static_cast<std::size_t>(num_logical)) {
    for (index_t rank = 0; rank < where.num_ranks(); ++rank) {
      if (where.is_live(rank)) { live_ranks_.push_back(rank); }
    }
    all_experts_.resize(loads_.size());
    std::iota(all_experts_.begin(), all_experts_.end(), index_t{0});
  }

  /// Fill the live slots of one layer in.
  void plan_layer(load_history_view history, index_t layer, index_t num_groups, std::span<index_t> out) {
    sum_buckets(history, layer, loads_);
    for (auto& load : loads_) { load *= load_unit; }
    if (num_groups > 1 && assign_groups(num_groups)) {
      plan_nodes(num_groups, out);
    } else {
      plan_region(all_experts_, live_ranks_, out);
    }
  }

private:
  struct region_cost {
    Cost const& cost;
    std::span<index_t const> ranks;
    [[nodiscard]] load_t operator()(index_t rank, load_t load) const noexcept {
      return cost(ranks[static_cast<std::size_t>(rank)], load);
    }
    void describe(digest&) const noexcept {}
  };

  /// Pack some experts on some ranks.
  void plan_region(std::span<index_t const> experts, std::span<index_t const> ranks, std::span<index_t> out) {
    auto const slots = where_.slots_per_rank();
    auto const num_experts = static_cast<index_t>(experts.size());
    auto const num_ranks = static_cast<index_t>(ranks.size());
    if (num_experts <= slots) {
      // Every rank can hold every expert: ranks that are all alike are in perfect balance.
      for (auto const rank : ranks) {
        for (index_t i = 0; i < slots; ++i) {
          out[static_cast<std::size_t>(where_.first_slot(rank) + i)] =
              experts[static_cast<std::size_t>(i % num_experts)];
        }
      }
      return;
    }
    region_loads_.resize(experts.size());
    for (std::size_t e = 0; e < experts.size(); ++e) {
      region_loads_[e] = loads_[static_cast<std::size_t>(experts[e])];
    }
    if constexpr (cost_is_load<Cost>) {
      region_.plan(region_loads_, num_ranks, slots, cost_, effort_);
    } else {
      region_.plan(region_loads_, num_ranks, slots, region_cost{cost_, ranks}, effort_);
    }
    auto const& packed = region_.packed();
    for (index_t r = 0; r < num_ranks; ++r) {
      auto const first = static_cast<std::size_t>(where_.first_slot(ranks[static_cast<std::size_t>(r)]));
      auto const copies = packed.copies_on(r);
      for (std::size_t i = 0; i < copies.size(); ++i) {
        out[first + i] = experts[static_cast<std::size_t>(packed.expert(copies[i]))];
      }
    }
  }

  /// Choose a node for each group; false where groups cannot stay whole.
  [[nodiscard]] bool assign_groups(index_t num_groups) {
    auto const num_logical = static_cast<index_t>(loads_.size());
    if (num_groups % where_.num_nodes() != 0 || num_logical % num_groups != 0) { return false; }
    auto const group_size = num_logical / num_groups;
    group_loads_.assign(static_cast<std::size_t>(num_groups), 0);
    for (std::size_t e = 0; e < loads_.size(); ++e) {
      group_loads_[e / static_cast<std::size_t>(group_size)] += loads_[e];
    }
    ranks_of_node_.assign(static_cast<std::size_t>(where_.num_nodes()), 0);
    for (auto const rank : live_ranks_) { ++ranks_of_node_[static_cast<std::size_t>(where_.node_of_rank(rank))]; }
    places_.clear();
    for (auto const ranks : ranks_of_node_) { places_.push_back(ranks * where_.slots_per_rank() / group_size); }
    node_of_group_.resize(static_cast<std::size_t>(num_groups));
    return assigner_.run(group_loads_, ranks_of_node_, places_, node_of_group_);
  }

  void plan_nodes(index_t num_groups, std::span<index_t> out) {
    auto const group_size = loads_.size() / static_cast<std::size_t>(num_groups);
    std::size_t first_rank = 0;
    for (index_t node = 0; node < where_.num_nodes(); ++node) {
      node_experts_.clear();
      for (std::size_t e = 0; e < loads_.size(); ++e) {
        if (node_of_group_[e / group_size] == node) { node_experts_.push_back(static_cast<index_t>(e)); }
      }
      auto const num_ranks = static_cast<std::size_t>(ranks_of_node_[static_cast<std::size_t>(node)]);
      if (num_ranks > 0) { plan_region(node_experts_, std::span{live_ranks_}.subspan(first_rank, num_ranks), out); }
      first_rank += num_ranks;
    }
  }

  topology const& where_;
  Cost const& cost_;
  region_planner::effort effort_;
  std::vector<load_t> loads_;  // [E] load units
  std::vector<index_t> live_ranks_;
  std::vector<index_t> all_experts_;
  std::vector<load_t> region_loads_;
  std::vector<load_t> group_loads_;
  std::vector<index_t> ranks_of_node_;
  std::vector<index_t> places_;
  std::vector<index_t> node_of_group_;
  std::vector<index_t> node_experts_;
  region_planner region_;
  group_assigner assigner_;
};

}  // namespace detail

/// Plans from scratch for the best balance: chooses how many copies each expert gets and where they lie together.
template <rank_cost Cost = token_cost>
struct basic_balanced_placement {
  index_t num_groups = 1;  ///< G, consecutive experts that routing picks together
  group_locality locality = group_locality::whole;
  index_t tolerance_ppm = 400;            ///< stop when the busiest rank is this close to the mean, in 1 / 1000000
  std::int64_t work_per_layer = 2000000;  ///< most exchanges looked at in a layer
  [[no_unique_address]] Cost cost{};      ///< what a rank's load costs

  [[nodiscard]] status plan(load_history_view history, placement const& current, topology const& where,
                            placement& next) const {
    if (num_groups < 1) {
      return {errc::invalid_option, detail::concat("balanced: num_groups is ", num_groups, ", must be at least 1")};
    }
    if (tolerance_ppm < 0 || work_per_layer < 0) {
      return {errc::invalid_option, "balanced: tolerance and work must not be negative"};
    }
    next.resize(current.shape());
    detail::balanced_planner<Cost> planner{where, history.num_logical(), cost, {tolerance_ppm, work_per_layer}};
    auto const groups = locality == group_locality::free ? 1 : num_groups;
    for (index_t layer = 0; layer < history.num_layers(); ++layer) {
      planner.plan_layer(history, layer, groups, next.edit(layer).logical_of_slot);
    }
    detail::finish_plan(current, where, next);
    return {};
  }

  void describe(digest& out) const {
    out.add(std::string_view{"balanced"}).add(num_groups).add(static_cast<index_t>(locality));
    out.add(tolerance_ppm).add(work_per_layer);
    cost.describe(out);
  }
};

/// `basic_balanced_placement` where one token is one unit of cost on every rank.
using balanced_placement = basic_balanced_placement<>;
static_assert(placement_policy<balanced_placement>);

BALLAST_END_NAMESPACE

#endif
