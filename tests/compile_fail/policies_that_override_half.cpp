// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// What a cycle asks of a policy must be its own, not a base's that plans otherwise.
// expect 1: Policy has a plan of its own, but the plan_layers of a base
// expect 2: Policy has a plan_layers of its own, but the make_layer_planner of a base
#include <ballast/policies/incremental.hpp>
#include <ballast/policies/policy.hpp>

#include <memory>
#include <span>

using namespace ballast;

struct cautious : incremental_placement {
#ifndef BALLAST_EXPECT_FAILURE
  #define BALLAST_EXPECT_FAILURE 0
#endif
#if BALLAST_EXPECT_FAILURE != 2
  [[nodiscard]] status plan(load_history_view, placement const& current, topology const&, placement& next) const {
    next = current;
    return {};
  }
#endif
#if BALLAST_EXPECT_FAILURE != 1
  [[nodiscard]] status plan_layers(load_history_view, placement const&, topology const&, std::span<index_t const>,
                                   placement&) const {
    return {};
  }
#endif
#if BALLAST_EXPECT_FAILURE == 0
  [[nodiscard]] std::unique_ptr<layer_planner> make_layer_planner(topology const&, index_t) const { return nullptr; }
#endif
};

status check(cautious const& policy) { return validate_policy(policy); }
