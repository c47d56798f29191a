// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/cudart/copy_batch.hpp>
#include <ballast/cudart/ipc_peers.hpp>
#include <ballast/posix/process_group.hpp>

#include "device_runner.hpp"
#include "device_runner_over.cuh"

namespace engine {

std::unique_ptr<model_runner> make_runner_of_process(runner_parts const& parts, card_parts const& on,
                                                     ballast::posix::process_group& control) {
  using peers = cudart::ipc_peers<ballast::posix::process_group>;
  using transport = cudart::peer_copy<peers, cudart::copy_batch>;
  using runner = device_runner<transport, cudart::copy_batch, ballast::posix::process_group>;
  return std::make_unique<runner>(parts, on, control,
                                  [&control] { return transport{peers{control}, {.timed = true}}; });
}

}  // namespace engine
