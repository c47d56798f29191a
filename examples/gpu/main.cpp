// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// A small MoE engine on GPUs that keeps its experts balanced while it serves: a rank a card with NCCL, or several ranks
// on one card. Its routing is that of DeepSeek-V2-Lite, and changes in the middle. Every output of every pass is
// checked. It ends with 1 where one is wrong, or where balance did not improve.
#include <ballast/cudart/error.hpp>
#include <ballast/load/history.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include "choices.hpp"
#include "rank.hpp"
#include "report.hpp"
#include "support/cli.hpp"
#include "support/trace.hpp"

#include <cuda_runtime_api.h>

#include <cstdio>
#include <exception>
#include <optional>
#include <string>

namespace {

using ballast::index_t;
using gpu_example::settings;

/// What the trace was recorded with, and how much of it this engine serves.
constexpr index_t num_tokens = 512, top_k = 6, steps_of_a_task = 16, num_layers = 4, spare_slots = 2;

struct options {
  index_t ranks = 0;
  std::optional<std::string> transport = "auto";
  index_t passes = 64;
  index_t stall_at = 0;

  void add_to(CLI::App& app) {
    using namespace ballast_tools;
    add_integer(app, "--ranks", ranks, "Ranks (0: one a card, or four that share the only one)");
    add_text(app, "--transport", transport, "auto, nccl (a card for each rank), or peer (copies between the ranks)");
    add_integer(app, "--passes", passes, "Forward passes; the traffic changes after half of them (64)");
    add_integer(app, "--stall-at", stall_at,
                "From this pass on rank 1 comes late once, to see the ranks recover (0: never)");
  }
};

[[nodiscard]] ballast::status refuse(auto const&... parts) {
  return {ballast::errc::invalid_option, ballast::detail::concat(parts...)};
}

/// @param how out
[[nodiscard]] ballast::status make_settings(options const& given, settings& how) {
  auto const found = cudaGetDeviceCount(&how.num_devices);
  if (auto result = ballast::cudart::to_status(found, "cudaGetDeviceCount"); !result.ok()) { return result; }
  auto const ranks = given.ranks != 0 ? given.ranks : how.num_devices > 1 ? how.num_devices : 4;
  bool const card_each = how.num_devices >= ranks;
  auto const transport = given.transport.value_or("auto");
  if (ranks < 2 || ranks > 64) { return refuse("ranks are ", ranks, ", must be from 2 to 64"); }
  if (transport != "auto" && transport != "nccl" && transport != "peer") {
    return refuse("transport is '", transport, "', must be auto, nccl or peer");
  }
  if (transport == "nccl" && !card_each) {
    return refuse("NCCL takes one rank a card: ", ranks, " ranks on ", how.num_devices, " need --transport peer");
  }
  if (given.passes < 48 || given.passes > 100'000) {
    return refuse("passes are ", given.passes, ", must be from 48 to 100000");
  }
  how.over_nccl = transport != "peer" && card_each;
  how.num_tokens = num_tokens;
  how.top_k = top_k;
  how.stall_at = given.stall_at;

  ballast_tools::trace trace;
  if (auto result = ballast_tools::read_trace(EXAMPLE_TRACE, trace); !result.ok()) { return result; }
  how.where = ballast::topology{{ranks, 1, (trace.num_logical + ranks - 1) / ranks + spare_slots, 0}};
  how.initial = ballast::trivial_placement({num_layers, trace.num_logical, how.where.num_slots()});
  // The first task of the trace for half of the passes, then its last.
  for (index_t pass = 0; pass < given.passes; ++pass) {
    auto const first_step = pass < given.passes / 2 ? 0 : trace.num_steps - steps_of_a_task;
    auto const loads = trace.history().bucket(first_step + pass % steps_of_a_task);
    how.choices.push_back(gpu_example::choices_of(loads, num_layers, num_tokens, top_k));
  }
  return {};
}

void introduce(settings const& how) {
  auto const* const moves = how.over_nccl         ? "a rank a card, experts move over NCCL"
                            : how.num_devices > 1 ? "experts move by copies from rank to rank"
                                                  : "experts move by copies from rank to rank, because NCCL does not "
                                                    "take two ranks on one card";
  std::printf("%d ranks on %d %s: %s\n", how.where.num_ranks(), how.num_devices,
              how.num_devices == 1 ? "card" : "cards", moves);
  std::printf("%d layers of %d experts, %d slots a rank; a pass is %d tokens, top-%d\n\n", num_layers,
              how.initial.num_logical(), how.where.slots_per_rank(), num_tokens, top_k);
}

/// Serve all passes with a thread for each rank. @param good  out: whether they were as they should be
[[nodiscard]] ballast::status serve_all(options const& given, bool& good) {
  settings how;
  if (auto result = make_settings(given, how); !result.ok()) { return result; }
  introduce(how);
  gpu_example::report seen{how};
  gpu_example::meeting_places places{how.where.num_ranks()};
  places.engine.run([&](ballast::in_process_endpoint& endpoint) {
    try {
      gpu_example::serve(how, places, endpoint.rank(), [&](gpu_example::pass_facts const& pass) { seen.add(pass); });
    } catch (std::exception const& error) {
      std::fprintf(stderr, "rank %d: %s\n", endpoint.rank(), error.what());
      places.engine.kill(endpoint.rank());  // the others need not wait for it
      throw;
    }
  });
  good = seen.conclude();
  return ballast_tools::flush_standard_output();
}

}  // namespace

int main(int argc, char** argv) {
  bool good = true;
  auto const exit_status =
      ballast_tools::run_tool<options>("gpu-example", "Serve a small MoE model on GPUs, and keep its experts balanced.",
                                       argc, argv, [&](options const& given) { return serve_all(given, good); });
  return exit_status == 0 && !good ? 1 : exit_status;
}
