// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_HEADROOM_HPP
#define BALLAST_POLICIES_HEADROOM_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/options.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/digest.hpp>
#include <ballast/load/history.hpp>
#include <ballast/placement/detail/dead_ranks.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/policies/detail/headroom/headroom_planner.hpp>
#include <ballast/policies/policy.hpp>
#include <ballast/policies/relabel_scope.hpp>
#include <ballast/shares/replica_shares.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <string_view>

BALLAST_BEGIN_NAMESPACE

/// Plans from scratch for engines that split tokens by share: chooses and spreads replicas so that re-splitting alone
/// keeps later loads balanced, and writes the shares that are optimal for these loads.
///
/// With these shares the balance on the given loads is that of the best packing; what the spread buys is the balance on
/// the next loads, see `docs/shares.md` for both. For engines that split evenly there is `balanced_placement`.
struct headroom_placement {
  static constexpr bool follows_loads = true;

  index_t id_blocks = 8;              ///< spread each of so many blocks of consecutive experts over all ranks
  index_t tolerance_ppm = 50;         ///< stop when the busiest rank is this close to the mean, in 1 / 1000000
  index_t exchanges_per_layer = 256;  ///< most exchanges tried in a layer, for even and for optimal shares each
  /// The same for even shares, which are balanced first: what they leave to do is little, and engines may split evenly
  /// until they refresh the shares.
  index_t even_tolerance_ppm = 10'000;

  [[nodiscard]] status plan(load_history_view history, placement const& current, topology const& where,
                            placement& next) const {
    if (auto result = validate(); !result.ok()) { return result; }
    next.resize(current.shape());
    detail::headroom_planner planner{
        where, history.num_logical(), {id_blocks, tolerance_ppm, exchanges_per_layer, even_tolerance_ppm}};
    for (index_t layer = 0; layer < history.num_layers(); ++layer) {
      auto const out = next.edit(layer).logical_of_slot;
      auto const held = current.logical_of_slot(layer);
      std::copy(held.begin(), held.end(), out.begin());
      sum_buckets(history, layer, planner.loads());
      if (auto result = planner.plan_layer(layer, out); !result.ok()) { return result; }
    }
    detail::finish_plan(current, where, next);
    share_solver solver;
    return optimal_shares(where, next, history, solver);
  }

  /// Refuse options out of their range, naming the value.
  [[nodiscard]] status validate() const {
    auto const refuse = [](char const* name, index_t value, char const* range) {
      return status{errc::invalid_option, detail::concat("headroom: ", name, " is ", value, ", must be ", range)};
    };
    if (id_blocks < 1) { return refuse("id_blocks", id_blocks, "at least 1"); }
    if (tolerance_ppm < 0 || tolerance_ppm > 1000000) {
      return refuse("tolerance_ppm", tolerance_ppm, "in [0, 1000000]");
    }
    if (even_tolerance_ppm < 0 || even_tolerance_ppm > 1000000) {
      return refuse("even_tolerance_ppm", even_tolerance_ppm, "in [0, 1000000]");
    }
    if (exchanges_per_layer < 0) { return refuse("exchanges_per_layer", exchanges_per_layer, "at least 0"); }
    return {};
  }
  /// See `ballast::interchangeable`.
  [[nodiscard]] constexpr relabel_scope interchangeable() const noexcept { return relabel_scope::all; }
  /// Mix name and options into what the ranks compare.
  void describe(digest& out) const {
    out.add(std::string_view{"headroom"});
    detail::describe_options(*this, out);
  }
  /// See `detail::names_options`.
  template <class Visit>
  void for_each_option(Visit&& visit) const {
    visit("id_blocks", detail::option_bits(id_blocks));
    visit("tolerance_ppm", detail::option_bits(tolerance_ppm));
    visit("exchanges_per_layer", detail::option_bits(exchanges_per_layer));
    visit("even_tolerance_ppm", detail::option_bits(even_tolerance_ppm));
  }
};
static_assert(placement_policy<headroom_placement>);

BALLAST_END_NAMESPACE

#endif
