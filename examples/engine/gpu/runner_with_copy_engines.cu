// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/cudart/copy_batch.hpp>

#include "device_runner.hpp"
#include "device_runner_over.cuh"

namespace engine {

std::unique_ptr<model_runner> make_runner_with_copy_engines(runner_parts const& parts, card_parts const& on,
                                                            thread_wires const& wires) {
  return make_peer_runner<cudart::copy_batch>(parts, on, wires);
}

}  // namespace engine
