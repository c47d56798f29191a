// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/cudart/copy_batch.hpp>
#include <ballast/nccl/communicator.hpp>
#include <ballast/nccl/transport.hpp>

#include "device_runner.hpp"
#include "device_runner_over.cuh"

#include <utility>

namespace engine {

std::unique_ptr<model_runner> make_runner_with_nccl(runner_parts const& parts, card_parts const& on) {
  ballast::nccl::transport_options options;
  options.compute_stream = on.card.stream();
  options.timed = true;
  // No kernel of a pass waits until others of its rank have started, so those of NCCL may stand beside them.
  options.allow_sm_overlap = parts.of().asynchronous;
  return std::make_unique<device_runner<ballast::nccl::transport, cudart::copy_batch>>(parts, on, [&on, &options] {
    ballast::nccl::communicator wires;
    ballast::nccl::communicator::create(on.control, wires, options.communicator_in_force()).or_throw();
    return ballast::nccl::transport{std::move(wires), options};
  });
}

}  // namespace engine
