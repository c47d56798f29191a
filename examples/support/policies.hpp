// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_SUPPORT_POLICIES_HPP
#define BALLAST_EXAMPLES_SUPPORT_POLICIES_HPP

#include <ballast/detail/text.hpp>
#include <ballast/placement/deepseek.hpp>
#include <ballast/placement/policy.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <CLI/CLI.hpp>

#include <string>
#include <utility>
#include <variant>

namespace ballast_tools {

/// A policy that is chosen when the program runs.
class any_policy {
public:
  using choice = std::variant<ballast::deepseek_placement>;

  any_policy() = default;
  explicit any_policy(choice policy) : policy_{std::move(policy)} {}

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

  void add_to(CLI::App& app, bool name_is_required) {
    app.add_option("--policy", name, ballast::detail::concat("how to plan: ", names))->required(name_is_required);
    app.add_option("--groups", groups, "G, expert groups of group-limited routing (1)");
  }

  /// Find the policy by its name, or list the names there are. @param out out: unchanged on failure
  [[nodiscard]] ballast::status make(any_policy& out) const {
    if (groups < 1) {
      return {ballast::errc::invalid_option, ballast::detail::concat("--groups is ", groups, ", must be at least 1")};
    }
    if (name == "deepseek") {
      out = any_policy{ballast::deepseek_placement{.num_groups = groups}};
      return {};
    }
    return {ballast::errc::invalid_option,
            ballast::detail::concat("there is no policy '", name, "'; known are: ", names)};
  }

private:
  static constexpr auto names = "deepseek";
};

}  // namespace ballast_tools

#endif
