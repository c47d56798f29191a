// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_REFERENCE_HPP
#define BALLAST_EXAMPLES_ENGINE_REFERENCE_HPP

#include "model.hpp"
#include "scheduler.hpp"
#include "traffic.hpp"

#include <cstdint>
#include <span>
#include <vector>

namespace engine {

/// What all requests must come to: bits of each one's outputs, and how often each expert was chosen.
struct reference_outcome {
  std::vector<std::uint64_t> outcomes;  ///< [requests]
  std::vector<std::int64_t> chosen;     ///< [kinds, L, E]
};

/// Serve all requests on one rank that has the whole model and knows nothing of ballast.
/// @param how  passes of it; `num_ranks` must be 1
[[nodiscard]] reference_outcome serve_alone(model const& of, std::span<request const> requests,
                                            schedule_options const& how);

/// @param tokens_a_rank  of the batches that `other` came from
/// @throws std::system_error naming the first request whose outputs differ: nothing could be proven then
void require_alike(std::span<std::uint64_t const> first, std::span<std::uint64_t const> other, index_t tokens_a_rank);

/// Serve them in several ways: each token by itself, and in batches of several sizes and orders.
///
/// @return that of the first way
/// @throws as `require_alike`
[[nodiscard]] reference_outcome prove_batch_invariance(model const& of, std::span<request const> requests);

}  // namespace engine

#endif
