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

/// The model on one card, or a part of it, and the rebalancer that moves its weights.
/// @param ranks    the engine's own wires, to show each other where counts go
/// @param control  lent to ballast
/// @param peers    where the ranks find each other's weights
/// @throws std::system_error for parts that do not fit together, and for a card that fails
[[nodiscard]] std::unique_ptr<model_runner> make_device_runner(runner_parts const& parts, rank_card& card,
                                                               token_exchange& ranks,
                                                               ballast::in_process_endpoint& control,
                                                               ballast::cudart::local_peers& peers);

}  // namespace engine

#endif
