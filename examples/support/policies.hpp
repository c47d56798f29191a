// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_SUPPORT_POLICIES_HPP
#define BALLAST_EXAMPLES_SUPPORT_POLICIES_HPP

#include <ballast/detail/text.hpp>
#include <ballast/policies/any_policy.hpp>
#include <ballast/shares/replica_shares.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include "cli.hpp"

#include <CLI/CLI.hpp>

#include <optional>
#include <string>

namespace ballast_tools {

/// Options that choose a policy. What the policy does not use is refused.
struct policy_options {
  std::optional<std::string> name;
  std::optional<ballast::index_t> groups;
  std::optional<ballast::index_t> max_moves;

  /// @param when  when the policy is required, for `--help`; empty where it always is
  void add_to(CLI::App& app, std::string const& when = {}) {
    auto const* required = when.empty() ? "" : " ";
    add_text(app, "--policy", name, ballast::detail::concat("how to plan: ", names, required, when))
        ->required(when.empty());
    add_integer(
        app, "--groups", groups,
        "G, expert groups of group-limited routing, each kept on one node (1); for deepseek and\nbalanced, must "
        "be a multiple of the nodes and divide the experts");
    add_integer(app, "--max-moves", max_moves,
                "most experts moved in any layer; for incremental (stop when no move pays)");
  }

  /// Find the policy by its name, or list the names there are.
  ///
  /// @param num_nodes  N >= 1, which decides with the groups whether experts are bound to nodes.
  /// @param shares     how an expert's tokens will be split over its replicas, for the policies that plan for it.
  /// @param out        out: unchanged on failure
  [[nodiscard]] ballast::status make(ballast::index_t num_nodes, ballast::share_mode shares,
                                     ballast::any_policy& out) const;
  /// Refuse groups that do not divide the experts. @param num_logical  E
  [[nodiscard]] ballast::status check_experts(ballast::index_t num_logical) const;
  /// The policy leaves room for tokens to be split anew, and balances badly where they are split evenly.
  [[nodiscard]] bool wants_optimal_shares() const { return name == "headroom" || name == "balanced_shares"; }

private:
  static constexpr auto names = "deepseek, balanced, incremental, headroom, balanced_shares";

  [[nodiscard]] ballast::status check_groups(ballast::index_t num_nodes) const;
  [[nodiscard]] ballast::status check_budget() const;
  [[nodiscard]] ballast::any_policy make_balanced(ballast::index_t num_nodes, ballast::share_mode shares) const;
};

}  // namespace ballast_tools

#endif
