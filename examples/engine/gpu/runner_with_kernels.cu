// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/cudart/kernels/kernel_copies.cuh>
#include <ballast/cudart/peer_copy.hpp>

#include "device_runner.hpp"
#include "device_runner_over.cuh"

namespace engine {

std::unique_ptr<model_runner> make_runner_with_kernels(runner_parts const& parts, card_parts const& on) {
  using transport = cudart::peer_copy<cudart::local_peers::member, cudart::kernel_copies>;
  return std::make_unique<device_runner<transport, cudart::kernel_copies>>(parts, on.card, on.ranks, on.control, [&on] {
    return transport{on.peers.join(on.card.rank()), {.timed = true}};
  });
}

}  // namespace engine
