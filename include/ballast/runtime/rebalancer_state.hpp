// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_REBALANCER_STATE_HPP
#define BALLAST_RUNTIME_REBALANCER_STATE_HPP

#include <ballast/config.hpp>
#include <ballast/types.hpp>

#include <cstdint>

BALLAST_BEGIN_NAMESPACE

/// What a rebalancer does with the next call.
enum class rebalancer_state {
  recording,    ///< counts passes until the interval is over, then reduces the loads and plans
  planning,     ///< plans some more layers, where `layers_per_plan_call` or `work_per_plan_call` spreads a plan over
                ///< several calls
  moving,       ///< moves and commits one chunk a call
  failed,       ///< the last cycle ended early; every layer is at its last agreed epoch and serving may go on. A
                ///< `resume` on every rank is due
  cohort_lost,  ///< this rank cannot know what the others committed: it must not serve before `settle`. Where its store
                ///< failed in a commit, `undecided_layers()` is empty and nothing settles it: a layer may be torn
};

/// What a rebalance would bring.
struct prediction {
  double balancedness_now = 1;
  double balancedness_then = 1;
  std::int64_t moves = 0;
  std::int64_t bytes = 0;
  index_t layers = 0;  ///< layers that would change
  index_t steps = 0;   ///< calls that the schedule would spread them over
};

BALLAST_END_NAMESPACE

#endif
