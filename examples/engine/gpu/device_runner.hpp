// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_GPU_DEVICE_RUNNER_HPP
#define BALLAST_EXAMPLES_ENGINE_GPU_DEVICE_RUNNER_HPP

#include <ballast/cudart/peer_directory.hpp>
#include <ballast/transport/in_process.hpp>

#include "../exchange.hpp"
#include "../model_runner.hpp"
#include "rank_card.hpp"

#include <memory>

namespace engine {

/// What a runner on a card is made of; all of it outlives the runner.
struct card_parts {
  rank_card& card;
  token_exchange& ranks;                  ///< the engine's own wires, to show each other where counts go
  ballast::in_process_endpoint& control;  ///< lent to ballast
  ballast::cudart::local_peers& peers;    ///< where the ranks find each other's weights
};

/// The model on one card, or a part of it, and the rebalancer that moves its weights with copy engines, with kernels,
/// or with NCCL. The last is called by all ranks together.
/// @throws std::system_error for parts that do not fit together, and for a card that fails
[[nodiscard]] std::unique_ptr<model_runner> make_runner_with_copy_engines(runner_parts const& parts,
                                                                          card_parts const& on);
[[nodiscard]] std::unique_ptr<model_runner> make_runner_with_kernels(runner_parts const& parts, card_parts const& on);
[[nodiscard]] std::unique_ptr<model_runner> make_runner_with_nccl(runner_parts const& parts, card_parts const& on);

}  // namespace engine

#endif
