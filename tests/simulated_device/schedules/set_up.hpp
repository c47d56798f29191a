// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SIMULATED_DEVICE_SCHEDULES_SET_UP_HPP
#define BALLAST_TESTS_SIMULATED_DEVICE_SCHEDULES_SET_UP_HPP

#include <ballast/detail/text.hpp>
#include <ballast/types.hpp>

#include "support/group_runner.hpp"

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ballast_test::schedules {

using ballast::index_t;
using ballast::nanoseconds_t;

enum class wires { local_peers, ipc_peers, nccl, by_link_local, by_link_ipc };
inline constexpr std::array<std::string_view, 5> wire_names{"local_peers", "ipc_peers", "nccl", "by_link(local, nccl)",
                                                            "by_link(ipc, nccl)"};

/// What goes wrong.
enum class mishap_kind {
  late_rank,       ///< a rank's host is late
  held_stream,     ///< a rank's compute stream stands
  failing_call,    ///< a call of the runtime fails before any commit is decided
  failing_commit,  ///< a call fails inside of a commit, which leaves the layer torn
  no_memory,       ///< an allocation fails
  switched_off,    ///< `disable()` in the middle, and `enable()` some steps later
  capture,         ///< another thread captures in global mode
  applied_twice,   ///< two plans of the operator's, one after the other
  async_error,     ///< NCCL tells an error
};
inline constexpr std::array<std::string_view, 9> mishap_names{
    "late rank",    "held stream", "failing call",  "failing commit",           "no memory",
    "switched off", "capture",     "applied twice", "NCCL's asynchronous error"};

/// One of them: when, to whom, and how much.
struct mishap {
  mishap_kind kind = mishap_kind::late_rank;
  index_t step = 0;
  index_t rank = 0;
  nanoseconds_t duration = 0;
  std::string_view call;
  int error = cudaErrorUnknown;
  int skip = 0;
};

/// Everything that a seed decides.
struct set_up {
  std::uint64_t seed = 0;
  wires transport = wires::local_peers;
  index_t num_ranks = 2;
  int num_devices = 1;
  bool peer_access = true;
  bool asynchronous = false;
  index_t num_models = 1;
  index_t num_layers = 1;
  index_t slots_per_rank = 2;
  index_t layers_per_chunk = 1;
  index_t rounds_per_batch = 0;
  std::int64_t max_message_bytes = 0;
  bool verify = false;
  bool small_staging = false;
  bool allow_sm_overlap = false;
  index_t num_streams = 3;
  nanoseconds_t timeout = 0;
  nanoseconds_t pass = 0;  ///< how long a forward pass takes
  double pauses = 0;
  std::vector<mishap> mishaps;
  index_t num_steps = 0;
};

[[nodiscard]] inline bool uses_nccl(set_up const& what) {
  return what.transport != wires::local_peers && what.transport != wires::ipc_peers;
}

[[nodiscard]] inline mishap draw_failing_call(dice& draw, bool with_nccl) {
  struct candidate {
    std::string_view call;
    int error;
  };
  static constexpr candidate calls[] = {
      {"cudaEventRecord", cudaErrorUnknown},
      {"cudaEventQuery", cudaErrorUnknown},
      {"cudaStreamQuery", cudaErrorUnknown},
      {"cudaStreamWaitEvent", cudaErrorUnknown},
      {"cudaMemcpyBatchAsync", cudaErrorUnknown},
      {"cudaMemcpyAsync", cudaErrorUnknown},
      {"ncclGroupEnd", ncclSystemError},
      {"ncclSend", ncclInternalError},
      {"ncclRecv", ncclInternalError},
      {"ncclCommGetAsyncError", ncclRemoteError},
  };
  auto const& chosen = calls[draw.below(with_nccl ? std::size(calls) : std::size_t{6})];
  mishap result;
  result.kind = mishap_kind::failing_call;
  result.call = chosen.call;
  result.error = chosen.error;
  result.skip = draw.below(4);
  return result;
}

/// The last mishap of its schedule, because it is the end of the rank that meets it.
[[nodiscard]] inline mishap draw_failing_commit(dice& draw) {
  static constexpr std::string_view calls[] = {"cudaEventRecord", "cudaMemcpyBatchAsync", "cudaMemcpyAsync"};
  mishap result;
  result.kind = mishap_kind::failing_commit;
  result.call = calls[draw.below(std::size(calls))];
  result.error = cudaErrorUnknown;
  result.skip = draw.below(3);
  return result;
}

[[nodiscard]] inline mishap draw_mishap(dice& draw, set_up const& of) {
  mishap result;
  switch (draw.below(of.transport >= wires::nccl ? 9 : 8)) {
    case 0: result.kind = mishap_kind::late_rank; break;
    case 1: result.kind = mishap_kind::held_stream; break;
    case 2:
    case 3: result = draw_failing_call(draw, uses_nccl(of)); break;
    case 4:
      result.kind = mishap_kind::no_memory;
      result.call = draw.below(2) == 0 ? "cudaMalloc" : "cudaMallocAsync";
      result.error = cudaErrorMemoryAllocation;
      break;
    case 5: result.kind = mishap_kind::switched_off; break;
    case 6: result.kind = mishap_kind::capture; break;
    case 7: result.kind = mishap_kind::applied_twice; break;
    default: result.kind = mishap_kind::async_error; break;
  }
  result.rank = draw.below(of.num_ranks);
  // From a tenth of a timeout to three of them.
  result.duration = of.timeout / 10 + draw.below(3 * of.timeout);
  return result;
}

[[nodiscard]] inline set_up draw_set_up(std::uint64_t seed, std::vector<wires> const& transports) {
  dice draw{seed};
  set_up result;
  result.seed = seed;
  result.transport = transports[draw.below(transports.size())];
  bool const has_nodes = result.transport >= wires::by_link_local;
  result.num_ranks = has_nodes ? 4 : 2 + draw.below(4);
  result.num_devices = 1 + draw.below(4);
  // Other processes' memory cannot be mapped without, and start says so.
  bool const is_ipc = result.transport == wires::ipc_peers || result.transport == wires::by_link_ipc;
  result.peer_access = draw.below(8) != 0 || is_ipc;
  result.allow_sm_overlap = draw.below(2) == 0;
  result.asynchronous = draw.below(2) == 0 && (!uses_nccl(result) || result.allow_sm_overlap);
  result.num_models = 1 + draw.below(2);
  result.num_layers = 1 + draw.below(3);
  result.slots_per_rank = 1 + draw.below(3);
  result.layers_per_chunk = 1 + draw.below(2);
  bool const is_default = draw.below(2) == 0;
  result.rounds_per_batch = is_default ? 0 : draw.below(3);
  result.max_message_bytes = is_default || draw.below(2) == 0 ? 0 : 700;
  result.verify = !is_default && draw.below(3) == 0;
  result.small_staging = !is_default && draw.below(3) == 0;
  result.num_streams = is_default ? 3 : 1 + draw.below(4);
  constexpr nanoseconds_t shortest_timeout = 4'000'000;
  result.timeout = shortest_timeout + draw.below(shortest_timeout);
  result.pass = 20'000 + draw.below(300'000);
  result.pauses = draw.below(2) == 0 ? 0.02 : 0.15;
  index_t step = 3;
  for (auto count = 1 + draw.below(4); count > 0; --count) {
    result.mishaps.push_back(draw_mishap(draw, result));
    result.mishaps.back().step = step;
    step += 2 + draw.below(5);
  }
  if (draw.below(8) == 0) {
    result.mishaps.push_back(draw_failing_commit(draw));
    result.mishaps.back().rank = draw.below(result.num_ranks);
    result.mishaps.back().step = step;
  }
  result.num_steps = step + 6;
  return result;
}

[[nodiscard]] inline std::string to_text(set_up const& what) {
  using ballast::detail::concat;
  auto text = concat("seed ", what.seed, ": ", wire_names[static_cast<std::size_t>(what.transport)], ", ",
                     what.asynchronous ? "asynchronous" : "synchronous", ", ", what.num_ranks, " ranks on ",
                     what.num_devices, " devices", what.peer_access ? "" : " without peer access", ", ",
                     what.num_models, " models of ", what.num_layers, " layers, ", what.slots_per_rank, " slots, ",
                     what.layers_per_chunk, " layers a chunk, ", what.rounds_per_batch, " rounds a batch, messages of ",
                     what.max_message_bytes, " bytes, ", what.num_streams, " streams, timeout ", what.timeout,
                     " ns, passes of ", what.pass, " ns", what.verify ? ", verified" : "",
                     what.small_staging ? ", small staging" : "", what.allow_sm_overlap ? ", overlap" : "", "\n");
  for (auto const& each : what.mishaps) {
    text += concat("  step ", each.step, ", rank ", each.rank, ": ", mishap_names[static_cast<std::size_t>(each.kind)],
                   ", ", each.duration, " ns ", each.call, " skip ", each.skip, "\n");
  }
  return text;
}

}  // namespace ballast_test::schedules

#endif
