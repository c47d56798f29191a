// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_INCREMENTAL_HPP
#define BALLAST_POLICIES_INCREMENTAL_HPP

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
#include <ballast/policies/detail/incremental/choose_layers.hpp>
#include <ballast/policies/detail/incremental/incremental_planner.hpp>
#include <ballast/policies/detail/incremental/work_slice.hpp>
#include <ballast/policies/policy.hpp>
#include <ballast/policies/relabel_scope.hpp>
#include <ballast/shares/replica_shares.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

BALLAST_BEGIN_NAMESPACE

/// Says when a move is worth its bytes: what receiving an expert takes of its rank's link against the time that a
/// lighter busiest rank saves all ranks until the next plan. Configuration, the same on every rank.
struct move_cost_model {
  std::int64_t bytes_per_expert = 44'040'192;          ///< of one layer: all its tensors, scales included
  std::int64_t link_bytes_per_second = 8'000'000'000;  ///< what a rank may receive without slowing its passes down
  std::int64_t layer_nanoseconds = 200'000;            ///< expert computation of one layer and pass, in balance
  std::int64_t passes_until_next_plan = 1'000;         ///< for which a plan pays off
  std::int64_t plans_per_layout = 8;                   ///< for which a layout from scratch pays off; 0: there is none

  /// Refuse values that give no price, naming the first.
  [[nodiscard]] status validate() const {
    struct option {
      char const* name;
      std::int64_t value;
      std::int64_t least;
      std::int64_t most;
    };
    for (auto const& one : {option{"bytes_per_expert", bytes_per_expert, 0, std::int64_t{1} << 40},
                            option{"link_bytes_per_second", link_bytes_per_second, 1'000'000, std::int64_t{1} << 50},
                            option{"layer_nanoseconds", layer_nanoseconds, 1, std::int64_t{1} << 36},
                            option{"passes_until_next_plan", passes_until_next_plan, 1, std::int64_t{1} << 26},
                            option{"plans_per_layout", plans_per_layout, 0, 1'000}}) {
      if (one.value < one.least || one.value > one.most) {
        return {errc::invalid_option, detail::concat("move_cost_model: ", one.name, " is ", one.value, ", must be in [",
                                                     one.least, ", ", one.most, "]")};
      }
    }
    return {};
  }
  /// How long a rank receives an expert, against all that it computes until the next plan: a part of the mean rank load
  /// in units of 1 / 2^20.
  [[nodiscard]] load_t arrival_price() const noexcept {
    auto const nanoseconds = bytes_per_expert * 1000 / (link_bytes_per_second / 1'000'000);
    auto const part =
        std::min(nanoseconds, std::int64_t{1} << 42) * (load_t{1} << 20) / (layer_nanoseconds * passes_until_next_plan);
    return std::min(part, load_t{1} << 36);
  }
  /// What a move costs, in the same units; see `move_limits::price_of`.
  ///
  /// Links of different ranks work side by side, but few moves do not spread over all of them: in 94 ranks a move
  /// costs a quarter of what it costs in 16. The numbers are from experiments (docs/incremental.md).
  [[nodiscard]] load_t price(index_t num_ranks) const noexcept {
    return std::min(arrival_price() * 18 / 11 / (num_ranks + 8), load_t{1} << 20);
  }
  void describe(digest& out) const { detail::describe_options(*this, out); }
  /// See `detail::names_options`.
  template <class Visit>
  void for_each_option(Visit&& visit) const {
    visit("bytes_per_expert", detail::option_bits(bytes_per_expert));
    visit("link_bytes_per_second", detail::option_bits(link_bytes_per_second));
    visit("layer_nanoseconds", detail::option_bits(layer_nanoseconds));
    visit("passes_until_next_plan", detail::option_bits(passes_until_next_plan));
    visit("plans_per_layout", detail::option_bits(plans_per_layout));
  }
};

namespace detail {

/// Plans layers in slices.
template <rank_cost Cost>
class incremental_layer_planner final : public layer_planner {
public:
  incremental_layer_planner(topology const& where, index_t num_logical, Cost const& cost,
                            incremental_limits const& limits, share_mode shares)
      : planner_{where, num_logical, cost, limits}, shares_{shares} {}
  [[nodiscard]] status begin(load_history_view history, placement const& current, index_t layer,
                             placement& next) override {
    return planner_.begin(history, current, layer, shares_, next);
  }
  [[nodiscard]] status advance(std::int64_t& work) override {
    work_slice slice{work};
    auto result = planner_.advance(slice);
    work = slice.left();
    return result;
  }
  [[nodiscard]] bool is_finished() const noexcept override { return planner_.is_finished(); }

private:
  incremental_planner<Cost> planner_;
  share_mode shares_;
};

}  // namespace detail

/// Starts from the placement in force and changes as little as pays.
///
/// Layers in balance stay as they are. In the others experts get a copy where another can spare one, or change places,
/// each step the one that removes the most overload for its bytes. A layer whose layout no few moves mend gets one from
/// scratch, once, where that pays and the budget allows it. A second copy of an expert on its rank costs no bytes; it
/// is made only where a budget binds and it pays. With a budget only the budget limits; without one a plan stops where
/// further moves would cost more time than they save. A layer never comes out worse than it was, nor, but for a layout
/// from scratch, worse than with a smaller budget; with optimal shares a thousandth of the mean above it counts as
/// balance there. Experts of dead ranks are given a new home first. docs/incremental.md has the rules.
///
/// @par Cost
/// `Cost` turns the load of a rank into what it costs the step; see `rank_cost`.
template <class Cost>  // its default stands in fwd.hpp
struct basic_incremental_placement {
  static_assert(rank_cost<Cost>, "basic_incremental_placement: Cost is no rank_cost");

  static constexpr bool follows_loads = true;

  /// Most moves in any layer: experts that a rank must receive. -1: no budget, `worth` decides.
  index_t max_moves_per_layer = -1;
  /// Most experts that a rank receives in any layer, and most of those that come from other nodes; -1: no limit. They
  /// hold for layouts from scratch too, and for the experts of dead ranks.
  index_t max_arrivals_per_rank = -1;
  index_t max_remote_arrivals_per_rank = -1;
  /// Most moves of a plan over all layers; the choice of layers that lowers the sum of their busiest ranks most gets
  /// them, so more never give a larger sum. -1: no limit.
  std::int64_t max_moves_in_all = -1;
  /// When a move pays, where there is no budget.
  move_cost_model worth{};
  /// False: move as long as it helps, where there is no budget.
  bool stop_when_not_worth = true;
  /// The split that moves are chosen for. `optimal` writes the shares into the plan, solved anew for every layer; it
  /// goes with `token_cost` only.
  share_mode shares = share_mode::even;
  /// How often to undo a few changes of a layer and search again; with a budget, a sixth as often on each rung of the
  /// ladder that leads to it. Each costs about a third of the plan without, and each eight bring the excess of the
  /// busiest rank down by a tenth. That many are made where the excess is 1 / 64 of the mean; a layer with less gets
  /// down to three quarters, one with more up to twice as many. Layers of more than 320 slots get fewer, as the square
  /// of their slots: from 1600 on one search has to do.
  index_t retries_per_layer = 20;
  /// Candidate changes to look at in a layer, at most; for optimal shares with a budget an eighth of it in each of the
  /// searches, of which there are some four on each rung.
  std::int64_t work_per_layer = 4'000'000;
  Cost cost{};

  /// Plan for the sum of the history's buckets.
  ///
  /// @param history  [H, L, E] tokens, >= 0.
  /// @param current  [L, P] the placement in force; its shares do not count, replicas are planned to share evenly.
  /// @param where    R ranks, and which are alive.
  /// @param next     out: [L, P], shares only if ranks are dead.
  /// @return `errc::invalid_option` for an option out of range, or optimal shares with a rank cost;
  ///         `errc::missing_expert` if budget and limits do not suffice to give every expert of a dead rank a home.
  /// @post every layer's largest rank cost is at most that of `current`, if no rank is dead.
  /// @complexity O(H L E + L P) for layers in balance, bounded by `work_per_layer` for the others.
  /// @throws std::bad_alloc
  /// @determinism integer arithmetic; limits count candidates, never time.
  [[nodiscard]] status plan(load_history_view history, placement const& current, topology const& where,
                            placement& next) const {
    return detail::plan_every_layer(*this, history, current, where, next);
  }
  /// See `layerwise_policy`.
  [[nodiscard]] status plan_layers(load_history_view history, placement const& current, topology const& where,
                                   std::span<index_t const> layers, placement& next) const {
    if (auto result = validate(); !result.ok()) { return result; }
    detail::incremental_planner<Cost> planner{where, history.num_logical(), cost, planner_limits(where)};
    auto all = detail::work_slice::endless();
    for (auto const layer : layers) {
      if (auto result = planner.begin(history, current, layer, shares, next); !result.ok()) { return result; }
      if (auto result = planner.advance(all); !result.ok()) { return result; }
    }
    return {};
  }

  /// See `divisible_policy`. A unit of work is a candidate that a search looks at, or what takes about as long: some
  /// 20 ns (docs/incremental.md).
  [[nodiscard]] std::unique_ptr<layer_planner> make_layer_planner(topology const& where, index_t num_logical) const {
    return std::make_unique<detail::incremental_layer_planner<Cost>>(where, num_logical, cost, planner_limits(where),
                                                                     shares);
  }

  /// See `layerwise_policy`.
  [[nodiscard]] bool may_choose_layers() const noexcept { return max_moves_in_all >= 0; }
  /// See `layerwise_policy`.
  void choose_layers(load_history_view history, placement const& current, topology const& where,
                     placement& next) const {
    if (max_moves_in_all >= 0) { detail::choose_layers(history, current, where, max_moves_in_all, shares, next); }
  }

  /// Refuse options out of their range, naming the value.
  [[nodiscard]] status validate() const {
    auto const refuse = [](char const* name, std::int64_t value, char const* range) {
      return status{errc::invalid_option,
                    detail::concat("incremental_placement: ", name, " is ", value, ", must be ", range)};
    };
    if (max_moves_per_layer < -1) { return refuse("max_moves_per_layer", max_moves_per_layer, "-1 or more"); }
    if (max_arrivals_per_rank < -1) { return refuse("max_arrivals_per_rank", max_arrivals_per_rank, "-1 or more"); }
    if (max_remote_arrivals_per_rank < -1) {
      return refuse("max_remote_arrivals_per_rank", max_remote_arrivals_per_rank, "-1 or more");
    }
    if (max_moves_in_all < -1) { return refuse("max_moves_in_all", max_moves_in_all, "-1 or more"); }
    if (shares != share_mode::even && shares != share_mode::optimal) {
      return refuse("shares", static_cast<index_t>(shares), "in [0, 1]");
    }
    if (retries_per_layer < 0 || retries_per_layer > 1'000'000) {
      return refuse("retries_per_layer", retries_per_layer, "in [0, 1000000]");
    }
    if (work_per_layer < 1) { return refuse("work_per_layer", work_per_layer, "at least 1"); }
    if (!detail::cost_is_load<Cost> && shares == share_mode::optimal) {
      return {errc::invalid_option, "incremental_placement: optimal shares balance tokens; they know no rank cost"};
    }
    return worth.validate();
  }
  /// See `ballast::interchangeable`. Its ranks are those of the placement in force.
  [[nodiscard]] constexpr relabel_scope interchangeable() const noexcept { return relabel_scope::slots; }
  /// Mix name and options into what the ranks compare.
  void describe(digest& out) const {
    out.add(std::string_view{"incremental_placement"});
    detail::describe_options(*this, out);
  }
  /// See `detail::names_options`.
  template <class Visit>
  void for_each_option(Visit&& visit) const {
    visit("max_moves_per_layer", detail::option_bits(max_moves_per_layer));
    visit("max_arrivals_per_rank", detail::option_bits(max_arrivals_per_rank));
    visit("max_remote_arrivals_per_rank", detail::option_bits(max_remote_arrivals_per_rank));
    visit("max_moves_in_all", detail::option_bits(max_moves_in_all));
    detail::for_each_option_of("worth", worth, visit);
    visit("stop_when_not_worth", detail::option_bits(stop_when_not_worth));
    visit("shares", detail::option_bits(static_cast<index_t>(shares)));
    visit("retries_per_layer", detail::option_bits(retries_per_layer));
    visit("work_per_layer", detail::option_bits(work_per_layer));
    detail::for_each_option_of("cost", cost, visit);
  }

private:
  [[nodiscard]] detail::incremental_limits planner_limits(topology const& where) const {
    detail::incremental_limits result;
    result.of_search.retries = retries_for(where);
    result.of_search.work = work_per_layer;
    result.of_search.ranks = where.num_live_ranks();
    if (max_arrivals_per_rank >= 0) { result.of_search.max_arrivals = max_arrivals_per_rank; }
    if (max_remote_arrivals_per_rank >= 0) { result.of_search.max_remote = max_remote_arrivals_per_rank; }
    result.budget = max_moves_per_layer;
    result.arrival_price = worth.arrival_price();
    result.plans_per_layout = worth.plans_per_layout;
    result.price = stop_when_not_worth ? worth.price(where.num_live_ranks()) : 0;
    return result;
  }
  [[nodiscard]] index_t retries_for(topology const& where) const noexcept {
    constexpr std::int64_t few = 320;
    auto const slots = std::max(std::int64_t{where.num_slots()}, few);
    return static_cast<index_t>(retries_per_layer * few * few / (slots * slots));
  }
};

/// One token, one unit of cost, on every rank.
using incremental_placement = basic_incremental_placement<>;
static_assert(divisible_policy<incremental_placement>);

BALLAST_END_NAMESPACE

#endif
