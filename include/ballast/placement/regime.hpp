// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_PLACEMENT_REGIME_HPP
#define BALLAST_PLACEMENT_REGIME_HPP

#include <ballast/config.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/digest.hpp>
#include <ballast/load/history.hpp>
#include <ballast/load/regime.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/placement/policy.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <string_view>

BALLAST_BEGIN_NAMESPACE

/// Lets another policy see only the buckets since the traffic last changed.
///
/// Measured on traces with switches of task, next to a policy that sees the whole history or any fixed part of it: see
/// `docs/shares.md`.
template <placement_policy Policy>
struct regime_placement {
  [[no_unique_address]] Policy policy{};
  index_t change_percent = default_change_percent;  ///< as in `since_last_change`

  [[nodiscard]] status plan(load_history_view history, placement const& current, topology const& where,
                            placement& next) const {
    if (change_percent <= 100) {
      return {errc::invalid_option,
              detail::concat("regime: change_percent is ", change_percent, ", must be above 100")};
    }
    return policy.plan(since_last_change(history, change_percent), current, where, next);
  }
  void describe(digest& out) const {
    out.add(std::string_view{"regime"}).add(change_percent);
    policy.describe(out);
  }
};

BALLAST_END_NAMESPACE

#endif
