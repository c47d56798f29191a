// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_SUPPORT_POLICIES_HPP
#define BALLAST_EXAMPLES_SUPPORT_POLICIES_HPP

#include <ballast/detail/text.hpp>
#include <ballast/digest.hpp>
#include <ballast/load/history.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/placement/policy.hpp>
#include <ballast/placement/replica_shares.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <CLI/CLI.hpp>

#include <memory>
#include <optional>
#include <string>
#include <utility>

namespace ballast_tools {

/// A policy that is chosen when the program runs. Compiled apart, because planners take long to compile.
class any_policy {
public:
  class model;

  any_policy();  ///< deepseek
  explicit any_policy(std::shared_ptr<model const> policy) : policy_{std::move(policy)} {}

  [[nodiscard]] ballast::status plan(ballast::load_history_view history, ballast::placement const& current,
                                     ballast::topology const& where, ballast::placement& next) const;
  void describe(ballast::digest& out) const;

private:
  std::shared_ptr<model const> policy_;
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
  [[nodiscard]] ballast::status make(ballast::index_t nodes, ballast::share_mode shares, any_policy& out) const;

private:
  static constexpr auto names = "deepseek, balanced, incremental, headroom";

  [[nodiscard]] ballast::status check_numbers() const;
  [[nodiscard]] any_policy make_balanced(ballast::index_t nodes, ballast::share_mode shares) const;
};

}  // namespace ballast_tools

#endif
