// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_PLACEMENT_POLICY_HPP
#define BALLAST_PLACEMENT_POLICY_HPP

#include <ballast/digest.hpp>
#include <ballast/load/history.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>

#include <concepts>
#include <utility>

BALLAST_BEGIN_NAMESPACE

/// Decides which slot holds which expert.
///
/// @par Semantics
/// `p.plan(history, current, where, next)` fills `next` in, with the shape of `current`, or returns a failure that
/// names the offending value and leaves `next` valid but unspecified. The result depends on the arguments and on the
/// policy's own data members alone, bit for bit, on every machine: every rank plans for itself. `next` never aliases
/// `current`. `p.describe(digest)` mixes in the policy's name and every option that can change a plan.
template <class P>
concept placement_policy = std::copyable<P> && requires(P const& p, load_history_view history, placement const& current,
                                                        topology const& where, placement& next, digest& out) {
  { p.plan(history, current, where, next) } -> std::same_as<status>;
  { p.describe(out) } -> std::same_as<void>;
};

/// Refuse inputs that no policy can plan on, naming the first value that is wrong.
///
/// @param history  [H, L, E] tokens.
/// @param current  [L, P] the placement in force.
/// @param where    ranks and slots, R * S = P.
/// @complexity O(H L E + L P)
/// @throws nothing
[[nodiscard]] inline status validate_plan_inputs(load_history_view history, placement const& current,
                                                 topology const& where) {
  if (current.num_layers() != history.num_layers() || current.num_logical() != history.num_logical()) {
    return {errc::invalid_load,
            detail::concat("plan: loads are for ", history.num_layers(), " layers x ", history.num_logical(),
                           " experts, the current placement for ", current.num_layers(), " x ", current.num_logical())};
  }
  if (current.num_slots() != where.num_slots()) {
    return {errc::invalid_topology,
            detail::concat("plan: the placement has ", current.num_slots(), " slots, the topology ", where.num_ranks(),
                           " ranks x ", where.slots_per_rank(), " slots")};
  }
  if (where.num_live_ranks() * where.slots_per_rank() < history.num_logical()) {
    return {errc::not_enough_slots,
            detail::concat("plan: ", where.num_live_ranks(), " live ranks x ", where.slots_per_rank(),
                           " slots cannot hold ", history.num_logical(), " experts")};
  }
  return validate_loads(history);
}

/// Plan a new placement for all layers.
///
/// @param policy   any `placement_policy`.
/// @param history  [H, L, E] tokens, >= 0.
/// @param current  [L, P] the placement in force; policies that start from scratch ignore it.
/// @param where    ranks, nodes, slots and which ranks are alive.
/// @param next     out: [L, P]; its storage is reused. @pre it is not `current`
/// @complexity as the policy.
/// @throws as the policy; ballast's own throw nothing but `std::bad_alloc`.
/// @determinism the result depends on the arguments alone.
template <placement_policy Policy>
[[nodiscard]] status plan(Policy const& policy, load_history_view history, placement const& current,
                          topology const& where, placement& next) {
  BALLAST_EXPECTS(&current != &next, "plan: next must not be the current placement");
  if (auto result = validate_plan_inputs(history, current, where); !result.ok()) { return result; }
  return policy.plan(history, current, where, next);
}

BALLAST_END_NAMESPACE

#endif
