// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_HEADROOM_HPP
#define BALLAST_POLICIES_HEADROOM_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/options.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/digest.hpp>
#include <ballast/load/history.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/policies/detail/headroom/batch_exchanges.hpp>
#include <ballast/policies/detail/headroom/headroom_planner.hpp>
#include <ballast/policies/policy.hpp>
#include <ballast/policies/relabel_scope.hpp>
#include <ballast/shares/replica_shares.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <span>
#include <string_view>

BALLAST_BEGIN_NAMESPACE

/// Plans from scratch for engines that split tokens by share: chooses and spreads replicas so that re-splitting alone
/// keeps later loads balanced, and writes the shares that are optimal for these loads.
///
/// Spare slots go by what is hot in any bucket of the history, and single experts are placed so that each bucket can be
/// split evenly by itself: give batches, or windows of different traffic, as buckets.
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
  /// Most exchanges tried in a layer for buckets of the history that cannot be split evenly though their sum can; 0:
  /// spare slots and packing go by the sum alone. A history of one bucket is its sum.
  index_t batch_exchanges = 64;

  [[nodiscard]] status plan(load_history_view history, placement const& current, topology const& where,
                            placement& next) const {
    return detail::plan_every_layer(*this, history, current, where, next);
  }
  /// See `layerwise_policy`.
  [[nodiscard]] status plan_layers(load_history_view history, placement const& current, topology const& where,
                                   std::span<index_t const> layers, placement& next) const {
    if (auto result = validate(); !result.ok()) { return result; }
    detail::headroom_planner planner{
        where, current.num_logical(), {id_blocks, tolerance_ppm, exchanges_per_layer, even_tolerance_ppm}};
    detail::batch_exchanges batches{where, current.num_logical()};
    share_solver solver;
    for (auto const layer : layers) {
      auto const map = next.edit(layer).logical_of_slot;
      sum_buckets(history, layer, planner.loads());
      if (batch_exchanges > 0) { batches.read(history, layer); }
      planner.weigh_by_tokens();
      if (batches.has_several()) { batches.write_weights(planner.weights()); }
      if (auto result = planner.plan_layer(layer, map); !result.ok()) { return result; }
      if (batches.has_several()) {
        if (auto result = batches.improve(map, batch_exchanges); !result.ok()) { return result; }
      }
      next.index_replicas(layer);
      auto split = detail::split_planned_layer(where, next, layer, planner.loads(), solver);
      if (!split.ok()) { return split; }
    }
    return {};
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
    if (batch_exchanges < 0) { return refuse("batch_exchanges", batch_exchanges, "at least 0"); }
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
    visit("batch_exchanges", detail::option_bits(batch_exchanges));
  }
};
static_assert(layerwise_policy<headroom_placement>);

BALLAST_END_NAMESPACE

#endif
