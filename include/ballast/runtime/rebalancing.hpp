// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_REBALANCING_HPP
#define BALLAST_RUNTIME_REBALANCING_HPP

#include <ballast/config.hpp>
#include <ballast/runtime/observer.hpp>
#include <ballast/runtime/rebalancer_options.hpp>
#include <ballast/schedule/schedules.hpp>

BALLAST_BEGIN_NAMESPACE

/// How a rebalancer rebalances: what counts, what decides, how much moves a step. Named when it is written down:
///
///     rebalancing{.recorder = window_recorder{58, 256, {}}, .policy = incremental_placement{}}
///
/// What is left out has its default: one layer a step, the options' own values, nobody told. (clang 16 and
/// nvcc deduce from values in order only: `rebalancing{recorder, policy, schedule, options, watcher}`.)
///
/// @tparam Recorder  a `load_recorder`
/// @tparam Policy    a `placement_policy`
/// @tparam Schedule  a `chunk_schedule`
template <class Recorder, class Policy, class Schedule>
struct rebalancing {
  Recorder recorder;
  Policy policy{};
  Schedule schedule{};
  rebalancer_options options{};
  observer* watcher = nullptr;  ///< outlives the rebalancer; null: nobody is told
};

// Deduction skips nothing by itself: a guide for each order in which members may be left out.
template <class Recorder, class Policy, class Schedule>
rebalancing(Recorder, Policy, Schedule, rebalancer_options = {}, observer* = nullptr)
    -> rebalancing<Recorder, Policy, Schedule>;
template <class Recorder, class Policy, class Schedule>
rebalancing(Recorder, Policy, Schedule, observer*) -> rebalancing<Recorder, Policy, Schedule>;
template <class Recorder, class Policy>
rebalancing(Recorder, Policy) -> rebalancing<Recorder, Policy, layers_per_chunk<>>;
template <class Recorder, class Policy>
rebalancing(Recorder, Policy, rebalancer_options, observer* = nullptr)
    -> rebalancing<Recorder, Policy, layers_per_chunk<>>;
template <class Recorder, class Policy>
rebalancing(Recorder, Policy, observer*) -> rebalancing<Recorder, Policy, layers_per_chunk<>>;

BALLAST_END_NAMESPACE

#endif
