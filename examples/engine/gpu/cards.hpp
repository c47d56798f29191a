// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_GPU_CARDS_HPP
#define BALLAST_EXAMPLES_ENGINE_GPU_CARDS_HPP

#include "check.hpp"

#include <algorithm>
#include <cstdlib>

namespace engine {

/// Ranks wait for each other, and must not stand in one queue. @pre CUDA has not been used yet
inline void ask_for_queues() { ::setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0); }

/// @param wanted  at most, or 0
[[nodiscard]] inline int count_cards(int wanted) {
  int found = 0;
  check(cudaGetDeviceCount(&found), "cudaGetDeviceCount");
  return wanted > 0 ? std::min(wanted, found) : found;
}

}  // namespace engine

#endif
