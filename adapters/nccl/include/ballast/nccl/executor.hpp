// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_NCCL_EXECUTOR_HPP
#define BALLAST_NCCL_EXECUTOR_HPP

#include <ballast/config.hpp>

BALLAST_BEGIN_NAMESPACE
namespace nccl {

/// Where calls of NCCL are made that may block: on a thread of ours each, or where the engine says.
///
/// A rank never makes them itself, because NCCL has no deadline for them: whoever waits for one gives up in time and
/// leaves it behind.
struct executor {
  /// Has `work(argument)` called once, on a thread other than the caller's, and does not wait for it. The work may take
  /// as long as NCCL does; it makes the rank's device current and puts back what was. Null: a detached thread of ours.
  void (*run)(void* context, void (*work)(void* argument), void* argument) = nullptr;
  void* context = nullptr;  ///< handed to `run`
};

}  // namespace nccl
BALLAST_END_NAMESPACE

#endif
