// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_GPU_GPU_RANKS_HPP
#define BALLAST_EXAMPLES_ENGINE_GPU_GPU_RANKS_HPP

#include "../model.hpp"
#include "../rank_links.hpp"
#include "../settings.hpp"
#include "../traffic.hpp"

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace engine {

/// Serve all requests on one card that has the whole model and knows nothing of ballast, in batches of two sizes and
/// orders.
///
/// @return [requests] bits of the outputs
/// @throws std::system_error naming the first request whose outputs depend on the batches, and for cards that fail
[[nodiscard]] std::vector<std::uint64_t> prove_batch_invariance_on_card(settings const& how,
                                                                        std::span<routing_skew const> skews,
                                                                        std::span<request const> requests);

/// Run a function on every rank, each a thread of this process with a card of its own, or an equal part of one.
/// @throws what it throws, and std::system_error for cards that fail
void run_on_gpus(settings const& how, std::span<routing_skew const> skews, rank_function const& body);
/// The same with ranks that are processes, a card each while there are enough: rank 0 is this process, the others are
/// its children.
/// @param before  what rank 0 does before it meets the others
/// @pre CUDA has not been used yet
void run_on_gpus_as_processes(settings const& how, std::span<routing_skew const> skews,
                              std::function<void()> const& before, rank_function const& body);

}  // namespace engine

#endif
