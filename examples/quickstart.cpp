// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Two MoE layers of eight experts on four ranks, here threads: each layer has an expert that half of all picks go to.
#include <ballast/ballast.hpp>
#include <ballast/policies/balanced.hpp>
#include <ballast/schedule/schedules.hpp>
#include <ballast/transport/in_process.hpp>

#include <cstdio>
#include <span>
#include <vector>

int main() {  // NOLINT(bugprone-exception-escape): a failure ends the program with its message
  constexpr int num_layers = 2, num_experts = 8, floats_per_expert = 1024, hot_expert[] = {0, 5};
  ballast::topology const where{{.num_ranks = 4, .num_nodes = 2, .slots_per_rank = 3}};
  auto const initial = ballast::trivial_placement({num_layers, num_experts, where.num_slots()});

  ballast::in_process_group group{where.num_ranks()};      // in an engine: its NCCL, MPI or own communicator
  group.run([&](ballast::in_process_endpoint& endpoint) {  // what every rank does
    std::vector<std::vector<float>> weights(num_layers, std::vector<float>(std::size_t{3} * floats_per_expert));
    ballast::host_store store{where, num_layers};
    for (int layer = 0; layer < num_layers; ++layer) {
      auto* const first_expert = weights[static_cast<std::size_t>(layer)].data();
      store.add(layer, "weights", first_expert, floats_per_expert * sizeof(float)).or_throw();
    }
    ballast::rebalancer rebalancer{
        where, initial,
        ballast::rebalancing{ballast::window_recorder{num_layers, num_experts, {.passes = 10}},
                             ballast::balanced_placement{},
                             ballast::layers_per_chunk{1},
                             {.interval = 10}},
        store, endpoint};
    rebalancer.start().or_throw();

    std::vector<ballast::load_t> counts(16);  // only to show what was gained
    ballast::matrix_view const loads{std::span{counts}, num_layers, num_experts};
    for (int pass = 1; pass <= 13; ++pass) {
      for (int layer = 0; layer < num_layers; ++layer) {
        for (int token = 0; token < 64; ++token) {
          int const picks[] = {hot_expert[layer], token % num_experts};  // in an engine: the router's top-k ids
          rebalancer.record_top_k(layer, picks);
          for (int const expert : picks) { ++loads(layer, expert); }
        }
      }
      rebalancer.on_forward_pass_end().or_throw();
      if (endpoint.rank() != 0 || pass < 10) { continue; }
      std::printf("pass %d: balancedness %.3f, replicas of the hot experts %d and %d\n", pass,
                  ballast::balancedness(where, rebalancer.current(), loads),
                  rebalancer.current().replica_count(0, hot_expert[0]),
                  rebalancer.current().replica_count(1, hot_expert[1]));
    }
  });
}
