// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/cudart/copy_batch.hpp>
#include <ballast/cudart/peer_copy.hpp>

#include "device_runner.hpp"
#include "device_runner_over.cuh"

namespace engine {

std::unique_ptr<model_runner> make_runner_with_copy_engines(runner_parts const& parts, card_parts const& on) {
  using transport = cudart::peer_copy<cudart::local_peers::member>;
  return std::make_unique<device_runner<transport, cudart::copy_batch>>(parts, on.card, on.ranks, on.control, [&on] {
    return transport{on.peers.join(on.card.rank()), {.timed = true}};
  });
}

}  // namespace engine
