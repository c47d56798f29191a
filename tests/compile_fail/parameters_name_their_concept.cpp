// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// expect 1: Cost is no rank_cost & describe
// expect 2: constraint & all_gather_function
#include <ballast/control/engine_control.hpp>
#include <ballast/policies/incremental.hpp>

#include <cstdint>
#include <span>

#ifndef BALLAST_EXPECT_FAILURE
  #define BALLAST_EXPECT_FAILURE 0
#endif

struct doubled {
  [[nodiscard]] ballast::load_t operator()(ballast::index_t, ballast::load_t load) const noexcept { return 2 * load; }
#if BALLAST_EXPECT_FAILURE != 1
  void describe(ballast::digest& out) const { out.add("doubled"); }
#endif
};

struct channel {
#if BALLAST_EXPECT_FAILURE == 2
  using outcome = bool;
#else
  using outcome = ballast::status;
#endif
  [[nodiscard]] outcome operator()(std::span<std::uint64_t const>, std::span<std::uint64_t>, ballast::nanoseconds_t);
};

static_assert(sizeof(ballast::basic_incremental_placement<doubled>) > 0);
static_assert(sizeof(ballast::engine_control<channel>) > 0);
