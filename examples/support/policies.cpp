// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "support/policies.hpp"

#include <ballast/policies/balanced.hpp>
#include <ballast/policies/balanced_shares.hpp>
#include <ballast/policies/deepseek.hpp>
#include <ballast/policies/headroom.hpp>
#include <ballast/policies/incremental.hpp>

#include <utility>

namespace ballast_tools {

using ballast::any_policy;
using ballast::status;

namespace {

[[nodiscard]] status refuse(auto const&... parts) {
  return {ballast::errc::invalid_option, ballast::detail::concat(parts...)};
}

}  // namespace

status policy_options::make(ballast::index_t num_nodes, ballast::share_mode shares, any_policy& out) const {
  any_policy made;
  if (!name) { return refuse("--policy is required; known are: ", names); }
  if (name == "deepseek") {
    made = any_policy{ballast::deepseek_placement{.num_groups = groups.value_or(1)}};
  } else if (name == "balanced") {
    made = make_balanced(num_nodes, shares);
  } else if (name == "incremental") {
    made = any_policy{ballast::incremental_placement{.max_moves_per_layer = max_moves.value_or(-1), .shares = shares}};
  } else if (name == "headroom") {
    made = any_policy{ballast::headroom_placement{}};
  } else if (name == "balanced_shares") {
    made = any_policy{ballast::balanced_shares_placement{}};
  } else {
    return refuse("there is no policy '", name.value_or(""), "'; known are: ", names);
  }
  if (auto result = check_groups(num_nodes); !result.ok()) { return result; }
  if (auto result = check_budget(); !result.ok()) { return result; }
  if (auto result = made.validate(); !result.ok()) { return result; }
  out = std::move(made);
  return {};
}

status policy_options::check_groups(ballast::index_t num_nodes) const {
  if (!groups) { return {}; }
  if (*groups < 1) { return refuse("--groups is ", *groups, ", must be at least 1"); }
  if (*groups == 1) { return {}; }  // no groups, which every policy can do
  if (name != "deepseek" && name != "balanced") {
    return refuse("--groups is ", *groups, ", but only the policies deepseek and balanced keep groups together, not '",
                  name.value_or(""), "'");
  }
  if (*groups % num_nodes != 0) {
    return refuse("--groups is ", *groups, ", must be a multiple of the ", num_nodes,
                  " nodes: else groups cannot be kept on one each");
  }
  return {};
}

status policy_options::check_experts(ballast::index_t num_logical) const {
  if (!groups || num_logical % *groups == 0) { return {}; }
  return refuse("--groups is ", *groups, ", must divide the ", num_logical, " experts of the trace");
}

status policy_options::check_budget() const {
  if (!max_moves) { return {}; }
  if (*max_moves < 0) { return refuse("--max-moves is ", *max_moves, ", must not be negative"); }
  if (name != "incremental") {
    return refuse("--max-moves is ", *max_moves, ", but only the policy incremental plans with a budget, not '",
                  name.value_or(""), "'");
  }
  return {};
}

/// Room for later loads knows no groups: where they bind experts to nodes, shares are added to the plan for even ones.
any_policy policy_options::make_balanced(ballast::index_t num_nodes, ballast::share_mode shares) const {
  bool const bound_to_nodes = num_nodes > 1 && groups.value_or(1) > 1;
  if (shares == ballast::share_mode::optimal && !bound_to_nodes) {
    return any_policy{ballast::balanced_shares_placement{}};
  }
  return any_policy{ballast::balanced_placement{.num_groups = groups.value_or(1)}};
}

}  // namespace ballast_tools
