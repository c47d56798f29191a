// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_SUPPORT_POLICIES_HPP
#define BALLAST_EXAMPLES_SUPPORT_POLICIES_HPP

#include <ballast/detail/text.hpp>
#include <ballast/placement/balanced.hpp>
#include <ballast/placement/balanced_shares.hpp>
#include <ballast/placement/deepseek.hpp>
#include <ballast/placement/headroom.hpp>
#include <ballast/placement/incremental.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/placement/policy.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <CLI/CLI.hpp>

#include <optional>
#include <string>
#include <variant>

namespace ballast_tools {

/// A policy that is chosen when the program runs.
class any_policy {
public:
  using choice = std::variant<ballast::deepseek_placement, ballast::balanced_placement, ballast::incremental_placement,
                              ballast::headroom_placement, ballast::balanced_shares_placement>;

  any_policy() = default;
  explicit any_policy(choice const& policy) : policy_{policy} {}

  [[nodiscard]] ballast::status plan(ballast::load_history_view history, ballast::placement const& current,
                                     ballast::topology const& where, ballast::placement& next) const {
    return std::visit([&](auto const& policy) { return policy.plan(history, current, where, next); }, policy_);
  }
  void describe(ballast::digest& out) const {
    std::visit([&](auto const& policy) { policy.describe(out); }, policy_);
  }

private:
  choice policy_;
};
static_assert(ballast::placement_policy<any_policy>);

/// Options that choose a policy.
struct policy_options {
  std::string name;
  ballast::index_t groups = 1;
  std::optional<ballast::index_t> max_moves;

  void add_to(CLI::App& app) {
    app.add_option("--policy", name, ballast::detail::concat("how to plan: ", names));
    app.add_option("--groups", groups, "G, expert groups of group-limited routing (1); for deepseek and balanced");
    app.add_option("--max-moves", max_moves,
                   "most experts moved in any layer; for incremental (stop when no move pays)");
  }

  /// Find the policy by its name, or list the names there are.
  ///
  /// @param nodes   N, which decides with the groups whether experts are bound to nodes.
  /// @param shares  how an expert's tokens will be split over its replicas, for the policies that plan for it.
  /// @param out     out: unchanged on failure
  [[nodiscard]] ballast::status make(ballast::index_t nodes, ballast::share_mode shares, any_policy& out) const {
    if (auto result = check_numbers(); !result.ok()) { return result; }
    if (name == "deepseek") {
      out = any_policy{ballast::deepseek_placement{.num_groups = groups}};
    } else if (name == "balanced") {
      out = make_balanced(nodes, shares);
    } else if (name == "incremental") {
      out = any_policy{ballast::incremental_placement{.max_moves_per_layer = max_moves.value_or(-1), .shares = shares}};
    } else if (name == "headroom") {
      out = any_policy{ballast::headroom_placement{}};
    } else {
      return refuse(name.empty() ? "--policy is required" : ballast::detail::concat("there is no policy '", name, "'"),
                    "; known are: ", names);
    }
    return {};
  }

private:
  static constexpr auto names = "deepseek, balanced, incremental, headroom";

  [[nodiscard]] ballast::status check_numbers() const {
    if (groups < 1) { return refuse("--groups is ", groups, ", must be at least 1"); }
    if (!max_moves) { return {}; }
    if (*max_moves < 0) { return refuse("--max-moves is ", *max_moves, ", must not be negative"); }
    if (name != "incremental") {
      return refuse("--max-moves is ", *max_moves, ", but only the policy incremental plans with a budget, not '", name,
                    "'");
    }
    return {};
  }

  /// Room for later loads knows no groups: where they bind experts to nodes, shares are added to the plan for even
  /// ones.
  [[nodiscard]] any_policy make_balanced(ballast::index_t nodes, ballast::share_mode shares) const {
    bool const bound_to_nodes = nodes > 1 && groups > 1 && groups % nodes == 0;
    if (shares == ballast::share_mode::optimal && !bound_to_nodes) {
      return any_policy{ballast::balanced_shares_placement{}};
    }
    return any_policy{ballast::balanced_placement{.num_groups = groups}};
  }

  [[nodiscard]] static ballast::status refuse(auto const&... parts) {
    return {ballast::errc::invalid_option, ballast::detail::concat(parts...)};
  }
};

}  // namespace ballast_tools

#endif
