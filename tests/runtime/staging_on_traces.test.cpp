// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// How little staging real changes need: DeepSeek-R1's next workload on 32 ranks with 9 slots each.
#include <ballast/load/window_recorder.hpp>
#include <ballast/policies/balanced.hpp>
#include <ballast/policies/incremental.hpp>
#include <ballast/runtime/rebalancer.hpp>
#include <ballast/schedule/schedules.hpp>
#include <ballast/transport/in_process.hpp>

#include "../support/patterned_weights.hpp"
#include "../support/policies.hpp"
#include "../support/trace_files.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace {

using namespace ballast;
using namespace ballast_test;

topology const where{{32, 4, 9, 0}};
constexpr std::size_t expert_bytes = 256;  // one place in staging
constexpr std::size_t layer_bytes = 9 * expert_bytes;

struct outcome {
  std::string error;
  std::size_t staged = 0;  // most on any rank
  epoch_t epochs = 0;      // of all layers together
};

// Bring every rank from one placement to another with a limit on staging.
outcome apply(placement const& from, placement const& to, std::size_t staging_limit) {
  in_process_group group{where.num_ranks()};
  std::vector<outcome> outcomes(static_cast<std::size_t>(where.num_ranks()));
  group.run([&](in_process_endpoint& me) {
    patterned_weights weights{where, me.rank(), from, {{expert_bytes, expert_bytes}}};
    host_store store{where, from.num_layers(), staging_limit};
    weights.add_to(store);
    rebalancer moved{where, from,
                     rebalancing{window_recorder{from.num_layers(), from.num_logical()}, keep_placement{},
                                 layers_per_chunk{1}, rebalancer_options{.timeout = 60'000'000'000}},
                     store, me};
    moved.start().or_throw();
    moved.apply(to).or_throw();
    auto& mine = outcomes[static_cast<std::size_t>(me.rank())];
    mine.error = moved.current() == to ? weights.first_error(to) : "another placement is in force";
    mine.staged = store.staging_high_water();
    for (index_t layer = 0; layer < from.num_layers(); ++layer) { mine.epochs += moved.epoch(layer); }
  });
  outcome worst;
  for (auto const& rank : outcomes) {
    if (worst.error.empty()) { worst.error = rank.error; }
    worst.staged = std::max(worst.staged, rank.staged);
    worst.epochs = std::max(worst.epochs, rank.epochs);
  }
  return worst;
}

}  // namespace

TEST_CASE("the next workload needs a quarter of a layer, a full reshuffle one expert") {
  auto const before_file = find_trace("deepseek-r1/prefill_in1024");
  auto const after_file = find_trace("deepseek-r1/prefill_in4096");
  if (before_file.empty() || after_file.empty()) {
    std::puts("skipped: the DeepSeek-R1 traces are not here");
    std::exit(77);
  }
  auto const before = read_trace(before_file);
  auto const after = read_trace(after_file);
  placement_shape const sizes{before.layers, before.experts, where.num_slots()};
  placement planned;
  plan(balanced_placement{}, before.history(), trivial_placement(sizes), where, planned).or_throw();
  placement next;
  plan(incremental_placement{.max_moves_per_layer = 24}, after.history(), planned, where, next).or_throw();

  auto const incremental = apply(planned, next, layer_bytes / 4);
  CHECK(incremental.error == "");
  CHECK(incremental.staged <= layer_bytes / 4);
  MESSAGE("24 moves a layer: " << incremental.staged << " bytes staged of a layer's " << layer_bytes << ", "
                               << incremental.epochs << " commits for " << sizes.num_layers << " layers");

  plan(balanced_placement{}, after.history(), trivial_placement(sizes), where, next).or_throw();
  auto const reshuffled = apply(planned, next, expert_bytes);
  CHECK(reshuffled.error == "");
  CHECK(reshuffled.staged <= expert_bytes);
  MESSAGE("from scratch: " << reshuffled.staged << " bytes staged, " << reshuffled.epochs << " commits");
}
