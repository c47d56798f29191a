// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_POLICIES_HPP
#define BALLAST_TESTS_SUPPORT_POLICIES_HPP

#include <ballast/detail/text.hpp>
#include <ballast/policies/policy.hpp>

#include <algorithm>
#include <cstddef>
#include <string_view>

// Small placement policies whose plans a test can foresee.
namespace ballast_test {

/// Changes nothing.
struct keep_placement {
  [[nodiscard]] ballast::status plan(ballast::load_history_view, ballast::placement const& current,
                                     ballast::topology const&, ballast::placement& next) const {
    next = current;
    return {};
  }
  [[nodiscard]] ballast::status validate() const { return {}; }
  void describe(ballast::digest& out) const { out.add(std::string_view{"keep_placement"}); }
};

/// Shifts every `every`-th layer's experts by one slot: a permutation over all ranks.
struct rotate_placement {
  ballast::index_t every = 1;

  [[nodiscard]] ballast::status plan(ballast::load_history_view, ballast::placement const& current,
                                     ballast::topology const&, ballast::placement& next) const {
    next = current;
    for (ballast::index_t layer = 0; layer < current.num_layers(); layer += every) {
      auto const map = next.edit(layer).logical_of_slot;
      std::rotate(map.begin(), map.begin() + 1, map.end());
      next.index_replicas(layer);
    }
    return {};
  }
  [[nodiscard]] ballast::status validate() const {
    if (every >= 1) { return {}; }
    return {ballast::errc::invalid_option,
            ballast::detail::concat("rotate_placement: every is ", every, ", must be at least 1")};
  }
  // Its plans are what the tests expect, slot by slot.
  [[nodiscard]] constexpr ballast::relabel_scope interchangeable() const noexcept {
    return ballast::relabel_scope::none;
  }
  void describe(ballast::digest& out) const { out.add(std::string_view{"rotate_placement"}).add(every); }
};

/// Cannot plan.
struct refuse_to_plan {
  [[nodiscard]] ballast::status plan(ballast::load_history_view, ballast::placement const&, ballast::topology const&,
                                     ballast::placement&) const {
    return {ballast::errc::invalid_load, "refuse_to_plan: never plans"};
  }
  [[nodiscard]] ballast::status validate() const { return {}; }
  void describe(ballast::digest& out) const { out.add(std::string_view{"refuse_to_plan"}); }
};

static_assert(ballast::placement_policy<keep_placement>);
static_assert(ballast::placement_policy<rotate_placement>);
static_assert(ballast::placement_policy<refuse_to_plan>);

}  // namespace ballast_test

#endif
