// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_PLAN_EXECUTOR_HPP
#define BALLAST_RUNTIME_PLAN_EXECUTOR_HPP

#include <ballast/config.hpp>

BALLAST_BEGIN_NAMESPACE

/// Where plans are made: inside of `on_forward_pass_end`, or where the engine says.
struct plan_executor {
  /// Has `work(argument)` called once, on any thread, and does not wait for it. Nothing waits for the work to end,
  /// not even the rebalancer's end: it has copies of the policy and of all that it plans on. Does not throw. Null:
  /// plans are made inside of the call.
  void (*run)(void* context, void (*work)(void* argument), void* argument) = nullptr;
  void* context = nullptr;  ///< handed to `run`
};

BALLAST_END_NAMESPACE

#endif
