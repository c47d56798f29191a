// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "modes.hpp"

#include <ballast/detail/text.hpp>
#include <ballast/policies/deepseek.hpp>
#include <ballast/policies/headroom.hpp>
#include <ballast/policies/incremental.hpp>
#include <ballast/shares/replica_shares.hpp>

#include <algorithm>
#include <iterator>
#include <utility>

namespace engine {

namespace {

/// Moves as long as it helps: what a move costs on links and how long passes take is unknown here.
[[nodiscard]] ballast::any_policy incremental(ballast::share_mode shares) {
  return ballast::any_policy{ballast::incremental_placement{.stop_when_not_worth = false, .shares = shares}};
}

}  // namespace

std::vector<mode> all_modes() {
  auto const seed = ballast::any_policy{ballast::deepseek_placement{}};
  auto const few_moves = incremental(ballast::share_mode::even);
  auto const few_moves_and_shares = incremental(ballast::share_mode::optimal);
  auto const headroom = ballast::any_policy{ballast::headroom_placement{}};
  return {
      {.name = "none", .driver = driver_kind::nobody},
      {.name = "seed", .policy = seed, .all_at_once = true},
      {.name = "seed-chunks", .policy = seed},
      {.name = "incremental", .policy = few_moves},
      {.name = "incremental-async", .policy = few_moves, .asynchronous = true},
      {.name = "shares", .split = split_kind::shares, .policy = few_moves_and_shares, .refreshes_shares = true},
      {.name = "every-batch", .split = split_kind::quotas, .policy = headroom, .plans_once = true},
      {.name = "every-batch-async", .split = split_kind::quotas, .policy = few_moves_and_shares, .asynchronous = true},
      {.name = "central", .driver = driver_kind::scheduler, .policy = few_moves, .asynchronous = true},
  };
}

std::vector<mode> limit_modes() {
  return {{.name = "limit", .driver = driver_kind::nobody, .split = split_kind::perfect},
          {.name = "limit-of-ranks", .driver = driver_kind::nobody, .split = split_kind::perfect_ranks}};
}

status choose_modes(std::span<std::string const> names, bool may_be_nonsense, std::vector<mode>& out) {
  auto all = all_modes();
  if (may_be_nonsense && !names.empty()) { std::ranges::move(limit_modes(), std::back_inserter(all)); }
  std::vector<mode> chosen;
  for (auto const& one : all) {
    if (names.empty() || std::ranges::find(names, one.name) != names.end()) { chosen.push_back(one); }
  }
  for (auto const& name : names) {
    if (std::ranges::find(all, name, &mode::name) != all.end()) { continue; }
    std::string known;
    for (auto const& one : all) { known += (known.empty() ? "" : ", ") + one.name; }
    return {ballast::errc::invalid_option,
            ballast::detail::concat("there is no mode '", name, "'; known are: ", known)};
  }
  out = std::move(chosen);
  return {};
}

}  // namespace engine
