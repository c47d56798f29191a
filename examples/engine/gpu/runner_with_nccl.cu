// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/cudart/copy_batch.hpp>
#include <ballast/nccl/communicator.hpp>
#include <ballast/nccl/transport.hpp>

#include "device_runner.hpp"
#include "device_runner_over.cuh"

#include <utility>

namespace engine {

std::unique_ptr<model_runner> make_runner_with_nccl(runner_parts const& parts, card_parts const& on,
                                                    thread_wires const& lent) {
  ballast::nccl::transport_options options;
  options.compute_stream = on.card.stream();
  options.timed = true;
  // No kernel of a pass waits until others of its rank have started, so those of NCCL may stand beside them.
  options.allow_sm_overlap = parts.of().asynchronous;
  using runner = device_runner<ballast::nccl::transport, cudart::copy_batch, ballast::in_process_endpoint>;
  return std::make_unique<runner>(parts, on, lent.control, [&lent, &options] {
    ballast::nccl::communicator wires;
    ballast::nccl::communicator::create(lent.control, wires, options.communicator_in_force()).or_throw();
    return ballast::nccl::transport{std::move(wires), options};
  });
}

}  // namespace engine
