// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// expect 1: plan & placement_policy
#include <ballast/policies/policy.hpp>

struct keep_current {
  [[nodiscard]] ballast::status plan(ballast::load_history_view, ballast::placement const& current,
                                     ballast::topology const&, ballast::placement& next) const {
    next = current;
    return {};
  }
  [[nodiscard]] ballast::status validate() const { return {}; }
#ifndef BALLAST_EXPECT_FAILURE
  void describe(ballast::digest& out) const { out.add("keep_current"); }
#endif
};

ballast::status plan_with(ballast::load_history_view history, ballast::placement const& current,
                          ballast::topology const& where, ballast::placement& next) {
  return ballast::plan(keep_current{}, history, current, where, next);
}
