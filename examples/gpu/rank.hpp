// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_GPU_RANK_HPP
#define BALLAST_EXAMPLES_GPU_RANK_HPP

#include <ballast/cudart/peer_directory.hpp>
#include <ballast/load/history.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/topology.hpp>
#include <ballast/transport/in_process.hpp>
#include <ballast/types.hpp>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace gpu_example {

/// What every rank is told.
struct settings {
  ballast::topology where;
  ballast::placement initial;  ///< [L, P]
  int num_devices = 1;
  bool over_nccl = false;
  ballast::index_t num_tokens = 0;  ///< T of a pass
  ballast::index_t top_k = 1;       ///< k
  ballast::index_t interval = 6;    ///< passes between plans
  ballast::index_t stall_at = 0;    ///< from this pass on rank 1 comes late once, while weights move; 0: never
  /// For each pass [L, T, k] logical experts, what the routers choose. Here all ranks see the same tokens.
  std::vector<std::vector<std::int32_t>> choices;
};

/// Where the ranks meet, here threads of one process.
struct meeting_places {
  explicit meeting_places(ballast::index_t num_ranks) : engine{num_ranks}, balancing{num_ranks}, memory{num_ranks} {}
  ballast::in_process_group engine;     ///< the engine's own exchange, once a pass
  ballast::in_process_group balancing;  ///< lent to ballast, to agree over
  ballast::cudart::local_peers memory;  ///< where the ranks find each other's weights, without NCCL
};

/// What a pass was like. Rank 0 tells.
struct pass_facts {
  std::vector<ballast::load_t> work;  ///< [R, L] choices that each rank computed
  std::int64_t num_wrong = 0;         ///< outputs that are not what the chosen experts make of their tokens
  std::string first_wrong;
  std::int64_t moves = 0;
  std::int64_t bytes = 0;
  ballast::nanoseconds_t call = 0;  ///< host time of `on_forward_pass_end`
  std::string failure;              ///< why the moves ended early; the ranks have resumed
};
using pass_listener = std::function<void(pass_facts const&)>;

/// Serve all passes as one rank of the engine; called on a thread for each.
/// @throws std::system_error for what ends the engine
void serve(settings const& how, meeting_places& places, ballast::index_t rank, pass_listener const& tell);

}  // namespace gpu_example

#endif
