// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_BALANCED_HPP
#define BALLAST_POLICIES_BALANCED_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/options.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/digest.hpp>
#include <ballast/fwd.hpp>
#include <ballast/load/history.hpp>
#include <ballast/placement/balancedness.hpp>
#include <ballast/placement/detail/dead_ranks.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/placement/rank_cost.hpp>
#include <ballast/policies/deepseek.hpp>
#include <ballast/policies/detail/balanced/group_nodes.hpp>
#include <ballast/policies/detail/balanced/group_relaxer.hpp>
#include <ballast/policies/detail/balanced/lower_bounds.hpp>
#include <ballast/policies/detail/balanced/region_planner.hpp>
#include <ballast/policies/detail/balanced/two_slots.hpp>
#include <ballast/policies/policy.hpp>
#include <ballast/policies/relabel_scope.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE

/// Where the copies of an expert group may lie.
enum class group_locality : index_t {
  whole = 0,    ///< all on one node, where the nodes have the slots; anywhere otherwise
  relaxed = 1,  ///< as `whole`, but experts leave their group where balance gains more than the traffic costs
  free = 2,     ///< anywhere
};

namespace detail {

/// Plans layer after layer with the same scratch memory.
template <rank_cost Cost>
class balanced_planner {
public:
  struct options {
    index_t num_groups;
    bool may_split;       ///< groups may be split over nodes, at `split_price`
    index_t split_price;  ///< percent
    region_planner::effort effort;
  };

  balanced_planner(topology const& where, index_t num_logical, Cost const& cost, options chosen)
      : where_{where},
        cost_{cost},
        options_{chosen},
        loads_(static_cast<std::size_t>(num_logical)),
        live_ranks_{live_ranks(where)} {
    all_experts_.resize(loads_.size());
    std::iota(all_experts_.begin(), all_experts_.end(), index_t{0});
    ranks_of_node_.assign(static_cast<std::size_t>(where.num_nodes()), 0);
    for (auto const rank : live_ranks_) { ++ranks_of_node_[static_cast<std::size_t>(where.node_of_rank(rank))]; }
    for (auto const ranks : ranks_of_node_) { slots_of_node_.push_back(ranks * where.slots_per_rank()); }
    costs_.resize(static_cast<std::size_t>(where.num_ranks()));
  }

  /// Fill the live slots of one layer in.
  void plan_layer(load_history_view history, index_t layer, std::span<index_t> out) {
    read_loads(history, layer);
    plan_loads(out);
  }
  /// Make the layer that was planned last no worse than a given map, by searching on, or by taking that map.
  void improve_on(std::span<index_t const> reference, std::span<index_t> out) {
    auto const theirs = dearest(reference);
    auto const rounding = load_t{where_.slots_per_rank()};
    if (dearest(out) <= theirs + rounding) { return; }
    auto const tolerance = std::exchange(options_.effort.tolerance_ppm, 0);
    plan_loads(out);
    options_.effort.tolerance_ppm = tolerance;
    if (dearest(out) > theirs + rounding) { std::copy(reference.begin(), reference.end(), out.begin()); }
  }

private:
  void plan_loads(std::span<index_t> out) {
    if (options_.num_groups == 1 || !assign_groups()) {
      plan_region(all_experts_, live_ranks_, out);
      return;
    }
    plan_nodes(out);
    if (options_.may_split) { split_groups(out); }
  }

  /// Cost of the dearest live rank, were the layer placed so.
  [[nodiscard]] load_t dearest(std::span<index_t const> map) {
    counts_.assign(loads_.size(), 0);
    for_each_live_slot(map, [this](index_t /*rank*/, std::size_t expert) { ++counts_[expert]; });
    std::fill(costs_.begin(), costs_.end(), load_t{0});
    for_each_live_slot(map, [this](index_t rank, std::size_t expert) {
      costs_[static_cast<std::size_t>(rank)] += loads_[expert] / counts_[expert];
    });
    load_t dearest = 0;
    for (auto const rank : live_ranks_) {
      dearest = std::max(dearest, cost_(rank, costs_[static_cast<std::size_t>(rank)]));
    }
    return dearest;
  }

  struct region_cost {
    Cost const* cost;
    std::span<index_t const> ranks;
    [[nodiscard]] load_t operator()(index_t rank, load_t load) const noexcept {
      return (*cost)(ranks[static_cast<std::size_t>(rank)], load);
    }
    void describe(digest& /*out*/) const noexcept {}
  };

  /// Loads in load units, divided by what all have in common: a plan does not depend on the unit of the loads.
  void read_loads(load_history_view history, index_t layer) {
    sum_buckets(history, layer, loads_);
    load_t common = 0;
    if constexpr (cost_is_load<Cost>) {
      for (auto const load : loads_) {
        if (common == 1) { break; }
        common = std::gcd(common, load);
      }
    }
    common = std::max<load_t>(common, 1);
    for (auto& load : loads_) { load = load / common * load_unit; }
  }

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
    region_loads_.clear();
    for (auto const expert : experts) { region_loads_.push_back(loads_[static_cast<std::size_t>(expert)]); }
    if constexpr (cost_is_load<Cost>) {
      region_.plan(region_loads_, num_ranks, slots, cost_, options_.effort);
    } else {
      region_.plan(region_loads_, num_ranks, slots, region_cost{&cost_, ranks}, options_.effort);
    }
    write_region(experts, ranks, out);
  }
  void write_region(std::span<index_t const> experts, std::span<index_t const> ranks, std::span<index_t> out) const {
    auto const& packed = region_.packed();
    for (std::size_t r = 0; r < ranks.size(); ++r) {
      auto slot = out.begin() + where_.first_slot(ranks[r]);
      for (auto const copy : packed.copies_on(static_cast<index_t>(r))) {
        *slot++ = experts[static_cast<std::size_t>(packed.expert(copy))];
      }
    }
  }

  /// Choose a node for each expert; false where groups cannot stay whole.
  [[nodiscard]] bool assign_groups() {
    auto const num_logical = static_cast<index_t>(loads_.size());
    BALLAST_ASSERT(options_.num_groups % where_.num_nodes() == 0 && num_logical % options_.num_groups == 0,
                   "balanced: groups do not divide experts, or nodes groups");
    auto const group_size = num_logical / options_.num_groups;
    group_loads_.assign(static_cast<std::size_t>(options_.num_groups), 0);
    for (std::size_t e = 0; e < loads_.size(); ++e) {
      group_loads_[e / static_cast<std::size_t>(group_size)] += loads_[e];
    }
    places_.clear();
    for (auto const slots : slots_of_node_) {
      places_.push_back(places_of_node(where_, slots, group_size, options_.num_groups));
    }
    node_of_group_.resize(group_loads_.size());
    if (!assigner_.run(group_loads_, ranks_of_node_, places_, node_of_group_)) { return false; }
    node_of_expert_.clear();
    for (std::size_t e = 0; e < loads_.size(); ++e) {
      node_of_expert_.push_back(node_of_group_[e / static_cast<std::size_t>(group_size)]);
    }
    return true;
  }

  /// Take a plan that splits groups where it gains more than it costs: some experts on other nodes, or all anywhere.
  void split_groups(std::span<index_t> out) {
    load_t total = 0;
    for (auto const load : loads_) { total += load; }
    auto least = dearest(out);
    if (least <= total / static_cast<load_t>(live_ranks_.size())) { return; }
    trial_.assign(out.begin(), out.end());
    auto const take_if_better = [this, &least, &out] {
      auto const price = dearest(trial_) + price_of_traffic(trial_);
      if (price >= least) { return; }
      least = price;
      std::copy(trial_.begin(), trial_.end(), out.begin());
    };
    auto const group_size = static_cast<index_t>(loads_.size()) / options_.num_groups;
    auto const home = node_of_expert_;
    for (index_t const handy : {2, 100}) {
      node_of_expert_ = home;
      relaxer_.run(loads_, group_size, ranks_of_node_, slots_of_node_, where_.slots_per_rank(), options_.split_price,
                   handy, node_of_expert_);
      plan_nodes(trial_);
      take_if_better();
    }
    plan_region(all_experts_, live_ranks_, trial_);
    take_if_better();
  }
  /// What tokens off their group's home cost, spread over the ranks.
  [[nodiscard]] load_t price_of_traffic(std::span<index_t const> map) {
    auto const num_nodes = static_cast<std::size_t>(where_.num_nodes());
    auto const group_size = loads_.size() / group_loads_.size();
    counts_.assign(loads_.size(), 0);
    for_each_live_slot(map, [this](index_t /*rank*/, std::size_t expert) { ++counts_[expert]; });
    tokens_.assign(group_loads_.size() * num_nodes, 0);
    for_each_live_slot(map, [this, &group_size, &num_nodes](index_t rank, std::size_t expert) {
      tokens_[expert / group_size * num_nodes + static_cast<std::size_t>(where_.node_of_rank(rank))] +=
          loads_[expert] / counts_[expert];
    });
    load_t away = 0;
    for (auto group = tokens_.begin(); group != tokens_.end(); group += where_.num_nodes()) {
      auto const end = group + where_.num_nodes();
      away += std::accumulate(group, end, load_t{0}) - *std::max_element(group, end);
    }
    // Never so much that a sum with the dearest rank's cost overflows.
    auto const most = std::numeric_limits<load_t>::max() / 2 / std::max(options_.split_price, 1);
    return std::min(away / (100 * static_cast<load_t>(live_ranks_.size())), most) * options_.split_price;
  }

  void plan_nodes(std::span<index_t> out) {
    std::size_t first_rank = 0;
    for (index_t node = 0; node < where_.num_nodes(); ++node) {
      auto const num_ranks = static_cast<std::size_t>(ranks_of_node_[static_cast<std::size_t>(node)]);
      if (num_ranks == 0) { continue; }
      node_experts_.clear();
      for (std::size_t e = 0; e < loads_.size(); ++e) {
        if (node_of_expert_[e] == node) { node_experts_.push_back(static_cast<index_t>(e)); }
      }
      plan_region(node_experts_, std::span{live_ranks_}.subspan(first_rank, num_ranks), out);
      first_rank += num_ranks;
    }
  }

  template <class Visit>
  void for_each_live_slot(std::span<index_t const> map, Visit visit) const {
    for (auto const rank : live_ranks_) {
      auto const first = static_cast<std::size_t>(where_.first_slot(rank));
      for (std::size_t i = 0; i < static_cast<std::size_t>(where_.slots_per_rank()); ++i) {
        visit(rank, static_cast<std::size_t>(map[first + i]));
      }
    }
  }

  topology const& where_;
  Cost const& cost_;
  options options_;
  std::vector<load_t> loads_;  // [E] load units
  std::vector<index_t> live_ranks_;
  std::vector<index_t> all_experts_;
  std::vector<index_t> ranks_of_node_;  // [N] live ones
  std::vector<index_t> slots_of_node_;  // [N]
  std::vector<load_t> region_loads_;
  std::vector<load_t> group_loads_;  // [G]
  std::vector<index_t> places_;      // [N] groups that a node has the slots for
  std::vector<index_t> node_of_group_;
  std::vector<index_t> node_of_expert_;
  std::vector<index_t> node_experts_;
  std::vector<index_t> counts_;
  std::vector<load_t> costs_;   // [R]
  std::vector<load_t> tokens_;  // [G, N]
  std::vector<index_t> trial_;  // [P]
  region_planner region_;
  group_assigner assigner_;
  group_relaxer relaxer_;
};

}  // namespace detail

/// Plans from scratch for the best balance: chooses together how many copies each expert gets and where they lie.
///
/// Greedy counts and largest-first packing are the start; then copies are dealt out again, exchanged, and moved from
/// one expert to another until the busiest rank is close to a lower bound. Layers of a few slots are searched
/// completely. With two slots a rank, counts are found and proved by branch and bound. No layer comes out worse than
/// with `deepseek_placement` of the same groups, and no rank holds two copies of an expert where that can be avoided,
/// but for about one in a thousand small layers with idle experts (docs/balanced.md).
template <class Cost>  // its default stands in fwd.hpp
struct basic_balanced_placement {
  static_assert(rank_cost<Cost>, "basic_balanced_placement: Cost is no rank_cost");

  static constexpr bool follows_loads = true;

  index_t num_groups = 1;  ///< G, consecutive experts that group-limited routing picks together
  group_locality locality = group_locality::whole;
  index_t split_price_percent = 100;      ///< `relaxed`: a token computed off its group's home costs this share of one
  index_t tolerance_ppm = 400;            ///< a busiest rank this close to the bound is good, in 1 / 1000000
  std::int64_t work_per_layer = 1300000;  ///< pairs, copies and choices looked at in a layer or node, about one a ns
  [[no_unique_address]] Cost cost{};      ///< what a rank's load costs

  /// Plan all layers.
  ///
  /// @param history  [H, L, E] tokens, >= 0; buckets are added up.
  /// @param current  [L, P] gives the shape, and the experts on dead ranks.
  /// @param where    ranks, nodes, slots and which ranks are alive.
  /// @param next     out: [L, P]; its storage is reused. With dead ranks it has shares, 0 on their slots.
  /// @return `errc::invalid_option` naming the option and its value.
  /// @pre `validate_plan_inputs(history, current, where).ok()`
  /// @complexity O(L (P log P + work)); a number of allocations that does not depend on L.
  /// @throws std::bad_alloc
  /// @determinism integer arithmetic throughout; ties go to the lowest id.
  [[nodiscard]] status plan(load_history_view history, placement const& current, topology const& where,
                            placement& next) const {
    if (auto result = validate(history.num_logical(), where); !result.ok()) { return result; }
    next.resize(current.shape());
    auto const groups = locality == group_locality::free ? 1 : num_groups;
    detail::balanced_planner<Cost> planner{
        where,
        history.num_logical(),
        cost,
        {groups, locality == group_locality::relaxed, split_price_percent, {tolerance_ppm, work_per_layer}}};
    placement reference;
    bool const has_reference = plan_reference(history, current, where, groups, reference);
    for (index_t layer = 0; layer < history.num_layers(); ++layer) {
      auto const map = next.edit(layer).logical_of_slot;
      planner.plan_layer(history, layer, map);
      if (has_reference) { planner.improve_on(reference.logical_of_slot(layer), map); }
    }
    detail::finish_plan(current, where, next);
    return {};
  }

  /// Refuse options out of their range, naming the value.
  [[nodiscard]] status validate() const {
    if (num_groups < 1) { return refuse("num_groups", num_groups, "at least 1"); }
    if (locality != group_locality::whole && locality != group_locality::relaxed && locality != group_locality::free) {
      return refuse("locality", static_cast<index_t>(locality), "in [0, 2]");
    }
    if (split_price_percent < 0 || split_price_percent > 1000000) {
      return refuse("split_price_percent", split_price_percent, "in [0, 1000000]");
    }
    if (tolerance_ppm < 0 || tolerance_ppm > 1000000) {
      return refuse("tolerance_ppm", tolerance_ppm, "in [0, 1000000]");
    }
    if (work_per_layer < 0) { return refuse("work_per_layer", work_per_layer, "at least 0"); }
    return {};
  }
  /// Refuse groups that these experts cannot be divided into, or these nodes cannot divide among them, naming both.
  [[nodiscard]] status validate(index_t num_logical, topology const& where) const {
    if (auto result = validate(); !result.ok()) { return result; }
    if (num_logical % num_groups != 0) {
      return refuse("num_groups", num_groups, "a divisor of the number of experts, ", num_logical);
    }
    if (num_groups > 1 && locality != group_locality::free && num_groups % where.num_nodes() != 0) {
      return refuse("num_groups", num_groups, "1, or a multiple of the number of nodes, ", where.num_nodes(),
                    ", unless groups may lie anywhere (group_locality::free)");
    }
    return {};
  }

  /// See `ballast::interchangeable`.
  [[nodiscard]] constexpr relabel_scope interchangeable() const noexcept {
    // Another cost may be another one on each rank.
    if (!detail::cost_is_load<Cost>) { return relabel_scope::slots; }
    return num_groups > 1 ? relabel_scope::nodes : relabel_scope::all;
  }
  /// Mix name and options into what the ranks compare.
  void describe(digest& out) const {
    out.add(std::string_view{"balanced_placement"});
    detail::describe_options(*this, out);
  }
  /// See `detail::names_options`.
  template <class Visit>
  void for_each_option(Visit&& visit) const {
    visit("num_groups", detail::option_bits(num_groups));
    visit("locality", detail::option_bits(static_cast<index_t>(locality)));
    visit("split_price_percent", detail::option_bits(split_price_percent));
    visit("tolerance_ppm", detail::option_bits(tolerance_ppm));
    visit("work_per_layer", detail::option_bits(work_per_layer));
    detail::for_each_option_of("cost", cost, visit);
  }

private:
  [[nodiscard]] static status refuse(char const* name, auto value, auto const&... range) {
    return {errc::invalid_option, detail::concat("balanced: ", name, " is ", value, ", must be ", range...)};
  }
  /// What no layer may be worse than. False where the reference would not keep the groups whole as we do.
  [[nodiscard]] static bool plan_reference(load_history_view history, placement const& current, topology const& where,
                                           index_t groups, placement& out) {
    deepseek_placement const reference{.num_groups = groups};
    bool const is_comparable = groups == 1 || where.num_live_ranks() == where.num_ranks();
    return is_comparable && reference.plan(history, current, where, out).ok();
  }
};

/// `basic_balanced_placement` where one token is one unit of cost on every rank.
using balanced_placement = basic_balanced_placement<>;
static_assert(placement_policy<balanced_placement>);

/// Bounds on the tokens of a layer's busiest rank that hold for every placement with equal shares and at most one copy
/// of an expert for each rank.
struct balance_bound {
  double mean = 0;         ///< some live rank has at least the mean
  double copies = 0;       ///< some rank holds the heaviest copy, however many copies each expert has
  double cardinality = 0;  ///< some rank holds j + 1 of the j R + 1 heaviest copies
  double groups = 0;       ///< some node has at least the mean of the best way to give whole groups to nodes
  double counts = 0;       ///< two slots a rank: no counts reach less, proved by branch and bound
  /// The largest of them.
  [[nodiscard]] double best() const noexcept { return std::max({mean, copies, cardinality, groups, counts}); }
};

/// Bound the tokens of one layer's busiest rank from below, over all packings and all counts up to R, at equal shares.
///
/// @param where       R ranks of S slots; dead ones are left out.
/// @param loads       [E] tokens, >= 0, at most `max_layer_tokens` together; E <= live slots.
/// @param num_groups  G; more than 1 keeps every group on one node where `balanced_placement` does.
/// @param work        units of work for the bounds that take a search.
/// @pre `loads.size() <= live slots`, and some rank lives
/// @complexity O(S E log(loads) + work)
/// @throws std::bad_alloc
/// @determinism integer arithmetic; loads are rounded down to 1 / 2^18 token a copy.
[[nodiscard]] inline balance_bound lower_bound(topology const& where, std::span<load_t const> loads,
                                               index_t num_groups = 1, std::int64_t work = 2000000) {
  auto const num_ranks = where.num_live_ranks();
  auto const slots = where.slots_per_rank();
  BALLAST_EXPECTS(loads.size() <= static_cast<std::size_t>(num_ranks) * static_cast<std::size_t>(slots),
                  "lower_bound: more experts than live slots");
  BALLAST_EXPECTS(num_ranks > 0, "lower_bound: no live rank");
  detail::expect_usable(loads, "lower_bound: tokens of an expert", "lower_bound: tokens of a layer");
  auto const tokens = [](load_t load) { return static_cast<double>(load) / static_cast<double>(detail::load_unit); };
  std::vector<load_t> units(loads.begin(), loads.end());
  for (auto& load : units) { load *= detail::load_unit; }
  detail::lower_bounds bounds;
  auto const spares = num_ranks * slots - static_cast<index_t>(units.size());
  balance_bound result;
  result.mean = tokens(detail::lower_bounds::mean(units, num_ranks));
  result.copies = tokens(bounds.copy(units, spares, 0));
  result.cardinality = tokens(bounds.best(units, num_ranks, slots));
  if (num_groups > 1) { result.groups = tokens(detail::bound_of_groups(where, units, num_groups, work)); }
  if (slots == 2 && static_cast<index_t>(units.size()) > slots) {
    std::vector<index_t> counts(units.size());
    detail::replica_counter{}.run(units, num_ranks * slots, num_ranks, counts);
    auto const known = bounds.best(units, num_ranks, slots);
    result.counts = tokens(detail::two_slot_counter{}.run(units, num_ranks, counts, known, known, work).bound);
  }
  return result;
}

BALLAST_END_NAMESPACE

#endif
