// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/cudart/kernels/kernel_copies.cuh>

#include "device_runner.hpp"
#include "device_runner_over.cuh"

namespace engine {

std::unique_ptr<model_runner> make_runner_with_kernels(runner_parts const& parts, card_parts const& on,
                                                       thread_wires const& wires) {
  return make_peer_runner<cudart::kernel_copies>(parts, on, wires);
}

}  // namespace engine
