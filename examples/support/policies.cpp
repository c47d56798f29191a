// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "support/policies.hpp"

#include <ballast/placement/balanced.hpp>
#include <ballast/placement/balanced_shares.hpp>
#include <ballast/placement/deepseek.hpp>
#include <ballast/placement/headroom.hpp>
#include <ballast/placement/incremental.hpp>

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
  virtual void describe(ballast::digest& out) const = 0;
};

namespace {

template <ballast::placement_policy Policy>
class model_of final : public any_policy::model {
public:
  explicit model_of(Policy policy) : policy_{std::move(policy)} {}
  [[nodiscard]] status plan(ballast::load_history_view history, ballast::placement const& current,
                            ballast::topology const& where, ballast::placement& next) const override {
    return policy_.plan(history, current, where, next);
  }
  void describe(ballast::digest& out) const override { policy_.describe(out); }

private:
  Policy policy_;
};

template <ballast::placement_policy Policy>
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

void any_policy::describe(ballast::digest& out) const { policy_->describe(out); }

status policy_options::make(ballast::index_t nodes, ballast::share_mode shares, any_policy& out) const {
  if (auto result = check_numbers(); !result.ok()) { return result; }
  if (name == "deepseek") {
    out = wrap(ballast::deepseek_placement{.num_groups = groups});
  } else if (name == "balanced") {
    out = make_balanced(nodes, shares);
  } else if (name == "incremental") {
    out = wrap(ballast::incremental_placement{.max_moves_per_layer = max_moves.value_or(-1), .shares = shares});
  } else if (name == "headroom") {
    out = wrap(ballast::headroom_placement{});
  } else {
    return refuse(name.empty() ? "--policy is required" : ballast::detail::concat("there is no policy '", name, "'"),
                  "; known are: ", names);
  }
  return {};
}

status policy_options::check_numbers() const {
  if (groups < 1) { return refuse("--groups is ", groups, ", must be at least 1"); }
  if (!max_moves) { return {}; }
  if (*max_moves < 0) { return refuse("--max-moves is ", *max_moves, ", must not be negative"); }
  if (name != "incremental") {
    return refuse("--max-moves is ", *max_moves, ", but only the policy incremental plans with a budget, not '", name,
                  "'");
  }
  return {};
}

/// Room for later loads knows no groups: where they bind experts to nodes, shares are added to the plan for even ones.
any_policy policy_options::make_balanced(ballast::index_t nodes, ballast::share_mode shares) const {
  bool const bound_to_nodes = nodes > 1 && groups > 1 && groups % nodes == 0;
  if (shares == ballast::share_mode::optimal && !bound_to_nodes) { return wrap(ballast::balanced_shares_placement{}); }
  return wrap(ballast::balanced_placement{.num_groups = groups});
}

}  // namespace ballast_tools
