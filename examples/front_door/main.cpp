// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Four engines on four ranks, here threads: half of all picks go to one expert of each layer. The policy comes from the
// command line.
#include <ballast/placement/placement.hpp>
#include <ballast/transport/in_process.hpp>

#include "engine.hpp"

#include <cstddef>
#include <cstdio>
#include <utility>
#include <vector>

int main(int argc, char** argv) {  // NOLINT(bugprone-exception-escape): a failure ends the program with its message
  auto const* const policy = argc > 1 ? argv[1] : "incremental";
  bool known = true;
  ballast::in_process_group group{4};
  group.run([&](ballast::in_process_endpoint& endpoint) {
    engine made{endpoint};
    if (!made.plan_with(policy)) {
      if (endpoint.rank() == 0) { known = false; }
      return;
    }
    made.serve();
    auto self = std::move(made);  // started or not
    std::vector<std::vector<int>> picks(engine::num_layers);
    for (int token = 0; token < 64; ++token) {
      for (std::size_t layer = 0; layer < picks.size(); ++layer) {
        picks[layer].insert(picks[layer].end(), {layer == 0 ? 0 : 5, token % engine::num_experts});
      }
    }
    for (int pass = 1; pass <= 13; ++pass) { self.pass(picks); }
    if (endpoint.rank() != 0) { return; }
    std::printf("%s: replicas of the hot experts %d and %d\n", policy, self.placement_in_force().replica_count(0, 0),
                self.placement_in_force().replica_count(1, 5));
  });
  if (!known) { std::fprintf(stderr, "there is no policy '%s'; known are: incremental, deepseek\n", policy); }
  return known ? 0 : 1;
}
