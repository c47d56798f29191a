// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_PLACEMENT_RANK_COST_HPP
#define BALLAST_PLACEMENT_RANK_COST_HPP

#include <ballast/digest.hpp>
#include <ballast/types.hpp>

#include <concepts>
#include <string_view>
#include <type_traits>

BALLAST_BEGIN_NAMESPACE

/// Turns the load of a rank into what it costs the step, where an engine knows better than "one token, one unit".
///
/// @par Semantics
/// `cost(rank, load)` is the cost of `load` on `rank`, both in units of 1 / 2^18 token; no load exceeds the layer's
/// tokens. It never falls when the load grows, and depends on its arguments and the object's own members alone: every
/// rank plans for itself. Planners minimise the largest cost over the ranks. `cost.describe(digest)` mixes in name and
/// members.
template <class C>
concept rank_cost = std::copyable<C> && requires(C const& cost, index_t rank, load_t load, digest& out) {
  { cost(rank, load) } -> std::same_as<load_t>;
  { cost.describe(out) } -> std::same_as<void>;
};

/// One token, one unit, on every rank.
struct token_cost {
  [[nodiscard]] constexpr load_t operator()(index_t /*rank*/, load_t load) const noexcept { return load; }
  constexpr void describe(digest& out) const noexcept { out.add(std::string_view{"token_cost"}); }
};
static_assert(rank_cost<token_cost>);

namespace detail {
/// Costs that are the loads themselves, for which planners take shorter ways.
template <class C>
inline constexpr bool cost_is_load = std::is_same_v<C, token_cost>;
}  // namespace detail

BALLAST_END_NAMESPACE

#endif
