// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_BALANCED_SHARES_HPP
#define BALLAST_POLICIES_BALANCED_SHARES_HPP

#include <ballast/detail/options.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/digest.hpp>
#include <ballast/load/history.hpp>
#include <ballast/placement/balancedness.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/policies/balanced.hpp>
#include <ballast/policies/headroom.hpp>
#include <ballast/policies/policy.hpp>
#include <ballast/policies/relabel_scope.hpp>
#include <ballast/shares/replica_shares.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

BALLAST_BEGIN_NAMESPACE

/// Plans from scratch for engines that split each expert's tokens unevenly: room for later loads where it costs little.
///
/// Every layer gets the plan of `headroom_placement`, unless the plan of `balanced_placement` under optimal shares
/// loads the busiest rank clearly less on the loads at hand. That happens where ranks have few slots: docs/shares.md.
struct balanced_shares_placement {
  static constexpr bool follows_loads = true;

  headroom_placement with_room{};
  balanced_placement packed{};
  /// How much more load on the busiest rank the room for later loads may cost, in 1 / 1000000: 0 takes the better
  /// balance on the given loads, 1000000 the room even at twice the load.
  std::int64_t room_price_ppm = 500;

  /// Plan all layers, with shares.
  ///
  /// @param history  [H, L, E] tokens, >= 0; buckets are added up.
  /// @param current  [L, P] gives the shape, and the experts on dead ranks.
  /// @param where    ranks, nodes, slots and which ranks are alive.
  /// @param next     out: [L, P] and shares; its storage is reused.
  /// @return `errc::invalid_option` naming the option and its value.
  /// @pre `validate_plan_inputs(history, current, where).ok()`
  /// @complexity that of both plans
  /// @throws std::bad_alloc
  /// @determinism integer arithmetic throughout; ties go to the plan with room.
  [[nodiscard]] status plan(load_history_view history, placement const& current, topology const& where,
                            placement& next) const {
    if (auto result = validate(); !result.ok()) { return result; }
    if (auto result = with_room.plan(history, current, where, next); !result.ok()) { return result; }
    placement other;
    if (auto result = packed.plan(history, current, where, other); !result.ok()) { return result; }
    share_solver solver;
    if (auto result = optimal_shares(where, other, history, solver); !result.ok()) { return result; }
    std::vector<load_t> loads(static_cast<std::size_t>(history.num_logical()));
    std::vector<load_t> on_rank(static_cast<std::size_t>(where.num_ranks()));
    for (index_t layer = 0; layer < history.num_layers(); ++layer) {
      sum_buckets(history, layer, loads);
      auto const busiest = [&where, &layer, &loads, &on_rank](placement const& in) {
        rank_loads(where, in, layer, loads, on_rank);
        return *std::max_element(on_rank.begin(), on_rank.end());
      };
      if (!is_worth_its_price(busiest(next), busiest(other))) { next.copy_layer(other, layer); }
    }
    return {};
  }

  /// Refuse options out of their range, those of both plans too, naming the value.
  [[nodiscard]] status validate() const {
    if (room_price_ppm < 0 || room_price_ppm > whole) {
      return {errc::invalid_option,
              detail::concat("balanced_shares: room_price_ppm is ", room_price_ppm, ", must be in [0, ", whole, "]")};
    }
    if (auto result = with_room.validate(); !result.ok()) { return result; }
    return packed.validate();
  }
  /// See `ballast::interchangeable`.
  [[nodiscard]] constexpr relabel_scope interchangeable() const noexcept { return packed.interchangeable(); }
  /// Mix name and options into what the ranks compare.
  void describe(digest& out) const {
    out.add(std::string_view{"balanced_shares"});
    detail::describe_options(*this, out);
  }
  /// See `detail::names_options`.
  template <class Visit>
  void for_each_option(Visit&& visit) const {
    visit("room_price_ppm", detail::option_bits(room_price_ppm));
    detail::for_each_option_of("with_room", with_room, visit);
    detail::for_each_option_of("packed", packed, visit);
  }

private:
  static constexpr std::int64_t whole = 1000000;

  [[nodiscard]] bool is_worth_its_price(load_t with_room_max, load_t packed_max) const noexcept {
    // packed_max * price / whole, in two parts that fit
    return with_room_max - packed_max <=
           packed_max / whole * room_price_ppm + packed_max % whole * room_price_ppm / whole;
  }
};
static_assert(placement_policy<balanced_shares_placement>);

BALLAST_END_NAMESPACE

#endif
