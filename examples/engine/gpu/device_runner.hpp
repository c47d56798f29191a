// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_GPU_DEVICE_RUNNER_HPP
#define BALLAST_EXAMPLES_ENGINE_GPU_DEVICE_RUNNER_HPP

#include <ballast/cudart/peer_directory.hpp>
#include <ballast/posix/process_group.hpp>
#include <ballast/transport/in_process.hpp>
#include <ballast/transport/transport.hpp>

#include "../exchange.hpp"
#include "../model_runner.hpp"
#include "rank_card.hpp"

#include <functional>
#include <memory>
#include <vector>

namespace engine {

/// Shows all ranks a piece of this one's memory, in an allocation of its own; called by all together.
/// @return [R] their pieces, as this rank can write to them. @throws std::system_error
using show_function = std::function<std::vector<ballast::segment>(ballast::segment mine)>;

/// What a runner on a card is made of; all of it outlives the runner.
struct card_parts {
  rank_card& card;
  token_exchange& ranks;  ///< the engine's own wires
  show_function show;
};
/// What is lent to ballast where ranks are threads: a control plane, and where they find each other's weights.
struct thread_wires {
  ballast::in_process_endpoint& control;
  ballast::cudart::local_peers& peers;
};

/// The model on one card, or a part of it, and the rebalancer that moves its weights with copy engines, with kernels,
/// or with NCCL. The last is called by all ranks together.
/// @throws std::system_error for parts that do not fit together, and for a card that fails
[[nodiscard]] std::unique_ptr<model_runner> make_runner_with_copy_engines(runner_parts const& parts,
                                                                          card_parts const& on,
                                                                          thread_wires const& wires);
[[nodiscard]] std::unique_ptr<model_runner> make_runner_with_kernels(runner_parts const& parts, card_parts const& on,
                                                                     thread_wires const& wires);
[[nodiscard]] std::unique_ptr<model_runner> make_runner_with_nccl(runner_parts const& parts, card_parts const& on,
                                                                  thread_wires const& wires);
/// The same where ranks are processes: with copy engines, called by all together. @param control  lent to ballast
[[nodiscard]] std::unique_ptr<model_runner> make_runner_of_process(runner_parts const& parts, card_parts const& on,
                                                                   ballast::posix::process_group& control);

}  // namespace engine

#endif
