// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "support/policies.hpp"

#include <ballast/policies/balanced.hpp>
#include <ballast/policies/balanced_shares.hpp>
#include <ballast/policies/deepseek.hpp>
#include <ballast/policies/headroom.hpp>
#include <ballast/policies/incremental.hpp>

#include <memory>
#include <utility>

namespace ballast_tools {

using ballast::status;

class any_policy::model {
public:
  model() = default;
  model(model const&) = delete;
  model& operator=(model const&) = delete;
  virtual ~model() = default;
  [[nodiscard]] virtual status plan(ballast::load_history_view history, ballast::placement const& current,
                                    ballast::topology const& where, ballast::placement& next) const = 0;
  [[nodiscard]] virtual status validate() const = 0;
  virtual void describe(ballast::digest& out) const = 0;
};

namespace {

template <ballast::placement_policy Policy>
  requires(ballast::follows_loads<Policy>)
class model_of final : public any_policy::model {
public:
  explicit model_of(Policy policy) : policy_{std::move(policy)} {}
  [[nodiscard]] status plan(ballast::load_history_view history, ballast::placement const& current,
                            ballast::topology const& where, ballast::placement& next) const override {
    return policy_.plan(history, current, where, next);
  }
  [[nodiscard]] status validate() const override { return ballast::validate_policy(policy_); }
  void describe(ballast::digest& out) const override { policy_.describe(out); }

private:
  Policy policy_;
};

template <ballast::placement_policy Policy>
  requires(ballast::follows_loads<Policy>)
[[nodiscard]] any_policy wrap(Policy policy) {
  return any_policy{std::make_shared<model_of<Policy>>(std::move(policy))};
}

[[nodiscard]] status refuse(auto const&... parts) {
  return {ballast::errc::invalid_option, ballast::detail::concat(parts...)};
}

}  // namespace

any_policy::any_policy() : any_policy{wrap(ballast::deepseek_placement{})} {}

status any_policy::plan(ballast::load_history_view history, ballast::placement const& current,
                        ballast::topology const& where, ballast::placement& next) const {
  return policy_->plan(history, current, where, next);
}

status any_policy::validate() const { return policy_->validate(); }

void any_policy::describe(ballast::digest& out) const { policy_->describe(out); }

status policy_options::make(ballast::index_t num_nodes, ballast::share_mode shares, any_policy& out) const {
  any_policy made;
  if (!name) { return refuse("--policy is required; known are: ", names); }
  if (name == "deepseek") {
    made = wrap(ballast::deepseek_placement{.num_groups = groups.value_or(1)});
  } else if (name == "balanced") {
    made = make_balanced(num_nodes, shares);
  } else if (name == "incremental") {
    made = wrap(ballast::incremental_placement{.max_moves_per_layer = max_moves.value_or(-1), .shares = shares});
  } else if (name == "headroom") {
    made = wrap(ballast::headroom_placement{});
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
  if (shares == ballast::share_mode::optimal && !bound_to_nodes) { return wrap(ballast::balanced_shares_placement{}); }
  return wrap(ballast::balanced_placement{.num_groups = groups.value_or(1)});
}

}  // namespace ballast_tools
